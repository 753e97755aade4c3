//! Where an ELF file says that code is and functions begin.

use object::{
    LittleEndian, ReadRef, SectionIndex,
    elf::{
        FileHeader64, SHF_EXECINSTR, SHT_DYNSYM, SHT_SYMTAB, STB_LOCAL, STT_FUNC, STT_GNU_IFUNC,
        SectionHeader64, Sym64,
    },
    read::elf::{FileHeader as _, SectionHeader as _, SectionTable, Sym as _},
};

type Header = FileHeader64<LittleEndian>;

/// Longest name that is looked at, and bytes of names for each symbol that are read.
const MAX_NAME: u64 = 256;
/// Most sections of code that are believed.
const MAX_SECTIONS: usize = 1 << 16;

/// Bytes of an entry of a symbol table.
const SYMBOL_BYTES: u64 = 24;

/// What symbol tables say; all of it can be gone, or lie.
#[derive(Debug, Default)]
pub(crate) struct Symbols {
    /// vaddrs of functions.
    pub functions: Vec<u64>,
    /// vaddrs of what gcc moves out of functions: it is jumped to.
    pub parts: Vec<u64>,
}

impl Symbols {
    /// Reads them, functions where `is_wanted` alone; a symbol table with more than `limit` symbols is left out.
    pub(crate) fn read<'a, R: ReadRef<'a>>(data: R, limit: u64, is_wanted: &dyn Fn(u64) -> bool) -> Self {
        let mut found = Self::default();
        let Ok(header) = Header::parse(data) else { return found };
        let Ok(sections) = header.sections(LittleEndian, data) else { return found };
        for kind in [SHT_SYMTAB, SHT_DYNSYM] {
            let table = sections.iter().find(|section| section.sh_type(LittleEndian) == kind);
            if let Some(table) = table.filter(|table| table.sh_size(LittleEndian) / SYMBOL_BYTES <= limit) {
                found.add(&sections, table, data, limit, is_wanted);
            }
        }
        found
    }

    fn add<'a, R: ReadRef<'a>>(
        &mut self,
        sections: &SectionTable<'a, Header, R>,
        table: &SectionHeader64<LittleEndian>,
        data: R,
        limit: u64,
        is_wanted: &dyn Fn(u64) -> bool,
    ) {
        let endian = LittleEndian;
        let Ok(symbols) = table.data_as_array::<Sym64<LittleEndian>, _>(endian, data) else { return };
        // All names at once: one by one each would be a read of the file.
        let names = sections
            .section(SectionIndex(table.sh_link(endian) as usize))
            .ok()
            .filter(|names| names.sh_size(endian) <= limit.saturating_mul(MAX_NAME))
            .and_then(|names| names.data(endian, data).ok())
            .unwrap_or_default();
        for symbol in symbols.iter().filter(|symbol| !symbol.is_undefined(endian)) {
            let vaddr = symbol.st_value(endian);
            if ![STT_FUNC, STT_GNU_IFUNC].contains(&symbol.st_type()) || !is_wanted(vaddr) {
                continue;
            }
            let name = names.get(symbol.st_name(endian) as usize..).unwrap_or_default();
            let name =
                name.iter().take(MAX_NAME as usize).position(|byte| *byte == 0).map(|end| &name[..end]);
            let is_part = symbol.st_bind() == STB_LOCAL && name.is_some_and(|name| contains(name, b".cold"));
            if is_part { &mut self.parts } else { &mut self.functions }.push(vaddr);
        }
    }
}

/// What LLVM's BOLT leaves of the code that it has laid out anew elsewhere: 60 MB in rustc's libraries that nothing runs.
const LEFT_BEHIND: &[u8] = b".bolt.org.";

/// vaddrs of executable sections, first and behind the last, in order; none where the file does not say.
pub(crate) fn code_sections<'a, R: ReadRef<'a>>(data: R) -> Vec<(u64, u64)> {
    let header = Header::parse(data);
    let Ok(sections) = header.and_then(|header| header.sections(LittleEndian, data)) else {
        return Vec::new();
    };
    let mut code: Vec<_> = sections
        .iter()
        .filter(|section| section.sh_flags(LittleEndian).0 & SHF_EXECINSTR.0 != 0)
        .filter(|section| {
            let name = sections.section_name(LittleEndian, section);
            name.is_ok_and(|name| !name.starts_with(LEFT_BEHIND))
        })
        .map(|section| {
            let start = section.sh_addr(LittleEndian);
            (start, start.saturating_add(section.sh_size(LittleEndian)))
        })
        .take(MAX_SECTIONS)
        .collect();
    code.sort_unstable();
    code
}

fn contains(name: &[u8], part: &[u8]) -> bool {
    name.windows(part.len()).any(|window| window == part)
}
