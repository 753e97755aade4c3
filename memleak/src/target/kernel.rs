//! The kernel as a target: what narrows its tracing, looked up.

use memleak_common::kernel::{CACHE_NAME_LEN, Label};

use super::process::ProcessError;
use crate::{
    kernel_labels::kmalloc_label,
    proc::{
        slab::{SlabCache, SlabCaches},
        status::read_status,
    },
};

/// Most names that an error message suggests.
const SUGGESTIONS: usize = 3;

/// Why the kernel cannot be traced as asked. One line each: what, why, what to do.
#[derive(Debug, thiserror::Error)]
pub enum KernelTargetError {
    /// No such cache.
    #[error("--slab: the kernel has no cache named '{name}'; {remedy}")]
    NoCache {
        /// What was given.
        name: String,
        /// Names that are like it, or where to find them.
        remedy: String,
    },
    /// A name that the programs cannot compare in full.
    #[error(
        "--slab: '{0}' is longer than the {max} bytes that can be told apart; leave it out",
        max = CACHE_NAME_LEN - 1
    )]
    LongName(String),
    /// One of several caches that kmalloc chooses from by the caller's address.
    #[error(
        "--slab: '{name}' is one of several caches that kmalloc chooses from at random, and its tracepoint does not say \
         which; type --slab {instead}"
    )]
    RandomCache {
        /// What was given.
        name: String,
        /// The name that all of them are counted under.
        instead: String,
    },
    /// `--only-pid`.
    #[error("--only-pid: {0}")]
    Process(#[from] ProcessError),
}

/// A slab cache as the BPF side tells it from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CacheFilter {
    /// One of kmalloc's.
    Kmalloc(Label),
    /// Another one, by the name in its `struct kmem_cache`, with the other names of the same cache.
    Named(SlabCache),
}

/// The cache that `--slab NAME` names.
pub(crate) fn find_cache(name: &str, caches: &SlabCaches) -> Result<CacheFilter, KernelTargetError> {
    if let Some((sizes, size)) = name.strip_prefix("kmalloc-rnd-").and_then(|rest| rest.split_once('-'))
        && sizes.bytes().all(|byte| byte.is_ascii_digit())
    {
        let instead = format!("kmalloc-{size}");
        return Err(KernelTargetError::RandomCache { name: name.to_owned(), instead });
    }
    if caches.names().next().is_none() {
        // A kernel that shows its caches nowhere: what is there, shows.
        let named = || CacheFilter::Named(SlabCache { name: name.to_owned(), aliases: Vec::new() });
        return Ok(kmalloc_label(name).map_or_else(named, CacheFilter::Kmalloc));
    }
    let Some(cache) = caches.find(name) else {
        let remedy = suggestion(name, caches);
        return Err(KernelTargetError::NoCache { name: name.to_owned(), remedy });
    };
    // By the name that was asked for: what shares a cache of kmalloc's under another name is not
    // kmalloc's.
    match kmalloc_label(name) {
        Some(label) => Ok(CacheFilter::Kmalloc(label)),
        None if cache.name.len() >= CACHE_NAME_LEN => Err(KernelTargetError::LongName(cache.name)),
        None => Ok(CacheFilter::Named(cache)),
    }
}

/// Checks `--only-pid`: one of our processes or a thread of the kernel's. Gives its command name.
pub(crate) fn check_only_pid(pid: u32) -> Result<String, KernelTargetError> {
    let status = read_status(pid).map_err(|error| ProcessError::of(pid, error))?;
    if status.tgid != pid {
        return Err(ProcessError::Thread { tid: pid, pid: status.tgid }.into());
    }
    if pid == std::process::id() {
        return Err(ProcessError::Itself(pid).into());
    }
    Ok(status.comm)
}

fn suggestion(name: &str, caches: &SlabCaches) -> String {
    let limit = 1 + name.len() / 3;
    let mut near: Vec<(usize, &str)> = caches
        .names()
        .map(|known| (if is_part(name, known) { 1 } else { distance(name, known) }, known))
        .filter(|(distance, _)| *distance <= limit)
        .collect();
    near.sort_by_key(|(distance, known)| (*distance, known.len().abs_diff(name.len()), *known));
    let names: Vec<&str> = near.into_iter().take(SUGGESTIONS).map(|(_, known)| known).collect();
    match names.as_slice() {
        [] => "see /proc/slabinfo for its caches".to_owned(),
        [one] => format!("did you mean {one}?"),
        several => format!("did you mean one of {}?", several.join(", ")),
    }
}

/// Whether one is part of the other, and long enough to say something.
fn is_part(name: &str, known: &str) -> bool {
    const ENOUGH: usize = 3;
    name.len() >= ENOUGH && known.len() >= ENOUGH && (known.contains(name) || name.contains(known))
}

/// Bytes to insert, remove or exchange to make one of the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let exchanged = diagonal + usize::from(x != y);
            diagonal = *cell;
            left = exchanged.min(left + 1).min(*cell + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use memleak_common::kernel::KmallocType;

    use super::*;

    /// A directory as SLUB makes it, and a slabinfo in which `pid` is the first of three merged
    /// caches.
    fn caches() -> SlabCaches {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["dentry", "kmalloc-64", "kmalloc-rnd-01-64", ":A-0000128", ":0000040"] {
            fs::create_dir(directory.path().join(name)).expect("made");
        }
        fs::create_dir(directory.path().join("x".repeat(40))).expect("made");
        for (name, target) in [
            ("eventpoll_epi", ":A-0000128"),
            ("pid", ":A-0000128"),
            ("uid_cache", ":A-0000128"),
            ("other", ":0000040"),
        ] {
            symlink(target, directory.path().join(name)).expect("made");
        }
        let slabinfo = directory.path().join("slabinfo");
        let text = "slabinfo - version: 2.1\n# name            <active_objs> <num_objs>\n\
                    pid                 90    128    128   32    1 : tunables    0    0    0\n\
                    inode_cache        100    200    600   13    2 : tunables    0    0    0\n";
        fs::write(&slabinfo, text).expect("written");
        SlabCaches::read_from(directory.path(), &slabinfo)
    }

    fn named(name: &str, aliases: &[&str]) -> CacheFilter {
        let aliases = aliases.iter().map(|name| (*name).to_owned()).collect();
        CacheFilter::Named(SlabCache { name: name.to_owned(), aliases })
    }

    #[test]
    fn caches_are_found_by_each_of_their_names() {
        let caches = caches();
        let find = |name| find_cache(name, &caches).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(find("dentry"), named("dentry", &[]));
        assert_eq!(find("inode_cache"), named("inode_cache", &[]));
        assert_eq!(find("eventpoll_epi"), named("pid", &["eventpoll_epi", "uid_cache"]));
        assert_eq!(find("pid"), named("pid", &["eventpoll_epi", "uid_cache"]));
        assert_eq!(find("other"), named("other", &[]));
        assert_eq!(find("kmalloc-64"), CacheFilter::Kmalloc(Label::Kmalloc(KmallocType::Normal, 64)));
    }

    #[test]
    fn what_is_no_cache_is_one_line_with_near_names() {
        let caches = caches();
        for (name, advice) in [
            ("dentri", "did you mean dentry?"),
            ("inode", "did you mean inode_cache?"),
            ("kmalloc-63", "did you mean kmalloc-64?"),
            ("_cache", "did you mean one of uid_cache, inode_cache?"),
            ("zzzzzz", "see /proc/slabinfo"),
            (":A-0000128", "see /proc/slabinfo"),
            ("kmalloc-rnd-01-64", "type --slab kmalloc-64"),
            (&"x".repeat(40), "leave it out"),
        ] {
            let line = find_cache(name, &caches).expect_err(name).to_string();
            assert!(line.starts_with("--slab: ") && line.contains("; "), "{line}");
            assert!(line.contains(advice), "{line}");
        }
    }

    #[test]
    fn a_kernel_that_shows_no_caches_is_believed() {
        let none = SlabCaches::default();
        assert_eq!(find_cache("dentry", &none).expect("taken"), named("dentry", &[]));
        assert!(matches!(find_cache("kmalloc-8", &none), Ok(CacheFilter::Kmalloc(_))));
    }

    #[test]
    fn the_running_kernels_caches() {
        let caches = SlabCaches::read();
        for name in caches.names() {
            if !name.starts_with("kmalloc-rnd-") {
                let found = find_cache(name, &caches);
                assert!(matches!(found, Ok(_) | Err(KernelTargetError::LongName(_))), "{name}: {found:?}");
            }
        }
        assert!(matches!(find_cache("dentry", &caches), Ok(CacheFilter::Named(_))));
        assert!(matches!(find_cache("kmalloc-64", &caches), Ok(CacheFilter::Kmalloc(_))));
        assert!(find_cache("no_such_cache_at_all", &caches).is_err());
    }

    #[test]
    fn only_pid_is_a_process() {
        let line = |pid| check_only_pid(pid).expect_err("refused").to_string();
        assert!(line(i32::MAX as u32).starts_with("--only-pid: no process 2147483647"));
        assert!(line(std::process::id()).contains("is memleak itself"));
        let parent = std::os::unix::process::parent_id();
        let comm = fs::read_to_string(format!("/proc/{parent}/comm")).expect("it lives");
        assert_eq!(check_only_pid(parent).expect("taken"), comm.trim_end());
    }

    #[test]
    fn distances() {
        for (a, b, expected) in [("", "", 0), ("", "abc", 3), ("abc", "abc", 0), ("kitten", "sitting", 3)] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }
}
