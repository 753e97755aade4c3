//! Which pointers into a block are as good as one to its start.
//!
//! valgrind's four (memcheck/mc_leakcheck.c, `heuristic_reachedness`), the one of
//! `std::make_shared`, and one that needs no knowledge of any library: a place at which nearly all
//! blocks of a stack are pointed to is where their user's part begins, after a header.

use rustc_hash::{FxHashMap, FxHashSet};

use super::{graph::Graph, look::read_places};
use crate::proc::maps::{Backing, Mapping};

/// The farthest place at which a header may end, bytes.
const FARTHEST: u32 = 64;
/// A place is where a stack's blocks begin if this part of them is pointed to there, of so many.
const MOST: (u32, u32) = (9, 10);
const ENOUGH: u32 = 8;
/// Pointers of which the blocks are looked at, of one scan.
const MOST_LOOKED_AT: usize = 1 << 20;

/// Tells which pointers count as one to a block's start.
#[derive(Debug, Default)]
pub(super) struct Kinds {
    /// For each stack a bit for each place after the start.
    of_stacks: Vec<u64>,
    /// Blocks (their addresses) and offsets that were looked at, and are good.
    looked_at: FxHashSet<(u64, u32)>,
}

impl Kinds {
    /// By what all pointers of a process have in common.
    pub(super) fn of(graph: &Graph) -> Self {
        let mut of_blocks = vec![0_u64; graph.len()];
        let mut mark = |to: u32, offset: u32| {
            if let (Some(bit), Some(block)) = (bit(offset), of_blocks.get_mut(to as usize)) {
                *block |= bit;
            }
        };
        graph.targets().for_each(|(to, offset)| mark(to, offset));
        let stacks = graph.blocks().iter().map(|block| block.stack as usize + 1).max().unwrap_or(0);
        let mut counts = vec![(0_u32, [0_u32; FARTHEST as usize]); stacks];
        for (block, bits) in graph.blocks().iter().zip(&of_blocks) {
            let Some((all, places)) = counts.get_mut(block.stack as usize) else { continue };
            *all += 1;
            let mut left = *bits;
            while left != 0 {
                if let Some(count) = places.get_mut(left.trailing_zeros() as usize) {
                    *count += 1;
                }
                left &= left - 1;
            }
        }
        let is_most = |count: u32, all: u32| {
            all >= ENOUGH && u64::from(count) * u64::from(MOST.1) >= u64::from(all) * u64::from(MOST.0)
        };
        let of_stack = |(all, places): &(u32, [u32; FARTHEST as usize])| -> u64 {
            let most = places.iter().enumerate().filter(|(_, count)| is_most(**count, *all));
            most.fold(0, |bits, (place, _)| bits | 1 << place)
        };
        Self { of_stacks: counts.iter().map(of_stack).collect(), looked_at: FxHashSet::default() }
    }

    /// Whether a pointer holds its block as one to its start does.
    pub(super) fn is_start(&self, graph: &Graph, to: u32, offset: u32) -> bool {
        if offset == 0 {
            return true;
        }
        let (Some(stack), Some(start)) =
            (graph.blocks().stack(to as usize), graph.blocks().start(to as usize))
        else {
            return false;
        };
        let of_stack = self.of_stacks.get(stack as usize).copied().unwrap_or(0);
        bit(offset).is_some_and(|bit| of_stack & bit != 0) || self.looked_at.contains(&(start, offset))
    }

    /// Looks at the blocks that `is_asked`, which are pointed into. Gives whether any of these
    /// pointers is as good as one to the start.
    pub(super) fn look(
        &mut self,
        pid: u32,
        mappings: &[Mapping],
        graph: &Graph,
        is_asked: impl Fn(u32) -> bool,
    ) -> bool {
        let mut asked: Vec<(u32, u32)> = graph
            .targets()
            .filter(|(to, offset)| offset % 8 == 0 && is_asked(*to) && !self.is_start(graph, *to, *offset))
            .collect();
        asked.sort_unstable();
        asked.dedup();
        asked.truncate(MOST_LOOKED_AT);
        let places: Vec<u64> = asked
            .iter()
            .flat_map(|(to, offset)| {
                let start = graph.blocks().start(*to as usize).unwrap_or(0);
                [start, start + 8, start + u64::from(*offset)]
            })
            .collect();
        let words = read_places(pid, &places);
        let mut vtables = Vtables { pid, mappings, known: FxHashMap::default() };
        let before = self.looked_at.len();
        for (&(to, offset), words) in asked.iter().zip(words.chunks(3)) {
            let [first, second, there] = words else { continue };
            let Some(block) = graph.blocks().get(to as usize) else { continue };
            // Of an array of nothing the place behind it is another block's or nobody's.
            let Some(first) = *first else { continue };
            if is_good(block.size, offset, [first, second.unwrap_or(0), there.unwrap_or(0)], &mut vtables) {
                self.looked_at.insert((block.start, offset));
            }
        }
        self.looked_at.len() > before
    }
}

/// The bit of a place.
fn bit(offset: u32) -> Option<u64> {
    (1..=FARTHEST).contains(&offset).then(|| 1 << (offset - 1))
}

/// Whether a block of `size` bytes that is pointed to at `offset` is one of the known forms.
/// `words`: its first two, and the one at `offset`.
fn is_good(size: u64, offset: u32, words: [u64; 3], vtables: &mut Vtables<'_>) -> bool {
    let [first, second, there] = words;
    // std::string of the old ABI: length, capacity, references, characters.
    let is_string = offset == 24 && first <= second && second.checked_add(25) == Some(size);
    // sqlite: the number of bytes that follow.
    let is_length = offset == 8 && size > 8 && first == size - 8;
    // `new T[n]` of what has a destructor: n before it.
    let is_array = offset == 8
        && size >= 8
        && match first {
            0 => size == 8,
            count => (size - 8).is_multiple_of(count) && (size - 8) / count > 0,
        };
    if is_string || is_length || is_array {
        return true;
    }
    // Several bases, each with a vtable; or the control block of `std::make_shared`, whose vtable
    // and counters are followed by the object.
    let is_counted = || offset == 16 && second != 0;
    vtables.is_one(first) && (vtables.is_one(there) || is_counted())
}

/// Tells vtables: in data of a file, and the first function is in code.
struct Vtables<'a> {
    pid: u32,
    mappings: &'a [Mapping],
    known: FxHashMap<u64, bool>,
}

impl Vtables<'_> {
    fn is_one(&mut self, address: u64) -> bool {
        if address == 0 || !address.is_multiple_of(8) {
            return false;
        }
        if let Some(known) = self.known.get(&address) {
            return *known;
        }
        let is_one = self.mapping(address).is_some_and(|it| is_of_file(it) && !it.executable) && {
            // A pure virtual function's place may have anything, but none has three of them.
            let functions = read_places(self.pid, &[address, address + 8, address + 16]);
            functions.into_iter().flatten().any(|it| self.mapping(it).is_some_and(|it| it.executable))
        };
        self.known.insert(address, is_one);
        is_one
    }

    fn mapping(&self, address: u64) -> Option<&Mapping> {
        let at = self.mappings.partition_point(|mapping| mapping.end <= address);
        self.mappings.get(at).filter(|mapping| mapping.start <= address)
    }
}

fn is_of_file(mapping: &Mapping) -> bool {
    matches!(mapping.backing, Backing::File { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::Block;

    #[test]
    fn where_most_are_pointed_to_they_begin() {
        let block = |number: u64, stack| Block { start: 0x1000 + number * 0x100, size: 64, birth: 0, stack };
        let mut blocks: Vec<Block> = (0..20).map(|number| block(number, 0)).collect();
        blocks.extend((20..30).map(|number| block(number, 1)));
        // 19 of 20 at 16, two at 8; of the other stack 8 of 10.
        let mut pointers: Vec<(u32, u32, u32, u32)> = vec![(0, 0, 1, 8), (0, 8, 2, 8)];
        pointers.extend((1..20).map(|to| (0, 0, to, 16)));
        pointers.extend((20..28).map(|to| (0, 0, to, 16)));
        let graph = Graph::of(blocks, &pointers, Vec::new());
        let kinds = Kinds::of(&graph);
        assert!(kinds.is_start(&graph, 0, 16) && kinds.is_start(&graph, 5, 0));
        assert!(!kinds.is_start(&graph, 1, 8) && !kinds.is_start(&graph, 20, 16));
        assert!(!kinds.is_start(&graph, 5, 17) && !kinds.is_start(&graph, 5, 80));
    }

    #[test]
    fn forms_of_blocks() {
        let mut none = Vtables { pid: std::process::id(), mappings: &[], known: FxHashMap::default() };
        let mut good = |size, offset, words| is_good(size, offset, words, &mut none);
        assert!(good(31, 24, [5, 6, 0]), "a string of 5 with room for 6");
        assert!(!good(31, 24, [7, 6, 0]) && !good(40, 24, [5, 6, 0]));
        assert!(good(108, 8, [100, 0, 0]), "its length before it");
        assert!(good(8 + 3 * 40, 8, [3, 0, 0]) && !good(8 + 3 * 40, 8, [7, 0, 0]));
        assert!(good(8, 8, [0, 0, 0]), "an array of nothing");
        assert!(!good(64, 16, [1, 1, 1]), "no vtable");
    }
}
