//! What a file says of itself and of its debug files: build id, `.gnu_debuglink`,
//! `.gnu_debugaltlink`, `.gnu_debugdata`.

use std::io::Read as _;

use object::elf;

use super::{
    file::ElfFile,
    source::{Bytes, Source},
};

/// So much of a note or link section is looked at, bytes: they have some hundred.
const MAX_NOTE: u64 = 1 << 16;

/// Longest build id that is believed (SHA-1 has 20 bytes).
const MAX_BUILD_ID: usize = 64;

/// Largest MiniDebugInfo, packed or unpacked, bytes. A browser's has 10 MB.
const MAX_MINI_DEBUG: u64 = 32 << 20;

/// Largest dictionary for unpacking it, KiB (`xz -9` has 64 MiB, of which no more is used than is
/// unpacked).
const MAX_DICTIONARY_KIB: u32 = 80 << 10;

/// Name and CRC-32 of a separate debug file (`.gnu_debuglink`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DebugLink {
    /// File name, no directory.
    pub name: Vec<u8>,
    /// CRC-32 of the whole file.
    pub crc: u32,
}

/// Path and build id of a supplementary file (`.gnu_debugaltlink`, written by dwz).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AltLink {
    /// Absolute, or relative to the directory of the file that has the link.
    pub path: Vec<u8>,
    /// Build id of the supplementary file.
    pub build_id: Vec<u8>,
}

impl ElfFile {
    /// The GNU build id (`NT_GNU_BUILD_ID`, a note of owner `GNU`): from the note sections, which
    /// debug files have too, or the note segments, which a file without section headers still has.
    pub fn build_id(&self) -> Option<Vec<u8>> {
        let sections = self.sections.iter().filter(|section| section.kind == elf::SHT_NOTE.0);
        let sections = sections.map(|section| (section.offset, section.size));
        let segments = self.other_segments.iter().filter(|(kind, _)| *kind == elf::PT_NOTE.0);
        let segments = segments.map(|(_, segment)| (segment.file_offset, segment.len));
        let budget = self.budget();
        sections.chain(segments).find_map(|(offset, size)| {
            let notes = self.source().part(offset, size.min(MAX_NOTE), &budget).ok()?;
            self.build_id_in(&notes)
        })
    }

    fn build_id_in(&self, notes: &[u8]) -> Option<Vec<u8>> {
        let is_id = |(owner, kind, _): &(&[u8], u32, &[u8])| {
            *kind == elf::NT_GNU_BUILD_ID.0 && owner.starts_with(b"GNU\0")
        };
        let (_, _, id) = self.notes_in(notes).find(is_id)?;
        (1..=MAX_BUILD_ID).contains(&id.len()).then(|| id.to_vec())
    }

    /// The notes of a section or segment: owner, with its NUL and padding, type, and content, which
    /// is empty if it is cut off.
    pub(super) fn notes_in<'a>(
        &self,
        mut notes: &'a [u8],
    ) -> impl Iterator<Item = (&'a [u8], u32, &'a [u8])> + use<'a> {
        let format = self.format;
        std::iter::from_fn(move || {
            const HEADER: usize = 12;
            let header = notes.get(..HEADER)?;
            let field = |at| format.field(header, at, 4) as usize;
            let (name_size, size, kind) = (field(0), field(4), field(8) as u32);
            let from = HEADER + name_size.next_multiple_of(4);
            let owner = notes.get(HEADER..from).unwrap_or_default();
            let content = notes.get(from..from.saturating_add(size)).unwrap_or_default();
            notes = notes.get(from.saturating_add(size.next_multiple_of(4))..).unwrap_or_default();
            Some((owner, kind, content))
        })
    }

    /// Section `.gnu_debuglink`: a name, NUL, padding to four bytes, a CRC-32.
    pub fn debug_link(&self) -> Option<DebugLink> {
        let data = self.small(b".gnu_debuglink")?;
        let name = data.string_at(0)?.to_vec();
        let at = (name.len() + 1).next_multiple_of(4);
        data.get(at..at + 4)?;
        // A name with a directory in it would lead elsewhere.
        let plain = !name.is_empty() && !name.contains(&b'/') && name != b".." && name != b".";
        plain.then(|| DebugLink { name, crc: self.format.field(&data, at, 4) as u32 })
    }

    /// Section `.gnu_debugaltlink`: a path, NUL, a build id.
    pub fn alt_link(&self) -> Option<AltLink> {
        let data = self.small(b".gnu_debugaltlink")?;
        let path = data.string_at(0)?.to_vec();
        let build_id = data.get(path.len() + 1..)?.to_vec();
        (!path.is_empty()).then_some(AltLink { path, build_id })
    }

    fn small(&self, name: &[u8]) -> Option<Bytes> {
        self.raw_data(self.section(name)?, MAX_NOTE).ok()
    }

    /// The ELF file in section `.gnu_debugdata` (MiniDebugInfo: xz-compressed, with a `.symtab` of
    /// local functions).
    pub fn mini_debug_info(&self) -> Option<Self> {
        let budget = self.budget();
        let packed = self.raw_data(self.section(b".gnu_debugdata")?, MAX_MINI_DEBUG).ok()?;
        let charge = budget.charge(2 * MAX_MINI_DEBUG).ok()?;
        let mut data = Vec::new();
        let xz = lzma_rust2::XzReader::new_mem_limit(&packed[..], true, MAX_DICTIONARY_KIB);
        xz.take(MAX_MINI_DEBUG).read_to_end(&mut data).ok()?;
        drop((charge, packed));
        Self::parse(Source::Memory(Bytes::new(data, &budget).ok()?), &budget).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::source::Budget;

    /// A file of headers and one note segment, with `notes` in it.
    fn with_notes(notes: &[u8]) -> ElfFile {
        let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 62, 0];
        file.resize(120, 0);
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(32, &64u64.to_le_bytes());
        put(54, &56u16.to_le_bytes());
        put(56, &1u16.to_le_bytes());
        put(64, &elf::PT_NOTE.0.to_le_bytes());
        put(64 + 8, &120u64.to_le_bytes());
        put(64 + 32, &(notes.len() as u64).to_le_bytes());
        file.extend_from_slice(notes);
        let budget = Budget::new(1 << 20);
        ElfFile::parse(Source::Memory(Bytes::new(file, &budget).unwrap()), &budget).unwrap()
    }

    #[test]
    fn the_build_id_is_found_among_notes() {
        let note = |owner: &[u8; 4], kind: u32, data: &[u8]| {
            let mut bytes = Vec::new();
            for field in [4, data.len() as u32, kind] {
                bytes.extend_from_slice(&field.to_le_bytes());
            }
            bytes.extend_from_slice(owner);
            bytes.extend_from_slice(data);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let id = [1, 2, 3, 4, 5];
        let both = [note(b"GNU\0", 1, &[9; 7]), note(b"Go\0\0", 3, b"x"), note(b"GNU\0", 3, &id)].concat();
        assert_eq!(with_notes(&both).build_id().as_deref(), Some(&id[..]));
        for cut in 0..both.len() - 3 {
            assert_eq!(with_notes(&both[..cut]).build_id(), None, "{cut}");
        }
        assert_eq!(with_notes(&[0xff; 64]).build_id(), None);
    }
}
