//! When what address spaces have mapped changes (map `MAPPING_STATES`): read and written through a
//! memory map, which costs no system call.

use std::sync::atomic::{AtomicU64, Ordering};

use aya::Ebpf;
use memleak_common::mappings::{MappingState, NEW_PROGRAM, index_of};

use super::{error::BpfError, unwind_maps::Array};

/// The map.
pub(super) struct MappingStates(Array<MappingState>);

impl MappingStates {
    /// Maps it into memory.
    pub(super) fn open(ebpf: &Ebpf) -> Result<Self, BpfError> {
        Array::open(ebpf, "MAPPING_STATES").map(Self)
    }

    /// The generation of an address space's mappings.
    pub(super) fn generation(&self, space: u32) -> u64 {
        self.generation_word(space).load(Ordering::Acquire)
    }

    /// Something was unmapped of which nobody has told.
    pub(super) fn end_generation(&self, space: u32) {
        self.generation_word(space).fetch_add(NEW_PROGRAM, Ordering::AcqRel);
    }

    /// A process has made another one, with a copy of its memory.
    pub(super) fn inherit(&self, parent: u32, child: u32) {
        self.generation_word(child).fetch_max(self.generation(parent), Ordering::AcqRel);
        self.set_debug(child, self.debug(parent));
    }

    /// Where the dynamic linker tells what it is doing; 0 if that is not known.
    pub(super) fn debug(&self, space: u32) -> u64 {
        self.debug_word(space).load(Ordering::Acquire)
    }

    /// Sets [`Self::debug`].
    pub(super) fn set_debug(&self, space: u32, address: u64) {
        self.debug_word(space).store(address, Ordering::Release);
    }

    fn generation_word(&self, space: u32) -> &AtomicU64 {
        let state = self.0.at(index_of(space)).as_ptr();
        // SAFETY: an aligned word in the memory map, which lives as long as `self`; nobody writes
        // to it but by atomic additions and single stores.
        unsafe { AtomicU64::from_ptr(&raw mut (*state).generation) }
    }

    fn debug_word(&self, space: u32) -> &AtomicU64 {
        let state = self.0.at(index_of(space)).as_ptr();
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(&raw mut (*state).debug) }
    }
}
