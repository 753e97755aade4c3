//! Calls whose `ret` instructions are probed, one way for all functions, where no return address is
//! ever replaced: a call is pending in its thread's record, as in `track`, with the return address
//! that its link register had. Its return is a `ret` to that address with the stack pointer of the
//! entry. So a `ret` that others share with it says nothing wrong, and a function that it has
//! jumped to returns in its stead.
//!
//! A call that is left otherwise (an exception, a jump to an address that is known at run time
//! only) is found out by the next one there, and counted as missed.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_attach_cookie},
    programs::{ProbeContext, RetProbeContext},
};
use memleak_common::{
    probe::{flags, row_of},
    stats::Stat,
    thread::{MAX_PENDING, PendingCall, ThreadRecord},
};

use crate::{
    arch::{entered_caller, entry_sp},
    args::Return,
    maps::{PROBES, count},
    plain::{commit_block, push},
    records::put_back,
    stack::kernel_walk,
    thread::{self, top},
    track::{ReturnMode, acquire_enter, commit},
};

/// Calls that may return by one `ret`: one that has jumped to another one, of another group.
const TOGETHER: usize = 2;

/// Such a function is entered.
#[inline(always)]
pub fn enter(ctx: &ProbeContext) -> Option<()> {
    enter_plain(ctx).or_else(|| acquire_enter(ctx, ReturnMode::Followed))
}

/// The short way: a call of malloc's kind, while no other is pending.
#[inline(always)]
fn enter_plain(ctx: &ProbeContext) -> Option<()> {
    // SAFETY: the helper takes the program's context.
    let number = row_of(unsafe { bpf_get_attach_cookie(ctx.regs.cast()) });
    // SAFETY: only this thread's own programs touch its record.
    let thread = unsafe { &mut *thread::find(bpf_get_current_pid_tgid())? };
    if PROBES.get(number)?.flags & flags::PLAIN == 0 || thread.depth != 0 || thread.open[0] != 0 {
        return None;
    }
    push(thread, number, ctx.arg(0).unwrap_or(0), entry_sp(ctx), entered_caller(ctx).ip);
    Some(())
}

/// A `ret` of such a function, or of one that it has jumped to, is about to be executed.
#[inline(always)]
pub fn exit(ctx: &ProbeContext) -> Option<()> {
    // SAFETY: only this thread's own programs touch its record.
    let thread = unsafe { &mut *thread::find(bpf_get_current_pid_tgid())? };
    let (sp, caller) = (entry_sp(ctx), entered_caller(ctx));
    if !returns(thread, sp, caller.ip) {
        return None;
    }
    let returned: u64 = RetProbeContext::new(ctx.regs.cast()).ret();
    let at = Return { caller, returned, kernel_stack: kernel_walk(ctx.regs.cast()) };
    for _ in 0..TOGETHER {
        let call = pop(thread, sp, caller.ip)?;
        // SAFETY: the popped entry is nobody else's until this thread's next call.
        let call = unsafe { &mut *call };
        let is_plain = PROBES.get(call.row)?.flags & flags::PLAIN != 0;
        if !is_plain {
            // SAFETY: the current thread's record, a call of it, and what is borrowed.
            unsafe { commit(thread, call, &at) };
        } else if returned != 0 && returned != u64::MAX {
            // SAFETY: the current thread's record, and what is borrowed.
            unsafe { commit_block(thread, &at, call.size_or_address, call.is_chosen as u64) };
        }
    }
    Some(())
}

/// A pending call returns to this address with this stack pointer.
#[inline(always)]
fn returns(thread: &ThreadRecord, sp: u64, address: u64) -> bool {
    let mut found = false;
    for i in 0..MAX_PENDING {
        if i as u32 >= thread.depth {
            break;
        }
        found |= is_of(&thread.pending[i], sp, address);
    }
    found
}

#[inline(always)]
fn is_of(call: &PendingCall, sp: u64, address: u64) -> bool {
    call.sp == sp && call.return_address == address
}

/// Takes the innermost call that so returns off the pending ones, with those within it, which were
/// left without a return that we saw.
#[inline(always)]
fn pop(thread: &mut ThreadRecord, sp: u64, address: u64) -> Option<*mut PendingCall> {
    if !returns(thread, sp, address) {
        return None;
    }
    for _ in 0..MAX_PENDING {
        let call = top(thread)?;
        if is_of(call, sp, address) {
            break;
        }
        count(Stat::MissedReturns);
        put_back(thread.owner, call);
        thread.depth -= 1;
    }
    let place = (thread.depth as usize).wrapping_sub(1) & (MAX_PENDING - 1);
    thread.depth = thread.depth.checked_sub(1)?;
    Some(&raw mut *thread.pending.get_mut(place)?)
}
