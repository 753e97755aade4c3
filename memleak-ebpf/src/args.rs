//! Arguments, the stack pointer and the return value of a probed call: the platform's C ABI.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    programs::{ProbeContext, RetProbeContext},
};
use memleak_common::probe::NO_ARG;

/// The integer arguments of a call. Rows name arguments by number, and the verifier allows no variable offset into the
/// registers, so they are copied out.
pub struct Arguments([u64; 8]);

impl Arguments {
    /// Reads the registers at a function's entry.
    #[inline(always)]
    pub fn of(ctx: &ProbeContext) -> Self {
        let arg = |n| ctx.arg::<u64>(n).unwrap_or(0);
        Self([arg(0), arg(1), arg(2), arg(3), arg(4), arg(5), 0, 0])
    }

    /// Argument `n`; 0 for [`NO_ARG`].
    #[inline(always)]
    pub fn get(&self, n: u8) -> u64 {
        if n == NO_ARG { 0 } else { self.0[(n & 7) as usize] }
    }
}

/// Where the return address is, at entry.
#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
pub fn entry_sp(ctx: &ProbeContext) -> u64 {
    // SAFETY: the context of a uprobe program is the thread's registers.
    unsafe { (*ctx.regs).rsp }
}

/// What [`entry_sp`] was for the call that returns: `ret` has taken the return address off the stack.
#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
pub fn exit_sp(ctx: &RetProbeContext) -> u64 {
    // SAFETY: as above.
    unsafe { (*ctx.regs).rsp.wrapping_sub(8) }
}

/// Where a walk begins: the registers of the frame that comes first.
pub struct Caller {
    /// The program's context, for the kernel's own walk.
    pub ctx: *mut c_void,
    /// The instruction pointer.
    pub ip: u64,
    /// The stack pointer.
    pub sp: u64,
    /// The frame pointer.
    pub fp: u64,
}

impl Caller {
    /// The caller of a function that returns: the registers are its own already.
    #[cfg(bpf_target_arch = "x86_64")]
    #[inline(always)]
    pub fn of(ctx: &RetProbeContext) -> Self {
        // SAFETY: as above.
        unsafe { Self { ctx: ctx.as_ptr(), ip: (*ctx.regs).rip, sp: (*ctx.regs).rsp, fp: (*ctx.regs).rbp } }
    }

    /// The caller of a function that returns: the registers are its own already.
    #[cfg(bpf_target_arch = "aarch64")]
    #[inline(always)]
    pub fn of(ctx: &RetProbeContext) -> Self {
        // SAFETY: as above.
        unsafe {
            Self { ctx: ctx.as_ptr(), ip: (*ctx.regs).pc, sp: (*ctx.regs).sp, fp: (*ctx.regs).regs[29] }
        }
    }
}

/// The stack pointer at entry, which no call instruction has changed.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
pub fn entry_sp(ctx: &ProbeContext) -> u64 {
    // SAFETY: the context of a uprobe program is the thread's registers.
    unsafe { (*ctx.regs).sp }
}

/// What [`entry_sp`] was for the call that returns.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
pub fn exit_sp(ctx: &RetProbeContext) -> u64 {
    // SAFETY: as above.
    unsafe { (*ctx.regs).sp }
}
