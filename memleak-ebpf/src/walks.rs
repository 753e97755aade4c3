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
    blocks::change,
    mappings::{self, published_list},
    maps::CACHED_WALKS,
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
    if span as usize > STACK_WINDOW {
        return is_same_in_pieces(thread, place, sp);
    }
    // All of it in one read, which costs more than what is read. The length is read again at each
    // turn, here and below: the compiler would count down from it, and up to 6.6 the verifier
    // learns no bound from a comparison with zero.
    let window = &mut thread.unwind.window;
    // SAFETY: the window has room for it; the helper checks the address.
    let read = unsafe { bpf_probe_read_user(window.words.as_mut_ptr().cast(), 8 * span, sp as *const _) };
    if read != 0 {
        return false;
    }
    (window.base, window.bytes) = (sp, 8 * span as u64);
    for i in 0..WALK_WORDS {
        if i as u32 >= unsafe { (&raw const (*place).len).read_volatile() } {
            break;
        }
        let at = unsafe { (&raw const (*place).at[i]).read_volatile() } as u64;
        let wanted = unsafe { (&raw const (*place).words[i]).read_volatile() };
        if window.words[(at & WINDOW_MASK) as usize] != wanted {
            return false;
        }
    }
    true
}

/// [`is_same`] for what is more than a window.
#[inline(always)]
fn is_same_in_pieces(thread: &mut ThreadRecord, place: *const CachedWalk, sp: u64) -> bool {
    // Where the window begins, in words from the stack pointer on, and how many are in it.
    let (mut begin, mut words) = (0u64, 0u64);
    for i in 0..WALK_WORDS {
        // SAFETY: aligned words of a map value, here and below.
        if i as u32 >= unsafe { (&raw const (*place).len).read_volatile() } {
            break;
        }
        let at = unsafe { (&raw const (*place).at[i]).read_volatile() } as u64;
        if at.wrapping_sub(begin) >= words {
            begin = at;
            // SAFETY: the current thread's record. Read back, so that the compiler does not know
            // how many words there are at most: it would leave out the mask below, which the
            // verifier wants to see.
            words = unsafe {
                move_window(thread, sp.wrapping_add(8 * at));
                (&raw const thread.unwind.window.bytes).read_volatile() / 8
            };
        }
        let wanted = unsafe { (&raw const (*place).words[i]).read_volatile() };
        let found = thread.unwind.window.words[(at.wrapping_sub(begin) & WINDOW_MASK) as usize];
        if found != wanted || words == 0 {
            return false;
        }
    }
    true
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
            (*place).stack_id = id;
            (*place).start.ip = ip;
        }
        (*place).seen = 0;
        let version = &raw mut (*place).version;
        publish(version, version.read_volatile().wrapping_add(1));
    }
    0
}
