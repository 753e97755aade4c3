//! Processes and threads that come, change and go.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{
        bpf_get_current_pid_tgid, bpf_probe_read_kernel,
        generated::{bpf_ktime_get_ns, bpf_loop},
    },
    programs::RawTracePointContext,
};
use aya_log_ebpf::{debug, warn};
use memleak_common::{
    event::{Event, kind},
    settings::flags,
    stats::Stat,
    thread::Target,
};

use crate::{
    maps::{ANSWERED, TARGETS, THREADS, UNWIND_SLOTS, Wake, count, send, setting},
    thread::target_id,
    track,
};

/// The current thread ends.
#[inline(always)]
pub fn thread_exit() {
    let pid_tgid = bpf_get_current_pid_tgid();
    if let Some(thread) = THREADS.get_ptr_mut(&pid_tgid) {
        // SAFETY: only this thread's own programs touch its record.
        track::thread_ends(unsafe { &mut *thread });
        let _ = THREADS.remove(&pid_tgid);
    }
}

/// The current process has replaced its program: what it had acquired is gone with its memory.
#[inline(always)]
pub fn process_exec(ctx: &RawTracePointContext) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(id) = target_id(pid_tgid) else { return };
    let Some(target) = TARGETS.get_ptr_mut(&id) else { return };
    // SAFETY: an aligned map value; exec has ended all other threads of the process.
    unsafe { (*target).generation += 1 };
    let _ = THREADS.remove(&pid_tgid);
    // What it had mapped is gone, too. User space enters it anew.
    let _ = UNWIND_SLOTS.remove(&id);
    // Another thread than the first has become the process: probes are bound to the task that was the first.
    let old_tid: u32 = ctx.arg(1);
    let old = pid_tgid >> 32 << 32 | old_tid as u64;
    let _ = THREADS.remove(&old);
    debug!(ctx, "process {} has replaced its program", id);
    tell(kind::EXEC, (pid_tgid >> 32) as u32, pid_tgid as u32, (old != pid_tgid) as u64);
}

/// The current process has made a thread or process: `--follow-forks` takes the latter in.
#[inline(always)]
pub fn process_fork(ctx: &RawTracePointContext) {
    if setting!(flags) & flags::FOLLOW_FORKS == 0 {
        return;
    }
    let pid_tgid = bpf_get_current_pid_tgid();
    let parent_tgid = (pid_tgid >> 32) as u32;
    if TARGETS.get_ptr(&parent_tgid).is_none() {
        return;
    }
    let child_task: *const u8 = ctx.arg(1);
    // SAFETY: the helper checks the address; the offset is the running kernel's own (BTF).
    let child =
        unsafe { bpf_probe_read_kernel(child_task.add(setting!(task_tgid_offset) as usize).cast::<u32>()) };
    let Ok(child_tgid) = child else {
        count(Stat::LostEvents);
        return;
    };
    if child_tgid == parent_tgid {
        return; // a thread
    }
    let target = Target { generation: 0, kernel_tgid: child_tgid };
    if TARGETS.insert(&child_tgid, &target, BPF_NOEXIST as u64).is_err() {
        warn!(ctx, "child {} is not traced: too many processes", child_tgid);
        count(Stat::LostEvents);
        return;
    }
    // It has what its parent had mapped.
    if let Some(slot) = UNWIND_SLOTS.get_ptr(&parent_tgid) {
        // SAFETY: an aligned map value.
        let _ = UNWIND_SLOTS.insert(&child_tgid, &unsafe { *slot }, BPF_NOEXIST as u64);
    }
    tell(kind::FORK, parent_tgid, pid_tgid as u32, child_tgid as u64);
}

/// The dynamic linker has mapped or unmapped objects.
#[inline(always)]
pub fn mappings_changed() {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(id) = target_id(pid_tgid) else { return };
    if TARGETS.get_ptr(&id).is_none() {
        return;
    }
    let time_ns = tell(kind::MAPPINGS, (pid_tgid >> 32) as u32, pid_tgid as u32, 0);
    if setting!(flags) & flags::HOLD != 0 {
        hold(time_ns);
    }
}

/// Longest time that a thread waits for an answer, ns. Most come within one or two milliseconds; where a new allocator is
/// to be probed it is ten. A thread of a tracer that is stopped, or busy, is not waited for longer than this.
const HOLD_NS: u64 = 20_000_000;
/// Turns of the wait, each of 30 ns and more: time is what ends it.
const HOLD_TURNS: u32 = 1 << 20;

/// Waits until user space has answered the notice of this time: until then the thread runs no code that was mapped, whose
/// calls would not be seen and whose stacks would be cut. A program cannot sleep, so it turns, while user space is on
/// another CPU.
#[inline(always)]
fn hold(mut time_ns: u64) {
    // SAFETY: the callback takes the number of the turn and the place that is handed on here, which outlives the call.
    unsafe { bpf_loop(HOLD_TURNS, hold_turn as *mut _, (&raw mut time_ns).cast(), 0) };
}

/// One turn of [`hold`]; 1 ends it.
unsafe extern "C" fn hold_turn(_turn: u32, time_ns: *const u64) -> i64 {
    // SAFETY: `hold` hands it on.
    let time_ns = unsafe { *time_ns };
    // SAFETY: the helper takes nothing.
    if unsafe { bpf_ktime_get_ns() }.wrapping_sub(time_ns) > HOLD_NS {
        return 1;
    }
    let Some(answered) = ANSWERED.get_ptr(0) else { return 1 };
    // SAFETY: an aligned word of a map value, which user space stores.
    i64::from(unsafe { answered.read_volatile() } >= time_ns)
}

/// Sends an event about a process; gives its time.
#[inline(always)]
fn tell(kind: u32, tgid: u32, tid: u32, handle: u64) -> u64 {
    let event = Event {
        kind,
        tgid,
        tid,
        handle,
        // SAFETY: the helper takes nothing.
        time_ns: unsafe { bpf_ktime_get_ns() },
        ..Event::default()
    };
    send(&event, Wake::Now);
    event.time_ns
}
