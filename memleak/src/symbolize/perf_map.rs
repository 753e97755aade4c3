//! `/tmp/perf-PID.map`: names of code that was generated at run time, as written by JIT compilers
//! (Linux: tools/perf/Documentation/jit-interface.txt).
//!
//! A line is `START SIZE NAME`, both numbers hexadecimal, the name free text to the end of the
//! line. The file grows while the program runs, and code moves: a later line wins over an earlier
//! one.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    sync::Arc,
};

use super::{demangle::printable_bytes, regions::Regions};
use crate::hurry;

/// No more than this of a file is read, bytes.
const MAX_FILE: u64 = 64 << 20;

/// No more functions are kept.
const MAX_ENTRIES: usize = 1 << 19;

/// Bytes of names that are kept.
const MAX_NAMES: usize = 32 << 20;

/// Bytes read at a time; a line that is longer is left out.
const CHUNK: usize = 1 << 20;

/// Longer names are cut, bytes.
const MAX_NAME: usize = 4096;

/// A generated function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Generated {
    /// First address.
    pub start: u64,
    /// Name as the file has it, control characters replaced.
    pub name: Arc<str>,
}

/// One process's map, kept open, so that what was appended to it is read when it is asked for.
#[derive(Debug)]
pub(super) struct PerfMap {
    file: File,
    /// Where the first line that was not read yet begins.
    read: u64,
    /// Length of the file when it was last read.
    seen: u64,
    functions: Regions<Generated>,
    /// Bytes of the names.
    names: usize,
    told: bool,
}

impl PerfMap {
    /// Takes over an open file.
    pub(super) fn new(file: File) -> Self {
        Self { file, read: 0, seen: 0, functions: Regions::default(), names: 0, told: false }
    }

    /// Whether `file` is the one that is held.
    pub(super) fn is_same(&self, file: &File) -> bool {
        let identity = |file: &File| file.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
        matches!((identity(&self.file), identity(file)), (Ok(ours), Ok(other)) if ours == other)
    }

    /// Reads what was appended. A file that shrank was rewritten: all of it is read again.
    pub(super) fn refresh(&mut self) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        if length == self.seen {
            return Ok(());
        }
        if length < self.seen {
            (self.read, self.names, self.functions) = (0, 0, Regions::default());
        }
        self.seen = length;
        let end = length.min(MAX_FILE);
        let mut text = vec![0; CHUNK.min(end.saturating_sub(self.read) as usize)];
        while self.read < end && !self.is_full() && !hurry::is_due() {
            let filled = fill(&self.file, &mut text, self.read)?;
            let text = text.get(..filled).unwrap_or_default();
            // A last line without its end may still be being written, unless it is none.
            let complete = match text.iter().rposition(|&byte| byte == b'\n') {
                Some(at) => at + 1,
                None if filled == CHUNK => filled,
                None => break,
            };
            self.add(text.get(..complete).unwrap_or_default());
            self.read += complete as u64;
        }
        if !self.told && (self.is_full() || length > MAX_FILE) {
            self.told = true;
            log::warn!(
                "a perf map (/tmp/perf-PID.map) has more than {} MB or {MAX_ENTRIES} functions: some of what was \
                 generated has no name",
                MAX_FILE >> 20
            );
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.functions.len() >= MAX_ENTRIES || self.names >= MAX_NAMES
    }

    /// The function at `address`.
    pub(super) fn find(&self, address: u64) -> Option<&Generated> {
        self.functions.get(address)
    }

    fn add(&mut self, lines: &[u8]) {
        for line in lines.split(|&byte| byte == b'\n') {
            if self.is_full() {
                break;
            }
            if let Some((start, end, name)) = parse(line) {
                let name = name.get(..MAX_NAME).unwrap_or(name);
                let name: Arc<str> = printable_bytes(name).into();
                self.names += name.len();
                self.functions.insert(start, end, Generated { start, name });
            }
        }
    }
}

/// Fills `text` from `offset` on, as far as the file goes; gives how much.
fn fill(file: &File, text: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = text.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

/// Start, end and name of a line; `None` for one that is something else.
fn parse(line: &[u8]) -> Option<(u64, u64, &[u8])> {
    let mut parts = line.splitn(3, |&byte| byte == b' ');
    let mut number = || {
        let text = str::from_utf8(parts.next()?).ok()?;
        u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
    };
    let (start, size) = (number()?, number()?);
    let name = parts.next()?.trim_ascii();
    (size > 0 && !name.is_empty()).then_some((start, start.checked_add(size)?, name))
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, path::PathBuf};

    use super::*;

    fn map(name: &str, text: &str) -> (PathBuf, File, PerfMap) {
        let path = std::env::temp_dir().join(format!("memleak-perf-map-{}-{name}", std::process::id()));
        let mut file = File::create(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let mut map = PerfMap::new(File::open(&path).unwrap());
        map.refresh().unwrap();
        (path, file, map)
    }

    fn name(map: &PerfMap, address: u64) -> Option<&str> {
        map.find(address).map(|function| &*function.name)
    }

    #[test]
    fn reads_names_with_spaces_and_skips_what_is_no_line() {
        let text = "7f00 10 LazyCompile:~add /a b.js:1\n0x8000 0x20 hex\nnonsense\n\n9000 zz x\n9000 0 empty\n\
                    ffffffffffffffff 10 beyond\n9100 10\n9200 10 a\tb\n";
        let (path, _, map) = map("names", text);
        assert_eq!(name(&map, 0x7f00), Some("LazyCompile:~add /a b.js:1"));
        assert_eq!(name(&map, 0x7f0f), Some("LazyCompile:~add /a b.js:1"));
        assert_eq!(name(&map, 0x7f10), None);
        assert_eq!(name(&map, 0x801f), Some("hex"));
        assert_eq!(name(&map, 0x9200), Some("a\u{fffd}b"));
        assert_eq!(map.functions.len(), 3);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_is_appended_is_read_and_wins() {
        let (path, mut file, mut map) = map("grow", "1000 100 old\n2000 10 ha");
        assert_eq!(name(&map, 0x2000), None, "the line is not complete");
        file.write_all(b"lf\n1040 20 new\n").unwrap();
        map.refresh().unwrap();
        assert_eq!(name(&map, 0x2000), Some("half"));
        assert_eq!(name(&map, 0x103f), Some("old"));
        assert_eq!(name(&map, 0x1040), Some("new"));
        assert_eq!(name(&map, 0x1060), Some("old"));
        file.set_len(0).unwrap();
        map.refresh().unwrap();
        assert_eq!(name(&map, 0x1000), None);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_sparse_giant_is_bounded() {
        let (path, file, mut map) = map("giant", "1000 100 name\n");
        file.set_len(1 << 40).unwrap();
        map.refresh().unwrap();
        assert_eq!(name(&map, 0x1000), Some("name"));
        std::fs::remove_file(path).unwrap();
    }
}
