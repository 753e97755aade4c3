//! One object of a target: an ELF file with its symbols and its debug information, read when first asked for.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use object::elf;

use super::{
    bytes::{Budget, Source},
    debug_files::{Roots, SplitFiles},
    demangle::{demangle, printable_bytes},
    dwarf::{Dwarf, SourceFrame},
    elf::Elf,
    identity::Identity,
    symbols::Symbols,
};

/// Most addresses whose calls are remembered for one object.
const MAX_REMEMBERED: usize = 1 << 18;

/// A call in an object: all of a [`super::Frame`] that does not depend on where the object is mapped.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Call {
    /// Demangled name.
    pub function: Option<String>,
    /// Name as the symbol table or DWARF has it.
    pub symbol: Option<String>,
    /// vaddr of the function's first byte; of an inlined one that of the function it was inlined into.
    pub start: Option<u64>,
    /// Source file.
    pub file: Option<String>,
    /// Source line.
    pub line: Option<u32>,
    /// Inlined into the next call's function.
    pub inlined: bool,
}

/// An object, open.
#[derive(Debug)]
pub struct Object {
    path: PathBuf,
    roots: Roots,
    budget: Budget,
    content: Content,
    remembered: HashMap<u64, Arc<[Call]>>,
}

#[derive(Debug)]
enum Content {
    /// Open, not looked at yet.
    Open(Option<Source>),
    Read(Box<Read>),
    /// Not to be opened, or no ELF file.
    Unreadable,
}

#[derive(Debug)]
struct Read {
    elf: Elf,
    names: Option<Names>,
}

#[derive(Debug)]
struct Names {
    symbols: Symbols,
    dwarf: Option<Dwarf>,
}

impl Object {
    /// An object from `source`, mapped as `path`, whose debug files are looked for in `roots`.
    pub fn new(source: io::Result<Source>, path: &Path, roots: Roots, budget: &Budget) -> Self {
        let content = match source {
            Ok(source) => Content::Open(Some(source)),
            Err(error) => {
                log::debug!("{}: cannot be opened, so its functions have no names: {error}", path.display());
                Content::Unreadable
            }
        };
        Self { path: path.to_owned(), roots, budget: budget.clone(), content, remembered: HashMap::new() }
    }

    /// Whether it could not be opened (it may be worth another try).
    pub fn is_unreadable(&self) -> bool {
        matches!(self.content, Content::Unreadable)
    }

    /// The vaddr of a byte of the file; `None` where the object cannot be read.
    pub fn vaddr_of(&mut self, file_offset: u64) -> Option<u64> {
        self.read()?.elf.vaddr_of(file_offset)
    }

    /// What makes it the same object as another file; `None` where it cannot be read.
    pub fn identity(&mut self) -> Option<Identity> {
        self.read().map(|read| Identity::of(&read.elf))
    }

    /// The calls at `vaddr`, innermost first; empty where neither a symbol nor debug information covers it.
    pub fn calls(&mut self, vaddr: u64) -> Arc<[Call]> {
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

    fn read(&mut self) -> Option<&mut Read> {
        if let Content::Open(source) = &mut self.content {
            let parsed = source.take().map(|source| Elf::parse(source, &self.budget));
            self.content = match parsed {
                Some(Ok(elf)) => Content::Read(Box::new(Read { elf, names: None })),
                _ => Content::Unreadable,
            };
        }
        match &mut self.content {
            Content::Read(read) => Some(read),
            Content::Open(_) | Content::Unreadable => None,
        }
    }

    fn look_up(&mut self, vaddr: u64) -> Option<Vec<Call>> {
        let (path, roots, budget) = (self.path.clone(), self.roots.clone(), self.budget.clone());
        let read = self.read()?;
        let names = read.names.get_or_insert_with(|| Names::read(&read.elf, &path, &roots));
        let files = SplitFiles { roots: &roots, budget: &budget };
        let frames = names.dwarf.as_mut().map(|dwarf| dwarf.frames(vaddr, &files)).unwrap_or_default();
        Some(names.calls(vaddr, frames))
    }
}

impl Names {
    /// Reads the symbols of `elf` and of its debug file, and prepares the debug information.
    fn read(elf: &Elf, path: &Path, roots: &Roots) -> Self {
        let has_symbols = |elf: &Elf| elf.sections.iter().any(|section| section.kind == elf::SHT_SYMTAB.0);
        let complete = has_symbols(elf) && Dwarf::is_in(elf);
        let found = if complete { None } else { roots.debug_file(elf, path) };
        let debug = found.as_ref().map(|found| &found.elf);
        let mini = match has_symbols(elf) || debug.is_some_and(has_symbols) {
            true => None,
            false => elf.mini_debug_info(),
        };
        let files: Vec<&Elf> = [Some(elf), debug, mini.as_ref()].into_iter().flatten().collect();
        let symbols = Symbols::read(&files);
        let (with_dwarf, found) = match Dwarf::is_in(elf) {
            true => (Some(elf), None),
            false => (debug.filter(|debug| Dwarf::is_in(debug)), found.as_ref()),
        };
        let dwarf = with_dwarf.and_then(|with_dwarf| {
            let supplementary = roots.supplementary(with_dwarf, path, found);
            let package = roots.package(path, found, elf.budget());
            Dwarf::new(with_dwarf, supplementary.as_ref(), package.as_ref())
                .inspect_err(|error| log::debug!("{}: debug information left out: {error}", path.display()))
                .ok()
        });
        Self { symbols, dwarf }
    }

    /// Puts together what DWARF says of `vaddr` and what the symbol table says, which names the last one.
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
