//! ELF files (elf(5), the System V ABI's chapter 4): headers, sections, and what they say of where debug information is.
//!
//! Read field by field from parts of the file, each checked against its length: offsets and sizes are the target's word.

use std::{
    io::{self, Read as _},
    sync::Arc,
};

use object::{
    elf,
    read::{CompressedData, CompressionFormat},
};

use super::{
    bytes::{Budget, Bytes, Source},
    strings::Strings,
};

/// More sections or segments than any linker writes.
const MAX_HEADERS: u64 = 1 << 18;

/// Longest note or link section that is looked at, bytes.
const MAX_NOTE: u64 = 1 << 16;

/// Largest MiniDebugInfo when unpacked, bytes.
const MAX_MINI_DEBUG: u64 = 64 << 20;

/// Largest dictionary for unpacking it, KiB (`xz -9` has 64 MiB).
const MAX_DICTIONARY_KIB: u32 = 80 << 10;

/// A part of the file that is mapped: a `PT_LOAD` program header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// `p_offset`, bytes.
    pub offset: u64,
    /// `p_vaddr`.
    pub vaddr: u64,
    /// `p_filesz`, bytes.
    pub file_size: u64,
    /// `PF_X`.
    pub executable: bool,
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

/// An ELF file.
#[derive(Debug)]
pub struct Elf {
    source: Arc<Source>,
    budget: Budget,
    /// Class and byte order.
    pub format: Format,
    /// `PT_LOAD` program headers, in the file's order.
    pub segments: Vec<Segment>,
    /// All sections, by index.
    pub sections: Vec<Section>,
}

/// Class and byte order: how fields are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// `ELFCLASS64`.
    pub is_64: bool,
    /// `ELFDATA2LSB`.
    pub little_endian: bool,
}

impl Format {
    /// The unsigned field of 1, 2, 4 or 8 bytes at `offset`; zero where `bytes` ends before it.
    fn field(self, bytes: &[u8], offset: usize, size: usize) -> u64 {
        let field = bytes.get(offset..offset + size).unwrap_or_default();
        let join = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
        match self.little_endian {
            true => field.iter().rev().fold(0, join),
            false => field.iter().fold(0, join),
        }
    }

    /// A field that is an address, an offset or a size, at the place it has in each class.
    fn word(self, bytes: &[u8], at_64: usize, at_32: usize) -> u64 {
        if self.is_64 { self.field(bytes, at_64, 8) } else { self.field(bytes, at_32, 4) }
    }

    /// A field of `size` bytes in both classes.
    fn part(self, bytes: &[u8], at_64: usize, at_32: usize, size: usize) -> u64 {
        self.field(bytes, if self.is_64 { at_64 } else { at_32 }, size)
    }

    fn pick(self, in_64: u64, in_32: u64) -> u64 {
        if self.is_64 { in_64 } else { in_32 }
    }

    /// Bytes of one symbol (`Elf64_Sym`, `Elf32_Sym`).
    pub fn symbol_size(self) -> usize {
        self.pick(24, 16) as usize
    }

    /// Reads a symbol from its [`Format::symbol_size`] bytes.
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

impl Elf {
    /// Reads the headers of `source`. What is read and held, now and later, is charged to `budget`.
    pub fn parse(source: Source, budget: &Budget) -> io::Result<Self> {
        let ident = source.part(0, 16, budget)?;
        let format = match &*ident {
            [0x7f, b'E', b'L', b'F', class @ (1 | 2), data @ (1 | 2), ..] => {
                Format { is_64: *class == 2, little_endian: *data == 1 }
            }
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "not an ELF file")),
        };
        let header = source.part(0, format.pick(64, 52), budget)?;
        let mut elf = Self {
            source: Arc::new(source),
            budget: budget.clone(),
            format,
            segments: Vec::new(),
            sections: Vec::new(),
        };
        // A file may have lost its section headers (or its program headers) and still be good for the rest.
        let first = elf.parse_sections(&header).unwrap_or_default();
        elf.parse_segments(&header, &first).unwrap_or_default();
        Ok(elf)
    }

    /// Reads the section headers; gives the first, in which counts too large for the file header are.
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
        let table = self.table(offset, entry, count)?;
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
        if let Some(names) = self.sections.get(names as usize)
            && let Ok(strings) = self.source.part(names.offset, names.size, &self.budget)
        {
            for (section, offset) in self.sections.iter_mut().zip(raw_names) {
                let name = strings.string_at(offset).unwrap_or_default();
                // Many sections may share one long name: keep what the names that we look for need.
                section.name = name.get(..64).unwrap_or(name).to_vec();
            }
        }
        Ok(first)
    }

    fn parse_segments(&mut self, header: &[u8], first_section: &[u8]) -> io::Result<()> {
        const PT_LOAD: u64 = elf::PT_LOAD.0 as u64;
        const PF_X: u64 = 1;
        const PN_XNUM: u64 = 0xffff;
        let format = self.format;
        let offset = format.word(header, 32, 28);
        let entry = format.part(header, 54, 42, 2).max(format.pick(56, 32));
        let count = match format.part(header, 56, 44, 2) {
            PN_XNUM => format.part(first_section, 44, 28, 4),
            count => count,
        };
        let table = self.table(offset, entry, count)?;
        for bytes in table.chunks_exact(entry as usize) {
            if format.part(bytes, 0, 0, 4) == PT_LOAD {
                self.segments.push(Segment {
                    offset: format.word(bytes, 8, 4),
                    vaddr: format.word(bytes, 16, 8),
                    file_size: format.word(bytes, 32, 16),
                    executable: format.part(bytes, 4, 24, 4) & PF_X != 0,
                });
            }
        }
        Ok(())
    }

    fn table(&self, offset: u64, entry: u64, count: u64) -> io::Result<Bytes> {
        if count > MAX_HEADERS {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "too many headers"));
        }
        self.source.part(offset, entry * count, &self.budget)
    }

    /// The vaddr of the byte at `file_offset`, by the `PT_LOAD` that maps it; one that is executable goes first.
    ///
    /// What the kernel maps begins and ends at page boundaries, before and after what the program header says, so a
    /// byte that no header names is placed by the header nearest before it (or after, for the first).
    pub fn vaddr_of(&self, file_offset: u64) -> Option<u64> {
        let distance = |segment: &Segment| match file_offset.checked_sub(segment.offset) {
            Some(inside) => inside.saturating_sub(segment.file_size.saturating_sub(1)),
            None => segment.offset - file_offset,
        };
        let segment = self.segments.iter().min_by_key(|segment| (distance(segment), !segment.executable))?;
        // The largest page size that any architecture we know of uses (64 KiB on arm64 and ppc64).
        (distance(segment) < 0x1_0000)
            .then(|| segment.vaddr.wrapping_sub(segment.offset).wrapping_add(file_offset))
    }

    /// The first section of that name that has bytes in the file.
    pub fn section(&self, name: &[u8]) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name && section.kind != elf::SHT_NOBITS.0)
    }

    /// A section's bytes as they are in the file.
    pub fn raw_data(&self, section: &Section) -> io::Result<Bytes> {
        match section.kind == elf::SHT_NOBITS.0 {
            true => Ok(Bytes::default()),
            false => self.source.part(section.offset, section.size, &self.budget),
        }
    }

    /// The section's strings, which are `all`, for later look-ups.
    pub fn strings(&self, section: &Section, all: Bytes) -> Strings {
        Strings::new(&self.source, section.offset, all, &self.budget)
    }

    /// A section's bytes, unpacked where they are compressed (`SHF_COMPRESSED`, or the older `.zdebug_` sections).
    /// Empty where there is no such section.
    pub fn data(&self, name: &str) -> io::Result<Bytes> {
        if let Some(section) = self.section(name.as_bytes()) {
            let data = self.raw_data(section)?;
            return match section.flags & elf::SHF_COMPRESSED.0 {
                0 => Ok(data),
                _ => self.unpack(&data),
            };
        }
        let Some(section) = self.section(name.replacen(".debug", ".zdebug", 1).as_bytes()) else {
            return Ok(Bytes::default());
        };
        let data = self.raw_data(section)?;
        match data.split_first_chunk::<12>() {
            Some(([b'Z', b'L', b'I', b'B', size @ ..], packed)) => {
                self.inflate(CompressionFormat::Zlib, packed, u64::from_be_bytes(*size))
            }
            _ => Ok(data),
        }
    }

    /// Unpacks a section that begins with an `Elf64_Chdr`.
    fn unpack(&self, data: &Bytes) -> io::Result<Bytes> {
        let packed = data.get(self.format.pick(24, 12) as usize..).unwrap_or_default();
        let size = self.format.word(data, 8, 4);
        let format = match self.format.part(data, 0, 0, 4) as u32 {
            kind if kind == elf::ELFCOMPRESS_ZLIB.0 => CompressionFormat::Zlib,
            kind if kind == elf::ELFCOMPRESS_ZSTD.0 => CompressionFormat::Zstandard,
            _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "unknown compression")),
        };
        self.inflate(format, packed, size)
    }

    fn inflate(&self, format: CompressionFormat, data: &[u8], uncompressed_size: u64) -> io::Result<Bytes> {
        // Refuses before anything is allocated; the size is then also what the unpacking stops at.
        drop(self.budget.charge(uncompressed_size)?);
        let unpacked = CompressedData { format, data, uncompressed_size }
            .decompress()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Bytes::new(unpacked.into_owned(), &self.budget)
    }

    /// The GNU build id (`NT_GNU_BUILD_ID`, a note of owner `GNU` in `.note.gnu.build-id` or another note section).
    pub fn build_id(&self) -> Option<Vec<u8>> {
        const NT_GNU_BUILD_ID: u64 = 3;
        let is_note = |section: &&Section| section.kind == elf::SHT_NOTE.0 && section.size <= MAX_NOTE;
        for section in self.sections.iter().filter(is_note) {
            let data = self.raw_data(section).ok()?;
            let mut rest: &[u8] = &data;
            while rest.len() >= 12 {
                let field = |at| self.format.field(rest, at, 4) as usize;
                let (name_size, size, kind) = (field(0), field(4), field(8) as u64);
                let from = 12 + name_size.next_multiple_of(4);
                let id = rest.get(from..from.saturating_add(size));
                if kind == NT_GNU_BUILD_ID && rest.get(12..16) == Some(b"GNU\0") {
                    return id.filter(|id| !id.is_empty()).map(<[u8]>::to_vec);
                }
                rest = rest.get(from.saturating_add(size.next_multiple_of(4))..).unwrap_or_default();
            }
        }
        None
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
        let section = self.section(name).filter(|section| section.size <= MAX_NOTE)?;
        self.raw_data(section).ok()
    }

    /// The ELF file in section `.gnu_debugdata` (MiniDebugInfo: xz-compressed, with a `.symtab` of local functions).
    pub fn mini_debug_info(&self) -> Option<Self> {
        let section = self.section(b".gnu_debugdata")?;
        let packed = self.raw_data(section).ok()?;
        drop(self.budget.charge(MAX_MINI_DEBUG + (u64::from(MAX_DICTIONARY_KIB) << 10)).ok()?);
        let mut data = Vec::new();
        let xz = lzma_rust2::XzReader::new_mem_limit(&packed[..], true, MAX_DICTIONARY_KIB);
        xz.take(MAX_MINI_DEBUG).read_to_end(&mut data).ok()?;
        Self::parse(Source::Memory(Bytes::new(data, &self.budget).ok()?), &self.budget).ok()
    }

    /// Length of the file, bytes.
    pub fn length(&self) -> u64 {
        self.source.len()
    }

    /// CRC-32 of the whole file.
    pub fn crc32(&self) -> io::Result<u32> {
        self.source.crc32()
    }

    /// What parts and indexes of this file are charged to.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// What is read of it is charged to this.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(segments: &[(u64, u64, u64, bool)]) -> Elf {
        let segment = |&(offset, vaddr, file_size, executable): &(u64, u64, u64, bool)| Segment {
            offset,
            vaddr,
            file_size,
            executable,
        };
        Elf {
            source: Arc::new(Source::Memory(Bytes::default())),
            budget: Budget::new(1 << 20),
            format: Format { is_64: true, little_endian: true },
            segments: segments.iter().map(segment).collect(),
            sections: Vec::new(),
        }
    }

    /// An ELF file of one note section, with `note` in it.
    fn with_note(note: &[u8]) -> Elf {
        let budget = Budget::new(1 << 20);
        let source = Source::Memory(Bytes::new(note.to_vec(), &budget).unwrap());
        let section = Section {
            name: b".note.gnu.build-id".to_vec(),
            kind: elf::SHT_NOTE.0,
            flags: 0,
            address: 0,
            offset: 0,
            size: note.len() as u64,
            link: 0,
        };
        let format = Format { is_64: true, little_endian: true };
        Elf { source: Arc::new(source), budget, format, segments: Vec::new(), sections: vec![section] }
    }

    /// What ip - bias must be, from how the kernel maps a segment: at page boundaries, the page that holds its first byte
    /// at bias plus the page that holds its vaddr.
    #[test]
    fn vaddr_is_ip_without_the_bias() {
        const PAGE: u64 = 4096;
        let bias = 0x7f00_0000_0000;
        // lld: segments follow each other in the file, and begin and end in the middle of pages.
        let segments =
            [(0, 0, 0x1234, false), (0x1240, 0x2240, 0x3456, true), (0x4696, 0x6696, 0x100, false)];
        let elf = elf(&segments);
        for (offset, vaddr, size, _) in segments {
            let (start, file_offset) = (bias + vaddr / PAGE * PAGE, offset / PAGE * PAGE);
            for inside in [0, 1, size / 2, size - 1] {
                let ip = bias + vaddr + inside;
                assert_eq!(elf.vaddr_of(ip - start + file_offset), Some(ip - bias), "{inside:#x}");
            }
        }
        // The end of the last page that the code is on: mapped, though no header names it. The next segment does not
        // begin before the file's bytes there do.
        assert_eq!(elf.vaddr_of(0x4695), Some(0x5695));
        assert_eq!(elf.vaddr_of(0x5000), Some(0x7000));
    }

    #[test]
    fn executable_segments_go_first_and_far_ones_do_not_count() {
        let twice = elf(&[(0, 0x1000, 0x1000, false), (0, 0x8000, 0x1000, true)]);
        assert_eq!(twice.vaddr_of(0x10), Some(0x8010));
        assert_eq!(twice.vaddr_of(0x10_0000), None);
        assert_eq!(elf(&[]).vaddr_of(0), None);
        let extreme = elf(&[(u64::MAX, u64::MAX, u64::MAX, true), (1, u64::MAX, 0, true)]);
        for offset in [0, 1, 2, u64::MAX] {
            extreme.vaddr_of(offset);
        }
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
        assert_eq!(with_note(&both).build_id().as_deref(), Some(&id[..]));
        for cut in 0..both.len() - 3 {
            assert_eq!(with_note(&both[..cut]).build_id(), None, "{cut}");
        }
        assert_eq!(with_note(&[0xff; 64]).build_id(), None);
    }

    #[test]
    fn fields_of_both_byte_orders() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8];
        let format = |little_endian| Format { is_64: true, little_endian };
        assert_eq!(format(true).field(&bytes, 0, 4), 0x0403_0201);
        assert_eq!(format(false).field(&bytes, 0, 4), 0x0102_0304);
        assert_eq!(format(true).field(&bytes, 6, 4), 0, "beyond the end");
    }
}
