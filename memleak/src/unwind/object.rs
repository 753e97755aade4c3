//! The parts of an ELF file that unwind tables are made of.

use std::borrow::Cow;

use object::{
    CompressionFormat, LittleEndian, ReadRef,
    elf::{
        ELFCOMPRESS_ZLIB, ELFCOMPRESS_ZSTD, FileHeader64, NT_GNU_BUILD_ID, PF_X, PT_GNU_EH_FRAME, PT_LOAD,
        ProgramHeader64,
    },
    read::elf::{
        CompressionHeader as _, FileHeader as _, ProgramHeader as _, SectionHeader as _, SectionTable,
    },
};

use super::UnwindError;
use crate::arch::Machine;

type Header = FileHeader64<LittleEndian>;
type Segment = ProgramHeader64<LittleEndian>;

/// Most bytes that a compressed section may unpack to.
const MAX_SECTION_BYTES: u64 = 256 << 20;
/// Longest build id that is believed (SHA-1 has 20 bytes).
const MAX_BUILD_ID: usize = 64;

/// An executable segment of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecSegment {
    /// Offset in the file of its first byte.
    pub file_offset: u64,
    /// Its address in the object.
    pub vaddr: u64,
    /// Its bytes in the file.
    pub len: u64,
}

/// An object's executable segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecSegments {
    /// The vaddr that is `pc` 0: where the first segment begins.
    pub text_base: u64,
    /// In order of address.
    pub segments: Vec<ExecSegment>,
}

impl ExecSegments {
    fn read(program_headers: &[Segment], file_len: u64) -> Result<Self, UnwindError> {
        let endian = LittleEndian;
        let mut segments: Vec<_> = program_headers
            .iter()
            .filter(|header| header.p_type(endian) == PT_LOAD && header.p_flags(endian).0 & PF_X.0 != 0)
            .map(|header| {
                let file_offset = header.p_offset(endian);
                let len = header.p_filesz(endian).min(file_len.saturating_sub(file_offset));
                ExecSegment { file_offset, vaddr: header.p_vaddr(endian), len }
            })
            .filter(|segment| segment.len > 0)
            .collect();
        segments.sort_by_key(|segment| segment.vaddr);
        let text_base = segments.first().ok_or(UnwindError::NoText)?.vaddr;
        let segments = Self { text_base, segments };
        // Text may have holes between its segments, but the page index pays for them: a file has to be about as long.
        let span = segments.end()?.wrapping_sub(text_base);
        if span > u64::from(u32::MAX) || span > file_len.saturating_mul(8).saturating_add(16 << 20) {
            return Err(UnwindError::TextTooLarge { span });
        }
        Ok(segments)
    }

    /// The vaddr after the last segment.
    fn end(&self) -> Result<u64, UnwindError> {
        let ends = self.segments.iter().map(|segment| segment.vaddr.checked_add(segment.len));
        ends.max().flatten().ok_or(UnwindError::TextTooLarge { span: u64::MAX })
    }

    /// Bytes from the text base to the end of the last segment.
    pub fn text_len(&self) -> u32 {
        self.end().ok().and_then(|end| u32::try_from(end - self.text_base).ok()).unwrap_or(0)
    }

    /// The `pc`s of `start..end` (vaddrs), cut off where their segment ends. `None`: in no segment.
    pub(crate) fn clip(&self, start: u64, end: u64) -> Option<(u32, u32)> {
        let at = self.segments.partition_point(|segment| segment.vaddr <= start);
        let segment = self.segments.get(at.checked_sub(1)?)?;
        let end = end.min(segment.vaddr.checked_add(segment.len)?);
        let pc = |vaddr: u64| u32::try_from(vaddr.checked_sub(self.text_base)?).ok();
        if start < end { Some((pc(start)?, pc(end)?)) } else { None }
    }

    /// Offset in the file of the byte at `vaddr`.
    pub(crate) fn file_offset(&self, vaddr: u64) -> Option<u64> {
        let at = self.segments.partition_point(|segment| segment.vaddr <= vaddr);
        let segment = self.segments.get(at.checked_sub(1)?)?;
        let within = vaddr - segment.vaddr;
        if within < segment.len { segment.file_offset.checked_add(within) } else { None }
    }

    /// `ip - pc` for a mapping that begins at `start` with the byte at `file_offset`. `None`: it is of no segment.
    pub fn bias(&self, start: u64, file_offset: u64) -> Option<u64> {
        // The kernel maps whole pages: the first one can begin before the segment does.
        const PAGE: u64 = 0x1_0000;
        let segment = self
            .segments
            .iter()
            .filter(|segment| file_offset < segment.file_offset.saturating_add(segment.len))
            .min_by_key(|segment| segment.file_offset.saturating_sub(file_offset))
            .filter(|segment| segment.file_offset.saturating_sub(file_offset) < PAGE)?;
        let vaddr = segment.vaddr.wrapping_sub(segment.file_offset).wrapping_add(file_offset);
        Some(start.wrapping_sub(vaddr).wrapping_add(self.text_base))
    }
}

/// The sections that hold unwind information.
#[derive(Debug, Default)]
pub(super) struct Sections<'a> {
    /// Its vaddr and bytes.
    pub eh_frame: Option<(u64, &'a [u8])>,
    /// Its bytes.
    pub debug_frame: Option<Cow<'a, [u8]>>,
}

/// What an ELF file says of itself.
#[derive(Debug)]
pub(super) struct Object<'a> {
    pub machine: Machine,
    pub build_id: Option<Vec<u8>>,
    pub segments: ExecSegments,
    pub sections: Sections<'a>,
    /// `e_entry`: the vaddr where the kernel starts it; 0 for most libraries.
    pub entry: u64,
}

impl<'a> Object<'a> {
    pub(super) fn parse<R: ReadRef<'a>>(data: R) -> Result<Self, UnwindError> {
        let header = Header::parse(data).map_err(|_| UnwindError::NotElf)?;
        let endian = header.endian().map_err(|_| UnwindError::NotElf)?;
        let machine = header.e_machine(endian);
        let machine = Machine::from_elf(machine).ok_or(UnwindError::Machine(machine.0))?;
        let file_len = data.len().map_err(|()| UnwindError::NotElf)?;
        let program_headers = header.program_headers(endian, data).map_err(|_| UnwindError::NotElf)?;
        let segments = ExecSegments::read(program_headers, file_len)?;
        let build_id = program_headers.iter().find_map(|segment| read_build_id(segment, data));
        // Section headers can be gone, or lie.
        let table = header.sections(endian, data).unwrap_or_default();
        let mut sections = read_sections(&table, data);
        if sections.eh_frame.is_none() {
            sections.eh_frame = eh_frame_by_header(program_headers, data);
        }
        let entry = header.e_entry(endian);
        Ok(Self { machine, build_id, segments, sections, entry })
    }
}

/// The build id alone: header and notes are read, no more.
pub(super) fn build_id<'a, R: ReadRef<'a>>(data: R) -> Option<Vec<u8>> {
    let header = Header::parse(data).ok()?;
    let program_headers = header.program_headers(header.endian().ok()?, data).ok()?;
    program_headers.iter().find_map(|segment| read_build_id(segment, data))
}

fn read_build_id<'a, R: ReadRef<'a>>(segment: &Segment, data: R) -> Option<Vec<u8>> {
    let mut notes = segment.notes(LittleEndian, data).ok()??;
    while let Ok(Some(note)) = notes.next() {
        let id = note.desc();
        if note.name() == b"GNU" && note.n_type(LittleEndian) == NT_GNU_BUILD_ID && id.len() <= MAX_BUILD_ID {
            return Some(id.to_vec());
        }
    }
    None
}

fn read_sections<'a, R: ReadRef<'a>>(table: &SectionTable<'a, Header, R>, data: R) -> Sections<'a> {
    let endian = LittleEndian;
    let eh_frame = table.section_by_name(endian, b".eh_frame").and_then(|(_, section)| {
        let bytes = section.data(endian, data).ok().filter(|bytes| !bytes.is_empty())?;
        Some((section.sh_addr(endian), bytes))
    });
    let debug_frame = table.section_by_name(endian, b".debug_frame").and_then(|(_, section)| {
        let compressed = match section.compression(endian, data).ok()? {
            None => return section.data(endian, data).ok().map(Cow::Borrowed),
            Some((header, offset, size)) => object::CompressedData {
                format: match header.ch_type(endian) {
                    ELFCOMPRESS_ZLIB => CompressionFormat::Zlib,
                    ELFCOMPRESS_ZSTD => CompressionFormat::Zstandard,
                    _ => return None,
                },
                data: data.read_bytes_at(offset, size).ok()?,
                uncompressed_size: header.ch_size(endian),
            },
        };
        if compressed.uncompressed_size > MAX_SECTION_BYTES {
            return None;
        }
        compressed.decompress().ok()
    });
    let debug_frame = debug_frame.or_else(|| gnu_compressed(table, data).map(Cow::Owned));
    Sections { eh_frame, debug_frame }
}

/// `.zdebug_frame`, as binutils before 2.26 and Go before 1.19 compress it: "ZLIB", its length (8 bytes, big-endian), data
/// (gdb/dwarf2, bfd/compress.c).
fn gnu_compressed<'a, R: ReadRef<'a>>(table: &SectionTable<'a, Header, R>, data: R) -> Option<Vec<u8>> {
    const MAGIC: &[u8] = b"ZLIB";
    let (_, section) = table.section_by_name(LittleEndian, b".zdebug_frame")?;
    let bytes = section.data(LittleEndian, data).ok()?.strip_prefix(MAGIC)?;
    let (length, packed) = bytes.split_first_chunk()?;
    let uncompressed_size = u64::from_be_bytes(*length);
    if uncompressed_size > MAX_SECTION_BYTES {
        return None;
    }
    let compressed =
        object::CompressedData { format: CompressionFormat::Zlib, data: packed, uncompressed_size };
    compressed.decompress().ok().map(Cow::into_owned)
}

/// `.eh_frame` of a file without section headers: `.eh_frame_hdr`, which the loader needs, points to it (LSB Core
/// 10.6.2). Its length is not said: it ends with its segment at the latest.
fn eh_frame_by_header<'a, R: ReadRef<'a>>(program_headers: &[Segment], data: R) -> Option<(u64, &'a [u8])> {
    let endian = LittleEndian;
    let header = program_headers.iter().find(|segment| segment.p_type(endian) == PT_GNU_EH_FRAME)?;
    let address = header.p_vaddr(endian);
    let bytes = data.read_bytes_at(header.p_offset(endian), header.p_filesz(endian)).ok()?;
    let bases = gimli::BaseAddresses::default().set_eh_frame_hdr(address);
    let parsed = gimli::EhFrameHdr::new(bytes, gimli::LittleEndian).parse(&bases, 8).ok()?;
    let eh_frame = parsed.eh_frame_ptr().direct().ok()?;
    let segment = program_headers.iter().find(|segment| {
        let start = segment.p_vaddr(endian);
        segment.p_type(endian) == PT_LOAD && eh_frame >= start && eh_frame - start < segment.p_filesz(endian)
    })?;
    let within = eh_frame - segment.p_vaddr(endian);
    let offset = segment.p_offset(endian).checked_add(within)?;
    let bytes = data.read_bytes_at(offset, segment.p_filesz(endian) - within).ok()?;
    Some((eh_frame, &bytes[..terminated_len(bytes)]))
}

/// Bytes up to the entry of length 0 that ends `.eh_frame`: what follows in the segment is something else.
fn terminated_len(bytes: &[u8]) -> usize {
    let word = |at: usize| bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes);
    let mut at = 0usize;
    while let Some(length @ 1..) = word(at) {
        let Some(next) = at.checked_add(4 + length as usize) else { break };
        at = next;
    }
    at.min(bytes.len())
}
