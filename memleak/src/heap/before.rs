//! What was there before tracing began: glibc's blocks that we have not seen made. Where they were
//! acquired is not known, but how many there are, and which of them nothing holds any more.

use rustc_hash::FxHashSet;

use super::{Block, before_kinds::BlockKinds, graph::Graph, mark::Marked, roots::RootKind};

/// Blocks from before the attach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// How many, and their bytes.
    pub count: u64,
    /// Bytes that they have room for.
    pub bytes: u64,
    /// Bytes that are free in the arenas.
    pub free: u64,
    /// Those that nothing holds, or only others of them.
    pub lost: Vec<Block>,
    /// What all of them are, lost or not.
    pub kinds: BlockKinds,
}

impl Before {
    /// Of one scan: blocks of the stack `stack`.
    pub(super) fn of(graph: &Graph, marked: &Marked, stack: u32, free: u64) -> Self {
        let held = |block: u32| marked.by(graph, block) != RootKind::LostBefore;
        // What points into the middle of one may hold it.
        let of_roots = graph.roots.iter().map(|root| root.to);
        let sources = (0..graph.len() as u32).filter(|block| held(*block) && marked.is_reached(*block));
        let of_blocks = sources.flat_map(|block| graph.pointers(block)).map(|pointer| pointer.to);
        let mut doubtful: FxHashSet<u32> = of_roots.chain(of_blocks).filter(|to| !held(*to)).collect();
        let mut queue: Vec<u32> = doubtful.iter().copied().collect();
        while let Some(block) = queue.pop() {
            let next = graph.pointers(block).map(|pointer| pointer.to).filter(|to| !held(*to));
            queue.extend(next.filter(|to| doubtful.insert(*to)));
        }
        let mut before = Self { free, ..Self::default() };
        for (number, block) in (0..).zip(graph.blocks().iter()).filter(|(_, block)| block.stack == stack) {
            before.count += 1;
            before.bytes += block.size;
            if !held(number) && !doubtful.contains(&number) {
                before.lost.push(block);
            }
        }
        before
    }

    /// Another look has seen these as well. Says whether some of what was lost was held there.
    pub(super) fn retain_lost(&mut self, is_lost: impl Fn(&Block) -> bool) -> bool {
        let lost = self.lost.len();
        self.lost.retain(is_lost);
        self.lost.len() < lost
    }

    /// Counts what is there now.
    pub(super) fn count(&mut self, blocks: impl Iterator<Item = Block>, free: u64) {
        (self.count, self.bytes, self.free) = (0, 0, free);
        for block in blocks {
            self.count += 1;
            self.bytes += block.size;
        }
    }

    /// Bytes and number of those that are lost.
    pub fn lost_amount(&self) -> (u64, u64) {
        (self.lost.iter().map(|block| block.size).sum(), self.lost.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::{graph::RootPointer, kinds::Kinds};

    #[test]
    fn what_nothing_holds_is_lost() {
        let block = |number: u64, stack| Block { start: 0x1000 + number * 0x100, size: 64, birth: 0, stack };
        // Held by a global; its middle held; hangs off that; a lost pair; held by a known block
        // that only a lost one holds.
        let blocks =
            vec![block(0, 9), block(1, 9), block(2, 9), block(3, 9), block(4, 9), block(5, 1), block(6, 9)];
        let pointers = [(1, 0, 2, 0), (3, 0, 4, 0), (4, 0, 3, 0), (4, 8, 5, 0), (5, 0, 6, 0)];
        let root = |to, offset| RootPointer { kind: RootKind::Global, place: 0, to, offset };
        let graph = Graph::of(blocks, &pointers, vec![root(0, 0), root(1, 24)]);
        let marked = Marked::follow(&graph, &Kinds::of(&graph), Some(9));
        let mut before = Before::of(&graph, &marked, 9, 100);
        let starts: Vec<u64> = before.lost.iter().map(|block| block.start).collect();
        assert_eq!((before.count, before.bytes, before.free), (6, 384, 100));
        assert_eq!(starts, [0x1300, 0x1400, 0x1600]);
        assert!(before.retain_lost(|it| it.start == 0x1300) && !before.retain_lost(|_| true));
        before.count([block(3, 9), block(4, 9)].into_iter(), 7);
        assert_eq!((before.lost_amount(), before.count, before.bytes, before.free), ((64, 1), 2, 128, 7));
    }
}
