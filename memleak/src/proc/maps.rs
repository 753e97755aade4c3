//! What a process has mapped: /proc/PID/maps.

use std::{io, os::unix::ffi::OsStrExt as _, path::PathBuf};

use procfs::{
    FromRead as _,
    process::{MMPermissions, MMapPath, MemoryMap, MemoryMaps, Process},
};

/// What backs a mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// A file, by the path the kernel prints (in the target's mount namespace), without ` (deleted)`.
    File {
        /// As printed.
        path: PathBuf,
        /// The kernel said ` (deleted)`.
        deleted: bool,
    },
    /// The kernel's `[vdso]`.
    Vdso,
    /// Anonymous memory, heap, stacks and the rest.
    Other,
}

/// One line of /proc/PID/maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Pages can be executed.
    pub executable: bool,
    /// Pages can be read.
    pub readable: bool,
    /// Pages can be written.
    pub writable: bool,
    /// Offset in the file of the byte at `start`.
    pub file_offset: u64,
    /// Device of the file: major, minor.
    pub device: (i32, i32),
    /// Inode of the file.
    pub inode: u64,
    /// What backs it.
    pub backing: Backing,
}

impl Mapping {
    /// The file's path as the target's mount namespace names it.
    pub fn path(&self) -> Option<&std::path::Path> {
        match &self.backing {
            Backing::File { path, .. } => Some(path),
            Backing::Vdso | Backing::Other => None,
        }
    }

    /// Path under /proc that opens the very file that is mapped, deleted or replaced as it may be, in whatever mount
    /// namespace (proc_pid_map_files(5)).
    pub fn map_files_path(&self, pid: u32) -> PathBuf {
        PathBuf::from(format!("/proc/{pid}/map_files/{:x}-{:x}", self.start, self.end))
    }
}

/// Reads what `pid` has mapped now, in order of address. A zombie has nothing mapped: an empty list.
pub fn read_maps(pid: u32) -> io::Result<Vec<Mapping>> {
    let pid = i32::try_from(pid).map_err(|_| io::Error::from(io::ErrorKind::NotFound))?;
    let maps = Process::new(pid).and_then(|process| process.maps()).map_err(to_io_error)?;
    Ok(maps.into_iter().map(Mapping::from).collect())
}

/// Mappings from the text of a maps file. An error: a line is none that the kernel writes.
pub fn parse_maps(text: impl io::Read) -> io::Result<Vec<Mapping>> {
    let maps = MemoryMaps::from_read(text).map_err(to_io_error)?;
    Ok(maps.into_iter().map(Mapping::from).collect())
}

impl From<MemoryMap> for Mapping {
    fn from(map: MemoryMap) -> Self {
        Self {
            start: map.address.0,
            end: map.address.1,
            executable: map.perms.contains(MMPermissions::EXECUTE),
            readable: map.perms.contains(MMPermissions::READ),
            writable: map.perms.contains(MMPermissions::WRITE),
            file_offset: map.offset,
            device: map.dev,
            inode: map.inode,
            backing: match map.pathname {
                MMapPath::Path(path) => file_backing(path),
                MMapPath::Vdso => Backing::Vdso,
                _ => Backing::Other,
            },
        }
    }
}

fn file_backing(path: PathBuf) -> Backing {
    const DELETED: &[u8] = b" (deleted)";
    let bytes = path.as_os_str().as_bytes();
    match bytes.strip_suffix(DELETED) {
        Some(stem) => Backing::File { path: PathBuf::from(std::ffi::OsStr::from_bytes(stem)), deleted: true },
        None => Backing::File { path, deleted: false },
    }
}

pub(super) fn to_io_error(error: procfs::ProcError) -> io::Error {
    match error {
        procfs::ProcError::PermissionDenied(_) => io::ErrorKind::PermissionDenied.into(),
        procfs::ProcError::NotFound(_) => io::ErrorKind::NotFound.into(),
        procfs::ProcError::Io(error, _) => error,
        other => io::Error::other(other.to_string()),
    }
}
