//! `--why`: what came of looking at the targets' heaps.

use std::{collections::HashMap, ops::Range};

use crate::{
    heap::{Examined, TypeAt},
    report::why::BlockKind,
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
    /// What the blocks from before the attach are.
    pub kinds_before: KindsBefore,
    /// Where its first thread has its stack.
    pub main_stack: Range<u64>,
    /// Its allocator's memory from before the attach cannot be read.
    pub may_hide: bool,
    /// Tracing began before the program.
    pub from_start: bool,
}

/// Blocks from before the attach.
#[derive(Debug, Default)]
pub(super) struct KindsBefore {
    /// Those that are lost.
    pub lost: KindSums,
    /// All that are in use.
    pub all: KindSums,
    /// Of these, each that was looked at stands for so many.
    pub each: u64,
}

/// Numbers and bytes of blocks, by type as far as they say it, and else by size.
#[derive(Debug, Default)]
pub(super) struct KindSums {
    sums: HashMap<(Option<String>, u64), (u64, u64)>,
}

impl KindSums {
    /// So many more blocks of a size each.
    pub(super) fn add(&mut self, name: Option<String>, size: u64, count: u64) {
        let key = if name.is_some() { (name, 0) } else { (None, size) };
        self.put(key, count, size.saturating_mul(count));
    }

    /// So many more blocks of a type, with so many bytes in all.
    pub(super) fn add_type(&mut self, name: String, bytes: u64, count: u64) {
        self.put((Some(name), 0), count, bytes);
    }

    pub(super) fn extend(&mut self, more: &Self) {
        for (key, (count, bytes)) in &more.sums {
            self.put(key.clone(), *count, *bytes);
        }
    }

    fn put(&mut self, key: (Option<String>, u64), count: u64, bytes: u64) {
        let sum = self.sums.entry(key).or_default();
        *sum = (sum.0 + count, sum.1.saturating_add(bytes));
    }

    /// Most bytes first.
    pub(super) fn into_kinds(self) -> Vec<BlockKind> {
        let kind = |((name, size), (count, bytes))| BlockKind { name, size, count, bytes };
        let mut kinds: Vec<BlockKind> = self.sums.into_iter().map(kind).collect();
        kinds.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| (&a.name, a.size).cmp(&(&b.name, b.size))));
        kinds
    }
}

impl ExaminedHeap {
    /// All of its blocks are known, as far as can be told, and all of its memory was read.
    pub(super) fn is_complete(&self) -> bool {
        let is_known = self.examined.before.as_ref().is_none_or(|before| before.count == 0);
        self.from_start && is_known && self.examined.unread_bytes == 0
    }
}
