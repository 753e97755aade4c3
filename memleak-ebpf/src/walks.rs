//! Cached walks (`memleak_common::walks`): looked up before a walk, and recorded during one. Global
//! functions, which the verifier checks once.

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use memleak_common::{
    stack::NO_STACK,
    thread::{STACK_WINDOW, ThreadRecord},
    unwind::Regs,
    walks::{CACHED_WALKS as PLACES, CachedWalk, WALK_WORDS, WalkStart},
};

use crate::{
    arch::{publish, read_after},
    mappings::{self, published_list},
    maps::{CACHED_WALKS, change},
    masked::masked,
    window::{Hash, read_window},
};

/// [`CachedWalk::len`] of a walk that cannot be cached.
const TOO_LONG: u32 = u32::MAX;
/// A stack that has come by in vain so often is recorded when it comes again.
const SEEN_ENOUGH: u32 = 2;
const WINDOW_MASK: u64 = STACK_WINDOW as u64 - 1;

#[inline(always)]
fn place_of(start: &WalkStart) -> u32 {
    let mut hash = Hash::default();
    hash.add(start.ip);
    hash.add(start.sp);
    hash.add(start.fp);
    hash.add(start.tables);
    (hash.finish() >> 32) as u32 & (PLACES - 1)
}

#[inline(always)]
fn start_of(thread: &ThreadRecord, regs: Regs) -> WalkStart {
    let Regs { ip, sp, fp, .. } = regs;
    let tables = published_list(thread.slot).generation;
    WalkStart { ip, sp, fp, tables, mappings: mappings::generation(thread.owner.space) }
}

/// The id of the stack that a walk from here leads to, if it is cached; else [`NO_STACK`]. Then the
/// walk is recorded if it is time ([`note`], [`finish`]).
///
/// # Safety
/// `thread` is null or the record of the current thread, of which no call is pending: the kernel
/// has replaced no return address.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn recall_walk(thread: *mut ThreadRecord, ip: u64, sp: u64, fp: u64) -> u64 {
    // SAFETY: the caller says so.
    let Some(thread) = (unsafe { thread.as_mut() }) else { return NO_STACK };
    thread.unwind.recording = 0;
    let start = start_of(thread, Regs { ip, sp, fp, lr: 0 });
    let index = place_of(&start);
    let Some(place) = CACHED_WALKS.get_ptr_mut(index) else { return NO_STACK };
    // SAFETY: aligned words of a map value, which others may be writing: then the version tells.
    let version = unsafe { (&raw const (*place).version).read_volatile() };
    if version & 1 != 0 || start.tables == 0 {
        return NO_STACK;
    }
    // SAFETY: as above.
    unsafe {
        if (&raw const (*place).start).read_volatile() == start && is_same(thread, place, sp) {
            let id = (&raw const (*place).stack_id).read_volatile();
            return if read_after(&raw mut (*place).version) == version { id } else { NO_STACK };
        }
        if (&raw const (*place).seen).read_volatile() >= SEEN_ENOUGH
            && change(&raw mut (*place).version, version, version + 1)
        {
            // The place is ours until its version is even again.
            (&raw mut (*place).start).write_volatile(WalkStart { ip: 0, ..start });
            (&raw mut (*place).len).write_volatile(0);
            (&raw mut (*place).span).write_volatile(0);
            thread.unwind.recording = index + 1;
        }
    }
    NO_STACK
}

/// Whether the stack has the words that a cached walk has read. Reads it into the thread's window.
#[inline(always)]
fn is_same(thread: &mut ThreadRecord, place: *const CachedWalk, sp: u64) -> bool {
    // SAFETY: aligned words of a map value, here and below.
    let (len, span) =
        unsafe { ((&raw const (*place).len).read_volatile(), (&raw const (*place).span).read_volatile()) };
    if len as usize > WALK_WORDS || span == 0 {
        return false;
    }
    let in_window = span as usize <= STACK_WINDOW;
    if in_window {
        // All of it in one read, which costs more than what is read.
        let window = &mut thread.unwind.window;
        // SAFETY: the window has room for it; the helper checks the address.
        let read = unsafe { bpf_probe_read_user(window.words.as_mut_ptr().cast(), 8 * span, sp as *const _) };
        if read != 0 {
            return false;
        }
        (window.base, window.bytes) = (sp, 8 * span as u64);
    }
    for piece in 0..WALK_WORDS / AT_ONCE {
        let from = piece * AT_ONCE;
        // The length is read again at each turn, here and below: the compiler would count down from
        // it, and up to 6.6 the verifier learns no bound from a comparison with zero.
        if from as u32 >= unsafe { (&raw const (*place).len).read_volatile() } {
            break;
        }
        // SAFETY: the current thread's record, and a map value.
        let differs = unsafe {
            if in_window {
                compare_words(thread, place, from as u64)
            } else {
                read_and_compare_words(thread, place, from as u64, sp)
            }
        };
        if differs != 0 {
            return false;
        }
    }
    true
}

/// Words that [`compare_words`] compares.
const AT_ONCE: usize = 16;

/// Where the words of a piece are, and what they are.
///
/// # Safety
/// `place` is a map value.
#[inline(always)]
unsafe fn piece_of(place: *const CachedWalk, from: u64) -> (*const u16, *const u64) {
    const FIRST_WORDS: u64 = (WALK_WORDS - AT_ONCE) as u64;
    let from = masked::<FIRST_WORDS>(from);
    // SAFETY: members of a map value, within their bounds.
    unsafe { ((&raw const (*place).at).cast::<u16>().add(from), (&raw const (*place).words).cast::<u64>().add(from)) }
}

/// How the stack, which is in the thread's window, differs from these words of a cached walk: 0 if
/// it does not. A global function, which the verifier checks once and not for each piece. Without a
/// branch, so that it has one way to follow.
///
/// # Safety
/// `thread` is null or the record of the current thread, `place` null or a map value.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn compare_words(thread: *const ThreadRecord, place: *const CachedWalk, from: u64) -> u64 {
    // SAFETY: the caller says so.
    let Some(thread) = (unsafe { thread.as_ref() }) else { return 1 };
    if place.is_null() {
        return 1;
    }
    // SAFETY: within these members, which end with a whole piece.
    let (at, words) = unsafe { piece_of(place, from) };
    let mut difference = 0;
    for i in 0..AT_ONCE {
        // SAFETY: aligned words of a map value.
        let (at, wanted) = unsafe { (at.add(i).read_volatile() as u64, words.add(i).read_volatile()) };
        difference |= thread.unwind.window.words[(at & WINDOW_MASK) as usize] ^ wanted;
    }
    difference
}

/// [`compare_words`], where the stack is more than a window: what is not in the window is read into
/// it.
///
/// # Safety
/// `thread` is null or the record of the current thread, `place` null or a map value.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn read_and_compare_words(
    thread: *mut ThreadRecord,
    place: *const CachedWalk,
    from: u64,
    sp: u64,
) -> u64 {
    // SAFETY: the caller says so.
    let Some(thread) = (unsafe { thread.as_mut() }) else { return 1 };
    if place.is_null() {
        return 1;
    }
    // SAFETY: within these members, which end with a whole piece.
    let (at, expected) = unsafe { piece_of(place, from) };
    // Where the window begins, in words from the stack pointer on, and how many are in it.
    // SAFETY: members of the current thread's record. Read so that the compiler does not know how
    // many words there are at most: it would leave out the mask below, which the verifier wants to
    // see.
    let bounds = |thread: &ThreadRecord| unsafe {
        let window = &raw const thread.unwind.window;
        let (base, bytes) = ((&raw const (*window).base).read_volatile(), (&raw const (*window).bytes).read_volatile());
        (base.wrapping_sub(sp) / 8, bytes / 8)
    };
    let (mut begin, mut words) = bounds(thread);
    for i in 0..AT_ONCE {
        // SAFETY: aligned words of a map value.
        let (at, wanted) = unsafe { (at.add(i).read_volatile() as u64, expected.add(i).read_volatile()) };
        if at.wrapping_sub(begin) >= words {
            // SAFETY: the current thread's record.
            unsafe { move_window(thread, sp.wrapping_add(8 * at)) };
            (begin, words) = bounds(thread);
            if words == 0 {
                return 1;
            }
        }
        if thread.unwind.window.words[(at.wrapping_sub(begin) & WINDOW_MASK) as usize] != wanted {
            return 1;
        }
    }
    0
}

/// Reads the stack from this address on into the thread's window. A function of its own, so that
/// the verifier forgets what it knows of it.
///
/// # Safety
/// `thread` is null or the record of the current thread.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn move_window(thread: *mut ThreadRecord, address: u64) -> u64 {
    // SAFETY: the caller says so.
    let Some(thread) = (unsafe { thread.as_mut() }) else { return 0 };
    let window = &mut thread.unwind.window;
    let words = read_window(address, &mut window.words, window.bytes == 0);
    (window.base, window.bytes) = (address, 8 * words);
    0
}

/// A walk that is recorded has read a word of the stack.
///
/// # Safety
/// `thread` is null or the record of the current thread.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn note_word(thread: *const ThreadRecord, address: u64, word: u64) -> u64 {
    // SAFETY: the caller says so.
    let Some(thread) = (unsafe { thread.as_ref() }) else { return 0 };
    let Some(place) = CACHED_WALKS.get_ptr_mut(thread.unwind.recording.wrapping_sub(1)) else { return 0 };
    // SAFETY: words of a map value, which is ours while it is recorded.
    unsafe {
        let distance = address.wrapping_sub((*place).start.sp);
        let len = (*place).len;
        if distance & 7 != 0 || distance >> 3 > u16::MAX as u64 || len as usize >= WALK_WORDS {
            (*place).len = TOO_LONG;
            return 0;
        }
        (*place).at[len as usize & (WALK_WORDS - 1)] = (distance >> 3) as u16;
        (*place).words[len as usize & (WALK_WORDS - 1)] = word;
        (*place).len = len + 1;
        (*place).span = (*place).span.max((distance >> 3) as u32 + 1);
    }
    0
}

/// Repeats the last word of a walk until it has a whole number of pieces ([`compare_words`]).
///
/// # Safety
/// `place` is a map value that is ours.
#[inline(always)]
unsafe fn fill_up(place: *mut CachedWalk) {
    for _ in 1..AT_ONCE {
        // SAFETY: words of a map value.
        unsafe {
            let len = (&raw const (*place).len).read_volatile() as usize;
            if len % AT_ONCE == 0 {
                break;
            }
            let (from, to) = (len.wrapping_sub(1) & (WALK_WORDS - 1), len & (WALK_WORDS - 1));
            (*place).at[to] = (*place).at[from];
            (*place).words[to] = (*place).words[from];
            (&raw mut (*place).len).write_volatile(len as u32 + 1);
        }
    }
}

/// A walk that was not cached has led to this stack.
///
/// # Safety
/// `thread` is null or the record of the current thread.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn finish_walk(thread: *mut ThreadRecord, id: u64, ip: u64, sp: u64, fp: u64) -> u64 {
    // SAFETY: the caller says so.
    let Some(thread) = (unsafe { thread.as_mut() }) else { return 0 };
    let start = start_of(thread, Regs { ip, sp, fp, lr: 0 });
    let recording = core::mem::replace(&mut thread.unwind.recording, 0);
    let index = if recording != 0 { recording - 1 } else { place_of(&start) };
    let Some(place) = CACHED_WALKS.get_ptr_mut(index) else { return 0 };
    if recording == 0 {
        // SAFETY: aligned words of a map value: a guess, which others may be writing.
        unsafe {
            let (candidate, seen) = (&raw mut (*place).candidate, &raw mut (*place).seen);
            let again = candidate.read_volatile() == id;
            candidate.write_volatile(id);
            seen.write_volatile(if again { seen.read_volatile().wrapping_add(1) } else { 1 });
        }
        return 0;
    }
    // SAFETY: words of a map value, which is ours while its version is odd.
    unsafe {
        // What is mapped may have changed since it was looked up.
        let is_of_now = (*place).start == WalkStart { ip: 0, ..start };
        if id != NO_STACK && (*place).len != TOO_LONG && is_of_now {
            fill_up(place);
            (*place).stack_id = id;
            (*place).start.ip = ip;
        }
        (*place).seen = 0;
        let version = &raw mut (*place).version;
        publish(version, version.read_volatile().wrapping_add(1));
    }
    0
}
