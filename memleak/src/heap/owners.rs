//! Whether the blocks of a circle own each other, by what is known of its pointers and blocks.

use super::sample::{CircleLink, Sample};

/// Whether a circle's blocks keep each other alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owned {
    /// They do not: the last that held it from outside is lost.
    No,
    /// Some of the pointers may be weak.
    Maybe,
    /// They do if plain pointers own, beside others that do.
    Plainly,
    /// As far as can be told.
    Yes,
}

/// What a pointer is, as its member's type says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// It does not own.
    Weakly,
    /// A plain pointer: it may own, or not.
    Plainly,
    /// An object that points to it: `std::unique_ptr`, a vector, a closure's holder.
    Firmly,
    /// Its type is not known.
    Unknown,
}

/// How many own a block, and how many have it and do not, as it counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owners {
    /// That own it.
    pub strong: u64,
    /// That do not.
    pub weak: u64,
}

/// Of the circle's links what each `holds`, of its blocks how many `owners` they count. One that
/// `is_alone` points to itself.
pub fn judge(sample: &Sample, holds: &[Holds], owners: &[Option<Owners>], is_alone: bool) -> Owned {
    let counted = |link: &CircleLink| owners.get(link.to as usize).copied().flatten();
    let is_weak = |(link, holds): (&CircleLink, &Holds)| {
        *holds == Holds::Weakly || counted(link).is_some_and(|owners| owners.strong == 0)
    };
    let mut left_out: Vec<bool> = sample.links.iter().zip(holds).map(is_weak).collect();
    if !sample.holds_without(&left_out) {
        return Owned::No;
    }
    // Of each block how many pointers it has from here, and how many of them are weak.
    let mut pointing = vec![(0_u64, 0_u64); sample.blocks.len()];
    for (link, is_weak) in sample.links.iter().zip(&left_out).filter(|(link, _)| link.is_start) {
        if let Some((all, weak)) = pointing.get_mut(link.to as usize) {
            (*all, *weak) = (*all + 1, *weak + u64::from(*is_weak));
        }
    }
    // All may be the weak ones that the block counts.
    for (link, left_out) in sample.links.iter().zip(&mut left_out) {
        if let (Some(owners), Some((all, weak))) = (counted(link), pointing.get(link.to as usize)) {
            *left_out |= all - weak <= owners.weak.saturating_sub(*weak);
        }
    }
    let is_proven = sample.holds_without(&left_out);
    if is_alone {
        // A list that is empty points to itself, too.
        let is_counted = sample.links.iter().all(|link| counted(link).is_some());
        return if is_proven && is_counted { Owned::Yes } else { Owned::No };
    }
    if !is_proven {
        return Owned::Maybe;
    }
    let plain: Vec<bool> = holds.iter().map(|holds| *holds == Holds::Plainly).collect();
    match holds.contains(&Holds::Firmly) && !sample.holds_without(&plain) {
        true => Owned::Plainly,
        false => Owned::Yes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::Block;

    fn sample(blocks: u64, links: &[(u32, u32)]) -> Sample {
        let block = |number| Block { start: number * 0x100, size: 64, birth: 0, stack: 0 };
        let link = |(from, to): &(u32, u32)| CircleLink {
            from: *from,
            offset: 16 + to * 8,
            to: *to,
            is_start: true,
        };
        Sample {
            blocks: (0..blocks).map(block).collect(),
            heads: Vec::new(),
            links: links.iter().map(link).collect(),
        }
    }

    #[test]
    fn circles_are_owned_or_not() {
        use Holds::{Firmly, Plainly, Unknown, Weakly};
        let counts = |strong, weak| Some(Owners { strong, weak });
        let two = sample(2, &[(0, 1), (1, 0)]);
        let judged = |holds: [Holds; 2], owners: [Option<Owners>; 2]| judge(&two, &holds, &owners, false);
        assert_eq!(judged([Firmly, Firmly], [counts(1, 0), counts(1, 0)]), Owned::Yes);
        assert_eq!(judged([Firmly, Weakly], [counts(1, 1), counts(1, 0)]), Owned::No, "by its type");
        assert_eq!(judged([Unknown; 2], [counts(0, 1), counts(1, 0)]), Owned::No, "nobody owns it");
        assert_eq!(judged([Unknown; 2], [counts(1, 1), counts(1, 0)]), Owned::Maybe);
        assert_eq!(judged([Firmly, Plainly], [None, None]), Owned::Plainly, "a child that knows its parent");
        assert_eq!(judged([Plainly, Plainly], [None, None]), Owned::Yes, "nobody knows");
        // The second owner of the first is elsewhere, and the weak one is here.
        let three = sample(2, &[(0, 1), (1, 0), (1, 0)]);
        assert_eq!(judge(&three, &[Firmly; 3], &[counts(2, 1), counts(1, 0)], false), Owned::Yes);
    }

    #[test]
    fn one_that_points_to_itself_is_its_owner_by_its_count() {
        let own = sample(1, &[(0, 0)]);
        let judged = |holds, owners| judge(&own, &[holds], &[owners], true);
        let counts = |strong, weak| Some(Owners { strong, weak });
        assert_eq!(judged(Holds::Firmly, counts(1, 0)), Owned::Yes);
        assert_eq!(judged(Holds::Unknown, counts(1, 1)), Owned::No, "std::enable_shared_from_this");
        assert_eq!(judged(Holds::Plainly, None), Owned::No, "an empty list");
    }
}
