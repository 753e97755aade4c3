//! Walking the stack by frame pointers, and storing it.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{BPF_F_USER_STACK, BPF_NOEXIST},
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_stackid},
};
use memleak_common::{
    event::{self, Event},
    settings::flags,
    stack::{
        MAX_STACK_DEPTH, NO_STACK, Record, ShortStackRecord, StackRecord, is_long, next_stack_id, stack_id,
    },
    stats::Stat,
    thread::{STACK_WINDOW, ThreadRecord},
    unwind::{Regs, Step},
};

use crate::{
    arch,
    args::{CallerFrame, Return},
    mappings,
    maps::{EEXIST, KERNEL_STACKS, SHORT_STACKS, STACKS, STATS, Wake, count, send, setting},
    thread, unwind,
    walks::{finish_walk, recall_walk},
    window::{Hash, WalkResult, read_window, replaced},
};

/// Keeps an index within `ips` where the verifier can see it.
const MASK: u32 = 127;
const WINDOW_MASK: u64 = STACK_WINDOW as u64 - 1;

/// Nothing is mapped below (`vm.mmap_min_addr`).
const LOWEST_ADDRESS: u64 = 65_536;

/// Stacks that may share a hash before one is given up (and counted).
const MAX_PROBING: u64 = 4;

/// What the hashes of equal addresses of one generation and the next differ by; even.
const GENERATIONS_APART: u64 = 0x9e37_79b9_7f4a_7c14;

/// The id of the stack that the kernel walks, if it is to walk.
#[inline(always)]
pub fn kernel_walk(ctx: *mut c_void) -> u64 {
    if setting!(flags) & flags::KERNEL_WALK == 0 {
        return NO_STACK;
    }
    let map = (&raw const KERNEL_STACKS).cast_mut().cast();
    // SAFETY: the helper takes the program's context and a map of stacks.
    let id = unsafe { bpf_get_stackid(ctx, map, BPF_F_USER_STACK as u64) };
    if id < 0 { NO_STACK } else { id as u64 + 1 }
}

/// Walks the thread's stack into its record and stores it. Returns its id, or [`NO_STACK`]
/// (counted).
#[inline(always)]
pub fn capture(at: &Return, thread: &mut ThreadRecord) -> u64 {
    if setting!(flags) & flags::KERNEL_WALK != 0 {
        return at.kernel_stack;
    }
    let CallerFrame { ip, sp, fp, lr } = at.caller;
    // What the walk reads beside the stack is not cached.
    let reads_others = (arch::REPLACES_RETURNS && thread.depth != 0) || lr != 0;
    let may_be_cached = setting!(flags) & flags::UNWIND_TABLES != 0 && !reads_others;
    thread.unwind.window.bytes = 0;
    thread.unwind.recording = 0;
    if may_be_cached {
        // SAFETY: the current thread's record.
        let id = unsafe { recall_walk(thread, ip, sp, fp) };
        if id != NO_STACK {
            return id;
        }
    }
    // SAFETY: as above.
    let hash = unsafe { walk_stack(thread, ip, sp, fp, lr) };
    if hash != UNCHANGED {
        thread.stack_id = store_walked(hash);
    }
    if may_be_cached {
        // SAFETY: as above.
        unsafe { finish_walk(thread, thread.stack_id, ip, sp, fp) };
    }
    if thread.stack_id == NO_STACK {
        count(Stat::LostStacks);
    }
    thread.stack_id
}

/// What [`walk_stack`] says of the very stack that the thread's record held before, which is
/// stored. No hash is even.
const UNCHANGED: u64 = 0;

/// Walks the stack from these registers on, into the thread's record. Gives its hash, or
/// [`UNCHANGED`]. A global function, which the verifier checks once and not for each way that leads
/// to it.
///
/// # Safety
/// `thread` is null or the record of the current thread.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn walk_stack(thread: *mut ThreadRecord, ip: u64, sp: u64, fp: u64, lr: u64) -> u64 {
    // SAFETY: the caller says so.
    let Some(thread) = (unsafe { thread.as_mut() }) else { return UNCHANGED };
    let regs = Regs { ip, sp, fp, lr };
    let generation = mappings::generation(thread.owner.space);
    let same_mappings = thread.stack.context == generation;
    thread.stack.context = generation;
    let WalkResult { hash, unchanged } = if setting!(flags) & flags::UNWIND_TABLES != 0 {
        unwind::walk(regs, thread)
    } else {
        walk(ip, fp, thread)
    };
    if unchanged && same_mappings && thread.stack_id != NO_STACK {
        UNCHANGED
    } else {
        // The addresses' hash is odd, and is to stay so.
        hash ^ generation.wrapping_mul(GENERATIONS_APART)
    }
}

/// [`store`], of the stack in the current thread's record. A global function, as [`walk_stack`] is.
/// It looks for the record itself: up to 6.1 no map takes a value from what such a function was
/// handed.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn store_walked(hash: u64) -> u64 {
    let Some(thread) = thread::find(bpf_get_current_pid_tgid()) else { return NO_STACK };
    // SAFETY: only this thread's own programs touch its record.
    let thread = unsafe { &*thread };
    // SAFETY: as above.
    store(hash, &thread.stack, |id| unsafe { compare_stored(thread, id) })
}

/// [`compare`]: the stack of this id is the thread's.
const SAME: u64 = 1;
/// [`compare`]: it is another one.
const OTHER: u64 = 2;

/// [`compare`], of the stack in the thread's record.
///
/// # Safety
/// `thread` is null or the record of the current thread.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn compare_stored(thread: *const ThreadRecord, id: u64) -> u64 {
    // SAFETY: the caller says so.
    let Some(thread) = (unsafe { thread.as_ref() }) else { return OTHER };
    compare(id, &thread.stack)
}

/// Whether this stack is stored under this id: [`SAME`], [`OTHER`], or 0 if none is.
#[inline(always)]
pub fn compare(id: u64, record: &StackRecord) -> u64 {
    // SAFETY, of both: a stored stack is never changed, and its memory is a stack's as long as the
    // program runs. If it is removed and its place taken by another, what is compared is this stack
    // all the same, or it is not.
    let same = if is_long(id) {
        let Some(stored) = STACKS.get_ptr(&id) else { return 0 };
        same(unsafe { &*stored }, record)
    } else {
        let Some(stored) = SHORT_STACKS.get_ptr(&id) else { return 0 };
        same(unsafe { &*stored }, record)
    };
    if same { SAME } else { OTHER }
}

/// Stores a stack under an id that was free.
#[inline(always)]
fn insert(id: u64, record: &StackRecord) -> Result<(), i32> {
    if is_long(id) {
        STACKS.insert(&id, record, BPF_NOEXIST as u64)?;
    } else {
        // SAFETY: a short record is the beginning of a long one.
        let record = unsafe { &*(&raw const *record).cast::<ShortStackRecord>() };
        SHORT_STACKS.insert(&id, record, BPF_NOEXIST as u64)?;
    }
    count_stored();
    Ok(())
}

/// Fills `record` by frame pointers. At a return the instruction pointer and the frame pointer
/// already are the caller's, so that the caller of the probed function comes first. It is walked
/// here and not by `bpf_get_stack`, whose fixed cost is that of many frames.
///
/// A frame's first word is the caller's frame pointer, its second the return address into the
/// caller (System V ABI, AMD64, section 3.2.2).
#[inline(always)]
fn walk(ip: u64, fp: u64, thread: &mut ThreadRecord) -> WalkResult {
    let (record, window) = (&mut thread.stack, &mut thread.unwind.window.words);
    let max_depth = setting!(max_depth).min(MAX_STACK_DEPTH as u32);
    let (mut ip, mut frame) = (ip, fp);
    let mut hash = Hash::default();
    // Where the window begins, and the words in it.
    let (mut base, mut words) = (0u64, 0u64);
    let (old_len, mut changed) = (record.len, 0);
    (record.end, record.by_pointer) = (Step::TooDeep as u16, 0);
    for depth in 0..MAX_STACK_DEPTH as u32 {
        if depth >= max_depth {
            break;
        }
        changed |= record.ips[(depth & MASK) as usize] ^ ip;
        record.ips[(depth & MASK) as usize] = ip;
        record.len = depth + 1;
        hash.add(ip);
        // The C library's start code, built without frame pointers, leaves a small number (argc) in
        // the register. To read there would be a page fault that costs more than all the rest.
        if frame < LOWEST_ADDRESS || frame & 7 != 0 {
            record.end = Step::Complete as u16;
            break;
        }
        let mut at = frame.wrapping_sub(base) / 8;
        if at + 1 >= words || words == 0 {
            (base, at) = (frame, 0);
            // Always as much: up to 6.1 the verifier follows each number of words by itself.
            words = read_window(frame, window, false);
            if words == 0 {
                record.end = Step::Complete as u16;
                break;
            }
        }
        let next = window[(at & WINDOW_MASK) as usize];
        let mut return_address = window[((at + 1) & WINDOW_MASK) as usize];
        if arch::REPLACES_RETURNS && setting!(flags) & flags::READ_RETURNS != 0 {
            return_address = replaced(thread.depth, &thread.pending, frame.wrapping_add(8), return_address);
        }
        // Zero ends a chain; a frame that is its own caller would never end.
        if return_address == 0 || next == frame {
            record.end = Step::Complete as u16;
            break;
        }
        (ip, frame) = (return_address, next);
    }
    WalkResult { hash: hash.finish(), unchanged: changed == 0 && record.len == old_len }
}

/// Finds the stack's id, or gives it one. Two stacks never share an id: where a hash is taken by
/// another stack, the next one is tried. `compare` is [`compare`], in user mode a global function.
#[inline(always)]
pub fn store(hash: u64, record: &StackRecord, compare: impl Fn(u64) -> u64) -> u64 {
    let mut id = stack_id(hash, record.len);
    for _ in 0..MAX_PROBING {
        match compare(id) {
            SAME => return id,
            OTHER => id = next_stack_id(id),
            _ => match insert(id, record) {
                Ok(()) => return id,
                // Another CPU was faster: look again.
                Err(EEXIST) => {}
                Err(_) => return NO_STACK,
            },
        }
    }
    NO_STACK
}

/// A stack was new. Now and then user space is told, which removes those that nothing refers to: a
/// program that runs for long comes by more stacks than there is room for, though few hold anything
/// at a time.
#[inline(always)]
fn count_stored() {
    count(Stat::StoredStacks);
    let Some(stored) = STATS.get_ptr(Stat::StoredStacks as u32) else { return };
    // SAFETY: a valid, aligned map value; volatile, since it was changed behind the compiler's
    // back.
    if unsafe { stored.read_volatile() } & setting!(stored_mask) == 0 {
        let event = Event { kind: event::kind::STACKS, ..Event::default() };
        send(&event, Wake::Now);
    }
}

#[inline(always)]
fn same<const DEPTH: usize>(a: &Record<DEPTH>, b: &StackRecord) -> bool {
    if a.len != b.len || a.context != b.context {
        return false;
    }
    let len = &raw const b.len;
    for i in 0..DEPTH as u32 {
        // SAFETY: a member of a record that is borrowed. Volatile, so that the compiler makes no
        // countdown from the length of this: up to 6.6 the verifier learns no bound from a
        // comparison with zero.
        if i >= unsafe { len.read_volatile() } {
            break;
        }
        if a.ips[i as usize] != b.ips[i as usize] {
            return false;
        }
    }
    true
}
