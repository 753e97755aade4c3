//! Where we listen, opened before anything is traced: what is wrong with an address is one line.

use std::{
    io,
    net::TcpListener,
    os::unix::net::{SocketAddr, UnixListener, UnixStream},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, fchmod},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
};

use crate::{report::output::Caller, settings::ListenAddress};

/// We cannot listen there.
#[derive(Debug, thiserror::Error)]
#[error("--listen {address}: {source}; {}", remedy(source.kind()))]
pub struct ListenError {
    pub(super) address: ListenAddress,
    pub(super) source: io::Error,
}

fn remedy(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::AddrInUse => "give another address, or end what listens there",
        io::ErrorKind::AlreadyExists => "give another path, or remove what is there",
        io::ErrorKind::AddrNotAvailable => "give an address of this machine, or a port alone",
        _ => "give another address",
    }
}

/// Connections that wait for us to take them.
const BACKLOG: i32 = 128;

/// Open, and not waited for yet.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Removes a socket's file at the end.
#[derive(Debug)]
pub(super) struct Remove(PathBuf);

impl Drop for Remove {
    fn drop(&mut self) {
        // Ours, unless somebody has put another one in its place, who may remove it as well.
        let _ = Caller::current().with_its_rights(|| std::fs::remove_file(&self.0));
    }
}

impl Listener {
    pub(super) fn open(address: &ListenAddress) -> Result<(Self, Option<Remove>), ListenError> {
        let opened = match address {
            ListenAddress::Tcp(address) => TcpListener::bind(address).and_then(|listener| {
                listener.set_nonblocking(true)?;
                Ok((Self::Tcp(listener), None))
            }),
            ListenAddress::Unix(path) => Caller::current()
                .with_its_rights(|| open_unix(path))
                .map(|listener| (Self::Unix(listener), Some(Remove(path.clone())))),
        };
        opened.map_err(|source| ListenError { address: address.clone(), source })
    }

    /// Where it is: a port that was left to the kernel is known by now.
    pub(super) fn address(&self, asked: &ListenAddress) -> ListenAddress {
        match self {
            Self::Tcp(listener) => listener.local_addr().map_or_else(|_| asked.clone(), ListenAddress::Tcp),
            Self::Unix(_) => asked.clone(),
        }
    }
}

/// A socket that nobody but its owner can connect to, from its first moment on: the kernel gives
/// the file the mode of the socket (unix(7)).
fn open_unix(path: &Path) -> io::Result<UnixListener> {
    // With these flags for our children's sake, and since it is waited for.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    let address = SocketAddrUnix::new(path)?;
    match bind(&socket, &address) {
        Err(rustix::io::Errno::ADDRINUSE) if !is_socket(path) => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is not a socket is there"));
        }
        Err(rustix::io::Errno::ADDRINUSE) if is_left(path) => {
            std::fs::remove_file(path)?;
            bind(&socket, &address)?;
        }
        bound => bound?,
    }
    listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

/// Not a link to one, either: what it leads to may be somebody else's.
fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

/// Nobody listens at this socket any more.
fn is_left(path: &Path) -> bool {
    let refused = || {
        let address = SocketAddr::from_pathname(path)?;
        UnixStream::connect_addr(&address).map(drop)
    };
    refused().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}
