//! The reader that DWARF is parsed with: bytes that hold themselves, and two limits on what hostile
//! DWARF can cost.
//!
//! `addr2line` recurses once for each level of inlined calls, with no limit, and reads lists that
//! many entries may share once for each of them: a few kilobytes could overflow the stack, or take
//! hours and all memory. Both recursion and repetition go through the reader, so it is the reader
//! that ends them: it gives an error as soon as more reads were made than [`with_fuel`] allows, or
//! the stack reaches further down than it allows.

use std::{borrow::Cow, cell::Cell};

use gimli::{EndianReader, ReaderOffsetId, RunTimeEndian};

use crate::{elf::Bytes, hurry, proc::limits::resident_bytes};

type Inner = EndianReader<RunTimeEndian, Bytes>;

/// How much more memory a look-up may take, bytes: addr2line keeps what it has parsed, without
/// limit. A unit of 20 MB of debug information takes as much.
const MEMORY: u64 = 64 << 20;

/// Reads between two looks at the memory, and at whether a signal has come.
const LOOK: u64 = 1 << 18;

/// How much further down the stack may reach during a look-up, bytes. A thread has 2 MiB or more.
const STACK: usize = 512 << 10;

thread_local! {
    /// Reads that are left, and the lowest address that a local variable may have.
    static LIMITS: Cell<(u64, usize)> = const { Cell::new((0, 0)) };
    /// Our memory above which there is no more, bytes.
    static CEILING: Cell<u64> = const { Cell::new(0) };
}

/// Runs `work` with `fuel` reads to spend; gives what is left: none if it was too much.
pub(super) fn with_fuel<T>(fuel: u64, work: impl FnOnce() -> T) -> (T, u64) {
    CEILING.set(resident_bytes().saturating_add(MEMORY));
    LIMITS.set((fuel, stack_address().saturating_sub(STACK)));
    let result = work();
    (result, LIMITS.get().0)
}

#[inline]
fn stack_address() -> usize {
    let local = 0_u8;
    (&raw const local).addr()
}

#[inline]
fn spend(reads: u64) -> gimli::Result<()> {
    let (fuel, floor) = LIMITS.get();
    if fuel < reads || stack_address() < floor {
        return Err(gimli::Error::Io);
    }
    let left = fuel - reads;
    if left / LOOK != fuel / LOOK && (resident_bytes() > CEILING.get() || hurry::is_due()) {
        LIMITS.set((0, floor));
        return Err(gimli::Error::Io);
    }
    LIMITS.set((left, floor));
    Ok(())
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct LimitedReader(Inner);

impl LimitedReader {
    /// Reads `bytes` from their beginning.
    pub(super) fn new(bytes: Bytes, little_endian: bool) -> Self {
        let endian = if little_endian { RunTimeEndian::Little } else { RunTimeEndian::Big };
        Self(EndianReader::new(bytes, endian))
    }

    /// What is left to read.
    pub(super) fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl gimli::Reader for LimitedReader {
    type Endian = RunTimeEndian;
    type Offset = usize;

    fn endian(&self) -> RunTimeEndian {
        self.0.endian()
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn empty(&mut self) {
        self.0.empty();
    }

    fn truncate(&mut self, len: usize) -> gimli::Result<()> {
        self.0.truncate(len)
    }

    fn offset_from(&self, base: &Self) -> usize {
        self.0.offset_from(&base.0)
    }

    fn offset_id(&self) -> ReaderOffsetId {
        self.0.offset_id()
    }

    fn lookup_offset_id(&self, id: ReaderOffsetId) -> Option<usize> {
        self.0.lookup_offset_id(id)
    }

    fn find(&self, byte: u8) -> gimli::Result<usize> {
        let found = self.0.find(byte);
        // A search costs what it passes over: a string without an end may be named again and again.
        spend(1 + *found.as_ref().unwrap_or(&self.0.len()) as u64 / 64)?;
        found
    }

    #[inline]
    fn skip(&mut self, len: usize) -> gimli::Result<()> {
        spend(1)?;
        self.0.skip(len)
    }

    fn split(&mut self, len: usize) -> gimli::Result<Self> {
        spend(1)?;
        self.0.split(len).map(Self)
    }

    fn to_slice(&self) -> gimli::Result<Cow<'_, [u8]>> {
        self.0.to_slice()
    }

    fn to_string(&self) -> gimli::Result<Cow<'_, str>> {
        self.0.to_string()
    }

    fn to_string_lossy(&self) -> gimli::Result<Cow<'_, str>> {
        self.0.to_string_lossy()
    }

    #[inline]
    fn read_slice(&mut self, buffer: &mut [u8]) -> gimli::Result<()> {
        spend(1)?;
        self.0.read_slice(buffer)
    }
}
