//! Where functions are, by the entries of `.eh_frame`: programs keep it when they are stripped.

use std::ops::Range;

use gimli::{BaseAddresses, CieOrFde, EhFrame, LittleEndian, UnwindSection as _};

use super::sections::Sections;
use crate::elf::ElfFile;

/// Most entries that are read: rustc has 250,000.
const MAX_ENTRIES: usize = 2 << 20;

/// Addresses (`vaddr`) of what the file's entries describe, in their order: functions, and parts of
/// functions that the compiler has moved away. An entry that cannot be read ends it.
pub(crate) fn described_code(elf: &ElfFile) -> Vec<Range<u64>> {
    let Some((vaddr, bytes)) = Sections::read(elf).eh_frame else { return Vec::new() };
    let mut section = EhFrame::new(&bytes, LittleEndian);
    section.set_address_size(8);
    let bases = BaseAddresses::default().set_eh_frame(vaddr);
    let mut entries = section.entries(&bases);
    let mut found = Vec::new();
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else { continue };
        let Ok(entry) = partial.parse(EhFrame::cie_from_offset) else { break };
        let start = entry.initial_address();
        found.push(start..start.saturating_add(entry.len()));
        if found.len() == MAX_ENTRIES {
            break;
        }
    }
    found
}
