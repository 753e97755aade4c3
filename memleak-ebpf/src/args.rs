//! Arguments of a probed call, and the registers of whoever made it.

use aya_ebpf::programs::ProbeContext;
use memleak_common::probe::NO_ARG;

/// The integer arguments of a call. Rows name arguments by number, and the verifier allows no
/// variable offset into the registers, so they are copied out.
#[repr(C)]
pub struct Arguments(pub [u64; 8]);

impl Arguments {
    /// Reads the registers at a function's entry.
    #[inline(always)]
    pub fn of(ctx: &ProbeContext) -> Self {
        let arg = |n| ctx.arg::<u64>(n).unwrap_or(0);
        // The last two are never asked for. Zeroes would be written byte by byte, by a function.
        let last = arg(5);
        Self([arg(0), arg(1), arg(2), arg(3), arg(4), last, last, last])
    }

    /// Argument `n`; 0 for [`NO_ARG`].
    #[inline(always)]
    pub fn get(&self, n: u8) -> u64 {
        if n == NO_ARG { 0 } else { self.0[(n & 7) as usize] }
    }
}

/// Where a walk begins: the registers of the frame that comes first.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CallerFrame {
    /// The instruction pointer.
    pub ip: u64,
    /// The stack pointer.
    pub sp: u64,
    /// The frame pointer.
    pub fp: u64,
    /// The link register, where it may still have the return address; else 0.
    pub lr: u64,
}

/// The return of a call.
#[repr(C)]
pub struct Return {
    /// The caller.
    pub caller: CallerFrame,
    /// What the call returns.
    pub returned: u64,
    /// The id of the kernel's own walk ([`crate::stack::kernel_walk`]), if it walks.
    pub kernel_stack: u64,
}
