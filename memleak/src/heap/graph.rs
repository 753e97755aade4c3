//! All pointers into blocks: those in blocks, and those at roots.

use std::{io, ops::Range};

use super::{
    blocks::HeapBlocks,
    index::{BATCH, BlockIndex},
    look::{ReadCost, read_all},
    pointers::{Pointer, Pointers},
    roots::{RootKind, RootPlaces},
};
use crate::account::chunk_of;

/// A pointer that is in no block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RootPointer {
    /// What it is.
    pub kind: RootKind,
    /// Its address; of a register 0.
    pub place: u64,
    /// The block that it points into, and how far.
    pub to: u32,
    pub offset: u32,
}

/// Where pointers are looked for.
pub(super) struct Sources<'a> {
    pub pid: u32,
    pub is_stopped: bool,
    pub places: &'a RootPlaces,
    /// What is read, in order.
    pub runs: &'a [Range<u64>],
    /// All blocks, if only pointers to some are looked for: what is in others is at a root.
    pub others: Option<&'a HeapBlocks>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Graph {
    blocks: HeapBlocks,
    pointers: Pointers,
    /// In the order of their kinds, then of their places.
    pub roots: Vec<RootPointer>,
    /// If only pointers to some blocks were looked for: places of words that would be pointers to
    /// these without their upper bits, and the blocks' numbers. In order of place.
    pub tagged: Vec<(u64, u32)>,
    /// Places of pointers to a block's start in that block itself, with its number. They do not
    /// hold it, but it may be its own owner.
    pub selves: Vec<(u32, u32)>,
}

/// What one piece of memory holds.
#[derive(Default)]
struct PiecePointers {
    of_blocks: Vec<(u32, Pointer)>,
    roots: Vec<RootPointer>,
    tagged: Vec<(u64, u32)>,
    selves: Vec<(u32, u32)>,
}

/// Places of [`Graph::selves`] at most: heads of lists point to themselves, too.
const MOST_SELVES: usize = 1 << 20;

impl Graph {
    /// Reads the memory for pointers to these blocks; gives also what that came to.
    pub(super) fn read(index: BlockIndex, from: &Sources<'_>) -> io::Result<(Self, ReadCost)> {
        let (mut pointers, mut roots) = (Pointers::new(index.blocks().len()), Vec::new());
        let (mut tagged, mut selves) = (Vec::new(), Vec::new());
        let find = |start: u64, words: &[u64]| PiecePointers {
            tagged: from.others.map(|_| tagged_in(&index, start, words)).unwrap_or_default(),
            ..pointers_in(&index, from, start, words)
        };
        let cost = read_all(from.pid, from.is_stopped, from.runs, find, |piece: PiecePointers| {
            piece.of_blocks.into_iter().for_each(|(block, pointer)| pointers.add(block, pointer));
            roots.extend(piece.roots);
            tagged.extend(piece.tagged);
            let room = MOST_SELVES - selves.len();
            selves.extend(piece.selves.into_iter().take(room));
        })?;
        for (word, kind) in &from.places.words {
            if let Some((to, offset)) = index.find(*word) {
                roots.push(RootPointer { kind: *kind, place: 0, to, offset: narrow(offset) });
            }
        }
        roots.sort_by_key(|root| root.kind);
        let blocks = index.into_blocks();
        Ok((Self { pointers: pointers.end(blocks.len()), blocks, roots, tagged, selves }, cost))
    }

    /// Leaves out what is no pointer to a block, though it points into its last 8 bytes: there
    /// begins the header of the chunk after it, to which glibc's lists of free chunks lead. They
    /// are in its own variables, in one of `places`.
    pub(super) fn leave_out_chunks(&mut self, places: &[Range<u64>]) {
        let blocks = &self.blocks;
        self.roots.retain(|root| {
            let is_its_own =
                root.kind == RootKind::Global && places.iter().any(|it| it.contains(&root.place));
            let size = blocks.get(root.to as usize).map_or(0, |block| block.size);
            !is_its_own || root.offset == 0 || u64::from(root.offset) != next_header(size)
        });
    }

    /// Of pointers that a test names, in order of their blocks: block, place in it, target, offset.
    #[cfg(test)]
    pub(super) fn of(
        blocks: Vec<super::Block>,
        pointers: &[(u32, u32, u32, u32)],
        roots: Vec<RootPointer>,
    ) -> Self {
        let blocks = BlockIndex::new(blocks.into_iter().collect()).into_blocks();
        let mut packed = Pointers::new(blocks.len());
        for &(block, from, to, offset) in pointers {
            packed.add(block, Pointer { from, to, offset });
        }
        let (tagged, selves) = (Vec::new(), Vec::new());
        Self { pointers: packed.end(blocks.len()), blocks, roots, tagged, selves }
    }

    /// Leaves some of the blocks and of the roots, by their numbers, which are in order, and the
    /// pointers between these blocks. They have other numbers then.
    pub(super) fn retain(&mut self, kept: &[u32], roots: &[u32]) {
        const GONE: u32 = u32::MAX;
        let mut numbers = vec![GONE; self.blocks.len()];
        for (new, old) in (0..).zip(kept) {
            if let Some(number) = numbers.get_mut(*old as usize) {
                *number = new;
            }
        }
        let new_number = |block: u32| numbers.get(block as usize).copied().filter(|number| *number != GONE);
        self.pointers.retain(self.blocks.len(), new_number);
        self.blocks.retain(|number| new_number(number).is_some());
        let selves = self.selves.iter().filter_map(|(block, from)| Some((new_number(*block)?, *from)));
        self.selves = selves.collect();
        let kept_roots = roots.iter().filter_map(|root| self.roots.get(*root as usize));
        // One that leads to what is left by way of others points to no block that is left.
        let renumbered =
            kept_roots.map(|root| RootPointer { to: new_number(root.to).unwrap_or(GONE), ..*root });
        self.roots = renumbered.collect();
    }

    /// The blocks.
    pub(super) fn blocks(&self) -> &HeapBlocks {
        &self.blocks
    }

    /// How many blocks there are.
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// The pointers in a block, in order.
    pub(super) fn pointers(&self, block: u32) -> impl Iterator<Item = Pointer> + '_ {
        self.pointers.of(block)
    }

    /// How many pointers there are in blocks.
    pub(super) fn count_pointers(&self) -> usize {
        self.pointers.len()
    }

    /// What all pointers point to, and how far into it: those in blocks, then the roots.
    pub(super) fn targets(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.pointers.targets().chain(self.roots.iter().map(|root| (root.to, root.offset)))
    }
}

/// The pointers among these words. Of a block all words count that it has whole: what follows its
/// end may be left over from another. A block's pointers to itself do not hold it.
fn pointers_in(index: &BlockIndex, from: &Sources<'_>, start: u64, words: &[u64]) -> PiecePointers {
    let (places, blocks) = (from.places, from.others.unwrap_or(index.blocks()));
    let mut sorter = PointerSorter {
        targets: from.others.is_some().then_some(index),
        blocks,
        places,
        block: blocks.first_after(start),
        area: places.areas.partition_point(|area| area.range.end <= start),
        found: PiecePointers::default(),
    };
    let (mut ats, mut values, mut count) = ([0; BATCH], [0; BATCH], 0);
    let mut found = [None; BATCH];
    let mut sort = |ats: &[u64], values: &[u64]| {
        index.find_batch(values, &mut found);
        for (place, found) in ats.iter().zip(&found) {
            if let Some((to, offset)) = found {
                sorter.add(*place, *to, narrow(*offset));
            }
        }
    };
    for (at, word) in words.iter().enumerate().filter(|(_, word)| index.is_near(**word)) {
        (ats[count], values[count]) = (start + at as u64 * 8, *word);
        count += 1;
        if count == BATCH {
            sort(&ats, &values);
            count = 0;
        }
    }
    sort(&ats[..count], &values[..count]);
    sorter.found
}

/// The words that would be pointers into a block without their upper 16 bits, in which programs
/// keep tags: their places, and the blocks.
pub(super) fn tagged_in(index: &BlockIndex, start: u64, words: &[u64]) -> Vec<(u64, u32)> {
    const ADDRESS: u64 = (1 << 48) - 1;
    let tagged = words.iter().enumerate().filter(|(_, word)| **word > ADDRESS);
    tagged.filter_map(|(at, word)| Some((start + at as u64 * 8, index.find(word & ADDRESS)?.0))).collect()
}

/// Tells whose the places of pointers are, which come in order.
struct PointerSorter<'a> {
    /// The blocks that pointers are looked for to, if these are not all.
    targets: Option<&'a BlockIndex>,
    blocks: &'a HeapBlocks,
    places: &'a RootPlaces,
    /// The first block and the first area that end after the last place.
    block: usize,
    area: usize,
    found: PiecePointers,
}

impl PointerSorter<'_> {
    fn add(&mut self, place: u64, to: u32, offset: u32) {
        while self.blocks.get(self.block).is_some_and(|block| block.end() <= place) {
            self.block += 1;
        }
        if let Some(source) = self.blocks.get(self.block).filter(|source| source.start <= place) {
            if place + 8 > source.end() {
                return;
            }
            let number = match self.targets {
                Some(targets) => targets.blocks().number_of(&source),
                None => Some(self.block as u32),
            };
            match number {
                Some(number) if number == to && offset == 0 => {
                    self.found.selves.push((number, narrow(place - source.start)));
                }
                Some(number) if number == to => {}
                Some(number) => {
                    let from = narrow(place - source.start);
                    self.found.of_blocks.push((number, Pointer { from, to, offset }));
                }
                None => self.found.roots.push(RootPointer { kind: RootKind::Mapping, place, to, offset }),
            }
            return;
        }
        let areas = &self.places.areas;
        while areas.get(self.area).is_some_and(|area| area.range.end <= place) {
            self.area += 1;
        }
        let of_area = areas.get(self.area).filter(|area| area.range.start <= place).map(|area| area.kind);
        let alone = || self.places.places.iter().find(|(alone, _)| *alone == place).map(|(_, kind)| *kind);
        if let Some(kind) = of_area.or_else(alone) {
            self.found.roots.push(RootPointer { kind, place, to, offset });
        }
    }
}

/// Where in a block of glibc's the header of the next chunk begins, or after it.
fn next_header(size: u64) -> u64 {
    chunk_of(size).unwrap_or(u64::MAX) - 16
}

fn narrow(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::{Block, roots::Area};

    fn index(blocks: &[Block]) -> BlockIndex {
        BlockIndex::new(blocks.iter().copied().collect())
    }

    #[test]
    fn words_are_of_blocks_or_of_areas() {
        let block = |start, size| Block { start, size, birth: 0, stack: 0 };
        let all = index(&[block(0x1010, 16), block(0x1040, 20), block(0x9000, 64)]);
        let area = |range, kind| Area { range, kind };
        let places = RootPlaces {
            areas: vec![area(0x1000..0x1008, RootKind::Global), area(0x1030..0x1080, RootKind::Mapping)],
            places: vec![(0x1028, RootKind::EndedThread)],
            ..RootPlaces::default()
        };
        let words = [
            0x9000, // 1000: a global
            0x9000, // 1008: nobody's
            0x1018, // 1010: points to itself
            0x9008, // 1018: in the first block
            0x9000, // 1020: nobody's
            0x1010, // 1028: a place of its own
            7,      // 1030
            0,      // 1038
            0x1010, // 1040: in the second block
            0,      // 1048
            0x9010, // 1050: it has 4 bytes of this
            0x9000, // 1058: a mapping
        ];
        let from = Sources { pid: 0, is_stopped: false, places: &places, runs: &[], others: None };
        let found = pointers_in(&all, &from, 0x1000, &words);
        let pointer = |from, to, offset| Pointer { from, to, offset };
        assert_eq!(found.of_blocks, [(0, pointer(8, 2, 8)), (1, pointer(0, 0, 0))]);
        let roots: Vec<_> = found.roots.iter().map(|root| (root.kind, root.place, root.to)).collect();
        let expected = [
            (RootKind::Global, 0x1000, 2),
            (RootKind::EndedThread, 0x1028, 0),
            (RootKind::Mapping, 0x1058, 2),
        ];
        assert_eq!(roots, expected);
        // Pointers to the last one alone: what the first block has is at a root.
        let (some, all) = (index(&[block(0x9000, 64)]), all.blocks());
        let found = pointers_in(&some, &Sources { others: Some(all), ..from }, 0x1000, &words);
        assert_eq!(found.of_blocks, []);
        let roots: Vec<_> = found.roots.iter().map(|root| (root.kind, root.place, root.offset)).collect();
        let expected =
            [(RootKind::Global, 0x1000, 0), (RootKind::Mapping, 0x1018, 8), (RootKind::Mapping, 0x1058, 0)];
        assert_eq!(roots, expected);
    }

    #[test]
    fn lists_of_free_chunks_hold_nothing() {
        // Of 24 bytes: the next chunk begins in its last 8. Of 32 it begins behind them.
        let blocks = vec![
            Block { start: 0x1010, size: 24, birth: 0, stack: 0 },
            Block { start: 0x1030, size: 32, birth: 0, stack: 0 },
        ];
        let root = |place, to, offset| RootPointer { kind: RootKind::Global, place, to, offset };
        let roots = vec![
            root(0x9000, 0, 16),
            root(0x9008, 0, 0),
            root(0x9010, 0, 8),
            root(0xa000, 0, 16),
            root(0x9018, 1, 24),
        ];
        let mut graph = Graph::of(blocks, &[], roots.clone());
        graph.leave_out_chunks(std::slice::from_ref(&(0x9000..0xa000)));
        assert_eq!(graph.roots, roots[1..]);
        assert_eq!([1, 24, 25, 40].map(next_header), [16, 16, 32, 32]);
    }

    #[test]
    fn pointers_are_found_by_their_block() {
        let block = |start| Block { start, size: 16, birth: 0, stack: 0 };
        let graph = Graph::of(
            vec![block(0x1000), block(0x1020), block(0x1040), block(0x1060)],
            &[(0, 0, 1, 0), (0, 8, 2, 0), (2, 0, 3, 0)],
            Vec::new(),
        );
        let to = |block| graph.pointers(block).map(|pointer| pointer.to).collect::<Vec<_>>();
        assert_eq!([to(0), to(1), to(2), to(3), to(9)], [vec![1, 2], vec![], vec![3], vec![], vec![]]);
    }
}
