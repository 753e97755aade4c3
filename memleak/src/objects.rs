//! The files that targets have mapped: each is opened once and its headers are read once, for
//! probing, unwinding and symbolization together. They stay open while somebody holds them, so that
//! a target's last report has its symbols.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::{
    elf::{Budget, Bytes, ElfFile, MappedPart, Source, debug_files::Roots},
    escape::printable,
    proc::{
        maps::{Backing, Mapping},
        memory_limit::memory_left,
        root::Root,
        target::Target,
    },
};

/// Most files that are held open, for all processes together.
const MAX_OBJECTS: usize = 16 << 10;

/// Largest vdso, bytes. They are a few pages.
const MAX_VDSO: u64 = 1 << 20;

/// Bytes of symbols and debug information that are held in memory at most, of all objects together.
pub const MEMORY: u64 = 192 << 20;

/// All objects of a run. Clones are one store.
#[derive(Clone, Debug)]
pub struct ObjectStore(Arc<OpenFiles>);

#[derive(Debug)]
struct OpenFiles {
    budget: Budget,
    /// Bytes that the budget began with.
    memory: u64,
    host_debug: Option<Arc<Root>>,
    files: Mutex<HashMap<FileKey, Arc<ObjectFile>>>,
}

/// The path is part of it: subvolumes of one btrfs have the same device in /proc/PID/maps, and
/// inodes of their own. No other file gets the inode while ours is open.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum FileKey {
    File { device: (i32, i32), inode: u64, path: PathBuf },
    Vdso(Vec<u8>),
}

/// What is different in a file that was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    /// Time of the last change of its contents: seconds, nanoseconds.
    modified: (i64, i64),
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let data = file.metadata()?;
        let modified = (data.mtime(), data.mtime_nsec());
        Ok(Self { device: data.dev(), inode: data.ino(), length: data.len(), modified })
    }
}

/// A file, open, or why it is not.
#[derive(Debug)]
pub struct ObjectFile {
    /// No other object of this run has it.
    id: u64,
    path: PathBuf,
    elf: io::Result<ElfFile>,
    /// `None` of memory.
    stamp: Option<Stamp>,
    /// It could not be opened: it may be worth another try.
    unopened: bool,
    told: AtomicBool,
}

impl ObjectFile {
    /// A file of its own, with a budget of its own.
    pub fn new(file: io::Result<File>, path: &Path) -> Self {
        Self::read(file, path, &Budget::new(MEMORY))
    }

    /// An image in memory, with a budget of its own.
    pub fn from_memory(image: Vec<u8>, path: &Path) -> Self {
        Self::read_image(image, path, &Budget::new(MEMORY))
    }

    fn read(file: io::Result<File>, path: &Path, budget: &Budget) -> Self {
        let stamp = file.as_ref().ok().and_then(|file| Stamp::of(file).ok());
        let unopened = file.is_err();
        let elf = file
            .and_then(Source::from_file)
            .and_then(|source| ElfFile::parse(source, &budget.for_object()))
            .inspect_err(|error| log::debug!("{} cannot be read: {error}", path.display()));
        Self { id: next_id(), path: path.to_owned(), elf, stamp, unopened, told: AtomicBool::new(false) }
    }

    fn read_image(image: Vec<u8>, path: &Path, budget: &Budget) -> Self {
        let budget = budget.for_object();
        let source = Bytes::new(image, &budget).map(Source::Memory);
        let elf = source.and_then(|source| ElfFile::parse(source, &budget));
        let (id, path, told) = (next_id(), path.to_owned(), AtomicBool::new(false));
        Self { id, path, elf, stamp: None, unopened: false, told }
    }

    /// A number that no other object of this run has.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its path as the target names it; `[vdso]` of the kernel's.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its headers, or why there are none.
    pub fn elf(&self) -> Result<&ElfFile, &io::Error> {
        self.elf.as_ref()
    }

    /// What tells the file from others, and from itself once it was changed. `None`: it is not a
    /// file.
    pub fn stamp(&self) -> Option<Stamp> {
        self.stamp
    }

    /// Names the object on standard error, once, if something of it was more than an object may
    /// cost.
    pub fn tell_budget(&self) {
        let is_over = self.elf.as_ref().is_ok_and(ElfFile::is_over_budget);
        if is_over && !self.told.swap(true, Ordering::Relaxed) {
            log::warn!(
                "{}: parts of it need more memory or reading than memleak allows one object, and are left out; its \
                 functions may have no names, and stacks through it may be truncated",
                printable(&self.path.to_string_lossy())
            );
        }
    }

    fn is_current(&self) -> bool {
        match (&self.elf, self.stamp) {
            (Ok(elf), Some(stamp)) => match &**elf.source() {
                Source::File(file, _) => Stamp::of(file).is_ok_and(|now| now == stamp),
                Source::Memory(_) => true,
            },
            _ => !self.unopened,
        }
    }
}

fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Default for ObjectStore {
    fn default() -> Self {
        let memory = memory_left().map_or(MEMORY, |left| MEMORY.min(left / 4));
        Self::new(memory, Path::new("/usr/lib/debug"))
    }
}

impl ObjectStore {
    /// ObjectStore that hold `memory` bytes of symbols and debug information at most, whose debug
    /// files are also looked for in `debug_directory`, which is ours.
    pub fn new(memory: u64, debug_directory: &Path) -> Self {
        let host_debug = Root::at(debug_directory).ok().map(Arc::new);
        Self(Arc::new(OpenFiles { budget: Budget::new(memory), memory, host_debug, files: Mutex::default() }))
    }

    /// What `target` has mapped at `mapping`, which is a file or the vdso.
    pub fn open(&self, mapping: &Mapping, target: &dyn Target) -> Arc<ObjectFile> {
        if mapping.backing == Backing::Vdso {
            return self.open_vdso(mapping, target);
        }
        let key = key_of(mapping);
        let known = self.lock().get(&key).cloned();
        if let Some(known) = known.filter(|known| known.is_current()) {
            return known;
        }
        let path = mapping.path().unwrap_or(Path::new(""));
        let object = Arc::new(ObjectFile::read(target.open(mapping), path, &self.0.budget));
        self.keep(key, object)
    }

    fn open_vdso(&self, mapping: &Mapping, target: &dyn Target) -> Arc<ObjectFile> {
        let path = Path::new("[vdso]");
        let size = (mapping.end - mapping.start).min(MAX_VDSO) as usize;
        let image = match target.memory(mapping.start, size) {
            Ok(image) => image,
            Err(error) => return Arc::new(ObjectFile::read(Err(error), path, &self.0.budget)),
        };
        let key = FileKey::Vdso(image.clone());
        let known = self.lock().get(&key).cloned();
        known.unwrap_or_else(|| self.keep(key, Arc::new(ObjectFile::read_image(image, path, &self.0.budget))))
    }

    fn keep(&self, key: FileKey, object: Arc<ObjectFile>) -> Arc<ObjectFile> {
        object.tell_budget();
        let mut files = self.lock();
        if files.len() < MAX_OBJECTS || files.contains_key(&key) {
            files.insert(key, Arc::clone(&object));
        }
        object
    }

    /// The file at `mapping`, if it was opened before.
    pub fn known(&self, mapping: &Mapping) -> Option<Arc<ObjectFile>> {
        self.lock().get(&key_of(mapping)).cloned()
    }

    /// Where debug files of the target's objects are looked for.
    pub fn roots(&self, target: &dyn Target) -> Roots {
        let host_debug = self.0.host_debug.clone();
        Roots { target: target.root().ok().map(Arc::new), host_debug }
    }

    /// Less than half of the memory for symbols and debug information is left.
    pub fn is_short_of_memory(&self) -> bool {
        self.0.budget.left() < self.0.memory / 2
    }

    /// Closes the files that nobody else holds.
    pub fn drop_unused(&self) {
        self.lock().retain(|_, object| Arc::strong_count(object) > 1);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FileKey, Arc<ObjectFile>>> {
        // The map is whole at any moment: a thread that died with the lock has left it so.
        self.0.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key_of(mapping: &Mapping) -> FileKey {
    let path = mapping.path().unwrap_or(Path::new("")).to_owned();
    FileKey::File { device: mapping.device, inode: mapping.inode, path }
}

/// Where a part of a file is mapped.
pub fn place_of(mapping: &Mapping) -> MappedPart {
    let Mapping { start, end, file_offset, executable, .. } = *mapping;
    MappedPart { start, len: end.saturating_sub(start), file_offset, executable }
}
