//! What is outstanding: whatever becomes so, or ceases to be, does so here. Heap blocks are in the
//! table of `blocks`, as far as it has room; all else is in the map `ALLOCATIONS`.
//!
//! A program finds the epoch once, and all that it does for one call is of that epoch. While user
//! space reads, it learns of older records that leave their place, before they do: see
//! `memleak_common::cut` and ARCHITECTURE.md.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use memleak_common::{
    allocation::{Allocation, AllocationKey},
    event::{self, Event},
    probe::Resource,
    settings::flags,
    stats::Stat,
};

use crate::{
    blocks::{
        ASK_HASH, DONE, EXISTS, HASHED, IN_HASH, IS_NEW, NOT_HASHED, NOWHERE, REPLACED, enter_block, find_block,
        RELEASED, give_room, overflowed, record_at, remove_block, space_and_resource, take_room,
    },
    cut::leave,
    history,
    maps::{ALLOCATIONS, EEXIST, Wake, count, count_in, send, setting},
};

/// Records that find no place in the table until user space is asked for more of it: a power of
/// two.
const ASK_AFTER: u64 = 256;

/// What a map says if it is full.
const ENOSPC: i32 = -28;

/// The key is one of the table's.
#[inline(always)]
fn is_block(key: &AllocationKey) -> bool {
    setting!(flags) & flags::HASH_ALONE == 0 && key.resource == Resource::Heap.number()
}

/// Enters a record under a key that is free; gives the kernel's error.
#[inline(always)]
pub fn insert_new(key: &AllocationKey, allocation: &Allocation) -> Result<(), i32> {
    if !take_room() {
        return Err(ENOSPC);
    }
    let entered = match is_block(key).then(|| enter(key, allocation, IS_NEW)) {
        Some(DONE) => Ok(()),
        Some(EXISTS) => Err(EEXIST),
        _ => ALLOCATIONS.insert(key, allocation, BPF_NOEXIST as u64),
    };
    if entered.is_err() {
        give_room();
    }
    entered
}

/// [`insert_new`], for what is not a heap block.
#[inline(always)]
pub fn insert_elsewhere(key: &AllocationKey, allocation: &Allocation) -> Result<(), i32> {
    if !take_room() {
        return Err(ENOSPC);
    }
    let entered = ALLOCATIONS.insert(key, allocation, BPF_NOEXIST as u64);
    if entered.is_err() {
        give_room();
    }
    entered
}

/// Enters a record of this epoch in place of any other of its key. Says whether there was room;
/// counts it as lost if not.
#[inline(always)]
pub fn replace(key: &AllocationKey, allocation: &Allocation, epoch: u32) -> bool {
    if !take_room() {
        remove(key, epoch);
        count(Stat::LostAllocations);
        return false;
    }
    match is_block(key).then(|| enter(key, allocation, 0)) {
        Some(DONE) => return true,
        Some(REPLACED) => {
            give_room();
            return true;
        }
        _ => {}
    }
    put_elsewhere(key, allocation, epoch)
}

/// [`replace`], for what is not a heap block: the kernel's own. Without a look at the table of
/// those, which would be verified for nothing.
#[inline(always)]
pub fn replace_elsewhere(key: &AllocationKey, allocation: &Allocation, epoch: u32) -> bool {
    take_room() && put_elsewhere(key, allocation, epoch)
}

/// Enters a record in the map `ALLOCATIONS`; room was taken for it.
#[inline(always)]
fn put_elsewhere(key: &AllocationKey, allocation: &Allocation, epoch: u32) -> bool {
    leave(key, epoch);
    let is_new = setting!(max_allocs) == u64::MAX || ALLOCATIONS.get_ptr(key).is_none();
    let entered = ALLOCATIONS.insert(key, allocation, BPF_ANY as u64).is_ok();
    if !entered {
        count(Stat::LostAllocations);
    }
    if !entered || !is_new {
        give_room();
    }
    entered
}

/// [`enter_block`], which is told whether the map `ALLOCATIONS` has a record of the key: then the
/// new one is a matter of that map.
#[inline(always)]
fn enter(key: &AllocationKey, allocation: &Allocation, how: u64) -> u64 {
    let (owner, handle) = (space_and_resource(key), key.handle);
    // SAFETY, of both: a record that is borrowed.
    let mut entered = unsafe { enter_block(owner, handle, allocation, how) };
    if entered == ASK_HASH {
        if ALLOCATIONS.get_ptr(key).is_some() {
            return IN_HASH;
        }
        entered = unsafe { enter_block(owner, handle, allocation, how | NOT_HASHED) };
    }
    if entered == IN_HASH && overflowed() & (ASK_AFTER - 1) == 0 {
        ask_for_room();
    }
    entered
}

/// Asks user space for more of the table. A global function, so that there is room for the event on
/// the stack.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ask_for_room() -> u64 {
    send(&Event { kind: event::kind::OVERFLOW, ..Event::default() }, Wake::Now);
    0
}

/// Removes the record of this key, if there is one, and says so.
#[inline(always)]
pub fn remove(key: &AllocationKey, epoch: u32) -> bool {
    remove_as(key, epoch, 0)
}

/// [`remove`]; `released`: 0, or [`RELEASED`].
#[inline(always)]
fn remove_as(key: &AllocationKey, epoch: u32, released: u64) -> bool {
    match is_block(key).then(|| remove_block(space_and_resource(key), key.handle, epoch as u64 | released)) {
        None | Some(IN_HASH) if released != 0 => release_elsewhere(key, epoch),
        None | Some(IN_HASH) => remove_elsewhere(key, epoch),
        Some(DONE) => {
            give_room();
            true
        }
        Some(_) => false,
    }
}

/// [`remove`], for what is not in the table of heap blocks.
#[inline(always)]
pub fn remove_elsewhere(key: &AllocationKey, epoch: u32) -> bool {
    leave(key, epoch);
    let removed = ALLOCATIONS.remove(key).is_ok();
    if removed {
        give_room();
    }
    removed
}

/// Removes the record of what is released, and counts it. Says whether there was one.
#[inline(always)]
pub fn release(key: &AllocationKey, epoch: u32) -> bool {
    remove_as(key, epoch, RELEASED)
}

/// [`release`], for what is not in the table of heap blocks.
#[inline(always)]
pub fn release_elsewhere(key: &AllocationKey, epoch: u32) -> bool {
    if !history::needs_record() {
        let removed = remove_elsewhere(key, epoch);
        if removed {
            count_in(Stat::Released, epoch);
        }
        return removed;
    }
    let Some(found) = ALLOCATIONS.get_ptr(key) else { return false };
    // SAFETY: an aligned map value; a record changes only while its block is acquired, and this
    // thread is about to release it.
    let (stack_id, size, time_ns) = unsafe { ((*found).stack_id, (*found).size, (*found).time_ns) };
    let removed = remove_elsewhere(key, epoch);
    if removed {
        history::released(key.resource, stack_id, size, time_ns, epoch);
    }
    removed
}

/// Where the record of this key is. It changes only while what it is about is acquired.
#[inline(always)]
pub fn get_ptr(key: &AllocationKey) -> Option<*mut Allocation> {
    if is_block(key) {
        match find_block(space_and_resource(key), key.handle) {
            NOWHERE => return None,
            HASHED => {}
            place => return record_at(place),
        }
    }
    ALLOCATIONS.get_ptr_mut(key)
}

/// The record of this key, which is not a heap block's: only whoever holds what it is about changes
/// it.
#[inline(always)]
pub fn get_elsewhere(key: &AllocationKey) -> Option<Allocation> {
    // SAFETY: an aligned map value; a record changes only while its block is acquired.
    ALLOCATIONS.get_ptr(key).map(|found| unsafe { *found })
}

/// When the record of this key, which is not a heap block's, was made, if there is one.
#[inline(always)]
pub fn time_of_elsewhere(key: &AllocationKey) -> Option<u64> {
    // SAFETY: as above.
    ALLOCATIONS.get_ptr(key).map(|found| unsafe { (*found).time_ns })
}
