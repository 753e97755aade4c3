//! A snapshot, filtered, grouped by stack, and put in order: still addresses, no names.

mod calls;
mod folded;
mod group;
mod grouping;
mod past;
mod threads;

use std::{
    cmp::{Ordering, Reverse},
    sync::Arc,
};

pub use folded::Folded;
use group::NANOSECONDS_PER_MS;
pub use group::{AmountBefore, Group, GroupKey};
pub use grouping::Found;
use memleak_common::probe::Resource;
pub use past::Past;
use rustc_hash::FxHashMap;

use crate::{
    probe::resource::{Catalog, ResourceInfo, TopOfTables, table_of},
    report::model::{AllocationLine, ResourceTotal, Totals},
    settings::{ReportSettings, SortKey},
    sites::Sites,
};

/// A snapshot in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Aggregated {
    /// Sums over all groups.
    pub totals: Totals,
    /// Their bytes are this much more or less, in 19 of 20 cases; `None` if they are not estimated
    /// by samples of bytes.
    pub margin: Option<u64>,
    /// The same for each resource that is traced or was found.
    pub by_resource: Vec<ResourceTotal>,
    /// All groups, table by table. The top ones of each table come first, in the order of the
    /// settings' sort key; the others in none.
    pub groups: Vec<Group>,
}

/// What of a snapshot is taken in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Allocations of any age, whatever `-o` says: in the last report of a target that has ended
    /// nothing is young.
    pub ignore_older: bool,
    /// Each group's allocations, one by one.
    pub blocks: bool,
    /// What each thread has acquired of each group.
    pub threads: bool,
    /// No report is made: what is held is remembered, and that is all.
    pub is_look: bool,
}

/// Groups what is outstanding by resource and site, and puts the top groups of each table first:
/// that of memory, and one for each other resource ([`table_of`]).
///
/// `past` is what the calls before left there; it is
/// brought up to date. `elapsed_ms`: since tracing began.
pub fn aggregate(
    found: Found<'_>,
    catalog: &Catalog,
    settings: &ReportSettings,
    wanted: Wanted,
    past: &mut Past,
) -> Aggregated {
    let youngest_ns =
        if wanted.ignore_older { 0 } else { u64::try_from(settings.older.as_nanos()).unwrap_or(u64::MAX) };
    let sampling = settings.sampling;
    let mut groups = grouping::group(found, youngest_ns, sampling, &mut past.grouped);
    let zero = |info: &Arc<ResourceInfo>| ResourceTotal { resource: info.clone(), bytes: 0, count: 0 };
    let mut by_resource: Vec<ResourceTotal> = catalog.traced().iter().map(zero).collect();
    let mut news = past.news(found.elapsed_ms, groups.len());
    let mut totals = Totals {
        acquired: sampling.whole(found.snapshot.acquired),
        released: sampling.whole(found.snapshot.released),
        ..Totals::default()
    };
    for group in &mut groups {
        let total = total_of(&mut by_resource, catalog, group.key.resource);
        let points = news.enter(group);
        group.judge(points, found.elapsed_ms, settings.combined_only);
        let (now, before) = match total.resource.has_size {
            true => (group.bytes, group.before.bytes),
            false => (group.count, group.before.count),
        };
        group.growth = i128::from(now) - i128::from(before);
        total.bytes = total.bytes.saturating_add(group.bytes);
        total.count = total.count.saturating_add(group.count);
        totals.bytes = totals.bytes.saturating_add(group.bytes);
        totals.count = totals.count.saturating_add(group.count);
    }
    past.learn(news, wanted.is_look);
    if wanted.threads {
        threads::count_threads(found, youngest_ns, sampling, &mut groups);
    }
    let variance = groups.iter().fold(0u128, |sum, group| sum.saturating_add(group.variance));
    let mut groups = in_order(found.sites, settings, &by_resource, groups);
    if !settings.combined_only {
        let is_listed = |group: &Group| {
            wanted.blocks
                || group.is_top && (settings.show_allocs || catalog.get(group.key.resource).is_descriptor)
        };
        list_allocations(found, youngest_ns, &mut groups, is_listed);
    }
    groups.iter_mut().for_each(|group| group.has_blocks = wanted.blocks);
    Aggregated { totals, margin: sampling.margin(totals.bytes, variance), by_resource, groups }
}

/// The sums of `resource`; a resource that is not traced can be there as well, from a run's
/// beginning.
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
    sites: &Sites,
    settings: &ReportSettings,
    resources: &[ResourceTotal],
    mut groups: Vec<Group>,
) -> Vec<Group> {
    let order = |a: &Group, b: &Group| compare(sites, settings.sort, a, b);
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

/// The order of two groups: the sort key, then size, then count, then the stack itself, so that the
/// same snapshot gives the same report. The stack's addresses go before its site, whose number is a
/// matter of chance.
fn compare(sites: &Sites, sort: SortKey, a: &Group, b: &Group) -> Ordering {
    let by_key = match sort {
        SortKey::Size => Ordering::Equal,
        SortKey::Count => b.count.cmp(&a.count),
        SortKey::Age => b.oldest_ns.cmp(&a.oldest_ns).then_with(|| a.oldest_birth.cmp(&b.oldest_birth)),
        SortKey::Growth => b.growth.cmp(&a.growth),
        SortKey::Verdict => a.verdict.kind.cmp(&b.verdict.kind),
    };
    let stack =
        |group: &Group| sites.get(group.key.site).map(|site| (site.ips.as_slice(), site.space, site.tag()));
    by_key
        .then_with(|| (b.bytes, b.count).cmp(&(a.bytes, a.count)))
        .then_with(|| stack(a).cmp(&stack(b)))
        .then_with(|| a.key.cmp(&b.key))
}

/// Fills [`Group::allocations`] of the groups that are to be listed.
fn list_allocations(
    found: Found<'_>,
    youngest_ns: u64,
    groups: &mut [Group],
    is_listed: impl Fn(&Group) -> bool,
) {
    let listed = groups.iter().enumerate().filter(|(_, group)| is_listed(group));
    let index: FxHashMap<GroupKey, usize> = listed.map(|(at, group)| (group.key, at)).collect();
    if index.is_empty() {
        return;
    }
    let mut lists = vec![Vec::new(); groups.len()];
    for (outstanding, age_ns) in found.old_enough(youngest_ns) {
        if let Some(&at) = index.get(&found.key_of(outstanding)) {
            let pid = (found.pid_of)(outstanding.space);
            lists[at].push((
                Reverse(age_ns),
                pid,
                outstanding.address,
                outstanding.size,
                outstanding.thread(),
            ));
        }
    }
    for (group, mut list) in groups.iter_mut().zip(lists) {
        if !index.contains_key(&group.key) {
            continue;
        }
        list.sort_unstable();
        let lines = list.into_iter().map(|(Reverse(age_ns), pid, address, size, tid)| AllocationLine {
            pid,
            tid,
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
