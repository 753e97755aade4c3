//! Opening files that another process names, without being led outside its root or into a device.

use std::{
    ffi::CString,
    fs::{File, OpenOptions},
    io, mem,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    },
    path::{Component, Path, PathBuf},
};

use super::living::path_of;

/// A directory that paths are looked up in as if it were `/`: neither `..` nor a symbolic link
/// leaves it.
///
/// It is held by descriptor, so it serves after the process whose root it is has ended.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    /// The root directory of `pid` (`/proc/PID/root`, proc_pid_root(5)): of its mount namespace and
    /// its chroot.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        Self::at(&path_of(pid, "root"))
    }

    /// A directory of our own mount namespace.
    pub fn at(directory: &Path) -> io::Result<Self> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        Ok(Self(OpenOptions::new().read(true).custom_flags(flags).open(directory)?.into()))
    }

    /// Opens a regular file below this directory for reading; anything else (a FIFO, a device) is
    /// refused before it is opened, since the opening itself can block or act.
    pub fn open(&self, path: &Path) -> io::Result<File> {
        let found = match self.look_up(path) {
            // openat2 is older than any kernel that we run on, but a seccomp filter may not know
            // it.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                self.look_up_without_links(path)
            }
            other => other,
        }?;
        open_regular(&found.into())
    }

    fn look_up(&self, path: &Path) -> io::Result<OwnedFd> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: open_how is plain integers, for which all bits zero is a value (openat2(2)).
        let mut how: libc::open_how = unsafe { mem::zeroed() };
        how.flags = (libc::O_PATH | libc::O_CLOEXEC) as u64;
        how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
        // SAFETY: the descriptor is open, `path` is NUL-terminated and `how` is as large as we say;
        // all of them live through the call.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                self.0.as_raw_fd(),
                path.as_ptr(),
                &raw const how,
                size_of::<libc::open_how>(),
            )
        };
        new_descriptor(fd)
    }

    /// The same, one component after the other and refusing every symbolic link.
    fn look_up_without_links(&self, path: &Path) -> io::Result<OwnedFd> {
        let mut at = self.0.try_clone()?;
        for component in path.components() {
            let name = match component {
                Component::RootDir | Component::CurDir => continue,
                Component::Normal(name) => CString::new(name.as_bytes())?,
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
            };
            let flags = libc::O_PATH | libc::O_CLOEXEC | libc::O_NOFOLLOW;
            // SAFETY: the descriptor is open and `name` is NUL-terminated; both live through the
            // call.
            let fd = unsafe { libc::openat(at.as_raw_fd(), name.as_ptr(), flags) };
            at = new_descriptor(fd.into())?;
        }
        Ok(at)
    }
}

fn new_descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(result) {
        // SAFETY: the kernel just gave us this descriptor and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Opens what one of our paths, or a link of /proc (`map_files/...`, `exe`), leads to, if it is a
/// regular file.
pub fn open_link(path: &Path) -> io::Result<File> {
    open_regular(&OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?)
}

/// Opens for reading what `found` (O_PATH) refers to, if it is a regular file.
fn open_regular(found: &File) -> io::Result<File> {
    if !found.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    // Its owner may hold a lease on it, which would keep us for as long as
    // /proc/sys/fs/lease-break-time says (fcntl(2)).
    let path = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read as _, os::unix::fs::symlink};

    use super::*;

    fn tree(name: &str) -> PathBuf {
        let base = std::env::temp_dir().join(format!("memleak-root-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&base);
        fs::create_dir_all(base.join("root/etc")).unwrap();
        fs::write(base.join("secret"), "outside").unwrap();
        fs::write(base.join("root/secret"), "inside").unwrap();
        symlink("../../../../../secret", base.join("root/etc/up")).unwrap();
        symlink("/secret", base.join("root/etc/absolute")).unwrap();
        symlink("/proc/self/fd/0", base.join("root/etc/magic")).unwrap();
        base
    }

    fn text(mut file: File) -> String {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn links_and_dots_stay_inside() {
        let base = tree("inside");
        let root = Root::at(&base.join("root")).unwrap();
        for path in ["secret", "/secret", "../secret", "etc/../../secret", "etc/up", "/etc/absolute"] {
            assert_eq!(text(root.open(Path::new(path)).unwrap()), "inside", "{path}");
        }
        assert!(root.open(Path::new("etc/magic")).is_err());
        assert!(root.open(Path::new("etc")).is_err(), "a directory is not a regular file");
        fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn the_walk_without_openat2_refuses_links() {
        let base = tree("walk");
        let root = Root::at(&base.join("root")).unwrap();
        let open = |path: &str| {
            let found = root.look_up_without_links(Path::new(path))?;
            open_regular(&found.into())
        };
        assert_eq!(text(open("/secret").unwrap()), "inside");
        for path in ["../secret", "etc/up", "etc/absolute"] {
            assert!(open(path).is_err(), "{path}");
        }
        fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn a_fifo_is_refused_without_blocking() {
        let base = tree("fifo");
        let path = CString::new(base.join("root/fifo").as_os_str().as_bytes()).unwrap();
        // SAFETY: `path` is NUL-terminated and lives through the call.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
        let root = Root::at(&base.join("root")).unwrap();
        assert_eq!(root.open(Path::new("fifo")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        fs::remove_dir_all(base).unwrap();
    }
}
