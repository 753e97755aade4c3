//! aarch64: arch/arm64/include/asm/ptrace.h, `user_pt_regs`, then the first argument and the number
//! of the system call.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::user_pt_regs,
    programs::{ProbeContext, RetProbeContext},
};
pub use aya_ebpf::bindings::user_pt_regs as TaskRegisters;
pub use memleak_common::unwind::step_aarch64 as unwind_step;

use super::Registers;
use crate::args::{Arguments, CallerFrame};

/// Bits of a return address that are address: pointer authentication has what is above a user
/// address of 48 bits (Documentation/arch/arm64/pointer-authentication).
pub const ADDRESS_MASK: u64 = (1 << 48) - 1;
/// What the kernel's return trampoline begins with: `brk` (arch/arm64/include/asm/uprobes.h,
/// `UPROBE_SWBP_INSN`), its lowest byte.
pub const TRAMPOLINE: [u8; 2] = [0xa0, 0xa0];
/// No return address is ever replaced: it is in a register, and who has saved that where, signed or
/// not, is not known. The `ret` instructions are probed (`followed`).
pub const REPLACES_RETURNS: bool = false;
/// A call takes nothing of the caller's frame: the link register has the return address.
pub const RETURN_SLOT: u64 = 0;
/// A step by a frame record can leave the stack pointer unknown (`State::sp_is_bound`).
pub const SP_CAN_BE_UNKNOWN: bool = true;
/// Bytes of a task's stack, which is aligned to them (arch/arm64/include/asm/memory.h,
/// `THREAD_SIZE` with pages of 4 KiB).
pub const KERNEL_STACK_SIZE: u64 = 16_384;
/// The kernel's code is above, with addresses of 48 bits: modules, then the kernel
/// (Documentation/arch/arm64/memory.rst).
pub const KERNEL_CODE: u64 = 0xffff_8000_0000_0000;

impl Registers {
    /// The arguments of a system call.
    #[inline(always)]
    pub fn arguments(&self) -> Arguments {
        let [a, b, c, d, e, f]: [u64; 6] = self.read(offset_of!(user_pt_regs, regs));
        Arguments([a, b, c, d, e, f, 0, 0])
    }

    /// The number of the system call.
    #[inline(always)]
    pub fn system_call(&self) -> u64 {
        self.read::<u32>(size_of::<user_pt_regs>() + 8) as u64
    }

    /// The stack pointer.
    #[inline(always)]
    pub fn stack_pointer(&self) -> u64 {
        self.read(offset_of!(user_pt_regs, sp))
    }

    /// Where the thread is in its own code.
    #[inline(always)]
    pub fn caller(&self) -> CallerFrame {
        CallerFrame {
            ip: self.read(offset_of!(user_pt_regs, pc)),
            sp: self.read(offset_of!(user_pt_regs, sp)),
            fp: self.read(offset_of!(user_pt_regs, regs) + 29 * 8),
            // A system call's stub has no frame: its return address is still where it was.
            lr: self.read(offset_of!(user_pt_regs, regs) + 30 * 8),
        }
    }
}

/// The stack pointer at entry, which no call instruction has changed.
#[inline(always)]
pub fn entry_sp(ctx: &ProbeContext) -> u64 {
    // SAFETY: the context of a uprobe program is the thread's registers.
    unsafe { (*ctx.regs).sp }
}

/// Where the thread is.
#[inline(always)]
pub fn instruction_pointer(ctx: &ProbeContext) -> u64 {
    // SAFETY: as above.
    unsafe { (*ctx.regs).pc }
}

/// What [`entry_sp`] was for the call that returns.
#[inline(always)]
pub fn exit_sp(ctx: &RetProbeContext) -> u64 {
    // SAFETY: as above.
    unsafe { (*ctx.regs).sp }
}

/// The caller of a function that is entered: the link register has the return address.
#[inline(always)]
pub fn entered_caller(ctx: &ProbeContext) -> CallerFrame {
    // SAFETY: as above.
    unsafe {
        let regs = &*ctx.regs;
        CallerFrame { ip: regs.regs[30], sp: regs.sp, fp: regs.regs[29], lr: 0 }
    }
}

/// The caller of a function that returns: the registers are its own already.
#[inline(always)]
pub fn caller_of(ctx: &RetProbeContext) -> CallerFrame {
    // SAFETY: as above.
    unsafe { CallerFrame { ip: (*ctx.regs).pc, sp: (*ctx.regs).sp, fp: (*ctx.regs).regs[29], lr: 0 } }
}

/// Stores a word that says what was stored, or read, before: other CPUs see it after that. An
/// exchange is a full barrier (Documentation/bpf/standardization/instruction-set.rst).
///
/// # Safety
/// `word` is an aligned word of a map's value.
#[inline(always)]
pub unsafe fn publish(word: *mut u64, value: u64) {
    const ORDER: core::intrinsics::AtomicOrdering = core::intrinsics::AtomicOrdering::SeqCst;
    // SAFETY: the caller's promise.
    let _ = unsafe { core::intrinsics::atomic_xchg::<u64, ORDER>(word, value) };
}

/// Loads a word after all that was loaded before, by an addition of nothing, which is a full
/// barrier.
///
/// # Safety
/// `word` is an aligned word of a map's value.
#[inline(always)]
pub unsafe fn read_after(word: *mut u64) -> u64 {
    const ORDER: core::intrinsics::AtomicOrdering = core::intrinsics::AtomicOrdering::SeqCst;
    // SAFETY: the caller's promise.
    unsafe { core::intrinsics::atomic_xadd::<u64, u64, ORDER>(word, 0) }
}
