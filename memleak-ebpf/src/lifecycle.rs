//! Processes and threads that come, change and go.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_attach_cookie, bpf_ktime_get_ns, bpf_loop},
    },
    programs::{ProbeContext, RawTracePointContext},
};
use memleak_common::{
    event::{Event, kind, shared},
    probe::slot_of,
    settings::{HOLD_BIRTH_NS, HOLD_NS, MAX_HELD, flags},
    stats::Stat,
    thread::MAX_TARGETS,
    unwind::MappingList,
};

use crate::{
    mappings,
    maps::{
        ANSWERED, BIRTH_ANSWERS, BIRTHS, HELD, TARGET_SLOTS, TARGETS, UNWIND_LISTS, Wake, count,
        send, setting,
    },
    thread::{self, member, slot_of_process, target_id},
    track,
};

/// The current thread ends. With the last one its process does: its number can be another's soon.
#[inline(always)]
pub fn thread_exit(ctx: &RawTracePointContext) {
    let pid_tgid = bpf_get_current_pid_tgid();
    if let Some(thread) = thread::find(pid_tgid) {
        // SAFETY: only this thread's own programs touch its record.
        track::thread_ends(unsafe { &mut *thread });
        thread::forget(pid_tgid);
    }
    if is_last_thread(ctx.arg(0))
        && let Some(pid) = target_id(pid_tgid)
    {
        let _ = TARGET_SLOTS.remove(&pid);
    }
}

/// No thread of the task's process is left. kernel/exit.c, `do_exit`: `signal->live` was
/// decremented for this one.
#[inline(always)]
fn is_last_thread(task: *const u8) -> bool {
    if setting!(task.signal_live) == 0 {
        return false; // user space takes note of its end
    }
    let signal: u64 = member(task, setting!(task.signal));
    signal != 0 && member::<u32>(signal as *const u8, setting!(task.signal_live)) == 0
}

/// The current process has replaced its program: its memory, and all that was in it, is gone.
#[inline(always)]
pub fn process_exec(ctx: &RawTracePointContext) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(slot) = slot_of_process(pid_tgid) else { return };
    let Some(target) = TARGETS.get_ptr_mut(slot) else { return };
    // SAFETY: an aligned map value; exec has ended all other threads of the process.
    let target = unsafe { &mut *target };
    let space = target.next_space;
    // One without a space goes on untraced, but for translators of code, which are told of all the
    // same.
    if target.owner.space != 0 {
        if space == 0 {
            count(Stat::LostProcesses);
        }
        mappings::new_program(target.owner.space, space);
        target.owner.space = space;
        target.next_space = space.checked_add(MAX_TARGETS).filter(|_| space != 0).unwrap_or(0);
    }
    thread::forget(pid_tgid);
    // What it had mapped is gone, too. User space enters it again.
    if let Some(published) = UNWIND_LISTS.get_ptr_mut(slot) {
        // SAFETY: aligned words of a map value.
        unsafe {
            (&raw mut (*published).list).write_volatile(MappingList::default());
            (&raw mut (*published).generation).write_volatile(0);
        }
    }
    // Another thread than the first has become the process: probes are bound to the task that was
    // the first.
    let old_tid: u32 = ctx.arg(1);
    let old = pid_tgid >> 32 << 32 | old_tid as u64;
    thread::forget(old);
    let by_another = (old != pid_tgid) as u64;
    let Some(pid) = target_id(pid_tgid) else { return };
    born(kind::EXEC, target.number, pid, space as u64, by_another);
}

/// The current process has made a thread or process. `--follow-forks` takes the latter in; so is
/// one taken in that shares its memory, since it owns the same blocks.
#[inline(always)]
pub fn process_fork(ctx: &RawTracePointContext) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(slot) = slot_of_process(pid_tgid) else { return };
    let Some(parent) = TARGETS.get(slot) else { return };
    let (task, child): (*const u8, *const u8) = (ctx.arg(0), ctx.arg(1));
    let child_tgid: u32 = member(child, setting!(task.tgid));
    if parent.number == 0 {
        return; // it goes on untraced
    }
    if setting!(task.tgid) == 0 || child_tgid == (pid_tgid >> 32) as u32 {
        return; // a thread, or it cannot be told
    }
    let shares = |offset: u32| member::<u64>(task, offset) == member::<u64>(child, offset);
    let mut shared_with = 0;
    if shares(setting!(task.mm)) {
        shared_with |= shared::MEMORY;
    }
    if shares(setting!(task.files)) {
        shared_with |= shared::FILES;
    }
    let is_followed = setting!(flags) & flags::FOLLOW_FORKS != 0 || shared_with & shared::MEMORY != 0;
    if !is_followed && setting!(pid_ns_ino) == 0 {
        // SAFETY: the helper takes nothing.
        let time_ns = unsafe { bpf_ktime_get_ns() };
        let event = Event { kind: kind::CHILD, owner: parent.number, tid: child_tgid, time_ns, ..Event::default() };
        send(&event, Wake::Lazily);
    }
    if !is_followed {
        return;
    }
    if setting!(pid_ns_ino) != 0 {
        count(Stat::LostProcesses); // its number in the tool's namespace is not known here
        return;
    }
    born(kind::FORK, parent.number, child_tgid, 0, shared_with);
}

/// Tells of a birth, and waits until it has been answered: until then the process that was born,
/// which is this one or its child, does not run.
#[inline(always)]
fn born(kind: u32, process: u32, pid: u32, handle: u64, size: u64) {
    const BPF_RB_FORCE_WAKEUP: u64 = 2;
    // SAFETY: the helper takes nothing.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    let place = take_place();
    let event = Event {
        kind,
        owner: process,
        tid: pid,
        resource: place,
        handle,
        size,
        time_ns,
        ..Event::default()
    };
    if BIRTHS.output::<Event>(&event, BPF_RB_FORCE_WAKEUP).is_err() {
        count(Stat::LostProcesses);
    } else if setting!(held) != 0 && place != 0 {
        let mut wait = Wait { time_ns, place: place as u64 - 1 };
        // SAFETY: as in `hold`.
        unsafe { bpf_loop(HOLD_TURNS, birth_turn as *mut _, (&raw mut wait).cast(), 0) };
    }
    if place != 0 {
        let _ = HELD.remove(&(place - 1));
    }
}

/// The current process is about to end by itself (`_exit`): it waits until all of its threads have
/// been asked to stop.
#[inline(always)]
pub fn ending(ctx: &ProbeContext) {
    // SAFETY: the helper takes the program's context.
    let slot = slot_of(unsafe { bpf_get_attach_cookie(ctx.regs.cast()) });
    let Some(target) = TARGETS.get(slot) else { return };
    let Some(pid) = target_id(bpf_get_current_pid_tgid()) else { return };
    born(kind::ENDING, target.number, pid, 0, 0);
}

/// Takes a place to wait for an answer at. Gives it, plus 1; 0 if none is free. As many processors
/// as there are places are not free for others while somebody waits; those that answer run on
/// others.
#[inline(always)]
fn take_place() -> u32 {
    for place in 0..MAX_HELD {
        if place < setting!(held) && HELD.insert(&place, &0, BPF_NOEXIST as u64).is_ok() {
            return place + 1;
        }
    }
    0
}

/// What [`birth_turn`] waits for.
struct Wait {
    time_ns: u64,
    place: u64,
}

/// One turn of the wait for an answer to a birth; 1 ends it.
unsafe extern "C" fn birth_turn(_turn: u32, wait: *const Wait) -> i64 {
    // SAFETY: `born` hands it on.
    let (time_ns, place) = unsafe { ((*wait).time_ns, (*wait).place) };
    // SAFETY: the helper takes nothing.
    if unsafe { bpf_ktime_get_ns() }.wrapping_sub(time_ns) > HOLD_BIRTH_NS {
        return 1;
    }
    let Some(answered) = BIRTH_ANSWERS.get_ptr(place as u32) else { return 1 };
    // SAFETY: an aligned word of a map value, which user space stores.
    i64::from(unsafe { answered.read_volatile() } == time_ns)
}

/// The dynamic linker has mapped or unmapped objects.
#[inline(always)]
pub fn mappings_changed(ctx: &ProbeContext) {
    // SAFETY: the helper takes the program's context.
    let slot = slot_of(unsafe { bpf_get_attach_cookie(ctx.regs.cast()) });
    let Some(target) = TARGETS.get(slot) else { return };
    // First: what is read after the event is of the new generation.
    mappings::noticed(target.owner.space);
    let time_ns = tell(kind::MAPPINGS, target.number, bpf_get_current_pid_tgid() as u32, 0, 0);
    if setting!(flags) & flags::HOLD != 0 {
        hold(time_ns);
    }
}

/// Turns of the wait, each of 30 ns and more: time is what ends it.
const HOLD_TURNS: u32 = 1 << 20;

/// Waits until user space has answered the notice of this time: until then the thread runs no code
/// that was mapped, whose calls would not be seen and whose stacks would be cut. A program cannot
/// sleep, so it turns, while user space is on another CPU.
#[inline(always)]
fn hold(mut time_ns: u64) {
    // SAFETY: the callback takes the number of the turn and the place that is handed on here, which
    // outlives the call.
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
fn tell(kind: u32, process: u32, tid: u32, handle: u64, size: u64) -> u64 {
    let event = Event {
        kind,
        owner: process,
        tid,
        handle,
        size,
        // SAFETY: the helper takes nothing.
        time_ns: unsafe { bpf_ktime_get_ns() },
        ..Event::default()
    };
    send(&event, Wake::Now);
    event.time_ns
}
