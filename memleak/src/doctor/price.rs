//! The price of tracing: calls that are counted, by what each costs on this machine.

use std::time::Duration;

use serde::Serialize;

use super::child::Pairs;
use crate::{
    proc::status::thread_comm,
    session::{RELEASES_ONLY, Rates, SessionError, TRAPS_ONLY, TrapCost, count, traced},
};

/// What tracing costs on this machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Costs {
    /// A trap, whatever is done in it.
    pub trap: TrapCost,
    /// With what is done in it in full, in a program of one stack.
    pub full: Duration,
}

/// Ways to trace a process, in full first.
const WAYS: [&[&str]; 4] = [&[], &["-s", "100"], &["--sample-bytes", "512K"], &["--growth"]];

/// What tracing of a process would cost.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Price {
    pub pid: u32,
    pub comm: String,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub allocators: Vec<String>,
    pub acquired_per_second: u64,
    pub released_per_second: u64,
    pub traps_per_second: u64,
    /// CPUs that the process keeps busy untraced.
    pub cpus: f64,
    pub offers: Vec<Offer>,
}

/// A way to trace it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Offer {
    /// Options, or none.
    pub options: String,
    /// CPUs that it takes, of the process's own.
    pub cpus: f64,
}

/// What was measured, and the prices of these processes.
#[derive(Debug, Default)]
pub(super) struct Prices {
    pub costs: Option<Result<Costs, String>>,
    pub prices: Vec<Price>,
}

/// Measures what a trap costs, and counts.
pub(super) async fn of_all(pids: &[u32]) -> Prices {
    if pids.is_empty() {
        return Prices::default();
    }
    let costs = measured().map_err(|error| error.to_string());
    let mut prices = Vec::new();
    for pid in pids {
        let rates = match &costs {
            Ok(costs) => count(*pid, &costs.trap, &WAYS).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.clone()),
        };
        prices.push(Price::of(*pid, rates));
    }
    Prices { costs: Some(costs), prices }
}

impl Price {
    fn of(pid: u32, rates: Result<Rates, String>) -> Self {
        let (rates, error) = match rates {
            Ok(rates) => (rates, None),
            Err(error) => (Rates::default(), Some(error)),
        };
        let offers = WAYS.iter().zip(&rates.prices).filter_map(|(options, cpus)| {
            // A way that this kernel does not have is none.
            Some(Offer { options: options.join(" "), cpus: (*cpus)? })
        });
        Self {
            pid,
            comm: thread_comm(pid).unwrap_or_default(),
            offers: offers.collect(),
            allocators: rates.allocators,
            acquired_per_second: rates.acquired as u64,
            released_per_second: rates.released as u64,
            traps_per_second: rates.traps as u64,
            cpus: rates.cpus,
            error,
        }
    }
}

/// Pairs that are made at once, and how often: what is disturbed takes longer, so that the shortest
/// time counts.
const PAIRS: u32 = 20_000;
const ROUNDS: usize = 5;

fn measured() -> Result<Costs, SessionError> {
    let system = |error| SessionError::System("cannot start this program again", error);
    let mut pairs = Pairs::start().map_err(system)?;
    let pid = pairs.pid();
    let shortest =
        |pairs: &mut Pairs| (0..ROUNDS).filter_map(|_| pairs.time(PAIRS)).min().unwrap_or_default();
    let pair = shortest(&mut pairs);
    let ([alone, counting], runs) = traced(pid, TRAPS_ONLY, || shortest(&mut pairs))?;
    let traps = runs.all as f64 / f64::from(PAIRS * ROUNDS as u32);
    if traps < 1.0 {
        return Err(SessionError::System(
            "cannot measure what a trap costs",
            std::io::Error::other("this program's own calls of malloc are not seen"),
        ));
    }
    let ([_, releases], _) = traced(pid, RELEASES_ONLY, || shortest(&mut pairs))?;
    let ([full, _], _) = traced(pid, WAYS[0], || shortest(&mut pairs))?;
    let of_trap = |with: Duration, without: Duration| with.saturating_sub(without).div_f64(traps);
    let trap = TrapCost {
        alone: of_trap(alone, pair),
        counting: of_trap(counting, alone),
        empty: runs.in_programs.div_f64(runs.all as f64),
        of_release: releases.saturating_sub(pair),
        pair,
    };
    Ok(Costs { trap, full: of_trap(full, pair) })
}
