//! The table of heap blocks (`memleak_common::table`): its segments are made here, and read through
//! a memory map.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};

use aya::{Ebpf, maps::Map};
use log::debug;
use memleak_common::{
    allocation::{Allocation, AllocationKey},
    table::{
        BUSY, BlockRecord, BlockSet, FILTER, FILTER_BITS, FREE, FilterHead, KeyHash, MAX_SEGMENTS, STATE,
        TableHeader, VALID, WAYS, bytes, places, sets,
    },
};

use super::{
    error::{BpfError, map_error},
    sys,
    unwind_maps::Array,
};
use crate::proc::memory_limit::{memory_available, memory_total};

const MAP: &str = "SEGMENTS";
/// A segment is added when records that are this part of its places have found none.
const OVERFLOW_PART: u64 = 128;
/// Bytes of all segments by default, or an eighth of the machine's memory.
const MAX_BYTES: u64 = 2 << 30;
/// A segment takes at most this part of the memory that there is.
const MEMORY_PART: u64 = 4;

/// The table.
pub(super) struct Blocks {
    /// The map of segments.
    outer: OwnedFd,
    header: Array<TableHeader>,
    segments: Vec<Array<BlockSet>>,
    /// Segments that the filter covers, and its bytes.
    covered: u32,
    filter_bytes: u64,
    /// Bytes that segments and filter may have.
    max_bytes: u64,
    /// Records that had found no place when the newest segment was made.
    overflowed: u64,
    /// That there is no more room was told.
    told: bool,
}

impl Blocks {
    /// Makes the first segment, if `max_bytes` (`None`: the default) is enough for it. Without one
    /// the programs put all records into the map `ALLOCATIONS`.
    pub(super) fn open(ebpf: &Ebpf, max_bytes: Option<u64>) -> Result<Self, BpfError> {
        let max_bytes =
            max_bytes.unwrap_or_else(|| memory_total().map_or(MAX_BYTES, |total| MAX_BYTES.min(total / 8)));
        let Some(Map::ArrayOfMaps(map)) = ebpf.map(MAP) else { return Err(BpfError::Missing(MAP)) };
        let outer = map.fd().as_fd().try_clone_to_owned().map_err(|error| map_error(MAP, &error))?;
        let header = Array::open(ebpf, "TABLE")?;
        let mut blocks = Self {
            outer,
            header,
            segments: Vec::new(),
            covered: 0,
            filter_bytes: 0,
            max_bytes,
            overflowed: 0,
            told: false,
        };
        blocks.grow();
        Ok(blocks)
    }

    /// Programs have found the table full: adds a segment, if they were many and there is memory
    /// for it.
    pub(super) fn overflow(&mut self) {
        let overflowed = self.overflowed_word().load(Ordering::Relaxed);
        let newest = places(self.newest());
        if !self.segments.is_empty() && overflowed - self.overflowed >= newest / OVERFLOW_PART {
            self.overflowed = overflowed;
            self.grow();
        }
    }

    /// Records were read, so many of them in the newest segment: adds one in time.
    pub(super) fn read_newest(&mut self, records: u64) {
        /// What is left of a small one is full in no time; what of a large one stays unused is
        /// much.
        const LARGE: u64 = 64 << 20;
        let newest = self.newest();
        let quarters = if bytes(newest) < LARGE { 2 } else { 3 };
        if !self.segments.is_empty() && records > places(newest) / 4 * quarters {
            self.grow();
        }
    }

    fn newest(&self) -> u32 {
        (self.segments.len() as u32).saturating_sub(1)
    }

    fn grow(&mut self) {
        let segment = self.segments.len() as u32;
        let taken = (0..segment).map(bytes).sum::<u64>() + self.filter_bytes;
        if segment == MAX_SEGMENTS || taken + bytes(segment) > self.max_bytes {
            return self.tell("its limit (--max-memory)");
        }
        if memory_available().is_some_and(|available| bytes(segment) > available / MEMORY_PART) {
            return self.tell("the machine has little memory left");
        }
        match self.add(segment) {
            Ok(made) => {
                debug!("table of heap blocks: segment {segment} of {} MiB", bytes(segment) >> 20);
                self.segments.push(made);
                // Programs look for the segment only now.
                self.segments_word().store(segment + 1, Ordering::Release);
                // What the one before had no place for, until now, says nothing of this one.
                self.overflowed = self.overflowed_word().load(Ordering::Relaxed);
            }
            Err(error) => self.tell(&error.to_string()),
        }
    }

    fn tell(&mut self, why: &str) {
        if !std::mem::replace(&mut self.told, true) {
            debug!("the table of heap blocks does not grow further: {why}");
        }
    }

    fn add(&self, segment: u32) -> io::Result<Array<BlockSet>> {
        let made = sys::new_segment(size_of::<BlockSet>() as u32, sets(segment))?;
        let mapped = Array::map(made.as_fd(), sets(segment))?;
        sys::put(self.outer.as_fd(), &segment, &made.as_raw_fd())?;
        Ok(mapped)
    }

    /// There are segments that are sealed, and that the filter does not cover yet.
    pub(super) fn is_to_be_filtered(&self) -> bool {
        self.covered < self.newest()
    }

    /// Makes a filter of all sealed segments. `hashed` is to hand over the keys of blocks that the
    /// map `ALLOCATIONS` has.
    pub(super) fn filter(
        &mut self,
        hashed: impl FnOnce(&mut dyn FnMut(&AllocationKey)) -> Result<(), BpfError>,
    ) -> Result<(), BpfError> {
        let error = |error: io::Error| map_error(MAP, &error);
        let sealed = self.segments.get(..self.newest() as usize).unwrap_or_default();
        let mut records = 0u64;
        for_each_tag(sealed, |_| records += 1);
        const BITS: u64 = 8 * size_of::<BlockSet>() as u64;
        let blocks = (records * FILTER_BITS).div_ceil(BITS).next_power_of_two() as u32;
        let made = sys::new_segment(size_of::<BlockSet>() as u32, blocks + 1).map_err(error)?;
        let filter: Array<BlockSet> = Array::map(made.as_fd(), blocks + 1).map_err(error)?;
        // The kernel waits for all programs that are running (kernel/bpf/syscall.c,
        // `maybe_wait_bpf_programs`): after it nobody puts anything into a sealed segment.
        sys::put(self.outer.as_fd(), &FILTER, &made.as_raw_fd()).map_err(error)?;
        let bits = blocks.ilog2();
        let add = |hash: KeyHash| {
            let block = filter.at(hash.filter_block(bits)).as_ptr().cast::<u64>();
            // SAFETY: an aligned word of a block, which has 64; only we write to it.
            unsafe {
                let word = AtomicU64::from_ptr(block.add(hash.filter_word() as usize));
                word.store(word.load(Ordering::Relaxed) | hash.filter_mask(), Ordering::Relaxed);
            }
        };
        for_each_tag(sealed, |tag| add(KeyHash::of_tag(tag)));
        hashed(&mut |key| add(KeyHash::of(key)))?;
        let head = FilterHead { covers: self.newest(), bits };
        let place = filter.at(0).as_ptr().cast::<AtomicU64>();
        // SAFETY: the first words of the filter, which are aligned. Both at once.
        unsafe { (*place).store(head.packed(), Ordering::Release) };
        debug!("table of heap blocks: a filter of {blocks} blocks for {records} records");
        self.covered = self.newest();
        self.filter_bytes = u64::from(blocks + 1) * size_of::<BlockSet>() as u64;
        Ok(())
    }

    /// So many more records are there than programs know, or fewer.
    pub(super) fn adjust_held(&self, difference: i64) {
        let header = self.header.at(0).as_ptr();
        // SAFETY: as below.
        unsafe { AtomicU64::from_ptr(&raw mut (*header).held) }
            .fetch_add(difference.cast_unsigned(), Ordering::Relaxed);
    }

    fn segments_word(&self) -> &AtomicU32 {
        let header = self.header.at(0).as_ptr();
        // SAFETY: an aligned word of the memory map, which lives as long as `self`; nobody else
        // writes to it.
        unsafe { AtomicU32::from_ptr(&raw mut (*header).segments) }
    }

    fn overflowed_word(&self) -> &AtomicU64 {
        let header = self.header.at(0).as_ptr();
        // SAFETY: as above; programs add to it atomically.
        unsafe { AtomicU64::from_ptr(&raw mut (*header).overflowed) }
    }

    /// Hands each record to `each` that is there from before this call until after it, and others
    /// or not; calls `between` now and then. Gives how many there were in the newest segment.
    pub(super) fn for_each(
        &self,
        mut each: impl FnMut(&AllocationKey, &Allocation),
        mut between: impl FnMut(),
    ) -> u64 {
        let mut newest = 0;
        const AT_ONCE: u32 = 4096;
        for segment in &self.segments {
            newest = 0;
            for index in 0..segment.len() {
                let set = Places(segment.at(index).as_ptr());
                for way in 0..WAYS {
                    if let Some(record) = set.read(way) {
                        newest += 1;
                        each(&record.key, &record.allocation);
                    }
                }
                if index % AT_ONCE == AT_ONCE - 1 {
                    between();
                }
            }
        }
        newest
    }

    /// Removes the record of a key with this birth; says whether it was there. Nobody may be
    /// releasing it.
    pub(super) fn remove(&self, key: &AllocationKey, birth: u64) -> bool {
        let hash = KeyHash::of(key);
        let is_it = |record: &BlockRecord| record.key == *key && record.allocation.birth == birth;
        for (number, segment) in (0..).zip(&self.segments) {
            for index in [hash.home(number), hash.second(number)] {
                let set = Places(segment.at(index).as_ptr());
                for way in 0..WAYS {
                    let (tag, valid, busy) = (set.tag(way), hash.tag(VALID), hash.tag(BUSY));
                    if tag.load(Ordering::Relaxed) == valid
                        && set.read(way).is_some_and(|record| is_it(&record))
                        && tag.compare_exchange(valid, busy, Ordering::AcqRel, Ordering::Relaxed).is_ok()
                    {
                        tag.store(FREE, Ordering::Release);
                        return true;
                    }
                }
            }
        }
        false
    }
}

/// Hands over the tags of places of these segments that are not free.
fn for_each_tag(segments: &[Array<BlockSet>], mut each: impl FnMut(u64)) {
    for segment in segments {
        for index in 0..segment.len() {
            let set = Places(segment.at(index).as_ptr());
            for way in 0..WAYS {
                let tag = set.tag(way).load(Ordering::Relaxed);
                if tag != FREE {
                    each(tag);
                }
            }
        }
    }
}

/// A set in the memory map of its segment.
struct Places(*mut BlockSet);

impl Places {
    /// The tag of a place, of which there are [`WAYS`].
    fn tag(&self, way: usize) -> &AtomicU64 {
        // SAFETY: an aligned word of a set that is mapped as long as the table is; everybody
        // changes it atomically, or as its owner.
        unsafe { AtomicU64::from_ptr((&raw mut (*self.0).tags).cast::<u64>().add(way)) }
    }

    /// The record at a place; `None` if there is none, or if it changes.
    fn read(&self, way: usize) -> Option<BlockRecord> {
        let tag = self.tag(way).load(Ordering::Acquire);
        if tag & STATE != VALID {
            return None;
        }
        // SAFETY: as above: a place of the set.
        let record = unsafe { (&raw mut (*self.0).records).cast::<BlockRecord>().add(way) };
        // SAFETY: aligned words; volatile, since a program may write to them. What was read then is
        // not taken for a record.
        let (birth, read) =
            unsafe { ((&raw const (*record).allocation.birth).read_volatile(), record.read_volatile()) };
        fence(Ordering::Acquire);
        // SAFETY: as above.
        let birth_after = unsafe { (&raw const (*record).allocation.birth).read_volatile() };
        let is_whole = self.tag(way).load(Ordering::Relaxed) == tag
            && birth_after == birth
            && read.allocation.birth == birth;
        is_whole.then_some(read)
    }
}
