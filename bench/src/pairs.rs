//! What tracing costs a program, by the program's own clock.
//!
//! The traced program is bench/programs/pairs.c. In each round, at each stack depth, all variants
//! take turns of a moment ([`turns`]). Figures are medians over the turns of all rounds.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};

use crate::{
    bcc::Bcc,
    options::Options,
    peers,
    processes::Program,
    reports::{self, Case, Outcome},
    results::{DEPTHS, Results, Variant},
    turns::{self, Party},
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
            bench.measure(depth, &mut results)?;
        }
        results.reports.push(bench.big_report()?);
    }
    Ok(results)
}

impl Bench<'_> {
    /// Measures all variants at one depth once; a peer that fails is left out from then on.
    fn measure(&self, depth: u32, results: &mut Results) -> Result<()> {
        let depth_word = depth.to_string();
        let mut parties = Vec::new();
        for variant in Variant::PAIRS.into_iter().chain(Variant::STARTERS) {
            if results.is_missing(variant) {
                continue;
            }
            match self.party(variant, &["loop", &depth_word]) {
                Ok(party) => parties.push(party),
                Err(error) if variant.is_peer() => results.leave_out(variant, &error),
                Err(error) => return Err(error),
            }
        }
        let mut failed = Vec::new();
        let seconds = Duration::from_secs(self.options.seconds.into());
        turns::take(
            &mut parties,
            seconds,
            |variant, pace| results.add(variant, depth, pace),
            |variant, error| failed.push((variant, error)),
        );
        for (variant, error) in failed {
            if !variant.is_peer() {
                return Err(error);
            }
            results.leave_out(variant, &error);
        }
        for party in parties {
            let variant = party.variant;
            results.tell(variant, depth);
            let said = party.end()?;
            if variant == Variant::Memleak {
                results.once.push(turns::once(&said)?);
            }
        }
        Ok(())
    }

    /// Starts what is measured.
    fn party(&self, variant: Variant, arguments: &[&str]) -> Result<Party> {
        match variant {
            Variant::Heaptrack | Variant::Memcheck | Variant::Dhat => {
                Party::untraced(variant, peers::start(variant, &self.pairs, arguments)?)
            }
            Variant::Untraced => Party::untraced(variant, self.pairs.start(arguments)?),
            Variant::Bcc => {
                let bcc = self.bcc.as_ref().context("bcc's memleak was not found")?;
                Party::under_bcc(self.pairs.start(arguments)?, bcc)
            }
            _ => Party::under_memleak(variant, self.pairs.start(arguments)?, &self.memleak),
        }
    }

    /// Reports over many outstanding allocations.
    fn big_report(&self) -> Result<Outcome> {
        let blocks = self.options.allocations;
        let case = Case { name: "idle target", mode: "hold", blocks, interval: 1, reports: 3 };
        reports::measure(&self.pairs, &self.memleak, &case)
    }
}
