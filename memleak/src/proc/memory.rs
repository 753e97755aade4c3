//! Another process's memory: /proc/PID/mem.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use super::living::path_of;

/// Reads memory by address: the target's, or an array in a test.
pub trait ReadMemory {
    /// Fills `buffer` from `address` on, or fails and leaves it in any state.
    fn read_exact_at(&self, address: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Reads one native-endian word.
    fn read_u64(&self, address: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.read_exact_at(address, &mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

/// The memory of a running process.
#[derive(Debug)]
pub struct ProcessMemory(File);

impl ProcessMemory {
    /// Opens /proc/PID/mem for reading.
    pub fn open(pid: u32) -> io::Result<Self> {
        File::open(path_of(pid, "mem")).map(Self)
    }
}

impl ReadMemory for ProcessMemory {
    fn read_exact_at(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, address)
    }
}
