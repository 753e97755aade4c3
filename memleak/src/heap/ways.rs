//! What holds blocks: ways to them from the roots.

use rustc_hash::FxHashMap;

use super::{
    Block,
    graph::Graph,
    mark::{Class, Marked, Parent},
    roots::RootKind,
};

/// Blocks on the way from a root that are kept.
const LONGEST_WAY: usize = 64;

/// What holds a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The block.
    pub block: Block,
    /// The root's kind and place.
    pub root: (RootKind, u64),
    /// From the root on: the blocks that lead to it, and where in each the pointer is.
    pub hops: Vec<(Block, u32)>,
}

/// A block that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedBlock {
    /// The block.
    pub block: Block,
    /// What became of it.
    pub class: Class,
    /// What holds it; `None` if nothing does for sure.
    pub way: Option<Way>,
    /// Else another block that points into it, and where in that the pointer is.
    pub pointed_from: Option<(Block, u32)>,
}

/// A way to one block of each stack but `before` that is reached: to the oldest of those that are
/// held best.
pub(super) fn ways(graph: &Graph, marked: &Marked, before: u32) -> Vec<Way> {
    let mut best: FxHashMap<u32, (bool, RootKind, u64, u32)> = FxHashMap::default();
    for (number, block) in (0..).zip(graph.blocks().iter()) {
        if !marked.is_reached(number) || block.stack == before {
            continue;
        }
        let is_doubtful = marked.classes.get(number as usize) != Some(&Class::Reachable);
        let this = (is_doubtful, marked.by(graph, number), block.birth, number);
        best.entry(block.stack).and_modify(|known| *known = (*known).min(this)).or_insert(this);
    }
    let mut ways: Vec<Way> =
        best.into_values().filter_map(|(.., block)| way_to(graph, marked, block)).collect();
    ways.sort_unstable_by_key(|way| way.block.stack);
    ways
}

/// What is to be said of the block at `address`.
pub(super) fn asked(graph: &Graph, marked: &Marked, address: u64, before: u32) -> Option<AskedBlock> {
    let (number, block) = graph.blocks().at(address)?;
    let number = number as u32;
    let from = |source: u32| {
        let from = graph.pointers(source).find(|pointer| pointer.to == number)?.from;
        Some((graph.blocks().get(source as usize)?, from))
    };
    let is_made = |source: &u32| graph.blocks().stack(*source as usize) != Some(before);
    let all = || 0..graph.len() as u32;
    Some(AskedBlock {
        block,
        class: *marked.classes.get(number as usize)?,
        way: way_to(graph, marked, number),
        // One that somebody is known to have made says more.
        pointed_from: all().filter(is_made).find_map(from).or_else(|| all().find_map(from)),
    })
}

fn way_to(graph: &Graph, marked: &Marked, block: u32) -> Option<Way> {
    let of = |block: u32| graph.blocks().get(block as usize);
    let (mut at, mut hops) = (block, Vec::new());
    while hops.len() < LONGEST_WAY {
        match marked.parent(at) {
            Parent::Block(parent) => {
                let from = graph.pointers(parent).find(|pointer| pointer.to == at)?.from;
                hops.push((of(parent)?, from));
                at = parent;
            }
            Parent::Root(root) => {
                hops.reverse();
                let root = graph.roots.get(root as usize)?;
                return Some(Way { block: of(block)?, root: (root.kind, root.place), hops });
            }
            Parent::None => return None,
        }
    }
    None
}
