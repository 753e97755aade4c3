//! What is read of a process while it lives, or of what stands for one in a test.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use super::{
    living::path_of,
    maps::Mapping,
    memory::{ProcessMemory, ReadMemory as _},
    root::{Root, open_link},
    status::read_status,
};

/// A process, or what stands for one in a test.
pub trait Target {
    /// Opens the very file that is mapped.
    fn open(&self, mapping: &Mapping) -> io::Result<File>;

    /// `size` bytes of memory from `address` on.
    fn memory(&self, address: u64, size: usize) -> io::Result<Vec<u8>>;

    /// The root that the paths of mappings begin at.
    fn root(&self) -> io::Result<Root>;

    /// The map of its generated code (`/tmp/perf-PID.map`), if there is one.
    fn perf_map(&self) -> Option<File>;

    /// The path by which its program was started, if that is a link to a file of quite another
    /// name.
    fn started_as(&self) -> Option<PathBuf> {
        None
    }

    /// The path of its program, as its mappings have it.
    fn executable(&self) -> Option<PathBuf> {
        None
    }
}

/// A running process, by its PID.
#[derive(Clone, Copy, Debug)]
pub struct LiveTarget(pub u32);

impl LiveTarget {
    /// Opens by a path that may lead to another file by now, and checks that it does not.
    fn open_checked(&self, mapping: &Mapping) -> io::Result<File> {
        let exe = || open_link(&path_of(self.0, "exe"));
        let by_path = || {
            let path = mapping.path().ok_or(io::ErrorKind::NotFound)?;
            self.root()?.open(path)
        };
        let is_it = |file: io::Result<File>| file.ok().filter(|file| is_same_file(file, mapping));
        is_it(exe()).or_else(|| is_it(by_path())).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Target for LiveTarget {
    fn executable(&self) -> Option<PathBuf> {
        std::fs::read_link(path_of(self.0, "exe")).ok()
    }

    fn started_as(&self) -> Option<PathBuf> {
        let name = |path: &Path| path.file_name().map(OsStr::as_encoded_bytes).unwrap_or_default().to_owned();
        let path = started_by(self.0)?;
        let exe = self.executable()?;
        // python3 is a link to python3.11: the file says more.
        if !path.is_absolute() || name(&exe).starts_with(&name(&path)) {
            return None;
        }
        // The first line of a script names another program than the script.
        let (linked, program) =
            (self.root().ok()?.open(&path).ok()?, open_link(&path_of(self.0, "exe")).ok()?);
        let id = |file: &File| file.metadata().ok().map(|it| (it.dev(), it.ino()));
        (id(&linked)? == id(&program)?).then_some(path)
    }

    fn open(&self, mapping: &Mapping) -> io::Result<File> {
        // Following a link of map_files takes CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN
        // (proc_pid_map_files(5)).
        open_link(&mapping.map_files_path(self.0)).or_else(|_| self.open_checked(mapping))
    }

    fn memory(&self, address: u64, size: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; size];
        ProcessMemory::open(self.0)?.read_exact_at(address, &mut bytes)?;
        Ok(bytes)
    }

    fn root(&self) -> io::Result<Root> {
        Root::of_process(self.0)
    }

    fn perf_map(&self) -> Option<File> {
        let status = read_status(self.0).ok()?;
        let path = |pid: u32| format!("tmp/perf-{pid}.map");
        let file = self.root().and_then(|root| root.open(Path::new(&path(status.inner_pid)))).or_else(|_| {
            // Where the target cannot be entered, or writes to a /tmp of an agent that shares ours.
            Root::at(Path::new("/")).and_then(|root| root.open(Path::new(&path(status.tgid))))
        });
        // Anybody may create a file of that name: believe the target's own user, and root, as perf
        // does.
        let believed =
            |file: &File| file.metadata().is_ok_and(|it| [0, status.effective_uid].contains(&it.uid()));
        file.ok().filter(believed)
    }
}

/// The path that execve(2) was given: AT_EXECFN of getauxval(3).
fn started_by(pid: u32) -> Option<PathBuf> {
    const AT_EXECFN: u64 = 31;
    const MAX_PATH: usize = 4096;
    let auxiliary = std::fs::read(path_of(pid, "auxv")).ok()?;
    let words: Vec<u64> = auxiliary.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word)).collect();
    let [_, at] = words.as_chunks::<2>().0.iter().find(|[kind, _]| *kind == AT_EXECFN)?;
    let memory = ProcessMemory::open(pid).ok()?;
    let mut path = Vec::new();
    // It is the last thing on the stack: what follows it cannot be read.
    while path.len() < MAX_PATH {
        let mut byte = [0];
        memory.read_exact_at(at + path.len() as u64, &mut byte).ok()?;
        if byte == [0] {
            break;
        }
        path.extend(byte);
    }
    Some(PathBuf::from(OsString::from_vec(path)))
}

/// Whether `file` is the one that is mapped, by device and inode.
fn is_same_file(file: &File, mapping: &Mapping) -> bool {
    let Ok(metadata) = file.metadata() else { return false };
    let device = (libc::major(metadata.dev()) as i32, libc::minor(metadata.dev()) as i32);
    // Both of these file systems give stat(2) other device numbers than /proc/PID/maps.
    const RENUMBERING: [u64; 2] = [libc::BTRFS_SUPER_MAGIC as u64, libc::OVERLAYFS_SUPER_MAGIC as u64];
    let renumbers = || file_system(file).is_some_and(|magic| RENUMBERING.contains(&magic));
    metadata.ino() == mapping.inode && (device == mapping.device || renumbers())
}

/// The magic number of the file system that `file` is on.
fn file_system(file: &File) -> Option<u64> {
    Some(rustix::fs::fstatfs(file).ok()?.f_type as u64)
}
