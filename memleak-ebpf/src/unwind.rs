//! Walking the stack by unwind tables: the driver of `memleak_common::unwind`.
//!
//! The step is a global function, which the verifier checks once and not for each of 127 frames. It
//! takes the thread's record, in which the walk has all its state: uprobe programs can be
//! preempted, so a CPU's scratch space would not do.

use aya_ebpf::programs::ProbeContext;
use memleak_common::{
    settings::flags,
    stack::MAX_STACK_DEPTH,
    thread::{CallKey, RULES, STACK_WINDOW, ThreadRecord, Unwind, Window},
    unwind::{KnownRule, Mapping, PublishedList, Reads, Regs, Step, Tables},
};

use crate::{
    arch,
    args::CallerFrame,
    mappings::published_list,
    maps::{CALLS, KNOWN, PROBES, UNWIND_MAPPINGS, UNWIND_WORDS, setting},
    masked::masked,
    sampling::may_skip,
    walks::note_word,
    window::{Hash, WalkResult, read_window, replaced},
};

const DEPTH_MASK: u64 = RULES as u64 - 1;
const WINDOW_MASK: u64 = STACK_WINDOW as u64 - 1;

/// What the driver said of a step that never was: the verifier asks for the check.
const NO_RECORD: u64 = Step::Unreadable as u64;

/// The thread's stack.
struct ThreadStack {
    window: *mut Window,
    /// Pending calls' return addresses, which the kernel has replaced on the stack.
    thread: *const ThreadRecord,
}

impl ThreadStack {
    /// Has `bytes` bytes from `address` on in the window, and gives the index of the first word.
    #[inline(always)]
    fn have(&self, address: u64, bytes: u64) -> Option<u64> {
        // SAFETY: a member of the record that the walk is about; nothing else refers to it
        // meanwhile.
        let window = unsafe { &mut *self.window };
        let at = address.wrapping_sub(window.base);
        if at < window.bytes && at + bytes <= window.bytes && at & 7 == 0 {
            return Some(at >> 3);
        }
        // A step reads the lower address first: what it asks for next is above.
        window.base = address;
        window.bytes = read_window(address, &mut window.words, window.bytes == 0) * 8;
        if window.bytes >= bytes { Some(0) } else { None }
    }

    #[inline(always)]
    fn word(&self, index: u64) -> u64 {
        // SAFETY: as above.
        unsafe { (*self.window).words[(index & WINDOW_MASK) as usize] }
    }
}

impl ThreadStack {
    /// What was read is recorded, if the walk is.
    #[inline(always)]
    fn note(&self, address: u64, word: u64) {
        // SAFETY: the record of the current thread.
        unsafe {
            if (*self.thread).unwind.recording != 0 {
                note_word(self.thread, address, word);
            }
        }
    }
}

impl Reads for ThreadStack {
    #[inline(always)]
    fn read(&self, address: u64) -> Option<u64> {
        let word = self.word(self.have(address, 8)?);
        self.note(address, word);
        Some(word)
    }

    #[inline(always)]
    fn read2(&self, address: u64) -> Option<[u64; 2]> {
        let at = self.have(address, 16)?;
        let words = [self.word(at), self.word(at + 1)];
        self.note(address, words[0]);
        self.note(address.wrapping_add(8), words[1]);
        Some(words)
    }

    #[inline(always)]
    fn return_address(&self, cfa: u64, found: u64) -> u64 {
        // SAFETY: as above; nothing writes to the pending calls during a walk.
        let thread = unsafe { &*self.thread };
        if !arch::REPLACES_RETURNS {
            return found;
        }
        replaced(thread.depth, &thread.pending, cfa.wrapping_sub(arch::RETURN_SLOT), found)
    }

    #[inline(always)]
    fn may_step_by_pointer(&self) -> bool {
        setting!(flags) & flags::UNWIND_POINTER != 0
    }
}

/// The tables.
struct Maps {
    rule: *mut u32,
    generation: u64,
}

impl Tables for Maps {
    #[inline(always)]
    fn word(&self, index: u32) -> Option<u64> {
        UNWIND_WORDS.get(index).copied()
    }

    #[inline(always)]
    fn mapping_start(&self, index: u32) -> Option<u64> {
        UNWIND_MAPPINGS.get(index).map(|mapping| mapping.start)
    }

    #[inline(always)]
    fn mapping(&self, index: u32) -> Option<Mapping> {
        const WORDS: usize = size_of::<Mapping>() / size_of::<u64>();
        let place = UNWIND_MAPPINGS.get_ptr(index)?.cast::<u64>();
        // SAFETY: the words of a map value. Volatile, so that the compiler copies words and not
        // bytes: it calls a function for that.
        let words: [u64; WORDS] = core::array::from_fn(|word| unsafe { place.add(word).read_volatile() });
        let half = |word: u64| [word as u32, (word >> 32) as u32];
        let ([rows, pages], [page_count, reserved]) = (half(words[3]), half(words[4]));
        Some(Mapping { start: words[0], end: words[1], bias: words[2], rows, pages, page_count, reserved })
    }

    #[inline(always)]
    fn known_rule(&self, address: u64) -> u32 {
        // SAFETY: a member of the record that the walk is about.
        let rule = unsafe { *self.rule };
        if rule != 0 {
            return rule;
        }
        let Some(place) = KNOWN.get_ptr(KnownRule::place(address)) else { return 0 };
        // SAFETY: aligned words of a map value, which others may be writing.
        let found = unsafe {
            let (key, rule) = (&raw const (*place).key, &raw const (*place).rule);
            KnownRule { key: key.read_volatile(), rule: rule.read_volatile() }
        };
        let rule = KnownRule::rule_of(address, self.generation, found);
        // SAFETY: as above.
        unsafe { *self.rule = rule };
        rule
    }

    #[inline(always)]
    fn found_rule(&self, address: u64, rule: u32) {
        // SAFETY: as above.
        unsafe { *self.rule = rule };
        if rule != 0
            && let Some(place) = KNOWN.get_ptr_mut(KnownRule::place(address))
        {
            let known = KnownRule::new(address, self.generation, rule);
            // SAFETY: aligned words of a map value; whoever reads them finds out whether they
            // belong together.
            unsafe {
                (&raw mut (*place).key).write_volatile(known.key);
                (&raw mut (*place).rule).write_volatile(known.rule);
            }
        }
    }
}

/// From the frame in the thread's record to its caller. Gives a [`Step`].
///
/// # Safety
///
/// `thread` is null or the record of the current thread.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn unwind_step(thread: *mut ThreadRecord) -> u64 {
    if thread.is_null() {
        return NO_RECORD;
    }
    // SAFETY: the caller's promise, for this and what follows; the members do not overlap.
    unsafe {
        let unwind: *mut Unwind = &raw mut (*thread).unwind;
        let stack = ThreadStack { window: &raw mut (*unwind).window, thread };
        let maps = Maps { rule: &raw mut (*unwind).rule, generation: (*unwind).generation };
        arch::unwind_step(&mut (*unwind).state, &stack, &maps) as u64
    }
}

/// Fills the thread's stack record, the caller of the probed function first: at a return the
/// registers already are the caller's.
#[inline(always)]
pub fn walk(regs: Regs, thread: &mut ThreadRecord) -> WalkResult {
    let PublishedList { list, generation } = published_list(thread.slot);
    thread.unwind.state.begin_at_caller(regs, list, arch::ADDRESS_MASK);
    let same_tables = thread.unwind.generation == generation;
    thread.unwind.generation = generation;
    let old_len = thread.stack.len;
    thread.unwind.changed = 0;
    // SAFETY: a member of the record. Volatile, so that the two are not written byte by byte.
    unsafe { (&raw mut thread.unwind.hash).write_volatile(Hash::default().0) };
    let mut end = Step::TooDeep as u64;
    thread.stack.by_pointer = 0;
    for piece in 0..MAX_STACK_DEPTH as u32 / FRAMES_AT_ONCE + 1 {
        // SAFETY: the current thread's record.
        end = unsafe { walk_frames(thread, (piece * FRAMES_AT_ONCE) as u64, same_tables as u64) };
        if end != NOT_ENDED {
            break;
        }
    }
    thread.stack.end = end as u16;
    let unchanged = thread.unwind.changed == 0 && thread.stack.len == old_len;
    WalkResult { hash: Hash(thread.unwind.hash).finish(), unchanged }
}

/// Frames that [`walk_frames`] walks: with [`MAX_STACK_DEPTH`], a number of whole pieces and one
/// that is cut.
const FRAMES_AT_ONCE: u32 = 8;
const _: () = assert!(RULES as u32 % FRAMES_AT_ONCE == 0);
/// [`walk_frames`]: there is more of the stack.
const NOT_ENDED: u64 = u64::MAX;

/// Walks some frames, from this depth on. Gives the [`Step`] with which the walk has ended, or
/// [`NOT_ENDED`]. A global function, which the verifier checks once and not for each piece.
///
/// # Safety
///
/// `thread` is null or the record of the current thread.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn walk_frames(thread: *mut ThreadRecord, from: u64, same_tables: u64) -> u64 {
    // SAFETY: the caller's promise.
    let Some(thread) = (unsafe { thread.as_mut() }) else { return NO_RECORD };
    let max_depth = setting!(max_depth).min(MAX_STACK_DEPTH as u32);
    let from = from as u32;
    let (mut changed, mut hash) = (thread.unwind.changed, Hash(thread.unwind.hash));
    let mut end = NOT_ENDED;
    for i in 0..FRAMES_AT_ONCE {
        let depth = from + i;
        if depth >= max_depth {
            end = Step::TooDeep as u64;
            break;
        }
        let place = masked::<DEPTH_MASK>(depth as u64);
        // The byte before is looked up, here and by whoever symbolizes it.
        let ip = thread.unwind.state.regs.ip.wrapping_add(thread.unwind.state.exact as u64);
        // SAFETY: the depth is less than the arrays have members, which the compiler no longer
        // knows.
        let (stored, rule) = unsafe {
            let rules = (&raw mut thread.unwind.rules).cast::<u32>();
            ((&raw mut thread.stack.ips).cast::<u64>().add(place), rules.add(place))
        };
        // SAFETY, here and below: members of the current thread's record.
        let difference = unsafe { stored.read() } ^ ip;
        changed |= difference;
        unsafe { stored.write(ip) };
        thread.stack.len = depth + 1;
        hash.add(ip);
        let is_known = difference == 0 && same_tables != 0;
        thread.unwind.rule = if is_known { unsafe { rule.read() } } else { 0 };
        let step = unsafe { unwind_step(thread) };
        unsafe { rule.write(thread.unwind.rule) };
        if step > Step::FrameByPointer as u64 {
            end = step;
            break;
        }
        if step == Step::FrameByPointer as u64 {
            thread.stack.by_pointer = thread.stack.by_pointer.wrapping_add(1);
        }
    }
    (thread.unwind.changed, thread.unwind.hash) = (changed, hash.0);
    end
}

/// [`find_caller`]: a call of the group is pending among the callers.
pub const CALLED: u64 = 1;
/// None is: before one comes the frame of a signal, or the end of the stack.
pub const NOT_CALLED: u64 = 2;
/// The walk came to no end, or by a frame whose stack pointer, by which calls are known, is not.
pub const UNKNOWN: u64 = 3;

/// Whether a function that was called from these registers has a pending call of the group among
/// its callers: one of [`CALLED`], [`NOT_CALLED`] and [`UNKNOWN`]. Overwrites what the thread's
/// record keeps of its last walk.
///
/// # Safety
///
/// `thread` is null or the record of the current thread.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn find_caller(
    thread: *mut ThreadRecord,
    group: u32,
    ip: u64,
    sp: u64,
    fp: u64,
) -> u64 {
    // SAFETY: the caller's promise.
    let Some(thread) = (unsafe { thread.as_mut() }) else { return UNKNOWN };
    let PublishedList { list, generation, .. } = published_list(thread.slot);
    thread.unwind.state.begin_at_caller(Regs { ip, sp, fp, lr: 0 }, list, arch::ADDRESS_MASK);
    thread.unwind.window.bytes = 0;
    thread.unwind.recording = 0;
    // The rules that the last walk has found are of this generation.
    let last_generation = core::mem::replace(&mut thread.unwind.generation, generation);
    let mut found = UNKNOWN;
    let mut none_passed = NOT_CALLED;
    for _ in 0..MAX_STACK_DEPTH as u32 {
        thread.unwind.rule = 0;
        // SAFETY: the current thread's record.
        let step = unsafe { unwind_step(thread) };
        if step > Step::FrameByPointer as u64 {
            found = if step == Step::Complete as u64 { none_passed } else { UNKNOWN };
            break;
        }
        if thread.unwind.state.exact != 0 {
            found = none_passed;
            break;
        }
        if arch::SP_CAN_BE_UNKNOWN && thread.unwind.state.sp_is_bound != 0 {
            none_passed = UNKNOWN;
            continue;
        }
        let slot = thread.unwind.state.regs.sp.wrapping_sub(arch::RETURN_SLOT);
        // SAFETY: as above.
        if unsafe { pending_at(thread, slot, group) } != 0 {
            found = CALLED;
            break;
        }
    }
    thread.unwind.generation = last_generation;
    found
}

/// Any group: for [`find_caller`].
pub const ANY_GROUP: u32 = u32::MAX;

/// The function that is entered was called, by others or not, from a pending call of the group. Not
/// where the walk does not come to an end.
#[inline(always)]
pub fn is_callee(ctx: &ProbeContext, thread: &mut ThreadRecord, group: u32) -> bool {
    search_callers(ctx, thread, group) == CALLED
}

/// [`find_caller`] for the function that is entered. [`UNKNOWN`] without unwind tables: a kernel
/// that refuses the walk by them (`--unwind fp`) need not verify it here either.
#[inline(always)]
pub fn search_callers(ctx: &ProbeContext, thread: &mut ThreadRecord, group: u32) -> u64 {
    if setting!(flags) & flags::UNWIND_TABLES == 0 {
        return UNKNOWN;
    }
    let CallerFrame { ip, sp, fp, .. } = arch::entered_caller(ctx);
    // SAFETY: the current thread's record.
    unsafe { find_caller(thread, group, ip, sp, fp) }
}

/// Whether a call of the group is pending that was entered with this stack pointer: 0 or 1.
///
/// # Safety
///
/// `thread` is null or the record of the current thread.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn pending_at(thread: *const ThreadRecord, sp: u64, group: u32) -> u64 {
    // SAFETY: the caller's promise.
    let Some(thread) = (unsafe { thread.as_ref() }) else { return 0 };
    if may_skip() && group == 0 && thread.skipped_sp == sp {
        return 1;
    }
    for (i, call) in (0..).zip(&thread.pending) {
        if i >= thread.depth {
            break;
        }
        if call.sp == sp && is_of_group(call.row, group) {
            return 1;
        }
    }
    let key = CallKey { sp, space: thread.owner.space, reserved: 0 };
    let Some(open) = CALLS.get_ptr(&key) else { return 0 };
    // SAFETY: an aligned map value, which whoever runs on this stack writes.
    u64::from(is_of_group(unsafe { (*open).call.row }, group))
}

#[inline(always)]
fn is_of_group(row: u32, group: u32) -> bool {
    group == ANY_GROUP || PROBES.get(row).is_some_and(|row| row.group == group)
}
