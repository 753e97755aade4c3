//! ptrace(2).

use std::{fs, io};

/// The type of requests: glibc and musl declare different ones.
#[cfg(not(target_env = "musl"))]
pub(crate) type Request = libc::c_uint;
#[cfg(target_env = "musl")]
pub(crate) type Request = libc::c_int;

/// A system call that begins.
pub(crate) struct SystemCall {
    pub number: i64,
    pub arguments: [u64; 6],
}

/// ptrace(2); for PTRACE_PEEKTEXT the word read.
pub(crate) fn ptrace(request: Request, pid: u32, address: u64, data: u64) -> io::Result<libc::c_long> {
    // SAFETY: errno is the thread's own. A word that was read may be -1, so errno alone shows a
    // failure.
    unsafe { *libc::__errno_location() = 0 };
    // SAFETY: the callers pass addresses of the child, or of buffers of the size that the request
    // asks for.
    let result = unsafe { libc::ptrace(request, pid as libc::pid_t, address, data) };
    let error = io::Error::last_os_error();
    if result == -1 && error.raw_os_error() != Some(0) { Err(error) } else { Ok(result) }
}

/// The system call at whose beginning a process has stopped; `None` if it has stopped at the end of
/// one. Of `struct ptrace_syscall_info` (linux/ptrace.h), which the bindings to musl lack.
pub(crate) fn beginning_system_call(pid: u32) -> io::Result<Option<SystemCall>> {
    const PTRACE_GET_SYSCALL_INFO: Request = 0x420e;
    const PTRACE_SYSCALL_INFO_ENTRY: u8 = 1;
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        op: u8,
        pad: [u8; 3],
        arch: u32,
        instruction_pointer: u64,
        stack_pointer: u64,
        number: u64,
        arguments: [u64; 6],
    }
    let mut info = Info::default();
    ptrace(PTRACE_GET_SYSCALL_INFO, pid, size_of::<Info>() as u64, (&raw mut info) as u64)?;
    let begins = info.op == PTRACE_SYSCALL_INFO_ENTRY;
    Ok(begins.then_some(SystemCall { number: info.number as i64, arguments: info.arguments }))
}

/// Why nobody may trace or read another process, if it is so
/// (Documentation/admin-guide/LSM/Yama.rst).
pub(crate) fn closed_to_all() -> Option<&'static str> {
    const SCOPE: &str = "/proc/sys/kernel/yama/ptrace_scope";
    let is_closed = fs::read_to_string(SCOPE).is_ok_and(|scope| scope.trim() == "3");
    is_closed.then_some(
        "kernel.yama.ptrace_scope is 3, with which nobody may; it is so until the machine is started anew",
    )
}

/// Why another process may not be read, if that can be told.
pub(crate) fn explained(error: io::Error) -> io::Error {
    let why = || closed_to_all().map(|why| io::Error::new(io::ErrorKind::PermissionDenied, why));
    match error.kind() {
        io::ErrorKind::PermissionDenied => why().unwrap_or(error),
        _ => error,
    }
}
