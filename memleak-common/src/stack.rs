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
    /// 1 where the walk ended for want of room, so that callers are missing.
    pub truncated: u32,
    /// Return addresses, callee first; 0 from `len` on.
    pub ips: [u64; MAX_STACK_DEPTH],
}
