//! What this machine can do, asked of the kernel itself: files that say so may not be mounted.

use std::{
    io,
    os::fd::{FromRawFd as _, OwnedFd},
};

/// Flags for gcc by which functions that are called by their addresses begin with an instruction
/// that says so: `endbr64`, or `paciasp` (which signs the return address) and `bti c`.
pub(crate) const PROTECTED: &str =
    if IS_ARM { "-mbranch-protection=standard" } else { "-fcf-protection=full" };
/// Flags for gcc by which they do not.
pub(crate) const UNPROTECTED: &str = if IS_ARM { "-mbranch-protection=none" } else { "-fcf-protection=none" };
/// What functions begin with then.
pub(crate) const PROTECTION: &str = if IS_ARM { "paciasp" } else { "endbr64" };

/// The tests run on a machine of arm64.
pub(crate) const IS_ARM: bool = cfg!(target_arch = "aarch64");

/// One instruction of BPF (include/uapi/linux/bpf.h, `struct bpf_insn`).
const fn instruction(code: u8, target: u8, source: u8, offset: i16, value: i32) -> u64 {
    code as u64
        | (target as u64) << 8
        | (source as u64) << 12
        | (offset as u16 as u64) << 16
        | (value as u32 as u64) << 32
}

/// A kprobe program that writes to user memory: a kernel that is locked down (integrity) does not
/// load it (kernel/trace/bpf_trace.c, `LOCKDOWN_BPF_WRITE_USER`).
pub(crate) fn lets_programs_write_user_memory() -> bool {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_PROG_TYPE_KPROBE: u32 = 2;
    const PROBE_WRITE_USER: i32 = 36;
    let program = [
        instruction(0x7a, 10, 0, -8, 0), // *(u64 *)(r10 - 8) = 0
        instruction(0xb7, 1, 0, 0, 0),   // r1 = 0
        instruction(0xbf, 2, 10, 0, 0),  // r2 = r10
        instruction(0x07, 2, 0, 0, -8),  // r2 += -8
        instruction(0xb7, 3, 0, 0, 8),   // r3 = 8
        instruction(0x85, 0, 0, 0, PROBE_WRITE_USER),
        instruction(0xb7, 0, 0, 0, 0), // r0 = 0
        instruction(0x95, 0, 0, 0, 0), // exit
    ];
    // `union bpf_attr` for this command: type and number of instructions, their place, the license,
    // no log.
    let attributes: [u64; 16] = {
        let mut all = [0; 16];
        all[0] = u64::from(BPF_PROG_TYPE_KPROBE) | (program.len() as u64) << 32;
        all[1] = program.as_ptr() as u64;
        all[2] = c"GPL".as_ptr() as u64;
        all
    };
    // SAFETY: bpf(2) reads the attributes, and the instructions and the text that they point to;
    // all live through the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, attributes.as_ptr(), size_of_val(&attributes)) };
    match i32::try_from(result) {
        Ok(descriptor) if descriptor >= 0 => {
            // SAFETY: the descriptor is new and nobody else's.
            drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
            true
        }
        _ => {
            let error = io::Error::last_os_error();
            let refusals = [libc::EPERM, libc::EINVAL, libc::EACCES];
            assert!(error.raw_os_error().is_some_and(|code| refusals.contains(&code)), "{error}");
            println!("this kernel loads no program that writes to user memory: {error}");
            false
        }
    }
}
