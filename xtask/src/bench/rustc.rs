//! `cargo xtask bench --rustc`: what tracing costs a compiler, over a whole run: 150 MB of code, stacks of 60 frames and
//! more, and an allocation every few hundred nanoseconds.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{Options, median, memleak_command, processes, table};
use crate::run;

/// What is compiled: no small crate, one that needs no other, and one that our own tests need anyway.
const CRATE: &str = "memchr";
/// Title of the section in BENCHMARKS.md.
pub const TITLE: &str = "rustc compiling a crate";

const VARIANTS: [(&str, Option<&[&str]>); 4] = [
    ("untraced", None),
    ("traps alone", Some(&["--traps-only"])),
    ("memleak --unwind fp", Some(&["--unwind", "fp"])),
    ("memleak", Some(&[])),
];

/// A run: seconds.
#[derive(Clone, Copy)]
struct Cost {
    wall: f64,
    user: f64,
    system: f64,
}

/// Measures; gives the section.
pub fn section(options: &Options, memleak: &Path) -> Result<String> {
    let compile = Compile::find()?;
    let mut costs: [Vec<Cost>; VARIANTS.len()] = Default::default();
    for round in 1..=options.rounds {
        for (cost, (name, tracer)) in costs.iter_mut().zip(VARIANTS) {
            let one = compile.run(memleak, tracer)?;
            let Cost { wall, user, system } = one;
            eprintln!("  round {round}, {name}: {wall:.2} s, user {user:.2} s, system {system:.2} s");
            cost.push(one);
        }
    }
    let mut text = format!(
        "## {TITLE}\n\n{}\n\nMedians over {} rounds of whole runs, attaching and reporting included, of rustc compiling \
         {CRATE} {}: `cargo xtask bench --rustc`. User and system time are the tracer's and the \
         compiler's together.\n\n| | wall | user | system | wall / untraced |\n| --- | ---: | ---: | ---: | ---: |\n",
        table::machine()?,
        options.rounds,
        compile.version
    );
    let of = |costs: &[Cost], value: fn(&Cost) -> f64| median(costs.iter().map(value)).context("no rounds");
    let untraced = of(&costs[0], |cost| cost.wall)?;
    for (costs, (name, _)) in costs.iter().zip(VARIANTS) {
        let wall = of(costs, |cost| cost.wall)?;
        let (user, system) = (of(costs, |cost| cost.user)?, of(costs, |cost| cost.system)?);
        text += &format!("| {name} | {wall:.2} s | {user:.2} s | {system:.2} s | {:.2} |\n", wall / untraced);
    }
    Ok(text)
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
        let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
        let packages = metadata["packages"].as_array().context("no packages")?;
        let package = packages.iter().find(|package| package["name"] == CRATE);
        let package = package.with_context(|| format!("{CRATE} is no dependency any more"))?;
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

    /// Compiles once, under the tracer with these options.
    fn run(&self, memleak: &Path, tracer: Option<&[&str]>) -> Result<Cost> {
        let mut command = match tracer {
            None => Command::new(&self.rustc),
            Some(options) => {
                let mut command = memleak_command(memleak)?;
                command.args(options).args(["--output", "/dev/null", "3600", "--"]).arg(&self.rustc);
                command
            }
        };
        command.args(["--crate-name", "bench", "--crate-type", "rlib", "--edition", &self.edition]);
        command.args(["--cap-lints", "allow", "--cfg", "feature=\"std\"", "--cfg", "feature=\"alloc\""]);
        command.arg("--out-dir").arg(&self.output).arg(&self.source);
        let shown = run::shown(&command);
        let begin = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.with_context(|| format!("cannot start `{shown}`"))?;
        let (status, usage) = processes::wait_with_usage(&child)?;
        let wall = begin.elapsed().as_secs_f64();
        ensure!(status.success(), "`{shown}` failed: {status}");
        let seconds = |time: libc::timeval| {
            Duration::new(time.tv_sec.unsigned_abs(), 0).as_secs_f64() + time.tv_usec as f64 / 1e6
        };
        Ok(Cost { wall, user: seconds(usage.ru_utime), system: seconds(usage.ru_stime) })
    }
}
