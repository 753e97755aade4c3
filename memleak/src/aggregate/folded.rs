//! What processes that ended long ago held, summed up by site: they can release nothing any more,
//! and a run that follows a build has a hundred thousand of them.

use std::cmp::Reverse;

use rustc_hash::FxHashMap;

use super::group::{Group, GroupKey};
use crate::{
    report::model::{OtherProcesses, ProcessCount},
    sampling::Sampling,
    sites::SiteId,
    snapshot::Outstanding,
};

/// Groups that are kept; what others held is of no known site from then on.
const MOST_GROUPS: usize = 65_536;
/// Processes of a group that are told apart, those that held most.
const MOST_PROCESSES: usize = 32;

/// Sums by what was acquired and where, in the unit of [`Sampling::number_of`].
#[derive(Debug, Default)]
pub struct Folded {
    sums: FxHashMap<GroupKey, Sum>,
    sampling: Sampling,
}

#[derive(Debug)]
struct Sum {
    processes: Vec<ProcessCount>,
    others: OtherProcesses,
    /// When the first one was acquired, and the last: CLOCK_MONOTONIC nanoseconds.
    first_ns: u64,
    last_ns: u64,
    variance: u128,
}

impl Folded {
    /// Nothing yet. `sampling`: for how much a record stands.
    pub fn new(sampling: Sampling) -> Self {
        Self { sums: FxHashMap::default(), sampling }
    }

    /// Adds what one process held at the end.
    pub fn add(&mut self, pid: u32, records: impl IntoIterator<Item = (SiteId, Outstanding)>) {
        let mut found: FxHashMap<GroupKey, Sum> = FxHashMap::default();
        for (site, record) in records {
            let sum = found
                .entry(GroupKey { resource: record.resource, site })
                .or_insert_with(|| Sum::new(pid, record.time_ns));
            sum.add(&record, self.sampling);
        }
        for (key, sum) in found {
            let is_full = self.sums.len() >= MOST_GROUPS && !self.sums.contains_key(&key);
            let key = if is_full { GroupKey { site: SiteId::UNKNOWN, ..key } } else { key };
            match self.sums.get_mut(&key) {
                Some(known) => known.merge(sum),
                None => {
                    self.sums.insert(key, sum);
                }
            }
        }
    }

    /// The sites that are still needed.
    pub fn sites(&self) -> impl Iterator<Item = SiteId> {
        self.sums.keys().map(|key| key.site)
    }

    /// All of it, as groups that are not summed up yet. `now_ns`: the moment of the snapshot.
    pub(super) fn groups(&self, now_ns: u64) -> impl Iterator<Item = Group> {
        self.sums.iter().map(move |(key, sum)| Group {
            processes: sum.processes.clone(),
            others: sum.others,
            variance: sum.variance,
            oldest_ns: now_ns.saturating_sub(sum.first_ns),
            ..Group::new(*key, now_ns.saturating_sub(sum.last_ns))
        })
    }
}

impl Sum {
    fn new(pid: u32, time_ns: u64) -> Self {
        Self {
            processes: vec![ProcessCount { pid, bytes: 0, count: 0 }],
            others: OtherProcesses::default(),
            first_ns: time_ns,
            last_ns: time_ns,
            variance: 0,
        }
    }

    fn add(&mut self, record: &Outstanding, sampling: Sampling) {
        let number = sampling.number_of(record.resource, record.size);
        if let Some(process) = self.processes.first_mut() {
            process.bytes = process.bytes.saturating_add(record.size.saturating_mul(number));
            process.count = process.count.saturating_add(number);
        }
        self.variance = self.variance.saturating_add(sampling.variance_of(record.resource, record.size));
        self.first_ns = self.first_ns.min(record.time_ns);
        self.last_ns = self.last_ns.max(record.time_ns);
    }

    fn merge(&mut self, other: Self) {
        self.processes.extend(other.processes);
        self.others.add(other.others);
        self.variance = self.variance.saturating_add(other.variance);
        self.first_ns = self.first_ns.min(other.first_ns);
        self.last_ns = self.last_ns.max(other.last_ns);
        if self.processes.len() > MOST_PROCESSES {
            self.processes
                .sort_unstable_by_key(|process| (Reverse((process.bytes, process.count)), process.pid));
            for process in self.processes.drain(MOST_PROCESSES..) {
                self.others.add(OtherProcesses { processes: 1, bytes: process.bytes, count: process.count });
            }
        }
    }
}
