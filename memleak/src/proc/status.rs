//! What /proc/PID/status and its neighbours say of a process.

use std::io;

use procfs::process::Process;

use super::maps::to_io_error;

/// The parts of a process's status that matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Command name, 15 bytes at most.
    pub comm: String,
    /// Thread group id as the reader's PID namespace has it.
    pub tgid: u32,
    /// Seccomp mode: 0 none, 1 strict, 2 filter.
    pub seccomp: u32,
    /// It has ended and was not yet waited for.
    pub zombie: bool,
    /// Threads that it has.
    pub threads: u64,
    /// A kernel thread: no user memory at all.
    pub kernel_thread: bool,
    /// When it began: clock ticks since the machine did.
    pub start_time: u64,
}

/// Command name of thread `tid`, of whatever process; `None` where it has ended.
pub fn thread_comm(tid: u32) -> Option<String> {
    // /proc/TID is there for each thread, though only those of processes are listed (proc(5)).
    let comm = std::fs::read(format!("/proc/{tid}/comm")).ok()?;
    Some(String::from_utf8_lossy(comm.strip_suffix(b"\n").unwrap_or(&comm)).into_owned())
}

/// The processes that process `pid` has made and that live (proc(5), /proc/PID/task/TID/children).
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists =
        threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// Reads `pid`'s status.
pub fn read_status(pid: u32) -> io::Result<Status> {
    const PF_KTHREAD: u32 = 0x0020_0000; // include/linux/sched.h
    let pid = i32::try_from(pid).map_err(|_| io::Error::from(io::ErrorKind::NotFound))?;
    let process = Process::new(pid).map_err(to_io_error)?;
    let status = process.status().map_err(to_io_error)?;
    let stat = process.stat().map_err(to_io_error)?;
    Ok(Status {
        comm: status.name,
        tgid: status.tgid as u32,
        seccomp: status.seccomp.unwrap_or(0),
        zombie: matches!(stat.state, 'Z' | 'X'),
        threads: status.threads,
        kernel_thread: stat.flags & PF_KTHREAD != 0,
        start_time: stat.starttime,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_a_name_of_its_own() {
        let thread = std::thread::Builder::new().name("a thread".to_owned());
        // SAFETY: gettid(2) cannot fail and touches no memory.
        let named = thread.spawn(|| thread_comm(unsafe { libc::gettid() } as u32));
        assert_eq!(named.expect("starts").join().expect("ends").as_deref(), Some("a thread"));
        assert_eq!(thread_comm(i32::MAX as u32), None);
    }
}
