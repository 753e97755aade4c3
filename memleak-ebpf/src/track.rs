//! Calls of probed functions, from their entry to their return.
//!
//! A thread keeps the calls that it has entered and not left (`ThreadRecord::pending`). A call
//! nests in a pending one of its group while its stack pointer is lower, and then does not count:
//! the outermost does. A pending one at a lower stack pointer than a new call's has been left
//! without a return that we saw.
//!
//! What calls do to the table is in `records`.

use aya_ebpf::{
    helpers::{
        bpf_get_current_pid_tgid, bpf_probe_read_user, bpf_probe_write_user,
        generated::bpf_get_attach_cookie,
    },
    programs::{ProbeContext, RetProbeContext},
};
use memleak_common::{
    probe::{NO_ARG, ProbeRow, flags, handle, only, row_of, size, slot_of},
    settings::flags as setting_flags,
    stats::Stat,
    thread::{MAX_PENDING, Owner, PendingCall, ThreadRecord},
};

use crate::{
    cut,
    values::{Handles, MAX_HANDLES, acquired_handle, applies, handle_to_release, handles, is_none, narrow, read_word, size_or_address},
    arch::{REPLACES_RETURNS, TRAMPOLINE, caller_of, entered_caller, entry_sp, exit_sp},
    args::{Arguments, Return},
    clock::now,
    growth::tell_moved,
    maps::{PROBES, count, has, setting},
    nesting::{is_nested, is_users},
    segments,
    skipped::is_within_skipped,
    records::{
        self, Acquired, NOTHING, PAGE_SIZE, finish_release, put_back, record, record_another,
        replace_range, take_out,
    },
    stack::kernel_walk,
    thread::{self, current_thread, group, owner, top},
    unwind,
};

/// How the kernel has our programs run at a call's return.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ReturnMode {
    /// Where the program asks for it at the entry (uprobe session).
    Session,
    /// Always; the target's stack can be written to.
    Mending,
    /// Always; the target's stack cannot be written to.
    Plain,
    /// By its `ret` instructions, which are probed: no return address is replaced.
    Followed,
}

impl ReturnMode {
    #[inline(always)]
    fn is_followed(self) -> bool {
        !REPLACES_RETURNS && self == Self::Followed
    }
}

/// Pushes a pending call. `None` for one whose return is of no interest, or must not be probed.
#[inline(always)]
pub fn acquire_enter(ctx: &ProbeContext, mode: ReturnMode) -> Option<()> {
    let (cookie, slot, row) = row(ctx.regs.cast())?;
    let thread = current_thread(slot)?;
    let sp = entry_sp(ctx);
    let mut return_address = if mode.is_followed() {
        drop_left(thread, (cookie, row), sp, entered_caller(ctx).ip)?
    } else {
        drop_stale(thread, row, sp, mode)?
    };
    let args = Arguments::of(ctx);
    if row.only != only::ALL && !applies(row, &args) {
        return None;
    }
    if mode == ReturnMode::Session && row.group == 0 && is_within_skipped(ctx, thread, sp, cookie) {
        return None;
    }
    if thread.depth == 0 {
        thread.interrupted = 0;
    } else if mode == ReturnMode::Session && is_users(row) && !unwind::is_callee(ctx, thread, unwind::ANY_GROUP) {
        // Who knows which of the two returns first: it may be another fibre.
        count(Stat::MissedReturns);
        return None;
    }
    let nested = !has(row, flags::COUNTS_NESTED) && is_nested(ctx, thread, row);
    if nested && (mode == ReturnMode::Session || mode.is_followed()) {
        return None;
    }
    let is_walked_past = setting!(flags) & setting_flags::READ_RETURNS != 0 || mode == ReturnMode::Mending;
    if (is_walked_past || has(row, flags::MAY_THROW)) && return_address == 0 {
        // SAFETY: the helper checks the address.
        return_address = unsafe { bpf_probe_read_user(sp as *const u64) }.unwrap_or(0);
    }
    if thread.depth >= MAX_PENDING as u32 {
        if !nested {
            count(Stat::LostAllocations);
        }
        return None;
    }
    let what = cookie as u64 | if nested { NESTED } else { 0 };
    // SAFETY: the current thread's record, and what is borrowed.
    unsafe { push_call(thread, &args, what, sp, return_address) };
    Some(())
}

/// [`push_call`]: the call nests in one of its group.
const NESTED: u64 = 1 << 32;

/// Pushes a call of this row (with [`NESTED`] or not) with these arguments. A global function,
/// which the verifier checks once.
///
/// # Safety
/// `thread` is null or the record of the current thread, `args` is null or borrowed.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn push_call(
    thread: *mut ThreadRecord,
    args: *const Arguments,
    what: u64,
    sp: u64,
    return_address: u64,
) -> u64 {
    // SAFETY: the caller says so.
    let (Some(thread), Some(args)) = (unsafe { (thread.as_mut(), args.as_ref()) }) else { return 0 };
    let Some(row) = PROBES.get(what as u32) else { return 0 };
    let owner = thread.owner;
    let Some(call) = thread.pending.get_mut(thread.depth as usize & (MAX_PENDING - 1)) else { return 0 };
    enter_call(call, sp, return_address, what as u32);
    if what & NESTED != 0 {
        call.nested = 1;
    } else {
        read_arguments(args, owner, row, call);
    }
    thread.depth += 1;
    0
}

/// Makes an entry that of a call which has released nothing. Written in place, word by word: copies
/// of it would be made byte by byte.
#[inline(always)]
pub fn enter_call(call: &mut PendingCall, sp: u64, return_address: u64, row: u32) {
    call.sp = sp;
    call.return_address = return_address;
    call.row = row;
    call.has_released = NOTHING;
    call.nested = 0;
    call.is_chosen = 0;
    call.released_handle = 0;
    call.released_len = 0;
    call.time_ns = 0;
}

#[inline(always)]
pub fn read_arguments(args: &Arguments, owner: Owner, row: &ProbeRow, call: &mut PendingCall) {
    call.size_or_address = size_or_address(row, args);
    call.out_pointer = args.get(row.handle_arg);
    call.call_flags = args.get(row.flags_arg);
    if has(row, flags::EARLY_RELEASE) {
        call.time_ns = now();
    }
    if row.release_arg != NO_ARG && row.keep_mask & call.call_flags as u32 == 0 {
        call.time_ns = now();
        call.released_handle = handle_to_release(row, args);
        call.released_len = args.get(row.release_len_arg);
        if has(row, flags::SPAN) {
            let last = narrow(row, call.released_len);
            call.released_len = last.wrapping_add(1).saturating_sub(call.released_handle);
            return;
        }
        // A range of length 0 is not released (mremap then makes a second mapping of the first).
        let has_length = !has(row, flags::RANGE) || has(row, flags::SEGMENT) || call.released_len != 0;
        if call.has_released == NOTHING && has_length && !is_none(row, call.released_handle) {
            take_out(cut::epoch(), owner, call);
            if has(row, flags::SEGMENT) && call.has_released != NOTHING {
                call.released_len = call.released.size;
            }
        }
    }
}

/// Drops pending calls that were left without a return that we saw. Gives the new call's return
/// address if it is known, else 0. `None`: the new call is to be left alone. It is a tail call of a
/// pending one of its group, which then is the one that counts; or to probe its return would end
/// the target.
///
/// A call that is pending at a lower stack pointer has been left, or is on another stack: it was
/// interrupted by a signal whose handler runs above it (sigaltstack), or was switched away from. If
/// the new call's return were probed the kernel would take the other one for left, and forget it
/// (kernel/events/uprobes.c, `cleanup_return_instances`); its thread would get SIGILL when it comes
/// to the trampoline.
#[inline(always)]
fn drop_stale(thread: &mut ThreadRecord, row: &ProbeRow, sp: u64, mode: ReturnMode) -> Option<u64> {
    for _ in 0..MAX_PENDING {
        let Some(top) = top(thread) else { break };
        if top.sp > sp {
            break;
        }
        if thread.returning == top.sp || is_trampoline(top.sp) {
            if top.sp == sp {
                // The outer function has jumped to this one, which returns in its stead
                // (reallocarray to realloc).
                return (group(top.row) != row.group).then_some(top.return_address);
            }
            match mode {
                ReturnMode::Session => {
                    count(Stat::MissedReturns);
                    return None;
                }
                ReturnMode::Mending => mend(top),
                _ => {}
            }
        }
        if top.nested == 0 {
            count(Stat::MissedReturns);
            put_back(thread.owner, top);
        }
        thread.depth -= 1;
    }
    Some(0)
}

/// [`drop_stale`] where no return address is replaced: a call that is taken for left and comes back
/// is missed, and nothing else. Gives the new call's return address.
#[inline(always)]
fn drop_left(
    thread: &mut ThreadRecord,
    (number, row): (u32, &ProbeRow),
    sp: u64,
    return_address: u64,
) -> Option<u64> {
    for _ in 0..MAX_PENDING {
        let Some(top) = top(thread) else { break };
        if top.sp > sp {
            break;
        }
        if top.sp == sp && top.return_address == return_address && top.row != number {
            // It has jumped to this one, which returns in its stead (reallocarray to realloc).
            return (group(top.row) != row.group).then_some(return_address);
        }
        if top.sp < sp && thread.interrupted != 0 {
            break; // the handler of a signal may be on a stack above
        }
        if top.nested == 0 {
            count(Stat::MissedReturns);
            put_back(thread.owner, top);
        }
        thread.depth -= 1;
    }
    Some(return_address)
}

/// Puts the return address of a pending call back on the stack, where the kernel has its
/// trampoline's.
#[inline(always)]
fn mend(call: &PendingCall) {
    if call.return_address != 0 {
        // SAFETY: the helper checks the address; what it writes is what the kernel's own probe has
        // replaced.
        let _ = unsafe { bpf_probe_write_user(call.sp as *mut u64, &raw const call.return_address) };
    }
}

/// The return address there is the kernel's: that of a call which is still pending. Its trampoline
/// is at the beginning of a page of its own: the address space's last, unless the stack is there
/// (where addresses are not randomized). The page is not there before it has been used.
#[inline(always)]
fn is_trampoline(sp: u64) -> bool {
    // SAFETY: the helper checks the address.
    let found = unsafe { bpf_probe_read_user(sp as *const u64) }.unwrap_or(0);
    if found == 0 || found & (PAGE_SIZE - 1) != 0 {
        return false;
    }
    // SAFETY: as above.
    unsafe { bpf_probe_read_user(found as *const u8) }.map_or(true, |byte| TRAMPOLINE.contains(&byte))
}

/// Pops the call that returns, and commits what it did.
#[inline(always)]
pub fn acquire_exit(ctx: &RetProbeContext) -> Option<()> {
    let pid_tgid = bpf_get_current_pid_tgid();
    // SAFETY: only this thread's own programs touch its record.
    let thread = unsafe { &mut *thread::find(pid_tgid)? };
    let sp = exit_sp(ctx);
    for _ in 0..MAX_PENDING {
        let call = top(thread)?;
        if call.sp > sp {
            return None; // the return of a call that was not pushed
        }
        if call.sp == sp {
            break;
        }
        if call.nested == 0 {
            count(Stat::MissedReturns);
            put_back(thread.owner, call);
        }
        thread.depth -= 1;
    }
    let call = top(thread)?;
    // SAFETY: the helper takes the program's context.
    let cookie = row_of(unsafe { bpf_get_attach_cookie(ctx.regs.cast()) });
    if call.sp != sp || call.row != cookie {
        return None; // the return of a function that a pending one has jumped to
    }
    let popped = &raw mut *thread.pending.get_mut((thread.depth as usize).wrapping_sub(1) & (MAX_PENDING - 1))?;
    // SAFETY: the popped entry is nobody else's until this thread's next call.
    let call = unsafe { &mut *popped };
    thread.depth -= 1;
    thread.returning = 0;
    if call.nested != 0 {
        return None;
    }
    let kernel_stack = kernel_walk(ctx.regs.cast());
    let at = Return { caller: caller_of(ctx), returned: ctx.ret(), kernel_stack };
    // SAFETY: the current thread's record, a call of it, and what is borrowed.
    unsafe { commit(thread, call, &at) };
    Some(())
}

/// A pending call returned: does to the table what the call did.
///
/// # Safety
/// All three are null, or the record of the current thread, a call that it has left, and how.
#[inline(always)]
pub unsafe fn commit(thread: *mut ThreadRecord, call: *mut PendingCall, at: &Return) {
    // SAFETY: the caller says so. A call that is in the record is no longer one of its pending
    // ones.
    unsafe {
        // Here, and not in that function: the stack of all would be more than a program may have.
        if commit_call(thread, call, at) == FAILED {
            put_back((*thread).owner, &*call);
        }
    }
}

/// [`commit_call`]: the call has done nothing, and what it had taken out is to be put back.
const FAILED: u64 = 1;

/// [`commit`], but for calls that have [`FAILED`]. A global function, which the verifier checks
/// once and not for each way to it.
///
/// # Safety
/// As of [`commit`].
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn commit_call(
    thread: *mut ThreadRecord,
    call: *mut PendingCall,
    at: *const Return,
) -> u64 {
    // SAFETY: the caller says so. A call that is in the record is no longer one of its pending
    // ones.
    let (thread, call, at) = unsafe { (thread.as_mut(), call.as_mut(), at.as_ref()) };
    let (Some(thread), Some(call), Some(at)) = (thread, call, at) else { return 0 };
    if commit_or_fail(thread, call, at) == Some(FAILED) { FAILED } else { 0 }
}

#[inline(always)]
fn commit_or_fail(thread: &mut ThreadRecord, call: &mut PendingCall, at: &Return) -> Option<u64> {
    let row = PROBES.get(call.row)?;
    let returned = at.returned;
    thread.epoch = cut::epoch();
    let Some(handle) = acquired_handle(row, call, returned) else {
        let zero_size_release = has(row, flags::ZERO_SIZE_RELEASES) && call.size_or_address == 0 && returned == 0;
        if zero_size_release || has(row, flags::RELEASES_ANYWAY) {
            finish_release(thread, call);
            return None;
        }
        return Some(FAILED);
    };
    if has(row, flags::IN_PLACE) {
        records::resize(thread, row, handle, call.size_or_address);
        return None;
    }
    if has(row, flags::MOVES_PAGES) {
        // SAFETY: the current thread's record, and a call that it has left.
        unsafe { tell_moved(thread, call, handle) };
        return None;
    }
    if row.release_arg != NO_ARG {
        finish_release(thread, call);
    }
    if row.handle == handle::NONE {
        return None;
    }
    if has(row, flags::SEGMENT) {
        call.size_or_address = segments::size_of(call.size_or_address as u32);
        if call.size_or_address == 0 {
            count(Stat::LostAllocations);
            return None;
        }
    }
    if has(row, flags::RANGE) && row.replace_mask & call.call_flags as u32 != 0 {
        replace_range(thread, call, handle);
    }
    let size = match row.size {
        size::BEHIND_ARG => read_word(call.size_or_address, 8).unwrap_or(0),
        size::STRING => records::string_size(thread, returned),
        _ => call.size_or_address,
    };
    let stack_id = record(at, thread, row, &Acquired { handle, size, entered_ns: call.time_ns, is_chosen: call.is_chosen != 0 })?;
    if setting!(features) & flags::SEVERAL_HANDLES == 0 || row.handle == handle::RETURN {
        return None; // the usual case
    }
    let Handles { address, number } = handles(row, call)?;
    for i in 1..MAX_HANDLES {
        if i >= number {
            break;
        }
        match read_word(address.wrapping_add(i * row.handle_width as u64), row.handle_width) {
            Some(handle) => record_another(thread, row, handle, stack_id),
            None => count(Stat::LostAllocations),
        }
    }
    None
}

/// Removes the record of what is released.
#[inline(always)]
pub fn release_enter(ctx: &ProbeContext) -> Option<()> {
    let (_, slot, row) = row(ctx.regs.cast())?;
    let args = Arguments::of(ctx);
    if has(row, flags::SWEEPS) {
        if row.only == only::ALL || applies(row, &args) {
            count(Stat::Sweeps);
        }
        return None;
    }
    release(owner(slot)?, row, &args)
}

/// The same, for a call with these arguments.
#[inline(always)]
pub fn release(owner: Owner, row: &ProbeRow, args: &Arguments) -> Option<()> {
    let handle = handle_to_release(row, args);
    if is_none(row, handle) {
        return None;
    }
    records::remove(owner, row, handle)
}

/// The thread's pending calls will not return. `mend` puts their return addresses back on the
/// stack: an unwinder that came upon the kernel's trampoline would find no caller there, and the
/// C++ runtime would end the process.
#[inline(always)]
pub fn abandon_pending(mend: bool) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = thread::find(pid_tgid) else { return };
    // SAFETY: only this thread's own programs touch its record.
    let thread = unsafe { &mut *thread };
    for i in 0..MAX_PENDING {
        if !mend || i as u32 >= thread.depth {
            break;
        }
        self::mend(&thread.pending[i]);
    }
    abandon_all(thread, false);
    thread.open = [0; 2];
}

/// The thread ends: neither its pending calls nor its system call will return.
#[inline(always)]
pub fn thread_ends(thread: &mut ThreadRecord) {
    abandon_all(thread, true);
    if thread.in_system_call != 0 {
        put_back(thread.owner, &thread.system_call);
    }
}

/// Drops all pending calls of a thread; what they had taken out is still acquired.
///
/// A thread that ends while it waits for a condition does not hold the mutex. One that is cancelled
/// there takes it again before its handlers run (POSIX, pthread_cond_wait), and is abandoned first.
#[inline(always)]
fn abandon_all(thread: &mut ThreadRecord, ends: bool) {
    for _ in 0..MAX_PENDING {
        let Some(call) = top(thread) else { break };
        if !ends || !is_gone_while_pending(call) {
            put_back(thread.owner, call);
        }
        thread.depth -= 1;
    }
}

/// What the call has released is not held while it is pending.
#[inline(always)]
fn is_gone_while_pending(call: &PendingCall) -> bool {
    PROBES.get(call.row).is_some_and(|row| has(row, flags::GONE_WHILE_PENDING))
}

/// What the attach cookie names: a row (its index first) and the slot of the process.
#[inline(always)]
pub fn row(ctx: *mut core::ffi::c_void) -> Option<(u32, u32, &'static ProbeRow)> {
    // SAFETY: the helper takes the program's context.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.cast()) };
    let row = row_of(cookie);
    Some((row, slot_of(cookie), PROBES.get(row)?))
}

