//! Notices of new programs and names, of all processes of the machine: the kernel's process
//! connector (Documentation/driver-api/connector.rst, include/uapi/linux/cn_proc.h).

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

/// The kernel's numbers for it.
const CN_IDX_PROC: u32 = 1;
const CN_VAL_PROC: u32 = 1;
const PROC_CN_MCAST_LISTEN: u32 = 1;
const PROC_EVENT_EXEC: u32 = 2;
const PROC_EVENT_COMM: u32 = 0x200;

/// Where an event's kind begins in a message: after `struct nlmsghdr` and `struct cn_msg`; and the
/// process, after kind, CPU, time and the thread.
const KIND_AT: usize = 16 + 20;
const PROCESS_AT: usize = KIND_AT + 4 + 4 + 8 + 4;

/// A socket that is readable when a process has a new program or name. It needs `CAP_NET_ADMIN`,
/// and the first network and PID namespace: in another one it is silent, or is refused.
#[derive(Debug)]
pub(crate) struct ExecWatch(OwnedFd);

impl ExecWatch {
    /// Begins to listen.
    pub(crate) fn open() -> io::Result<Self> {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: socket(2) takes three integers.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_CONNECTOR) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the system call has just made it for us.
        let watch = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        watch.leave_out_others()?;
        // SAFETY: plain integers: all zeroes is a value.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = CN_IDX_PROC;
        // SAFETY: an address of the size given, which lives through the call.
        let bound = unsafe {
            libc::bind(fd, (&raw const address).cast(), size_of::<libc::sockaddr_nl>() as libc::socklen_t)
        };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        watch.listen()?;
        Ok(watch)
    }

    /// Forks and ends, of which a busy machine has thousands a second, are dropped in the kernel.
    fn leave_out_others(&self) -> io::Result<()> {
        let statement = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
        let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
        let equals = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        // What a filter loads it takes for the network's byte order.
        let mut filter = [
            statement(load, 0, 0, KIND_AT as u32),
            statement(equals, 1, 0, PROC_EVENT_EXEC.to_be()),
            statement(equals, 0, 1, PROC_EVENT_COMM.to_be()),
            statement(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
            statement(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: a program of the length given, which lives through the call.
        let set = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                size_of::<libc::sock_fprog>() as libc::socklen_t,
            )
        };
        if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn listen(&self) -> io::Result<()> {
        let length = (KIND_AT + 4) as u32;
        // nlmsghdr: length, type and flags, sequence, port; cn_msg: index, value, sequence,
        // acknowledgement, length and flags; and the word itself.
        let words = [
            length,
            libc::NLMSG_DONE as u32,
            0,
            std::process::id(),
            CN_IDX_PROC,
            CN_VAL_PROC,
            0,
            0,
            4,
            PROC_CN_MCAST_LISTEN,
        ];
        // SAFETY: so many bytes, which live through the call.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), words.as_ptr().cast(), length as usize, 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The processes of all notices that have come by now. `None`: some notices were lost.
    pub(crate) fn take(&self) -> Option<Vec<u32>> {
        let mut pids = Vec::new();
        let mut message = [0u8; 256];
        loop {
            // SAFETY: as many bytes as the buffer has, which lives through the call.
            let read =
                unsafe { libc::recv(self.0.as_raw_fd(), message.as_mut_ptr().cast(), message.len(), 0) };
            let Ok(length) = usize::try_from(read) else {
                let error = io::Error::last_os_error();
                match error.kind() {
                    io::ErrorKind::Interrupted => continue,
                    _ if error.raw_os_error() == Some(libc::ENOBUFS) => return None,
                    _ => return Some(pids),
                }
            };
            pids.extend(message.get(..length).and_then(process_of));
        }
    }
}

impl AsFd for ExecWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for ExecWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// The process that a message is about.
fn process_of(message: &[u8]) -> Option<u32> {
    let word = |at: usize| Some(u32::from_ne_bytes(message.get(at..at + 4)?.try_into().ok()?));
    matches!(word(KIND_AT)?, PROC_EVENT_EXEC | PROC_EVENT_COMM).then(|| word(PROCESS_AT)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_found_in_a_message() {
        let mut message = vec![0u8; PROCESS_AT + 4];
        message[KIND_AT..KIND_AT + 4].copy_from_slice(&PROC_EVENT_EXEC.to_ne_bytes());
        message[PROCESS_AT..].copy_from_slice(&4711u32.to_ne_bytes());
        assert_eq!(process_of(&message), Some(4711));
        assert_eq!(process_of(&message[..PROCESS_AT]), None);
        message[KIND_AT..KIND_AT + 4].copy_from_slice(&1u32.to_ne_bytes());
        assert_eq!(process_of(&message), None, "a fork");
    }
}
