//! What /proc/PID/status and its neighbours say of a process.

use std::{collections::HashSet, fs, io, str::SplitAsciiWhitespace};

use super::living::path_of;

/// The parts of a process's status that matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    /// Command name, 15 bytes at most.
    pub comm: String,
    /// Thread group id as the reader's PID namespace has it.
    pub tgid: u32,
    /// Process id as its own PID namespace has it.
    pub inner_pid: u32,
    /// The user that it acts as.
    pub effective_uid: u32,
    /// Seccomp mode: 0 none, 1 strict, 2 filter.
    pub seccomp: u32,
    /// Its first thread has ended. The process goes on if it has others.
    pub zombie: bool,
    /// Threads that it has.
    pub threads: u64,
    /// A kernel thread: no user memory at all.
    pub kernel_thread: bool,
    /// When it began: clock ticks since the machine did.
    pub start_time: u64,
}

impl Status {
    /// It has ended, and was not yet waited for.
    pub(crate) fn has_ended(&self) -> bool {
        // One that has ended is counted until it is waited for.
        self.zombie && self.threads <= 1
    }
}

/// Command name of thread `tid`, of whatever process; `None` if it has ended.
pub(crate) fn thread_comm(tid: u32) -> Option<String> {
    // /proc/TID is there for each thread, though only those of processes are listed (proc(5)).
    let comm = fs::read(format!("/proc/{tid}/comm")).ok()?;
    Some(String::from_utf8_lossy(comm.strip_suffix(b"\n").unwrap_or(&comm)).into_owned())
}

/// The processes that process `pid` has made and that live (proc(5), /proc/PID/task/TID/children).
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists =
        threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// The process that `pid` is a child of.
pub(crate) fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    stat_fields(&stat)?.1.nth(1)?.parse().ok()
}

/// The children of process `parent` that are named `comm` and began after `start_time`.
pub(crate) fn successors(parent: u32, comm: &str, start_time: u64) -> Vec<u32> {
    let is_successor = |pid: &u32| {
        read_status(*pid)
            .is_ok_and(|status| !status.has_ended() && status.comm == comm && status.start_time > start_time)
    };
    children(parent).into_iter().filter(is_successor).collect()
}

/// What a process has mapped and in memory, in the kernel's words (proc_pid_statm(5)); `None` if it
/// has ended.
pub(crate) fn memory_sizes(pid: u32) -> Option<String> {
    fs::read_to_string(path_of(pid, "statm")).ok()
}

/// Bytes that a process has in memory; `None` if it has ended.
pub(crate) fn resident(pid: u32) -> Option<u64> {
    let statm = memory_sizes(pid)?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// We are in the machine's first PID namespace: its number there is always the same
/// (include/linux/proc_ns.h, PROC_PID_INIT_INO).
pub(crate) fn in_first_pid_namespace() -> bool {
    const FIRST: &str = "pid:[4026531836]";
    fs::read_link("/proc/self/ns/pid").is_ok_and(|namespace| namespace.as_os_str() == FIRST)
}

/// All processes, of this PID namespace.
pub(crate) fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Processes that live and are among `pids`, or in a process group or session that began with one
/// of them: what has been left of a daemon's parents. With their command names.
pub(crate) fn related(pids: &HashSet<u32>) -> Vec<(u32, String)> {
    let mut related: Vec<(u32, String)> = processes()
        .into_iter()
        .filter_map(|pid| {
            let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
            let (comm, ids) = family(&String::from_utf8_lossy(&stat))?;
            (pids.contains(&pid) || ids.iter().any(|id| pids.contains(id))).then_some((pid, comm))
        })
        .collect();
    related.sort_unstable();
    related
}

/// The command name of /proc/PID/stat, and the fields from the third on (proc_pid_stat(5)). The
/// name may hold spaces and parentheses: what comes after the last one is not part of it.
pub(super) fn stat_fields(stat: &str) -> Option<(&str, SplitAsciiWhitespace<'_>)> {
    let (name, fields) = stat.rsplit_once(')')?;
    let (_, comm) = name.split_once('(')?;
    Some((comm, fields.split_ascii_whitespace()))
}

/// Command name, process group and session of a process that has not ended, by its /proc/PID/stat.
fn family(stat: &str) -> Option<(String, [u32; 2])> {
    let (comm, mut fields) = stat_fields(stat)?;
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    let group = fields.nth(1)?.parse().ok()?;
    Some((comm.to_owned(), [group, fields.next()?.parse().ok()?]))
}

/// Reads `pid`'s status.
pub(crate) fn read_status(pid: u32) -> io::Result<Status> {
    let status = fs::read(format!("/proc/{pid}/status"))?;
    let stat = fs::read(format!("/proc/{pid}/stat"))?;
    parse(&String::from_utf8_lossy(&status), &String::from_utf8_lossy(&stat))
        .ok_or_else(|| io::Error::other(format!("/proc/{pid}/status and stat make no sense")))
}

/// It has ended, whether it was waited for or not.
pub(crate) fn has_ended(pid: u32) -> bool {
    read_status(pid).map_or(true, |status| status.has_ended())
}

/// From the texts of /proc/PID/status and /proc/PID/stat: proc_pid_status(5), proc_pid_stat(5).
fn parse(status: &str, stat: &str) -> Option<Status> {
    const PF_KTHREAD: u64 = 0x0020_0000; // include/linux/sched.h
    let field =
        |name: &str| status.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()));
    let number = |text: &str| text.parse::<u64>().ok();
    let (_, mut stat) = stat_fields(stat)?;
    let state = stat.next()?;
    let flags = number(stat.nth(5)?)?;
    let start_time = number(stat.nth(12)?)?;
    let tgid = number(field("Tgid")?)?;
    // Kernels without PID namespaces have no such line.
    let inner_pid = field("NSpid").and_then(|pids| number(pids.split_ascii_whitespace().last()?));
    Some(Status {
        comm: field("Name")?.to_owned(),
        tgid: tgid as u32,
        inner_pid: inner_pid.unwrap_or(tgid) as u32,
        effective_uid: number(field("Uid")?.split_ascii_whitespace().nth(1)?)? as u32,
        // Kernels without seccomp have no such line.
        seccomp: field("Seccomp").and_then(number).unwrap_or(0) as u32,
        zombie: matches!(state, "Z" | "X"),
        threads: number(field("Threads")?)?,
        kernel_thread: flags & PF_KTHREAD != 0,
        start_time,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tweb (1) x\nTgid:\t4711\nPid:\t4711\nUid:\t1000\t1001\t1002\t1003\nNSpid:\t4711\t7\n\
                          Threads:\t3\nSeccomp:\t2\n";

    #[test]
    fn the_fields_are_found() {
        let stat = "4711 (web (1) x) Z 1 4711 4711 0 -1 2097152 0 0 0 0 1 2 0 0 20 0 3 0 123456 0 0";
        let expected = Status {
            comm: "web (1) x".to_owned(),
            tgid: 4711,
            inner_pid: 7,
            effective_uid: 1001,
            seccomp: 2,
            zombie: true,
            threads: 3,
            kernel_thread: true,
            start_time: 123_456,
        };
        assert_eq!(parse(STATUS, stat), Some(expected));
        assert_eq!(parse(STATUS, "4711 (cut"), None);
        assert_eq!(parse("Name:\tx\n", stat), None);
    }

    #[test]
    fn families_are_told_by_group_and_session() {
        assert_eq!(family("7 (a) b) S 1 8 9 0 -1"), Some(("a) b".to_owned(), [8, 9])));
        assert_eq!(family("7 (a) Z 1 8 9 0 -1"), None);
        assert_eq!(family("7 (a"), None);
        let ours = std::process::id();
        assert!(related(&HashSet::from([ours])).iter().any(|(pid, _)| *pid == ours));
        assert_eq!(related(&HashSet::new()), []);
    }

    #[test]
    fn we_are_what_procfs_says() {
        let ours = read_status(std::process::id()).unwrap();
        let theirs = procfs::process::Process::myself().unwrap();
        let (status, stat) = (theirs.status().unwrap(), theirs.stat().unwrap());
        assert_eq!((ours.comm, ours.tgid), (status.name, status.tgid as u32));
        assert_eq!((ours.effective_uid, ours.start_time), (status.euid, stat.starttime));
        assert_eq!(ours.inner_pid, *status.nspid.unwrap().last().unwrap() as u32);
        assert_eq!((ours.seccomp, ours.zombie, ours.kernel_thread), (status.seccomp.unwrap(), false, false));
    }

    #[test]
    fn one_that_is_not_there_is_not_found() {
        assert_eq!(read_status(u32::MAX).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_thread_has_a_name_of_its_own() {
        let thread = std::thread::Builder::new().name("a thread".to_owned());
        // SAFETY: gettid(2) cannot fail and touches no memory.
        let named = thread.spawn(|| thread_comm(unsafe { libc::gettid() } as u32));
        assert_eq!(named.expect("starts").join().expect("ends").as_deref(), Some("a thread"));
        assert_eq!(thread_comm(i32::MAX as u32), None);
    }
}
