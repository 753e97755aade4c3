//! What is free inside glibc's arenas, read from outside (malloc/malloc.c and malloc/arena.c, 2.26
//! to 2.42).
//!
//! A heap is a row of chunks, each with its size before it: the main arena's is what lies after
//! the break, those of others begin at multiples of 64 MiB with a `heap_info`. So nothing need be
//! known of glibc's own variables, which have no symbols in a stripped library. A chunk is free if
//! the one after it says so, or if it is small and its first word leads on as those of fastbins
//! and tcaches do, which stay marked as used.
//!
//! The target runs meanwhile: what makes no sense ends a stretch, and the next begins at a block
//! that we know, or at a chunk that was seen before.

use std::ops::Range;

use super::resident::Resident;
use crate::proc::memory::ReadMemory;

/// `HEAP_MAX_SIZE` of 64-bit machines.
const HEAP_MAX: u64 = 64 << 20;
/// `MINSIZE`, and what chunks' sizes are multiples of.
const MIN_CHUNK: u64 = 32;
const ALIGNMENT: u64 = 16;
const PREV_INUSE: u64 = 1;
const IS_MMAPPED: u64 = 2;
const NON_MAIN_ARENA: u64 = 4;
const FLAGS: u64 = 7;
/// Bytes before a block: the chunk's size and that of the one before it.
const HEADER: u64 = 16;
/// Largest chunk of fastbins and tcaches (with default tunables).
const MAX_CACHED: u64 = 0x420;
/// `struct tcache_perthread_struct` as a chunk, since 2.30.
const TCACHE_CHUNK: u64 = 0x290;
/// Where after its `malloc_state` (2,200 bytes) an arena's first chunk may begin.
const FIRST_CHUNK: Range<u64> = 0x700..0xb00;
/// Chunks that must follow each other for a first one to be believed.
const CHAIN: usize = 4;
/// Most heaps that are looked at.
const MAX_HEAPS: usize = 4096;
/// A part of a heap: of heaps that are too large only the beginning of each is read, and the rest
/// of it taken to be alike.
const CELL: u64 = 4 << 20;
/// Less of a cell says too little.
const MIN_STRETCH: u64 = 64 << 10;
/// Bytes between two chunks that are remembered, to begin at.
const ANCHORS: u64 = 1 << 20;
/// Bytes read at a time.
const WINDOW: u64 = 256 << 10;

/// A row of chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Heap {
    /// All of it, with what is before the first chunk.
    range: Range<u64>,
    /// The first chunk, if it was found.
    first: Option<u64>,
}

/// What was found of a process's arenas. Ranges are in order and do not overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Arenas {
    /// The heaps.
    pub heaps: Vec<Range<u64>>,
    /// Free chunks.
    pub free: Vec<Range<u64>>,
    /// What the allocator needs itself: chunks of known blocks, of which only the blocks are used,
    /// and its own structures.
    pub own: Vec<Range<u64>>,
    /// Where chunks were looked at.
    pub walked: Vec<Range<u64>>,
    /// The parts of the heaps.
    pub cells: Vec<Cell>,
    /// Blocks that are in use and not known, with what their chunks have room for.
    pub unknown: Vec<Range<u64>>,
    /// Chunks to begin at the next time, in order.
    pub anchors: Vec<u64>,
}

/// What was found in a part of a heap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    /// All of it.
    pub range: Range<u64>,
    /// Bytes of free chunks.
    pub free: u64,
    /// Bytes of the allocator's own.
    pub own: u64,
    /// Bytes of chunks that are in use and not known.
    pub unknown: u64,
}

/// Where arenas may be.
#[derive(Debug)]
pub(super) struct HeapPlaces<'a> {
    /// What lies after the break; empty if nothing does.
    pub main: Range<u64>,
    /// Anonymous memory that can be written, in order.
    pub writable: &'a [Range<u64>],
    /// No other allocator may have what lies after the break.
    pub is_sure: bool,
    /// Chunks that were seen before, in order.
    pub anchors: &'a [u64],
    /// Bytes to be read at most.
    pub budget: u64,
}

/// The addresses of known blocks, in order: there may be millions, and whoever has them keeps them
/// in some form.
pub(crate) trait BlockStarts {
    /// The address of this one.
    fn nth(&self, number: usize) -> Option<u64>;

    /// The first one that is not below `address`.
    fn first_from(&self, address: u64) -> usize;

    /// The bytes that were asked for, if that is known.
    fn size(&self, _number: usize) -> Option<u64> {
        None
    }
}

impl BlockStarts for &[u64] {
    fn nth(&self, number: usize) -> Option<u64> {
        self.get(number).copied()
    }

    fn first_from(&self, address: u64) -> usize {
        self.partition_point(|start| *start < address)
    }
}

impl BlockStarts for &[Range<u64>] {
    fn nth(&self, number: usize) -> Option<u64> {
        self.get(number).map(|block| block.start)
    }

    fn first_from(&self, address: u64) -> usize {
        self.partition_point(|block| block.start < address)
    }

    fn size(&self, number: usize) -> Option<u64> {
        self.get(number).map(|block| block.end.saturating_sub(block.start))
    }
}

impl HeapPlaces<'_> {
    /// There is something in the heap to begin at, beside its first chunk.
    fn knows(&self, heap: &Heap, blocks: &dyn BlockStarts) -> bool {
        let is_there = |known: &dyn BlockStarts| {
            let next = known.first_from(heap.first.unwrap_or(heap.range.start) + 1);
            known.nth(next).is_some_and(|known| heap.range.contains(&known))
        };
        is_there(blocks) || is_there(&self.anchors)
    }
}

/// Looks at the arenas.
pub(super) fn read_arenas(
    memory: &dyn ReadMemory,
    resident: &Resident,
    places: &HeapPlaces<'_>,
    blocks: &dyn BlockStarts,
) -> Arenas {
    let mut window = MemoryWindow::new(memory, resident);
    let heaps = find_heaps(&mut window, places);
    let ranges: Vec<Range<u64>> = heaps.iter().map(|heap| heap.range.clone()).collect();
    let sizes: Vec<u64> = ranges.iter().map(|range| resident.bytes_within(range.clone())).collect();
    let all: u64 = sizes.iter().sum();
    let mut arenas = Arenas { heaps: ranges.clone(), ..Arenas::default() };
    for (heap, size) in heaps.iter().zip(sizes) {
        if let Some(first) = heap.first {
            push(&mut arenas.own, heap.range.start..first);
            push(&mut arenas.walked, heap.range.start..first);
        }
        let share = if all > places.budget { scaled(places.budget, size, all) } else { size };
        for (cell, stretch) in stretches(heap, size, share, places.knows(heap, blocks)) {
            arenas.cells.push(Cell { range: cell.clone(), free: 0, own: 0, unknown: 0 });
            let mut walk = ChunkWalk {
                window: &mut window,
                heaps: &ranges,
                blocks,
                anchors: places.anchors,
                out: &mut arenas,
            };
            walk.stretch(heap, &cell, &stretch);
        }
    }
    arenas
}

/// `amount * part / whole`.
pub(super) fn scaled(amount: u64, part: u64, whole: u64) -> u64 {
    (u128::from(amount) * u128::from(part)).checked_div(u128::from(whole)).unwrap_or(0) as u64
}

/// The parts of a heap, and what is looked at of each.
fn stretches(heap: &Heap, size: u64, share: u64, knows_some: bool) -> Vec<(Range<u64>, Range<u64>)> {
    let whole = heap.first.unwrap_or(heap.range.start)..heap.range.end;
    if share >= size || whole.is_empty() {
        return vec![(whole.clone(), whole)];
    }
    if !knows_some {
        return vec![(whole.clone(), whole.start..whole.end.min(whole.start + share))];
    }
    let stretch = scaled(CELL, share, size).max(MIN_STRETCH);
    // With as little as is read of each, there may be too many of them.
    let cell = CELL.max(scaled(stretch, size, share.max(1)));
    let starts = (whole.start..whole.end).step_by(cell as usize);
    starts
        .map(|start| (start..(start + cell).min(whole.end), start..(start + stretch).min(whole.end)))
        .collect()
}

/// Adds a range after the others, joined to the last if they touch.
fn push(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        _ if range.is_empty() => {}
        Some(last) if range.start <= last.end && range.start >= last.start => {
            last.end = last.end.max(range.end)
        }
        // A stretch that resumed at a block which the one before has passed.
        Some(last) if range.start < last.start => {}
        _ => ranges.push(range),
    }
}

fn find_heaps(window: &mut MemoryWindow<'_>, places: &HeapPlaces<'_>) -> Vec<Heap> {
    let mut heaps = Vec::new();
    if !places.main.is_empty() {
        let first = Some(places.main.start).filter(|first| is_chain(window, *first, places.main.end, 0));
        // A static program's begins with the first thread's variables, and the first chunk comes
        // after them.
        if first.is_some() || places.is_sure {
            heaps.push(Heap { range: places.main.clone(), first });
        }
    }
    for range in places.writable {
        let mut at = range.start.next_multiple_of(HEAP_MAX);
        while at < range.end && heaps.len() < MAX_HEAPS {
            heaps.extend(heap_at(window, at, range.end));
            // Most of what is reserved and not used has no such address that is in memory.
            let after = window.resident.within(at + HEAP_MAX..range.end).next();
            let Some(next) = after else { break };
            at = next.start.next_multiple_of(HEAP_MAX).max(at + HEAP_MAX);
        }
    }
    heaps.sort_unstable_by_key(|heap| heap.range.start);
    heaps
}

/// The heap that begins at `at`, a multiple of 64 MiB, if one does: `struct heap_info`.
fn heap_at(window: &mut MemoryWindow<'_>, at: u64, end: u64) -> Option<Heap> {
    let [arena, previous, size, writable] = [0, 8, 16, 24].map(|offset| window.word(at + offset));
    let (arena, previous, size, writable) = (arena?, previous?, size?, writable?);
    let is_size =
        size > 0 && size % 4096 == 0 && size <= writable && writable <= HEAP_MAX && at + size <= end;
    if !is_size || previous % HEAP_MAX != 0 || arena % 8 != 0 {
        return None;
    }
    let range = at..at + size;
    // `heap_info` is 32 bytes, and 48 since glibc 2.35.
    let sizes = [0x20, 0x30];
    let candidates: Vec<u64> = match arena.checked_sub(at) {
        Some(offset) if sizes.contains(&offset) && previous == 0 => {
            FIRST_CHUNK.step_by(ALIGNMENT as usize).map(|chunk| (arena & !(ALIGNMENT - 1)) + chunk).collect()
        }
        _ if previous != 0 => sizes.iter().map(|offset| at + offset).collect(),
        _ => return None,
    };
    let first = candidates.into_iter().find(|first| is_chain(window, *first, range.end, NON_MAIN_ARENA));
    Some(Heap { range, first })
}

/// Chunks of an arena of this kind follow each other from `at` on.
fn is_chain(window: &mut MemoryWindow<'_>, mut at: u64, end: u64, arena: u64) -> bool {
    for _ in 0..CHAIN {
        let Some(word) = window.word(at + 8) else { return false };
        let Some(size) = chunk_size(word) else { return false };
        at += size;
        // The top, of which glibc does not say whose it is.
        if at >= end {
            return at == end;
        }
        if word & NON_MAIN_ARENA != arena {
            return false;
        }
    }
    true
}

/// The size in a chunk's header; `None` if it cannot be one.
fn chunk_size(word: u64) -> Option<u64> {
    let size = word & !FLAGS;
    let is_one =
        size >= MIN_CHUNK && size.is_multiple_of(ALIGNMENT) && word & IS_MMAPPED == 0 && size < 1 << 46;
    is_one.then_some(size)
}

/// The bytes of the smallest chunk for a block of this size (`request2size`).
pub(crate) fn chunk_of(size: u64) -> Option<u64> {
    Some(size.checked_add(HEADER / 2 + ALIGNMENT - 1)? & !(ALIGNMENT - 1)).map(|chunk| chunk.max(MIN_CHUNK))
}

/// One pass over a part of a heap.
struct ChunkWalk<'a, 'b> {
    window: &'a mut MemoryWindow<'b>,
    heaps: &'a [Range<u64>],
    blocks: &'a dyn BlockStarts,
    anchors: &'a [u64],
    out: &'a mut Arenas,
}

impl ChunkWalk<'_, '_> {
    /// Looks at a part of a cell as long as `stretch`: from the first chunk of the cell on that is
    /// known.
    fn stretch(&mut self, heap: &Heap, cell: &Range<u64>, stretch: &Range<u64>) {
        let mut next_block = self.blocks.first_from(stretch.start + HEADER);
        let is_first = heap.first == Some(stretch.start);
        let mut at =
            if is_first { Some(stretch.start) } else { self.resume(&mut next_block, cell.clone(), heap) };
        let end = at.map_or(0, |at| (at + (stretch.end - stretch.start)).min(cell.end));
        while let Some(chunk) = at.filter(|chunk| *chunk < end) {
            while self.blocks.nth(next_block).is_some_and(|block| block < chunk + HEADER) {
                next_block += 1;
            }
            let is_known = self.blocks.nth(next_block) == Some(chunk + HEADER);
            if is_known && let Some(end) = self.next_to(next_block, chunk) {
                self.known(chunk..end);
                at = Some(end);
                continue;
            }
            at = match self.chunk(chunk, heap, is_known) {
                Some(end) => Some(end),
                None => self.resume(&mut next_block, chunk + MIN_CHUNK..end, heap),
            };
        }
    }

    /// The end of a known block's chunk, if another known block's begins there: then nothing need
    /// be read of it.
    fn next_to(&self, block: usize, chunk: u64) -> Option<u64> {
        let end = chunk.checked_add(chunk_of(self.blocks.size(block)?)?)?;
        (self.blocks.nth(block + 1)? == end.checked_add(HEADER)?).then_some(end)
    }

    /// Of a known block it is the header and what its size is rounded by.
    fn known(&mut self, chunk: Range<u64>) {
        if let Some(cell) = self.out.cells.last_mut() {
            cell.own += HEADER;
        }
        push(&mut self.out.own, chunk.clone());
        self.walked(chunk);
    }

    fn walked(&mut self, chunk: Range<u64>) {
        let anchors = &mut self.out.anchors;
        if anchors.last().is_none_or(|last| chunk.start - last >= ANCHORS) {
            anchors.push(chunk.start);
        }
        push(&mut self.out.walked, chunk);
    }

    /// The first chunk in a range that is known: of a block, or from before, if it makes sense
    /// still.
    fn resume(&mut self, next_block: &mut usize, range: Range<u64>, heap: &Heap) -> Option<u64> {
        while self.blocks.nth(*next_block).is_some_and(|block| block < range.start + HEADER) {
            *next_block += 1;
        }
        let of_block =
            self.blocks.nth(*next_block).map(|block| block - HEADER).filter(|chunk| *chunk < range.end);
        let until = of_block.unwrap_or(range.end);
        let first = self.anchors.partition_point(|anchor| *anchor < range.start);
        let anchors =
            self.anchors.get(first..).unwrap_or_default().iter().take_while(|anchor| **anchor < until);
        let kind = if heap.range.start.is_multiple_of(HEAP_MAX) { NON_MAIN_ARENA } else { 0 };
        let anchor = anchors.copied().find(|anchor| is_chain(self.window, *anchor, heap.range.end, kind));
        anchor.or(of_block)
    }

    /// Looks at one chunk and gives its end; `None` if it makes no sense.
    fn chunk(&mut self, at: u64, heap: &Heap, is_known: bool) -> Option<u64> {
        let size = chunk_size(self.window.word(at + 8)?)?;
        let end = at.checked_add(size).filter(|end| *end <= heap.range.end)?;
        let is_top = end == heap.range.end;
        // A chunk after this one that is not in memory says nothing.
        let is_used = !is_top && self.window.word(end + 8)? & PREV_INUSE != 0;
        let is_tcache = !is_known && size == TCACHE_CHUNK && is_used && self.is_tcache(at + HEADER);
        let is_free = !is_known && (!is_used || (size <= MAX_CACHED && self.leads_on(at + HEADER)));
        if is_known {
            self.known(at..end);
            return Some(end);
        }
        let Arenas { free, own, cells, unknown, .. } = &mut *self.out;
        let mut counted = Cell { range: 0..0, free: 0, own: 0, unknown: 0 };
        let cell = cells.last_mut().unwrap_or(&mut counted);
        if is_tcache {
            cell.own += size;
            push(own, at..end);
        } else if is_free {
            cell.free += self.window.resident.bytes_within(at..end);
            push(free, at..end);
        } else {
            cell.unknown += size;
            if !is_top {
                // The next chunk's first word is the block's last.
                unknown.push(at + HEADER..end + HEADER / 2);
            }
        }
        self.walked(at..end);
        Some(end)
    }

    /// The first word of this block is a link of a fastbin or tcache: its own address's page number
    /// over the next one's address (`PROTECT_PTR`, since glibc 2.32).
    fn leads_on(&mut self, block: u64) -> bool {
        let Some(word) = self.window.word(block) else { return false };
        let next = word ^ (block >> 12);
        let is_in_heap = || self.heaps.iter().any(|heap| heap.contains(&next));
        next == 0 || (next.is_multiple_of(ALIGNMENT) && is_in_heap())
    }

    /// 64 counters of 16 bits, and a list for each that is not 0.
    fn is_tcache(&mut self, block: u64) -> bool {
        (0..64).all(|bin| {
            let counters = self.window.word(block + bin / 4 * 8);
            let list = self.window.word(block + 128 + bin * 8);
            let (Some(counters), Some(list)) = (counters, list) else { return false };
            let count = counters >> (bin % 4 * 16) & 0xffff;
            (count == 0) == (list == 0) && count < 256 && list.is_multiple_of(ALIGNMENT)
        })
    }
}

/// Memory of the target that is read as it is looked at, piece by piece. What is not in memory is
/// not read: it would be fetched for us.
struct MemoryWindow<'a> {
    memory: &'a dyn ReadMemory,
    resident: &'a Resident,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> MemoryWindow<'a> {
    fn new(memory: &'a dyn ReadMemory, resident: &'a Resident) -> Self {
        Self { memory, resident, start: 0, bytes: Vec::new() }
    }

    /// The word at `address`, a multiple of 8.
    fn word(&mut self, address: u64) -> Option<u64> {
        if let Some(word) = self.cached(address) {
            return Some(word);
        }
        let start = address & !(WINDOW - 1);
        let run = self.resident.run_at(address)?;
        let (start, end) = (start.max(run.start), (start + WINDOW).min(run.end));
        self.bytes.resize(usize::try_from(end.checked_sub(start)?).ok()?, 0);
        self.start = start;
        if self.memory.read_exact_at(start, &mut self.bytes).is_err() {
            self.bytes.clear();
        }
        self.cached(address)
    }

    fn cached(&self, address: u64) -> Option<u64> {
        let at = usize::try_from(address.checked_sub(self.start)?).ok()?;
        let word = self.bytes.get(at..at.checked_add(8)?)?;
        Some(u64::from_ne_bytes(word.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests;
