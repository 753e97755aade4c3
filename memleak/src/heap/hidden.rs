//! What registers may hold that nobody sees: those of threads that are not stopped.
//!
//! A thread that waits has saved most of its callers' registers on its stack. What is left is of few
//! functions ([`RegisterOwner`]), and a block that such a function has had made may be in one of
//! them: the last ones that were made there. Of a thread that runs nothing is known.

use std::cmp::Reverse;

use log::debug;
use rustc_hash::FxHashMap;

use super::{
    graph::Graph,
    mark::{Class, Marked},
};
use crate::{
    objects::ObjectStore,
    proc::{maps::Mapping, stacks::Threads},
    unwind::{RegisterOwner, RegisterOwners},
};

/// General registers of a thread that runs, each of which may hold a block.
const OF_RUNNING: u64 = 16;
/// Calls from the one that allocates on, of which the functions may keep the block: its own, and of
/// those that wrap it. A block's address gets no farther without being written to memory, as a rule,
/// and `main` is on all stacks.
const NEAREST: usize = 3;
/// A birth has its thread's number above so many bits, and grows with time below.
const BIRTH_BITS: u32 = 42;

/// What one look could not see.
#[derive(Clone, Debug, Default)]
pub(super) struct HiddenRegisters {
    /// In order of their code, each once.
    owners: Vec<RegisterOwner>,
    /// Threads that ran.
    running: u64,
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
    fn may_hold(&self, ips: &[u64]) -> u64 {
        let near = ips.get(..NEAREST).unwrap_or(ips);
        let passes = |owner: &&RegisterOwner| near.iter().any(|ip| owner.code.contains(&(ip - 1)));
        let of_waiting: u64 = self.owners.iter().filter(passes).map(|owner| u64::from(owner.registers)).sum();
        of_waiting.saturating_add(self.running.saturating_mul(OF_RUNNING))
    }
}

/// A block's birth, and its number.
type NewestFirst = (Reverse<u64>, u32);

/// Lost blocks that a register may have held at every look: of each stack the newest, and at most
/// as many as there are registers. `ips_of` knows the stacks' return addresses.
pub(super) fn maybe_held(
    graph: &Graph,
    marked: &Marked,
    looks: &[HiddenRegisters],
    ips_of: &dyn Fn(u32) -> Vec<u64>,
) -> Vec<u32> {
    // The newest are known by thread.
    let mut lost: FxHashMap<(u32, u64), Vec<NewestFirst>> = FxHashMap::default();
    for (number, block) in (0..).zip(graph.blocks()) {
        if marked.classes.get(number as usize) == Some(&Class::Definitely) {
            let key = (block.stack, block.birth >> BIRTH_BITS);
            lost.entry(key).or_default().push((Reverse(block.birth), number));
        }
    }
    let mut of_stacks: FxHashMap<u32, u64> = FxHashMap::default();
    let mut held = Vec::new();
    for ((stack, _), mut blocks) in lost {
        let most = *of_stacks.entry(stack).or_insert_with(|| {
            let ips: Vec<u64> = ips_of(stack).into_iter().filter(|ip| *ip > 0).collect();
            looks.iter().map(|look| look.may_hold(&ips)).min().unwrap_or(0)
        });
        blocks.sort_unstable();
        held.extend(blocks.into_iter().take(most as usize).map(|(_, number)| number));
    }
    held
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::{Block, kinds::Kinds};

    #[test]
    fn the_newest_of_a_function_that_waits_may_be_held() {
        let block =
            |number: u64, stack, birth| Block { start: 0x1000 + number * 0x100, size: 64, birth, stack };
        let other_thread = 9 << BIRTH_BITS;
        let blocks = vec![
            block(0, 1, 10),
            block(1, 1, 30),
            block(2, 1, 20),
            block(3, 1, other_thread),
            block(4, 2, 50),
            block(5, 1, 40), // held
        ];
        let root = crate::heap::graph::RootPointer {
            kind: crate::heap::RootKind::Global,
            place: 0,
            to: 5,
            offset: 0,
        };
        let graph = Graph::of(blocks, &[], vec![root]);
        let marked = Marked::follow(&graph, &Kinds::of(&graph), None);
        let owner = |code, registers| RegisterOwner { code, registers };
        let look = |owners, running| HiddenRegisters { owners, running };
        let ips = |stack: u32| match stack {
            1 => vec![0x500, 0x120],
            _ => vec![0x500, 0x100, 0x501, 0x120],
        };
        let held = |looks: &[HiddenRegisters]| {
            let mut held = maybe_held(&graph, &marked, looks, &ips);
            held.sort_unstable();
            held
        };
        // 0x100 is where a call ends that is the last of the function before; 0x120 is too far away
        // for the other stack.
        let waits = || look(vec![owner(0x100..0x200, 2)], 0);
        assert_eq!(held(&[waits()]), [1, 2, 3]);
        assert_eq!(held(&[waits(), look(vec![owner(0x100..0x180, 1)], 0)]), [1, 3]);
        assert_eq!(held(&[waits(), look(vec![owner(0x600..0x700, 9)], 0)]), [0; 0], "elsewhere at one look");
        assert_eq!(held(&[look(Vec::new(), 1)]), [0, 1, 2, 3, 4]);
    }
}
