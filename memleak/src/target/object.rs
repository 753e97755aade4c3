//! The files a target has mapped: which they are, how to open the very file that is mapped, and what it was loaded at.

use std::{
    collections::HashSet,
    fmt,
    fs::{File, Metadata},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

pub use super::elf::{Elf, FunctionSymbol, Slot, Slots, SymbolKind, SymbolNames};
use crate::proc::maps::{Backing, Mapping};

/// Tells files apart: the same object mapped by several paths or processes is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId {
    /// Major and minor number of the device.
    pub device: (i32, i32),
    /// Inode number.
    pub inode: u64,
}

impl ObjectId {
    /// The file that `metadata` describes.
    pub fn of(metadata: &Metadata) -> Self {
        let device = (libc::major(metadata.dev()) as i32, libc::minor(metadata.dev()) as i32);
        Self { device, inode: metadata.ino() }
    }
}

/// Why an object cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// Opening or reading failed.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// `map_files` is closed to us and the path leads to another file.
    #[error("was replaced or deleted since it was mapped; CAP_SYS_ADMIN is needed to read it all the same")]
    Replaced,
    /// No ELF header.
    #[error("is not an ELF file")]
    NotElf,
    /// An ELF header, but a broken file.
    #[error("is a damaged ELF file: {0}")]
    Damaged(object::read::Error),
    /// For another machine, or for 32 bits: arguments are found elsewhere.
    #[error("is not a 64-bit ELF file for this machine")]
    ForeignMachine,
    /// An object file or core dump.
    #[error("is neither an executable nor a shared object")]
    NotLoadable,
}

/// One file that a target has mapped with execute permission.
#[derive(Debug)]
pub struct Object {
    /// Which file.
    pub id: ObjectId,
    /// Path as the target names it, for people.
    pub path: PathBuf,
    /// Path that opens the very file that is mapped.
    pub open_path: PathBuf,
    /// What is added to the object's addresses in the target, modulo 2^64. `None` for a file that is not mapped or
    /// whose mappings fit none of its segments.
    pub load_bias: Option<u64>,
    /// Its contents, or why there are none.
    pub elf: Result<Elf, ObjectError>,
}

impl Object {
    /// Reads a file that is not mapped, or not yet.
    pub fn open(path: &Path, names: &SymbolNames) -> io::Result<Self> {
        Ok(Self {
            id: ObjectId::of(&path.metadata()?),
            path: path.to_owned(),
            open_path: path.to_owned(),
            load_bias: None,
            elf: open_regular(path).map_err(ObjectError::from).and_then(|file| Elf::read(file, names)),
        })
    }

    /// The file's name, without its directory.
    pub fn file_name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

/// Reads the objects behind `mappings` (of process `pid`, in the order of their first executable mapping), with the
/// symbols named in `names`. An object that cannot be read is there, too, with the reason.
pub fn read_objects(pid: u32, mappings: &[Mapping], names: &SymbolNames) -> Vec<Object> {
    let mut seen = HashSet::new();
    mappings
        .iter()
        .filter(|mapping| mapping.executable)
        .filter_map(|mapping| match &mapping.backing {
            Backing::File { path, .. } => Some((mapping, path)),
            Backing::Vdso | Backing::Other => None,
        })
        .filter(|(mapping, _)| seen.insert(id_of(mapping)))
        .map(|(mapping, path)| {
            let (open_path, elf) = match open_mapped(pid, mapping, path) {
                Ok((open_path, file)) => (open_path, Elf::read(file, names)),
                Err(error) => (mapping.map_files_path(pid), Err(error)),
            };
            let load_bias = elf.as_ref().ok().and_then(|elf| elf.load_bias(mapping));
            Object { id: id_of(mapping), path: path.clone(), open_path, load_bias, elf }
        })
        .collect()
}

fn id_of(mapping: &Mapping) -> ObjectId {
    ObjectId { device: mapping.device, inode: mapping.inode }
}

/// Opens what is mapped. `map_files` needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE; without it the path serves, below
/// the target's root, if it still leads to the same file: a target may put a link to any place there.
fn open_mapped(pid: u32, mapping: &Mapping, path: &Path) -> Result<(PathBuf, File), ObjectError> {
    let exact = mapping.map_files_path(pid);
    match open_regular(&exact) {
        Ok(file) => return Ok((exact, file)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        Err(error) => return Err(error.into()),
    }
    let relative = path.strip_prefix("/").map_err(|_| ObjectError::Replaced)?;
    let below_root = PathBuf::from(format!("/proc/{pid}/root")).join(relative);
    // Before it is opened, since opening alone can do things, and after, since it may have changed meanwhile.
    let is_mapped_file = |metadata: Metadata| ObjectId::of(&metadata) == id_of(mapping);
    if !is_mapped_file(below_root.metadata()?) {
        return Err(ObjectError::Replaced);
    }
    let file = open_regular(&below_root)?;
    match is_mapped_file(file.metadata()?) {
        true => Ok((below_root, file)),
        false => Err(ObjectError::Replaced),
    }
}

/// Opens a regular file, and nothing that could block or act on being opened.
pub(super) fn open_regular(path: &Path) -> io::Result<File> {
    if !path.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)
}

/// `-O name` means `object`: the same path, the same file by another path, its file name, or the library's name as ldd
/// prints it (`libz.so.1`) or `-l` would have it (`z`, `gobject-2.0`), whatever its version (`libc.so`; `libc-2.31.so`).
pub fn names_object(name: &str, object: &Object) -> bool {
    if name.contains('/') {
        let same_file = Path::new(name).metadata().is_ok_and(|metadata| object.id == ObjectId::of(&metadata));
        return object.path == Path::new(name) || same_file;
    }
    names_file(name, object.file_name())
}

/// The same of a file's name. A file may be named after a longer version than the name that it is linked by, or have the
/// version before `.so` (glibc before 2.34).
fn names_file(name: &str, file_name: &str) -> bool {
    let Some((stem, version)) = library_parts(file_name) else { return file_name == name };
    let release = stem.split_once('-').filter(|(_, rest)| rest.starts_with(|c: char| c.is_ascii_digit()));
    let is_stem = |name: &str| stem == name || release.is_some_and(|(stem, _)| stem == name);
    match library_parts(name) {
        Some((name, wanted)) => {
            let is_version =
                version == wanted || version.strip_prefix(wanted).is_some_and(|rest| rest.starts_with('.'));
            let is_release = version.is_empty() && release.is_some_and(|(stem, _)| stem == name);
            (stem == name || is_stem(name) && wanted.is_empty()) && is_version || is_release
        }
        None => is_stem(name) || is_stem(&format!("lib{name}")),
    }
}

/// `libz` and `.1.2` of `libz.so.1.2`.
fn library_parts(file_name: &str) -> Option<(&str, &str)> {
    let (stem, version) = file_name.split_once(".so")?;
    (version.is_empty() || version.starts_with('.')).then_some((stem, version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_a_library_by_each_of_its_names() {
        let z = "libz.so.1.2.13";
        let gobject = "libgobject-2.0.so.0.7400.6";
        for (file_name, names) in [
            (z, &["z", "libz", "libz.so", "libz.so.1", "libz.so.1.2", z][..]),
            (
                gobject,
                &[
                    "gobject-2.0",
                    "gobject",
                    "libgobject-2.0",
                    "libgobject-2.0.so",
                    "libgobject-2.0.so.0",
                    gobject,
                ],
            ),
            ("libc.so.6", &["c", "libc", "libc.so", "libc.so.6"]),
            ("libc-2.31.so", &["c", "libc", "libc.so", "libc.so.6", "libc-2.31.so"]),
            ("tool", &["tool"]),
        ] {
            for name in names {
                assert!(names_file(name, file_name), "{name} is {file_name}");
            }
        }
        for (file_name, names) in [
            (z, &["libz.so.2", "libz.so.1.3", "libz.so.1.2.1", "li", "zz", "libzz.so", ""][..]),
            (
                gobject,
                &["libgobject-3.0.so.0", "object", "gobject-2", "libgobject.so.0", "libgobject-2.0.so.1"],
            ),
            ("libc-2.31.so", &["libc-2.32.so"]),
            ("libjemalloc.so.2", &["libjemalloc.so.1", "alloc"]),
            ("tool", &["libtool", "too"]),
        ] {
            for name in names {
                assert!(!names_file(name, file_name), "{name} is not {file_name}");
            }
        }
    }
}
