//! What became of all that each group has acquired: what the BPF programs have counted by stack
//! ([`StackHistory`]), and what is held still.

use memleak_common::{history::StackHistory, probe::Resource, stack::NO_STACK};
use rustc_hash::{FxHashMap, FxHashSet};

use super::group::{Group, NANOSECONDS_PER_MS};
use crate::{snapshot::Snapshot, verdict::Calls};

/// The stacks of groups: a stack's id, and the group's place.
pub(super) type StacksOfGroups = FxHashSet<(u64, usize)>;

/// Says in each group of heap blocks what was acquired and released there, if that is known.
pub(super) fn fill_in(groups: &mut [Group], stacks: &StacksOfGroups, snapshot: &Snapshot, rate: u64) {
    let held = held_by_stack(snapshot);
    let mut groups_of: FxHashMap<u64, u32> = FxHashMap::default();
    for (stack_id, _) in stacks {
        *groups_of.entry(*stack_id).or_default() += 1;
    }
    let mut sums: FxHashMap<usize, Option<Calls>> = FxHashMap::default();
    for (stack_id, at) in stacks {
        let history = match snapshot.histories.get(stack_id) {
            // Two processes have other code at the same addresses: nobody knows whose it was.
            _ if groups_of.get(stack_id) != Some(&1) => None,
            None if snapshot.lost_histories > 0 => None,
            history => Some(history.copied().unwrap_or_default()),
        };
        let held = held.get(stack_id).copied().unwrap_or_default();
        let more = history.map(|history| calls(&history, held, rate));
        let sum = sums.entry(*at).or_insert_with(|| Some(Calls::default()));
        *sum = sum.zip(more).map(|(mut sum, more)| {
            sum.add(&more);
            sum
        });
    }
    for (at, group) in groups.iter_mut().enumerate() {
        // Of processes that ended long ago it is not known any more.
        let is_counted = group.key.resource == Resource::Heap && !group.has_ended_parts;
        group.history.calls = sums.remove(&at).flatten().filter(|_| is_counted);
    }
}

/// Number and bytes of heap blocks of any age, by stack.
fn held_by_stack(snapshot: &Snapshot) -> FxHashMap<u64, (u64, u64)> {
    let mut held: FxHashMap<u64, (u64, u64)> = FxHashMap::default();
    // Most blocks follow on another one of the same stack.
    let (mut stack_id, mut run) = (NO_STACK, (0, 0));
    let mut flush = |stack_id: u64, (more, size): (u64, u64)| {
        let (count, bytes) = held.entry(stack_id).or_default();
        (*count, *bytes) = (*count + more, bytes.saturating_add(size));
    };
    for block in snapshot.outstanding.iter().filter(|block| block.resource == Resource::Heap) {
        if block.stack_id != stack_id {
            flush(stack_id, run);
            (stack_id, run) = (block.stack_id, (0, 0));
        }
        run = (run.0 + 1, block.size.saturating_add(run.1));
    }
    flush(stack_id, run);
    held
}

fn calls(history: &StackHistory, (held, bytes_held): (u64, u64), rate: u64) -> Calls {
    let scaled = |number: u64| number.saturating_mul(rate);
    let released: u64 = history.released.iter().fold(0, |sum, number| sum.saturating_add(*number));
    let mut calls = Calls {
        acquired: scaled(released.saturating_add(held)),
        released: scaled(released),
        bytes_acquired: scaled(history.bytes.saturating_add(bytes_held)),
        bytes_released: scaled(history.bytes),
        longest_ms: history.longest_ns / NANOSECONDS_PER_MS,
        ..Calls::default()
    };
    // Classes are about milliseconds, as the buckets are.
    for (bucket, number) in calls.lifetimes.iter_mut().zip(history.released) {
        *bucket = scaled(number);
    }
    calls
}
