//! One circle of a shape, block by block: it can be told by it whether its blocks own each other.

use super::{Block, components::components, look::read_places};

/// Words at a block's start: a virtual table and two numbers of owners, in one word or two.
const HEAD: usize = 3;
/// Blocks of a circle that is looked at so closely.
pub(super) const MOST_BLOCKS: usize = 16 << 10;
/// Pointers in it.
pub(super) const MOST_LINKS: usize = 64 << 10;

/// See the module. It has no links if there are too many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Its blocks.
    pub blocks: Vec<Block>,
    /// The words that each begins with, if they could be read.
    pub heads: Vec<Option<[u64; HEAD]>>,
    /// The pointers from one to another.
    pub links: Vec<CircleLink>,
}

/// A pointer of a circle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircleLink {
    /// The block that it is in, by its place in [`Sample::blocks`].
    pub from: u32,
    /// Where in that, bytes.
    pub offset: u32,
    /// The block that it points to.
    pub to: u32,
    /// It points to its start.
    pub is_start: bool,
}

impl Sample {
    /// Reads what its blocks begin with.
    pub(super) fn read_heads(&mut self, pid: u32) {
        let words = |block: &Block| (0..HEAD as u64).map(|at| block.start + at * 8).collect::<Vec<_>>();
        let places: Vec<u64> = self.blocks.iter().flat_map(words).collect();
        let read = read_places(pid, &places);
        let whole = |(block, words): (&Block, &[Option<u64>])| {
            let words: Option<Vec<u64>> = words.iter().copied().collect();
            words.filter(|_| block.size >= HEAD as u64 * 8)?.try_into().ok()
        };
        self.heads = self.blocks.iter().zip(read.chunks(HEAD)).map(whole).collect();
    }

    /// Whether some of its blocks are a circle still without those links of which `is_left_out` is
    /// true.
    pub fn holds_without(&self, is_left_out: &[bool]) -> bool {
        let kept = self.links.iter().zip(is_left_out).filter(|(_, is_left_out)| !**is_left_out);
        let links: Vec<&CircleLink> = kept.map(|(link, _)| link).collect();
        let mut of = vec![Vec::new(); self.blocks.len()];
        for link in &links {
            if let Some(targets) = of.get_mut(link.from as usize) {
                targets.push(link.to);
            }
        }
        let found = components(of.len(), |node| of.get(node as usize).into_iter().flatten().copied());
        links.iter().any(|link| found.get(link.from as usize) == found.get(link.to as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circle_is_none_without_its_links() {
        let block = |number: u64| Block { start: number * 0x100, size: 64, birth: 0, stack: number as u32 };
        let link = |from, offset, to| CircleLink { from, offset, to, is_start: true };
        // Two children (1, 2) that point back, and a parent (0).
        let links = vec![link(0, 8, 1), link(0, 16, 2), link(1, 24, 0), link(2, 24, 0)];
        let sample = Sample { blocks: (0..3).map(block).collect(), heads: Vec::new(), links };
        assert!(sample.holds_without(&[false; 4]));
        assert!(sample.holds_without(&[false, false, true, false]), "the other one");
        assert!(!sample.holds_without(&[false, false, true, true]));
        let own = Sample { links: vec![link(0, 8, 0)], ..sample };
        assert!(own.holds_without(&[false]) && !own.holds_without(&[true]));
    }

    #[test]
    fn blocks_begin_with_their_owners() {
        let words: Vec<u64> = vec![0x1234, 5, 6, 7];
        let start = words.as_ptr() as u64;
        let block = |start, size| Block { start, size, birth: 0, stack: 0 };
        let blocks = vec![block(start, 32), block(start + 8, 16), block(8, 64)];
        let mut sample = Sample { blocks, ..Sample::default() };
        sample.read_heads(std::process::id());
        assert_eq!(sample.heads, [Some([0x1234, 5, 6]), None, None]);
    }
}
