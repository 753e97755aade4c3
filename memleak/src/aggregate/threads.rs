//! What each thread has acquired of what is outstanding.

use memleak_common::probe::Resource;
use rustc_hash::FxHashMap;

use super::{
    group::{Group, GroupKey},
    grouping::Found,
};
use crate::{report::model::ThreadCount, sampling::Sampling};

/// A stack of one thread: its address space, what it has acquired, the stack, the thread.
type StackOfThread = (u32, Resource, u64, u32);

/// Fills [`Group::threads`].
pub(super) fn count_threads(found: Found<'_>, youngest_ns: u64, sampling: Sampling, groups: &mut [Group]) {
    // By stack first, of which there are few for many allocations, then by group.
    let mut by_stack: FxHashMap<StackOfThread, (GroupKey, u64, u64)> = FxHashMap::default();
    for (outstanding, _) in found.old_enough(youngest_ns) {
        let tid = outstanding.thread().unwrap_or(0);
        let stack = (outstanding.space, outstanding.resource, outstanding.stack_id, tid);
        let (_, bytes, count) = by_stack.entry(stack).or_insert_with(|| (found.key_of(outstanding), 0, 0));
        let number = sampling.number_of(outstanding.resource, outstanding.size);
        *bytes = bytes.saturating_add(outstanding.size.saturating_mul(number));
        *count = count.saturating_add(number);
    }
    let mut by_group: FxHashMap<GroupKey, Vec<ThreadCount>> = FxHashMap::default();
    for ((space, _, _, tid), (key, bytes, count)) in by_stack {
        let part = ThreadCount { pid: (found.pid_of)(space), tid, bytes, count };
        by_group.entry(key).or_default().push(part);
    }
    for group in groups {
        let sums = ThreadCount::sums(by_group.remove(&group.key).unwrap_or_default());
        group.threads = sums.into_iter().map(|thread| thread.scaled(sampling)).collect();
    }
}
