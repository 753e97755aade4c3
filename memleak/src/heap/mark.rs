//! Follows pointers from the roots: what is reached, from where, and what is not.

use std::collections::VecDeque;

use super::{components::components, graph::Graph, kinds::Kinds, roots::RootKind};

/// What a block is, in the words of valgrind's users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum Class {
    /// Nothing points to it, or nothing but a circle that it is part of.
    Definitely,
    /// Only what is lost points to it.
    Indirectly,
    /// It is pointed into, but not to its start, or it is held by such a block.
    Possibly,
    /// There is a way to it.
    Reachable,
}

impl Class {
    /// The name that JSON has.
    pub fn name(self) -> &'static str {
        match self {
            Self::Definitely => "definitely_lost",
            Self::Indirectly => "indirectly_lost",
            Self::Possibly => "possibly_lost",
            Self::Reachable => "still_reachable",
        }
    }
}

/// Bytes and numbers of blocks by their class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Classes {
    /// Bytes and blocks that are definitely lost.
    pub definitely: (u64, u64),
    /// Indirectly.
    pub indirectly: (u64, u64),
    /// Possibly.
    pub possibly: (u64, u64),
    /// Still reachable.
    pub reachable: (u64, u64),
}

impl Classes {
    /// One block more.
    pub fn add(&mut self, class: Class, bytes: u64) {
        let sum = match class {
            Class::Definitely => &mut self.definitely,
            Class::Indirectly => &mut self.indirectly,
            Class::Possibly => &mut self.possibly,
            Class::Reachable => &mut self.reachable,
        };
        sum.0 = sum.0.saturating_add(bytes);
        sum.1 += 1;
    }

    /// All of others.
    pub fn add_all(&mut self, others: &Self) {
        let add = |sum: &mut (u64, u64), other: (u64, u64)| {
            sum.0 = sum.0.saturating_add(other.0);
            sum.1 += other.1;
        };
        add(&mut self.definitely, others.definitely);
        add(&mut self.indirectly, others.indirectly);
        add(&mut self.possibly, others.possibly);
        add(&mut self.reachable, others.reachable);
    }

    /// What is definitely or indirectly lost.
    pub fn lost(&self) -> (u64, u64) {
        (self.definitely.0.saturating_add(self.indirectly.0), self.definitely.1 + self.indirectly.1)
    }

    /// All blocks.
    pub fn count(&self) -> u64 {
        self.definitely.1 + self.indirectly.1 + self.possibly.1 + self.reachable.1
    }
}

/// From where a block was reached first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parent {
    /// From nowhere.
    None,
    /// This root, by its place in [`Graph::roots`].
    Root(u32),
    /// This block.
    Block(u32),
}

/// What following the pointers of a graph gave.
#[derive(Debug)]
pub(super) struct Marked {
    /// Of each block [`Class::Reachable`], [`Class::Possibly`] or, of all that is lost,
    /// [`Class::Definitely`].
    pub classes: Vec<Class>,
    /// The root that each block that is reached was reached from first, by its place in
    /// [`Graph::roots`].
    roots: Vec<u32>,
    /// The block that it was reached from.
    parents: Vec<u32>,
}

/// No block; and no root.
const NOBODY: u32 = u32::MAX;
/// In [`Marked::roots`]: a block from before the attach, which nothing else holds.
const LOST_BEFORE: u32 = u32::MAX - 1;

impl Marked {
    /// Follows all pointers to starts, root by root in the order of their kinds, breadth first: so
    /// a parent is on a shortest way from the best root. Then all others.
    ///
    /// Blocks of the stack `before` are held for sure: nobody knows how they are used. Last of
    /// all, so that it shows which of them nothing else holds.
    pub(super) fn follow(graph: &Graph, kinds: &Kinds, before: Option<u32>) -> Self {
        let mut marked = Self {
            classes: vec![Class::Definitely; graph.len()],
            roots: vec![NOBODY; graph.len()],
            parents: vec![NOBODY; graph.len()],
        };
        let is_start = |to, offset| kinds.is_start(graph, to, offset);
        marked.follow_as(Class::Reachable, graph, is_start);
        let of_before: Vec<u32> = match before {
            Some(before) => (0..)
                .zip(graph.blocks().iter())
                .filter(|(_, it)| it.stack == before)
                .map(|(at, _)| at)
                .collect(),
            None => Vec::new(),
        };
        let mut queue = VecDeque::new();
        for block in of_before {
            if marked.is_class(block, Class::Definitely) {
                marked.reach(block, Class::Reachable, LOST_BEFORE, NOBODY);
                queue.push_back(block);
                marked.drain(Class::Reachable, graph, &mut queue, &is_start);
            }
        }
        marked.follow_as(Class::Possibly, graph, |_, _| true);
        marked
    }

    fn follow_as(&mut self, class: Class, graph: &Graph, counts: impl Fn(u32, u32) -> bool) {
        let mut queue = VecDeque::new();
        // What was reached by better pointers may have others that lead on.
        if class == Class::Possibly {
            queue.extend((0..graph.len() as u32).filter(|block| self.is_class(*block, Class::Reachable)));
            self.drain(class, graph, &mut queue, &counts);
        }
        for kind in RootKind::ALL {
            let from = graph.roots.partition_point(|root| root.kind < kind);
            let to = graph.roots.partition_point(|root| root.kind <= kind);
            for (number, root) in graph.roots.iter().enumerate().take(to).skip(from) {
                if self.is_class(root.to, Class::Definitely) && counts(root.to, root.offset) {
                    self.reach(root.to, class, number as u32, NOBODY);
                    queue.push_back(root.to);
                }
            }
            self.drain(class, graph, &mut queue, &counts);
        }
    }

    fn drain(
        &mut self,
        class: Class,
        graph: &Graph,
        queue: &mut VecDeque<u32>,
        counts: &impl Fn(u32, u32) -> bool,
    ) {
        while let Some(block) = queue.pop_front() {
            let root = self.roots.get(block as usize).copied().unwrap_or(NOBODY);
            for pointer in graph.pointers(block) {
                if self.is_class(pointer.to, Class::Definitely) && counts(pointer.to, pointer.offset) {
                    self.reach(pointer.to, class, root, block);
                    queue.push_back(pointer.to);
                }
            }
        }
    }

    fn is_class(&self, block: u32, class: Class) -> bool {
        self.classes.get(block as usize) == Some(&class)
    }

    fn reach(&mut self, block: u32, class: Class, root: u32, parent: u32) {
        let at = block as usize;
        if let (Some(of), Some(by), Some(from)) =
            (self.classes.get_mut(at), self.roots.get_mut(at), self.parents.get_mut(at))
        {
            (*of, *by, *from) = (class, root, parent);
        }
    }

    /// The kind of root that a block was reached from first; [`RootKind::FromBefore`] if from none.
    pub(super) fn by(&self, graph: &Graph, block: u32) -> RootKind {
        match self.roots.get(block as usize) {
            Some(&LOST_BEFORE) => RootKind::LostBefore,
            _ => self.root(graph, block).map_or(RootKind::FromBefore, |(kind, _)| kind),
        }
    }

    /// The root that a block was reached from first, directly or not: its kind and place.
    pub(super) fn root(&self, graph: &Graph, block: u32) -> Option<(RootKind, u64)> {
        let root = graph.roots.get(*self.roots.get(block as usize)? as usize)?;
        Some((root.kind, root.place))
    }

    /// Leaves some of the blocks, by their numbers, which are in order, as [`Graph::retain`] does,
    /// and the roots that they were reached from, of which it gives the numbers before. Who was
    /// reached from whom is forgotten.
    pub(super) fn retain(&mut self, kept: &[u32]) -> Vec<u32> {
        self.parents = Vec::new();
        let of = |all: &[u32], block: &u32| all.get(*block as usize).copied().unwrap_or(NOBODY);
        let class = |block: &u32| self.classes.get(*block as usize).copied().unwrap_or(Class::Reachable);
        self.classes = kept.iter().map(class).collect();
        let mut left: Vec<u32> = kept.iter().map(|block| of(&self.roots, block)).collect();
        let mut roots: Vec<u32> = left.iter().copied().filter(|root| *root < LOST_BEFORE).collect();
        roots.sort_unstable();
        roots.dedup();
        for root in left.iter_mut().filter(|root| **root < LOST_BEFORE) {
            *root = roots.binary_search(root).map_or(NOBODY, |at| at as u32);
        }
        self.roots = left;
        roots
    }

    /// Whether it was reached, by whatever pointers.
    pub(super) fn is_reached(&self, block: u32) -> bool {
        self.classes.get(block as usize).is_some_and(|class| *class >= Class::Possibly)
    }

    /// From where a block was reached first.
    pub(super) fn parent(&self, block: u32) -> Parent {
        let of = |all: &[u32]| all.get(block as usize).copied().unwrap_or(NOBODY);
        match (of(&self.parents), of(&self.roots)) {
            (NOBODY, NOBODY | LOST_BEFORE) => Parent::None,
            (NOBODY, root) => Parent::Root(root),
            (block, _) => Parent::Block(block),
        }
    }

    /// Tells what is held by other lost blocks alone from what nothing holds: of blocks that hold
    /// each other in a circle, which nothing else that is lost holds, all are definitely lost.
    pub(super) fn split_lost(&mut self, graph: &Graph) {
        let lost: Vec<u32> =
            (0..graph.len() as u32).filter(|block| self.is_class(*block, Class::Definitely)).collect();
        let places: rustc_hash::FxHashMap<u32, u32> =
            lost.iter().enumerate().map(|(place, block)| (*block, place as u32)).collect();
        let edges = |place: u32| {
            let block = lost.get(place as usize).copied().unwrap_or(0);
            graph.pointers(block).filter_map(|pointer| places.get(&pointer.to).copied())
        };
        let component = components(lost.len(), edges);
        let count = component.iter().map(|number| *number as usize + 1).max().unwrap_or(0);
        let mut is_held = vec![false; count];
        for place in 0..lost.len() as u32 {
            let own = component.get(place as usize);
            for to in edges(place) {
                let other = component.get(to as usize);
                if let Some(held) =
                    other.filter(|_| other != own).and_then(|it| is_held.get_mut(*it as usize))
                {
                    *held = true;
                }
            }
        }
        for (place, block) in lost.iter().enumerate() {
            let held = component.get(place).and_then(|it| is_held.get(*it as usize)) == Some(&true);
            if held && let Some(class) = self.classes.get_mut(*block as usize) {
                *class = Class::Indirectly;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::{Block, graph::RootPointer};

    fn blocks(count: u64) -> Vec<Block> {
        (0..count)
            .map(|number| Block { start: 0x1000 + number * 0x100, size: 64, birth: 0, stack: number as u32 })
            .collect()
    }

    fn root(kind: RootKind, to: u32, offset: u32) -> RootPointer {
        RootPointer { kind, place: 0, to, offset }
    }

    fn marked(count: u64, pointers: &[(u32, u32, u32, u32)], roots: Vec<RootPointer>) -> Marked {
        let graph = Graph::of(blocks(count), pointers, roots);
        let mut marked = Marked::follow(&graph, &Kinds::of(&graph), None);
        marked.split_lost(&graph);
        marked
    }

    #[test]
    fn what_is_from_before_is_held_last() {
        let roots = vec![root(RootKind::Global, 0, 0)];
        let graph = Graph::of(blocks(5), &[(0, 0, 1, 0), (2, 0, 3, 0), (2, 8, 1, 0)], roots);
        // Of the stacks, which are numbered as the blocks are, the third is from before.
        let marked = Marked::follow(&graph, &Kinds::of(&graph), Some(2));
        use Class::{Definitely, Reachable};
        assert_eq!(marked.classes, [Reachable, Reachable, Reachable, Reachable, Definitely]);
        let by = [RootKind::Global, RootKind::Global, RootKind::LostBefore, RootKind::LostBefore];
        assert_eq!([0, 1, 2, 3].map(|block| marked.by(&graph, block)), by);
    }

    #[test]
    fn classes_are_those_of_valgrind_but_for_circles() {
        use Class::{Definitely, Indirectly, Possibly, Reachable};
        let pointers = [
            (0, 0, 1, 0), // reached through the first
            (1, 0, 2, 8), // into the middle
            (2, 0, 3, 0), // held by what is possibly lost
            (4, 0, 5, 0), // a lost one holds the next
            (6, 0, 7, 0), // a circle
            (7, 0, 6, 0),
            (7, 8, 8, 16), // which holds another, by its middle
        ];
        let marked = marked(9, &pointers, vec![root(RootKind::Global, 0, 0)]);
        let expected = [
            Reachable, Reachable, Possibly, Possibly, Definitely, Indirectly, Definitely, Definitely,
            Indirectly,
        ];
        assert_eq!(marked.classes, expected);
        assert_eq!(marked.parent(0), Parent::Root(0));
        assert_eq!([marked.parent(2), marked.parent(4)], [Parent::Block(1), Parent::None]);
    }

    #[test]
    fn the_best_root_goes_first_and_ways_are_short() {
        let roots =
            vec![root(RootKind::Global, 0, 0), root(RootKind::Stack, 2, 0), root(RootKind::Stack, 3, 0)];
        let pointers = [(0, 0, 1, 0), (0, 8, 2, 0), (1, 0, 2, 0)];
        let graph = Graph::of(blocks(4), &pointers, roots);
        let marked = Marked::follow(&graph, &Kinds::of(&graph), None);
        assert_eq!([2, 3].map(|block| marked.by(&graph, block)), [RootKind::Global, RootKind::Stack]);
        assert_eq!(marked.parent(2), Parent::Block(0));
    }

    #[test]
    fn a_root_into_the_middle_is_doubtful() {
        let marked = marked(2, &[(0, 0, 1, 0)], vec![root(RootKind::Global, 0, 24)]);
        assert_eq!(marked.classes, [Class::Possibly, Class::Possibly]);
    }
}
