//! Where a process's dynamic linker tells debuggers what it is doing: its `struct r_debug`
//! (`link.h`).

use std::{fs, io};

use super::{living::path_of, memory::ReadMemory};

/// Entries of the auxiliary vector (getauxval(3)).
const AT_PHDR: u64 = 3;
const AT_PHENT: u64 = 4;
const AT_PHNUM: u64 = 5;

/// Program headers and dynamic entries (elf(5)).
const PT_DYNAMIC: u32 = 2;
const PT_PHDR: u32 = 6;
const DT_NULL: u64 = 0;
const DT_DEBUG: u64 = 21;

/// Bytes of an `Elf64_Phdr`.
const HEADER: u64 = 56;
/// More than any program has.
const MAX_HEADERS: u64 = 256;
const MAX_ENTRIES: u64 = 4096;

/// The address of `struct r_debug` in the memory of process `pid`. `None`: it is not there yet, the
/// program is static or not a 64-bit one, or its memory cannot be read.
pub(crate) fn debug_address(pid: u32, memory: &dyn ReadMemory) -> Option<u64> {
    let auxiliary = fs::read(path_of(pid, "auxv")).ok()?;
    find(&auxiliary, memory).ok()?
}

/// The same, by the text of an auxiliary vector.
fn find(auxiliary: &[u8], memory: &dyn ReadMemory) -> io::Result<Option<u64>> {
    let words: Vec<u64> = auxiliary.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word)).collect();
    let entry = |kind| words.as_chunks::<2>().0.iter().find(|[of, _]| *of == kind).map(|[_, value]| *value);
    let (Some(at), Some(HEADER), Some(count)) = (entry(AT_PHDR), entry(AT_PHENT), entry(AT_PHNUM)) else {
        return Ok(None);
    };
    let (mut bias, mut dynamic) = (0, None);
    for header in 0..count.min(MAX_HEADERS) {
        let header = at.wrapping_add(header * HEADER);
        let vaddr = memory.read_u64(header.wrapping_add(16))?;
        // The first word's lower half: p_type.
        match memory.read_u64(header)? as u32 {
            PT_PHDR => bias = at.wrapping_sub(vaddr),
            PT_DYNAMIC => dynamic = Some(vaddr),
            _ => {}
        }
    }
    let Some(dynamic) = dynamic.map(|vaddr| bias.wrapping_add(vaddr)) else { return Ok(None) };
    for entry in 0..MAX_ENTRIES {
        let entry = dynamic.wrapping_add(entry * 16);
        match memory.read_u64(entry)? {
            DT_NULL => break,
            // Zero until the dynamic linker has begun.
            DT_DEBUG => {
                return Ok(Some(memory.read_u64(entry.wrapping_add(8))?).filter(|address| *address != 0));
            }
            _ => {}
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::memory::ProcessMemory;

    /// Our own process's, against what the dynamic linker exports (`_r_debug`): equal `r_brk` and
    /// state.
    #[test]
    fn our_own_dynamic_linker_is_found() {
        let memory = ProcessMemory::open(std::process::id()).unwrap();
        let found = debug_address(std::process::id(), &memory).unwrap();
        let (version, state) =
            (memory.read_u64(found).unwrap() as u32, memory.read_u64(found + 24).unwrap() as u32);
        assert!((1..=2).contains(&version), "{version}");
        assert_eq!(state, memleak_common::mappings::RT_CONSISTENT);
        // SAFETY: a name with its NUL; nothing is called.
        let exported = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_r_debug".as_ptr()) };
        assert_eq!(found, exported as u64);
    }

    #[test]
    fn nonsense_is_survived() {
        struct Nothing;
        impl ReadMemory for Nothing {
            fn read_exact_at(&self, _: u64, buffer: &mut [u8]) -> io::Result<()> {
                buffer.fill(0xff);
                Ok(())
            }
        }
        let vector = |entries: &[(u64, u64)]| -> Vec<u8> {
            entries.iter().flat_map(|(kind, value)| [*kind, *value]).flat_map(u64::to_ne_bytes).collect()
        };
        for auxiliary in [vec![], vec![3; 7], vector(&[(AT_PHDR, 8), (AT_PHENT, 32), (AT_PHNUM, 1)])] {
            assert_eq!(find(&auxiliary, &Nothing).unwrap(), None);
        }
        let endless = vector(&[(AT_PHDR, u64::MAX), (AT_PHENT, HEADER), (AT_PHNUM, u64::MAX)]);
        assert_eq!(find(&endless, &Nothing).unwrap(), None);
    }
}
