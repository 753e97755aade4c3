//! What the file descriptors of a stack are now, in a few words.

use std::collections::{BTreeMap, HashMap};

use super::model::AllocationLine;

/// Most paths named for a stack.
const PATHS: usize = 3;

/// Most characters of a path.
const PATH_LEN: usize = 100;

/// What processes have open now: by PID and number.
pub(crate) type Open = HashMap<u32, BTreeMap<u32, String>>;

/// Fills [`AllocationLine::now`] from what processes have `open`, and gives it in a few words:
/// `12 sockets, 3 files (/tmp/a, /tmp/b, ...)`. `None` if nothing is known of any.
pub(crate) fn describe(lines: &mut [AllocationLine], open: &Open) -> Option<String> {
    for line in lines.iter_mut() {
        let open = open.get(&line.pid);
        line.now = u32::try_from(line.address).ok().and_then(|fd| open?.get(&fd)).cloned();
    }
    let mut kinds: Vec<(&str, usize)> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut paths: Vec<&str> = Vec::new();
    for now in lines.iter().filter_map(|line| line.now.as_deref()) {
        let kind = kind(now);
        let place = *places.entry(kind).or_insert_with(|| {
            kinds.push((kind, 0));
            kinds.len() - 1
        });
        if let Some((_, number)) = kinds.get_mut(place) {
            *number += 1;
        }
        if kind == FILE && paths.len() <= PATHS && !paths.contains(&now) {
            paths.push(now);
        }
    }
    if kinds.is_empty() {
        return None;
    }
    kinds.sort_by_key(|(kind, number)| (std::cmp::Reverse(*number), *kind));
    let words: Vec<String> = kinds.into_iter().map(|(kind, number)| in_words(kind, number, &paths)).collect();
    Some(words.join(", "))
}

const FILE: &str = "file";

/// `socket` for `socket:[123]`, `eventpoll` for `anon_inode:[eventpoll]`.
fn kind(now: &str) -> &str {
    if now.starts_with("/memfd:") {
        return "memfd";
    }
    if now.starts_with('/') {
        return FILE;
    }
    match now.split_once(':') {
        Some(("anon_inode", name)) => short(name.trim_matches(['[', ']'])),
        Some((kind, _)) => short(kind),
        None => "other",
    }
}

fn in_words(kind: &str, number: usize, paths: &[&str]) -> String {
    let plural = if number == 1 { "" } else { "s" };
    let words = format!("{number} {kind}{plural}");
    if kind != FILE {
        return words;
    }
    let named: Vec<&str> = paths.iter().take(PATHS).map(|path| short(path)).collect();
    let more = if paths.len() > PATHS { ", ..." } else { "" };
    format!("{words} ({}{more})", named.join(", "))
}

/// The first characters of what a target has named.
fn short(text: &str) -> &str {
    text.char_indices().nth(PATH_LEN).and_then(|(at, _)| text.get(..at)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Descriptor N is the N-th of `targets`.
    fn described(targets: &[Option<&str>]) -> Option<String> {
        let line =
            |address: u64| AllocationLine { pid: 1, tid: None, address, size: 0, age_ms: 1, now: None };
        let mut lines: Vec<_> = (0..targets.len() as u64).map(line).collect();
        let open = (0..).zip(targets).filter_map(|(fd, target)| Some((fd, (*target)?.to_owned()))).collect();
        let words = describe(&mut lines, &Open::from([(1, open)]));
        assert!(lines.iter().zip(targets).all(|(line, target)| line.now.as_deref() == *target));
        words
    }

    #[test]
    fn counts_each_kind_and_names_files() {
        let targets = [
            "/tmp/a",
            "socket:[1]",
            "/tmp/a",
            "socket:[2]",
            "pipe:[3]",
            "anon_inode:[eventpoll]",
            "socket:[4]",
            "anon_inode:inotify",
            "/memfd:x (deleted)",
            "net:[5]",
            "strange",
        ];
        let words = described(&targets.map(Some));
        let expected = "3 sockets, 2 files (/tmp/a), 1 eventpoll, 1 inotify, 1 memfd, 1 net, 1 other, 1 pipe";
        assert_eq!(words.as_deref(), Some(expected));
        let many = ["/a", "/b", "/c", "/d", "/e"];
        assert_eq!(described(&many.map(Some)).as_deref(), Some("5 files (/a, /b, /c, ...)"));
    }

    #[test]
    fn says_nothing_of_what_is_gone() {
        assert_eq!(described(&[]), None);
        assert_eq!(described(&[None, None]), None);
        assert_eq!(described(&[None, Some("pipe:[1]")]).as_deref(), Some("1 pipe"));
    }

    #[test]
    fn is_bounded() {
        let long = "/".repeat(4096);
        let words = described(&[Some(&long), Some("/é")]).expect("two files");
        assert!(words.chars().count() < 150 && words.ends_with(", /é)"), "{words}");
    }
}
