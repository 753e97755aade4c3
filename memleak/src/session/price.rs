//! What tracing costs the targets: counts of traps, and what one costs.

use std::time::{Duration, Instant};

use crate::bpf::{ProgramRuns, RunStatistics};

/// How long is counted.
pub(crate) const COUNTING: Duration = Duration::from_millis(200);

/// From a share of one CPU like this on the price is said when tracing begins.
pub(super) const DEAR: f64 = 0.25;

/// A trap, on machines as they are (BENCHMARKS.md: 1.3 us for three): for a run that has no time to
/// measure it.
pub(super) const USUAL_TRAP: Duration = Duration::from_nanos(430);

/// How often our programs have run so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TrapCounts {
    pub(super) acquires: u64,
    pub(super) releases: u64,
    pub(super) all: u64,
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
        }
    }

    pub(super) fn since(self, before: Self) -> Self {
        Self {
            acquires: self.acquires.saturating_sub(before.acquires),
            releases: self.releases.saturating_sub(before.releases),
            all: self.all.saturating_sub(before.all),
        }
    }
}

/// What the kernel counts of a run's first moments.
pub(super) struct PriceCheck {
    pub(super) _statistics: RunStatistics,
    pub(super) began: Instant,
}
