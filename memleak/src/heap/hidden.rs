//! What registers may hold that nobody sees: those of threads that are not stopped.
//!
//! Of a thread that has not run from before a look to after it they are known ([`Asleep`]), where
//! the kernel can be asked. Else: a thread that waits has saved most of its callers' registers on
//! its stack. What is left is of few functions ([`RegisterOwner`]), and a block that such a
//! function has had made may be in one of them: the last ones that were made there. Of a thread
//! that runs nothing is known.

use log::debug;

use super::registers::Asleep;
use crate::{
    objects::ObjectStore,
    proc::{
        maps::Mapping,
        stacks::{Threads, WaitingThread},
    },
    unwind::{RegisterOwner, RegisterOwners},
};

/// General registers of a thread that runs, each of which may hold a block.
const OF_RUNNING: u64 = 16;
/// Calls from the one that allocates on, of which the functions may keep the block: its own, and of
/// those that wrap it. A block's address gets no farther without being written to memory, as a
/// rule, and `main` is on all stacks.
const NEAREST: usize = 3;
/// What one look could not see.
#[derive(Clone, Debug, Default)]
pub(super) struct HiddenRegisters {
    /// In order of their code, each once.
    pub(super) owners: Vec<RegisterOwner>,
    /// Threads that ran.
    pub(super) running: u64,
}

impl HiddenRegisters {
    /// Of the threads of `pid`, but for those that were asleep. What cannot be read is left out.
    pub(super) fn of(
        pid: u32,
        threads: &Threads,
        asleep: &Asleep,
        mappings: &[Mapping],
        store: &ObjectStore,
    ) -> Self {
        let is_hidden = |it: &&WaitingThread| !asleep.stack_pointers.contains(&it.stack_pointer);
        let waiting: Vec<&WaitingThread> = threads.waiting.iter().filter(is_hidden).collect();
        let running = match asleep.others {
            Some(others) => others.saturating_sub(waiting.len() as u64),
            None => threads.running,
        };
        let mut owners: Vec<RegisterOwner> = match RegisterOwners::new(pid, mappings, store) {
            Ok(mut finder) => {
                waiting.iter().flat_map(|thread| finder.of(thread.ip, thread.stack_pointer)).collect()
            }
            Err(_) => Vec::new(),
        };
        owners.sort_unstable_by_key(|owner| (owner.code.start, owner.code.end));
        owners.dedup_by(|next, owner| {
            let is_same = next.code == owner.code;
            if is_same {
                owner.registers = owner.registers.saturating_add(next.registers);
            }
            is_same
        });
        debug!(
            "process {pid}: registers of {} threads are known; {running} run; not known: {owners:x?}",
            asleep.stack_pointers.len(),
        );
        Self { owners, running }
    }

    /// How many blocks they may hold that were acquired at a stack of these return addresses.
    pub(super) fn may_hold(&self, ips: &[u64]) -> u64 {
        let near = ips.get(..NEAREST).unwrap_or(ips);
        let passes = |owner: &&RegisterOwner| near.iter().any(|ip| owner.code.contains(&(ip - 1)));
        let of_waiting: u64 = self.owners.iter().filter(passes).map(|owner| u64::from(owner.registers)).sum();
        of_waiting.saturating_add(self.running.saturating_mul(OF_RUNNING))
    }
}
