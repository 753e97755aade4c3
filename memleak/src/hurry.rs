//! A signal has asked us to end: work on files that takes long is given up then, so that the last
//! report comes soon.
//!
//! All such work counts bytes or steps (`elf::Budget`, `unwind::eh_frame`, `symbolize::reader`),
//! and asks here at times. What is counted after the signal is our CPU time, not time by the
//! clock: a loaded machine loses no names. What else is done by then does not count
//! ([`without_counting`]).

use std::{
    io, mem,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

/// CPU time that work on files may take after the signal, nanoseconds. All names that a report of
/// rustc needs take 0.35 s. A build without optimization needs ten times as long.
const PATIENCE: u64 = if cfg!(debug_assertions) { 7_000_000_000 } else { 450_000_000 };

static ALLOWANCE: Allowance = Allowance { asked: AtomicU64::new(0), granted: AtomicU64::new(0) };

/// How much CPU time is left for work on files.
struct Allowance {
    /// Our CPU time when the signal came, plus one; 0: none came.
    asked: AtomicU64,
    /// CPU time that other work has taken since, nanoseconds.
    granted: AtomicU64,
}

impl Allowance {
    /// A signal has come.
    fn ask(&self, now: u64) {
        // The first one counts.
        let _ = self.asked.compare_exchange(0, now + 1, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Other work began and ended at these times: what of it came after the signal does not count.
    fn grant(&self, began: u64, ended: u64) {
        if let Some(asked) = self.asked.load(Ordering::Relaxed).checked_sub(1) {
            self.granted.fetch_add(ended.saturating_sub(began.max(asked)), Ordering::Relaxed);
        }
    }

    fn is_over(&self, now: u64) -> bool {
        let asked = self.asked.load(Ordering::Relaxed).checked_sub(1);
        asked.is_some_and(|asked| now > asked + PATIENCE + self.granted.load(Ordering::Relaxed))
    }
}

/// CPU time since the signal, of work on files and of other work.
pub(crate) fn since_signal() -> Option<(Duration, Duration)> {
    let asked = ALLOWANCE.asked.load(Ordering::Relaxed).checked_sub(1)?;
    let granted = ALLOWANCE.granted.load(Ordering::Relaxed);
    let counted = cpu_time().saturating_sub(asked + granted);
    Some((Duration::from_nanos(counted), Duration::from_nanos(granted)))
}

/// Does work that takes the time that it takes, after a signal as well: its CPU time does not
/// count.
pub(crate) fn without_counting<T>(work: impl FnOnce() -> T) -> T {
    let began = cpu_time();
    let result = work();
    ALLOWANCE.grant(began, cpu_time());
    result
}

/// Notes when SIGINT or SIGTERM comes, beside whatever else handles it.
pub(crate) fn listen() -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the action reads a clock and stores a number, which a signal's handler may do
        // (signal-safety(7)).
        unsafe { signal_hook_registry::register(signal, || ALLOWANCE.ask(cpu_time()))? };
    }
    Ok(())
}

/// Whether work on files is to be given up.
#[inline]
pub(crate) fn is_due() -> bool {
    ALLOWANCE.asked.load(Ordering::Relaxed) != 0 && is_over()
}

#[cold]
fn is_over() -> bool {
    static TOLD: AtomicBool = AtomicBool::new(false);
    let is_over = ALLOWANCE.is_over(cpu_time());
    if is_over && !TOLD.swap(true, Ordering::Relaxed) {
        log::warn!("asked to end: functions whose names were not read yet are shown without names");
    }
    is_over
}

/// CPU time of this process, nanoseconds.
fn cpu_time() -> u64 {
    // SAFETY: timespec is plain integers, for which all bits zero is a value.
    let mut time: libc::timespec = unsafe { mem::zeroed() };
    // SAFETY: `time` is valid for the call.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_work_on_files_after_the_signal_counts() {
        let allowance = Allowance { asked: AtomicU64::new(0), granted: AtomicU64::new(0) };
        allowance.grant(0, 10 * PATIENCE); // before a signal nothing is counted
        assert!(!allowance.is_over(100 * PATIENCE));
        let asked = 100 * PATIENCE;
        allowance.ask(asked);
        allowance.ask(asked + 5); // the first one counts
        assert!(!allowance.is_over(asked + PATIENCE));
        assert!(allowance.is_over(asked + PATIENCE + 1));
        // The signal came amid this work.
        allowance.grant(asked - 7, asked + 3 * PATIENCE);
        assert!(!allowance.is_over(asked + 4 * PATIENCE));
        assert!(allowance.is_over(asked + 4 * PATIENCE + 1));
        allowance.grant(asked + 4 * PATIENCE, asked + 5 * PATIENCE);
        assert!(!allowance.is_over(asked + 5 * PATIENCE));
        assert!(allowance.is_over(asked + 5 * PATIENCE + 1));
    }
}
