//! What `pairs` measured, as Markdown.

use std::fmt::Write as _;

use anyhow::{Context, Result};

use crate::{
    document::{self, QUIET},
    median::median,
    options::Options,
    results::{DEPTHS, Results, Variant, Way},
    turns::TURN,
};

/// What is counted of each stack's releases, in the same way.
const LIFETIMES: &str = "lifetimes";

const NOT_MEASURED: &str = "not measured";

/// What is compared in the table of all depths. By CPU time: it is what the clock says on a quiet
/// machine, and nearer to the truth on any other.
const RATIOS: [(&str, Variant, Variant); 4] = [
    ("memleak / traps", Variant::Memleak, Variant::Traps),
    ("--no-lifetimes / traps", Variant::NoLifetimes, Variant::Traps),
    ("memleak / bpf_get_stackid", Variant::Memleak, Variant::Kernel),
    ("memleak-bpfcc / memleak", Variant::Bcc, Variant::Memleak),
];

/// All tables, with the machine they were made on.
pub(crate) fn markdown(results: &Results, options: &Options) -> Result<String> {
    let mut text =
        String::from("# Benchmarks\n\nMade by `cargo xtask bench --write`; not written by hand.\n\n");
    writeln!(text, "{}\n", document::machine()?)?;
    writeln!(
        text,
        "Medians over {} rounds, {} s of traced time each, in turns of {} ms that all take one after the other. \"Traps \
         alone\" is memleak's own attach points with empty programs: what the kernel takes for the traps. Ratios are of CPU \
         time, turn by turn; so is what a pair takes for lifetimes, beyond the same with --no-lifetimes.\n",
        options.rounds,
        options.seconds,
        TURN.as_millis()
    )?;
    pairs(&mut text, results)?;
    let share = results.cpu_shares.iter().copied().fold(1.0, f64::min);
    if share < QUIET {
        writeln!(
            text,
            "The machine was busy with other work: in one measurement the traced program had a CPU for {:.0} % of the \
             time only. Figures by the clock are too high then.\n",
            share * 100.0
        )?;
    }
    peers(&mut text, results)?;
    once(&mut text, results)?;
    Ok(text)
}

/// The cost of a pair of calls.
fn pairs(text: &mut String, results: &Results) -> Result<()> {
    text.push_str("## A pair of malloc and free, by the traced program's clock\n\n| stack depth |");
    for variant in Variant::PAIRS {
        write!(text, " {} |", variant.name())?;
    }
    for (title, _, _) in RATIOS {
        write!(text, " {title} |")?;
    }
    write!(text, " {LIFETIMES} |\n|")?;
    text.push_str(&" ---: |".repeat(2 + Variant::PAIRS.len() + RATIOS.len()));
    text.push('\n');
    for depth in DEPTHS {
        write!(text, "| {depth} |")?;
        for variant in Variant::PAIRS {
            write!(text, " {} |", time(results.pair_ns.median(&(variant, depth, Way::Clock))))?;
        }
        let key = |variant| (variant, depth, Way::Cpu);
        for (_, above, below) in RATIOS {
            write!(text, " {} |", ratio(results.pair_ns.ratio(&key(above), &key(below))))?;
        }
        let lifetimes = results.pair_ns.difference(&key(Variant::Memleak), &key(Variant::NoLifetimes));
        writeln!(text, " {} |", time(lifetimes))?;
    }
    text.push('\n');
    Ok(())
}

/// Nanoseconds, or microseconds.
fn time(nanoseconds: Option<f64>) -> String {
    match nanoseconds {
        Some(value) if value < 1000.0 => format!("{value:.1} ns"),
        Some(value) => format!("{:.2} us", value / 1000.0),
        None => NOT_MEASURED.to_owned(),
    }
}

fn ratio(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| NOT_MEASURED.to_owned(), |ratio| format!("{ratio:.2}"))
}

/// The same pair under those who do the same work.
fn peers(text: &mut String, results: &Results) -> Result<()> {
    text.push_str(
        "## The same pair under others, by the traced program's CPU time\n\nEach depth with its ratio to memleak. valgrind \
         keeps up to 64 frames here, where it would keep 12, and slows down all the rest of a program, too; of heaptrack \
         that part of the work is not in it which a process of its own does.\n\n| |",
    );
    for depth in DEPTHS {
        write!(text, " {depth} frames | / memleak |")?;
    }
    text.push_str("\n| --- |");
    text.push_str(&" ---: |".repeat(2 * DEPTHS.len()));
    text.push('\n');
    let others = [Variant::Untraced, Variant::Traps, Variant::Memleak, Variant::Bcc];
    for variant in others.into_iter().chain(Variant::STARTERS) {
        write!(text, "| {} |", variant.name())?;
        for depth in DEPTHS {
            let key = |variant| (variant, depth, Way::Cpu);
            let beside = results.pair_ns.ratio(&key(variant), &key(Variant::Memleak));
            let nanoseconds = results.pair_ns.median(&key(variant));
            write!(text, " {} | {} |", time(nanoseconds), ratio(beside))?;
        }
        text.push('\n');
    }
    text.push('\n');
    for (variant, reason) in &results.missing {
        writeln!(text, "{} was not measured: {reason}\n", variant.name())?;
    }
    Ok(())
}

/// What is paid once.
fn once(text: &mut String, results: &Results) -> Result<()> {
    let reports = &results.reports;
    let allocations = reports.last().map_or(0, |report| report.allocations);
    let peak = reports.iter().map(|report| report.memory.peak).fold(0.0, f64::max);
    let milliseconds = |values: &mut dyn Iterator<Item = f64>| {
        median(values).map(|value| format!("{value:.1} ms")).context("nothing was measured")
    };
    text.push_str("## Paid once\n\n| what | median |\n| --- | ---: |\n");
    let rows = [
        (
            "load the BPF programs".to_owned(),
            milliseconds(&mut results.once.iter().map(|once| once.load_ms))?,
        ),
        ("attach".to_owned(), milliseconds(&mut results.once.iter().map(|once| once.attach_ms))?),
        ("detach".to_owned(), milliseconds(&mut results.once.iter().map(|once| once.detach_ms))?),
        (
            format!("first report over {allocations} outstanding allocations"),
            milliseconds(&mut reports.iter().map(|report| report.first_ms))?,
        ),
        ("second report".to_owned(), milliseconds(&mut reports.iter().map(|report| report.second_ms))?),
        (
            "of which reading the kernel's tables".to_owned(),
            milliseconds(&mut reports.iter().map(|report| report.snapshot_ms))?,
        ),
        ("memleak's peak resident memory for it".to_owned(), format!("{:.0} MB", peak / 1e6)),
    ];
    for (what, value) in rows {
        writeln!(text, "| {what} | {value} |")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processes::Pace;

    #[test]
    fn ratios_are_of_cpu_time() -> Result<()> {
        let mut results = Results::default();
        // It waited for a CPU half of the time.
        results.add(Variant::Traps, 5, Pace { turn_ns: 2000.0, cpu_share: 0.5 });
        results.add(Variant::Memleak, 5, Pace { turn_ns: 1300.0, cpu_share: 1.0 });
        results.add(Variant::NoLifetimes, 5, Pace { turn_ns: 1270.0, cpu_share: 1.0 });
        results.add(Variant::Bcc, 5, Pace { turn_ns: 13000.0, cpu_share: 1.0 });
        results.leave_out(Variant::Dhat, &anyhow::anyhow!("valgrind is not installed"));
        let mut text = String::new();
        pairs(&mut text, &results)?;
        peers(&mut text, &results)?;
        let rows = [
            "| 5 | not measured | 2.00 us | 1.30 us | 1.27 us | not measured | not measured | 13.00 us | 1.30 | 1.27 | not \
             measured | 10.00 | 30.0 ns |",
            "| memleak-bpfcc | 13.00 us | 10.00 | not measured | not measured | not measured | not measured |",
            "valgrind, DHAT was not measured: valgrind is not installed",
        ];
        for row in rows {
            assert!(text.lines().any(|line| line == row), "{row}\n{text}");
        }
        let lines = || text.lines().filter(|line| line.starts_with('|'));
        let columns: Vec<usize> = lines().map(|line| line.matches('|').count()).collect();
        assert!(columns.iter().all(|count| [14, 8].contains(count)), "{columns:?}");
        Ok(())
    }
}
