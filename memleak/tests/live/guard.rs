//! One test at a time, and nothing of ours left in the kernel when it is done.

use std::{
    collections::BTreeSet,
    fs,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Our BPF programs' names, as the kernel keeps them (15 bytes at most).
const PROGRAMS: &[&str] = &[
    "acquire_enter",
    "acquire_exit",
    "release_enter",
    "abandon_enter",
    "mappings_enter",
    "system_enter",
    "system_exit",
    "kfree",
    "kmem_cache_allo",
    "kernel_exit",
    "work_start",
];

/// How long the kernel may take to free what its last user has left (it waits for an RCU grace period).
pub const KERNEL_PATIENCE: Duration = Duration::from_secs(20);

static MACHINE: Mutex<()> = Mutex::new(());

/// Held by a test; checks when dropped.
pub struct Alone(#[expect(dead_code, reason = "held for its Drop")] MutexGuard<'static, ()>);

/// Waits for the other tests and takes the machine. Declare it first in a test, so that it is dropped last.
pub fn alone() -> Alone {
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

/// Fails where a BPF program of ours is loaded that no process holds: something in the kernel still does.
pub fn assert_nothing_left() {
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

/// Fails where a link to a raw tracepoint is left that no process holds (kernel mode pins none).
pub fn assert_no_links_left() {
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

/// Ids (by their name in fdinfo) of what some process has open: another tracer at work on this machine, say.
fn held(name: &str) -> BTreeSet<u32> {
    let directories = |path: &str| fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    directories("/proc")
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()))
        .flat_map(|process| directories(&format!("{}/fdinfo", process.path().display())))
        .filter_map(|descriptor| fs::read_to_string(descriptor.path()).ok())
        .filter_map(|info| info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()))
        .collect()
}
