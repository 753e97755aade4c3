//! Where functions are, by the entries of `.eh_frame`: programs keep it when they are stripped.

use std::{collections::HashMap, ops::Range};

use gimli::{BaseAddresses, CieOrFde, EhFrame, LittleEndian, UnwindSection as _};

use super::sections::Sections;
use crate::elf::ElfFile;

/// Most entries that are read: rustc has 250,000.
const MAX_ENTRIES: usize = 2 << 20;

/// Bytes of what entries have in common (CIEs), for each byte of the section: entries share them,
/// but a hostile file may have each of them name another, and that may be long.
const COMMON: usize = 4;

/// Addresses (`vaddr`) of what the file's entries describe, in their order: functions, and parts of
/// functions that the compiler has moved away. An entry that cannot be read ends it.
pub(crate) fn described_code(elf: &ElfFile) -> Vec<Range<u64>> {
    let Some((vaddr, bytes)) = Sections::read(elf).eh_frame else { return Vec::new() };
    let mut section = EhFrame::new(&bytes, LittleEndian);
    section.set_address_size(8);
    let bases = BaseAddresses::default().set_eh_frame(vaddr);
    let mut entries = section.entries(&bases);
    let (mut found, mut known, mut left) = (Vec::new(), HashMap::new(), bytes.len().saturating_mul(COMMON));
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else { continue };
        let entry = partial.parse(|section, bases, offset| {
            let place: usize = gimli::UnwindOffset::into(offset);
            if let Some(common) = known.get(&place) {
                return Ok(gimli::CommonInformationEntry::clone(common));
            }
            let common = section.cie_from_offset(bases, offset)?;
            left =
                left.checked_sub(common.entry_len()).ok_or(gimli::Error::OffsetOutOfBounds(place as u64))?;
            known.insert(place, common.clone());
            Ok(common)
        });
        let Ok(entry) = entry else { break };
        let start = entry.initial_address();
        found.push(start..start.saturating_add(entry.len()));
        if found.len() == MAX_ENTRIES {
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::{Budget, Source};

    /// Of our own program, against its symbols: where `.eh_frame` has an entry, a function begins.
    #[test]
    fn functions_begin_where_symbols_say() {
        let program = std::fs::File::open("/proc/self/exe").unwrap();
        let elf = ElfFile::parse(Source::from_file(program).unwrap(), &Budget::new(1 << 30)).unwrap();
        let mut starts = std::collections::HashSet::new();
        for table in elf.symbol_tables() {
            table.for_each(&elf.budget(), |_, symbol| {
                if symbol.is_function() {
                    starts.insert(symbol.value);
                }
            });
        }
        let code = described_code(&elf);
        assert!(code.len() > 1000, "{}", code.len());
        let named = code.iter().filter(|code| starts.contains(&code.start)).count();
        // The start-up code and linkage tables have no symbols.
        assert!(code.len() - named < 20, "{named} of {}", code.len());
    }
}
