//! Where an ELF file says that code is and functions begin.

use object::elf::STB_LOCAL;

use crate::elf::{ElfFile, symbols::SymbolTable};

/// Longest name that is looked at.
const MAX_NAME: usize = 256;

/// What symbol tables say; all of it can be gone, or lie.
#[derive(Debug, Default)]
pub(crate) struct CodeSymbols {
    /// vaddrs of functions.
    pub functions: Vec<u64>,
    /// vaddrs of what gcc moves out of functions: it is jumped to.
    pub parts: Vec<u64>,
}

impl CodeSymbols {
    /// Reads them, functions where `is_wanted` alone; a symbol table with more than `limit` symbols
    /// is left out.
    pub(crate) fn read(elf: &ElfFile, limit: u64, is_wanted: &dyn Fn(u64) -> bool) -> Self {
        let mut found = Self::default();
        for table in elf.symbol_tables().filter(|table| table.count() <= limit) {
            found.add(elf, table, is_wanted);
        }
        found
    }

    fn add(&mut self, elf: &ElfFile, table: SymbolTable<'_>, is_wanted: &dyn Fn(u64) -> bool) {
        let budget = elf.budget();
        let mut local = Vec::new();
        table.for_each(&budget, |_, symbol| {
            if symbol.is_function() && is_wanted(symbol.value) {
                match symbol.binding == STB_LOCAL.0 {
                    true => local.push((symbol.name, symbol.value)),
                    false => self.functions.push(symbol.value),
                }
            }
        });
        local.sort_unstable();
        let mut names = table.names(&budget);
        for (name, vaddr) in local {
            let is_part = names.at(name, MAX_NAME).is_some_and(|name| contains(name, b".cold"));
            if is_part { &mut self.parts } else { &mut self.functions }.push(vaddr);
        }
    }
}

/// What LLVM's BOLT leaves of the code that it has moved elsewhere: 60 MB in rustc's
/// libraries that nothing runs.
const LEFT_BEHIND: &[u8] = b".bolt.org.";

/// vaddrs of executable sections, first and after the last, in order; none if the file does not
/// say.
pub(crate) fn code_sections(elf: &ElfFile) -> Vec<(u64, u64)> {
    let mut code: Vec<_> = elf
        .sections
        .iter()
        .filter(|section| section.executable() && !section.name.starts_with(LEFT_BEHIND))
        .map(|section| (section.address, section.address.saturating_add(section.size)))
        .collect();
    code.sort_unstable();
    code
}

fn contains(name: &[u8], part: &[u8]) -> bool {
    name.windows(part.len()).any(|window| window == part)
}
