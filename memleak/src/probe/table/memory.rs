//! The resources `heap` and `mmap`: malloc, mmap and related functions.
//!
//! Signatures: malloc(3), posix_memalign(3), mmap(2), mremap(2), shmop(2), jemalloc(3); C23 7.24.3
//! for `free_sized` and `free_aligned_sized`; the Itanium C++ ABI, section 5.1, for the mangled
//! operators (`m` is the `size_t` of 64-bit Linux).

use memleak_common::probe::{ProbeRow, Resource, flags, handle, only, size, success};

use super::{Role, Row, Scope, of, row};

pub(super) const HEAP: ProbeRow = ProbeRow { resource: Resource::Heap.number(), ..ProbeRow::EMPTY };
const RANGES: ProbeRow =
    ProbeRow { resource: Resource::Mmap.number(), flags: flags::RANGE, ..ProbeRow::EMPTY };

/// Returns a block of argument `size_arg` bytes.
pub(super) const fn sized(size_arg: u8) -> ProbeRow {
    ProbeRow { handle: handle::RETURN, size: size::ARG, size_arg, ..HEAP }
}

/// Returns a block as large as the product of two arguments.
pub(super) const fn product(size_arg: u8, size_arg2: u8) -> ProbeRow {
    ProbeRow { handle: handle::RETURN, size: size::PRODUCT, size_arg, size_arg2, ..HEAP }
}

/// The same, after releasing argument `release_arg` (in one step, when it succeeds).
pub(super) const fn resizing(row: ProbeRow, release_arg: u8, flags: u32) -> ProbeRow {
    ProbeRow { release_arg, flags, ..row }
}

pub(super) const FREE: ProbeRow = ProbeRow { release_arg: 0, ..HEAP };
pub(super) const POSIX_MEMALIGN: ProbeRow = ProbeRow {
    handle: handle::BEHIND_ARG,
    handle_arg: 0,
    size: size::ARG,
    size_arg: 2,
    success: success::EQUAL,
    ..HEAP
};
/// MAP_FIXED replaces what was there. MAP_FIXED_NOREPLACE is a bit of its own and replaces nothing
/// (mmap(2)).
const MMAP: ProbeRow = ProbeRow {
    handle: handle::RETURN,
    size: size::ARG,
    size_arg: 1,
    flags_arg: 3,
    replace_mask: libc::MAP_FIXED as u32,
    ..RANGES
};
pub(super) const MREMAP: ProbeRow = ProbeRow {
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
/// Where pages are what is traced: they are somewhere else now.
const MOVED_PAGES: ProbeRow = ProbeRow {
    handle: handle::RETURN,
    handle_arg: 0,
    size: size::ARG,
    size_arg: 2,
    flags_arg: 1,
    flags: flags::MOVES_PAGES,
    ..of(Resource::Growth, 0)
};
const SEGMENTS: ProbeRow = ProbeRow { flags: flags::RANGE | flags::SEGMENT, ..RANGES };
/// SHM_REMAP replaces what was there.
const SHMAT: ProbeRow = ProbeRow {
    handle: handle::RETURN,
    size: size::ARG,
    size_arg: 0,
    flags_arg: 2,
    replace_mask: libc::SHM_REMAP as u32,
    ..SEGMENTS
};
const SHMDT: ProbeRow = ProbeRow { release_arg: 0, success: success::EQUAL, ..SEGMENTS };
const MUNMAP: ProbeRow = ProbeRow { release_arg: 0, release_len_arg: 1, success: success::EQUAL, ..RANGES };

/// The argument is a block that has another size from now on, if the call succeeds.
pub(super) const fn in_place(size_arg: u8, handle_arg: u8) -> ProbeRow {
    let flags = flags::IN_PLACE | flags::WIDE_RETURN;
    ProbeRow { handle: handle::ARG, handle_arg, success: success::NOT_EQUAL, flags, ..sized(size_arg) }
}
/// Gives the size that the block has now.
const XALLOCX: ProbeRow = ProbeRow { success: success::SIZE_OR_MORE, ..in_place(1, 0) };
/// Releases all blocks of an arena, if it is asked to.
const MALLCTL: ProbeRow = ProbeRow { flags: flags::SWEEPS, only: only::ARENA_SWEEP, only_arg: 0, ..HEAP };

const fn acquire(function: &'static str, probe: ProbeRow) -> Row {
    row(function, Role::Acquire, Scope::Heap, probe)
}

const fn resize(function: &'static str, probe: ProbeRow) -> Row {
    row(function, Role::Resize, Scope::Heap, probe)
}

const fn release(function: &'static str) -> Row {
    row(function, Role::Release, Scope::Heap, FREE)
}

/// As [`sized`], of a C++ operator or what stands for one.
pub(super) const fn throwing(row: ProbeRow) -> ProbeRow {
    ProbeRow { flags: flags::MAY_THROW, ..row }
}

const fn new(function: &'static str) -> Row {
    row(function, Role::Acquire, Scope::Operator, throwing(sized(0)))
}

const fn delete(function: &'static str) -> Row {
    row(function, Role::Release, Scope::Operator, FREE)
}

/// Where two rows meet at one address the first one names it, so the usual name comes first.
pub(super) const ROWS: &[Row] = &[
    acquire("malloc", sized(0)),
    acquire("calloc", product(0, 1)),
    resize("realloc", resizing(sized(1), 0, flags::ZERO_SIZE_RELEASES)),
    resize("reallocarray", resizing(product(1, 2), 0, flags::ZERO_SIZE_RELEASES)),
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
    row("rallocx", Role::Resize, Scope::HeapExtension, resizing(sized(1), 0, 0)),
    row("xallocx", Role::InPlace, Scope::HeapExtension, XALLOCX),
    row("mallctl", Role::Sweep, Scope::HeapExtension, MALLCTL),
    row("dallocx", Role::Release, Scope::HeapExtension, FREE),
    row("sdallocx", Role::Release, Scope::HeapExtension, FREE),
    // operator new(size_t ...) and new[]; the __hot_cold_t forms are those of LLVM and Google's
    // tcmalloc.
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
    row("mremap", Role::Move, Scope::CLibrary, MOVED_PAGES),
    row("munmap", Role::FallibleRelease, Scope::Mapping, MUNMAP),
    row("shmat", Role::Acquire, Scope::Mapping, SHMAT),
    row("shmdt", Role::FallibleRelease, Scope::Mapping, SHMDT),
];
