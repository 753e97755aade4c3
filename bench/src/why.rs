//! `cargo xtask bench --why`: looking through a large heap: how long it takes, how long the target
//! is stopped, how much it is slowed down, and the memory for it.

use std::{fmt::Write as _, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{
    document,
    median::median,
    memory::{Memory, tracer},
    options::Options,
    processes::{self, Tracer, memleak_command, now, number_in},
};

/// Title of the section in BENCHMARKS.md.
pub(crate) const TITLE: &str = "Looking for what is lost";
/// Blocks of the heap: with them it has some 1.1 GB and 15 million pointers.
const BLOCKS: u64 = 5_000_000;
/// How long the target's pace is measured before.
const BEFORE: Duration = Duration::from_secs(3);
/// What it takes to make the heap, at most.
const PATIENCE: Duration = Duration::from_secs(120);

/// One look.
struct Look {
    /// All of it, with reading the table of blocks again.
    took_ms: f64,
    stopped_ms: f64,
    /// CPU time of each of the threads that read the memory first.
    reader_ms: f64,
    scans: f64,
    /// The target's pace meanwhile, of what it was before.
    pace: f64,
    /// The tracer's own memory: before, and the most meanwhile.
    memory: [f64; 2],
}

/// Measures; gives the section.
pub(crate) fn section(options: &Options, memleak: &Path) -> Result<String> {
    let program = processes::compile("graph.c", &[])?;
    let modes = ["scans", "exact"];
    let mut looks: [Vec<Look>; 2] = [Vec::new(), Vec::new()];
    for round in 1..=options.rounds {
        for (mode, looks) in modes.iter().zip(&mut looks) {
            let look = measure(memleak, &program, mode)?;
            eprintln!(
                "  round {round}, {mode}: {:.0} ms, stopped for {:.0} ms, pace {:.2}, {:.0} MB after {:.0} MB",
                look.took_ms,
                look.stopped_ms,
                look.pace,
                look.memory[1] / 1e6,
                look.memory[0] / 1e6
            );
            looks.push(look);
        }
    }
    let mut text = format!("## {TITLE}\n\n");
    writeln!(
        text,
        "`cargo xtask bench --why`: {BLOCKS} blocks, each with three pointers; one of a thousand is lost."
    )?;
    writeln!(text, "Medians of {} rounds on {}\n", options.rounds, document::machine()?)?;
    writeln!(
        text,
        "| | looks | all of it | the target is stopped | CPU time of a reader of the first look | its pace \
         meanwhile | our memory before, most |"
    )?;
    writeln!(text, "| --- | ---: | ---: | ---: | ---: | ---: | ---: |")?;
    for (mode, looks) in modes.iter().zip(&looks) {
        let middle = |of: &dyn Fn(&Look) -> f64| median(looks.iter().map(of)).unwrap_or(0.0);
        let (scans, took) = (middle(&|look| look.scans), middle(&|look| look.took_ms));
        let (stopped, pace) = (middle(&|look| look.stopped_ms), middle(&|look| look.pace));
        let reader = middle(&|look| look.reader_ms);
        let memory = [0, 1].map(|at| middle(&|look| look.memory[at]) / 1e6);
        writeln!(
            text,
            "| `--why={mode}` | {scans:.0} | {took:.0} ms | {stopped:.0} ms | {reader:.0} ms | {:.0} % | {:.0} MB, {:.0} MB |",
            pace * 100.0,
            memory[0],
            memory[1]
        )?;
    }
    Ok(text)
}

fn measure(memleak: &Path, program: &Path, mode: &str) -> Result<Look> {
    let mut command = memleak_command(memleak)?;
    let why = format!("--why={mode}");
    command.args(["-v", "--json", "-o", "0", "-T", "1", why.as_str(), "--max-memory", "4G"]);
    if mode == "exact" {
        command.args(["--max-pause", "60000"]);
    }
    command.args(["3600", "--"]).arg(program).arg(BLOCKS.to_string());
    let (mut ready, mut asked, mut told) = (None, None, None);
    let mut memory = [0.0_f64; 2];
    let traced = Tracer { command, mark: "READY" };
    let traced = traced.run_watched(PATIENCE, |pid, line| {
        if line == "READY" {
            ready = Some(now());
        } else if line.starts_with("PACE")
            && ready.is_some_and(|ready| now() > ready + BEFORE)
            && asked.is_none()
        {
            asked = Some(now());
            memory[0] = Memory::of(pid)?.anonymous;
            // SAFETY: no memory is concerned.
            ensure!(unsafe { libc::kill(tracer(pid)? as libc::pid_t, libc::SIGINT) } == 0, "cannot end it");
        } else if line.contains("looked at the heap") {
            told = Some(now());
        }
        if asked.is_some()
            && let Ok(now) = Memory::of(pid)
        {
            memory[1] = memory[1].max(now.anonymous);
        }
        Ok(())
    })?;
    let (asked, told) = asked.zip(told).context("it has not looked at the heap")?;
    let report: serde_json::Value =
        serde_json::from_str(traced.lines_with("{").next().context("no report")?)?;
    let number =
        |name: &str| report["why"][name].as_f64().with_context(|| format!("no {name} in the report"));
    let lost = report["why"]["definitely_lost"]["count"].as_f64().context("nothing of what is lost")?;
    let paces: Vec<(Duration, f64)> = traced.lines_with("PACE ").filter_map(pace).collect();
    let mean = |from: Duration, to: Duration| {
        let within = paces.iter().filter(|(at, _)| (from..to).contains(at)).map(|(_, count)| *count);
        let (sum, count) = within.fold((0.0, 0.0), |(sum, count), pace| (sum + pace, count + 1.0));
        sum / f64::max(count, 1.0)
    };
    let took_ms = traced.number("memleak: looked at the heap", " in ")?;
    let read = traced.lines_with("memleak: process ").find(|line| line.contains(" of CPU a reader"));
    let reader_ms = number_in(read.context("nothing of what readers took")?, " to read, with ")?;
    let (scans, stopped_ms) = (number("scans")?, number("stopped_ms")?);
    let pace = mean(asked, told) / mean(asked.saturating_sub(BEFORE), asked);
    let expected = BLOCKS as f64 / 1000.0;
    ensure!((lost - expected).abs() < expected / 100.0, "{lost} blocks are lost, and {expected} should be");
    Ok(Look { took_ms, stopped_ms, reader_ms, scans, pace, memory })
}

/// `PACE ns count`.
fn pace(line: &str) -> Option<(Duration, f64)> {
    let mut words = line.split(' ').skip(1);
    Some((Duration::from_nanos(words.next()?.parse().ok()?), words.next()?.parse().ok()?))
}
