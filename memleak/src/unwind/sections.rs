//! The sections that hold unwind information.

use object::elf::PT_GNU_EH_FRAME;

use crate::elf::{Bytes, ElfFile};

/// Longest section that is read, bytes: rustc's has 10 MB, and a browser's 20.
pub(super) const MAX_SECTION: u64 = 48 << 20;
/// Bytes of `.eh_frame_hdr` that are read: its head says where `.eh_frame` is.
const MAX_HEADER: u64 = 64;

/// The sections that hold unwind information.
#[derive(Debug, Default)]
pub(super) struct Sections {
    /// Its vaddr and bytes.
    pub eh_frame: Option<(u64, Bytes)>,
    /// Its bytes.
    pub debug_frame: Bytes,
}

impl Sections {
    /// Reads them; one that cannot be read, or is too long, is left out.
    pub(super) fn read(elf: &ElfFile) -> Self {
        let eh_frame = match elf.section(b".eh_frame") {
            Some(section) => elf.raw_data(section, MAX_SECTION).ok().map(|bytes| (section.address, bytes)),
            None => None,
        };
        let eh_frame = eh_frame.filter(|(_, bytes)| !bytes.is_empty()).or_else(|| eh_frame_by_header(elf));
        Self { eh_frame, debug_frame: elf.data(".debug_frame", MAX_SECTION).unwrap_or_default() }
    }
}

/// `.eh_frame` of a file without section headers: `.eh_frame_hdr`, which the loader needs, points
/// to it (LSB Core 10.6.2). Its length is not said: it ends with its segment at the latest.
fn eh_frame_by_header(elf: &ElfFile) -> Option<(u64, Bytes)> {
    let header = elf.other_segment(PT_GNU_EH_FRAME)?;
    let budget = elf.budget();
    let bytes = elf.source().part(header.file_offset, header.len.min(MAX_HEADER), &budget).ok()?;
    let bases = gimli::BaseAddresses::default().set_eh_frame_hdr(header.vaddr);
    let parsed = gimli::EhFrameHdr::new(&bytes, gimli::LittleEndian).parse(&bases, 8).ok()?;
    let address = parsed.eh_frame_ptr().direct().ok()?;
    let segment = elf.segments.iter().find(|segment| segment.offset_of(address).is_some())?;
    let offset = segment.offset_of(address)?;
    let len = segment.len - (address - segment.vaddr);
    let part = |len| elf.source().part(offset, len, &budget).ok();
    let bytes = part(len.min(MAX_SECTION))?;
    Some((address, part(terminated_len(&bytes) as u64)?))
}

/// Bytes up to the entry of length 0 that ends `.eh_frame`: what follows in the segment is
/// something else.
fn terminated_len(bytes: &[u8]) -> usize {
    let word = |at: usize| bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes);
    let mut at = 0usize;
    while let Some(length @ 1..) = word(at) {
        let Some(next) = at.checked_add(4 + length as usize) else { break };
        at = next;
    }
    at.min(bytes.len())
}
