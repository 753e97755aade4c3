//! What each thread has acquired of what a stack holds.

use std::borrow::Cow;

use super::model::{Report, StackReport, ThreadCount};

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
