//! Where a process's pointers begin: in which parts of its memory a word holds a block without
//! being in one itself, and which parts are nobody's.

use std::{fs, io, ops::Range};

use super::{blocks::HeapBlocks, look::read_places};
use crate::{
    account::{Allocators, Arenas, BlockStarts as _, files_of, glibc_arenas},
    objects::ObjectStore,
    proc::{
        living::path_of,
        maps::Mapping,
        stacks::{ThreadRegisters, Threads, WaitingThread, places, threads},
        status::read_status,
        stop::StoppedThread,
    },
};

/// Bytes below the stack pointer that are a function's own (the System V ABI's red zone).
const RED_ZONE: u64 = 128;
/// glibc's `struct pthread` (nptl/descr.h, x86-64 and others of 64 bits): where it has the number
/// of its thread, which the kernel clears at the thread's end, and bytes of all of it.
const TID_IN_PTHREAD: u64 = 0x2d0;
const PTHREAD: u64 = 0x900;
/// Bytes before it that the first thread's variables take at most.
const FIRST_VARIABLES: u64 = 64 << 10;
/// It is aligned to so many bytes.
const PTHREAD_ALIGNMENT: u64 = 64;
/// Bytes of mappings in which threads are looked for, of one process.
const MOST_SEARCHED: u64 = 256 << 20;
/// Descriptors of which the kernel is asked what they watch.
const MOST_DESCRIPTORS: usize = 65_536;

/// What a word is that points at a block and is in none, in the order in which they are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RootKind {
    /// A variable of a program or a library.
    Global,
    /// A thread's stack, with its thread-local variables.
    Stack,
    /// A register, as far as they are known.
    Register,
    /// What the kernel hands back: of epoll and timers.
    Kernel,
    /// What glibc keeps of a thread that has ended.
    EndedThread,
    /// Mapped memory that is no allocator's.
    Mapping,
    /// Memory of an allocator in which we know no block: from before tracing began.
    FromBefore,
    /// A block from before tracing began that nothing else holds: it is lost itself.
    LostBefore,
}

impl RootKind {
    /// All, in order.
    pub(super) const ALL: [Self; 8] = [
        Self::Global,
        Self::Stack,
        Self::Register,
        Self::Kernel,
        Self::EndedThread,
        Self::Mapping,
        Self::FromBefore,
        Self::LostBefore,
    ];

    /// It may be left over, or be of a function that does not need it any more.
    pub fn is_doubtful(self) -> bool {
        matches!(self, Self::Stack | Self::Register)
    }
}

/// A part of the memory whose words are roots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Area {
    pub range: Range<u64>,
    pub kind: RootKind,
}

/// Everything that pointers begin at, but for what is read.
#[derive(Clone, Debug, Default)]
pub(super) struct RootPlaces {
    /// In order; they do not overlap.
    pub areas: Vec<Area>,
    /// Words that are in no memory of the process.
    pub words: Vec<(u64, RootKind)>,
    /// Places outside of `areas` that are roots all the same.
    pub places: Vec<(u64, RootKind)>,
    /// Blocks in use in glibc's arenas that we do not know; `None` if that cannot be told.
    pub unknown: Option<Vec<Range<u64>>>,
    /// Bytes that are free in these.
    pub free: u64,
    /// What its threads did, if they are not stopped.
    pub threads: Threads,
}

/// What is known of a process's memory.
pub(super) struct RootSource<'a> {
    pub pid: u32,
    pub mappings: &'a [Mapping],
    pub store: &'a ObjectStore,
    pub allocators: Allocators,
    /// All of its blocks and mappings are known.
    pub from_start: bool,
    /// What allocators have mapped for themselves, and the program.
    pub own: &'a [Range<u64>],
    pub mapped: &'a [Range<u64>],
    /// In order.
    pub blocks: &'a HeapBlocks,
    /// What is populated, in order.
    pub runs: &'a [Range<u64>],
    /// Its threads, if they are stopped.
    pub stopped: Option<&'a [StoppedThread]>,
    /// Registers of threads that are not stopped, as far as they are known.
    pub registers: &'a [ThreadRegisters],
}

/// Finds the places of all roots.
pub(super) fn find(source: &RootSource<'_>) -> io::Result<RootPlaces> {
    let arenas = match source.allocators.glibc {
        true => glibc_arenas(source.pid, source.mappings, source.allocators, source.blocks)?,
        false => Arenas::default(),
    };
    let mut left = Unclaimed::new(source.runs);
    let mut found = RootPlaces::default();
    for file in sorted(files_of(source.mappings, source.store)) {
        found.claim(&mut left, file, RootKind::Global);
    }
    for nobodys in sorted([arenas.free.as_slice(), &arenas.own, source.own].concat()) {
        left.take(nobodys);
    }
    found.free = arenas.free.iter().map(|range| range.end - range.start).sum();
    let is_known = source.allocators.glibc && !source.allocators.others;
    if is_known {
        // They are blocks like others, but for where they were acquired.
        arenas.unknown.iter().for_each(|block| _ = left.take(block.clone()));
    }
    for heap in &arenas.heaps {
        found.claim(&mut left, heap.clone(), RootKind::FromBefore);
    }
    found.unknown = is_known.then_some(arenas.unknown);
    let threads = match source.stopped {
        Some(threads) => threads.iter().map(of_stopped).collect(),
        None => {
            found.threads = threads(source.pid);
            found.threads.waiting.clone()
        }
    };
    find_stacks(source, &threads, &mut left, &mut found);
    if source.from_start && source.allocators.others {
        take_allocators(source, &mut left, &mut found);
    }
    for rest in left.all() {
        found.areas.push(Area { range: rest, kind: RootKind::Mapping });
    }
    found.areas.sort_unstable_by_key(|area| area.range.start);
    let arguments = threads.iter().flat_map(|thread| &thread.arguments);
    let of_others = source.registers.iter().filter(|thread| !thread.runs).flat_map(|thread| &thread.words);
    found.words.extend(arguments.chain(of_others).map(|word| (*word, RootKind::Register)));
    found.words.extend(kernel_words(source.pid).into_iter().map(|word| (word, RootKind::Kernel)));
    Ok(found)
}

/// Of a thread that is stopped all registers are known, as if they were arguments.
fn of_stopped(thread: &StoppedThread) -> WaitingThread {
    WaitingThread { ip: 0, stack_pointer: thread.stack_pointer, arguments: thread.registers.clone() }
}

/// An allocator that we cannot read has mapped, in calls that count as its functions', what nobody
/// else has: mappings in which it has handed out blocks. What is free in them is full of pointers
/// to what is lost.
fn take_allocators(source: &RootSource<'_>, left: &mut Unclaimed, found: &mut RootPlaces) {
    for mapped in source.mapped {
        found.claim(left, mapped.clone(), RootKind::Mapping);
    }
    for mapping in source.mappings.iter().filter(|mapping| mapping.writable && mapping.is_anonymous()) {
        let next = source.blocks.first_from(mapping.start);
        if source.blocks.start(next).is_some_and(|start| start < mapping.end) {
            left.take(mapping.start..mapping.end);
        }
    }
}

impl RootPlaces {
    /// What is left of `range` is of this kind.
    fn claim(&mut self, left: &mut Unclaimed, range: Range<u64>, kind: RootKind) {
        self.areas.extend(left.take(range).into_iter().map(|range| Area { range, kind }));
    }
}

/// A stack that glibc has made for a thread.
struct PthreadStack {
    /// With its `struct pthread`, which is at the end.
    range: Range<u64>,
    pthread: u64,
    tid: u32,
}

fn find_stacks(
    source: &RootSource<'_>,
    threads: &[WaitingThread],
    left: &mut Unclaimed,
    found: &mut RootPlaces,
) {
    let pointers: Vec<u64> = threads.iter().map(|thread| thread.stack_pointer).collect();
    let lowest = |range: &Range<u64>| pointers.iter().copied().filter(|it| range.contains(it)).min();
    let anonymous = |address: u64| {
        let at = source.mappings.partition_point(|mapping| mapping.end <= address);
        source.mappings.get(at).filter(|it| it.start <= address && it.writable && it.is_anonymous())
    };
    let of_threads = thread_stacks(source, left);
    let first_thread = read_status(source.pid).map_or(source.pid, |status| status.inner_pid);
    for stack in &of_threads {
        let from = match lowest(&stack.range) {
            Some(pointer) => pointer.saturating_sub(RED_ZONE).max(stack.range.start),
            // Its stack is elsewhere, and the kernel may have joined this with other mappings.
            None if stack.tid == first_thread => {
                stack.pthread.saturating_sub(FIRST_VARIABLES).max(stack.range.start)
            }
            // It runs, or is on another stack.
            None if stack.tid != 0 => stack.range.start,
            None => {
                found.places.push((stack.pthread + 8, RootKind::EndedThread)); // its dtv
                stack.range.end
            }
        };
        found.claim(left, from..stack.range.end, RootKind::Stack);
        if stack.tid != first_thread {
            left.take(stack.range.clone());
        }
    }
    // The first thread's, and those of others than glibc.
    let first = places(source.pid).map(|places| places.stack);
    for pointer in first.iter().chain(&pointers) {
        let Some(mapping) = anonymous(*pointer) else { continue };
        let range = mapping.start..mapping.end;
        let is_of_thread = of_threads.iter().any(|stack| stack.range.contains(pointer));
        if is_of_thread || source.own.iter().any(|own| own.contains(pointer)) {
            continue;
        }
        // A stack in a block is that of a coroutine: what runs on it holds it.
        if source.blocks.at(*pointer).is_some() {
            found.words.push((*pointer, RootKind::Stack));
            continue;
        }
        let from = lowest(&range).map_or(range.start, |pointer| pointer.saturating_sub(RED_ZONE));
        found.claim(left, from.max(range.start)..range.end, RootKind::Stack);
        if first.is_some_and(|first| range.contains(&first)) {
            left.take(range);
        }
    }
}

/// Looks for the `struct pthread` of threads, each of which points to itself twice, in anonymous
/// memory that nobody has claimed.
fn thread_stacks(source: &RootSource<'_>, left: &Unclaimed) -> Vec<PthreadStack> {
    let anonymous: Vec<&Mapping> =
        source.mappings.iter().filter(|mapping| mapping.writable && mapping.is_anonymous()).collect();
    let (mut runs, mut searched) = (Vec::new(), 0);
    'mappings: for mapping in &anonymous {
        for run in left.within(mapping.start..mapping.end) {
            searched += run.end - run.start;
            if searched > MOST_SEARCHED {
                break 'mappings;
            }
            runs.push(run);
        }
    }
    let pthreads = pthreads_in(source, &runs);
    let places: Vec<u64> = pthreads.iter().map(|pthread| pthread + TID_IN_PTHREAD).collect();
    let mut stacks: Vec<PthreadStack> = Vec::new();
    for (pthread, tid) in pthreads.into_iter().zip(read_places(source.pid, &places)) {
        let at = anonymous.partition_point(|mapping| mapping.end <= pthread);
        let Some(mapping) = anonymous.get(at) else { continue };
        let before = stacks.last().map_or(0, |stack| stack.range.end);
        let from = mapping.start.max(before);
        if pthread >= from {
            let end = (pthread + PTHREAD).next_multiple_of(4096).min(mapping.end);
            stacks.push(PthreadStack {
                range: from..end,
                pthread,
                tid: tid.map_or(u32::MAX, |tid| tid as u32),
            });
        }
    }
    stacks
}

/// Addresses in `runs` of which the first and the third word are that address, in order.
fn pthreads_in(source: &RootSource<'_>, runs: &[Range<u64>]) -> Vec<u64> {
    let find = |start: u64, words: &[u64]| -> Vec<u64> {
        let candidates = words.iter().enumerate().step_by((PTHREAD_ALIGNMENT / 8) as usize);
        let is_it = |(at, word): &(usize, &u64)| {
            let place = start + *at as u64 * 8;
            **word == place && words.get(at + 2) == Some(&place)
        };
        candidates.filter(is_it).map(|(_, word)| *word).collect()
    };
    // Runs begin at pages, and so do pieces of them.
    let mut found = Vec::new();
    let is_stopped = source.stopped.is_some();
    let read = super::look::read_all(source.pid, is_stopped, runs, find, |more| found.extend(more));
    if read.is_ok() { found } else { Vec::new() }
}

/// Words that the kernel keeps for the process: `epoll_event.data`, and what timers hand over.
fn kernel_words(pid: u32) -> Vec<u64> {
    let mut words = Vec::new();
    let entries = fs::read_dir(path_of(pid, "fdinfo")).into_iter().flatten().flatten();
    for entry in entries.take(MOST_DESCRIPTORS) {
        let link = path_of(pid, &format!("fd/{}", entry.file_name().to_string_lossy()));
        let is_epoll = fs::read_link(link).is_ok_and(|link| link.as_os_str() == "anon_inode:[eventpoll]");
        if is_epoll && let Ok(text) = fs::read_to_string(entry.path()) {
            words.extend(text.lines().filter_map(epoll_data));
        }
    }
    let timers = fs::read_to_string(path_of(pid, "timers")).unwrap_or_default();
    words.extend(timers.lines().filter_map(timer_value));
    words
}

/// `tfd:        5 events:       19 data:             7f12  pos:0 ino:61 sdev:10`
fn epoll_data(line: &str) -> Option<u64> {
    let data = line.strip_prefix("tfd:")?.split_once("data:")?.1;
    u64::from_str_radix(data.split_ascii_whitespace().next()?, 16).ok()
}

/// `signal: 60/00007fff86e452a8`
fn timer_value(line: &str) -> Option<u64> {
    u64::from_str_radix(line.strip_prefix("signal:")?.split_once('/')?.1.trim(), 16).ok()
}

/// Ranges that nobody has claimed yet, in order.
#[derive(Clone, Debug)]
struct Unclaimed(std::collections::BTreeMap<u64, u64>);

impl Unclaimed {
    fn new(runs: &[Range<u64>]) -> Self {
        Self(runs.iter().map(|run| (run.start, run.end)).collect())
    }

    /// Takes out what is left of `range`, and gives it.
    fn take(&mut self, range: Range<u64>) -> Vec<Range<u64>> {
        let parts: Vec<_> = self.within(range).collect();
        for part in &parts {
            let Some((&start, &end)) = self.0.range(..=part.start).next_back() else { continue };
            self.0.remove(&start);
            if start < part.start {
                self.0.insert(start, part.start);
            }
            if part.end < end {
                self.0.insert(part.end, end);
            }
        }
        parts
    }

    fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let before = self.0.range(..range.start).next_back();
        let from = before.filter(|(_, end)| **end > range.start).map_or(range.start, |(start, _)| *start);
        let parts = self.0.range(from..range.end.max(from));
        parts
            .map(move |(start, end)| range.start.max(*start)..range.end.min(*end))
            .filter(|part| !part.is_empty())
    }

    fn all(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(start, end)| *start..*end)
    }
}

fn sorted(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_is_claimed_once() {
        let mut left = Unclaimed::new(&[100..200, 300..400]);
        assert_eq!(left.take(150..320), [150..200, 300..320]);
        assert_eq!(left.take(0..1000), [100..150, 320..400]);
        assert_eq!(left.take(0..1000), []);
        let mut left = Unclaimed::new(&[100..200, 300..400]);
        assert_eq!(left.take(120..130), vec![120..130]);
        assert_eq!(left.all().collect::<Vec<_>>(), [100..120, 130..200, 300..400]);
        assert_eq!(left.take(50..50), []);
    }

    #[test]
    fn what_the_kernel_keeps() {
        let line = "tfd:        5 events:       19 data:     7f12abcd3450  pos:0 ino:61 sdev:10";
        assert_eq!(epoll_data(line), Some(0x7f12_abcd_3450));
        assert_eq!(epoll_data("pos:	0"), None);
        assert_eq!(timer_value("signal: 60/00007fff86e452a8"), Some(0x7fff_86e4_52a8));
        assert_eq!(timer_value("notify: signal/pid.2634"), None);
    }

    #[test]
    fn kernel_words_of_our_own_epoll() {
        // SAFETY: a new descriptor, and an event that lives until the call returns.
        unsafe {
            let epoll = libc::epoll_create1(0);
            let mut event = libc::epoll_event { events: 1, u64: 0x1234_5678_1111 };
            let made = libc::eventfd(0, 0);
            assert_eq!(libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, made, &raw mut event), 0);
        }
        assert!(kernel_words(std::process::id()).contains(&0x1234_5678_1111));
    }
}
