//! All blocks and the pointers between them, for viewers of whole heaps.

use super::{Block, graph::Graph, roots::RootKind};

/// Blocks that are kept at most: no viewer takes more.
const MOST: usize = 1 << 20;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeapObjects {
    /// In order of address.
    pub blocks: Vec<Block>,
    /// Where the pointers of each end.
    ends: Vec<usize>,
    /// Where in its block each is, and the number of the block that it points into.
    pointers: Vec<(u32, u32)>,
    /// Blocks that are pointed into from elsewhere, and from where; each once for a kind.
    pub roots: Vec<(RootKind, u32)>,
}

impl HeapObjects {
    /// All of a graph; `None` if there are too many.
    pub(super) fn of(graph: &Graph) -> Option<Self> {
        if graph.len() > MOST {
            return None;
        }
        let mut objects = Self { blocks: graph.blocks().iter().collect(), ..Self::default() };
        for block in 0..graph.len() as u32 {
            objects.pointers.extend(graph.pointers(block).map(|pointer| (pointer.from, pointer.to)));
            objects.ends.push(objects.pointers.len());
        }
        objects.roots = graph.roots.iter().map(|root| (root.kind, root.to)).collect();
        objects.roots.sort_unstable();
        objects.roots.dedup();
        Some(objects)
    }

    /// The pointers of a block: where in it each is, and the number of the block that it points
    /// into.
    pub fn pointers(&self, block: usize) -> &[(u32, u32)] {
        let from = block.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.ends.get(block).and_then(|end| self.pointers.get(from..*end)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::graph::RootPointer;

    #[test]
    fn all_of_a_graph() {
        let block = |number: u64| Block { start: 0x1000 + number * 0x100, size: 64, birth: 0, stack: 0 };
        let root = |kind, to| RootPointer { kind, place: 0, to, offset: 0 };
        let roots = vec![root(RootKind::Global, 2), root(RootKind::Global, 2), root(RootKind::Stack, 0)];
        let graph =
            Graph::of((0..3).map(block).collect(), &[(0, 8, 1, 0), (0, 16, 2, 8), (2, 0, 0, 0)], roots);
        let objects = HeapObjects::of(&graph).unwrap();
        let pointers = [0, 1, 2, 3].map(|block| objects.pointers(block).to_vec());
        assert_eq!(pointers, [vec![(8, 1), (16, 2)], vec![], vec![(0, 0)], vec![]]);
        assert_eq!(objects.roots, [(RootKind::Global, 2), (RootKind::Stack, 0)]);
        assert_eq!(objects.blocks, [block(0), block(1), block(2)]);
    }
}
