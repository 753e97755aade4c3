//! Which allocators are in an object? Told by symbols that only an allocator defines, whole or
//! under a prefix.

use std::{collections::BTreeMap, fmt};

use super::object::{Elf, FunctionSymbol};

/// An allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AllocatorKind {
    /// jemalloc, also under a prefix (`je_`, `_rjem_`).
    Jemalloc,
    /// gperftools' or Google's tcmalloc.
    Tcmalloc,
    /// Microsoft's mimalloc.
    Mimalloc,
    /// Microsoft's snmalloc.
    Snmalloc,
    /// rpmalloc.
    Rpmalloc,
    /// LLVM's scudo.
    Scudo,
    /// Doug Lea's malloc.
    Dlmalloc,
    /// The scalable allocator of oneTBB.
    Tbb,
    /// The GNU C library.
    Glibc,
    /// The musl C library.
    Musl,
    /// It defines malloc; more is not known.
    Unknown,
}

/// What is known of one allocator.
struct Known {
    kind: AllocatorKind,
    name: &'static str,
    /// What its messages begin with, or else its code holds: it tells of an allocator in a program
    /// without symbols. All of them must be there.
    words: &'static [&'static str],
    /// C code calls it by functions, too, that no shared library refers to: a stripped program does
    /// not name them.
    has_more_functions: bool,
    /// One of these, as a defined function, is enough.
    markers: &'static [&'static str],
    /// Its operator new and delete reach the heap without calling malloc and free.
    own_operators: bool,
}

/// In order of precedence: a static program holds its C library as well as the allocator that was
/// linked into it, and tcmalloc and mimalloc define glibc's internal names (`__libc_malloc`).
const KNOWN: &[Known] = &[
    Known {
        kind: AllocatorKind::Jemalloc,
        name: "jemalloc",
        words: &["<jemalloc>: "],
        has_more_functions: true,
        // As prefixes are found: see `discovered_prefixes`.
        markers: &[],
        own_operators: true,
    },
    Known {
        kind: AllocatorKind::Tcmalloc,
        name: "tcmalloc",
        words: &["tcmalloc: large alloc "],
        has_more_functions: false,
        markers: &[
            "tc_malloc",
            "tc_version",
            "TCMallocInternalMalloc",
            "TCMallocInternalNew",
            "MallocExtension_GetStats",
            "MallocExtension_Internal_GetStats",
        ],
        own_operators: true,
    },
    // Google's, in its statistics.
    Known {
        kind: AllocatorKind::Tcmalloc,
        name: "tcmalloc",
        words: &["PARAMETER tcmalloc_"],
        has_more_functions: false,
        markers: &[],
        own_operators: true,
    },
    Known {
        kind: AllocatorKind::Mimalloc,
        name: "mimalloc",
        words: &["mimalloc: "],
        has_more_functions: true,
        markers: &["mi_malloc", "mi_version", "mi_malloc_aligned", "mi_process_init", "mi_heap_malloc"],
        own_operators: true,
    },
    Known {
        kind: AllocatorKind::Snmalloc,
        name: "snmalloc",
        words: &["/src/snmalloc/"],
        has_more_functions: true,
        markers: &["sn_rust_alloc", "sn_rust_dealloc", "sn_malloc", "_ZN8snmalloc4libc6mallocEm"],
        own_operators: true,
    },
    Known {
        kind: AllocatorKind::Rpmalloc,
        name: "rpmalloc",
        // How it finds the size of large pages; it has no messages. Ended by a zero, which other
        // programs' patterns for this line of the file are not.
        words: &["Hugepagesize:\0", "/proc/meminfo\0"],
        has_more_functions: true,
        markers: &["rpmalloc", "rpmalloc_initialize", "rpaligned_alloc"],
        own_operators: true,
    },
    Known {
        kind: AllocatorKind::Scudo,
        name: "scudo",
        words: &["Scudo ERROR: "],
        has_more_functions: false,
        markers: &["__scudo_print_stats", "scudo_malloc", "scudo_allocate", "__scudo_default_options"],
        own_operators: true,
    },
    Known {
        kind: AllocatorKind::Dlmalloc,
        name: "dlmalloc",
        words: &[],
        has_more_functions: true,
        markers: &["dlmalloc", "mspace_malloc"],
        own_operators: true,
    },
    Known {
        kind: AllocatorKind::Tbb,
        name: "oneTBB's allocator",
        words: &[],
        has_more_functions: true,
        markers: &["scalable_malloc", "__TBB_malloc_proxy"],
        own_operators: true,
    },
    // gnu_get_libc_version is missing in a static program that does not call it. The names must be
    // glibc's alone: __libc_malloc and __libc_memalign are tcmalloc's as well.
    Known {
        kind: AllocatorKind::Glibc,
        name: "glibc",
        words: &[],
        has_more_functions: false,
        markers: &["gnu_get_libc_version", "__libc_mallopt", "__malloc_info"],
        own_operators: false,
    },
    // The shared one exports only the stages of its loader, a static program has no loader.
    Known {
        kind: AllocatorKind::Musl,
        name: "musl",
        words: &[],
        has_more_functions: false,
        markers: &["__dls2b", "__dls3", "__libc_malloc_impl", "__init_libc"],
        own_operators: false,
    },
];

/// Prefixes that allocators are commonly built with; the empty one is malloc itself. `_rjem_` is
/// tikv-jemallocator's, `xx` Hoard's.
const PREFIXES: &[&str] =
    &["", "je_", "_rjem_", "tc_", "mi_", "sn_", "rp", "dl", "scudo_", "scudo_svelte_", "scalable_", "xx"];

/// Functions of jemalloc's own interface (jemalloc(3)). Two of them under one prefix are enough to
/// know it by.
const JEMALLOC_API: &[&str] = &["mallctl", "mallocx", "rallocx", "xallocx", "sdallocx", "dallocx"];

/// What an allocator offers beside malloc, and a program's wrappers of malloc do not.
const USABLE_SIZE: &str = "malloc_usable_size";

/// Functions of allocators that are not probed, and map memory for the allocator itself; with a
/// prefix or without.
const INTERNAL: &[&str] = &[
    "malloc_trim",
    "malloc_info",
    "malloc_stats",
    "mallopt",
    "mallinfo",
    "mallinfo2",
    "mallctl",
    "mallctlbymib",
    "mallctlnametomib",
    "mi_process_init",
    "mi_thread_init",
    "mi_collect",
    "mi_heap_new",
    "rpmalloc_initialize",
    "rpmalloc_thread_initialize",
];

/// Longest prefix that is believed.
const MAX_PREFIX: usize = 32;

/// Every symbol that [`identify`] looks for.
pub fn marker_names() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().flat_map(|known| known.markers.iter().chain(JEMALLOC_API).chain(INTERNAL).copied())
}

/// What names of allocators' functions begin with that no others have.
pub fn own_prefixes() -> impl Iterator<Item = &'static str> {
    PREFIXES.iter().copied().filter(|prefix| !prefix.is_empty())
}

/// Names of functions that only an allocator has.
pub fn own_names() -> impl Iterator<Item = &'static str> {
    JEMALLOC_API.iter().copied()
}

/// Ends of the names that [`prefixes_of`] and [`internal_functions`] look for.
pub fn marker_endings() -> impl Iterator<Item = &'static str> {
    JEMALLOC_API.iter().chain(INTERNAL).copied().chain([USABLE_SIZE])
}

/// Functions of `elf`'s allocator that are not probed.
pub fn internal_functions(elf: &Elf) -> impl Iterator<Item = &FunctionSymbol> {
    let is_internal = |name: &str| INTERNAL.iter().any(|internal| name.ends_with(internal));
    elf.symbols().iter().filter(move |symbol| is_internal(&symbol.name))
}

/// Which allocator `elf` holds, if it holds one.
pub fn identify(elf: &Elf) -> AllocatorKind {
    if !jemalloc_prefixes(elf).is_empty() {
        return AllocatorKind::Jemalloc;
    }
    KNOWN
        .iter()
        .find(|known| known.markers.iter().any(|marker| elf.defines(marker)))
        .map_or(AllocatorKind::Unknown, |known| known.kind)
}

/// Which allocator a program without symbols holds, by the words that are in it. `None`: none that
/// is known so.
pub fn told_by_words(elf: &Elf) -> Option<AllocatorKind> {
    let known: Vec<_> = KNOWN.iter().filter_map(|known| Some((known, known.words.split_first()?))).collect();
    let firsts: Vec<_> = known.iter().map(|(_, (first, _))| first.as_bytes()).collect();
    let (known, (_, others)) = known.get(elf.find_first(&firsts)?)?;
    // glibc reads the same line of the file, and a static program holds glibc.
    let is_glibcs = known.kind == AllocatorKind::Rpmalloc && elf.is_static();
    let has_all = others.iter().all(|word| elf.find_first(&[word.as_bytes()]).is_some());
    (has_all && !is_glibcs).then_some(known.kind)
}

/// Prefixes under which `elf` may define malloc and related functions: those that are common, and
/// those that its own symbols show.
pub fn prefixes_of(elf: &Elf) -> Vec<String> {
    let mut prefixes: Vec<String> = PREFIXES.iter().map(|prefix| (*prefix).to_owned()).collect();
    let with_usable_size = prefixes_before(elf, USABLE_SIZE)
        .filter(|prefix| ["malloc", "free"].iter().all(|name| elf.defines(&format!("{prefix}{name}"))));
    for prefix in jemalloc_prefixes(elf).into_iter().chain(with_usable_size) {
        if !prefixes.iter().any(|known| known == prefix) {
            prefixes.push(prefix.to_owned());
        }
    }
    prefixes
}

/// Prefixes of functions that only jemalloc has. One alone is believed without a prefix, or with a
/// common one.
fn jemalloc_prefixes(elf: &Elf) -> Vec<&str> {
    let mut found: BTreeMap<&str, usize> = BTreeMap::new();
    for name in JEMALLOC_API {
        for prefix in prefixes_before(elf, name) {
            *found.entry(prefix).or_default() += 1;
        }
    }
    found.retain(|prefix, functions| *functions > 1 || PREFIXES.contains(prefix));
    found.into_keys().collect()
}

/// What comes before `ending` in the names of the functions of `elf`.
fn prefixes_before<'a>(elf: &'a Elf, ending: &'a str) -> impl Iterator<Item = &'a str> {
    let prefixes = elf.symbols().iter().filter_map(move |symbol| symbol.name.strip_suffix(ending));
    prefixes.filter(|prefix| is_prefix(prefix))
}

/// An identifier of C: names of C++ and Rust are mangled, and what they end with means nothing.
fn is_prefix(prefix: &str) -> bool {
    let is_mangled = prefix.starts_with("_Z") || prefix.starts_with("_R");
    let is_c = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    prefix.len() <= MAX_PREFIX && !is_mangled && prefix.bytes().all(is_c)
}

impl AllocatorKind {
    fn known(self) -> Option<&'static Known> {
        KNOWN.iter().find(|known| known.kind == self)
    }

    /// It has functions that a stripped program which holds it does not name: no shared library
    /// refers to them.
    pub fn has_more_functions(self) -> bool {
        self.known().is_some_and(|known| known.has_more_functions)
    }

    /// A shared library that holds it is nothing else: neither a C library nor something that is
    /// not known.
    pub fn is_all_of_its_library(self) -> bool {
        self.known().is_some_and(|known| known.own_operators)
    }

    /// Its `operator new` does not call malloc, so that it needs probes of its own. So it is taken
    /// to be if nothing is known: a call that does reach malloc is nested in the operator's and
    /// counts once all the same.
    pub fn has_own_operators(self) -> bool {
        self.known().is_none_or(|known| known.own_operators)
    }
}

impl fmt::Display for AllocatorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.known().map_or("unknown allocator", |known| known.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn believes_prefixes_of_c_alone() {
        for prefix in ["", "je_", "_rjem_", "my_jemalloc_"] {
            assert!(is_prefix(prefix), "{prefix}");
        }
        for prefix in ["_ZN3foo7", "_RNvCs1_3foo7", "a.b", &"x".repeat(33)] {
            assert!(!is_prefix(prefix), "{prefix}");
        }
    }
}
