//! What makes a process grow: each page of memory counts for whoever touches it first. No function
//! is probed for it: the kernel's handler of page faults has tracepoints
//! (arch/x86/include/asm/trace/exceptions.h, `page_fault_user` and `page_fault_kernel`).
//!
//! Nothing says here when a page goes (munmap, brk, madvise, exit of the mapping): user space looks
//! which of them are still there, and removes the others' records. When the C library's mremap has
//! moved some it is told, and enters their records anew.

use aya_ebpf::{EbpfContext as _, helpers::generated::bpf_get_current_task, programs::RawTracePointContext};
use memleak_common::{
    event::{self, Event},
    probe::{ProbeRow, Resource, handle, size},
    thread::{PendingCall, ThreadRecord},
};

use crate::{
    arch::Registers,
    args::Return,
    clock::now,
    cut,
    maps::{Wake, send, setting},
    records::{Acquired, PAGE_SIZE, record},
    stack::kernel_walk,
    thread::{current_registers, current_thread_of_tracepoint, member},
};

/// Bits of the processor's error code (arch/x86/include/asm/trap_pf.h): the page was there, so it
/// is no new one.
const PRESENT: u64 = 1;

/// Addresses of user space are below (Documentation/arch/x86/x86_64/mm.rst).
const USER_END: u64 = 1 << 47;

/// A thread has touched an address where no page is: by an instruction of its own, or in a system
/// call.
#[inline(always)]
pub fn page_fault(ctx: &RawTracePointContext, in_kernel: bool) -> Option<()> {
    let (address, error): (u64, u64) = (ctx.arg(0), ctx.arg(2));
    if error & PRESENT != 0 || address >= USER_END || (in_kernel && may_not_fault()) {
        return None;
    }
    let thread = current_thread_of_tracepoint()?;
    let registers = if in_kernel { current_registers() } else { Registers(ctx.arg::<u64>(1)) };
    let mut caller = registers.caller();
    if !in_kernel {
        // Walks and names look up the byte before a return address; the instruction that has
        // faulted is the one to look up.
        caller.ip += 1;
    }
    let returned = address & !(PAGE_SIZE - 1);
    let at = Return { caller, returned, kernel_stack: kernel_walk(ctx.as_ptr()) };
    // SAFETY: the current thread's record, and what is borrowed.
    unsafe { commit_page(thread, &at) };
    Some(())
}

/// The kernel only tries to read what is there. So do our own programs: what they try is nobody's,
/// and the thread's record is in use.
#[inline(always)]
fn may_not_fault() -> bool {
    let offset = setting!(task.pagefault_disabled);
    // SAFETY: the helper takes nothing.
    let disabled: u32 = member(unsafe { bpf_get_current_task() } as *const u8, offset);
    // While it is read it is one more (mm/maccess.c, `copy_from_kernel_nofault`).
    offset == 0 || disabled > 1
}

/// A page was touched for the first time. A global function, which the verifier checks once.
///
/// # Safety
/// `thread` is null or the record of the current thread, `at` is null or borrowed.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn commit_page(thread: *mut ThreadRecord, at: *const Return) -> u64 {
    // SAFETY: the caller says so.
    let (Some(thread), Some(at)) = (unsafe { (thread.as_mut(), at.as_ref()) }) else { return 0 };
    thread.epoch = cut::epoch();
    let page = Acquired { handle: at.returned, size: PAGE_SIZE, entered_ns: 0, is_chosen: false };
    let _ = record(at, thread, &PAGE, &page);
    0
}

/// A call of mremap has returned, `to` is where the pages are now. A global function, so that there
/// is room for the event on the stack.
///
/// # Safety
/// `thread` is null or the record of the current thread, `call` is null or a call that it has left.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn tell_moved(thread: *const ThreadRecord, call: *const PendingCall, to: u64) -> u64 {
    // SAFETY: the caller says so.
    let (Some(thread), Some(call)) = (unsafe { (thread.as_ref(), call.as_ref()) }) else { return 0 };
    let (from, resource) = (call.out_pointer, Resource::Growth.number());
    let bytes = if call.call_flags < call.size_or_address { call.call_flags } else { call.size_or_address };
    if from == to || bytes == 0 {
        return 0;
    }
    let event = Event {
        kind: event::kind::MOVED,
        owner: thread.owner.of(resource),
        tid: thread.tid,
        resource,
        handle: from,
        size: bytes,
        time_ns: now(),
        stack_id: to,
    };
    send(&event, Wake::Now);
    0
}

/// All pages count, whatever sizes are asked for.
const PAGE: ProbeRow = ProbeRow {
    resource: Resource::Growth.number(),
    handle: handle::RETURN,
    size: size::NONE,
    ..ProbeRow::EMPTY
};
