//! Which block is at an address? Asked for every word of a process's memory that might be one.
//!
//! A bitmap has a bit for each 8 bytes at which a block begins, in pieces of 1 MiB of address
//! space. Beside every 448 bits is the number of blocks before them, in the same line of the
//! processor's cache. So the block that begins last before an address is found by counting, and not
//! by a search through millions; and of a pointer to a block's start, as most are, that line says
//! all.

use rustc_hash::{FxBuildHasher, FxHashMap};

use super::{
    Block,
    blocks::{GRANULE_BITS, HeapBlocks},
};

/// Bits of an address within a piece.
const PIECE_BITS: u32 = 20;
/// Words of bits that share a count.
const WORDS: usize = 7;
/// Granules of a line, and lines of a piece.
const LINE: usize = WORDS * 64;
const LINES: usize = (1_usize << (PIECE_BITS - GRANULE_BITS)).div_ceil(LINE);

/// Values that are looked up together.
pub(super) const BATCH: usize = 64;

/// Where blocks begin in some part of a piece.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Line {
    /// Blocks that begin before it.
    rank: u64,
    bits: [u64; WORDS],
}

/// Which pages have some part of a block, as far as a hash tells them apart: of few blocks among
/// many it says no to most values, out of memory that the processor has at hand.
#[derive(Debug)]
struct PageFilter {
    bits: Vec<u64>,
    /// Bits of a hash that are not used.
    shift: u32,
}

impl PageFilter {
    const PAGE_BITS: u32 = 12;
    /// Pages that there may be at most, and bits for each.
    const MOST: u64 = 1 << 16;
    const BITS: u64 = 32;

    /// `None` if there are too many pages for it to be of use.
    fn new(blocks: &HeapBlocks) -> Option<Self> {
        // One past an array of nothing is taken for it.
        let pages = |block: &Block| block.start >> Self::PAGE_BITS..=(block.end() + 8) >> Self::PAGE_BITS;
        let mut count = 0;
        for block in blocks.iter() {
            count += pages(&block).end() - pages(&block).start() + 1;
            if count > Self::MOST {
                return None;
            }
        }
        let bits = (count.max(2) * Self::BITS).next_power_of_two();
        let mut filter = Self { bits: vec![0; bits as usize / 64], shift: 64 - bits.ilog2() };
        for page in blocks.iter().flat_map(|block| pages(&block)) {
            let (word, bit) = filter.place(page);
            filter.bits[word] |= 1 << bit;
        }
        Some(filter)
    }

    #[inline]
    fn place(&self, page: u64) -> (usize, usize) {
        /// 2^64 divided by the golden ratio (Knuth's multiplicative hashing).
        const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
        let hash = (page.wrapping_mul(FACTOR) >> self.shift) as usize;
        (hash / 64, hash % 64)
    }

    #[inline]
    fn may_have(&self, address: u64) -> bool {
        let (word, bit) = self.place(address >> Self::PAGE_BITS);
        self.bits.get(word).is_some_and(|word| word >> bit & 1 != 0)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct BlockIndex {
    blocks: HeapBlocks,
    lines: Vec<Line>,
    /// Where the lines of each piece begin in which a block begins.
    pieces: FxHashMap<u64, u32>,
    /// Blocks that are not within one piece: what points into the middle of one may be in a
    /// piece where no block begins.
    large: Vec<u32>,
    /// From the first block to the last one's end.
    first: u64,
    span: u64,
    /// All begin where a granule does.
    is_aligned: bool,
    /// Of few blocks.
    filter: Option<PageFilter>,
}

impl BlockIndex {
    /// Puts blocks in order ([`HeapBlocks::sort`]).
    pub(super) fn new(mut blocks: HeapBlocks) -> Self {
        blocks.sort();
        let last = blocks.len().checked_sub(1).and_then(|last| blocks.get(last));
        let is_aligned = blocks.iter().all(|block| block.start.is_multiple_of(1 << GRANULE_BITS));
        let mut index = Self {
            lines: Vec::new(),
            pieces: FxHashMap::with_capacity_and_hasher(blocks.len() / 4096, FxBuildHasher),
            large: Vec::new(),
            first: blocks.start(0).unwrap_or(0),
            span: 0,
            is_aligned,
            filter: PageFilter::new(&blocks),
            blocks,
        };
        index.span = last.map_or(0, |last| {
            // One past an array of nothing is taken for it.
            last.end().saturating_add(8).saturating_sub(index.first)
        });
        index.enter();
        index
    }

    fn enter(&mut self) {
        for (number, block) in self.blocks.iter().enumerate() {
            let piece = block.start >> PIECE_BITS;
            let lines = &mut self.lines;
            let first = *self.pieces.entry(piece).or_insert_with(|| {
                let first = lines.len() as u32;
                lines.resize(lines.len() + LINES, Line { rank: number as u64, bits: [0; WORDS] });
                first
            });
            let (line, bit) = place_in_piece(block.start);
            lines[first as usize + line].bits[bit / 64] |= 1 << (bit % 64);
            if piece != block.end().saturating_sub(1) >> PIECE_BITS {
                self.large.push(number as u32);
            }
        }
        for lines in self.lines.chunks_mut(LINES) {
            let mut rank = lines[0].rank;
            for line in lines {
                line.rank = rank;
                rank += line.bits.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
            }
        }
    }

    /// All blocks, in order.
    pub(super) fn blocks(&self) -> &HeapBlocks {
        &self.blocks
    }

    /// The blocks, without all else.
    pub(super) fn into_blocks(self) -> HeapBlocks {
        self.blocks
    }

    /// Whether it may be an address in a block: cheap, and mostly right.
    #[inline]
    pub(super) fn is_near(&self, value: u64) -> bool {
        value.wrapping_sub(self.first) < self.span
            && self.filter.as_ref().is_none_or(|filter| filter.may_have(value))
    }

    /// The block that `value` points into, and how far. One past a block of 8 bytes is also in it:
    /// that is where `new T[0]` points, whose 8 bytes say that there are none.
    #[inline]
    pub(super) fn find(&self, value: u64) -> Option<(u32, u64)> {
        if !self.is_near(value) {
            return None;
        }
        match self.line(value) {
            Some(line) => self.find_in(line, line.rank, value),
            None => self.checked(self.large_before(value)?, value),
        }
    }

    /// The same for values that are near, at most as many as [`BATCH`]: each step for all of them
    /// before the next one, since each may have to wait for memory, and so they wait together.
    pub(super) fn find_batch(&self, values: &[u64], found: &mut [Option<(u32, u64)>; BATCH]) {
        let mut lines = [None; BATCH];
        for (line, value) in lines.iter_mut().zip(values) {
            *line = self.line(*value);
        }
        // This loop does nothing but wait for all of them.
        let mut ranks = [0; BATCH];
        for (rank, line) in ranks.iter_mut().zip(lines) {
            *rank = line.map_or(0, |line| line.rank);
        }
        for (((found, line), value), rank) in found.iter_mut().zip(lines).zip(values).zip(ranks) {
            *found = match line {
                Some(line) => self.find_in(line, rank, *value),
                None => self.large_before(*value).and_then(|number| self.checked(number, *value)),
            };
        }
    }

    /// The line of an address, if a block begins in its piece.
    #[inline]
    fn line(&self, value: u64) -> Option<&Line> {
        let first = *self.pieces.get(&(value >> PIECE_BITS))?;
        self.lines.get(first as usize + place_in_piece(value).0)
    }

    #[inline]
    fn find_in(&self, line: &Line, rank: u64, value: u64) -> Option<(u32, u64)> {
        let (_, bit) = place_in_piece(value);
        let (word, bit) = (bit / 64, bit % 64);
        let whole: u32 = line.bits.iter().take(word).map(|word| word.count_ones()).sum();
        let upto = line.bits.get(word)? & (u64::MAX >> (63 - bit));
        let number = (rank + u64::from(whole + upto.count_ones())).checked_sub(1)? as u32;
        if self.is_aligned && value.is_multiple_of(1 << GRANULE_BITS) && upto >> bit != 0 {
            return Some((number, 0));
        }
        self.checked(number, value)
    }

    /// This block or the one before it, if `value` points into it, and how far.
    #[inline]
    fn checked(&self, number: u32, value: u64) -> Option<(u32, u64)> {
        let mut number = number;
        // One that begins later within the same 8 bytes.
        if self.blocks.start(number as usize)? > value {
            number = number.checked_sub(1)?;
        }
        let block = self.blocks.get(number as usize)?;
        let offset = value.checked_sub(block.start)?;
        let is_in = offset < block.size.max(1) || (offset == 8 && block.size == 8);
        is_in.then_some((number, offset))
    }

    fn large_before(&self, value: u64) -> Option<u32> {
        let start = |number: &u32| self.blocks.start(*number as usize).unwrap_or(0);
        let at = self.large.partition_point(|number| start(number) <= value);
        self.large.get(at.checked_sub(1)?).copied()
    }
}

/// The line of an address in its piece, and the bit in that.
#[inline]
fn place_in_piece(address: u64) -> (usize, usize) {
    let granule = (address >> GRANULE_BITS) as usize % (1 << (PIECE_BITS - GRANULE_BITS));
    (granule / LINE, granule % LINE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(start: u64, size: u64) -> Block {
        Block { start, size, birth: 0, stack: 0 }
    }

    fn of(blocks: &[Block]) -> BlockIndex {
        BlockIndex::new(blocks.iter().copied().collect())
    }

    #[test]
    fn what_is_in_a_block() {
        let index = of(&[block(0x1_0000, 24), block(0x1_0020, 8), block(0x5_0000, 0x10_0000)]);
        assert_eq!(index.find(0x1_0000), Some((0, 0)));
        assert_eq!(index.find(0x1_0017), Some((0, 23)));
        assert_eq!(index.find(0x1_0018), None);
        assert_eq!(index.find(0x1_0028), Some((1, 8)), "one past 8 bytes");
        assert_eq!(index.find(0x1_0029), None);
        assert_eq!(index.find(0xffff), None);
        assert_eq!(index.find(0x14_ffff), Some((2, 0xf_ffff)), "in a piece where nothing begins");
        assert_eq!(index.find(0x15_0000), None);
    }

    #[test]
    fn blocks_of_nothing_have_an_address() {
        let index = of(&[block(0x1000, 0)]);
        assert_eq!((index.find(0x1000), index.find(0x1001)), (Some((0, 0)), None));
        assert_eq!(of(&[]).find(0), None);
    }

    #[test]
    fn many_pages_are_not_filtered() {
        let small: Vec<Block> = (0..1000).map(|number| block(0x10_0000 + number * 0x2000, 8)).collect();
        let index = of(&small);
        let near = (0..1_000_000).filter(|word| index.is_near(0x10_0000 + word * 8)).count();
        // The pages of the blocks are half of them; one in 32 of the others has the same hash.
        assert!((500_000..530_000).contains(&near), "{near}");
        assert!(small.iter().all(|block| index.is_near(block.end() + 7)));
        let large = of(&[block(0x10_0000, 1 << 30)]);
        assert!(large.filter.is_none() && large.is_near(0x1000_0000));
    }

    proptest! {
        /// Against a search.
        #[test]
        fn counting_finds_what_a_search_finds(
            sizes in prop::collection::vec((1..20_000_u64, 0..9000_u64), 1..300),
            asked in prop::collection::vec(0..3_000_000_u64, 200),
        ) {
            let mut at = 0x7f00_0000_1000;
            let blocks: Vec<Block> = sizes.iter().map(|(gap, size)| {
                at += gap * 8;
                let made = block(at, *size);
                at += size.next_multiple_of(8);
                made
            }).collect();
            let index = of(&blocks);
            let near = blocks.iter().flat_map(|it| [it.start - 1, it.start, it.start + it.size / 2, it.end()]);
            for value in asked.iter().map(|value| value + 0x7f00_0000_0000).chain(near) {
                let found = blocks.iter().position(|block| {
                    let past = if block.size == 8 { 9 } else { block.size.max(1) };
                    (block.start..block.start + past).contains(&value)
                });
                let expected = found.map(|at| (at as u32, value - blocks[at].start));
                // What begins directly after 8 bytes goes first.
                let found = index.find(value);
                let mut together = [None; BATCH];
                index.find_batch(&[value, value], &mut together);
                prop_assert!(!index.is_near(value) || together[1] == found);
                prop_assert!(found == expected || found.is_some_and(|(_, offset)| offset == 0), "{value:x}");
            }
        }
    }
}
