//! The BPF programs of memleak: entry points only. `track` holds what they do.
//!
//! One program (two before Linux 6.13) serves every function that acquires, two those of which the
//! `ret` instructions are probed, one every function that releases; the attach cookie names the row
//! of the table (map `PROBES`). All return 0, so that the kernel writes no perf sample for the hit.
#![no_std]
#![no_main]
#![allow(internal_features)]
#![feature(asm_experimental_arch)] // see blocks.rs
#![feature(core_intrinsics)] // atomic_xadd, see maps.rs; atomic_cxchg, see blocks.rs

mod arch;
mod args;
mod blocks;
mod clock;
mod cut;
mod followed;
mod growth;
mod history;
mod kernel_mode;
mod lifecycle;
mod mappings;
mod maps;
mod masked;
mod nesting;
mod plain;
mod records;
mod registers;
mod returns;
mod sampling;
mod segments;
mod session;
mod skipped;
mod stack;
mod system_calls;
mod table;
mod thread;
mod track;
mod unwind;
mod usdt;
mod values;
mod walks;
mod window;

use core::ffi::c_void;

use aya_ebpf::{
    macros::{kprobe, kretprobe, raw_tracepoint, uprobe, uretprobe},
    programs::{ProbeContext, RawTracePointContext, RetProbeContext},
};
use memleak_common::kernel::Tracepoint;
use track::ReturnMode;

/// A function that acquires (or moves, or releases and can fail) is entered, or returns: where one
/// program can serve both. Without aya's macro, whose programs all return 0: here 1 leaves out the
/// return.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
pub extern "C" fn acquire_session(ctx: *mut c_void) -> u32 {
    u32::from(!session::acquire_session(&ProbeContext::new(ctx)))
}

/// Such a function is entered.
#[uprobe]
pub fn acquire_enter(ctx: ProbeContext) -> u32 {
    let _ = track::acquire_enter(&ctx, ReturnMode::Mending);
    0
}

/// The same without a write to the target's stack, which a locked-down kernel forbids.
#[uprobe]
pub fn acquire_enter_plain(ctx: ProbeContext) -> u32 {
    let _ = track::acquire_enter(&ctx, ReturnMode::Plain);
    0
}

/// Such a function returns.
#[uretprobe]
pub fn acquire_exit(ctx: RetProbeContext) -> u32 {
    let _ = track::acquire_exit(&ctx);
    0
}

/// A function that acquires, and whose `ret` instructions are probed, is entered. A program of its
/// own: with the next one it would take more of the stack than older kernels have.
#[uprobe]
pub fn call_enter(ctx: ProbeContext) -> u32 {
    let _ = returns::call_enter(&ctx);
    0
}

/// Such a `ret` is about to be executed.
#[uprobe]
pub fn call_exit(ctx: ProbeContext) -> u32 {
    let _ = returns::call_exit(&ctx);
    0
}

/// A function that acquires is entered, where no return address is ever replaced.
#[uprobe]
pub fn followed_enter(ctx: ProbeContext) -> u32 {
    let _ = followed::enter(&ctx);
    0
}

/// A `ret` of such a function is about to be executed.
#[uprobe]
pub fn followed_exit(ctx: ProbeContext) -> u32 {
    let _ = followed::exit(&ctx);
    0
}

/// A function that releases and cannot fail is entered.
#[uprobe]
pub fn release_enter(ctx: ProbeContext) -> u32 {
    let _ = track::release_enter(&ctx);
    0
}

/// A probe of the program's own: something was acquired.
#[uprobe]
pub fn usdt_acquire(ctx: ProbeContext) -> u32 {
    let _ = usdt::acquire(&ctx);
    0
}

/// A probe of the program's own: something was released.
#[uprobe]
pub fn usdt_release(ctx: ProbeContext) -> u32 {
    let _ = usdt::releases(&ctx);
    0
}

/// The stack is about to be unwound past calls that are pending (an exception, longjmp).
#[uprobe]
pub fn abandon_enter(_ctx: ProbeContext) -> u32 {
    track::abandon_pending(arch::REPLACES_RETURNS);
    0
}

/// The same without a write to the target's stack, which a locked-down kernel forbids.
#[uprobe]
pub fn abandon_enter_plain(_ctx: ProbeContext) -> u32 {
    track::abandon_pending(false);
    0
}

/// The dynamic linker tells debuggers that it mapped or unmapped objects.
#[uprobe]
pub fn mappings_enter(ctx: ProbeContext) -> u32 {
    lifecycle::mappings_changed(&ctx);
    0
}

/// The process is about to end by itself.
#[uprobe]
pub fn ending_enter(ctx: ProbeContext) -> u32 {
    lifecycle::ending(&ctx);
    0
}

/// Nothing: what the traps alone cost (`--traps-only`).
#[uprobe]
pub fn empty_enter(_ctx: ProbeContext) -> u32 {
    0
}

/// Nothing, at both ends of a call.
#[uprobe]
pub fn empty_session(_ctx: ProbeContext) -> u32 {
    0
}

/// Nothing, on return.
#[uretprobe]
pub fn empty_exit(_ctx: RetProbeContext) -> u32 {
    0
}

/// A system call is entered, by any process.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn system_enter(ctx: RawTracePointContext) -> i32 {
    let _ = system_calls::enter(&ctx);
    0
}

/// A system call returns, of any process.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn system_exit(ctx: RawTracePointContext) -> i32 {
    let _ = system_calls::exit(&ctx);
    0
}

/// A process touches an address where it has no page.
#[raw_tracepoint(tracepoint = "page_fault_user")]
pub fn page_fault_user(ctx: RawTracePointContext) -> i32 {
    let _ = growth::page_fault(&ctx, false);
    0
}

/// The same in a system call.
#[raw_tracepoint(tracepoint = "page_fault_kernel")]
pub fn page_fault_kernel(ctx: RawTracePointContext) -> i32 {
    let _ = growth::page_fault(&ctx, true);
    0
}

/// A thread ends.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn thread_exit(ctx: RawTracePointContext) -> i32 {
    lifecycle::thread_exit(&ctx);
    0
}

/// A thread is about to run a signal's handler.
#[raw_tracepoint(tracepoint = "signal_deliver")]
pub fn signal_deliver(_ctx: RawTracePointContext) -> i32 {
    nesting::interrupted();
    0
}

/// A process has replaced its program.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(ctx: RawTracePointContext) -> i32 {
    lifecycle::process_exec(&ctx);
    0
}

/// A thread has made a thread or process.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn process_fork(ctx: RawTracePointContext) -> i32 {
    lifecycle::process_fork(&ctx);
    0
}

/// A thread, of those that user space asks for.
///
/// # Safety
/// The kernel calls it, with the context of such a program.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub unsafe extern "C" fn thread_registers(context: *const registers::TaskContext) -> i32 {
    // SAFETY: the kernel's own context.
    let _ = unsafe { registers::write_thread(context) };
    0
}

/// `kmalloc`.
#[raw_tracepoint(tracepoint = "kmalloc")]
pub fn kmalloc(ctx: RawTracePointContext) -> i32 {
    kernel_mode::tracepoint_acquire(&ctx, Tracepoint::Kmalloc);
    0
}

/// `kfree`.
#[raw_tracepoint(tracepoint = "kfree")]
pub fn kfree(ctx: RawTracePointContext) -> i32 {
    kernel_mode::tracepoint_release(&ctx, Tracepoint::Kfree);
    0
}

/// `kmem_cache_alloc`.
#[raw_tracepoint(tracepoint = "kmem_cache_alloc")]
pub fn kmem_cache_alloc(ctx: RawTracePointContext) -> i32 {
    kernel_mode::tracepoint_acquire(&ctx, Tracepoint::CacheAlloc);
    0
}

/// `kmem_cache_free`.
#[raw_tracepoint(tracepoint = "kmem_cache_free")]
pub fn kmem_cache_free(ctx: RawTracePointContext) -> i32 {
    kernel_mode::tracepoint_release(&ctx, Tracepoint::CacheFree);
    0
}

/// `mm_page_alloc`.
#[raw_tracepoint(tracepoint = "mm_page_alloc")]
pub fn mm_page_alloc(ctx: RawTracePointContext) -> i32 {
    kernel_mode::tracepoint_acquire(&ctx, Tracepoint::PageAlloc);
    0
}

/// `mm_page_free`.
#[raw_tracepoint(tracepoint = "mm_page_free")]
pub fn mm_page_free(ctx: RawTracePointContext) -> i32 {
    kernel_mode::tracepoint_release(&ctx, Tracepoint::PageFree);
    0
}

/// `percpu_alloc_percpu`.
#[raw_tracepoint(tracepoint = "percpu_alloc_percpu")]
pub fn percpu_alloc(ctx: RawTracePointContext) -> i32 {
    kernel_mode::tracepoint_acquire(&ctx, Tracepoint::PercpuAlloc);
    0
}

/// `percpu_free_percpu`.
#[raw_tracepoint(tracepoint = "percpu_free_percpu")]
pub fn percpu_free(ctx: RawTracePointContext) -> i32 {
    kernel_mode::tracepoint_release(&ctx, Tracepoint::PercpuFree);
    0
}

/// `kmalloc_node`.
#[raw_tracepoint(tracepoint = "kmalloc_node")]
pub fn kmalloc_node(ctx: RawTracePointContext) -> i32 {
    kernel_mode::tracepoint_acquire(&ctx, Tracepoint::KmallocNode);
    0
}

/// `kmem_cache_alloc_node`.
#[raw_tracepoint(tracepoint = "kmem_cache_alloc_node")]
pub fn kmem_cache_alloc_node(ctx: RawTracePointContext) -> i32 {
    kernel_mode::tracepoint_acquire(&ctx, Tracepoint::CacheAllocNode);
    0
}

/// `kfree`, where the program before was skipped.
#[raw_tracepoint(tracepoint = "kfree")]
pub fn kfree_twin(ctx: RawTracePointContext) -> i32 {
    kernel_mode::tracepoint_release_twin(&ctx, Tracepoint::Kfree);
    0
}

/// `kmem_cache_free`, where the program before was skipped.
#[raw_tracepoint(tracepoint = "kmem_cache_free")]
pub fn kmem_cache_free_twin(ctx: RawTracePointContext) -> i32 {
    kernel_mode::tracepoint_release_twin(&ctx, Tracepoint::CacheFree);
    0
}

/// `mm_page_free`, where the program before was skipped.
#[raw_tracepoint(tracepoint = "mm_page_free")]
pub fn mm_page_free_twin(ctx: RawTracePointContext) -> i32 {
    kernel_mode::tracepoint_release_twin(&ctx, Tracepoint::PageFree);
    0
}

/// A piece of work begins: perhaps that of `kfree_rcu`.
#[raw_tracepoint(tracepoint = "workqueue_execute_start")]
pub fn work_start(ctx: RawTracePointContext) -> i32 {
    kernel_mode::work_start(&ctx);
    0
}

/// A function of the kernel that acquires is entered.
#[kprobe]
pub fn kernel_enter(ctx: ProbeContext) -> u32 {
    let _ = kernel_mode::function_enter(&ctx);
    0
}

/// Such a function returns.
#[kretprobe]
pub fn kernel_exit(ctx: RetProbeContext) -> u32 {
    let _ = kernel_mode::function_exit(&ctx);
    0
}

/// A function of the kernel that releases is entered.
#[kprobe]
pub fn kernel_release(ctx: ProbeContext) -> u32 {
    let _ = kernel_mode::function_release(&ctx);
    0
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier rejects any program from which this can be reached.
    loop {}
}

/// The kernel asks for a GPL-compatible licence before it lends its tracing helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
