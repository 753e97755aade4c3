//! What tracing costs a program, by the program's own clock.
//!
//! The traced program is bench/programs/pairs.c. Every variant is measured at every stack depth in
//! every round, one after the other, so that a slow minute of the machine falls on all of them.
//! Each is measured on a process of its own with a C library of its own: none inherits another's
//! probes, which the kernel takes away some time after their tracer has gone. Figures are medians
//! over the rounds.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};

use crate::{
    bcc::Bcc,
    options::Options,
    peers,
    processes::{self, ATTACHED, MARGIN, Pace, Program, Target, Traced, Tracer, memleak_command},
    reports::{self, Case, Outcome},
    results::{DEPTHS, Results, Variant},
};

/// The programs that take part.
struct Bench<'a> {
    options: &'a Options,
    pairs: Program,
    memleak: PathBuf,
    /// What is known of bcc's memleak; the peers that start a program are found when they are to.
    bcc: Option<Bcc>,
}

/// Measures in as many rounds as are asked for.
pub(crate) fn measure(options: &Options, memleak: PathBuf) -> Result<Results> {
    let mut results = Results::default();
    let bcc = Bcc::find().map_err(|error| results.leave_out(Variant::Bcc, &error)).ok();
    let bench = Bench { options, pairs: Program::compile("pairs.c", &[])?, memleak, bcc };
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for depth in DEPTHS {
            for variant in Variant::PAIRS.into_iter().chain(Variant::STARTERS) {
                bench.measure(variant, depth, &mut results)?;
            }
        }
        results.reports.push(bench.big_report()?);
    }
    Ok(results)
}

impl Bench<'_> {
    /// Measures one variant at one depth once; a peer that fails is left out from then on.
    fn measure(&self, variant: Variant, depth: u32, results: &mut Results) -> Result<()> {
        if results.is_missing(variant) {
            return Ok(());
        }
        let seconds = Duration::from_secs(self.options.seconds.into());
        let depth_word = depth.to_string();
        let arguments = ["loop", &depth_word];
        let pace = match variant {
            Variant::Untraced => self.pairs.start(&arguments)?.pace(processes::now(), seconds, MARGIN)?,
            Variant::Bcc | Variant::Heaptrack | Variant::Memcheck | Variant::Dhat => {
                let pace = match variant {
                    Variant::Bcc => self.bcc(&arguments, seconds),
                    _ => self.started_by(variant, &arguments, seconds),
                };
                match pace {
                    Ok(pace) => pace,
                    Err(error) => {
                        results.leave_out(variant, &error);
                        return Ok(());
                    }
                }
            }
            _ => {
                let target = self.pairs.start(&arguments)?;
                let traced = self.memleak(&target, variant, seconds)?;
                if variant == Variant::Memleak {
                    results.load_ms.push(traced.load_ms()?);
                    results.attach_ms.push(traced.attach_ms()?);
                    results.detach_ms.push(traced.detach_ms()?);
                }
                target.pace(traced.marked, seconds, MARGIN)?
            }
        };
        let Pace { turn_ns: pair_ns, cpu_share } = pace;
        eprintln!("  depth {depth:2}, {}: {pair_ns:.1} ns ({cpu_share:.2} of a CPU)", variant.name());
        results.add(variant, depth, pace);
        Ok(())
    }

    /// Under bcc's memleak.
    fn bcc(&self, arguments: &[&str], seconds: Duration) -> Result<Pace> {
        let target = self.pairs.start(arguments)?;
        let bcc = self.bcc.as_ref().context("bcc's memleak was not found")?;
        let traced = bcc.tracer(&target, seconds)?.run(seconds)?;
        // It says when it reports, and has waited for as long before.
        target.pace(traced.marked.saturating_sub(seconds), seconds, MARGIN)
    }

    /// Under a peer that starts it.
    fn started_by(&self, peer: Variant, arguments: &[&str], seconds: Duration) -> Result<Pace> {
        let target = peers::start(peer, &self.pairs, arguments)?;
        let begun = target.first_window()?;
        let pace = target.pace(begun, seconds, MARGIN)?;
        target.end()?;
        Ok(pace)
    }

    /// Traces with memleak, or with its empty programs, for one report.
    fn memleak(&self, target: &Target, variant: Variant, seconds: Duration) -> Result<Traced> {
        let mut tracer = memleak_command(&self.memleak)?;
        tracer.args(variant.options());
        tracer.args(["-p", &target.pid().to_string(), &seconds.as_secs().to_string(), "1"]);
        Tracer { command: tracer, mark: ATTACHED }.run(seconds)
    }

    /// Reports over many outstanding allocations.
    fn big_report(&self) -> Result<Outcome> {
        let blocks = self.options.allocations;
        let case = Case { name: "idle target", mode: "hold", blocks, interval: 1, reports: 3 };
        reports::measure(&self.pairs, &self.memleak, &case)
    }
}
