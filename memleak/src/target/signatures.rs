//! Functions of an allocator in a program without symbols, known by their code.
//!
//! The same source by the same compiler gives the same code but for what the linker writes into it
//! (`arch::Machine::masked`). The table has the digests of such code, from programs with symbols;
//! `cargo xtask signatures` writes it. Only what is equal byte for byte counts, and only if all
//! functions are there by which such a program acquires and frees, each of them once: so either all
//! calls are seen, or a warning says that none is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io,
    ops::Range,
    path::Path,
};

use sha2::{Digest as _, Sha256};

use crate::{
    arch,
    elf::{
        Budget, ElfFile, Source,
        symbols::{FunctionSymbol, SymbolKind, SymbolNames},
    },
    unwind::functions::described_code,
};

const TABLE: &str = include_str!("signatures.txt");

/// Bytes of a digest that are kept.
const DIGEST_BYTES: usize = 16;

/// Most bytes that are read of a program for the table.
const MAX_PROGRAM: u64 = 1 << 30;

/// Shorter functions say too little, unless they jump to another one.
const MIN_CODE: u64 = 32;
/// The longest: jemalloc's `mallocx` has 5,000 bytes.
const MAX_CODE: u64 = 64 << 10;

/// Functions that programs of one kind use, all of them.
#[derive(Debug, PartialEq, Eq)]
struct Kit<'a> {
    /// What their names begin with in a program with symbols.
    prefix: &'a str,
    /// Their names without it.
    required: Vec<&'a str>,
    /// Those that are known.
    signatures: Vec<Signature<'a>>,
}

/// The code of one function, as one compiler made it.
#[derive(Debug, PartialEq, Eq)]
struct Signature<'a> {
    function: &'a str,
    size: u64,
    digest: &'a str,
    /// Version and compiler.
    build: &'a str,
}

/// The functions of a program that were known.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Recognised {
    functions: Vec<FunctionSymbol>,
    builds: BTreeSet<&'static str>,
}

/// Looks for the functions of all kits. `named`: functions of the program that have names, of which
/// one may be a function without its prefix.
pub(super) fn recognise(elf: &ElfFile, named: &[FunctionSymbol]) -> Option<Recognised> {
    let kits = parse(TABLE).ok()?;
    let sizes: BTreeSet<u64> =
        kits.iter().flat_map(|kit| &kit.signatures).map(|signature| signature.size).collect();
    if sizes.is_empty() {
        return None;
    }
    let mut places: BTreeMap<(u64, String), Vec<u64>> = BTreeMap::new();
    let program = ProgramCode::of(elf);
    for code in program.functions().filter(|code| sizes.contains(&(code.end - code.start))) {
        if let Some(digest) = program.digest(&code) {
            places.entry((code.end - code.start, digest)).or_default().push(code.start);
        }
    }
    let mut all = Recognised::default();
    for found in kits.iter().filter_map(|kit| kit.in_program(&places, named)) {
        all.functions.extend(found.functions);
        all.builds.extend(found.builds);
    }
    (!all.functions.is_empty()).then_some(all)
}

/// Adds what was found to the functions of a program, those that are among `names`; tells what it
/// was known as.
pub(super) fn add(found: Recognised, names: &SymbolNames, symbols: &mut Vec<FunctionSymbol>) -> String {
    symbols.extend(found.functions.into_iter().filter(|symbol| names.contains(symbol.name.as_bytes())));
    symbols.sort_by(|a, b| (&a.name, a.vaddr).cmp(&(&b.name, b.vaddr)));
    symbols.dedup_by(|a, b| (&a.name, a.vaddr) == (&b.name, b.vaddr));
    Vec::from_iter(found.builds).join("; ")
}

impl Kit<'static> {
    /// All that are required, each in one place of its own; `None` if one is missing.
    fn in_program(
        &self,
        places: &BTreeMap<(u64, String), Vec<u64>>,
        named: &[FunctionSymbol],
    ) -> Option<Recognised> {
        let mut found: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        let mut builds: BTreeMap<&'static str, usize> = BTreeMap::new();
        for signature in &self.signatures {
            let places = places.get(&(signature.size, signature.digest.to_owned()));
            for vaddr in places.into_iter().flatten() {
                let place = (*vaddr, signature.size);
                // In two places: which of them it is, nobody knows.
                if *found.entry(signature.function).or_insert(place) != place {
                    return None;
                }
                *builds.entry(signature.build).or_default() += 1;
            }
        }
        let distinct: BTreeSet<u64> = found.values().map(|(vaddr, _)| *vaddr).collect();
        let is_whole = self.required.iter().all(|function| found.contains_key(function));
        (is_whole && distinct.len() == found.len()).then_some(())?;
        let has_plain_name = |(function, (vaddr, _)): (&&str, &(u64, u64))| {
            named.iter().any(|symbol| symbol.vaddr == *vaddr && symbol.name == **function)
        };
        let prefix = if found.iter().any(has_plain_name) { "" } else { self.prefix };
        let symbol = |(function, (vaddr, size)): (&str, (u64, u64))| FunctionSymbol {
            name: format!("{prefix}{function}"),
            vaddr,
            size,
            kind: SymbolKind::Function,
        };
        // Compilers make some functions alike.
        let most = builds.values().copied().max();
        let builds = builds.into_iter().filter(|(_, count)| Some(*count) == most).map(|(build, _)| build);
        Some(Recognised { functions: found.into_iter().map(symbol).collect(), builds: builds.collect() })
    }
}

/// The code of a program, by its unwind information.
struct ProgramCode<'a> {
    elf: &'a ElfFile,
    /// Ends by starts.
    functions: BTreeMap<u64, u64>,
}

impl<'a> ProgramCode<'a> {
    fn of(elf: &'a ElfFile) -> Self {
        let functions = described_code(elf).into_iter().map(|code| (code.start, code.end)).collect();
        Self { elf, functions }
    }

    fn functions(&self) -> impl Iterator<Item = Range<u64>> {
        self.functions.iter().map(|(start, end)| *start..*end)
    }

    fn read(&self, code: &Range<u64>) -> Option<Vec<u8>> {
        let size = code.end.checked_sub(code.start).filter(|size| *size <= MAX_CODE)?;
        let offset = self.elf.code_segment(code.start)?.offset_of(code.start)?;
        let mut bytes = vec![0; size as usize];
        self.elf.source().read(offset, &mut bytes, &self.elf.budget()).ok()?;
        Some(bytes)
    }

    /// The digest of the function at `code`, and of the one that it jumps to if it is short itself.
    fn digest(&self, code: &Range<u64>) -> Option<String> {
        let bytes = self.read(code)?;
        let mut digest = Sha256::new_with_prefix(arch::HOST.masked(&bytes, code.start)?);
        if (bytes.len() as u64) < MIN_CODE {
            let start = arch::HOST.jumps_to(&bytes, code.start)?;
            let next = start..*self.functions.get(&start)?;
            let bytes = self.read(&next).filter(|bytes| bytes.len() as u64 >= MIN_CODE)?;
            digest.update(arch::HOST.masked(&bytes, start)?);
        }
        let mut text = String::with_capacity(2 * DIGEST_BYTES);
        for byte in digest.finalize().iter().take(DIGEST_BYTES) {
            let _ = write!(text, "{byte:02x}");
        }
        Some(text)
    }
}

/// Reads the table: a line for each kit (`kit PREFIX FUNCTION...`), then for each build
/// (`build WORDS`) its functions (`FUNCTION SIZE DIGEST`). Empty lines and comments mean nothing.
fn parse(table: &'static str) -> Result<Vec<Kit<'static>>, String> {
    let mut kits: Vec<Kit<'static>> = Vec::new();
    let mut build = "";
    for line in table.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let wrong = || format!("`{line}` is no line of the table of signatures");
        if let Some(words) = line.strip_prefix("build ") {
            build = words;
            continue;
        }
        let mut words = line.split(' ');
        let first = words.next().ok_or_else(wrong)?;
        if first == "kit" {
            let prefix = words.next().ok_or_else(wrong)?;
            kits.push(Kit { prefix, required: words.collect(), signatures: Vec::new() });
            continue;
        }
        let size = words.next().and_then(|size| size.parse().ok()).ok_or_else(wrong)?;
        let digest = words.next().filter(|digest| digest.len() == 2 * DIGEST_BYTES).ok_or_else(wrong)?;
        let kit = kits.last_mut().ok_or_else(wrong)?;
        kit.signatures.push(Signature { function: first, size, digest, build });
    }
    Ok(kits)
}

/// Lines for the table: the functions of `program` at these addresses (`vaddr`). Fails if one is
/// not there, too short, or has the same code as another function of the program.
pub fn describe(program: &Path, functions: &[(String, u64)]) -> io::Result<Vec<String>> {
    let wrong = |name: &str, what: &str| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{}: {name} {what}", program.display()))
    };
    let source = Source::from_file(std::fs::File::open(program)?)?;
    let elf = ElfFile::parse(source, &Budget::new(MAX_PROGRAM))?;
    let code = ProgramCode::of(&elf);
    let describe = |(name, vaddr): &(String, u64)| {
        let whole = code.functions().find(|code| code.start == *vaddr);
        let whole = whole.ok_or_else(|| wrong(name, "has no unwind information"))?;
        let size = whole.end - whole.start;
        let digest = code.digest(&whole).ok_or_else(|| wrong(name, "is too short, or no code"))?;
        let is_another = |other: &Range<u64>| {
            other.end - other.start == size
                && other.start != whole.start
                && code.digest(other).as_deref() == Some(&*digest)
        };
        match code.functions().find(is_another) {
            Some(_) => Err(wrong(name, "has the same code as another function")),
            None => Ok(format!("{name} {size} {digest}")),
        }
    };
    functions.iter().map(describe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: [&str; 2] = ["00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"];
    const SMALL: &str = "# A comment.\n\nkit p_ malloc free\nbuild one\nmalloc 40 00112233445566778899aabbccddeeff\n\
                         free 50 ffeeddccbbaa99887766554433221100\nbuild two\nmalloc 60 ffeeddccbbaa99887766554433221100\n";

    /// Functions with their places, and builds.
    type Found = (Vec<(String, u64)>, Vec<&'static str>);

    fn found(places: &[(u64, &str, &[u64])], named: &[FunctionSymbol]) -> Option<Found> {
        let kits = parse(SMALL).unwrap();
        let places =
            places.iter().map(|(size, digest, at)| ((*size, (*digest).to_owned()), at.to_vec())).collect();
        let found = kits.first().unwrap().in_program(&places, named)?;
        let functions = found.functions.into_iter().map(|symbol| (symbol.name, symbol.vaddr)).collect();
        Some((functions, found.builds.into_iter().collect()))
    }

    /// Each kit of the real table can be found: every function that it requires is there.
    #[test]
    fn the_table_is_whole() {
        let kits = parse(TABLE).unwrap();
        assert!(!kits.is_empty());
        for kit in kits {
            let known: BTreeSet<&str> = kit.signatures.iter().map(|signature| signature.function).collect();
            assert_eq!(known, kit.required.iter().copied().collect(), "{}", kit.prefix);
            for one in &kit.signatures {
                assert!((8..=MAX_CODE).contains(&one.size), "{one:?}");
                let same = |other: &&Signature<'_>| (other.size, other.digest) == (one.size, one.digest);
                let names: BTreeSet<&str> =
                    kit.signatures.iter().filter(same).map(|other| other.function).collect();
                assert_eq!(names.len(), 1, "one code for {names:?}");
            }
        }
    }

    #[test]
    fn a_line_that_means_nothing_is_an_error() {
        for table in
            ["malloc 40 00112233445566778899aabbccddeeff", "kit p_ malloc\nmalloc x y", "kit p_ a\na 1 2"]
        {
            assert!(parse(table).is_err(), "{table}");
        }
    }

    #[test]
    fn all_functions_are_found_or_none() {
        let free = (50, DIGEST[1], &[0x300_u64][..]);
        let expected = vec![("p_free".to_owned(), 0x300), ("p_malloc".to_owned(), 0x100)];
        assert_eq!(found(&[(40, DIGEST[0], &[0x100]), free], &[]), Some((expected.clone(), vec!["one"])));
        // As another compiler made it.
        assert_eq!(found(&[(60, DIGEST[1], &[0x100]), free], &[]), Some((expected, vec!["one", "two"])));
        assert_eq!(found(&[free], &[]), None, "one is missing");
        assert_eq!(found(&[(40, DIGEST[1], &[0x100]), free], &[]), None, "another size");
        assert_eq!(found(&[(40, DIGEST[0], &[0x100, 0x200]), free], &[]), None, "in two places");
        let both = [(40, DIGEST[0], &[0x100_u64][..]), (60, DIGEST[1], &[0x200]), free];
        assert_eq!(found(&both, &[]), None, "in two forms");
    }

    /// A program names those of its functions that shared libraries call.
    #[test]
    fn the_prefix_is_that_of_a_name_that_is_left() {
        let places: [(u64, &str, &[u64]); 2] = [(40, DIGEST[0], &[0x100]), (50, DIGEST[1], &[0x300])];
        let named = |name: &str, vaddr: u64| FunctionSymbol {
            name: name.to_owned(),
            vaddr,
            size: 40,
            kind: SymbolKind::Function,
        };
        let names = |named: &[FunctionSymbol]| {
            let (functions, _) = found(&places, named).unwrap();
            functions.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert_eq!(names(&[named("malloc", 0x100)]), ["free", "malloc"]);
        assert_eq!(names(&[named("malloc", 0x700)]), ["p_free", "p_malloc"], "somebody else's");
    }
}
