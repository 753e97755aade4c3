//! The resource `heap`: what allocators offer beside malloc and related functions, under names of
//! their own.
//!
//! Signatures: mimalloc.h (2.0.9, 2.3.2, 3.3.2), gperftools' tcmalloc.h (2.10), Google's tcmalloc.h
//! and tcmalloc.cc (2025), rpmalloc.h (of rpmalloc-sys 0.2.3), snmalloc's rust.cc (0.7.6),
//! dlmalloc's malloc.c (2.8.6), the crate scudo-sys (0.2.2), oneTBB's scalable_allocator.h
//! (2021.8). docs/allocators.md says what was compared.

use memleak_common::probe::{ProbeRow, flags, handle, only, size, success};

use super::{
    Role, Row, Scope,
    memory::{self, HEAP, POSIX_MEMALIGN, product, resizing, sized, throwing},
};

/// NetBSD's reallocarr(3), also of mimalloc: the block's address is where argument 0 says, before
/// and after.
const REALLOCARR: ProbeRow = ProbeRow {
    handle: handle::BEHIND_ARG,
    handle_arg: 0,
    size: size::PRODUCT,
    size_arg: 1,
    size_arg2: 2,
    success: success::EQUAL,
    release_arg: 0,
    flags: flags::RELEASE_BEHIND,
    ..HEAP
};

/// Returns a copy of a string.
const STRING: ProbeRow = ProbeRow { handle: handle::RETURN, size: size::STRING, ..HEAP };

/// The same, if the caller has given no room for it.
const NEW_STRING: ProbeRow = ProbeRow { only: only::ARG_IN, only_values: [0, 0], ..STRING };

const fn acquire(function: &'static str, probe: ProbeRow) -> Row {
    row(function, Role::Acquire, probe)
}

const fn resize(function: &'static str, probe: ProbeRow) -> Row {
    row(function, Role::Resize, probe)
}

/// Releases argument `release_arg`.
const fn release(function: &'static str, release_arg: u8) -> Row {
    row(function, Role::Release, ProbeRow { release_arg, ..HEAP })
}

/// Releases all that a heap holds.
const fn sweep(function: &'static str) -> Row {
    row(function, Role::Sweep, ProbeRow { flags: flags::SWEEPS, ..HEAP })
}

const fn in_place(function: &'static str, probe: ProbeRow) -> Row {
    row(function, Role::InPlace, probe)
}

const fn row(function: &'static str, role: Role, probe: ProbeRow) -> Row {
    super::row(function, role, Scope::Allocator, probe)
}

/// In order of allocators.
pub(super) const ROWS: &[Row] = &[
    // mimalloc's mimalloc.h: what mi_ before malloc's own functions does not make already.
    acquire("mi_zalloc", sized(0)),
    acquire("mi_malloc_small", sized(0)),
    acquire("mi_zalloc_small", sized(0)),
    acquire("mi_malloc_aligned", sized(0)),
    acquire("mi_malloc_aligned_at", sized(0)),
    acquire("mi_zalloc_aligned", sized(0)),
    acquire("mi_zalloc_aligned_at", sized(0)),
    acquire("mi_mallocn", product(0, 1)),
    acquire("mi_calloc_aligned", product(0, 1)),
    acquire("mi_calloc_aligned_at", product(0, 1)),
    resize("mi_reallocf", resizing(sized(1), 0, flags::RELEASES_ANYWAY)),
    resize("mi_realloc_aligned", resizing(sized(1), 0, 0)),
    resize("mi_realloc_aligned_at", resizing(sized(1), 0, 0)),
    resize("mi_rezalloc", resizing(sized(1), 0, 0)),
    resize("mi_rezalloc_aligned", resizing(sized(1), 0, 0)),
    resize("mi_rezalloc_aligned_at", resizing(sized(1), 0, 0)),
    resize("mi_reallocn", resizing(product(1, 2), 0, 0)),
    resize("mi_recalloc", resizing(product(1, 2), 0, 0)),
    resize("mi_recalloc_aligned", resizing(product(1, 2), 0, 0)),
    resize("mi_recalloc_aligned_at", resizing(product(1, 2), 0, 0)),
    in_place("mi_expand", memory::in_place(1, 0)),
    in_place("mi__expand", memory::in_place(1, 0)),
    resize("mi_aligned_recalloc", resizing(product(1, 2), 0, 0)),
    resize("mi_aligned_offset_recalloc", resizing(product(1, 2), 0, 0)),
    resize("mi_reallocarr", REALLOCARR),
    // With the size that the block has got stored after their last argument.
    acquire("mi_umalloc", sized(0)),
    acquire("mi_umalloc_small", sized(0)),
    acquire("mi_umalloc_aligned", sized(0)),
    acquire("mi_uzalloc_small", sized(0)),
    acquire("mi_uzalloc_aligned", sized(0)),
    acquire("mi_ucalloc", product(0, 1)),
    resize("mi_urealloc", resizing(sized(1), 0, 0)),
    release("mi_ufree", 0),
    // Their calls of mi_heap_malloc are copied into them by the compiler.
    acquire("mi_strdup", STRING),
    acquire("mi_strndup", STRING),
    acquire("mi_realpath", ProbeRow { only_arg: 1, ..NEW_STRING }),
    acquire("mi_heap_strdup", STRING),
    acquire("mi_heap_strndup", STRING),
    acquire("mi_heap_realpath", ProbeRow { only_arg: 2, ..NEW_STRING }),
    sweep("mi_heap_destroy"),
    sweep("mi_subproc_destroy"),
    release("mi_free_size", 0),
    release("mi_free_size_aligned", 0),
    release("mi_free_aligned", 0),
    release("mi_free_small", 0),
    acquire("mi_new", throwing(sized(0))),
    acquire("mi_new_aligned", throwing(sized(0))),
    acquire("mi_new_nothrow", throwing(sized(0))),
    acquire("mi_new_aligned_nothrow", throwing(sized(0))),
    acquire("mi_new_n", throwing(product(0, 1))),
    resize("mi_new_realloc", resizing(sized(1), 0, flags::MAY_THROW)),
    resize("mi_new_reallocn", resizing(product(1, 2), 0, flags::MAY_THROW)),
    acquire("mi_heap_malloc", sized(1)),
    acquire("mi_heap_calloc", product(1, 2)),
    acquire("mi_heap_zalloc", sized(1)),
    acquire("mi_heap_malloc_small", sized(1)),
    acquire("mi_heap_zalloc_small", sized(1)),
    acquire("mi_heap_malloc_aligned", sized(1)),
    acquire("mi_heap_malloc_aligned_at", sized(1)),
    acquire("mi_heap_zalloc_aligned", sized(1)),
    acquire("mi_heap_zalloc_aligned_at", sized(1)),
    acquire("mi_heap_mallocn", product(1, 2)),
    acquire("mi_heap_calloc_aligned", product(1, 2)),
    acquire("mi_heap_calloc_aligned_at", product(1, 2)),
    resize("mi_heap_realloc", resizing(sized(2), 1, 0)),
    resize("mi_heap_reallocf", resizing(sized(2), 1, flags::RELEASES_ANYWAY)),
    resize("mi_heap_realloc_aligned", resizing(sized(2), 1, 0)),
    resize("mi_heap_realloc_aligned_at", resizing(sized(2), 1, 0)),
    resize("mi_heap_rezalloc", resizing(sized(2), 1, 0)),
    resize("mi_heap_rezalloc_aligned", resizing(sized(2), 1, 0)),
    resize("mi_heap_rezalloc_aligned_at", resizing(sized(2), 1, 0)),
    resize("mi_heap_reallocn", resizing(product(2, 3), 1, 0)),
    resize("mi_heap_recalloc", resizing(product(2, 3), 1, 0)),
    resize("mi_heap_recalloc_aligned", resizing(product(2, 3), 1, 0)),
    resize("mi_heap_recalloc_aligned_at", resizing(product(2, 3), 1, 0)),
    acquire("mi_heap_alloc_new", throwing(sized(1))),
    acquire("mi_heap_alloc_new_n", throwing(product(1, 2))),
    // Of version 3: heaps of one thread.
    acquire("mi_theap_malloc", sized(1)),
    acquire("mi_theap_zalloc", sized(1)),
    acquire("mi_theap_calloc", product(1, 2)),
    acquire("mi_theap_malloc_small", sized(1)),
    acquire("mi_theap_zalloc_small", sized(1)),
    acquire("mi_theap_malloc_aligned", sized(1)),
    resize("mi_theap_realloc", resizing(sized(2), 1, 0)),
    // tcmalloc's tcmalloc.h, beside what tc_ makes of malloc's.
    acquire("tc_malloc_skip_new_handler", sized(0)),
    acquire("tc_new", throwing(sized(0))),
    acquire("tc_new_nothrow", throwing(sized(0))),
    acquire("tc_new_aligned", throwing(sized(0))),
    acquire("tc_new_aligned_nothrow", throwing(sized(0))),
    acquire("tc_newarray", throwing(sized(0))),
    acquire("tc_newarray_nothrow", throwing(sized(0))),
    acquire("tc_newarray_aligned", throwing(sized(0))),
    acquire("tc_newarray_aligned_nothrow", throwing(sized(0))),
    release("tc_delete", 0),
    release("tc_delete_sized", 0),
    release("tc_delete_nothrow", 0),
    release("tc_delete_aligned", 0),
    release("tc_delete_sized_aligned", 0),
    release("tc_delete_aligned_nothrow", 0),
    release("tc_deletearray", 0),
    release("tc_deletearray_sized", 0),
    release("tc_deletearray_nothrow", 0),
    release("tc_deletearray_aligned", 0),
    release("tc_deletearray_sized_aligned", 0),
    release("tc_deletearray_aligned_nothrow", 0),
    // Google's tcmalloc: what its malloc and operators are other names of
    // (tcmalloc/libc_override.h).
    acquire("TCMallocInternalMalloc", sized(0)),
    acquire("TCMallocInternalCalloc", product(0, 1)),
    acquire("TCMallocInternalMemalign", sized(1)),
    acquire("TCMallocInternalAlignedAlloc", sized(1)),
    acquire("TCMallocInternalValloc", sized(0)),
    acquire("TCMallocInternalPvalloc", sized(0)),
    acquire("TCMallocInternalPosixMemalign", POSIX_MEMALIGN),
    resize("TCMallocInternalRealloc", resizing(sized(1), 0, flags::ZERO_SIZE_RELEASES)),
    resize("TCMallocInternalReallocArray", resizing(product(1, 2), 0, flags::ZERO_SIZE_RELEASES)),
    acquire("TCMallocInternalNew", throwing(sized(0))),
    acquire("TCMallocInternalNewAligned", throwing(sized(0))),
    acquire("TCMallocInternalNewArray", throwing(sized(0))),
    acquire("TCMallocInternalNewArrayAligned", throwing(sized(0))),
    acquire("TCMallocInternalNewNothrow", throwing(sized(0))),
    acquire("TCMallocInternalNewAlignedNothrow", throwing(sized(0))),
    acquire("TCMallocInternalNewArrayNothrow", throwing(sized(0))),
    acquire("TCMallocInternalNewArrayAlignedNothrow", throwing(sized(0))),
    acquire("TCMallocInternalAllocAtLeast", sized(0)),
    release("TCMallocInternalFree", 0),
    release("TCMallocInternalFreeSized", 0),
    release("TCMallocInternalFreeAlignedSized", 0),
    release("TCMallocInternalSdallocx", 0),
    release("TCMallocInternalCfree", 0),
    release("TCMallocInternalDelete", 0),
    release("TCMallocInternalDeleteSized", 0),
    release("TCMallocInternalDeleteNothrow", 0),
    release("TCMallocInternalDeleteAligned", 0),
    release("TCMallocInternalDeleteSizedAligned", 0),
    release("TCMallocInternalDeleteAlignedNothrow", 0),
    release("TCMallocInternalDeleteArray", 0),
    release("TCMallocInternalDeleteArraySized", 0),
    release("TCMallocInternalDeleteArrayNothrow", 0),
    release("TCMallocInternalDeleteArrayAligned", 0),
    release("TCMallocInternalDeleteArraySizedAligned", 0),
    release("TCMallocInternalDeleteArrayAlignedNothrow", 0),
    acquire("__size_returning_new", throwing(sized(0))),
    acquire("__size_returning_new_hot_cold", throwing(sized(0))),
    acquire("__size_returning_new_aligned", throwing(sized(0))),
    acquire("__size_returning_new_aligned_hot_cold", throwing(sized(0))),
    acquire("tcmalloc_size_returning_operator_new", throwing(sized(0))),
    acquire("tcmalloc_size_returning_operator_new_hot_cold", throwing(sized(0))),
    acquire("tcmalloc_size_returning_operator_new_aligned", throwing(sized(0))),
    acquire("tcmalloc_size_returning_operator_new_aligned_hot_cold", throwing(sized(0))),
    acquire("tcmalloc_size_returning_operator_new_nothrow", throwing(sized(0))),
    acquire("tcmalloc_size_returning_operator_new_hot_cold_nothrow", throwing(sized(0))),
    acquire("tcmalloc_size_returning_operator_new_aligned_nothrow", throwing(sized(0))),
    acquire("tcmalloc_size_returning_operator_new_aligned_hot_cold_nothrow", throwing(sized(0))),
    // snmalloc's interface for Rust (src/snmalloc/override/rust.cc): an alignment comes before each
    // size.
    acquire("sn_rust_alloc", sized(1)),
    acquire("sn_rust_alloc_zeroed", sized(1)),
    resize("sn_rust_realloc", resizing(sized(3), 0, 0)),
    release("sn_rust_dealloc", 0),
    // rpmalloc.h, beside what rp makes of malloc's.
    acquire("rpzalloc", sized(0)),
    acquire("rpaligned_zalloc", sized(1)),
    acquire("rpaligned_calloc", product(1, 2)),
    resize("rpaligned_realloc", resizing(sized(2), 0, 0)),
    acquire("rpmalloc_heap_alloc", sized(1)),
    acquire("rpmalloc_heap_aligned_alloc", sized(2)),
    acquire("rpmalloc_heap_calloc", product(1, 2)),
    acquire("rpmalloc_heap_aligned_calloc", product(2, 3)),
    resize("rpmalloc_heap_realloc", resizing(sized(2), 1, 0)),
    resize("rpmalloc_heap_aligned_realloc", resizing(sized(3), 1, 0)),
    release("rpmalloc_heap_free", 1),
    sweep("rpmalloc_heap_free_all"),
    // dlmalloc's malloc.c: spaces of its own.
    acquire("mspace_malloc", sized(1)),
    acquire("mspace_calloc", product(1, 2)),
    acquire("mspace_memalign", sized(2)),
    resize("mspace_realloc", resizing(sized(2), 1, 0)),
    in_place("mspace_realloc_in_place", memory::in_place(2, 1)),
    in_place("dlrealloc_in_place", memory::in_place(1, 0)),
    release("mspace_free", 1),
    sweep("destroy_mspace"),
    // scudo's interface for Rust (the crate scudo-sys).
    acquire("scudo_allocate", sized(0)),
    release("scudo_deallocate", 0),
    // oneTBB's scalable_allocator.h, beside what scalable_ makes of malloc's.
    acquire("scalable_aligned_malloc", sized(0)),
    resize("scalable_aligned_realloc", resizing(sized(1), 0, flags::ZERO_SIZE_RELEASES)),
    release("scalable_aligned_free", 0),
];
