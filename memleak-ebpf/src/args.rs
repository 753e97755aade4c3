//! Arguments, the stack pointer and the return value of a probed call: the platform's C ABI.

use core::{ffi::c_void, mem::offset_of};

use aya_ebpf::{
    EbpfContext as _,
    helpers::{
        bpf_probe_read_kernel, bpf_probe_read_user,
        generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
    },
    programs::{ProbeContext, RetProbeContext},
};
use memleak_common::probe::NO_ARG;

#[cfg(bpf_target_arch = "x86_64")]
use aya_ebpf::bindings::pt_regs;
#[cfg(bpf_target_arch = "aarch64")]
use aya_ebpf::bindings::user_pt_regs;

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

/// The registers with which a thread has entered the kernel: the address of a `struct pt_regs`.
pub struct Registers(pub u64);

impl Registers {
    #[inline(always)]
    fn read<T: Copy + Default>(&self, offset: usize) -> T {
        // SAFETY: the helper checks the address.
        unsafe { bpf_probe_read_kernel((self.0 + offset as u64) as *const T) }.unwrap_or_default()
    }
}

impl Registers {
    /// Those of the current thread.
    #[inline(always)]
    pub fn of_current() -> Self {
        // SAFETY: the helpers take nothing, and the task that the first one gives.
        Self(unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as u64)
    }
}

/// arch/x86/include/asm/ptrace.h; System V ABI, AMD64, appendix A.2.1.
#[cfg(bpf_target_arch = "x86_64")]
impl Registers {
    /// The stack pointer.
    #[inline(always)]
    pub fn stack_pointer(&self) -> u64 {
        self.read(offset_of!(pt_regs, rsp))
    }

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

/// arch/arm64/include/asm/ptrace.h: `user_pt_regs`, then the first argument and the number of the system call.
#[cfg(bpf_target_arch = "aarch64")]
impl Registers {
    /// The stack pointer.
    #[inline(always)]
    pub fn stack_pointer(&self) -> u64 {
        self.read(offset_of!(user_pt_regs, sp))
    }

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

    /// Where the thread is in its own code.
    #[inline(always)]
    pub fn caller(&self, ctx: *mut c_void) -> Caller {
        Caller {
            ctx,
            ip: self.read(offset_of!(user_pt_regs, pc)),
            sp: self.read(offset_of!(user_pt_regs, sp)),
            fp: self.read(offset_of!(user_pt_regs, regs) + 29 * 8),
        }
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

/// Where the thread is.
#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
pub fn instruction_pointer(ctx: &ProbeContext) -> u64 {
    // SAFETY: as above.
    unsafe { (*ctx.regs).rip }
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
    /// The caller of a function that is entered: the return address is at the stack pointer, unless it cannot be read.
    #[cfg(bpf_target_arch = "x86_64")]
    #[inline(always)]
    pub fn of_entered(ctx: &ProbeContext) -> Self {
        let sp = entry_sp(ctx);
        // SAFETY: the helper checks the address; the context is as above.
        unsafe {
            let ip = bpf_probe_read_user(sp as *const u64).unwrap_or(0);
            Self { ctx: ctx.as_ptr(), ip, sp: sp.wrapping_add(8), fp: (*ctx.regs).rbp }
        }
    }

    /// The caller of a function that is entered.
    #[cfg(bpf_target_arch = "aarch64")]
    #[inline(always)]
    pub fn of_entered(ctx: &ProbeContext) -> Self {
        // SAFETY: the context is as above.
        unsafe {
            let regs = &*ctx.regs;
            Self { ctx: ctx.as_ptr(), ip: regs.regs[30], sp: regs.sp, fp: regs.regs[29] }
        }
    }

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

/// Where the thread is.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
pub fn instruction_pointer(ctx: &ProbeContext) -> u64 {
    // SAFETY: as above.
    unsafe { (*ctx.regs).pc }
}
