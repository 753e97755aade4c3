//! Relocation slots of an object: the places that the dynamic linker, or a static program's
//! start-up, fills with addresses.

use std::collections::{HashMap, HashSet};

use object::elf;

use super::object::Elf;
use crate::{
    arch::{self, relocations::RelocationTypes, returns::SlotFunction},
    elf::{ElfFile, RawSymbol},
};

/// Most relocation slots of one symbol; a linker makes two or three.
const MAX_SLOTS: usize = 256;
/// Most slots of an object whose functions are looked at.
const MAX_SLOTS_OF_ALL: usize = 1 << 18;
/// Bytes of a relocation with addend, for 64 bits (`Elf64_Rela`).
const RELA_BYTES: usize = 24;

/// Which of an object's relocation slots are meant.
#[derive(Clone, Copy, Debug)]
pub enum RelocationSlots<'a> {
    /// Those that get the result of the resolver at this address (`R_*_IRELATIVE`).
    OfResolver(u64),
    /// Those that get the address of this symbol (`R_*_JUMP_SLOT`, `R_*_GLOB_DAT`, `R_*_64`).
    OfSymbol(&'a str),
}

/// A place in the object's data that the dynamic linker, or a static program's start-up, fills with
/// an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Address of the slot in the object, before the load bias.
    pub vaddr: u64,
    /// What the file holds there. Until a lazy slot is resolved it is this, plus the load bias.
    pub initial: u64,
}

/// A relocation with an addend.
struct Relocation {
    vaddr: u64,
    kind: elf::RelocationType,
    symbol: u32,
    addend: u64,
}

impl Elf {
    /// The relocation slots that `which` describes. None of a damaged file.
    pub fn slots(&self, which: RelocationSlots<'_>) -> Vec<Slot> {
        let Some(elf) = self.elf() else { return Vec::new() };
        let RelocationTypes { irelative, plain } = arch::HOST.relocation_types();
        let mut named = HashSet::new();
        if let (RelocationSlots::OfSymbol(name), Some(table)) = (which, elf.dynamic_symbols()) {
            table.for_each_named(
                &elf.budget(),
                |_| true,
                |index, found| {
                    if found == name.as_bytes() {
                        named.insert(index);
                    }
                },
            );
        }
        let matches = |relocation: &Relocation| match which {
            RelocationSlots::OfResolver(vaddr) => relocation.kind == irelative && relocation.addend == vaddr,
            RelocationSlots::OfSymbol(_) => {
                plain.contains(&relocation.kind) && named.contains(&relocation.symbol)
            }
        };
        let mut vaddrs = Vec::new();
        for_each_relocation(elf, |relocation| {
            if matches(&relocation) {
                vaddrs.push(relocation.vaddr);
            }
            vaddrs.len() < MAX_SLOTS
        });
        vaddrs.into_iter().map(|vaddr| Slot { vaddr, initial: initial_word(elf, vaddr) }).collect()
    }

    /// What functions are called through which slots, as far as it is of use to who follows jumps:
    /// the object's own (other objects may define functions of the same names, which then are
    /// called in their stead), and those that return their first argument.
    pub fn functions_by_slot(&self) -> HashMap<u64, SlotFunction> {
        let mut by_slot = HashMap::new();
        let Some(elf) = self.elf() else { return by_slot };
        let functions = dynamic_functions(elf);
        let resolvers = resolvers_of_copiers(elf);
        let RelocationTypes { irelative, plain } = arch::HOST.relocation_types();
        for_each_relocation(elf, |relocation| {
            let is_of_copier = relocation.kind == irelative && resolvers.contains(&relocation.addend);
            let named = functions.get(&relocation.symbol).copied();
            let named = named.filter(|_| plain.contains(&relocation.kind) && relocation.addend == 0);
            let function = if is_of_copier { Some(SlotFunction::ReturnsArgument) } else { named };
            if let Some(function) = function {
                by_slot.insert(relocation.vaddr, function);
            }
            by_slot.len() < MAX_SLOTS_OF_ALL
        });
        by_slot
    }
}

/// Functions that return their first argument (POSIX; glibc's of `_FORTIFY_SOURCE`).
const COPIERS: [&[u8]; 7] =
    [b"memcpy", b"memmove", b"memset", b"strcpy", b"__memcpy_chk", b"__memmove_chk", b"__memset_chk"];

/// The functions that relocations name, by the indices of their symbols.
fn dynamic_functions(elf: &ElfFile) -> HashMap<u32, SlotFunction> {
    let mut functions = HashMap::new();
    let Some(table) = elf.dynamic_symbols() else { return functions };
    table.for_each(&elf.budget(), |index, symbol| {
        if symbol.is_function() && symbol.kind == elf::STT_FUNC.0 {
            functions.insert(index, SlotFunction::Own(symbol.value));
        }
    });
    table.for_each_named(
        &elf.budget(),
        |_| true,
        |index, name| {
            if COPIERS.contains(&name) {
                functions.insert(index, SlotFunction::ReturnsArgument);
            }
        },
    );
    functions
}

/// Addresses of the resolvers of [`COPIERS`].
fn resolvers_of_copiers(elf: &ElfFile) -> HashSet<u64> {
    let mut resolvers = HashSet::new();
    for table in elf.symbol_tables() {
        let is_resolver = |symbol: &RawSymbol| symbol.kind == elf::STT_GNU_IFUNC.0 && symbol.section != 0;
        let mut places = HashMap::new();
        table.for_each(&elf.budget(), |index, symbol| {
            if is_resolver(&symbol) {
                places.insert(index, symbol.value);
            }
        });
        table.for_each_named(&elf.budget(), is_resolver, |index, name| {
            if COPIERS.contains(&name) {
                resolvers.extend(places.get(&index));
            }
        });
    }
    resolvers
}

/// Calls `with` for all relocations, until it says that it is enough. What cannot be read has none.
fn for_each_relocation(elf: &ElfFile, mut with: impl FnMut(Relocation) -> bool) {
    let budget = elf.budget();
    let mut wants_more = true;
    for section in elf.sections.iter().filter(|section| section.kind == elf::SHT_RELA.0) {
        let _ = elf.source().pieces(section.offset, section.size, RELA_BYTES, &budget, |piece| {
            for bytes in piece.chunks_exact(RELA_BYTES) {
                let word = |at| elf.format.field(bytes, at, 8);
                let (vaddr, info, addend) = (word(0), word(8), word(16));
                let (kind, symbol) = (elf::RelocationType(info as u32), (info >> 32) as u32);
                wants_more = wants_more && with(Relocation { vaddr, kind, symbol, addend });
            }
            wants_more
        });
    }
}

/// The word that the file holds at `vaddr`, 0 if it holds none (`.bss`).
fn initial_word(elf: &ElfFile, vaddr: u64) -> u64 {
    let mut word = [0; 8];
    let read = elf.offset_of(vaddr).map(|offset| elf.source().read(offset, &mut word, &elf.budget()));
    if matches!(read, Some(Ok(()))) { u64::from_ne_bytes(word) } else { 0 }
}
