//! The price of tracing: calls that are counted, by what each costs on this machine.

use std::time::Duration;

use serde::Serialize;

use super::child::Pairs;
use crate::{
    proc::status::thread_comm,
    session::{Rates, SessionError, count, traced},
};

/// What tracing costs on this machine, of one trap.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Costs {
    /// The trap alone.
    pub trap: Duration,
    /// With what our programs do.
    pub full: Duration,
}

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
        let known = costs.as_ref().copied().unwrap_or_default();
        let rates = match &costs {
            Ok(costs) => count(*pid, costs.trap).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.clone()),
        };
        prices.push(Price::of(*pid, rates, known));
    }
    Prices { costs: Some(costs), prices }
}

/// One allocation in so many, as an offer.
const SAMPLED: f64 = 100.0;

impl Price {
    fn of(pid: u32, rates: Result<Rates, String>, costs: Costs) -> Self {
        let (rates, error) = match rates {
            Ok(rates) => (rates, None),
            Err(error) => (Rates::default(), Some(error)),
        };
        let of = |each: f64| rates.traps * each;
        let (trap, full) = (costs.trap.as_secs_f64(), costs.full.as_secs_f64());
        // What is not captured ends in the program at once.
        let offers = vec![
            Offer { options: String::new(), cpus: of(full) },
            Offer { options: format!("-s {SAMPLED}"), cpus: of(trap + (full - trap).max(0.0) / SAMPLED) },
        ];
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
    let untraced = shortest(&mut pairs);
    let mut each = [Duration::ZERO; 2];
    for (cost, traps_only) in each.iter_mut().zip([true, false]) {
        let (with, traps) = traced(pid, traps_only, || shortest(&mut pairs)).await?;
        let traps_of_pair = traps as f64 / f64::from(PAIRS * ROUNDS as u32);
        if let (Some(with), Some(without)) = (with, untraced)
            && traps_of_pair >= 1.0
        {
            *cost = with.saturating_sub(without).div_f64(traps_of_pair);
        }
    }
    let [trap, full] = each;
    match full.is_zero() {
        true => Err(SessionError::System(
            "cannot measure what a trap costs",
            std::io::Error::other("this program's own calls of malloc are not seen"),
        )),
        false => Ok(Costs { trap, full: full.max(trap) }),
    }
}
