//! The ring buffers through which the programs tell what user space is to know.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use memleak_common::event::{Event, kind};

use super::{
    access::ring,
    config::Config,
    error::{BpfError, map_error},
};

/// Bytes of the map `EVENTS`.
const CONTROL_BYTES: usize = 4 << 20;

/// Readers of the ring buffers of events.
pub(super) struct Events {
    /// All that is not a line of `-t`: few, and none may be lost.
    control: RingBuf<MapData>,
    /// Lines of `-t`.
    trace: RingBuf<MapData>,
    /// Readable when one of them is.
    either: OwnedFd,
    /// Events that were taken out while something else was looked for.
    passed_over: VecDeque<Event>,
}

impl Events {
    /// Takes the maps out of the loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        let (control, trace) = (ring(ebpf, "EVENTS")?, ring(ebpf, "TRACE")?);
        let either =
            watch(&[control.as_raw_fd(), trace.as_raw_fd()]).map_err(|error| map_error("EVENTS", &error))?;
        Ok(Self { control, trace, either, passed_over: VecDeque::new() })
    }

    /// The next event that is not a line of `-t`.
    pub(super) fn next_control(&mut self) -> Option<Event> {
        self.passed_over.pop_front().or_else(|| next(&mut self.control))
    }

    /// Takes out the releases of ranges that were sent up to now. Others wait until they are asked
    /// for.
    pub(super) fn take_releases(&mut self, mut each: impl FnMut(&Event)) {
        // No more than there were: a target may send them as fast as they are taken.
        let most = CONTROL_BYTES / size_of::<Event>();
        for _ in 0..most {
            let Some(event) = next(&mut self.control) else { break };
            if event.kind == kind::RELEASE_RANGE {
                each(&event);
            } else {
                self.passed_over.push_back(event);
            }
        }
    }

    /// Events wait that make nothing readable.
    pub(super) fn has_passed_over(&self) -> bool {
        !self.passed_over.is_empty()
    }

    /// The next line of `-t`.
    pub(super) fn next_line(&mut self) -> Option<Event> {
        next(&mut self.trace)
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.either.as_raw_fd()
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.either.as_fd()
    }
}

/// Bytes of the ring buffer of lines: the least that there can be, a page, if no line is to be
/// printed.
pub(super) fn trace_bytes(config: &Config) -> u32 {
    if config.trace { 4 << 20 } else { 4096 }
}

fn next(ring: &mut RingBuf<MapData>) -> Option<Event> {
    let item = ring.next()?;
    // SAFETY: `Event` is made of integers alone, and the item's length is checked.
    (item.len() >= size_of::<Event>()).then(|| unsafe { std::ptr::read_unaligned(item.as_ptr().cast()) })
}

/// A descriptor that is readable when one of these is (epoll(7): one of epoll's own can be waited
/// for like others).
fn watch(sources: &[RawFd]) -> io::Result<OwnedFd> {
    // SAFETY: epoll_create1(2) takes an integer.
    let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    if epoll < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us.
    let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
    for source in sources {
        let mut interest = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        // SAFETY: both descriptors are open, and the event is valid.
        if unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, *source, &raw mut interest) } < 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(epoll)
}
