//! What `pairs` measured, as Markdown.

use std::fmt::Write as _;

use anyhow::{Context, Result};

use crate::{
    document::{self, QUIET},
    median::median,
    options::Options,
    results::{DEPTHS, Results, Variant},
};

/// All tables, with the machine they were made on.
pub(crate) fn markdown(results: &Results, options: &Options) -> Result<String> {
    let mut text =
        String::from("# Benchmarks\n\nMade by `cargo xtask bench --write`; not written by hand.\n\n");
    writeln!(text, "{}\n", document::machine()?)?;
    writeln!(
        text,
        "Medians over {} rounds, {} s of traced time each. \"Traps alone\" is memleak's own attach points with empty \
         programs: what the kernel takes for the traps.\n",
        options.rounds, options.seconds
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
    if let Some(reason) = &results.without_bcc {
        writeln!(text, "memleak-bpfcc was not measured: {reason}\n")?;
    }
    once(&mut text, results)?;
    Ok(text)
}

/// The cost of a pair of calls.
fn pairs(text: &mut String, results: &Results) -> Result<()> {
    let median_of = |variant, depth| {
        let series = results.series.iter().find(|one| one.variant == variant && one.depth == depth);
        series.and_then(|series| median(series.pair_ns.iter().copied()))
    };
    let cell = |value: Option<f64>, unit: &str| {
        value.map_or_else(|| "not measured".to_owned(), |value| format!("{value:.2}{unit}"))
    };
    text.push_str("## A pair of malloc and free, by the traced program's clock\n\n| stack depth |");
    for variant in Variant::ALL {
        write!(text, " {} |", variant.name())?;
    }
    text.push_str(" memleak / traps | memleak / bpf_get_stackid | memleak-bpfcc / memleak |\n|");
    text.push_str(&" ---: |".repeat(Variant::ALL.len() + 4));
    text.push('\n');
    for depth in DEPTHS {
        write!(text, "| {depth} |")?;
        for variant in Variant::ALL {
            let nanoseconds = median_of(variant, depth);
            match nanoseconds {
                Some(value) if value < 1000.0 => write!(text, " {value:.1} ns |")?,
                _ => write!(text, " {} |", cell(nanoseconds.map(|value| value / 1000.0), " us"))?,
            }
        }
        let ratio = |above, below| Some(median_of(above, depth)? / median_of(below, depth)?);
        writeln!(
            text,
            " {} | {} | {} |",
            cell(ratio(Variant::Memleak, Variant::Traps), ""),
            cell(ratio(Variant::Memleak, Variant::Kernel), ""),
            cell(ratio(Variant::Bcc, Variant::Memleak), "")
        )?;
    }
    text.push('\n');
    Ok(())
}

/// What is paid once.
fn once(text: &mut String, results: &Results) -> Result<()> {
    let reports = &results.reports;
    let allocations = reports.last().map_or(0, |report| report.allocations);
    let peak = reports.iter().map(|report| report.peak_rss_bytes).max().unwrap_or(0);
    let milliseconds = |values: &mut dyn Iterator<Item = f64>| {
        median(values).map(|value| format!("{value:.1} ms")).context("nothing was measured")
    };
    text.push_str("## Paid once\n\n| what | median |\n| --- | ---: |\n");
    let rows = [
        ("attach".to_owned(), milliseconds(&mut results.attach_ms.iter().copied())?),
        ("detach".to_owned(), milliseconds(&mut results.detach_ms.iter().copied())?),
        (
            format!("report over {allocations} outstanding allocations"),
            milliseconds(&mut reports.iter().map(|report| report.total_ms))?,
        ),
        (
            "of which reading the kernel's tables".to_owned(),
            milliseconds(&mut reports.iter().map(|report| report.snapshot_ms))?,
        ),
        ("memleak's peak resident memory for it".to_owned(), format!("{} MiB", peak.div_ceil(1 << 20))),
    ];
    for (what, value) in rows {
        writeln!(text, "| {what} | {value} |")?;
    }
    Ok(())
}
