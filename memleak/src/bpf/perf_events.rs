//! Perf's events of uprobes, by themselves: each has the kernel keep a breakpoint in, in the
//! processes that have the memory of a thread. They are opened by the child that makes links, since
//! that takes a right which we give up once the first probes are in.

use std::{
    ffi::CString,
    fs, io,
    mem::{offset_of, size_of},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use super::{
    maker::{AttrLayout, MakerCall},
    sys::words,
};

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

/// The request for the event of a place, `offset` bytes into the file `path`: words, with the path
/// at their end.
pub(super) fn request(path: &Path, offset: u64, thread: u32) -> io::Result<Vec<u64>> {
    const KIND: &str = "/sys/bus/event_source/devices/uprobe/type";
    let path = CString::new(path.as_os_str().as_bytes())?;
    let request = EventRequest {
        kind: fs::read_to_string(KIND)?.trim().parse().map_err(io::Error::other)?,
        size: ATTRIBUTES,
        config1: size_of::<EventRequest>() as u64,
        config2: offset,
        thread: thread.into(),
        ..EventRequest::default()
    };
    let mut message = vec![0; WORDS];
    // SAFETY: room for so many words, aligned as they are; the request is integers without gaps.
    unsafe { message.as_mut_ptr().cast::<EventRequest>().write(request) };
    message.extend(words(path.as_bytes_with_nul()));
    Ok(message)
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
        let request = request(Path::new("/lib/x"), 0x123, 77).unwrap();
        assert_eq!(
            (request[7], request[8], request[WORDS - 1]),
            (size_of::<EventRequest>() as u64, 0x123, 77)
        );
        assert_eq!(request[WORDS..], [u64::from_ne_bytes(*b"/lib/x\0\0")]);
    }
}
