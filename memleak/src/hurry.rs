//! A signal has asked us to end: work on files that takes long is given up then, so that the last
//! report comes soon.
//!
//! All such work counts bytes or steps (`elf::Budget`, `unwind::eh_frame`, `symbolize::reader`),
//! and asks here at times. What is counted after the signal is our CPU time, not time by the
//! clock: a loaded machine loses no names.

use std::{
    io, mem,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

/// CPU time that work on files may take after the signal, nanoseconds. All names that a report of
/// rustc needs take 0.35 s. A build without optimization needs ten times as long.
const PATIENCE: u64 = if cfg!(debug_assertions) { 7_000_000_000 } else { 450_000_000 };

/// Our CPU time when the signal came, plus one; 0: none came.
static ASKED: AtomicU64 = AtomicU64::new(0);

/// CPU time that other work has taken since, nanoseconds.
static GRANTED: AtomicU64 = AtomicU64::new(0);

/// Does work that was asked for, after a signal as well: its CPU time does not count.
pub(crate) fn without_counting<T>(work: impl FnOnce() -> T) -> T {
    let before = cpu_time();
    let result = work();
    GRANTED.fetch_add(cpu_time().saturating_sub(before), Ordering::Relaxed);
    result
}

/// Notes when SIGINT or SIGTERM comes, beside whatever else handles it.
pub(crate) fn listen() -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the action reads a clock and stores a number, which a signal's handler may do
        // (signal-safety(7)).
        unsafe { signal_hook_registry::register(signal, ask)? };
    }
    Ok(())
}

fn ask() {
    // The first one counts.
    let _ = ASKED.compare_exchange(0, cpu_time() + 1, Ordering::Relaxed, Ordering::Relaxed);
}

/// Whether work on files is to be given up.
#[inline]
pub(crate) fn is_due() -> bool {
    let asked = ASKED.load(Ordering::Relaxed);
    asked != 0 && is_over(asked)
}

#[cold]
fn is_over(asked: u64) -> bool {
    static TOLD: AtomicBool = AtomicBool::new(false);
    let is_over = cpu_time() > asked + PATIENCE + GRANTED.load(Ordering::Relaxed);
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
