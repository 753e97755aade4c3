//! System calls that make and end descriptors, each with the function whose row serves it: its arguments and what it
//! returns are the same. (The kernel returns a negative number where the C library returns -1.)

use memleak_common::{probe::Resource, system_call};

use super::{Role, Row};
use crate::arch;

/// Number and function, of those that every machine has. All that only return a new descriptor are served by `open`.
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
    (libc::SYS_io_uring_setup, "open"),
    (libc::SYS_fsopen, "open"),
    (libc::SYS_fspick, "open"),
    (libc::SYS_fsmount, "open"),
    (libc::SYS_landlock_create_ruleset, "open"),
    (libc::SYS_close, "close"),
    (libc::SYS_close_range, "close_range"),
];

/// Resources that system calls tell of.
pub const RESOURCES: &[Resource] = &[Resource::Fd];

/// Entries of the map `SYSTEM_CALLS`: number, and what is entered under it. `rows` is the table.
pub fn entries(rows: &[Row]) -> Vec<(u32, u32)> {
    arch::SYSTEM_CALLS
        .iter()
        .chain(SYSTEM_CALLS)
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

    #[test]
    fn every_system_call_has_a_row() {
        let entries = entries(&TABLE);
        assert_eq!(entries.len(), arch::SYSTEM_CALLS.len() + SYSTEM_CALLS.len());
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
