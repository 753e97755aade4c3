//! Links of one place each, by perf's events: for processes of which the first thread has ended,
//! where the kernel has links for many places (see [`super::links`]).
//!
//! aya makes such links as well, but the event itself, and that takes a right which we give up once
//! the first probes are in.

use std::{
    ffi::CString,
    fs, io,
    mem::{offset_of, size_of},
    os::{
        fd::{AsRawFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya_obj::generated::{bpf_attach_type::BPF_PERF_EVENT, bpf_cmd};

use super::{
    maker::{AttrLayout, MakerCall},
    sys::new_fd,
};

/// One place in a file, in the processes that have the memory of a thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct EventPlace<'a> {
    /// The file.
    pub(super) path: &'a Path,
    /// Bytes into it.
    pub(super) offset: u64,
    /// At the return of the function that begins there.
    pub(super) is_return: bool,
    /// The thread.
    pub(super) thread: u32,
}

/// `struct perf_event_attr` (include/uapi/linux/perf_event.h, PERF_ATTR_SIZE_VER5), as far as an
/// event of a uprobe uses it, and after it the thread.
#[repr(C)]
#[derive(Default)]
struct EventRequest {
    kind: u32,
    size: u32,
    config: u64,
    unused: [u64; 5],
    /// The address of the file's path.
    config1: u64,
    /// The place in it.
    config2: u64,
    unused_too: [u64; 5],
    thread: u64,
}

/// How an event is asked for.
pub(super) const LAYOUT: AttrLayout = AttrLayout {
    call: MakerCall::PerfEvent,
    size: size_of::<EventRequest>(),
    addresses: &[offset_of!(EventRequest, config1)],
};

const ATTRIBUTES: u32 = offset_of!(EventRequest, thread) as u32;
const WORDS: usize = size_of::<EventRequest>() / size_of::<u64>();

/// The request for the event of a place: words, with the path at their end.
pub(super) fn request(place: EventPlace<'_>) -> io::Result<Vec<u64>> {
    let path = CString::new(place.path.as_os_str().as_bytes())?;
    let request = EventRequest {
        kind: of_uprobes("type")?.trim().parse().map_err(io::Error::other)?,
        size: ATTRIBUTES,
        config: if place.is_return { return_flag(&of_uprobes("format/retprobe")?)? } else { 0 },
        config1: size_of::<EventRequest>() as u64,
        config2: place.offset,
        thread: place.thread.into(),
        ..EventRequest::default()
    };
    let mut message = vec![0; WORDS];
    // SAFETY: room for so many words, aligned as they are; the request is integers without gaps.
    unsafe { message.as_mut_ptr().cast::<EventRequest>().write(request) };
    message.extend(super::sys::words(path.as_bytes_with_nul()));
    Ok(message)
}

/// What the kernel says of its events of uprobes
/// (Documentation/ABI/testing/sysfs-bus-event_source-devices-format).
fn of_uprobes(what: &str) -> io::Result<String> {
    fs::read_to_string(format!("/sys/bus/event_source/devices/uprobe/{what}"))
}

/// `config:0`: the bit of `config`.
fn return_flag(format: &str) -> io::Result<u64> {
    let bit = format.trim().strip_prefix("config:").and_then(|bit| bit.parse::<u32>().ok());
    bit.and_then(|bit| 1_u64.checked_shl(bit)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Has `program` run at an event. The link holds the event.
pub(super) fn link(program: BorrowedFd<'_>, event: &OwnedFd, cookie: u64) -> io::Result<OwnedFd> {
    /// The part of `union bpf_attr` that BPF_LINK_CREATE uses for this kind of link.
    #[repr(C)]
    struct EventLink {
        prog_fd: u32,
        target_fd: u32,
        attach_type: u32,
        flags: u32,
        cookie: u64,
    }
    let mut attributes = EventLink {
        prog_fd: program.as_raw_fd() as u32,
        target_fd: event.as_raw_fd() as u32,
        attach_type: BPF_PERF_EVENT as u32,
        flags: 0,
        cookie,
    };
    new_fd(bpf_cmd::BPF_LINK_CREATE, &mut attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_what_the_kernel_reads() {
        assert_eq!(
            (ATTRIBUTES, offset_of!(EventRequest, config1), offset_of!(EventRequest, config2)),
            (112, 56, 64)
        );
        assert_eq!(return_flag("config:0\n").unwrap(), 1);
        assert_eq!(return_flag("config:5").unwrap(), 32);
        assert!(return_flag("config1:0-63").is_err() && return_flag("config:64").is_err());
    }
}
