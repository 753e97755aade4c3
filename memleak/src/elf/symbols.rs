//! Symbol tables of any size, read piece by piece: symbols in their order, names in the order in
//! which they lie in the file. rustc's libraries have 20 MB of names, of which none is looked for,
//! and a report needs a hundred.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use object::elf;

use super::{
    file::{ElfFile, RawSymbol, Section},
    source::{Budget, Source},
};

/// Most symbols of a table. A browser with all its local symbols has 3 million; a table beyond this
/// is not read at all.
const MAX_SYMBOLS: u64 = 8 << 20;
/// Longest symbol name compared.
const MAX_NAME: usize = 512;
/// Longest string that is shown, bytes; longer ones are cut.
const MAX_STRING: u64 = 1 << 16;
/// Bytes of names read at a time.
const WINDOW: usize = 256 << 10;
/// Bytes that are read of one name first: most are shorter.
const FIRST_READ: u64 = 256;

/// Names of the files that GCC's and LLVM's link-time optimizers write: GNU ld and gold leave GCC's
/// out or keep it.
const OPTIMIZED: &[&[u8]] = &[b"", b"<artificial>", b"ld-temp.o"];

/// A function that ThinLTO has made known to other files: `NAME.llvm.HASH`.
fn is_promoted(name: &[u8]) -> bool {
    const MARK: &[u8] = b".llvm.";
    let ends_in = name.windows(MARK.len()).rposition(|part| part == MARK).map(|at| at + MARK.len());
    let hash = ends_in.and_then(|at| name.get(at..)).unwrap_or_default();
    !hash.is_empty() && hash.iter().all(u8::is_ascii_digit)
}

/// The source file whose functions are on both sides of `vaddr`. `places`: those of local
/// functions, in order, each with its file.
fn file_around(places: &[(u64, Option<u32>)], vaddr: u64) -> Option<u32> {
    let next = places.partition_point(|(place, _)| *place <= vaddr);
    let (_, before) = places.get(next.checked_sub(1)?)?;
    let (_, after) = places.get(next)?;
    before.filter(|_| before == after)
}

/// A symbol table and its strings.
#[derive(Clone, Copy, Debug)]
pub struct SymbolTable<'a> {
    elf: &'a ElfFile,
    section: &'a Section,
    strings: &'a Section,
}

impl ElfFile {
    /// All symbol tables: `.dynsym` and `.symtab`, in the order of their sections.
    pub fn symbol_tables(&self) -> impl Iterator<Item = SymbolTable<'_>> {
        let is_table =
            |section: &&Section| section.kind == elf::SHT_SYMTAB.0 || section.kind == elf::SHT_DYNSYM.0;
        self.sections.iter().filter(is_table).filter_map(|section| {
            let strings = self.sections.get(section.link as usize)?;
            Some(SymbolTable { elf: self, section, strings })
        })
    }

    /// `.dynsym`, whose indices relocations name.
    pub fn dynamic_symbols(&self) -> Option<SymbolTable<'_>> {
        self.symbol_tables().find(|table| table.section.kind == elf::SHT_DYNSYM.0)
    }
}

impl ElfFile {
    /// Which of these functions of other objects it calls: `.dynsym` names them without defining
    /// them.
    pub fn imports_of(&self, names: &HashSet<String>) -> HashSet<String> {
        const UNDEFINED: u16 = 0; // SHN_UNDEF
        let mut imports = HashSet::new();
        if let Some(table) = self.dynamic_symbols() {
            let is_undefined = |symbol: &RawSymbol| symbol.section == UNDEFINED;
            table.for_each_named(&self.budget(), is_undefined, |_, found| {
                let name = std::str::from_utf8(without_version(found)).ok();
                imports.extend(name.and_then(|name| names.get(name)).cloned());
            });
        }
        imports
    }
}

impl<'a> SymbolTable<'a> {
    /// How many symbols it has.
    pub fn count(&self) -> u64 {
        self.section.size / self.elf.format.symbol_size() as u64
    }

    /// Calls `with` with each symbol and its index. What cannot be read, or is more than is
    /// allowed, ends it.
    pub fn for_each(&self, budget: &Budget, mut with: impl FnMut(u32, RawSymbol)) {
        if self.count() > MAX_SYMBOLS {
            budget.exceeded();
            return;
        }
        let (format, size) = (self.elf.format, self.elf.format.symbol_size());
        let mut index = 0;
        // An error is in the budget, or the file has been cut short: what was read is good.
        let _ = self.elf.source().pieces(self.section.offset, self.section.size, size, budget, |piece| {
            for bytes in piece.chunks_exact(size) {
                with(index, format.symbol(bytes));
                index += 1;
            }
            true
        });
    }

    /// Calls `with` with the index and name (up to [`MAX_NAME`] bytes, or it is left out) of each
    /// symbol that is `wanted`, in the order of their names in the file.
    pub fn for_each_named(
        &self,
        budget: &Budget,
        mut wanted: impl FnMut(&RawSymbol) -> bool,
        mut with: impl FnMut(u32, &[u8]),
    ) {
        let mut places: Vec<(u32, u32)> = Vec::new();
        self.for_each(budget, |index, symbol| {
            if wanted(&symbol) {
                places.push((symbol.name, index));
            }
        });
        places.sort_unstable();
        let mut names = self.names(budget);
        for (name, index) in places {
            if let Some(name) = names.at(name, MAX_NAME) {
                with(index, name);
            }
        }
    }

    /// The functions that are a source file's own, in order of their addresses, and whether they
    /// were optimized together with those of other files when the program was linked: either the
    /// names of the files that come before them are those that link-time optimizers give to what
    /// they have made of several; or one among them has a name that LLVM's ThinLTO gives, since it
    /// is called by code that was copied into another file's functions.
    pub fn places_of_local_functions(&self) -> Vec<(u64, bool)> {
        let budget = self.elf.budget();
        let is_file = |symbol: &RawSymbol| symbol.kind == elf::STT_FILE.0;
        let (mut made, mut last, mut nameless) = (HashSet::new(), None, None);
        self.for_each_named(&budget, is_file, |index, name| {
            last = last.max(Some(index));
            if name.is_empty() {
                nameless = nameless.max(Some(index));
            }
            if OPTIMIZED.contains(&name) {
                made.insert(index);
            }
        });
        // After the last one are functions that the linker has hidden, too, of no file: GNU ld puts
        // a name of nothing before them, LLVM's lld has them hidden still.
        let is_hidden = |of_file: Option<u32>, symbol: &RawSymbol| {
            of_file == last && (nameless == last || symbol.visibility == elf::STV_HIDDEN.0)
        };
        let (mut of_file, mut places, mut others) = (None, Vec::new(), HashMap::new());
        self.for_each(&budget, |index, symbol| {
            if is_file(&symbol) {
                of_file = Some(index);
            } else if symbol.binding == elf::STB_LOCAL.0 && symbol.is_function() {
                if is_hidden(of_file, &symbol) {
                    others.insert(index, symbol.value);
                } else {
                    places.push((symbol.value, of_file));
                }
            }
        });
        places.sort_unstable();
        let values: HashSet<u64> = others.values().copied().collect();
        let is_other = |symbol: &RawSymbol| symbol.is_function() && values.contains(&symbol.value);
        self.for_each_named(&budget, is_other, |index, name| {
            if let Some(vaddr) = others.get(&index).filter(|_| is_promoted(name)) {
                made.extend(file_around(&places, *vaddr));
            }
        });
        let is_made = |file: Option<u32>| file.is_some_and(|file| made.contains(&file));
        places.into_iter().map(|(vaddr, file)| (vaddr, is_made(file))).collect()
    }

    /// The symbol at `index`.
    pub fn symbol(&self, index: u32) -> Option<RawSymbol> {
        let size = self.elf.format.symbol_size();
        let offset = self.section.offset.checked_add(u64::from(index) * size as u64)?;
        let mut bytes = [0; 24];
        let bytes = bytes.get_mut(..size)?;
        self.elf.source().read(offset, bytes, &self.elf.budget()).ok()?;
        Some(self.elf.format.symbol(bytes))
    }

    /// Its names, to be read in order.
    pub fn names(&self, budget: &'a Budget) -> Names<'a> {
        let Section { offset, size, .. } = *self.strings;
        Names { source: self.elf.source(), budget, offset, len: size, read: Vec::new(), start: 0 }
    }

    /// Its strings, for single look-ups later.
    pub fn strings(&self) -> Strings {
        let Section { offset, size, .. } = *self.strings;
        Strings { source: Arc::clone(self.elf.source()), offset, size, budget: self.elf.budget() }
    }
}

/// Names of a string table, of which a part is in memory: to be asked for in order.
#[derive(Debug)]
pub struct Names<'a> {
    source: &'a Source,
    budget: &'a Budget,
    /// Where the table is in the file.
    offset: u64,
    len: u64,
    /// Bytes from `start` on.
    read: Vec<u8>,
    start: u64,
}

impl Names<'_> {
    /// The name at `at`. `None`: it is not there, or longer than `most` bytes.
    pub fn at(&mut self, at: u32, most: usize) -> Option<&[u8]> {
        let at = u64::from(at);
        let end = at.checked_add(most as u64)?.min(self.len);
        if at < self.start || end > self.start + self.read.len() as u64 {
            let len = self.len.checked_sub(at)?.min(WINDOW.max(most) as u64);
            self.read.resize(len as usize, 0);
            self.start = at;
            let offset = self.offset.checked_add(at)?;
            if self.source.read(offset, &mut self.read, self.budget).is_err() {
                self.read.clear();
            }
        }
        let rest = self.read.get(usize::try_from(at - self.start).ok()?..)?;
        let looked_through = rest.get(..most).unwrap_or(rest);
        let end = memchr::memchr(0, looked_through);
        // Names may overlap, or have no end, and be looked through again and again.
        self.budget.spend(end.unwrap_or(looked_through.len()) as u64).ok()?;
        looked_through.get(..end?)
    }
}

/// Strings of a section (gABI, "String Table"), of a file that stays open: read when they are asked
/// for.
#[derive(Debug)]
pub struct Strings {
    source: Arc<Source>,
    offset: u64,
    size: u64,
    budget: Budget,
}

impl Strings {
    /// The string at `at`, cut after 64 KiB. `None`: there is none, or its file has been cut short
    /// since.
    pub fn get(&self, at: u32) -> Option<Vec<u8>> {
        let at = u64::from(at);
        let left = self.size.checked_sub(at)?.min(MAX_STRING);
        let offset = self.offset.checked_add(at)?;
        let mut bytes = Vec::new();
        for len in [left.min(FIRST_READ), left] {
            bytes.resize(len as usize, 0);
            self.source.read(offset, &mut bytes, &self.budget.for_purpose()).ok()?;
            if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
                bytes.truncate(end);
                break;
            }
        }
        Some(bytes)
    }
}

/// What a function symbol stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SymbolKind {
    /// `STT_FUNC`: the function is at the symbol's address.
    Function,
    /// `STT_GNU_IFUNC`: a resolver is there, which returns the function's address.
    Indirect,
}

/// A defined function that other source files could call: global, weak, or hidden. A `static` one
/// has its name to itself: such a `free` is not the allocator's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FunctionSymbol {
    /// Without version (`memalign`, not `memalign@@GLIBC_2.2.5`).
    pub name: String,
    /// Address in the object, before the load bias.
    pub vaddr: u64,
    /// Bytes of code; 0 if the symbol table does not say.
    pub size: u64,
    /// Function or resolver.
    pub kind: SymbolKind,
}

/// Names that are looked for: an object keeps the symbols named here and forgets the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SymbolNames {
    whole: HashSet<Vec<u8>>,
    /// Bytes of the longest of them: most names of C++ and Rust are longer, and not hashed.
    longest: usize,
    /// By their last byte: most names of an object are ruled out by it.
    endings: BTreeMap<u8, Vec<Vec<u8>>>,
    /// What names of local functions begin with that count in a library.
    local: Vec<Vec<u8>>,
    /// Where two local functions have these names, all of that library's count.
    markers: Vec<Vec<u8>>,
}

impl SymbolNames {
    /// The same, and local functions of libraries whose names begin with one of `prefixes` count as
    /// those do that others may call: a linker makes functions local that a version script does not
    /// name (those of Rust's libraries), where nothing tells them from a source file's own. Where
    /// two of them have names of `markers`, all others that are looked for count, too.
    pub fn with_local(
        self,
        prefixes: impl IntoIterator<Item = &'static str>,
        markers: impl IntoIterator<Item = &'static str>,
    ) -> Self {
        let bytes = |name: &'static str| name.as_bytes().to_vec();
        let markers = markers.into_iter().map(bytes).collect();
        Self { local: prefixes.into_iter().map(bytes).collect(), markers, ..self }
    }

    fn may_be_local(&self, name: &[u8]) -> bool {
        self.local.iter().any(|prefix| name.starts_with(prefix))
    }

    /// The same, and every name that ends with one of `endings`.
    pub fn with_endings<S: Into<String>>(self, endings: impl IntoIterator<Item = S>) -> Self {
        let mut by_last: BTreeMap<u8, Vec<Vec<u8>>> = BTreeMap::new();
        for ending in endings.into_iter().map(|ending| ending.into().into_bytes()) {
            let Some(last) = ending.last() else { continue };
            by_last.entry(*last).or_default().push(ending);
        }
        Self { endings: by_last, ..self }
    }

    /// The same, and this name.
    pub fn with_name(mut self, name: &str) -> Self {
        self.longest = self.longest.max(name.len());
        self.whole.insert(name.as_bytes().to_vec());
        self
    }

    /// A symbol of this name is to be kept.
    pub fn contains(&self, name: &[u8]) -> bool {
        (name.len() <= self.longest && self.whole.contains(name))
            || name
                .last()
                .and_then(|last| self.endings.get(last))
                .is_some_and(|endings| endings.iter().any(|ending| name.ends_with(ending)))
    }
}

impl<S: Into<String>> FromIterator<S> for SymbolNames {
    fn from_iter<I: IntoIterator<Item = S>>(names: I) -> Self {
        let whole: HashSet<Vec<u8>> = names.into_iter().map(|name| name.into().into_bytes()).collect();
        let longest = whole.iter().map(Vec::len).max().unwrap_or(0);
        Self { whole, longest, endings: BTreeMap::new(), local: Vec::new(), markers: Vec::new() }
    }
}

/// The functions named in `names` that one of `files` (an object, and then its debug files) defines
/// for others to call, within the object's code: in order of name, then address, each pair once. Of
/// a library also local ones that may be ([`SymbolNames::with_local`]).
pub(crate) fn functions_named(
    files: &[&ElfFile],
    names: &SymbolNames,
    is_library: bool,
) -> Vec<FunctionSymbol> {
    let mut functions = BTreeMap::new();
    let Some(object) = files.first() else { return Vec::new() };
    for table in files.iter().flat_map(|file| file.symbol_tables()) {
        add_functions(table, object, (names, is_library), &mut functions);
    }
    functions.into_values().collect()
}

/// Where a program is position-independent its linker makes hidden functions local ones: glibc's
/// `malloc` is one in a static-pie program. gold and lld leave the visibility to tell them by; GNU
/// ld does not, and puts them after those of all source files, under an `STT_FILE` without a name
/// (bfd/elflink.c, `elf_link_output_extsym`).
fn add_functions(
    table: SymbolTable<'_>,
    object: &ElfFile,
    (names, is_library): (&SymbolNames, bool),
    functions: &mut BTreeMap<(String, u64), FunctionSymbol>,
) {
    let mut in_a_source_file = true;
    // Addresses of functions that seem to be a source file's own.
    let own = RefCell::new(HashSet::new());
    let mut others = BTreeMap::new();
    let is_wanted = |symbol: &RawSymbol| {
        if symbol.kind == elf::STT_FILE.0 {
            // The first string of a table is the empty one (gABI, "String Table").
            in_a_source_file = symbol.name != 0;
            return false;
        }
        let was_global = match elf::SymbolBind(symbol.binding) {
            elf::STB_GLOBAL | elf::STB_WEAK | elf::STB_GNU_UNIQUE => true,
            _ => !in_a_source_file || symbol.visibility != elf::STV_DEFAULT.0,
        };
        let may_count = was_global || (is_library && !names.local.is_empty());
        let is_wanted = may_count && symbol.is_function() && object.code_segment(symbol.value).is_some();
        if is_wanted && !was_global {
            own.borrow_mut().insert(symbol.value);
        }
        is_wanted
    };
    table.for_each_named(&table.elf.budget(), is_wanted, |index, name| {
        let name = without_version(name);
        // Reads the file once more: for the few that are looked for.
        let Some(symbol) = names.contains(name).then(|| table.symbol(index)).flatten() else { return };
        let name = String::from_utf8_lossy(name).into_owned();
        let (vaddr, size) = (symbol.value, symbol.size);
        let is_own = symbol.binding == elf::STB_LOCAL.0 && own.borrow().contains(&vaddr);
        let kind = match symbol.kind == elf::STT_GNU_IFUNC.0 {
            true => SymbolKind::Indirect,
            false => SymbolKind::Function,
        };
        let function = FunctionSymbol { name, vaddr, size, kind };
        let counts = !is_own || names.may_be_local(function.name.as_bytes());
        let functions = if counts { &mut *functions } else { &mut others };
        let known = functions.entry((function.name.clone(), vaddr)).or_insert(function);
        known.size = known.size.max(size);
    });
    let is_marker = |(name, _): &&(String, u64)| names.markers.iter().any(|marker| marker == name.as_bytes());
    if others.keys().filter(is_marker).count() > 1 {
        functions.extend(others);
    }
}

/// A versioned name is `name@VERSION` or `name@@VERSION` in the .symtab of a static or an older
/// linker's file.
pub(crate) fn without_version(name: &[u8]) -> &[u8] {
    match memchr::memchr(b'@', name) {
        Some(at) if at > 0 => name.get(..at).unwrap_or(name),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_thin_lto_are_told() {
        for (name, is_one) in [
            (&b"mi_free_generic_mt.llvm.5219970108886814662"[..], true),
            (b"f.llvm.1.llvm.22", true),
            (b"f.llvm.", false),
            (b"f.llvm.12x", false),
            (b"f.llvm", false),
            (b"llvm.12", false),
            (b"f.cold", false),
        ] {
            assert_eq!(is_promoted(name), is_one, "{}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn what_lies_between_a_files_functions_is_of_it() {
        let places = [(10, Some(1)), (20, Some(1)), (30, Some(2)), (40, Some(2)), (50, None), (60, None)];
        for (vaddr, file) in
            [(5, None), (15, Some(1)), (25, None), (35, Some(2)), (45, None), (55, None), (65, None)]
        {
            assert_eq!(file_around(&places, vaddr), file, "{vaddr}");
        }
    }
    use crate::elf::source::Bytes;

    #[test]
    fn cuts_a_name_at_its_version() {
        assert_eq!(without_version(b"memalign@@GLIBC_2.2.5"), b"memalign");
        assert_eq!(without_version(b"free"), b"free");
        assert_eq!(without_version(b""), b"");
        assert_eq!(without_version(b"@x"), b"@x");
    }

    /// A section of strings at byte 4321 of a source, the last one without an end.
    fn section() -> (Arc<Source>, Vec<u8>) {
        let mut section = vec![0];
        for len in [5, 254, 255, 256, 257, 3000, 65_535, 65_536, 65_537, 900_000] {
            section.extend(std::iter::repeat_n(b'a' + (len % 26) as u8, len));
            section.push(0);
        }
        section.pop();
        let file = [vec![7; 4321], section.clone(), b"of another section".to_vec()].concat();
        let bytes = Bytes::new(file, &Budget::new(1 << 30)).unwrap();
        (Arc::new(Source::Memory(bytes)), section)
    }

    #[test]
    fn strings_are_those_of_the_section() {
        let (source, section) = section();
        let (size, budget) = (section.len() as u64, Budget::new(1 << 30));
        let strings = Strings { source, offset: 4321, size, budget };
        let len = section.len() as u32;
        let starts = (0..len - 1).filter(|at| section[*at as usize] == 0).map(|at| at + 1);
        for at in starts.chain([0, 3, 800, len - 70_000, len - 300, len - 1]) {
            let expected = section[at as usize..].split(|byte| *byte == 0).next().unwrap();
            let expected = expected.get(..MAX_STRING as usize).unwrap_or(expected);
            assert_eq!(strings.get(at).as_deref(), Some(expected), "{at}");
        }
        assert_eq!((strings.get(len).as_deref(), strings.get(len + 1)), (Some(&b""[..]), None));
    }

    #[test]
    fn names_are_found_in_windows() {
        let (source, section) = section();
        let budget = Budget::new(1 << 30);
        let len = section.len() as u64;
        let mut names = Names { source: &source, budget: &budget, offset: 4321, len, read: vec![], start: 0 };
        for at in (0..section.len()).step_by(97).chain([0, 1, 6, section.len() - 1, section.len()]) {
            let rest = section.get(at..).unwrap_or_default();
            let expected = rest.iter().take(3001).position(|byte| *byte == 0).map(|len| &rest[..len]);
            assert_eq!(names.at(at as u32, 3001), expected, "{at}");
        }
        // All of 64 KiB, asked for at each byte, is not looked through again and again.
        let before = budget.for_purpose();
        let mut names = Names { source: &source, budget: &before, offset: 4321, len, read: vec![], start: 0 };
        let found = (5000..60_000).filter(|at| names.at(*at, 1 << 16).is_some()).count();
        assert!(before.is_exceeded() && found < 55_000 && found > 10_000, "{found}");
    }
}
