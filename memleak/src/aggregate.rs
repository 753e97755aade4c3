//! A snapshot, filtered, grouped by stack, and put in order: still addresses, no names.

use std::{
    cmp::{Ordering, Reverse},
    sync::Arc,
};

use memleak_common::probe::Resource;
use rustc_hash::{FxBuildHasher, FxHashMap};

use crate::{
    probe::resource::{Catalog, ResourceInfo, TopOfTables, table_of},
    report::model::{AllocationLine, FrameId, Note, ResourceTotal, StackReport, Totals},
    settings::{ReportSettings, SortKey},
    snapshot::{Outstanding, Snapshot, Stack},
};

/// For ages: the kernel counts nanoseconds, reports show milliseconds.
const NANOSECONDS_PER_MS: u64 = 1_000_000;

/// What one group is made of: a stack of one address space that acquired one kind of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupKey {
    /// Whose it is: [`Outstanding::space`].
    pub space: u32,
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
    /// It is among the top groups of its table.
    pub is_top: bool,
    /// Of the top groups with `-a`, and of descriptors: one for each outstanding allocation that was captured, oldest
    /// first, then by address. Not scaled.
    pub allocations: Option<Vec<AllocationLine>>,
}

impl Group {
    /// What a report says of it: a group of process `pid`, given its stack (`None` if its id is not in the snapshot), and
    /// what the settings leave in. Its frames are looked up by whoever writes it.
    pub fn report(
        self,
        pid: u32,
        resource: Arc<ResourceInfo>,
        stack: Option<&Stack>,
        settings: &ReportSettings,
    ) -> StackReport {
        let age_ms = |age_ns: u64| (!settings.combined_only).then_some(age_ns / NANOSECONDS_PER_MS);
        StackReport {
            pid,
            resource,
            bytes: self.bytes,
            count: self.count,
            oldest_ms: age_ms(self.oldest_ns),
            newest_ms: age_ms(self.newest_ns),
            tag: stack.and_then(|stack| stack.tag.clone()),
            frames: Vec::<FrameId>::new(),
            notes: stack.and_then(|stack| stack.cut).map(Note::Cut).into_iter().collect(),
            allocations: self.allocations.filter(|_| settings.show_allocs),
        }
    }
}

/// What the report before held: bytes, or how many, by group, for [`SortKey::Growth`]. Starts empty.
#[derive(Clone, Debug, Default)]
pub struct History(FxHashMap<GroupKey, u64>);

/// A snapshot in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Aggregated {
    /// Sums over all groups.
    pub totals: Totals,
    /// The same for each resource that is traced or was found.
    pub by_resource: Vec<ResourceTotal>,
    /// All groups, table by table. The top ones of each table come first, in the order of the settings' sort key; the
    /// others in none.
    pub groups: Vec<Group>,
}

/// Groups what is outstanding in `snapshot` by process, resource and stack, and puts the top groups of each table first:
/// that of memory, and one for each other resource ([`table_of`]).
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
    let mut groups = in_order(snapshot, settings, &by_resource, groups);
    if !settings.combined_only {
        let is_listed = |group: &Group| {
            group.is_top && (settings.show_allocs || catalog.get(group.key.resource).is_descriptor)
        };
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

/// All groups, table by table, the top ones of each first and in order.
fn in_order(
    snapshot: &Snapshot,
    settings: &ReportSettings,
    resources: &[ResourceTotal],
    mut groups: Vec<Group>,
) -> Vec<Group> {
    let order = |a: &Group, b: &Group| compare(snapshot, settings.sort, a, b);
    let mut ordered = Vec::with_capacity(groups.len());
    for total in resources {
        let table = total.resource.table();
        let (mut of_table, rest): (Vec<_>, Vec<_>) =
            groups.into_iter().partition(|group| table_of(group.key.resource) == table);
        groups = rest;
        let top = settings.top.min(of_table.len());
        // Only the top is put in order: most groups of a large target are never printed.
        if top > 0 && top < of_table.len() {
            of_table.select_nth_unstable_by(top - 1, order);
        }
        if let Some(top) = of_table.get_mut(..top) {
            top.sort_unstable_by(order);
        }
        ordered.append(&mut of_table);
    }
    let mut top = TopOfTables::new(settings.top);
    ordered.iter_mut().for_each(|group| group.is_top = top.takes(group.key.resource));
    ordered
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
                is_top: false,
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
    GroupKey { space: outstanding.space, resource: outstanding.resource, stack_id: outstanding.stack_id }
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
mod tests;
