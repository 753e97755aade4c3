//! What a report costs while very many blocks are held: its time, our CPU time, and memory.
//!
//! The traced program is bench/programs/pairs.c, which acquires its blocks under the tracer's eyes
//! through 64 different stacks.

use std::{fmt::Write as _, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{
    cpu, document,
    median::median,
    memory::{Memory, tracer},
    options::Options,
    processes::{A_BLOCK, ATTACHED, Program, Tracer, memleak_command, now, number_in},
};

/// Title of the section in BENCHMARKS.md.
pub(crate) const TITLE: &str = "Reports over very many blocks";

/// What memleak says after each report.
const REPORT: &str = "memleak: report over ";

/// A program that holds much, and a tracer that reports.
pub(crate) struct Case {
    pub name: &'static str,
    /// What the program is asked to do: `hold` or `tick`.
    pub mode: &'static str,
    pub blocks: u64,
    /// Seconds between reports.
    pub interval: u32,
    /// Reports that are waited for once all blocks are held.
    pub reports: usize,
}

const CASES: [Case; 3] = [
    Case { name: "idle target", mode: "hold", blocks: 1_000_000, interval: 1, reports: 12 },
    Case { name: "a call each 100 ms", mode: "tick", blocks: 1_000_000, interval: 1, reports: 12 },
    Case { name: "idle target", mode: "hold", blocks: 10_000_000, interval: 5, reports: 3 },
];

/// What came of a case.
pub(crate) struct Outcome {
    /// How many blocks the reports counted.
    pub allocations: u64,
    /// The first report over all blocks, and the one after it.
    pub first_ms: f64,
    pub second_ms: f64,
    /// Of the second: reading the kernel's tables.
    pub snapshot_ms: f64,
    /// Our own CPU time from the second report to the last, of all the time.
    pub cpu_share: f64,
    pub memory: Memory,
}

/// Measures; gives the section.
pub(crate) fn section(options: &Options, memleak: &Path) -> Result<String> {
    let program = Program::compile("pairs.c", &[])?;
    let mut outcomes: [Vec<Outcome>; CASES.len()] = Default::default();
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for (case, outcomes) in CASES.iter().zip(&mut outcomes) {
            outcomes.push(measure(&program, memleak, case)?);
        }
    }
    markdown(options, &outcomes)
}

/// Measures a case once.
pub(crate) fn measure(program: &Program, memleak: &Path, case: &Case) -> Result<Outcome> {
    let mut target = program.start(&[case.mode, &case.blocks.to_string()])?;
    let mut command = memleak_command(memleak)?;
    let (pid, interval) = (target.pid().to_string(), case.interval.to_string());
    command.args(["-o", "0", "-p", &pid, &interval]);
    let seconds = A_BLOCK * u32::try_from(case.blocks)?
        + Duration::from_secs(u64::from(case.interval)) * (u32::try_from(case.reports)? + 1);
    let mut told = Vec::new();
    let (mut memory, mut second, mut last) = (Memory::default(), None, None);
    let traced = Tracer { command, mark: ATTACHED }.run_watched(seconds, |pid, line| {
        if line.starts_with(ATTACHED) {
            return target.go();
        }
        if !line.starts_with(REPORT) || told.len() == case.reports {
            return Ok(());
        }
        let allocations = number_in(line, "over ")?;
        if allocations < case.blocks as f64 {
            return Ok(());
        }
        told.push((allocations, number_in(line, "took ")?, number_in(line, "snapshot ")?));
        let process = tracer(pid)?;
        if told.len() == 2 {
            second = Some((now(), cpu::of(process)?[0].sum()));
        }
        if told.len() == case.reports {
            last = Some((now(), cpu::of(process)?[0].sum()));
            memory = Memory::with_maps(pid)?;
            // SAFETY: no memory is concerned.
            ensure!(unsafe { libc::kill(process as libc::pid_t, libc::SIGINT) } == 0, "cannot end it");
        }
        Ok(())
    })?;
    let lost = traced.lines_with("lost:").next();
    ensure!(lost.is_none(), "of {} blocks: {}", case.blocks, lost.unwrap_or_default());
    let [first, next] = told.first_chunk().context("no second report over all blocks")?;
    let allocations = told.iter().map(|told| told.0).fold(0.0, f64::max);
    // One more: what `tick` may hold.
    ensure!(
        allocations <= case.blocks as f64 + 1.0,
        "the report covers {allocations} of {} allocations",
        case.blocks
    );
    let (from, to) = second.zip(last).context("no last report")?;
    let outcome = Outcome {
        // Counts are whole and far below 2^53.
        allocations: format!("{allocations:.0}").parse()?,
        first_ms: first.1,
        second_ms: next.1,
        snapshot_ms: next.2,
        cpu_share: (to.1 - from.1) / (to.0 - from.0).as_secs_f64(),
        memory,
    };
    eprintln!(
        "  {allocations} blocks, {}: first report {:.0} ms, second {:.0} ms (snapshot {:.0} ms), {:.2} % of a CPU, \
         {:.0} MB of the kernel's, peak {:.0} MB",
        case.name,
        outcome.first_ms,
        outcome.second_ms,
        outcome.snapshot_ms,
        outcome.cpu_share * 100.0,
        memory.maps() / 1e6,
        memory.peak / 1e6
    );
    Ok(outcome)
}

fn markdown(options: &Options, outcomes: &[Vec<Outcome>]) -> Result<String> {
    let mut text = format!(
        "## {TITLE}\n\n{}\n\nMade by `cargo xtask bench --reports`. Medians over {} rounds; MB are 10^6 bytes. The first and \
         the second report over all blocks, of 64 stacks; snapshot is reading the kernel's tables for the second. CPU time \
         is memleak's own, from the second report on. The kernel's memory for BPF maps is as bpftool says \
         (memlock). All blocks were counted, and nothing was lost.\n\n\
         | blocks | | a report each | first | second | snapshot | CPU time | in the kernel | VmHWM |\n\
         | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
        document::machine()?,
        options.rounds
    );
    for (case, outcomes) in CASES.iter().zip(outcomes) {
        let middle =
            |of: fn(&Outcome) -> f64| median(outcomes.iter().map(of)).context("nothing was measured");
        writeln!(
            text,
            "| {} | {} | {} s | {:.1} ms | {:.1} ms | {:.1} ms | {:.2} % | {:.0} MB | {:.0} MB |",
            case.blocks,
            case.name,
            case.interval,
            middle(|outcome| outcome.first_ms)?,
            middle(|outcome| outcome.second_ms)?,
            middle(|outcome| outcome.snapshot_ms)?,
            middle(|outcome| outcome.cpu_share)? * 100.0,
            middle(|outcome| outcome.memory.maps())? / 1e6,
            middle(|outcome| outcome.memory.peak)? / 1e6
        )?;
    }
    Ok(text)
}
