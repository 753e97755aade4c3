//! Calls of the kernel, by the tracepoints that it passes at the entry and the exit of each
//! (include/trace/events/syscalls.h, `sys_enter` and `sys_exit`): whoever made them, a C library or
//! not. What they acquire and release is entered as that of functions is, by rows of the same kind.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user},
    programs::RawTracePointContext,
};
use memleak_common::{
    probe::{ProbeRow, flags, only},
    system_call::{RELEASES, ROW},
    thread::ThreadRecord,
};

use crate::{
    arch::Registers,
    args::Return,
    maps::{PROBES, SYSTEM_CALLS, has},
    thread::{self, current_thread_of_tracepoint},
    stack::kernel_walk,
    track::{self, commit},
    values::applies,
};

/// A system call is entered.
#[inline(always)]
pub fn enter(ctx: &RawTracePointContext) -> Option<()> {
    let (cookie, releases, row) = row(ctx.arg::<u64>(1))?;
    let thread = current_thread_of_tracepoint()?;
    let args = Registers(ctx.arg::<u64>(0)).arguments();
    if row.only != only::ALL && !applies(row, &args) {
        return None;
    }
    if releases {
        return track::release(thread.owner, row, &args);
    }
    track::enter_call(&mut thread.system_call, 0, 0, cookie);
    thread.in_system_call = 1;
    track::read_arguments(&args, thread.owner, row, &mut thread.system_call);
    if has(row, flags::THROUGH_POINTER) {
        let pointer = thread.system_call.out_pointer.wrapping_add(row.constant);
        // SAFETY: the helper checks the address.
        thread.system_call.out_pointer = unsafe { bpf_probe_read_user(pointer as *const u64) }.unwrap_or(0);
    }
    Some(())
}

/// A system call returns.
#[inline(always)]
pub fn exit(ctx: &RawTracePointContext) -> Option<()> {
    let registers = Registers(ctx.arg::<u64>(0));
    let (cookie, ..) = row(registers.system_call())?;
    let pid_tgid = bpf_get_current_pid_tgid();
    // SAFETY: only this thread's own programs touch its record.
    let thread: &mut ThreadRecord = unsafe { &mut *thread::find(pid_tgid)? };
    if thread.in_system_call == 0 || thread.system_call.row != cookie {
        return None;
    }
    thread.in_system_call = 0;
    // SAFETY: the entry stays as it is until this thread's next system call.
    let call = unsafe { &mut *(&raw mut thread.system_call) };
    let kernel_stack = kernel_walk(ctx.as_ptr());
    let at = Return { caller: registers.caller(), returned: ctx.arg::<u64>(1), kernel_stack };
    // SAFETY: the current thread's record, a call that it has left, and what is borrowed.
    unsafe { commit(thread, call, &at) };
    Some(())
}

/// The row of a system call that is traced: its index, and whether it releases and cannot fail.
#[inline(always)]
fn row(number: u64) -> Option<(u32, bool, &'static ProbeRow)> {
    if number > u32::MAX as u64 {
        return None;
    }
    let entry = *SYSTEM_CALLS.get(number as u32)?;
    let cookie = (entry & ROW).checked_sub(1)?;
    Some((cookie, entry & RELEASES != 0, PROBES.get(cookie)?))
}
