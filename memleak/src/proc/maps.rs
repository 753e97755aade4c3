//! What a process has mapped: /proc/PID/maps.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, BufRead, BufReader},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use super::living::path_of;

/// What backs a mapping.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Backing {
    /// A file, by the path the kernel prints (in the target's mount namespace), without
    /// ` (deleted)`.
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
    pub fn path(&self) -> Option<&Path> {
        match &self.backing {
            Backing::File { path, .. } => Some(path),
            Backing::Vdso | Backing::Other => None,
        }
    }

    /// It has a file's data, not its code.
    pub(crate) fn is_data_of_file(&self) -> bool {
        matches!(self.backing, Backing::File { .. }) && !self.executable
    }

    /// It is of no file and no shared memory. The first segment of System V's has the inode 0, too.
    pub(crate) fn is_anonymous(&self) -> bool {
        self.backing == Backing::Other && self.inode == 0 && self.device == (0, 0)
    }

    /// It is the C library's, by the names that its files have.
    pub(crate) fn is_of_c_library(&self) -> bool {
        let name = self.path().and_then(Path::file_name).unwrap_or_default().as_encoded_bytes();
        [&b"libc.so"[..], b"libc-", b"libpthread", b"ld-musl"].iter().any(|start| name.starts_with(start))
    }

    /// Path under /proc that opens the very file that is mapped, deleted or replaced as it may be,
    /// in whatever mount namespace (proc_pid_map_files(5)).
    pub fn map_files_path(&self, pid: u32) -> PathBuf {
        path_of(pid, &format!("map_files/{:x}-{:x}", self.start, self.end))
    }
}

/// Bytes of paths that are kept of one process: 65,530 mappings may each have one of 4 KiB. What
/// comes after has none.
const MAX_PATHS: usize = 32 << 20;

/// Reads what `pid` has mapped now, in order of address. A zombie has nothing mapped: an empty
/// list.
pub fn read_maps(pid: u32) -> io::Result<Vec<Mapping>> {
    read_from(BufReader::with_capacity(1 << 16, File::open(path_of(pid, "maps"))?))
}

/// Mappings from the text of a maps file (fs/proc/task_mmu.c, `show_map_vma`). An error: a line is
/// none that the kernel writes. Paths are the target's words, any bytes but a line's end, which the
/// kernel writes as `\012`.
pub fn parse_maps(text: &[u8]) -> io::Result<Vec<Mapping>> {
    read_from(text)
}

/// Line by line: all of the text may be 268 MB.
fn read_from(mut text: impl BufRead) -> io::Result<Vec<Mapping>> {
    let (mut mappings, mut line, mut paths) = (Vec::new(), Vec::new(), 0);
    while text.read_until(b'\n', &mut line)? > 0 {
        let content = line.strip_suffix(b"\n").unwrap_or(&line);
        if !content.is_empty() {
            let mut mapping = parse_line(content).ok_or_else(|| {
                let line = String::from_utf8_lossy(content).escape_default().to_string();
                io::Error::new(io::ErrorKind::InvalidData, format!("not a line of a maps file: {line}"))
            })?;
            paths += mapping.path().map_or(0, |path| path.as_os_str().len());
            if paths > MAX_PATHS {
                mapping.backing = Backing::Other;
            }
            mappings.push(mapping);
        }
        line.clear();
    }
    Ok(mappings)
}

/// `START-END PERMISSIONS OFFSET MAJOR:MINOR INODE PATH`, all numbers but the inode hexadecimal,
/// spaces before the path.
fn parse_line(line: &[u8]) -> Option<Mapping> {
    let mut parts = line.splitn(6, |byte| *byte == b' ');
    let mut part = || str::from_utf8(parts.next()?).ok();
    let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = part()?.split_once('-')?;
    let permissions = part()?;
    let file_offset = hexadecimal(part()?)?;
    let (major, minor) = part()?.split_once(':')?;
    let device = |text: &str| i32::from_str_radix(text, 16).ok();
    let inode = part()?.parse().ok()?;
    Some(Mapping {
        start: hexadecimal(start)?,
        end: hexadecimal(end)?,
        executable: permissions.contains('x'),
        readable: permissions.contains('r'),
        writable: permissions.contains('w'),
        file_offset,
        device: (device(major)?, device(minor)?),
        inode,
        backing: backing(parts.next().unwrap_or_default().trim_ascii_start()),
    })
}

const DELETED: &[u8] = b" (deleted)";

fn backing(path: &[u8]) -> Backing {
    if path == b"[vdso]" {
        return Backing::Vdso;
    }
    if path.is_empty() || path.starts_with(b"[") || is_shared_memory(path) {
        return Backing::Other;
    }
    let stem = path.strip_suffix(DELETED);
    let name = OsStr::from_bytes(stem.unwrap_or(path));
    Backing::File { path: PathBuf::from(name), deleted: stem.is_some() }
}

/// Whether it is the name of a segment of System V shared memory: `/SYSV`, its key of 8 digits,
/// deleted.
fn is_shared_memory(path: &[u8]) -> bool {
    let key = path.strip_prefix(b"/SYSV").and_then(|rest| rest.strip_suffix(DELETED));
    key.is_some_and(|key| key.len() == 8 && key.iter().all(u8::is_ascii_hexdigit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backing_of(path: &[u8]) -> Backing {
        let line =
            [b"55d0000-55d1000 r-xp 00001000 fe:1f 42                 ".as_slice(), path, b"\n"].concat();
        let [mapping] = parse_maps(&line).unwrap().try_into().unwrap();
        assert_eq!((mapping.start, mapping.end, mapping.file_offset), (0x55d_0000, 0x55d_1000, 0x1000));
        assert_eq!((mapping.device, mapping.inode), ((0xfe, 0x1f), 42));
        assert_eq!((mapping.readable, mapping.writable, mapping.executable), (true, false, true));
        mapping.backing
    }

    /// As Linux shows the first segment of an IPC namespace, and memory of nobody.
    #[test]
    fn shared_memory_is_not_anonymous() {
        let lines = b"7f00000-7f01000 rw-s 00000000 00:01 0     /SYSV00000000 (deleted)\n\
            7f02000-7f03000 rw-p 00000000 00:00 0\n";
        let anonymous: Vec<bool> = parse_maps(lines).unwrap().iter().map(Mapping::is_anonymous).collect();
        assert_eq!(anonymous, [false, true]);
    }

    fn file(path: &[u8], deleted: bool) -> Backing {
        Backing::File { path: OsStr::from_bytes(path).into(), deleted }
    }

    #[test]
    fn what_backs_a_mapping_is_told_by_its_name() {
        assert_eq!(backing_of(b"/usr/bin/a b"), file(b"/usr/bin/a b", false));
        assert_eq!(backing_of(b"/tmp/x (deleted)"), file(b"/tmp/x", true));
        assert_eq!(backing_of(b"[vdso]"), Backing::Vdso);
        for name in [&b""[..], b"[heap]", b"[anon:x]", b"[stack:", b"/SYSV0000ab1f (deleted)"] {
            assert_eq!(backing_of(name), Backing::Other, "{name:?}");
        }
    }

    /// Found by fuzzing: names that are nearly those of shared memory, or no UTF-8, ended the
    /// reading of all mappings.
    #[test]
    fn no_name_of_a_file_is_in_the_way_of_the_others() {
        for name in [&b"/SYSV"[..], b"/SYSVzzzzzzzz (deleted)", b"/SYSV\xc3\xa9", b"/\xff\xfe"] {
            let deleted = name.ends_with(DELETED);
            let stem = name.strip_suffix(DELETED).unwrap_or(name);
            assert_eq!(backing_of(name), file(stem, deleted), "{name:?}");
        }
    }

    #[test]
    fn what_is_no_line_is_an_error() {
        for line in
            ["1000-2000 r-xp 0 0:0", "1000 r-xp 0 0:0 0 /x", "1000-g r-xp 0 0:0 0 /x", "1-2 r 0 00 0 /x"]
        {
            assert_eq!(parse_maps(line.as_bytes()).unwrap_err().kind(), io::ErrorKind::InvalidData, "{line}");
        }
        assert_eq!(parse_maps(b"").unwrap(), []);
    }

    /// Against another reader of the same text.
    #[test]
    fn our_own_mappings_are_those_that_procfs_reads() {
        let theirs = procfs::process::Process::myself().unwrap().maps().unwrap().0;
        let ours = read_maps(std::process::id()).unwrap();
        let executable = |mapping: &&Mapping| mapping.executable && mapping.path().is_some();
        let ours: Vec<_> = ours.iter().filter(executable).map(|it| (it.start, it.end, it.inode)).collect();
        let theirs = theirs.iter().map(|map| (map.address.0, map.address.1, map.inode));
        let theirs: Vec<_> = theirs.filter(|map| ours.iter().any(|our| our.0 == map.0)).collect();
        assert!(ours.len() > 1);
        assert_eq!(ours, theirs);
    }
}
