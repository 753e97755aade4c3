//! Time and size of building unwind tables: `cargo bench --bench unwind_tables [-- FILE...]`.
//!
//! Without files: libc, and the largest shared libraries of a development machine that are there. The best of five
//! builds is printed: the machine's noise only ever adds.

use std::{
    fs::File,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use memleak::unwind::{Source, TableCache, UnwindTable};

const BUILDS: usize = 5;

fn main() {
    let mut files: Vec<PathBuf> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).map(PathBuf::from).collect();
    if files.is_empty() {
        files = default_files();
    }
    println!("{:>9} {:>9} {:>9} {:>8}  file", "ms", "rows", "entries", "MiB");
    for file in &files {
        match build(file) {
            Ok((time, table)) => println!(
                "{:>9.2} {:>9} {:>9} {:>8.1}  {}",
                time.as_secs_f64() * 1e3,
                table.rows.len(),
                table.stats.entries,
                (table.words() * 8) as f64 / f64::from(1 << 20),
                file.display()
            ),
            Err(error) => println!("{error}: {}", file.display()),
        }
    }
    let sources: Vec<_> = files.iter().filter_map(|file| File::open(file).ok()).map(Source::File).collect();
    let begin = Instant::now();
    let tables = TableCache::default().get_many(&sources);
    let rows: usize = tables.iter().flatten().map(|table| table.rows.len()).sum();
    println!("{:>9.2} {rows:>9} {:>28} all, together", begin.elapsed().as_secs_f64() * 1e3, "");
}

fn build(path: &Path) -> Result<(Duration, UnwindTable), Box<dyn std::error::Error>> {
    let mut best: Option<(Duration, UnwindTable)> = None;
    for _ in 0..BUILDS {
        let begin = Instant::now();
        let table = UnwindTable::from_file(&File::open(path)?)?;
        let time = begin.elapsed();
        if best.as_ref().is_none_or(|(before, _)| time < *before) {
            best = Some((time, table));
        }
    }
    best.ok_or_else(|| "never built".into())
}

fn default_files() -> Vec<PathBuf> {
    let mut files = vec![PathBuf::from("/lib/x86_64-linux-gnu/libc.so.6")];
    let homes = std::env::var_os("RUSTUP_HOME")
        .or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".rustup").into()));
    let toolchains = homes.map(|home| Path::new(&home).join("toolchains"));
    let lib_folders = toolchains.iter().flat_map(|folder| folder.read_dir().into_iter().flatten().flatten());
    let folders = lib_folders.map(|entry| entry.path().join("lib")).chain(["/usr/lib/llvm-22/lib".into()]);
    for folder in folders {
        let entries = folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
        files.extend(entries.filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with("librustc_driver")
                || name.starts_with("libLLVM.so")
                || name.starts_with("libLLVM-")
        }));
    }
    // Several names of one file are one file.
    files.sort_by_key(|file| file.canonicalize().ok());
    files.dedup_by_key(|file| file.canonicalize().ok());
    files
}
