//! What a pair of malloc and free costs under other loads than one thread that does nothing else:
//! threads, bursts, blocks that others free, very many stacks, blocks that stay.
//!
//! The program is bench/programs/loads.c; all its stacks have 12 frames. Figures are CPU time of
//! the program's threads, which other work on the machine hardly changes and which threads that
//! wait for a CPU do not use. All variants
//! take turns ([`turns`]); figures are medians.

use std::{fmt::Write as _, path::Path, time::Duration};

use anyhow::Result;

use crate::{
    busy_cpu::BusyCpu,
    document,
    options::Options,
    processes::{A_BLOCK, Program},
    results::Variant,
    series::Series,
    turns::{self, Party, TURN},
};

/// Title of the section in BENCHMARKS.md.
pub(crate) const TITLE: &str = "A pair of malloc and free under other loads";
/// The same beside a busy CPU.
pub(crate) const LOADED_TITLE: &str = "A pair of malloc and free under other loads, one CPU busy";

/// Who traces. The first is what the others are compared with.
const VARIANTS: [Variant; 4] = [Variant::Traps, Variant::Memleak, Variant::NoLifetimes, Variant::Sampled];

/// Traced time of one measurement.
const TRACED: Duration = Duration::from_secs(1);

/// A load.
struct Load {
    name: &'static str,
    /// Of the program.
    arguments: [&'static str; 2],
    /// At how many blocks that are held it is measured, one after the other; 0: none is made.
    held: &'static [u64],
}

const fn load(name: &'static str, kind: &'static str, threads: &'static str) -> Load {
    Load { name, arguments: [kind, threads], held: &[0] }
}

const LOADS: [Load; 11] = [
    load("alternating, 1 thread", "alternating", "1"),
    load("alternating, 2 threads", "alternating", "2"),
    load("alternating, 4 threads", "alternating", "4"),
    load("alternating, 8 threads", "alternating", "8"),
    load("bursts of 64, 1 thread", "bursts", "1"),
    load("bursts of 64, 2 threads", "bursts", "2"),
    load("bursts of 64, 4 threads", "bursts", "4"),
    load("bursts of 64, 8 threads", "bursts", "8"),
    load("freed by another thread", "handover", "2"),
    load("65,536 stacks in turn", "stacks", "1"),
    Load { name: "one in ten leaks, so many held", arguments: ["leak", "1"], held: &[1_000_000, 5_000_000] },
];

/// Which load, at how many blocks, traced by whom.
type Key = (&'static str, u64, Variant);

#[derive(Default)]
struct Results {
    /// CPU time of a pair, in nanoseconds.
    cpu_ns: Series<Key>,
    /// What memleak says that it has lost.
    lost: Vec<String>,
}

/// Measures; gives the section.
pub(crate) fn section(options: &Options, memleak: &Path) -> Result<String> {
    let program = Program::compile("loads.c", &["-pthread"])?;
    let _busy = options.loaded.then(BusyCpu::start).transpose()?;
    let mut results = Results::default();
    for round in 1..=options.rounds {
        eprintln!("other loads, round {round} of {}", options.rounds);
        for load in &LOADS {
            measure(&program, memleak, load, &mut results)?;
        }
    }
    markdown(options, &results)
}

/// Measures one load under all variants once.
fn measure(program: &Program, memleak: &Path, load: &Load, results: &mut Results) -> Result<()> {
    let mut parties = Vec::new();
    for variant in VARIANTS {
        parties.push(Party::under_memleak(variant, program.start(&load.arguments)?, memleak)?);
    }
    let mut held = 0;
    for &wanted in load.held {
        let more = wanted - held;
        for party in &mut parties {
            if more > 0 {
                party.hold(more, A_BLOCK * u32::try_from(more)?)?;
            }
        }
        held = wanted;
        let mut failed = Ok(());
        turns::take(
            &mut parties,
            TRACED,
            |variant, pace| results.cpu_ns.add((load.name, held, variant), pace.cpu_ns()),
            |_, error| failed = Err(error),
        );
        failed?;
        for variant in VARIANTS {
            let key = |variant| (load.name, held, variant);
            let (pair_ns, traps) = (results.cpu_ns.median(&key(variant)), key(Variant::Traps));
            eprintln!(
                "  {}, {held} held, {}: {:.0} ns of CPU time, {:.3} of the traps",
                load.name,
                variant.name(),
                pair_ns.unwrap_or(f64::NAN),
                results.cpu_ns.ratio(&key(variant), &traps).unwrap_or(f64::NAN)
            );
        }
    }
    for party in parties {
        let variant = party.variant;
        let said = party.end()?;
        if let Some(lost) = said.iter().find(|line| line.trim_start().starts_with("lost:")) {
            let note = format!("{}, {}: {}", load.name, variant.name(), lost.trim());
            eprintln!("  {note}");
            results.lost.push(note);
        }
    }
    Ok(())
}

fn markdown(options: &Options, results: &Results) -> Result<String> {
    let title = if options.loaded { LOADED_TITLE } else { TITLE };
    let mut text = format!(
        "## {title}\n\n{}\n\nMade by `cargo xtask bench --loads{}`, and with all other pairs by `cargo xtask bench`. Medians \
         over {} rounds, {} s of traced time each, in turns of {} ms; all stacks have 12 frames. Nanoseconds are CPU time of \
         the traced threads for each pair, beside it its ratio to the traps alone, turn by turn.\n\n| load |",
        document::machine()?,
        if options.loaded { " --loaded" } else { "" },
        options.rounds,
        TRACED.as_secs(),
        TURN.as_millis()
    );
    for variant in VARIANTS {
        write!(text, " {} |", variant.name())?;
    }
    text.push_str("\n| --- |");
    text.push_str(&" ---: |".repeat(VARIANTS.len()));
    text.push('\n');
    for load in &LOADS {
        for &held in load.held {
            write!(text, "| {}", load.name)?;
            if held > 0 {
                write!(text, ": {held}")?;
            }
            text.push_str(" |");
            for variant in VARIANTS {
                let key = |variant| (load.name, held, variant);
                let cpu_ns = &results.cpu_ns;
                match (cpu_ns.median(&key(variant)), cpu_ns.ratio(&key(variant), &key(Variant::Traps))) {
                    (Some(nanoseconds), _) if variant == Variant::Traps => {
                        write!(text, " {nanoseconds:.0} ns |")?;
                    }
                    (Some(nanoseconds), Some(ratio)) => write!(text, " {nanoseconds:.0} ns, {ratio:.2} |")?,
                    _ => text.push_str(" not measured |"),
                }
            }
            text.push('\n');
        }
    }
    for lost in &results.lost {
        writeln!(text, "\nOf one round: {lost}")?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn each_load_has_a_row_with_ratios_to_the_traps() -> Result<()> {
        let mut results = Results::default();
        let (load, leak) = (LOADS[0].name, LOADS[10].name);
        for (variant, nanoseconds) in VARIANTS.into_iter().zip([1000.0, 1300.0, 1250.0, 900.0]) {
            results.cpu_ns.add((load, 0, variant), nanoseconds);
        }
        results.cpu_ns.add((leak, 5_000_000, Variant::Traps), 1100.0);
        results.lost.push("so many stacks".to_owned());
        let text = markdown(&Options::parse_from(["bench"]), &results)?;
        let rows = [
            "| alternating, 1 thread | 1000 ns | 1300 ns, 1.30 | 1250 ns, 1.25 | 900 ns, 0.90 |",
            "| one in ten leaks, so many held: 5000000 | 1100 ns | not measured | not measured | not measured |",
            "Of one round: so many stacks",
        ];
        for row in rows {
            assert!(text.lines().any(|line| line == row), "{row}\n{text}");
        }
        let columns = |start: &str| {
            text.lines().find(|line| line.starts_with(start)).map_or(0, |line| line.matches('|').count())
        };
        assert_eq!((columns("| load"), columns("| ---")), (6, 6));
        Ok(())
    }
}
