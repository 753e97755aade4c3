//! Compiles fixtures and asks binutils for the truth.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use memleak::{
    proc::{
        maps::{Backing, Mapping},
        root::Root,
    },
    symbolize::{Frame, Symbolizer, SymbolizerOptions, Target},
};

/// Where position-independent fixtures are mapped.
pub(crate) const BIAS: u64 = 0x5555_0000_0000;

/// A directory that is gone with its owner. It is the root of the target, too.
pub(crate) struct Directory(pub PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("memleak-symbolize-{}-{count}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/symbolize/fixtures").join(name)
}

/// Runs a command line of words (`{}` stands for the paths in turn) and gives what it prints.
pub(crate) fn run(line: &str, paths: &[&Path]) -> String {
    let mut paths = paths.iter();
    let mut words = line.split_whitespace().map(|word| match word.split_once("{}") {
        Some((before, after)) => format!("{before}{}{after}", paths.next().unwrap().display()),
        None => word.to_owned(),
    });
    let output = Command::new(words.next().unwrap()).args(words).env("LC_ALL", "C").output().unwrap();
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{line}: {errors}");
    text.into_owned()
}

/// A target with one file mapped, below a directory of ours that is its root.
pub(crate) struct FileTarget {
    pub root: PathBuf,
}

impl Target for FileTarget {
    fn open(&self, mapping: &Mapping) -> io::Result<File> {
        File::open(self.root.join(mapping.path().unwrap().strip_prefix("/").unwrap()))
    }

    fn memory(&self, _: u64, _: usize) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn root(&self) -> io::Result<Root> {
        Root::at(&self.root)
    }

    fn perf_map(&self) -> Option<File> {
        File::open(self.root.join("tmp/perf-1.map")).ok()
    }
}

/// The mappings that the kernel would make of `file` (as `/NAME`), by what readelf says of its
/// segments.
pub(crate) fn mappings(file: &Path, name: &str, bias: u64) -> Vec<Mapping> {
    const PAGE: u64 = 4096;
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
    run("readelf -lW {}", &[file])
        .lines()
        .filter(|line| line.trim_start().starts_with("LOAD"))
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (offset, vaddr, memory_size) = (number(words[1]), number(words[2]), number(words[5]));
            let flags = words[6..words.len() - 1].concat();
            Mapping {
                start: (bias + vaddr) / PAGE * PAGE,
                end: (bias + vaddr + memory_size).next_multiple_of(PAGE),
                executable: flags.contains('E'),
                readable: true,
                writable: flags.contains('W'),
                file_offset: offset / PAGE * PAGE,
                device: (8, 1),
                inode: 42,
                backing: Backing::File { path: Path::new("/").join(name), deleted: false },
            }
        })
        .collect()
}

/// A symbolizer that finds nothing on this machine but what is in `directory`.
pub(crate) fn symbolizer(directory: &Directory) -> Symbolizer {
    let options = SymbolizerOptions { debug_directory: directory.0.join("host-debug"), ..Default::default() };
    Symbolizer::with_options(&options)
}

/// Symbolizes vaddrs of `/NAME` of the target whose root `directory` is.
pub(crate) fn symbolize(directory: &Directory, name: &str, vaddrs: &[u64]) -> Vec<Vec<Frame>> {
    let file = directory.path(name);
    let bias = if run("readelf -hW {}", &[&file]).contains("EXEC (") { 0 } else { BIAS };
    let mut symbolizer = symbolizer(directory);
    let target = FileTarget { root: directory.0.clone() };
    symbolizer.observe_mappings(1, 0, mappings(&file, name, bias), &target);
    vaddrs
        .iter()
        .map(|vaddr| {
            let frames = symbolizer.symbolize(1, 0, &[vaddr + bias]);
            for frame in &frames {
                assert_eq!(frame.ip, vaddr + bias);
                assert_eq!(frame.offset, Some(*vaddr), "{frame:?}");
                assert_eq!(frame.module.as_deref(), Some(&*format!("/{name}")));
            }
            frames
        })
        .collect()
}

/// The return addresses (vaddrs) of all calls in a file, as objdump disassembles it.
pub(crate) fn return_addresses(file: &Path) -> Vec<u64> {
    let text = run("objdump -d --no-show-raw-insn -j .text {}", &[file]);
    let instructions: Vec<(u64, &str)> = text
        .lines()
        .filter_map(|line| {
            let (address, rest) = line.split_once(":\t")?;
            Some((u64::from_str_radix(address.trim(), 16).ok()?, rest))
        })
        .collect();
    instructions.windows(2).filter(|pair| pair[0].1.starts_with("call")).map(|pair| pair[1].0).collect()
}

/// What `addr2line -fi` says of each vaddr: function and file:line, innermost first.
pub(crate) fn addr2line(file: &Path, vaddrs: &[u64]) -> Vec<Vec<(String, String)>> {
    let mut command = Command::new("addr2line");
    command.args(["-a", "-f", "-i", "-e"]).arg(file);
    command.args(vaddrs.iter().map(|vaddr| format!("{vaddr:#x}")));
    let output = command.output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let mut result: Vec<Vec<(String, String)>> = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("0x") {
            result.push(Vec::new());
        } else {
            let place = lines.next().unwrap().split(" (discriminator").next().unwrap();
            result.last_mut().unwrap().push((line.to_owned(), place.to_owned()));
        }
    }
    assert_eq!(result.len(), vaddrs.len());
    result
}

/// Functions by start: size and the names that nm gives them. One without a size reaches to the
/// next one.
pub(crate) fn nm(file: &Path) -> BTreeMap<u64, (u64, Vec<String>)> {
    let number = |text| u64::from_str_radix(text, 16).unwrap();
    let mut functions: BTreeMap<u64, (u64, Vec<String>)> = BTreeMap::new();
    for line in run("nm -S --defined-only {}", &[file]).lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (start, size, kind, name) = match words[..] {
            [start, size, kind, name] => (number(start), number(size), kind, name),
            [start, kind, name] => (number(start), 0, kind, name),
            _ => continue,
        };
        if "TtWwi".contains(kind) {
            let function = functions.entry(start).or_default();
            function.0 = size.max(function.0);
            function.1.push(name.to_owned());
        }
    }
    let starts: Vec<u64> = functions.keys().copied().collect();
    for pair in starts.windows(2) {
        let function = functions.get_mut(&pair[0]).unwrap();
        if function.0 == 0 {
            function.0 = pair[1] - pair[0];
        }
    }
    functions
}
