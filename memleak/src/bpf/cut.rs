//! The cut that makes a snapshot one of one moment: raises the epoch, and takes what is told of
//! records that move while the table is read (`memleak_common::cut`).

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::{
    Ebpf,
    maps::{Map, MapData, RingBuf},
};
use memleak_common::cut::Moved;

use super::{
    access::ring,
    error::{BpfError, map_error},
    sys,
};
use crate::proc::clock::monotonic_ns;

const MAP: &str = "EPOCH";

/// The epoch, and what is told while it is odd.
pub(super) struct Epoch {
    word: Word,
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
        let Some(Map::Array(map)) = ebpf.map(MAP) else { return Err(BpfError::Missing(MAP)) };
        let word = Word::open(map.fd().as_fd()).map_err(|error| map_error(MAP, &error))?;
        let grace = Grace::open().map_err(|error| map_error("(map of maps)", &error))?;
        Ok(Self { word, moved, grace })
    }

    /// Makes the cut, and waits until the programs that have not seen it have ended. What they have
    /// sent is there then.
    pub(super) fn begin(&mut self) -> Result<Reading, BpfError> {
        let epoch = (self.word.get().load(Ordering::Relaxed) + 1) | 1;
        let time_ns = monotonic_ns();
        self.word.get().store(epoch, Ordering::SeqCst);
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
        let epoch = self.word.get().load(Ordering::Relaxed);
        self.word.get().store(epoch.next_multiple_of(2), Ordering::SeqCst);
    }
}

/// A word of a map that is mapped into our memory.
struct Word(NonNull<libc::c_void>);

// SAFETY: it owns its memory map, and the word there is atomic.
unsafe impl Send for Word {}

impl Word {
    fn open(map: BorrowedFd<'_>) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new memory map at a place of the kernel's choice.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), size_of::<u64>(), access, libc::MAP_SHARED, map.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(start).map(Self).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn get(&self) -> &AtomicU64 {
        // SAFETY: the memory map begins with the map's one value, of 8 bytes, and lives as long as
        // this.
        unsafe { AtomicU64::from_ptr(self.0.as_ptr().cast()) }
    }
}

impl Drop for Word {
    fn drop(&mut self) {
        // SAFETY: the memory map that `open` made; nothing refers to it after this.
        unsafe { libc::munmap(self.0.as_ptr(), size_of::<u64>()) };
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
