//! Notices of births (ring buffer `BIRTHS`): of children and of new programs. Whoever told waits
//! for the answer.

use std::{
    os::fd::{AsRawFd as _, RawFd},
    ptr::NonNull,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use aya::{
    Ebpf,
    maps::{Map, MapData, RingBuf},
};
use memleak_common::{event::Event, settings::MAX_HELD};

use super::{
    access::ring,
    error::{BpfError, map_error},
    unwind_maps::map_memory,
};

const ANSWERS: &str = "BIRTH_ANSWERS";

/// The ring buffer and the places for answers. Several threads read it, each notice once.
pub(crate) struct Births {
    ring: Mutex<RingBuf<MapData>>,
    fd: RawFd,
    answers: NonNull<AtomicU64>,
}

// SAFETY: the answers are atomic words of a memory map that is never unmapped; all else can be
// shared as it is.
unsafe impl Send for Births {}
// SAFETY: as above.
unsafe impl Sync for Births {}

impl Births {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        let ring = ring(ebpf, "BIRTHS")?;
        let Some(Map::Array(answers)) = ebpf.map(ANSWERS) else { return Err(BpfError::Missing(ANSWERS)) };
        use std::os::fd::AsFd as _;
        let answers = map_memory(answers.fd().as_fd(), 0, size_of::<u64>() * MAX_HELD as usize)
            .map_err(|error| map_error(ANSWERS, &error))?;
        let fd = ring.as_raw_fd();
        Ok(Self { ring: Mutex::new(ring), fd, answers: answers.cast() })
    }

    /// A descriptor that is readable when there is a notice.
    pub(crate) fn fd(&self) -> RawFd {
        self.fd
    }

    /// Hands the next notice to `with`; says whether there was one. Nobody else is handed one
    /// meanwhile: if there is none, all that were told before have been dealt with.
    pub(crate) fn next(&self, with: impl FnOnce(&Event)) -> bool {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(item) = ring.next() else { return false };
        if item.len() >= size_of::<Event>() {
            // SAFETY: `Event` is made of integers alone, and the item's length was checked.
            with(&unsafe { std::ptr::read_unaligned(item.as_ptr().cast()) });
        }
        true
    }

    /// Lets the thread go on that has told of this birth.
    pub(crate) fn answer(&self, event: &Event) {
        if let Some(place) = event.resource.checked_sub(1).filter(|place| *place < MAX_HELD) {
            // SAFETY: so many words are mapped.
            unsafe { self.answers.add(place as usize).as_ref() }.store(event.time_ns, Ordering::Release);
        }
    }
}
