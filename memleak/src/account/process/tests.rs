#![expect(clippy::single_range_in_vec_init, reason = "lists of ranges, of which some have one")]

use super::*;
use crate::proc::maps::Backing;

struct Nothing;

impl ReadMemory for Nothing {
    fn read_exact_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }
}

fn mapping(start: u64, end: u64, path: Option<&str>) -> Mapping {
    let backing = match path {
        Some(path) => Backing::File { path: path.into(), deleted: false },
        None => Backing::Other,
    };
    Mapping {
        start,
        end,
        executable: false,
        readable: true,
        writable: true,
        file_offset: 0,
        device: (0, 0),
        inode: u64::from(path.is_some()),
        backing,
    }
}

fn source<'a>(mappings: &'a [Mapping], stack_pointers: Vec<u64>) -> MemorySource<'a> {
    let files = files_of(mappings, &ObjectStore::default());
    MemorySource { memory: &Nothing, mappings, break_start: 0, stack_pointers, files }
}

/// A file of two pages, memory of three, a stack of two, and as much that is nobody's; all of it
/// resident.
fn mappings() -> Vec<Mapping> {
    vec![
        mapping(0x1000, 0x3000, Some("/lib")),
        mapping(0x4000, 0x7000, None),
        mapping(0x8000, 0xa000, None),
        mapping(0xb000, 0xd000, None),
    ]
}

fn all(mappings: &[Mapping]) -> Resident {
    Resident::new(mappings.iter().map(|mapping| mapping.start..mapping.end).collect())
}

#[test]
fn each_part_gets_its_own() {
    let mappings = mappings();
    let known = KnownMemory {
        blocks: vec![0x4010..0x4110, 0x4200..0x4210],
        mappings: vec![0x5000..0x5001],
        own: vec![0x6000..0x7000],
        ..KnownMemory::default()
    };
    let mut remembered = Remembered::of_new_program();
    let parts = split(
        &source(&mappings, vec![0x9800]),
        all(&mappings),
        Allocators::default(),
        known,
        &mut remembered,
    );
    let expected = MemoryParts {
        rss: 0x9000,
        outstanding: 0x110 + 0x1000,
        free: None,
        // What is before the first block, which looks as if glibc had mapped it for itself, and
        // behind it.
        allocator: 0x1000 - 0x110 + 0x1000,
        areas: 0,
        rounding: 0,
        area_allocator: None,
        stacks: 0x2000,
        files: 0x2000,
        older: 0,
        rest: 0x2000,
        nameless: 0,
    };
    assert_eq!(parts, expected);
    // A thread that runs says nothing of its stack, which is known from before.
    let parts = split(
        &source(&mappings, vec![]),
        all(&mappings),
        Allocators::default(),
        KnownMemory::default(),
        &mut remembered,
    );
    assert_eq!((parts.stacks, parts.rest), (0x2000, 0x5000));
}

#[test]
fn mappings_with_blocks_are_the_allocators_that_cannot_be_read() {
    let mappings = mappings();
    let allocators = Allocators { others: true, ..Allocators::default() };
    let known = || KnownMemory { blocks: vec![0x4020..0x4030], ..KnownMemory::default() };
    let mut remembered = Remembered::of_new_program();
    let parts = split(&source(&mappings, vec![]), all(&mappings), allocators, known(), &mut remembered);
    assert_eq!((parts.outstanding, parts.areas, parts.free), (0x10, 0x3000 - 0x10, None));
    // Also when no block is left in them.
    let parts = split(
        &source(&mappings, vec![]),
        all(&mappings),
        allocators,
        KnownMemory::default(),
        &mut remembered,
    );
    assert_eq!((parts.areas, parts.rest), (0x3000, 0x4000));
    let parts = split(
        &source(&mappings[..1], vec![]),
        all(&mappings),
        allocators,
        KnownMemory::default(),
        &mut remembered,
    );
    assert_eq!((parts.allocator, parts.areas), (0, 0));
}

#[test]
fn what_is_written_later_in_older_mappings_is_from_before() {
    let mut mappings = vec![mapping(0x4000, 0x8000, None), mapping(0x9000, 0xa000, None)];
    let mut remembered = Remembered::default();
    let mut measured = |mappings: &[Mapping], resident: Range<u64>| {
        let resident = Resident::new(vec![resident]);
        let none = (Allocators::default(), KnownMemory::default());
        let parts = split(&source(mappings, vec![]), resident, none.0, none.1, &mut remembered);
        (parts.older, parts.rest)
    };
    assert_eq!(measured(&mappings, 0x4000..0x5000), (0x1000, 0));
    assert_eq!(measured(&mappings, 0x4000..0x8000), (0x4000, 0));
    // It has grown, so what is behind it is new.
    mappings[0] = mapping(0x4000, 0x9000, None);
    assert_eq!(measured(&mappings, 0x4000..0x9000), (0x4000, 0x1000));
    // What was unmapped meanwhile is not what is there later.
    assert_eq!(measured(&mappings[1..], 0x9000..0xa000), (0x1000, 0));
    assert_eq!(measured(&mappings, 0x4000..0x9000), (0, 0x5000));
}

#[test]
fn a_chunk_that_glibc_has_mapped_is_no_nameless_heap() {
    /// A chunk of two pages begins each multiple of 128 KiB.
    struct Chunks;
    impl ReadMemory for Chunks {
        fn read_exact_at(&self, address: u64, bytes: &mut [u8]) -> io::Result<()> {
            let word: u64 = if address % 0x20000 == 8 { 0x2002 } else { 0 };
            bytes.copy_from_slice(&word.to_ne_bytes());
            Ok(())
        }
    }
    let mappings = [mapping(0x20000, 0x40000, None), mapping(0x50000, 0x52000, None)];
    let source = MemorySource { memory: &Chunks, ..source(&mappings, vec![]) };
    let resident = || Resident::new(vec![0x20000..0x30000]);
    assert_eq!(unexplained(&source, resident(), vec![]), 0x10000 - 0x2000);
    assert_eq!(unexplained(&source, resident(), vec![0x20000..0x28000]), 0x8000);
}

#[test]
fn a_stack_ends_where_an_allocator_begins() {
    let mappings = [mapping(0x4000, 0x9000, None)];
    let known = KnownMemory { blocks: vec![0x7020..0x7030], ..KnownMemory::default() };
    let allocators = Allocators { others: true, ..Allocators::default() };
    let parts = split(
        &source(&mappings, vec![0x5000]),
        all(&mappings),
        allocators,
        known,
        &mut Remembered::of_new_program(),
    );
    assert_eq!((parts.stacks, parts.outstanding, parts.rest), (0x3020, 0x10, 0));
}

#[test]
fn where_nobody_looked_it_is_taken_to_be_alike() {
    let heap = 0..0x8000;
    let mut resident = Resident::new(vec![heap.clone()]);
    let cells = vec![
        Cell { range: 0..0x4000, free: 0x1000, own: 0x800, unknown: 0x800 },
        Cell { range: 0x4000..0x6000, free: 0, own: 0, unknown: 0x100 },
        Cell { range: 0x6000..0x8000, free: 0, own: 0, unknown: 0 },
    ];
    let arenas =
        Arenas { heaps: vec![heap], walked: vec![0..0x2000, 0x4000..0x4100], cells, ..Arenas::default() };
    resident.take([0..0x1800]);
    // Half of the first is free there, a quarter the allocator's; of the third, as much as of both.
    let (free, own) = not_walked(&resident, &arenas);
    assert_eq!((free, own), (0x1000 + 0x2000 * 0x1000 / 0x2100, 0x800 + 0x2000 * 0x800 / 0x2100));
    assert_eq!(not_walked(&resident, &Arenas::default()), (0, 0));
}

#[test]
fn chunks_are_remembered_where_nobody_looked() {
    assert_eq!(merged(vec![10, 50], &[5, 20, 60], &[10..30, 50..60]), [5, 10, 50, 60]);
}

/// Ours, with the heap's blocks unknown: the kernel's sum, and files are most of it.
#[test]
fn all_of_us_is_split() {
    let pid = std::process::id();
    let mappings = crate::proc::maps::read_maps(pid).unwrap();
    let allocators = Allocators { glibc: true, ..Allocators::default() };
    let store = ObjectStore::default();
    let parts =
        measure(pid, &mappings, &store, allocators, KnownMemory::default(), &mut Remembered::default())
            .unwrap();
    let sum = parts.outstanding
        + parts.free.unwrap_or(0)
        + parts.allocator
        + parts.areas
        + parts.stacks
        + parts.files
        + parts.older
        + parts.rest;
    assert_eq!(sum, parts.rss);
    assert!(parts.files > 1 << 20 && parts.stacks > 4096, "{parts:?}");
}

/// jemalloc(3), IMPLEMENTATION NOTES, table 1, and mimalloc's sizes as `mi_good_size` gives them.
#[test]
fn what_may_be_behind_a_block() {
    let known = SizeClasses::of(Some(AllocatorKind::Jemalloc));
    assert_eq!(known, SizeClasses::of(Some(AllocatorKind::Mimalloc)));
    let sizes = [
        (0, 8),
        (1, 8),
        (8, 8),
        (9, 16),
        (17, 32),
        (100, 112),
        (128, 128),
        (129, 160),
        (200, 224),
        (257, 320),
        (1000, 1024),
        (5000, 5120),
        (8193, 10240),
        (14336, 14336),
        (20000, 20480 + 4096),
        (70000, 81920 + 4096),
    ];
    for (size, class) in sizes {
        assert_eq!(known.most_behind(size), class - size, "{size}");
    }
    assert_eq!([8, 100, 1000].map(|size| SizeClasses::of(None).most_behind(size)), [16, 25, 250]);
    assert_eq!(most_rounding(&[0x10..0xd8, 0x100..0x1c8, 0x2000..0x2001], known), 24 + 24 + 4095);
    assert_eq!((known.own_share(3200), SizeClasses::Unknown.own_share(3200)), (100, 0));
}
