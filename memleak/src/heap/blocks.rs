//! A process's blocks, in 24 bytes each: there may be millions.

use rustc_hash::FxHashMap;

use super::Block;
use crate::account::BlockStarts;

/// Two blocks do not begin within so many bytes, a power of two.
pub(super) const GRANULE_BITS: u32 = 3;

/// A block as it is kept.
#[derive(Clone, Copy, Debug)]
struct PackedBlock {
    start: u64,
    birth: u64,
    /// [`LARGE`] of blocks that are as large or larger: their size is in [`HeapBlocks::large`].
    size: u32,
    stack: u32,
}

const LARGE: u32 = u32::MAX;

/// Blocks of one address space, in any order until they are sorted.
#[derive(Clone, Debug, Default)]
pub struct HeapBlocks {
    packed: Vec<PackedBlock>,
    /// By their start: the sizes of large ones.
    large: FxHashMap<u64, u64>,
}

impl FromIterator<Block> for HeapBlocks {
    /// Of a vector that is used up, the memory is used again, as far as it is needed.
    fn from_iter<I: IntoIterator<Item = Block>>(blocks: I) -> Self {
        let mut large = FxHashMap::default();
        let mut packed: Vec<PackedBlock> = blocks.into_iter().map(|block| pack(&mut large, &block)).collect();
        packed.shrink_to_fit();
        Self { packed, large }
    }
}

fn pack(large: &mut FxHashMap<u64, u64>, block: &Block) -> PackedBlock {
    let Block { start, size, birth, stack } = *block;
    let narrow = u32::try_from(size).unwrap_or(LARGE);
    if narrow == LARGE {
        large.insert(start, size);
    }
    PackedBlock { start, birth, size: narrow, stack }
}

impl HeapBlocks {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.packed.len()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.packed.is_empty()
    }

    /// The block of this number.
    #[inline]
    pub fn get(&self, number: usize) -> Option<Block> {
        self.packed.get(number).map(|packed| self.unpack(packed))
    }

    #[inline]
    fn unpack(&self, packed: &PackedBlock) -> Block {
        let PackedBlock { start, birth, size, stack } = *packed;
        let size = match size {
            LARGE => self.large.get(&start).copied().unwrap_or(u64::from(LARGE)),
            size => u64::from(size),
        };
        Block { start, size, birth, stack }
    }

    /// All of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Block> + '_ {
        self.packed.iter().map(|packed| self.unpack(packed))
    }

    /// Where block `number` begins.
    #[inline]
    pub(super) fn start(&self, number: usize) -> Option<u64> {
        self.packed.get(number).map(|packed| packed.start)
    }

    /// The stack of block `number`.
    #[inline]
    pub(super) fn stack(&self, number: usize) -> Option<u32> {
        self.packed.get(number).map(|packed| packed.stack)
    }

    /// With others.
    pub(super) fn extend(&mut self, others: impl ExactSizeIterator<Item = Block>) {
        let Self { packed, large } = self;
        packed.reserve_exact(others.len());
        packed.extend(others.map(|block| pack(large, &block)));
    }

    /// Puts them in order. Of two that overlap the first is cut short, and of two that begin within
    /// the same 8 bytes one is left out: that is no allocator's doing.
    pub(super) fn sort(&mut self) {
        if !self.packed.is_sorted_by_key(|block| block.start) {
            // By digits: there may be millions, in no order at all.
            radsort::sort_by_key(&mut self.packed, |block| block.start);
        }
        self.packed.dedup_by_key(|block| block.start >> GRANULE_BITS);
        for at in 1..self.packed.len() {
            let room = self.packed[at].start - self.packed[at - 1].start;
            let Some(before) = self.get(at - 1).filter(|before| before.size > room) else { continue };
            self.packed[at - 1] = pack(&mut self.large, &Block { size: room, ..before });
        }
    }

    /// The number of this very block, if it is among them, which are sorted.
    pub(super) fn number_of(&self, block: &Block) -> Option<u32> {
        let at = self.packed.binary_search_by_key(&block.start, |it| it.start).ok()?;
        self.get(at).filter(|it| it.is_same(block)).map(|_| at as u32)
    }

    /// The first block that ends after `address`; they are sorted.
    pub(super) fn first_after(&self, address: u64) -> usize {
        self.packed.partition_point(|block| self.unpack(block).end() <= address)
    }

    /// The block that has `address`, and its number; they are sorted.
    pub(super) fn at(&self, address: u64) -> Option<(usize, Block)> {
        let number = self.first_after(address);
        self.get(number).filter(|block| block.start <= address).map(|block| (number, block))
    }

    /// Leaves those for which `is_kept`, which is asked for each number in order.
    pub(super) fn retain(&mut self, mut is_kept: impl FnMut(u32) -> bool) {
        let mut number = 0;
        self.packed.retain(|_| {
            number += 1;
            is_kept(number - 1)
        });
        self.packed.shrink_to_fit();
    }
}

/// They are sorted.
impl BlockStarts for HeapBlocks {
    fn nth(&self, number: usize) -> Option<u64> {
        self.start(number)
    }

    fn first_from(&self, address: u64) -> usize {
        self.packed.partition_point(|block| block.start < address)
    }

    fn size(&self, number: usize) -> Option<u64> {
        self.get(number).map(|block| block.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(start: u64, size: u64) -> Block {
        Block { start, size, birth: start + 1, stack: 7 }
    }

    #[test]
    fn blocks_come_out_as_they_went_in() {
        const GIB: u64 = 1 << 30;
        let all = [block(0x9000, 5 * GIB), block(0x10, 0), block(0x1000, 4 * GIB - 1), block(0x20, 33)];
        let mut blocks: HeapBlocks = all.into_iter().collect();
        assert_eq!(blocks.iter().collect::<Vec<_>>(), all);
        blocks.sort();
        // What overlaps with the next is cut short.
        let cut = Block { size: 0x8000, ..all[2] };
        assert_eq!(blocks.iter().collect::<Vec<_>>(), [all[1], all[3], cut, all[0]]);
        assert_eq!((blocks.number_of(&all[0]), blocks.number_of(&block(0x21, 1))), (Some(3), None));
        assert_eq!(blocks.number_of(&Block { birth: 0, ..all[0] }), None);
        assert_eq!(blocks.at(0x9000 + 5 * GIB - 1), Some((3, all[0])));
        assert_eq!((blocks.at(0x9000 + 5 * GIB), blocks.at(0x10), blocks.first_after(0x10)), (None, None, 1));
        blocks.extend([block(0x24, 1), block(0x8, 1)].into_iter());
        blocks.sort();
        assert_eq!(blocks.iter().map(|block| block.start).collect::<Vec<_>>(), [8, 16, 32, 0x1000, 0x9000]);
        blocks.retain(|number| number % 2 == 0);
        assert_eq!(blocks.iter().map(|block| block.start).collect::<Vec<_>>(), [8, 32, 0x9000]);
    }

    #[test]
    fn a_block_takes_24_bytes() {
        assert_eq!(size_of::<PackedBlock>(), 24);
        let wide = vec![[1_u64; 7]; 1000];
        let capacity = wide.into_iter().map(|it| block(it[0], 1)).collect::<HeapBlocks>().packed.capacity();
        assert_eq!(capacity, 1000);
    }
}
