//! The kernel's stacks: taken, remembered, stored.
//!
//! To walk one takes the kernel a microsecond or two. Most are those that were walked before: so
//! the words that looked like return addresses then are looked at again ([`RememberedStack`] says
//! why that is exact). What is not on this stack (interrupts have one of their own), or too deep,
//! is not remembered but walked.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_get_stack, bpf_probe_read_kernel};
use memleak_common::{
    kernel::{
        CODE_RANGES, DROPPED, KERNEL_WINDOW, REMEMBERED_STACKS, REMEMBERED_WAYS, REMEMBERED_WORDS,
        RememberedStack, StackWindow, TRACEPOINTS,
    },
    stack::{MAX_STACK_DEPTH, NO_STACK, StackRecord},
    stats::Stat,
    unwind::Step,
};

use super::slab::learn_name;
use crate::{
    arch::{KERNEL_CODE, KERNEL_STACK_SIZE},
    maps::{KERNEL_SCRATCH, KERNEL_WINDOWS, REMEMBERED, count, kernel_setting, setting},
    stack,
    window::Hash,
};

/// Frames, from the callee on, in which a page's user is looked for.
const NEAR: u32 = 16;
/// Frames of the tracer's own after the program, at a tracepoint: `bpf_trace_run`; with other
/// tracers there it may be one more. A stack never has more frames of the kernel than
/// `--max-depth`.
const OWN_FRAMES: u32 = 1;
const WINDOW_MASK: u64 = KERNEL_WINDOW as u64 - 1;

/// What a stack is taken for.
pub struct StackUse {
    /// The program's scratch space.
    pub scratch: u32,
    /// Pages: those of other allocators are left out.
    pub is_pages: bool,
    /// Of the objects.
    pub label: u64,
    /// The objects' `struct kmem_cache *`, or 0.
    pub cache: u64,
    /// Who has called the allocator, if that is known: stacks are remembered by it.
    pub call_site: u64,
}

/// Takes the kernel's stack and stores it. Gives its id, or [`NO_STACK`] if it could not; `None`
/// for pages that another allocator takes.
#[inline(always)]
pub fn capture(ctx: *mut c_void, place: &StackUse) -> Option<u64> {
    read_window(place.scratch);
    let first = first_place(place);
    let known = recall(place.scratch, first, place.label);
    if known != NO_STACK && kernel_setting!(checks_stacks) == 0 {
        return answer(known);
    }
    let id = walk(ctx, place);
    if known != NO_STACK && known != id {
        count(Stat::WrongStacks);
    }
    if known == NO_STACK && id != NO_STACK {
        remember(place.scratch, first, id);
    }
    answer(id)
}

#[inline(always)]
fn answer(id: u64) -> Option<u64> {
    if id == LEAVE_OUT { None } else { Some(id) }
}

/// The kernel's own walk.
#[inline(always)]
fn walk(ctx: *mut c_void, place: &StackUse) -> u64 {
    // A tracepoint's stack begins with the program, and where in it it is asked for: not the same
    // for each of the compiler's copies of this. A function's begins with the function.
    let (skipped, own) = if place.scratch < TRACEPOINTS as u32 { (1, OWN_FRAMES) } else { (0, 0) };
    // The kernel's unwinder is most of what an allocation costs, so it is asked for no more frames
    // than are wanted.
    let wanted = (setting!(max_depth) + own).min(MAX_STACK_DEPTH as u32);
    let needed = if place.is_pages { NEAR } else { 0 };
    let Some(record) = KERNEL_SCRATCH.get_ptr_mut(place.scratch) else { return NO_STACK };
    // SAFETY: this program's own on this CPU, and programs are not nested in themselves.
    let record = unsafe { &mut *record };
    // SAFETY: the record has room for what is read.
    let bytes =
        unsafe { bpf_get_stack(ctx, record.ips.as_mut_ptr().cast(), 8 * wanted.max(needed), skipped) };
    if bytes < 0 {
        return NO_STACK;
    }
    record.len = (bytes as u32 / 8).min(MAX_STACK_DEPTH as u32);
    record.end = if record.len < wanted { Step::Complete } else { Step::TooDeep } as u16;
    record.by_pointer = 0;
    record.context = place.label;
    // A stack that is remembered was walked before: its cache's name is known.
    if place.cache != 0 {
        learn_name(place.cache);
    }
    store_stack(place.scratch, wanted, place.is_pages as u64)
}

/// The first of the places where a stack for this may be remembered.
#[inline(always)]
fn first_place(place: &StackUse) -> u32 {
    let mut hash = Hash::default();
    hash.add(place.scratch as u64);
    hash.add(place.label);
    hash.add(place.call_site);
    (hash.finish() >> 32) as u32
}

/// Reads the stack from this function's own frame up. A function of its own, with a frame so small
/// that the kernel does not put it elsewhere (`BPF_PRIV_STACK_MIN_SIZE`).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn read_window(scratch: u32) -> u64 {
    let here = 0u64;
    let Some(window) = KERNEL_WINDOWS.get_ptr_mut(scratch) else { return 0 };
    // SAFETY: this program's own on this CPU.
    let window = unsafe { &mut *window };
    // Stored and read again, so that the verifier takes the address for a number.
    let start = &raw mut window.start;
    // SAFETY: a member of the window. The address of a variable is that of the frame.
    let start = unsafe {
        start.write_volatile(&raw const here as u64);
        start.read_volatile()
    };
    let left = KERNEL_STACK_SIZE - (start & (KERNEL_STACK_SIZE - 1));
    let bytes = left.min(8 * KERNEL_WINDOW as u64) & !7;
    // SAFETY: the window has room for it; the helper checks the address.
    let result = unsafe {
        bpf_probe_read_kernel(window.words.as_mut_ptr().cast(), bytes as u32, start as *const c_void)
    };
    window.len = if result == 0 { bytes / 8 } else { 0 };
    window.len
}

/// The id of a remembered stack whose return addresses are all where they were; else [`NO_STACK`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn recall(scratch: u32, first: u32, label: u64) -> u64 {
    let Some(window) = KERNEL_WINDOWS.get_ptr(scratch) else { return NO_STACK };
    // SAFETY: this program's own on this CPU.
    let window = unsafe { &*window };
    for way in 0..REMEMBERED_WAYS {
        let Some(stack) = REMEMBERED.get_ptr(first.wrapping_add(way) & (REMEMBERED_STACKS - 1)) else {
            continue;
        };
        // SAFETY: this CPU's own. An interrupt's program may write it meanwhile: `id` is cleared
        // first and written last.
        let stack = unsafe { &*stack };
        let id = id_of(stack);
        if id != NO_STACK && stack.label == label && is_there(window, stack) && id_of(stack) == id {
            return id;
        }
    }
    NO_STACK
}

#[inline(always)]
fn id_of(stack: &RememberedStack) -> u64 {
    let id = &raw const stack.id;
    // SAFETY: a member of a map value.
    unsafe { id.read_volatile() }
}

#[inline(always)]
fn is_there(window: &StackWindow, stack: &RememberedStack) -> bool {
    let len = &raw const stack.len;
    for place in 0..REMEMBERED_WORDS {
        // SAFETY: a member of a map value; volatile as in `stack_len`.
        if place as u32 >= unsafe { len.read_volatile() } {
            break;
        }
        let word = stack.words[place];
        if word != DROPPED && !holds(window, word, stack.values[place]) {
            return false;
        }
    }
    at_top(window, stack.from_top as u64) == stack.last_ip
}

/// The window has this value at this place.
#[inline(always)]
fn holds(window: &StackWindow, word: u16, value: u64) -> bool {
    (word as u64) < window.len && window.words[(word as u64 & WINDOW_MASK) as usize] == value
}

/// The word that many bytes below the top of the stack; 0 if it is not in the window.
#[inline(always)]
fn at_top(window: &StackWindow, bytes: u64) -> u64 {
    let left = KERNEL_STACK_SIZE - (window.start & (KERNEL_STACK_SIZE - 1));
    let word = left.wrapping_sub(bytes) >> 3;
    if word < window.len { window.words[(word & WINDOW_MASK) as usize] } else { 0 }
}

/// Remembers the stack that was walked; if it is remembered, drops the words that are not its
/// own.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn remember(scratch: u32, first: u32, id: u64) -> u64 {
    let Some(record) = KERNEL_SCRATCH.get_ptr(scratch) else { return 0 };
    let Some(window) = KERNEL_WINDOWS.get_ptr_mut(scratch) else { return 0 };
    // SAFETY: both are this program's own on this CPU.
    let (record, window) = unsafe { (&*record, &mut *window) };
    for way in 0..REMEMBERED_WAYS {
        let place = first.wrapping_add(way) & (REMEMBERED_STACKS - 1);
        if let Some(stack) = REMEMBERED.get_ptr(place)
            // SAFETY: as in `recall`.
            && unsafe { id_of(&*stack) == id && (*stack).label == record.context }
        {
            return refine(scratch, place);
        }
    }
    window.turn = window.turn.wrapping_add(1);
    let place = first.wrapping_add(window.turn as u32 & (REMEMBERED_WAYS - 1)) & (REMEMBERED_STACKS - 1);
    let Some(stack) = REMEMBERED.get_ptr_mut(place) else { return 0 };
    // SAFETY: as in `recall`.
    let stack = unsafe { &mut *stack };
    set_id(stack, NO_STACK);
    stack.label = record.context;
    stack.last_ip = ip_at(record, stack_len(record).wrapping_sub(1));
    if collect(scratch, place) == 0 {
        return 0;
    }
    set_id(stack, id);
    1
}

#[inline(always)]
fn set_id(stack: &mut RememberedStack, value: u64) {
    let id = &raw mut stack.id;
    // SAFETY: a member of a map value.
    unsafe { id.write_volatile(value) };
}

/// Notes all words of the window that may be return addresses, for the stack at `place`. Gives 1
/// where they have room and the outermost return address is among them: the last that is like it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn collect(scratch: u32, place: u32) -> u64 {
    let Some(window) = KERNEL_WINDOWS.get_ptr_mut(scratch) else { return 0 };
    let Some(stack) = REMEMBERED.get_ptr_mut(place) else { return 0 };
    // SAFETY: as in `recall`.
    let (window, stack) = unsafe { (&mut *window, &mut *stack) };
    let left = KERNEL_STACK_SIZE - (window.start & (KERNEL_STACK_SIZE - 1));
    set_found(window, 0);
    stack.from_top = 0;
    for word in 0..KERNEL_WINDOW {
        if word as u64 >= window.len {
            break;
        }
        let value = window.words[word];
        if value < KERNEL_CODE {
            continue;
        }
        if value == stack.last_ip {
            stack.from_top = left as u32 - 8 * word as u32;
        }
        let found = found(window);
        if found < REMEMBERED_WORDS as u64 {
            stack.values[found as usize] = value;
            stack.words[found as usize] = word as u16;
        }
        set_found(window, found + 1);
    }
    stack.len = found(window) as u32;
    (stack.from_top != 0 && stack.len <= REMEMBERED_WORDS as u32) as u64
}

/// The stack at `place` is this one, though some of its words are not there: these are not its own.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn refine(scratch: u32, place: u32) -> u64 {
    let Some(window) = KERNEL_WINDOWS.get_ptr(scratch) else { return 0 };
    let Some(stack) = REMEMBERED.get_ptr_mut(place) else { return 0 };
    // SAFETY: as in `recall`.
    let (window, stack) = unsafe { (&*window, &mut *stack) };
    for at in 0..REMEMBERED_WORDS {
        let word = stack.words[at];
        if word != DROPPED && !holds(window, word, stack.values[at]) {
            stack.words[at] = DROPPED;
        }
    }
    1
}

/// Kept in the window, so that the verifier does not follow each value that it can have.
#[inline(always)]
fn found(window: &StackWindow) -> u64 {
    let found = &raw const window.found;
    // SAFETY: a member of the window.
    unsafe { found.read_volatile() }
}

#[inline(always)]
fn set_found(window: &mut StackWindow, value: u64) {
    let found = &raw mut window.found;
    // SAFETY: as above.
    unsafe { found.write_volatile(value) };
}

/// An entry of a stack; the last for those beyond.
#[inline(always)]
fn ip_at(record: &StackRecord, depth: u32) -> u64 {
    record.ips[(depth as usize).min(MAX_STACK_DEPTH - 1)]
}

/// What [`store_stack`] says of a stack that does not count. No id of a stack is even.
const LEAVE_OUT: u64 = 2;

/// Stores the stack in a scratch space. Gives its id, [`NO_STACK`] or, for pages that another
/// allocator takes, [`LEAVE_OUT`]. A global function, which the verifier checks once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn store_stack(scratch: u32, wanted: u32, is_pages: u64) -> u64 {
    let Some(record) = KERNEL_SCRATCH.get_ptr_mut(scratch) else { return NO_STACK };
    // SAFETY: the caller's own.
    let record = unsafe { &mut *record };
    if is_pages != 0 && is_taken_by_allocator(record) {
        return LEAVE_OUT;
    }
    record.len = record.len.min(wanted);
    let mut hash = Hash::default();
    hash.add(record.context);
    for depth in 0..MAX_STACK_DEPTH as u32 {
        if depth >= stack_len(record) {
            break;
        }
        hash.add(ip_at(record, depth));
    }
    stack::store(hash.finish(), record, |id| stack::compare(id, record))
}

/// Entries of a stack. Volatile, so that the compiler makes no countdown from it: up to 6.6 the
/// verifier learns no bound from a comparison with zero.
#[inline(always)]
fn stack_len(record: &StackRecord) -> u32 {
    let len = &raw const record.len;
    // SAFETY: a member of a record that is borrowed.
    unsafe { len.read_volatile() }
}

/// The pages are those of a slab, of vmalloc and the like, which are counted there.
#[inline(always)]
fn is_taken_by_allocator(record: &StackRecord) -> bool {
    for depth in 0..NEAR {
        if depth >= stack_len(record) {
            break;
        }
        let ip = record.ips[depth as usize];
        for range in 0..CODE_RANGES {
            let range = kernel_setting!(page_users[range]);
            if range.end != 0 && ip >= range.start && ip < range.end {
                return true;
            }
        }
    }
    false
}
