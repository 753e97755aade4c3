//! The bookkeeping: what an acquire and a release do to the tables.
//!
//! A thread keeps the calls that it has entered and not left (`ThreadRecord::pending`). A call nests in a pending one
//! of its group while its stack pointer is lower, and then does not count: the outermost does. A pending one at a lower
//! stack pointer than a new call's has been left without a return that we saw.
//!
//! What a call may release (realloc, munmap) is taken out of the table at entry and put back if the call fails. Were it
//! taken out at the return, another thread could have acquired the same address in between.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::{
        bpf_get_current_pid_tgid, bpf_probe_read_user, bpf_probe_write_user,
        generated::{bpf_get_attach_cookie, bpf_get_prandom_u32, bpf_ktime_get_ns},
    },
    programs::{ProbeContext, RetProbeContext},
};
use memleak_common::{
    allocation::{Allocation, AllocationKey, RELEASED_EARLY},
    event::{self, Event},
    probe::{NO_ARG, ProbeRow, flags, handle, only, size, success},
    settings::flags as setting_flags,
    stats::Stat,
    thread::{MAX_PENDING, PendingCall, ThreadRecord},
};

use crate::{
    args::{Arguments, Caller, entry_sp, exit_sp},
    lifecycle,
    maps::{ALLOCATIONS, PROBES, THREADS, Wake, add, count, send, setting},
    stack,
};

const PAGE_SIZE: u64 = 4096;
const EEXIST: i32 = -17;
/// Records of ranges that can seem to begin in one page.
const RANGES_IN_A_PAGE: u64 = 8;
/// Where the kernel's return trampoline is: the last page of the address space (kernel/events/uprobes.c,
/// `xol_add_vma`), of 47 bits or with five-level page tables 56.
const TRAMPOLINES: [u64; 2] = [0x7fff_ffff_e000, 0x00ff_ffff_ffff_e000];

/// Pushes a pending call.
#[inline(always)]
pub fn acquire_enter(ctx: &ProbeContext) -> Option<()> {
    let (cookie, row) = row(ctx.regs.cast())?;
    let thread = lifecycle::current_thread()?;
    let mut call = PendingCall { sp: entry_sp(ctx), row: cookie, ..PendingCall::default() };
    if drop_stale(thread, row, &mut call) {
        return None;
    }
    let args = Arguments::of(ctx);
    if row.only != only::ALL && !applies(row, &args) {
        return None;
    }
    let is_walked_past = setting!(flags) & setting_flags::READ_RETURNS != 0;
    if (is_walked_past || row.flags & flags::MAY_THROW != 0) && call.return_address == 0 {
        // SAFETY: the helper checks the address.
        call.return_address = unsafe { bpf_probe_read_user(call.sp as *const u64) }.unwrap_or(0);
    }
    if thread.depth > 0 && row.flags & flags::COUNTS_NESTED == 0 && nests(thread, row) {
        call.nested = 1;
    }
    if thread.depth >= MAX_PENDING as u32 {
        if call.nested == 0 {
            count(Stat::LostAllocations);
        }
        return None;
    }
    if call.nested == 0 {
        read_arguments(&args, thread.tgid, row, &mut call);
    }
    let slot = thread.pending.get_mut(thread.depth as usize & (MAX_PENDING - 1))?;
    *slot = call;
    thread.depth += 1;
    Some(())
}

/// The call is one of those that count: see [`only`].
#[inline(always)]
pub fn applies(row: &ProbeRow, args: &Arguments) -> bool {
    let arg = args.get(row.only_arg);
    match row.only {
        only::ARG_IN => row.only_values[0] == arg as u32 || row.only_values[1] == arg as u32,
        only::ARGS_DIFFER => arg as u32 != args.get(row.only_values[0] as u8) as u32,
        only::BEHIND_ARG_CLEAR => {
            let address = arg.wrapping_add(row.only_values[0] as u64);
            // SAFETY: the helper checks the address.
            arg == 0
                || unsafe { bpf_probe_read_user(address as *const u32) }.unwrap_or(0) & row.only_values[1]
                    == 0
        }
        _ => true,
    }
}

#[inline(always)]
pub fn read_arguments(args: &Arguments, tgid: u32, row: &ProbeRow, call: &mut PendingCall) {
    call.size = requested_size(row, args);
    call.out_pointer = args.get(row.handle_arg);
    call.call_flags = args.get(row.flags_arg);
    if row.flags & flags::EARLY_RELEASE != 0 {
        call.time_ns = now();
    }
    if row.release_arg != NO_ARG && row.keep_mask & call.call_flags as u32 == 0 {
        call.time_ns = now();
        call.released_handle = handle_to_release(row, args);
        call.released_len = args.get(row.release_len_arg);
        if row.flags & flags::SPAN != 0 {
            let last = narrow(row, call.released_len);
            call.released_len = last.wrapping_add(1).saturating_sub(call.released_handle);
            return;
        }
        // A range of length 0 is not released (mremap then makes a second mapping of the first).
        let nothing =
            is_none(row, call.released_handle) || (row.flags & flags::RANGE != 0 && call.released_len == 0);
        if call.has_released == NOTHING && !nothing {
            take_out(tgid, row, call);
        }
    }
}

/// The handle that the call is about to release; 0 where it cannot be read.
#[inline(always)]
fn handle_to_release(row: &ProbeRow, args: &Arguments) -> u64 {
    let arg = args.get(row.release_arg);
    if row.flags & flags::RELEASE_BEHIND == 0 || arg == 0 {
        return narrow(row, arg);
    }
    read_word(arg.wrapping_add(row.release_offset as u64), row.handle_width).unwrap_or(0)
}

/// As much of a word as is the row's handle.
#[inline(always)]
fn narrow(row: &ProbeRow, word: u64) -> u64 {
    if row.handle_width == 4 { word & 0xffff_ffff } else { word }
}

/// The handle names nothing: null.
#[inline(always)]
fn is_none(row: &ProbeRow, handle: u64) -> bool {
    handle == 0 && row.flags & flags::ZERO_IS_HANDLE == 0
}

/// Drops pending calls that were left without a return that we saw. Says whether the new call is a tail call of a
/// pending one of its group, which then is the one that counts.
#[inline(always)]
fn drop_stale(thread: &mut ThreadRecord, row: &ProbeRow, call: &mut PendingCall) -> bool {
    for _ in 0..MAX_PENDING {
        let Some(top) = top(thread) else { break };
        if top.sp > call.sp {
            break;
        }
        if top.sp == call.sp && is_trampoline(call.sp) {
            // The outer function has jumped to this one, which returns in its stead (reallocarray to realloc).
            call.return_address = top.return_address;
            return group(top.row) == row.group;
        }
        if top.nested == 0 {
            count(Stat::MissedReturns);
            put_back(thread.tgid, top);
        }
        thread.depth -= 1;
    }
    false
}

/// The return address there is the kernel's: that of a call which is still pending.
#[inline(always)]
fn is_trampoline(sp: u64) -> bool {
    // SAFETY: the helper checks the address.
    let found = unsafe { bpf_probe_read_user(sp as *const u64) }.unwrap_or(0);
    found == TRAMPOLINES[0] || found == TRAMPOLINES[1]
}

/// A call of the row's group is pending.
#[inline(always)]
fn nests(thread: &ThreadRecord, row: &ProbeRow) -> bool {
    for i in 0..MAX_PENDING {
        if i as u32 >= thread.depth {
            break;
        }
        if group(thread.pending[i].row) == row.group {
            return true;
        }
    }
    false
}

/// Pops the call that returns, and commits what it did.
#[inline(always)]
pub fn acquire_exit(ctx: &RetProbeContext) -> Option<()> {
    let pid_tgid = bpf_get_current_pid_tgid();
    // SAFETY: only this thread's own programs touch its record.
    let thread = unsafe { &mut *THREADS.get_ptr_mut(&pid_tgid)? };
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
            put_back(thread.tgid, call);
        }
        thread.depth -= 1;
    }
    let call = top(thread)?;
    // SAFETY: the helper takes the program's context.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.regs.cast()) } as u32;
    if call.sp != sp || call.row != cookie {
        return None; // the return of a function that a pending one has jumped to
    }
    let row = PROBES.get(cookie)?;
    // SAFETY: the popped entry stays as it is until this thread's next call.
    let call = unsafe { &*core::ptr::from_ref(call) };
    thread.depth -= 1;
    if call.nested != 0 {
        return None;
    }
    commit(&Caller::of(ctx), thread, row, call, ctx.ret())
}

/// A pending call returned: does to the table what the call did.
#[inline(always)]
pub fn commit(
    caller: &Caller,
    thread: &mut ThreadRecord,
    row: &ProbeRow,
    call: &PendingCall,
    returned: u64,
) -> Option<()> {
    let Some(handle) = acquired_handle(row, call, returned) else {
        let zero_size_release = row.flags & flags::ZERO_SIZE_RELEASES != 0 && call.size == 0 && returned == 0;
        if zero_size_release || row.flags & flags::RELEASES_ANYWAY != 0 {
            finish_release(thread, row, call);
        } else {
            put_back(thread.tgid, call);
        }
        return None;
    };
    if row.release_arg != NO_ARG {
        finish_release(thread, row, call);
    }
    if row.handle == handle::NONE {
        return Some(());
    }
    if row.flags & flags::RANGE != 0 && row.replace_mask & call.call_flags as u32 != 0 {
        replace_range(thread, row, call, handle);
    }
    let size = if row.size == size::BEHIND_ARG { read_word(call.size, 8).unwrap_or(0) } else { call.size };
    record(caller, thread, row, &Acquired { handle, size, entered_ns: call.time_ns })?;
    if row.handle_count > 1 {
        let address =
            call.out_pointer.wrapping_add(row.handle_offset as u64).wrapping_add(row.handle_width as u64);
        match read_word(address, row.handle_width) {
            Some(handle) => record_another(thread, row, handle),
            None => count(Stat::LostAllocations),
        }
    }
    Some(())
}

/// What a call has acquired.
struct Acquired {
    /// The handle.
    handle: u64,
    /// Its bytes.
    size: u64,
    /// When the call was entered, for rows with [`flags::EARLY_RELEASE`].
    entered_ns: u64,
}

/// Enters a new record, if it passes the filters.
#[inline(always)]
fn record(caller: &Caller, thread: &mut ThreadRecord, row: &ProbeRow, acquired: &Acquired) -> Option<()> {
    let &Acquired { handle, size, .. } = acquired;
    let key = AllocationKey { tgid: thread.tgid, resource: row.resource, handle };
    if row.flags & flags::COUNTED != 0 && add_reference(thread, &key) {
        return None;
    }
    let sample_rate = setting!(sample_rate);
    let in_range = row.size == size::NONE || (size >= setting!(min_size) && size <= setting!(max_size));
    if !in_range || (sample_rate > 1 && !sampled(thread, sample_rate)) {
        // The address may be one whose release we did not see: its older record is void.
        let _ = ALLOCATIONS.remove(&key);
        return None;
    }
    let stack_id = stack::capture(caller, thread);
    enter(thread, row, &key, size, stack_id, acquired.entered_ns)
}

/// The same for a further handle of the same call.
#[inline(always)]
fn record_another(thread: &ThreadRecord, row: &ProbeRow, handle: u64) {
    let key = AllocationKey { tgid: thread.tgid, resource: row.resource, handle };
    let _ = enter(thread, row, &key, 0, thread.stack_id, 0);
}

#[inline(always)]
fn enter(
    thread: &ThreadRecord,
    row: &ProbeRow,
    key: &AllocationKey,
    size: u64,
    stack_id: u64,
    entered_ns: u64,
) -> Option<()> {
    let time_ns = now();
    let allocation =
        Allocation { size, stack_id, time_ns, tid: thread.tid, generation: thread.generation, count: 1 };
    if row.flags & flags::EARLY_RELEASE != 0 {
        enter_unless_released(key, &allocation, entered_ns)?;
    } else if ALLOCATIONS.insert(key, &allocation, BPF_ANY as u64).is_err() {
        count(Stat::LostAllocations);
        return None;
    }
    count(Stat::Acquired);
    if setting!(flags) & setting_flags::TRACE != 0 {
        let event = Event {
            kind: event::kind::ACQUIRE,
            tgid: thread.tgid,
            tid: thread.tid,
            resource: row.resource,
            handle: key.handle,
            size,
            time_ns,
            stack_id,
        };
        send(&event, Wake::Soon);
    }
    Some(())
}

/// One more reference to what is outstanding already. Says whether it is.
#[inline(always)]
fn add_reference(thread: &ThreadRecord, key: &AllocationKey) -> bool {
    let Some(found) = ALLOCATIONS.get_ptr_mut(key) else { return false };
    // SAFETY: an aligned map value; its count is only ever added to atomically.
    unsafe {
        if (*found).generation != thread.generation {
            return false;
        }
        add(&raw mut (*found).count, 1);
    }
    true
}

/// Enters a record, unless its handle was released after the call that acquired it was entered.
#[inline(always)]
fn enter_unless_released(key: &AllocationKey, allocation: &Allocation, entered_ns: u64) -> Option<()> {
    if ALLOCATIONS.insert(key, allocation, BPF_NOEXIST as u64).is_ok() {
        return Some(());
    }
    if let Some(found) = ALLOCATIONS.get_ptr(key) {
        // SAFETY: an aligned map value that only this handle's users change.
        let (generation, time_ns) = unsafe { ((*found).generation, (*found).time_ns) };
        if generation == RELEASED_EARLY && time_ns >= entered_ns {
            let _ = ALLOCATIONS.remove(key);
            return None;
        }
    }
    if ALLOCATIONS.insert(key, allocation, BPF_ANY as u64).is_err() {
        count(Stat::LostAllocations);
        return None;
    }
    Some(())
}

/// Removes the record of what is released.
#[inline(always)]
pub fn release_enter(ctx: &ProbeContext) -> Option<()> {
    let (_, row) = row(ctx.regs.cast())?;
    release(row, &Arguments::of(ctx))
}

/// The same, for a call with these arguments.
#[inline(always)]
pub fn release(row: &ProbeRow, args: &Arguments) -> Option<()> {
    let handle = handle_to_release(row, args);
    if is_none(row, handle) {
        return None;
    }
    let pid_tgid = bpf_get_current_pid_tgid();
    let key = AllocationKey { tgid: (pid_tgid >> 32) as u32, resource: row.resource, handle };
    if row.flags & flags::COUNTED != 0 && drop_reference(&key) {
        return Some(());
    }
    if setting!(flags) & setting_flags::TRACE == 0 {
        ALLOCATIONS.remove(&key).ok()?;
        count(Stat::Released);
        return Some(());
    }
    let size = ALLOCATIONS.get_ptr(&key).map_or(0, |found| {
        // SAFETY: a record changes only while its block is acquired, and this thread is about to release it.
        unsafe { (*found).size }
    });
    ALLOCATIONS.remove(&key).ok()?;
    count(Stat::Released);
    send_release(key.tgid, pid_tgid as u32, row, handle, size);
    Some(())
}

/// One reference less to what has several. Says whether any is left.
#[inline(always)]
fn drop_reference(key: &AllocationKey) -> bool {
    let Some(found) = ALLOCATIONS.get_ptr_mut(key) else { return false };
    // SAFETY: an aligned map value; its count is only ever added to atomically.
    unsafe {
        add(&raw mut (*found).count, u64::MAX);
        core::ptr::read_volatile(&raw const (*found).count) as i64 > 0
    }
}

/// The thread's pending calls will not return. `mend` puts their return addresses back on the stack: an unwinder that
/// came upon the kernel's trampoline would find no caller there, and the C++ runtime would end the process.
#[inline(always)]
pub fn abandon_pending(mend: bool) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = THREADS.get_ptr_mut(&pid_tgid) else { return };
    // SAFETY: only this thread's own programs touch its record.
    let thread = unsafe { &mut *thread };
    for i in 0..MAX_PENDING {
        if !mend || i as u32 >= thread.depth {
            break;
        }
        let call = &thread.pending[i];
        if call.return_address != 0 {
            // SAFETY: the helper checks the address; what it writes is what the kernel's own probe has replaced.
            let _ = unsafe { bpf_probe_write_user(call.sp as *mut u64, &raw const call.return_address) };
        }
    }
    abandon_all(thread);
}

/// The thread ends: neither its pending calls nor its system call will return.
#[inline(always)]
pub fn thread_ends(thread: &mut ThreadRecord) {
    abandon_all(thread);
    if thread.in_system_call != 0 {
        put_back(thread.tgid, &thread.system_call);
    }
}

/// Drops all pending calls of a thread; what they had taken out is still acquired.
#[inline(always)]
fn abandon_all(thread: &mut ThreadRecord) {
    for _ in 0..MAX_PENDING {
        let Some(call) = top(thread) else { break };
        put_back(thread.tgid, call);
        thread.depth -= 1;
    }
}

/// The row that the attach cookie names.
#[inline(always)]
fn row(ctx: *mut core::ffi::c_void) -> Option<(u32, &'static ProbeRow)> {
    // SAFETY: the helper takes the program's context.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.cast()) } as u32;
    Some((cookie, PROBES.get(cookie)?))
}

/// The innermost pending call.
#[inline(always)]
fn top(thread: &ThreadRecord) -> Option<&PendingCall> {
    let depth = thread.depth as usize;
    if depth == 0 { None } else { thread.pending.get((depth - 1) & (MAX_PENDING - 1)) }
}

/// The group of the row with this index.
#[inline(always)]
fn group(row: u32) -> u32 {
    PROBES.get(row).map_or(0, |row| row.group)
}

#[inline(always)]
fn requested_size(row: &ProbeRow, args: &Arguments) -> u64 {
    match row.size {
        size::ARG => args.get(row.size_arg),
        size::PRODUCT => product(args.get(row.size_arg), args.get(row.size_arg2)),
        // Read when the call returns.
        size::BEHIND_ARG => args.get(row.size_arg),
        size::CONSTANT => row.constant,
        _ => 0,
    }
}

/// A product that overflows makes the call fail; wrapped to 0 it would look like a release of size 0. (There is no
/// 128-bit multiplication here to ask.) What is not computed is 2^48 or more: more than any address space.
#[inline(always)]
fn product(a: u64, b: u64) -> u64 {
    let fits =
        (a >> 32 == 0 && b >> 32 == 0) || (a >> 48 == 0 && b >> 16 == 0) || (a >> 16 == 0 && b >> 48 == 0);
    if fits || a == 0 || b == 0 { a.wrapping_mul(b) } else { u64::MAX }
}

/// What tells of success does so.
#[inline(always)]
fn succeeded(row: &ProbeRow, returned: u64) -> bool {
    let value = if row.flags & flags::WIDE_RETURN != 0 { returned as i64 } else { returned as i32 as i64 };
    match row.success {
        success::EQUAL => value == row.success_value,
        success::NOT_EQUAL => value != row.success_value,
        success::AT_LEAST => value >= row.success_value,
        success::AT_MOST => value <= row.success_value,
        success::NEVER => false,
        _ => true,
    }
}

/// What the call handed out, or `None` where it failed. A row without a handle gives 0.
#[inline(always)]
fn acquired_handle(row: &ProbeRow, call: &PendingCall, returned: u64) -> Option<u64> {
    if !succeeded(row, returned) {
        return None;
    }
    let word = match row.handle {
        handle::NONE => return Some(0),
        handle::ARG => call.out_pointer,
        handle::BEHIND_ARG | handle::BEHIND_RETURN => {
            let base = if row.handle == handle::BEHIND_ARG { call.out_pointer } else { returned };
            if base == 0 || base == u64::MAX {
                return None;
            }
            let Some(word) = read_word(base.wrapping_add(row.handle_offset as u64), row.handle_width) else {
                count(Stat::LostAllocations);
                return None;
            };
            word
        }
        _ => returned,
    };
    let acquired = narrow(row, word);
    if is_none(row, acquired) || (row.success == success::HANDLE && acquired == u64::MAX) {
        None
    } else {
        Some(acquired)
    }
}

/// A word of 4 or 8 bytes of the target's memory.
#[inline(always)]
fn read_word(address: u64, width: u8) -> Option<u64> {
    // SAFETY: the helper checks the address.
    unsafe {
        if width == 4 {
            bpf_probe_read_user(address as *const u32).ok().map(u64::from)
        } else {
            bpf_probe_read_user(address as *const u64).ok()
        }
    }
}

/// [`PendingCall::has_released`].
const NOTHING: u16 = 0;
/// `released` holds a record that was taken out of the table.
const RECORD: u16 = 1;
/// One reference of several was given back; the record is still in the table.
const REFERENCE: u16 = 2;

/// Takes the record that begins at the released handle out of the table and into the call.
#[inline(always)]
fn take_out(tgid: u32, row: &ProbeRow, call: &mut PendingCall) {
    let key = AllocationKey { tgid, resource: row.resource, handle: call.released_handle };
    if row.flags & flags::COUNTED != 0 && drop_reference(&key) {
        call.has_released = REFERENCE;
        return;
    }
    if let Some(found) = ALLOCATIONS.get_ptr(&key) {
        // SAFETY: a record changes only while its block is acquired, and this thread is about to release it.
        call.released = unsafe { *found };
        if call.released.generation == RELEASED_EARLY {
            return;
        }
        call.released.count = 1;
        if ALLOCATIONS.remove(&key).is_ok() {
            call.has_released = RECORD;
        }
    }
}

/// The call did not release what it had taken out.
#[inline(always)]
fn put_back(tgid: u32, call: &PendingCall) {
    if call.has_released == NOTHING {
        return;
    }
    let Some(row) = PROBES.get(call.row) else { return };
    let key = AllocationKey { tgid, resource: row.resource, handle: call.released_handle };
    if row.flags & flags::COUNTED != 0
        && let Some(found) = ALLOCATIONS.get_ptr_mut(&key)
    {
        // SAFETY: an aligned map value; its count is only ever added to atomically.
        unsafe { add(&raw mut (*found).count, 1) };
        return;
    }
    if call.has_released != RECORD {
        return;
    }
    // After a return that we missed the address may be another block's by now.
    if !matches!(ALLOCATIONS.insert(&key, &call.released, BPF_NOEXIST as u64), Ok(()) | Err(EEXIST)) {
        count(Stat::LostAllocations);
    }
}

/// The call has released its handle or range.
///
/// Of ranges only the record that begins where the release begins is found here. What else the release covers (the end of
/// one range, several, one mapped into another) user space cuts out, which can search: it is told of every release.
#[inline(always)]
fn finish_release(thread: &ThreadRecord, row: &ProbeRow, call: &PendingCall) {
    let is_range = row.flags & flags::RANGE != 0;
    let is_span = row.flags & flags::SPAN != 0;
    let pages = if is_span { call.released_len } else { pages(call.released_len) };
    if call.has_released == RECORD {
        if is_range && pages_of(&call.released) > pages {
            keep_rest(thread.tgid, row, call, pages);
        } else {
            released(thread, row, call.released_handle, call.released.size);
        }
    }
    if row.flags & flags::EARLY_RELEASE != 0 && call.has_released == NOTHING {
        release_early(thread, row, call);
    }
    if (is_range || is_span) && pages > 0 {
        let event = Event {
            kind: event::kind::UNMAP,
            tgid: thread.tgid,
            tid: thread.tid,
            resource: row.resource,
            handle: call.released_handle,
            size: pages,
            time_ns: call.time_ns,
            stack_id: 0,
        };
        send(&event, Wake::Lazily);
    }
}

/// What is released is not known: it may be handed out yet, by a call that has not returned. So a mark is left for it.
#[inline(always)]
fn release_early(thread: &ThreadRecord, row: &ProbeRow, call: &PendingCall) {
    let key = AllocationKey { tgid: thread.tgid, resource: row.resource, handle: call.released_handle };
    let mark =
        Allocation { generation: RELEASED_EARLY, time_ns: call.time_ns, count: 1, ..Allocation::default() };
    for _ in 0..2 {
        if let Some(found) = ALLOCATIONS.get_ptr(&key) {
            // SAFETY: an aligned map value that only this handle's users change.
            let (is_mark, size) = unsafe { ((*found).generation == RELEASED_EARLY, (*found).size) };
            if ALLOCATIONS.remove(&key).is_ok() && !is_mark {
                released(thread, row, call.released_handle, size);
                return;
            }
        }
        if ALLOCATIONS.insert(&key, &mark, BPF_NOEXIST as u64).is_ok() {
            return;
        }
    }
}

/// The first `pages` bytes of a range are released: the end stays, as it was acquired.
#[inline(always)]
fn keep_rest(tgid: u32, row: &ProbeRow, call: &PendingCall, pages: u64) {
    let start = call.released_handle.wrapping_add(pages);
    let rest = Allocation { size: call.released.size - pages, ..call.released };
    // The place may be taken, by a range that was mapped into this one. No range begins within a page, so its other
    // bytes serve as keys too; user space rounds down.
    for within in 0..RANGES_IN_A_PAGE {
        let key = AllocationKey { tgid, resource: row.resource, handle: start.wrapping_add(within) };
        if ALLOCATIONS.insert(&key, &rest, BPF_NOEXIST as u64).is_ok() {
            return;
        }
    }
    count(Stat::LostAllocations);
}

/// MAP_FIXED: the new range has replaced whatever was there.
#[inline(always)]
fn replace_range(thread: &ThreadRecord, row: &ProbeRow, call: &PendingCall, handle: u64) {
    let mut replaced = PendingCall {
        row: call.row,
        released_handle: handle,
        released_len: call.size,
        time_ns: now(),
        ..PendingCall::default()
    };
    take_out(thread.tgid, row, &mut replaced);
    finish_release(thread, row, &replaced);
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
fn released(thread: &ThreadRecord, row: &ProbeRow, handle: u64, size: u64) {
    count(Stat::Released);
    if setting!(flags) & setting_flags::TRACE != 0 {
        send_release(thread.tgid, thread.tid, row, handle, size);
    }
}

#[inline(always)]
fn send_release(tgid: u32, tid: u32, row: &ProbeRow, handle: u64, size: u64) {
    let event = Event {
        kind: event::kind::RELEASE,
        tgid,
        tid,
        resource: row.resource,
        handle,
        size,
        time_ns: now(),
        stack_id: 0,
    };
    send(&event, Wake::Soon);
}

/// One in `rate`: counted for each thread, the gaps drawn evenly from 1 to 2 `rate` - 1, so that a pattern in the
/// program's own calls cannot keep step with the sampling. A thread's first gap is what is left of one that began before
/// it did: of length k with probability (2 `rate` - k) / (`rate` (2 `rate` - 1)), the smaller of two even draws.
#[inline(always)]
fn sampled(thread: &mut ThreadRecord, rate: u64) -> bool {
    if thread.sample_countdown == 0 {
        thread.sample_countdown = up_to(2 * rate - 1).min(up_to(2 * rate));
    }
    thread.sample_countdown -= 1;
    if thread.sample_countdown > 0 {
        return false;
    }
    thread.sample_countdown = up_to(2 * rate - 1);
    true
}

/// An even draw from 1 to `limit`, which must not be 0.
#[inline(always)]
fn up_to(limit: u64) -> u64 {
    // SAFETY: the helper takes nothing.
    1 + unsafe { bpf_get_prandom_u32() } as u64 % limit.max(1)
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_ktime_get_ns() }
}
