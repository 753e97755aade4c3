//! The short way of calls of malloc's kind ([`flags::PLAIN`]), which are nearly all: while no other
//! call is pending, so that nothing of what `track` looks at can be.

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    programs::{ProbeContext, RetProbeContext},
};
use memleak_common::{
    probe::{ProbeRow, Resource, flags, handle, size},
    settings::flags as setting_flags,
    thread::ThreadRecord,
};

use crate::{
    arch::{caller_of, entry_sp, exit_sp},
    args::Return,
    cut,
    maps::{PROBES, setting},
    records::{Acquired, NOTHING, record},
    sampling::{is_wanted, may_skip},
    skipped::{is_within_skipped, skip},
    stack::kernel_walk,
    thread,
};

/// [`crate::track::acquire_enter`] for what is nearly always so: a call of malloc's kind, while
/// none is pending. Says whether its return is wanted; `None` if it is not such a call. `number`
/// is the row's.
#[inline(always)]
pub fn enter_plain(ctx: &ProbeContext, number: u32) -> Option<bool> {
    // SAFETY: only this thread's own programs touch its record.
    let thread = unsafe { &mut *thread::find(bpf_get_current_pid_tgid())? };
    let row = PROBES.get(number)?;
    let may_nest = thread.depth != 0 || thread.open[0] != 0;
    if row.flags & flags::PLAIN == 0 || may_nest || setting!(flags) & setting_flags::READ_RETURNS != 0 {
        return None;
    }
    let (sp, size) = (entry_sp(ctx), ctx.arg(0).unwrap_or(0));
    if is_within_skipped(ctx, thread, sp, number) {
        return Some(false);
    }
    if may_skip() && !is_wanted(thread, row, size) {
        skip(thread, sp, number);
        return Some(false);
    }
    push(thread, number, size, sp, 0);
    thread.pending[0].is_chosen = 1;
    Some(true)
}

/// The call of this row is the thread's only pending one; the filters are not asked yet.
#[inline(always)]
pub fn push(thread: &mut ThreadRecord, number: u32, size: u64, sp: u64, return_address: u64) {
    thread.interrupted = 0;
    let call = &mut thread.pending[0];
    call.sp = sp;
    call.return_address = return_address;
    call.row = number;
    call.has_released = NOTHING;
    call.nested = 0;
    call.is_chosen = 0;
    call.size_or_address = size;
    thread.depth = 1;
}

/// [`crate::track::acquire_exit`], likewise. `None` if it is not such a call.
#[inline(always)]
pub fn exit_plain(ctx: &RetProbeContext) -> Option<()> {
    // SAFETY: only this thread's own programs touch its record.
    let thread = unsafe { &mut *thread::find(bpf_get_current_pid_tgid())? };
    let call = &thread.pending[0];
    let row = PROBES.get(call.row)?;
    if thread.depth != 1 || call.sp != exit_sp(ctx) || call.nested != 0 || row.flags & flags::PLAIN == 0 {
        return None;
    }
    let (size, is_chosen) = (call.size_or_address, call.is_chosen);
    thread.depth = 0;
    thread.returning = 0;
    let returned: u64 = ctx.ret();
    if returned == 0 || returned == u64::MAX {
        return Some(());
    }
    let at = Return { caller: caller_of(ctx), returned, kernel_stack: kernel_walk(ctx.regs.cast()) };
    // SAFETY: the current thread's record, and what is borrowed.
    unsafe { commit_block(thread, &at, size, is_chosen as u64) };
    Some(())
}

/// A block was acquired; the filters have let it pass (`is_chosen` is not 0), or are asked now. A
/// global function, which the verifier checks once.
///
/// # Safety
/// `thread` is null or the record of the current thread, `at` is null or borrowed.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn commit_block(
    thread: *mut ThreadRecord,
    at: *const Return,
    size: u64,
    is_chosen: u64,
) -> u64 {
    // SAFETY: the caller says so.
    let (Some(thread), Some(at)) = (unsafe { (thread.as_mut(), at.as_ref()) }) else { return 0 };
    thread.epoch = cut::epoch();
    let _ = record(at, thread, &BLOCK, &Acquired { handle: at.returned, size, entered_ns: 0, is_chosen: is_chosen != 0 });
    0
}

/// What there is to know of a row of malloc's kind once its call has returned.
const BLOCK: ProbeRow =
    ProbeRow { resource: Resource::Heap.number(), handle: handle::RETURN, size: size::ARG, ..ProbeRow::EMPTY };
