//! Rules that were found before, by the addresses that they are for.

/// A rule that was found, for whoever comes by the same address next (map `KNOWN`). Several CPUs
/// write a place at once, word by word, so each word says whose it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct KnownRule {
    /// The address, and above its 48 bits the last ones of the list's generation.
    pub key: u64,
    /// The rule and, in the upper half, a hash of address and generation.
    pub rule: u64,
}

/// Places for known rules. A power of two.
pub const KNOWN_RULES: u32 = 1 << KNOWN_RULES_BITS;
const KNOWN_RULES_BITS: u32 = 13;

impl KnownRule {
    /// What is known at `address` by the list of this generation.
    #[inline(always)]
    pub const fn new(address: u64, generation: u64, rule: u32) -> Self {
        Self {
            key: address ^ (generation << 48),
            rule: rule as u64 | (Self::hash(address, generation) & !(u32::MAX as u64)),
        }
    }

    /// Where it is kept.
    #[inline(always)]
    pub const fn place(address: u64) -> u32 {
        (Self::hash(address, 0) >> (64 - KNOWN_RULES_BITS)) as u32
    }

    /// The rule, if `found` is what [`Self::new`] made of the same address and generation; else 0.
    #[inline(always)]
    pub const fn rule_of(address: u64, generation: u64, found: Self) -> u32 {
        let rule = found.rule as u32;
        let wanted = Self::new(address, generation, rule);
        if found.key == wanted.key && found.rule == wanted.rule { rule } else { 0 }
    }

    #[inline(always)]
    const fn hash(address: u64, generation: u64) -> u64 {
        const K: u64 = 0x9e37_79b9_7f4a_7c15; // 2^64 / golden ratio, odd
        (address ^ generation.wrapping_mul(K).rotate_left(32)).wrapping_mul(K)
    }
}
