//! `--why`: what came of looking at the targets' heaps.

use std::{collections::HashMap, ops::Range};

use crate::{
    heap::{Examined, TypeAt},
    settings::WhyOf,
};

/// What came of looking at all targets' heaps.
#[derive(Debug, Default)]
pub(super) struct Examinations {
    /// The stacks that blocks were acquired at, by their numbers: address space and id.
    pub stacks: Vec<(u32, u64)>,
    /// The heaps.
    pub heaps: Vec<ExaminedHeap>,
    /// All blocks are known, from the first instruction on.
    pub complete: bool,
    /// What is to be said besides (`--why-of`).
    pub of: Option<WhyOf>,
}

/// What came of looking at one process's heap.
#[derive(Debug)]
pub(super) struct ExaminedHeap {
    /// Its address space.
    pub space: u32,
    pub pid: u32,
    pub examined: Examined,
    /// The type of a block of each stack, as far as it says so.
    pub types: HashMap<u32, TypeAt>,
    /// The types of lost blocks from before the attach, with how many and their bytes.
    pub types_before: HashMap<String, (u64, u64)>,
    /// Where its first thread has its stack.
    pub main_stack: Range<u64>,
    /// Its allocator's memory from before the attach cannot be read.
    pub may_hide: bool,
    /// Tracing began before the program.
    pub from_start: bool,
}

impl ExaminedHeap {
    /// All of its blocks are known, as far as can be told, and all of its memory was read.
    pub(super) fn is_complete(&self) -> bool {
        let is_known = self.examined.before.as_ref().is_none_or(|before| before.count == 0);
        self.from_start && is_known && self.examined.unread_bytes == 0
    }
}
