//! The maps, read once, as plain data.

use std::collections::HashMap;

use memleak_common::probe::Resource;

/// One outstanding thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outstanding {
    /// Process that owns it (thread group id, as `/proc` names it).
    pub pid: u32,
    /// What it is.
    pub resource: Resource,
    /// Address of the block or range.
    pub address: u64,
    /// Bytes asked for.
    pub size: u64,
    /// Key into [`Snapshot::stacks`].
    pub stack_id: u64,
    /// CLOCK_MONOTONIC nanoseconds when it was acquired.
    pub time_ns: u64,
}

/// One stack: return addresses, callee first.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Stack {
    /// Return addresses.
    pub ips: Vec<u64>,
    /// Callers are missing, since the walk ended early.
    pub truncated: bool,
}

/// What was lost, by way of loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize)]
pub struct Lost {
    /// Allocations not recorded.
    pub allocations: u64,
    /// Allocations recorded without their stack.
    pub stacks: u64,
    /// Events dropped (`-t`).
    pub events: u64,
    /// Calls whose return was not seen.
    pub missed_returns: u64,
    /// Runs of our programs that the kernel skipped.
    pub skipped_runs: u64,
}

/// All maps at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// CLOCK_MONOTONIC nanoseconds at which it was taken: ages are measured against it.
    pub time_ns: u64,
    /// Everything outstanding, in no order.
    pub outstanding: Vec<Outstanding>,
    /// Stacks by id. An id that is missing (`NO_STACK`) has no known stack.
    pub stacks: HashMap<u64, Stack>,
    /// Acquires so far (sampled ones only, where sampling is on).
    pub acquired: u64,
    /// Releases so far of what was seen acquired.
    pub released: u64,
    /// What was lost so far.
    pub lost: Lost,
}
