//! What the programs keep in memory that is mapped here: the table of heap blocks, threads, cached
//! walks.

use aya::Ebpf;
use memleak_common::{
    thread::{THREAD_PLACES, ThreadPlace, ThreadRecord},
    walks::CachedWalk,
};
use rustc_hash::FxHashSet;

use super::{blocks::Blocks, config::takes_types, error::BpfError, unwind_maps::Array};

/// The maps of user mode that are read without a system call.
pub(super) struct MappedMaps {
    /// The table of heap blocks.
    pub(super) blocks: Blocks,
    threads: Array<ThreadPlace>,
    walks: Array<CachedWalk>,
}

impl MappedMaps {
    /// Maps them. `max_memory`: see [`Blocks::open`].
    pub(super) fn open(ebpf: &Ebpf, max_memory: Option<u64>) -> Result<Self, BpfError> {
        Ok(Self {
            blocks: Blocks::open(ebpf, if takes_types() { max_memory } else { Some(0) })?,
            threads: Array::open(ebpf, "THREAD_PLACES")?,
            walks: Array::open(ebpf, "CACHED_WALKS")?,
        })
    }

    /// Hands the records of threads that have a place to `each`.
    pub(super) fn for_each_thread(&self, mut each: impl FnMut(&ThreadRecord)) {
        for index in 0..THREAD_PLACES {
            let place = self.threads.at(index).as_ptr();
            // SAFETY: a place in the memory map; volatile, since its thread may be writing. It is
            // made of integers, and what is read of it is taken for what it is.
            unsafe {
                if (&raw const (*place).holder).read_volatile() != 0 {
                    each(&(&raw const (*place).record).read_volatile());
                }
            }
        }
    }

    /// Adds the stacks that cached walks lead to.
    pub(super) fn add_cached_stacks(&self, ids: &mut FxHashSet<u64>) {
        ids.extend((0..self.walks.len()).map(|index| {
            let walk = self.walks.at(index).as_ptr();
            // SAFETY: an aligned word in the memory map.
            unsafe { (&raw const (*walk).stack_id).read_volatile() }
        }));
    }
}
