//! The current thread, its record and its process.

use aya_ebpf::{
    bindings::{BPF_ANY, bpf_pidns_info},
    helpers::{
        bpf_get_current_pid_tgid, bpf_probe_read_kernel,
        generated::{bpf_get_current_task_btf, bpf_get_ns_current_pid_tgid, bpf_ktime_get_ns, bpf_task_pt_regs},
    },
};
use memleak_common::{
    settings::flags,
    stack::NO_STACK,
    stats::Stat,
    thread::{
        MAX_PENDING, Owner, PendingCall, THREAD_PLACES as THREAD_PLACE_COUNT, ThreadPlace, ThreadRecord,
    },
};

use crate::{
    arch::{Registers, publish},
    maps::{EMPTY_THREAD, PROBES, TARGET_SLOTS, TARGETS, THREAD_PLACES, THREADS, change, count, setting},
};

/// Who owns what the process with this slot acquires.
#[inline(always)]
pub fn owner(slot: u32) -> Option<Owner> {
    Some(TARGETS.get(slot)?.owner)
}

/// The record of the current thread, made when it is first seen, of the process with this slot.
/// `None` if nobody has it.
#[inline(always)]
pub fn current_thread(slot: u32) -> Option<&'static mut ThreadRecord> {
    let pid_tgid = bpf_get_current_pid_tgid();
    let thread = match find(pid_tgid) {
        Some(thread) => thread,
        None => new_thread(pid_tgid, slot)?,
    };
    // SAFETY: only this thread's own programs touch its record.
    Some(unsafe { &mut *thread })
}

/// The same for a program that runs for all processes. `None` if the current one is not traced.
#[inline(always)]
pub fn current_thread_of_tracepoint() -> Option<&'static mut ThreadRecord> {
    let pid_tgid = bpf_get_current_pid_tgid();
    let thread = match find(pid_tgid) {
        Some(thread) => thread,
        None => new_thread(pid_tgid, slot_of_process(pid_tgid)?)?,
    };
    // SAFETY: only this thread's own programs touch its record.
    Some(unsafe { &mut *thread })
}

/// The registers with which the current thread has entered the kernel.
#[inline(always)]
pub fn current_registers() -> Registers {
    // SAFETY: the helpers take nothing, and the task that the first one gives.
    Registers(unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as u64)
}

/// A member of a structure of the kernel's; 0 if it cannot be read.
#[inline(always)]
pub fn member<T: Copy + Default>(structure: *const u8, offset: u32) -> T {
    // SAFETY: the helper checks the address; the offset is the running kernel's own (BTF).
    unsafe { bpf_probe_read_kernel(structure.wrapping_add(offset as usize).cast::<T>()) }.unwrap_or_default()
}

/// The place where a thread's record can be, if there are places.
#[inline(always)]
fn place(pid_tgid: u64) -> Option<*mut ThreadPlace> {
    if setting!(flags) & flags::HASH_ALONE != 0 {
        return None;
    }
    THREAD_PLACES.get_ptr_mut(pid_tgid as u32 & (THREAD_PLACE_COUNT - 1))
}

/// The record of a thread, if it has one. Only the thread's own programs touch it.
#[inline(always)]
pub fn find(pid_tgid: u64) -> Option<*mut ThreadRecord> {
    if let Some(place) = place(pid_tgid) {
        // SAFETY: an aligned word of a map value; then a member of it.
        unsafe {
            if (&raw const (*place).holder).read_volatile() == pid_tgid {
                return Some(&raw mut (*place).record);
            }
        }
    }
    THREADS.get_ptr_mut(&pid_tgid)
}

/// The thread's record is void: it ends, or what it says is of a program that was replaced.
#[inline(always)]
pub fn forget(pid_tgid: u64) {
    if let Some(place) = place(pid_tgid) {
        // SAFETY: as above; what was written to the record is there before others take it.
        unsafe {
            let holder = &raw mut (*place).holder;
            if holder.read_volatile() == pid_tgid {
                publish(holder, 0);
                return;
            }
        }
    }
    let _ = THREADS.remove(&pid_tgid);
}

/// A record for a thread that has none: at its place or, if another thread has that, in the map.
#[inline(always)]
fn take_record(pid_tgid: u64) -> Option<*mut ThreadRecord> {
    if let Some(place) = place(pid_tgid) {
        // SAFETY: an aligned word of a map value; then a record that is this thread's own.
        unsafe {
            if change(&raw mut (*place).holder, 0, pid_tgid) {
                let record = &mut (*place).record;
                reset(record);
                return Some(record);
            }
        }
    }
    if THREADS.insert(&pid_tgid, EMPTY_THREAD.get(0)?, BPF_ANY as u64).is_err() {
        count(Stat::LostAllocations);
        return None;
    }
    THREADS.get_ptr_mut(&pid_tgid)
}

/// Makes a record that another thread has had one of a new thread: all that its programs read
/// before they write it.
#[inline(always)]
fn reset(record: &mut ThreadRecord) {
    record.sample_countdown = 0;
    record.depth = 0;
    record.in_system_call = 0;
    record.interrupted = 0;
    record.returning = 0;
    record.open = [0; 2];
    record.stack_id = NO_STACK;
    record.skipped_sp = 0;
    // The rules of no list.
    record.unwind.generation = u64::MAX;
    record.unwind.window.bytes = 0;
}

#[inline(always)]
fn new_thread(pid_tgid: u64, slot: u32) -> Option<*mut ThreadRecord> {
    let owner = owner(slot)?;
    if owner.space == 0 {
        return None;
    }
    let thread = take_record(pid_tgid)?;
    // SAFETY: as in `current_thread`.
    let record = unsafe { &mut *thread };
    record.owner = owner;
    record.tid = pid_tgid as u32;
    record.slot = slot;
    record.next_birth = first_birth(pid_tgid as u32);
    Some(thread)
}

/// Numbers that no other thread gives, nor an earlier one of the same number: less than 2^22
/// threads (PID_MAX_LIMIT), and microseconds, of which a record takes more than one.
#[inline(always)]
fn first_birth(tid: u32) -> u64 {
    const BITS: u32 = 42;
    // SAFETY: the helper takes nothing.
    let micros = unsafe { bpf_ktime_get_ns() } >> 10;
    (tid as u64) << BITS | micros & ((1 << BITS) - 1)
}

/// The current process's slot; `None` if it is not traced.
#[inline(always)]
pub fn slot_of_process(pid_tgid: u64) -> Option<u32> {
    let pid = target_id(pid_tgid)?;
    let slot = TARGET_SLOTS.get_ptr(&pid)?;
    // SAFETY: an aligned map value.
    Some(unsafe { *slot })
}

/// The current process's number in the tool's PID namespace; `None` if it has none there.
#[inline(always)]
pub fn current_target_id() -> Option<u32> {
    target_id(bpf_get_current_pid_tgid())
}

/// The current process as the map `TARGET_SLOTS` knows it: in the tool's own PID namespace.
#[inline(always)]
pub fn target_id(pid_tgid: u64) -> Option<u32> {
    if setting!(pid_ns_ino) == 0 {
        return Some((pid_tgid >> 32) as u32);
    }
    let mut info = bpf_pidns_info { pid: 0, tgid: 0 };
    // SAFETY: `info` has the size given.
    let result = unsafe {
        bpf_get_ns_current_pid_tgid(
            setting!(pid_ns_dev),
            setting!(pid_ns_ino),
            &raw mut info,
            size_of::<bpf_pidns_info>() as u32,
        )
    };
    (result == 0).then_some(info.tgid)
}

/// The innermost pending call.
#[inline(always)]
pub fn top(thread: &ThreadRecord) -> Option<&PendingCall> {
    let depth = thread.depth as usize;
    if depth == 0 { None } else { thread.pending.get((depth - 1) & (MAX_PENDING - 1)) }
}

/// The group of the row with this index.
#[inline(always)]
pub fn group(row: u32) -> u32 {
    PROBES.get(row).map_or(0, |row| row.group)
}
