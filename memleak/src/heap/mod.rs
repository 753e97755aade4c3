//! Why is it still there? What of a process's blocks nothing points to any more, what holds the
//! rest, and which blocks hold each other in a circle (`--why`).
//!
//! The process is read from outside while it runs. Three scans or more ([`scan`]) each find all
//! words that point into a block ([`look`], [`index`]) from the roots ([`roots`]) and from blocks,
//! and follow them ([`mark`]). A block is lost if it is in every scan, and is the same block before
//! and after. A pointer that moves while it is read is missed by one scan: there are more of them
//! as long as one of the last three has found what those before have not.

mod before;
mod before_kinds;
mod blocks;
mod circles;
mod components;
mod graph;
mod hidden;
mod index;
mod kinds;
mod look;
mod mark;
mod newest;
mod objects;
mod outcome;
mod owners;
mod pointers;
mod registers;
mod roots;
mod sample;
mod scan;
mod survey;
mod types;
mod ways;

pub use before::Before;
pub use before_kinds::BlockKinds;
pub use blocks::HeapBlocks;
pub use circles::{Circle, Hanging, Side, shapes};
pub use mark::{Class, Classes};
pub use objects::HeapObjects;
pub use outcome::{Examined, StackBlocks};
pub use owners::{Holds, Owned, Owners, judge};
pub use registers::RegisterSource;
pub use roots::RootKind;
pub use sample::{CircleLink, Sample};
pub use scan::examine;
pub use survey::{HeapTarget, Sight};
pub(crate) use types::first_argument;
pub use types::{TypeAt, TypeNames};
pub use ways::{AskedBlock, Way};

/// An outstanding block of one address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// First address.
    pub start: u64,
    /// Bytes asked for.
    pub size: u64,
    /// Tells it from every other block that was at this address.
    pub birth: u64,
    /// Where it was acquired: a number of the caller's, of which there are not many.
    pub stack: u32,
}

impl Block {
    /// The address after the last.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.size)
    }

    /// It is this very block, whatever its size has become.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (self.start, self.birth, self.stack) == (other.start, other.birth, other.stack)
    }
}
