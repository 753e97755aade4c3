//! `cargo xtask bench --redis`: what tracing costs a real server under load.
//!
//! A server of our own on a port of its own answers redis-benchmark's SETs, which come over 50
//! connections. Each variant has a server anew, and all take turns in every round.

use std::{
    ffi::OsString,
    fmt::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use xtask::{
    packages::{self, Package},
    privilege, run,
};

use crate::{
    bcc::{self, Bcc},
    cpu, document,
    options::Options,
    peers,
    processes::{ATTACHED, Running, memleak_words, own_copy},
    results::Variant,
    series::Series,
};

/// Title of the section in BENCHMARKS.md.
pub(crate) const TITLE: &str = "redis-server answering SETs";

const PACKAGES: [Package; 2] = [
    Package { names: &["redis-server"], purpose: "the server that is traced" },
    Package { names: &["redis-tools"], purpose: "redis-benchmark, which puts it under load" },
];
const VARIANTS: [Variant; 9] = [
    Variant::Untraced,
    Variant::Traps,
    Variant::Memleak,
    Variant::NoLifetimes,
    Variant::Sampled,
    Variant::Growth,
    Variant::Bcc,
    Variant::Heaptrack,
    Variant::Memcheck,
];
const SERVER: &str = "redis-server";
const LIBC: &str = "/libc.so";
/// SETs of one measurement.
const SETS: u64 = 100_000;
/// The same for what is twenty times slower.
const FEW_SETS: u64 = 5_000;
/// Before the first of them that count.
const WARMING_SETS: u64 = 2_000;
/// A server that takes longer to begin, or to end, hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Seconds between reports of bcc's memleak: its usual ones. Only its first says that it traces.
const BCC_INTERVAL: &str = "5";

/// What was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Figure {
    PerSecond,
    /// CPU time of the server for a SET, in microseconds.
    CpuMicros,
}

/// Measures; gives the section.
pub(crate) fn section(options: &Options, memleak: &Path) -> Result<String> {
    ensure!(privilege::is_root(), "run it as root: below sudo, tracer and server cannot be told apart");
    packages::ensure(&PACKAGES)?;
    peers::ensure();
    let libraries = Libraries::find()?;
    let mut figures = Series::default();
    let mut missing: Vec<(Variant, String)> = Vec::new();
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for variant in VARIANTS {
            if missing.iter().any(|(known, _)| *known == variant) {
                continue;
            }
            match measure(memleak, &libraries, variant) {
                Ok([per_second, micros]) => {
                    eprintln!("  {}: {per_second:.0} SETs a second, {micros:.1} us each", variant.name());
                    figures.add((variant, Figure::PerSecond), per_second);
                    figures.add((variant, Figure::CpuMicros), micros);
                }
                Err(error) if is_peer(variant) => {
                    eprintln!("  {} is left out: {error:#}", variant.name());
                    missing.push((variant, format!("{error:#}")));
                }
                Err(error) => return Err(error),
            }
        }
    }
    markdown(options, &figures, &missing)
}

fn is_peer(variant: Variant) -> bool {
    matches!(variant, Variant::Bcc | Variant::Heaptrack | Variant::Memcheck)
}

/// SETs a second, and the server's CPU time for each in microseconds.
fn measure(memleak: &Path, libraries: &Libraries, variant: Variant) -> Result<[f64; 2]> {
    let server = Server::start(variant, libraries)?;
    server.sets(WARMING_SETS)?;
    let tracer = match variant {
        Variant::Untraced | Variant::Heaptrack | Variant::Memcheck => None,
        Variant::Bcc => {
            let mut words = Bcc::find()?.words();
            words.extend(["-p".into(), server.pid.to_string().into(), BCC_INTERVAL.into()]);
            Some(Running::start(&words, bcc::HEADING)?)
        }
        _ => Some(Running::start(&memleak_words(memleak, variant.options(), server.pid), ATTACHED)?),
    };
    let count = if variant == Variant::Memcheck { FEW_SETS } else { SETS };
    let [before, _] = cpu::of(server.pid)?;
    let per_second = server.sets(count)?;
    let [after, _] = cpu::of(server.pid)?;
    tracer.map(Running::end).transpose()?;
    server.end()?;
    Ok([per_second, (after.sum() - before.sum()) / count as f64 * 1e6])
}

/// What the server may allocate with: jemalloc, the C library.
struct Libraries {
    files: Vec<PathBuf>,
    /// Where each server's own copies are put: none inherits another's probes, and bcc cannot probe
    /// what others probe already.
    folder: PathBuf,
}

impl Libraries {
    fn find() -> Result<Self> {
        let program = run::find_program(SERVER).with_context(|| format!("{SERVER} is not installed"))?;
        let needed = run::output(Command::new("ldd").arg(program))?;
        let paths = needed.lines().filter_map(|line| line.split_once(" => ")?.1.split(' ').next());
        let is_allocator = |path: &&str| path.contains("/libjemalloc") || path.contains(LIBC);
        let files = paths.filter(is_allocator).map(Into::into).collect();
        Ok(Self { files, folder: run::root().join("target/bench/redis") })
    }

    /// Has a command take new copies. bcc's memleak cannot probe a library that has no `mmap`, so
    /// that a server for it allocates with the C library.
    fn give(&self, command: &mut Command, variant: Variant) -> Result<()> {
        for file in &self.files {
            own_copy(file, &self.folder)?;
        }
        command.env("LD_LIBRARY_PATH", &self.folder);
        if variant == Variant::Bcc {
            command.env("LD_PRELOAD", self.folder.join("libc.so.6"));
        }
        Ok(())
    }
}

/// A server that answers. Dropping it ends it.
struct Server {
    child: Child,
    /// Of the server itself, which others may have started.
    pid: u32,
    port: u16,
}

impl Server {
    /// Starts one that keeps nothing on disk.
    fn start(variant: Variant, libraries: &Libraries) -> Result<Self> {
        let mut words = match variant {
            Variant::Heaptrack | Variant::Memcheck => peers::words(variant)?,
            _ => Vec::new(),
        };
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let own = [SERVER, "--bind", "127.0.0.1", "--save", "", "--port", &port.to_string()];
        words.extend(own.map(OsString::from));
        let (first, others) = words.split_first().context("no command")?;
        let mut command = Command::new(first);
        libraries.give(&mut command, variant)?;
        command.args(others).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("cannot start `{}`", run::shown(&command)))?;
        let mut server = Self { pid: child.id(), child, port };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = server.cli(&["info", "server"]).unwrap_or_default();
            let number = said.lines().find_map(|line| line.strip_prefix("process_id:")?.trim().parse().ok());
            if let Some(pid) = number {
                server.pid = pid;
                return Ok(server);
            }
            let ended = server.child.try_wait()?;
            ensure!(ended.is_none(), "the server has ended: {ended:?}");
            ensure!(Instant::now() < deadline, "the server does not answer");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What it says to a command.
    fn cli(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new("redis-cli");
        let output = command.args(["-h", "127.0.0.1", "-p", &self.port.to_string()]).args(words).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Has it answer so many SETs; gives how many a second.
    fn sets(&self, count: u64) -> Result<f64> {
        let mut command = Command::new("redis-benchmark");
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-t", "set", "-q", "-n"]);
        let said = run::output(command.arg(count.to_string()))?;
        per_second(&said).with_context(|| format!("no figure of redis-benchmark's: {said}"))
    }

    /// Ends it as its users do, so that what others write at its end is written.
    fn end(mut self) -> Result<()> {
        self.cli(&["shutdown", "nosave"])?;
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "the server does not end");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // SAFETY: no memory is concerned. What was started runs still, so the number is of its
            // own or of its child.
            unsafe { libc::kill(self.pid as libc::pid_t, libc::SIGKILL) };
            // Fails only if it has ended by itself.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// `SET: 12345.67 requests per second, p50=0.1 msec`: the last such line; those before tell how far
/// it is, and end in a return.
fn per_second(said: &str) -> Option<f64> {
    let end = said.rfind(" requests per second")?;
    said[..end].rsplit(' ').next()?.parse().ok()
}

fn markdown(
    options: &Options,
    figures: &Series<(Variant, Figure)>,
    missing: &[(Variant, String)],
) -> Result<String> {
    let mut text = format!(
        "## {TITLE}\n\n{}\n\nMade by `cargo xtask bench --redis`. Medians over {} rounds of {SETS} SETs by \
         `redis-benchmark -t set` (memcheck: {FEW_SETS}), over 50 connections, from the same machine. CPU time is the \
         server's own. It allocates with jemalloc, and for bcc's memleak with the C library: that cannot probe jemalloc.\n\n| | SETs a second | of untraced | CPU time of a SET | beyond untraced |\n\
         | --- | ---: | ---: | ---: | ---: |\n",
        document::machine()?,
        options.rounds
    );
    for variant in VARIANTS {
        let median = |variant, figure| figures.median(&(variant, figure));
        let values = median(variant, Figure::PerSecond).zip(median(variant, Figure::CpuMicros));
        let Some((per_second, micros)) = values else {
            writeln!(text, "| {} | not measured | | | |", variant.name())?;
            continue;
        };
        let key = |variant| (variant, Figure::PerSecond);
        let share = figures.ratio(&key(variant), &key(Variant::Untraced)).unwrap_or(0.0);
        let beyond = micros - median(Variant::Untraced, Figure::CpuMicros).unwrap_or(0.0);
        writeln!(
            text,
            "| {} | {per_second:.0} | {:.1} % | {micros:.1} us | {beyond:.1} us |",
            variant.name(),
            share * 100.0
        )?;
    }
    for (variant, reason) in missing {
        writeln!(text, "\n{} was not measured: {reason}", variant.name())?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::per_second;

    #[test]
    fn the_last_figure_counts() {
        let said = "SET: rps=0.0 (overall: 12.5) avg_msec=0.1\r                    \rSET: 71428.57 requests per second, \
                    p50=0.359 msec                    \n\n";
        assert_eq!(per_second(said), Some(71428.57));
        assert_eq!(per_second("Could not connect to Redis"), None);
    }
}
