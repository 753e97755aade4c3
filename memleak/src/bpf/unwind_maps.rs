//! Unwind tables in the maps that the programs search: written through a memory map, which takes a
//! hundredth of the time of one system call for each word.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::{Ebpf, maps::Map};
use memleak_common::{
    thread::MAX_TARGETS,
    unwind::{MAX_MAPPINGS, Mapping, MappingList, PublishedList},
};

use super::error::{BpfError, map_error};
use crate::{
    proc::maps::Mapping as ProcessMapping,
    symbolize::Target,
    unwind::{Layout, LayoutError, MappedObject, ProcessTables, Shortage, Store, Sums},
};

/// Entries of `UNWIND_MAPPINGS`: a process has 20 to 300, twice while they change.
pub(super) const MAPPINGS: u32 = 32_768;
/// Entries of `UNWIND_LISTS`: one for each slot of a process.
pub(super) const LISTS: u32 = MAX_TARGETS;
/// Words of `UNWIND_WORDS` where nothing is known of what will be mapped (a command): 4 million
/// rows of rustc and LLVM fit in 40 MB.
const WORDS_UNKNOWN: u32 = 5 << 20;
/// Words for what may be loaded later, and for tables on their way out.
const WORDS_SPARE: u32 = 1 << 20;

/// Entries that `UNWIND_WORDS` gets, when tables of so many words are known to be needed. A process
/// that runs may load as much as a command (a database that begins to compile its queries loads all
/// of LLVM).
pub(super) fn words_for(sums: Option<Sums>) -> u32 {
    let Some(sums) = sums else { return WORDS_UNKNOWN };
    // 32 GB of tables would be 4 billion rows: more text than an address space holds.
    let known = u32::try_from(sums.words).unwrap_or(u32::MAX / 2).min(u32::MAX / 2);
    (known + known / 4 + WORDS_SPARE).max(WORDS_UNKNOWN)
}

/// Whether so many words have room for tables that are known, and for some more.
pub(super) fn has_room(words: u32, known: &Sums) -> bool {
    let known = known.words as u64;
    known + known / 8 + u64::from(WORDS_SPARE) / 2 <= u64::from(words)
}

/// The tables of all processes, in the programs' maps.
pub(super) struct Unwinding {
    tables: ProcessTables,
    layout: Layout,
    store: MapStore,
    told: Option<Sums>,
    full: bool,
}

impl Unwinding {
    /// Maps the programs' arrays. `tables` may hold tables already.
    pub(super) fn open(ebpf: &Ebpf, tables: ProcessTables) -> Result<Self, BpfError> {
        let words = WordArray::open(ebpf)?;
        let mappings = Array::open(ebpf, "UNWIND_MAPPINGS")?;
        let lists = Array::open(ebpf, "UNWIND_LISTS")?;
        Ok(Self {
            tables,
            layout: Layout::new(words.len, mappings.len()),
            store: MapStore { words, mappings, lists, generation: 0 },
            told: None,
            full: false,
        })
    }

    /// Brings the tables of the process with this slot up to date with what it has mapped.
    pub(super) fn observe(&mut self, slot: u32, mappings: &[ProcessMapping], target: &dyn Target) {
        if let Some(objects) = self.tables.observe(slot, mappings, target) {
            self.set(slot, &objects);
        }
    }

    /// A process was made by another, and has what that has mapped.
    pub(super) fn inherit(&mut self, parent: u32, child: u32) {
        if let Some(objects) = self.tables.inherit(parent, child) {
            self.set(child, &objects);
        }
    }

    /// Enters objects that [`ProcessTables::observe`] gave.
    pub(super) fn set(&mut self, slot: u32, objects: &[MappedObject]) {
        let mut result = self.layout.set_process(slot, objects, Shortage::Fail, &mut self.store);
        if let Err(error) = &result
            && self.reclaiming_may_help(error)
        {
            self.reclaim();
            result = self.layout.set_process(slot, objects, Shortage::Fail, &mut self.store);
        }
        if let Err(error) = &result
            && !std::mem::replace(&mut self.full, true)
        {
            let remedy = match error {
                LayoutError::Words { .. } => {
                    "restart memleak while it runs, to make room for what it maps then"
                }
                _ => "walk by frame pointers (--unwind fp) if it has them",
            };
            log::warn!("unwind tables: {error}; stacks through the rest are cut; {remedy}");
        }
        if let Err(LayoutError::Words { .. } | LayoutError::Mappings { .. }) = result {
            // If that fails as well, the old list stays. What is new is walked by the frame
            // pointer, or cut and counted.
            let _ = self.layout.set_process(slot, objects, Shortage::LeaveOut, &mut self.store);
        }
    }

    /// Whether reclaiming, which takes milliseconds in which the target goes on, can bring the room
    /// that was missing.
    fn reclaiming_may_help(&self, error: &LayoutError<io::Error>) -> bool {
        match error {
            LayoutError::Words { words } => {
                self.layout.free_words() + self.layout.retired_words() >= *words as u64
            }
            LayoutError::Mappings { count } => *count <= MAX_MAPPINGS as usize,
            LayoutError::Elsewhere | LayoutError::Store(_) => false,
        }
    }

    /// Frees what no walk uses any more. That waits for a grace period, so it is done when room is
    /// short and not before: until then tables that nobody uses are at hand when the next process
    /// maps their objects.
    fn reclaim(&mut self) {
        let reclaimed = self.layout.reclaim(&self.store).and_then(|()| wait_for_walks());
        if let Err(error) = reclaimed.and_then(|()| self.layout.reclaim(&self.store)) {
            log::debug!("unwind tables that nobody uses stay for now: {error}");
        }
        self.tables.forget_unused();
    }

    /// The process with this slot has replaced its program. The programs have dropped its list
    /// already.
    pub(super) fn forget(&mut self, slot: u32) {
        self.tables.forget(slot);
    }

    /// The process with this slot has ended.
    pub(super) fn remove(&mut self, slot: u32) {
        self.tables.forget(slot);
        // Publishing into a memory map cannot fail.
        let _ = self.layout.remove_process(slot, &mut self.store);
    }

    /// Tables, rows, time and memory, where they have changed since they were last asked for.
    pub(super) fn news(&mut self) -> Option<String> {
        let sums = self.tables.sums();
        if self.told.replace(sums) == Some(sums) {
            return None;
        }
        let megabytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        Some(format!(
            "unwind tables: {} with {} rows ({} read from code), built in {:.1} ms, {:.1} MiB of {:.1} MiB",
            sums.tables,
            sums.rows,
            sums.code_rows,
            sums.took.as_secs_f64() * 1000.0,
            megabytes(sums.words as u64 * 8),
            megabytes(u64::from(self.store.words.len) * 8),
        ))
    }
}

/// The kernel's end of an RCU grace period: uprobe programs run within read-side sections
/// (kernel/trace/bpf_trace.c, `bpf_prog_run_array_uprobe` and `uprobe_prog_run`; membarrier(2),
/// MEMBARRIER_CMD_GLOBAL is `synchronize_rcu`).
fn wait_for_walks() -> io::Result<()> {
    // SAFETY: membarrier(2) takes three integers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A memory-mapped array map with values of `T`.
pub(super) struct Array<T> {
    start: NonNull<T>,
    len: u32,
}

// SAFETY: it owns its memory map; other threads write to it through `&mut` alone.
unsafe impl<T: aya::Pod + Send> Send for Array<T> {}

impl<T: aya::Pod> Array<T> {
    /// The kernel rounds values up to 8 bytes (kernel/bpf/arraymap.c, `array_map_alloc`).
    const IS_DENSE: () = assert!(size_of::<T>().is_multiple_of(8));

    /// Maps the map of this name into memory.
    pub(super) fn open(ebpf: &Ebpf, name: &'static str) -> Result<Self, BpfError> {
        let () = Self::IS_DENSE;
        let (fd, len) = array(ebpf, name, size_of::<T>())?;
        Self::map(fd, len).map_err(|error| map_error(name, &error))
    }

    /// Maps an array of `len` such values into memory.
    pub(super) fn map(fd: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        let start = map_memory(fd, 0, size_of::<T>() * len as usize)?;
        Ok(Self { start: start.cast(), len })
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// A value's place; of an index that there is not, another one's.
    pub(super) fn at(&self, index: u32) -> NonNull<T> {
        // SAFETY: within the memory map, which is not empty: no map has no entries.
        unsafe { self.start.add((index % self.len) as usize) }
    }

    fn write(&mut self, index: u32, values: &[T]) -> io::Result<()> {
        let end = u64::from(index) + values.len() as u64;
        if end > u64::from(self.len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: within the memory map, by the check above. Programs may read it meanwhile, by
        // single loads whose result they take for what it is: user space writes to places that no
        // list names.
        unsafe {
            self.start.as_ptr().add(index as usize).copy_from_nonoverlapping(values.as_ptr(), values.len())
        };
        Ok(())
    }
}

impl<T> Drop for Array<T> {
    fn drop(&mut self) {
        // SAFETY: the memory map that `open` made; nothing refers to it after this.
        unsafe { libc::munmap(self.start.as_ptr().cast(), size_of::<T>() * self.len as usize) };
    }
}

/// An array map with values of `value_bytes`: its descriptor and how many it has.
fn array<'e>(
    ebpf: &'e Ebpf,
    name: &'static str,
    value_bytes: usize,
) -> Result<(BorrowedFd<'e>, u32), BpfError> {
    let Some(Map::Array(map)) = ebpf.map(name) else { return Err(BpfError::Missing(name)) };
    let info = map.info().map_err(|error| map_error(name, &error))?;
    if info.value_size() as usize != value_bytes {
        return Err(BpfError::Missing(name));
    }
    Ok((map.fd().as_fd(), info.max_entries()))
}

/// Maps `bytes` of an array from byte `offset`, a multiple of the page size, on.
pub(super) fn map_memory(
    fd: BorrowedFd<'_>,
    offset: usize,
    bytes: usize,
) -> io::Result<NonNull<libc::c_void>> {
    let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new memory map at a place of the kernel's choice.
    let start =
        unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, libc::MAP_SHARED, fd.as_raw_fd(), offset) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(start).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// `UNWIND_WORDS`. The kernel holds these megabytes; we map the part that is written or read, while
/// it is.
struct WordArray {
    fd: OwnedFd,
    len: u32,
    page_bytes: usize,
}

impl WordArray {
    fn open(ebpf: &Ebpf) -> Result<Self, BpfError> {
        const NAME: &str = "UNWIND_WORDS";
        let (fd, len) = array(ebpf, NAME, size_of::<u64>())?;
        let fd = fd.try_clone_to_owned().map_err(|error| map_error(NAME, &error))?;
        // SAFETY: sysconf(3) takes an integer.
        let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        Ok(Self { fd, len, page_bytes: usize::try_from(page_bytes).unwrap_or(4096).max(4096) })
    }

    fn write(&mut self, index: u32, words: &[u64]) -> io::Result<()> {
        self.with_mapped(index, words.len(), |start| {
            // SAFETY: so many words are mapped there. Programs may read them meanwhile, by single
            // loads whose result they take for what it is: user space writes to places that no list
            // names.
            unsafe { start.as_ptr().copy_from_nonoverlapping(words.as_ptr(), words.len()) };
        })
    }

    fn read(&self, index: u32, count: u32) -> io::Result<Vec<u64>> {
        let mut words = vec![0; count as usize];
        self.with_mapped(index, words.len(), |start| {
            // SAFETY: so many words are mapped there, and nobody writes to them but we.
            unsafe { words.as_mut_ptr().copy_from_nonoverlapping(start.as_ptr(), words.len()) };
        })?;
        Ok(words)
    }

    /// Calls `with` with the place where `count` words from `index` on are mapped.
    fn with_mapped(&self, index: u32, count: usize, with: impl FnOnce(NonNull<u64>)) -> io::Result<()> {
        let first = index as usize;
        let end = first.checked_add(count).filter(|end| *end <= self.len as usize);
        let Some(end) = end else { return Err(io::ErrorKind::InvalidInput.into()) };
        if count == 0 {
            return Ok(());
        }
        let (first, end) = (first * size_of::<u64>(), end * size_of::<u64>());
        let from = first - first % self.page_bytes;
        let mapped = map_memory(self.fd.as_fd(), from, end - from)?;
        // SAFETY: `first - from` is less than the bytes that are mapped, and a multiple of 8.
        with(unsafe { mapped.byte_add(first - from).cast() });
        // SAFETY: the memory map from above; nothing refers to it after this.
        unsafe { libc::munmap(mapped.as_ptr(), end - from) };
        Ok(())
    }
}

/// [`Store`] in the programs' maps.
struct MapStore {
    words: WordArray,
    mappings: Array<Mapping>,
    lists: Array<PublishedList>,
    /// Lists published so far.
    generation: u64,
}

impl Store for MapStore {
    type Error = io::Error;

    fn write_words(&mut self, index: u32, words: &[u64]) -> io::Result<()> {
        self.words.write(index, words)
    }

    fn read_words(&self, index: u32, count: u32) -> io::Result<Vec<u64>> {
        self.words.read(index, count)
    }

    fn write_mappings(&mut self, index: u32, mappings: &[Mapping]) -> io::Result<()> {
        self.mappings.write(index, mappings)
    }

    fn publish(&mut self, slot: u32, list: MappingList) -> io::Result<()> {
        if slot >= self.lists.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.generation += 1;
        // SAFETY: the slot is within the memory map, by the check above; its members are aligned
        // words, and all accesses from here are by single stores.
        unsafe {
            let entry = self.lists.start.add(slot as usize).as_ptr();
            AtomicU64::from_ptr((&raw mut (*entry).list).cast()).store(list.0, Ordering::Release);
            AtomicU64::from_ptr(&raw mut (*entry).generation).store(self.generation, Ordering::Release);
        }
        Ok(())
    }
}
