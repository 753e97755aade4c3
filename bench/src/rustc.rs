//! `cargo xtask bench --rustc`: what tracing costs a compiler, over a whole run: 150 MB of code,
//! stacks of 60 frames and more, and an allocation every few hundred nanoseconds.

use std::{
    fmt::Write as _,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::{privilege, run};

use crate::{
    cpu::{self, Cpu},
    document,
    median::median,
    options::Options,
    processes::memleak_command,
};

/// What is compiled: no small crate, one that needs no other, and one that our own tests need
/// anyway.
const CRATE: &str = "memchr";
/// Title of the section in BENCHMARKS.md.
pub(crate) const TITLE: &str = "rustc compiling a crate";
/// Stacks of which the frames are counted: those with the most allocations.
const STACKS: &str = "1000";

/// A way to compile.
struct Variant {
    name: &'static str,
    /// memleak's options; `None`: untraced.
    options: Option<&'static [&'static str]>,
    /// Its reports count something.
    counts: bool,
}

const VARIANTS: [Variant; 4] = [
    Variant { name: "untraced", options: None, counts: false },
    Variant { name: "traps alone", options: Some(&["--traps-only"]), counts: false },
    Variant { name: "memleak --unwind fp", options: Some(&["--unwind", "fp"]), counts: true },
    Variant { name: "memleak", options: Some(&[]), counts: true },
];
/// What the cost of a call is told beyond.
const TRAPS: usize = 1;

/// A run: seconds of the clock, and of CPUs.
#[derive(Clone, Copy, Default)]
struct Cost {
    wall: f64,
    compiler: Cpu,
    tracer: Cpu,
    /// Acquired and released, if they are counted.
    calls: f64,
}

/// Measures; gives the section.
pub(crate) fn section(options: &Options, memleak: &Path) -> Result<String> {
    ensure!(privilege::is_root(), "run it as root: below sudo, tracer and compiler cannot be told apart");
    let compile = Compile::find()?;
    let mut costs: [Vec<Cost>; VARIANTS.len()] = Default::default();
    for round in 1..=options.rounds {
        for (costs, variant) in costs.iter_mut().zip(VARIANTS) {
            let cost = compile.run(memleak, &variant, &[], "3600")?;
            eprintln!(
                "  round {round}, {}: {:.2} s, compiler {:.2} s, tracer {:.2} s, {} calls",
                variant.name,
                cost.wall,
                cost.compiler.sum(),
                cost.tracer.sum(),
                cost.calls
            );
            costs.push(cost);
        }
    }
    let mut frames = [None; VARIANTS.len()];
    for (frames, variant) in frames.iter_mut().zip(VARIANTS).filter(|(_, variant)| variant.counts) {
        compile.run(memleak, &variant, &["-o", "0", "-T", STACKS, "--sort", "count"], "1")?;
        *frames = Some(Frames::of(&compile.reports()?)?);
    }
    // The last run was one with tables.
    let tables = compile.tables()?;
    markdown(options, &compile, &tables, &costs, &frames)
}

fn markdown(
    options: &Options,
    compile: &Compile,
    tables: &str,
    costs: &[Vec<Cost>],
    frames: &[Option<Frames>],
) -> Result<String> {
    let mut text = format!(
        "## {TITLE}\n\n{}\n\nMedians over {} rounds of whole runs, attaching and reporting included, of rustc compiling \
         {CRATE} {}: `cargo xtask bench --rustc`. memleak's last words of its unwind tables: {tables}. Calls are what was \
         acquired and released, by the last report; what a call costs is the compiler's CPU time beyond that with the \
         traps alone, divided by them. Frames are those of the {STACKS} stacks with the most allocations that are \
         outstanding at each second of one more run, each counted as often as it has allocations, inlined ones left out; that \
         is not a mean over all calls, of which most are gone by then.\n\n| | wall | wall / untraced \
         | compiler: user | system | memleak: user | system | calls | a call, beyond the traps | frames of a stack |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
        document::machine()?,
        options.rounds,
        compile.version
    );
    let of = |at: usize, value: fn(&Cost) -> f64| median(costs[at].iter().map(value)).context("no rounds");
    let untraced = of(0, |cost| cost.wall)?;
    let traps = of(TRAPS, |cost| cost.compiler.sum())?;
    for (at, variant) in VARIANTS.iter().enumerate() {
        let wall = of(at, |cost| cost.wall)?;
        write!(text, "| {} | {wall:.2} s | {:.2} |", variant.name, wall / untraced)?;
        write!(text, " {:.2} s |", of(at, |cost| cost.compiler.user)?)?;
        write!(text, " {:.2} s |", of(at, |cost| cost.compiler.system)?)?;
        match variant.options {
            Some(_) => {
                write!(text, " {:.2} s |", of(at, |cost| cost.tracer.user)?)?;
                write!(text, " {:.2} s |", of(at, |cost| cost.tracer.system)?)?;
            }
            None => text += " | |",
        }
        let calls = of(at, |cost| cost.calls)?;
        match frames[at] {
            Some(Frames { mean, share }) => {
                let beyond = (of(at, |cost| cost.compiler.sum())? - traps) / calls * 1e9;
                write!(text, " {calls:.0} | {beyond:.0} ns | {mean:.1} (of {:.0} %) |", share * 100.0)?;
            }
            None => text += " | | |",
        }
        text.push('\n');
    }
    Ok(text)
}

/// Frames of the stacks of a report.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Frames {
    /// Of a stack, weighted by its allocations.
    mean: f64,
    /// Share of all outstanding allocations that these stacks have.
    share: f64,
}

impl Frames {
    /// Of objects of `--json`.
    fn of(reports: &[Value]) -> Result<Self> {
        let (mut allocations, mut frames, mut all) = (0.0, 0.0, 0.0);
        for report in reports {
            for stack in report["stacks"].as_array().context("no stacks")? {
                let count = stack["count"].as_f64().context("no count")?;
                let list = stack["frames"].as_array().context("no frames")?;
                let physical = list.iter().filter(|frame| frame["inlined"] != true).count();
                allocations += count;
                frames += count * physical as f64;
            }
            all += report["totals"]["count"].as_f64().context("no totals")?;
        }
        ensure!(allocations > 0.0, "nothing was outstanding");
        Ok(Self { mean: frames / allocations, share: allocations / all })
    }
}

/// How the crate is compiled.
struct Compile {
    rustc: PathBuf,
    source: PathBuf,
    edition: String,
    version: String,
    output: PathBuf,
}

impl Compile {
    fn find() -> Result<Self> {
        let mut cargo = run::cargo();
        let metadata = run::output(cargo.args(["metadata", "--format-version", "1", "--locked"]))?;
        let metadata: Value = serde_json::from_str(&metadata)?;
        let packages = metadata["packages"].as_array().context("no packages")?;
        let package = packages.iter().find(|package| package["name"] == CRATE);
        let package = package.with_context(|| format!("{CRATE} is not a dependency any more"))?;
        let field = |name: &str| package[name].as_str().map(str::to_owned).context("a field is missing");
        let folder = PathBuf::from(field("manifest_path")?);
        let output = run::root().join("target/bench/rustc");
        fs::create_dir_all(&output)?;
        Ok(Self {
            // Not rustup's proxy, which is another program until it has become the compiler.
            rustc: run::rust_sysroot()?.join("bin/rustc"),
            source: folder.parent().context("no folder")?.join("src/lib.rs"),
            edition: field("edition")?,
            version: field("version")?,
            output,
        })
    }

    /// Compiles once, under the tracer with the variant's options and these, reporting each
    /// `interval` seconds.
    fn run(&self, memleak: &Path, variant: &Variant, more: &[&str], interval: &str) -> Result<Cost> {
        let mut command = match variant.options {
            None => Command::new(&self.rustc),
            Some(options) => {
                let mut command = memleak_command(memleak)?;
                command.args(options).args(more).args(["--json", "--output"]).arg(self.report());
                command.args([interval, "--"]).arg(&self.rustc);
                command
            }
        };
        command.args(["--crate-name", "bench", "--crate-type", "rlib", "--edition", &self.edition]);
        command.args(["--cap-lints", "allow", "--cfg", "feature=\"std\"", "--cfg", "feature=\"alloc\""]);
        command.arg("--out-dir").arg(&self.output).arg(&self.source);
        let shown = run::shown(&command);
        let words = File::create(self.words())?;
        let begin = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(words).spawn();
        let mut child = child.with_context(|| format!("cannot start `{shown}`"))?;
        let [own, children] = cpu::at_end(&child)?;
        let wall = begin.elapsed().as_secs_f64();
        let status = child.wait()?;
        ensure!(status.success(), "`{shown}` failed: {status}");
        let (compiler, tracer) = match variant.options {
            Some(_) => (children, own),
            None => (own, Cpu::default()),
        };
        let mut calls = 0.0;
        if variant.counts {
            let reports = self.reports()?;
            let last = reports.last().context("no report")?;
            let lost = &last["lost"];
            ensure!(lost["stacks"] == 0 && lost["allocations"] == 0, "`{shown}` has lost some: {lost}");
            let totals = &last["totals"];
            let number = |name: &str| totals[name].as_f64().with_context(|| format!("no {name} in totals"));
            calls = number("acquired")? + number("released")?;
        }
        Ok(Cost { wall, compiler, tracer, calls })
    }

    /// Where reports go.
    fn report(&self) -> PathBuf {
        self.output.join("report.json")
    }

    /// Where standard error goes.
    fn words(&self) -> PathBuf {
        self.output.join("words")
    }

    fn reports(&self) -> Result<Vec<Value>> {
        let reports = fs::read_to_string(self.report())?;
        Ok(reports.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    }

    /// What memleak said last of its tables.
    fn tables(&self) -> Result<String> {
        let words = fs::read_to_string(self.words())?;
        let mut said = words.lines().filter_map(|line| line.strip_prefix("memleak: unwind tables: "));
        said.next_back().map(str::to_owned).context("memleak -v did not say what tables it has")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_weighted() {
        let report = serde_json::json!({"totals": {"count": 8}, "stacks": [
            {"count": 3, "frames": [{"inlined": false}, {"inlined": true}, {"inlined": false}]},
            {"count": 1, "frames": [{"inlined": false}, {}, {}, {}, {}, {}]},
        ]});
        let empty = serde_json::json!({"totals": {"count": 0}, "stacks": []});
        assert_eq!(Frames::of(&[report, empty.clone()]).ok(), Some(Frames { mean: 3.0, share: 0.5 }));
        assert!(Frames::of(&[empty]).is_err());
    }
}
