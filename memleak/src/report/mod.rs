//! A report: a snapshot, aggregated and symbolized, and the ways to write it.

pub mod descriptors;
pub mod json;
pub mod output;
pub mod sink;
pub mod text;
pub mod trace;

use std::{sync::Arc, time::SystemTime};

pub use crate::aggregate::{AllocationLine, ResourceTotal, Totals};
use crate::{
    aggregate::{Group, NANOSECONDS_PER_MS},
    probe::resource::ResourceInfo,
    settings::ReportSettings,
    snapshot::{Cut, Lost, Stack},
    symbolize::Frame,
};

/// What is traced, as reports name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetInfo {
    /// `process`, `command` or `kernel` (`target.kind` of the JSON form).
    pub kind: &'static str,
    /// Processes.
    pub pids: Vec<u32>,
    /// Command name of the first.
    pub comm: String,
}

impl TargetInfo {
    /// The kernel: no process.
    pub fn kernel() -> Self {
        Self { kind: "kernel", pids: Vec::new(), comm: "kernel".to_owned() }
    }
}

/// One stack with what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackReport {
    /// Whose it is.
    pub pid: u32,
    /// What it holds.
    pub resource: Arc<ResourceInfo>,
    /// Outstanding bytes.
    pub bytes: u64,
    /// Outstanding allocations.
    pub count: u64,
    /// Age of the oldest; `None` with `-C`.
    pub oldest_ms: Option<u64>,
    /// Age of the newest; `None` with `-C`.
    pub newest_ms: Option<u64>,
    /// Kernel mode: the slab cache of its objects (`kmalloc-256`), or the order of its pages (`order 2`).
    pub label: Option<String>,
    /// Callers are missing, and why.
    pub cut: Option<Cut>,
    /// Callee first. Empty where the stack is not known.
    pub frames: Vec<Frame>,
    /// What its descriptors are now, in a few words; `None` where there is nothing to say.
    pub now: Option<String>,
    /// With `-a` only.
    pub allocations: Option<Vec<AllocationLine>>,
}

impl StackReport {
    /// Puts a group, its stack (`None` where its id is not in the snapshot) and that stack's frames together, and
    /// leaves out what the settings leave out.
    pub fn new(
        group: Group,
        resource: Arc<ResourceInfo>,
        stack: Option<&Stack>,
        frames: Vec<Frame>,
        settings: &ReportSettings,
    ) -> Self {
        let age_ms = |age_ns: u64| (!settings.combined_only).then_some(age_ns / NANOSECONDS_PER_MS);
        Self {
            pid: group.key.pid,
            resource,
            bytes: group.bytes,
            count: group.count,
            oldest_ms: age_ms(group.oldest_ns),
            newest_ms: age_ms(group.newest_ns),
            label: stack.and_then(|stack| stack.label.clone()),
            cut: stack.and_then(|stack| stack.cut).filter(|cut| !is_whole(*cut, &frames)),
            frames,
            now: None,
            allocations: group.allocations.filter(|_| settings.show_allocs),
        }
    }
}

/// The program's own part is there: what calls `main` is start code, of which musl's and a few others' say nothing.
fn is_whole(cut: Cut, frames: &[Frame]) -> bool {
    cut != Cut::TooDeep && frames.last().is_some_and(|frame| frame.symbol.as_deref() == Some("main"))
}

/// One report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// When its snapshot was taken.
    pub time: SystemTime,
    /// Milliseconds since tracing began.
    pub elapsed_ms: u64,
    /// The last one.
    pub is_final: bool,
    /// What is traced.
    pub target: TargetInfo,
    /// Sums (scaled, where sampling is on).
    pub totals: Totals,
    /// The same for each resource that is traced, in the order of the tables.
    pub by_resource: Vec<ResourceTotal>,
    /// What was lost.
    pub lost: Lost,
    /// One acquire in this many was captured, where that is not 1: numbers are estimates.
    pub sampled: Option<u64>,
    /// The top stacks of each table, in order.
    pub stacks: Vec<StackReport>,
}
