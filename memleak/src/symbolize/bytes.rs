//! Parts of files, held so that nothing that happens to the file can hurt us.
//!
//! A file of the target can be truncated while we read it, and a page of a memory map that is no longer in the file is a
//! SIGBUS; one that is rewritten changes bytes under a `&[u8]`. So parts are copied out with pread(2). Debug files run to
//! gigabytes, though, and copying those would cost as much memory: large parts of files that only root can write are
//! mapped. What is copied is charged to one [`Budget`], so that a sparse file of terabytes is refused, not read.

use std::{
    fmt,
    fs::File,
    io,
    ops::{Deref, Range},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use memmap2::Mmap;

/// Parts at least this large (bytes) are mapped where that is safe.
const MAP_FROM: u64 = 64 << 20;

/// How many bytes of files may be held in memory, by all objects together.
#[derive(Clone, Debug)]
pub struct Budget(Arc<AtomicU64>);

impl Budget {
    /// A budget of so many bytes.
    pub fn new(bytes: u64) -> Self {
        Self(Arc::new(AtomicU64::new(bytes)))
    }

    /// Takes `bytes` out of it, until the charge is dropped.
    pub fn charge(&self, bytes: u64) -> io::Result<Charge> {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes))
            .map(|_| Charge { budget: self.clone(), bytes })
            .map_err(|_| {
                io::Error::new(io::ErrorKind::OutOfMemory, "symbols need more memory than is allowed")
            })
    }
}

/// Bytes taken out of a [`Budget`].
#[derive(Debug)]
pub struct Charge {
    budget: Budget,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.0.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

/// Bytes that are cheap to clone and never change or move.
#[derive(Clone, Default)]
pub struct Bytes(Option<Arc<Held>>);

enum Held {
    Owned { data: Vec<u8>, _charge: Charge },
    Mapped { map: Arc<Mmap>, range: Range<usize> },
}

impl Bytes {
    /// Takes over `data`, charged to `budget`.
    pub fn new(data: Vec<u8>, budget: &Budget) -> io::Result<Self> {
        let charge = budget.charge(data.len() as u64)?;
        Ok(Self(Some(Arc::new(Held::Owned { data, _charge: charge }))))
    }

    /// The string at `offset`, up to its NUL (or the end).
    pub fn string_at(&self, offset: usize) -> Option<&[u8]> {
        let rest = self.get(offset..)?;
        rest.get(..memchr(rest))
    }
}

/// Index of the first NUL, or the length.
fn memchr(bytes: &[u8]) -> usize {
    bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len())
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self.0.as_deref() {
            None => &[],
            Some(Held::Owned { data, .. }) => data,
            Some(Held::Mapped { map, range }) => map.get(range.clone()).unwrap_or_default(),
        }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Bytes({})", self.len())
    }
}

// SAFETY: the bytes are in a Vec or a memory map behind an Arc, and nothing hands out a mutable reference to either: they
// stay where they are while any clone lives.
unsafe impl gimli::StableDeref for Bytes {}
// SAFETY: a clone shares the Arc, so it dereferences to the same bytes.
unsafe impl gimli::CloneStableDeref for Bytes {}

/// Where the bytes of an object come from.
#[derive(Debug)]
pub enum Source {
    /// An open file.
    File(OpenFile),
    /// Memory: the vdso, or what was unpacked from another file.
    Memory(Bytes),
}

/// A file, with what was found out when it was opened.
#[derive(Debug)]
pub struct OpenFile {
    file: File,
    /// Bytes.
    length: u64,
    /// Nobody but root can change it.
    trusted: bool,
    map: OnceLock<Option<Arc<Mmap>>>,
}

impl Source {
    /// Reads from `file`.
    pub fn from_file(file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let trusted = metadata.uid() == 0 && metadata.mode() & 0o022 == 0;
        Ok(Self::File(OpenFile { file, length: metadata.len(), trusted, map: OnceLock::new() }))
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::File(open) => open.length,
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// `size` bytes from `offset` on, copied or mapped.
    pub fn part(&self, offset: u64, size: u64, budget: &Budget) -> io::Result<Bytes> {
        let end = offset.checked_add(size).filter(|end| *end <= self.len()).ok_or_else(truncated)?;
        let open = match self {
            Self::Memory(bytes) => {
                let part = bytes.get(offset as usize..end as usize).ok_or_else(truncated)?;
                return Bytes::new(part.to_vec(), budget);
            }
            Self::File(open) => open,
        };
        if size >= MAP_FROM
            && open.trusted
            && let Some(map) = open.map()
            && end <= map.len() as u64
        {
            return Ok(Bytes(Some(Arc::new(Held::Mapped { map, range: offset as usize..end as usize }))));
        }
        let charge = budget.charge(size)?;
        let mut data = Vec::new();
        data.try_reserve_exact(size as usize).map_err(|_| io::ErrorKind::OutOfMemory)?;
        data.resize(size as usize, 0);
        open.file.read_exact_at(&mut data, offset)?;
        Ok(Bytes(Some(Arc::new(Held::Owned { data, _charge: charge }))))
    }

    /// CRC-32 of the whole (the one of `.gnu_debuglink`), read in pieces.
    pub fn crc32(&self) -> io::Result<u32> {
        let mut hasher = crc32fast::Hasher::new();
        match self {
            Self::Memory(bytes) => hasher.update(bytes),
            Self::File(open) => {
                let mut buffer = vec![0; 1 << 18];
                let mut offset = 0;
                loop {
                    let count = open.file.read_at(&mut buffer, offset)?;
                    if count == 0 {
                        break;
                    }
                    hasher.update(buffer.get(..count).unwrap_or_default());
                    offset += count as u64;
                }
            }
        }
        Ok(hasher.finalize())
    }
}

impl OpenFile {
    fn map(&self) -> Option<Arc<Mmap>> {
        self.map
            .get_or_init(|| {
                // SAFETY: only root can write or truncate this file (`trusted`): a rewrite in place, which would change bytes
                // under a shared slice, is then the administrator's own doing. Package managers and linkers replace
                // files instead, which leaves the mapped one alone.
                unsafe { Mmap::map(&self.file) }.ok().map(Arc::new)
            })
            .clone()
    }
}

fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends before what its headers name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_given_back() {
        let budget = Budget::new(10);
        let first = Bytes::new(vec![1; 8], &budget).unwrap();
        assert_eq!(Bytes::new(vec![1; 3], &budget).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        let second = first.clone();
        drop(first);
        assert!(Bytes::new(vec![1; 3], &budget).is_err(), "a clone still holds it");
        drop(second);
        assert!(Bytes::new(vec![1; 10], &budget).is_ok());
    }

    #[test]
    fn a_sparse_file_is_refused_and_a_truncated_one_is_an_error() {
        let path = std::env::temp_dir().join(format!("memleak-bytes-{}", std::process::id()));
        let file = File::create_new(&path).unwrap();
        file.set_len(1 << 40).unwrap();
        let source = Source::from_file(File::open(&path).unwrap()).unwrap();
        let budget = Budget::new(1 << 20);
        // A file that only root can write would be mapped: make it anybody's.
        let kind = |result: io::Result<Bytes>| result.unwrap_err().kind();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        let untrusted = Source::from_file(File::open(&path).unwrap()).unwrap();
        assert_eq!(kind(untrusted.part(0, 1 << 30, &budget)), io::ErrorKind::OutOfMemory);
        file.set_len(100).unwrap();
        assert_eq!(kind(source.part(4096, 16, &budget)), io::ErrorKind::UnexpectedEof);
        assert_eq!(kind(source.part(u64::MAX, 16, &budget)), io::ErrorKind::UnexpectedEof);
        assert_eq!(source.part(10, 16, &budget).unwrap().len(), 16);
        std::fs::remove_file(path).unwrap();
    }
}
