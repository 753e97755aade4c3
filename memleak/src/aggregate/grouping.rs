//! Grouping by resource and site, once for as long as the same is outstanding.

use memleak_common::probe::Resource;
use rustc_hash::{FxBuildHasher, FxHashMap};

use super::{
    calls::{StacksOfGroups, Young},
    folded::Folded,
    group::{Group, GroupKey},
};
use crate::{
    recent::Recent,
    report::model::ProcessCount,
    sampling::Sampling,
    sites::Sites,
    snapshot::{Outstanding, Snapshot, TableVersion},
};

/// What is outstanding, and where.
#[derive(Clone, Copy)]
pub struct Found<'a> {
    /// The maps.
    pub snapshot: &'a Snapshot,
    /// What processes held that ended long ago. It is never young, and not listed.
    pub folded: &'a Folded,
    /// The sites of its stacks.
    pub sites: &'a Sites,
    /// The process of an address space.
    pub pid_of: &'a dyn Fn(u32) -> u32,
    /// Milliseconds since tracing began.
    pub elapsed_ms: u64,
}

impl Found<'_> {
    /// What is outstanding for `youngest_ns` at least, each with its age in nanoseconds. A record
    /// that was made while the snapshot was being read is of age 0.
    pub(super) fn old_enough(&self, youngest_ns: u64) -> impl Iterator<Item = (&Outstanding, u64)> {
        self.snapshot.outstanding.iter().filter_map(move |outstanding| {
            let age_ns = self.snapshot.time_ns.saturating_sub(outstanding.time_ns);
            (age_ns >= youngest_ns).then_some((outstanding, age_ns))
        })
    }

    pub(super) fn key_of(&self, outstanding: &Outstanding) -> GroupKey {
        GroupKey {
            resource: outstanding.resource,
            site: self.sites.of(outstanding.space, outstanding.stack_id),
        }
    }
}

/// The groups of one snapshot, not summed up.
#[derive(Clone, Debug, Default)]
pub(super) struct KeptGroups {
    groups: Vec<Group>,
    places: FxHashMap<GroupKey, usize>,
    stacks: StacksOfGroups,
    young: Young,
    /// What it is of.
    version: Option<TableVersion>,
    time_ns: u64,
}

/// Groups of this many records are worth to be kept: to copy them is far less than to make them.
const KEPT_PART: usize = 16;

/// All groups, in no order that matters. `kept`: those of the call before.
pub(super) fn group(
    found: Found<'_>,
    youngest_ns: u64,
    sampling: Sampling,
    kept: &mut Option<KeptGroups>,
) -> Vec<Group> {
    let snapshot = found.snapshot;
    let grouped = kept.take().and_then(|kept| kept.aged(snapshot, youngest_ns));
    let grouped = grouped.unwrap_or_else(|| KeptGroups::of(found, youngest_ns, sampling));
    let is_worth = snapshot.outstanding.len() / KEPT_PART > grouped.groups.len();
    if snapshot.version.is_some() && grouped.young.is_empty() && is_worth {
        *kept = Some(grouped.clone());
    }
    let KeptGroups { mut groups, places, stacks, young, .. } = grouped;
    for folded in found.folded.groups(snapshot.time_ns) {
        match places.get(&folded.key).and_then(|at| groups.get_mut(*at)) {
            Some(group) => group.merge(folded),
            None => groups.push(folded),
        }
    }
    groups.iter_mut().for_each(|group| group.sum_up(sampling));
    stacks.count_calls(snapshot, young, sampling, &mut groups);
    groups
}

impl KeptGroups {
    /// The same at a later snapshot, if that has the same records and leaves none out.
    fn aged(mut self, snapshot: &Snapshot, youngest_ns: u64) -> Option<Self> {
        let later = snapshot.time_ns.checked_sub(self.time_ns)?;
        if !snapshot.is_of(self.version) {
            return None;
        }
        self.time_ns = snapshot.time_ns;
        for group in &mut self.groups {
            group.oldest_ns = group.oldest_ns.saturating_add(later);
            group.newest_ns = group.newest_ns.saturating_add(later);
        }
        self.groups.iter().all(|group| group.newest_ns >= youngest_ns).then_some(self)
    }

    fn of(found: Found<'_>, youngest_ns: u64, sampling: Sampling) -> Self {
        let snapshot = found.snapshot;
        let mut young = Young::default();
        let mut groups: Vec<Group> = Vec::with_capacity(snapshot.stacks.len());
        // By stack first, of which a large target has few for many allocations, then by site.
        let mut index: FxHashMap<(u32, Resource, u64), (usize, usize)> =
            FxHashMap::with_capacity_and_hasher(snapshot.stacks.len(), FxBuildHasher);
        let mut places: FxHashMap<GroupKey, usize> = FxHashMap::default();
        let mut stacks = StacksOfGroups::default();
        let mut recent = Recent::default();
        for outstanding in &snapshot.outstanding {
            let age_ns = snapshot.time_ns.saturating_sub(outstanding.time_ns);
            if age_ns < youngest_ns {
                young.add(outstanding, sampling);
                continue;
            }
            let stack = (outstanding.space, outstanding.resource, outstanding.stack_id);
            let mut enter = || {
                let key = found.key_of(outstanding);
                let at = *places.entry(key).or_insert_with(|| {
                    groups.push(Group::new(key, age_ns));
                    groups.len() - 1
                });
                let processes = &mut groups[at].processes;
                processes.push(ProcessCount { pid: (found.pid_of)(outstanding.space), bytes: 0, count: 0 });
                stacks.0.push((at, outstanding.stack_id));
                (at, processes.len() - 1)
            };
            let (at, part) =
                recent.get(outstanding.stack_id, stack, || *index.entry(stack).or_insert_with(&mut enter));
            let group = &mut groups[at];
            let part = &mut group.processes[part];
            let number = sampling.number_of(outstanding.resource, outstanding.size);
            part.bytes = part.bytes.saturating_add(outstanding.size.saturating_mul(number));
            part.count = part.count.saturating_add(number);
            let variance = sampling.variance_of(outstanding.resource, outstanding.size);
            group.variance = group.variance.saturating_add(variance);
            group.aged(age_ns, outstanding.birth);
            group.newest_ns = group.newest_ns.min(age_ns);
        }
        Self { groups, places, stacks, young, version: snapshot.version, time_ns: snapshot.time_ns }
    }
}
