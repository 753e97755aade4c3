//! What is outstanding of one resource at one site.

use std::{cmp::Reverse, sync::Arc};

use memleak_common::probe::Resource;

use crate::{
    probe::resource::ResourceInfo,
    report::model::{AllocationLine, FrameId, Note, OtherProcesses, ProcessCount, StackReport},
    settings::ReportSettings,
    sites::{Site, SiteId},
};

/// For ages: the kernel counts nanoseconds, reports show milliseconds.
pub(super) const NANOSECONDS_PER_MS: u64 = 1_000_000;

/// What one group is made of: a site at which one kind of resource was acquired, in whatever
/// processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupKey {
    /// What was acquired.
    pub resource: Resource,
    /// Where.
    pub site: SiteId,
}

/// The outstanding allocations of one site. Bytes, counts and growth are scaled by the sample rate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// What and where.
    pub key: GroupKey,
    /// Outstanding bytes.
    pub bytes: u64,
    /// Outstanding allocations.
    pub count: u64,
    /// What each process holds of that, the largest sum first.
    pub processes: Vec<ProcessCount>,
    /// What processes held that ended long ago.
    pub others: OtherProcesses,
    /// Age of the oldest, in nanoseconds.
    pub oldest_ns: u64,
    /// Age of the newest, in nanoseconds.
    pub newest_ns: u64,
    /// Bytes (of a resource without size: how many) now minus those in the report before (0 if
    /// it was not in it).
    pub growth: i128,
    /// It is among the top groups of its table.
    pub is_top: bool,
    /// Of the top groups with `-a`, and of descriptors: one for each outstanding allocation that
    /// was captured, oldest first, then by process and address. Not scaled.
    pub allocations: Option<Vec<AllocationLine>>,
}

impl Group {
    /// What a report says of it, given its site (`None` of stacks that are not known), and what the
    /// settings leave in. Its frames are looked up by whoever writes it.
    pub fn report(
        self,
        resource: Arc<ResourceInfo>,
        site: Option<&Site>,
        settings: &ReportSettings,
    ) -> StackReport {
        let age_ms = |age_ns: u64| (!settings.combined_only).then_some(age_ns / NANOSECONDS_PER_MS);
        StackReport {
            stack_id: site.map(|site| site.stack_id(&resource.name)),
            resource,
            bytes: self.bytes,
            count: self.count,
            processes: self.processes,
            others: self.others,
            oldest_ms: age_ms(self.oldest_ns),
            newest_ms: age_ms(self.newest_ns),
            tag: site.and_then(|site| site.tag().cloned()),
            frames: Vec::<FrameId>::new(),
            why: None,
            notes: site.and_then(|site| site.cut).map(Note::Cut).into_iter().collect(),
            allocations: self.allocations.filter(|_| settings.show_allocs),
        }
    }
}

impl Group {
    pub(super) fn new(key: GroupKey, age_ns: u64) -> Self {
        Self {
            key,
            bytes: 0,
            count: 0,
            processes: Vec::with_capacity(1),
            others: OtherProcesses::default(),
            oldest_ns: age_ns,
            newest_ns: age_ns,
            growth: 0,
            is_top: false,
            allocations: None,
        }
    }

    /// Adds another part of the same group. Neither is summed up yet.
    pub(super) fn merge(&mut self, part: Self) {
        self.processes.extend(part.processes);
        self.others.add(part.others);
        self.oldest_ns = self.oldest_ns.max(part.oldest_ns);
        self.newest_ns = self.newest_ns.min(part.newest_ns);
    }

    /// Makes one entry for each process, scaled and in order, and sums over them.
    pub(super) fn sum_up(&mut self, rate: u64) {
        self.processes.sort_unstable_by_key(|process| process.pid);
        self.processes.dedup_by(|next, first| {
            let same = next.pid == first.pid;
            if same {
                first.bytes = first.bytes.saturating_add(next.bytes);
                first.count += next.count;
            }
            same
        });
        let OtherProcesses { bytes, count, .. } = &mut self.others;
        (*bytes, *count) = (bytes.saturating_mul(rate), count.saturating_mul(rate));
        (self.bytes, self.count) = (*bytes, *count);
        for process in &mut self.processes {
            process.bytes = process.bytes.saturating_mul(rate);
            process.count = process.count.saturating_mul(rate);
            self.bytes = self.bytes.saturating_add(process.bytes);
            self.count = self.count.saturating_add(process.count);
        }
        self.processes.sort_unstable_by_key(|process| (Reverse((process.bytes, process.count)), process.pid));
    }
}
