//! HeapBlocks that hold each other in a circle, and what hangs off them.
//!
//! A circle is a strongly connected component of two blocks or more among those that nothing holds
//! for sure, or one that points to its own start. Circles of one shape (the same stacks, linked at
//! the same places) are one to the reader.

use std::collections::BTreeSet;

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    Block,
    components::components,
    graph::Graph,
    kinds::Kinds,
    mark::{Class, Marked},
    roots::RootKind,
    sample::{CircleLink, MOST_BLOCKS, MOST_LINKS, Sample},
};

/// Places in blocks of one stack that pointers to those of one other have, at most, unless they are
/// an array's: a tree's node has three.
const MOST_PLACES: usize = 3;

/// Circles of one shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Circle {
    /// Blocks in the largest of them.
    pub length: u64,
    /// How many there are.
    pub count: u64,
    /// So many of them something alive points into, still.
    pub pointed_at: u64,
    /// Where from, of the first of these.
    pub pointed_from: Option<(RootKind, u64)>,
    /// Bytes of their blocks.
    pub bytes: u64,
    /// With the bytes of what they alone hold.
    pub retained_bytes: u64,
    /// Which block holds which.
    pub sides: Vec<Side>,
    /// What they hold.
    pub hanging: Vec<Hanging>,
    /// A small one of them.
    pub sample: Sample,
}

impl Circle {
    /// [`Self::sample`] by its shape alone: a block for each stack, and no heads.
    pub fn shape(&self) -> Sample {
        let mut stacks: Vec<u32> = self.sides.iter().flat_map(|side| [side.stack, side.to]).collect();
        stacks.sort_unstable();
        stacks.dedup();
        let place = |stack: u32| stacks.partition_point(|it| *it < stack) as u32;
        let link = |side: &Side| {
            let (from, to) = (place(side.stack), place(side.to));
            CircleLink { from, offset: side.offset, to, is_start: true }
        };
        let links = self.sides.iter().map(link).collect();
        let block = |stack: &u32| Block { start: 0, size: 0, birth: 0, stack: *stack };
        Sample { blocks: stacks.iter().map(block).collect(), heads: Vec::new(), links }
    }
}

/// A block of a circle holds the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Side {
    /// Where the one was acquired.
    pub stack: u32,
    /// Where in it the pointer is, bytes.
    pub offset: u32,
    /// Where the other was acquired.
    pub to: u32,
    /// There are such at many other places: it is an array, and this is the first.
    pub is_array: bool,
}

/// Blocks of one stack that hang off circles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hanging {
    /// Where they were acquired.
    pub stack: u32,
    /// How many.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The blocks that nothing holds for sure, numbered.
struct Loose<'a> {
    graph: &'a Graph,
    marked: &'a Marked,
    blocks: Vec<u32>,
    numbers: FxHashMap<u32, u32>,
    /// Places of pointers to itself, of those that have such.
    selves: FxHashMap<u32, Vec<u32>>,
}

impl<'a> Loose<'a> {
    fn new(graph: &'a Graph, marked: &'a Marked) -> Self {
        let is_loose = |block: &u32| {
            marked.classes.get(*block as usize) != Some(&Class::Reachable)
                || marked.by(graph, *block).is_doubtful()
        };
        let blocks: Vec<u32> = (0..graph.len() as u32).filter(is_loose).collect();
        let numbers: FxHashMap<u32, u32> =
            blocks.iter().enumerate().map(|(number, block)| (*block, number as u32)).collect();
        let mut selves: FxHashMap<u32, Vec<u32>> = FxHashMap::default();
        for (block, from) in &graph.selves {
            if let Some(number) = numbers.get(block) {
                selves.entry(*number).or_default().push(*from);
            }
        }
        Self { graph, marked, blocks, numbers, selves }
    }

    fn block(&self, node: u32) -> u32 {
        self.blocks.get(node as usize).copied().unwrap_or(0)
    }

    fn edges(&self, node: u32) -> impl Iterator<Item = u32> {
        self.graph.pointers(self.block(node)).filter_map(|pointer| self.numbers.get(&pointer.to).copied())
    }

    fn is_lost(&self, node: u32) -> bool {
        let class = self.marked.classes.get(self.block(node) as usize);
        matches!(class, Some(Class::Definitely | Class::Indirectly))
    }

    fn size(&self, node: u32) -> u64 {
        self.graph.blocks().get(self.block(node) as usize).map_or(0, |block| block.size)
    }

    fn stack(&self, node: u32) -> u32 {
        self.graph.blocks().get(self.block(node) as usize).map_or(0, |block| block.stack)
    }

    /// The root from which it was reached first, if it was.
    fn root(&self, node: u32) -> Option<(RootKind, u64)> {
        self.marked.root(self.graph, self.block(node))
    }

    /// The shape of a circle: what holds what. A pointer into the middle of a block is left out if
    /// one to its start comes with it, as `std::shared_ptr` has both.
    fn sides(&self, kinds: &Kinds, members: &[u32], component: &[u32]) -> Vec<Side> {
        if let [alone] = members {
            let stack = self.stack(*alone);
            let side = |offset: &u32| Side { stack, offset: *offset, to: stack, is_array: false };
            return self.selves.get(alone).into_iter().flatten().map(side).collect();
        }
        let of = |node: u32| component.get(node as usize);
        let own = members.first().and_then(|first| of(*first));
        let mut sides: Vec<(Side, u32)> = Vec::new();
        for member in members {
            let stack = self.stack(*member);
            for pointer in self.graph.pointers(self.block(*member)) {
                let Some(to) = self.numbers.get(&pointer.to).filter(|to| of(**to) == own) else { continue };
                // How good it is: to the start, as good as that, or another one.
                let good = match pointer.offset {
                    0 => 0,
                    offset if kinds.is_start(self.graph, pointer.to, offset) => 1,
                    _ => 2,
                };
                let (offset, to) = (pointer.from, self.stack(*to));
                sides.push((Side { stack, offset, to, is_array: false }, good));
            }
        }
        let mut best: FxHashMap<(u32, u32), u32> = FxHashMap::default();
        for (side, good) in &sides {
            let known = best.entry((side.stack, side.to)).or_insert(*good);
            *known = (*known).min(*good);
        }
        sides.retain(|(side, good)| best.get(&(side.stack, side.to)) == Some(good));
        sides.into_iter().map(|(side, _)| side).collect()
    }

    /// A circle's blocks and the pointers between them.
    fn sample(&self, members: &[u32]) -> Sample {
        let mut sample = Sample::default();
        if members.len() > MOST_BLOCKS {
            return sample;
        }
        let places: FxHashMap<u32, u32> = (0..).zip(members).map(|(place, node)| (*node, place)).collect();
        for (from, member) in (0..).zip(members) {
            sample.blocks.extend(self.graph.blocks().get(self.block(*member) as usize));
            let own = self.selves.get(member).filter(|_| members.len() == 1).into_iter().flatten();
            sample.links.extend(own.map(|offset| CircleLink {
                from,
                offset: *offset,
                to: from,
                is_start: true,
            }));
            for pointer in self.graph.pointers(self.block(*member)) {
                let to = self.numbers.get(&pointer.to).and_then(|node| places.get(node));
                let is_start = pointer.offset == 0;
                sample.links.extend(to.map(|to| CircleLink {
                    from,
                    offset: pointer.from,
                    to: *to,
                    is_start,
                }));
            }
        }
        if sample.links.len() > MOST_LINKS { Sample::default() } else { sample }
    }
}

/// The shapes of circles, by their numbers: an array's places are one, however many of them are in
/// use, or each circle would have a shape of its own.
pub fn shapes(sides: Vec<(u32, Vec<Side>)>) -> FxHashMap<Vec<Side>, Vec<u32>> {
    let arrays: FxHashSet<(u32, u32)> = sides
        .iter()
        .flat_map(|(_, sides)| sides)
        .filter(|side| side.is_array)
        .map(|side| (side.stack, side.to))
        .collect();
    let mut places: FxHashMap<(u32, u32), BTreeSet<u32>> = FxHashMap::default();
    for side in sides.iter().flat_map(|(_, sides)| sides) {
        let places = places.entry((side.stack, side.to)).or_default();
        // The least are kept, so that the first is among them.
        places.insert(side.offset);
        if places.len() > MOST_PLACES + 1 {
            places.pop_last();
        }
    }
    let simple = |side: Side| match places.get(&(side.stack, side.to)) {
        Some(places) if places.len() > MOST_PLACES || arrays.contains(&(side.stack, side.to)) => {
            let offset = places.first().copied().unwrap_or(side.offset);
            Side { offset, is_array: true, ..side }
        }
        _ => side,
    };
    let mut shapes: FxHashMap<Vec<Side>, Vec<u32>> = FxHashMap::default();
    for (number, sides) in sides {
        let mut sides: Vec<Side> = sides.into_iter().map(simple).collect();
        sides.sort_unstable();
        sides.dedup();
        shapes.entry(in_a_round(sides)).or_default().push(number);
    }
    shapes
}

/// Sides one after the other, each beginning where the one before leads, as far as that goes.
fn in_a_round(mut sides: Vec<Side>) -> Vec<Side> {
    for at in 1..sides.len() {
        let before = sides[at - 1].to;
        if let Some(next) = sides.iter().skip(at).position(|side| side.stack == before) {
            sides[at..=at + next].rotate_right(1);
        }
    }
    sides
}

/// What circles have in common, and their numbers.
type CircleShape = (Vec<Side>, Vec<u32>);

/// All circles of which at least one is lost, those that hold most first.
pub(super) fn find(graph: &Graph, kinds: &Kinds, marked: &Marked) -> Vec<Circle> {
    let loose = Loose::new(graph, marked);
    let component = components(loose.blocks.len(), |node| loose.edges(node));
    let mut members: FxHashMap<u32, Vec<u32>> = FxHashMap::default();
    for (node, number) in component.iter().enumerate() {
        members.entry(*number).or_default().push(node as u32);
    }
    let is_own = |nodes: &[u32]| matches!(nodes, [alone] if loose.selves.contains_key(alone));
    members.retain(|_, nodes| nodes.len() > 1 || is_own(nodes));
    let shapes_of = |is_wanted: &dyn Fn(&[u32]) -> bool| {
        let wanted = members.iter().filter(|(_, nodes)| is_wanted(nodes));
        shapes(wanted.map(|(number, nodes)| (*number, loose.sides(kinds, nodes, &component))).collect())
    };
    let (several, own) = (shapes_of(&|nodes| nodes.len() > 1), shapes_of(&is_own));
    let is_lost =
        |number: &u32| members.get(number).is_some_and(|nodes| nodes.iter().all(|node| loose.is_lost(*node)));
    // What leads to others has the higher number, and goes first. Last come blocks that point to
    // themselves: it is not known yet whether they own themselves, and they take nothing from
    // others.
    let mut order: Vec<((bool, Option<u32>), CircleShape)> = Vec::new();
    for (is_first, shapes) in [(true, several), (false, own)] {
        let shapes = shapes.into_iter().filter(|(_, numbers)| numbers.iter().any(is_lost));
        order.extend(shapes.map(|shape| ((is_first, shape.1.iter().copied().max()), shape)));
    }
    order.sort_unstable_by(|a, b| b.cmp(a));
    let mut taken = vec![false; loose.blocks.len()];
    let mut circles: Vec<Circle> = order
        .into_iter()
        .map(|(_, (sides, numbers))| {
            let mut nodes: Vec<&[u32]> =
                numbers.iter().filter_map(|number| members.get(number)).map(Vec::as_slice).collect();
            nodes.sort_unstable();
            describe(&loose, sides, &nodes, &mut taken)
        })
        .collect();
    circles.sort_by(|a, b| b.retained_bytes.cmp(&a.retained_bytes).then_with(|| a.sides.cmp(&b.sides)));
    circles
}

/// Counts the circles of one shape and what hangs off them and was not `taken` by others.
fn describe(loose: &Loose<'_>, sides: Vec<Side>, circles: &[&[u32]], taken: &mut [bool]) -> Circle {
    let pointed: Vec<&&[u32]> =
        circles.iter().filter(|nodes| !nodes.iter().all(|node| loose.is_lost(*node))).collect();
    let mut circle = Circle {
        length: circles.iter().map(|nodes| nodes.len() as u64).max().unwrap_or(0),
        count: circles.len() as u64,
        pointed_at: pointed.len() as u64,
        pointed_from: pointed.first().and_then(|nodes| nodes.iter().find_map(|node| loose.root(*node))),
        bytes: circles.iter().flat_map(|nodes| nodes.iter()).map(|node| loose.size(*node)).sum(),
        retained_bytes: 0,
        sides,
        hanging: Vec::new(),
        sample: circles.iter().min_by_key(|nodes| nodes.len()).map(|it| loose.sample(it)).unwrap_or_default(),
    };
    let mut queue: Vec<u32> = circles.iter().flat_map(|nodes| nodes.iter().copied()).collect();
    queue.iter().for_each(|node| set(taken, *node));
    circle.retained_bytes = circle.bytes;
    let mut hanging: FxHashMap<u32, Hanging> = FxHashMap::default();
    while let Some(node) = queue.pop() {
        for to in loose.edges(node) {
            if taken.get(to as usize) == Some(&false) {
                set(taken, to);
                queue.push(to);
                let (stack, size) = (loose.stack(to), loose.size(to));
                let sum = hanging.entry(stack).or_insert(Hanging { stack, count: 0, bytes: 0 });
                sum.count += 1;
                sum.bytes = sum.bytes.saturating_add(size);
                circle.retained_bytes = circle.retained_bytes.saturating_add(size);
            }
        }
    }
    circle.hanging = hanging.into_values().collect();
    circle.hanging.sort_unstable_by_key(|it| (std::cmp::Reverse(it.bytes), it.stack));
    circle
}

fn set(taken: &mut [bool], node: u32) {
    if let Some(entry) = taken.get_mut(node as usize) {
        *entry = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::graph::RootPointer;

    /// Blocks of 100 bytes, one for each of these stacks.
    fn graph(stacks: &[u32], pointers: &[(u32, u32, u32, u32)], roots: Vec<RootPointer>) -> Graph {
        let block = |(number, stack): (usize, &u32)| Block {
            start: 0x1000 + number as u64 * 0x100,
            size: 100,
            birth: 0,
            stack: *stack,
        };
        Graph::of(stacks.iter().enumerate().map(block).collect(), pointers, roots)
    }

    fn side(stack: u32, offset: u32, to: u32) -> Side {
        Side { stack, offset, to, is_array: false }
    }

    fn circles(graph: &Graph) -> Vec<Circle> {
        let kinds = Kinds::of(graph);
        let mut marked = Marked::follow(graph, &kinds, None);
        marked.split_lost(graph);
        find(graph, &kinds, &marked)
    }

    #[test]
    fn circles_of_one_shape_are_one() {
        // Three pairs of stacks 1 and 2, with two blocks of stack 3 each; the last is pointed at.
        let stacks = [1, 2, 3, 3, 1, 2, 3, 3, 1, 2, 3, 3];
        let mut pointers = Vec::new();
        for first in [0, 4, 8] {
            // Both pointers of a std::shared_ptr, and what the first one holds.
            pointers.extend([
                (first, 0x48, first + 1, 16),
                (first, 0x50, first + 1, 0),
                (first, 0x58, first + 2, 0),
            ]);
            pointers.extend([
                (first + 1, 0x10, first, 16),
                (first + 1, 0x18, first, 0),
                (first + 2, 0, first + 3, 0),
            ]);
        }
        let root = RootPointer { kind: RootKind::Stack, place: 0x7ff0, to: 8, offset: 16 };
        let found = circles(&graph(&stacks, &pointers, vec![root]));
        let sample = found.first().map(|circle| circle.sample.clone()).unwrap_or_default();
        let links: Vec<_> = sample.links.iter().map(|it| (it.from, it.offset, it.to, it.is_start)).collect();
        assert_eq!(links, [(0, 0x48, 1, false), (0, 0x50, 1, true), (1, 0x10, 0, false), (1, 0x18, 0, true)]);
        let expected = Circle {
            length: 2,
            count: 3,
            pointed_at: 1,
            pointed_from: Some((RootKind::Stack, 0x7ff0)),
            bytes: 600,
            retained_bytes: 1200,
            sides: vec![side(1, 0x50, 2), side(2, 0x18, 1)],
            hanging: vec![Hanging { stack: 3, count: 6, bytes: 600 }],
            sample,
        };
        assert_eq!(found, [expected]);
    }

    #[test]
    fn an_array_has_one_shape_however_full_it_is() {
        // Owners (stack 1) of arrays (2) of items (3), which point back: at one, two and three of
        // the array's places, and never the same.
        let stacks = [1, 2, 3, 1, 2, 3, 3, 1, 2, 3, 3, 3];
        let mut pointers = Vec::new();
        for (owner, items, first) in [(0, 1, 0x40), (3, 2, 0x8), (7, 3, 0x18)] {
            pointers.push((owner, 0x10, owner + 1, 0));
            for item in 0..items {
                pointers.push((owner + 1, first + 0x10 * item, owner + 2 + item, 0));
                pointers.push((owner + 2 + item, 0x20, owner, 0));
            }
        }
        pointers.sort_unstable(); // by block
        let found = circles(&graph(&stacks, &pointers, Vec::new()));
        let [circle] = &found[..] else { panic!("{found:?}") };
        assert_eq!((circle.count, circle.length, circle.bytes), (3, 5, 1200));
        let array = Side { is_array: true, ..side(2, 0x8, 3) };
        assert_eq!(circle.sides, [side(1, 0x10, 2), array, side(3, 0x20, 1)]);
    }

    #[test]
    fn what_is_in_use_is_no_circle() {
        let root = |kind| RootPointer { kind, place: 0, to: 0, offset: 0 };
        let pointers = [(0, 0, 1, 0), (1, 0, 0, 0)];
        for kind in [RootKind::Global, RootKind::Stack] {
            assert_eq!(circles(&graph(&[1, 2], &pointers, vec![root(kind)])), []);
        }
        assert_eq!(circles(&graph(&[1, 2], &pointers[..1], Vec::new())), [], "a chain");
        assert_eq!(circles(&graph(&[1, 2], &pointers, Vec::new())).len(), 1);
    }

    #[test]
    fn one_that_points_to_its_start_is_a_circle_by_itself() {
        let mut all = graph(&[1, 2, 3], &[(0, 0, 1, 0), (1, 0, 0, 0), (1, 8, 2, 0)], Vec::new());
        all.selves = vec![(1, 16), (2, 24)];
        let found = circles(&all);
        let told = |it: &Circle| (it.length, it.sides.clone(), it.bytes, it.retained_bytes);
        let of_two = (2, vec![side(1, 0, 2), side(2, 0, 1)], 200, 300);
        assert_eq!(found.iter().map(told).collect::<Vec<_>>(), [of_two, (1, vec![side(3, 24, 3)], 100, 100)]);
        assert_eq!(found[1].sample.links.len(), 1);
        let shape = found[0].shape();
        assert_eq!(shape.links.iter().map(|it| (it.from, it.to)).collect::<Vec<_>>(), [(0, 1), (1, 0)]);
        // What is left of a graph.
        all.retain(&[2], &[]);
        assert_eq!(all.selves, [(0, 24)]);
    }

    #[test]
    fn sides_follow_on_each_other() {
        let side = |stack, to| side(stack, 0, to);
        assert_eq!(
            in_a_round(vec![side(1, 3), side(2, 1), side(3, 2)]),
            [side(1, 3), side(3, 2), side(2, 1)]
        );
        assert_eq!(in_a_round(vec![side(1, 1), side(1, 1)]).len(), 2);
    }
}
