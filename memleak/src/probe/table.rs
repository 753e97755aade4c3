//! Every function that is probed: one row each, data only. A row's index is the attach cookie and its place in the map
//! `PROBES`. Nothing else in the program knows an allocator's function by name.
//!
//! Signatures: malloc(3), posix_memalign(3), mmap(2), mremap(2), jemalloc(3); C23 7.24.3 for `free_sized` and
//! `free_aligned_sized`; the Itanium C++ ABI, section 5.1, for the mangled operators (`m` is the `size_t` of 64-bit Linux).

use memleak_common::probe::{ProbeRow, Resource, flags, handle, size, success};

/// What a call of the function does to the resource, and so which programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Hands out something new: `acquire_enter` and `acquire_exit`.
    Acquire,
    /// Releases what it was given and hands out something instead, or fails and does neither (realloc, mremap):
    /// `acquire_enter` and `acquire_exit`.
    Resize,
    /// Releases and cannot fail: `release_enter`.
    Release,
    /// Releases, unless it fails (munmap): `acquire_enter` and `acquire_exit`.
    FallibleRelease,
    /// Leaves frames behind without their return (longjmp, exceptions): `abandon_enter`.
    Abandon,
    /// Is called when the target's mappings have changed: `mappings_enter`.
    Notice,
}

/// Which objects' symbols a row applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Objects that define an allocator; the symbols may carry its prefix (`je_`).
    Heap,
    /// As `Heap`, but only some allocators have it: that it is missing is not worth a word.
    HeapExtension,
    /// Objects of allocators whose C++ operators do not call malloc ([`crate::target::allocator`]). Never prefixed.
    Operator,
    /// Objects that define the C library's mmap and munmap. Never prefixed.
    Mapping,
    /// Every object that defines the function. Never prefixed.
    Anywhere,
}

/// One function.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Name of the symbol, without version and without an allocator's prefix.
    pub function: &'static str,
    /// What it does.
    pub role: Role,
    /// Where it is looked for.
    pub scope: Scope,
    /// What the BPF programs read.
    pub probe: ProbeRow,
}

const HEAP: ProbeRow = ProbeRow { resource: Resource::Heap as u32, ..ProbeRow::EMPTY };
const RANGES: ProbeRow = ProbeRow { resource: Resource::Mmap as u32, flags: flags::RANGE, ..ProbeRow::EMPTY };

/// Returns a block of argument `size_arg` bytes.
const fn sized(size_arg: u8) -> ProbeRow {
    ProbeRow { handle: handle::RETURN, size: size::ARG, size_arg, ..HEAP }
}

/// Returns a block as large as the product of two arguments.
const fn product(size_arg: u8, size_arg2: u8) -> ProbeRow {
    ProbeRow { handle: handle::RETURN, size: size::PRODUCT, size_arg, size_arg2, ..HEAP }
}

/// The same, after releasing argument 0 (in one step, when it succeeds).
const fn resizing(row: ProbeRow, flags: u32) -> ProbeRow {
    ProbeRow { release_arg: 0, flags, ..row }
}

const FREE: ProbeRow = ProbeRow { release_arg: 0, ..HEAP };
const POSIX_MEMALIGN: ProbeRow = ProbeRow {
    handle: handle::BEHIND_ARG,
    handle_arg: 0,
    size: size::ARG,
    size_arg: 2,
    success: success::RETURN_ZERO,
    ..HEAP
};
/// MAP_FIXED replaces what was there. MAP_FIXED_NOREPLACE is a bit of its own and replaces nothing (mmap(2)).
const MMAP: ProbeRow = ProbeRow {
    handle: handle::RETURN,
    size: size::ARG,
    size_arg: 1,
    flags_arg: 3,
    replace_mask: libc::MAP_FIXED as u32,
    ..RANGES
};
const MREMAP: ProbeRow = ProbeRow {
    handle: handle::RETURN,
    size: size::ARG,
    size_arg: 2,
    release_arg: 0,
    release_len_arg: 1,
    flags_arg: 3,
    replace_mask: libc::MREMAP_FIXED as u32,
    keep_mask: libc::MREMAP_DONTUNMAP as u32,
    ..RANGES
};
const MUNMAP: ProbeRow =
    ProbeRow { release_arg: 0, release_len_arg: 1, success: success::RETURN_ZERO, ..RANGES };

const fn row(function: &'static str, role: Role, scope: Scope, probe: ProbeRow) -> Row {
    Row { function, role, scope, probe }
}

const fn acquire(function: &'static str, probe: ProbeRow) -> Row {
    row(function, Role::Acquire, Scope::Heap, probe)
}

const fn resize(function: &'static str, probe: ProbeRow) -> Row {
    row(function, Role::Resize, Scope::Heap, probe)
}

const fn release(function: &'static str) -> Row {
    row(function, Role::Release, Scope::Heap, FREE)
}

const fn new(function: &'static str) -> Row {
    row(function, Role::Acquire, Scope::Operator, ProbeRow { flags: flags::MAY_THROW, ..sized(0) })
}

const fn delete(function: &'static str) -> Row {
    row(function, Role::Release, Scope::Operator, FREE)
}

const fn abandon(function: &'static str) -> Row {
    row(function, Role::Abandon, Scope::Anywhere, ProbeRow::EMPTY)
}

/// The table. Where two rows meet at one address the first one names it, so the usual name comes first.
pub const TABLE: &[Row] = &[
    acquire("malloc", sized(0)),
    acquire("calloc", product(0, 1)),
    resize("realloc", resizing(sized(1), flags::ZERO_SIZE_RELEASES)),
    resize("reallocarray", resizing(product(1, 2), flags::ZERO_SIZE_RELEASES)),
    acquire("posix_memalign", POSIX_MEMALIGN),
    acquire("aligned_alloc", sized(1)),
    acquire("memalign", sized(1)),
    acquire("valloc", sized(0)),
    acquire("pvalloc", sized(0)),
    release("free"),
    release("cfree"),
    release("free_sized"),
    release("free_aligned_sized"),
    // jemalloc's own interface; Rust's tikv-jemallocator frees by sdallocx alone.
    row("mallocx", Role::Acquire, Scope::HeapExtension, sized(0)),
    row("rallocx", Role::Resize, Scope::HeapExtension, resizing(sized(1), 0)),
    row("dallocx", Role::Release, Scope::HeapExtension, FREE),
    row("sdallocx", Role::Release, Scope::HeapExtension, FREE),
    // operator new(size_t ...) and new[]; the __hot_cold_t forms are those of LLVM and Google's tcmalloc.
    new("_Znwm"),
    new("_Znam"),
    new("_ZnwmRKSt9nothrow_t"),
    new("_ZnamRKSt9nothrow_t"),
    new("_ZnwmSt11align_val_t"),
    new("_ZnamSt11align_val_t"),
    new("_ZnwmSt11align_val_tRKSt9nothrow_t"),
    new("_ZnamSt11align_val_tRKSt9nothrow_t"),
    new("_Znwm12__hot_cold_t"),
    new("_Znam12__hot_cold_t"),
    new("_ZnwmRKSt9nothrow_t12__hot_cold_t"),
    new("_ZnamRKSt9nothrow_t12__hot_cold_t"),
    new("_ZnwmSt11align_val_t12__hot_cold_t"),
    new("_ZnamSt11align_val_t12__hot_cold_t"),
    new("_ZnwmSt11align_val_tRKSt9nothrow_t12__hot_cold_t"),
    new("_ZnamSt11align_val_tRKSt9nothrow_t12__hot_cold_t"),
    // operator delete(void *, ...) and delete[].
    delete("_ZdlPv"),
    delete("_ZdaPv"),
    delete("_ZdlPvm"),
    delete("_ZdaPvm"),
    delete("_ZdlPvRKSt9nothrow_t"),
    delete("_ZdaPvRKSt9nothrow_t"),
    delete("_ZdlPvSt11align_val_t"),
    delete("_ZdaPvSt11align_val_t"),
    delete("_ZdlPvmSt11align_val_t"),
    delete("_ZdaPvmSt11align_val_t"),
    delete("_ZdlPvSt11align_val_tRKSt9nothrow_t"),
    delete("_ZdaPvSt11align_val_tRKSt9nothrow_t"),
    row("mmap", Role::Acquire, Scope::Mapping, MMAP),
    row("mmap64", Role::Acquire, Scope::Mapping, MMAP),
    row("mremap", Role::Resize, Scope::Mapping, MREMAP),
    row("munmap", Role::FallibleRelease, Scope::Mapping, MUNMAP),
    // The Itanium C++ ABI's level I, libgcc_s or libunwind; pthread_exit and cancellation force an unwinding too.
    abandon("_Unwind_RaiseException"),
    abandon("_Unwind_ForcedUnwind"),
    // glibc keeps several under one address and the last two for its own threads.
    abandon("longjmp"),
    abandon("_longjmp"),
    abandon("siglongjmp"),
    abandon("__longjmp_chk"),
    abandon("__libc_longjmp"),
    abandon("__libc_siglongjmp"),
    // Where debuggers learn of dlopen: glibc's elf/dl-debug.c, musl's ldso/dynlink.c.
    row("_dl_debug_state", Role::Notice, Scope::Anywhere, ProbeRow::EMPTY),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use memleak_common::probe::{MAX_PROBES, NO_ARG};

    use super::*;

    /// The list of spec section 3, word for word.
    const SPEC: &str = "malloc, calloc, realloc, reallocarray, free, cfree, posix_memalign, aligned_alloc, memalign, \
                        valloc, pvalloc, free_sized, free_aligned_sized, mmap, mmap64, mremap, munmap";

    fn find(function: &str) -> &'static Row {
        TABLE.iter().find(|row| row.function == function).unwrap_or_else(|| panic!("no row for {function}"))
    }

    #[test]
    fn holds_every_function_of_the_spec() {
        for function in SPEC.split(", ") {
            find(function);
        }
    }

    #[test]
    fn holds_every_form_of_new_and_delete() {
        // Derived from the grammar of [new.delete], not from the table.
        for array in ["w", "a"] {
            for align in ["", "St11align_val_t"] {
                for nothrow in ["", "RKSt9nothrow_t"] {
                    for hint in ["", "12__hot_cold_t"] {
                        let new = find(&format!("_Zn{array}m{align}{nothrow}{hint}")).probe;
                        assert_eq!((new.size, new.size_arg, new.handle), (size::ARG, 0, handle::RETURN));
                    }
                }
            }
        }
        for array in ["l", "a"] {
            for form in [
                "",
                "m",
                "RKSt9nothrow_t",
                "St11align_val_t",
                "mSt11align_val_t",
                "St11align_val_tRKSt9nothrow_t",
            ] {
                assert_eq!(find(&format!("_Zd{array}Pv{form}")).probe.release_arg, 0);
            }
        }
    }

    #[test]
    fn names_each_function_once_and_fits_the_map() {
        let names: HashSet<_> = TABLE.iter().map(|row| row.function).collect();
        assert_eq!(names.len(), TABLE.len());
        assert!(TABLE.len() <= MAX_PROBES as usize);
    }

    #[test]
    fn reads_only_arguments_that_are_passed_in_registers() {
        for Row { function, probe, .. } in TABLE {
            for arg in [
                probe.handle_arg,
                probe.size_arg,
                probe.size_arg2,
                probe.release_arg,
                probe.release_len_arg,
                probe.flags_arg,
            ] {
                assert!(arg < 6 || arg == NO_ARG, "{function}: argument {arg}");
            }
            assert_eq!((probe.reserved, probe.group), ([0; 3], 0), "{function}");
        }
    }

    #[test]
    fn says_where_a_size_is_exactly_where_there_is_one() {
        for Row { function, probe, .. } in TABLE {
            let expected = match probe.size {
                size::NONE | size::CONSTANT => (false, false),
                size::ARG => (true, false),
                size::PRODUCT => (true, true),
                other => panic!("{function}: size {other}"),
            };
            assert_eq!((probe.size_arg != NO_ARG, probe.size_arg2 != NO_ARG), expected, "{function}");
            assert_eq!(probe.handle == handle::BEHIND_ARG, probe.handle_arg != NO_ARG, "{function}");
            assert!(probe.constant == 0 || probe.size == size::CONSTANT, "{function}");
        }
    }

    #[test]
    fn gives_each_role_what_its_programs_need() {
        for Row { function, role, probe, .. } in TABLE {
            let acquires = probe.handle != handle::NONE && probe.size != size::NONE;
            let releases = probe.release_arg != NO_ARG;
            let expected = match role {
                Role::Acquire => (true, false),
                Role::Resize => (true, true),
                Role::Release | Role::FallibleRelease => (false, true),
                Role::Abandon | Role::Notice => (false, false),
            };
            assert_eq!((acquires, releases), expected, "{function}");
            assert!(acquires || (probe.handle == handle::NONE && probe.size == size::NONE), "{function}");
            if *role == Role::FallibleRelease {
                assert_eq!(probe.success, success::RETURN_ZERO, "{function}: no handle tells of its success");
            }
            if matches!(role, Role::Abandon | Role::Notice) {
                assert_eq!(*probe, ProbeRow::EMPTY, "{function}");
            }
        }
    }

    #[test]
    fn keeps_ranges_and_blocks_apart() {
        for Row { function, scope, role, probe } in TABLE {
            let is_range = probe.flags & flags::RANGE != 0;
            assert_eq!(is_range, *scope == Scope::Mapping, "{function}");
            assert_eq!(is_range, probe.resource == Resource::Mmap as u32, "{function}");
            assert_eq!(probe.release_len_arg != NO_ARG, is_range && *role != Role::Acquire, "{function}");
            let has_masks = probe.replace_mask != 0 || probe.keep_mask != 0;
            assert_eq!(has_masks, probe.flags_arg != NO_ARG, "{function}");
            let zero_size = probe.flags & flags::ZERO_SIZE_RELEASES != 0;
            assert_eq!(zero_size, *role == Role::Resize && *scope == Scope::Heap, "{function}");
        }
    }

    #[test]
    fn reads_the_flags_that_the_kernel_headers_define() {
        // include/uapi/asm-generic/mman-common.h and include/uapi/linux/mman.h
        assert_eq!(find("mmap").probe.replace_mask, 0x10);
        assert_eq!((find("mremap").probe.replace_mask, find("mremap").probe.keep_mask), (2, 4));
        assert_eq!(find("mmap").probe, find("mmap64").probe);
    }
}
