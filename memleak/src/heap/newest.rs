//! Which lost blocks a register may hold that nobody sees ([`HiddenRegisters`]): the newest.

use std::cmp::Reverse;

use rustc_hash::FxHashMap;

use super::{
    graph::Graph,
    hidden::HiddenRegisters,
    mark::{Class, Marked},
};

/// A birth has its thread's number above so many bits, and grows with time below.
const BIRTH_BITS: u32 = 42;

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
    for (number, block) in (0..).zip(graph.blocks().iter()) {
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
    use crate::{
        heap::{Block, kinds::Kinds},
        unwind::RegisterOwner,
    };

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
