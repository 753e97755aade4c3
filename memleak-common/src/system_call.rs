//! Which system calls are traced (map `SYSTEM_CALLS`, by number): 0, or the row that serves them.

/// Bits of an entry that are the row's index, plus 1.
pub const ROW: u32 = 0xffff;

/// The call releases and cannot fail: it is done with when it is entered.
pub const RELEASES: u32 = 1 << 31;

/// Capacity of the map: no architecture that we run on has more numbers.
pub const MAX_SYSTEM_CALLS: u32 = 1024;
