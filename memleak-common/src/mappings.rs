//! When what a process has mapped changes (map `MAPPING_STATES`, by [`index_of`]).
//!
//! An address on a stack means what is mapped there. So each stack carries the generation of its
//! time: one ends whenever something may be unmapped. If objects only come, addresses keep their
//! meaning, and the generation goes on.

use crate::thread::MAX_TARGETS;

/// What is known of an address space's mappings.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct MappingState {
    /// Grows, by atomic additions of both sides. It is not reset when another address space gets
    /// the place.
    pub generation: u64,
    /// Address of the dynamic linker's `struct r_debug` in the process's memory; 0 if it is not
    /// known.
    pub debug: u64,
    /// `r_state` at its last notice.
    pub last: u32,
    /// Fills up; 0.
    pub reserved: u32,
}

/// The place of an address space. Of the numbers that have one in common only one is in use, but
/// for processes that live on in an address space whose first process has ended: then a generation
/// may end too early, and none too late.
#[inline(always)]
pub const fn index_of(space: u32) -> u32 {
    space & (MAX_TARGETS - 1)
}

/// Byte offset of `r_state` in `struct r_debug` (`link.h`, LP64).
pub const R_STATE: u64 = 24;

/// `r_state` (`link.h`): nothing is changing.
pub const RT_CONSISTENT: u32 = 0;
/// Objects are about to be mapped.
pub const RT_ADD: u32 = 1;
/// What stands for `r_state` where it cannot be read. (2 is `RT_DELETE`: objects are about to be
/// unmapped.)
pub const RT_UNKNOWN: u32 = u32::MAX;

/// What a new program may add to a generation, that no one can be taken for another: the tool adds
/// as much if it finds that something was unmapped of which nobody has told.
pub const NEW_PROGRAM: u64 = 4;

/// Whether objects have only come between two notices of the dynamic linker, given `r_state` at
/// both. It tells before it changes anything (`RT_ADD`, `RT_DELETE`), and after that
/// (`RT_CONSISTENT`).
#[inline(always)]
pub const fn only_adds(last: u32, now: u32) -> bool {
    now == RT_ADD || (now == RT_CONSISTENT && last == RT_ADD)
}
