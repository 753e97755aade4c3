//! Whether a call is nested in one of its group, and what can come between: signals, and switches
//! of stacks.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, programs::ProbeContext};
use memleak_common::{
    probe::{FIRST_CUSTOM, ProbeRow},
    stats::Stat,
    thread::{MAX_PENDING, ThreadRecord},
};

use crate::{
    arch::REPLACES_RETURNS,
    maps::{SWITCHED, count},
    thread::{self, current_registers, group, top},
    unwind,
};

/// A call has a pending one of its group among its callers. It has not where it is a signal
/// handler's, or on another stack.
///
/// The stack is walked to know, but only if it must be: where a signal was delivered while calls
/// were pending, and where a function of a user's may have switched stacks.
#[inline(always)]
pub fn is_nested(ctx: &ProbeContext, thread: &mut ThreadRecord, row: &ProbeRow) -> bool {
    let is_pending = thread.depth > 0 && pends(thread, row);
    let may_be_open = thread.open[open_index(row)] > 0 || (is_users(row) && has_switched());
    if !is_pending && !may_be_open {
        return false;
    }
    if is_pending && thread.interrupted == 0 && !is_users(row) {
        return true;
    }
    match unwind::search_callers(ctx, thread, row.group) {
        unwind::CALLED => true,
        unwind::NOT_CALLED => false,
        _ => {
            count(Stat::MissedReturns);
            is_pending
        }
    }
}

/// The row is of a resource of the user's: nobody knows what its functions do.
#[inline(always)]
pub fn is_users(row: &ProbeRow) -> bool {
    row.resource >= FIRST_CUSTOM
}

/// Where [`ThreadRecord::open`] counts the row's calls.
#[inline(always)]
pub fn open_index(row: &ProbeRow) -> usize {
    (row.group != 0) as usize
}

/// A call was left by another thread than had entered it: threads do not know how many they have
/// open.
#[inline(always)]
fn has_switched() -> bool {
    let Some(switched) = SWITCHED.get_ptr(0) else { return false };
    // SAFETY: an aligned word of a map value.
    unsafe { switched.read_volatile() != 0 }
}

/// A call of the row's group is pending in the thread.
#[inline(always)]
fn pends(thread: &ThreadRecord, row: &ProbeRow) -> bool {
    for i in 0..MAX_PENDING {
        if i as u32 >= thread.depth {
            break;
        }
        if group(thread.pending[i].row) == row.group {
            return true;
        }
    }
    false
}

/// The thread is about to run a signal's handler.
#[inline(always)]
pub fn interrupted() {
    /// What the trampoline pushes (arch/x86/kernel/uprobes.c, `uretprobe_trampoline_entry`), bytes.
    const PUSHED: u64 = 24;
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = thread::find(pid_tgid) else { return };
    // SAFETY: only this thread's own programs touch its record.
    let thread = unsafe { &mut *thread };
    let Some(top) = top(thread) else { return };
    let (top_sp, sp) = (top.sp, current_registers().stack_pointer());
    thread.interrupted = 1;
    if !REPLACES_RETURNS {
        return;
    }
    // `ret` has taken the address off the stack, and the trampoline writes to its place. At the
    // function's entry the stack pointer is there as well: then the address is, too.
    if sp.wrapping_add(PUSHED).wrapping_sub(top_sp) <= PUSHED + 8 && thread.returning == 0 {
        thread.returning = top_sp;
    }
}
