//! What tracing costs a program, by the program's own clock.
//!
//! The traced program is bench/programs/pairs.c. Every variant is measured at every stack depth in
//! every round, one after the other, so that a slow minute of the machine falls on all of them.
//! Each is measured on a process of its own with a C library of its own: none inherits another's
//! probes, which the kernel takes away some time after their tracer has gone. Figures are medians
//! over the rounds.

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use xtask::run;

use crate::{
    bcc::Bcc,
    options::Options,
    processes::{self, BigReport, MARGIN, Pace, Pairs, Target, Traced, Tracer, memleak_command},
    results::{DEPTHS, Results, Series, Variant},
};

/// The programs that take part.
struct Bench<'a> {
    options: &'a Options,
    pairs: Pairs,
    memleak: PathBuf,
    bcc: Option<Bcc>,
}

/// Measures in as many rounds as are asked for.
pub(crate) fn measure(options: &Options) -> Result<Results> {
    let mut results = Results::default();
    let bcc = Bcc::find().map_err(|error| results.without_bcc = Some(format!("{error:#}"))).ok();
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
    Ok(results)
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
        eprintln!("  depth {depth:2}, {}: {pair_ns:.1} ns ({cpu_share:.2} of a CPU)", variant.name());
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
