//! Calls of probed functions, from their entry to their return.
//!
//! A thread keeps the calls that it has entered and not left (`ThreadRecord::pending`). A call
//! nests in a pending one of its group while its stack pointer is lower, and then does not count:
//! the outermost does. A pending one at a lower stack pointer than a new call's has been left
//! without a return that we saw.
//!
//! What calls do to the table is in `records`.

use aya_ebpf::{
    helpers::{
        bpf_get_current_pid_tgid, bpf_probe_read_user, bpf_probe_write_user,
        generated::{bpf_get_attach_cookie, bpf_get_func_ip},
    },
    programs::{ProbeContext, RetProbeContext},
};
use memleak_common::{
    probe::{NO_ARG, ProbeRow, Resource, flags, handle, only, row_of, size, slot_of, success},
    settings::flags as setting_flags,
    stats::Stat,
    thread::{MAX_PENDING, Owner, PendingCall, ThreadRecord},
};

use crate::{
    arch::{TRAMPOLINE, caller_of, entry_sp, exit_sp, instruction_pointer},
    args::{Arguments, Return},
    maps::{PROBES, count, has, setting},
    nesting::{is_nested, is_users},
    records::{
        self, Acquired, NOTHING, PAGE_SIZE, finish_release, now, put_back, record, record_another,
        replace_range, take_out,
    },
    stack::kernel_walk,
    table,
    thread::{self, current_thread, group, owner, top},
    unwind,
};

/// How the kernel has our programs run at a call's return.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ReturnMode {
    /// Where the program asks for it at the entry (uprobe session).
    Session,
    /// Always; the target's stack can be written to.
    Mending,
    /// Always; the target's stack cannot be written to.
    Plain,
}

/// Pushes a pending call. `None` for one whose return is of no interest, or must not be probed.
#[inline(always)]
pub fn acquire_enter(ctx: &ProbeContext, mode: ReturnMode) -> Option<()> {
    let (cookie, slot, row) = row(ctx.regs.cast())?;
    let thread = current_thread(slot)?;
    let sp = entry_sp(ctx);
    let mut return_address = drop_stale(thread, row, sp, mode)?;
    let args = Arguments::of(ctx);
    if row.only != only::ALL && !applies(row, &args) {
        return None;
    }
    if thread.depth == 0 {
        thread.interrupted = 0;
    } else if mode == ReturnMode::Session && is_users(row) && !unwind::is_callee(ctx, thread, unwind::ANY_GROUP) {
        // Who knows which of the two returns first: it may be another fibre.
        count(Stat::MissedReturns);
        return None;
    }
    let nested = !has(row, flags::COUNTS_NESTED) && is_nested(ctx, thread, row);
    if nested && mode == ReturnMode::Session {
        return None;
    }
    let is_walked_past = setting!(flags) & setting_flags::READ_RETURNS != 0 || mode == ReturnMode::Mending;
    if (is_walked_past || has(row, flags::MAY_THROW)) && return_address == 0 {
        // SAFETY: the helper checks the address.
        return_address = unsafe { bpf_probe_read_user(sp as *const u64) }.unwrap_or(0);
    }
    if thread.depth >= MAX_PENDING as u32 {
        if !nested {
            count(Stat::LostAllocations);
        }
        return None;
    }
    let what = cookie as u64 | if nested { NESTED } else { 0 };
    // SAFETY: the current thread's record, and what is borrowed.
    unsafe { push_call(thread, &args, what, sp, return_address) };
    Some(())
}

/// [`push_call`]: the call nests in one of its group.
const NESTED: u64 = 1 << 32;

/// Pushes a call of this row (with [`NESTED`] or not) with these arguments. A global function,
/// which the verifier checks once.
///
/// # Safety
/// `thread` is null or the record of the current thread, `args` is null or borrowed.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn push_call(
    thread: *mut ThreadRecord,
    args: *const Arguments,
    what: u64,
    sp: u64,
    return_address: u64,
) -> u64 {
    // SAFETY: the caller says so.
    let (Some(thread), Some(args)) = (unsafe { (thread.as_mut(), args.as_ref()) }) else { return 0 };
    let Some(row) = PROBES.get(what as u32) else { return 0 };
    let owner = thread.owner;
    let Some(call) = thread.pending.get_mut(thread.depth as usize & (MAX_PENDING - 1)) else { return 0 };
    enter_call(call, sp, return_address, what as u32);
    if what & NESTED != 0 {
        call.nested = 1;
    } else {
        read_arguments(args, owner, row, call);
    }
    thread.depth += 1;
    0
}

/// Makes an entry that of a call which has released nothing. Written in place, word by word: copies
/// of it would be made byte by byte.
#[inline(always)]
pub fn enter_call(call: &mut PendingCall, sp: u64, return_address: u64, row: u32) {
    call.sp = sp;
    call.return_address = return_address;
    call.row = row;
    call.has_released = NOTHING;
    call.nested = 0;
    call.released_handle = 0;
    call.released_len = 0;
    call.time_ns = 0;
}

/// Both ends of a call, where one program serves them (uprobe session). At the entry: whether the
/// return is wanted.
#[inline(always)]
pub fn acquire_session(ctx: &ProbeContext) -> bool {
    // SAFETY: the helper takes the program's context. It gives the place of the probe at both ends,
    // which is where the thread is at the entry.
    let is_entry = unsafe { bpf_get_func_ip(ctx.regs.cast()) } == instruction_pointer(ctx);
    if is_entry {
        return enter_plain(ctx) || acquire_enter(ctx, ReturnMode::Session).is_some();
    }
    let ctx = RetProbeContext::new(ctx.regs.cast());
    if exit_plain(&ctx).is_none() {
        let _ = acquire_exit(&ctx);
    }
    true
}

/// [`acquire_enter`] for what is nearly always so: a call of malloc's kind, while none is pending.
/// Says whether it was.
#[inline(always)]
fn enter_plain(ctx: &ProbeContext) -> bool {
    let Some(thread) = thread::find(bpf_get_current_pid_tgid()) else { return false };
    // SAFETY: only this thread's own programs touch its record.
    let thread = unsafe { &mut *thread };
    // SAFETY: the helper takes the program's context.
    let cookie = row_of(unsafe { bpf_get_attach_cookie(ctx.regs.cast()) });
    let Some(row) = PROBES.get(cookie) else { return false };
    let may_nest = thread.depth != 0 || thread.open[0] != 0;
    if row.flags & flags::PLAIN == 0 || may_nest || setting!(flags) & setting_flags::READ_RETURNS != 0 {
        return false;
    }
    thread.interrupted = 0;
    let call = &mut thread.pending[0];
    call.sp = entry_sp(ctx);
    call.return_address = 0;
    call.row = cookie;
    call.has_released = NOTHING;
    call.nested = 0;
    call.size_or_address = ctx.arg(0).unwrap_or(0);
    thread.depth = 1;
    true
}

/// [`acquire_exit`], likewise. `None` if it is not such a call.
#[inline(always)]
fn exit_plain(ctx: &RetProbeContext) -> Option<()> {
    // SAFETY: only this thread's own programs touch its record.
    let thread = unsafe { &mut *thread::find(bpf_get_current_pid_tgid())? };
    let call = &thread.pending[0];
    let row = PROBES.get(call.row)?;
    if thread.depth != 1 || call.sp != exit_sp(ctx) || call.nested != 0 || row.flags & flags::PLAIN == 0 {
        return None;
    }
    let size = call.size_or_address;
    thread.depth = 0;
    thread.returning = 0;
    let returned: u64 = ctx.ret();
    if returned == 0 || returned == u64::MAX {
        return Some(());
    }
    let at = Return { caller: caller_of(ctx), returned, kernel_stack: kernel_walk(ctx.regs.cast()) };
    // SAFETY: the current thread's record, and what is borrowed.
    unsafe { commit_block(thread, &at, size) };
    Some(())
}

/// A block was acquired. A global function, which the verifier checks once.
///
/// # Safety
/// `thread` is null or the record of the current thread, `at` is null or borrowed.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn commit_block(thread: *mut ThreadRecord, at: *const Return, size: u64) -> u64 {
    // SAFETY: the caller says so.
    let (Some(thread), Some(at)) = (unsafe { (thread.as_mut(), at.as_ref()) }) else { return 0 };
    thread.epoch = table::epoch();
    let _ = record(at, thread, &BLOCK, &Acquired { handle: at.returned, size, entered_ns: 0 });
    0
}

/// What there is to know of a row of malloc's kind once its call has returned.
const BLOCK: ProbeRow =
    ProbeRow { resource: Resource::Heap.number(), handle: handle::RETURN, size: size::ARG, ..ProbeRow::EMPTY };

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
        only::ARG_IN_BITS => {
            let bits = row.only_values[0] as u64 | (row.only_values[1] as u64) << 32;
            arg < 64 && bits >> (arg & 63) & 1 != 0
        }
        only::ARG_HAS => arg as u32 & row.only_values[0] != 0,
        only::ARGS_ARE => {
            row.only_values[0] == arg as u32 && row.only_values[1] == args.get(row.only_arg + 1) as u32
        }
        only::ARENA_SWEEP => names_arena_sweep(arg),
        only::BEHIND_ARG_HAS => {
            let address = arg.wrapping_add(row.only_values[0] as u64);
            // SAFETY: the helper checks the address.
            unsafe { bpf_probe_read_user(address as *const u32) }.unwrap_or(0) & row.only_values[1] != 0
        }
        _ => true,
    }
}

/// Whether the string at `address` is `arena.N.reset` or `arena.N.destroy`.
#[inline(always)]
fn names_arena_sweep(address: u64) -> bool {
    const ARENA: u64 = u64::from_ne_bytes(*b"arena.\0\0");
    const DIGITS: u64 = 8;
    let first = read_word(address, 8).unwrap_or(0);
    if first & u64::from_ne_bytes([255, 255, 255, 255, 255, 255, 0, 0]) != ARENA {
        return false;
    }
    let mut at = address.wrapping_add(6);
    for _ in 0..DIGITS {
        // SAFETY: the helper checks the address.
        let digit = unsafe { bpf_probe_read_user(at as *const u8) }.unwrap_or(0);
        if !digit.is_ascii_digit() {
            break;
        }
        at = at.wrapping_add(1);
    }
    // SAFETY: as above.
    let word = unsafe { bpf_probe_read_user(at as *const u32) }.unwrap_or(0);
    word == u32::from_ne_bytes(*b".res") || word == u32::from_ne_bytes(*b".des")
}

#[inline(always)]
pub fn read_arguments(args: &Arguments, owner: Owner, row: &ProbeRow, call: &mut PendingCall) {
    call.size_or_address = size_or_address(row, args);
    call.out_pointer = args.get(row.handle_arg);
    call.call_flags = args.get(row.flags_arg);
    if has(row, flags::EARLY_RELEASE) {
        call.time_ns = now();
    }
    if row.release_arg != NO_ARG && row.keep_mask & call.call_flags as u32 == 0 {
        call.time_ns = now();
        call.released_handle = handle_to_release(row, args);
        call.released_len = args.get(row.release_len_arg);
        if has(row, flags::SPAN) {
            let last = narrow(row, call.released_len);
            call.released_len = last.wrapping_add(1).saturating_sub(call.released_handle);
            return;
        }
        // A range of length 0 is not released (mremap then makes a second mapping of the first).
        let nothing =
            is_none(row, call.released_handle) || (has(row, flags::RANGE) && call.released_len == 0);
        if call.has_released == NOTHING && !nothing {
            take_out(table::epoch(), owner, call);
        }
    }
}

/// The handle that the call is about to release; 0 if it cannot be read.
#[inline(always)]
fn handle_to_release(row: &ProbeRow, args: &Arguments) -> u64 {
    let arg = args.get(row.release_arg);
    if !has(row, flags::RELEASE_BEHIND) || arg == 0 {
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
    handle == 0 && !has(row, flags::ZERO_IS_HANDLE)
}

/// Drops pending calls that were left without a return that we saw. Gives the new call's return
/// address if it is known, else 0. `None`: the new call is to be left alone. It is a tail call of a
/// pending one of its group, which then is the one that counts; or to probe its return would end
/// the target.
///
/// A call that is pending at a lower stack pointer has been left, or is on another stack: it was
/// interrupted by a signal whose handler runs above it (sigaltstack), or was switched away from. If
/// the new call's return were probed the kernel would take the other one for left, and forget it
/// (kernel/events/uprobes.c, `cleanup_return_instances`); its thread would get SIGILL when it comes
/// to the trampoline.
#[inline(always)]
fn drop_stale(thread: &mut ThreadRecord, row: &ProbeRow, sp: u64, mode: ReturnMode) -> Option<u64> {
    for _ in 0..MAX_PENDING {
        let Some(top) = top(thread) else { break };
        if top.sp > sp {
            break;
        }
        if thread.returning == top.sp || is_trampoline(top.sp) {
            if top.sp == sp {
                // The outer function has jumped to this one, which returns in its stead
                // (reallocarray to realloc).
                return (group(top.row) != row.group).then_some(top.return_address);
            }
            match mode {
                ReturnMode::Session => {
                    count(Stat::MissedReturns);
                    return None;
                }
                ReturnMode::Mending => mend(top),
                ReturnMode::Plain => {}
            }
        }
        if top.nested == 0 {
            count(Stat::MissedReturns);
            put_back(thread.owner, top);
        }
        thread.depth -= 1;
    }
    Some(0)
}

/// Puts the return address of a pending call back on the stack, where the kernel has its
/// trampoline's.
#[inline(always)]
fn mend(call: &PendingCall) {
    if call.return_address != 0 {
        // SAFETY: the helper checks the address; what it writes is what the kernel's own probe has
        // replaced.
        let _ = unsafe { bpf_probe_write_user(call.sp as *mut u64, &raw const call.return_address) };
    }
}

/// The return address there is the kernel's: that of a call which is still pending. Its trampoline
/// is at the beginning of a page of its own: the address space's last, unless the stack is there
/// (where addresses are not randomized). The page is not there before it has been used.
#[inline(always)]
fn is_trampoline(sp: u64) -> bool {
    // SAFETY: the helper checks the address.
    let found = unsafe { bpf_probe_read_user(sp as *const u64) }.unwrap_or(0);
    if found == 0 || found & (PAGE_SIZE - 1) != 0 {
        return false;
    }
    // SAFETY: as above.
    unsafe { bpf_probe_read_user(found as *const u8) }.map_or(true, |byte| TRAMPOLINE.contains(&byte))
}

/// Pops the call that returns, and commits what it did.
#[inline(always)]
pub fn acquire_exit(ctx: &RetProbeContext) -> Option<()> {
    let pid_tgid = bpf_get_current_pid_tgid();
    // SAFETY: only this thread's own programs touch its record.
    let thread = unsafe { &mut *thread::find(pid_tgid)? };
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
            put_back(thread.owner, call);
        }
        thread.depth -= 1;
    }
    let call = top(thread)?;
    // SAFETY: the helper takes the program's context.
    let cookie = row_of(unsafe { bpf_get_attach_cookie(ctx.regs.cast()) });
    if call.sp != sp || call.row != cookie {
        return None; // the return of a function that a pending one has jumped to
    }
    let popped = &raw mut *thread.pending.get_mut((thread.depth as usize).wrapping_sub(1) & (MAX_PENDING - 1))?;
    // SAFETY: the popped entry is nobody else's until this thread's next call.
    let call = unsafe { &mut *popped };
    thread.depth -= 1;
    thread.returning = 0;
    if call.nested != 0 {
        return None;
    }
    let kernel_stack = kernel_walk(ctx.regs.cast());
    let at = Return { caller: caller_of(ctx), returned: ctx.ret(), kernel_stack };
    // SAFETY: the current thread's record, a call of it, and what is borrowed.
    unsafe { commit(thread, call, &at) };
    Some(())
}

/// A pending call returned: does to the table what the call did.
///
/// # Safety
/// All three are null, or the record of the current thread, a call that it has left, and how.
#[inline(always)]
pub unsafe fn commit(thread: *mut ThreadRecord, call: *mut PendingCall, at: &Return) {
    // SAFETY: the caller says so. A call that is in the record is no longer one of its pending
    // ones.
    unsafe {
        // Here, and not in that function: the stack of all would be more than a program may have.
        if commit_call(thread, call, at) == FAILED {
            put_back((*thread).owner, &*call);
        }
    }
}

/// [`commit_call`]: the call has done nothing, and what it had taken out is to be put back.
const FAILED: u64 = 1;

/// [`commit`], but for calls that have [`FAILED`]. A global function, which the verifier checks
/// once and not for each way to it.
///
/// # Safety
/// As of [`commit`].
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn commit_call(
    thread: *mut ThreadRecord,
    call: *mut PendingCall,
    at: *const Return,
) -> u64 {
    // SAFETY: the caller says so. A call that is in the record is no longer one of its pending
    // ones.
    let (thread, call, at) = unsafe { (thread.as_mut(), call.as_mut(), at.as_ref()) };
    let (Some(thread), Some(call), Some(at)) = (thread, call, at) else { return 0 };
    if commit_or_fail(thread, call, at) == Some(FAILED) { FAILED } else { 0 }
}

#[inline(always)]
fn commit_or_fail(thread: &mut ThreadRecord, call: &mut PendingCall, at: &Return) -> Option<u64> {
    let row = PROBES.get(call.row)?;
    let returned = at.returned;
    thread.epoch = table::epoch();
    let Some(handle) = acquired_handle(row, call, returned) else {
        let zero_size_release = has(row, flags::ZERO_SIZE_RELEASES) && call.size_or_address == 0 && returned == 0;
        if zero_size_release || has(row, flags::RELEASES_ANYWAY) {
            finish_release(thread, call);
            return None;
        }
        return Some(FAILED);
    };
    if has(row, flags::IN_PLACE) {
        records::resize(thread, row, handle, call.size_or_address);
        return None;
    }
    if row.release_arg != NO_ARG {
        finish_release(thread, call);
    }
    if row.handle == handle::NONE {
        return None;
    }
    if has(row, flags::RANGE) && row.replace_mask & call.call_flags as u32 != 0 {
        replace_range(thread, call, handle);
    }
    let size = match row.size {
        size::BEHIND_ARG => read_word(call.size_or_address, 8).unwrap_or(0),
        size::STRING => records::string_size(thread, returned),
        _ => call.size_or_address,
    };
    let stack_id = record(at, thread, row, &Acquired { handle, size, entered_ns: call.time_ns })?;
    if setting!(features) & flags::SEVERAL_HANDLES == 0 || row.handle == handle::RETURN {
        return None; // the usual case
    }
    let Handles { address, number } = handles(row, call)?;
    for i in 1..MAX_HANDLES {
        if i >= number {
            break;
        }
        match read_word(address.wrapping_add(i * row.handle_width as u64), row.handle_width) {
            Some(handle) => record_another(thread, row, handle, stack_id),
            None => count(Stat::LostAllocations),
        }
    }
    None
}

/// Most handles that one call is seen to acquire. (A message can have more: they are found
/// otherwise.)
const MAX_HANDLES: u64 = 16;

/// Where a call has stored its handles.
struct Handles {
    address: u64,
    number: u64,
}

/// The handles of a call that stores them; none of one that returns it. `None` for a message
/// without descriptors.
#[inline(always)]
fn handles(row: &ProbeRow, call: &PendingCall) -> Option<Handles> {
    match row.handle {
        handle::BEHIND_ARG => Some(Handles {
            address: call.out_pointer.wrapping_add(row.handle_offset as u64),
            number: row.handle_count as u64,
        }),
        handle::IN_MESSAGE => descriptors_in(call.out_pointer),
        _ => Some(Handles { address: 0, number: 0 }),
    }
}

/// The descriptors in a message. include/linux/socket.h, `struct user_msghdr` and `struct cmsghdr`:
/// the kernel puts those of a message into one header.
#[inline(always)]
fn descriptors_in(message: u64) -> Option<Handles> {
    const CONTROL: u64 = 32;
    const HEADER: u64 = 16;
    const MAX_HEADERS: usize = 4;
    const SOL_SOCKET_SCM_RIGHTS: u64 = 1 | 1 << 32;
    let mut at = read_word(message.wrapping_add(CONTROL), 8)?;
    let mut left = read_word(message.wrapping_add(CONTROL + 8), 8)?;
    for _ in 0..MAX_HEADERS {
        if left < HEADER + 4 {
            return None;
        }
        let (length, kind) = (read_word(at, 8)?, read_word(at.wrapping_add(8), 8)?);
        if length < HEADER || length > left {
            return None;
        }
        if kind == SOL_SOCKET_SCM_RIGHTS {
            return Some(Handles { address: at.wrapping_add(HEADER), number: (length - HEADER) / 4 });
        }
        let step = length.wrapping_add(7) & !7;
        at = at.wrapping_add(step);
        left = left.saturating_sub(step);
    }
    None
}

/// Removes the record of what is released.
#[inline(always)]
pub fn release_enter(ctx: &ProbeContext) -> Option<()> {
    let (_, slot, row) = row(ctx.regs.cast())?;
    let args = Arguments::of(ctx);
    if has(row, flags::SWEEPS) {
        if row.only == only::ALL || applies(row, &args) {
            count(Stat::Sweeps);
        }
        return None;
    }
    release(owner(slot)?, row, &args)
}

/// The same, for a call with these arguments.
#[inline(always)]
pub fn release(owner: Owner, row: &ProbeRow, args: &Arguments) -> Option<()> {
    let handle = handle_to_release(row, args);
    if is_none(row, handle) {
        return None;
    }
    records::remove(owner, row, handle)
}

/// The thread's pending calls will not return. `mend` puts their return addresses back on the
/// stack: an unwinder that came upon the kernel's trampoline would find no caller there, and the
/// C++ runtime would end the process.
#[inline(always)]
pub fn abandon_pending(mend: bool) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = thread::find(pid_tgid) else { return };
    // SAFETY: only this thread's own programs touch its record.
    let thread = unsafe { &mut *thread };
    for i in 0..MAX_PENDING {
        if !mend || i as u32 >= thread.depth {
            break;
        }
        self::mend(&thread.pending[i]);
    }
    abandon_all(thread, false);
    thread.open = [0; 2];
}

/// The thread ends: neither its pending calls nor its system call will return.
#[inline(always)]
pub fn thread_ends(thread: &mut ThreadRecord) {
    abandon_all(thread, true);
    if thread.in_system_call != 0 {
        put_back(thread.owner, &thread.system_call);
    }
}

/// Drops all pending calls of a thread; what they had taken out is still acquired.
///
/// A thread that ends while it waits for a condition does not hold the mutex. One that is cancelled
/// there takes it again before its handlers run (POSIX, pthread_cond_wait), and is abandoned first.
#[inline(always)]
fn abandon_all(thread: &mut ThreadRecord, ends: bool) {
    for _ in 0..MAX_PENDING {
        let Some(call) = top(thread) else { break };
        if !ends || !is_gone_while_pending(call) {
            put_back(thread.owner, call);
        }
        thread.depth -= 1;
    }
}

/// What the call has released is not held while it is pending.
#[inline(always)]
fn is_gone_while_pending(call: &PendingCall) -> bool {
    PROBES.get(call.row).is_some_and(|row| has(row, flags::GONE_WHILE_PENDING))
}

/// What the attach cookie names: a row (its index first) and the slot of the process.
#[inline(always)]
pub fn row(ctx: *mut core::ffi::c_void) -> Option<(u32, u32, &'static ProbeRow)> {
    // SAFETY: the helper takes the program's context.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.cast()) };
    let row = row_of(cookie);
    Some((row, slot_of(cookie), PROBES.get(row)?))
}

#[inline(always)]
fn size_or_address(row: &ProbeRow, args: &Arguments) -> u64 {
    match row.size {
        size::ARG => args.get(row.size_arg),
        size::PRODUCT => product(args.get(row.size_arg), args.get(row.size_arg2)),
        // Read when the call returns.
        size::BEHIND_ARG => args.get(row.size_arg),
        size::CONSTANT => row.constant,
        _ => 0,
    }
}

/// A product that overflows makes the call fail; wrapped to 0 it would look like a release of
/// size 0. (There is no 128-bit multiplication here to ask.) What is not computed is 2^48 or more:
/// more than any address space.
#[inline(always)]
fn product(a: u64, b: u64) -> u64 {
    let fits =
        (a >> 32 == 0 && b >> 32 == 0) || (a >> 48 == 0 && b >> 16 == 0) || (a >> 16 == 0 && b >> 48 == 0);
    if fits || a == 0 || b == 0 { a.wrapping_mul(b) } else { u64::MAX }
}

/// What says success does so.
#[inline(always)]
fn succeeded(row: &ProbeRow, returned: u64) -> bool {
    if row.success == success::HANDLE {
        return true; // the usual case: the handle will tell
    }
    let value = if has(row, flags::WIDE_RETURN) { returned as i64 } else { returned as i32 as i64 };
    match row.success {
        success::EQUAL => value == row.success_value,
        success::NOT_EQUAL => value != row.success_value,
        success::AT_LEAST => value >= row.success_value,
        success::AT_MOST => value <= row.success_value,
        success::NEVER => false,
        _ => true,
    }
}

/// What the call handed out, or `None` if it failed. A row without a handle gives 0.
#[inline(always)]
fn acquired_handle(row: &ProbeRow, call: &PendingCall, returned: u64) -> Option<u64> {
    if !succeeded(row, returned) || (row.success == success::SIZE_OR_MORE && returned < call.size_or_address) {
        return None;
    }
    let word = match row.handle {
        handle::RETURN => returned,
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
        _ => {
            let Handles { address, number } = descriptors_in(call.out_pointer)?;
            if number == 0 {
                return None;
            }
            read_word(address, row.handle_width)?
        }
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
