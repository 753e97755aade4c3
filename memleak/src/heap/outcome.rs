//! What came of all scans.

use std::time::Duration;

use rustc_hash::FxHashMap;

use super::{
    Block,
    before::Before,
    circles::Circle,
    mark::{Class, Classes},
    objects::HeapObjects,
    ways::{AskedBlock, Way},
};

/// What came of all scans.
#[derive(Debug)]
pub struct Examined {
    /// How many scans there were, if it was not stopped.
    pub scans: u32,
    /// How long it was stopped.
    pub stopped: Duration,
    /// What became of the blocks of the first look, by their stacks.
    pub stacks: FxHashMap<u32, StackBlocks>,
    /// Those that nothing holds for sure, in order of address.
    pub(super) loose: Vec<(u64, Class)>,
    /// Bytes that are in swap, and were not looked at.
    pub unread_bytes: u64,
    /// Blocks in use in glibc's arenas that we have not seen made; `None` if that cannot be
    /// told.
    pub before: Option<Before>,
    /// Circles.
    pub circles: Vec<Circle>,
    /// A way to one block of each stack that has one that is reachable.
    pub ways: Vec<Way>,
    /// The block that was asked for, if there is one at that address.
    pub asked: Option<AskedBlock>,
    /// All of the first look, if that was asked for.
    pub objects: Option<HeapObjects>,
}

impl Examined {
    /// What became of the block of the first look that begins at `address`.
    pub fn class_of(&self, address: u64) -> Class {
        let at = self.loose.binary_search_by_key(&address, |(start, _)| *start);
        at.ok().and_then(|at| self.loose.get(at)).map_or(Class::Reachable, |(_, class)| *class)
    }
}

/// What became of the blocks of one stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackBlocks {
    /// Sums.
    pub classes: Classes,
    /// One that is held least, and one that is held best.
    pub worst: (Class, Block),
    /// See above.
    pub best: (Class, Block),
}

impl StackBlocks {
    /// One more of a stack.
    pub(super) fn add(all: &mut FxHashMap<u32, Self>, class: Class, block: Block) {
        let new = || Self { classes: Classes::default(), worst: (class, block), best: (class, block) };
        let of_stack = all.entry(block.stack).or_insert_with(new);
        of_stack.classes.add(class, block.size);
        if (class, block.start) < (of_stack.worst.0, of_stack.worst.1.start) {
            of_stack.worst = (class, block);
        }
        if class > of_stack.best.0 {
            of_stack.best = (class, block);
        }
    }
}
