//! ELF files (elf(5), the System V ABI's chapter 4): headers, sections, segments, and where they
//! are loaded.
//!
//! Read field by field from parts of the file, each checked against its length: offsets and sizes
//! are the target's word.

use std::{io, sync::Arc};

use object::{
    elf,
    read::{CompressedData, CompressionFormat},
};

use super::source::{Budget, Bytes, Source};

/// Most sections that are looked at. A linked file has some forty, one with a section for each
/// function 60,000.
const MAX_SECTIONS: u64 = 1 << 16;

/// Most program headers that are looked at; real files have about a dozen.
const MAX_SEGMENTS: u64 = 256;

/// Longest table of section names, bytes.
const MAX_SECTION_NAMES: u64 = 16 << 20;

/// Longest section name that is kept: many sections may share one long name.
const MAX_SECTION_NAME: usize = 64;

/// Functions for each symbol, at the most, where a table of symbols is believed to be whole: that
/// has more symbols than there are functions.
const MOST_FOR_EACH_SYMBOL: u64 = 4;

/// Bytes of a function, more than what most have.
const LARGE_FUNCTION: u64 = 1024;

/// Longest dynamic section that is looked at, bytes: thousands of entries, where files have thirty.
const MAX_DYNAMIC: u64 = 1 << 16;

/// The largest page of any machine that we know of (arm64, ppc64): what the kernel maps begins and
/// ends at page borders, before and after what the program header says.
const PAGE: u64 = 0x1_0000;
/// The shortest.
const SMALL_PAGE: u64 = 4096;

/// A program header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// `p_offset`, bytes.
    pub file_offset: u64,
    /// `p_vaddr`.
    pub vaddr: u64,
    /// `p_filesz`, bytes.
    pub len: u64,
    /// `p_memsz`, bytes: with what is not part of the file (`.bss`).
    pub memory_len: u64,
    /// `PF_X`.
    pub executable: bool,
}

impl Segment {
    /// Offset in the file of the byte at `vaddr`, if this segment has it in the file.
    pub fn offset_of(&self, vaddr: u64) -> Option<u64> {
        let within = vaddr.checked_sub(self.vaddr).filter(|within| *within < self.len)?;
        self.file_offset.checked_add(within)
    }
}

/// Where a part of a file is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedPart {
    /// First address.
    pub start: u64,
    /// Bytes that are mapped.
    pub len: u64,
    /// Offset in the file of the byte at `start`.
    pub file_offset: u64,
    /// It can be executed.
    pub executable: bool,
}

/// What is added to the vaddrs of a file with these segments at `place`, modulo 2^64; `None`: no
/// segment is there.
///
/// Segments that are as executable as the mapping go first, then those that begin where it does: a
/// linker may put two segments into one page of the file, which is mapped for each.
pub fn load_bias(segments: &[Segment], place: &MappedPart) -> Option<u64> {
    let end = place.file_offset.saturating_add(place.len.max(1));
    // How far the mapping begins before the segment, or the segment ends before the mapping does.
    let distance = |segment: &Segment| match place.file_offset.checked_sub(segment.file_offset) {
        Some(inside) => inside.saturating_sub(segment.len.saturating_sub(1)),
        None if segment.file_offset < end => 0,
        None => segment.file_offset - place.file_offset,
    };
    let key = |segment: &&Segment| {
        let before = segment.file_offset.saturating_sub(place.file_offset);
        let begins = segment.file_offset / SMALL_PAGE * SMALL_PAGE == place.file_offset;
        let is_other = segment.executable != place.executable;
        (distance(segment) >= PAGE, is_other, !begins, distance(segment), before)
    };
    let segment = segments.iter().min_by_key(key).filter(|segment| distance(segment) < PAGE)?;
    let vaddr = segment.vaddr.wrapping_sub(segment.file_offset).wrapping_add(place.file_offset);
    Some(place.start.wrapping_sub(vaddr))
}

/// A section header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Name, from the section name table.
    pub name: Vec<u8>,
    /// `sh_type`.
    pub kind: u32,
    /// `sh_flags`.
    pub flags: u64,
    /// `sh_addr`.
    pub address: u64,
    /// `sh_offset`, bytes.
    pub offset: u64,
    /// `sh_size`, bytes.
    pub size: u64,
    /// `sh_link`: for a symbol table the index of its strings.
    pub link: u32,
}

impl Section {
    /// `SHF_EXECINSTR`.
    pub fn executable(&self) -> bool {
        self.flags & elf::SHF_EXECINSTR.0 != 0
    }
}

/// An ELF file: headers, of a file that stays open.
#[derive(Debug)]
pub struct ElfFile {
    source: Arc<Source>,
    budget: Budget,
    /// Class and byte order.
    pub format: Encoding,
    /// `e_machine`.
    pub machine: u16,
    /// `e_type`.
    pub file_type: u16,
    /// `e_entry`: the vaddr where the kernel starts it; 0 for most libraries.
    pub entry: u64,
    /// `PT_LOAD` program headers, in the file's order.
    pub segments: Vec<Segment>,
    /// The other program headers, each with its `p_type`.
    pub other_segments: Vec<(u32, Segment)>,
    /// All sections, by index.
    pub sections: Vec<Section>,
}

/// Class and byte order: how fields are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// `ELFCLASS64`.
    pub is_64: bool,
    /// `ELFDATA2LSB`.
    pub little_endian: bool,
}

impl Encoding {
    /// The unsigned field of 1, 2, 4 or 8 bytes at `offset`; zero if `bytes` ends before it.
    pub fn field(self, bytes: &[u8], offset: usize, size: usize) -> u64 {
        let field = bytes.get(offset..offset + size).unwrap_or_default();
        let join = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
        match self.little_endian {
            true => field.iter().rev().fold(0, join),
            false => field.iter().fold(0, join),
        }
    }

    /// A field that is an address, an offset or a size, at the place it has in each class.
    pub(super) fn word(self, bytes: &[u8], at_64: usize, at_32: usize) -> u64 {
        if self.is_64 { self.field(bytes, at_64, 8) } else { self.field(bytes, at_32, 4) }
    }

    /// A field of `size` bytes in both classes.
    pub(super) fn part(self, bytes: &[u8], at_64: usize, at_32: usize, size: usize) -> u64 {
        self.field(bytes, if self.is_64 { at_64 } else { at_32 }, size)
    }

    pub(super) fn pick(self, in_64: u64, in_32: u64) -> u64 {
        if self.is_64 { in_64 } else { in_32 }
    }

    /// Bytes of one symbol (`Elf64_Sym`, `Elf32_Sym`).
    pub fn symbol_size(self) -> usize {
        self.pick(24, 16) as usize
    }

    /// Reads a symbol from its [`Encoding::symbol_size`] bytes.
    pub fn symbol(self, bytes: &[u8]) -> RawSymbol {
        let info = self.part(bytes, 4, 12, 1) as u8;
        RawSymbol {
            name: self.part(bytes, 0, 0, 4) as u32,
            kind: info & 0xf,
            binding: info >> 4,
            visibility: self.part(bytes, 5, 13, 1) as u8 & 3,
            section: self.part(bytes, 6, 14, 2) as u16,
            value: self.word(bytes, 8, 4),
            size: self.word(bytes, 16, 8),
        }
    }
}

/// A symbol as the file has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawSymbol {
    /// `st_name`: offset in the string table.
    pub name: u32,
    /// `ELF64_ST_TYPE(st_info)`.
    pub kind: u8,
    /// `ELF64_ST_BIND(st_info)`.
    pub binding: u8,
    /// `ELF64_ST_VISIBILITY(st_other)`.
    pub visibility: u8,
    /// `st_shndx`.
    pub section: u16,
    /// `st_value`: a vaddr.
    pub value: u64,
    /// `st_size`, bytes.
    pub size: u64,
}

impl RawSymbol {
    /// It is a function, or a resolver of one, that this file defines.
    pub fn is_function(&self) -> bool {
        self.section != 0 && (self.kind == elf::STT_FUNC.0 || self.kind == elf::STT_GNU_IFUNC.0)
    }
}

impl ElfFile {
    /// Reads the headers of `source`. What is read and held, now and later, comes out of `budget`,
    /// which is an object's.
    pub fn parse(source: Source, budget: &Budget) -> io::Result<Self> {
        let budget = budget.for_purpose();
        let mut ident = [0; 16];
        source.read(0, &mut ident, &budget).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => not_elf(),
            _ => error,
        })?;
        let format = match ident {
            [0x7f, b'E', b'L', b'F', class @ (1 | 2), data @ (1 | 2), ..] => {
                Encoding { is_64: class == 2, little_endian: data == 1 }
            }
            _ => return Err(not_elf()),
        };
        let header = source.part(0, format.pick(64, 52), &budget)?;
        let mut elf = Self {
            source: Arc::new(source),
            budget,
            format,
            machine: format.part(&header, 18, 18, 2) as u16,
            file_type: format.part(&header, 16, 16, 2) as u16,
            entry: format.word(&header, 24, 24),
            segments: Vec::new(),
            other_segments: Vec::new(),
            sections: Vec::new(),
        };
        // A file may have lost its section headers (or its program headers) and still be good for
        // the rest.
        let first = elf.parse_sections(&header).unwrap_or_default();
        elf.parse_segments(&header, &first).unwrap_or_default();
        Ok(elf)
    }

    /// Reads the section headers; gives the first, in which counts too large for the file header
    /// are.
    fn parse_sections(&mut self, header: &[u8]) -> io::Result<Bytes> {
        let format = self.format;
        let offset = format.word(header, 40, 32);
        let entry = format.part(header, 58, 46, 2).max(format.pick(64, 40));
        if offset == 0 {
            return Ok(Bytes::default());
        }
        let first = self.source.part(offset, entry, &self.budget)?;
        let count = match format.part(header, 60, 48, 2) {
            0 => format.word(&first, 32, 20),
            count => count,
        };
        let names = match format.part(header, 62, 50, 2) {
            0xffff => format.part(&first, 40, 24, 4), // SHN_XINDEX
            index => index,
        };
        let table = self.table(offset, entry, count, MAX_SECTIONS)?;
        let mut raw_names = Vec::new();
        for bytes in table.chunks_exact(entry as usize) {
            raw_names.push(format.part(bytes, 0, 0, 4) as usize);
            self.sections.push(Section {
                name: Vec::new(),
                kind: format.part(bytes, 4, 4, 4) as u32,
                flags: format.word(bytes, 8, 8),
                address: format.word(bytes, 16, 12),
                offset: format.word(bytes, 24, 16),
                size: format.word(bytes, 32, 20),
                link: format.part(bytes, 40, 24, 4) as u32,
            });
        }
        if let Some(names) = self.sections.get(names as usize) {
            if names.size > MAX_SECTION_NAMES {
                return Err(self.budget.exceeded());
            }
            let strings = self.source.part(names.offset, names.size, &self.budget)?;
            for (section, offset) in self.sections.iter_mut().zip(raw_names) {
                let rest = strings.get(offset..).unwrap_or_default();
                let rest = rest.get(..MAX_SECTION_NAME).unwrap_or(rest);
                section.name = rest.split(|&byte| byte == 0).next().unwrap_or_default().to_vec();
            }
        }
        Ok(first)
    }

    fn parse_segments(&mut self, header: &[u8], first_section: &[u8]) -> io::Result<()> {
        const PF_X: u64 = elf::PF_X.0 as u64;
        const PN_XNUM: u64 = 0xffff;
        let format = self.format;
        let offset = format.word(header, 32, 28);
        let entry = format.part(header, 54, 42, 2).max(format.pick(56, 32));
        let count = match format.part(header, 56, 44, 2) {
            PN_XNUM => format.part(first_section, 44, 28, 4),
            count => count,
        };
        let table = self.table(offset, entry, count, MAX_SEGMENTS)?;
        for bytes in table.chunks_exact(entry as usize) {
            let segment = Segment {
                file_offset: format.word(bytes, 8, 4),
                vaddr: format.word(bytes, 16, 8),
                len: format.word(bytes, 32, 16),
                memory_len: format.word(bytes, 40, 20),
                executable: format.part(bytes, 4, 24, 4) & PF_X != 0,
            };
            match format.part(bytes, 0, 0, 4) as u32 {
                kind if kind == elf::PT_LOAD.0 => self.segments.push(segment),
                kind => self.other_segments.push((kind, segment)),
            }
        }
        Ok(())
    }

    fn table(&self, offset: u64, entry: u64, count: u64, most: u64) -> io::Result<Bytes> {
        if count > most {
            return Err(self.budget.exceeded());
        }
        self.source.part(offset, entry * count, &self.budget)
    }

    /// What the file may cost for one purpose more.
    pub fn budget(&self) -> Budget {
        self.budget.for_purpose()
    }

    /// Whether something in it was refused, since it costs more than an object may.
    pub fn is_over_budget(&self) -> bool {
        self.budget.is_exceeded()
    }

    /// Its bytes.
    pub fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// What was added to its vaddrs at `place` ([`load_bias`]).
    pub fn load_bias(&self, place: &MappedPart) -> Option<u64> {
        load_bias(&self.segments, place)
    }

    /// Offset in the file of the byte at `vaddr`.
    pub fn offset_of(&self, vaddr: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| segment.offset_of(vaddr))
    }

    /// The executable segment that has the byte at `vaddr` in the file.
    pub fn code_segment(&self, vaddr: u64) -> Option<&Segment> {
        self.segments.iter().find(|segment| segment.executable && segment.offset_of(vaddr).is_some())
    }

    /// The first program header of this `p_type`, but for `PT_LOAD`.
    pub fn other_segment(&self, kind: elf::ProgramType) -> Option<&Segment> {
        self.other_segments.iter().find(|(other, _)| *other == kind.0).map(|(_, segment)| segment)
    }

    /// The value of the first entry with `tag` in the dynamic table.
    pub fn dynamic_entry(&self, tag: elf::DynamicTag) -> Option<u64> {
        let segment = self.other_segment(elf::PT_DYNAMIC)?;
        let table = self.source.part(segment.file_offset, segment.len.min(MAX_DYNAMIC), &self.budget).ok()?;
        let format = self.format;
        let mut entries = table.chunks_exact(format.pick(16, 8) as usize);
        let entry = entries.find(|entry| format.word(entry, 0, 0).cast_signed() == tag.0)?;
        Some(format.word(entry, 8, 4))
    }

    /// The first section of that name that has bytes in the file.
    pub fn section(&self, name: &[u8]) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name && section.kind != elf::SHT_NOBITS.0)
    }

    /// Whether it has a `.symtab`, and not one of which `strip` (`-K`) or a linker's list of
    /// exports has left a few functions: names tell nothing then.
    pub fn has_symbol_table(&self) -> bool {
        let tables = self.sections.iter().filter(|section| section.kind == elf::SHT_SYMTAB.0);
        let most = tables.map(|table| table.size / self.format.symbol_size() as u64).max().unwrap_or(0);
        most > 0 && most >= self.functions() / MOST_FOR_EACH_SYMBOL
    }

    /// How many functions there are, by their unwind information; a guess, by the size of the code,
    /// where that is missing.
    fn functions(&self) -> u64 {
        let code = self.segments.iter().filter(|segment| segment.executable).map(|segment| segment.len);
        self.functions_with_unwind_rows().unwrap_or_else(|| code.sum::<u64>() / LARGE_FUNCTION)
    }

    /// How many functions have unwind information, by the head of `.eh_frame_hdr` (LSB Core
    /// 10.6.2). `None` if that is not in the file, or written otherwise than linkers write it.
    fn functions_with_unwind_rows(&self) -> Option<u64> {
        // Version 1; both fields of 4 bytes, and the number one without a sign (DWARF 4, 7.6: the
        // upper half of the first says what its address is relative to).
        const VERSION: u8 = 1;
        const UDATA4: u8 = 3;
        let section = self.section(b".eh_frame_hdr")?;
        let head = self.source().part(section.offset, section.size.min(12), &self.budget()).ok()?;
        match *head {
            [VERSION, pointer, UDATA4, _, ..] if pointer & 7 == UDATA4 => {}
            _ => return None,
        }
        let number = head.get(8..12)?;
        Some(self.format.field(number, 0, 4))
    }

    /// A section's bytes as they are in the file, if they are `most` at most.
    pub fn raw_data(&self, section: &Section, most: u64) -> io::Result<Bytes> {
        match section.kind == elf::SHT_NOBITS.0 {
            true => Ok(Bytes::default()),
            false if section.size > most => Err(self.budget.exceeded()),
            false => self.source.part(section.offset, section.size, &self.budget()),
        }
    }

    /// A section's bytes, unpacked if they are compressed (`SHF_COMPRESSED`, or the older
    /// `.zdebug_` sections), if they are `most` at most. Empty if there is no such section.
    pub fn data(&self, name: &str, most: u64) -> io::Result<Bytes> {
        if let Some(section) = self.section(name.as_bytes()) {
            let data = self.raw_data(section, most)?;
            return match section.flags & elf::SHF_COMPRESSED.0 {
                0 => Ok(data),
                _ => self.unpack(&data, most),
            };
        }
        let Some(section) = self.section(name.replacen(".debug", ".zdebug", 1).as_bytes()) else {
            return Ok(Bytes::default());
        };
        let data = self.raw_data(section, most)?;
        // As binutils before 2.26 and Go before 1.19 compress: "ZLIB", the length (8 bytes,
        // big-endian), data (bfd/compress.c).
        match data.split_first_chunk::<12>() {
            Some(([b'Z', b'L', b'I', b'B', size @ ..], packed)) => {
                self.inflate(CompressionFormat::Zlib, packed, u64::from_be_bytes(*size), most)
            }
            _ => Ok(data),
        }
    }

    /// Unpacks a section that begins with an `Elf64_Chdr`.
    fn unpack(&self, data: &Bytes, most: u64) -> io::Result<Bytes> {
        let packed = data.get(self.format.pick(24, 12) as usize..).unwrap_or_default();
        let size = self.format.word(data, 8, 4);
        let format = match self.format.part(data, 0, 0, 4) as u32 {
            kind if kind == elf::ELFCOMPRESS_ZLIB.0 => CompressionFormat::Zlib,
            kind if kind == elf::ELFCOMPRESS_ZSTD.0 => CompressionFormat::Zstandard,
            _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "unknown compression")),
        };
        self.inflate(format, packed, size, most)
    }

    fn inflate(&self, format: CompressionFormat, data: &[u8], size: u64, most: u64) -> io::Result<Bytes> {
        if size > most {
            return Err(self.budget.exceeded());
        }
        // Refuses before anything is allocated; the size is then also what the unpacking stops at.
        drop(self.budget.charge(size)?);
        let unpacked = CompressedData { format, data, uncompressed_size: size }
            .decompress()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Bytes::new(unpacked.into_owned(), &self.budget)
    }

    /// CRC-32 of the whole file.
    pub fn crc32(&self) -> io::Result<u32> {
        self.source.crc32(&self.budget())
    }
}

fn not_elf() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not an ELF file")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BIAS: u64 = 0x7f00_0000_0000;

    fn segments(parts: &[(u64, u64, u64, bool)]) -> Vec<Segment> {
        let segment = |&(file_offset, vaddr, len, executable)| Segment {
            file_offset,
            vaddr,
            len,
            memory_len: len,
            executable,
        };
        parts.iter().map(segment).collect()
    }

    /// How the kernel maps a segment: at page borders, the page that holds its first byte at bias
    /// plus the page that holds its vaddr.
    fn place(segment: &Segment) -> MappedPart {
        const PAGE: u64 = 4096;
        let (start, file_offset) = (segment.vaddr / PAGE * PAGE, segment.file_offset / PAGE * PAGE);
        let len = (segment.vaddr + segment.len).next_multiple_of(PAGE) - start;
        MappedPart { start: BIAS + start, len, file_offset, executable: segment.executable }
    }

    #[test]
    fn all_mappings_of_a_file_have_one_bias() {
        // lld: segments follow each other in the file, and begin and end in the middle of pages.
        let lld = segments(&[
            (0, 0, 0x1234, false),
            (0x1240, 0x2240, 0x3456, true),
            (0x4696, 0x6696, 0x100, false),
        ]);
        // The same with the data in two: what is read-only once it is relocated goes first.
        let relro = segments(&[
            (0, 0, 0x8dec, false),
            (0x8df0, 0x9df0, 0xad90, true),
            (0x1_3b80, 0x1_5b80, 0x30a0, false),
            (0x1_6c20, 0x1_9c20, 0x9c8, false),
        ]);
        // gold and bfd: not position-independent, and each at a page of its own.
        let bfd = segments(&[(0, 0x40_0000, 0x500, false), (0x1000, 0x40_1000, 0x9000, true)]);
        for segments in [lld, relro, bfd] {
            for segment in &segments {
                let whole = place(segment);
                assert_eq!(load_bias(&segments, &whole), Some(BIAS), "{whole:x?}");
                // What mprotect(2) or mremap(2) has split off.
                let rest = whole.len.min(0x1000);
                let (start, file_offset) = (whole.start + rest, whole.file_offset + rest);
                let part = MappedPart { start, file_offset, len: whole.len - rest, ..whole };
                if part.len > 0 {
                    assert_eq!(load_bias(&segments, &part), Some(BIAS), "{part:x?}");
                }
            }
        }
    }

    #[test]
    fn executable_segments_go_first_and_far_ones_do_not_count() {
        let twice = segments(&[(0, 0x1000, 0x1000, false), (0, 0x8000, 0x1000, true)]);
        let place =
            |executable, file_offset| MappedPart { start: 0x10_0000, len: 0x1000, file_offset, executable };
        assert_eq!(load_bias(&twice, &place(true, 0)), Some(0x10_0000 - 0x8000));
        assert_eq!(load_bias(&twice, &place(false, 0)), Some(0x10_0000 - 0x1000));
        assert_eq!(load_bias(&twice, &place(true, 0x10_0000)), None);
        assert_eq!(load_bias(&[], &place(true, 0)), None);
        // Made writable and executable after it was mapped, or the other way round.
        assert_eq!(load_bias(twice.get(..1).unwrap(), &place(true, 0)), Some(0x10_0000 - 0x1000));
        let extreme = segments(&[(u64::MAX, u64::MAX, u64::MAX, true), (1, u64::MAX, 0, true)]);
        for offset in [0, 1, 2, u64::MAX] {
            load_bias(&extreme, &place(true, offset));
        }
    }

    #[test]
    fn fields_of_both_byte_orders() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8];
        let format = |little_endian| Encoding { is_64: true, little_endian };
        assert_eq!(format(true).field(&bytes, 0, 4), 0x0403_0201);
        assert_eq!(format(false).field(&bytes, 0, 4), 0x0102_0304);
        assert_eq!(format(true).field(&bytes, 6, 4), 0, "beyond the end");
    }
}
