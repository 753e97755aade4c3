//! What blocks are of which nobody knows where they were acquired: by their vtables, and else by
//! their sizes.

use rustc_hash::FxHashMap;

use super::{Block, look::read_places};
use crate::proc::maps::Mapping;

/// Blocks that are looked at; of more, each so many-th is.
const MOST: usize = 1 << 20;
/// Whose first words are read by one call.
const AT_ONCE: usize = 1024;

/// Numbers and bytes of blocks by their first word, if it is an address of a file's data and so may
/// be a vtable's (else 0), and by size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockKinds {
    /// (word, size): how many.
    pub counts: FxHashMap<(u64, u64), u64>,
    /// Each block stands for so many.
    pub each: u64,
}

impl BlockKinds {
    /// Of a process's blocks, of which there are `count`.
    pub(super) fn of(
        pid: u32,
        mappings: &[Mapping],
        blocks: impl Iterator<Item = Block>,
        count: usize,
    ) -> Self {
        let data: Vec<&Mapping> = mappings.iter().filter(|mapping| mapping.is_data_of_file()).collect();
        let may_be_vtable = |word: u64| {
            let at = data.partition_point(|mapping| mapping.end <= word);
            word.is_multiple_of(8) && data.get(at).is_some_and(|mapping| mapping.start <= word)
        };
        let step = count.div_ceil(MOST).max(1);
        let mut kinds = Self { each: step as u64, ..Self::default() };
        let mut blocks = blocks.step_by(step).peekable();
        while blocks.peek().is_some() {
            let part: Vec<Block> = blocks.by_ref().take(AT_ONCE).collect();
            let places: Vec<u64> = part.iter().map(|block| block.start).collect();
            for (block, word) in part.iter().zip(read_places(pid, &places)) {
                let word = word.filter(|word| may_be_vtable(*word)).unwrap_or(0);
                *kinds.counts.entry((word, block.size)).or_default() += kinds.each;
            }
        }
        kinds
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::maps::read_maps;

    static TABLE: [u64; 4] = [0; 4];

    #[test]
    fn blocks_are_counted_by_first_word_and_size() {
        let pid = std::process::id();
        let table = &raw const TABLE as u64;
        let objects = [[table, 1], [table, 2], [5, 3], [table + 4, 4]];
        let block = |object: &[u64; 2]| Block {
            start: object.as_ptr() as u64,
            size: 16 * object[1].min(2),
            birth: 0,
            stack: 0,
        };
        let kinds = BlockKinds::of(pid, &read_maps(pid).unwrap(), objects.iter().map(block), objects.len());
        let expected = FxHashMap::from_iter([((table, 16), 1), ((table, 32), 1), ((0, 32), 2)]);
        assert_eq!((kinds.counts, kinds.each), (expected, 1));
    }
}
