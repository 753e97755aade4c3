//! The functions of an object, by address: from `.symtab` and `.dynsym`, its own and its debug
//! file's.

use std::ops::Range;

use object::elf;

use crate::{
    elf::{
        Budget, Charge, ElfFile, RawSymbol,
        symbols::{Strings, SymbolTable, without_version},
    },
    hurry,
};

/// Most names of one address that are compared. glibc has ten; a linker that folds equal functions
/// leaves thousands, of which one is as good as another.
const MAX_ALIASES: usize = 64;

/// Most functions of one object that are indexed. A browser with all its local symbols has 1.5
/// million.
const MAX_FUNCTIONS: usize = 5 << 19;

/// Longest name that is compared with others, bytes.
const MAX_COMPARED: usize = 4096;

/// Bytes of names that are kept while they are compared.
const MAX_KEPT: usize = 32 << 20;

/// Deepest nesting of functions that a look-up climbs out of.
const MAX_NESTING: usize = 64;

/// End of the parents' chain.
const NO_PARENT: u32 = u32::MAX;

/// A function found by address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Function {
    /// vaddr of its first byte.
    pub start: u64,
    /// Name, without a version.
    pub name: Vec<u8>,
}

/// Sorted functions: 32 bytes each.
#[derive(Debug, Default)]
pub(super) struct Symbols {
    entries: Vec<SymbolEntry>,
    strings: Vec<Strings>,
    charge: Option<Charge>,
}

#[derive(Clone, Copy, Debug)]
struct SymbolEntry {
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

const _: () = assert!(size_of::<SymbolEntry>() == 32);

impl Symbols {
    /// Indexes the functions in all symbol tables of `files`. A table that cannot be read is left
    /// out.
    pub(super) fn read(files: &[&ElfFile]) -> Self {
        let mut symbols = Self::default();
        let Some(budget) = files.first().map(|elf| elf.budget()) else { return symbols };
        let mut tables = Vec::new();
        for elf in files {
            for table in elf.symbol_tables() {
                symbols.add_table(elf, table, &mut tables);
            }
        }
        symbols.finish(&tables, &budget);
        symbols
    }

    /// The function that covers `vaddr`: the one that begins last, if several do.
    pub(super) fn find(&self, vaddr: u64) -> Option<Function> {
        let mut index = self.entries.partition_point(|entry| entry.start <= vaddr).checked_sub(1)?;
        for _ in 0..MAX_NESTING {
            let entry = self.entries.get(index)?;
            if vaddr < entry.end {
                let mut name = self.strings.get(usize::from(entry.strings))?.get(entry.name)?;
                name.truncate(without_version(&name).len());
                // An entry that has lost its string names nothing; what it is nested in may.
                if !name.is_empty() {
                    return Some(Function { start: entry.start, name });
                }
            }
            index = entry.parent as usize;
        }
        None
    }

    /// A function begins at `vaddr`.
    pub(super) fn begins_at(&self, vaddr: u64) -> bool {
        self.entries.binary_search_by_key(&vaddr, |entry| entry.start).is_ok()
    }

    fn add_table<'a>(&mut self, elf: &ElfFile, table: SymbolTable<'a>, tables: &mut Vec<SymbolTable<'a>>) {
        let Ok(index) = u16::try_from(tables.len()) else { return };
        let (budget, before) = (elf.budget(), self.entries.len());
        let mut labels = Vec::new();
        table.for_each(&budget, |_, symbol| {
            let Some(entry) = function(elf, symbol, index) else { return };
            if self.entries.len() + labels.len() >= MAX_FUNCTIONS {
                budget.exceeded();
            } else if entry.label {
                labels.push(entry);
            } else {
                self.entries.push(entry);
            }
        });
        labels.sort_unstable_by_key(|label| label.name);
        let mut names = table.names(&budget);
        labels
            .retain(|label| names.at(label.name, MAX_COMPARED).is_some_and(|name| !is_mapping_symbol(name)));
        self.entries.append(&mut labels);
        if self.entries.len() > before {
            self.strings.push(table.strings());
            tables.push(table);
        }
    }

    /// Sorts, leaves one name for each address, gives an end to what has none and links what nests.
    fn finish(&mut self, tables: &[SymbolTable<'_>], budget: &Budget) {
        let mut entries = std::mem::take(&mut self.entries);
        // What a table of names costs is only known when it is read; too large a one is given up as
        // a whole.
        match budget.charge((entries.len() * size_of::<SymbolEntry>()) as u64) {
            Ok(charge) => self.charge = Some(charge),
            Err(_) => return,
        }
        // With millions of symbols each step takes a tenth of a second or two.
        let steps: [Step<'_>; 4] = [
            &|entries| entries.sort_unstable_by_key(|entry| (entry.start, entry.label, entry.rank)),
            &|entries| put_best_names_first(entries, tables, budget),
            &|entries| one_for_each_address(entries),
            &|entries| link_parents(entries),
        ];
        for step in steps {
            if hurry::is_due() {
                self.charge = None;
                return;
            }
            step(&mut entries);
        }
        entries.shrink_to_fit();
        self.entries = entries;
    }
}

/// Some of the work on all entries.
type Step<'a> = &'a dyn Fn(&mut Vec<SymbolEntry>);

/// Leaves the first of the entries of each address, which are in order; gives an end to those that
/// have none.
fn one_for_each_address(entries: &mut Vec<SymbolEntry>) {
    entries.dedup_by(|alias, chosen| {
        let same = alias.start == chosen.start;
        if same && alias.sized && (!chosen.sized || alias.end > chosen.end) {
            (chosen.end, chosen.sized) = (alias.end, true);
            chosen.label &= alias.label;
        }
        same
    });
    drop_labels_inside_functions(entries);
    for index in 0..entries.len() {
        let next = entries.get(index + 1).map_or(u64::MAX, |next| next.start);
        if let Some(entry) = entries.get_mut(index)
            && !entry.sized
        {
            entry.end = entry.end.min(next);
        }
    }
}

/// One of several names of an address that look equally good until they are read.
struct Candidate {
    /// Index of the first entry with the address.
    first: u32,
    entry: u32,
    /// How many underscores the name begins with, and its length.
    shape: (usize, usize),
    /// Where the name is among those that are kept.
    name: Range<usize>,
}

/// Puts the plainest name of each address before the others: the fewest underscores, then the
/// shortest. The entries are in order of address, then rank. Names are read in the order in which
/// they lie in the file.
fn put_best_names_first(entries: &mut [SymbolEntry], tables: &[SymbolTable<'_>], budget: &Budget) {
    let mut candidates = candidates(entries);
    let place = |candidate: &Candidate| {
        entries.get(candidate.entry as usize).map_or((0, 0), |entry| (entry.strings, entry.name))
    };
    candidates.sort_unstable_by_key(place);
    let mut kept: Vec<u8> = Vec::new();
    let mut at = 0;
    for (number, table) in (0..).zip(tables) {
        let mut names = table.names(budget);
        while let Some(candidate) = candidates.get_mut(at)
            && let Some(entry) = entries.get(candidate.entry as usize)
            && entry.strings == number
        {
            at += 1;
            let name = names.at(entry.name, MAX_COMPARED).map(without_version);
            let Some(name) = name.filter(|name| !name.is_empty()) else { continue };
            candidate.shape = (name.iter().take_while(|&&byte| byte == b'_').count(), name.len());
            if kept.len() + name.len() <= MAX_KEPT {
                candidate.name = kept.len()..kept.len() + name.len();
                kept.extend_from_slice(name);
            }
        }
    }
    let name = |candidate: &Candidate| kept.get(candidate.name.clone()).unwrap_or_default();
    candidates.sort_unstable_by(|a, b| {
        (a.first, a.shape, name(a), a.entry).cmp(&(b.first, b.shape, name(b), b.entry))
    });
    for same in candidates.chunk_by(|a, b| a.first == b.first) {
        if let Some(best) = same.first() {
            entries.swap(best.first as usize, best.entry as usize);
        }
    }
}

/// The entries that share an address and its best rank with others.
fn candidates(entries: &[SymbolEntry]) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    let mut first = 0;
    for same in entries.chunk_by(|a, b| a.start == b.start) {
        let rank = |entry: &SymbolEntry| (entry.label, entry.rank);
        let best = same.first().map(rank);
        let equals = same.iter().take_while(|entry| Some(rank(entry)) == best);
        let count = equals.take(MAX_ALIASES).count() as u32;
        if count > 1 {
            let candidate = |entry| Candidate { first, entry, shape: (usize::MAX, 0), name: 0..0 };
            candidates.extend((first..first + count).map(candidate));
        }
        first += same.len() as u32;
    }
    candidates
}

/// The entry for a symbol that names code, `None` for any other.
fn function(elf: &ElfFile, symbol: RawSymbol, table: u16) -> Option<SymbolEntry> {
    const ABSOLUTE: u16 = 0xfff1; // SHN_ABS
    const MORE: u16 = 0xffff; // SHN_XINDEX: the index is in another table
    // The first string of a table is the empty one (gABI, "String Table").
    if symbol.section == 0 || symbol.section == ABSOLUTE || symbol.name == 0 {
        return None;
    }
    let section = elf.sections.get(usize::from(symbol.section)).filter(|_| symbol.section != MORE);
    let hidden = symbol.visibility == elf::STV_HIDDEN.0 || symbol.visibility == elf::STV_INTERNAL.0;
    let label = match symbol.kind {
        kind if kind == elf::STT_FUNC.0 || kind == elf::STT_GNU_IFUNC.0 => false,
        // A function written in assembly without `.type`; as perf does, only if it is meant to
        // be seen.
        kind if kind == elf::STT_NOTYPE.0 && section?.executable() && !hidden => true,
        _ => return None,
    };
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
    Some(SymbolEntry {
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

/// `$a`, `$d`, `$t`, `$x` (and `$x.1`...): marks of the ARM and RISC-V ABIs; `.L...`: labels of the
/// assembler.
fn is_mapping_symbol(name: &[u8]) -> bool {
    matches!(name, [b'$', b'a' | b'd' | b't' | b'x', ..] | [b'.', b'L', ..])
}

/// A label without a size inside a function that has one is a place in that function, not one of
/// its own.
fn drop_labels_inside_functions(entries: &mut Vec<SymbolEntry>) {
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

fn link_parents(entries: &mut [SymbolEntry]) {
    let mut open: Vec<(u64, u32)> = Vec::new();
    for (index, entry) in entries.iter_mut().enumerate() {
        while open.last().is_some_and(|(end, _)| *end <= entry.start) {
            open.pop();
        }
        entry.parent = open.last().map_or(NO_PARENT, |(_, parent)| *parent);
        open.push((entry.end, index as u32));
    }
}
