//! The files that a target has mapped, as probing sees them: functions by name, code, load bias.

use std::{
    collections::HashSet,
    fmt,
    fs::Metadata,
    io,
    ops::Range,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use memchr::memmem;
use object::elf;

use super::signatures;
pub use crate::elf::symbols::{FunctionSymbol, SymbolKind, SymbolNames};
use crate::{
    arch::{self, Machine},
    elf::{ElfFile, UsdtPlace, debug_files::Roots, symbols::functions_named},
    objects::{ObjectFile, ObjectStore, place_of},
    proc::{
        living::path_of,
        maps::{Backing, Mapping},
        root::open_link,
        target::LiveTarget,
    },
};

/// Longest function whose body is read.
const MAX_CODE: u64 = 1 << 20;
/// Bytes read at a time when a text is looked for.
const SEARCH_WINDOW: usize = 1 << 20;
/// Most bytes of a segment in which a text is looked for.
const MAX_SEARCHED: u64 = 512 << 20;

/// Tells files apart: the same object mapped by several paths or processes is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId {
    /// Major and minor number of the device.
    pub device: (i32, i32),
    /// Inode number.
    pub inode: u64,
}

impl ObjectId {
    /// The file that `metadata` describes.
    pub fn of(metadata: &Metadata) -> Self {
        let device = (libc::major(metadata.dev()) as i32, libc::minor(metadata.dev()) as i32);
        Self { device, inode: metadata.ino() }
    }
}

/// Why an object cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// Opening or reading failed.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// `map_files` is closed to us and the path leads to another file.
    #[error("was replaced or deleted after it was mapped; reading it still needs CAP_SYS_ADMIN")]
    Replaced,
    /// No ELF header.
    #[error("is not an ELF file")]
    NotElf,
    /// For another machine, or for 32 bits: arguments are found elsewhere.
    #[error("is not a 64-bit ELF file for this machine")]
    ForeignMachine,
    /// An object file or core dump.
    #[error("is neither an executable nor a shared object")]
    NotLoadable,
}

/// The parts of an ELF file that probing needs.
#[derive(Debug)]
pub struct Elf {
    file: Arc<ObjectFile>,
    /// In order of name, then address; each pair once.
    symbols: Vec<FunctionSymbol>,
    is_static: bool,
    is_go: bool,
    has_symbol_table: bool,
    is_program: bool,
    maps_memory: bool,
    /// What it was built from, if its allocator's functions are known by their code.
    recognised: Option<String>,
}

impl Elf {
    /// The functions in `names` that the object defines: by its own symbols, and, of a program that
    /// was stripped, by its debug file's, which is looked for in `roots`.
    pub(super) fn read(
        file: Arc<ObjectFile>,
        names: &SymbolNames,
        roots: &Roots,
    ) -> Result<Self, ObjectError> {
        let elf = file.elf().map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => ObjectError::NotElf,
            // Opened once, and kept with its error.
            kind => ObjectError::Io(io::Error::new(kind, error.to_string())),
        })?;
        if Machine::from_elf(elf::Machine(elf.machine)) != Some(arch::HOST)
            || !elf.format.is_64
            || elf.format.little_endian != cfg!(target_endian = "little")
        {
            return Err(ObjectError::ForeignMachine);
        }
        if ![elf::ET_EXEC.0, elf::ET_DYN.0].contains(&elf.file_type) {
            return Err(ObjectError::NotLoadable);
        }
        let has_interpreter = elf.other_segment(elf::PT_INTERP).is_some();
        // DF_1_PIE tells a static-pie program from a shared object such as the dynamic linker; a
        // name of its own tells the C library, which can also be started, from a program.
        let flags = elf.dynamic_entry(elf::DT_FLAGS_1).unwrap_or(0);
        let is_static = !has_interpreter && (elf.file_type == elf::ET_EXEC.0 || flags & elf::DF_1_PIE.0 != 0);
        let is_program = is_static || (has_interpreter && elf.dynamic_entry(elf::DT_SONAME).is_none());
        let hides_functions = !elf.has_symbol_table();
        let maps_memory = !is_program && hides_functions && maps_memory(elf);
        let (debug, mini) = match !hides_functions || !(is_program || maps_memory) {
            true => (None, None),
            false => roots.symbol_files(elf, file.path()),
        };
        let others = [debug.as_ref().map(|found| &found.elf), mini.as_ref()];
        let files: Vec<&ElfFile> = [Some(elf)].into_iter().chain(others).flatten().collect();
        let (mut symbols, is_go) = (functions_named(&files, names, !is_program), is_go(elf));
        let has_symbol_table = files.iter().any(|file| file.has_symbol_table());
        let mut recognised = None;
        if (is_program || maps_memory) && !has_symbol_table && !is_go {
            let found = signatures::recognise(elf, &symbols);
            recognised = found.map(|found| signatures::add(found, names, &mut symbols));
        }
        Ok(Self { symbols, is_static, is_go, has_symbol_table, is_program, maps_memory, recognised, file })
    }

    pub(super) fn elf(&self) -> Option<&ElfFile> {
        self.file.elf().ok()
    }

    /// The functions that were asked for and are defined here, in order of name, then address.
    pub fn symbols(&self) -> &[FunctionSymbol] {
        &self.symbols
    }

    /// The definitions of `name`: one for each address, several if old versions have code of
    /// their own.
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

    /// What it was built from, if it is stripped and its allocator's functions were known by their
    /// code.
    pub fn recognised(&self) -> Option<&str> {
        self.recognised.as_deref()
    }

    /// Addresses of its code, before the load bias.
    pub fn code_ranges(&self) -> impl Iterator<Item = Range<u64>> {
        let code = self.elf().into_iter().flat_map(|elf| &elf.segments).filter(|segment| segment.executable);
        code.map(|segment| segment.vaddr..segment.vaddr.saturating_add(segment.len))
    }

    /// Offset in the file of the code at `vaddr`, by the executable `PT_LOAD` segments.
    pub fn file_offset_of(&self, vaddr: u64) -> Option<u64> {
        self.elf()?.code_segment(vaddr)?.offset_of(vaddr)
    }

    /// The places of a probe that the object defines itself.
    pub fn usdt_places(&self, provider: &str, name: &str) -> Vec<UsdtPlace> {
        self.elf().map(|elf| elf.usdt_places(provider, name)).unwrap_or_default()
    }

    /// Offset in the file of what is at `vaddr`, code or data.
    pub fn data_offset_of(&self, vaddr: u64) -> Option<u64> {
        self.elf()?.segments.iter().find_map(|segment| segment.offset_of(vaddr))
    }

    /// Up to `size` bytes of code at `vaddr`; fewer at the end of the segment, none if there is no
    /// code or no way to read it.
    pub fn code(&self, vaddr: u64, size: u64) -> Vec<u8> {
        let read = || {
            let elf = self.elf()?;
            let segment = elf.code_segment(vaddr)?;
            let size = size.min(segment.vaddr.saturating_add(segment.len) - vaddr).min(MAX_CODE);
            let mut code = vec![0; size as usize];
            elf.source().read(segment.offset_of(vaddr)?, &mut code, &elf.budget()).ok()?;
            Some(code)
        };
        read().unwrap_or_default()
    }

    /// All of the code of the function at `vaddr`; `None` if its size is not known or it cannot be
    /// read whole.
    pub fn whole_function(&self, vaddr: u64, size: u64) -> Option<Vec<u8>> {
        let code = self.code(vaddr, size);
        (size > 0 && code.len() as u64 == size).then_some(code)
    }

    /// The text to which the functions of this name (one of those asked for) lead, if they do
    /// nothing but to return its address; `None` if it is longer than `most`.
    pub fn returned_text(&self, name: &str, most: u64) -> Option<String> {
        let elf = self.elf()?;
        self.symbols_named(name).iter().find_map(|symbol| {
            // Room for an instruction behind each that is looked at, if the size is not known.
            const SHORT: u64 = 64;
            let size = if symbol.size == 0 { SHORT } else { symbol.size.min(SHORT) };
            let vaddr = arch::HOST.returned_address(&self.code(symbol.vaddr, size), symbol.vaddr)?;
            let segment = elf.segments.iter().find(|segment| segment.offset_of(vaddr).is_some())?;
            let left = segment.vaddr.saturating_add(segment.len).saturating_sub(vaddr);
            let mut bytes = vec![0; left.min(most) as usize];
            elf.source().read(segment.offset_of(vaddr)?, &mut bytes, &elf.budget()).ok()?;
            bytes.truncate(bytes.iter().position(|byte| *byte == 0)?);
            String::from_utf8(bytes).ok()
        })
    }

    /// The first of `texts` (its index) that the file's data or code holds, in the order of
    /// `texts`. Reads the whole file, as far as an object may cost.
    pub fn find_first(&self, texts: &[&[u8]]) -> Option<usize> {
        let elf = self.elf()?;
        let overlap = texts.iter().map(|text| text.len()).max()?.saturating_sub(1);
        let finders: Vec<_> = texts.iter().copied().map(memmem::Finder::new).collect();
        let (mut found, budget): (Option<usize>, _) = (None, elf.budget());
        let mut window = vec![0; SEARCH_WINDOW];
        for segment in &elf.segments {
            let end = segment.file_offset.saturating_add(segment.len.min(MAX_SEARCHED));
            let mut offset = segment.file_offset;
            while offset < end {
                let len = (end - offset).min(SEARCH_WINDOW as u64) as usize;
                let Some(bytes) = window.get_mut(..len) else { break };
                if elf.source().read(offset, bytes, &budget).is_err() {
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

    /// A library without a symbol table that calls mmap and madvise, as one with an allocator does.
    pub fn maps_memory(&self) -> bool {
        self.maps_memory
    }

    /// Size of the function that some symbol, a local one too, places at `vaddr`; 0 if there is
    /// none.
    pub fn function_size_at(&self, vaddr: u64) -> u64 {
        let mut size = 0;
        if let Some(elf) = self.elf() {
            for table in elf.symbol_tables() {
                table.for_each(&elf.budget(), |_, symbol| {
                    if symbol.value == vaddr && symbol.is_function() {
                        size = symbol.size.max(size);
                    }
                });
            }
        }
        size
    }

    /// Whether the function at `vaddr` is among code that was optimized as a whole when the program
    /// was linked: the functions around it are of no source file. Such a function may be copied to
    /// where it is called.
    pub fn is_optimized_when_linked(&self, vaddr: u64) -> bool {
        let tables = self.elf().into_iter().flat_map(ElfFile::symbol_tables);
        tables.into_iter().any(|table| {
            let places = table.places_of_local_functions();
            let next = places.partition_point(|(place, _)| *place <= vaddr);
            let is_of_no_file = |at: usize| places.get(at).is_some_and(|(_, is_of_no_file)| *is_of_no_file);
            next > 0 && is_of_no_file(next - 1) && is_of_no_file(next)
        })
    }
}

/// Sections that the Go linker writes (cmd/link/internal/ld); `strip` leaves them.
fn is_go(elf: &ElfFile) -> bool {
    const SECTIONS: [&[u8]; 4] =
        [b".go.buildinfo", b".gopclntab", b".note.go.buildid", b".data.rel.ro.gopclntab"];
    elf.sections.iter().any(|section| SECTIONS.contains(&section.name.as_slice()))
}

/// One file that a target has mapped with execute permission.
#[derive(Debug)]
pub struct Object {
    /// Which file.
    pub id: ObjectId,
    /// Path as the target names it, for people.
    pub path: PathBuf,
    /// Path that opens the very file that is mapped.
    pub open_path: PathBuf,
    /// What is added to the object's addresses in the target, modulo 2^64. `None` for a file that
    /// is not mapped or whose mappings fit none of its segments.
    pub load_bias: Option<u64>,
    /// Its contents, or why there are none.
    pub elf: Result<Elf, ObjectError>,
}

impl Object {
    /// Reads a file that is not mapped, or not yet.
    pub fn open(path: &Path, names: &SymbolNames) -> io::Result<Self> {
        let file = open_link(path).map_err(ObjectError::from);
        let file = file.map(|file| Arc::new(ObjectFile::new(Ok(file), path)));
        Ok(Self {
            id: ObjectId::of(&path.metadata()?),
            path: path.to_owned(),
            open_path: path.to_owned(),
            load_bias: None,
            elf: file.and_then(|file| Elf::read(file, names, &Roots::default())),
        })
    }

    /// The file's name, without its directory.
    pub fn file_name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

/// Reads the objects that `mappings` of process `pid` show (in the order of their first executable
/// mapping), with the symbols named in `names`. An object that cannot be read is there as well,
/// with the reason.
pub fn read_objects(store: &ObjectStore, pid: u32, mappings: &[Mapping], names: &SymbolNames) -> Vec<Object> {
    let mut seen = HashSet::new();
    let target = LiveTarget(pid);
    let roots = store.roots(&target);
    mappings
        .iter()
        .filter(|mapping| mapping.executable)
        .filter_map(|mapping| match &mapping.backing {
            Backing::File { path, .. } => Some((mapping, path)),
            Backing::Vdso | Backing::Other => None,
        })
        .filter(|(mapping, _)| seen.insert(id_of(mapping)))
        .map(|(mapping, path)| {
            let (id, path) = (id_of(mapping), path.clone());
            let open_path = match open_path(pid, mapping, &path) {
                Ok(open_path) => open_path,
                Err(error) => {
                    let open_path = mapping.map_files_path(pid);
                    return Object { id, path, open_path, load_bias: None, elf: Err(error) };
                }
            };
            let file = store.open(mapping, &target);
            let load_bias = file.elf().ok().and_then(|elf| elf.load_bias(&place_of(mapping)));
            let elf = Elf::read(Arc::clone(&file), names, &roots);
            file.tell_budget();
            Object { id, path, open_path, load_bias, elf }
        })
        .collect()
}

fn id_of(mapping: &Mapping) -> ObjectId {
    ObjectId { device: mapping.device, inode: mapping.inode }
}

/// A path that leads to what is mapped. `map_files` needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE;
/// without it the path serves, below the target's root, if it still leads to the same file: a
/// target may put a link to any place there.
fn open_path(pid: u32, mapping: &Mapping, path: &Path) -> Result<PathBuf, ObjectError> {
    let exact = mapping.map_files_path(pid);
    match exact.metadata() {
        Ok(_) => return Ok(exact),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        Err(error) => return Err(error.into()),
    }
    let relative = path.strip_prefix("/").map_err(|_| ObjectError::Replaced)?;
    let below_root = path_of(pid, "root").join(relative);
    match ObjectId::of(&below_root.metadata()?) == id_of(mapping) {
        true => Ok(below_root),
        false => Err(ObjectError::Replaced),
    }
}

/// `-O name` means `object`: the same path, the same file by another path, its file name, or the
/// library's name as ldd prints it (`libz.so.1`) or `-l` would have it (`z`, `gobject-2.0`),
/// whatever its version (`libc.so`; `libc-2.31.so`).
pub fn names_object(name: &str, object: &Object) -> bool {
    if name.contains('/') {
        let same_file = Path::new(name).metadata().is_ok_and(|metadata| object.id == ObjectId::of(&metadata));
        return object.path == Path::new(name) || same_file;
    }
    names_file(name, object.file_name())
}

/// The same of a file's name. A file may be named after a longer version than the name that it is
/// linked by, or have the version before `.so` (glibc before 2.34).
fn names_file(name: &str, file_name: &str) -> bool {
    let Some((stem, version)) = library_parts(file_name) else { return file_name == name };
    let release = stem.split_once('-').filter(|(_, rest)| rest.starts_with(|c: char| c.is_ascii_digit()));
    let is_stem = |name: &str| stem == name || release.is_some_and(|(stem, _)| stem == name);
    match library_parts(name) {
        Some((name, wanted)) => {
            let is_version =
                version == wanted || version.strip_prefix(wanted).is_some_and(|rest| rest.starts_with('.'));
            let is_release = version.is_empty() && release.is_some_and(|(stem, _)| stem == name);
            (stem == name || is_stem(name) && wanted.is_empty()) && is_version || is_release
        }
        None => is_stem(name) || is_stem(&format!("lib{name}")),
    }
}

/// `libz` and `.1.2` of `libz.so.1.2`.
fn library_parts(file_name: &str) -> Option<(&str, &str)> {
    let (stem, version) = file_name.split_once(".so")?;
    (version.is_empty() || version.starts_with('.')).then_some((stem, version))
}

/// It calls what an allocator gets its memory by and gives it back: mmap and madvise of the C
/// library. Few libraries call both.
fn maps_memory(elf: &ElfFile) -> bool {
    let names: HashSet<String> = ["mmap", "mmap64", "madvise"].map(str::to_owned).into();
    let imports = elf.imports_of(&names);
    imports.contains("madvise") && imports.len() > 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_a_library_by_each_of_its_names() {
        let z = "libz.so.1.2.13";
        let gobject = "libgobject-2.0.so.0.7400.6";
        for (file_name, names) in [
            (z, &["z", "libz", "libz.so", "libz.so.1", "libz.so.1.2", z][..]),
            (
                gobject,
                &[
                    "gobject-2.0",
                    "gobject",
                    "libgobject-2.0",
                    "libgobject-2.0.so",
                    "libgobject-2.0.so.0",
                    gobject,
                ],
            ),
            ("libc.so.6", &["c", "libc", "libc.so", "libc.so.6"]),
            ("libc-2.31.so", &["c", "libc", "libc.so", "libc.so.6", "libc-2.31.so"]),
            ("tool", &["tool"]),
        ] {
            for name in names {
                assert!(names_file(name, file_name), "{name} is {file_name}");
            }
        }
        for (file_name, names) in [
            (z, &["libz.so.2", "libz.so.1.3", "libz.so.1.2.1", "li", "zz", "libzz.so", ""][..]),
            (
                gobject,
                &["libgobject-3.0.so.0", "object", "gobject-2", "libgobject.so.0", "libgobject-2.0.so.1"],
            ),
            ("libc-2.31.so", &["libc-2.32.so"]),
            ("libjemalloc.so.2", &["libjemalloc.so.1", "alloc"]),
            ("tool", &["libtool", "too"]),
        ] {
            for name in names {
                assert!(!names_file(name, file_name), "{name} is not {file_name}");
            }
        }
    }
}
