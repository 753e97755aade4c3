//! What became of what a stack has acquired (map `HISTORIES`, read by mmap): how much of it was
//! released, and at what age. Whether a stack leaks, or fills a cache, is told by that.
//!
//! The map is an array; a stack has one of [`WAYS`] places, by its id. What is held is not counted
//! here: it is in the table of allocations.

/// Ages that are told apart: [`age_class`].
pub const AGES: usize = 21;

/// Places that a stack may have.
pub const WAYS: u32 = 4;

/// Of one stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StackHistory {
    /// The stack's id; 0: nobody's.
    pub stack_id: u64,
    /// Bytes released, beyond `size` for each. Wraps.
    pub bytes_beyond: u64,
    /// The size of the first that was released, which most stacks always have: no more is counted
    /// then. 0: of none so far, or a larger one than fits.
    pub size: u32,
    /// The longest time between acquire and release, in units of age.
    pub longest: u32,
    /// How many were released, by [`age_class`].
    pub released: [u64; AGES],
}

impl StackHistory {
    /// How many were released.
    pub fn count(&self) -> u64 {
        self.released.iter().fold(0, |sum, number| sum.saturating_add(*number))
    }

    /// Bytes released.
    pub fn bytes(&self) -> u64 {
        self.bytes_beyond.wrapping_add(u64::from(self.size).wrapping_mul(self.count()))
    }

    /// The longest time between acquire and release, ns: up to a unit more.
    pub const fn longest_ns(&self) -> u64 {
        (self.longest as u64) << UNIT
    }
}

/// An age in units, rounded up.
#[inline(always)]
pub const fn units_of(age_ns: u64) -> u32 {
    let units = age_ns.saturating_add((1 << UNIT) - 1) >> UNIT;
    if units > u32::MAX as u64 { u32::MAX } else { units as u32 }
}

/// log2 of nanoseconds of a unit of age, about a millisecond: 1.05 ms.
const UNIT: u32 = 20;

/// The class of an age: 0 for less than a unit, then one for each power of two; the last one has
/// all that is older than nine minutes.
#[inline(always)]
pub const fn age_class(age_ns: u64) -> u32 {
    let units = age_ns >> UNIT;
    if units == 0 {
        return 0; // most
    }
    let limit = 1 << (AGES - 2);
    let mut left = if units > limit { limit } else { units };
    let mut class = 1;
    let mut step = 16;
    while step > 0 {
        if left >> step != 0 {
            left >>= step;
            class += step;
        }
        step /= 2;
    }
    class
}

/// The shortest age of a class, ns.
pub const fn youngest_of(class: u32) -> u64 {
    if class == 0 { 0 } else { 1 << (UNIT + class - 1) }
}

/// The first of the places of a stack in a map of `places`, a power of two.
#[inline(always)]
pub const fn first_place(stack_id: u64, places: u32) -> u32 {
    // The low bits of an id say what kind it is; the others are a hash.
    (stack_id >> 24) as u32 & (places - 1) & !(WAYS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_their_classes() {
        for (age_ms, class) in
            [(0, 0), (1, 0), (2, 1), (3, 2), (5, 3), (1 << 19, 19), (1 << 20, 20), (1 << 40, 20)]
        {
            assert_eq!(age_class(age_ms * 1_000_000), class, "{age_ms} ms");
        }
        for class in 0..AGES as u32 {
            assert_eq!(age_class(youngest_of(class)), class);
            assert!(class == 0 || age_class(youngest_of(class) - 1) == class - 1);
        }
        assert_eq!(age_class(u64::MAX), AGES as u32 - 1);
    }

    #[test]
    fn what_was_released_is_added_up() {
        let mut history = StackHistory { size: 64, longest: units_of(1), ..StackHistory::default() };
        (history.released[0], history.released[3]) = (2, 1);
        assert_eq!((history.count(), history.bytes(), history.longest_ns()), (3, 192, 1 << UNIT));
        // One of them had 16 bytes.
        history.bytes_beyond = 16u64.wrapping_sub(64);
        assert_eq!(history.bytes(), 144);
        assert_eq!((units_of(0), units_of(1 << UNIT), units_of(u64::MAX)), (0, 1, u32::MAX));
    }

    #[test]
    fn places_are_whole_groups() {
        for id in (0..1000u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
            let first = first_place(id, 1024);
            assert!(first.is_multiple_of(WAYS) && first + WAYS <= 1024);
        }
    }
}
