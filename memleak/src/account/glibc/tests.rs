#![expect(clippy::single_range_in_vec_init, reason = "lists of ranges, of which some have one")]

use std::io;

use super::*;

fn read(memory: &dyn ReadMemory, resident: &Resident, places: &HeapPlaces<'_>, blocks: &[u64]) -> Arenas {
    read_arenas(memory, resident, places, &blocks)
}

/// Memory from an address on.
struct Fake {
    start: u64,
    bytes: Vec<u8>,
}

impl ReadMemory for Fake {
    fn read_exact_at(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        let at = address.checked_sub(self.start).ok_or(io::ErrorKind::NotFound)? as usize;
        let bytes = self.bytes.get(at..at + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

impl Fake {
    fn new(start: u64, len: u64) -> Self {
        Self { start, bytes: vec![0; len as usize] }
    }

    fn put(&mut self, address: u64, word: u64) {
        let at = (address - self.start) as usize;
        self.bytes[at..at + 8].copy_from_slice(&word.to_ne_bytes());
    }

    /// Chunks from `at` on: size, and whether it is in use. The last one is the top.
    fn chunks(&mut self, mut at: u64, flags: u64, chunks: &[(u64, bool)]) -> u64 {
        let mut before_is_used = true;
        for (size, is_used) in chunks {
            self.put(at + 8, size | flags | u64::from(before_is_used));
            (at, before_is_used) = (at + size, *is_used);
        }
        at
    }

    fn all(&self) -> Resident {
        Resident::new(vec![self.range()])
    }

    fn range(&self) -> Range<u64> {
        self.start..self.start + self.bytes.len() as u64
    }
}

const MAIN: u64 = 0x5555_5555_9000;

fn total(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// A used chunk that is known, one of a fastbin, one in use that nobody knows, a free one, a known
/// one, the top.
fn main_arena() -> Fake {
    let mut memory = Fake::new(MAIN, 0x21000);
    let sizes = [(0x290, true), (0x30, true), (0x30, true), (0x40, true), (0x500, false), (0x100, true)];
    let end = memory.chunks(MAIN, 0, &sizes);
    memory.put(end + 8, (MAIN + 0x21000 - end) | PREV_INUSE);
    // The second one of 0x30 is the only one of its list; the unknown one begins with some number.
    memory.put(MAIN + 0x290 + 0x30 + 0x10, (MAIN + 0x2d0) >> 12);
    memory.put(MAIN + 0x290 + 0x60 + 0x10, 1234);
    memory
}

#[test]
fn chunks_are_told_apart() {
    let memory = main_arena();
    let blocks = [MAIN + 0x290 + 0x10, MAIN + 0x290 + 0x60 + 0x40 + 0x500 + 0x10];
    let places =
        HeapPlaces { main: memory.range(), writable: &[], is_sure: true, anchors: &[], budget: 1 << 30 };
    let arenas = read(&memory, &memory.all(), &places, &blocks);
    let at = |offset: u64| MAIN + offset;
    let free = [at(0x2c0)..at(0x2f0), at(0x330)..at(0x830), at(0x930)..at(0x21000)];
    assert_eq!(arenas.free, free);
    // The first is the tcache's own: 64 counters and lists that are all 0.
    assert_eq!(arenas.own, [at(0)..at(0x2c0), at(0x830)..at(0x930)]);
    assert_eq!(arenas.walked, [memory.range()]);
}

/// What lies between two known blocks that follow each other is not read: here it makes no sense.
#[test]
fn of_known_blocks_that_follow_each_other_nothing_is_read() {
    let mut memory = main_arena();
    // By the first four chunks the heap is known.
    let first = memory.chunks(MAIN + 0x290, 0, &[(0x20, true); 4]);
    // A block of 24 has a chunk of 0x20, and one of 25 one of 0x30.
    let sizes = [(0x20, true), (0x30, true), (0x20, true), (0x500, false), (0x100, true)];
    let end = memory.chunks(first, 0, &sizes);
    memory.put(end + 8, (MAIN + 0x21000 - end) | PREV_INUSE);
    [first, first + 0x20].iter().for_each(|chunk| memory.put(chunk + 8, u64::MAX));
    let block = |chunk: u64, size: u64| chunk + HEADER..chunk + HEADER + size;
    let last = first + 0x70 + 0x500;
    let mut blocks: Vec<_> = (0..4).map(|number| block(MAIN + 0x290 + number * 0x20, 24)).collect();
    blocks.extend([block(first, 24), block(first + 0x20, 25), block(first + 0x50, 1), block(last, 0xf8)]);
    let places =
        HeapPlaces { main: memory.range(), writable: &[], is_sure: true, anchors: &[], budget: 1 << 30 };
    let arenas = read_arenas(&memory, &memory.all(), &places, &blocks.as_slice());
    assert_eq!(arenas.free, [first + 0x70..last, end..MAIN + 0x21000]);
    assert_eq!(arenas.own, [MAIN..first + 0x70, last..end]);
    assert_eq!(arenas.walked, [memory.range()]);
    assert_eq!(arenas.cells.iter().map(|cell| cell.own).sum::<u64>(), 0x290 + 8 * HEADER);
    let plain = |size| chunk_of(size).unwrap();
    assert_eq!([0, 24, 25, 40, 41].map(plain), [0x20, 0x20, 0x30, 0x30, 0x40]);
    assert_eq!(chunk_of(u64::MAX), None);
}

#[test]
fn what_is_no_heap_of_glibc_is_left_alone() {
    let mut memory = Fake::new(MAIN, 0x21000);
    (0..0x4200).for_each(|word| memory.put(MAIN + word * 8, word * 0x1234_5677));
    let places =
        |is_sure| HeapPlaces { main: memory.range(), writable: &[], is_sure, anchors: &[], budget: 1 << 30 };
    let all = memory.all();
    assert_eq!(read(&memory, &all, &places(false), &[]), Arenas::default());
    assert_eq!(read(&memory, &all, &places(true), &[]).walked, []);
}

/// A static program's first thread has its variables where the heap begins; what is overwritten
/// ends a stretch.
#[test]
fn a_walk_begins_at_a_known_block_and_goes_on_at_the_next() {
    let mut memory = main_arena();
    memory.put(MAIN + 8, 0x1239);
    memory.put(MAIN + 0x290 + 8, u64::MAX);
    let blocks = [MAIN + 0x290 + 0x10, MAIN + 0x290 + 0x60 + 0x40 + 0x500 + 0x10];
    let places =
        HeapPlaces { main: memory.range(), writable: &[], is_sure: true, anchors: &[], budget: 1 << 30 };
    let arenas = read(&memory, &memory.all(), &places, &blocks);
    assert_eq!(arenas.walked, [MAIN + 0x830..MAIN + 0x21000]);
    assert_eq!(arenas.free, [MAIN + 0x930..MAIN + 0x21000]);
}

/// So is one that begins at a chunk that was seen before, if there still is one.
#[test]
fn a_walk_begins_at_a_chunk_from_before() {
    let mut memory = main_arena();
    memory.put(MAIN + 8, 0x1239);
    let anchors = [MAIN + 0x10, MAIN + 0x2f0];
    let places =
        HeapPlaces { main: memory.range(), writable: &[], is_sure: true, anchors: &anchors, budget: 1 << 30 };
    let arenas = read(&memory, &memory.all(), &places, &[]);
    assert_eq!(arenas.walked, [MAIN + 0x2f0..MAIN + 0x21000]);
    assert_eq!(arenas.anchors, [MAIN + 0x2f0]);
    let cell = Cell { range: memory.range(), free: 0x500 + 0x21000 - 0x930, own: 0, unknown: 0x140 };
    assert_eq!(arenas.cells, [cell]);
}

#[test]
fn what_is_not_in_memory_is_not_read() {
    struct Forbidden;
    impl ReadMemory for Forbidden {
        fn read_exact_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            panic!("read");
        }
    }
    let places = HeapPlaces {
        main: MAIN..MAIN + 0x21000,
        writable: &[HEAP_MAX..4 * HEAP_MAX],
        is_sure: true,
        anchors: &[],
        budget: 1 << 30,
    };
    assert_eq!(read(&Forbidden, &Resident::default(), &places, &[MAIN + 16]).walked, []);
}

/// Two heaps of one arena, of glibc 2.35 and later.
#[test]
fn heaps_of_other_arenas_are_found() {
    let start = 0x7f00_0000_0000;
    let size = 0x1000;
    let mut memory = Fake::new(start, HEAP_MAX + size);
    let arena = start + 0x30;
    for (at, previous) in [(start, 0), (start + HEAP_MAX, start)] {
        for (word, value) in [arena, previous, size, size, 4096].into_iter().enumerate() {
            memory.put(at + word as u64 * 8, value);
        }
    }
    let first = start + 0x8d0;
    let end =
        memory.chunks(first, NON_MAIN_ARENA, &[(0x290, true), (0x20, true), (0x20, false), (0x20, true)]);
    memory.put(end + 8, (start + size - end) | NON_MAIN_ARENA | PREV_INUSE);
    let second = start + HEAP_MAX + 0x30;
    let end = memory.chunks(second, NON_MAIN_ARENA, &[(0x20, true), (0x20, false), (0x20, true)]);
    memory.put(end + 8, (start + HEAP_MAX + size - end) | NON_MAIN_ARENA | PREV_INUSE);
    let writable = [memory.range()];
    let places = HeapPlaces { main: 0..0, writable: &writable, is_sure: true, anchors: &[], budget: 1 << 30 };
    let arenas = read(&memory, &memory.all(), &places, &[]);
    assert_eq!(arenas.heaps, [start..start + size, start + HEAP_MAX..start + HEAP_MAX + size]);
    assert_eq!(arenas.own, [start..first + 0x290, start + HEAP_MAX..second]);
    let tops = 2 * size - (0x8d0 + 0x290 + 0x60) - (0x30 + 0x60);
    assert_eq!(total(&arenas.free), 0x40 + tops);
}

/// What a thread has that has made one block: the second chunk is followed by the top, which does
/// not say that it is another arena's.
#[test]
fn a_heap_of_few_chunks_is_found() {
    let (start, size) = (2 * HEAP_MAX, 0x21000);
    let mut memory = Fake::new(start, size);
    let arena = start + 0x30;
    [arena, 0, size, size].iter().zip([0, 8, 16, 24]).for_each(|(word, at)| memory.put(start + at, *word));
    let first = arena + 0x8a0;
    let end = memory.chunks(first, NON_MAIN_ARENA, &[(0x290, true), (0xab0, true)]);
    memory.put(end + 8, (start + size - end) | PREV_INUSE);
    // `top` of its malloc_state, in the last 8 bytes of the block.
    memory.put(arena + 96, end);
    let writable = [start..start + size];
    let places = HeapPlaces { main: 0..0, writable: &writable, is_sure: true, anchors: &[], budget: 1 << 30 };
    let arenas = read(&memory, &memory.all(), &places, &[first + 0x290 + HEADER]);
    assert_eq!(arenas.own, [start..end]);
}

#[test]
fn a_large_heap_is_looked_at_here_and_there() {
    for (size, share) in [(10 << 30, 1 << 30), (10 << 30, 1 << 20), (1 << 40, 1 << 27)] {
        let heap = Heap { range: 0..size, first: Some(0) };
        let (cells, read): (Vec<_>, Vec<_>) = stretches(&heap, size, share, true).into_iter().unzip();
        assert_eq!(total(&cells), size);
        assert!(total(&read).abs_diff(share) <= share / 50, "{size} {share} {}", total(&read));
        assert!(read.last().unwrap().start > size - (size >> 3));
    }
    let heap = Heap { range: 0..10 << 30, first: Some(0) };
    assert_eq!(stretches(&heap, 10 << 30, 1 << 20, false), [(0..10 << 30, 0..1 << 20)]);
    assert_eq!(stretches(&heap, 100, 100, true), [(0..10 << 30, 0..10 << 30)]);
}
