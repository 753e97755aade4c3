//! The maps, read once, as plain data.

pub mod descriptors;

use std::collections::{BTreeMap, HashMap, HashSet};

use memleak_common::{probe::Resource, unwind::Step};

use crate::kernel_labels::Tag;

/// The process whose things are the kernel's own: no process has this id.
pub const KERNEL_PID: u32 = 0;

/// The number of the kernel's address space.
pub const KERNEL_SPACE: u32 = 0;

/// One outstanding thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outstanding {
    /// The address space or process that owns it: a number of the run's own, or [`KERNEL_SPACE`].
    pub space: u32,
    /// What it is.
    pub resource: Resource,
    /// Address of the block or range.
    pub address: u64,
    /// Its key in the kernel's table; that of a range may lie within its first page.
    pub handle: u64,
    /// Bytes asked for.
    pub size: u64,
    /// Key into [`Snapshot::stacks`].
    pub stack_id: u64,
    /// CLOCK_MONOTONIC nanoseconds when it was acquired.
    pub time_ns: u64,
}

/// One stack: return addresses, callee first.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Stack {
    /// Return addresses.
    pub ips: Vec<u64>,
    /// Callers are missing, and why.
    pub cut: Option<Cut>,
    /// Kernel mode: what its objects are.
    pub tag: Option<Tag>,
}

/// Why a walk ended before the outermost frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Deeper than `--max-depth`.
    TooDeep,
    /// No unwind information for the last frame, and its frame pointer leads nowhere.
    NoUnwindInformation,
    /// The last frame's unwind information is of a kind that tables do not hold.
    Unsupported,
    /// The last frame's part of the stack could not be read.
    Unreadable,
    /// The last frame's caller would lie below it.
    NoProgress,
}

impl Cut {
    /// From how a walk ended; `None` where it is complete.
    pub fn from_end(end: Step) -> Option<Self> {
        match end {
            Step::Frame | Step::FrameByPointer | Step::Complete => None,
            Step::NoRow => Some(Self::NoUnwindInformation),
            Step::Unsupported => Some(Self::Unsupported),
            Step::Unreadable => Some(Self::Unreadable),
            Step::NoProgress => Some(Self::NoProgress),
            Step::TooDeep => Some(Self::TooDeep),
        }
    }
}

/// What was lost, by way of loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize)]
pub struct Lost {
    /// Allocations not recorded.
    pub allocations: u64,
    /// Allocations recorded without their stack.
    pub stacks: u64,
    /// Events dropped (`-t`).
    pub events: u64,
    /// Processes that were not traced, or not from their beginning.
    pub processes: u64,
    /// Calls whose return was not seen.
    pub missed_returns: u64,
    /// Runs of our programs that the kernel skipped.
    pub skipped_runs: u64,
    /// Stacks of the report that are known in part: their outer callers are missing. A snapshot has 0.
    pub cut_stacks: u64,
}

/// All maps at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// CLOCK_MONOTONIC nanoseconds at which it was taken: ages are measured against it.
    pub time_ns: u64,
    /// Everything outstanding, in no order.
    pub outstanding: Vec<Outstanding>,
    /// Stacks by id. An id that is missing (`NO_STACK`) has no known stack.
    pub stacks: HashMap<u64, Stack>,
    /// Acquires so far (sampled ones only, where sampling is on).
    pub acquired: u64,
    /// Releases so far of what was seen acquired.
    pub released: u64,
    /// What was lost so far.
    pub lost: Lost,
}

/// A range that was unmapped, or mapped over; or a span of handles that was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmap {
    /// Whose range it was: [`Outstanding::space`].
    pub space: u32,
    /// What was released.
    pub resource: Resource,
    /// Its first address.
    pub start: u64,
    /// The address after its last.
    pub end: u64,
    /// CLOCK_MONOTONIC nanoseconds: ranges acquired later are not affected.
    pub time_ns: u64,
    /// In how many snapshots, the last ones, it overlapped no record.
    pub idle: u8,
}

/// What [`apply_unmaps`] gives.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// What is outstanding after all; a range with a hole in it gives two.
    pub outstanding: Vec<Outstanding>,
    /// Records of which nothing is left: they can be removed from the kernel's table.
    pub dead: Vec<Outstanding>,
}

/// A record, and the unmaps that overlap it.
type CutRange = (Outstanding, Vec<Unmap>);

/// Cuts unmapped ranges out of the records of mapped ones. The kernel side cannot search by range; it removes records
/// whose start it is told, and leaves the rest to us. Unmaps that have overlapped no record for some snapshots are dropped.
pub fn apply_unmaps(records: Vec<Outstanding>, unmaps: &mut Vec<Unmap>) -> Applied {
    /// The rest of a range gets a new key, so a record may be moved from a part of the table that is not read yet to one
    /// that is: this snapshot has it not. The next one has.
    const IDLE: u8 = 3;
    if unmaps.is_empty() {
        return Applied { outstanding: records, dead: Vec::new() };
    }
    let mut dead = Vec::new();
    let records = apply_spans(records, unmaps, &mut dead);
    let (ranges, mut outstanding): (Vec<_>, Vec<_>) =
        records.into_iter().partition(|record| record.resource == Resource::Mmap);
    // Several records may begin at one address only after a loss; each is cut all the same.
    let mut by_start: BTreeMap<(u32, u64), Vec<CutRange>> = BTreeMap::new();
    let mut longest = 0;
    for range in ranges {
        longest = longest.max(page_end(&range) - range.address);
        by_start.entry((range.space, range.address)).or_default().push((range, Vec::new()));
    }
    unmaps.retain_mut(|unmap| {
        unmap.idle += 1;
        let first = unmap.start.saturating_sub(longest);
        for (_, found) in by_start.range_mut((unmap.space, first)..(unmap.space, unmap.end)) {
            for (range, cuts) in found {
                if page_end(range) > unmap.start && range.time_ns < unmap.time_ns {
                    unmap.idle = 0;
                    cuts.push(*unmap);
                }
            }
        }
        unmap.idle < IDLE
    });
    for (range, cuts) in by_start.into_values().flatten() {
        let before = outstanding.len();
        outstanding.extend(pieces(&range, cuts));
        if outstanding.len() == before {
            dead.push(range);
        }
    }
    Applied { outstanding, dead }
}

/// Takes out what was released by spans of handles (close_range), and the spans with it: `unmaps` keeps ranges of
/// addresses.
fn apply_spans(
    records: Vec<Outstanding>,
    unmaps: &mut Vec<Unmap>,
    dead: &mut Vec<Outstanding>,
) -> Vec<Outstanding> {
    let spans: Vec<Unmap> = unmaps.extract_if(.., |unmap| unmap.resource != Resource::Mmap).collect();
    if spans.is_empty() {
        return records;
    }
    let released_by_span: HashSet<Resource> = spans.iter().map(|span| span.resource).collect();
    let (concerned, mut others): (Vec<_>, Vec<_>) =
        records.into_iter().partition(|record| released_by_span.contains(&record.resource));
    let key = |record: &Outstanding| (record.space, record.resource, record.handle);
    let mut left: BTreeMap<_, _> = concerned.into_iter().map(|record| (key(&record), record)).collect();
    for span in spans {
        let first = (span.space, span.resource, span.start);
        let covered = first..(span.space, span.resource, span.end.max(span.start));
        let released = left.extract_if(covered, |_, record| record.time_ns < span.time_ns);
        dead.extend(released.map(|(_, record)| record));
    }
    others.extend(left.into_values());
    others
}

/// Bytes of a page.
pub(crate) const PAGE_SIZE: u64 = 4096;

/// The address after the last page of a range.
fn page_end(range: &Outstanding) -> u64 {
    range.address.saturating_add(range.size.checked_next_multiple_of(PAGE_SIZE).unwrap_or(u64::MAX))
}

/// What is left of a range.
fn pieces(range: &Outstanding, mut cuts: Vec<Unmap>) -> Vec<Outstanding> {
    cuts.sort_by_key(|cut| cut.start);
    let end = range.address.saturating_add(range.size);
    let mut at = range.address;
    let mut pieces = Vec::new();
    let mut keep = |from: u64, to: u64| {
        if from < to {
            pieces.push(Outstanding { address: from, size: to - from, ..*range });
        }
    };
    for cut in cuts {
        keep(at, cut.start.min(end));
        at = at.max(cut.end);
    }
    keep(at, end);
    // A range of size 0 cannot be mapped; one that was cut nowhere is whole.
    pieces
}

#[cfg(test)]
mod tests {
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
        }
    }

    fn unmap(start: u64, end: u64, time_ns: u64) -> Unmap {
        Unmap { space: 1, resource: Resource::Mmap, start, end, time_ns, idle: 0 }
    }

    fn apply(records: &[Outstanding], unmaps: &mut Vec<Unmap>) -> (Vec<(u64, u64)>, usize) {
        let applied = apply_unmaps(records.to_vec(), unmaps);
        let mut left: Vec<_> = applied.outstanding.iter().map(|found| (found.address, found.size)).collect();
        left.sort_unstable();
        (left, applied.dead.len())
    }

    #[test]
    fn cuts_tail_middle_and_all() {
        let records = [range(0x10000, 0x4000, 1)];
        assert_eq!(apply(&records, &mut vec![unmap(0x13000, 0x14000, 2)]), (vec![(0x10000, 0x3000)], 0));
        assert_eq!(
            apply(&records, &mut vec![unmap(0x11000, 0x12000, 2)]),
            (vec![(0x10000, 0x1000), (0x12000, 0x2000)], 0)
        );
        assert_eq!(apply(&records, &mut vec![unmap(0xf000, 0x20000, 2)]), (vec![], 1));
        let mut twice = vec![unmap(0x12000, 0x14000, 2), unmap(0xf000, 0x12000, 3)];
        assert_eq!(apply(&records, &mut twice), (vec![], 1));
    }

    #[test]
    fn spans_several_and_spares_other_processes() {
        let mut other = range(0x10000, 0x1000, 1);
        other.space = 2;
        let records = [range(0x10000, 0x2000, 1), range(0x12000, 0x2000, 1), other];
        let mut unmaps = vec![unmap(0x11000, 0x13000, 5)];
        assert_eq!(
            apply(&records, &mut unmaps),
            (vec![(0x10000, 0x1000), (0x10000, 0x1000), (0x13000, 0x1000)], 0)
        );
        assert_eq!(unmaps.len(), 1);
    }

    #[test]
    fn spares_what_was_acquired_later() {
        let mut unmaps = vec![unmap(0x10000, 0x12000, 5)];
        assert_eq!(apply(&[range(0x10000, 0x2000, 6)], &mut unmaps), (vec![(0x10000, 0x2000)], 0));
    }

    #[test]
    fn unmap_waits_for_a_record_that_a_snapshot_missed() {
        let mut unmaps = vec![unmap(0x11000, 0x12000, 5)];
        let record = range(0x10000, 0x2000, 1);
        assert_eq!(apply(&[], &mut unmaps), (vec![], 0));
        assert_eq!(apply(&[], &mut unmaps), (vec![], 0));
        assert_eq!(apply(&[record], &mut unmaps), (vec![(0x10000, 0x1000)], 0));
        (0..3).for_each(|_| drop(apply(&[], &mut unmaps)));
        assert!(unmaps.is_empty(), "an unmap that overlaps nothing older is done in the end");
    }

    #[test]
    fn ignores_the_rest_of_the_last_page() {
        // 100 bytes asked for, a page mapped and unmapped: nothing is left; and a page above them is not its own.
        assert_eq!(apply(&[range(0x10000, 100, 1)], &mut vec![unmap(0xf000, 0x11000, 2)]), (vec![], 1));
        let mut above = vec![unmap(0x11000, 0x12000, 2)];
        assert_eq!(apply(&[range(0x10000, 100, 1)], &mut above), (vec![(0x10000, 100)], 0));
        assert_eq!(above[0].idle, 1);
    }

    #[test]
    fn leaves_the_heap_alone() {
        let mut heap = range(0x10000, 0x1000, 1);
        heap.resource = Resource::Heap;
        assert_eq!(apply(&[heap], &mut vec![unmap(0, u64::MAX, 2)]), (vec![(0x10000, 0x1000)], 0));
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
        let mut spans = vec![Unmap { resource: Resource::Fd, ..unmap(4, 1 << 32, 5) }];
        let applied = apply_unmaps(records.clone(), &mut spans);
        assert_eq!(applied.dead, [fd(4, 1), fd(5, 1)]);
        let mut left = applied.outstanding;
        left.sort_by_key(|record| (record.address, record.resource));
        assert_eq!(left, [fd(3, 1), file, fd(6, 9), range(4096, 4096, 1)]);
        assert!(spans.is_empty(), "it is done with");
    }
}
