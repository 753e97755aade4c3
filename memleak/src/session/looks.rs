//! Looks at what is outstanding between reports that are far apart: verdicts are made of how it
//! changes, and a single report after a minute is to have them, too.

use std::time::{Duration, Instant};

use log::debug;

use super::{
    SessionError,
    state::{Mode, Session},
};
use crate::report::sink::Delivery;

/// Parts of the time from one report to the next, at whose ends is looked.
const PARTS: u32 = 6;
/// The least that such a part lasts.
const SHORTEST: Duration = Duration::from_secs(5);
/// A look takes at most this part of the time until the next, or there is none.
const COST: u32 = 50;

impl Session {
    /// Sets the time of the next look, after a report or a look that took so long.
    pub(super) fn plan_look(&mut self, took: Duration) {
        let after = (self.settings.interval / PARTS).max(SHORTEST);
        let is_cheap = took.saturating_mul(COST) <= after;
        let is_user = matches!(self.mode, Mode::User(_));
        let is_due = is_user && is_cheap && after < self.settings.interval;
        self.due.look = is_due.then(|| Instant::now().checked_add(after)).flatten();
    }

    /// Remembers what each stack holds.
    pub(super) fn look(&mut self) -> Result<Delivery, SessionError> {
        let begin = Instant::now();
        let delivery = self.take_events_before_report()?;
        let (snapshot, own, _) = self.read_tables(false)?;
        self.forget_released();
        let living: Vec<u32> = self.targets.living().map(|(target, _)| target).collect();
        for target in living {
            self.observe(target);
        }
        self.reporter.look(&self.settings, &self.targets, &snapshot);
        self.keep(snapshot, own);
        let took = begin.elapsed();
        debug!("looked at what is outstanding in {took:?}");
        self.plan_look(took);
        Ok(delivery)
    }
}
