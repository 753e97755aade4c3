//! The result as Markdown.

use std::{fmt::Write as _, fs};

use anyhow::{Context, Result};

use super::{DEPTHS, Options, Results, Variant, median};
use crate::run;

/// A program that has a CPU for less than this share of the time is in somebody's way.
pub(super) const QUIET: f64 = 0.95;

/// What a variant is called.
pub(super) fn name(variant: Variant) -> &'static str {
    match variant {
        Variant::Untraced => "untraced",
        Variant::Traps => "traps alone",
        Variant::Memleak => "memleak",
        Variant::Pointers => "memleak --unwind fp",
        Variant::Kernel => "memleak with bpf_get_stackid",
        Variant::Bcc => "memleak-bpfcc",
    }
}

/// All tables, with the machine they were made on.
pub(super) fn markdown(results: &Results, options: &Options) -> Result<String> {
    let mut text =
        String::from("# Benchmarks\n\nMade by `cargo xtask bench --write`; not written by hand.\n\n");
    writeln!(text, "{}\n", machine()?)?;
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
        write!(text, " {} |", name(variant))?;
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

/// One sentence about where the figures come from.
pub(super) fn machine() -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpus.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(": ")).map_or("unknown", |(_, value)| value)
    };
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let place = if field("flags").split(' ').any(|flag| flag == "hypervisor") {
        "virtual machine"
    } else {
        "machine"
    };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let system = system
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .unwrap_or("Linux")
        .trim_matches('"');
    let mut git = run::git();
    let commit =
        run::output(git.args(["describe", "--always", "--dirty", "--exclude=*"])).unwrap_or_default();
    Ok(format!(
        "Machine: {place}, {count} CPUs ({}), {system}, Linux {}. Commit {}.",
        field("model name"),
        release.trim(),
        commit.trim()
    ))
}

/// `text` with a section (`## TITLE` to the next title) replaced, or added at the end.
pub(super) fn with_section(text: &str, title: &str, section: &str) -> String {
    let heading = format!("## {title}\n");
    let (before, rest) = text.split_once(&heading).unwrap_or((text, ""));
    let after = rest.find("\n## ").map_or("", |at| &rest[at + 1..]);
    let parts = [before.trim_end(), section.trim(), after.trim()];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n\n") + "\n"
}

/// A section of `text`, its title included; `None` if there is none of that title.
pub(super) fn section_of<'t>(text: &'t str, title: &str) -> Option<&'t str> {
    let start = text.find(&format!("## {title}\n"))?;
    let rest = &text[start..];
    Some(rest.find("\n## ").map_or(rest, |at| &rest[..at]).trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_replaced_and_added() {
        let text = "# All\n\n## A\n\none\n\n## B\n\ntwo\n";
        assert_eq!(with_section(text, "A", "## A\n\nnew\n"), "# All\n\n## A\n\nnew\n\n## B\n\ntwo\n");
        assert_eq!(with_section(text, "B", "## B\nnew"), "# All\n\n## A\n\none\n\n## B\nnew\n");
        assert_eq!(with_section(text, "C", "## C\nnew"), format!("{text}\n## C\nnew\n"));
        assert_eq!(section_of(text, "A"), Some("## A\n\none"));
        assert_eq!(section_of(text, "B"), Some("## B\n\ntwo"));
        assert_eq!(section_of(text, "C"), None);
    }
}
