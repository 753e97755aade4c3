//! Call stacks: lists of return addresses, callee first (map `STACKS`, key: 64-bit hash of the list).

/// Most frames a stack keeps: `kernel.perf_event_max_stack`'s default, which `bpf_get_stack` obeys.
pub const MAX_STACK_DEPTH: usize = 127;

/// The stack of an allocation whose stack could not be read or stored; counted in `lost.stacks`.
pub const NO_STACK: u64 = 0;

/// One stack.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct StackRecord {
    /// Valid entries of `ips`.
    pub len: u32,
    /// Why the walk ended: a [`crate::unwind::Step`], `Complete` where no callers are missing.
    pub end: u16,
    /// Frames found by the frame pointer, for want of unwind information.
    pub by_pointer: u16,
    /// What the stack's objects are: [`crate::kernel::Label`], encoded; 0 in user mode. Part of the stack's identity.
    pub label: u64,
    /// Return addresses, callee first. For an instruction that a signal interrupted its address plus 1, so that the byte
    /// before each belongs to the instruction that was running.
    pub ips: [u64; MAX_STACK_DEPTH],
}
