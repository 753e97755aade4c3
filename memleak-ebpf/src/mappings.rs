//! The generation of what a process has mapped: `memleak_common::mappings`.

use aya_ebpf::helpers::bpf_probe_read_user;
use memleak_common::{
    mappings::{MappingState, NEW_PROGRAM, R_STATE, RT_CONSISTENT, RT_UNKNOWN, index_of, only_adds},
    unwind::PublishedList,
};

use crate::maps::{MAPPING_STATES, UNWIND_LISTS, add};

/// The generation of an address space's mappings.
#[inline(always)]
pub fn generation(space: u32) -> u64 {
    let Some(state) = MAPPING_STATES.get_ptr(index_of(space)) else { return 0 };
    // SAFETY: an aligned word of a map value, which both sides add to.
    unsafe { (&raw const (*state).generation).read_volatile() }
}

/// The dynamic linker of the current process, which lives in `space`, is about to change what is
/// mapped, or has changed it.
#[inline(always)]
pub fn noticed(space: u32) {
    let Some(state) = MAPPING_STATES.get_ptr_mut(index_of(space)) else { return };
    // SAFETY: aligned words of a map value. The dynamic linker holds a lock while it tells, so its
    // process writes one after the other; the tool writes the address alone.
    unsafe {
        let debug = (&raw const (*state).debug).read_volatile();
        let now = match debug {
            0 => RT_UNKNOWN,
            debug => bpf_probe_read_user((debug + R_STATE) as *const u32).unwrap_or(RT_UNKNOWN),
        };
        let last = &raw mut (*state).last;
        if !only_adds(last.read_volatile(), now) {
            add(&raw mut (*state).generation, 1);
        }
        last.write_volatile(now);
    }
}

/// The current process, which lived in the space `old`, has a new program in the space `new`.
#[inline(always)]
pub fn new_program(old: u32, new: u32) {
    let before = generation(old);
    let Some(state) = MAPPING_STATES.get_ptr_mut(index_of(new)) else { return };
    let state: *mut MappingState = state;
    // SAFETY: aligned words of a map value; exec has ended all other threads of the process.
    unsafe {
        let own = &raw mut (*state).generation;
        // A vfork child had its parent's until now. It never goes back.
        let behind = before.saturating_sub(own.read_volatile());
        add(own, behind + NEW_PROGRAM);
        (&raw mut (*state).debug).write_volatile(0);
        (&raw mut (*state).last).write_volatile(RT_CONSISTENT);
    }
}

/// What the process with this slot has mapped, and the generation of that.
#[inline(always)]
pub fn published_list(slot: u32) -> PublishedList {
    let Some(place) = UNWIND_LISTS.get_ptr(slot) else { return PublishedList::default() };
    // SAFETY: aligned words of a map value, which user space stores one by one: the generation
    // last.
    unsafe {
        let generation = core::ptr::read_volatile(&raw const (*place).generation);
        let list = core::ptr::read_volatile(&raw const (*place).list);
        PublishedList { list, generation }
    }
}
