//! What became of all that a group has acquired: from the histories of its stacks.

use memleak_common::{history::StackHistory, probe::Resource};
use rustc_hash::FxHashMap;

use super::group::Group;
use crate::{
    sampling::Sampling,
    snapshot::{Outstanding, Snapshot},
    verdict::Calls,
};

/// The stacks of groups, by the group's place. One can be there more than once: it may be the same
/// in several processes.
#[derive(Clone, Debug, Default)]
pub(super) struct StacksOfGroups(pub(super) Vec<(usize, u64)>);

impl StacksOfGroups {
    /// Fills [`crate::verdict::History::calls`] of groups that are summed up. A group's calls are
    /// not known if those of one of its stacks are not, nor if processes that ended long ago are
    /// among its own; and not of ranges, which may be released in part.
    pub(super) fn count_calls(
        mut self,
        snapshot: &Snapshot,
        mut young: Young,
        sampling: Sampling,
        groups: &mut [Group],
    ) {
        let Some(histories) = &snapshot.histories else { return };
        self.0.sort_unstable();
        self.0.dedup();
        // Of code at the same addresses in two programs it is not known whose a release was.
        let mut groups_of: FxHashMap<u64, usize> = FxHashMap::default();
        self.0.iter().for_each(|(_, stack_id)| *groups_of.entry(*stack_id).or_default() += 1);
        let mut sums: FxHashMap<usize, Option<Calls>> = FxHashMap::default();
        for (at, stack_id) in self.0 {
            let released = match histories.get(&stack_id) {
                Some(history) => (groups_of.get(&stack_id) == Some(&1)).then(|| calls_of(history)),
                // It has released nothing, unless it found no place.
                None => (snapshot.lost_histories == 0 && stack_id != 0).then(Calls::default),
            };
            let calls = released.map(|released| {
                let (bytes, count) = young.0.remove(&stack_id).unwrap_or_default();
                let acquired = released.released.saturating_add(count);
                let bytes_acquired = released.bytes_released.saturating_add(bytes);
                Calls { acquired, bytes_acquired, ..released }
            });
            let sum = sums.entry(at).or_insert_with(|| Some(Calls::default()));
            match (sum.as_mut(), calls) {
                (Some(sum), Some(calls)) => sum.add(&calls),
                _ => *sum = None,
            }
        }
        for (at, calls) in sums {
            let is_whole =
                |group: &&mut Group| group.key.resource != Resource::Mmap && group.others.processes == 0;
            let Some(group) = groups.get_mut(at).filter(is_whole) else { continue };
            group.history.calls = calls.map(|calls| {
                let calls = calls.map(|number| sampling.whole(number));
                Calls {
                    acquired: calls.acquired.saturating_add(group.count),
                    bytes_acquired: calls.bytes_acquired.saturating_add(group.bytes),
                    ..calls
                }
            });
        }
    }
}

/// Bytes and number of what is too young for a report, by stack, in the unit of the histories.
#[derive(Clone, Debug, Default)]
pub(super) struct Young(FxHashMap<u64, (u64, u64)>);

impl Young {
    pub(super) fn add(&mut self, outstanding: &Outstanding, sampling: Sampling) {
        let (bytes, count) = self.0.entry(outstanding.stack_id).or_default();
        let number = sampling.number_of(outstanding.resource, outstanding.size);
        *bytes = bytes.saturating_add(outstanding.size.saturating_mul(number));
        *count = count.saturating_add(number);
    }

    /// There is nothing like it.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What of a history is about releases.
fn calls_of(history: &StackHistory) -> Calls {
    let mut calls = Calls {
        released: history.count(),
        bytes_released: history.bytes(),
        longest_ms: history.longest_ns().div_ceil(1_000_000),
        ..Calls::default()
    };
    for (to, from) in calls.lifetimes.iter_mut().zip(history.released) {
        *to = from;
    }
    calls
}
