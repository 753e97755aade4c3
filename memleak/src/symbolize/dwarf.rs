//! Source lines and inlined calls, from DWARF.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::Arc,
};

use addr2line::{Context, FunctionName, LookupContinuation, LookupResult, SplitDwarfLoad};
use gimli::{DwarfPackage, SectionId, UnitOffset, UnitRef};

use super::{
    members::{Holder, MemberAt, members},
    reader::{LimitedReader, with_fuel},
    scopes::{Missing, Scopes, missing, with_arguments},
};
use crate::elf::{Bytes, ElfFile};

/// Reads that a look-up may make at least, and for each byte of debug information over a whole
/// object's life; and at most, which takes a second.
const FUEL: (u64, u64) = (1 << 20, 16);
const MOST_FUEL: u64 = 128 << 20;

/// Longest section that is read, unpacked, bytes.
const MAX_SECTION: u64 = 128 << 20;

/// Most frames for one address.
const MAX_FRAMES: usize = 256;

/// A call, as DWARF tells it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct SourceFrame {
    /// Linkage name, if there is one, else the name.
    pub function: Option<Vec<u8>>,
    /// What the function is declared in, if `function` does not say it: `std::vector<...>`.
    pub scope: Option<String>,
    /// The function with its generic arguments, of Rust's library: `new<app::Session>`.
    pub with_arguments: Option<String>,
    /// Source file, relative to the directory of the compilation where it is inside.
    pub file: Option<String>,
    /// That directory, if `file` is relative to it.
    pub directory: Option<String>,
    /// Source line.
    pub line: Option<u32>,
}

/// The entry of a function, and what its name does not say.
type Incomplete = (UnitOffset<usize>, Missing);

type Unit<'a> = UnitRef<'a, LimitedReader>;

/// Calls with such entries, and the unit that they are in.
type Calls<'a> = (Vec<(SourceFrame, Option<Incomplete>)>, Option<Unit<'a>>);

/// Finds files that debug information names by path: `.dwo`, `.dwp`.
pub(super) trait FindFile {
    /// The file at `path` (absolute), if it can be opened and is an ELF file.
    fn find(&self, path: &[u8]) -> Option<ElfFile>;
}

/// The debug information of one object.
pub(super) struct Dwarf {
    context: Context<LimitedReader>,
    fuel: u64,
    scopes: Scopes,
    /// For those alone: a name without its scope is better than none.
    scope_fuel: u64,
    package: Option<DwarfPackage<LimitedReader>>,
}

impl std::fmt::Debug for Dwarf {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Dwarf").field("fuel", &self.fuel).finish_non_exhaustive()
    }
}

impl Dwarf {
    /// Whether `elf` has debug information at all.
    pub(super) fn is_in(elf: &ElfFile) -> bool {
        [&b".debug_info"[..], b".zdebug_info"]
            .iter()
            .any(|name| elf.section(name).is_some_and(|it| it.size > 0))
    }

    /// Reads the units of `elf`, whose references into a supplementary file go to `supplementary`;
    /// `package` holds its split units (`.dwp`).
    pub(super) fn new(
        elf: &ElfFile,
        supplementary: Option<&ElfFile>,
        package: Option<&ElfFile>,
    ) -> io::Result<Self> {
        let mut bytes = 0;
        let mut sections = load(elf, Form::Main, &mut bytes)?;
        if let Some(supplementary) = supplementary {
            sections.set_sup(load(supplementary, Form::Main, &mut bytes)?);
        }
        let fuel = (FUEL.0 + FUEL.1 * bytes).min(MOST_FUEL);
        let package = package.and_then(|elf| {
            let empty = LimitedReader::new(Bytes::default(), elf.format.little_endian);
            let section = |id: SectionId| Ok::<_, gimli::Error>(section(elf, id, Form::Package, &mut bytes));
            with_fuel(fuel, || DwarfPackage::load(section, empty)).0.ok()
        });
        let (context, fuel) = with_fuel(fuel, || Context::from_dwarf(sections));
        let context = context.map_err(io::Error::other)?;
        Ok(Self { context, fuel, scopes: Scopes::default(), scope_fuel: fuel, package })
    }

    /// The members of types ([`members`]) that the units of `elf` describe.
    pub(super) fn members(
        elf: &ElfFile,
        supplementary: Option<&ElfFile>,
        wanted: &HashSet<Holder>,
    ) -> HashMap<Holder, Vec<MemberAt>> {
        let mut bytes = 0;
        let Ok(mut sections) = load(elf, Form::Main, &mut bytes) else { return HashMap::new() };
        if let Some(Ok(more)) = supplementary.map(|elf| load(elf, Form::Main, &mut bytes)) {
            sections.set_sup(more);
        }
        let fuel = (FUEL.0 + FUEL.1 * bytes).min(MOST_FUEL);
        with_fuel(fuel, || members(&sections, wanted)).0.unwrap_or_default()
    }

    /// Whether it was too much to read to the end.
    pub(super) fn is_exhausted(&self) -> bool {
        self.fuel == 0
    }

    /// The calls at `vaddr`, innermost first; the last one is the function itself. Empty if
    /// nothing is known.
    pub(super) fn frames(&mut self, vaddr: u64, files: &dyn FindFile) -> Vec<SourceFrame> {
        if vaddr == u64::MAX {
            return Vec::new(); // addr2line computes the address after it.
        }
        let mut more = 0;
        let mut scopes = std::mem::take(&mut self.scopes);
        let (found, left) = with_fuel(self.fuel, || self.look_up(vaddr, files, &mut more));
        let (found, unit) = found.unwrap_or_default();
        let (mut frames, entries): (Vec<SourceFrame>, Vec<_>) = found.into_iter().unzip();
        let mut scope_fuel = self.scope_fuel;
        if let Some(unit) = unit.filter(|_| scope_fuel > 0 && entries.iter().any(Option::is_some)) {
            let work = || complete(unit, &entries, &mut scopes, &mut frames);
            scope_fuel = with_fuel(scope_fuel, work).1;
        }
        self.fuel = (left + more * FUEL.1).min(MOST_FUEL);
        (self.scopes, self.scope_fuel) = (scopes, scope_fuel);
        frames
    }

    /// The calls with the entries of those whose names do not say all, and the unit that they are
    /// in. What a function is in that is not inlined, the symbol table says.
    fn look_up(&self, vaddr: u64, files: &dyn FindFile, more: &mut u64) -> gimli::Result<Calls<'_>> {
        let mut load = |wanted| self.load_split(wanted, files, more);
        let mut found = resolve(self.context.find_frames(vaddr), &mut load)?;
        let unit = resolve(self.context.find_dwarf_and_unit(vaddr), &mut load);
        let directory = unit.and_then(|unit| unit.comp_dir.clone());
        let mut frames = Vec::new();
        while let Some(frame) = found.next()?
            && frames.len() < MAX_FRAMES
        {
            let file = frame.location.as_ref().and_then(|location| location.file);
            let file = file.map(|file| relative(file, directory.as_ref()));
            let is_relative = file.is_some_and(|file| !file.starts_with('/'));
            let folder = directory.as_ref().filter(|_| is_relative);
            let missing = |it: &FunctionName<LimitedReader>| missing(it.name.bytes(), it.language);
            let entry = frame.dw_die_offset.zip(frame.function.as_ref().and_then(missing));
            let source = SourceFrame {
                function: frame.function.map(|function| function.name.bytes().to_vec()),
                file: file.map(str::to_owned),
                directory: folder.map(|folder| String::from_utf8_lossy(folder.bytes()).into_owned()),
                line: frame.location.and_then(|location| location.line),
                scope: None,
                with_arguments: None,
            };
            frames.push((source, entry));
        }
        if let Some((_, entry)) = frames.last_mut() {
            *entry = entry.filter(|(_, missing)| *missing == Missing::Arguments);
        }
        Ok((frames, unit))
    }

    /// The split unit that a skeleton unit asks for: from the package, or a file of its own.
    fn load_split(
        &self,
        wanted: SplitDwarfLoad<LimitedReader>,
        files: &dyn FindFile,
        more: &mut u64,
    ) -> Option<Arc<gimli::Dwarf<LimitedReader>>> {
        if let Some(package) = &self.package
            && let Ok(Some(unit)) = package.find_cu(wanted.dwo_id, &wanted.parent)
        {
            return Some(Arc::new(unit));
        }
        let mut path = wanted.comp_dir.map(|directory| directory.bytes().to_vec()).unwrap_or_default();
        let name = wanted.path?.bytes().to_vec();
        if name.first() == Some(&b'/') {
            path.clear();
        } else {
            path.push(b'/');
        }
        path.extend_from_slice(&name);
        let mut sections = load(&files.find(&path)?, Form::Split, more).ok()?;
        sections.make_dwo(&wanted.parent);
        let unit = sections.units().next().ok()??;
        // A file of another build at the same place would describe other code.
        let unit = sections.unit(unit).ok()?;
        (unit.dwo_id == Some(wanted.dwo_id)).then(|| Arc::new(sections))
    }
}

/// Says of frames what their functions' names do not say; `entries`: of which, by their entries in
/// the unit.
fn complete(unit: Unit<'_>, entries: &[Option<Incomplete>], scopes: &mut Scopes, frames: &mut [SourceFrame]) {
    for (frame, entry) in frames.iter_mut().zip(entries) {
        match *entry {
            Some((entry, Missing::Scope)) => frame.scope = scopes.of(unit, entry).ok().flatten(),
            Some((entry, Missing::Arguments)) => {
                frame.with_arguments = with_arguments(unit, entry).ok().flatten();
            }
            None => {}
        }
    }
}

fn resolve<L>(
    mut result: LookupResult<L>,
    load: &mut dyn FnMut(SplitDwarfLoad<LimitedReader>) -> Option<Arc<gimli::Dwarf<LimitedReader>>>,
) -> L::Output
where
    L: LookupContinuation<Buf = LimitedReader>,
{
    loop {
        match result {
            LookupResult::Output(output) => return output,
            LookupResult::Load { load: wanted, continuation } => {
                result = continuation.resume(load(wanted));
            }
        }
    }
}

/// `file` without the directory of the compilation: as the compiler was told it. A relative
/// directory (distributions have paths rewritten) says something that would be lost.
fn relative<'a>(file: &'a str, directory: Option<&LimitedReader>) -> &'a str {
    let directory = directory.and_then(|directory| str::from_utf8(directory.bytes()).ok());
    let absolute = directory.filter(|directory| directory.starts_with('/'));
    let inside = absolute.and_then(|directory| file.strip_prefix(directory)?.strip_prefix('/'));
    inside.filter(|inside| !inside.is_empty()).unwrap_or(file)
}

/// Where sections are: how they are called, and which of them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Main,
    Split,
    Package,
}

fn load(elf: &ElfFile, form: Form, bytes: &mut u64) -> io::Result<gimli::Dwarf<LimitedReader>> {
    gimli::Dwarf::load(|id| Ok(section(elf, id, form, bytes)))
}

/// A section's bytes; empty if addr2line has no use for it, or it cannot be read.
fn section(elf: &ElfFile, id: SectionId, form: Form, bytes: &mut u64) -> LimitedReader {
    let unused = matches!(
        id,
        SectionId::DebugLoc
            | SectionId::DebugLocLists
            | SectionId::DebugMacinfo
            | SectionId::DebugMacro
            | SectionId::DebugNames
            | SectionId::DebugTypes
    );
    let name = match form {
        Form::Main => Some(id.name()),
        Form::Split | Form::Package => id.dwo_name(),
    };
    // The index of a package refers to all of its sections.
    let data = match name.filter(|_| !unused || form == Form::Package) {
        Some(name) => elf.data(name, MAX_SECTION).unwrap_or_default(),
        None => Bytes::default(),
    };
    *bytes += data.len() as u64;
    LimitedReader::new(data, elf.format.little_endian)
}
