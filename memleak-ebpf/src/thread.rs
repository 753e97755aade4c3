//! The current thread, its record and its process.

use aya_ebpf::{
    bindings::{BPF_ANY, bpf_pidns_info},
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_ns_current_pid_tgid},
};
use memleak_common::{stats::Stat, thread::ThreadRecord};

use crate::maps::{EMPTY_THREAD, TARGETS, THREADS, count, setting};

/// The record of the current thread, made when it is first seen. `None` where its process is not traced (a vfork child
/// runs in its parent's memory, a fork child has a copy of its probes).
#[inline(always)]
pub fn current_thread() -> Option<&'static mut ThreadRecord> {
    let pid_tgid = bpf_get_current_pid_tgid();
    let thread = match THREADS.get_ptr_mut(&pid_tgid) {
        Some(thread) => thread,
        None => new_thread(pid_tgid)?,
    };
    // SAFETY: only this thread's own programs touch its record.
    Some(unsafe { &mut *thread })
}

#[inline(always)]
fn new_thread(pid_tgid: u64) -> Option<*mut ThreadRecord> {
    let pid = target_id(pid_tgid)?;
    // SAFETY: only written by this program, and only ever with the same values.
    let target = unsafe { &mut *TARGETS.get_ptr_mut(&pid)? };
    target.kernel_tgid = (pid_tgid >> 32) as u32;
    if THREADS.insert(&pid_tgid, EMPTY_THREAD.get(0)?, BPF_ANY as u64).is_err() {
        count(Stat::LostAllocations);
        return None;
    }
    let thread = THREADS.get_ptr_mut(&pid_tgid)?;
    // SAFETY: as in `current_thread`.
    let record = unsafe { &mut *thread };
    record.generation = target.generation;
    record.tgid = (pid_tgid >> 32) as u32;
    record.tid = pid_tgid as u32;
    record.pid = pid;
    Some(thread)
}

/// The current process's number in the tool's PID namespace; `None` where it has none there.
#[inline(always)]
pub fn current_target_id() -> Option<u32> {
    target_id(bpf_get_current_pid_tgid())
}

/// The current process as the map `TARGETS` knows it: in the tool's own PID namespace.
#[inline(always)]
pub fn target_id(pid_tgid: u64) -> Option<u32> {
    if setting!(pid_ns_ino) == 0 {
        return Some((pid_tgid >> 32) as u32);
    }
    let mut info = bpf_pidns_info { pid: 0, tgid: 0 };
    // SAFETY: `info` has the size given.
    let result = unsafe {
        bpf_get_ns_current_pid_tgid(
            setting!(pid_ns_dev),
            setting!(pid_ns_ino),
            &raw mut info,
            size_of::<bpf_pidns_info>() as u32,
        )
    };
    (result == 0).then_some(info.tgid)
}
