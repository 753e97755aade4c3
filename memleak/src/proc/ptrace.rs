//! ptrace(2).

use std::io;

/// ptrace(2); for PTRACE_PEEKTEXT the word read.
pub(crate) fn ptrace(request: libc::c_uint, pid: u32, address: u64, data: u64) -> io::Result<libc::c_long> {
    // SAFETY: errno is the thread's own. A word that was read may be -1, so errno alone shows a
    // failure.
    unsafe { *libc::__errno_location() = 0 };
    // SAFETY: the callers pass addresses of the child, or of buffers of the size that the request
    // asks for.
    let result = unsafe { libc::ptrace(request, pid as libc::pid_t, address, data) };
    let error = io::Error::last_os_error();
    if result == -1 && error.raw_os_error() != Some(0) { Err(error) } else { Ok(result) }
}
