//! Function symbols by name, out of tables of any size: names are read piece by piece, in the order in which they lie in
//! the file. rustc's libraries have 20 MB of them, of which none is looked for.

use std::{collections::BTreeMap, fs::File, os::unix::fs::FileExt as _};

use object::{
    Endianness, elf,
    read::elf::{SectionHeader as _, Sym as _, SymbolTable},
};

use super::{Bounded, FunctionSymbol, Parsed, Segment, SymbolKind, SymbolNames};

/// Longest symbol name compared.
const MAX_NAME: usize = 512;
/// Bytes of names read at a time.
const WINDOW: usize = 256 << 10;

type Table<'a> = SymbolTable<'a, elf::FileHeader64<Endianness>, Bounded<'a>>;

/// Adds the functions named in `names` that `parsed`, which was read from `file`, defines for others to call, within the
/// code of `segments`.
///
/// Where a program is position-independent its linker makes hidden functions local ones: glibc's `malloc` is one in a
/// static-pie program. gold and lld leave the visibility to tell them by; GNU ld does not, and puts them behind those of
/// all source files, under an `STT_FILE` without a name (bfd/elflink.c, `elf_link_output_extsym`).
pub(super) fn collect_symbols(
    parsed: &Parsed<'_>,
    file: &File,
    names: &SymbolNames,
    segments: &[Segment],
    symbols: &mut BTreeMap<(String, u64), FunctionSymbol>,
) {
    let endian = parsed.endian();
    for table in [parsed.elf_dynamic_symbol_table(), parsed.elf_symbol_table()] {
        let strings = parsed.elf_section_table().section(table.string_section());
        let Some((offset, len)) = strings.ok().and_then(|section| section.file_range(endian)) else {
            continue;
        };
        let mut strings = Strings { file, budget: parsed.data(), offset, len, read: Vec::new(), start: 0 };
        for (symbol, kind) in defined_functions(table, endian, segments) {
            let Some(name) = strings.name_at(symbol.st_name(endian).into()) else { continue };
            if !names.contains(name) {
                continue;
            }
            let name = String::from_utf8_lossy(name).into_owned();
            let (vaddr, size) = (symbol.st_value(endian), symbol.st_size(endian));
            let known =
                symbols.entry((name.clone(), vaddr)).or_insert(FunctionSymbol { name, vaddr, size, kind });
            known.size = known.size.max(size);
        }
    }
}

/// The functions that others could call, in the order of their names in the file.
fn defined_functions<'a>(
    table: &Table<'a>,
    endian: Endianness,
    segments: &[Segment],
) -> Vec<(&'a elf::Sym64<Endianness>, SymbolKind)> {
    let mut in_a_source_file = true;
    let mut functions = Vec::new();
    for symbol in table.symbols() {
        let kind = match symbol.st_type() {
            elf::STT_FUNC => SymbolKind::Function,
            elf::STT_GNU_IFUNC => SymbolKind::Indirect,
            elf::STT_FILE => {
                // The first string of a table is the empty one (gABI, "String Table").
                in_a_source_file = symbol.st_name(endian) != 0;
                continue;
            }
            _ => continue,
        };
        let was_global = match symbol.st_bind() {
            elf::STB_GLOBAL | elf::STB_WEAK | elf::STB_GNU_UNIQUE => true,
            _ => !in_a_source_file || symbol.st_visibility() != elf::STV_DEFAULT,
        };
        let vaddr = symbol.st_value(endian);
        let is_code = |segment: &Segment| segment.executable && segment.offset_of(vaddr).is_some();
        if was_global && !symbol.is_undefined(endian) && segments.iter().any(is_code) {
            functions.push((symbol, kind));
        }
    }
    functions.sort_by_key(|(symbol, _)| symbol.st_name(endian));
    functions
}

/// A string table, of which a part is in memory.
struct Strings<'f, 'a> {
    file: &'f File,
    /// What else is read of the file, and counted with it.
    budget: Bounded<'a>,
    /// Where it is in the file.
    offset: u64,
    len: u64,
    /// Bytes from `start` on.
    read: Vec<u8>,
    start: u64,
}

impl Strings<'_, '_> {
    /// The name at `at`, without the version that `.symtab` has in it. `None`: it is not there, or too long.
    fn name_at(&mut self, at: u64) -> Option<&[u8]> {
        let end = at.checked_add(MAX_NAME as u64)?.min(self.len);
        if at < self.start || end > self.start + self.read.len() as u64 {
            let len = self.len.checked_sub(at)?.min(WINDOW as u64);
            self.budget.spend(len).ok()?;
            self.read.resize(len as usize, 0);
            self.start = at;
            if self.file.read_exact_at(&mut self.read, self.offset.checked_add(at)?).is_err() {
                self.read.clear();
            }
        }
        name_in(self.read.get(usize::try_from(at - self.start).ok()?..)?)
    }
}

/// The name that `bytes` begin with.
pub(super) fn name_in(bytes: &[u8]) -> Option<&[u8]> {
    let len = bytes.iter().take(MAX_NAME).position(|byte| matches!(byte, 0 | b'@'))?;
    bytes.get(..len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_a_name_at_its_version() {
        assert_eq!(name_in(b"memalign@@GLIBC_2.2.5\0free\0"), Some(&b"memalign"[..]));
        assert_eq!(name_in(b"free\0"), Some(&b"free"[..]));
        assert_eq!(name_in(b"\0free\0"), Some(&b""[..]));
        assert_eq!(name_in(b"free"), None);
        assert_eq!(name_in(&[b'a'; MAX_NAME + 1]), None);
    }
}
