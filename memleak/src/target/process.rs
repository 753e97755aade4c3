//! A running process as a target: checks before anything is attached, and its end.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use aya::util::KernelVersion;

use crate::{
    arch::{HOST, QEMU, VALGRIND},
    proc::{
        living::path_of,
        status::{Status, read_status},
    },
};

/// Why a process cannot be traced. One line each: what, why, what to do.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// There is no such process.
    #[error("no process {0}: it has exited or never existed; find it with pgrep or ps")]
    Gone(u32),
    /// The number names a thread that is not its process's first.
    #[error("{tid} is a thread of process {pid}, not a process; type -p {pid}")]
    Thread {
        /// What was given.
        tid: u32,
        /// Its process.
        pid: u32,
    },
    /// A kernel thread has no user memory.
    #[error("process {0} is a thread of the kernel, which has no memory of its own; type memleak --kernel")]
    KernelThread(u32),
    /// No descriptor was available.
    #[error("cannot look into process {0}: too many open files; raise the limit (ulimit -n)")]
    TooManyFiles(u32),
    /// There is no room for more.
    #[error("process {0} is not traced: too many processes at once; trace fewer")]
    TooMany(u32),
    /// It is this very process.
    #[error("process {0} is memleak itself; name another")]
    Itself(u32),
    /// It translates another program's code, ours in it included.
    #[error(
        "process {pid} is {program}, which reads the code of the program that it runs, and would find breakpoints \
         in it; trace the program without {program}"
    )]
    Translator {
        /// Process.
        pid: u32,
        /// What runs in it.
        program: String,
    },
    /// /proc does not let us look.
    #[error(
        "cannot look into process {pid}: {source}; run as root (sudo memleak ...) or give CAP_SYS_PTRACE"
    )]
    NotPermitted {
        /// Process.
        pid: u32,
        /// What /proc said.
        source: io::Error,
    },
}

impl ProcessError {
    /// What /proc's refusal means.
    pub fn of(pid: u32, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::NotPermitted { pid, source: error },
            _ if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => Self::TooManyFiles(pid),
            _ => Self::Gone(pid),
        }
    }
}

/// A process, held by a descriptor that no later process of the same number can be mistaken for.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its number in our PID namespace.
    pub pid: u32,
    /// Command name.
    pub comm: String,
    /// When it began: clock ticks since the machine did.
    pub start_time: u64,
    /// Seccomp mode of /proc/PID/status.
    pub seccomp: u32,
    pidfd: PidFd,
}

impl Process {
    /// Takes hold of a running process.
    pub(crate) fn open(pid: u32) -> Result<Self, ProcessError> {
        if pid == std::process::id() {
            return Err(ProcessError::Itself(pid));
        }
        let status = read_status(pid).map_err(|error| ProcessError::of(pid, error))?;
        check(pid, &status)?;
        check_program(pid)?;
        let pidfd = PidFd::open(pid).map_err(|error| ProcessError::of(pid, error))?;
        Ok(Self { pid, comm: status.comm, start_time: status.start_time, seccomp: status.seccomp, pidfd })
    }

    /// A descriptor that is readable once the process has ended.
    pub(crate) fn end_fd(&self) -> io::Result<PidFd> {
        self.pidfd.try_clone()
    }

    /// What a user should know before probes go into this process.
    pub(crate) fn warning(&self) -> Option<String> {
        const SECCOMP_MODE_FILTER: u32 = 2;
        // The uretprobe trampoline of x86_64 is a system call from 6.11 on.
        let by_system_call = HOST.replaces_returns()
            && KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 11, 0));
        (self.seccomp == SECCOMP_MODE_FILTER && by_system_call).then(|| {
            format!(
                "process {} ({}) runs under a seccomp filter: on Linux 6.11 and later a return probe is a system call \
                 (uretprobe, number 335), which a strict filter may answer by killing it; to be safe allow it in the \
                 filter (systemd: SystemCallFilter=uretprobe) or update to Linux 6.14, which exempts it",
                self.pid, self.comm
            )
        })
    }
}

fn check(pid: u32, status: &Status) -> Result<(), ProcessError> {
    if status.tgid != pid {
        return Err(ProcessError::Thread { tid: pid, pid: status.tgid });
    }
    if status.kernel_thread {
        return Err(ProcessError::KernelThread(pid));
    }
    if status.has_ended() {
        return Err(ProcessError::Gone(pid));
    }
    Ok(())
}

/// Refuses a process that runs a program by translating its code. The kernel puts probes into
/// whatever has mapped the probed file; the translator reads the breakpoint in place of the code,
/// and the program is killed by it.
pub(crate) fn check_program(pid: u32) -> Result<(), ProcessError> {
    let Ok(path) = std::fs::read_link(path_of(pid, "exe")) else { return Ok(()) };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_valgrind = name.ends_with(VALGRIND) && path.iter().any(|part| part == "valgrind");
    let program = match name.as_ref() {
        _ if is_valgrind => "valgrind",
        // The system emulator, which runs none of our files, has another name.
        QEMU => QEMU,
        _ if name.strip_suffix("-static") == Some(QEMU) => QEMU,
        _ => return Ok(()),
    };
    Err(ProcessError::Translator { pid, program: program.to_owned() })
}

/// A descriptor of a process: readable once it has ended (pidfd_open(2)).
#[derive(Debug)]
pub(crate) struct PidFd(OwnedFd);

impl PidFd {
    /// Opens one.
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        Self::open_with(pid, 0)
    }

    fn open_with(id: u32, flags: libc::c_int) -> io::Result<Self> {
        // SAFETY: pidfd_open(2) takes two integers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, id, flags) };
        let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the system call has just made it for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Opens one of a thread: readable once that has ended, whatever becomes of its process. Since
    /// Linux 6.9.
    pub(crate) fn of_thread(tid: u32) -> io::Result<Self> {
        const PIDFD_THREAD: libc::c_int = libc::O_EXCL;
        Self::open_with(tid, PIDFD_THREAD)
    }

    /// Another descriptor of the same process.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// It has ended: its number may be another's by now.
    pub(crate) fn has_ended(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, which lives through the call.
        unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for PidFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_no_process() {
        assert!(matches!(Process::open(std::process::id()), Err(ProcessError::Itself(_))));
        assert!(matches!(Process::open(i32::MAX as u32), Err(ProcessError::Gone(_))));
        assert!(matches!(Process::open(2), Err(ProcessError::KernelThread(2) | ProcessError::Gone(2))));
    }

    #[test]
    fn names_the_process_of_a_thread() {
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            // SAFETY: gettid(2) takes nothing.
            tell.send(unsafe { libc::gettid() } as u32).unwrap();
            let _ = ended.recv();
        });
        let tid = told.recv().unwrap();
        let result = Process::open(tid);
        drop(end);
        thread.join().unwrap();
        assert!(matches!(result, Err(ProcessError::Thread { pid, .. }) if pid == std::process::id()));
    }
}
