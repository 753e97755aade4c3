use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn range(address: u64, size: u64, time_ns: u64) -> Outstanding {
    Outstanding {
        space: 1,
        resource: Resource::Mmap,
        address,
        handle: address,
        size,
        stack_id: 7,
        time_ns,
        birth: time_ns,
    }
}

fn release(start: u64, end: u64, time_ns: u64) -> Release {
    Release { space: 1, resource: Resource::Mmap, start, end, time_ns }
}

fn ranges(releases: &[Release]) -> Ranges {
    let mut ranges = Ranges::default();
    releases.iter().for_each(|one| ranges.release(one));
    ranges
}

/// What is left, in order, and how many records are dead.
fn apply(records: &[Outstanding], ranges: &mut Ranges) -> (Vec<(u64, u64)>, usize) {
    let applied = ranges.apply(records.to_vec());
    let mut left: Vec<_> = applied.outstanding.iter().map(|found| (found.address, found.size)).collect();
    left.sort_unstable();
    (left, applied.dead.len())
}

#[test]
fn cuts_tail_middle_and_all() {
    let records = [range(0x10000, 0x4000, 1)];
    let after = |releases: &[Release]| apply(&records, &mut ranges(releases));
    assert_eq!(after(&[release(0x13000, 0x14000, 2)]), (vec![(0x10000, 0x3000)], 0));
    assert_eq!(after(&[release(0x11000, 0x12000, 2)]), (vec![(0x10000, 0x1000), (0x12000, 0x2000)], 0));
    assert_eq!(after(&[release(0xf000, 0x20000, 2)]), (vec![], 1));
    let twice = [release(0x12000, 0x14000, 2), release(0xf000, 0x12000, 3)];
    assert_eq!(after(&twice), (vec![], 1));
}

#[test]
fn spans_several_and_spares_other_processes() {
    let mut other = range(0x10000, 0x1000, 1);
    other.space = 2;
    let records = [range(0x10000, 0x2000, 1), range(0x12000, 0x2000, 2), other];
    assert_eq!(
        apply(&records, &mut ranges(&[release(0x11000, 0x13000, 5)])),
        (vec![(0x10000, 0x1000), (0x10000, 0x1000), (0x13000, 0x1000)], 0)
    );
}

#[test]
fn spares_what_was_acquired_later() {
    let mut ranges = ranges(&[release(0x10000, 0x12000, 5)]);
    assert_eq!(apply(&[range(0x10000, 0x2000, 6)], &mut ranges), (vec![(0x10000, 0x2000)], 0));
}

/// 400,000 pieces are committed in a reservation, one page of each two, again and again: the holes
/// stay, the releases do not.
#[test]
fn a_release_is_used_up_and_its_hole_stays() {
    const PIECES: u64 = 1000;
    let reserved = range(1 << 30, PIECES * 0x2000, 1);
    let mut ranges = Ranges::default();
    for time_ns in 2..400_002 {
        let start = reserved.address + time_ns % PIECES * 0x2000;
        ranges.release(&release(start, start + 0x1000, time_ns));
    }
    assert!(ranges.len() <= PIECES as usize, "{}", ranges.len());
    for _ in 0..5 {
        let (left, dead) = apply(&[reserved], &mut ranges);
        assert_eq!((left.len(), dead, ranges.len()), (PIECES as usize, 0, 0));
        assert!(left.iter().all(|(address, size)| (address / 0x1000) % 2 == 1 && *size == 0x1000));
    }
    assert_eq!(ranges.holes.len(), 1);
    // One after the other up to the end: one hole.
    for time_ns in 500_000..500_000 + PIECES {
        let start = reserved.address + 0x1000 + (time_ns - 500_000) * 0x2000;
        ranges.release(&release(start, start + 0x1000, time_ns));
        if time_ns + 1 < 500_000 + PIECES {
            continue;
        }
        assert_eq!(apply(&[reserved], &mut ranges), (vec![], 1));
    }
    // It was on its way to another place, and could not be removed.
    let moved = Outstanding { address: reserved.address + 0x5000, size: reserved.size - 0x5000, ..reserved };
    assert_eq!(apply(&[moved], &mut ranges), (vec![], 1));
    assert_eq!(apply(&[], &mut ranges), (vec![], 0));
    assert!(ranges.holes.is_empty(), "they go with the record");
}

#[test]
fn ignores_the_rest_of_the_last_page() {
    // 100 bytes asked for, a page mapped and unmapped: nothing is left; and a page above them is
    // not its own.
    let record = [range(0x10000, 100, 1)];
    assert_eq!(apply(&record, &mut ranges(&[release(0xf000, 0x11000, 2)])), (vec![], 1));
    let mut above = ranges(&[release(0x11000, 0x12000, 2)]);
    assert_eq!(apply(&record, &mut above), (vec![(0x10000, 100)], 0));
    assert!(above.holes.is_empty());
}

#[test]
fn leaves_the_heap_alone() {
    let mut heap = range(0x10000, 0x1000, 1);
    heap.resource = Resource::Heap;
    let mut ranges = ranges(&[release(0, u64::MAX, 2)]);
    assert_eq!(apply(&[heap], &mut ranges), (vec![(0x10000, 0x1000)], 0));
}

#[test]
fn a_span_releases_handles_and_no_other_resource() {
    let fd = |handle: u64, time_ns| Outstanding {
        resource: Resource::Fd,
        handle,
        address: handle,
        size: 0,
        ..range(0, 0, time_ns)
    };
    let file = Outstanding { resource: Resource::File, ..fd(4, 1) };
    let records = vec![fd(3, 1), fd(4, 1), fd(5, 1), fd(6, 9), range(4096, 4096, 1), file];
    let mut spans = ranges(&[Release { resource: Resource::Fd, ..release(4, 1 << 32, 5) }]);
    let applied = spans.apply(records);
    assert_eq!(applied.dead, [fd(4, 1), fd(5, 1)]);
    let mut left = applied.outstanding;
    left.sort_by_key(|record| (record.address, record.resource));
    assert_eq!(left, [fd(3, 1), file, fd(6, 9), range(4096, 4096, 1)]);
}

/// Pages of the address space that the steps below map and unmap.
const PAGES: u64 = 48;

/// What a program does.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Maps so many pages, less some bytes of the last, over whatever is there.
    Map { page: u64, pages: u64, less: u64 },
    /// Unmaps.
    Unmap { page: u64, pages: u64 },
    /// The records are read.
    Snapshot,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = (0..PAGES, 1..=PAGES / 3);
    let step = prop_oneof![
        4 => (place.clone(), 0..PAGE_SIZE).prop_map(|((page, pages), less)| Step::Map { page, pages, less }),
        4 => place.prop_map(|(page, pages)| Step::Unmap { page, pages }),
        1 => Just(Step::Snapshot),
    ];
    prop::collection::vec(step, 1..120)
}

/// What the BPF programs keep: records by their key, that is by their first address
/// (`memleak-ebpf/src/records.rs`).
#[derive(Default)]
struct Programs {
    records: HashMap<u64, (u64, u64)>,
    ranges: Ranges,
}

impl Programs {
    /// `finish_release`: the record that begins there goes, or its rest is entered again.
    fn release(&mut self, start: u64, end: u64, time_ns: u64) {
        if let Some((size, made_ns)) = self.records.remove(&start)
            && size.next_multiple_of(PAGE_SIZE) > end - start
        {
            let key = (end..end + 8).find(|key| !self.records.contains_key(key)).expect("a free key");
            self.records.insert(key, (size - (end - start), made_ns));
        }
        self.ranges.release(&release(start, end, time_ns));
    }

    /// Bytes by the time of their mapping, as a report has them.
    fn snapshot(&mut self) -> BTreeMap<u64, u64> {
        let records = self.records.iter().map(|(key, (size, time_ns))| Outstanding {
            handle: *key,
            ..range(key & !(PAGE_SIZE - 1), *size, *time_ns)
        });
        let applied = self.ranges.apply(records.collect());
        for dead in applied.dead {
            self.records.remove(&dead.handle);
        }
        let mut bytes = BTreeMap::new();
        for left in applied.outstanding {
            *bytes.entry(left.time_ns).or_default() += left.size;
        }
        bytes
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// The truth is one owner, and its bytes, for each page.
    #[test]
    fn every_page_has_its_owner(steps in steps()) {
        let mut programs = Programs::default();
        let mut owners = vec![None; 2 * PAGES as usize];
        for (step, time_ns) in steps.into_iter().chain([Step::Snapshot]).zip((10..).step_by(10)) {
            match step {
                Step::Map { page, pages, less } => {
                    let (start, end) = (page * PAGE_SIZE, (page + pages) * PAGE_SIZE);
                    programs.release(start, end, time_ns);
                    programs.records.insert(start, (end - start - less, time_ns + 1));
                    for at in page..page + pages {
                        let bytes = if at + 1 == page + pages { PAGE_SIZE - less } else { PAGE_SIZE };
                        owners[at as usize] = Some((time_ns + 1, bytes));
                    }
                }
                Step::Unmap { page, pages } => {
                    programs.release(page * PAGE_SIZE, (page + pages) * PAGE_SIZE, time_ns);
                    owners[page as usize..(page + pages) as usize].fill(None);
                }
                Step::Snapshot => {
                    let mut truth = BTreeMap::new();
                    for (owner, bytes) in owners.iter().flatten() {
                        *truth.entry(*owner).or_default() += *bytes;
                    }
                    prop_assert_eq!(programs.snapshot(), truth);
                }
            }
        }
    }

    /// Releases may come out of order, from several threads: the latest one of each page is what
    /// counts.
    #[test]
    fn the_latest_release_counts(all in prop::collection::vec((0..PAGES, 1..PAGES, 1u64..50), 1..40)) {
        let mut releases = Releases::default();
        let mut latest = vec![0u64; 2 * PAGES as usize];
        for (start, len, time_ns) in all {
            releases.add(start, start + len, time_ns);
            for page in start..start + len {
                latest[page as usize] = latest[page as usize].max(time_ns);
            }
        }
        let mut found = vec![0u64; 2 * PAGES as usize];
        let mut end = 0;
        for (start, released) in &releases.0 {
            prop_assert!(end <= *start && *start < released.end, "disjoint");
            end = released.end;
            found[*start as usize..released.end as usize].fill(released.time_ns);
        }
        prop_assert_eq!(found, latest);
    }
}
