//! Where an ELF file says that code is and functions begin.

use object::{
    LittleEndian, ReadRef,
    elf::{FileHeader64, SHF_EXECINSTR, SHT_DYNSYM, SHT_SYMTAB, STT_FUNC, STT_GNU_IFUNC},
    read::elf::{FileHeader as _, SectionHeader as _, Sym as _},
};

/// Most sections of code that are believed.
const MAX_SECTIONS: usize = 1 << 16;

/// Bytes of an entry of a symbol table.
const SYMBOL_BYTES: u64 = 24;

/// What sections and symbol tables say; all of it can be gone, or lie.
#[derive(Debug, Default)]
pub(in super::super) struct Symbols {
    /// vaddrs of executable sections, first and behind the last, in order.
    pub code: Vec<(u64, u64)>,
    /// vaddrs of functions.
    pub functions: Vec<u64>,
    /// vaddrs of what gcc moves out of functions: it is jumped to.
    pub parts: Vec<u64>,
}

impl Symbols {
    /// Reads them; a symbol table with more than `limit` symbols is left out.
    pub(in super::super) fn read<'a, R: ReadRef<'a>>(data: R, limit: u64) -> Self {
        Self::try_read(data, limit).unwrap_or_default()
    }

    fn try_read<'a, R: ReadRef<'a>>(data: R, limit: u64) -> Option<Self> {
        let header = FileHeader64::<LittleEndian>::parse(data).ok()?;
        let endian = header.endian().ok()?;
        let sections = header.sections(endian, data).ok()?;
        let mut found = Self::default();
        for section in
            sections.iter().filter(|section| section.sh_flags(endian).0 & u64::from(SHF_EXECINSTR.0) != 0)
        {
            let start = section.sh_addr(endian);
            found.code.push((start, start.checked_add(section.sh_size(endian))?));
        }
        found.code.truncate(MAX_SECTIONS);
        found.code.sort_unstable();
        for kind in [SHT_SYMTAB, SHT_DYNSYM] {
            let table = sections.iter().find(|section| section.sh_type(endian) == kind);
            if table.is_none_or(|table| table.sh_size(endian) / SYMBOL_BYTES > limit) {
                continue;
            }
            let Ok(symbols) = sections.symbols(endian, data, kind) else { continue };
            for symbol in symbols.iter() {
                let is_function = [STT_FUNC, STT_GNU_IFUNC].contains(&symbol.st_type());
                if !is_function || symbol.is_undefined(endian) {
                    continue;
                }
                let name = symbol.name(endian, symbols.strings()).unwrap_or_default();
                let list = if contains(name, b".cold") { &mut found.parts } else { &mut found.functions };
                list.push(symbol.st_value(endian));
            }
        }
        Some(found)
    }
}

fn contains(name: &[u8], part: &[u8]) -> bool {
    name.windows(part.len()).any(|window| window == part)
}
