//! Kernel mode: the kernel's own allocators.
//!
//! What is the same in all programs of this mode stands here; each of them says where its arguments
//! are. Their tables are made in advance (no program may allocate from what it traces), and scratch
//! space belongs to a program and a CPU: the kernel never nests a program in itself on one CPU, but
//! an interrupt brings others.

mod slab;
mod stack;

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_ANY,
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid,
        generated::{bpf_get_func_ip, bpf_get_prandom_u32},
    },
    programs::{ProbeContext, RawTracePointContext, RetProbeContext},
};
use core::ffi::c_void;
use memleak_common::{
    allocation::{Allocation, AllocationKey},
    event::{self, Event},
    kernel::{
        COMM_WORDS, DEFERRED_FUNCTIONS, KMALLOC_MAX_CACHE, KernelCall, KernelRow, KmallocType,
        LAST_RELEASED as LAST_RELEASED_LEN, Label, TRACEPOINTS, Tracepoint, kmalloc_size, role,
    },
    probe::Resource,
    settings::flags as setting_flags,
    stack::NO_STACK,
    stats::Stat,
};

use self::{
    slab::{cache_size, has_name, word},
    stack::StackUse,
};
use crate::{
    cut,
    arch::{entry_sp, exit_sp},
    args::Arguments,
    clock::now,
    maps::{KERNEL_CALLS, KERNEL_ROWS, LAST_RELEASED, count, count_in, kernel_setting, send_line, setting},
    records::PAGE_SIZE,
    table, thread,
};

// include/linux/gfp_types.h: these have not moved since 5.14.
const GFP_DMA: u64 = 0x01;
const GFP_RECLAIMABLE: u64 = 0x10;
const GFP_ACCOUNT: u64 = 0x40_0000;
/// Handles of an array that is released, at most: what `kfree_rcu` frees at a time
/// (mm/slab_common.c, `KVFREE_BULK_MAX_ENTR`) is less.
const MAX_RELEASED: u64 = 512;
/// Handles of an array that is acquired, at most; callers ask for 16 to 64.
const MAX_ACQUIRED: u64 = 128;

/// What was acquired.
struct KernelAcquired {
    resource: Resource,
    handle: u64,
    size: u64,
    /// `struct kmem_cache *`, or 0.
    cache: u64,
    /// [`Label`], encoded, if there is no cache.
    label: u64,
    /// When the call was entered that acquired it; 0 if that is not known.
    since_ns: u64,
    /// Who has called the allocator, if it says so; else 0.
    call_site: u64,
}

/// A tracepoint of an allocation.
#[inline(always)]
pub fn tracepoint_acquire(ctx: &RawTracePointContext, tracepoint: Tracepoint) {
    let args = kernel_setting!(tracepoints[tracepoint as usize]);
    let handle = argument(ctx, args.handle);
    let size = argument(ctx, args.size);
    let gfp = argument(ctx, args.gfp);
    let mut acquired = KernelAcquired {
        resource: resource_of(tracepoint),
        handle,
        size,
        cache: argument(ctx, args.cache),
        label: 0,
        since_ns: 0,
        call_site: argument(ctx, args.call_site),
    };
    match tracepoint {
        Tracepoint::PageAlloc => {
            acquired.size = PAGE_SIZE << (size & 31);
            acquired.label = Label::Pages(size as u8).encode();
        }
        Tracepoint::Kmalloc | Tracepoint::KmallocNode => acquired.label = kmalloc_label(size, gfp),
        _ => {}
    }
    acquire(ctx.as_ptr(), tracepoint as u32, &mut acquired);
}

/// A tracepoint of a release.
#[inline(always)]
pub fn tracepoint_release(ctx: &RawTracePointContext, tracepoint: Tracepoint) {
    let args = kernel_setting!(tracepoints[tracepoint as usize]);
    let handle = argument(ctx, args.handle);
    if let Some(last) = LAST_RELEASED.get_ptr_mut(tracepoint as u32) {
        // SAFETY: this CPU's own; what an interrupt changes meanwhile costs one of the entries.
        let last = unsafe { &mut *last };
        last.handles[last.next as usize & (LAST_RELEASED_LEN - 1)] = handle;
        last.next += 1;
    }
    release(resource_of(tracepoint), handle);
}

/// The twin of the program at the same tracepoint, which runs after it. The kernel skips a program
/// where it would interrupt itself: a release in an interrupt, say. The twin was not running then,
/// and does the work.
#[inline(always)]
pub fn tracepoint_release_twin(ctx: &RawTracePointContext, tracepoint: Tracepoint) {
    let args = kernel_setting!(tracepoints[tracepoint as usize]);
    let handle = argument(ctx, args.handle);
    let Some(last) = LAST_RELEASED.get_ptr_mut(tracepoint as u32) else { return };
    // SAFETY: as above.
    for entry in unsafe { &mut (*last).handles } {
        if *entry == handle {
            *entry = 0;
            return;
        }
    }
    count(Stat::RescuedRuns);
    release(resource_of(tracepoint), handle);
}

#[inline(always)]
fn resource_of(tracepoint: Tracepoint) -> Resource {
    match tracepoint {
        Tracepoint::Kmalloc
        | Tracepoint::KmallocNode
        | Tracepoint::Kfree
        | Tracepoint::CacheAlloc
        | Tracepoint::CacheAllocNode
        | Tracepoint::CacheFree => Resource::Slab,
        Tracepoint::PageAlloc | Tracepoint::PageFree => Resource::Pages,
        Tracepoint::PercpuAlloc | Tracepoint::PercpuFree => Resource::Percpu,
    }
}

/// Argument `position` of a tracepoint; 0 for [`NO_ARG`]. The verifier allows no variable offset
/// into the context.
#[inline(always)]
fn argument(ctx: &RawTracePointContext, position: u8) -> u64 {
    match position {
        0 => ctx.arg(0),
        1 => ctx.arg(1),
        2 => ctx.arg(2),
        3 => ctx.arg(3),
        4 => ctx.arg(4),
        5 => ctx.arg(5),
        6 => ctx.arg(6),
        7 => ctx.arg(7),
        8 => ctx.arg(8),
        9 => ctx.arg(9),
        _ => 0,
    }
}

/// A kprobe at a function that acquires.
#[inline(always)]
pub fn function_enter(ctx: &ProbeContext) -> Option<()> {
    let function = function_of(ctx.as_ptr());
    // SAFETY: rows are written before programs are attached.
    let row = unsafe { KERNEL_ROWS.get(&function)? };
    let args = Arguments::of(ctx);
    let call = KernelCall {
        function,
        size: args.get(row.size_arg),
        cache: args.get(row.cache_arg),
        gfp: args.get(row.gfp_arg),
        array: args.get(row.handle_arg),
        time_ns: now(),
    };
    let sp = entry_sp(ctx);
    if let Some(pending) = KERNEL_CALLS.get_ptr(&sp) {
        // SAFETY: an aligned map value. The same function twice at one place: the kernel has run
        // out of return probes for the first call. Another function there has been jumped to, and
        // returns in the first one's stead.
        if unsafe { (*pending).function } == function {
            count(Stat::MissedReturns);
        }
    }
    if KERNEL_CALLS.insert(&sp, &call, BPF_ANY as u64).is_err() {
        count(Stat::LostAllocations);
    }
    Some(())
}

/// A kretprobe at such a function.
#[inline(always)]
pub fn function_exit(ctx: &RetProbeContext) -> Option<()> {
    let sp = exit_sp(ctx);
    // SAFETY: the call's own programs alone touch its entry.
    let call = unsafe { *KERNEL_CALLS.get(&sp)? };
    let _ = KERNEL_CALLS.remove(&sp);
    // SAFETY: as above.
    let row = unsafe { KERNEL_ROWS.get(&call.function)? };
    returned(ctx.as_ptr(), row, &call, ctx.ret());
    Some(())
}

/// A kprobe at a function that releases.
#[inline(always)]
pub fn function_release(ctx: &ProbeContext) -> Option<()> {
    // SAFETY: as above.
    let row = unsafe { KERNEL_ROWS.get(&function_of(ctx.as_ptr()))? };
    let args = Arguments::of(ctx);
    release_by_row(row, args.get(row.handle_arg), args.get(row.count_arg));
    Some(())
}

/// A piece of work is about to be done: where it is the freeing of what was given to `kfree_rcu`,
/// all of that is released. Nothing of it can be handed out again before the work is done.
#[inline(always)]
pub fn work_start(ctx: &RawTracePointContext) {
    let work: u64 = ctx.arg(0);
    let function = word(work.wrapping_add(kernel_setting!(deferred.function_offset) as u64));
    for which in 0..DEFERRED_FUNCTIONS {
        if function == 0 || function != kernel_setting!(deferred.functions[which]) {
            continue;
        }
        let heads = work.wrapping_add_signed(kernel_setting!(deferred.lists[which]));
        release_list(heads, Resource::Slab.number() as u64);
        release_list(heads + kernel_setting!(deferred.list_size) as u64, Resource::Vmalloc.number() as u64);
    }
}

/// Blocks of a list at most: half a million objects.
const MAX_BLOCKS: u32 = 1024;

/// Releases what is in the blocks of a list. A global function, which the verifier checks once.
/// Gives 1 if there were more blocks than that (counted).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn release_list(head: u64, resource: u64) -> u64 {
    let mut block = word(head);
    for _ in 0..MAX_BLOCKS {
        if block == head || block == 0 {
            return 0;
        }
        release_block(block, resource);
        block = word(block + kernel_setting!(deferred.next_offset) as u64);
    }
    count(Stat::LostEvents);
    1
}

/// Releases what is in a block. A global function likewise.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn release_block(block: u64, resource: u64) -> u64 {
    let Some(resource) = resource_by_number(resource as u32) else { return 0 };
    let entries = word(block.wrapping_add(kernel_setting!(deferred.count_offset) as u64));
    let records = block.wrapping_add(kernel_setting!(deferred.records_offset) as u64);
    release_array(resource, records, entries);
    entries
}

/// Releases what an array of pointers holds.
#[inline(always)]
fn release_array(resource: Resource, array: u64, entries: u64) {
    for index in 0..MAX_RELEASED {
        if index >= entries {
            break;
        }
        release(resource, array_entry(array, index));
    }
}

/// Address of the function that the program is attached to.
#[inline(always)]
fn function_of(ctx: *mut c_void) -> u64 {
    // SAFETY: the helper takes the program's context.
    unsafe { bpf_get_func_ip(ctx) }
}

/// A function that acquires has returned.
#[inline(always)]
fn returned(ctx: *mut c_void, row: &KernelRow, call: &KernelCall, value: u64) {
    let Some(resource) = resource_by_number(row.resource) else { return };
    let mut size = call.size;
    let mut label = 0;
    if resource == Resource::Slab && call.cache == 0 {
        size = kmalloc_size(size).max(if size > KMALLOC_MAX_CACHE { PAGE_SIZE } else { 0 });
        label = kmalloc_label(size, call.gfp);
    }
    let mut acquired = KernelAcquired {
        resource,
        handle: value,
        size,
        cache: call.cache,
        label,
        since_ns: call.time_ns,
        call_site: 0,
    };
    let is_array = row.role == role::ACQUIRE_ARRAY;
    let entries = value & 0xffff_ffff; // an int
    if value == 0 || (is_array && entries == 0) {
        return;
    }
    let stack_id = examine(ctx, row.scratch, &mut acquired);
    if !is_array {
        enter(&acquired, stack_id);
        return;
    }
    if entries > MAX_ACQUIRED {
        count(Stat::LostAllocations);
    }
    for index in 0..MAX_ACQUIRED {
        if index >= entries {
            break;
        }
        acquired.handle = array_entry(call.array, index);
        enter(&acquired, stack_id);
    }
}

#[inline(always)]
fn release_by_row(row: &KernelRow, handle: u64, entries: u64) {
    let Some(resource) = resource_by_number(row.resource) else { return };
    if row.role == role::RELEASE_ARRAY {
        release_array(resource, handle, entries);
    } else {
        release(resource, handle);
    }
}

#[inline(always)]
fn resource_by_number(number: u32) -> Option<Resource> {
    const SLAB: u32 = Resource::Slab.number();
    const VMALLOC: u32 = Resource::Vmalloc.number();
    match number {
        SLAB => Some(Resource::Slab),
        VMALLOC => Some(Resource::Vmalloc),
        _ => None,
    }
}

/// Entry `index` of an array of pointers.
#[inline(always)]
fn array_entry(array: u64, index: u64) -> u64 {
    word(array.wrapping_add(index * 8))
}

/// What kmalloc took a block of `size` bytes from (include/linux/slab.h, `kmalloc_type`).
#[inline(always)]
fn kmalloc_label(size: u64, gfp: u64) -> u64 {
    if size > KMALLOC_MAX_CACHE {
        return Label::Pages(order_of(size)).encode();
    }
    let kind = if gfp & GFP_DMA != 0 {
        KmallocType::Dma
    } else if gfp & GFP_RECLAIMABLE != 0 {
        KmallocType::Reclaimable
    } else if gfp & GFP_ACCOUNT != 0 {
        KmallocType::Cgroup
    } else {
        KmallocType::Normal
    };
    Label::Kmalloc(kind, size).encode()
}

/// Order of a block of whole pages.
#[inline(always)]
fn order_of(size: u64) -> u8 {
    let mut order = 0;
    for _ in 0..32 {
        if PAGE_SIZE << (order & 31) >= size {
            break;
        }
        order += 1;
    }
    order
}

/// Enters what was acquired, if it passes the filters.
#[inline(always)]
fn acquire(ctx: *mut c_void, scratch: u32, acquired: &mut KernelAcquired) {
    if acquired.handle != 0 {
        let stack_id = examine(ctx, scratch, acquired);
        enter(acquired, stack_id);
    }
}

/// Asks the filters and takes the stack: gives its id, [`NO_STACK`] (counted) if there is none,
/// or `None` if the allocation does not count.
#[inline(always)]
fn examine(ctx: *mut c_void, scratch: u32, acquired: &mut KernelAcquired) -> Option<u64> {
    if acquired.cache != 0 {
        acquired.label = acquired.cache;
        acquired.size = cache_size(acquired.cache, acquired.size);
    }
    if !passes(acquired) {
        return None;
    }
    let stack_id = stack::capture(
        ctx,
        &StackUse {
            scratch,
            is_pages: acquired.resource == Resource::Pages,
            label: acquired.label,
            cache: acquired.cache,
            call_site: acquired.call_site,
        },
    )?;
    if stack_id == NO_STACK {
        count(Stat::LostStacks);
    }
    Some(stack_id)
}

/// Enters one handle with what [`examine`] gave.
#[inline(always)]
fn enter(acquired: &KernelAcquired, stack_id: Option<u64>) {
    let key = AllocationKey { space: 0, resource: acquired.resource.number(), handle: acquired.handle };
    let epoch = cut::epoch();
    let is_probed = acquired.since_ns != 0;
    let Some(stack_id) = stack_id else {
        // The address may be one whose release we did not see: its older record is void.
        if table::remove_elsewhere(&key, epoch) && is_probed {
            count(Stat::UnseenReleases);
        }
        return;
    };
    let time_ns = now();
    let allocation = Allocation {
        size: acquired.size,
        stack_id,
        time_ns,
        tid: bpf_get_current_pid_tgid() as u32,
        epoch,
        count: 1,
        birth: time_ns, // of one key there are no two at a time
    };
    // An allocator's function that has called another: the outer one's stack is the one to keep,
    // and it counts once.
    let older_ns = if is_probed { table::time_of_elsewhere(&key) } else { None };
    let is_outer = older_ns.is_some_and(|inner_ns| inner_ns >= acquired.since_ns);
    if !table::replace_elsewhere(&key, &allocation, epoch) || is_outer {
        return;
    }
    // The kernel skips a kprobe that is hit while another is handled on the CPU (in an interrupt),
    // and before 6.9 tells nobody. A tracepoint's program is skipped by its own kind alone, which
    // is counted, and has a twin.
    if older_ns.is_some() {
        count(Stat::UnseenReleases);
    }
    count_in(Stat::Acquired, epoch);
    if setting!(flags) & setting_flags::TRACE != 0 {
        tell(event::kind::ACQUIRE, &key, &allocation);
    }
}

/// Removes the record of what is released.
#[inline(always)]
fn release(resource: Resource, handle: u64) {
    release_handle(resource.number() as u64, handle);
}

/// The same as a global function, which the verifier checks once and not for each entry of an
/// array. Gives 1 if there was a record.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn release_handle(resource: u64, handle: u64) -> u64 {
    let key = AllocationKey { space: 0, resource: resource as u32, handle };
    let epoch = cut::epoch();
    if setting!(flags) & setting_flags::TRACE == 0 {
        return table::release_elsewhere(&key, epoch) as u64;
    }
    let Some(allocation) = table::get_elsewhere(&key) else { return 0 };
    if !table::release_elsewhere(&key, epoch) {
        return 0;
    }
    tell(event::kind::RELEASE, &key, &allocation);
    1
}

#[inline(always)]
fn tell(kind: u32, key: &AllocationKey, allocation: &Allocation) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let event = Event {
        kind,
        owner: (pid_tgid >> 32) as u32,
        tid: pid_tgid as u32,
        resource: key.resource,
        handle: key.handle,
        size: allocation.size,
        time_ns: now(),
        stack_id: allocation.stack_id,
    };
    send_line(&event);
}

/// All that can be said without the stack.
#[inline(always)]
fn passes(acquired: &KernelAcquired) -> bool {
    if acquired.size < setting!(min_size) || acquired.size > setting!(max_size) {
        return false;
    }
    // What runs in no process of our PID namespace is none of those asked for, nor ours.
    let tgid = thread::current_target_id().unwrap_or(u32::MAX);
    let only_tgid = kernel_setting!(only_tgid);
    if tgid == kernel_setting!(own_tgid) || (only_tgid != 0 && tgid != only_tgid) {
        return false;
    }
    let only_comm = kernel_setting!(only_comm);
    if only_comm[0] != 0 && !has_comm(&only_comm) {
        return false;
    }
    let only_label = kernel_setting!(only_label);
    let only_cache = kernel_setting!(only_cache);
    if only_cache[0] != 0
        && (only_label == 0 || acquired.label != only_label)
        && (acquired.cache == 0 || !has_name(acquired.cache, &only_cache))
    {
        return false;
    }
    let sample_rate = setting!(sample_rate);
    // SAFETY: the helper takes nothing.
    sample_rate <= 1 || unsafe { bpf_get_prandom_u32() } as u64 % sample_rate.max(1) == 0
}

#[inline(always)]
fn has_comm(wanted: &[u64; COMM_WORDS]) -> bool {
    let Ok(comm) = bpf_get_current_comm() else { return false };
    // SAFETY: as many bytes; the helper fills up with zeroes (strscpy_pad).
    let comm: [u64; COMM_WORDS] = unsafe { core::mem::transmute(comm) };
    comm[0] == wanted[0] && comm[1] == wanted[1]
}

const _: () = assert!(TRACEPOINTS == Tracepoint::CacheAllocNode as usize + 1);
