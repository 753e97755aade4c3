//! Cuts: how a snapshot is of one moment, while the table is read in pieces.
//!
//! A word (map `EPOCH`) is even while nobody reads. To read, user space makes it odd, and this
//! store is the moment of the snapshot: a program that has found the old value has run before it,
//! one that finds the new value after it. While it is odd, records that are older and leave their
//! place in the table are told, through the ring buffer `MOVED`.

use crate::allocation::{Allocation, AllocationKey};

/// User space reads in this epoch.
#[inline(always)]
pub const fn is_reading(epoch: u32) -> bool {
    epoch & 1 != 0
}

/// A record that was there at the cut, and that has left its place since.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Where it was.
    pub key: AllocationKey,
    /// What it was.
    pub allocation: Allocation,
    /// The epoch in which it was told: that of the reading for which it was.
    pub epoch: u64,
}
