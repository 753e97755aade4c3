//! The parts of an ELF file that probing needs: function symbols, code, relocation slots.
//!
//! A file is read, never mapped: whoever owns it can cut it short at any time, and a mapping would then end us with
//! SIGBUS. What is kept is small (symbols that were asked for); the rest is read again when it is needed.

mod symbols;

use std::{
    cell::Cell,
    collections::{BTreeMap, HashSet},
    fs::File,
    ops::Range,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use memchr::memmem;
use object::{
    Endianness, Object as _, elf,
    read::{
        ReadCache, ReadRef,
        elf::{
            Dyn as _, ElfFile64, FileHeader as _, ProgramHeader as _, Rela as _, SectionHeader as _, Sym as _,
        },
    },
};

use super::object::{ObjectError, open_regular};
use crate::{
    arch::{self, Machine, relocations::RelocationTypes},
    proc::maps::Mapping,
};
use symbols::{collect_symbols, name_in};

/// Most bytes read of one file while it is parsed. A large browser with all its symbols has some 300 MB of them.
const READ_BUDGET: u64 = 1 << 30;
/// Longest function whose body is read.
const MAX_CODE: u64 = 1 << 20;
/// Bytes read at a time where a text is looked for.
const SEARCH_WINDOW: usize = 1 << 20;
/// Most bytes of a segment in which a text is looked for.
const MAX_SEARCHED: u64 = 512 << 20;
/// Most program headers kept; real files have about a dozen.
const MAX_SEGMENTS: usize = 256;
/// Most relocation slots of one symbol; a linker makes two or three.
const MAX_SLOTS: usize = 256;

/// What a function symbol stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SymbolKind {
    /// `STT_FUNC`: the function is at the symbol's address.
    Function,
    /// `STT_GNU_IFUNC`: a resolver is there, which returns the function's address.
    Indirect,
}

/// A defined function that other source files could call: global, weak, or hidden. A `static` one has its name to itself:
/// such a `free` is not the allocator's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FunctionSymbol {
    /// Without version (`memalign`, not `memalign@@GLIBC_2.2.5`).
    pub name: String,
    /// Address in the object, before the load bias.
    pub vaddr: u64,
    /// Bytes of code; 0 where the symbol table does not say.
    pub size: u64,
    /// Function or resolver.
    pub kind: SymbolKind,
}

/// Names that are looked for: an object keeps the symbols named here and forgets the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SymbolNames {
    whole: HashSet<Vec<u8>>,
    endings: Vec<Vec<u8>>,
}

impl SymbolNames {
    /// The same, and every name that ends with one of `endings`.
    pub fn with_endings<S: Into<String>>(self, endings: impl IntoIterator<Item = S>) -> Self {
        let endings = endings.into_iter().map(|ending| ending.into().into_bytes()).collect();
        Self { endings, ..self }
    }

    /// A symbol of this name is to be kept.
    fn contains(&self, name: &[u8]) -> bool {
        self.whole.contains(name) || self.endings.iter().any(|ending| name.ends_with(ending))
    }
}

impl<S: Into<String>> FromIterator<S> for SymbolNames {
    fn from_iter<I: IntoIterator<Item = S>>(names: I) -> Self {
        let whole = names.into_iter().map(|name| name.into().into_bytes()).collect();
        Self { whole, endings: Vec::new() }
    }
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    vaddr: u64,
    offset: u64,
    /// Bytes in the file.
    size: u64,
    executable: bool,
}

/// Which of an object's relocation slots are meant.
#[derive(Clone, Copy, Debug)]
pub enum Slots<'a> {
    /// Those that get the result of the resolver at this address (`R_*_IRELATIVE`).
    OfResolver(u64),
    /// Those that get the address of this symbol (`R_*_JUMP_SLOT`, `R_*_GLOB_DAT`, `R_*_64`).
    OfSymbol(&'a str),
}

/// A place in the object's data that the dynamic linker, or a static program's start-up, fills with an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Address of the slot in the object, before the load bias.
    pub vaddr: u64,
    /// What the file holds there. Until a lazy slot is resolved it is this, plus the load bias.
    pub initial: u64,
}

/// The parts of an ELF file that matter here.
#[derive(Debug)]
pub struct Elf {
    file: File,
    segments: Vec<Segment>,
    /// In order of name, then address; each pair once.
    symbols: Vec<FunctionSymbol>,
    build_id: Option<Vec<u8>>,
    is_static: bool,
    is_go: bool,
    has_symbol_table: bool,
    is_program: bool,
}

/// A file read piece by piece, up to a budget.
#[derive(Clone, Copy)]
struct Bounded<'a> {
    cache: &'a ReadCache<&'a File>,
    budget: &'a Cell<u64>,
}

impl Bounded<'_> {
    /// Counts bytes that are about to be read.
    fn spend(self, bytes: u64) -> Result<(), ()> {
        self.budget.set(self.budget.get().checked_sub(bytes).ok_or(())?);
        Ok(())
    }
}

impl<'a> ReadRef<'a> for Bounded<'a> {
    fn len(self) -> Result<u64, ()> {
        self.cache.len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        self.spend(size)?;
        self.cache.read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'a [u8], ()> {
        // Section names; the cache reads 4096 bytes at most.
        self.spend(4096)?;
        self.cache.read_bytes_at_until(range, delimiter)
    }
}

type Parsed<'a> = ElfFile64<'a, Endianness, Bounded<'a>>;

/// Parses `file` and hands the result to `use_it`.
fn with_parsed<T>(
    file: &File,
    use_it: impl FnOnce(&Parsed<'_>) -> Result<T, ObjectError>,
) -> Result<T, ObjectError> {
    let (cache, budget) = (ReadCache::new(file), Cell::new(READ_BUDGET));
    let data = Bounded { cache: &cache, budget: &budget };
    let ident = data.read_bytes_at(0, 20).map_err(|()| ObjectError::NotElf)?;
    if !ident.starts_with(&elf::ELFMAG) {
        return Err(ObjectError::NotElf);
    }
    if ident.get(4) != Some(&elf::ELFCLASS64.0) {
        return Err(ObjectError::ForeignMachine);
    }
    use_it(&Parsed::parse(data).map_err(ObjectError::Damaged)?)
}

impl Elf {
    pub(super) fn read(file: File, names: &SymbolNames) -> Result<Self, ObjectError> {
        let mut this = with_parsed(&file, |parsed| Self::from_parsed(parsed, names, file.try_clone()?))?;
        if !this.has_symbol_table && this.is_program {
            this.add_separate_symbols(Path::new("/usr/lib/debug/.build-id"), names);
        }
        Ok(this)
    }

    fn from_parsed(parsed: &Parsed<'_>, names: &SymbolNames, file: File) -> Result<Self, ObjectError> {
        let (endian, header) = (parsed.endian(), parsed.elf_header());
        let machine = header.e_machine(endian);
        let is_hosts = Machine::from_elf(machine) == Some(arch::HOST);
        if !is_hosts || parsed.is_little_endian() != cfg!(target_endian = "little") {
            return Err(ObjectError::ForeignMachine);
        }
        let file_type = header.e_type(endian);
        if !matches!(file_type, elf::ET_EXEC | elf::ET_DYN) {
            return Err(ObjectError::NotLoadable);
        }
        let segments = segments(parsed);
        let mut symbols = BTreeMap::new();
        collect_symbols(parsed, &file, names, &segments, &mut symbols);
        let has_interpreter =
            parsed.elf_program_headers().iter().any(|header| header.p_type(endian) == elf::PT_INTERP);
        // DF_1_PIE tells a static-pie program from a shared object such as the dynamic linker; a name of its own tells
        // the C library, which can be started, too, from a program.
        let flags = dynamic_entry(parsed, elf::DT_FLAGS_1).unwrap_or(0);
        let is_static = !has_interpreter && (file_type == elf::ET_EXEC || flags & elf::DF_1_PIE.0 != 0);
        let has_name = dynamic_entry(parsed, elf::DT_SONAME).is_some();
        Ok(Self {
            file,
            segments,
            symbols: symbols.into_values().collect(),
            build_id: parsed.build_id().ok().flatten().map(<[u8]>::to_vec),
            is_static,
            is_go: is_go(parsed),
            has_symbol_table: !parsed.elf_symbol_table().is_empty(),
            is_program: is_static || (has_interpreter && !has_name),
        })
    }

    /// Adds the symbols of the debug file that belongs to this object by its build id, if there is one in
    /// `directory` (`/usr/lib/debug/.build-id`).
    fn add_separate_symbols(&mut self, directory: &Path, names: &SymbolNames) {
        let Some(path) = self.build_id.as_deref().and_then(|id| debug_file_path(directory, id)) else {
            return;
        };
        let Ok(file) = open_regular(&path) else { return };
        let mut symbols: BTreeMap<_, _> =
            self.symbols.drain(..).map(|symbol| ((symbol.name.clone(), symbol.vaddr), symbol)).collect();
        let has_symbols = with_parsed(&file, |parsed| {
            let same = parsed.build_id().ok().flatten() == self.build_id.as_deref();
            if same {
                collect_symbols(parsed, &file, names, &self.segments, &mut symbols);
            }
            Ok(same && !parsed.elf_symbol_table().is_empty())
        });
        self.has_symbol_table = has_symbols.unwrap_or(false);
        self.symbols = symbols.into_values().collect();
    }

    /// The functions that were asked for and are defined here, in order of name, then address.
    pub fn symbols(&self) -> &[FunctionSymbol] {
        &self.symbols
    }

    /// The definitions of `name`: one for each address, several where old versions have code of their own.
    pub fn symbols_named(&self, name: &str) -> &[FunctionSymbol] {
        let start = self.symbols.partition_point(|symbol| symbol.name.as_str() < name);
        let rest = self.symbols.get(start..).unwrap_or_default();
        let len = rest.partition_point(|symbol| symbol.name == name);
        rest.get(..len).unwrap_or_default()
    }

    /// A function of this name (one of those asked for) is defined here.
    pub fn defines(&self, name: &str) -> bool {
        !self.symbols_named(name).is_empty()
    }

    /// Contents of the note `NT_GNU_BUILD_ID`.
    pub fn build_id(&self) -> Option<&[u8]> {
        self.build_id.as_deref()
    }

    /// A program that no dynamic linker loads (static or static-pie).
    pub fn is_static(&self) -> bool {
        self.is_static
    }

    /// Built by the Go toolchain.
    pub fn is_go(&self) -> bool {
        self.is_go
    }

    /// A program, static or not; no shared library.
    pub fn is_program(&self) -> bool {
        self.is_program
    }

    /// It, or its separate debug file, has a `.symtab`.
    pub fn has_symbol_table(&self) -> bool {
        self.has_symbol_table
    }

    /// Addresses of its code, before the load bias.
    pub fn code_ranges(&self) -> impl Iterator<Item = Range<u64>> {
        let code = self.segments.iter().filter(|segment| segment.executable);
        code.map(|segment| segment.vaddr..segment.vaddr.saturating_add(segment.size))
    }

    /// Offset in the file of the code at `vaddr`, by the executable `PT_LOAD` segments.
    pub fn file_offset_of(&self, vaddr: u64) -> Option<u64> {
        self.code_segment(vaddr).map(|segment| (vaddr - segment.vaddr).wrapping_add(segment.offset))
    }

    /// Up to `size` bytes of code at `vaddr`; fewer at the end of the segment, none where there is no code or no way
    /// to read it.
    pub fn code(&self, vaddr: u64, size: u64) -> Vec<u8> {
        let (Some(segment), Some(offset)) = (self.code_segment(vaddr), self.file_offset_of(vaddr)) else {
            return Vec::new();
        };
        let size = size.min(segment.vaddr.saturating_add(segment.size) - vaddr).min(MAX_CODE);
        let mut code = vec![0; size as usize];
        match self.file.read_exact_at(&mut code, offset) {
            Ok(()) => code,
            Err(_) => Vec::new(),
        }
    }

    /// All of the code of the function at `vaddr`; `None` where its size is not known or it cannot be read whole.
    pub fn whole_function(&self, vaddr: u64, size: u64) -> Option<Vec<u8>> {
        let code = self.code(vaddr, size);
        (size > 0 && code.len() as u64 == size).then_some(code)
    }

    /// The first of `texts` (its index) that the file's data or code holds, in the order of `texts`. Reads the whole file.
    pub fn find_first(&self, texts: &[&[u8]]) -> Option<usize> {
        let overlap = texts.iter().map(|text| text.len()).max()?.saturating_sub(1);
        let finders: Vec<_> = texts.iter().map(memmem::Finder::new).collect();
        let mut found: Option<usize> = None;
        let mut window = vec![0; SEARCH_WINDOW];
        for segment in &self.segments {
            let end = segment.offset.saturating_add(segment.size.min(MAX_SEARCHED));
            let mut offset = segment.offset;
            while offset < end {
                let len = (end - offset).min(SEARCH_WINDOW as u64) as usize;
                let Some(bytes) = window.get_mut(..len) else { break };
                if self.file.read_exact_at(bytes, offset).is_err() {
                    break;
                }
                let earlier = finders.get(..found.unwrap_or(finders.len())).unwrap_or_default();
                found = earlier.iter().position(|finder| finder.find(bytes).is_some()).or(found);
                if found == Some(0) || len <= overlap {
                    break;
                }
                offset += (len - overlap) as u64;
            }
        }
        found
    }

    /// Size of the function that some symbol, a local one too, places at `vaddr`; 0 where there is none.
    pub fn function_size_at(&self, vaddr: u64) -> u64 {
        let size = with_parsed(&self.file, |parsed| {
            let endian = parsed.endian();
            let tables = [parsed.elf_symbol_table(), parsed.elf_dynamic_symbol_table()];
            let sizes = tables.iter().flat_map(|table| table.iter()).filter(|symbol| {
                symbol.st_type() == elf::STT_FUNC
                    && !symbol.is_undefined(endian)
                    && symbol.st_value(endian) == vaddr
            });
            Ok(sizes.map(|symbol| symbol.st_size(endian)).max())
        });
        size.ok().flatten().unwrap_or(0)
    }

    /// The relocation slots that `which` describes. None of a damaged file.
    pub fn slots(&self, which: Slots<'_>) -> Vec<Slot> {
        let slots = with_parsed(&self.file, |parsed| Ok(self.read_slots(parsed, which)));
        slots.unwrap_or_default()
    }

    fn read_slots(&self, parsed: &Parsed<'_>, which: Slots<'_>) -> Vec<Slot> {
        let (endian, data) = (parsed.endian(), parsed.data());
        let RelocationTypes { irelative, plain } = arch::HOST.relocation_types();
        let dynamic_symbols = parsed.elf_dynamic_symbol_table();
        let strings = string_bytes(parsed, dynamic_symbols.string_section());
        let matches = |relocation: &elf::Rela64<Endianness>| {
            let r_type = relocation.r_type(endian, false);
            match which {
                Slots::OfResolver(vaddr) => {
                    r_type == irelative && relocation.r_addend(endian) == vaddr.cast_signed()
                }
                Slots::OfSymbol(name) => {
                    plain.contains(&r_type)
                        && relocation
                            .symbol(endian, false)
                            .and_then(|index| dynamic_symbols.symbol(index).ok())
                            .is_some_and(|symbol| {
                                name_at(strings, symbol.st_name(endian)) == Some(name.as_bytes())
                            })
                }
            }
        };
        let mut slots = Vec::new();
        for section in parsed.elf_section_table().iter() {
            let Ok(Some((relocations, _))) = section.rela(endian, data) else { continue };
            let room = MAX_SLOTS.saturating_sub(slots.len());
            for relocation in relocations.iter().filter(|relocation| matches(relocation)).take(room) {
                let vaddr = relocation.r_offset(endian);
                slots.push(Slot { vaddr, initial: self.initial_word(vaddr) });
            }
        }
        slots
    }

    /// The word that the file holds at `vaddr`, 0 where it holds none (`.bss`).
    fn initial_word(&self, vaddr: u64) -> u64 {
        let mut word = [0; 8];
        let offset = self.segments.iter().find_map(|segment| segment.offset_of(vaddr));
        match offset.map(|offset| self.file.read_exact_at(&mut word, offset)) {
            Some(Ok(())) => u64::from_ne_bytes(word),
            _ => 0,
        }
    }

    fn code_segment(&self, vaddr: u64) -> Option<&Segment> {
        self.segments.iter().find(|segment| segment.executable && segment.offset_of(vaddr).is_some())
    }

    /// What was added to addresses when `mapping` was made of this file: the loader maps whole pages, so that the
    /// mapping may begin before the segment.
    pub(super) fn load_bias(&self, mapping: &Mapping) -> Option<u64> {
        let len = mapping.end.checked_sub(mapping.start)?;
        let end = mapping.file_offset.checked_add(len)?;
        let segment = self.segments.iter().find(|segment| {
            segment.executable == mapping.executable
                && segment.offset < end
                && segment.offset.saturating_add(segment.size) > mapping.file_offset
        })?;
        let vaddr_at_start = segment.vaddr.wrapping_sub(segment.offset).wrapping_add(mapping.file_offset);
        Some(mapping.start.wrapping_sub(vaddr_at_start))
    }
}

impl Segment {
    fn offset_of(&self, vaddr: u64) -> Option<u64> {
        let within = vaddr.checked_sub(self.vaddr).filter(|within| *within < self.size)?;
        self.offset.checked_add(within)
    }
}

fn segments(parsed: &Parsed<'_>) -> Vec<Segment> {
    let endian = parsed.endian();
    parsed
        .elf_program_headers()
        .iter()
        .filter(|header| header.p_type(endian) == elf::PT_LOAD)
        .take(MAX_SEGMENTS)
        .map(|header| Segment {
            vaddr: header.p_vaddr(endian),
            offset: header.p_offset(endian),
            size: header.p_filesz(endian),
            executable: header.p_flags(endian).0 & elf::PF_X.0 != 0,
        })
        .collect()
}

/// The bytes of a string table, read at once: names looked up one by one would be a read each.
fn string_bytes<'a>(parsed: &Parsed<'a>, section: object::SectionIndex) -> &'a [u8] {
    let section = parsed.elf_section_table().section(section);
    section.and_then(|section| section.data(parsed.endian(), parsed.data())).unwrap_or_default()
}

/// The name at `offset`, without the version that `.symtab` has in it.
fn name_at(strings: &[u8], offset: u32) -> Option<&[u8]> {
    name_in(strings.get(offset as usize..)?)
}

/// The value of the first entry with `tag` in the dynamic table.
fn dynamic_entry(parsed: &Parsed<'_>, tag: elf::DynamicTag) -> Option<u64> {
    let endian = parsed.endian();
    let tables = parsed.elf_program_headers().iter();
    let mut entries =
        tables.filter_map(|header| header.dynamic(endian, parsed.data()).ok().flatten()).flatten();
    entries.find(|entry| entry.d_tag(endian) == tag).map(|entry| entry.d_val(endian))
}

/// Sections that the Go linker writes (cmd/link/internal/ld); `strip` leaves them.
fn is_go(parsed: &Parsed<'_>) -> bool {
    const SECTIONS: [&[u8]; 4] =
        [b".go.buildinfo", b".gopclntab", b".note.go.buildid", b".data.rel.ro.gopclntab"];
    let (endian, table) = (parsed.endian(), parsed.elf_section_table());
    table.iter().any(|section| table.section_name(endian, section).is_ok_and(|name| SECTIONS.contains(&name)))
}

/// `DIRECTORY/ab/cdef....debug` for the build id `abcdef...`.
fn debug_file_path(directory: &Path, build_id: &[u8]) -> Option<PathBuf> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (first, rest) = build_id.split_at_checked(1)?;
    let plausible = (1..=64).contains(&rest.len());
    plausible.then(|| directory.join(hex(first)).join(hex(rest) + ".debug"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn run(program: &str, arguments: &[&Path]) {
        let status = Command::new(program).args(arguments).status();
        assert!(status.is_ok_and(|status| status.success()), "{program} {arguments:?}");
    }

    #[test]
    fn finds_the_symbols_of_a_stripped_program_in_its_debug_file() {
        let directory = std::env::temp_dir().join(format!("memleak-elf-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let [source, program, debug] = ["p.c", "p", "p.debug"].map(|name| directory.join(name));
        std::fs::write(&source, "#include <stdlib.h>\nint main(void) { return !malloc(1); }").unwrap();
        let flag = Path::new;
        run("gcc", &[flag("-static"), flag("-Wl,--build-id"), flag("-o"), &program, &source]);
        let names = SymbolNames::from_iter(["malloc"]);
        let whole = Elf::read(File::open(&program).unwrap(), &names).unwrap();
        run("objcopy", &[flag("--only-keep-debug"), &program, &debug]);
        run("strip", &[&program]);

        let mut stripped = Elf::read(File::open(&program).unwrap(), &names).unwrap();
        assert!(stripped.is_static() && !stripped.has_symbol_table() && stripped.symbols().is_empty());
        let place = debug_file_path(&directory, stripped.build_id().unwrap()).unwrap();
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();

        // Another program's debug file is not believed.
        std::fs::copy("/proc/self/exe", &place).unwrap();
        stripped.add_separate_symbols(&directory, &names);
        assert!(!stripped.has_symbol_table() && stripped.symbols().is_empty());

        std::fs::rename(&debug, &place).unwrap();
        stripped.add_separate_symbols(&directory, &names);
        assert!(stripped.has_symbol_table());
        assert_eq!((stripped.symbols(), stripped.symbols().len()), (whole.symbols(), 1));
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn spells_the_path_of_a_debug_file() {
        let directory = Path::new("/usr/lib/debug/.build-id");
        let path = debug_file_path(directory, &[0xab, 0x01, 0xff]);
        assert_eq!(path.as_deref(), Some(Path::new("/usr/lib/debug/.build-id/ab/01ff.debug")));
        assert_eq!(debug_file_path(directory, &[0xab]), None);
        assert_eq!(debug_file_path(directory, &[]), None);
        assert_eq!(debug_file_path(directory, &[0; 4096]), None);
    }
}
