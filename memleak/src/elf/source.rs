//! Parts of files, held so that nothing that happens to the file can hurt us, and the budget that
//! all of it comes out of.
//!
//! A file of the target's can be cut short while it is read, and a page of a memory map that is no
//! longer in the file is a SIGBUS; one that is rewritten changes bytes under a `&[u8]`. So parts
//! are copied out with pread(2), never mapped.
//!
//! Every read of a file that a target names goes through a [`Budget`], so that a sparse file of
//! terabytes is refused and not read. Budgets count bytes, not time: a loaded machine loses no
//! symbols by them.

use std::{
    fmt,
    fs::File,
    io,
    ops::Deref,
    os::unix::fs::FileExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::hurry;

/// Bytes of one object that are read at most for one purpose (probing, its unwind table, its
/// names). A browser with all its symbols has 300 MB of names and 70 MB of symbols, of which each
/// is read once.
const READ: u64 = 640 << 20;

/// Bytes read at a time when a part is not held as a whole.
const CHUNK: usize = 256 << 10;

/// What files may cost: bytes held in memory by all objects of a run together, and bytes read of
/// one object.
#[derive(Clone, Debug)]
pub struct Budget {
    held: Arc<AtomicU64>,
    read: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Budget {
    /// A budget of so many bytes in memory, and [`READ`] to be read.
    pub fn new(bytes: u64) -> Self {
        let counter = |count| Arc::new(AtomicU64::new(count));
        Self { held: counter(bytes), read: counter(READ), over: Arc::default() }
    }

    /// The same memory for another object, of which nothing was read yet.
    pub fn for_object(&self) -> Self {
        Self { held: Arc::clone(&self.held), read: Arc::new(AtomicU64::new(READ)), over: Arc::default() }
    }

    /// The same object for another purpose.
    pub fn for_purpose(&self) -> Self {
        Self { over: Arc::clone(&self.over), ..self.for_object() }
    }

    /// Takes `bytes` of memory out of it, until the charge is dropped.
    pub fn charge(&self, bytes: u64) -> io::Result<Charge> {
        self.held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes))
            .map(|_| Charge { held: Arc::clone(&self.held), bytes })
            .map_err(|_| self.exceeded())
    }

    /// Counts `bytes` that are about to be read or looked through.
    pub fn spend(&self, bytes: u64) -> io::Result<()> {
        if hurry::is_due() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        self.read
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes))
            .map(|_| ())
            .map_err(|_| self.exceeded())
    }

    /// Bytes of memory that are left.
    pub fn left(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Notes that the object asks for more than it is given, and makes the error of it.
    pub fn exceeded(&self) -> io::Error {
        self.over.store(true, Ordering::Relaxed);
        io::Error::new(
            io::ErrorKind::OutOfMemory,
            "it needs more memory or reading than memleak allows one object",
        )
    }

    /// Whether something of the object was refused.
    pub fn is_exceeded(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

/// Bytes taken out of a [`Budget`].
#[derive(Debug)]
pub struct Charge {
    held: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.held.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

/// Bytes that are cheap to clone and never change or move.
#[derive(Clone, Default)]
pub struct Bytes(Option<Arc<HeldBytes>>);

struct HeldBytes {
    data: Vec<u8>,
    _charge: Charge,
}

impl Bytes {
    /// Takes over `data`, charged to `budget`.
    pub fn new(data: Vec<u8>, budget: &Budget) -> io::Result<Self> {
        let charge = budget.charge(data.len() as u64)?;
        Ok(Self(Some(Arc::new(HeldBytes { data, _charge: charge }))))
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
        self.0.as_deref().map_or(&[], |held| &held.data)
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Bytes({})", self.len())
    }
}

// SAFETY: the bytes are in a Vec behind an Arc, and nothing hands out a mutable reference to it:
// they stay where they are while any clone lives.
unsafe impl gimli::StableDeref for Bytes {}
// SAFETY: a clone shares the Arc, so it dereferences to the same bytes.
unsafe impl gimli::CloneStableDeref for Bytes {}

/// Where the bytes of an object come from.
#[derive(Debug)]
pub enum Source {
    /// An open file, and its length in bytes when it was opened.
    File(File, u64),
    /// Memory: the vdso, or what was unpacked from another file.
    Memory(Bytes),
}

impl Source {
    /// Reads from `file`.
    pub fn from_file(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self::File(file, length))
    }

    /// Length in bytes.
    pub fn length(&self) -> u64 {
        match self {
            Self::File(_, length) => *length,
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// Fills `buffer` from `offset` on.
    pub fn read(&self, offset: u64, buffer: &mut [u8], budget: &Budget) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        let end = end.filter(|end| *end <= self.length()).ok_or_else(truncated)?;
        budget.spend(buffer.len() as u64)?;
        match self {
            Self::File(file, _) => file.read_exact_at(buffer, offset),
            Self::Memory(bytes) => {
                buffer.copy_from_slice(bytes.get(offset as usize..end as usize).ok_or_else(truncated)?);
                Ok(())
            }
        }
    }

    /// `size` bytes from `offset` on, copied.
    pub fn part(&self, offset: u64, size: u64, budget: &Budget) -> io::Result<Bytes> {
        offset.checked_add(size).filter(|end| *end <= self.length()).ok_or_else(truncated)?;
        let charge = budget.charge(size)?;
        let mut data = Vec::new();
        data.try_reserve_exact(size as usize).map_err(|_| budget.exceeded())?;
        data.resize(size as usize, 0);
        self.read(offset, &mut data, budget)?;
        Ok(Bytes(Some(Arc::new(HeldBytes { data, _charge: charge }))))
    }

    /// Calls `with` with all of `size` bytes from `offset` on, in pieces that are multiples of
    /// `unit` bytes (the last one may not be), until it says that it has seen enough (`false`).
    pub fn pieces(
        &self,
        offset: u64,
        size: u64,
        unit: usize,
        budget: &Budget,
        mut with: impl FnMut(&[u8]) -> bool,
    ) -> io::Result<()> {
        let end = offset.checked_add(size).filter(|end| *end <= self.length()).ok_or_else(truncated)?;
        let mut buffer = vec![0; (CHUNK - CHUNK % unit.clamp(1, CHUNK)).min(size as usize)];
        let mut at = offset;
        while at < end {
            buffer.truncate((end - at).min(buffer.len() as u64) as usize);
            self.read(at, &mut buffer, budget)?;
            if !with(&buffer) {
                break;
            }
            at += buffer.len() as u64;
        }
        Ok(())
    }

    /// CRC-32 of the whole (the one of `.gnu_debuglink`).
    pub fn crc32(&self, budget: &Budget) -> io::Result<u32> {
        let mut hasher = crc32fast::Hasher::new();
        self.pieces(0, self.length(), 1, budget, |piece| {
            hasher.update(piece);
            true
        })?;
        Ok(hasher.finalize())
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
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 40).unwrap();
        let source = Source::from_file(file.try_clone().unwrap()).unwrap();
        let budget = Budget::new(1 << 20);
        let kind = |result: io::Result<Bytes>| result.unwrap_err().kind();
        assert!(!budget.is_exceeded());
        assert_eq!(kind(source.part(0, 1 << 30, &budget)), io::ErrorKind::OutOfMemory);
        assert!(budget.is_exceeded() && !budget.for_object().is_exceeded());
        file.set_len(100).unwrap();
        assert_eq!(kind(source.part(4096, 16, &budget)), io::ErrorKind::UnexpectedEof);
        assert_eq!(kind(source.part(u64::MAX, 16, &budget)), io::ErrorKind::UnexpectedEof);
        assert_eq!(source.part(10, 16, &budget).unwrap().len(), 16);
    }

    #[test]
    fn reading_comes_to_an_end_too() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 40).unwrap();
        let source = Source::from_file(file).unwrap();
        let budget = Budget::new(1 << 20);
        assert!(source.crc32(&budget).is_err());
        assert!(budget.is_exceeded());
        let fresh = budget.for_purpose();
        assert!(fresh.is_exceeded(), "it is one object");
        assert_eq!(source.part(10, 16, &fresh).unwrap().len(), 16);
    }

    #[test]
    fn pieces_are_whole_units_and_all_of_it() {
        let budget = Budget::new(1 << 30);
        let data: Vec<u8> = (0..3_000_011_u32).map(|at| (at % 251) as u8).collect();
        let source = Source::Memory(Bytes::new(data.clone(), &budget).unwrap());
        let mut seen = Vec::new();
        let mut sizes = Vec::new();
        let collect = |piece: &[u8]| {
            seen.extend_from_slice(piece);
            sizes.push(piece.len());
            true
        };
        source.pieces(3, data.len() as u64 - 3, 24, &budget, collect).unwrap();
        assert!(seen == data[3..]);
        sizes.pop();
        assert!(sizes.len() > 5 && sizes.iter().all(|size| size % 24 == 0), "{sizes:?}");
        let mut count = 0;
        source
            .pieces(0, data.len() as u64, 24, &budget, |_| {
                count += 1;
                false
            })
            .unwrap();
        assert_eq!(count, 1);
    }
}
