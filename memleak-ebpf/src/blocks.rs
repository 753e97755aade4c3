//! The table of heap blocks (`memleak_common::table`): looking for a record, entering and removing
//! one. Global functions, which the verifier checks once and not for each way to them.

use core::intrinsics::AtomicOrdering;

use memleak_common::{
    allocation::{Allocation, AllocationKey},
    cut::is_reading,
    settings::flags,
    table::{BUSY, FILTER, FREE, FilterHead, KeyHash, TableHeader, MAX_SEGMENTS, BlockRecord, BlockSet, VALID, WAYS},
};

use crate::{
    arch::publish,
    cut::tell,
    history,
    maps::{SEGMENTS, TABLE, add, change, setting},
    masked::masked,
};

/// A key's owner and resource in one word, as these functions take it.
#[inline(always)]
pub const fn space_and_resource(key: &AllocationKey) -> u64 {
    key.space as u64 | (key.resource as u64) << 32
}

#[inline(always)]
const fn key(space_and_resource: u64, handle: u64) -> AllocationKey {
    AllocationKey { space: space_and_resource as u32, resource: (space_and_resource >> 32) as u32, handle }
}

/// [`find_block`]: there is no record of the key.
pub const NOWHERE: u64 = u64::MAX;
/// [`find_block`]: if there is a record of the key, it is in the map `ALLOCATIONS`.
pub const HASHED: u64 = u64::MAX - 1;

/// A place of the table: its set of a segment, and which of the set's it is.
#[derive(Clone, Copy)]
struct BlockPlace {
    segment: u32,
    set: u32,
    way: u32,
}

impl BlockPlace {
    #[inline(always)]
    const fn pack(self) -> u64 {
        (self.segment as u64) << 32 | (self.set as u64) << 3 | self.way as u64
    }

    #[inline(always)]
    const fn unpack(packed: u64) -> Self {
        Self { segment: (packed >> 32) as u32, set: packed as u32 >> 3, way: packed as u32 & 7 }
    }
}

/// The table is not used: said again here, where older verifiers see that nothing follows.
#[inline(always)]
fn is_unused() -> bool {
    setting!(flags) & flags::HASH_ALONE != 0
}

/// Segments that there are.
#[inline(always)]
fn segments() -> u32 {
    let Some(header) = TABLE.get_ptr(0) else { return 0 };
    // SAFETY: an aligned word of a map value, which user space stores.
    unsafe { (&raw const (*header).segments).read_volatile() }
}

#[inline(always)]
fn set_at(segment: u32, set: u32) -> Option<*mut BlockSet> {
    SEGMENTS.get(segment)?.get_ptr_mut(set)
}

/// How many segments have no record of a key, from the first one on, nor the map `ALLOCATIONS` in
/// their name: as far as the filter says.
#[inline(always)]
fn empty_below(hash: KeyHash) -> u32 {
    let Some(head) = set_at(FILTER, 0) else { return 0 };
    // SAFETY: the first words of a map value that user space stores; as one, since they belong
    // together.
    let FilterHead { covers, bits } = FilterHead::unpacked(unsafe { head.cast::<u64>().read_volatile() });
    let Some(block) = set_at(FILTER, hash.filter_block(bits)) else { return 0 };
    // SAFETY: an aligned word of a map value, which is 64 of them.
    let word = unsafe { block.cast::<u64>().add(masked::<63>(hash.filter_word())).read_volatile() };
    let mask = hash.filter_mask();
    if word & mask == mask { 0 } else { covers }
}

/// The tag of a place, and its record. A set is eight lines of a record's size, of which the first
/// one has the tags: so two masks keep both within it, which the verifier sees.
#[inline(always)]
fn place_of(set: *mut BlockSet, way: u32) -> (*mut u64, *mut BlockRecord) {
    // SAFETY: members of a map value.
    unsafe {
        (
            set.cast::<u64>().add(masked::<7>(way as u64)),
            set.cast::<BlockRecord>().add(masked::<7>(way.wrapping_add(1) as u64)),
        )
    }
}

/// Which places of a set have this tag, a bit for each. Without a branch, so that the verifier has
/// one way to follow.
#[inline(always)]
fn ways_with(set: *mut BlockSet, tag: u64) -> u32 {
    let mut ways = 0;
    for way in 0..WAYS {
        // SAFETY: an aligned word of a map value.
        let differs = unsafe { (&raw const (*set).tags).cast::<u64>().add(way).read_volatile() } ^ tag;
        // The sign of what is less than 2^63, less 1. A comparison would be a branch here, and so
        // would `x | -x` be: the compiler knows it for one.
        let is_equal = (differs >> 1 | differs & 1).wrapping_sub(1) >> 63;
        ways |= (is_equal as u32) << way;
    }
    ways
}

/// The lowest of some places; [`WAYS`] or more of none.
#[inline(always)]
fn lowest(ways: u32) -> u32 {
    let below = !ways & ways.wrapping_sub(1);
    (0..WAYS).map(|way| below >> way & 1).sum::<u32>() + (ways == 0) as u32
}

/// Where in a set the record of this key is. Of two keys with one tag the second is not found: a
/// tag has 62 bits of a hash.
#[inline(always)]
fn way_of(set: *mut BlockSet, key: &AllocationKey, tag: u64) -> Option<u32> {
    let ways = ways_with(set, tag);
    if ways == 0 {
        return None;
    }
    let way = lowest(ways);
    let (_, record) = place_of(set, way);
    // SAFETY: aligned words of a map value. The key of a record that is valid does not change while
    // its block is acquired.
    let (handle, space) = unsafe {
        let key = &raw const (*record).key;
        ((&raw const (*key).handle).read_volatile(), (&raw const (*key).space).read_volatile())
    };
    (handle == key.handle && space == key.space).then_some(way)
}

/// Not 0 if records whose home this is may be elsewhere.
#[inline(always)]
fn has_overflowed(set: *mut BlockSet) -> u64 {
    // SAFETY: both words at once, of a map value that is aligned.
    unsafe { (&raw const (*set).second).cast::<u64>().read_volatile() }
}

/// Where the record of a key is: a packed [`BlockPlace`], [`NOWHERE`] or [`HASHED`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_block(space_and_resource: u64, handle: u64) -> u64 {
    let segments = segments();
    if segments == 0 || is_unused() {
        return HASHED;
    }
    let newest = find_in_segment(space_and_resource, handle, (segments - 1) as u64);
    if newest < HASHED || segments == 1 {
        return newest;
    }
    let older = find_in_older(space_and_resource, handle, (segments - 1) as u64);
    if older < newest { older } else { newest }
}

/// [`find_block`] in so many segments, the oldest ones.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_in_older(space_and_resource: u64, handle: u64, segments: u64) -> u64 {
    let empty = segments_without(space_and_resource, handle);
    let mut answer = NOWHERE;
    for back in 1..MAX_SEGMENTS as u64 {
        if back > segments || segments - back < empty {
            break;
        }
        let found = find_in_segment(space_and_resource, handle, segments - back);
        if found < HASHED {
            return found;
        }
        answer = answer.min(found);
    }
    answer
}

/// [`empty_below`], of a key. A global function: what it needs on the stack would be too much for
/// who asks.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn segments_without(space_and_resource: u64, handle: u64) -> u64 {
    empty_below(KeyHash::of(&key(space_and_resource, handle))) as u64
}

/// [`find_block`] in one segment. A global function, which the verifier checks once and not for
/// each segment.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_in_segment(space_and_resource: u64, handle: u64, segment: u64) -> u64 {
    let key = key(space_and_resource, handle);
    let segment = segment as u32;
    let hash = KeyHash::of(&key);
    let tag = hash.tag(VALID);
    let home = hash.home(segment);
    let Some(set) = set_at(segment, home) else { return NOWHERE };
    if let Some(way) = way_of(set, &key, tag) {
        return BlockPlace { segment, set: home, way }.pack();
    }
    // SAFETY: aligned words of a map value.
    let (has_second, has_hashed) =
        unsafe { ((&raw const (*set).second).read_volatile(), (&raw const (*set).hashed).read_volatile()) };
    if has_second != 0 {
        let second = hash.second(segment);
        if let Some(set) = set_at(segment, second)
            && let Some(way) = way_of(set, &key, tag)
        {
            return BlockPlace { segment, set: second, way }.pack();
        }
    }
    if has_hashed != 0 { HASHED } else { NOWHERE }
}

/// The record at a place that [`find_block`] gave.
#[inline(always)]
pub fn record_at(place: u64) -> Option<*mut Allocation> {
    let (_, record) = tag_and_record(place)?;
    // SAFETY: a member of a map value.
    Some(unsafe { &raw mut (*record).allocation })
}

#[inline(always)]
fn tag_and_record(place: u64) -> Option<(*mut u64, *mut BlockRecord)> {
    let BlockPlace { segment, set, way } = BlockPlace::unpack(place);
    Some(place_of(set_at(segment, set)?, way))
}

/// [`remove_block`] and [`enter_block`]: it was done.
pub const DONE: u64 = 1;
/// It is a matter of the map `ALLOCATIONS`: the record may be there, or is to go there.
pub const IN_HASH: u64 = 2;
/// [`enter_block`]: it was done, in place of an older record.
pub const REPLACED: u64 = 5;
/// [`enter_block`]: there is a record of the key.
pub const EXISTS: u64 = 3;
/// [`enter_block`]: see whether the map `ALLOCATIONS` has a record of the key.
pub const ASK_HASH: u64 = 4;

/// Bits of what [`enter_block`] is asked: a record that there is already is kept.
pub const IS_NEW: u64 = 1;
/// The map `ALLOCATIONS` has no record of the key.
pub const NOT_HASHED: u64 = 2;

/// Bits of what [`remove_block`] is asked, beside the epoch: the block is released, which is
/// counted.
pub const RELEASED: u64 = 1 << 32;

/// Removes the record of a key: [`DONE`], [`IN_HASH`], or 0 if there is none. `how` has the epoch
/// in its lower half.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn remove_block(space_and_resource: u64, handle: u64, how: u64) -> u64 {
    if is_unused() {
        return IN_HASH;
    }
    let epoch = how as u32;
    let key = key(space_and_resource, handle);
    let hash = KeyHash::of(&key);
    let mut found = None;
    let segments = segments();
    if segments != 0 {
        // What is nearly always so: it is young, or not ours.
        let newest = segments - 1;
        let Some(home) = set_at(newest, hash.home(newest)) else { return 0 };
        match way_of(home, &key, hash.tag(VALID)) {
            Some(way) => found = Some(place_of(home, way)),
            None if newest == 0 && has_overflowed(home) == 0 => return 0,
            None => {}
        }
    }
    if found.is_none() {
        let place = find_block(space_and_resource, handle);
        if place == NOWHERE {
            return 0;
        }
        if place == HASHED {
            return IN_HASH;
        }
        found = tag_and_record(place);
    }
    let Some((tag, record)) = found else { return 0 };
    // SAFETY: an aligned word of a map value.
    if !unsafe { change(tag, hash.tag(VALID), hash.tag(BUSY)) } {
        return 0; // somebody else was faster
    }
    // SAFETY: a place that is ours; members of a map value.
    unsafe {
        if is_reading(epoch) {
            tell(space_and_resource, handle, &raw const (*record).allocation, epoch as u64);
        }
        if how & RELEASED != 0 {
            let Allocation { stack_id, size, time_ns, .. } = (*record).allocation;
            history::released(key.resource, stack_id, size, time_ns, epoch);
        }
        publish(tag, FREE);
    }
    DONE
}

/// Enters a record: [`DONE`], or [`REPLACED`] if the key had one; [`IN_HASH`] if the table
/// has no place for it; [`ASK_HASH`]; [`EXISTS`] if the key had one, with [`IS_NEW`].
///
/// # Safety
/// `allocation` is null or a record that is there as long as this runs.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn enter_block(
    space_and_resource: u64,
    handle: u64,
    allocation: *const Allocation,
    how: u64,
) -> u64 {
    if is_unused() {
        return IN_HASH;
    }
    // SAFETY: the caller says so.
    let Some(allocation) = (unsafe { allocation.as_ref() }) else { return 0 };
    let key = key(space_and_resource, handle);
    let hash = KeyHash::of(&key);
    let segments = segments();
    let newest = segments.wrapping_sub(1);
    if segments != 0 {
        // What is nearly always so: there is no record of it anywhere.
        let Some(home) = set_at(newest, hash.home(newest)) else { return IN_HASH };
        if has_overflowed(home) == 0
            && ways_with(home, hash.tag(VALID)) == 0
            && (newest == 0 || empty_below(hash) >= newest)
            && enter_in(home, hash, &key, allocation)
        {
            return DONE;
        }
    }
    let found = find_block(space_and_resource, handle);
    if found == HASHED && how & NOT_HASHED == 0 {
        return ASK_HASH;
    }
    if found < HASHED {
        if how & IS_NEW != 0 {
            return EXISTS;
        }
        let Some((tag, record)) = tag_and_record(found) else { return 0 };
        // SAFETY: an aligned word of a map value; then a place that is ours.
        unsafe {
            if change(tag, hash.tag(VALID), hash.tag(BUSY)) {
                // The one that takes its place is of the epoch that the program has found.
                let epoch = allocation.epoch;
                if is_reading(epoch) {
                    tell(space_and_resource, handle, &raw const (*record).allocation, epoch as u64);
                }
                store(&raw mut (*record).allocation, allocation);
                publish(tag, hash.tag(VALID));
                return REPLACED;
            }
        }
    }
    let Some(home) = set_at(newest, hash.home(newest)) else { return IN_HASH };
    if enter_in(home, hash, &key, allocation) {
        return DONE;
    }
    let Some(second) = set_at(newest, hash.second(newest)) else { return IN_HASH };
    // SAFETY: an aligned word of a map value, of which all that is asked is whether it is 0.
    unsafe { (&raw mut (*home).second).write_volatile(1) };
    if enter_in(second, hash, &key, allocation) {
        return DONE;
    }
    // SAFETY: as above.
    unsafe { (&raw mut (*home).hashed).write_volatile(1) };
    IN_HASH
}

/// Enters a record at a free place of a set, if there is one.
#[inline(always)]
fn enter_in(set: *mut BlockSet, hash: KeyHash, key: &AllocationKey, allocation: &Allocation) -> bool {
    for _ in 0..WAYS {
        let free = ways_with(set, FREE);
        if free == 0 {
            return false;
        }
        let (tag, record) = place_of(set, lowest(free));
        // SAFETY: aligned words of a map value; the record is ours once its tag is.
        unsafe {
            if change(tag, FREE, hash.tag(BUSY)) {
                (&raw mut (*record).key.space).write_volatile(key.space);
                (&raw mut (*record).key.resource).write_volatile(key.resource);
                (&raw mut (*record).key.handle).write_volatile(key.handle);
                store(&raw mut (*record).allocation, allocation);
                publish(tag, hash.tag(VALID));
                return true;
            }
        }
    }
    false
}

/// Stores what a record says.
///
/// # Safety
/// `place` is a member of a map's value that is ours.
#[inline(always)]
unsafe fn store(place: *mut Allocation, allocation: &Allocation) {
    let (to, from) = (place.cast::<u64>(), (&raw const *allocation).cast::<u64>());
    for word in 0..size_of::<Allocation>() / size_of::<u64>() {
        // SAFETY: words of both; it is made of them.
        unsafe { to.add(word).write_volatile(from.add(word).read()) };
    }
}

/// A record has found no place in the table; gives how many had before it.
#[inline(always)]
pub fn overflowed() -> u64 {
    let Some(header) = TABLE.get_ptr_mut(0) else { return 0 };
    // SAFETY: an aligned word of a map value that is only ever added to atomically.
    unsafe { add_and_get(&raw mut (*header).overflowed, 1) }
}

/// Takes one of the records that may be kept at most. Says whether there was one to take.
#[inline(always)]
pub fn take_room() -> bool {
    let limit = setting!(max_allocs);
    if limit == u64::MAX {
        return true;
    }
    let Some(header) = TABLE.get_ptr_mut(0) else { return false };
    // SAFETY: an aligned word of a map value that is only ever added to atomically.
    let held = unsafe { add_and_get(&raw mut (*header).held, 1) };
    if held >= limit {
        give_room();
    }
    held < limit
}

/// A record is gone, or was not entered.
#[inline(always)]
pub fn give_room() {
    if setting!(max_allocs) != u64::MAX
        && let Some(header) = TABLE.get_ptr_mut(0)
    {
        // SAFETY: as above.
        unsafe { add(&raw mut (*header).held, u64::MAX) };
    }
}

/// Adds to a word of a map's value; gives what it was. It wraps.
///
/// # Safety
/// `word` is an aligned word of a map's value.
#[inline(always)]
unsafe fn add_and_get(word: *mut u64, amount: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { core::intrinsics::atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(word, amount) }
}

/// The map's header; a type that only user space reads as a whole.
const _: () = assert!(size_of::<BlockSet>() == 8 * size_of::<BlockRecord>() && WAYS == 7 && size_of::<TableHeader>() == 24);
