//! `cargo xtask bench --kernel`: what tracing the kernel costs a program that has it allocate, by
//! the program's own clock.
//!
//! The program is bench/programs/kernel.c. As in user mode, all variants take turns in every round,
//! and figures are medians over the rounds. No tracer makes a report while the program is measured.

use std::{ffi::OsString, fmt::Write as _, fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Result, ensure};

use crate::{
    bcc,
    document::{self, QUIET},
    median::median,
    options::Options,
    processes::{self, MARGIN, Pace, Running, Target},
};

/// The section of BENCHMARKS.md.
pub(crate) const TITLE: &str = "The kernel's allocators, by the clock of a program that has it allocate";

/// What the program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    Files,
    Sockets,
}

impl Load {
    const ALL: [Self; 2] = [Self::Files, Self::Sockets];

    fn name(self) -> &'static str {
        match self {
            Self::Files => "a file of a page made, written and removed (tmpfs)",
            Self::Sockets => "a pair of sockets made, a message sent through it, closed",
        }
    }
}

/// Who traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Untraced,
    Memleak,
    /// One cache alone.
    Narrow,
    Bcc,
}

impl Variant {
    const ALL: [Self; 4] = [Self::Untraced, Self::Memleak, Self::Narrow, Self::Bcc];

    fn name(self) -> &'static str {
        match self {
            Self::Untraced => "untraced",
            Self::Memleak => "memleak -k",
            Self::Narrow => "memleak -k --slab filp",
            Self::Bcc => "memleak-bpfcc",
        }
    }
}

/// Measured in all rounds for one variant under one load.
struct Series {
    load: Load,
    variant: Variant,
    /// Nanoseconds for a turn, one for each round: by the clock, and of CPU time.
    clock_ns: Vec<f64>,
    cpu_ns: Vec<f64>,
}

/// One way to count time: nanoseconds for a turn, one for each round.
type Way = fn(&Series) -> &Vec<f64>;

#[derive(Default)]
struct Results {
    series: Vec<Series>,
    cpu_shares: Vec<f64>,
    /// Why bcc's memleak is not in it.
    without_bcc: Option<String>,
}

impl Results {
    /// The median of one way to count time.
    fn median(&self, load: Load, variant: Variant, by: Way) -> Option<f64> {
        let series = self.series.iter().find(|one| one.load == load && one.variant == variant)?;
        median(by(series).iter().copied())
    }

    fn add(&mut self, load: Load, variant: Variant, pace: &Pace) {
        self.cpu_shares.push(pace.cpu_share);
        let place = self.series.iter().position(|one| one.load == load && one.variant == variant);
        let place = place.unwrap_or_else(|| {
            self.series.push(Series { load, variant, clock_ns: Vec::new(), cpu_ns: Vec::new() });
            self.series.len() - 1
        });
        if let Some(series) = self.series.get_mut(place) {
            series.clock_ns.push(pace.turn_ns);
            series.cpu_ns.push(pace.turn_ns * pace.cpu_share);
        }
    }
}

struct Bench {
    program: PathBuf,
    memleak: PathBuf,
    bcc: Option<bcc::Bcc>,
    seconds: Duration,
}

/// Measures, and gives the section.
pub(crate) fn section(options: &Options, memleak: PathBuf) -> Result<String> {
    let mut results = Results::default();
    let bcc = bcc::Bcc::find().map_err(|error| results.without_bcc = Some(format!("{error:#}"))).ok();
    let mut bench = Bench {
        program: processes::compile("kernel.c", &[])?,
        memleak,
        bcc,
        seconds: Duration::from_secs(options.seconds.into()),
    };
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for load in Load::ALL {
            for variant in Variant::ALL {
                bench.measure(load, variant, &mut results)?;
            }
        }
    }
    markdown(&results, options)
}

impl Bench {
    /// Measures one variant under one load once.
    fn measure(&mut self, load: Load, variant: Variant, results: &mut Results) -> Result<()> {
        let (words, mark) = match (variant, &self.bcc) {
            (Variant::Untraced, _) => (None, ""),
            (Variant::Memleak, _) => (Some(self.memleak_words(&[])), "memleak: attached "),
            (Variant::Narrow, _) => (Some(self.memleak_words(&["--slab", "filp"])), "memleak: attached "),
            (Variant::Bcc, Some(bcc)) => (Some(bcc.kernel_words()), bcc::KERNEL_MARK),
            (Variant::Bcc, None) => return Ok(()),
        };
        let target = self.start(load)?;
        let pace = match words.map(|words| Running::start(&words, mark)).transpose() {
            Ok(None) => target.pace(processes::now(), self.seconds, MARGIN)?,
            Ok(Some(tracer)) => {
                let pace = target.pace(tracer.marked, self.seconds, MARGIN)?;
                let said = tracer.end()?;
                ensure!(
                    variant == Variant::Bcc
                        || said.iter().any(|line| line.contains(" outstanding allocations:")),
                    "memleak made no report: {}",
                    said.join(" / ")
                );
                pace
            }
            Err(error) if variant == Variant::Bcc => {
                results.without_bcc = Some(format!("{error:#}"));
                self.bcc = None;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        eprintln!(
            "  {load:?}, {}: {:.2} us ({:.2} of a CPU)",
            variant.name(),
            pace.turn_ns / 1000.0,
            pace.cpu_share
        );
        results.add(load, variant, &pace);
        Ok(())
    }

    /// Starts the program. Its file is in memory, where a disk's pace and journal are not measured.
    fn start(&self, load: Load) -> Result<Target> {
        let mut command = Command::new(&self.program);
        match load {
            Load::Files => {
                let file = format!("/dev/shm/memleak-bench-{}", std::process::id());
                // What a run that was killed has left.
                let _ = fs::remove_file(&file);
                command.arg("files").arg(file)
            }
            Load::Sockets => command.arg("sockets"),
        };
        Target::start(&mut command)
    }

    /// memleak tracing the kernel, with one report at its end.
    fn memleak_words(&self, options: &[&str]) -> Vec<OsString> {
        let own = [self.memleak.clone().into(), "-v".into(), "-k".into(), "3600".into()];
        own.into_iter().chain(options.iter().map(Into::into)).collect()
    }
}

fn micros(nanoseconds: Option<f64>) -> String {
    nanoseconds.map_or_else(|| "not measured".to_owned(), |value| format!("{:.2} us", value / 1000.0))
}

/// The section of BENCHMARKS.md.
fn markdown(results: &Results, options: &Options) -> Result<String> {
    let mut text = format!(
        "## {TITLE}\n\nMade by `cargo xtask bench \
         --kernel --write`. {}\n\nMedians over {} rounds, {} s of traced time each.\n\n| a turn |",
        document::machine()?,
        options.rounds,
        options.seconds
    );
    for variant in Variant::ALL {
        write!(text, " {} |", variant.name())?;
    }
    text.push_str(" memleak adds | memleak-bpfcc adds | memleak's share of that |\n| --- |");
    text.push_str(&" ---: |".repeat(Variant::ALL.len() + 3));
    text.push('\n');
    let ways: [(&str, Way); 2] = [("", |series| &series.clock_ns), (", CPU time", |series| &series.cpu_ns)];
    for load in Load::ALL {
        for (way, by) in ways {
            write!(text, "| {}{way} |", load.name())?;
            for variant in Variant::ALL {
                write!(text, " {} |", micros(results.median(load, variant, by)))?;
            }
            let (ours, theirs) = added(results, load, by);
            let share = ours.zip(theirs).map(|(ours, theirs)| format!("{:.2}", ours / theirs));
            writeln!(text, " {} | {} | {} |", micros(ours), micros(theirs), share.unwrap_or_default())?;
        }
    }
    let share = results.cpu_shares.iter().copied().fold(1.0, f64::min);
    if share < QUIET {
        writeln!(
            text,
            "\nThe machine was busy with other work: in one measurement the program had a CPU for {:.0} % of the time \
             only. Figures by the clock are too high then; CPU time is nearer.",
            share * 100.0
        )?;
    }
    if let Some(reason) = &results.without_bcc {
        writeln!(text, "\nmemleak-bpfcc was not measured: {reason}")?;
    }
    Ok(text)
}

/// What memleak and bcc's memleak add to a turn.
fn added(results: &Results, load: Load, by: Way) -> (Option<f64>, Option<f64>) {
    let untraced = results.median(load, Variant::Untraced, by);
    let adds = |variant| Some(results.median(load, variant, by)? - untraced?);
    (adds(Variant::Memleak), adds(Variant::Bcc))
}
