//! What the programs keep in memory that is mapped here: the table of heap blocks, threads, cached
//! walks.

use aya::Ebpf;
use memleak_common::{
    history::{StackHistory, WAYS},
    thread::{THREAD_PLACES, ThreadPlace, ThreadRecord},
    walks::CachedWalk,
};
use rustc_hash::{FxHashMap, FxHashSet};

use super::{blocks::Blocks, config::takes_types, error::BpfError, unwind_maps::Array};

/// The maps of user mode that are read without a system call.
pub(super) struct MappedMaps {
    /// The table of heap blocks.
    pub(super) blocks: Blocks,
    threads: Array<ThreadPlace>,
    walks: Array<CachedWalk>,
    histories: Array<StackHistory>,
}

impl MappedMaps {
    /// Maps them. `max_memory`: see [`Blocks::open`].
    pub(super) fn open(ebpf: &Ebpf, max_memory: Option<u64>) -> Result<Self, BpfError> {
        Ok(Self {
            blocks: Blocks::open(ebpf, if takes_types() { max_memory } else { Some(0) })?,
            threads: Array::open(ebpf, "THREAD_PLACES")?,
            walks: Array::open(ebpf, "CACHED_WALKS")?,
            histories: Array::open(ebpf, "HISTORIES")?,
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

    /// What stacks have released so far, by id; `None` if that is not counted.
    pub(super) fn histories(&self) -> Option<FxHashMap<u64, StackHistory>> {
        if self.histories.len() <= WAYS {
            return None;
        }
        let read = |index| {
            let history = self.histories.at(index).as_ptr();
            // SAFETY: words in the memory map, which programs add to.
            let (id, history) = unsafe { ((&raw const (*history).stack_id).read_volatile(), history) };
            // SAFETY: as above.
            (id != 0).then(|| (id, unsafe { history.read_volatile() }))
        };
        Some((0..self.histories.len()).filter_map(read).collect())
    }

    /// Makes the places free of stacks that are not `referenced`: nothing is held by them.
    pub(super) fn forget_histories(&self, referenced: &FxHashSet<u64>) {
        for index in 0..self.histories.len() {
            let history = self.histories.at(index).as_ptr();
            // SAFETY: words in the memory map. A program that comes to this place now counts for a
            // stack that holds something, so it is referenced, or has begun after the reading: what
            // it adds is lost then.
            unsafe {
                let id = (&raw const (*history).stack_id).read_volatile();
                if id != 0 && !referenced.contains(&id) {
                    history.write_volatile(StackHistory { stack_id: id, ..StackHistory::default() });
                    (&raw mut (*history).stack_id).write_volatile(0);
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
