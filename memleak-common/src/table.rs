//! The table of heap blocks: what is outstanding of [`crate::probe::Resource::Heap`], where
//! programs find it without the kernel's locks and user space reads it without a system call.
//!
//! It has segments (inner maps of the map `SEGMENTS`, arrays of [`BlockSet`]s), each at most twice
//! as large as the last. A key has two sets in each segment, its home and a second one:
//!
//! ```text
//! segment 0   [set][set] ... [set]                    2^13 sets
//! segment 1   [set][set] ... ... ... [set]            2^14 sets
//!
//! set         [tag 0 .. tag 6 | second | hashed]      64 bytes: all that a look-up in vain reads
//!             [record 0] .. [record 6]                64 bytes each
//! ```
//!
//! A new record goes to the newest segment: to the home set, if that is full to the second one (and
//! the home set's `second` says so), and if that is full as well to the map `ALLOCATIONS` (`hashed`
//! says so). User space then adds a segment. Whoever looks for a key looks through all segments,
//! the newest first. Records never move.
//!
//! All segments but the newest are sealed: records only leave them. So user space makes a filter of
//! what is in them ([`FilterHead`]), and a look-up in vain, which each new block begins with, reads
//! one word of that in place of a set of each segment.
//!
//! A tag is [`FREE`], or the key's hash with [`BUSY`] or [`VALID`] in its two low bits. To enter a
//! record a program makes a free tag busy (compare-and-swap), writes the record, and makes the tag
//! valid. To remove one it makes a valid tag busy, tells of the record if user space reads
//! ([`crate::cut`]), and makes the tag free. So nobody else changes a record, and a reader that
//! finds the same valid tag and the same birth before and after has read one whole record.

use crate::allocation::{Allocation, AllocationKey};

/// Records of a set.
pub const WAYS: usize = 7;
/// Sets of the first segment, as a power of two: 4 MiB.
const FIRST_BITS: u32 = 13;
/// Segments up to this one are twice as large as the last; all after it are as large as it (256
/// MiB): with larger ones much of the last that may be made would stay unused.
const LAST_LARGER: u32 = 6;
/// Most segments: 3 GiB, 44 million records.
pub const MAX_SEGMENTS: u32 = 17;

/// Where the filter is in the map of segments: behind them.
pub const FILTER: u32 = MAX_SEGMENTS;
/// Bits of the filter for each record.
pub const FILTER_BITS: u64 = 16;

/// A tag: no record is here.
pub const FREE: u64 = 0;
/// Low bits of a tag: a record is entered or removed here.
pub const BUSY: u64 = 1;
/// Low bits of a tag: a record is here.
pub const VALID: u64 = 2;
/// The low bits of a tag.
pub const STATE: u64 = 3;

/// One outstanding block.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRecord {
    /// What it is about.
    pub key: AllocationKey,
    /// What is known of it.
    pub allocation: Allocation,
}

/// Places for records whose keys have the same home or second set.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BlockSet {
    /// Whether there is a record at each place, and of which hash.
    pub tags: [u64; WAYS],
    /// Not 0 once a record whose home this is has gone to its second set.
    pub second: u32,
    /// Not 0 once a record whose home this is has gone to the map `ALLOCATIONS`.
    pub hashed: u32,
    /// The records.
    pub records: [BlockRecord; WAYS],
}

/// The first words of the filter: a Bloom filter over the tags of sealed segments, and over the
/// keys that were in the map `ALLOCATIONS` when it was made. It is a map like a segment. Its first
/// set is this; the others are blocks of 64 words, of which each key has one (Putze, Sanders,
/// Singler: "Cache-, Hash- and Space-Efficient Bloom Filters", 2007).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct FilterHead {
    /// Segments that it covers, from the first one on; 0 while it is made.
    pub covers: u32,
    /// log2 of its blocks.
    pub bits: u32,
}

impl FilterHead {
    /// Both in one word, as it is in memory.
    pub const fn packed(self) -> u64 {
        self.covers as u64 | (self.bits as u64) << 32
    }

    /// Back from that.
    #[inline(always)]
    pub const fn unpacked(word: u64) -> Self {
        Self { covers: word as u32, bits: (word >> 32) as u32 & 31 }
    }
}

/// What all programs ask of the table (the map `TABLE`, which user space writes by mmap).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TableHeader {
    /// Segments that there are.
    pub segments: u32,
    /// Fills up; 0.
    pub reserved: u32,
    /// Records that found no place in a segment since the start.
    pub overflowed: u64,
    /// Records that there are, in the table and in the map `ALLOCATIONS`; not counted unless
    /// [`crate::settings::Settings::max_allocs`] asks for it.
    pub held: u64,
}

/// Where a key's records can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct KeyHash(u64);

impl KeyHash {
    /// Of a key: each bit of it changes half of the hash's.
    #[inline(always)]
    pub const fn of(key: &AllocationKey) -> Self {
        const K: u64 = 0x9e37_79b9_7f4a_7c15; // 2^64 / golden ratio, odd
        const L: u64 = 0xbf58_476d_1ce4_e5b9; // splitmix64's
        let mut hash = (key.handle ^ (key.space as u64) << 40 ^ (key.resource as u64) << 58).wrapping_mul(K);
        hash = (hash ^ hash >> 32).wrapping_mul(L);
        Self(hash ^ hash >> 29)
    }

    /// The tag of a place where it is, in this state.
    #[inline(always)]
    pub const fn tag(self, state: u64) -> u64 {
        self.0 & !STATE | state
    }

    /// Its home set in a segment.
    #[inline(always)]
    pub const fn home(self, segment: u32) -> u32 {
        (self.0 >> (64 - set_bits(segment))) as u32
    }

    /// The hash of which this is a tag, but for the bits that a tag has not.
    pub const fn of_tag(tag: u64) -> Self {
        Self(tag & !STATE)
    }

    /// Its block in a filter of 2^`bits` blocks: which set of the map.
    #[inline(always)]
    pub const fn filter_block(self, bits: u32) -> u32 {
        1 + ((self.0 >> 32) >> (32 - bits)) as u32
    }

    /// Its word of the block.
    #[inline(always)]
    pub const fn filter_word(self) -> u64 {
        self.0 >> 26 & 63
    }

    /// Its bits in the word.
    #[inline(always)]
    pub const fn filter_mask(self) -> u64 {
        1 << (self.0 >> 2 & 63)
            | 1 << (self.0 >> 8 & 63)
            | 1 << (self.0 >> 14 & 63)
            | 1 << (self.0 >> 20 & 63)
    }

    /// Its second set in a segment: another one than its home.
    #[inline(always)]
    pub const fn second(self, segment: u32) -> u32 {
        let distance = (self.0 >> 2) as u32 & (sets(segment) - 1) | 1;
        self.home(segment) ^ distance
    }
}

/// log2 of [`sets`].
#[inline(always)]
pub const fn set_bits(segment: u32) -> u32 {
    FIRST_BITS + if segment < LAST_LARGER { segment } else { LAST_LARGER }
}

/// Sets of a segment.
#[inline(always)]
pub const fn sets(segment: u32) -> u32 {
    1 << set_bits(segment)
}

/// Records that a segment has places for.
pub const fn places(segment: u32) -> u64 {
    sets(segment) as u64 * WAYS as u64
}

/// Bytes of a segment.
pub const fn bytes(segment: u32) -> u64 {
    sets(segment) as u64 * size_of::<BlockSet>() as u64
}
