//! One object of a target: an ELF file with its symbols and its debug information, read when first
//! asked for.

use std::{collections::HashMap, ffi::OsStr, os::unix::ffi::OsStrExt as _, path::PathBuf, sync::Arc};

use super::{
    demangle::{demangle, printable_bytes},
    dwarf::{Dwarf, FindFile, SourceFrame},
    symbols::Symbols,
};
use crate::{
    elf::{
        Budget, ElfFile,
        debug_files::{Roots, open},
    },
    objects::ObjectFile,
};

/// Most addresses whose calls are remembered for one object.
const MAX_REMEMBERED: usize = 1 << 18;

/// A call in an object: all of a [`super::Frame`] that does not depend on where the object is
/// mapped.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Call {
    /// Demangled name.
    pub function: Option<String>,
    /// Name as the symbol table or DWARF has it.
    pub symbol: Option<String>,
    /// vaddr of the function's first byte; of an inlined one that of the function it was inlined
    /// into.
    pub start: Option<u64>,
    /// Source file.
    pub file: Option<String>,
    /// Source line.
    pub line: Option<u32>,
    /// Inlined into the next call's function.
    pub inlined: bool,
}

/// An object, and the names in it.
#[derive(Debug)]
pub(super) struct NamedObject {
    file: Arc<ObjectFile>,
    roots: Roots,
    names: Option<ObjectNames>,
    remembered: HashMap<u64, Arc<[Call]>>,
}

#[derive(Debug)]
struct ObjectNames {
    symbols: Symbols,
    dwarf: Option<Dwarf>,
}

impl NamedObject {
    /// An object whose debug files are looked for in `roots`.
    pub(super) fn new(file: Arc<ObjectFile>, roots: Roots) -> Self {
        Self { file, roots, names: None, remembered: HashMap::new() }
    }

    /// The calls at `vaddr`, innermost first; empty if neither a symbol nor debug information
    /// covers it.
    pub(super) fn calls(&mut self, vaddr: u64) -> Arc<[Call]> {
        if let Some(calls) = self.remembered.get(&vaddr) {
            return calls.clone();
        }
        let calls: Arc<[Call]> = self.look_up(vaddr).unwrap_or_default().into();
        if self.remembered.len() >= MAX_REMEMBERED {
            self.remembered.clear();
        }
        self.remembered.insert(vaddr, calls.clone());
        calls
    }

    /// Whether its symbols and debug information are held in memory.
    pub(super) fn has_names(&self) -> bool {
        self.names.is_some()
    }

    /// Gives back the memory of its names: they are read again when they are asked for.
    pub(super) fn forget_names(&mut self) {
        self.names = None;
    }

    fn look_up(&mut self, vaddr: u64) -> Option<Vec<Call>> {
        let elf = self.file.elf().ok()?;
        let names = self.names.get_or_insert_with(|| ObjectNames::read(elf, &self.file, &self.roots));
        let files = SplitFiles { roots: &self.roots, budget: &elf.budget() };
        let frames = names.dwarf.as_mut().map(|dwarf| dwarf.frames(vaddr, &files)).unwrap_or_default();
        if names.dwarf.as_ref().is_some_and(Dwarf::is_exhausted) {
            elf.budget().exceeded();
        }
        self.file.tell_budget();
        Some(names.calls(vaddr, frames))
    }
}

/// Split units, if the target's compiler left them.
struct SplitFiles<'a> {
    roots: &'a Roots,
    budget: &'a Budget,
}

impl FindFile for SplitFiles<'_> {
    fn find(&self, path: &[u8]) -> Option<ElfFile> {
        let root = self.roots.target.clone()?;
        Some(open(root, PathBuf::from(OsStr::from_bytes(path)), self.budget)?.elf)
    }
}

impl ObjectNames {
    /// Reads the symbols of `elf` and of its debug file, and prepares the debug information.
    fn read(elf: &ElfFile, file: &ObjectFile, roots: &Roots) -> Self {
        let path = file.path();
        let complete = elf.has_symbol_table() && Dwarf::is_in(elf);
        let (found, mini) = if complete { (None, None) } else { roots.symbol_files(elf, path) };
        let debug = found.as_ref().map(|found| &found.elf);
        let files: Vec<&ElfFile> = [Some(elf), debug, mini.as_ref()].into_iter().flatten().collect();
        let symbols = Symbols::read(&files);
        let (with_dwarf, found) = match Dwarf::is_in(elf) {
            true => (Some(elf), None),
            false => (debug.filter(|debug| Dwarf::is_in(debug)), found.as_ref()),
        };
        let dwarf = with_dwarf.and_then(|with_dwarf| {
            let supplementary = roots.supplementary(with_dwarf, path, found);
            let package = roots.package(path, found, &elf.budget());
            Dwarf::new(with_dwarf, supplementary.as_ref(), package.as_ref())
                .inspect_err(|error| log::debug!("{}: debug information left out: {error}", path.display()))
                .ok()
        });
        Self { symbols, dwarf }
    }

    /// Puts together what DWARF says of `vaddr` and what the symbol table says, which names the
    /// last one.
    fn calls(&self, vaddr: u64, frames: Vec<SourceFrame>) -> Vec<Call> {
        let symbol = self.symbols.find(vaddr);
        let start = symbol.as_ref().map(|symbol| symbol.start);
        let mut calls: Vec<Call> = frames
            .into_iter()
            .map(|frame| {
                let raw = frame.function.map(|name| String::from_utf8_lossy(&name).into_owned());
                Call {
                    function: raw.as_deref().map(demangle),
                    symbol: raw.map(|raw| printable_bytes(raw.as_bytes())),
                    start,
                    file: frame.file.map(|file| printable_bytes(file.as_bytes())),
                    line: frame.line,
                    inlined: true,
                }
            })
            .collect();
        if calls.is_empty() && symbol.is_some() {
            calls.push(Call { start, ..Call::default() });
        }
        if let Some(last) = calls.last_mut() {
            last.inlined = false;
            if let Some(symbol) = symbol {
                last.function = Some(demangle(&String::from_utf8_lossy(&symbol.name)));
                last.symbol = Some(printable_bytes(&symbol.name));
            }
        }
        calls
    }
}
