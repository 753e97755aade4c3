//! The records of what is outstanding: entered, taken out, put back, removed.
//!
//! What a call may release (realloc, munmap) is taken out of the table at entry and put back if the
//! call fails. Were it taken out at the return, another thread could have acquired the same address
//! in between.
//!
//! All of them are written by the functions in `table`, which tell what leaves it while user space
//! reads.

use aya_ebpf::{
    helpers::{
        bpf_get_current_pid_tgid,
        generated::bpf_probe_read_user_str,
    },
};
use memleak_common::{
    allocation::{Allocation, AllocationKey, RELEASED_EARLY},
    event::{self, Event},
    probe::{ProbeRow, Resource, flags},
    settings::flags as setting_flags,
    stats::Stat,
    thread::{Owner, PendingCall, STACK_WINDOW, ThreadRecord},
};

use crate::{
    args::Return,
    clock::{coarse_now, now},
    history,
    maps::{ALLOCATIONS, EEXIST, PROBES, Wake, add, add_in, count, count_in, has, send, send_line, setting},
    sampling::{is_wanted, number_of},
    stack,
    cut::{self, epoch},
    table,
};

/// [`PendingCall::has_released`].
pub const NOTHING: u16 = 0;
/// `released` holds a record that was taken out of the table.
pub const RECORD: u16 = 1;
/// One reference of several was given back; the record is still in the table.
const REFERENCE: u16 = 2;

/// Bytes of a page.
pub const PAGE_SIZE: u64 = 4096;
/// Records of ranges that can seem to begin in one page.
const RANGES_IN_A_PAGE: u64 = 8;

/// What a call has acquired.
pub struct Acquired {
    /// The handle.
    pub handle: u64,
    /// Its bytes.
    pub size: u64,
    /// When the call was entered, for rows with [`flags::EARLY_RELEASE`].
    pub entered_ns: u64,
    /// The filters have let the call pass already.
    pub is_chosen: bool,
}

/// The key of a handle that an owner has acquired by a row's function.
#[inline(always)]
fn key(owner: Owner, row: &ProbeRow, handle: u64) -> AllocationKey {
    AllocationKey { space: owner.of(row.resource), resource: row.resource, handle }
}

/// Enters a new record, if it passes the filters. Gives its stack.
#[inline(always)]
pub fn record(at: &Return, thread: &mut ThreadRecord, row: &ProbeRow, acquired: &Acquired) -> Option<u64> {
    let &Acquired { handle, size, .. } = acquired;
    let key = key(thread.owner, row, handle);
    if key.space == 0 {
        return None; // a process that is traced for the memory that it shares, and not for its descriptors
    }
    if has(row, flags::COUNTED) && add_reference(&key) {
        return None;
    }
    if !acquired.is_chosen && !is_wanted(thread, row, size) {
        // The address may be one whose release we did not see: its older record is void.
        table::remove(&key, thread.epoch);
        return None;
    }
    let stack_id = stack::capture(at, thread);
    enter(thread, row, &key, size, stack_id, acquired.entered_ns)?;
    Some(stack_id)
}

/// The same for a further handle of the same call.
#[inline(always)]
pub fn record_another(thread: &mut ThreadRecord, row: &ProbeRow, handle: u64, stack_id: u64) {
    let key = key(thread.owner, row, handle);
    let _ = enter(thread, row, &key, 0, stack_id, 0);
}

/// Enters a record of a block or handle with its size and stack.
#[inline(always)]
fn enter(
    thread: &mut ThreadRecord,
    row: &ProbeRow,
    key: &AllocationKey,
    size: u64,
    stack_id: u64,
    entered_ns: u64,
) -> Option<()> {
    let resource = key.resource as u64;
    // SAFETY, of both: the current thread's record.
    let entered = if has(row, flags::EARLY_RELEASE) {
        thread.entered_ns = entered_ns;
        unsafe { enter_unless_released_of(thread, resource, key.handle, size, stack_id) }
    } else {
        unsafe { enter_of(thread, resource, key.handle, size, stack_id) }
    };
    (entered != 0).then_some(())
}

/// [`enter`], of this resource. A global function, which the verifier checks once and not for each
/// way to it. Gives 1 if it has entered a record.
///
/// # Safety
/// `thread` is null or the record of the current thread.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn enter_of(
    thread: *mut ThreadRecord,
    resource: u64,
    handle: u64,
    size: u64,
    stack_id: u64,
) -> u64 {
    // SAFETY: the caller says so.
    let Some(thread) = (unsafe { thread.as_mut() }) else { return 0 };
    let key = AllocationKey { space: thread.owner.of(resource as u32), resource: resource as u32, handle };
    let allocation = allocation_of(thread, &key, size, stack_id);
    if !table::replace(&key, &allocation, allocation.epoch) {
        return 0;
    }
    entered(thread, &key, &allocation);
    1
}

/// The same, unless the handle was released after the call that acquires it was entered.
///
/// # Safety
/// As of [`enter_of`].
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn enter_unless_released_of(
    thread: *mut ThreadRecord,
    resource: u64,
    handle: u64,
    size: u64,
    stack_id: u64,
) -> u64 {
    // SAFETY: the caller says so.
    let Some(thread) = (unsafe { thread.as_mut() }) else { return 0 };
    let key = AllocationKey { space: thread.owner.of(resource as u32), resource: resource as u32, handle };
    let allocation = allocation_of(thread, &key, size, stack_id);
    if enter_unless_released(&key, &allocation, thread.entered_ns).is_none() {
        return 0;
    }
    entered(thread, &key, &allocation);
    1
}

/// The record of what is acquired now.
#[inline(always)]
fn allocation_of(thread: &mut ThreadRecord, key: &AllocationKey, size: u64, stack_id: u64) -> Allocation {
    let time_ns = time_of(key.resource as u64);
    let (tid, epoch, birth) = (thread.tid, thread.epoch, thread.next_birth);
    thread.next_birth += 1;
    Allocation { size, stack_id, time_ns, tid, epoch, count: 1, birth }
}

/// Counts, and with `-t` tells, that a record was entered.
#[inline(always)]
fn entered(thread: &ThreadRecord, key: &AllocationKey, allocation: &Allocation) {
    add_in(Stat::Acquired, allocation.epoch, number_of(key.resource, allocation.size));
    if setting!(flags) & setting_flags::TRACE != 0 {
        // SAFETY: the current thread's record.
        unsafe { send_acquire(thread, key.resource as u64, key.handle, allocation.size, allocation.stack_id) };
    }
}

/// When something of this resource was acquired, now. A global function: what it needs on the stack
/// would be too much for who asks.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn time_of(resource: u64) -> u64 {
    if resource == Resource::Heap.number() as u64 { coarse_now() } else { now() }
}

/// `-t`: tells what was acquired. A global function, so that there is room for the event on the
/// stack.
///
/// # Safety
/// `thread` is null or the record of the current thread.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn send_acquire(
    thread: *const ThreadRecord,
    resource: u64,
    handle: u64,
    size: u64,
    stack_id: u64,
) -> u64 {
    // SAFETY: the caller says so.
    let Some(thread) = (unsafe { thread.as_ref() }) else { return 0 };
    let resource = resource as u32;
    let (owner, tid) = (thread.owner.of(resource), thread.tid);
    let kind = event::kind::ACQUIRE;
    send_line(&Event { kind, owner, tid, resource, handle, size, time_ns: now(), stack_id });
    0
}

/// One more reference to what is outstanding already. Says whether it is.
#[inline(always)]
fn add_reference(key: &AllocationKey) -> bool {
    let Some(found) = table::get_ptr(key) else { return false };
    // SAFETY: an aligned map value; its count is only ever added to atomically.
    unsafe { add(&raw mut (*found).count, 1) };
    true
}

/// Enters a record, unless its handle was released after the call that acquired it was entered.
#[inline(always)]
fn enter_unless_released(key: &AllocationKey, allocation: &Allocation, entered_ns: u64) -> Option<()> {
    if table::insert_new(key, allocation).is_ok() {
        return Some(());
    }
    if let Some(found) = table::get_ptr(key) {
        // SAFETY: an aligned map value that only this handle's users change.
        let (count, time_ns) = unsafe { ((*found).count, (*found).time_ns) };
        if count == RELEASED_EARLY && time_ns >= entered_ns {
            table::remove(key, allocation.epoch);
            return None;
        }
    }
    table::replace(key, allocation, allocation.epoch).then_some(())
}

/// A handle is released: removes its record.
#[inline(always)]
pub fn remove(owner: Owner, row: &ProbeRow, handle: u64) -> Option<()> {
    let key = key(owner, row, handle);
    if has(row, flags::COUNTED) && drop_reference(&key) {
        return Some(());
    }
    let epoch = epoch();
    if setting!(flags) & setting_flags::TRACE == 0 {
        return table::release(&key, epoch).then_some(());
    }
    let size = table::get_ptr(&key).map_or(0, |found| {
        // SAFETY: a record changes only while its block is acquired, and this thread is about to
        // release it.
        unsafe { (*found).size }
    });
    if !table::release(&key, epoch) {
        return None;
    }
    send_release(&key, bpf_get_current_pid_tgid() as u32, size);
    Some(())
}

/// What a handle names has another size from now on. All else of its record stays.
#[inline(always)]
pub fn resize(thread: &ThreadRecord, row: &ProbeRow, handle: u64, size: u64) {
    let key = key(thread.owner, row, handle);
    let Some(found) = table::get_ptr(&key) else { return };
    // A reading that is under way has it as it was.
    // SAFETY: an aligned map value, which only whoever holds the block changes.
    cut::leave_call(&key, unsafe { &*found }, thread.epoch);
    // SAFETY: an aligned word of a map value, which only whoever holds the block changes.
    unsafe { (&raw mut (*found).size).write_volatile(size) };
    count(Stat::Resized);
}

/// Bytes of the string at `address`, with the zero behind it: those of the first 16 KiB.
#[inline(always)]
pub fn string_size(thread: &mut ThreadRecord, address: u64) -> u64 {
    const PIECE: u64 = STACK_WINDOW as u64 * 8;
    const PIECES: u64 = 4;
    let scratch = (&raw mut thread.unwind.window.words).cast();
    // What is read here is no stack.
    thread.unwind.window.bytes = 0;
    let mut size = 0;
    for _ in 0..PIECES {
        // SAFETY: the scratch space is this thread's own and as large as a piece; the helper checks
        // the address.
        let read = unsafe { bpf_probe_read_user_str(scratch, PIECE as u32, (address + size) as *const _) };
        if read <= 0 {
            break;
        }
        // The helper ends what does not fit with a zero of its own.
        let is_whole = (read as u64) < PIECE;
        size += if is_whole { read as u64 } else { PIECE - 1 };
        if is_whole {
            break;
        }
    }
    size
}

/// One reference less to what has several. Says whether any is left.
#[inline(always)]
fn drop_reference(key: &AllocationKey) -> bool {
    let Some(found) = table::get_ptr(key) else { return false };
    // SAFETY: an aligned map value; its count is only ever added to atomically.
    unsafe {
        add(&raw mut (*found).count, u64::MAX);
        core::ptr::read_volatile(&raw const (*found).count) as i64 > 0
    }
}

/// Takes the record that begins at the released handle out of the table and into the call.
#[inline(always)]
pub fn take_out(epoch: u32, owner: Owner, call: &mut PendingCall) {
    // SAFETY: a call that is borrowed.
    unsafe { take_out_of(call, owner.packed(), epoch as u64) };
}

/// [`take_out`], for this [`Owner::packed`]. A global function, which the verifier checks once and
/// not for each way to it.
///
/// # Safety
/// `call` is null or a call of the current thread's.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn take_out_of(call: *mut PendingCall, owner: u64, epoch: u64) -> u64 {
    // SAFETY: the caller says so.
    if let Some(call) = unsafe { call.as_mut() }
        && let Some(row) = PROBES.get(call.row)
    {
        take_out_in(epoch as u32, Owner::unpacked(owner), row, call);
    }
    0
}

#[inline(always)]
fn take_out_in(epoch: u32, owner: Owner, row: &ProbeRow, call: &mut PendingCall) {
    let key = key(owner, row, call.released_handle);
    if has(row, flags::COUNTED) && drop_reference(&key) {
        call.has_released = REFERENCE;
        return;
    }
    if let Some(found) = table::get_ptr(&key) {
        // SAFETY: a record changes only while its block is acquired, and this thread is about to
        // release it.
        call.released = unsafe { *found };
        if has(row, flags::EARLY_RELEASE) && call.released.count == RELEASED_EARLY {
            return;
        }
        call.released.count = 1;
        if table::remove(&key, epoch) {
            call.has_released = RECORD;
        }
    }
}

/// The call did not release what it had taken out.
#[inline(always)]
pub fn put_back(owner: Owner, call: &PendingCall) {
    if call.has_released != NOTHING {
        // SAFETY: a call that is borrowed.
        unsafe { put_back_of(call, owner.packed()) };
    }
}

/// [`put_back`], for this [`Owner::packed`]. A global function likewise.
///
/// # Safety
/// `call` is null or a call of the current thread's.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn put_back_of(call: *const PendingCall, owner: u64) -> u64 {
    // SAFETY: the caller says so.
    if let Some(call) = unsafe { call.as_ref() } {
        put_back_in(Owner::unpacked(owner), call);
    }
    0
}

#[inline(always)]
fn put_back_in(owner: Owner, call: &PendingCall) {
    let Some(row) = PROBES.get(call.row) else { return };
    let key = key(owner, row, call.released_handle);
    if has(row, flags::COUNTED)
        && let Some(found) = table::get_ptr(&key)
    {
        // SAFETY: an aligned map value; its count is only ever added to atomically.
        unsafe { add(&raw mut (*found).count, 1) };
        return;
    }
    if call.has_released != RECORD {
        return;
    }
    let epoch = epoch();
    let mut record = call.released;
    if has(row, flags::GONE_WHILE_PENDING) {
        record.epoch = epoch; // it was not there, and is now
    } else {
        cut::leave_call(&key, &call.released, epoch);
    }
    // After a return that we missed the address may be another block's by now.
    if !matches!(table::insert_new(&key, &record), Ok(()) | Err(EEXIST)) {
        count(Stat::LostAllocations);
    }
}

/// The call has released its handle or range.
///
/// Of ranges only the record that begins where the release begins is found here. What else the
/// release covers (the end of one range, several, one mapped into another) user space cuts out,
/// which can search: it learns of every release.
#[inline(always)]
pub fn finish_release(thread: &ThreadRecord, call: &PendingCall) {
    // SAFETY: both are borrowed.
    unsafe { finish_release_of(thread, call) };
}

/// [`finish_release`]. A global function likewise.
///
/// # Safety
/// Both are null, or the record of the current thread and a call of it.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn finish_release_of(thread: *const ThreadRecord, call: *const PendingCall) -> u64 {
    // SAFETY: the caller says so.
    if let (Some(thread), Some(call)) = unsafe { (thread.as_ref(), call.as_ref()) }
        && let Some(row) = PROBES.get(call.row)
    {
        finish_release_in(thread, row, call);
    }
    0
}

#[inline(always)]
fn finish_release_in(thread: &ThreadRecord, row: &ProbeRow, call: &PendingCall) {
    let is_range = has(row, flags::RANGE);
    let is_span = has(row, flags::SPAN);
    let pages = if is_span { call.released_len } else { pages(call.released_len) };
    if call.has_released == RECORD {
        if !has(row, flags::GONE_WHILE_PENDING) {
            cut::leave_call(&key(thread.owner, row, call.released_handle), &call.released, thread.epoch);
        }
        if is_range && pages_of(&call.released) > pages {
            keep_rest(thread.owner, row, call, pages);
        } else {
            released(thread, row, call.released_handle, &call.released);
        }
    }
    if has(row, flags::EARLY_RELEASE) && call.has_released == NOTHING {
        release_early(thread, row, call);
    }
    if (is_range || is_span) && pages > 0 {
        let event = Event {
            kind: event::kind::RELEASE_RANGE,
            owner: thread.owner.of(row.resource),
            tid: thread.tid,
            resource: row.resource,
            handle: call.released_handle,
            size: pages,
            time_ns: call.time_ns,
            stack_id: thread.epoch as u64,
        };
        send(&event, Wake::Lazily);
    }
}

/// What is released is not known: it may be handed out yet, by a call that has not returned. So a
/// mark is left for it.
#[inline(always)]
fn release_early(thread: &ThreadRecord, row: &ProbeRow, call: &PendingCall) {
    let key = key(thread.owner, row, call.released_handle);
    let mark = Allocation { time_ns: call.time_ns, count: RELEASED_EARLY, ..Allocation::default() };
    for _ in 0..2 {
        if let Some(found) = ALLOCATIONS.get_ptr(&key) {
            // SAFETY: an aligned map value that only this handle's users change.
            let (is_mark, size) = unsafe { ((*found).count == RELEASED_EARLY, (*found).size) };
            if table::remove_elsewhere(&key, thread.epoch) && !is_mark {
                count_in(Stat::Released, thread.epoch);
                tell_released(thread, row, call.released_handle, size);
                return;
            }
        }
        if table::insert_elsewhere(&key, &mark).is_ok() {
            return;
        }
    }
}

/// The first `pages` bytes of a range are released: the end stays, as it was acquired.
#[inline(always)]
fn keep_rest(owner: Owner, row: &ProbeRow, call: &PendingCall, pages: u64) {
    let start = call.released_handle.wrapping_add(pages);
    let rest = Allocation { size: call.released.size - pages, ..call.released };
    // The place may be taken, by a range that was mapped into this one. No range begins within a
    // page, so its other bytes serve as keys too; user space rounds down.
    for within in 0..RANGES_IN_A_PAGE {
        let key = key(owner, row, start.wrapping_add(within));
        if table::insert_elsewhere(&key, &rest).is_ok() {
            return;
        }
    }
    count(Stat::LostAllocations);
}

/// MAP_FIXED: the new range has replaced whatever was there.
#[inline(always)]
pub fn replace_range(thread: &ThreadRecord, call: &mut PendingCall, handle: u64) {
    // In the call's own record, which is done with: a further one does not fit on the stack of
    // kernels before 6.13.
    call.released_handle = handle;
    call.released_len = call.size_or_address;
    call.time_ns = now();
    call.has_released = NOTHING;
    take_out(thread.epoch, thread.owner, call);
    finish_release(thread, call);
}

/// Bytes of the whole pages that a length covers.
#[inline(always)]
fn pages(len: u64) -> u64 {
    len.wrapping_add(PAGE_SIZE - 1) & !(PAGE_SIZE - 1)
}

#[inline(always)]
fn pages_of(allocation: &Allocation) -> u64 {
    pages(allocation.size)
}

/// Counts, and with `-t` tells, that a record taken out is released for good.
#[inline(always)]
fn released(thread: &ThreadRecord, row: &ProbeRow, handle: u64, record: &Allocation) {
    history::released(row.resource, record.stack_id, record.size, record.time_ns, thread.epoch);
    tell_released(thread, row, handle, record.size);
}

/// With `-t` tells of a release.
#[inline(always)]
fn tell_released(thread: &ThreadRecord, row: &ProbeRow, handle: u64, size: u64) {
    if setting!(flags) & setting_flags::TRACE != 0 {
        send_release(&key(thread.owner, row, handle), thread.tid, size);
    }
}

#[inline(always)]
fn send_release(key: &AllocationKey, tid: u32, size: u64) {
    let event = Event {
        kind: event::kind::RELEASE,
        owner: key.space,
        tid,
        resource: key.resource,
        handle: key.handle,
        size,
        time_ns: now(),
        stack_id: 0,
    };
    send_line(&event);
}
