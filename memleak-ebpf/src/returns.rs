//! Calls of functions whose `ret` instructions are probed. No return address is replaced, so
//! whatever the function does, the target is as it was: it may throw, or switch to another stack
//! and return on another thread. So the pending call belongs to the place of its return address
//! (map `CALLS`).
//!
//! A call that is left otherwise stays there until another one comes to its place.

use aya_ebpf::{
    bindings::BPF_ANY,
    programs::{ProbeContext, RetProbeContext},
};
use memleak_common::{
    probe::{flags, only},
    stats::Stat,
    thread::CallKey,
};

use crate::{
    arch::{REPLACES_RETURNS, entered_caller, entry_sp},
    args::{Arguments, Return},
    maps::{CALLS, EMPTY_CALL, PROBES, SWITCHED, count, has},
    nesting::{is_nested, open_index},
    records::put_back,
    stack::kernel_walk,
    thread::{current_thread, group},
    track::{commit, enter_call, read_arguments, row},
    values::applies,
};

/// Such a function is entered.
#[inline(always)]
pub fn call_enter(ctx: &ProbeContext) -> Option<()> {
    let (cookie, slot, row) = row(ctx.regs.cast())?;
    let thread = current_thread(slot)?;
    let args = Arguments::of(ctx);
    if row.only != only::ALL && !applies(row, &args) {
        return None;
    }
    let sp = entry_sp(ctx);
    let return_address = entered_caller(ctx).ip;
    let key = CallKey { sp, space: thread.owner.space, reserved: 0 };
    if let Some(found) = CALLS.get_ptr(&key) {
        // SAFETY: an aligned map value, which whoever runs on this stack writes.
        let found = unsafe { &(*found).call };
        if found.row != cookie && found.return_address == return_address && group(found.row) == row.group {
            return None; // it has jumped to this one, which returns in its stead
        }
        count(Stat::MissedReturns);
        put_back(thread.owner, found);
        let _ = CALLS.remove(&key);
    }
    if thread.depth == 0 {
        thread.interrupted = 0;
    }
    if !has(row, flags::COUNTS_NESTED) && is_nested(ctx, thread, row) {
        return None;
    }
    if CALLS.insert(&key, EMPTY_CALL.get(0)?, BPF_ANY as u64).is_err() {
        count(Stat::LostAllocations);
        return None;
    }
    // Filled in its place: with it on the program's stack there would not be room for what is
    // called. SAFETY: an aligned map value, which whoever runs on this stack writes.
    let open = unsafe { &mut *CALLS.get_ptr_mut(&key)? };
    enter_call(&mut open.call, sp, return_address, cookie);
    (open.owner, open.tid) = (thread.owner, thread.tid);
    read_arguments(&args, thread.owner, row, &mut open.call);
    thread.open[open_index(row)] += 1;
    Some(())
}

/// A `ret` of such a function, or of one that it has jumped to, is about to be executed.
#[inline(always)]
pub fn call_exit(ctx: &ProbeContext) -> Option<()> {
    let (_, slot, _) = row(ctx.regs.cast())?;
    let thread = current_thread(slot)?;
    let key = CallKey { sp: entry_sp(ctx), space: thread.owner.space, reserved: 0 };
    // SAFETY: an aligned map value, which whoever runs on this stack writes.
    let open = unsafe { &mut *CALLS.get_ptr_mut(&key)? };
    let row = PROBES.get(open.call.row)?;
    // Code that many functions jump to (a system call's error) is followed to here as well.
    if !REPLACES_RETURNS && entered_caller(ctx).ip != open.call.return_address {
        return None;
    }
    if open.tid == thread.tid {
        let count = &mut thread.open[open_index(row)];
        *count = count.saturating_sub(1);
    } else if let Some(switched) = SWITCHED.get_ptr_mut(0) {
        // SAFETY: an aligned word of a map value, which is only ever set.
        unsafe { switched.write_volatile(1) };
    }
    let returned: u64 = RetProbeContext::new(ctx.regs.cast()).ret();
    let kernel_stack = kernel_walk(ctx.regs.cast());
    let at = Return { caller: entered_caller(ctx), returned, kernel_stack };
    // SAFETY: the current thread's record, and a call that it leaves.
    unsafe { commit(thread, &mut open.call, &at) };
    CALLS.remove(&key).ok()
}
