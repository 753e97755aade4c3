//! Which allocator is this object? Told by symbols that only that allocator defines.

use std::fmt;

use super::object::Elf;

/// An allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AllocatorKind {
    /// jemalloc, also under a prefix (`je_`, `_rjem_`).
    Jemalloc,
    /// gperftools' or Google's tcmalloc.
    Tcmalloc,
    /// Microsoft's mimalloc.
    Mimalloc,
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
    /// One of these, as a defined function, is enough.
    markers: &'static [&'static str],
    /// Its operator new and delete reach the heap without calling malloc and free.
    own_operators: bool,
}

/// In order of precedence: a static program holds its C library as well as the allocator that was linked into it, and
/// tcmalloc and mimalloc define glibc's internal names (`__libc_malloc`).
const KNOWN: &[Known] = &[
    Known {
        kind: AllocatorKind::Jemalloc,
        name: "jemalloc",
        markers: &["mallctl", "je_mallctl", "_rjem_mallctl", "mallctlnametomib", "je_mallctlnametomib"],
        own_operators: true,
    },
    Known {
        kind: AllocatorKind::Tcmalloc,
        name: "tcmalloc",
        markers: &[
            "tc_malloc",
            "tc_version",
            "MallocExtension_GetStats",
            "MallocExtension_Internal_GetStats",
        ],
        own_operators: true,
    },
    Known {
        kind: AllocatorKind::Mimalloc,
        name: "mimalloc",
        markers: &["mi_malloc", "mi_version"],
        own_operators: true,
    },
    // gnu_get_libc_version is missing in a static program that does not call it.
    Known {
        kind: AllocatorKind::Glibc,
        name: "glibc",
        markers: &["gnu_get_libc_version", "__libc_memalign", "__libc_mallopt", "__malloc_info"],
        own_operators: false,
    },
    // The shared one exports only the stages of its loader, a static program has no loader.
    Known {
        kind: AllocatorKind::Musl,
        name: "musl",
        markers: &["__dls2b", "__dls3", "__libc_malloc_impl", "__init_libc"],
        own_operators: false,
    },
];

/// Prefixes that allocators are commonly built with; the empty one is malloc itself. `_rjem_` is tikv-jemallocator's.
pub const PREFIXES: &[&str] = &["", "je_", "_rjem_", "tc_", "mi_"];

/// Every symbol that [`identify`] looks for.
pub fn marker_names() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().flat_map(|known| known.markers.iter().copied())
}

/// Which allocator `elf` holds, if it holds one.
pub fn identify(elf: &Elf) -> AllocatorKind {
    KNOWN
        .iter()
        .find(|known| known.markers.iter().any(|marker| elf.defines(marker)))
        .map_or(AllocatorKind::Unknown, |known| known.kind)
}

impl AllocatorKind {
    fn known(self) -> Option<&'static Known> {
        KNOWN.iter().find(|known| known.kind == self)
    }

    /// Its `operator new` does not call malloc, so that it needs probes of its own. So it is taken to be where nothing
    /// is known: a call that does reach malloc is nested in the operator's and counts once all the same.
    pub fn has_own_operators(self) -> bool {
        self.known().is_none_or(|known| known.own_operators)
    }
}

impl fmt::Display for AllocatorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.known().map_or("unknown allocator", |known| known.name))
    }
}
