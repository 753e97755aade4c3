//! x86_64: arch/x86/include/asm/ptrace.h; System V ABI, AMD64, appendix A.2.1.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::pt_regs,
    helpers::bpf_probe_read_user,
    programs::{ProbeContext, RetProbeContext},
};
pub use aya_ebpf::bindings::pt_regs as TaskRegisters;
pub use memleak_common::unwind::{NO_MASK as ADDRESS_MASK, step_x86_64 as unwind_step};

use super::Registers;
use crate::args::{Arguments, CallerFrame};

/// What the kernel's return trampoline begins with: a breakpoint (kernel/events/uprobes.c,
/// `xol_get_insn_slot`'s page) or, from 6.11 on, `push %rax` (arch/x86/kernel/uprobes.c,
/// `uretprobe_trampoline_entry`).
pub const TRAMPOLINE: [u8; 2] = [0xcc, 0x50];
/// The return addresses of probed calls are replaced, on the stack.
pub const REPLACES_RETURNS: bool = true;
/// Bytes of a caller's frame that its call has taken for the return address.
pub const RETURN_SLOT: u64 = 8;
/// Each step tells the stack pointer (`State::sp_is_bound`).
pub const SP_CAN_BE_UNKNOWN: bool = false;
/// Bytes of a task's or an interrupt's stack, which is aligned to them
/// (arch/x86/include/asm/page_64_types.h).
pub const KERNEL_STACK_SIZE: u64 = 16_384;
/// The kernel's code is above (Documentation/arch/x86/x86_64/mm.rst: the kernel, modules and BPF
/// programs).
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

    /// The stack pointer.
    #[inline(always)]
    pub fn stack_pointer(&self) -> u64 {
        self.read(offset_of!(pt_regs, rsp))
    }

    /// Where the thread is in its own code.
    #[inline(always)]
    pub fn caller(&self) -> CallerFrame {
        CallerFrame {
            ip: self.read(offset_of!(pt_regs, rip)),
            sp: self.read(offset_of!(pt_regs, rsp)),
            fp: self.read(offset_of!(pt_regs, rbp)),
            lr: 0,
        }
    }
}

/// Where the return address is, at entry.
#[inline(always)]
pub fn entry_sp(ctx: &ProbeContext) -> u64 {
    // SAFETY: the context of a uprobe program is the thread's registers.
    unsafe { (*ctx.regs).rsp }
}

/// Where the thread is.
#[inline(always)]
pub fn instruction_pointer(ctx: &ProbeContext) -> u64 {
    // SAFETY: as above.
    unsafe { (*ctx.regs).rip }
}

/// What [`entry_sp`] was for the call that returns: `ret` has taken the return address off the
/// stack.
#[inline(always)]
pub fn exit_sp(ctx: &RetProbeContext) -> u64 {
    // SAFETY: as above.
    unsafe { (*ctx.regs).rsp.wrapping_sub(8) }
}

/// The caller of a function that is entered: the return address is at the stack pointer; 0 if it
/// cannot be read.
#[inline(always)]
pub fn entered_caller(ctx: &ProbeContext) -> CallerFrame {
    let sp = entry_sp(ctx);
    // SAFETY: the helper checks the address.
    let ip = unsafe { bpf_probe_read_user(sp as *const u64) }.unwrap_or(0);
    // SAFETY: the context is as above.
    let fp = unsafe { (*ctx.regs).rbp };
    CallerFrame { ip, sp: sp.wrapping_add(8), fp, lr: 0 }
}

/// The caller of a function that returns: the registers are its own already.
#[inline(always)]
pub fn caller_of(ctx: &RetProbeContext) -> CallerFrame {
    // SAFETY: as above.
    unsafe { CallerFrame { ip: (*ctx.regs).rip, sp: (*ctx.regs).rsp, fp: (*ctx.regs).rbp, lr: 0 } }
}

/// Stores a word that says what was stored, or read, before: other CPUs see it after that. Stores
/// are in order here (Intel SDM, volume 3, 9.2.2).
///
/// # Safety
/// `word` is an aligned word of a map's value.
#[inline(always)]
pub unsafe fn publish(word: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { word.write_volatile(value) };
}

/// Loads a word after all that was loaded before: loads are in order here.
///
/// # Safety
/// `word` is an aligned word of a map's value.
#[inline(always)]
pub unsafe fn read_after(word: *mut u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { word.read_volatile() }
}
