//! One process's memory, each resident byte given to one part.

use std::{collections::HashMap, io, ops::Range};

use super::{
    glibc::{Arenas, BlockStarts, Cell, HeapPlaces, read_arenas, scaled},
    resident::{Resident, sorted},
};
use crate::{
    objects::{ObjectStore, place_of},
    proc::{
        PAGE_SIZE,
        maps::Mapping,
        memory::{ProcessMemory, ReadMemory},
        pagemap::Pagemap,
        stacks::{places, stack_pointers},
    },
    target::allocator::AllocatorKind,
};

/// What is known of an address space from elsewhere. All ranges are of addresses, in any order.
#[derive(Clone, Debug, Default)]
pub struct KnownMemory {
    /// Blocks of the heap that are outstanding.
    pub blocks: Vec<Range<u64>>,
    /// The program's own mappings that are outstanding.
    pub mappings: Vec<Range<u64>>,
    /// The same, made by a program of which no function is known.
    pub nameless: Vec<Range<u64>>,
    /// What allocators have mapped for themselves.
    pub own: Vec<Range<u64>>,
}

/// Which allocators a process has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocators {
    /// glibc's.
    pub glibc: bool,
    /// Others, whose memory we cannot read.
    pub others: bool,
    /// Which it is, if it is one.
    pub other: Option<AllocatorKind>,
}

/// What stays of one reading for the next.
#[derive(Clone, Debug, Default)]
pub(super) struct Remembered {
    /// Stacks of threads: one that runs at the moment does not say where its stack is.
    stacks: Vec<Range<u64>>,
    /// Mappings in which an allocator that we cannot read has handed out blocks.
    areas: Vec<Range<u64>>,
    /// Chunks of glibc's heaps.
    chunks: Vec<u64>,
    /// Mappings that are as old as the account, but for glibc's heaps: what is written there later
    /// was handed out before. `None`: the account has not begun.
    older: Option<Vec<Range<u64>>>,
}

impl Remembered {
    /// Of a process of which nothing is older than its account.
    pub(super) fn of_new_program() -> Self {
        Self { older: Some(Vec::new()), ..Self::default() }
    }
}

/// Bytes of glibc's arenas that are read for one account, and for the first: nothing is known then
/// that one could begin at.
const BUDGET: u64 = 96 << 20;
const FIRST_BUDGET: u64 = 1 << 30;

/// Resident bytes by whose they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct MemoryParts {
    /// All.
    pub rss: u64,
    /// Outstanding blocks and mappings that we know.
    pub outstanding: u64,
    /// Free inside the allocator, if that can be read.
    pub free: Option<u64>,
    /// What else the allocator has.
    pub allocator: u64,
    /// What else is in mappings in which an allocator that we cannot read has handed out blocks:
    /// free, its own, or from before.
    pub areas: u64,
    /// So much of it may be what outstanding blocks are rounded up by.
    pub rounding: u64,
    /// The allocator that has handed them out, if it is one.
    pub area_allocator: Option<AllocatorKind>,
    /// Stacks.
    pub stacks: u64,
    /// Mapped files, with the data of programs and libraries.
    pub files: u64,
    /// What else is in mappings that are older than the account.
    pub older: u64,
    /// What none of those is.
    pub rest: u64,
    /// Of all these parts what may be the heap of an allocator that nothing names.
    pub nameless: u64,
}

/// Measures process `pid`, which has mapped `mappings`.
pub(super) fn measure(
    pid: u32,
    mappings: &[Mapping],
    store: &ObjectStore,
    allocators: Allocators,
    known: KnownMemory,
    remembered: &mut Remembered,
) -> io::Result<MemoryParts> {
    let resident = resident(pid, mappings)?;
    let memory = ProcessMemory::open(pid)?;
    let places = places(pid);
    let stack = places.map(|places| places.stack);
    let source = MemorySource {
        memory: &memory,
        mappings,
        break_start: places.map_or(0, |places| places.break_start),
        stack_pointers: stack_pointers(pid).into_iter().chain(stack).collect(),
        files: files_of(mappings, store),
    };
    Ok(split(&source, resident, allocators, known, remembered))
}

/// What glibc's arenas in process `pid` are made of, all that is in memory.
pub(crate) fn glibc_arenas(
    pid: u32,
    mappings: &[Mapping],
    allocators: Allocators,
    blocks: &dyn BlockStarts,
) -> io::Result<Arenas> {
    /// More than there is.
    const ALL: u64 = 1 << 47;
    let resident = resident(pid, mappings)?;
    let memory = ProcessMemory::open(pid)?;
    let source = MemorySource {
        memory: &memory,
        mappings,
        break_start: places(pid).map_or(0, |places| places.break_start),
        stack_pointers: Vec::new(),
        files: Vec::new(),
    };
    Ok(arenas_within(&source, &resident, allocators, blocks, &[], ALL))
}

/// The pages of a process that are in memory.
fn resident(pid: u32, mappings: &[Mapping]) -> io::Result<Resident> {
    let mut pagemap = Pagemap::open(pid)?;
    let mut runs = Vec::new();
    // Mappings that touch are read as one: a target may have tens of thousands.
    let mut joined: Option<Range<u64>> = None;
    // x86-64's vsyscall is also listed, and lies in the kernel's half.
    for mapping in mappings.iter().filter(|mapping| mapping.end <= 1 << 63) {
        match &mut joined {
            Some(range) if range.end == mapping.start => range.end = mapping.end,
            _ => {
                if let Some(range) = joined.replace(mapping.start..mapping.end) {
                    pagemap.add_resident(range, &mut runs)?;
                }
            }
        }
    }
    joined.map_or(Ok(()), |range| pagemap.add_resident(range, &mut runs))?;
    Ok(Resident::new(runs))
}

/// What files have of the address space: their mappings, and the memory behind them that programs
/// and libraries have for variables that begin as zero (`.bss`), which the kernel shows as memory
/// of nobody.
pub(crate) fn files_of(mappings: &[Mapping], store: &ObjectStore) -> Vec<Range<u64>> {
    let mapped =
        mappings.iter().filter(|mapping| !mapping.is_anonymous()).map(|mapping| mapping.start..mapping.end);
    let objects = mappings.iter().filter(|mapping| mapping.executable && mapping.path().is_some());
    let data = objects.filter_map(|mapping| store.known(mapping).map(|file| (mapping, file)));
    let data = data.flat_map(|(mapping, file)| {
        let Ok(elf) = file.elf() else { return Vec::new() };
        let Some(bias) = elf.load_bias(&place_of(mapping)) else { return Vec::new() };
        let in_memory = |vaddr: u64| bias.wrapping_add(vaddr);
        let segments = elf.segments.iter().filter(|segment| segment.memory_len > segment.len);
        segments
            .map(|segment| {
                let end = in_memory(segment.vaddr).saturating_add(segment.memory_len);
                in_memory(segment.vaddr)..end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(end)
            })
            .collect()
    });
    mapped.chain(data).collect()
}

/// What is read of a process.
struct MemorySource<'a> {
    memory: &'a dyn ReadMemory,
    mappings: &'a [Mapping],
    break_start: u64,
    stack_pointers: Vec<u64>,
    files: Vec<Range<u64>>,
}

impl MemorySource<'_> {
    /// Anonymous memory that can be written, in order.
    fn anonymous(&self) -> impl Iterator<Item = &Mapping> {
        self.mappings.iter().filter(|mapping| mapping.writable && mapping.is_anonymous())
    }

    /// Mappings of no file, of which a part may be made writable later; none of glibc's heaps,
    /// which begin with what it reserves for them.
    fn not_of_files(&self, heaps: &[Range<u64>]) -> Vec<Range<u64>> {
        const RESERVED: u64 = 64 << 20;
        let reserved = heaps.iter().map(|heap| match heap.start % RESERVED {
            0 => heap.start..heap.end.max(heap.start.saturating_add(RESERVED)),
            _ => heap.clone(),
        });
        let mapped = self.mappings.iter().filter(|mapping| mapping.is_anonymous());
        let mut left = Resident::new(joined(mapped.map(|mapping| mapping.start..mapping.end).collect()));
        left.take(sorted(reserved.collect()));
        left.within(0..u64::MAX).collect()
    }

    /// The anonymous mapping that holds `address`.
    fn anonymous_at(&self, address: u64) -> Option<Range<u64>> {
        let at = self.mappings.partition_point(|mapping| mapping.end <= address);
        let mapping = self.mappings.get(at).filter(|mapping| mapping.start <= address && mapping.writable)?;
        mapping.is_anonymous().then_some(mapping.start..mapping.end)
    }

    /// What lies after the break: mappings that touch, from its start on.
    fn heap(&self) -> Range<u64> {
        let behind = self.anonymous().skip_while(|mapping| mapping.end <= self.break_start);
        let mut heap = self.break_start..self.break_start;
        for mapping in behind.take_while(|_| self.break_start != 0) {
            if mapping.start > heap.end.next_multiple_of(PAGE_SIZE) {
                break;
            }
            heap.end = mapping.end;
        }
        heap
    }
}

fn split(
    source: &MemorySource<'_>,
    mut resident: Resident,
    allocators: Allocators,
    known: KnownMemory,
    remembered: &mut Remembered,
) -> MemoryParts {
    let rss = resident.bytes();
    let KnownMemory { blocks, mappings, nameless, own } = known;
    let blocks = sorted(blocks);
    let mut arenas = match allocators.glibc {
        true => arenas(source, &resident, allocators, &blocks, &remembered.chunks),
        false => Arenas::default(),
    };
    remembered.chunks = merged(std::mem::take(&mut arenas.anchors), &remembered.chunks, &arenas.walked);
    remember(source, allocators, &blocks, &arenas.heaps, remembered);
    // Whole chunks go first: without their blocks they would be as many small pieces.
    let in_chunks = common_bytes(&resident, &blocks, &arenas.own);
    let mut parts = MemoryParts { rss, ..MemoryParts::default() };
    parts.allocator = resident.take(arenas.own.iter().cloned()).saturating_sub(in_chunks);
    parts.outstanding = in_chunks + resident.take(blocks.iter().cloned());
    let mut free = resident.take(arenas.free.iter().cloned());
    let (free_elsewhere, own_elsewhere) = not_walked(&resident, &arenas);
    free += free_elsewhere;
    parts.allocator += own_elsewhere + resident.take(pages_around(&blocks, &arenas.heaps));
    let whole_pages =
        |range: Range<u64>| range.start..range.end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(range.end);
    let pages = |mappings: Vec<Range<u64>>| sorted(mappings.into_iter().map(whole_pages).collect());
    parts.outstanding += resident.take(pages(mappings));
    let anonymous = Resident::new(source.anonymous().map(|mapping| mapping.start..mapping.end).collect());
    let private = nameless.iter().flat_map(|range| anonymous.within(range.clone())).collect();
    parts.nameless = resident.take(pages(private));
    parts.outstanding += parts.nameless + resident.take(pages(nameless));
    // The arenas' own mappings were looked into: what is in use there is not the allocator's.
    let mut own = Resident::new(joined(sorted(own)));
    own.take(arenas.heaps.iter().cloned());
    parts.allocator += resident.take(own.within(0..u64::MAX).collect::<Vec<_>>());
    parts.stacks = resident.take(sorted(remembered.stacks.clone()));
    parts.files = resident.take(sorted(source.files.clone()));
    parts.areas = resident.take(sorted(remembered.areas.clone()));
    if parts.areas > 0 {
        let classes = SizeClasses::of(allocators.other);
        parts.rounding = most_rounding(&blocks, classes) + classes.own_share(parts.areas);
        parts.area_allocator = allocators.other;
    }
    let mapped = Resident::new(source.not_of_files(&arenas.heaps));
    let older = remembered.older.take().unwrap_or_else(|| mapped.within(0..u64::MAX).collect());
    // What has been unmapped since is gone, even if something else is there now.
    let older: Vec<_> =
        older.into_iter().flat_map(|range| mapped.within(range).collect::<Vec<_>>()).collect();
    let left = resident.clone();
    parts.older = resident.take(older.iter().cloned());
    remembered.older = Some(older);
    parts.rest = resident.bytes().saturating_sub(free_elsewhere + own_elsewhere);
    if allocators.glibc && !allocators.others {
        parts.nameless += unexplained(source, left, arenas.heaps);
    }
    match allocators.others || arenas.walked.is_empty() {
        true => parts.allocator += free,
        false => parts.free = Some(free),
    }
    parts
}

/// Bytes in memory that are in ranges of both lists, of which each is in order.
fn common_bytes(resident: &Resident, blocks: &[Range<u64>], others: &[Range<u64>]) -> u64 {
    let (mut sum, mut at, mut next) = (0, 0, 0);
    for block in blocks {
        // Of blocks that overlap each byte counts once.
        at = block.start.max(at);
        while at < block.end {
            while others.get(next).is_some_and(|other| other.end <= at) {
                next += 1;
            }
            let Some(other) = others.get(next).filter(|other| other.start < block.end) else { break };
            let end = block.end.min(other.end);
            sum += resident.bytes_within(at.max(other.start)..end);
            at = end;
        }
    }
    sum
}

/// The sizes that an allocator's blocks have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SizeClasses {
    /// 8 bytes, then 16 apart, then four to each doubling: jemalloc(3), IMPLEMENTATION NOTES;
    /// mimalloc's src/page-queue.c, `mi_bin`.
    FourToADoubling,
    /// Not known: 16 bytes or a quarter of a block are more than any allocator rounds it up by.
    Unknown,
}

impl SizeClasses {
    fn of(allocator: Option<AllocatorKind>) -> Self {
        match allocator {
            Some(AllocatorKind::Jemalloc | AllocatorKind::Mimalloc) => Self::FourToADoubling,
            _ => Self::Unknown,
        }
    }

    /// So much may be behind a block of this size.
    fn most_behind(self, size: u64) -> u64 {
        /// Blocks that are larger jemalloc begins anywhere in their first page.
        const SMALL: u64 = 14 << 10;
        match self {
            Self::Unknown => (size / 4).max(16),
            Self::FourToADoubling => {
                let step = match size {
                    0..=8 => 8,
                    9..=128 => 16,
                    _ => (1 << (size - 1).ilog2()) / 4,
                };
                let class = size.max(1).checked_next_multiple_of(step).unwrap_or(size);
                class - size + if size > SMALL { PAGE_SIZE } else { 0 }
            }
        }
    }

    /// Of mappings with this much in memory so much may be the allocator's own structures, which
    /// are not in mappings of their own: of the known ones jemalloc's are 128 bytes of each page at
    /// the most.
    fn own_share(self, bytes: u64) -> u64 {
        match self {
            Self::Unknown => 0,
            Self::FourToADoubling => bytes / 32,
        }
    }
}

/// Bytes that these blocks may have been rounded up by, at most: to one of the allocator's sizes,
/// or as far as all blocks of a size are aligned (posix_memalign).
fn most_rounding(blocks: &[Range<u64>], classes: SizeClasses) -> u64 {
    const MAX_ALIGNMENT: u64 = PAGE_SIZE;
    // How many there are of each size, and the bits of all their addresses.
    let mut sizes: HashMap<u64, (u64, u64)> = HashMap::new();
    for block in blocks {
        let of_size = sizes.entry(block.end.saturating_sub(block.start)).or_default();
        *of_size = (of_size.0 + 1, of_size.1 | block.start);
    }
    let rounding = sizes.into_iter().map(|(size, (count, bits))| {
        let alignment = (1 << bits.trailing_zeros().min(63)).min(MAX_ALIGNMENT);
        count.saturating_mul(classes.most_behind(size).max(alignment.saturating_sub(size)))
    });
    rounding.fold(0, u64::saturating_add)
}

fn arenas(
    source: &MemorySource<'_>,
    resident: &Resident,
    allocators: Allocators,
    blocks: &[Range<u64>],
    anchors: &[u64],
) -> Arenas {
    let budget = if anchors.is_empty() { FIRST_BUDGET } else { BUDGET };
    arenas_within(source, resident, allocators, &blocks, anchors, budget)
}

fn arenas_within(
    source: &MemorySource<'_>,
    resident: &Resident,
    allocators: Allocators,
    blocks: &dyn BlockStarts,
    anchors: &[u64],
    budget: u64,
) -> Arenas {
    let writable: Vec<Range<u64>> = source.anonymous().map(|mapping| mapping.start..mapping.end).collect();
    let places =
        HeapPlaces { main: source.heap(), writable: &writable, is_sure: !allocators.others, anchors, budget };
    read_arenas(source.memory, resident, &places, blocks)
}

/// What is free and what the allocator's own where nobody has looked: as much in proportion as
/// where somebody has in the same part of the heap, or, if nobody has there, in all of them.
fn not_walked(resident: &Resident, arenas: &Arenas) -> (u64, u64) {
    let sum = |of: fn(&Cell) -> u64| arenas.cells.iter().map(of).sum::<u64>();
    let everywhere = (sum(|cell| cell.free), sum(|cell| cell.own), sum(|cell| cell.unknown));
    let (mut free, mut own, mut next) = (0, 0, 0);
    for cell in &arenas.cells {
        let mut left = resident.bytes_within(cell.range.clone());
        while let Some(walked) = arenas.walked.get(next).filter(|walked| walked.start < cell.range.end) {
            let part = walked.start.max(cell.range.start)..walked.end.min(cell.range.end);
            left = left.saturating_sub(resident.bytes_within(part));
            if walked.end > cell.range.end {
                break;
            }
            next += 1;
        }
        let of = match (cell.free, cell.own, cell.unknown) {
            (0, 0, 0) => everywhere,
            found => found,
        };
        free += scaled(left, of.0, of.0 + of.1 + of.2);
        own += scaled(left, of.1, of.0 + of.1 + of.2);
    }
    (free, own)
}

/// Chunks that were seen now, and those from before where nobody has looked now.
fn merged(mut now: Vec<u64>, before: &[u64], walked: &[Range<u64>]) -> Vec<u64> {
    let is_passed = |chunk: &u64| {
        let at = walked.partition_point(|range| range.end <= *chunk);
        walked.get(at).is_some_and(|range| range.start <= *chunk)
    };
    now.extend(before.iter().filter(|chunk| !is_passed(chunk)));
    now.sort_unstable();
    now.dedup();
    now
}

/// Blocks that glibc has mapped each for itself have a header before them, and the rest of their
/// last page behind.
fn pages_around(blocks: &[Range<u64>], heaps: &[Range<u64>]) -> Vec<Range<u64>> {
    const HEADER: u64 = 16;
    let is_mapped = |block: &&Range<u64>| {
        block.start % PAGE_SIZE == HEADER && !heaps.iter().any(|heap| heap.contains(&block.start))
    };
    let around = |block: &Range<u64>| {
        block.start - HEADER..block.end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(block.end)
    };
    blocks.iter().filter(is_mapped).map(around).collect()
}

/// Bytes of what is left that are in no heap of glibc's, and in no chunk that glibc has mapped.
fn unexplained(source: &MemorySource<'_>, mut resident: Resident, heaps: Vec<Range<u64>>) -> u64 {
    /// Smaller mappings are not looked at, nor counted: a target may have many.
    const SMALLEST: u64 = 64 << 10;
    resident.take(heaps);
    let areas = || source.anonymous().filter(|mapping| mapping.end - mapping.start >= SMALLEST);
    let chunks = areas().flat_map(|area| {
        let first = mapped_chunk(source, &resident, area.start..area.end);
        std::iter::successors(first, |chunk| mapped_chunk(source, &resident, chunk.end..area.end))
    });
    let chunks: Vec<_> = chunks.collect();
    resident.take(chunks);
    areas().map(|area| resident.bytes_within(area.start..area.end)).sum()
}

/// A chunk that glibc has mapped at the beginning of `area`, where this is in memory: its size, in
/// whole pages, with the flag IS_MMAPPED, is the second word (malloc.c).
fn mapped_chunk(source: &MemorySource<'_>, resident: &Resident, area: Range<u64>) -> Option<Range<u64>> {
    const IS_MMAPPED: u64 = 2;
    const FLAGS: u64 = 7;
    resident.run_at(area.start)?;
    let mut word = [0; 8];
    source.memory.read_exact_at(area.start.checked_add(8)?, &mut word).ok()?;
    let word = u64::from_ne_bytes(word);
    let (size, flags) = (word & !FLAGS, word & FLAGS);
    let end = area.start.checked_add(size).filter(|end| *end <= area.end)?;
    (flags == IS_MMAPPED && size != 0 && size % PAGE_SIZE == 0).then_some(area.start..end)
}

/// Joins ranges, in order of their starts, that overlap.
fn joined(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// Brings up to date what is remembered, and forgets what is no longer mapped.
fn remember(
    source: &MemorySource<'_>,
    allocators: Allocators,
    blocks: &[Range<u64>],
    heaps: &[Range<u64>],
    remembered: &mut Remembered,
) {
    let Remembered { stacks, areas, .. } = remembered;
    // A mapping may have grown, or been joined with others.
    let is_heap =
        |range: &Range<u64>| heaps.iter().any(|heap| heap.start < range.end && range.start < heap.end);
    stacks.retain(|stack| source.anonymous_at(stack.start).is_some_and(|now| now.end >= stack.end));
    let new = source.stack_pointers.iter().filter_map(|pointer| {
        let range = source.anonymous_at(*pointer).filter(|range| !is_heap(range))?;
        // The kernel joins mappings that are alike: an allocator's may follow.
        let block =
            blocks.get(blocks.partition_point(|block| block.start <= *pointer)).map(|block| block.start);
        Some(range.start..range.end.min(block.unwrap_or(u64::MAX)))
    });
    stacks.extend(new.collect::<Vec<_>>());
    *stacks = joined(sorted(std::mem::take(stacks)));
    areas.retain(|area| source.anonymous_at(area.start).is_some());
    if allocators.others {
        let mut mapping: Range<u64> = 0..0;
        for block in blocks {
            if !mapping.contains(&block.start)
                && let Some(found) = source.anonymous_at(block.start).filter(|found| !is_heap(found))
            {
                mapping = found;
                areas.push(mapping.clone());
            }
        }
        *areas = joined(sorted(std::mem::take(areas)));
    }
}

#[cfg(test)]
mod tests;
