//! Time and size of building unwind tables: `cargo bench --bench unwind_tables [-- FILE...]`. With
//! `--unsupported` it counts instead, over all files together, the rows that say that there is a
//! rule beyond them: by reason, and how many hold a call, so that a return address can be theirs.
//! (`-- --unsupported $(find /usr/lib -name '*.so*' -type f)`)
//!
//! Without files: libc, and the largest shared libraries of a development machine that are there.
//! The best of five builds is printed: the machine's noise only ever adds.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use iced_x86::{Decoder, DecoderOptions, FlowControl};
use memleak::elf::Segment;
use memleak::objects::ObjectFile;
use memleak::unwind::{Machine, TableCache, Unsupported, UnwindTable};
use memleak_common::unwind::Row;

const BUILDS: usize = 5;

fn main() {
    let mut files: Vec<PathBuf> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).map(PathBuf::from).collect();
    if files.is_empty() {
        files = default_files();
    }
    if std::env::args().any(|argument| argument == "--unsupported") {
        return count_unsupported(&files);
    }
    println!("{:>9} {:>9} {:>9} {:>8}  file", "ms", "rows", "entries", "MiB");
    for file in &files {
        match build(file) {
            Ok((time, table)) => println!(
                "{:>9.2} {:>9} {:>9} {:>8.1}  {}",
                time.as_secs_f64() * 1e3,
                table.rows.len(),
                table.stats.entries,
                ((table.rows.len() + table.pages.len()) * 8) as f64 / f64::from(1 << 20),
                file.display()
            ),
            Err(error) => println!("{error}: {}", file.display()),
        }
    }
    let sources: Vec<_> =
        files.iter().map(|file| Arc::new(ObjectFile::new(File::open(file), file.as_ref()))).collect();
    let begin = Instant::now();
    let tables = TableCache::default().get_many(&sources);
    let rows: usize = tables.iter().flatten().map(|table| table.rows() as usize).sum();
    println!("{:>9.2} {rows:>9} {:>28} all, together", begin.elapsed().as_secs_f64() * 1e3, "");
}

fn count_unsupported(files: &[PathBuf]) {
    let (mut tables, mut rows) = (0, 0);
    // Rows, and those with a call, by reason.
    let mut counts: BTreeMap<Unsupported, (usize, usize)> = BTreeMap::new();
    for path in files {
        let Some(table) = File::open(path).ok().and_then(|file| UnwindTable::from_file(&file).ok()) else {
            continue;
        };
        tables += 1;
        rows += table.rows.len();
        let mut bytes = Vec::new();
        for pair in table.rows.windows(2) {
            let [row, next] = [pair[0], pair[1]];
            let Some(reason) = Unsupported::of(row) else { continue };
            if bytes.is_empty() {
                bytes = std::fs::read(path).unwrap_or_default();
            }
            let count = counts.entry(reason).or_default();
            count.0 += 1;
            count.1 += usize::from(table.machine == Machine::X86_64 && has_call(&table, &bytes, row, next));
        }
    }
    println!("{tables} tables, {rows} rows\n{:>9} {:>9}  unsupported for", "rows", "with call");
    for (reason, (rows, calls)) in counts {
        println!("{rows:>9} {calls:>9}  {reason:?}");
    }
}

/// Whether there is a call in the text that `row` covers, up to `next`.
fn has_call(table: &UnwindTable, bytes: &[u8], row: Row, next: Row) -> bool {
    let start = table.segments.text_base + u64::from(row.pc());
    let inside = |segment: &&Segment| start >= segment.vaddr && start - segment.vaddr < segment.len;
    let Some(segment) = table.segments.segments.iter().find(inside) else { return false };
    let offset = (start - segment.vaddr + segment.file_offset) as usize;
    let code = bytes.get(offset..offset + (next.pc() - row.pc()) as usize).unwrap_or_default();
    Decoder::with_ip(64, code, start, DecoderOptions::NONE).iter().any(|instruction| {
        matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall)
    })
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
