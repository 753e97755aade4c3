//! What tracing costs a process that reads and writes all the time, told by its own work: a server
//! that is slower for its traps answers less, but takes as many reads and writes for each answer.

use super::price::{Counted, TrapCost};

/// A process's work without traps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    /// CPU seconds for each of its reads and writes.
    of_operation: f64,
    /// Reads and writes a second.
    pub pace: f64,
}

impl Work {
    /// From what was counted of a process without traps and with them at all functions. `None` if
    /// it reads and writes too seldom, or not as often for each of its calls.
    pub(super) fn of(untraced: &[Counted], traced: &[Counted]) -> Option<Self> {
        /// In each of the times.
        const FEWEST: u64 = 200;
        /// The calls for a read or write are at most so many times more or less, most times.
        const STEADY: f64 = 1.3;
        if untraced.iter().chain(traced).any(|counted| counted.operations < FEWEST) {
            return None;
        }
        let of_one = |counted: &Counted| counted.runs.all as f64 / counted.operations as f64;
        let calls = middle(traced.iter().map(of_one));
        // What is counted of both are not the same moments, if others keep us from it.
        let is_as_most = |counted: &&Counted| {
            let calls_of_one = of_one(counted);
            calls_of_one <= calls * STEADY && calls <= calls_of_one * STEADY
        };
        let is_steady = traced.iter().filter(is_as_most).count() * 2 > traced.len();
        is_steady.then(|| Self {
            of_operation: middle(untraced.iter().map(|counted| counted.of_operation)),
            pace: middle(untraced.iter().map(|counted| counted.a_second(counted.operations))),
        })
    }

    /// CPUs that it keeps busy.
    pub(super) fn cpus(&self) -> f64 {
        self.of_operation * self.pace
    }

    /// CPUs that a way to trace the process takes of it, for the same work as untraced: `ways` is
    /// what was counted in that way, each time.
    pub(super) fn price(&self, ways: &[Counted], trap: &TrapCost) -> f64 {
        middle(ways.iter().map(|way| self.price_of_operation(way, trap))) * self.pace
    }

    fn price_of_operation(&self, way: &Counted, trap: &TrapCost) -> f64 {
        /// Below such a share of its own work a difference says more of other things than of us.
        const SMALL: f64 = 0.1;
        /// A trap in a process whose caches are cold takes no more times what it takes in a loop.
        const COLDEST: f64 = 4.0;
        let operations = way.operations.max(1) as f64;
        let known = way.runs.cost(trap) / operations;
        if known < SMALL * self.of_operation {
            return known;
        }
        let counting = way.runs.all as f64 * trap.counting.as_secs_f64() / operations;
        let more = way.of_operation - counting - self.of_operation;
        more.clamp(known / 2.0, known * COLDEST)
    }
}

/// The value in the middle; 0 of none.
pub(super) fn middle(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::session::price::TrapCounts;

    const TRAP: TrapCost = TrapCost {
        alone: Duration::from_nanos(500),
        counting: Duration::from_nanos(50),
        empty: Duration::ZERO,
        of_release: Duration::from_nanos(500),
        pair: Duration::from_nanos(20),
    };

    /// Over a second.
    fn counted(operations: u64, traps: u64, in_programs_ns: u64, cpus: f64) -> Counted {
        let in_programs = Duration::from_nanos(traps * in_programs_ns);
        let runs = TrapCounts { all: traps, in_programs, ..TrapCounts::default() };
        let of_operation = cpus / operations.max(1) as f64;
        Counted { runs, took: Duration::from_secs(1), cpus, operations, of_operation }
    }

    fn near(value: f64, expected: f64) {
        assert!((value / expected - 1.0).abs() < 1e-9, "{value}, not {expected}");
    }

    /// 5 us for each operation, 0.25 CPUs.
    fn work() -> Work {
        let untraced = [counted(50_000, 0, 0, 0.25), counted(80_000, 0, 0, 0.9), counted(50_000, 0, 0, 0.2)];
        Work::of(&untraced, &[counted(40_000, 400_000, 0, 0.5), counted(20_000, 220_000, 0, 0.3)])
            .expect("steady")
    }

    #[test]
    fn the_price_is_the_cpu_time_that_each_operation_takes_more() {
        near(work().pace, 50_000.0);
        // 16 us more than 5 us, of which 10 traps' counting is 0.5 us.
        near(work().price(&[counted(20_000, 200_000, 400, 0.42)], &TRAP), 15.5e-6 * 50_000.0);
        let disturbed = [(0.42), (0.9), (0.1)].map(|cpus| counted(20_000, 200_000, 400, cpus));
        near(work().price(&disturbed, &TRAP), 15.5e-6 * 50_000.0);
    }

    #[test]
    fn what_cannot_be_is_bounded_by_what_a_trap_takes() {
        near(work().price(&[counted(20_000, 200_000, 500, 0.01)], &TRAP), 5e-6 * 50_000.0);
        near(work().price(&[counted(20_000, 200_000, 500, 2.0)], &TRAP), 40e-6 * 50_000.0);
    }

    #[test]
    fn few_traps_are_told_by_what_each_takes() {
        near(work().price(&[counted(50_000, 10_000, 500, 0.5)], &TRAP), 0.2e-6 * 50_000.0);
    }

    #[test]
    fn a_process_whose_calls_do_not_follow_its_reads_and_writes_is_not_told_by_them() {
        let untraced = [counted(50_000, 0, 0, 0.25)];
        assert!(Work::of(&untraced, &[counted(40_000, 400_000, 0, 0.5)]).is_some());
        let waits = [counted(40_000, 400_000, 0, 0.5), counted(40_000, 100_000, 0, 0.5)];
        assert!(Work::of(&untraced, &waits).is_none());
        let disturbed = [waits[0], waits[1], counted(40_000, 480_000, 0, 0.5)];
        assert!(Work::of(&untraced, &disturbed).is_some());
        assert!(Work::of(&untraced, &[counted(100, 1000, 0, 0.5)]).is_none());
        assert!(Work::of(&[counted(0, 0, 0, 0.25)], &[counted(40_000, 400_000, 0, 0.5)]).is_none());
    }
}
