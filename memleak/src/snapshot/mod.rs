//! The maps, read once, as plain data.

pub(crate) mod descriptors;
pub(crate) mod own;
pub(crate) mod ranges;
mod uses;

use std::collections::HashMap;

use memleak_common::{history::StackHistory, probe::Resource, stack::NO_STACK, unwind::Step};
use rustc_hash::FxHashMap;
pub use uses::StackUses;

use crate::kernel_labels::Tag;

/// The process whose things are the kernel's own: no process has this id.
pub const KERNEL_PID: u32 = 0;

/// The number of the kernel's address space.
pub const KERNEL_SPACE: u32 = 0;

/// One outstanding thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outstanding {
    /// The address space or process that owns it: a number of the run's own, or [`KERNEL_SPACE`].
    pub space: u32,
    /// What it is.
    pub resource: Resource,
    /// Address of the block or range.
    pub address: u64,
    /// Its key in the kernel's table; that of a range may lie within its first page.
    pub handle: u64,
    /// Bytes asked for.
    pub size: u64,
    /// Key into [`Snapshot::stacks`].
    pub stack_id: u64,
    /// CLOCK_MONOTONIC nanoseconds when it was acquired.
    pub time_ns: u64,
    /// A number that no other record of its owner, resource and handle has.
    pub birth: u64,
}

impl Outstanding {
    /// The stack that it refers to, and in whose memory that is.
    pub fn use_of_stack(&self) -> (u32, u64) {
        (self.space, self.stack_id)
    }

    /// The thread that acquired it, if a call was seen to do so: births begin with its number,
    /// above these bits (`first_birth` in memleak-ebpf/src/thread.rs).
    pub fn thread(&self) -> Option<u32> {
        const BITS: u32 = 42;
        let number = u32::try_from(self.birth >> BITS).ok()?;
        Some(number).filter(|number| *number > 0 && self.stack_id != NO_STACK)
    }
}

/// One stack: return addresses, callee first.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Stack {
    /// Return addresses.
    pub ips: Vec<u64>,
    /// When it was recorded, counted in changes of what the process has mapped
    /// ([`crate::symbolize::Observed`]).
    pub generation: u64,
    /// Callers are missing, and why.
    pub cut: Option<Cut>,
    /// Kernel mode: what its objects are.
    pub tag: Option<Tag>,
}

/// Why a walk ended before the outermost frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Cut {
    /// Deeper than `--max-depth`.
    TooDeep,
    /// No unwind information for the last frame, and its frame pointer leads nowhere.
    NoUnwindInformation,
    /// The last frame's unwind information is of a kind that tables do not hold.
    Unsupported,
    /// The last frame's part of the stack could not be read.
    Unreadable,
    /// The last frame's caller would lie below it.
    NoProgress,
    /// arm64: the last frame's unwind information goes by the stack pointer, which a callee without
    /// such information has left unknown.
    UnknownStackPointer,
}

impl Cut {
    /// From how a walk ended; `None` if it is complete.
    pub fn from_end(end: Step) -> Option<Self> {
        match end {
            Step::Frame | Step::FrameByPointer | Step::Complete => None,
            Step::NoRow => Some(Self::NoUnwindInformation),
            Step::Unsupported => Some(Self::Unsupported),
            Step::Unreadable => Some(Self::Unreadable),
            Step::NoProgress => Some(Self::NoProgress),
            Step::TooDeep => Some(Self::TooDeep),
            Step::UnknownStackPointer => Some(Self::UnknownStackPointer),
        }
    }
}

/// What was lost, by way of loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Lost {
    /// Allocations not recorded.
    pub allocations: u64,
    /// Allocations recorded without their stack.
    pub stacks: u64,
    /// Events dropped: lines of `-t`, and what ranges and mappings are known by.
    pub events: u64,
    /// Those of the events that are lines of `-t`, not printed.
    pub trace_lines: u64,
    /// Processes that were not traced, or not from their beginning.
    pub processes: u64,
    /// Records that moved while they were read, and were not told in time: a snapshot may lack
    /// them. The next one does not.
    pub moved: u64,
    /// Calls whose return was not seen.
    pub missed_returns: u64,
    /// Runs of our programs that the kernel skipped, at the least.
    pub skipped_runs: u64,
    /// Calls that released many things at once, which nothing tells: those are still listed. Not
    /// written if there are none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mass_releases: u64,
    /// Stacks of the report that are known in part: their outer callers are missing. A snapshot
    /// has 0.
    pub cut_stacks: u64,
}

impl Lost {
    /// All of it, in numbers.
    pub fn sum(&self) -> u64 {
        // Lines of -t are events.
        let Self { allocations, stacks, events, trace_lines: _, processes, .. } = self;
        let Self { moved, missed_returns, skipped_runs, mass_releases, cut_stacks, .. } = self;
        [
            allocations,
            stacks,
            events,
            processes,
            moved,
            missed_returns,
            skipped_runs,
            mass_releases,
            cut_stacks,
        ]
        .into_iter()
        .fold(0, |sum, number| sum.saturating_add(*number))
    }
}

/// For serde.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// By what one state of the tables is told from another: while none of it changes, the same is
/// outstanding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TableVersion {
    /// Acquires that programs have counted.
    pub acquired: u64,
    /// Releases that they have counted.
    pub released: u64,
    /// What has changed otherwise: owners that came or went, ranges that were released in part,
    /// blocks that have another size.
    pub changes: u64,
}

/// All maps at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// `None` if nothing tells whether the same is outstanding still.
    pub version: Option<TableVersion>,
    /// The moment that it is of, CLOCK_MONOTONIC nanoseconds: ages are measured against it.
    pub time_ns: u64,
    /// By so many nanoseconds the moment may have been later, at most.
    pub within_ns: u64,
    /// Everything that was outstanding, in no order.
    pub outstanding: Vec<Outstanding>,
    /// So many of the first are blocks of the heap; there may be others behind them.
    pub blocks: usize,
    /// Which stacks they refer to, if that is known already.
    pub uses: Option<StackUses>,
    /// Stacks by id. An id that is missing (`NO_STACK`) has no known stack.
    pub stacks: HashMap<u64, Stack>,
    /// Acquires up to then (sampled ones only, if sampling is on).
    pub acquired: u64,
    /// Releases up to then of what was seen acquired.
    pub released: u64,
    /// What stacks have released so far, by id; of others nothing, unless some are lost. `None` if
    /// that is not counted.
    pub histories: Option<FxHashMap<u64, StackHistory>>,
    /// Releases of stacks that found no room for their history.
    pub lost_histories: u64,
    /// What was lost so far.
    pub lost: Lost,
}

impl Snapshot {
    /// What it has is what a snapshot of this version has.
    pub fn is_of(&self, version: Option<TableVersion>) -> bool {
        self.version.is_some() && self.version == version
    }
}

/// Records that are kept for the next snapshot, at most: 128 MiB.
pub(crate) const MOST_KEPT: usize = 2 << 20;
