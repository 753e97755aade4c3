//! Counters (map `STATS`, a per-CPU array, one slot for each [`Stat`]): one for each way something
//! can be lost.

/// A counter.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stat {
    /// Things acquired (that pass the size filter and were sampled).
    Acquired = 0,
    /// Things released that had been seen acquired.
    Released = 1,
    /// Allocations not recorded: table full, or the handle could not be read.
    LostAllocations = 2,
    /// Allocations recorded without their stack: table full, unreadable, or two stacks of one hash.
    LostStacks = 3,
    /// Events that found the ring buffer `EVENTS` full.
    LostEvents = 4,
    /// Calls whose return was not seen.
    MissedReturns = 5,
    /// Kernel mode: releases that a program was skipped for, and its twin was not.
    RescuedRuns = 6,
    /// Kernel mode: stacks that were not what was remembered of them (a test asks).
    WrongStacks = 7,
    /// Stacks that were new.
    StoredStacks = 8,
    /// Processes whose beginning was not told, or that have no number left.
    LostProcesses = 9,
    /// Lines of `-t` that found the ring buffer `TRACE` full.
    LostLines = 10,
    /// Records that have moved while they were read, and found the ring buffer `MOVED` full.
    LostMoves = 11,
    /// As [`Stat::Acquired`], while user space reads: once for every other reading ([`Stat::at`]).
    AcquiredWhileRead = 12,
    /// The same for the readings between those.
    AcquiredWhileReadToo = 13,
    /// As [`Stat::Released`], likewise.
    ReleasedWhileRead = 14,
    /// The same for the readings between those.
    ReleasedWhileReadToo = 15,
    /// Calls that released many things which nothing told ([`crate::probe::flags::SWEEPS`]).
    Sweeps = 16,
    /// Releases of stacks that found no place for their history.
    LostHistories = 17,
    /// Records that were given another size, in place: neither acquired nor released.
    Resized = 18,
    /// Kernel mode: what a probed function gave out again, though no release of it was seen.
    UnseenReleases = 19,
}

impl Stat {
    /// The counter that counts this, [`Stat::Acquired`] or [`Stat::Released`], in an epoch
    /// ([`crate::cut`]). So what was counted before a cut can be told from what is counted while
    /// the counters are read.
    #[inline(always)]
    pub const fn at(self, epoch: u32) -> u32 {
        let while_read = match self {
            Self::Acquired => Self::AcquiredWhileRead,
            Self::Released => Self::ReleasedWhileRead,
            other => return other as u32,
        };
        if crate::cut::is_reading(epoch) { while_read as u32 + (epoch >> 1 & 1) } else { self as u32 }
    }
}

/// Number of counters.
pub const STATS: u32 = 20;
