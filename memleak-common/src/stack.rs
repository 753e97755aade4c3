//! Call stacks: lists of return addresses, callee first (maps `STACKS` and `SHORT_STACKS`, key: an
//! id, made of a hash of the list).

/// Most frames a stack keeps: `kernel.perf_event_max_stack`'s default, which `bpf_get_stack` obeys.
pub const MAX_STACK_DEPTH: usize = 127;

/// The stack of an allocation whose stack could not be read or stored; counted in `lost.stacks`.
pub const NO_STACK: u64 = 0;

/// Frames of a stack that is stored as a short one: with its key and the kernel's
/// `struct htab_elem` a record is 512 bytes, which is what the kernel's allocator hands out. A long
/// one takes 2048.
pub const SHORT_STACK_DEPTH: usize = 55;

/// A stack with room for `DEPTH` frames.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Record<const DEPTH: usize> {
    /// Valid entries of `ips`.
    pub len: u32,
    /// Why the walk ended: a [`crate::unwind::Step`], `Complete` where no callers are missing.
    pub end: u16,
    /// Frames found by the frame pointer, for want of unwind information.
    pub by_pointer: u16,
    /// Part of the stack's identity. Of a process's: the generation of its mappings
    /// ([`crate::mappings::MappingState::generation`]). Of the kernel's: what its objects are
    /// ([`crate::kernel::Label`], encoded).
    pub context: u64,
    /// Return addresses, callee first. For an instruction that a signal interrupted its address
    /// plus 1, so that the byte before each belongs to the instruction that was running.
    pub ips: [u64; DEPTH],
}

/// One stack (map `STACKS`, where it is long).
pub type StackRecord = Record<MAX_STACK_DEPTH>;

/// One stack of at most [`SHORT_STACK_DEPTH`] frames (map `SHORT_STACKS`): a [`StackRecord`]
/// without its end.
pub type ShortStackRecord = Record<SHORT_STACK_DEPTH>;

/// Set in the id of a stack that is stored as a long one.
const LONG: u64 = 2;

/// The id that a stack of this hash and length has, unless another one has it. Never [`NO_STACK`].
#[inline(always)]
pub const fn stack_id(hash: u64, len: u32) -> u64 {
    let id = hash & !LONG | 1;
    if len > SHORT_STACK_DEPTH as u32 { id | LONG } else { id }
}

/// The id to try where another stack has this one.
#[inline(always)]
pub const fn next_stack_id(id: u64) -> u64 {
    id.wrapping_add(4)
}

/// The stack of this id is stored as a long one.
#[inline(always)]
pub const fn is_long(id: u64) -> bool {
    id & LONG != 0
}
