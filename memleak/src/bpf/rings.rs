//! The ring buffers through which the programs tell what user space is to know.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use memleak_common::event::Event;

use super::{BpfError, chain};

/// Readers of the ring buffers of events.
pub struct Events {
    /// All that is not a line of `-t`: few, and none may be lost.
    control: RingBuf<MapData>,
    /// Lines of `-t`.
    trace: RingBuf<MapData>,
    /// Readable when one of them is.
    either: OwnedFd,
}

impl Events {
    /// Takes the maps out of the loaded object.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        let (control, trace) = (take(ebpf, "EVENTS")?, take(ebpf, "TRACE")?);
        let either = watch(&[control.as_raw_fd(), trace.as_raw_fd()])
            .map_err(|error| BpfError::Map { map: "EVENTS", reason: error.to_string() })?;
        Ok(Self { control, trace, either })
    }

    /// The next event that is not a line of `-t`.
    pub fn next_control(&mut self) -> Option<Event> {
        next(&mut self.control)
    }

    /// The next line of `-t`.
    pub fn next_line(&mut self) -> Option<Event> {
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

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<RingBuf<MapData>, BpfError> {
    let map = ebpf.take_map(name).ok_or(BpfError::Missing(name))?;
    RingBuf::try_from(map).map_err(|error| BpfError::Map { map: name, reason: chain(&error) })
}

fn next(ring: &mut RingBuf<MapData>) -> Option<Event> {
    let item = ring.next()?;
    // SAFETY: `Event` is made of integers alone, and the item's length is checked.
    (item.len() >= size_of::<Event>()).then(|| unsafe { std::ptr::read_unaligned(item.as_ptr().cast()) })
}

/// A descriptor that is readable when one of these is (epoll(7): one of epoll's own can be waited for like others).
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
