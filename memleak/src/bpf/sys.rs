//! bpf(2) as aya does not call it. Maps are read in batches: a million records in a fraction of a
//! second, where a key by key iteration takes seconds.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use aya::Pod;
use aya_obj::generated::{BPF_F_INNER_MAP, BPF_F_MMAPABLE, bpf_cmd, bpf_prog_info};

/// The part of `union bpf_attr` that the batch commands use (include/uapi/linux/bpf.h, "struct { /*
/// struct used by BPF_MAP_*_BATCH commands */").
#[repr(C)]
#[derive(Default)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// The part of `union bpf_attr` that the BPF_MAP_*_ELEM commands use.
#[repr(C)]
#[derive(Default)]
struct ElementAttributes {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

const BPF_MAP_UPDATE_ELEM: i32 = 2;
const BPF_OBJ_GET_INFO_BY_FD: i32 = 15;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: i32 = 21;
const BPF_MAP_LOOKUP_BATCH: i32 = 24;
const BPF_MAP_DELETE_BATCH: i32 = 27;
/// Entries asked for in one call, at first: no more than this many, of no more bytes than this.
const BATCH: usize = 16_384;
const BATCH_BYTES: usize = 512 << 10;

/// bpf(2). Gives what the command returns.
pub(super) fn bpf<T>(command: i32, attributes: &mut T) -> io::Result<i64> {
    // SAFETY: bpf(2) reads and writes `size_of::<T>()` bytes of `attributes`, and what the callers
    // point to there.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Calls `each` for every entry of a hash map with this key and value (the map's own sizes must be
/// theirs). Entries that come or go meanwhile may be seen or not; no other is missed or seen twice.
pub(super) fn for_each_entry<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    each: impl FnMut(&K, &V),
) -> io::Result<()> {
    for_each_entry_with(map, each, || {})
}

/// The same, which calls `between` after each batch.
pub(super) fn for_each_entry_with<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    mut each: impl FnMut(&K, &V),
    mut between: impl FnMut(),
) -> io::Result<()> {
    let mut batch = BATCH.min(BATCH_BYTES / (size_of::<K>() + size_of::<V>()).max(1)).max(1);
    let (mut keys, mut values): (Vec<K>, Vec<V>) = (Vec::new(), Vec::new());
    // Where memory is short a few at a time will do.
    while keys.try_reserve_exact(batch).is_err() || values.try_reserve_exact(batch).is_err() {
        if batch == 1 {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        batch /= 2;
    }
    // The place to go on at: opaque, of at most a key's size and at least 4 bytes.
    let mut cursor = vec![0u8; size_of::<K>().max(8)];
    let mut started = false;
    loop {
        let mut attributes = BatchAttributes {
            in_batch: if started { cursor.as_ptr() as u64 } else { 0 },
            out_batch: cursor.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: batch as u32,
            map_fd: map.as_raw_fd() as u32,
            ..BatchAttributes::default()
        };
        let result = bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes);
        let last = match &result {
            Ok(_) => false,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => true,
                // One bucket holds more than all that there was room for.
                Some(libc::ENOSPC) => {
                    batch *= 2;
                    keys.reserve(batch);
                    values.reserve(batch);
                    continue;
                }
                _ => return result.map(drop),
            },
        };
        let count = (attributes.count as usize).min(batch);
        // SAFETY: both vectors have room for `batch` entries, of which the kernel has written
        // `count`; `Pod` types hold any bytes.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        for (key, value) in keys.iter().zip(&values) {
            each(key, value);
        }
        between();
        if last {
            return Ok(());
        }
        keys.clear();
        values.clear();
        started = true;
    }
}

/// Removes the entries of these keys. One that is not there is passed over.
pub(super) fn remove_all<K: Pod>(map: BorrowedFd<'_>, mut keys: &[K]) -> io::Result<()> {
    while !keys.is_empty() {
        let mut attributes = BatchAttributes {
            keys: keys.as_ptr() as u64,
            count: u32::try_from(keys.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?,
            map_fd: map.as_raw_fd() as u32,
            ..BatchAttributes::default()
        };
        match bpf(BPF_MAP_DELETE_BATCH, &mut attributes) {
            Ok(_) => break,
            // The kernel has stopped there, and says how many it has removed before.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                keys = keys.get(attributes.count as usize + 1..).unwrap_or_default();
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Enters `value` under `key`, unless there is something already, which is not an error. Says
/// whether it did.
pub(super) fn put_new<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<bool> {
    const BPF_NOEXIST: u64 = 1;
    let mut attributes = ElementAttributes {
        map_fd: map.as_raw_fd() as u32,
        key: std::ptr::from_ref(key) as u64,
        value: std::ptr::from_ref(value) as u64,
        flags: BPF_NOEXIST,
        ..ElementAttributes::default()
    };
    match bpf(BPF_MAP_UPDATE_ELEM, &mut attributes) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        result => result.map(|_| true),
    }
}

/// Runs of a program that the kernel skipped, since another one was running on the CPU (Linux
/// 5.12).
pub(super) fn recursion_misses(program: BorrowedFd<'_>) -> io::Result<u64> {
    program_info(program).map(|info| info.recursion_misses)
}

/// What the kernel says of a program.
pub(super) fn program_info(program: BorrowedFd<'_>) -> io::Result<bpf_prog_info> {
    /// The part of `union bpf_attr` that BPF_OBJ_GET_INFO_BY_FD uses.
    #[repr(C)]
    struct InfoAttributes {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    // SAFETY: plain integers and bit fields: all zeroes is a value of it.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut attributes = InfoAttributes {
        bpf_fd: program.as_raw_fd() as u32,
        info_len: size_of::<bpf_prog_info>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(info)
}

/// Removes an entry and returns what it held; `None` if there is none.
pub(super) fn take<K: Pod, V: Pod + Default>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = V::default();
    let mut attributes = ElementAttributes {
        map_fd: map.as_raw_fd() as u32,
        key: std::ptr::from_ref(key) as u64,
        value: std::ptr::from_mut(&mut value) as u64,
        ..ElementAttributes::default()
    };
    match bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &mut attributes) {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Enters `value` under `key`, in place of what is there. The value of a map of maps is a
/// descriptor.
pub(super) fn put<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    let mut attributes = ElementAttributes {
        map_fd: map.as_raw_fd() as u32,
        key: std::ptr::from_ref(key) as u64,
        value: std::ptr::from_ref(value) as u64,
        ..ElementAttributes::default()
    };
    bpf(BPF_MAP_UPDATE_ELEM, &mut attributes).map(drop)
}

/// A new array map of one entry: of a word, or of a map like `inner`.
pub(super) fn new_array(inner: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    const BPF_MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;
    create(&mut CreateAttributes {
        map_type: if inner.is_some() { BPF_MAP_TYPE_ARRAY_OF_MAPS } else { BPF_MAP_TYPE_ARRAY },
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        map_flags: 0,
        inner_map_fd: inner.map_or(0, |inner| inner.as_raw_fd() as u32),
    })
}

/// A new array map that can be mapped into memory, for a map of maps whose inner ones differ in
/// size.
pub(super) fn new_segment(value_size: u32, max_entries: u32) -> io::Result<OwnedFd> {
    create(&mut CreateAttributes {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size,
        max_entries,
        map_flags: BPF_F_MMAPABLE | BPF_F_INNER_MAP,
        inner_map_fd: 0,
    })
}

const BPF_MAP_TYPE_ARRAY: u32 = 2;

/// The part of `union bpf_attr` that BPF_MAP_CREATE uses here.
#[repr(C)]
struct CreateAttributes {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
}

fn create(attributes: &mut CreateAttributes) -> io::Result<OwnedFd> {
    const BPF_MAP_CREATE: i32 = 0;
    let fd = RawFd::try_from(bpf(BPF_MAP_CREATE, attributes)?).map_err(io::Error::other)?;
    // SAFETY: the command has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Bytes as words, the last one filled up with zeroes.
pub(super) fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.chunks(size_of::<u64>()).map(|chunk| {
        let mut word = [0; size_of::<u64>()];
        for (to, from) in word.iter_mut().zip(chunk) {
            *to = *from;
        }
        u64::from_ne_bytes(word)
    })
}

/// A `bpf` command that gives a descriptor.
pub(super) fn new_fd<T>(command: bpf_cmd, attributes: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command as i32, attributes)?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the command has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
