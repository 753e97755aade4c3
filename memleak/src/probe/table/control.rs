//! What leaves calls behind, and what maps objects: rows that acquire nothing, and that every run
//! has.

use memleak_common::probe::ProbeRow;

use super::{Role, Row, Scope, row};

const fn abandon(function: &'static str) -> Row {
    row(function, Role::Abandon, Scope::Anywhere, ProbeRow::EMPTY)
}

/// In no order that matters.
pub(super) const ROWS: &[Row] = &[
    // The Itanium C++ ABI's level I, libgcc_s or libunwind; pthread_exit and cancellation force an
    // unwinding too.
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
    // exit(3) ends with it, after destructors and what atexit(3) was told (POSIX.1-2017, _exit).
    row("_exit", Role::Ending, Scope::CLibrary, ProbeRow::EMPTY),
];
