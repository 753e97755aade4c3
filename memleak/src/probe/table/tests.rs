//! Tests over the whole table.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use memleak_common::probe::{MAX_PROBES, NO_ARG, ProbeRow, Resource, flags, handle, only, size, success};

use super::*;

/// The functions that memleak promises to probe.
const SPEC: &str = "malloc, calloc, realloc, reallocarray, free, cfree, posix_memalign, aligned_alloc, memalign, \
                    valloc, pvalloc, free_sized, free_aligned_sized, mmap, mmap64, mremap, munmap";

/// What each resource is acquired and released by, as the project was asked for it.
const ASKED_FOR: &[(Resource, &str, &str)] = &[
    (
        Resource::Fd,
        "open, open64, openat, openat64, creat, socket, socketpair, accept, accept4, dup, dup2, dup3, pipe, pipe2, \
         eventfd, epoll_create, epoll_create1, signalfd, timerfd_create, inotify_init, inotify_init1, memfd_create, \
         fcntl",
        "close, close_range",
    ),
    (Resource::File, "fopen, fopen64, fdopen, freopen, tmpfile, popen, open_memstream", "fclose, pclose"),
    (Resource::Dir, "opendir, fdopendir", "closedir"),
    (Resource::Sqlite, "sqlite3_open, sqlite3_open_v2, sqlite3_open16", "sqlite3_close, sqlite3_close_v2"),
    (Resource::SqliteStmt, "sqlite3_prepare, sqlite3_prepare_v2, sqlite3_prepare_v3", "sqlite3_finalize"),
    (Resource::Thread, "pthread_create", "pthread_join, pthread_detach"),
    (Resource::Mutex, "pthread_mutex_lock, pthread_mutex_trylock", "pthread_mutex_unlock"),
    (Resource::Dl, "dlopen", "dlclose"),
    (
        Resource::Ssl,
        "SSL_new, SSL_CTX_new, BIO_new, X509_new, EVP_PKEY_new",
        "SSL_free, SSL_CTX_free, BIO_free, X509_free, EVP_PKEY_free",
    ),
    (
        Resource::Python,
        "PyMem_RawMalloc, PyMem_RawCalloc, PyMem_RawRealloc, PyMem_Malloc, PyMem_Calloc, PyMem_Realloc, \
         PyObject_Malloc, PyObject_Calloc, PyObject_Realloc",
        "PyMem_RawFree, PyMem_Free, PyObject_Free",
    ),
];

fn find(function: &str) -> &'static Row {
    TABLE.iter().find(|row| row.function == function).unwrap_or_else(|| panic!("no row for {function}"))
}

fn acquires(row: &Row) -> bool {
    row.probe.handle != handle::NONE
}

fn releases(row: &Row) -> bool {
    row.probe.release_arg != NO_ARG
}

#[test]
fn holds_every_function_of_the_spec() {
    for function in SPEC.split(", ") {
        find(function);
    }
}

#[test]
fn holds_every_function_that_was_asked_for() {
    for (resource, acquiring, releasing) in ASKED_FOR {
        for function in acquiring.split(", ") {
            let row = find(function);
            assert!(row.probe.resource == resource.number() && acquires(row), "{function}");
        }
        for function in releasing.split(", ") {
            let row = find(function);
            assert!(row.probe.resource == resource.number() && releases(row) && !acquires(row), "{function}");
        }
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
    // mremap also moves pages, of which the resource is another.
    let names: HashSet<_> = TABLE.iter().map(|row| (&row.function, row.role == Role::Move)).collect();
    assert_eq!(names.len(), TABLE.len());
    assert!(TABLE.len() <= MAX_PROBES as usize / 2, "users want to add theirs");
}

#[test]
fn numbers_resources_as_they_are_listed() {
    for (number, resource) in (0..).zip(Resource::ALL) {
        assert_eq!((resource.number(), Resource::from_u32(number)), (number, Some(*resource)));
    }
    for resource in [Resource::Custom(0), Resource::Custom(u16::MAX)] {
        assert_eq!(Resource::from_u32(resource.number()), Some(resource));
    }
    assert_eq!(Resource::from_u32(Resource::ALL.len() as u32), None);
}

#[test]
fn reads_only_arguments_that_are_passed_in_registers() {
    for Row { function, probe, .. } in TABLE.iter() {
        for arg in probe.arguments() {
            assert!(arg < 6 || arg == NO_ARG, "{function}: argument {arg}");
        }
        assert_eq!((probe.reserved, probe.reserved_word), ([0; 3], 0), "{function}");
    }
}

#[test]
fn says_where_a_size_is_exactly_where_there_is_one() {
    for Row { function, probe, .. } in TABLE.iter() {
        let expected = match probe.size {
            size::NONE | size::CONSTANT | size::STRING => (false, false),
            size::ARG | size::BEHIND_ARG => (true, false),
            size::PRODUCT => (true, true),
            other => panic!("{function}: size {other}"),
        };
        assert_eq!((probe.size_arg != NO_ARG, probe.size_arg2 != NO_ARG), expected, "{function}");
        let takes_arg = matches!(probe.handle, handle::BEHIND_ARG | handle::ARG | handle::IN_MESSAGE)
            || probe.flags & flags::MOVES_PAGES != 0;
        assert_eq!(takes_arg, probe.handle_arg != NO_ARG, "{function}");
        let has_constant = probe.size == size::CONSTANT || probe.flags & flags::THROUGH_POINTER != 0;
        assert!(probe.constant == 0 || has_constant, "{function}");
        let resource = Resource::from_u32(probe.resource).unwrap();
        let has_size = probe.size != size::NONE;
        assert!(has_size == resource.has_size() || probe.handle == handle::NONE, "{function}");
    }
}

#[test]
fn gives_each_role_what_its_programs_need() {
    for row in TABLE.iter() {
        let Row { function, role, probe, .. } = row;
        let expected = match role {
            Role::Acquire | Role::InPlace | Role::Move => (true, false),
            Role::Resize => (true, true),
            Role::Release | Role::FallibleRelease => (false, true),
            Role::Shield | Role::Sweep | Role::Abandon | Role::Notice | Role::Ending => (false, false),
        };
        assert_eq!((acquires(row), releases(row)), expected, "{function}");
        assert!(acquires(row) || probe.size == size::NONE, "{function}");
        if *role == Role::FallibleRelease {
            assert_ne!(probe.success, success::HANDLE, "{function}: no handle shows its success");
        }
        assert_eq!(*role == Role::InPlace, probe.flags & flags::IN_PLACE != 0, "{function}");
        assert_eq!(*role == Role::Sweep, probe.flags & flags::SWEEPS != 0, "{function}");
        if role.is_control() {
            assert_eq!(*probe, ProbeRow::EMPTY, "{function}");
        }
    }
}

#[test]
fn keeps_ranges_and_blocks_apart() {
    for Row { function, scope, role, probe, .. } in TABLE.iter() {
        let is_range = probe.flags & flags::RANGE != 0;
        let is_span = probe.flags & flags::SPAN != 0;
        // The system call that makes no range by itself.
        let moves_break = probe.flags & flags::MOVES_BREAK != 0;
        assert_eq!(moves_break, *function == "brk" && *scope == Scope::SystemCall, "{function}");
        assert_eq!(is_range, *scope == Scope::Mapping || moves_break, "{function}");
        assert_eq!(is_range, probe.resource == Resource::Mmap.number(), "{function}");
        let is_segment = probe.flags & flags::SEGMENT != 0;
        assert_eq!(is_segment, matches!(&**function, "shmat" | "shmdt"), "{function}");
        let has_length = is_span || (is_range && !is_segment && *role != Role::Acquire);
        assert_eq!(probe.release_len_arg != NO_ARG, has_length, "{function}");
        let has_masks = probe.replace_mask != 0 || probe.keep_mask != 0;
        let moves_pages = probe.flags & flags::MOVES_PAGES != 0;
        assert_eq!(moves_pages, *role == Role::Move, "{function}");
        assert_eq!(has_masks || moves_break || moves_pages, probe.flags_arg != NO_ARG, "{function}");
        let zero_size = probe.flags & flags::ZERO_SIZE_RELEASES != 0;
        let is_realloc = *role == Role::Resize && *scope == Scope::Heap;
        let is_its_alias = function.starts_with("TCMallocInternalRealloc");
        let is_tbbs = *function == "scalable_aligned_realloc";
        assert_eq!(zero_size, is_realloc || is_its_alias || is_tbbs || moves_break, "{function}");
    }
}

/// An `int` handle is one whatever its value; whether there is one must be told by the return
/// value.
#[test]
fn tells_descriptors_from_pointers() {
    for row in TABLE.iter() {
        let Row { function, probe, .. } = row;
        let is_int = probe.handle_width == 4;
        assert!(is_int || probe.handle_width == 8, "{function}");
        assert_eq!(is_int, probe.flags & flags::ZERO_IS_HANDLE != 0, "{function}");
        assert!(!is_int || !acquires(row) || probe.success != success::HANDLE, "{function}");
        let is_pair = probe.handle_count == 2 && probe.handle == handle::BEHIND_ARG;
        assert!(is_pair || probe.handle_count == 1, "{function}");
    }
}

#[test]
fn says_which_calls_count_only_where_not_all_do() {
    for Row { function, probe, .. } in TABLE.iter() {
        assert_eq!(probe.only == only::ALL, probe.only_arg == NO_ARG, "{function}");
    }
    // include/uapi/linux/fcntl.h
    assert_eq!(find("fcntl").probe.only_values, [0, 1030]);
}

/// What a resource does to its records it must do in all its rows, and a group is of one resource,
/// or of memory.
#[test]
fn rows_of_a_resource_agree() {
    const OF_ALL: u32 = flags::COUNTED | flags::EARLY_RELEASE | flags::ZERO_IS_HANDLE;
    let mut found: BTreeMap<u32, BTreeSet<(u32, u8)>> = BTreeMap::new();
    let mut groups: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    let counted = TABLE.iter().filter(|row| !row.role.is_control());
    for Row { probe, .. } in counted {
        found.entry(probe.resource).or_default().insert((probe.flags & OF_ALL, probe.handle_width));
        groups.entry(probe.group).or_default().insert(probe.resource);
    }
    assert!(found.values().all(|ways| ways.len() == 1), "{found:?}");
    let memory = BTreeSet::from([Resource::Heap.number(), Resource::Mmap.number()]);
    assert!(groups.values().all(|of| of.len() == 1 || *of == memory), "{groups:?}");
}

#[test]
fn reads_the_flags_that_the_kernel_headers_define() {
    // include/uapi/asm-generic/mman-common.h, include/uapi/linux/mman.h,
    // include/uapi/linux/close_range.h
    assert_eq!(find("mmap").probe.replace_mask, 0x10);
    assert_eq!((find("mremap").probe.replace_mask, find("mremap").probe.keep_mask), (2, 4));
    assert_eq!(find("mmap").probe, find("mmap64").probe);
    assert_eq!(find("close_range").probe.keep_mask, 4);
}
