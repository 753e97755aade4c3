//! What each thread has acquired of what a stack holds.

use std::{borrow::Cow, cmp::Reverse, collections::BTreeMap};

use super::model::{Report, StackReport};
use crate::sampling::Sampling;

/// What one thread has acquired of what a stack holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ThreadCount {
    /// Its process; [`crate::snapshot::KERNEL_PID`] is the kernel.
    pub pid: u32,
    /// The thread; 0 stands for those that are not known.
    pub tid: u32,
    /// Outstanding bytes.
    pub bytes: u64,
    /// Outstanding allocations.
    pub count: u64,
}

impl ThreadCount {
    /// Adds up what belongs to one thread, the largest sum first.
    pub fn sums(parts: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut sums: BTreeMap<(u32, u32), Self> = BTreeMap::new();
        for part in parts {
            let none = Self { bytes: 0, count: 0, ..part };
            let sum = sums.entry((part.pid, part.tid)).or_insert(none);
            sum.bytes = sum.bytes.saturating_add(part.bytes);
            sum.count = sum.count.saturating_add(part.count);
        }
        let mut sums: Vec<Self> = sums.into_values().collect();
        sums.sort_by_key(|thread| Reverse((thread.bytes, thread.count)));
        sums
    }

    /// The numbers of all that there is, given those of what was captured.
    #[must_use]
    pub fn scaled(self, sampling: Sampling) -> Self {
        Self { bytes: sampling.whole(self.bytes), count: sampling.whole(self.count), ..self }
    }
}

impl Report {
    /// What each thread has acquired of a stack; a saved report knows it by single blocks.
    pub fn threads_of<'a>(&self, stack: &'a StackReport) -> Cow<'a, [ThreadCount]> {
        if !stack.threads.is_empty() {
            return Cow::Borrowed(&stack.threads);
        }
        let parts = stack.blocks.iter().map(|block| {
            let count = self.sampling.number_of(stack.resource.resource, block.size);
            let (pid, tid) = (block.pid, block.tid.unwrap_or(0));
            ThreadCount { pid, tid, bytes: block.size.saturating_mul(count), count }
        });
        let sums = ThreadCount::sums(parts).into_iter();
        Cow::Owned(sums.map(|thread| thread.scaled(self.sampling)).collect())
    }
}
