//! What tracing costs the targets: counts of traps and of the time in our programs, and what a trap
//! costs.

use std::time::Duration;

use crate::{
    bpf::{ProgramRuns, RunStatistics},
    proc::cpu_times::CpuTimes,
};

/// How long is counted.
pub(crate) const COUNTING: Duration = Duration::from_millis(200);

/// From a share of one CPU like this on the price is said when tracing begins.
pub(super) const DEAR: f64 = 0.25;

/// What a trap takes, beside what our program does in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TrapCost {
    /// With a program that does nothing.
    pub alone: Duration,
    /// Longer than that while the kernel counts.
    pub counting: Duration,
    /// Time that the kernel counts for a program that does nothing.
    pub empty: Duration,
    /// While the kernel counts, a trap of a release, where there is none at what acquires.
    pub of_release: Duration,
    /// A pair of malloc and free without any.
    pub pair: Duration,
}

impl TrapCost {
    /// On machines as they are (BENCHMARKS.md: 1.3 us for three): for a run that has no time to
    /// measure it.
    pub(super) const USUAL: Self = Self {
        alone: Duration::from_nanos(430),
        counting: Duration::from_nanos(40),
        empty: Duration::from_nanos(40),
        of_release: Duration::from_nanos(470),
        pair: Duration::from_nanos(20),
    };
}

/// How often our programs have run so far, and for how long.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TrapCounts {
    pub acquires: u64,
    pub releases: u64,
    pub all: u64,
    /// In all of our programs, those that are no traps as well.
    pub in_programs: Duration,
}

impl TrapCounts {
    pub(super) fn of(programs: &[ProgramRuns]) -> Self {
        let sum = |is_meant: &dyn Fn(&str) -> bool| -> u64 {
            programs.iter().filter(|program| is_meant(&program.name)).map(|program| program.runs).sum()
        };
        // One program for both ends of calls runs twice for each.
        let sessions = sum(&|name| name.ends_with("_session"));
        let entries = sum(&|name| name.ends_with("_enter") || name.ends_with("_enter_p"));
        let exits = sum(&|name| name.ends_with("_exit") && name != "thread_exit");
        Self {
            acquires: sessions / 2 + exits,
            releases: entries.saturating_sub(exits),
            all: sessions + entries + exits,
            in_programs: programs.iter().map(|program| program.time).sum(),
        }
    }

    pub(super) fn since(self, before: Self) -> Self {
        Self {
            acquires: self.acquires.saturating_sub(before.acquires),
            releases: self.releases.saturating_sub(before.releases),
            all: self.all.saturating_sub(before.all),
            in_programs: self.in_programs.saturating_sub(before.in_programs),
        }
    }

    /// CPU seconds that they have taken of their process, less what counting itself takes.
    pub(super) fn cost(&self, trap: &TrapCost) -> f64 {
        let traps = self.all as f64;
        let in_programs = self.in_programs.as_secs_f64() - traps * trap.empty.as_secs_f64();
        traps * trap.alone.as_secs_f64() + in_programs.max(0.0)
    }
}

/// What was counted of a process for a while.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counted {
    pub runs: TrapCounts,
    pub took: Duration,
    /// CPUs that the process kept busy meanwhile.
    pub cpus: f64,
    /// How often it has read and written meanwhile.
    pub operations: u64,
    /// CPU seconds for each of these, in the middle of several moments.
    pub of_operation: f64,
}

impl Counted {
    pub(super) fn a_second(&self, runs: u64) -> f64 {
        runs as f64 / self.took.as_secs_f64().max(1e-9)
    }

    /// CPU seconds for each release.
    fn of_release(&self) -> f64 {
        self.cpus / self.a_second(self.runs.releases).max(1e-9)
    }

    /// As how many times as many calls the process makes that is not traced, and keeps `untraced`
    /// CPUs busy. A process that is slower for its traps has less of its CPU time for its own work,
    /// and has made as many calls less.
    pub(super) fn faster_untraced(&self, untraced: f64, trap: &TrapCost) -> f64 {
        /// What traps take is known no better than to such a share of it.
        const UNSURE: f64 = 0.25;
        let counting = self.runs.all as f64 * trap.counting.as_secs_f64();
        let in_traps = (self.runs.cost(trap) + counting) / self.took.as_secs_f64().max(1e-9);
        let own = self.cpus - in_traps;
        // One that waits for something beside the CPU keeps its pace, and takes as much longer for
        // it: what is left then is the small difference of two large numbers, and says nothing.
        if own + UNSURE * in_traps >= untraced {
            return 1.0;
        }
        (untraced / own.max(UNSURE / 5.0 * in_traps)).max(1.0)
    }

    /// The same, where traps at releases alone were counted as well: what the others add tells what
    /// a trap takes in this very process, whose caches are colder than those of a loop.
    pub(super) fn faster_than(&self, releases: &Self, untraced: f64, trap: &TrapCost) -> f64 {
        /// Of the pace that it has with the fewest traps.
        const KEPT: f64 = 0.9;
        let pace = |counted: &Self| counted.a_second(counted.runs.releases);
        if !self.has_releases() || pace(releases) == 0.0 {
            return self.faster_untraced(untraced, trap);
        }
        let (slow, fast) = (pace(self), pace(releases));
        if slow >= fast * KEPT || self.faster_untraced(untraced, trap) == 1.0 {
            return 1.0;
        }
        let traps = self.runs.all as f64 / self.runs.releases as f64;
        let in_releases = trap.of_release.as_secs_f64().max(1e-9);
        let as_many = traps * (trap.alone + trap.counting).as_secs_f64() / in_releases;
        let of_trap = (self.of_release() - releases.of_release()) / (as_many - 1.0).max(0.5);
        let own = (releases.of_release() - of_trap).max(trap.pair.as_secs_f64());
        (untraced / own.max(1e-9)).max(fast) / slow
    }

    /// What is counted of calls: releases, or, where next to nothing is released, traps.
    fn units(&self, by_releases: bool) -> f64 {
        if by_releases { self.runs.releases as f64 } else { self.runs.all as f64 }
    }

    fn has_releases(&self) -> bool {
        self.runs.releases > 0 && self.runs.releases * 20 > self.runs.all
    }
}

/// CPUs that a way to trace a process takes of it, for the same work as untraced: `way` was counted
/// in that way, `calls` as fits the process best, which makes `faster` times as many calls
/// untraced.
pub(crate) fn price(way: &Counted, calls: &Counted, faster: f64, trap: &TrapCost) -> f64 {
    let cost = way.runs.cost(trap);
    let by_releases = way.has_releases() && calls.has_releases();
    let (traced, all) = (way.units(by_releases), calls.units(by_releases));
    if traced == 0.0 || all == 0.0 {
        return cost / way.took.as_secs_f64().max(1e-9);
    }
    cost / traced * all / calls.took.as_secs_f64().max(1e-9) * faster
}

/// What the kernel counts of a run's first moments.
pub(super) struct PriceCheck {
    pub(super) _statistics: RunStatistics,
    /// Until then.
    pub(super) runs: TrapCounts,
    pub(super) times: CpuTimes,
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRAP: TrapCost = TrapCost {
        alone: Duration::from_nanos(500),
        counting: Duration::ZERO,
        empty: Duration::ZERO,
        of_release: Duration::from_nanos(500),
        pair: Duration::from_nanos(20),
    };

    /// Over a second: so many pairs, each of three traps with so long in our programs.
    fn pairs(pairs: u64, in_programs_ns: u64, cpus: f64) -> Counted {
        let in_programs = Duration::from_nanos(pairs * in_programs_ns);
        let runs = TrapCounts { acquires: pairs, releases: pairs, all: pairs * 3, in_programs };
        Counted { runs, took: Duration::from_secs(1), cpus, ..Counted::default() }
    }

    fn near(value: f64, expected: f64) {
        assert!((value / expected - 1.0).abs() < 1e-9, "{value}, not {expected}");
    }

    #[test]
    fn what_is_slowed_down_is_faster_untraced() {
        // 400,000 pairs are 0.6 s in traps: 0.3 are left of a CPU that is full.
        near(pairs(400_000, 0, 0.9).faster_untraced(0.9, &TRAP), 3.0);
        // The same where others have the rest of the CPU.
        near(pairs(200_000, 0, 0.45).faster_untraced(0.45, &TRAP), 3.0);
        // Or where it takes more of the CPU than untraced, and is slower all the same.
        near(pairs(200_000, 0, 0.4).faster_untraced(0.2, &TRAP), 2.0);
    }

    #[test]
    fn what_waits_for_others_keeps_its_pace() {
        near(pairs(40_000, 0, 0.07).faster_untraced(0.01, &TRAP), 1.0);
        // A trap that takes longer, or less long, than we know.
        near(pairs(40_000, 0, 0.058).faster_untraced(0.01, &TRAP), 1.0);
        near(pairs(40_000, 0, 0.09).faster_untraced(0.01, &TRAP), 1.0);
    }

    /// Over a second: so many traps at releases alone.
    fn releases(releases: u64, cpus: f64) -> Counted {
        let runs = TrapCounts { releases, all: releases, ..TrapCounts::default() };
        Counted { runs, took: Duration::from_secs(1), cpus, ..Counted::default() }
    }

    #[test]
    fn fewer_traps_tell_what_one_takes() {
        // 1 us of its own for each pair, and traps that take 600 ns each in it.
        let (all, few) = (pairs(100_000, 0, 0.28), releases(125_000, 0.2));
        near(all.faster_than(&few, 0.2, &TRAP), 2.0);
        // Three traps of the child's take no longer than two of a release's would.
        let short = TrapCost { alone: Duration::from_nanos(400), ..TRAP };
        near(pairs(100_000, 0, 0.244).faster_than(&few, 0.2, &short), 2.0);
        // What is left is no less than malloc and free take.
        near(pairs(400_000, 0, 0.72).faster_than(&releases(1_000_000, 0.6), 0.8, &TRAP), 100.0);
        // It keeps its pace; so it does where it had less to do for a moment.
        near(pairs(40_000, 0, 0.07).faster_than(&releases(41_000, 0.03), 0.02, &TRAP), 1.0);
        near(pairs(40_000, 0, 0.07).faster_than(&releases(80_000, 0.04), 0.01, &TRAP), 1.0);
        // Nothing is released.
        let mut none = pairs(400_000, 0, 0.9);
        none.runs.releases = 0;
        near(none.faster_than(&Counted::default(), 0.9, &TRAP), 3.0);
    }

    #[test]
    fn nothing_is_said_of_more_than_can_be_told() {
        near(pairs(600_000, 0, 0.9).faster_untraced(0.9, &TRAP), 20.0);
    }

    #[test]
    fn the_price_is_of_the_calls_that_are_made_untraced() {
        let calls = pairs(200_000, 0, 0.45);
        // Half as many calls while they take longer.
        let full = pairs(100_000, 1500, 0.45);
        near(price(&full, &calls, 3.0, &TRAP), 600_000.0 * 3000e-9);
        // The same without releases.
        let unreleased = |mut counted: Counted| {
            counted.runs.all -= counted.runs.releases;
            counted.runs.releases = 0;
            counted
        };
        near(price(&unreleased(full), &unreleased(calls), 3.0, &TRAP), 600_000.0 * 2500e-9);
        // No traps, but other programs.
        let growth = TrapCounts { in_programs: Duration::from_millis(2), ..TrapCounts::default() };
        near(price(&Counted { runs: growth, ..full }, &calls, 3.0, &TRAP), 0.002);
    }

    #[test]
    fn counting_itself_is_left_out() {
        let trap = TrapCost { counting: Duration::from_nanos(40), empty: Duration::from_nanos(30), ..TRAP };
        let counted = pairs(100_000, 90, 0.45);
        near(price(&counted, &counted, 1.0, &trap), 0.15);
        // 0.162 of 0.212 were in traps.
        near(Counted { cpus: 0.212, ..counted }.faster_untraced(0.2, &trap), 4.0);
    }
}
