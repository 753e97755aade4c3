//! `cargo xtask bench --stress`: the table of heap blocks under threads that preempt each other,
//! for minutes. Every report, one a second, has to lie within what the program says of the moment
//! at which it was made; the last one has to be equal to it.
//!
//! The program is bench/programs/stress.c, which keeps a diary of its own.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    busy_cpu::cpus,
    memory::tracer,
    options::Options,
    processes::{ATTACHED, Program, Target, Tracer, memleak_command, now},
};

/// Threads of the program: more than most machines that this runs on have CPUs.
const THREADS: &str = "8";
/// For the first report, and the last.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is held at a moment, as the program says: at least and at most.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Bounds {
    count: [u64; 2],
    bytes: [u64; 2],
}

/// What a report says of a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Held {
    from_ns: u64,
    to_ns: u64,
    count: u64,
    bytes: u64,
}

/// How far it is.
#[derive(Default)]
struct Progress {
    began: Option<Duration>,
    checkpoints: u64,
    /// Blocks held, at the least and at the most of all reports.
    held: Option<[u64; 2]>,
    /// Most calls that were in progress at a moment.
    in_progress: u64,
    /// When the threads had ended (CLOCK_MONOTONIC), and how many calls they had made.
    stopped: Option<(Duration, u64)>,
    /// The last report was equal to what is held.
    is_equal: bool,
}

/// Runs it; says what came of it.
pub(crate) fn run(options: &Options, memleak: &Path) -> Result<()> {
    let program = Program::compile("stress.c", &["-pthread"])?;
    let mut target = program.start(&[THREADS])?;
    target.expect("ready")?;
    let length = Duration::from_secs_f64(options.minutes * 60.0);
    let mut command = memleak_command(memleak)?;
    command.args(["--json", "-o", "0", "-T", "1", "-p", &target.pid().to_string(), "1"]);
    eprintln!("{THREADS} threads on {} CPUs for {} minutes", cpus()?, options.minutes);
    let mut progress = Progress::default();
    Tracer { command, mark: ATTACHED }.run_watched(length + PATIENCE, |pid, line| {
        if line.starts_with(ATTACHED) {
            progress.began = Some(now());
            return target.go();
        }
        if !line.starts_with('{') || progress.is_equal {
            return Ok(());
        }
        progress.look_at(&mut target, &serde_json::from_str(line)?, length)?;
        if progress.is_equal {
            // SAFETY: no memory is concerned.
            ensure!(unsafe { libc::kill(tracer(pid)? as libc::pid_t, libc::SIGINT) } == 0, "cannot end it");
        }
        Ok(())
    })?;
    ensure!(progress.is_equal, "there was no report after the threads had ended");
    let [least, most] = progress.held.context("no report while the threads were at it")?;
    println!(
        "{} calls; {} reports were right at their moments, with {least} to {most} blocks held and at most {} calls in \
         progress; the last was equal to what is held",
        progress.stopped.map_or(0, |(_, calls)| calls),
        progress.checkpoints,
        progress.in_progress
    );
    Ok(())
}

impl Progress {
    /// Compares a report with what the program says; when it is time, has the threads end.
    fn look_at(&mut self, target: &mut Target, report: &Value, length: Duration) -> Result<()> {
        let held = Held::of(report)?;
        if held.count == 0 && self.checkpoints == 0 {
            // Made before the threads began.
            return Ok(());
        }
        let bounds = Bounds::asked(target, held)?;
        bounds.check(held)?;
        if let Some((stopped, _)) = self.stopped {
            if Duration::from_nanos(held.from_ns) > stopped {
                let is_exact = bounds.count[0] == bounds.count[1] && bounds.bytes[0] == bounds.bytes[1];
                ensure!(is_exact, "the threads have ended, and it is not known what is held: {bounds:?}");
                self.is_equal = true;
            }
            return Ok(());
        }
        self.checkpoints += 1;
        self.in_progress = self.in_progress.max(bounds.count[1] - bounds.count[0]);
        let [least, most] = self.held.unwrap_or([held.count; 2]);
        self.held = Some([least.min(held.count), most.max(held.count)]);
        if self.checkpoints.is_multiple_of(10) {
            eprintln!("  {} reports, {} blocks held", self.checkpoints, held.count);
        }
        if self.began.is_some_and(|began| now() > began + length) {
            target.tell("stop")?;
            let said = target.next_line()?;
            let calls = said.strip_prefix("DONE ").and_then(|calls| calls.parse().ok());
            self.stopped = Some((now(), calls.with_context(|| format!("the program says: {said}"))?));
        }
        Ok(())
    }
}

impl Held {
    /// Of a report that has lost nothing.
    fn of(report: &Value) -> Result<Self> {
        let lost = report["lost"].as_object().context("a report without `lost`")?;
        ensure!(lost.values().all(|lost| lost == 0), "lost: {lost:?}");
        let number = |value: &Value, name: &str| {
            value[name].as_u64().with_context(|| format!("a report without `{name}`"))
        };
        let (from_ns, totals) = (number(report, "cut_ns")?, &report["totals"]);
        Ok(Self {
            from_ns,
            to_ns: from_ns + number(report, "cut_within_ns")?,
            count: number(totals, "count")?,
            bytes: number(totals, "bytes")?,
        })
    }
}

impl Bounds {
    /// What the program says of a report's moment.
    fn asked(target: &mut Target, held: Held) -> Result<Self> {
        target.tell(&format!("{} {}", held.from_ns, held.to_ns))?;
        Self::parse(&target.next_line()?)
    }

    fn parse(line: &str) -> Result<Self> {
        let numbers: Result<Vec<u64>, _> = line.split(' ').map(str::parse).collect();
        match numbers.as_deref() {
            Ok(&[least, most, least_bytes, most_bytes]) => {
                Ok(Self { count: [least, most], bytes: [least_bytes, most_bytes] })
            }
            _ => anyhow::bail!("the program says: {line}"),
        }
    }

    fn check(self, held: Held) -> Result<()> {
        let is_within = |[least, most]: [u64; 2], value| (least..=most).contains(&value);
        ensure!(
            is_within(self.count, held.count) && is_within(self.bytes, held.bytes),
            "the report is wrong at its moment: {held:?}, and the program held {self:?}"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_that_is_off_by_one_fails() -> Result<()> {
        let report = serde_json::json!({
            "cut_ns": 100, "cut_within_ns": 7, "totals": {"count": 5, "bytes": 80}, "lost": {"allocations": 0}
        });
        let held = Held::of(&report)?;
        assert_eq!(held, Held { from_ns: 100, to_ns: 107, count: 5, bytes: 80 });
        Bounds::parse("5 6 70 80")?.check(held)?;
        for wrong in ["6 7 70 80", "3 4 70 80", "5 5 81 90", "5 5 70 79"] {
            assert!(Bounds::parse(wrong)?.check(held).is_err(), "{wrong}");
        }
        assert!(Bounds::parse("5 6 70").is_err());
        let mut losing = report;
        losing["lost"]["allocations"] = 1.into();
        assert!(Held::of(&losing).is_err());
        Ok(())
    }
}
