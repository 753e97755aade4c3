//! A child process of ours makes links, and hands them over. The kernel cannot take a breakpoint out of a process while a
//! SIGKILL is pending for whoever asks (kernel/events/uprobes.c: `failed to unregister, leaking uprobe`), and it must where a
//! link that is half made has to be given up. We can be killed at any time; nobody kills the child.

use std::{
    io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

/// Room for one descriptor (cmsg(3)), aligned as its header is.
type Control = [u64; 4];

/// Has a child call `make` with 0 to `count` - 1, and gives the descriptors that it makes. `make` gives the number of an error
/// where it cannot; it makes system calls only, since it runs after fork(2).
pub(super) fn descriptors(
    count: usize,
    make: impl Fn(usize) -> Result<RawFd, i32>,
) -> io::Result<Vec<io::Result<OwnedFd>>> {
    let (ours, childs) = pair()?;
    // SAFETY: the child makes system calls only.
    let child = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            leave_group();
            for index in 0..count {
                send(childs.as_raw_fd(), make(index));
            }
            // SAFETY: ends the child, and with it its own descriptors: where we were killed, these are the last.
            unsafe { libc::_exit(0) }
        }
        child => child,
    };
    drop(childs);
    let made = (0..count).map(|_| receive(ours.as_raw_fd())).collect();
    drop(ours);
    // SAFETY: the child is ours; its status is of no interest.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    Ok(made)
}

/// A signal to our process group, SIGKILL included, does not reach the calling child any more.
pub(super) fn leave_group() {
    // SAFETY: a plain system call.
    unsafe { libc::setsid() };
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    let failed = unsafe {
        libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr())
    };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both are new, and nobody else's.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// A message of one `int`, with room for a descriptor: for sendmsg(2) and recvmsg(2).
fn message(word: &mut i32, part: &mut libc::iovec, control: Option<&mut Control>) -> libc::msghdr {
    *part = libc::iovec { iov_base: (&raw mut *word).cast(), iov_len: size_of::<i32>() };
    // SAFETY: integers and pointers: all zeroes is a value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = part;
    message.msg_iovlen = 1;
    if let Some(control) = control {
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: arithmetic alone.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(size_of::<RawFd>() as u32) } as _;
    }
    message
}

/// Sends what was made: in the child, so without anything that allocates.
fn send(socket: RawFd, made: Result<RawFd, i32>) {
    let mut part = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let mut control = Control::default();
    let mut word = made.err().unwrap_or(0);
    let message = message(&mut word, &mut part, made.is_ok().then_some(&mut control));
    // SAFETY: the message and what it points to live through the calls; its control part has room for the header and one
    // descriptor.
    unsafe {
        if let Ok(fd) = made {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
            libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd);
        }
        libc::sendmsg(socket, &raw const message, libc::MSG_NOSIGNAL);
    }
}

fn receive(socket: RawFd) -> io::Result<OwnedFd> {
    let mut part = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let (mut control, mut word) = (Control::default(), 0);
    let mut message = message(&mut word, &mut part, Some(&mut control));
    let got = loop {
        // SAFETY: the message and what it points to live through the call.
        let got = unsafe { libc::recvmsg(socket, &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        if got >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            break got;
        }
    };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    if got == 0 {
        return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the process that attaches has ended"));
    }
    // SAFETY: the kernel has filled the message; a header that is there is whole.
    let fd = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if header.is_null() {
            return Err(io::Error::from_raw_os_error(word));
        }
        libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned()
    };
    // SAFETY: the kernel has made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _};

    use super::*;

    #[test]
    fn what_a_child_makes_is_ours() {
        let path = c"/proc/self/stat";
        let made = descriptors(3, |index| match index {
            1 => Err(libc::ENOSPC),
            // SAFETY: a path that ends with a zero.
            _ => Ok(unsafe { libc::open(path.as_ptr(), libc::O_RDONLY) }),
        });
        let made = made.expect("a child");
        assert_eq!(made.len(), 3);
        assert_eq!(made[1].as_ref().expect_err("as the child said").raw_os_error(), Some(libc::ENOSPC));
        // What the child has opened is the child's.
        let mut text = String::new();
        let fd = made.into_iter().next().expect("three").expect("open");
        assert!(File::from(fd).read_to_string(&mut text).is_err() || !text.is_empty());
    }

    #[test]
    fn a_child_that_ends_early_is_an_error() {
        // SAFETY: ends the child.
        let made = descriptors(2, |_| unsafe { libc::_exit(0) }).expect("a child");
        assert!(made.iter().all(|one| one.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::BrokenPipe)));
    }
}
