//! A child of ours that makes links and perf's events, and hands them over.
//!
//! While a link is made the kernel sets one breakpoint after the other. If whoever makes it is
//! killed in between, it cannot take those out again (`failed to unregister, leaking uprobe`; it
//! gives up if the thread has a SIGKILL pending). Nobody kills the child: it has a session and a
//! name of its own, is told no signal, and ends when we do, by itself. It keeps its rights, too: an
//! event of a uprobe takes CAP_SYS_ADMIN (kernel/events/core.c, `perf_uprobe_event_init`), which we
//! give up.

use std::{
    io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    ptr,
};

use super::closer::between;

/// A request: a word that says which layout it has, and what the system call is told, with offsets
/// into the message in the place of addresses.
const MAX_REQUEST: usize = 128 << 10;

/// A system call that makes a descriptor.
pub(super) enum MakerCall {
    /// bpf(2), with this command.
    Bpf(i32),
    /// perf_event_open(2). The last word of the attributes is the thread.
    PerfEvent,
}

/// What a system call is told, and where in that addresses are.
pub(super) struct AttrLayout {
    /// Which.
    pub(super) call: MakerCall,
    /// Bytes of the attributes.
    pub(super) size: usize,
    /// Offsets of the addresses within them.
    pub(super) addresses: &'static [usize],
}

/// The child, as long as this lives.
pub(super) struct Maker {
    socket: OwnedFd,
    child: libc::pid_t,
}

impl Maker {
    /// Starts the child, for requests of these layouts. It has the descriptors `programs`, by the
    /// numbers that they have here.
    pub(super) fn start(layouts: &[AttrLayout], programs: &[RawFd]) -> io::Result<Self> {
        let mut ends = [0; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        // SAFETY: room for two descriptors.
        if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made both.
        let [socket, theirs] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
        let size = MAX_REQUEST as libc::c_int;
        // SAFETY: an integer, which lives through the call. A limit that stays lower shows at a
        // request that is too long.
        unsafe {
            let length = size_of::<libc::c_int>() as libc::socklen_t;
            let value = (&raw const size).cast();
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, value, length);
        }
        // All that the child needs is made here: another thread may hold the allocator's lock.
        let mut kept = programs.to_vec();
        kept.push(theirs.as_raw_fd());
        let others = between(kept);
        let mut buffer = vec![0u64; MAX_REQUEST / size_of::<u64>()];
        // SAFETY: the child makes system calls only, and never returns.
        match unsafe { libc::fork() } {
            0 => serve(theirs.as_raw_fd(), &others, layouts, &mut buffer),
            child if child < 0 => Err(io::Error::last_os_error()),
            child => Ok(Self { socket, child }),
        }
    }

    /// Has a descriptor made. `message`: the attributes in this layout, padded to 8 bytes, and what
    /// they point to.
    pub(super) fn make(&self, layout: usize, message: &[u64]) -> io::Result<OwnedFd> {
        let message = [&[layout as u64], message].concat();
        let length = size_of_val(message.as_slice());
        if length > MAX_REQUEST {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: so many bytes, which live through the call.
        let sent = unsafe {
            libc::send(self.socket.as_raw_fd(), message.as_ptr().cast(), length, libc::MSG_NOSIGNAL)
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        receive(self.socket.as_raw_fd())
    }
}

/// Makes the link of such a message in this process.
pub(super) fn make_here(layout: &AttrLayout, message: &mut [u64]) -> io::Result<OwnedFd> {
    if size_of_val(message) < layout.size {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: a whole request.
    match unsafe { make(layout, message) } {
        // SAFETY: the kernel has just made it for us.
        made @ 0.. => Ok(unsafe { OwnedFd::from_raw_fd(made) }),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        // SAFETY: the socket is ours; shut, it has the child end, which is ours too and whose
        // status is of no interest.
        unsafe {
            libc::shutdown(self.socket.as_raw_fd(), libc::SHUT_RDWR);
            libc::waitpid(self.child, ptr::null_mut(), 0);
        }
    }
}

/// Room for one descriptor in a message (cmsg(3)), aligned as its header wants it.
#[repr(C, align(8))]
struct Control([u8; 24]);

/// A message of one number, with a descriptor or room for one.
fn with_header<T>(number: &mut i32, control: &mut Control, then: impl FnOnce(&mut libc::msghdr) -> T) -> T {
    let mut part = libc::iovec { iov_base: ptr::from_mut(number).cast(), iov_len: size_of::<i32>() };
    // SAFETY: integers and addresses: all zeroes is a value.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len() as _;
    then(&mut header)
}

/// The answer: a link, or the error's number.
fn receive(socket: RawFd) -> io::Result<OwnedFd> {
    let (mut error, mut control) = (0, Control([0; 24]));
    with_header(&mut error, &mut control, |header| {
        loop {
            // SAFETY: the header names a number and room that live through the call.
            let got = unsafe { libc::recvmsg(socket, header, libc::MSG_CMSG_CLOEXEC) };
            match got {
                0 => return Err(io::ErrorKind::BrokenPipe.into()),
                1.. => break,
                _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                _ => return Err(io::Error::last_os_error()),
            }
        }
        // SAFETY: the kernel has filled the header; the macros look at what it says is there.
        unsafe {
            let first = libc::CMSG_FIRSTHDR(header);
            if first.is_null() || (*first).cmsg_type != libc::SCM_RIGHTS {
                return Ok(None);
            }
            let fd = ptr::read_unaligned(libc::CMSG_DATA(first).cast::<RawFd>());
            Ok(Some(OwnedFd::from_raw_fd(fd)))
        }
    })?
    .ok_or_else(|| io::Error::from_raw_os_error(error))
}

/// What the child does: system calls alone.
fn serve(socket: RawFd, others: &[(u32, u32)], layouts: &[AttrLayout], buffer: &mut [u64]) -> ! {
    // SAFETY: plain system calls on descriptors and memory of ours; `_exit` runs nothing of the
    // parent's.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, c"uprobe-links".as_ptr());
        let mut all: libc::sigset_t = mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const all, ptr::null_mut());
        for (first, last) in others {
            libc::syscall(libc::SYS_close_range, *first, *last, 0);
        }
        loop {
            let got = libc::recv(socket, buffer.as_mut_ptr().cast(), size_of_val(buffer), 0);
            if got <= 0 {
                libc::_exit(0);
            }
            let asked = buffer.split_first_mut();
            let asked = asked.and_then(|(layout, rest)| Some((layouts.get(*layout as usize)?, rest)));
            answer(
                socket,
                match asked {
                    Some((layout, rest)) if got as usize >= layout.size + size_of::<u64>() => {
                        make(layout, rest)
                    }
                    _ => -libc::EINVAL,
                },
            );
        }
    }
}

/// Makes the link of a request; gives it, or minus the error's number.
///
/// # Safety
/// `buffer` holds a request.
unsafe fn make(layout: &AttrLayout, buffer: &mut [u64]) -> i32 {
    let start = buffer.as_mut_ptr().cast::<u8>();
    for at in layout.addresses {
        // SAFETY: an address among the attributes, which are aligned; what was sent is an offset.
        unsafe {
            let address = start.add(*at).cast::<u64>();
            // None is none.
            if *address != 0 {
                *address += start as u64;
            }
        }
    }
    // SAFETY: the attributes of this call, and after them what they point to.
    unsafe {
        let made = match layout.call {
            MakerCall::Bpf(command) => libc::syscall(libc::SYS_bpf, command, start, layout.size),
            MakerCall::PerfEvent => {
                const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
                let thread = *start.add(layout.size).cast::<u64>().sub(1) as libc::pid_t;
                libc::syscall(libc::SYS_perf_event_open, start, thread, -1, -1, PERF_FLAG_FD_CLOEXEC)
            }
        };
        if made < 0 { -*libc::__errno_location() } else { made as i32 }
    }
}

/// Hands a link over, and closes it here; or tells the error.
fn answer(socket: RawFd, made: i32) {
    let (mut error, mut control) = ((-made).max(0), Control([0; 24]));
    with_header(&mut error, &mut control, |header| {
        // SAFETY: the header has room for one descriptor, which is open, and lives through the
        // call.
        unsafe {
            if made < 0 {
                (header.msg_control, header.msg_controllen) = (ptr::null_mut(), 0);
            } else {
                let first = libc::CMSG_FIRSTHDR(header);
                (*first).cmsg_level = libc::SOL_SOCKET;
                (*first).cmsg_type = libc::SCM_RIGHTS;
                (*first).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
                ptr::write_unaligned(libc::CMSG_DATA(first).cast::<RawFd>(), made);
            }
            libc::sendmsg(socket, header, libc::MSG_NOSIGNAL);
            if made >= 0 {
                libc::close(made);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// bpf(2) without rights or with nonsense gives an error, of which the number comes back.
    #[test]
    fn errors_come_back_and_the_child_goes_on() {
        const LAYOUT: AttrLayout = AttrLayout { call: MakerCall::Bpf(-1), size: 16, addresses: &[8] };
        let maker = Maker::start(&[LAYOUT], &[]).expect("a child");
        for _ in 0..3 {
            let error = maker.make(0, &[1, 16, 0]).expect_err("no such command");
            let wanted = [libc::EINVAL, libc::EPERM].map(Some);
            assert!(wanted.contains(&error.raw_os_error()), "{error}");
        }
        for (layout, message) in [(0, &[1][..]), (1, &[1, 16, 0])] {
            let error = maker.make(layout, message).expect_err("too short, or of no layout");
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        }
    }

    #[test]
    fn a_child_that_is_gone_is_an_error() {
        let layout = AttrLayout { call: MakerCall::Bpf(-1), size: 8, addresses: &[] };
        let maker = Maker::start(&[layout], &[]).expect("a child");
        // SAFETY: the child is ours, and was not waited for.
        unsafe { libc::kill(maker.child, libc::SIGKILL) };
        let error = maker.make(0, &[1]).expect_err("nobody answers");
        let kinds = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
        assert!(kinds.contains(&error.kind()), "{error}");
    }
}
