//! What a run waits for: signals, descriptors, the clock, the end of the command.

use std::{
    io,
    process::{Child, ExitStatus},
    time::{Duration, Instant, SystemTime},
};

use log::warn;
use memleak_common::{
    event::{Event, kind},
    probe::Resource,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Interval, MissedTickBehavior, interval_at},
};

use super::SessionError;
use crate::{
    hurry,
    probe::resource::Catalog,
    proc::{clock::monotonic_ns, readable::readable, status::thread_comm},
    report::trace::{EventKind, EventLine},
    target::process::PidFd,
};

/// Waits for the command. One that has ended by itself passes its status on; one that outlives the
/// last report is asked to end, unless a second signal says not to wait for it.
pub(super) async fn end_command(
    mut child: Child,
    signals: &mut Signals,
) -> Result<Option<ExitStatus>, SessionError> {
    let system = |error| SessionError::System("cannot wait for the command", error);
    // SignalEnds by itself: nothing was sent to it yet.
    if let Some(status) = child.try_wait().map_err(system)? {
        return Ok(Some(status));
    }
    let end = PidFd::open(child.id()).map_err(system)?;
    // SAFETY: kill(2) takes two integers; the child was not waited for, so the number is still its
    // own.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
    let end = readable(end).map_err(system)?;
    tokio::select! {
        _ = end.readable() => { child.wait().map_err(system)?; }
        () = signals.any() => warn!("the command (process {}) is still running", child.id()),
    }
    Ok(None)
}

/// Why the last report is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// COUNT reports were made: the one that was due is the last.
    Count,
    /// A signal.
    Signal,
    /// The time of `--duration` is over.
    Duration,
    /// No traced process is left.
    TargetsEnded,
    /// Nobody reads the reports.
    ReaderGone,
}

/// What a signal ends.
pub(super) enum SignalEnds {
    /// The run.
    Us,
    /// What is shown: the terminal has gone, and the run goes on.
    Terminal,
}

/// SIGINT and SIGTERM; and SIGHUP, if we outlive our terminal.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

impl Signals {
    /// `outlives_terminal`: a terminal that goes ends what is shown there, and not us.
    pub(super) fn listen(outlives_terminal: bool) -> io::Result<Self> {
        hurry::listen()?;
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: outlives_terminal.then(|| signal(SignalKind::hangup())).transpose()?,
        })
    }

    /// The next one, which ends us or the terminal.
    pub(super) async fn next(&mut self) -> SignalEnds {
        let Self { interrupt, terminate, hangup } = self;
        let hung_up = async {
            match hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => SignalEnds::Us,
            _ = terminate.recv() => SignalEnds::Us,
            _ = hung_up => SignalEnds::Terminal,
        }
    }

    pub(super) async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

pub(super) fn ticks(period: Duration) -> Interval {
    let mut ticks = interval_at(tokio::time::Instant::now() + period, period);
    // A report that takes longer than the interval is followed by one pause, not by a burst.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Waits until a moment; for ever if there is none.
pub(super) async fn moment(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

pub(super) fn event_line(event: &Event, pid: u32, catalog: &Catalog) -> Option<EventLine> {
    let age = Duration::from_nanos(monotonic_ns().saturating_sub(event.time_ns));
    let resource = Resource::from_u32(event.resource)?;
    Some(EventLine {
        time: SystemTime::now().checked_sub(age)?,
        kind: if event.kind == kind::ACQUIRE { EventKind::Acquire } else { EventKind::Release },
        pid,
        tid: event.tid,
        resource: catalog.get(resource),
        address: event.handle,
        size: event.size,
        tag: None,
        // In user mode the process is what was asked for; in the kernel it may be any.
        comm: is_kernels(resource).then(|| thread_comm(event.tid)).flatten(),
    })
}

/// It is the kernel that acquires it.
pub(super) fn is_kernels(resource: Resource) -> bool {
    matches!(resource, Resource::Slab | Resource::Pages | Resource::Vmalloc | Resource::Percpu)
}

pub(super) fn millis(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1000.0)
}
