//! System calls that make and end descriptors, each with the function whose row serves it: its
//! arguments and what it returns are the same. (The kernel returns a negative number where the C
//! library returns -1.) Those that are not functions of the C library, or other ones there, have
//! rows of their own here.
//!
//! These are all of Linux 6.18 (arch/x86/entry/syscalls/syscall_64.tbl, and the callers of
//! `get_unused_fd_flags`, `anon_inode_getfd` and `receive_fd`). What else makes descriptors is
//! found by comparing with /proc/PID/fd: io_uring's requests, ioctls (`NS_GET_*`, `PIDFD_GET_*`,
//! `TIOCGPTPEER`, KVM's, DRM's, VFIO's, userfaultfd's), what is read from a fanotify group or a
//! userfaultfd, messages after recvmmsg's first and descriptors after a message's 16th, seccomp's
//! `ADDFD`, and what the kernel gives an interpreter of binfmt_misc.

use memleak_common::{
    probe::{DESCRIPTOR, ProbeRow, Resource, flags, handle, only, success},
    system_call,
};

use super::{Role, Row, Scope, memory::MREMAP, row, with};
use crate::arch;

/// Linux 6.15; the same number on each machine. The libc crate does not have it.
const SYS_OPEN_TREE_ATTR: i64 = 467;

/// Number and function, of those that every machine has. All that only return a new descriptor are
/// served by `open`.
const SYSTEM_CALLS: &[(i64, &str)] = &[
    (libc::SYS_openat, "open"),
    (libc::SYS_openat2, "open"),
    (libc::SYS_open_by_handle_at, "open"),
    (libc::SYS_open_tree, "open"),
    (libc::SYS_socket, "open"),
    (libc::SYS_socketpair, "socketpair"),
    (libc::SYS_accept, "open"),
    (libc::SYS_accept4, "open"),
    (libc::SYS_dup, "open"),
    (libc::SYS_dup3, "dup3"),
    (libc::SYS_pipe2, "pipe2"),
    (libc::SYS_recvmsg, "recvmsg"),
    (libc::SYS_fcntl, "fcntl"),
    (libc::SYS_eventfd2, "open"),
    (libc::SYS_epoll_create1, "open"),
    (libc::SYS_signalfd4, "signalfd"),
    (libc::SYS_timerfd_create, "open"),
    (libc::SYS_inotify_init1, "open"),
    (libc::SYS_fanotify_init, "open"),
    (libc::SYS_memfd_create, "open"),
    (libc::SYS_memfd_secret, "open"),
    (libc::SYS_mq_open, "open"),
    (libc::SYS_pidfd_open, "open"),
    (libc::SYS_pidfd_getfd, "open"),
    (libc::SYS_perf_event_open, "open"),
    (libc::SYS_userfaultfd, "open"),
    (libc::SYS_io_uring_setup, "io_uring_setup"),
    (libc::SYS_fsopen, "open"),
    (libc::SYS_fspick, "open"),
    (libc::SYS_fsmount, "open"),
    (libc::SYS_landlock_create_ruleset, "landlock_create_ruleset"),
    (libc::SYS_bpf, "bpf"),
    (libc::SYS_clone, "clone"),
    (libc::SYS_clone3, "clone3"),
    (libc::SYS_getsockopt, "getsockopt"),
    (libc::SYS_recvmmsg, "recvmsg"), // the first of its messages
    (libc::SYS_seccomp, "seccomp"),
    (SYS_OPEN_TREE_ATTR, "open"),
    (libc::SYS_close, "close"),
    (libc::SYS_close_range, "close_range"),
];

/// The same of ranges of addresses, which are counted here if it is asked for.
const MAPPING_CALLS: &[(i64, &str)] = &[
    (libc::SYS_mmap, "mmap"),
    (libc::SYS_mremap, "mremap"),
    (libc::SYS_munmap, "munmap"),
    (libc::SYS_brk, "brk"),
    (libc::SYS_shmat, "shmat"),
    (libc::SYS_shmdt, "shmdt"),
];

/// brk(2): the BPF side makes arguments of it that are in the places of mremap's
/// ([`flags::MOVES_BREAK`]).
const BRK: ProbeRow = ProbeRow {
    flags: flags::RANGE | flags::ZERO_SIZE_RELEASES | flags::MOVES_BREAK,
    replace_mask: 0,
    keep_mask: 0,
    ..MREMAP
};

/// Returns a descriptor.
const NEW: ProbeRow = ProbeRow { handle: handle::RETURN, success: success::AT_LEAST, ..DESCRIPTOR };

/// include/uapi/linux/bpf.h, `enum bpf_cmd`: those that return a descriptor.
const BPF: ProbeRow = {
    const MAP_CREATE: u64 = 0;
    const PROG_LOAD: u64 = 5;
    const OBJ_GET: u64 = 7;
    const PROG_GET_FD_BY_ID: u64 = 13;
    const MAP_GET_FD_BY_ID: u64 = 14;
    const RAW_TRACEPOINT_OPEN: u64 = 17;
    const BTF_LOAD: u64 = 18;
    const BTF_GET_FD_BY_ID: u64 = 19;
    const LINK_CREATE: u64 = 28;
    const LINK_GET_FD_BY_ID: u64 = 30;
    const ENABLE_STATS: u64 = 32;
    const ITER_CREATE: u64 = 33;
    const TOKEN_CREATE: u64 = 36;
    let bits: u64 = 1 << MAP_CREATE
        | 1 << PROG_LOAD
        | 1 << OBJ_GET
        | 1 << PROG_GET_FD_BY_ID
        | 1 << MAP_GET_FD_BY_ID
        | 1 << RAW_TRACEPOINT_OPEN
        | 1 << BTF_LOAD
        | 1 << BTF_GET_FD_BY_ID
        | 1 << LINK_CREATE
        | 1 << LINK_GET_FD_BY_ID
        | 1 << ENABLE_STATS
        | 1 << ITER_CREATE
        | 1 << TOKEN_CREATE;
    ProbeRow { only: only::ARG_IN_BITS, only_arg: 0, only_values: [bits as u32, (bits >> 32) as u32], ..NEW }
};

/// clone(2): CLONE_PIDFD has the pidfd stored at the third argument, of a call that returns a
/// process.
const CLONE: ProbeRow = ProbeRow {
    handle: handle::BEHIND_ARG,
    handle_arg: 2,
    success: success::AT_LEAST,
    success_value: 1,
    only: only::ARG_HAS,
    only_arg: 0,
    only_values: [libc::CLONE_PIDFD as u32, 0],
    ..DESCRIPTOR
};
/// include/uapi/linux/sched.h, `struct clone_args`: first the flags, then the address for the
/// pidfd.
const CLONE3: ProbeRow = ProbeRow {
    handle_arg: 0,
    only: only::BEHIND_ARG_HAS,
    only_values: [0, libc::CLONE_PIDFD as u32],
    constant: 8,
    ..with(CLONE, flags::THROUGH_POINTER)
};
/// unix(7): SO_PEERPIDFD stores a pidfd. include/uapi/asm-generic/socket.h.
const GETSOCKOPT: ProbeRow = ProbeRow {
    handle: handle::BEHIND_ARG,
    handle_arg: 3,
    success: success::EQUAL,
    only: only::ARGS_ARE,
    only_arg: 1,
    only_values: [libc::SOL_SOCKET as u32, 77],
    ..DESCRIPTOR
};
/// seccomp(2): SECCOMP_FILTER_FLAG_NEW_LISTENER.
const SECCOMP: ProbeRow = ProbeRow { only: only::ARG_HAS, only_arg: 1, only_values: [1 << 3, 0], ..NEW };
/// landlock_create_ruleset(2): with a flag it returns a number (its version).
const LANDLOCK: ProbeRow = ProbeRow { only: only::ARG_IN, only_arg: 2, only_values: [0; 2], ..NEW };
/// io_uring_setup(2): with IORING_SETUP_REGISTERED_FD_ONLY it returns a number of its own. The
/// flags are the third word of `struct io_uring_params`.
const IO_URING: ProbeRow =
    ProbeRow { only: only::BEHIND_ARG_CLEAR, only_arg: 1, only_values: [8, 1 << 15], ..NEW };

const fn call(function: &'static str, probe: ProbeRow) -> Row {
    row(function, Role::Acquire, Scope::SystemCall, probe)
}

/// System calls that no function of the C library serves.
pub(crate) const ROWS: &[Row] = &[
    call("bpf", BPF),
    call("clone", CLONE),
    call("clone3", CLONE3),
    call("getsockopt", GETSOCKOPT),
    call("seccomp", SECCOMP),
    call("landlock_create_ruleset", LANDLOCK),
    call("io_uring_setup", IO_URING),
    row("brk", Role::Resize, Scope::SystemCall, BRK),
];

/// Those of `resources` that are counted at system calls: descriptors, and if it is asked for
/// (`mappings`) ranges of addresses.
pub(crate) fn counted(resources: &[Resource], mappings: bool) -> Vec<Resource> {
    let is_counted = |resource: &Resource| match resource {
        Resource::Fd => true,
        Resource::Mmap => mappings,
        _ => false,
    };
    resources.iter().copied().filter(is_counted).collect()
}

/// Entries of the map `SYSTEM_CALLS` for these resources: number, and what is entered under it.
/// `rows` is the table.
pub(crate) fn entries(rows: &[Row], resources: &[Resource]) -> Vec<(u32, u32)> {
    let of = |resource, calls: &'static [(i64, &'static str)]| match resources.contains(&resource) {
        true => calls,
        false => &[],
    };
    let descriptors = [of(Resource::Fd, arch::SYSTEM_CALLS), of(Resource::Fd, SYSTEM_CALLS)];
    descriptors
        .into_iter()
        .chain([of(Resource::Mmap, MAPPING_CALLS)])
        .flatten()
        .filter_map(|(number, function)| {
            let (index, row) = (1..).zip(rows).find(|(_, row)| row.function == *function)?;
            let releases = if row.role == Role::Release { system_call::RELEASES } else { 0 };
            Some((u32::try_from(*number).ok()?, index | releases))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{super::TABLE, *};

    /// include/uapi/linux/sched.h, bpf.h
    #[test]
    fn flags_and_commands_are_the_kernels() {
        assert_eq!(CLONE.only_values[0], 0x1000);
        assert_eq!(BPF.only_values, [0x500e_60a1, 0x13]);
        assert_eq!(GETSOCKOPT.only_values[0], 1);
    }

    #[test]
    fn every_system_call_has_a_row() {
        const RESOURCES: &[Resource] = &[Resource::Fd, Resource::Mmap];
        let entries = entries(&TABLE, RESOURCES);
        assert_eq!(entries.len(), arch::SYSTEM_CALLS.len() + SYSTEM_CALLS.len() + MAPPING_CALLS.len());
        assert_eq!(super::entries(&TABLE, &[Resource::Mmap]).len(), MAPPING_CALLS.len());
        let numbers: HashSet<u32> = entries.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers.len(), entries.len(), "each once");
        for (number, entry) in entries {
            assert!(number < system_call::MAX_SYSTEM_CALLS);
            let row = &TABLE[(entry & system_call::ROW) as usize - 1];
            let resources: Vec<u32> = RESOURCES.iter().map(|resource| resource.number()).collect();
            assert!(resources.contains(&row.probe.resource), "{number}: {}", row.function);
            assert_eq!(row.role == Role::Release, entry & system_call::RELEASES != 0, "{}", row.function);
        }
    }
}
