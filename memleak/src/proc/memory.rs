//! Another process's memory: /proc/PID/mem, and process_vm_readv(2), which copies many pages at
//! once where the other goes through a page of the kernel's.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use super::living::path_of;

/// What is more than this many bytes is copied at once.
const LITTLE: usize = 4096;

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
pub struct ProcessMemory {
    file: File,
    pid: u32,
}

impl ProcessMemory {
    /// Opens /proc/PID/mem for reading.
    pub fn open(pid: u32) -> io::Result<Self> {
        Ok(Self { file: File::open(path_of(pid, "mem"))?, pid })
    }
}

impl ReadMemory for ProcessMemory {
    fn read_exact_at(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        if buffer.len() > LITTLE && copy(self.pid, address, buffer).is_ok_and(|read| read == buffer.len()) {
            return Ok(());
        }
        // It also has what the process itself may not read.
        self.file.read_exact_at(buffer, address)
    }
}

/// Copies what process `pid` has from `address` on, as much of it as can be read: gives how many
/// bytes that are. EFAULT if the first of them cannot be read, ESRCH if the process has ended.
pub(crate) fn copy(pid: u32, address: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let ours = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let theirs = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: buffer.len() };
    // SAFETY: `ours` is a buffer of that length, which any bytes are good for; `theirs` is an
    // address of the other process, which the kernel checks.
    let read =
        unsafe { libc::process_vm_readv(pid as libc::pid_t, &raw const ours, 1, &raw const theirs, 1, 0) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_and_little_is_read() {
        let here: Vec<u8> = (0..40_000_u32).map(|at| (at % 251) as u8).collect();
        let memory = ProcessMemory::open(std::process::id()).unwrap();
        let start = here.as_ptr() as u64;
        for (from, length) in [(0, 40_000), (5, LITTLE), (7, LITTLE + 1), (39_999, 1)] {
            let mut read = vec![0; length];
            memory.read_exact_at(start + from as u64, &mut read).unwrap();
            assert_eq!(read, here[from..from + length]);
        }
        assert!(memory.read_exact_at(8, &mut [0; 8]).is_err());
        assert!(memory.read_exact_at(8, &mut vec![0; 2 * LITTLE]).is_err());
    }
}
