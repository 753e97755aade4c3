//! The cut that makes a snapshot one of one moment: raises the epoch, and takes what is told of
//! records that move while the table is read (`memleak_common::cut`).

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use memleak_common::cut::Moved;

use super::{
    access::ring,
    error::{BpfError, map_error},
    sys,
    unwind_maps::Array,
};
use crate::proc::clock::monotonic_ns;

const MAP: &str = "EPOCH";

/// The epoch, and what is told while it is odd.
pub(super) struct Epoch {
    word: Array<u64>,
    moved: RingBuf<MapData>,
    grace: Grace,
}

/// A reading that is under way: it ends with [`Epoch::end`].
pub(super) struct Reading {
    /// The moment: CLOCK_MONOTONIC nanoseconds.
    pub time_ns: u64,
    /// By so many nanoseconds the moment may have been later, at most.
    pub within_ns: u64,
    /// What was acquired or released in this epoch was so after the cut.
    pub epoch: u32,
}

impl Epoch {
    /// Takes the maps of the loaded object.
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        let moved = ring(ebpf, "MOVED")?;
        let word = Array::open(ebpf, MAP)?;
        let grace = Grace::open().map_err(|error| map_error("(map of maps)", &error))?;
        Ok(Self { word, moved, grace })
    }

    fn word(&self) -> &AtomicU64 {
        // SAFETY: the map's one value, an aligned word that lives as long as `self`; programs read
        // it.
        unsafe { AtomicU64::from_ptr(self.word.at(0).as_ptr()) }
    }

    /// Makes the cut, and waits until the programs that have not seen it have ended. What they have
    /// sent is there then.
    pub(super) fn begin(&mut self) -> Result<Reading, BpfError> {
        let epoch = (self.word().load(Ordering::Relaxed) + 1) | 1;
        let time_ns = monotonic_ns();
        self.word().store(epoch, Ordering::SeqCst);
        let within_ns = monotonic_ns() - time_ns;
        let reading = Reading { time_ns, within_ns, epoch: epoch as u32 };
        if let Err(error) = self.grace.wait() {
            self.lower();
            return Err(map_error(MAP, &error));
        }
        Ok(reading)
    }

    /// Records that have left their place since the cut, as far as they were told by now.
    pub(super) fn take_moved(&mut self, reading: &Reading, mut each: impl FnMut(&Moved)) {
        while let Some(item) = self.moved.next() {
            if item.len() < size_of::<Moved>() {
                continue;
            }
            // SAFETY: `Moved` is made of integers alone, and the item's length is checked.
            let moved: Moved = unsafe { std::ptr::read_unaligned(item.as_ptr().cast()) };
            // A program that began in an earlier reading may have told when that had ended.
            if moved.epoch as u32 == reading.epoch {
                each(&moved);
            }
        }
    }

    /// Nothing is to be told any more. Waits until those programs have ended that do.
    pub(super) fn end(&mut self) -> Result<(), BpfError> {
        self.lower();
        self.grace.wait().map_err(|error| map_error(MAP, &error))
    }

    /// Ends a reading that has failed.
    pub(super) fn lower(&mut self) {
        let epoch = self.word().load(Ordering::Relaxed);
        self.word().store(epoch.next_multiple_of(2), Ordering::SeqCst);
    }
}

/// Waits for programs. A change of a map of maps returns when all programs have ended that may have
/// seen what was there before (kernel/bpf/syscall.c, `maybe_wait_bpf_programs`): they run within
/// RCU read-side sections (kernel/trace/bpf_trace.c, `uprobe_prog_run`, `__bpf_trace_run`,
/// `trace_call_bpf`; include/linux/bpf.h, `bpf_prog_run_array_uprobe`). membarrier(2) would do, but
/// not on a machine with one CPU, nor with nohz_full.
struct Grace {
    outer: OwnedFd,
    inner: OwnedFd,
}

impl Grace {
    fn open() -> io::Result<Self> {
        let inner = sys::new_array(None)?;
        let outer = sys::new_array(Some(inner.as_fd()))?;
        Ok(Self { outer, inner })
    }

    fn wait(&self) -> io::Result<()> {
        sys::put(self.outer.as_fd(), &0u32, &self.inner.as_raw_fd())
    }
}
