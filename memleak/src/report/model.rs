//! A report as plain data: what every form writes, and what `session` fills.

use std::{
    borrow::Cow,
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::SystemTime,
};

use memleak_common::probe::Resource;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::why::Why;
use crate::{
    account::Memory,
    heap::Classes,
    kernel_labels::Tag,
    probe::resource::{ResourceInfo, TopOfTables},
    sampling::Sampling,
    snapshot::{Cut, KERNEL_PID, Lost},
    symbolize::Frame,
    verdict::{History, Point, Verdict},
};

/// What is traced, as reports name it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TargetInfo {
    /// `process`, `command` or `kernel` (`target.kind` of the JSON form).
    pub kind: Cow<'static, str>,
    /// Processes.
    pub pids: Vec<u32>,
    /// Command name of the first.
    pub comm: String,
    /// The command names of all, as far as they are known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub comms: BTreeMap<u32, String>,
}

impl TargetInfo {
    /// The kernel: no process.
    pub fn kernel() -> Self {
        Self { kind: "kernel".into(), pids: Vec::new(), comm: "kernel".to_owned(), comms: BTreeMap::new() }
    }

    /// The command name of a process; `process 4711` if that is not known.
    pub fn comm_of(&self, pid: u32) -> Cow<'_, str> {
        let is_first = self.pids.first().is_none_or(|first| *first == pid);
        match (self.comms.get(&pid), is_first) {
            (Some(comm), _) => comm.into(),
            (None, true) => self.comm.as_str().into(),
            (None, false) => format!("process {pid}").into(),
        }
    }

    /// What is traced, in one line: `nginx`; of several processes all of them,
    /// `nginx (12, 13), redis (15)`.
    pub fn all(&self) -> String {
        if self.pids.len() < 2 {
            return self.comm.clone();
        }
        let mut names: Vec<(Cow<'_, str>, Vec<String>)> = Vec::new();
        for pid in &self.pids {
            let comm = self.comm_of(*pid);
            match names.iter_mut().find(|(name, _)| *name == comm) {
                Some((_, pids)) => pids.push(pid.to_string()),
                None => names.push((comm, vec![pid.to_string()])),
            }
        }
        names
            .iter()
            .map(|(name, pids)| format!("{name} ({})", pids.join(", ")))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// Processes that came and went since tracing began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Processes {
    /// Traced later than the first ones: children that were followed.
    pub joined: u64,
    /// Have ended.
    pub left: u64,
}

/// Order of the stacks in a report; ties are broken by size, then count, then the stack itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum SortKey {
    /// Most outstanding bytes first.
    #[default]
    Size,
    /// Most outstanding allocations first.
    Count,
    /// Oldest outstanding allocation first.
    Age,
    /// Largest growth in bytes since the report before first.
    Growth,
    /// The worst verdict first: leaks, what grows, caches.
    Verdict,
}

/// Sums over all stacks that pass the filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ResourceTotal {
    /// Which.
    #[serde(with = "shared")]
    pub resource: Arc<ResourceInfo>,
    /// Outstanding bytes; 0 if it has no size.
    pub bytes: u64,
    /// How many are outstanding.
    pub count: u64,
}

/// What one process holds of what a stack holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ProcessCount {
    /// The process; [`crate::snapshot::KERNEL_PID`] is the kernel.
    pub pid: u32,
    /// Outstanding bytes.
    pub bytes: u64,
    /// Outstanding allocations.
    pub count: u64,
}

/// What one thread has acquired of what a stack holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ThreadCount {
    /// Its process; [`crate::snapshot::KERNEL_PID`] is the kernel.
    pub pid: u32,
    /// The thread; 0 stands for those that are not known.
    pub tid: u32,
    /// Outstanding bytes.
    pub bytes: u64,
    /// Outstanding allocations.
    pub count: u64,
}

impl ThreadCount {
    /// Adds up what belongs to one thread, the largest sum first.
    pub fn sums(parts: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut sums: BTreeMap<(u32, u32), Self> = BTreeMap::new();
        for part in parts {
            let none = Self { bytes: 0, count: 0, ..part };
            let sum = sums.entry((part.pid, part.tid)).or_insert(none);
            sum.bytes = sum.bytes.saturating_add(part.bytes);
            sum.count = sum.count.saturating_add(part.count);
        }
        let mut sums: Vec<Self> = sums.into_values().collect();
        sums.sort_by_key(|thread| Reverse((thread.bytes, thread.count)));
        sums
    }

    /// The numbers of all that there is, given those of what was captured.
    #[must_use]
    pub fn scaled(self, sampling: Sampling) -> Self {
        Self { bytes: sampling.whole(self.bytes), count: sampling.whole(self.count), ..self }
    }
}

/// What further processes, which have ended, held of what a stack holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct OtherProcesses {
    /// How many.
    pub processes: u64,
    /// Outstanding bytes.
    pub bytes: u64,
    /// Outstanding allocations.
    pub count: u64,
}

impl OtherProcesses {
    /// Adds up.
    pub fn add(&mut self, more: Self) {
        self.processes += more.processes;
        self.bytes = self.bytes.saturating_add(more.bytes);
        self.count = self.count.saturating_add(more.count);
    }
}

/// What known leaks hold, which is left out of a report (`--suppressions`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Suppressed {
    /// Stacks.
    pub stacks: u64,
    /// Outstanding bytes.
    pub bytes: u64,
    /// Outstanding allocations.
    pub count: u64,
}

/// A process that the kernel has killed for want of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OomKilled {
    /// Which.
    pub pid: u32,
    /// When.
    pub time: SystemTime,
}

/// A stack whose allocations are released at once, in numbers (`--temporary`).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TemporaryStack {
    /// Released so far.
    pub released: u64,
    /// Of these, within a millisecond.
    pub at_once: u64,
    /// Bytes released.
    pub bytes: u64,
    /// Callee first.
    pub frames: Vec<FrameId>,
}

/// One outstanding allocation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AllocationLine {
    /// Whose it is.
    pub pid: u32,
    /// The thread that acquired it, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tid: Option<u32>,
    /// Address of the block.
    pub address: u64,
    /// Bytes asked for.
    pub size: u64,
    /// Milliseconds since it was acquired.
    pub age_ms: u64,
    /// What a descriptor is now: `socket:[123]`, a path. `None` if that is not known, or it is
    /// no descriptor.
    pub now: Option<String>,
}

/// Something that is said of a stack beside its numbers and frames.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Note {
    /// What its descriptors are now, in a few words.
    Now(String),
    /// Callers are missing, and why.
    Cut(Cut),
    /// It was made by calls that had been entered when tracing began.
    WaitedInAccept,
}

/// A frame's place in [`Frames`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct FrameId(u32);

impl FrameId {
    /// Its place among all of them.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The frames of a report's stacks, each once: most stacks have most of their frames in common.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    list: Vec<Arc<Frame>>,
    ids: HashMap<Arc<Frame>, FrameId>,
}

impl Serialize for Frames {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Frames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Ids are places in the list: it is taken as it is.
        let list: Vec<Arc<Frame>> =
            Vec::<Frame>::deserialize(deserializer)?.into_iter().map(Arc::new).collect();
        let ids = list.iter().zip(0..).map(|(frame, id)| (frame.clone(), FrameId(id))).collect();
        Ok(Self { list, ids })
    }
}

impl Frames {
    /// Enters a frame, or finds it.
    pub fn intern(&mut self, frame: Frame) -> FrameId {
        if let Some(id) = self.ids.get(&frame) {
            return *id;
        }
        // A stack has 127 addresses at most: 4 billion frames are 30 million stacks that have
        // nothing in common.
        let id = FrameId(u32::try_from(self.list.len()).unwrap_or(u32::MAX));
        let frame = Arc::new(frame);
        self.list.push(frame.clone());
        self.ids.insert(frame, id);
        id
    }

    /// All of them, each at the place that its id is ([`FrameId::index`]).
    pub fn iter(&self) -> impl Iterator<Item = &Frame> {
        self.list.iter().map(|frame| &**frame)
    }

    /// The frame of an id that this table gave; `None` for another table's.
    pub fn get(&self, id: FrameId) -> Option<&Frame> {
        self.list.get(id.0 as usize).map(|frame| &**frame)
    }
}

/// One stack with what it holds, in all processes together.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StackReport {
    /// The same for the same code on any machine ([`crate::sites::StackDigest`]); `None` if the
    /// stack is not known.
    pub stack_id: Option<u64>,
    /// What it holds.
    #[serde(with = "shared")]
    pub resource: Arc<ResourceInfo>,
    /// Outstanding bytes.
    pub bytes: u64,
    /// Outstanding allocations.
    pub count: u64,
    /// [`Report::margin`], of this stack.
    #[serde(default)]
    pub margin: Option<u64>,
    /// Who holds how much of it, the largest sum first.
    pub processes: Vec<ProcessCount>,
    /// Who else held some of it at the end.
    pub others: OtherProcesses,
    /// Which threads have acquired how much of it, the largest sum first, if a form or a view wants
    /// that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub threads: Vec<ThreadCount>,
    /// Bytes by which it has become more since the report before.
    pub growth_bytes: i64,
    /// Allocations by which it has become more since then.
    pub growth_count: i64,
    /// What it did so far.
    pub history: History,
    /// What that shows.
    pub verdict: Verdict,
    /// Age of the oldest; `None` with `-C`.
    pub oldest_ms: Option<u64>,
    /// Age of the newest; `None` with `-C`.
    pub newest_ms: Option<u64>,
    /// Kernel mode: what its objects are.
    pub tag: Option<Tag>,
    /// Callee first. Empty if the stack is not known, or if the form does not write it
    /// ([`super::format::Scope`]).
    pub frames: Vec<FrameId>,
    /// What else there is to say.
    pub notes: Vec<Note>,
    /// What became of its blocks (`--why`).
    pub why: Option<Classes>,
    /// With `-a` only.
    pub allocations: Option<Vec<AllocationLine>>,
    /// All that were captured, if a form needs them ([`super::format::Format::needs_blocks`]). Not
    /// scaled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<AllocationLine>,
}

impl StackReport {
    /// The process that holds it, or most of it.
    pub fn pid(&self) -> u32 {
        self.processes.first().map_or(KERNEL_PID, |process| process.pid)
    }

    /// Several processes hold it.
    pub fn is_merged(&self) -> bool {
        self.processes.len() > 1 || self.others.processes > 0
    }

    /// Why callers are missing, if they are.
    pub fn cut(&self) -> Option<Cut> {
        self.notes.iter().find_map(|note| match note {
            Note::Cut(cut) => Some(*cut),
            Note::Now(_) | Note::WaitedInAccept => None,
        })
    }

    /// What its descriptors are now, if that is known.
    pub fn now(&self) -> Option<&str> {
        self.notes.iter().find_map(|note| match note {
            Note::Now(now) => Some(now.as_str()),
            Note::Cut(_) | Note::WaitedInAccept => None,
        })
    }
}

/// One report.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// When its snapshot was taken.
    pub time: SystemTime,
    /// Milliseconds since tracing began.
    pub elapsed_ms: u64,
    /// The moment that it is of: CLOCK_MONOTONIC nanoseconds.
    pub cut_ns: u64,
    /// By so many nanoseconds that may have been later, at most.
    pub cut_within_ns: u64,
    /// The last one.
    pub is_final: bool,
    /// What is traced.
    pub target: TargetInfo,
    /// How many have come and gone.
    pub processes: Processes,
    /// What was outstanding in all in this report and those before, the latest last.
    pub moments: Vec<Point>,
    /// Sums (scaled, if sampling is on).
    pub totals: Totals,
    /// The same for each resource that is traced, in the order of the tables.
    pub by_resource: Vec<ResourceTotal>,
    /// What was lost.
    pub lost: Lost,
    /// What was left out, if known leaks are.
    #[serde(default)]
    pub suppressed: Option<Suppressed>,
    /// The targets that were killed for want of memory.
    #[serde(default)]
    pub oom_killed: Vec<OomKilled>,
    /// What is released at once, the most often first (`--temporary`).
    #[serde(default)]
    pub temporary: Vec<TemporaryStack>,
    /// The names of threads, if those are told apart.
    #[serde(default)]
    pub threads: BTreeMap<u32, String>,
    /// What is to be said if there is no stack: that nothing is outstanding, and what is attached.
    pub if_empty: Option<String>,
    /// The account of the targets' memory; `None` if there is none.
    pub memory: Option<Memory>,
    /// What is lost and what holds the rest (`--why`).
    pub why: Option<Box<Why>>,
    /// Which acquires were captured: if not all, numbers are estimates.
    #[serde(default)]
    pub sampling: Sampling,
    /// The outstanding bytes are this much more or less, in 19 of 20 cases; `None` if they are not
    /// estimated by samples of bytes.
    #[serde(default)]
    pub margin: Option<u64>,
    /// The frames of `stacks`.
    pub frames: Frames,
    /// All stacks, table by table. The top ones of each table come first and in order, the others
    /// in none.
    pub stacks: Vec<StackReport>,
}

impl Report {
    /// The first `top` stacks of each table.
    pub fn top(&self, top: usize) -> impl Iterator<Item = &StackReport> {
        let mut top = TopOfTables::new(top);
        self.stacks.iter().filter(move |stack| top.takes(stack.resource.resource))
    }

    /// The frames of one of its stacks, callee first.
    pub fn frames_of<'a>(&'a self, stack: &'a StackReport) -> impl DoubleEndedIterator<Item = &'a Frame> {
        stack.frames.iter().filter_map(|id| self.frames.get(*id))
    }

    /// The tables, each by its first resource, in order: what scripts for bcc's memleak know comes
    /// as one of them.
    pub fn tables(&self) -> impl Iterator<Item = &ResourceInfo> {
        let mut seen: Vec<Resource> = Vec::new();
        let traced = self.by_resource.iter().map(|total| &*total.resource);
        traced.filter(move |resource| {
            let is_new = !seen.contains(&resource.table());
            seen.extend(is_new.then(|| resource.table()));
            is_new
        })
    }
}

/// What is shared, written as it is.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(
        shared: &Arc<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        T::serialize(shared, serializer)
    }

    pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<T>, D::Error> {
        T::deserialize(deserializer).map(Arc::new)
    }
}
