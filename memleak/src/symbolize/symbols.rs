//! The functions of an object, by address: from `.symtab` and `.dynsym`, its own and its debug file's.

use std::cmp::Ordering;

use object::elf;

use super::{
    bytes::{Budget, Bytes, Charge},
    elf::{Elf, RawSymbol, Section},
    strings::{Strings, string_at},
};

/// Most symbols of one object that are indexed. A browser with all its local symbols has 1.5 million.
const MAX_SYMBOLS: usize = 8 << 20;

/// Deepest nesting of functions that a look-up climbs out of.
const MAX_NESTING: usize = 64;

/// End of the parents' chain.
const NO_PARENT: u32 = u32::MAX;

/// A function found by address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// vaddr of its first byte.
    pub start: u64,
    /// Name, without a version.
    pub name: Vec<u8>,
}

/// Sorted functions: 32 bytes each.
#[derive(Debug, Default)]
pub struct Symbols {
    entries: Vec<Entry>,
    strings: Vec<Strings>,
    charge: Option<Charge>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    start: u64,
    /// vaddr after the last byte; of a symbol without a size at first the end of its section.
    end: u64,
    name: u32,
    /// Innermost entry before this one that reaches beyond its start, or [`NO_PARENT`].
    parent: u32,
    strings: u16,
    /// 0 GLOBAL, 1 WEAK, 2 LOCAL: the lower one names the function.
    rank: u8,
    sized: bool,
    label: bool,
}

const _: () = assert!(size_of::<Entry>() == 32);

impl Symbols {
    /// Indexes the functions in all symbol tables of `files`. A table that cannot be read is left out.
    pub fn read(files: &[&Elf]) -> Self {
        let mut symbols = Self::default();
        // All names, while they are compared.
        let mut names = Vec::new();
        for elf in files {
            for section in &elf.sections {
                if section.kind == elf::SHT_SYMTAB.0 || section.kind == elf::SHT_DYNSYM.0 {
                    symbols.add_table(elf, section, &mut names);
                }
            }
        }
        symbols.finish(files.first().map(|elf| elf.budget()), &names);
        symbols
    }

    /// The function that covers `vaddr`: the one that begins last, where several do.
    pub fn find(&self, vaddr: u64) -> Option<Function> {
        let mut index = self.entries.partition_point(|entry| entry.start <= vaddr).checked_sub(1)?;
        for _ in 0..MAX_NESTING {
            let entry = self.entries.get(index)?;
            if vaddr < entry.end {
                let mut name = self.strings.get(usize::from(entry.strings))?.get(entry.name)?;
                name.truncate(without_version(&name).len());
                return Some(Function { start: entry.start, name });
            }
            index = entry.parent as usize;
        }
        None
    }

    fn add_table(&mut self, elf: &Elf, section: &Section, names: &mut Vec<Bytes>) {
        let Some(strings) = elf.sections.get(section.link as usize) else { return };
        let (Ok(table), Ok(all)) = (elf.raw_data(section), elf.raw_data(strings)) else { return };
        let Ok(index) = u16::try_from(self.strings.len()) else { return };
        let before = self.entries.len();
        for bytes in table.chunks_exact(elf.format.symbol_size()) {
            let symbol = elf.format.symbol(bytes);
            if self.entries.len() < MAX_SYMBOLS
                && let Some(entry) = function(elf, &all, symbol, index)
            {
                self.entries.push(entry);
            }
        }
        if self.entries.len() > before {
            self.strings.push(elf.strings(strings, all.clone()));
            names.push(all);
        }
    }

    /// Sorts, leaves one name for each address, gives an end to what has none and links what nests.
    fn finish(&mut self, budget: Option<&Budget>, names: &[Bytes]) {
        let mut entries = std::mem::take(&mut self.entries);
        // What a table of names costs is only known when it is read; too large a one is given up as a whole.
        match budget.map(|budget| budget.charge((entries.len() * size_of::<Entry>()) as u64)) {
            Some(Ok(charge)) => self.charge = Some(charge),
            _ => return,
        }
        entries.sort_unstable_by(|a, b| a.start.cmp(&b.start).then_with(|| better(a, b, names)));
        entries.dedup_by(|alias, chosen| {
            let same = alias.start == chosen.start;
            if same && alias.sized && (!chosen.sized || alias.end > chosen.end) {
                (chosen.end, chosen.sized) = (alias.end, true);
                chosen.label &= alias.label;
            }
            same
        });
        drop_labels_inside_functions(&mut entries);
        for index in 0..entries.len() {
            let next = entries.get(index + 1).map_or(u64::MAX, |next| next.start);
            if let Some(entry) = entries.get_mut(index)
                && !entry.sized
            {
                entry.end = entry.end.min(next);
            }
        }
        link_parents(&mut entries);
        entries.shrink_to_fit();
        self.entries = entries;
    }
}

/// `Less` where `a` is the better name for the address that both have.
fn better(a: &Entry, b: &Entry, names: &[Bytes]) -> Ordering {
    let name = |entry: &Entry| {
        let strings = names.get(usize::from(entry.strings));
        without_version(strings.and_then(|strings| string_at(strings, entry.name)).unwrap_or_default())
    };
    let key = |entry: &Entry| {
        let name = name(entry);
        let underscores = name.iter().take_while(|&&byte| byte == b'_').count();
        (entry.label, entry.rank, underscores, name.len())
    };
    key(a).cmp(&key(b)).then_with(|| name(a).cmp(name(b))).then_with(|| b.end.cmp(&a.end))
}

/// A versioned name is `name@VERSION` or `name@@VERSION` in the .symtab of a static or an older linker's file.
fn without_version(name: &[u8]) -> &[u8] {
    match name.iter().position(|&byte| byte == b'@') {
        Some(at) if at > 0 => name.get(..at).unwrap_or(name),
        _ => name,
    }
}

/// The entry for a symbol that names code, `None` for any other.
fn function(elf: &Elf, strings: &Bytes, symbol: RawSymbol, table: u16) -> Option<Entry> {
    const ABSOLUTE: u16 = 0xfff1; // SHN_ABS
    const MORE: u16 = 0xffff; // SHN_XINDEX: the index is in another table
    if symbol.section == 0 || symbol.section == ABSOLUTE {
        return None;
    }
    let section = elf.sections.get(usize::from(symbol.section)).filter(|_| symbol.section != MORE);
    let hidden = symbol.visibility == elf::STV_HIDDEN.0 || symbol.visibility == elf::STV_INTERNAL.0;
    let label = match symbol.kind {
        kind if kind == elf::STT_FUNC.0 || kind == elf::STT_GNU_IFUNC.0 => false,
        // A function written in assembly without `.type`; as perf does, only where it is meant to be seen.
        kind if kind == elf::STT_NOTYPE.0 && section?.executable() && !hidden => true,
        _ => return None,
    };
    let name = string_at(strings, symbol.name)?;
    if name.is_empty() || (label && is_mapping_symbol(name)) {
        return None;
    }
    let rank = match symbol.binding {
        binding if binding == elf::STB_LOCAL.0 => 2,
        binding if binding == elf::STB_WEAK.0 => 1,
        _ => 0,
    };
    let section_end = section.map_or(u64::MAX, |section| section.address.saturating_add(section.size));
    let end = match symbol.size {
        0 => section_end,
        size => symbol.value.saturating_add(size),
    };
    Some(Entry {
        start: symbol.value,
        end,
        name: symbol.name,
        parent: NO_PARENT,
        strings: table,
        rank,
        sized: symbol.size != 0,
        label,
    })
}

/// `$a`, `$d`, `$t`, `$x` (and `$x.1`...): marks of the ARM and RISC-V ABIs; `.L...`: labels of the assembler.
fn is_mapping_symbol(name: &[u8]) -> bool {
    matches!(name, [b'$', b'a' | b'd' | b't' | b'x', ..] | [b'.', b'L', ..])
}

/// A label without a size inside a function that has one is a place in that function, not one of its own.
fn drop_labels_inside_functions(entries: &mut Vec<Entry>) {
    let mut covered = 0;
    entries.retain(|entry| {
        if !entry.sized {
            return entry.start >= covered;
        }
        if !entry.label {
            covered = covered.max(entry.end);
        }
        true
    });
}

fn link_parents(entries: &mut [Entry]) {
    let mut open: Vec<(u64, u32)> = Vec::new();
    for (index, entry) in entries.iter_mut().enumerate() {
        while open.last().is_some_and(|(end, _)| *end <= entry.start) {
            open.pop();
        }
        entry.parent = open.last().map_or(NO_PARENT, |(_, parent)| *parent);
        open.push((entry.end, index as u32));
    }
}
