//! The resources `thread`, `mutex` and `dl`: POSIX threads and the dynamic linker.
//!
//! Signatures: the functions' pages in section 3 of the Linux manual.

use memleak_common::probe::{ProbeRow, Resource, flags, only, success};

use super::{Role, Row, Scope, if_equal, of, releases, returns, row, stores, takes, with};

/// A thread can detach itself before the call that has made it returns.
const THREAD: ProbeRow = with(if_equal(of(Resource::Thread, 0), 0), flags::EARLY_RELEASE);
/// A thread that is born detached is nobody's to join. glibc's nptl/internaltypes.h: `flags` of
/// `struct pthread_attr` follows two ints, and ATTR_FLAG_DETACHSTATE is its first bit. (musl keeps
/// it elsewhere: there such threads count.)
const NEW_THREAD: ProbeRow =
    ProbeRow { only: only::BEHIND_ARG_CLEAR, only_arg: 1, only_values: [8, 1], ..stores(THREAD, 0) };
const END_THREAD: ProbeRow = releases(THREAD, 0);

/// A recursive mutex is unlocked as often as it was locked.
const MUTEX: ProbeRow = with(of(Resource::Mutex, 0), flags::COUNTED);
const LOCK: ProbeRow = takes(MUTEX, 0, 0);
const UNLOCK: ProbeRow = if_equal(releases(MUTEX, 0), 0);
/// Unlocks the mutex while it waits. However it ends, it holds it again, and it is the old lock
/// that is held.
const WAIT: ProbeRow =
    ProbeRow { success: success::NEVER, ..with(releases(MUTEX, 1), flags::GONE_WHILE_PENDING) };

/// An object's constructors and destructors can load others.
const DL: ProbeRow = with(of(Resource::Dl, 0), flags::COUNTED | flags::COUNTS_NESTED);

const fn acquire(function: &'static str, probe: ProbeRow) -> Row {
    row(function, Role::Acquire, Scope::Anywhere, probe)
}

const fn release(function: &'static str, probe: ProbeRow) -> Row {
    row(function, Role::FallibleRelease, Scope::Anywhere, probe)
}

/// In no order that matters.
pub(super) const ROWS: &[Row] = &[
    acquire("pthread_create", NEW_THREAD),
    // C11 7.28.5
    acquire("thrd_create", stores(THREAD, 0)),
    release("pthread_join", END_THREAD),
    release("pthread_tryjoin_np", END_THREAD),
    release("pthread_timedjoin_np", END_THREAD),
    release("pthread_clockjoin_np", END_THREAD),
    release("thrd_join", END_THREAD),
    release("pthread_detach", END_THREAD),
    release("thrd_detach", END_THREAD),
    acquire("pthread_mutex_lock", LOCK),
    acquire("pthread_mutex_trylock", LOCK),
    acquire("pthread_mutex_timedlock", LOCK),
    acquire("pthread_mutex_clocklock", LOCK),
    release("pthread_mutex_unlock", UNLOCK),
    release("pthread_cond_wait", WAIT),
    release("pthread_cond_timedwait", WAIT),
    release("pthread_cond_clockwait", WAIT),
    acquire("dlopen", returns(DL)),
    acquire("dlmopen", returns(DL)),
    release("dlclose", if_equal(releases(DL, 0), 0)),
];
