//! What is outstanding of one resource at one site.

use std::{
    cmp::{Ordering, Reverse},
    sync::Arc,
};

use memleak_common::probe::Resource;

use crate::{
    probe::resource::ResourceInfo,
    report::model::{AllocationLine, FrameId, Note, OtherProcesses, ProcessCount, StackReport, ThreadCount},
    sampling::Sampling,
    settings::ReportSettings,
    sites::{Site, SiteId},
    verdict::{History, Point, Verdict, judge},
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

/// What a group held in the report before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct AmountBefore {
    /// Outstanding bytes then.
    pub bytes: u64,
    /// Outstanding allocations then.
    pub count: u64,
}

/// The outstanding allocations of one site. Bytes, counts and growth are those of all of them:
/// until [`Group::sum_up`] those of the captured ones, in the unit of [`Sampling::number_of`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// What and where.
    pub key: GroupKey,
    /// Outstanding bytes.
    pub bytes: u64,
    /// Outstanding allocations.
    pub count: u64,
    /// The variance of `bytes`, if they are estimated by samples of bytes; else 0.
    pub variance: u128,
    /// What each process holds of that, the largest sum first.
    pub processes: Vec<ProcessCount>,
    /// What processes held that ended long ago.
    pub others: OtherProcesses,
    /// Which threads have acquired how much of it, the largest sum first, if that is wanted.
    pub threads: Vec<ThreadCount>,
    /// Age of the oldest, in nanoseconds.
    pub oldest_ns: u64,
    /// The first birth of those that are as old as it: what a thread has acquired within one tick
    /// of the clock has its order by that.
    pub oldest_birth: u64,
    /// Age of the newest, in nanoseconds.
    pub newest_ns: u64,
    /// Bytes (of a resource without size: how many) now minus those in the report before (0 if
    /// it was not in it).
    pub growth: i128,
    /// What it held in the report before (nothing if it was not in it).
    pub before: AmountBefore,
    /// What is known of it over the whole run.
    pub history: History,
    /// What that shows.
    pub verdict: Verdict,
    /// It is among the top groups of its table.
    pub is_top: bool,
    /// `allocations` are all of them, for forms that write single blocks.
    pub has_blocks: bool,
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
        StackReport {
            stack_id: site.map(|site| site.stack_id(&resource.name)),
            resource,
            bytes: self.bytes,
            count: self.count,
            margin: settings.sampling.margin(self.bytes, self.variance),
            processes: self.processes,
            others: self.others,
            threads: self.threads,
            growth_bytes: signed(self.bytes) - signed(self.before.bytes),
            growth_count: signed(self.count) - signed(self.before.count),
            oldest_ms: self.history.oldest_ms,
            newest_ms: self.history.newest_ms,
            verdict: self.verdict,
            history: self.history,
            tag: site.and_then(|site| site.tag().cloned()),
            frames: Vec::<FrameId>::new(),
            why: None,
            notes: site.and_then(|site| site.cut).map(Note::Cut).into_iter().collect(),
            blocks: match self.has_blocks {
                true => self.allocations.clone().unwrap_or_default(),
                false => Vec::new(),
            },
            allocations: self.allocations.filter(|_| settings.show_allocs && self.is_top),
        }
    }
}

/// Half of all numbers: no machine has so many bytes.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Group {
    /// Judges it. `past`: what it held in the reports that are kept, the latest last.
    pub fn judge(&mut self, past: Vec<Point>, watched_ms: u64, combined_only: bool) {
        let age_ms = |age_ns: u64| (!combined_only).then_some(age_ns / NANOSECONDS_PER_MS);
        self.history = History {
            calls: self.history.calls,
            points: past,
            oldest_ms: age_ms(self.oldest_ns),
            newest_ms: age_ms(self.newest_ns),
            watched_ms,
        };
        self.verdict = judge(&self.history);
    }

    pub(super) fn new(key: GroupKey, age_ns: u64) -> Self {
        Self {
            key,
            bytes: 0,
            count: 0,
            variance: 0,
            processes: Vec::with_capacity(1),
            others: OtherProcesses::default(),
            threads: Vec::new(),
            oldest_ns: age_ns,
            oldest_birth: u64::MAX,
            newest_ns: age_ns,
            growth: 0,
            before: AmountBefore::default(),
            history: History::default(),
            verdict: judge(&History::default()),
            is_top: false,
            has_blocks: false,
            allocations: None,
        }
    }

    /// Adds another part of the same group. Neither is summed up yet.
    pub(super) fn merge(&mut self, part: Self) {
        self.processes.extend(part.processes);
        self.others.add(part.others);
        self.variance = self.variance.saturating_add(part.variance);
        self.aged(part.oldest_ns, part.oldest_birth);
        self.newest_ns = self.newest_ns.min(part.newest_ns);
    }

    /// Something of this age and birth is among it.
    pub(super) fn aged(&mut self, age_ns: u64, birth: u64) {
        match age_ns.cmp(&self.oldest_ns) {
            Ordering::Greater => (self.oldest_ns, self.oldest_birth) = (age_ns, birth),
            Ordering::Equal => self.oldest_birth = self.oldest_birth.min(birth),
            Ordering::Less => {}
        }
    }

    /// Makes one entry for each process, scaled and in order, and sums over them.
    pub(super) fn sum_up(&mut self, sampling: Sampling) {
        self.processes.sort_unstable_by_key(|process| process.pid);
        self.processes.dedup_by(|next, first| {
            let same = next.pid == first.pid;
            if same {
                first.bytes = first.bytes.saturating_add(next.bytes);
                first.count = first.count.saturating_add(next.count);
            }
            same
        });
        let OtherProcesses { bytes, count, .. } = &mut self.others;
        (*bytes, *count) = (sampling.whole(*bytes), sampling.whole(*count));
        (self.bytes, self.count) = (*bytes, *count);
        for process in &mut self.processes {
            process.bytes = sampling.whole(process.bytes);
            process.count = sampling.whole(process.count);
            self.bytes = self.bytes.saturating_add(process.bytes);
            self.count = self.count.saturating_add(process.count);
        }
        self.processes.sort_unstable_by_key(|process| (Reverse((process.bytes, process.count)), process.pid));
    }
}
