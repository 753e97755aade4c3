//! A snapshot, filtered, grouped by stack, and put in order: still addresses, no names.

use std::{
    cmp::{Ordering, Reverse},
    sync::Arc,
};

use memleak_common::probe::Resource;
use rustc_hash::{FxBuildHasher, FxHashMap};

use crate::{
    probe::resource::{Catalog, ResourceInfo, table_of},
    settings::{ReportSettings, SortKey},
    snapshot::{Outstanding, Snapshot},
};

/// For ages: the kernel counts nanoseconds, reports show milliseconds.
pub(crate) const NANOSECONDS_PER_MS: u64 = 1_000_000;

/// Sums over all stacks that pass the filters, not only the top ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize)]
pub struct Totals {
    /// Outstanding bytes.
    pub bytes: u64,
    /// Outstanding allocations.
    pub count: u64,
    /// Acquires so far.
    pub acquired: u64,
    /// Releases so far.
    pub released: u64,
}

/// What one resource sums up to, over all stacks that pass the filters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceTotal {
    /// Which.
    pub resource: Arc<ResourceInfo>,
    /// Outstanding bytes; 0 where it has no size.
    pub bytes: u64,
    /// How many are outstanding.
    pub count: u64,
}

/// One outstanding allocation, for `-a`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocationLine {
    /// Address of the block.
    pub address: u64,
    /// Bytes asked for.
    pub size: u64,
    /// Milliseconds since it was acquired.
    pub age_ms: u64,
    /// What a descriptor is now: `socket:[123]`, a path. `None` where that is not known, or it is no descriptor.
    pub now: Option<String>,
}

/// What one group is made of: a stack of one process that acquired one kind of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupKey {
    /// Process.
    pub pid: u32,
    /// What it acquired.
    pub resource: Resource,
    /// Key into [`Snapshot::stacks`]; one that is missing there has no known stack.
    pub stack_id: u64,
}

/// The outstanding allocations of one stack. Bytes, count and growth are scaled by the sample rate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Whose they are.
    pub key: GroupKey,
    /// Outstanding bytes.
    pub bytes: u64,
    /// Outstanding allocations.
    pub count: u64,
    /// Age of the oldest, in nanoseconds.
    pub oldest_ns: u64,
    /// Age of the newest, in nanoseconds.
    pub newest_ns: u64,
    /// Bytes (of a resource without size: how many) now minus those in the report before (0 where it was not in it).
    pub growth: i128,
    /// With `-a`, and of descriptors: one for each outstanding allocation that was captured, oldest first, then by
    /// address. Not scaled.
    pub allocations: Option<Vec<AllocationLine>>,
}

/// What the report before held: bytes, or how many, by group, for [`SortKey::Growth`]. Starts empty.
#[derive(Clone, Debug, Default)]
pub struct History(FxHashMap<GroupKey, u64>);

/// A snapshot in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Aggregated {
    /// Sums over all groups, also those that are not in `groups`.
    pub totals: Totals,
    /// The same for each resource that is traced or was found.
    pub by_resource: Vec<ResourceTotal>,
    /// The top groups of each table, in the order of the settings' sort key; table by table.
    pub groups: Vec<Group>,
}

/// Groups what is outstanding in `snapshot` by process, resource and stack, and keeps the top groups of each table: that
/// of memory, and one for each other resource ([`table_of`]).
///
/// `ignore_older` takes allocations of any age in, whatever `-o` says: in the last report of a target that has ended
/// nothing is young. `history` is what the call before left there; it is brought up to date.
pub fn aggregate(
    snapshot: &Snapshot,
    catalog: &Catalog,
    settings: &ReportSettings,
    ignore_older: bool,
    history: &mut History,
) -> Aggregated {
    let youngest_ns =
        if ignore_older { 0 } else { u64::try_from(settings.older.as_nanos()).unwrap_or(u64::MAX) };
    let rate = settings.sample_rate.max(1);
    let (mut groups, index) = group(snapshot, youngest_ns);
    let zero = |info: &Arc<ResourceInfo>| ResourceTotal { resource: info.clone(), bytes: 0, count: 0 };
    let mut by_resource: Vec<ResourceTotal> = catalog.traced().iter().map(zero).collect();
    let mut amounts = FxHashMap::with_capacity_and_hasher(groups.len(), FxBuildHasher);
    let mut totals = Totals {
        acquired: snapshot.acquired.saturating_mul(rate),
        released: snapshot.released.saturating_mul(rate),
        ..Totals::default()
    };
    for group in &mut groups {
        group.bytes = group.bytes.saturating_mul(rate);
        group.count = group.count.saturating_mul(rate);
        let total = total_of(&mut by_resource, catalog, group.key.resource);
        let amount = if total.resource.has_size { group.bytes } else { group.count };
        let before = history.0.get(&group.key).copied().unwrap_or(0);
        group.growth = i128::from(amount) - i128::from(before);
        amounts.insert(group.key, amount);
        total.bytes = total.bytes.saturating_add(group.bytes);
        total.count = total.count.saturating_add(group.count);
        totals.bytes = totals.bytes.saturating_add(group.bytes);
        totals.count = totals.count.saturating_add(group.count);
    }
    history.0 = amounts;
    let mut groups = top_of_each_table(snapshot, settings, &by_resource, groups);
    if !settings.combined_only {
        let is_listed = |group: &Group| settings.show_allocs || catalog.get(group.key.resource).is_descriptor;
        list_allocations(snapshot, youngest_ns, index, &mut groups, is_listed);
    }
    Aggregated { totals, by_resource, groups }
}

/// The sums of `resource`; a resource that is not traced can be there as well, from a run's beginning.
fn total_of<'a>(
    totals: &'a mut Vec<ResourceTotal>,
    catalog: &Catalog,
    resource: Resource,
) -> &'a mut ResourceTotal {
    let at = totals.iter().position(|total| total.resource.resource == resource).unwrap_or_else(|| {
        totals.push(ResourceTotal { resource: catalog.get(resource), bytes: 0, count: 0 });
        totals.len() - 1
    });
    &mut totals[at]
}

/// Table by table, the groups that are to be shown of each, in order.
fn top_of_each_table(
    snapshot: &Snapshot,
    settings: &ReportSettings,
    resources: &[ResourceTotal],
    mut groups: Vec<Group>,
) -> Vec<Group> {
    let order = |a: &Group, b: &Group| compare(snapshot, settings.sort, a, b);
    let mut shown = Vec::new();
    for total in resources {
        let table = total.resource.table();
        let (mut of_table, rest): (Vec<_>, Vec<_>) =
            groups.into_iter().partition(|group| table_of(group.key.resource) == table);
        groups = rest;
        if settings.top == 0 {
            of_table.clear();
        } else if of_table.len() > settings.top {
            // Only the top is put in order: most groups of a large target are never printed.
            of_table.select_nth_unstable_by(settings.top - 1, order);
            of_table.truncate(settings.top);
        }
        of_table.sort_unstable_by(order);
        shown.append(&mut of_table);
    }
    shown
}

/// All groups (not scaled, in no order that matters), and the place that each key had among them.
fn group(snapshot: &Snapshot, youngest_ns: u64) -> (Vec<Group>, FxHashMap<GroupKey, usize>) {
    let mut groups: Vec<Group> = Vec::with_capacity(snapshot.stacks.len());
    let mut index: FxHashMap<GroupKey, usize> =
        FxHashMap::with_capacity_and_hasher(snapshot.stacks.len(), FxBuildHasher);
    for (outstanding, age_ns) in old_enough(snapshot, youngest_ns) {
        let key = key_of(outstanding);
        let at = *index.entry(key).or_insert_with(|| {
            groups.push(Group {
                key,
                bytes: 0,
                count: 0,
                oldest_ns: age_ns,
                newest_ns: age_ns,
                growth: 0,
                allocations: None,
            });
            groups.len() - 1
        });
        let group = &mut groups[at];
        group.bytes = group.bytes.saturating_add(outstanding.size);
        group.count += 1;
        group.oldest_ns = group.oldest_ns.max(age_ns);
        group.newest_ns = group.newest_ns.min(age_ns);
    }
    (groups, index)
}

fn key_of(outstanding: &Outstanding) -> GroupKey {
    GroupKey { pid: outstanding.pid, resource: outstanding.resource, stack_id: outstanding.stack_id }
}

/// What is outstanding for `youngest_ns` at least, each with its age in nanoseconds. A record that was made while the
/// snapshot was being read is of age 0.
fn old_enough(snapshot: &Snapshot, youngest_ns: u64) -> impl Iterator<Item = (&Outstanding, u64)> {
    snapshot.outstanding.iter().filter_map(move |outstanding| {
        let age_ns = snapshot.time_ns.saturating_sub(outstanding.time_ns);
        (age_ns >= youngest_ns).then_some((outstanding, age_ns))
    })
}

/// The order of two groups: the sort key, then size, then count, then the stack itself, so that the same snapshot gives
/// the same report. The stack's addresses go before its id, which is a mere hash of them.
fn compare(snapshot: &Snapshot, sort: SortKey, a: &Group, b: &Group) -> Ordering {
    let by_key = match sort {
        SortKey::Size => Ordering::Equal,
        SortKey::Count => b.count.cmp(&a.count),
        SortKey::Age => b.oldest_ns.cmp(&a.oldest_ns),
        SortKey::Growth => b.growth.cmp(&a.growth),
    };
    let ips = |group: &Group| snapshot.stacks.get(&group.key.stack_id).map(|stack| stack.ips.as_slice());
    by_key
        .then_with(|| (b.bytes, b.count).cmp(&(a.bytes, a.count)))
        .then_with(|| ips(a).cmp(&ips(b)))
        .then_with(|| a.key.cmp(&b.key))
}

/// Fills [`Group::allocations`] of the groups that are to be listed. `index` is taken for its keys' memory alone.
fn list_allocations(
    snapshot: &Snapshot,
    youngest_ns: u64,
    mut index: FxHashMap<GroupKey, usize>,
    groups: &mut [Group],
    is_listed: impl Fn(&Group) -> bool,
) {
    index.clear();
    let listed = groups.iter().enumerate().filter(|(_, group)| is_listed(group));
    index.extend(listed.map(|(at, group)| (group.key, at)));
    if index.is_empty() {
        return;
    }
    let mut lists = vec![Vec::new(); groups.len()];
    for (outstanding, age_ns) in old_enough(snapshot, youngest_ns) {
        if let Some(&at) = index.get(&key_of(outstanding)) {
            lists[at].push((Reverse(age_ns), outstanding.address, outstanding.size));
        }
    }
    for (group, mut list) in groups.iter_mut().zip(lists) {
        if !index.contains_key(&group.key) {
            continue;
        }
        list.sort_unstable();
        let lines = list.into_iter().map(|(Reverse(age_ns), address, size)| AllocationLine {
            address,
            size,
            age_ms: age_ns / NANOSECONDS_PER_MS,
            now: None,
        });
        group.allocations = Some(lines.collect());
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use memleak_common::stack::NO_STACK;

    use super::*;
    use crate::{settings::Format, snapshot::Stack};

    const MS: u64 = 1_000_000;
    const NOW: u64 = 10_000 * MS;

    fn settings() -> ReportSettings {
        ReportSettings {
            format: Format::Text,
            top: 10,
            sort: SortKey::Size,
            show_allocs: false,
            combined_only: false,
            older: Duration::ZERO,
            sample_rate: 1,
            output: None,
        }
    }

    fn outstanding(stack_id: u64, address: u64, size: u64, age_ns: u64) -> Outstanding {
        Outstanding {
            pid: 1,
            resource: Resource::Heap,
            address,
            handle: address,
            size,
            stack_id,
            time_ns: NOW - age_ns,
        }
    }

    /// Stack N has the one address 0x1000 - N, so that addresses and ids are in opposite orders.
    fn snapshot(outstanding: Vec<Outstanding>) -> Snapshot {
        let ids = outstanding.iter().map(|one| one.stack_id).filter(|id| *id != NO_STACK);
        let stacks = ids.map(|id| (id, Stack { ips: vec![0x1000 - id], ..Stack::default() })).collect();
        Snapshot { time_ns: NOW, outstanding, stacks, acquired: 20, released: 7, ..Snapshot::default() }
    }

    fn run(snapshot: &Snapshot, settings: &ReportSettings) -> Aggregated {
        aggregate(snapshot, &catalog(), settings, false, &mut History::default())
    }

    fn catalog() -> Catalog {
        Catalog::new([Resource::Heap, Resource::Mmap, Resource::Fd].map(ResourceInfo::built_in))
    }

    fn by_resource(aggregated: &Aggregated) -> Vec<(&str, u64, u64)> {
        let totals = aggregated.by_resource.iter();
        totals.map(|total| (total.resource.name.as_str(), total.bytes, total.count)).collect()
    }

    fn ids(aggregated: &Aggregated) -> Vec<u64> {
        aggregated.groups.iter().map(|group| group.key.stack_id).collect()
    }

    #[test]
    fn nothing_outstanding_is_an_empty_report() {
        let totals = Totals { acquired: 20, released: 7, ..Totals::default() };
        let empty = run(&snapshot(vec![]), &settings());
        assert_eq!((empty.totals, empty.groups.len()), (totals, 0));
        assert_eq!(by_resource(&empty), [("heap", 0, 0), ("mmap", 0, 0), ("fd", 0, 0)]);
    }

    #[test]
    fn a_group_is_one_process_one_resource_one_stack() {
        let one = outstanding(1, 0x10, 8, 5);
        let other_process = Outstanding { pid: 2, ..one };
        let other_resource = Outstanding { resource: Resource::Mmap, ..one };
        let no_stack = Outstanding { stack_id: NO_STACK, ..one };
        let again = Outstanding { address: 0x20, time_ns: NOW - 3, ..one };
        let result = run(&snapshot(vec![one, other_process, other_resource, no_stack, again]), &settings());
        assert_eq!(result.totals, Totals { bytes: 40, count: 5, acquired: 20, released: 7 });
        assert_eq!(result.groups.len(), 4);
        let first = &result.groups[0];
        assert_eq!(first.key, GroupKey { pid: 1, resource: Resource::Heap, stack_id: 1 });
        assert_eq!((first.bytes, first.count, first.oldest_ns, first.newest_ns), (16, 2, 5, 3));
        assert!(result.groups.iter().all(|group| group.allocations.is_none()));
    }

    #[test]
    fn the_young_are_left_out_but_not_at_a_targets_end() {
        let settings = ReportSettings { older: Duration::from_millis(500), ..settings() };
        let snapshot = snapshot(vec![
            outstanding(1, 1, 8, 500 * MS), // as old as asked for: in
            outstanding(1, 2, 16, 500 * MS - 1),
            outstanding(2, 3, 32, 0),
        ]);
        let result = run(&snapshot, &settings);
        assert_eq!((result.totals.bytes, result.totals.count, ids(&result)), (8, 1, vec![1]));
        let last = aggregate(&snapshot, &catalog(), &settings, true, &mut History::default());
        assert_eq!((last.totals.bytes, last.totals.count, ids(&last)), (56, 3, vec![2, 1]));
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
        let order = |sort| ids(&run(&snapshot, &ReportSettings { sort, ..settings() }));
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
            assert_eq!(ids(&run(&tied, &ReportSettings { sort, ..settings() })), [3, 4, 2, 1], "{sort:?}");
        }
    }

    #[test]
    fn growth_is_against_the_report_before() {
        let settings = ReportSettings { sort: SortKey::Growth, ..settings() };
        let mut history = History::default();
        let grown = |snapshot: &Snapshot, history: &mut History| -> Vec<(u64, i128)> {
            let groups = aggregate(snapshot, &catalog(), &settings, false, history).groups;
            groups.iter().map(|group| (group.key.stack_id, group.growth)).collect()
        };
        let first = snapshot(vec![outstanding(1, 1, 100, 1), outstanding(2, 2, 50, 1)]);
        assert_eq!(grown(&first, &mut history), [(1, 100), (2, 50)]);
        let second =
            snapshot(vec![outstanding(1, 1, 90, 1), outstanding(2, 2, 70, 1), outstanding(3, 3, 5, 1)]);
        assert_eq!(grown(&second, &mut history), [(2, 20), (3, 5), (1, -10)]);
        // Against the one before, not the first; and what was gone begins at 0 again.
        assert_eq!(grown(&first, &mut history), [(1, 10), (2, -20)]);
        assert_eq!(grown(&second, &mut history), [(2, 20), (3, 5), (1, -10)]);
    }

    #[test]
    fn growth_counts_stacks_that_were_not_among_the_top() {
        let settings = ReportSettings { top: 1, ..settings() };
        let mut history = History::default();
        let before = snapshot(vec![outstanding(1, 1, 100, 1), outstanding(2, 2, 50, 1)]);
        assert_eq!(ids(&aggregate(&before, &catalog(), &settings, false, &mut history)), [1]);
        let now = snapshot(vec![outstanding(1, 1, 100, 1), outstanding(2, 2, 110, 1)]);
        let group = aggregate(&now, &catalog(), &settings, false, &mut history).groups.remove(0);
        assert_eq!((group.key.stack_id, group.growth), (2, 60));
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
        let result = run(&snapshot, &ReportSettings { top: 2, ..settings() });
        let groups = result.groups.iter();
        let groups: Vec<_> =
            groups.map(|group| (group.key.resource, group.key.stack_id, group.count)).collect();
        let (heap, mmap, fd) = (Resource::Heap, Resource::Mmap, Resource::Fd);
        assert_eq!(groups, [(mmap, 3, 1), (heap, 2, 1), (fd, 2, 2), (fd, 1, 1)]);
        assert_eq!(by_resource(&result), [("heap", 3, 2), ("mmap", 4096, 1), ("fd", 0, 3)]);
        assert_eq!((result.totals.bytes, result.totals.count), (4099, 6));
        // Descriptors are listed without -a, too: their summary needs them.
        let listed: Vec<bool> = result.groups.iter().map(|group| group.allocations.is_some()).collect();
        assert_eq!(listed, [false, false, true, true]);
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
        let mut history = History::default();
        let mut grown = |snapshot: Snapshot| -> Vec<i128> {
            let groups = aggregate(&snapshot, &catalog(), &settings, false, &mut history).groups;
            groups.iter().map(|group| group.growth).collect()
        };
        assert_eq!(grown(snapshot(vec![descriptor(1, 3), descriptor(1, 4)])), [2]);
        assert_eq!(grown(snapshot(vec![descriptor(1, 3), descriptor(2, 4)])), [1, -1]);
    }

    #[test]
    fn sampling_scales_all_that_is_counted_and_nothing_else() {
        let settings = ReportSettings { sample_rate: 10, show_allocs: true, ..settings() };
        let result = run(&snapshot(vec![outstanding(1, 0xa, 8, 5 * MS)]), &settings);
        assert_eq!(result.totals, Totals { bytes: 80, count: 10, acquired: 200, released: 70 });
        let group = &result.groups[0];
        assert_eq!((group.bytes, group.count, group.growth, group.oldest_ns), (80, 10, 80, 5 * MS));
        let lines = vec![AllocationLine { address: 0xa, size: 8, age_ms: 5, now: None }];
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
        assert_eq!(result.groups.len(), 1);
    }

    #[test]
    fn sums_that_leave_64_bits_stay_at_their_end() {
        let settings = ReportSettings { sample_rate: u64::MAX, ..settings() };
        let huge = snapshot(vec![outstanding(1, 1, u64::MAX, 0), outstanding(1, 2, u64::MAX, 0)]);
        assert_eq!(run(&huge, &settings).totals.bytes, u64::MAX);
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): the same numbers on each run.
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (mixed ^ (mixed >> 31)) % end
        }

        fn snapshot(&mut self) -> Snapshot {
            let list = (0..self.below(300))
                .map(|address| Outstanding {
                    pid: 1 + self.below(2) as u32,
                    resource: if self.below(3) == 0 { Resource::Mmap } else { Resource::Heap },
                    ..outstanding(self.below(9), address, self.below(4) * 8, self.below(4) * 250 * MS)
                })
                .collect();
            snapshot(list)
        }
    }

    /// The same by the plainest means: collect everything, sort by one tuple, cut.
    fn truth(snapshot: &Snapshot, settings: &ReportSettings) -> (Vec<(GroupKey, u64, u64)>, u64, u64) {
        let older = settings.older.as_nanos() as u64;
        let mut by_key: BTreeMap<GroupKey, Vec<Outstanding>> = BTreeMap::new();
        for one in snapshot.outstanding.iter().filter(|one| one.time_ns <= NOW - older) {
            by_key.entry(key_of(one)).or_default().push(*one);
        }
        let bytes = |list: &[Outstanding]| list.iter().map(|one| one.size).sum::<u64>();
        let mut all: Vec<_> =
            by_key.iter().map(|(key, list)| (*key, bytes(list), list.len() as u64)).collect();
        let totals = (all.iter().map(|group| group.1).sum(), all.iter().map(|group| group.2).sum());
        all.sort_by_key(|(key, bytes, count)| {
            let oldest = by_key[key].iter().map(|one| NOW - one.time_ns).max();
            let first = match settings.sort {
                SortKey::Size | SortKey::Growth => Some(*bytes),
                SortKey::Count => Some(*count),
                SortKey::Age => oldest,
            };
            // Addresses of stacks fall as their ids grow; no stack at all goes first.
            let stack = if key.stack_id == NO_STACK { 0 } else { 0x1000 - key.stack_id };
            (Reverse((first, *bytes, *count)), stack, *key)
        });
        all.truncate(settings.top);
        (all, totals.0, totals.1)
    }

    #[test]
    fn any_snapshot_agrees_with_the_plain_way() {
        let mut random = Random(2);
        for round in 0..400 {
            let snapshot = random.snapshot();
            let settings = ReportSettings {
                top: 1 + random.below(40) as usize,
                older: Duration::from_millis(random.below(4) * 250),
                show_allocs: true,
                sort: [SortKey::Size, SortKey::Count, SortKey::Age, SortKey::Growth]
                    [random.below(4) as usize],
                ..settings()
            };
            let result = run(&snapshot, &settings);
            let groups: Vec<_> =
                result.groups.iter().map(|group| (group.key, group.bytes, group.count)).collect();
            let (expected, bytes, count) = truth(&snapshot, &settings);
            assert_eq!(groups, expected, "round {round}, {settings:?}");
            assert_eq!((result.totals.bytes, result.totals.count), (bytes, count), "round {round}");
            for group in &result.groups {
                let lines = group.allocations.as_deref().unwrap_or_default();
                let (sum, len) = (lines.iter().map(|line| line.size).sum::<u64>(), lines.len() as u64);
                assert_eq!((sum, len), (group.bytes, group.count), "round {round}");
            }
        }
    }
}
