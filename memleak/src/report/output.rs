//! The files that reports are written to: where one may be made, whose it is, and what is never
//! written over.
//!
//! memleak runs as root and is told a path. Whoever can write to a directory on its way could lead
//! it elsewhere, by a symbolic link or a hard link. So the path is walked one component after the
//! other, and the last one is opened in the directory that was found, by its descriptor: what is
//! renamed meanwhile leads nowhere else.

use std::{
    collections::{HashSet, VecDeque},
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Read as _, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt as _, ffi::OsStringExt as _, fs::MetadataExt as _},
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, PROC_SUPER_MAGIC, Stat, Uid, fchown, fcntl_getfl,
        fcntl_setfl, fstat, fstatfs, ftruncate, openat, readlinkat, renameat, statat, unlinkat,
    },
    io::Errno,
};

use crate::proc::{living::path_of, maps::read_maps};

/// Why a file is not written to. Of the form `<why>; <what to do>`.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The system says so.
    #[error("cannot be opened: {0}; name a file that can be written to")]
    System(#[from] io::Error),
    /// It is a directory.
    #[error("is a directory; name a file in it")]
    Directory,
    /// A program would lose its code.
    #[error("is a program or a library, the traced one or another; name another file")]
    Program,
    /// Somebody else could lead us anywhere.
    #[error(
        "'{0}' is a symbolic link in a directory that others can write to; name the file that it leads to"
    )]
    Link(String),
    /// The same, by a hard link or a file laid ready.
    #[error(
        "belongs to somebody else or has other names, in a directory that others can write to; name a new file"
    )]
    Foreign,
    /// Opening would wait for a reader, maybe for ever.
    #[error("nobody reads this FIFO; start its reader first")]
    NoReader,
}

impl From<Errno> for OutputError {
    fn from(error: Errno) -> Self {
        Self::System(error.into())
    }
}

/// A file for reports, as it is named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputFile {
    /// Its name.
    pub path: PathBuf,
    /// What is there stays, and is added to (`--append`).
    pub append: bool,
}

/// Files that are never written over, by device and inode: the traced programs' own.
#[derive(Clone, Debug, Default)]
pub struct Protected(HashSet<(u64, u64)>);

impl Protected {
    /// A file, under whatever names it has.
    pub fn add_file(&mut self, path: &Path) {
        if let Ok(metadata) = fs::metadata(path) {
            self.0.insert((metadata.dev(), metadata.ino()));
        }
    }

    /// The program that process `pid` runs, and its libraries.
    pub fn add_process(&mut self, pid: u32) {
        self.add_file(&path_of(pid, "exe"));
        for mapping in read_maps(pid).unwrap_or_default() {
            if mapping.executable && mapping.inode != 0 {
                self.add_file(&mapping.map_files_path(pid));
            }
        }
    }

    /// What execvp(3) would start by this name.
    pub fn add_command(&mut self, program: &OsStr) {
        if program.as_bytes().contains(&b'/') {
            return self.add_file(Path::new(program));
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found =
            std::env::split_paths(&path).map(|directory| directory.join(program)).find(|at| at.is_file());
        if let Some(found) = found {
            self.add_file(&found);
        }
    }

    fn has(&self, stat: &Stat) -> bool {
        self.0.contains(&(stat.st_dev, stat.st_ino))
    }
}

/// Who has asked for the report, and gets the files that we make: under sudo not root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    uid: u32,
    /// Ids to be set on a new file; `None` if it has them anyway.
    owner: Option<(u32, u32)>,
}

impl Caller {
    /// sudo(8): SUDO_UID and SUDO_GID are those of the user who has called it.
    pub(crate) fn current() -> Self {
        let id = |name: &str| std::env::var(name).ok()?.parse().ok();
        Self::of(rustix::process::geteuid().as_raw(), id("SUDO_UID"), id("SUDO_GID"))
    }

    fn of(euid: u32, sudo_uid: Option<u32>, sudo_gid: Option<u32>) -> Self {
        match (euid, sudo_uid, sudo_gid) {
            (0, Some(uid), Some(gid)) if uid != 0 => Self { uid, owner: Some((uid, gid)) },
            _ => Self { uid: euid, owner: None },
        }
    }

    /// Does something with the caller's rights to files, in this thread alone; what it makes is the
    /// caller's.
    pub(crate) fn with_its_rights<T>(&self, work: impl FnOnce() -> T) -> T {
        /// Sets both; gives what they were (setfsuid(2), setfsgid(2)).
        fn set(uid: u32, gid: u32) -> (u32, u32) {
            // SAFETY: both take an integer and are about this thread.
            unsafe {
                let gid = libc::setfsgid(gid) as u32;
                (libc::setfsuid(uid) as u32, gid)
            }
        }
        let Some((uid, gid)) = self.owner else { return work() };
        let (own_uid, own_gid) = set(uid, gid);
        let done = work();
        // The user first: it gives back the right to set the group.
        set(own_uid, own_gid);
        set(own_uid, own_gid);
        done
    }

    /// The user can be trusted not to lead us elsewhere: root, or the one who has asked.
    fn trusts(&self, uid: u32) -> bool {
        uid == 0 || uid == self.uid
    }

    /// Somebody else can make files and links there; the sticky bit keeps nobody from that.
    fn can_be_written_by_others(&self, directory: &Stat) -> bool {
        const OTHERS_WRITE: u32 = 0o022;
        !self.trusts(directory.st_uid) || directory.st_mode & OTHERS_WRITE != 0
    }

    fn take_over(&self, file: &impl AsFd) -> io::Result<()> {
        match self.owner {
            Some((uid, gid)) => Ok(fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?),
            None => Ok(()),
        }
    }
}

/// Where a path leads.
enum Place {
    /// To one of our own descriptors: /dev/stdout, /dev/fd/3.
    Descriptor(OwnedFd),
    /// To a name in a directory, of something that is not a link, or of nothing.
    Name { directory: OwnedFd, name: OsString, stat: Option<Stat> },
}

fn open_directory(at: impl AsFd, name: &OsStr, more: OFlags) -> Result<OwnedFd, Errno> {
    openat(at, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | more, Mode::empty())
}

/// Follows `path`, but no link that somebody else could have made.
fn find(path: &Path, caller: Caller) -> Result<Place, OutputError> {
    /// As many as the kernel follows (include/linux/namei.h, `MAXSYMLINKS`).
    const MAX_LINKS: usize = 40;
    if path.as_os_str().as_bytes().last() == Some(&b'/') {
        return Err(OutputError::Directory);
    }
    let mut directory = open_directory(CWD, OsStr::new("."), OFlags::empty())?;
    let mut left: VecDeque<OsString> = components(path).collect();
    let mut links = 0;
    while let Some(name) = left.pop_front() {
        if name == "/" || name == ".." {
            directory = open_directory(&directory, &name, OFlags::empty())?;
            continue;
        }
        let is_last = left.is_empty();
        let stat = match statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) if is_last => return Ok(Place::Name { directory, name, stat: None }),
            Err(error) => return Err(error.into()),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink if links == MAX_LINKS => return Err(Errno::LOOP.into()),
            FileType::Symlink => {
                links += 1;
                if is_last && let Some(descriptor) = own_descriptor(&directory, &name)? {
                    return Ok(Place::Descriptor(descriptor));
                }
                if caller.can_be_written_by_others(&fstat(&directory)?) && !is_proc(&directory)? {
                    return Err(OutputError::Link(name.to_string_lossy().into_owned()));
                }
                // The kernel's own links lead to what they show, whatever they read.
                if !is_last && is_proc(&directory)? {
                    directory = open_directory(&directory, &name, OFlags::empty())?;
                    continue;
                }
                let target = readlinkat(&directory, &name, Vec::new())?;
                let target = OsString::from_vec(target.into_bytes());
                components(Path::new(&target)).rev().for_each(|component| left.push_front(component));
            }
            _ if is_last => return Ok(Place::Name { directory, name, stat: Some(stat) }),
            _ => directory = open_directory(&directory, &name, OFlags::NOFOLLOW)?,
        }
    }
    Err(OutputError::Directory)
}

fn components(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter(|component| *component != Component::CurDir).map(|c| c.as_os_str().to_owned())
}

fn is_proc(directory: &OwnedFd) -> Result<bool, Errno> {
    Ok(fstatfs(directory)?.f_type == PROC_SUPER_MAGIC)
}

/// `name` in /proc/self/fd: a copy of that descriptor. To open it by its name would begin at the
/// file's beginning again.
fn own_descriptor(directory: &OwnedFd, name: &OsStr) -> Result<Option<OwnedFd>, OutputError> {
    let Some(number) = name.to_str().and_then(|name| name.parse().ok()) else { return Ok(None) };
    let (this, ours) = (fstat(directory)?, rustix::fs::stat("/proc/self/fd")?);
    if (this.st_dev, this.st_ino) != (ours.st_dev, ours.st_ino) {
        return Ok(None);
    }
    // SAFETY: the descriptor was there a moment ago, and it is copied and not kept.
    let descriptor = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    Ok(Some(descriptor.try_clone_to_owned()?))
}

/// What may be written to, where a path leads.
enum Target {
    /// One of our own descriptors.
    Descriptor(OwnedFd),
    /// A regular file that is there.
    Regular { directory: OwnedFd, name: OsString },
    /// A device, a FIFO: written to as it is.
    Special { directory: OwnedFd, name: OsString },
    /// A file that is yet to be made.
    New { directory: OwnedFd, name: OsString },
}

/// Finds `path` and refuses what must not be written to. Nothing is opened for writing, made or
/// changed.
fn examine(path: &Path, protected: &Protected, caller: Caller) -> Result<Target, OutputError> {
    let (directory, name, stat) = match find(path, caller)? {
        Place::Descriptor(descriptor) => return Ok(Target::Descriptor(descriptor)),
        Place::Name { directory, name, stat: None } => return Ok(Target::New { directory, name }),
        Place::Name { directory, name, stat: Some(stat) } => (directory, name, stat),
    };
    let is_regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if protected.has(&stat) || (is_regular && is_elf(&directory, &name)) {
        return Err(OutputError::Program);
    }
    let is_foreign = !caller.trusts(stat.st_uid) || stat.st_nlink > 1;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Err(OutputError::Directory),
        FileType::RegularFile if is_foreign && caller.can_be_written_by_others(&fstat(&directory)?) => {
            Err(OutputError::Foreign)
        }
        FileType::RegularFile => Ok(Target::Regular { directory, name }),
        _ => Ok(Target::Special { directory, name }),
    }
}

/// No report looks like this. A program that a traced shell has started may have ended before it
/// could be noted.
fn is_elf(directory: &OwnedFd, name: &OsStr) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mut magic = [0; 4];
    openat(directory, name, flags, Mode::empty())
        .map(File::from)
        .is_ok_and(|mut file| file.read_exact(&mut magic).is_ok() && &magic == b"\x7fELF")
}

/// Says what is wrong with `path` as an output as far as this can be known beforehand; changes
/// nothing.
pub fn check(path: &Path, protected: &Protected) -> Result<(), OutputError> {
    examine(path, protected, Caller::current()).map(drop)
}

/// Opens `path` to write line by line. A regular file is emptied, or with `append` kept; a new one
/// is for its owner alone, who is the caller. A FIFO that nobody reads is an error.
pub fn open_stream(path: &Path, append: bool, protected: &Protected) -> Result<File, OutputError> {
    open_stream_for(path, append, protected, Caller::current())
}

fn open_stream_for(
    path: &Path,
    append: bool,
    protected: &Protected,
    caller: Caller,
) -> Result<File, OutputError> {
    /// Whoever makes and removes the file in a circle gets tired of it.
    const ATTEMPTS: usize = 10;
    let kept = if append { OFlags::APPEND } else { OFlags::empty() };
    for _ in 0..ATTEMPTS {
        let opened = match examine(path, protected, caller)? {
            Target::Descriptor(descriptor) => return Ok(descriptor.into()),
            Target::Special { directory, name } => return open_special(&directory, &name),
            Target::New { directory, name } => make(&directory, &name, caller, kept),
            Target::Regular { directory, name } => open_regular(&directory, &name, append, protected, caller),
        };
        match opened {
            Err(OutputError::System(error))
                if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) => {}
            other => return other,
        }
    }
    Err(io::Error::from(io::ErrorKind::AlreadyExists).into())
}

/// As a new file, or not at all.
fn make(directory: &OwnedFd, name: &OsStr, caller: Caller, more: OFlags) -> Result<File, OutputError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | more;
    let file = openat(directory, name, flags, Mode::RUSR | Mode::WUSR)?;
    caller.take_over(&file)?;
    Ok(file.into())
}

/// What was looked at may be another file by now: all is looked at again once it is open, and only
/// then emptied.
fn open_regular(
    directory: &OwnedFd,
    name: &OsStr,
    append: bool,
    protected: &Protected,
    caller: Caller,
) -> Result<File, OutputError> {
    let kept = if append { OFlags::APPEND } else { OFlags::empty() };
    let flags =
        OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC | kept;
    let file = match openat(directory, name, flags, Mode::empty()) {
        Err(Errno::TXTBSY) => return Err(OutputError::Program),
        other => other?,
    };
    let stat = fstat(&file)?;
    let is_foreign = !caller.trusts(stat.st_uid) || stat.st_nlink > 1;
    if protected.has(&stat) {
        return Err(OutputError::Program);
    }
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
        || (is_foreign && caller.can_be_written_by_others(&fstat(directory)?))
    {
        return Err(OutputError::Foreign);
    }
    if !append {
        ftruncate(&file, 0)?;
    }
    fcntl_setfl(&file, kept)?;
    Ok(file.into())
}

fn open_special(directory: &OwnedFd, name: &OsStr) -> Result<File, OutputError> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match openat(directory, name, flags, Mode::empty()) {
        Err(Errno::NXIO) => return Err(OutputError::NoReader), // fifo(7)
        other => other?,
    };
    fcntl_setfl(&file, fcntl_getfl(&file)?.difference(OFlags::NONBLOCK))?;
    Ok(file.into())
}

/// A file of one report: written beside and renamed, so that it is there whole or not at all. One
/// that is not a regular file (/dev/null, a FIFO) is written as it is.
#[derive(Debug)]
pub struct WholeFile {
    file: File,
    /// `None` if it is written as it is.
    temporary: Option<Temporary>,
}

/// Removed again unless it is renamed.
#[derive(Debug)]
struct Temporary {
    directory: OwnedFd,
    name: OsString,
    final_name: OsString,
}

impl WholeFile {
    /// Begins the file of `path`; what is there now stays until [`Self::commit`].
    pub fn create(path: &Path, protected: &Protected) -> Result<Self, OutputError> {
        Self::create_for(path, protected, Caller::current())
    }

    fn create_for(path: &Path, protected: &Protected, caller: Caller) -> Result<Self, OutputError> {
        match examine(path, protected, caller)? {
            Target::Descriptor(descriptor) => Ok(Self { file: descriptor.into(), temporary: None }),
            Target::Special { directory, name } => {
                Ok(Self { file: open_special(&directory, &name)?, temporary: None })
            }
            Target::New { directory, name } | Target::Regular { directory, name } => {
                Self::beside(directory, name, caller)
            }
        }
    }

    fn beside(directory: OwnedFd, final_name: OsString, caller: Caller) -> Result<Self, OutputError> {
        /// Nobody else can guess names faster than we can try them; a name that is taken is another
        /// run's.
        const ATTEMPTS: u32 = 1000;
        for number in 0..ATTEMPTS {
            let mut name = OsString::from(format!(".memleak-{}-{number}-", std::process::id()));
            // A file's name has 255 bytes at most; some is enough to know it by.
            name.push(OsStr::from_bytes(final_name.as_bytes().get(..64).unwrap_or(final_name.as_bytes())));
            match make(&directory, &name, caller, OFlags::empty()) {
                Ok(file) => {
                    return Ok(Self { file, temporary: Some(Temporary { directory, name, final_name }) });
                }
                Err(OutputError::System(error)) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::from(io::ErrorKind::AlreadyExists).into())
    }

    /// All is written: the file takes its name, in the place of one that has it now.
    pub fn commit(mut self) -> io::Result<()> {
        if let Some(temporary) = &self.temporary {
            // Without it a machine that stops now could have the name without the bytes.
            self.file.sync_all()?;
            renameat(&temporary.directory, &temporary.name, &temporary.directory, &temporary.final_name)?;
            self.temporary = None;
        }
        Ok(())
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = unlinkat(&temporary.directory, &temporary.name, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests;
