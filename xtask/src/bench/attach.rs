//! `cargo xtask bench --attach`: the time until a process that maps a great deal of code is traced, and the tracer's
//! memory for it.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{Options, Tracer, median, memleak_command, processes, table};
use crate::run;

/// What the issue asks for: at least so much text.
const TEXT_BYTES: u64 = 150_000_000;
/// Title of the section in BENCHMARKS.md.
pub const TITLE: &str = "Attaching to a process of much code";

/// Measured in one round.
struct Round {
    /// From the start of the tracer to the message that its probes are in, milliseconds.
    attach_ms: f64,
    /// Of which building unwind tables.
    tables_ms: f64,
    rows: f64,
    peak_mib: f64,
}

/// Measures; gives the section.
pub fn section(options: &Options, memleak: &Path) -> Result<String> {
    let program = compile()?;
    let libraries = libraries()?;
    let mut rounds = Vec::new();
    let mut text_bytes = 0;
    for round in 1..=options.rounds {
        let target = Mapped::start(&program, &libraries)?;
        text_bytes = target.text_bytes()?;
        let one = measure(memleak, target.child.id())?;
        eprintln!(
            "  round {round}: {:.0} ms, of which tables {:.0} ms; {:.0} MiB; {} rows",
            one.attach_ms, one.tables_ms, one.peak_mib, one.rows
        );
        rounds.push(one);
    }
    ensure!(
        text_bytes >= TEXT_BYTES,
        "the process maps {text_bytes} bytes of text only: use a rustc that has LLVM in a library, as rustup's"
    );
    let of = |value: fn(&Round) -> f64| median(rounds.iter().map(value)).context("no rounds");
    let names: Vec<_> = libraries.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    Ok(format!(
        "## {TITLE}\n\n{}\n\nMedians over {} rounds, of a process that maps {:.0} MB of text ({} and what it needs): `cargo xtask bench --attach`.\n\n| what | median |\n| --- | ---: |\n\
         | from memleak's start until its probes are in | {:.0} ms |\n| of which unwind tables ({} rows) | {:.0} ms |\n\
         | memleak's peak resident memory | {:.0} MiB |\n",
        table::machine()?,
        options.rounds,
        text_bytes as f64 / 1e6,
        names.join(", "),
        of(|round| round.attach_ms)?,
        of(|round| round.rows)?,
        of(|round| round.tables_ms)?,
        of(|round| round.peak_mib)?,
    ))
}

fn measure(memleak: &Path, pid: u32) -> Result<Round> {
    let mut command = memleak_command(memleak)?;
    command.args(["-p", &pid.to_string(), "1", "1"]);
    let start = processes::now();
    let traced = Tracer { command, mark: "memleak: attached " }.run(Duration::from_secs(1))?;
    const TABLES: &str = "memleak: unwind tables: ";
    Ok(Round {
        attach_ms: traced.marked.saturating_sub(start).as_secs_f64() * 1e3,
        tables_ms: traced.number(TABLES, "built in ")?,
        rows: traced.number(TABLES, " with ")?,
        peak_mib: traced.peak_rss_bytes() as f64 / f64::from(1 << 20),
    })
}

/// A process that has mapped libraries. Dropping it ends it.
struct Mapped {
    child: Child,
}

impl Mapped {
    fn start(program: &Path, libraries: &[PathBuf]) -> Result<Self> {
        let mut command = Command::new(program);
        // librustc_driver's own libraries are beside it.
        let folders = libraries.iter().filter_map(|path| path.parent());
        let child = command
            .args(libraries)
            .env("LD_LIBRARY_PATH", std::env::join_paths(folders)?)
            // The compiler's library wants more thread-local storage than dlopen has at hand (ld.so(8)).
            .env("GLIBC_TUNABLES", "glibc.rtld.optional_static_tls=65536")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut mapped = Self { child };
        let mut line = String::new();
        BufReader::new(mapped.child.stdout.take().context("no pipe")?).read_line(&mut line)?;
        ensure!(line == "mapped\n", "{} cannot map {libraries:?}", program.display());
        Ok(mapped)
    }

    /// Bytes of executable mappings.
    fn text_bytes(&self) -> Result<u64> {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.child.id()))?;
        let range = |line: &str| -> Option<u64> {
            let (range, rest) = line.split_once(' ')?;
            let (start, end) = range.split_once('-')?;
            let size = u64::from_str_radix(end, 16).ok()? - u64::from_str_radix(start, 16).ok()?;
            (rest.as_bytes().get(2) == Some(&b'x')).then_some(size)
        };
        Ok(maps.lines().filter_map(range).sum())
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let _ = self.child.kill(); // fails only where it has ended
        let _ = self.child.wait();
    }
}

fn compile() -> Result<PathBuf> {
    let directory = run::root().join("target/bench");
    fs::create_dir_all(&directory)?;
    let program = directory.join("maps");
    let mut compiler = Command::new("gcc");
    compiler.current_dir(run::root()).args(["-O2", "-Wall", "-Wextra", "xtask/bench/maps.c", "-o"]);
    run::run(compiler.arg(&program))?;
    Ok(program)
}

/// The largest library of a machine with Rust: the compiler's, which brings its own LLVM along.
fn libraries() -> Result<Vec<PathBuf>> {
    let folder = run::rust_sysroot()?.join("lib");
    let is_it = |path: &PathBuf| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with("librustc_driver-"))
    };
    let mut entries = folder.read_dir()?.flatten().map(|entry| entry.path());
    let driver =
        entries.find(is_it).with_context(|| format!("no librustc_driver in {}", folder.display()))?;
    Ok(vec![driver])
}
