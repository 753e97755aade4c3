//! What a memleak for this machine needs of it.

use std::io;

use crate::{arch::Machine, proc::ptrace::ptrace};

/// The machine that this memleak runs on.
pub const MACHINE: Machine = Machine::X86_64;

/// The oldest Linux that can be used, and what older ones lack.
pub const OLDEST_LINUX: (u8, u8, &str) = (5, 15, "attach cookies");

/// What the names of valgrind's own programs end with.
pub const VALGRIND: &str = "-amd64-linux";
/// The program that runs this machine's programs by translating their code.
pub const QEMU: &str = "qemu-x86_64";

/// The word of `user_regs_struct` (sys/user.h) that is the stack pointer: `rsp`.
pub const STACK_POINTER: usize = 19;

/// System calls that only this machine and older ones have, with the function whose row serves
/// them.
pub const SYSTEM_CALLS: &[(i64, &str)] = &[
    (libc::SYS_open, "open"),
    (libc::SYS_creat, "open"),
    (libc::SYS_dup2, "dup2"),
    (libc::SYS_pipe, "pipe"),
    (libc::SYS_eventfd, "open"),
    (libc::SYS_epoll_create, "open"),
    (libc::SYS_inotify_init, "open"),
    (libc::SYS_signalfd, "signalfd"),
];

/// System calls that only this machine and older ones have, and that a C library may make for files
/// and for waiting.
pub const OLD_FILE_CALLS: &[i64] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_unlink,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_wait,
    libc::SYS_pipe,
    libc::SYS_dup2,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_getpgrp,
    libc::SYS_arch_prctl,
    libc::SYS_time,
];

/// A breakpoint at the entry point, in the processor's debug registers: a child that a constructor
/// forks does not inherit it, as it would a changed instruction.
#[derive(Debug)]
pub struct Breakpoint {
    vaddr: u64,
}

impl Breakpoint {
    /// Debug registers 0, the address, and 7, the control: bit 0 enables the first one for this
    /// thread; kind 0 is execution (Intel SDM, volume 3, section 18.2.4).
    pub fn set(pid: u32, vaddr: u64) -> io::Result<Self> {
        const ENABLE_FIRST: u64 = 1;
        poke_debug_register(pid, 0, vaddr)?;
        poke_debug_register(pid, 7, ENABLE_FIRST)?;
        Ok(Self { vaddr })
    }

    /// The thread has stopped at it.
    pub fn was_hit(&self, pid: u32) -> bool {
        registers(pid).is_ok_and(|registers| registers.rip == self.vaddr)
    }

    /// Takes it away.
    pub fn remove(self, pid: u32) -> io::Result<()> {
        poke_debug_register(pid, 7, 0)
    }
}

fn poke_debug_register(pid: u32, number: usize, value: u64) -> io::Result<()> {
    let offset = std::mem::offset_of!(libc::user, u_debugreg) + number * size_of::<u64>();
    ptrace(libc::PTRACE_POKEUSER, pid, offset as u64, value).map(drop)
}

fn registers(pid: u32) -> io::Result<libc::user_regs_struct> {
    let mut registers = std::mem::MaybeUninit::<libc::user_regs_struct>::zeroed();
    ptrace(libc::PTRACE_GETREGS, pid, 0, registers.as_mut_ptr() as u64)?;
    // SAFETY: plain integers, zeroed and then filled by the kernel.
    Ok(unsafe { registers.assume_init() })
}
