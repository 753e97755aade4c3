//! What registers may hold that nobody sees: those of threads that are not stopped.
//!
//! A thread that waits has saved most of its callers' registers on its stack. What is left is of
//! few functions ([`RegisterOwner`]), and a block that such a function has had made may be in one
//! of them: the last ones that were made there. Of a thread that runs nothing is known.

use log::debug;

use crate::{
    objects::ObjectStore,
    proc::{maps::Mapping, stacks::Threads},
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
    /// Of the threads of `pid`. What cannot be read is left out.
    pub(super) fn of(pid: u32, threads: &Threads, mappings: &[Mapping], store: &ObjectStore) -> Self {
        let mut owners: Vec<RegisterOwner> = match RegisterOwners::new(pid, mappings, store) {
            Ok(mut finder) => {
                threads.waiting.iter().flat_map(|thread| finder.of(thread.ip, thread.stack_pointer)).collect()
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
            "process {pid}: {} threads run; with registers that are not known: {owners:x?}",
            threads.running
        );
        Self { owners, running: threads.running }
    }

    /// How many blocks they may hold that were acquired at a stack of these return addresses.
    pub(super) fn may_hold(&self, ips: &[u64]) -> u64 {
        let near = ips.get(..NEAREST).unwrap_or(ips);
        let passes = |owner: &&RegisterOwner| near.iter().any(|ip| owner.code.contains(&(ip - 1)));
        let of_waiting: u64 = self.owners.iter().filter(passes).map(|owner| u64::from(owner.registers)).sum();
        of_waiting.saturating_add(self.running.saturating_mul(OF_RUNNING))
    }
}
