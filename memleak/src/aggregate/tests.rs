//! Aggregation by hand, and against the plainest way.

mod random;

use std::{collections::HashSet, time::Duration};

use clap::ValueEnum as _;
use memleak_common::{
    history::{StackHistory, units_of},
    stack::NO_STACK,
};

use super::*;
use crate::{
    report::{
        filter::Filter,
        format::{Measure, text},
        model::ProcessCount,
    },
    sampling::Sampling,
    settings::ColorChoice,
    sites::{Locate, SiteId},
    snapshot::{Outstanding, Snapshot, Stack, TableVersion},
    symbolize::{Anchor, Location, ObjectNumber},
};

const MS: u64 = 1_000_000;
const NOW: u64 = 10_000 * MS;

fn settings() -> ReportSettings {
    ReportSettings {
        format: Some(text::KIND),
        color: ColorChoice::Never,
        full_stacks: false,
        full_names: false,
        with_source: false,
        tui: false,
        temporary: false,
        split_by: None,
        top: 10,
        sort: SortKey::Size,
        show_allocs: false,
        combined_only: false,
        older: Duration::ZERO,
        sampling: Sampling::All,
        output: None,
        files: Vec::new(),
        flamegraph_by: Measure::Bytes,
        summary: false,
        filter: Filter::default(),
        fail_if: Vec::new(),
    }
}

fn outstanding(stack_id: u64, address: u64, size: u64, age_ns: u64) -> Outstanding {
    Outstanding {
        space: 1,
        resource: Resource::Heap,
        address,
        handle: address,
        size,
        stack_id,
        time_ns: NOW - age_ns,
        birth: 0,
    }
}

/// Stack N has the one address 0x1000 - N, so that addresses and ids are in opposite orders.
fn snapshot(outstanding: Vec<Outstanding>) -> Snapshot {
    let ids = outstanding.iter().map(|one| one.stack_id).filter(|id| *id != NO_STACK);
    let stacks = ids.map(|id| (id, Stack { ips: vec![0x1000 - id], ..Stack::default() })).collect();
    Snapshot { time_ns: NOW, outstanding, stacks, acquired: 20, released: 7, ..Snapshot::default() }
}

/// All processes have the same code at the same addresses.
struct SameCode;

impl Locate for SameCode {
    fn locations(&mut self, _: u32, stack: &Stack) -> Vec<Location> {
        stack.ips.iter().map(|ip| Location::Object { object: ObjectNumber(1), vaddr: *ip }).collect()
    }

    fn anchors(&mut self, _: &[Location]) -> Vec<Anchor> {
        Vec::new()
    }

    fn keep(&mut self, _: &HashSet<ObjectNumber>) {}
}

/// Aggregates as a run does, report after report.
#[derive(Default)]
struct Run {
    sites: Sites,
    folded: Folded,
    past: Past,
}

impl Run {
    fn report(&mut self, snapshot: &Snapshot, settings: &ReportSettings, ignore_older: bool) -> Aggregated {
        self.sites.update(snapshot, &mut SameCode);
        self.aggregate(
            snapshot,
            settings,
            Wanted { ignore_older, blocks: false, threads: true, is_look: false },
        )
    }

    fn aggregate(&mut self, snapshot: &Snapshot, settings: &ReportSettings, wanted: Wanted) -> Aggregated {
        let found = Found {
            snapshot,
            folded: &self.folded,
            sites: &self.sites,
            pid_of: &|space| space,
            elapsed_ms: 0,
        };
        aggregate(found, &catalog(), settings, wanted, &mut self.past)
    }

    /// The stack that a site was made of: see [`snapshot`].
    fn stack(&self, group: &Group) -> u64 {
        self.sites.get(group.key.site).map_or(NO_STACK, |site| 0x1000 - site.ips[0])
    }

    fn ids(&self, aggregated: &Aggregated) -> Vec<u64> {
        top(aggregated).map(|group| self.stack(group)).collect()
    }
}

fn run(snapshot: &Snapshot, settings: &ReportSettings) -> Aggregated {
    Run::default().report(snapshot, settings, false)
}

/// The stacks of the groups that are printed.
fn ids(snapshot: &Snapshot, settings: &ReportSettings) -> Vec<u64> {
    let mut run = Run::default();
    let aggregated = run.report(snapshot, settings, false);
    run.ids(&aggregated)
}

fn catalog() -> Catalog {
    Catalog::new([Resource::Heap, Resource::Mmap, Resource::Fd].map(ResourceInfo::built_in))
}

fn by_resource(aggregated: &Aggregated) -> Vec<(&str, u64, u64)> {
    let totals = aggregated.by_resource.iter();
    totals.map(|total| (total.resource.name.as_str(), total.bytes, total.count)).collect()
}

/// The groups that are printed.
fn top(aggregated: &Aggregated) -> impl Iterator<Item = &Group> {
    aggregated.groups.iter().filter(|group| group.is_top)
}

#[test]
fn what_was_released_is_known_by_stack() {
    let history = |stack_id, released: u64| {
        let mut history = StackHistory { stack_id, size: 8, longest: units_of(8 * MS), ..Default::default() };
        history.released[2] = released;
        (stack_id, history)
    };
    let settings =
        ReportSettings { older: Duration::from_millis(500), sampling: Sampling::OneIn(10), ..settings() };
    let mut held = snapshot(vec![
        outstanding(1, 0xa, 8, 600 * MS),
        // Too young to be reported, and acquired all the same.
        outstanding(1, 0xb, 8, MS),
        outstanding(2, 0xc, 4, 600 * MS),
        descriptor(2, 900),
    ]);
    held.histories = Some([history(1, 5)].into_iter().collect());
    let calls_of = |snapshot: &Snapshot| {
        let mut run = Run::default();
        let aggregated = run.report(snapshot, &settings, false);
        let mut calls: Vec<_> = aggregated
            .groups
            .iter()
            .map(|group| (group.key.resource, run.stack(group), group.history.calls))
            .collect();
        calls.sort_by_key(|(resource, stack, _)| (*resource, *stack));
        calls
            .into_iter()
            .map(|(.., calls)| calls.map(|calls| (calls.acquired, calls.released)))
            .collect::<Vec<_>>()
    };
    assert_eq!(calls_of(&held), [Some((70, 50)), Some((10, 0)), Some((10, 0))]);
    // What has found no place may have been of any stack without one.
    held.lost_histories = 1;
    assert_eq!(calls_of(&held), [Some((70, 50)), None, None]);
    let group = Run::default().report(&held, &settings, false).groups.remove(0);
    let calls = group.history.calls.expect("counted");
    assert_eq!((calls.bytes_acquired, calls.bytes_released, calls.longest_ms), (560, 400, 9));
    assert_eq!(calls.lifetimes[2], 50);
}

#[test]
fn nothing_outstanding_is_an_empty_report() {
    let totals = Totals { acquired: 20, released: 7, ..Totals::default() };
    let empty = run(&snapshot(vec![]), &settings());
    assert_eq!((empty.totals, empty.groups.len()), (totals, 0));
    assert_eq!(by_resource(&empty), [("heap", 0, 0), ("mmap", 0, 0), ("fd", 0, 0)]);
}

/// What was folded counts as if it were still there, but for the names of all processes.
#[test]
fn what_was_folded_counts() {
    let record = |space: u32, at: u64| Outstanding {
        space,
        ..outstanding(1 + at % 5, 0x1000 * u64::from(space) + at, 8 + at, u64::from(space) * 10 + at)
    };
    for (processes, told_apart) in [(20, 20), (100, 33)] {
        let all: Vec<_> =
            (1..=processes).flat_map(|space| (0..10).map(move |at| record(space, at))).collect();
        let plain = run(&snapshot(all.clone()), &settings());
        let mut folding = Run::default();
        let (old, new): (Vec<_>, Vec<_>) = all.into_iter().partition(|record| record.space < processes);
        folding.sites.find(&snapshot(old.clone()), &mut SameCode);
        for process in old.chunk_by(|a, b| a.space == b.space) {
            let site = |record: &Outstanding| (folding.sites.of(record.space, record.stack_id), *record);
            folding.folded.add(process[0].space, process.iter().map(site));
        }
        folding.sites.hold(folding.folded.sites());
        let settings = ReportSettings { sampling: Sampling::OneIn(3), ..settings() };
        let folded = folding.report(&snapshot(new), &settings, false);
        assert_eq!(
            (folded.totals.bytes, folded.totals.count),
            (3 * plain.totals.bytes, 3 * plain.totals.count)
        );
        assert_eq!(folded.groups.len(), plain.groups.len());
        for (one, other) in folded.groups.iter().zip(&plain.groups) {
            assert_eq!((one.bytes, one.count), (3 * other.bytes, 3 * other.count));
            assert_eq!((one.oldest_ns, one.newest_ns), (other.oldest_ns, other.newest_ns));
            assert_eq!(one.processes.len(), told_apart);
            assert_eq!(one.others.processes, u64::from(processes) - told_apart as u64);
        }
    }
}

#[test]
fn a_group_is_one_resource_at_one_site_in_all_processes() {
    let one = outstanding(1, 0x10, 8, 5);
    let other_process = Outstanding { space: 2, size: 9, ..one };
    let other_resource = Outstanding { resource: Resource::Mmap, ..one };
    let no_stack = Outstanding { stack_id: NO_STACK, ..one };
    let again = Outstanding { address: 0x20, time_ns: NOW - 3, ..one };
    let result = run(&snapshot(vec![one, other_process, other_resource, no_stack, again]), &settings());
    assert_eq!(result.totals, Totals { bytes: 41, count: 5, acquired: 20, released: 7 });
    let of = |pid, bytes, count| ProcessCount { pid, bytes, count };
    let groups: Vec<_> =
        result.groups.iter().map(|group| (group.key.resource, group.bytes, &*group.processes)).collect();
    let (heap, mmap) = (Resource::Heap, Resource::Mmap);
    assert_eq!(
        groups,
        [(heap, 25, &[of(1, 16, 2), of(2, 9, 1)][..]), (heap, 8, &[of(1, 8, 1)]), (mmap, 8, &[of(1, 8, 1)])]
    );
    let first = &result.groups[0];
    assert_eq!((first.count, first.oldest_ns, first.newest_ns), (3, 5, 3));
    assert!(result.groups.iter().all(|group| group.allocations.is_none()));
    let site = |at: usize| result.groups[at].key.site;
    assert_eq!((site(0), site(1)), (site(2), SiteId::UNKNOWN));
}

#[test]
fn a_site_of_many_processes_names_those_first_that_hold_most() {
    let held = |space: u32, size: u64| Outstanding { space, ..outstanding(1, size, size, 1) };
    let settings = ReportSettings { show_allocs: true, sampling: Sampling::OneIn(2), ..settings() };
    let result = run(&snapshot(vec![held(7, 1), held(3, 5), held(9, 5), held(7, 3)]), &settings);
    let processes: Vec<_> =
        result.groups[0].processes.iter().map(|it| (it.pid, it.bytes, it.count)).collect();
    assert_eq!(processes, [(3, 10, 2), (9, 10, 2), (7, 8, 4)]);
    let lines: Vec<_> =
        result.groups[0].allocations.iter().flatten().map(|line| (line.pid, line.size)).collect();
    assert_eq!(lines, [(3, 5), (7, 1), (7, 3), (9, 5)]);
}

#[test]
fn the_young_are_left_out_but_not_at_a_targets_end() {
    let settings = ReportSettings { older: Duration::from_millis(500), ..settings() };
    let snapshot = snapshot(vec![
        outstanding(1, 1, 8, 500 * MS), // as old as asked for: in
        outstanding(1, 2, 16, 500 * MS - 1),
        outstanding(2, 3, 32, 0),
    ]);
    let mut run = Run::default();
    let result = run.report(&snapshot, &settings, false);
    assert_eq!((result.totals.bytes, result.totals.count, run.ids(&result)), (8, 1, vec![1]));
    let last = run.report(&snapshot, &settings, true);
    assert_eq!((last.totals.bytes, last.totals.count, run.ids(&last)), (56, 3, vec![2, 1]));
}

#[test]
fn a_record_newer_than_the_snapshot_is_of_age_0() {
    let newer = Outstanding { time_ns: NOW + 5, ..outstanding(1, 1, 8, 0) };
    assert_eq!(run(&snapshot(vec![newer]), &settings()).groups[0].oldest_ns, 0);
    let settings = ReportSettings { older: Duration::from_millis(1), ..settings() };
    assert_eq!(run(&snapshot(vec![newer]), &settings).groups.len(), 0);
}

#[test]
fn each_sort_key_has_its_order() {
    let snapshot = snapshot(vec![
        outstanding(1, 1, 100, 10),
        outstanding(2, 2, 30, 20),
        outstanding(2, 3, 30, 5),
        outstanding(3, 4, 10, 30),
        outstanding(3, 5, 10, 1),
        outstanding(3, 6, 10, 1),
    ]);
    let order = |sort| ids(&snapshot, &ReportSettings { sort, ..settings() });
    assert_eq!(order(SortKey::Size), [1, 2, 3]);
    assert_eq!(order(SortKey::Count), [3, 2, 1]);
    assert_eq!(order(SortKey::Age), [3, 2, 1]);
    assert_eq!(order(SortKey::Growth), [1, 2, 3]);
}

#[test]
fn ties_go_by_size_then_count_then_the_stacks_addresses() {
    let tied = snapshot(vec![
        outstanding(1, 1, 10, 7),
        outstanding(2, 2, 10, 7),
        outstanding(3, 3, 12, 7),
        outstanding(4, 4, 5, 7),
        outstanding(4, 5, 5, 7),
    ]);
    for sort in [SortKey::Size, SortKey::Age, SortKey::Growth] {
        // 1 and 2 hold the same; the address of 2 is the smaller one.
        assert_eq!(ids(&tied, &ReportSettings { sort, ..settings() }), [3, 4, 2, 1], "{sort:?}");
    }
}

#[test]
fn growth_is_against_the_report_before() {
    let settings = ReportSettings { sort: SortKey::Growth, ..settings() };
    let mut run = Run::default();
    let grown = |snapshot: &Snapshot, run: &mut Run| -> Vec<(u64, i128)> {
        let groups = run.report(snapshot, &settings, false).groups;
        groups.iter().map(|group| (run.stack(group), group.growth)).collect()
    };
    let first = snapshot(vec![outstanding(1, 1, 100, 1), outstanding(2, 2, 50, 1)]);
    assert_eq!(grown(&first, &mut run), [(1, 100), (2, 50)]);
    let second = snapshot(vec![outstanding(1, 1, 90, 1), outstanding(2, 2, 70, 1), outstanding(3, 3, 5, 1)]);
    assert_eq!(grown(&second, &mut run), [(2, 20), (3, 5), (1, -10)]);
    // Against the one before, not the first; and what was gone begins at 0 again.
    assert_eq!(grown(&first, &mut run), [(1, 10), (2, -20)]);
    assert_eq!(grown(&second, &mut run), [(2, 20), (3, 5), (1, -10)]);
}

/// Between two reports it is looked several times, and the second stack is gone then.
#[test]
fn looks_are_points_and_no_reports() {
    let (settings, mut run) = (settings(), Run::default());
    let both = |bytes| snapshot(vec![outstanding(1, 1, bytes, 1), outstanding(2, 2, 50, 1)]);
    run.report(&both(100), &settings, false);
    for bytes in [300, 400] {
        let one = snapshot(vec![outstanding(1, 1, bytes, 1)]);
        run.sites.find(&one, &mut SameCode);
        run.aggregate(&one, &settings, Wanted { is_look: true, ..Wanted::default() });
    }
    let groups = run.report(&both(500), &settings, false).groups;
    let growth: Vec<i128> = groups.iter().map(|group| group.growth).collect();
    assert_eq!(growth, [400, 0]);
    // All of this is one moment, for the tests.
    assert_eq!(groups[0].verdict.reason, "watched for 0 ms and 4 reports only");
}

#[test]
fn growth_counts_stacks_that_were_not_among_the_top() {
    let settings = ReportSettings { top: 1, ..settings() };
    let mut run = Run::default();
    let before = snapshot(vec![outstanding(1, 1, 100, 1), outstanding(2, 2, 50, 1)]);
    let first = run.report(&before, &settings, false);
    assert_eq!(run.ids(&first), [1]);
    let now = snapshot(vec![outstanding(1, 1, 100, 1), outstanding(2, 2, 110, 1)]);
    let group = run.report(&now, &settings, false).groups.remove(0);
    assert_eq!((run.stack(&group), group.growth), (2, 60));
}

fn descriptor(stack_id: u64, handle: u64) -> Outstanding {
    Outstanding { resource: Resource::Fd, ..outstanding(stack_id, handle, 0, handle * MS) }
}

#[test]
fn each_table_has_its_own_top_and_what_has_no_size_goes_by_count() {
    let mapping = Outstanding { resource: Resource::Mmap, ..outstanding(3, 7, 4096, 1) };
    let snapshot = snapshot(vec![
        descriptor(1, 3),
        descriptor(2, 4),
        descriptor(2, 5),
        outstanding(1, 1, 1, 1),
        outstanding(2, 2, 2, 1),
        mapping,
    ]);
    let mut by_site = Run::default();
    let result = by_site.report(&snapshot, &ReportSettings { top: 2, ..settings() }, false);
    let groups: Vec<_> =
        top(&result).map(|group| (group.key.resource, by_site.stack(group), group.count)).collect();
    let (heap, mmap, fd) = (Resource::Heap, Resource::Mmap, Resource::Fd);
    assert_eq!(groups, [(mmap, 3, 1), (heap, 2, 1), (fd, 2, 2), (fd, 1, 1)]);
    assert_eq!(by_resource(&result), [("heap", 3, 2), ("mmap", 4096, 1), ("fd", 0, 3)]);
    assert_eq!((result.totals.bytes, result.totals.count), (4099, 6));
    // Descriptors are also listed without -a: their summary needs them.
    let listed: Vec<bool> = top(&result).map(|group| group.allocations.is_some()).collect();
    assert_eq!(listed, [false, false, true, true]);
    // The others follow in their table.
    let all: Vec<_> = result.groups.iter().map(|group| (group.key.resource, group.is_top)).collect();
    assert_eq!(all, [(mmap, true), (heap, true), (heap, false), (fd, true), (fd, true)]);
    let combined = run(&snapshot, &ReportSettings { combined_only: true, ..settings() });
    assert!(combined.groups.iter().all(|group| group.allocations.is_none()));
}

#[test]
fn what_is_not_traced_has_a_table_of_its_own() {
    let dir = Outstanding { resource: Resource::Dir, ..outstanding(1, 1, 0, 1) };
    let result = run(&snapshot(vec![dir, descriptor(1, 3)]), &settings());
    let names: Vec<_> = by_resource(&result).into_iter().map(|(name, ..)| name.to_owned()).collect();
    assert_eq!(names, ["heap", "mmap", "fd", "dir"]);
    assert_eq!(result.groups.len(), 2);
}

#[test]
fn growth_of_what_has_no_size_is_in_numbers() {
    let settings = ReportSettings { sort: SortKey::Growth, ..settings() };
    let mut run = Run::default();
    let mut grown = |snapshot: Snapshot| -> Vec<i128> {
        let groups = run.report(&snapshot, &settings, false).groups;
        groups.iter().map(|group| group.growth).collect()
    };
    assert_eq!(grown(snapshot(vec![descriptor(1, 3), descriptor(1, 4)])), [2]);
    assert_eq!(grown(snapshot(vec![descriptor(1, 3), descriptor(2, 4)])), [1, -1]);
}

#[test]
fn sampling_scales_all_that_is_counted_and_nothing_else() {
    let settings = ReportSettings { sampling: Sampling::OneIn(10), show_allocs: true, ..settings() };
    let result = run(&snapshot(vec![outstanding(1, 0xa, 8, 5 * MS)]), &settings);
    assert_eq!(result.totals, Totals { bytes: 80, count: 10, acquired: 200, released: 70 });
    let group = &result.groups[0];
    assert_eq!((group.bytes, group.count, group.growth, group.oldest_ns), (80, 10, 80, 5 * MS));
    let lines = vec![AllocationLine { pid: 1, tid: None, address: 0xa, size: 8, age_ms: 5, now: None }];
    assert_eq!(group.allocations, Some(lines));
}

#[test]
fn allocations_are_listed_oldest_first_for_the_top_stacks() {
    let settings = ReportSettings { show_allocs: true, top: 1, ..settings() };
    let snapshot = snapshot(vec![
        outstanding(1, 0x30, 100, MS),
        outstanding(2, 0x99, 1, MS),
        outstanding(1, 0x20, 100, 9 * MS),
        outstanding(1, 0x10, 100, MS),
    ]);
    let result = run(&snapshot, &settings);
    let lines: Vec<_> = result.groups[0].allocations.iter().flatten().collect();
    let expected = [(0x20, 9), (0x10, 1), (0x30, 1)];
    assert_eq!(lines.iter().map(|line| (line.address, line.age_ms)).collect::<Vec<_>>(), expected);
    assert_eq!(result.groups.iter().filter(|group| group.allocations.is_some()).count(), 1);
}

#[test]
fn sums_that_leave_64_bits_stay_at_their_end() {
    let settings = ReportSettings { sampling: Sampling::OneIn(u64::MAX), ..settings() };
    let huge = snapshot(vec![outstanding(1, 1, u64::MAX, 0), outstanding(1, 2, u64::MAX, 0)]);
    assert_eq!(run(&huge, &settings).totals.bytes, u64::MAX);
}

/// What threads have acquired of a site adds up to what it holds, over processes and samples.
#[test]
fn threads_hold_what_their_site_holds() {
    let of = |space: u32, tid: u64, stack_id: u64, address: u64, size: u64| Outstanding {
        space,
        birth: tid << 42 | 5,
        ..outstanding(stack_id, address, size, MS)
    };
    let records = vec![
        of(1, 70, 1, 0x10, 8),
        of(1, 70, 1, 0x20, 8),
        of(1, 71, 1, 0x30, 100),
        of(2, 90, 1, 0x40, 1),
        of(1, 70, 2, 0x50, 5),
        of(1, 0, 2, 0x60, 6),
    ];
    let settings = ReportSettings { sampling: Sampling::OneIn(3), ..settings() };
    let mut run = Run::default();
    let aggregated = run.report(&snapshot(records), &settings, false);
    let threads = |stack: u64| {
        let group = aggregated.groups.iter().find(|group| run.stack(group) == stack).expect("a group");
        let sum: (u64, u64) =
            group.threads.iter().fold((0, 0), |sum, thread| (sum.0 + thread.bytes, sum.1 + thread.count));
        assert_eq!(sum, (group.bytes, group.count));
        group
            .threads
            .iter()
            .map(|thread| (thread.pid, thread.tid, thread.bytes, thread.count))
            .collect::<Vec<_>>()
    };
    assert_eq!(threads(1), [(1, 71, 300, 3), (1, 70, 48, 6), (2, 90, 3, 3)]);
    assert_eq!(threads(2), [(1, 0, 18, 3), (1, 70, 15, 3)]);
}
