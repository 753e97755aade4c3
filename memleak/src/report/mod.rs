//! A report: a snapshot, aggregated and symbolized, and the ways to write it.

use std::time::SystemTime;

use memleak_common::probe::Resource;

use crate::{snapshot::Lost, symbolize::Frame};

/// What is traced, as reports name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetInfo {
    /// `process` or `command` (`target.kind` of the JSON form).
    pub kind: &'static str,
    /// Processes.
    pub pids: Vec<u32>,
    /// Command name of the first.
    pub comm: String,
}

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

/// One outstanding allocation, for `-a`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocationLine {
    /// Address of the block.
    pub address: u64,
    /// Bytes asked for.
    pub size: u64,
    /// Milliseconds since it was acquired.
    pub age_ms: u64,
}

/// One stack with what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackReport {
    /// What it holds.
    pub resource: Resource,
    /// Outstanding bytes.
    pub bytes: u64,
    /// Outstanding allocations.
    pub count: u64,
    /// Age of the oldest; `None` with `-C`.
    pub oldest_ms: Option<u64>,
    /// Age of the newest; `None` with `-C`.
    pub newest_ms: Option<u64>,
    /// Callers are missing.
    pub truncated: bool,
    /// Callee first. Empty where the stack is not known.
    pub frames: Vec<Frame>,
    /// With `-a` only.
    pub allocations: Option<Vec<AllocationLine>>,
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
    /// What was lost.
    pub lost: Lost,
    /// One acquire in this many was captured, where that is not 1: numbers are estimates.
    pub sampled: Option<u64>,
    /// The top stacks, in order.
    pub stacks: Vec<StackReport>,
}
