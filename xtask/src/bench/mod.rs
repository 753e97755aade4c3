//! `cargo xtask bench`: what tracing costs a program, by the program's own clock.
//!
//! The traced program is xtask/bench/pairs.c. Every variant is measured at every stack depth in
//! every round, one after the other, so that a slow minute of the machine falls on all of them.
//! Each is measured on a process of its own with a C library of its own: none inherits another's
//! probes, which the kernel takes away some time after their tracer has gone. Figures are medians
//! over the rounds.

mod attach;
mod bcc;
mod cpu;
mod kernel;
mod memory;
mod processes;
mod rustc;
mod table;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::{
    packages::{self, Package},
    privilege, run,
};
use processes::{Pace, Pairs, Target, Traced, Tracer};

/// Frames of the traced program on its stack.
const DEPTHS: [u32; 3] = [5, 20, 60];
/// Left out at both ends of the traced time.
const MARGIN: Duration = Duration::from_millis(250);
const COMPILER: Package = Package { names: &["gcc"], purpose: "compiles the program that is traced" };
const INSTEAD: &str = "run the bench as root";

/// Options of `bench`.
#[derive(Args)]
pub(crate) struct Options {
    /// How often everything is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds of traced time for each measurement
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..))]
    seconds: u32,
    /// Outstanding allocations of the big report
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    allocations: u64,
    /// Measure attaching to a process that maps 150 MB of code, and nothing else
    #[arg(long, conflicts_with = "rustc")]
    attach: bool,
    /// Measure whole runs of rustc, and nothing else
    #[arg(long)]
    rustc: bool,
    /// Measure kernel mode: what tracing costs those who have the kernel allocate
    #[arg(long)]
    kernel: bool,
    /// Write the result to BENCHMARKS.md too
    #[arg(long)]
    write: bool,
}

/// A way to run the traced program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Untraced,
    /// memleak's attach points with empty programs: what the kernel takes for the traps alone.
    Traps,
    Memleak,
    /// memleak, walking by frame pointers.
    Pointers,
    /// memleak, having the kernel walk: `bpf_get_stackid`.
    Kernel,
    Bcc,
}

impl Variant {
    const ALL: [Self; 6] =
        [Self::Untraced, Self::Traps, Self::Memleak, Self::Pointers, Self::Kernel, Self::Bcc];

    /// memleak's options for it.
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Traps => &["--traps-only"],
            Self::Pointers => &["--unwind", "fp"],
            Self::Kernel => &["--unwind", "kernel"],
            Self::Memleak | Self::Untraced | Self::Bcc => &[],
        }
    }
}

/// Measured in all rounds for one variant at one depth.
struct Series {
    variant: Variant,
    depth: u32,
    /// Nanoseconds for a pair of malloc and free, one for each round.
    pair_ns: Vec<f64>,
}

/// Everything that was measured.
#[derive(Default)]
struct Results {
    series: Vec<Series>,
    /// Of a CPU, that the traced program had in each measurement.
    cpu_shares: Vec<f64>,
    /// Of memleak: milliseconds.
    attach_ms: Vec<f64>,
    detach_ms: Vec<f64>,
    reports: Vec<BigReport>,
    /// Why bcc's memleak is not in it.
    without_bcc: Option<String>,
}

/// One report over many allocations.
struct BigReport {
    allocations: u64,
    total_ms: f64,
    snapshot_ms: f64,
    peak_rss_bytes: u64,
}

/// The programs that take part.
struct Bench<'a> {
    options: &'a Options,
    pairs: Pairs,
    memleak: PathBuf,
    bcc: Option<bcc::Bcc>,
}

/// Measures and prints; with `--write` into BENCHMARKS.md too.
pub(crate) fn run(options: &Options) -> Result<()> {
    packages::ensure(&[COMPILER])?;
    privilege::as_root("true", INSTEAD)?;
    if options.attach || options.rustc || options.kernel {
        return run_part(options);
    }
    let mut results = Results::default();
    let bcc = bcc::Bcc::find().map_err(|error| results.without_bcc = Some(format!("{error:#}"))).ok();
    let mut bench = Bench { options, pairs: Pairs::compile()?, memleak: run::memleak_binary()?, bcc };
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for depth in DEPTHS {
            for variant in Variant::ALL {
                bench.measure(variant, depth, &mut results)?;
            }
        }
        results.reports.push(bench.big_report()?);
    }
    let mut text = table::markdown(&results, options)?;
    println!("{text}");
    // The parts that were not measured stay as they are.
    let old = read_benchmarks();
    for title in [attach::TITLE, rustc::TITLE, kernel::TITLE] {
        if let Some(section) = table::section_of(&old, title) {
            text = table::with_section(&text, title, section);
        }
    }
    write_benchmarks(options, &text)
}

/// One of the parts that are measured when they are asked for.
fn run_part(options: &Options) -> Result<()> {
    let memleak = run::memleak_binary()?;
    let (title, section) = if options.attach {
        (attach::TITLE, attach::section(options, &memleak)?)
    } else if options.rustc {
        (rustc::TITLE, rustc::section(options, &memleak)?)
    } else {
        (kernel::TITLE, kernel::section(options, memleak)?)
    };
    println!("{section}");
    write_benchmarks(options, &table::with_section(&read_benchmarks(), title, &section))
}

fn benchmarks() -> PathBuf {
    run::root().join("BENCHMARKS.md")
}

/// What was measured before; empty if nothing was.
fn read_benchmarks() -> String {
    fs::read_to_string(benchmarks()).unwrap_or_default()
}

fn write_benchmarks(options: &Options, text: &str) -> Result<()> {
    let path = benchmarks();
    match options.write {
        true => fs::write(&path, text).with_context(|| format!("cannot write {}", path.display())),
        false => Ok(()),
    }
}

impl Bench<'_> {
    /// Measures one variant at one depth once.
    fn measure(&mut self, variant: Variant, depth: u32, results: &mut Results) -> Result<()> {
        let target = self.pairs.start(&["loop", &depth.to_string()])?;
        let seconds = Duration::from_secs(self.options.seconds.into());
        let pace = match variant {
            Variant::Untraced => target.pace(processes::now(), seconds, MARGIN)?,
            Variant::Traps | Variant::Memleak | Variant::Pointers | Variant::Kernel => {
                let traced = self.memleak(&target, variant, seconds)?;
                if variant == Variant::Memleak {
                    results.attach_ms.push(traced.attach_ms()?);
                    results.detach_ms.push(traced.detach_ms()?);
                }
                target.pace(traced.marked, seconds, MARGIN)?
            }
            Variant::Bcc => {
                let Some(bcc) = &self.bcc else { return Ok(()) };
                match bcc.tracer(&target, seconds)?.run(seconds) {
                    // It says when it reports, and has waited for as long before.
                    Ok(traced) => target.pace(traced.marked.saturating_sub(seconds), seconds, MARGIN)?,
                    Err(error) => {
                        results.without_bcc = Some(format!("{error:#}"));
                        self.bcc = None;
                        return Ok(());
                    }
                }
            }
        };
        let Pace { turn_ns: pair_ns, cpu_share } = pace;
        eprintln!("  depth {depth:2}, {}: {pair_ns:.1} ns ({cpu_share:.2} of a CPU)", table::name(variant));
        results.cpu_shares.push(cpu_share);
        let existing = results.series.iter_mut().find(|one| one.variant == variant && one.depth == depth);
        match existing {
            Some(series) => series.pair_ns.push(pair_ns),
            None => results.series.push(Series { variant, depth, pair_ns: vec![pair_ns] }),
        }
        Ok(())
    }

    /// Traces with memleak, or with its empty programs, for one report.
    fn memleak(&self, target: &Target, variant: Variant, seconds: Duration) -> Result<Traced> {
        let mut tracer = memleak_command(&self.memleak)?;
        tracer.args(variant.options());
        tracer.args(["-p", &target.pid().to_string(), &seconds.as_secs().to_string(), "1"]);
        Tracer { command: tracer, mark: "memleak: attached " }.run(seconds)
    }

    /// A report over many outstanding allocations.
    fn big_report(&self) -> Result<BigReport> {
        let count = self.options.allocations;
        let mut target = self.pairs.start(&["hold", &count.to_string()])?;
        // Time to acquire them all, traced, on a slow machine.
        let seconds = Duration::from_secs(5 + count / 200_000);
        let mut command = memleak_command(&self.memleak)?;
        // Two: the last report of a run is made while probes are taken away, and the first is the
        // usual one.
        command.args(["-o", "0", "-p", &target.pid().to_string(), &seconds.as_secs().to_string(), "2"]);
        let traced = Tracer { command, mark: "memleak: attached " }.run_with(seconds * 2, || target.go())?;
        let report = traced.big_report()?;
        eprintln!(
            "  report over {} allocations: {} ms, of which snapshot {} ms; {} MiB",
            report.allocations,
            report.total_ms,
            report.snapshot_ms,
            report.peak_rss_bytes >> 20
        );
        ensure!(
            report.allocations >= count,
            "the report covers {} of {count} allocations",
            report.allocations
        );
        Ok(report)
    }
}

fn memleak_command(memleak: &Path) -> Result<Command> {
    let mut command = privilege::as_root(memleak, INSTEAD)?;
    command.arg("-v");
    Ok(command)
}

/// Median; of an even number of values the mean of the middle two. `None` for no values.
fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get((values.len() - 1) / 2)?;
    Some(f64::midpoint(lower, upper))
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn median_is_the_middle() {
        assert_eq!(median([]), None);
        assert_eq!(median([3.0]), Some(3.0));
        assert_eq!(median([9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([9.0, 1.0, 2.0, 4.0]), Some(3.0));
    }
}
