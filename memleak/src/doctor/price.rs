//! The price of tracing: calls that are counted, by what each costs on this machine.

use std::time::Duration;

use serde::Serialize;

use super::child::Pairs;
use crate::{
    proc::status::thread_comm,
    session::{Rates, SessionError, TRAPS_ONLY, count, traced},
};

/// What tracing costs on this machine.
#[derive(Clone, Debug, Default)]
pub(super) struct Costs {
    /// A trap alone.
    pub trap: Duration,
    /// By options, of a pair of malloc and free.
    offers: Vec<(&'static [&'static str], Duration)>,
    /// Traps that such a pair is.
    traps_of_pair: f64,
}

impl Costs {
    /// A trap, with what is done in it in full.
    pub(super) fn full(&self) -> Duration {
        let full = self.offers.first().map_or(Duration::ZERO, |(_, pair)| *pair);
        full.div_f64(self.traps_of_pair.max(1.0))
    }
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
    let costs = measure().await;
    let mut prices = Vec::new();
    for pid in pids {
        let known = costs.clone().unwrap_or_default();
        let rates = match &costs {
            Ok(costs) => count(*pid, costs.trap).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.clone()),
        };
        prices.push(Price::of(*pid, rates, &known));
    }
    Prices { costs: Some(costs), prices }
}

impl Price {
    fn of(pid: u32, rates: Result<Rates, String>, costs: &Costs) -> Self {
        let (rates, error) = match rates {
            Ok(rates) => (rates, None),
            Err(error) => (Rates::default(), Some(error)),
        };
        // What a process does is made of pairs, as far as its traps tell.
        let pairs = rates.traps / costs.traps_of_pair.max(1.0);
        let offer = |(options, pair): &(&[&str], Duration)| Offer {
            options: options.join(" "),
            cpus: pairs * pair.as_secs_f64(),
        };
        let offers: Vec<Offer> = costs.offers.iter().map(offer).collect();
        Self {
            pid,
            comm: thread_comm(pid).unwrap_or_default(),
            allocators: rates.allocators,
            acquired_per_second: rates.acquired as u64,
            released_per_second: rates.released as u64,
            traps_per_second: rates.traps as u64,
            cpus: rates.cpus,
            offers: if error.is_none() { offers } else { Vec::new() },
            error,
        }
    }
}

/// Pairs that are made at once, and how often: what is disturbed takes longer, so that the shortest
/// time counts.
const PAIRS: u32 = 20_000;
const ROUNDS: usize = 5;

async fn measure() -> Result<Costs, String> {
    measured().await.map_err(|error| error.to_string())
}

async fn measured() -> Result<Costs, SessionError> {
    let system = |error| SessionError::System("cannot start this program again", error);
    let mut pairs = Pairs::start().map_err(system)?;
    let pid = pairs.pid();
    let shortest = |pairs: &mut Pairs| (0..ROUNDS).filter_map(|_| pairs.time(PAIRS)).min();
    let untraced = shortest(&mut pairs).unwrap_or_default();
    let (with, traps) = traced(pid, &[TRAPS_ONLY], || shortest(&mut pairs)).await?;
    let traps_of_pair = traps as f64 / f64::from(PAIRS * ROUNDS as u32);
    if traps_of_pair < 1.0 {
        return Err(SessionError::System(
            "cannot measure what a trap costs",
            std::io::Error::other("this program's own calls of malloc are not seen"),
        ));
    }
    let trap = with.unwrap_or_default().saturating_sub(untraced).div_f64(traps_of_pair);
    let mut offers = Vec::new();
    for options in WAYS {
        // A way that this kernel does not have is none.
        if let Ok((Some(with), _)) = traced(pid, options, || shortest(&mut pairs)).await {
            offers.push((options, with.saturating_sub(untraced)));
        }
    }
    Ok(Costs { trap, offers, traps_of_pair })
}
