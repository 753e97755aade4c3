//! What a memleak for this machine needs of it. Compiled there alone.

use std::io;

use crate::{arch::Machine, proc::ptrace::ptrace};

/// The machine that this memleak runs on.
pub const MACHINE: Machine = Machine::Aarch64;

/// The oldest Linux that can be used, and what older ones lack.
pub const OLDEST_LINUX: (u8, u8, &str) = (5, 18, "atomic operations of BPF programs on arm64");

/// What the names of valgrind's own programs end with.
pub const VALGRIND: &str = "-arm64-linux";
/// The program that runs this machine's programs by translating their code.
pub const QEMU: &str = "qemu-aarch64";

/// The word of `user_pt_regs` (asm/ptrace.h) that is the stack pointer.
pub const STACK_POINTER: usize = 31;

/// System calls that only this machine has, with the function whose row serves them: none, its
/// table is the generic one (include/uapi/asm-generic/unistd.h).
pub const SYSTEM_CALLS: &[(i64, &str)] = &[];

/// System calls that only this machine has, and that a C library may make for files and for
/// waiting: none.
pub const OLD_FILE_CALLS: &[i64] = &[];

/// The words of the vector registers in use: where the kernel keeps them is not known to us.
pub fn vector_words(_state: &[u64]) -> Vec<u64> {
    Vec::new()
}

/// A breakpoint at the entry point, in the processor's debug registers: a child that a constructor
/// forks does not inherit it, as it would a changed instruction.
#[derive(Debug)]
pub struct Breakpoint {
    vaddr: u64,
}

/// The beginning of `struct user_hwdebug_state` with one breakpoint
/// (arch/arm64/include/uapi/asm/ptrace.h).
#[repr(C)]
struct DebugState {
    info: u32,
    padding: u32,
    address: u64,
    control: u32,
    padding2: u32,
}

impl Breakpoint {
    /// Enabled, of four bytes, for user mode; kind 0 is execution
    /// (arch/arm64/include/asm/hw_breakpoint.h, `encode_ctrl_reg`).
    pub fn set(pid: u32, vaddr: u64) -> io::Result<Self> {
        const ENABLED: u32 = 1;
        const USER_MODE: u32 = 2 << 1;
        const FOUR_BYTES: u32 = 0xf << 5;
        write_debug_state(pid, vaddr, ENABLED | USER_MODE | FOUR_BYTES)?;
        Ok(Self { vaddr })
    }

    /// The thread has stopped at it.
    pub fn was_hit(&self, pid: u32) -> bool {
        registers(pid).is_ok_and(|registers| registers.pc == self.vaddr)
    }

    /// Takes it away.
    pub fn remove(self, pid: u32) -> io::Result<()> {
        write_debug_state(pid, 0, 0)
    }
}

fn write_debug_state(pid: u32, address: u64, control: u32) -> io::Result<()> {
    const NT_ARM_HW_BREAK: u64 = 0x402; // include/uapi/linux/elf.h
    let mut state = DebugState { info: 0, padding: 0, address, control, padding2: 0 };
    let vector = libc::iovec { iov_base: (&raw mut state).cast(), iov_len: size_of::<DebugState>() };
    ptrace(libc::PTRACE_SETREGSET, pid, NT_ARM_HW_BREAK, (&raw const vector) as u64).map(drop)
}

fn registers(pid: u32) -> io::Result<libc::user_regs_struct> {
    const NT_PRSTATUS: u64 = 1;
    let mut registers = std::mem::MaybeUninit::<libc::user_regs_struct>::zeroed();
    let mut vector =
        libc::iovec { iov_base: registers.as_mut_ptr().cast(), iov_len: size_of::<libc::user_regs_struct>() };
    ptrace(libc::PTRACE_GETREGSET, pid, NT_PRSTATUS, (&raw mut vector) as u64)?;
    // SAFETY: plain integers, zeroed and then filled by the kernel.
    Ok(unsafe { registers.assume_init() })
}
