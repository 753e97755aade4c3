//! One test at a time, and nothing of ours left in the kernel when it is done.

use std::{
    collections::BTreeSet,
    fs,
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Our BPF programs' names, as the kernel keeps them (15 bytes at most).
const PROGRAMS: &[&str] = &[
    "abandon_enter",
    "abandon_enter_p",
    "acquire_enter",
    "acquire_enter_p",
    "acquire_exit",
    "acquire_session",
    "call_enter",
    "call_exit",
    "ending_enter",
    "followed_enter",
    "followed_exit",
    "mappings_enter",
    "process_exec",
    "process_fork",
    "release_enter",
    "signal_deliver",
    "system_enter",
    "system_exit",
    "thread_exit",
    "kfree",
    "kmem_cache_allo",
    "kernel_exit",
    "work_start",
];

/// How long the kernel may take to free what its last user has left (it waits for an RCU grace
/// period).
pub(crate) const KERNEL_PATIENCE: Duration = Duration::from_secs(20);

static MACHINE: Mutex<()> = Mutex::new(());

/// Held by a test; checks when dropped.
pub(crate) struct Alone(#[expect(dead_code, reason = "held for its Drop")] MutexGuard<'static, ()>);

/// Waits for the other tests and takes the machine. Declare it first in a test, so that it is
/// dropped last.
pub(crate) fn alone() -> Alone {
    // SAFETY: geteuid(2) cannot fail and touches no memory.
    let user = unsafe { libc::geteuid() };
    assert_eq!(user, 0, "the live tests load BPF programs: run them as root (cargo xtask test)");
    Alone(MACHINE.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Drop for Alone {
    fn drop(&mut self) {
        if !thread::panicking() {
            assert_nothing_left();
        }
    }
}

/// Fails if a BPF program of ours is loaded that no process holds: something in the kernel still
/// does.
pub(crate) fn assert_nothing_left() {
    let deadline = Instant::now() + KERNEL_PATIENCE;
    loop {
        let left = programs_left();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left in the kernel: {left:?}");
        thread::sleep(Duration::from_millis(10)); // the kernel has no event for this
    }
}

/// Fails if a link to a raw tracepoint is left that no process holds (kernel mode pins none).
pub(crate) fn assert_no_links_left() {
    let deadline = Instant::now() + KERNEL_PATIENCE;
    loop {
        let held = held("link_id:");
        let left: Vec<u32> = aya::programs::loaded_links()
            .filter_map(Result::ok)
            .map(|link| link.id())
            .filter(|id| !held.contains(id))
            .collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "links left in the kernel: {left:?}");
        thread::sleep(Duration::from_millis(10)); // the kernel has no event for this
    }
}

fn programs_left() -> BTreeSet<(u32, String)> {
    let loaded: BTreeSet<(u32, String)> = aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .filter_map(|program| Some((program.id(), program.name_as_str()?.to_owned())))
        .filter(|(_, name)| PROGRAMS.contains(&name.as_str()))
        .collect();
    if loaded.is_empty() {
        return loaded;
    }
    let held = held("prog_id:");
    loaded.into_iter().filter(|(id, _)| !held.contains(id)).collect()
}

/// Ids (by their name in fdinfo) of what some process has open: another tracer at work on this
/// machine, say.
fn held(name: &str) -> BTreeSet<u32> {
    let directories = |path: &str| fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    directories("/proc")
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()))
        .flat_map(|process| directories(&format!("{}/fdinfo", process.path().display())))
        .filter_map(|descriptor| fs::read_to_string(descriptor.path()).ok())
        .filter_map(|info| info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()))
        .collect()
}

/// Lines of the kernel's log that say that something is wrong with it.
pub(crate) fn kernel_complaints() -> Vec<String> {
    let log = Command::new("dmesg").output().expect("dmesg");
    assert!(log.status.success(), "reading the kernel's log: {log:?}");
    let bad = ["WARNING:", "BUG:", "Oops", "INFO: task", "rcu: INFO", "refcount_t", "leaking uprobe"];
    let log = String::from_utf8_lossy(&log.stdout);
    log.lines().filter(|line| bad.iter().any(|bad| line.contains(bad))).map(str::to_owned).collect()
}

/// A number of /proc/PID/status, in kB.
pub(crate) fn status_kb(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().expect("a number")
}

/// CPU time of a process, user and system (proc(5), /proc/PID/stat: utime and stime in ticks).
pub(crate) fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("a name").split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
    Duration::from_millis(ticks * 10) // USER_HZ is 100 on all machines that we run on
}

/// What the kernel has complained of since it had said `before`.
pub(crate) fn new_complaints(before: &[String]) -> Vec<String> {
    kernel_complaints().into_iter().filter(|line| !before.contains(line)).collect()
}
