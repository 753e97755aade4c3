//! x86_64: arch/x86/include/asm/ptrace.h; System V ABI, AMD64, appendix A.2.1.

use core::{ffi::c_void, mem::offset_of};

use aya_ebpf::{
    EbpfContext as _,
    bindings::pt_regs,
    programs::{ProbeContext, RetProbeContext},
};
pub use memleak_common::unwind::{NO_MASK as ADDRESS_MASK, step_x86_64 as unwind_step};

use super::Registers;
use crate::args::{Arguments, Caller};

/// What the kernel's return trampoline begins with: a breakpoint (kernel/events/uprobes.c, `xol_get_insn_slot`'s page) or,
/// from 6.11 on, `push %rax` (arch/x86/kernel/uprobes.c, `uretprobe_trampoline_entry`).
pub const TRAMPOLINE: [u8; 2] = [0xcc, 0x50];
/// Bytes of a task's or an interrupt's stack, which is aligned to them (arch/x86/include/asm/page_64_types.h).
pub const KERNEL_STACK_SIZE: u64 = 16_384;
/// The kernel's code is above (Documentation/arch/x86/x86_64/mm.rst: the kernel, modules and BPF programs).
pub const KERNEL_CODE: u64 = 0xffff_ffff_8000_0000;

impl Registers {
    /// The arguments of a system call.
    #[inline(always)]
    pub fn arguments(&self) -> Arguments {
        let [r10, r9, r8]: [u64; 3] = self.read(offset_of!(pt_regs, r10));
        let [rdx, rsi, rdi]: [u64; 3] = self.read(offset_of!(pt_regs, rdx));
        Arguments([rdi, rsi, rdx, r10, r8, r9, 0, 0])
    }

    /// The number of the system call.
    #[inline(always)]
    pub fn system_call(&self) -> u64 {
        self.read(offset_of!(pt_regs, orig_rax))
    }

    /// Where the thread is in its own code.
    #[inline(always)]
    pub fn caller(&self, ctx: *mut c_void) -> Caller {
        Caller {
            ctx,
            ip: self.read(offset_of!(pt_regs, rip)),
            sp: self.read(offset_of!(pt_regs, rsp)),
            fp: self.read(offset_of!(pt_regs, rbp)),
        }
    }
}

/// Where the return address is, at entry.
#[inline(always)]
pub fn entry_sp(ctx: &ProbeContext) -> u64 {
    // SAFETY: the context of a uprobe program is the thread's registers.
    unsafe { (*ctx.regs).rsp }
}

/// What [`entry_sp`] was for the call that returns: `ret` has taken the return address off the stack.
#[inline(always)]
pub fn exit_sp(ctx: &RetProbeContext) -> u64 {
    // SAFETY: as above.
    unsafe { (*ctx.regs).rsp.wrapping_sub(8) }
}

/// The caller of a function that returns: the registers are its own already.
#[inline(always)]
pub fn caller_of(ctx: &RetProbeContext) -> Caller {
    // SAFETY: as above.
    unsafe { Caller { ctx: ctx.as_ptr(), ip: (*ctx.regs).rip, sp: (*ctx.regs).rsp, fp: (*ctx.regs).rbp } }
}
