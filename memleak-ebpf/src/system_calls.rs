//! Calls of the kernel, by the tracepoints that it passes at the entry and the exit of each
//! (include/trace/events/syscalls.h, `sys_enter` and `sys_exit`): whoever made them, a C library or
//! not. What they acquire and release is entered as that of functions is, by rows of the same kind.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user, generated::bpf_get_current_task},
    programs::RawTracePointContext,
};
use memleak_common::{
    probe::{ProbeRow, flags, only},
    system_call::{RELEASES, ROW},
    thread::ThreadRecord,
};

use crate::{
    arch::Registers,
    args::{Arguments, Return},
    maps::{PROBES, SYSTEM_CALLS, has, setting},
    thread::{self, current_thread_of_tracepoint, member},
    stack::kernel_walk,
    track::{self, commit},
    values::applies,
};

/// A system call is entered.
#[inline(always)]
pub fn enter(ctx: &RawTracePointContext) -> Option<()> {
    let (cookie, releases, row) = row(ctx.arg::<u64>(1))?;
    let thread = current_thread_of_tracepoint()?;
    let mut args = Registers(ctx.arg::<u64>(0)).arguments();
    if row.group == 0 && (thread.depth > 0 || thread.open[0] > 0) {
        return None; // an allocator's own: what it hands out of it counts
    }
    if has(row, flags::MOVES_BREAK) {
        args = of_break(args.get(0))?;
    }
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
    let (cookie, _, row) = row(registers.system_call())?;
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
    let mut returned = ctx.arg::<u64>(1);
    if returned > LOWEST_ERROR {
        returned = u64::MAX; // as the C library says it
    } else if has(row, flags::MOVES_BREAK) {
        returned = match (returned == call.call_flags, call.size_or_address) {
            (false, _) => u64::MAX,
            // Nothing was acquired, and something released.
            (true, 0) => 0,
            (true, grown) => call.call_flags - grown,
        };
    }
    let at = Return { caller: registers.caller(), returned, kernel_stack };
    // SAFETY: the current thread's record, a call that it has left, and what is borrowed.
    unsafe { commit(thread, call, &at) };
    Some(())
}

/// What is above is the negative of an error's number (include/linux/err.h, `MAX_ERRNO`).
const LOWEST_ERROR: u64 = -4096i64 as u64;

/// The arguments of a function that would move the break as brk(2) does to `wanted`: what it
/// releases, the length of that, by how much it grows, and the new break. `None`: it moves nothing.
#[inline(always)]
fn of_break(wanted: u64) -> Option<Arguments> {
    if setting!(task.mm_brk) == 0 {
        return None;
    }
    // SAFETY: the helper takes nothing.
    let task = unsafe { bpf_get_current_task() } as *const u8;
    let memory: u64 = member(task, setting!(task.mm));
    let current: u64 = member(memory as *const u8, setting!(task.mm_brk));
    if wanted == 0 || wanted == current {
        return None;
    }
    let (grown, shrunk) = (wanted.saturating_sub(current), current.saturating_sub(wanted));
    Some(Arguments([wanted, shrunk, grown, wanted, 0, 0, 0, 0]))
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
