//! What is told of records that leave their place while user space reads (`memleak_common::cut`).

use memleak_common::{
    allocation::{Allocation, AllocationKey, RELEASED_EARLY},
    cut::{Moved, is_reading},
    stats::Stat,
};

use crate::maps::{ALLOCATIONS, EPOCH, MOVED, count};

/// The epoch now.
#[inline(always)]
pub fn epoch() -> u32 {
    let Some(epoch) = EPOCH.get_ptr(0) else { return 0 };
    // SAFETY: an aligned word of a map value, which user space stores.
    unsafe { epoch.read_volatile() as u32 }
}

/// A record is about to leave the map `ALLOCATIONS`.
#[inline(always)]
pub fn leave(key: &AllocationKey, epoch: u32) {
    if is_reading(epoch) {
        tell_leaving(key.space as u64 | (key.resource as u64) << 32, key.handle, epoch as u64);
    }
}

/// A record that a call had taken out is about to leave the call.
#[inline(always)]
pub fn leave_call(key: &AllocationKey, allocation: &Allocation, epoch: u32) {
    if is_reading(epoch) {
        // SAFETY: a record that is borrowed.
        unsafe { tell(key.space as u64 | (key.resource as u64) << 32, key.handle, allocation, epoch as u64) };
    }
}

/// Tells of the record of this key. A global function, which the verifier checks once and not for
/// each way to it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tell_leaving(space_and_resource: u64, handle: u64, epoch: u64) -> u64 {
    let (space, resource) = (space_and_resource as u32, (space_and_resource >> 32) as u32);
    let Some(found) = ALLOCATIONS.get_ptr(&AllocationKey { space, resource, handle }) else { return 0 };
    // SAFETY: an aligned map value; a record changes only while its block is acquired.
    unsafe { tell(space_and_resource, handle, found, epoch) }
}

/// Tells of a record, if it is one that was there at the cut. A global function likewise; gives 1
/// if it has told.
///
/// # Safety
/// `allocation` is null or a record that is there as long as this runs.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn tell(
    space_and_resource: u64,
    handle: u64,
    allocation: *const Allocation,
    epoch: u64,
) -> u64 {
    const BPF_RB_NO_WAKEUP: u64 = 1;
    // SAFETY: the caller says so.
    let Some(allocation) = (unsafe { allocation.as_ref() }) else { return 0 };
    if allocation.epoch == epoch as u32 || allocation.count == RELEASED_EARLY {
        return 0;
    }
    let (space, resource) = (space_and_resource as u32, (space_and_resource >> 32) as u32);
    let Some(mut entry) = MOVED.reserve::<Moved>(0) else {
        count(Stat::LostMoves);
        return 0;
    };
    let key = AllocationKey { space, resource, handle };
    entry.write(Moved { key, allocation: *allocation, epoch });
    entry.submit(BPF_RB_NO_WAKEUP);
    1
}
