//! The resources `fd`, `file` and `dir`: what the C library opens.
//!
//! Signatures: the functions' pages in section 2 and 3 of the Linux manual.
//!
//! Descriptors are counted at system calls if the kernel lets us ([`super::system_calls`]): raw
//! calls are seen as well then. Where it does not the same rows serve for the C library's
//! functions.

use memleak_common::probe::{DESCRIPTOR, ProbeRow, Resource, flags, handle, only, success};

use super::{Role, Row, Scope, of, releases, returns, row, with};

const FD: ProbeRow = DESCRIPTOR;
/// Returns a descriptor, or -1.
const NEW_FD: ProbeRow = ProbeRow { handle: handle::RETURN, success: success::AT_LEAST, ..FD };
/// recvmsg(2), unix(7): descriptors that another process has sent.
const RECVMSG: ProbeRow =
    ProbeRow { handle: handle::IN_MESSAGE, handle_arg: 1, success: success::AT_LEAST, ..FD };
/// fcntl(2): F_DUPFD and F_DUPFD_CLOEXEC.
const FCNTL: ProbeRow = ProbeRow {
    only: only::ARG_IN,
    only_arg: 1,
    only_values: [libc::F_DUPFD as u32, libc::F_DUPFD_CLOEXEC as u32],
    ..NEW_FD
};
/// dup2(a, b) closes b, unless the two are one.
const DUP2: ProbeRow =
    ProbeRow { only: only::ARGS_DIFFER, only_arg: 0, only_values: [1, 0], ..releases(NEW_FD, 1) };
/// close(2): whatever it returns, the descriptor is gone, unless there was none.
const CLOSE: ProbeRow = releases(FD, 0);
/// CLOSE_RANGE_CLOEXEC closes nothing yet.
const CLOSE_RANGE: ProbeRow = ProbeRow {
    release_len_arg: 1,
    flags_arg: 2,
    keep_mask: libc::CLOSE_RANGE_CLOEXEC,
    success: success::EQUAL,
    ..with(releases(FD, 0), flags::SPAN)
};

/// Stores two descriptors where argument `handle_arg` says.
const fn two(handle_arg: u8) -> ProbeRow {
    ProbeRow { handle: handle::BEHIND_ARG, handle_arg, handle_count: 2, success: success::EQUAL, ..FD }
}

const FILE: ProbeRow = of(Resource::File, 0);
/// freopen(3): the old stream is closed in any case.
const FREOPEN: ProbeRow = with(releases(returns(FILE), 2), flags::RELEASES_ANYWAY);
const DIR: ProbeRow = of(Resource::Dir, 0);

const fn acquire(function: &'static str, probe: ProbeRow) -> Row {
    row(function, Role::Acquire, Scope::CLibrary, probe)
}

const fn release(function: &'static str, probe: ProbeRow) -> Row {
    row(function, Role::Release, Scope::CLibrary, probe)
}

const fn new_fd(function: &'static str) -> Row {
    acquire(function, NEW_FD)
}

const fn stream(function: &'static str) -> Row {
    acquire(function, returns(FILE))
}

/// Where two rows meet at one address the first one names it.
pub(super) const ROWS: &[Row] = &[
    new_fd("open"),
    new_fd("open64"),
    new_fd("openat"),
    new_fd("openat64"),
    new_fd("creat"),
    new_fd("creat64"),
    new_fd("open_by_handle_at"),
    new_fd("socket"),
    acquire("socketpair", two(3)),
    new_fd("accept"),
    new_fd("accept4"),
    new_fd("dup"),
    row("dup2", Role::Resize, Scope::CLibrary, DUP2),
    row("dup3", Role::Resize, Scope::CLibrary, DUP2),
    acquire("pipe", two(0)),
    acquire("pipe2", two(0)),
    new_fd("eventfd"),
    new_fd("epoll_create"),
    new_fd("epoll_create1"),
    // signalfd(fd, ...) with an fd changes that one, and returns it.
    acquire("signalfd", ProbeRow { only: only::ARG_IN, only_arg: 0, only_values: [u32::MAX; 2], ..NEW_FD }),
    new_fd("timerfd_create"),
    new_fd("inotify_init"),
    new_fd("inotify_init1"),
    new_fd("fanotify_init"),
    new_fd("memfd_create"),
    new_fd("pidfd_open"),
    new_fd("mkstemp"),
    new_fd("mkostemp"),
    new_fd("mkstemps"),
    new_fd("mkostemps"),
    new_fd("mkstemp64"),
    new_fd("mkostemp64"),
    new_fd("mkstemps64"),
    new_fd("mkostemps64"),
    new_fd("posix_openpt"),
    new_fd("shm_open"),
    new_fd("mq_open"),
    acquire("recvmsg", RECVMSG),
    acquire("fcntl", FCNTL),
    acquire("fcntl64", FCNTL),
    release("close", CLOSE),
    release("mq_close", CLOSE),
    row("close_range", Role::FallibleRelease, Scope::CLibrary, CLOSE_RANGE),
    stream("fopen"),
    stream("fopen64"),
    stream("fdopen"),
    row("freopen", Role::Resize, Scope::CLibrary, FREOPEN),
    row("freopen64", Role::Resize, Scope::CLibrary, FREOPEN),
    stream("tmpfile"),
    stream("tmpfile64"),
    stream("popen"),
    stream("open_memstream"),
    stream("open_wmemstream"),
    stream("fmemopen"),
    stream("fopencookie"),
    // They free the stream even if they fail.
    release("fclose", releases(FILE, 0)),
    release("pclose", releases(FILE, 0)),
    acquire("opendir", returns(DIR)),
    acquire("fdopendir", returns(DIR)),
    release("closedir", releases(DIR, 0)),
];
