//! The pointers in blocks, in 8 bytes each: there are several for each block.

/// A pointer in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pointer {
    /// Where in its block, bytes; of more than 4 GiB the last.
    pub from: u32,
    /// The block that it points into.
    pub to: u32,
    /// How far; of more than 4 GiB the last.
    pub offset: u32,
}

/// A pointer as it is kept.
#[derive(Clone, Copy, Debug)]
struct PackedPointer {
    to: u32,
    /// Words after the block's pointer before this one, or after its start.
    step: u16,
    offset: u16,
}

/// [`PackedPointer::step`] and [`PackedPointer::offset`] of a pointer that does not fit in: it is
/// in [`Pointers::far`].
const FAR: u16 = u16::MAX;
const WORD: u32 = 8;

/// Pointers by their block. They are added in order of block, and of their place in it.
#[derive(Debug, Default)]
pub(super) struct Pointers {
    /// Where the pointers of each block begin, and the end of the last one's.
    first: Vec<u32>,
    packed: Vec<PackedPointer>,
    /// Numbers of pointers, in order: where they are, and how far they point into their blocks.
    far: Vec<(u32, u32, u32)>,
    /// The place of the last one, if its block may have more.
    last: u32,
}

impl Pointers {
    /// None yet, of so many blocks.
    pub(super) fn new(blocks: usize) -> Self {
        Self { first: Vec::with_capacity(blocks + 1), ..Self::default() }
    }

    /// One more.
    pub(super) fn add(&mut self, block: u32, pointer: Pointer) {
        self.begin_until(block as usize);
        let number = self.packed.len();
        let packed = self.pack(pointer, number as u32);
        self.packed.push(packed);
    }

    /// The blocks up to this one have no more pointers than there are.
    fn begin_until(&mut self, block: usize) {
        while self.first.len() <= block {
            self.first.push(self.packed.len() as u32);
            self.last = 0;
        }
    }

    fn pack(&mut self, pointer: Pointer, number: u32) -> PackedPointer {
        let Pointer { from, to, offset } = pointer;
        let step = from - std::mem::replace(&mut self.last, from).min(from);
        let words =
            u16::try_from(step / WORD).ok().filter(|words| *words != FAR && step.is_multiple_of(WORD));
        match (words, u16::try_from(offset).ok().filter(|offset| *offset != FAR)) {
            (Some(step), Some(offset)) => PackedPointer { to, step, offset },
            _ => {
                self.far.push((number, from, offset));
                PackedPointer { to, step: FAR, offset: FAR }
            }
        }
    }

    /// All are there of so many blocks.
    pub(super) fn end(mut self, blocks: usize) -> Self {
        self.begin_until(blocks);
        self
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.packed.len()
    }

    /// The pointers in a block, in order.
    pub(super) fn of(&self, block: u32) -> impl Iterator<Item = Pointer> + '_ {
        let at = |block: usize| self.first.get(block).copied().unwrap_or(self.packed.len() as u32);
        let numbers = at(block as usize)..at(block as usize + 1);
        let packed = self.packed.get(numbers.start as usize..numbers.end as usize).unwrap_or_default();
        let mut last = 0;
        numbers.zip(packed).map(move |(number, packed)| {
            let pointer = self.unpack(number, *packed, last);
            last = pointer.from;
            pointer
        })
    }

    #[inline]
    fn unpack(&self, number: u32, packed: PackedPointer, last: u32) -> Pointer {
        let PackedPointer { to, step, offset } = packed;
        if (step, offset) == (FAR, FAR) {
            let at = self.far.partition_point(|(far, ..)| *far < number);
            let (_, from, offset) = self.far.get(at).copied().unwrap_or_default();
            return Pointer { from, to, offset };
        }
        Pointer { from: last + u32::from(step) * WORD, to, offset: offset.into() }
    }

    /// What all of them point to, and how far into it.
    pub(super) fn targets(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let mut far = self.far.iter();
        self.packed.iter().map(move |packed| match packed {
            PackedPointer { to, step: FAR, offset: FAR } => {
                (*to, far.next().map_or(0, |(.., offset)| *offset))
            }
            PackedPointer { to, offset, .. } => (*to, (*offset).into()),
        })
    }

    /// Leaves those between some of the blocks, which have other numbers then: `new_number` of each
    /// block that is left, and of no other. In the same memory.
    pub(super) fn retain(&mut self, blocks: usize, new_number: impl Fn(u32) -> Option<u32>) {
        let mut kept = Self { first: Vec::new(), ..Self::default() };
        let (mut of_block, mut written, mut left) = (Vec::new(), 0, 0);
        for block in 0..blocks as u32 {
            if new_number(block).is_none() {
                continue;
            }
            let to = |pointer: Pointer| Some(Pointer { to: new_number(pointer.to)?, ..pointer });
            of_block.extend(self.of(block).filter_map(to));
            kept.last = 0;
            // What is written lies before what is yet to be read, in both lists.
            let first = written as u32;
            for pointer in of_block.drain(..) {
                self.packed[written] = kept.pack(pointer, written as u32);
                written += 1;
            }
            self.first[left] = first;
            left += 1;
        }
        self.first.truncate(left);
        self.first.push(written as u32);
        self.first.shrink_to_fit();
        self.packed.truncate(written);
        self.packed.shrink_to_fit();
        self.far = kept.far;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn built(of_blocks: &[Vec<Pointer>]) -> Pointers {
        let mut pointers = Pointers::new(of_blocks.len());
        for (block, list) in (0..).zip(of_blocks) {
            list.iter().for_each(|pointer| pointers.add(block, *pointer));
        }
        pointers.end(of_blocks.len())
    }

    #[test]
    fn a_pointer_takes_8_bytes() {
        assert_eq!(size_of::<PackedPointer>(), 8);
        // As those of a table of 40 MB: none of them is far.
        let table: Vec<Pointer> =
            (0..100_000).map(|number| Pointer { from: number * 400, to: number, offset: 0 }).collect();
        assert!(built(&[table]).far.is_empty());
    }

    proptest! {
        /// Against lists that are not packed.
        #[test]
        fn pointers_come_out_as_they_went_in(
            lists in prop::collection::vec(
                prop::collection::btree_map(
                    prop_oneof![0..40_u32, (0..100_000_u32).prop_map(|word| word * 8), Just(u32::MAX)],
                    (0..30_u32, prop_oneof![0..100_u32, 65_530..65_540_u32, Just(u32::MAX)]),
                    0..6,
                ),
                30,
            ),
            is_kept in prop::collection::vec(any::<bool>(), 30),
        ) {
            let lists: Vec<Vec<Pointer>> = lists
                .iter()
                .map(|list| list.iter().map(|(from, (to, offset))| Pointer { from: *from, to: *to, offset: *offset }))
                .map(Iterator::collect)
                .collect();
            let mut pointers = built(&lists);
            for (block, list) in (0..).zip(&lists) {
                prop_assert_eq!(&pointers.of(block).collect::<Vec<_>>(), list);
            }
            let targets: Vec<(u32, u32)> = lists.iter().flatten().map(|it| (it.to, it.offset)).collect();
            prop_assert_eq!(pointers.targets().collect::<Vec<_>>(), targets);
            let before = |block: usize| is_kept[..block].iter().filter(|kept| **kept).count() as u32;
            let new_number = |block: u32| is_kept[block as usize].then(|| before(block as usize));
            pointers.retain(lists.len(), new_number);
            let mut left = 0;
            for list in lists.iter().zip(&is_kept).filter(|(_, kept)| **kept).map(|(list, _)| list) {
                let to = |it: &Pointer| Some(Pointer { to: new_number(it.to)?, ..*it });
                let expected: Vec<Pointer> = list.iter().filter_map(to).collect();
                prop_assert_eq!(pointers.of(left).collect::<Vec<_>>(), expected);
                left += 1;
            }
            prop_assert_eq!(pointers.of(left).count(), 0);
        }
    }
}
