//! Counts what is released, by stack and age (`memleak_common::history`).

use memleak_common::{
    history::{AGES, StackHistory, WAYS, age_class, first_place, units_of},
    settings::flags,
    stack::NO_STACK,
    stats::Stat,
};

use crate::{
    clock::coarse_now,
    maps::{HISTORIES, add, add_in, change, count, setting},
    sampling::number_of,
};

/// What releases are counted.
#[inline(always)]
fn is_kept() -> bool {
    setting!(flags) & flags::LIFETIMES != 0
}

/// What is asked of a record that is released: without, it need not be looked at.
#[inline(always)]
pub fn needs_record() -> bool {
    is_kept() || setting!(sample_bytes) != 0
}

/// Counts that this record was released.
#[inline(always)]
pub fn released(resource: u32, stack_id: u64, size: u64, acquired_ns: u64, epoch: u32) {
    let number = number_of(resource, size);
    add_in(Stat::Released, epoch, number);
    if is_kept() {
        note_release(stack_id, size, acquired_ns, number);
    }
}

/// As so many something of this stack counts that was released, and that was acquired at this
/// time. A global function, which the verifier checks once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn note_release(stack_id: u64, size: u64, acquired_ns: u64, number: u64) -> u64 {
    if stack_id == NO_STACK {
        return 0;
    }
    let Some(history) = history_of(stack_id) else {
        count(Stat::LostHistories);
        return 0;
    };
    // What was acquired within this tick is not older than it.
    let age_ns = coarse_now().saturating_sub(acquired_ns);
    let class = age_class(age_ns) as usize;
    // SAFETY: aligned words of a map value, which are only ever added to atomically; of the longest
    // age, of two at once, one may be forgotten.
    unsafe {
        if class < AGES {
            add(&raw mut (*history).released[class], number);
        }
        let beyond = size.wrapping_sub(usual_size(&raw mut (*history).size, size));
        if beyond != 0 {
            add(&raw mut (*history).bytes_beyond, beyond.wrapping_mul(number));
        }
        let (longest, units) = (&raw mut (*history).longest, units_of(age_ns));
        if units > longest.read_volatile() {
            longest.write_volatile(units);
        }
    }
    0
}

/// [`StackHistory::size`], which becomes `size` if it was nothing: an atomic addition costs more
/// than to see that there is nothing to add.
///
/// # Safety
/// `usual` is an aligned word of a map value.
#[inline(always)]
unsafe fn usual_size(usual: *mut u32, size: u64) -> u64 {
    // SAFETY: the caller's promise.
    let known = unsafe { usual.read_volatile() };
    if known != 0 || size == 0 || size > u32::MAX as u64 {
        return known as u64;
    }
    // SAFETY: as above.
    if unsafe { change(usual, 0, size as u32) } { size } else { unsafe { usual.read_volatile() as u64 } }
}

#[inline(always)]
fn history_of(stack_id: u64) -> Option<*mut StackHistory> {
    let first = first_place(stack_id, setting!(histories));
    for way in 0..WAYS {
        let history = HISTORIES.get_ptr_mut(first + way)?;
        // SAFETY: an aligned word of a map value.
        let holder = unsafe { &raw mut (*history).stack_id };
        // SAFETY: as above.
        let mut held_by = unsafe { holder.read_volatile() };
        if held_by == 0 {
            // SAFETY: as above.
            if unsafe { change(holder, 0, stack_id) } {
                return Some(history);
            }
            // SAFETY: as above.
            held_by = unsafe { holder.read_volatile() };
        }
        if held_by == stack_id {
            return Some(history);
        }
    }
    None
}
