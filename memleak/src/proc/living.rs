//! Which number /proc shows a process's memory by.
//!
//! Memory, files and root are a thread's. A process whose first thread has ended (pthread_exit in
//! main) goes on by its others, and `/proc/PID` then shows none of them: maps is empty, exe leads
//! nowhere. `/proc/TID` of a thread that lives shows them all. It is there for each thread, though
//! only those of processes are listed (proc(5)).

use std::{fs, path::PathBuf};

/// The path of `name` in /proc, by a thread of process `pid` that lives.
pub(crate) fn path_of(pid: u32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/{name}", living_thread(pid)))
}

/// A thread of process `pid` that lives: the first one as long as it does, and then the next
/// oldest, which is likely to stay. `pid` itself if there is none.
pub(crate) fn living_thread(pid: u32) -> u32 {
    if has_memory(pid) != Some(false) {
        return pid;
    }
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut threads: Vec<u32> =
        threads.filter_map(|thread| thread.file_name().to_str()?.parse().ok()).collect();
    threads.sort_unstable();
    threads.into_iter().find(|tid| has_memory(*tid) == Some(true)).unwrap_or(pid)
}

/// A thread that has ended has no memory any more (exit_mm): its statm is all zeros
/// (proc_pid_statm(5)). `None`: there is no such thread.
fn has_memory(tid: u32) -> Option<bool> {
    let statm = fs::read(format!("/proc/{tid}/statm")).ok()?;
    Some(!statm.starts_with(b"0 "))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_first_thread_stands_for_the_process_while_it_lives() {
        assert_eq!(living_thread(std::process::id()), std::process::id());
        assert_eq!(has_memory(std::process::id()), Some(true));
        assert_eq!(living_thread(i32::MAX as u32), i32::MAX as u32);
    }

    #[test]
    fn of_a_process_that_has_ended_no_thread_lives() {
        let mut child = Command::new("true").spawn().unwrap();
        // SAFETY: siginfo_t is plain integers, for which all bits zero is a value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: `info` is valid for the call, which leaves the child to be waited for.
        let waited =
            unsafe { libc::waitid(libc::P_PID, child.id(), &raw mut info, libc::WEXITED | libc::WNOWAIT) };
        assert_eq!(waited, 0);
        assert_eq!((has_memory(child.id()), living_thread(child.id())), (Some(false), child.id()));
        child.wait().unwrap();
        assert_eq!(has_memory(child.id()), None);
    }
}
