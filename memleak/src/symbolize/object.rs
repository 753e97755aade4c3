//! One object of a target: an ELF file with its symbols and its debug information, read when first
//! asked for.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
    sync::Arc,
};

use super::{
    demangle::{demangle, printable_bytes},
    dwarf::{Dwarf, FindFile, SourceFrame},
    members::{Holder, MemberAt},
    symbols::Symbols,
};
use crate::{
    arch::Machine,
    elf::{
        Budget, ElfFile,
        debug_files::{Roots, open},
        file::RawSymbol,
    },
    objects::ObjectFile,
};

/// Most addresses whose calls are remembered for one object.
const MAX_REMEMBERED: usize = 1 << 18;

/// Bytes of code that tell the way back from a signal handler, on any machine.
const LONGEST_SIGNAL_RETURN: usize = 9;

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
    /// The folder that it is in, if it is not a whole path.
    pub directory: Option<String>,
    /// Source line.
    pub line: Option<u32>,
    /// Inlined into the next call's function.
    pub inlined: bool,
    /// See [`super::Frame::with_arguments`].
    pub with_arguments: Option<String>,
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

    /// The calls that return to `vaddr`, innermost first; empty if neither a symbol nor debug
    /// information covers them.
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

    /// The members of these types and variables, as far as it describes them.
    pub(super) fn members(&self, wanted: &HashSet<Holder>) -> HashMap<Holder, Vec<MemberAt>> {
        let Ok(elf) = self.file.elf() else { return HashMap::new() };
        let path = self.file.path();
        let (found, _) = if Dwarf::is_in(elf) { (None, None) } else { self.roots.symbol_files(elf, path) };
        let with_dwarf = found.as_ref().map_or(elf, |found| &found.elf);
        let supplementary = self.roots.supplementary(with_dwarf, path, found.as_ref());
        Dwarf::members(with_dwarf, supplementary.as_ref(), wanted)
    }

    /// The variable at `vaddr`.
    pub(super) fn variable(&self, vaddr: u64) -> Option<Variable> {
        let elf = self.file.elf().ok()?;
        let (found, _) = if elf.has_symbol_table() {
            (None, None)
        } else {
            self.roots.symbol_files(elf, self.file.path())
        };
        [Some(elf), found.as_ref().map(|found| &found.elf)]
            .into_iter()
            .flatten()
            .find_map(|elf| variable_in(elf, vaddr))
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
        // The byte before belongs to the call, the address itself may be another line's or another
        // function's. But the way back from a signal handler is called by nobody.
        let is_entered = names.symbols.begins_at(vaddr) && is_signal_return(elf, vaddr);
        let vaddr = if is_entered { vaddr } else { vaddr.checked_sub(1)? };
        let files = SplitFiles { roots: &self.roots, budget: &elf.budget() };
        let frames = names.dwarf.as_mut().map(|dwarf| dwarf.frames(vaddr, &files)).unwrap_or_default();
        if names.dwarf.as_ref().is_some_and(Dwarf::is_exhausted) {
            elf.budget().exceeded();
        }
        self.file.tell_budget();
        Some(names.calls(vaddr, frames))
    }
}

/// The code at `vaddr` is the way back from a signal handler.
fn is_signal_return(elf: &ElfFile, vaddr: u64) -> bool {
    let mut code = [0; LONGEST_SIGNAL_RETURN];
    let machine = Machine::from_elf(object::elf::Machine(elf.machine));
    let Some((machine, offset)) = machine.zip(elf.offset_of(vaddr)) else { return false };
    elf.source().read(offset, &mut code, &elf.budget()).is_ok() && machine.is_signal_return(&code)
}

/// A variable of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Demangled name.
    pub name: String,
    /// Path of the object as the target names it.
    pub module: Option<String>,
    /// Bytes from its beginning.
    pub offset: u64,
}

/// By the symbol tables of `elf`: the smallest variable that has the byte at `vaddr`.
fn variable_in(elf: &ElfFile, vaddr: u64) -> Option<Variable> {
    const STT_OBJECT: u8 = 1;
    let mut best: Option<(u64, u64, String)> = None;
    for table in elf.symbol_tables() {
        let has = |symbol: &RawSymbol| {
            let offset = vaddr.checked_sub(symbol.value);
            symbol.kind == STT_OBJECT
                && symbol.section != 0
                && offset.is_some_and(|offset| offset < symbol.size)
        };
        let mut places = HashMap::new();
        let wanted = |symbol: &RawSymbol| has(symbol).then(|| places.insert(symbol.name, *symbol)).is_some();
        let mut names = Vec::new();
        table.for_each_named(&elf.budget(), wanted, |_, name| names.push(name.to_vec()));
        for (symbol, name) in places.values().zip(names) {
            let found = (symbol.size, vaddr - symbol.value, demangle(&String::from_utf8_lossy(&name)));
            best = Some(best.map_or(found.clone(), |best| best.min(found)));
        }
    }
    best.map(|(_, offset, name)| Variable { name, module: None, offset })
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
                let function = raw.as_deref().map(|raw| match &frame.scope {
                    Some(scope) => printable_bytes(format!("{scope}::{raw}").as_bytes()),
                    None => demangle(raw),
                });
                Call {
                    function,
                    symbol: raw.map(|raw| printable_bytes(raw.as_bytes())),
                    start,
                    file: frame.file.map(|file| printable_bytes(file.as_bytes())),
                    directory: frame.directory.map(|folder| printable_bytes(folder.as_bytes())),
                    line: frame.line,
                    inlined: true,
                    with_arguments: frame.with_arguments.map(|name| printable_bytes(name.as_bytes())),
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
