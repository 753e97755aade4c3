//! Stacks whose allocations are released at once, in numbers (`--temporary`): of most of them
//! nothing is outstanding when a report is made.

use std::{cmp::Reverse, collections::HashMap};

use memleak_common::history::StackHistory;

use super::{SessionError, reporter::Passing, state::Session};
use crate::{
    snapshot::Snapshot,
    verdict::{AT_ONCE_OF_TEN, MANY_AT_ONCE},
};

impl Session {
    /// The top ones, the most often first.
    pub(super) fn temporary(&mut self, snapshot: &Snapshot) -> Result<Vec<Passing>, SessionError> {
        let settings = &self.settings.report;
        let Some(histories) = snapshot.histories.as_ref().filter(|_| settings.temporary) else {
            return Ok(Vec::new());
        };
        let (top, sampling) = (settings.top, settings.sampling);
        let mut passing: Vec<(u64, u64, &StackHistory)> = histories
            .values()
            .map(|history| (history.released[0], history.count(), history))
            .filter(|(at_once, released, _)| {
                sampling.whole(*at_once) >= MANY_AT_ONCE && *at_once >= released / 10 * AT_ONCE_OF_TEN
            })
            .collect();
        passing.sort_unstable_by_key(|(at_once, _, history)| (Reverse(*at_once), history.stack_id));
        let spaces: HashMap<u64, u32> =
            snapshot.outstanding.iter().map(|record| (record.stack_id, record.space)).collect();
        // A stack's address space is known by what it holds; else it is that of the first target.
        let first = self.targets.iter().next().map_or(0, |(number, _)| number);
        let mut stacks = Vec::new();
        for (at_once, released, history) in passing.into_iter().take(top) {
            let Some(stack) = self.tracer.stack(history.stack_id)?.cloned() else { continue };
            let space = spaces.get(&history.stack_id);
            let process = space.and_then(|space| self.targets.process_of(*space)).unwrap_or(first);
            stacks.push(Passing {
                process,
                stack,
                released: sampling.whole(released),
                at_once: sampling.whole(at_once),
                bytes: sampling.whole(history.bytes()),
            });
        }
        Ok(stacks)
    }
}
