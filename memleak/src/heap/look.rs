//! Reads a process's memory while it runs: only pages that it has written to and that are in
//! memory, in pieces, by one thread of low priority; by two while it is stopped.

use std::{
    io,
    ops::Range,
    slice,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use crate::proc::{
    cpu_times::own_thread_time,
    maps::{Backing, Mapping},
    memory::copy,
    pagemap::{Pagemap, WantedPages},
};

/// Bytes read by one call: while the target is stopped, and while it runs and may want to change
/// its mappings, which it cannot meanwhile.
const PIECE: u64 = 1 << 20;
const SMALL_PIECE: u64 = 256 << 10;
/// Threads that read: while the target runs one processor is left to it.
const READERS: usize = 2;
/// How nice they are then: what the target wants goes first.
const NICE: libc::c_int = 10;
/// Pieces whose words are held at a time.
const BATCH: usize = 64;

/// What can be read of a process and may hold pointers.
#[derive(Clone, Debug, Default)]
pub(super) struct Populated {
    /// In order; they do not touch.
    pub runs: Vec<Range<u64>>,
    /// Bytes that are in swap: they are not fetched for us.
    pub swapped: u64,
}

/// Finds what `pid` has written to. Mappings of files and shared memory that it can write are read
/// if nobody can have them but processes: what other programs have left in files are no pointers.
pub(super) fn populated(pid: u32, mappings: &[Mapping]) -> io::Result<Populated> {
    let mut pagemap = Pagemap::open(pid)?;
    let mut runs = Vec::new();
    // Mappings that touch are read as one. x86-64's vsyscall lies in the kernel's half.
    let mut joined: Option<(WantedPages, Range<u64>)> = None;
    for mapping in mappings.iter().filter(|mapping| mapping.end <= 1 << 63 && mapping.readable) {
        let wanted = if is_shared_memory(mapping) { WantedPages::Resident } else { WantedPages::Private };
        match &mut joined {
            Some((before, range)) if range.end == mapping.start && *before == wanted => {
                range.end = mapping.end
            }
            _ => {
                if let Some((wanted, range)) = joined.replace((wanted, mapping.start..mapping.end)) {
                    pagemap.add(wanted, range, &mut runs)?;
                }
            }
        }
    }
    if let Some((wanted, range)) = joined {
        pagemap.add(wanted, range, &mut runs)?;
    }
    Ok(Populated { runs, swapped: pagemap.swapped })
}

/// Memory of processes that has a name.
fn is_shared_memory(mapping: &Mapping) -> bool {
    let is_named = |path: &[u8]| {
        [&b"/dev/zero"[..], b"/memfd:", b"/dev/shm/"].iter().any(|start| path.starts_with(start))
    };
    match &mapping.backing {
        Backing::File { path, .. } => mapping.writable && is_named(path.as_os_str().as_encoded_bytes()),
        Backing::Other => mapping.writable && !mapping.is_anonymous(),
        Backing::Vdso => false,
    }
}

/// Some of `runs`, from all over them, and how many times as much all of them are: by how long that
/// takes to read one may know how long it will take to read all.
pub(super) fn sample(runs: &[Range<u64>]) -> (Vec<Range<u64>>, f64) {
    /// One piece of so many.
    const PART: usize = 16;
    /// What is less is read whole.
    const LITTLE: u64 = 64 << 20;
    let bytes = |runs: &[Range<u64>]| runs.iter().map(|run| run.end - run.start).sum::<u64>();
    let all = bytes(runs);
    if all <= LITTLE {
        return (runs.to_vec(), 1.0);
    }
    let some: Vec<Range<u64>> = pieces(runs, SMALL_PIECE).step_by(PART).collect();
    let part = bytes(&some).max(1) as f64;
    (some, all as f64 / part)
}

/// All of `runs`, in pieces of `size` bytes at most.
fn pieces(runs: &[Range<u64>], size: u64) -> impl Iterator<Item = Range<u64>> + '_ {
    runs.iter().flat_map(move |run| {
        let starts = (run.start..run.end).step_by(size as usize);
        starts.map(move |start| start..run.end.min(start + size))
    })
}

/// What reading has come to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ReadCost {
    /// Bytes that could not be read: unmapped meanwhile.
    pub unread: u64,
    /// CPU time of each of the threads that read, in the mean.
    pub reader_cpu: Duration,
}

/// Reads all of `runs`, in order. `find` makes something of the words from an address on, `take`
/// is given these, in order of address.
pub(super) fn read_all<T: Send>(
    pid: u32,
    is_stopped: bool,
    runs: &[Range<u64>],
    find: impl Fn(u64, &[u64]) -> T + Sync,
    mut take: impl FnMut(T),
) -> io::Result<ReadCost> {
    let size = if is_stopped { PIECE } else { SMALL_PIECE };
    let pieces: Vec<Range<u64>> = pieces(runs, size).collect();
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let readers = READERS.min(if is_stopped { processors } else { processors.saturating_sub(1).max(1) });
    let (mut unread, cpu_ns) = (0, AtomicU64::new(0));
    for batch in pieces.chunks(BATCH) {
        let next = AtomicUsize::new(0);
        let work = || -> io::Result<Vec<(usize, T, u64)>> {
            let (mut done, mut buffer) = (Vec::new(), vec![0_u64; (size / 8) as usize]);
            if !is_stopped {
                be_nice();
            }
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(piece) = batch.get(number) else {
                    cpu_ns.fetch_add(own_thread_time().as_nanos() as u64, Ordering::Relaxed);
                    return Ok(done);
                };
                let read = read_words(pid, piece, &mut buffer)?;
                let words = buffer.get(..read / 8).unwrap_or_default();
                done.push((number, find(piece.start, words), piece.end - piece.start - read as u64));
            }
        };
        let failed = |_| Err(io::Error::other("a thread that read the memory has failed"));
        let found: io::Result<Vec<_>> = thread::scope(|scope| {
            let threads: Vec<_> = (0..readers.min(batch.len())).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(failed)).collect()
        });
        let mut found: Vec<_> = found?.into_iter().flatten().collect();
        found.sort_unstable_by_key(|(number, ..)| *number);
        for (_, words, missing) in found {
            take(words);
            unread += missing;
        }
    }
    Ok(ReadCost { unread, reader_cpu: Duration::from_nanos(cpu_ns.into_inner()) / readers as u32 })
}

/// This thread leaves the processor to others who want it.
fn be_nice() {
    // SAFETY: no memory is concerned. Linux takes 0 for the calling thread, and not for the
    // process. If it fails we are as important as others.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
}

/// Fills `buffer` from the start of `piece`; gives the bytes that could be read, whole words. It is
/// an error if nothing of the process can be read, or it would seem that nothing is held.
fn read_words(pid: u32, piece: &Range<u64>, buffer: &mut [u64]) -> io::Result<usize> {
    let length = ((piece.end - piece.start) as usize).min(size_of_val(buffer));
    // SAFETY: the bytes of `buffer`, which is not used meanwhile, and which any are good for.
    let bytes = unsafe { slice::from_raw_parts_mut(buffer.as_mut_ptr().cast(), length) };
    match copy(pid, piece.start, bytes) {
        Ok(read) => Ok(read / 8 * 8),
        Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Ok(0), // unmapped meanwhile
        Err(error) => Err(error),
    }
}

/// Reads words at many places, in order; `None` of those that cannot be read.
pub(super) fn read_places(pid: u32, places: &[u64]) -> Vec<Option<u64>> {
    /// IOV_MAX.
    const MOST: usize = 1024;
    let mut words = Vec::with_capacity(places.len());
    while let Some(rest) = places.get(words.len()..).filter(|rest| !rest.is_empty()) {
        let part = rest.get(..MOST).unwrap_or(rest);
        let mut buffer = vec![0_u64; part.len()];
        let length = size_of_val(buffer.as_slice());
        let ours = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: length };
        let vector = |place: &u64| libc::iovec { iov_base: *place as *mut libc::c_void, iov_len: 8 };
        let theirs: Vec<libc::iovec> = part.iter().map(vector).collect();
        let count = part.len() as libc::c_ulong;
        // SAFETY: `ours` is a buffer of that length, `theirs` has `count` places of another
        // process, which the kernel checks.
        let read = unsafe {
            libc::process_vm_readv(pid as libc::pid_t, &raw const ours, 1, theirs.as_ptr(), count, 0)
        };
        // It ends at the first place that cannot be read.
        let good = usize::try_from(read).unwrap_or(0) / 8;
        words.extend(buffer.iter().take(good).map(|word| Some(*word)));
        if good < part.len() {
            words.push(None);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::maps::read_maps;

    #[test]
    fn our_own_words_are_found() {
        let pid = std::process::id();
        let word = Box::new(0x1234_5678_9abc_def0_u64);
        let place = &raw const *word as u64;
        let populated = populated(pid, &read_maps(pid).unwrap()).unwrap();
        let mut places = Vec::new();
        let find = |start: u64, words: &[u64]| -> Vec<u64> {
            let found = words.iter().enumerate().filter(|(_, it)| **it == 0x1234_5678_9abc_def0);
            found.map(|(at, _)| start + at as u64 * 8).collect()
        };
        let cost = read_all(pid, true, &populated.runs, find, |found| places.extend(found)).unwrap();
        assert!(!cost.reader_cpu.is_zero());
        assert!(places.contains(&place), "{place:x} {places:x?}");
        assert!(places.is_sorted());
    }

    #[test]
    fn a_sample_is_from_all_over() {
        const MIB: u64 = 1 << 20;
        let little = [MIB..3 * MIB, 9 * MIB..10 * MIB];
        assert_eq!(sample(&little), (little.to_vec(), 1.0));
        let much: Vec<Range<u64>> =
            (0..100).map(|at| at * 10 * MIB..at * 10 * MIB + 4 * MIB + 4096).collect();
        let (some, times) = sample(&much);
        let bytes: u64 = some.iter().map(|run| run.end - run.start).sum();
        let all = 100 * (4 * MIB + 4096);
        assert!((times - all as f64 / bytes as f64).abs() < 1e-9 && (12.0..20.0).contains(&times), "{times}");
        let of_run = |run: &Range<u64>| some.iter().any(|it| run.start <= it.start && it.end <= run.end);
        assert!(much.iter().filter(|run| of_run(run)).count() > 80);
    }

    #[test]
    fn what_is_unmapped_meanwhile_is_counted() {
        const PAGE: usize = 4096;
        // SAFETY: a new mapping, of which the second of three pages is unmapped again, and later
        // all.
        let start = unsafe {
            let (access, kind) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let start = libc::mmap(std::ptr::null_mut(), 3 * PAGE, access, kind, -1, 0);
            assert_ne!(start, libc::MAP_FAILED);
            assert_eq!(libc::munmap(start.byte_add(PAGE), PAGE), 0);
            start as u64
        };
        let [first, second, third] = [0, 1, 2].map(|page| start + page * PAGE as u64);
        let runs = [first..second, second..third, third..third + PAGE as u64];
        let mut read = Vec::new();
        let cost = read_all(
            std::process::id(),
            false,
            &runs,
            |at, words: &[u64]| (at, words.len()),
            |it| read.push(it),
        );
        assert_eq!(cost.unwrap().unread, PAGE as u64);
        assert_eq!(read, [(first, PAGE / 8), (second, 0), (third, PAGE / 8)]);
        // Of who has ended nothing can be read: that is another thing.
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let ended = |run: &[Range<u64>]| read_all(child.id(), true, run, |_, words| words.len(), drop);
        while !matches!(ended(&runs), Err(error) if error.raw_os_error() == Some(libc::ESRCH)) {
            thread::yield_now();
        }
        child.wait().unwrap();
        // SAFETY: nothing refers to it any more.
        unsafe { libc::munmap(start as *mut libc::c_void, 3 * PAGE) };
    }

    #[test]
    fn what_cannot_be_read_is_passed_over() {
        let words = [7_u64, 8];
        let place = words.as_ptr() as u64;
        let read = read_places(std::process::id(), &[place, 8, place + 8, 16]);
        assert_eq!(read, [Some(7), None, Some(8), None]);
    }
}
