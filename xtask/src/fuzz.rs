//! `cargo xtask fuzz`: libFuzzer on the parsers (fuzz/), on stable Rust.
//!
//! The coverage that libFuzzer steers by comes from a pass of LLVM's that stable rustc runs when
//! asked (`-C passes`). Only AddressSanitizer needs a nightly; what the parsers can do wrong is to
//! panic, to hang and to ask for memory, and for that overflow checks, debug assertions and
//! libFuzzer's limits serve.

mod seeds;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use xtask::{
    packages::{self, Package},
    run,
};

const PACKAGES: [Package; 3] = [
    Package { names: &["g++"], purpose: "compiles libFuzzer" },
    Package { names: &["gcc"], purpose: "compiles the files that fuzzing begins with" },
    Package { names: &["binutils"], purpose: "takes sections out of them" },
];

/// What tells libFuzzer where an input went, and what makes mistakes visible.
const FLAGS: [&str; 8] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions",
    "-Coverflow-checks",
    "--cfg=fuzzing",
];

/// Longest input (bytes), longest run of one input (seconds) and most memory (MB): beyond them it
/// is a finding.
const LIMITS: [&str; 3] = ["-max_len=20000", "-timeout=10", "-rss_limit_mb=2048"];

/// Options of `fuzz`.
#[derive(Args)]
pub(crate) struct Options {
    /// What to fuzz (fuzz/targets/); all of them, one after the other, if none is named
    targets: Vec<String>,
    /// Seconds for each
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

/// What came of one target.
struct Outcome {
    target: String,
    executions: u64,
    /// Edges of the program that some input took.
    edges: u64,
    corpus: usize,
    found: bool,
}

/// Builds the targets and runs them; fails if one of them found something.
pub(crate) fn run(options: &Options) -> Result<()> {
    packages::ensure(&PACKAGES)?;
    let folder = run::root().join("fuzz");
    let built = build(&folder)?;
    let names: Vec<&str> = built.iter().map(|built| built.target.as_str()).collect();
    if let Some(unknown) = options.targets.iter().find(|wanted| !names.contains(&wanted.as_str())) {
        bail!("there is no target {unknown}; there are: {}", names.join(", "));
    }
    let seeds = seeds::Seeds::make(&run::root().join("target/fuzz-seeds"))?;
    let mut outcomes = Vec::new();
    for executable in &built {
        if options.targets.is_empty() || options.targets.contains(&executable.target) {
            outcomes.push(fuzz(executable, &folder, &seeds, options.seconds)?);
        }
    }
    println!("| target | executions | edges | corpus | |\n| --- | ---: | ---: | ---: | --- |");
    for Outcome { target, executions, edges, corpus, found } in &outcomes {
        let found = if *found { "found something" } else { "nothing found" };
        println!("| {target} | {executions} | {edges} | {corpus} | {found} |");
    }
    ensure!(
        outcomes.iter().all(|outcome| !outcome.found),
        "inputs that fail are in {}; run one again by fuzz/target/*/release/TARGET FILE",
        folder.join("artifacts").display()
    );
    Ok(())
}

fn build(folder: &Path) -> Result<Vec<run::Executable>> {
    let host = run::host_target()?;
    let mut cargo = run::cargo();
    // For a named target the flags are the programs' alone, not the build scripts' too.
    cargo.current_dir(folder).args(["build", "--release", "--bins", "--target", &host]);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    let mut built = run::executables(&mut cargo)?;
    ensure!(!built.is_empty(), "cargo built no fuzz targets");
    built.sort_by(|a, b| a.target.cmp(&b.target));
    Ok(built)
}

/// Runs one target. What it said is shown if it found something.
fn fuzz(executable: &run::Executable, folder: &Path, seeds: &seeds::Seeds, seconds: u32) -> Result<Outcome> {
    let target = executable.target.clone();
    let corpus = folder.join("corpus").join(&target);
    let artifacts = folder.join("artifacts").join(&target);
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&artifacts)?;
    seeds.write(&target, &corpus)?;
    let mut command = Command::new(&executable.path);
    command
        .arg(&corpus)
        .args(LIMITS)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-print_final_stats=1", "-use_value_profile=1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    eprintln!("+ {}", run::shown(&command));
    let mut child = command.spawn().with_context(|| format!("cannot start {}", executable.path.display()))?;
    let said = BufReader::new(child.stderr.take().context("no pipe")?);
    let mut lines: Vec<String> = said.split(b'\n').map_while(Result::ok).map(lossy).collect();
    let status = child.wait()?;
    if !status.success() {
        let last = lines.split_off(lines.len().saturating_sub(60));
        eprintln!("{}", last.join("\n"));
        lines.extend(last);
    }
    Ok(Outcome {
        target,
        executions: last_number(&lines, "stat::number_of_executed_units:").unwrap_or(0),
        edges: last_number(&lines, " cov: ").unwrap_or(0),
        corpus: fs::read_dir(&corpus)?.count(),
        found: !status.success(),
    })
}

fn lossy(line: Vec<u8>) -> String {
    String::from_utf8_lossy(&line).into_owned()
}

/// The number after `before` in the last line that has it.
fn last_number(lines: &[String], before: &str) -> Option<u64> {
    let (_, rest) = lines.iter().rev().find_map(|line| line.split_once(before))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_libfuzzer_are_read() {
        let lines = [
            "#2 INITED cov: 11 ft: 12 corp: 1/1b exec/s: 0 rss: 30Mb",
            "#99 DONE   cov: 42 ft: 99 corp: 5/9b lim: 4 exec/s: 9 rss: 31Mb",
            "stat::number_of_executed_units: 99",
        ]
        .map(str::to_owned);
        assert_eq!(last_number(&lines, " cov: "), Some(42));
        assert_eq!(last_number(&lines, "stat::number_of_executed_units:"), Some(99));
        assert_eq!(last_number(&lines, "nothing"), None);
    }
}
