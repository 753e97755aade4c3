//! `cargo xtask test`: everything that must hold before a change goes in, from formatting to live
//! tests of real programs under real probes.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;
use xtask::{
    packages::{self, Package},
    privilege, run,
};

use crate::{build_ebpf, layers};

/// What the live tests build and trace.
pub(crate) const LIVE_PACKAGES: [Package; 31] = [
    Package { names: &["g++"], purpose: "compiles the traced programs" },
    Package { names: &["libc6-dev"], purpose: "static glibc programs" },
    Package { names: &["libc6-dbg"], purpose: "debug files to find by build id" },
    Package { names: &["musl-tools"], purpose: "static musl programs" },
    Package { names: &["libjemalloc2"], purpose: "an allocator to preload" },
    Package {
        names: &["libtcmalloc-minimal4", "libtcmalloc-minimal4t64"],
        purpose: "an allocator to preload",
    },
    Package {
        names: &["libmimalloc2.0", "libmimalloc3", "libmimalloc2"],
        purpose: "an allocator to preload",
    },
    Package { names: &["libjemalloc-dev"], purpose: "an allocator to link in" },
    Package { names: &["libgoogle-perftools-dev"], purpose: "an allocator to link in" },
    Package { names: &["libmimalloc-dev"], purpose: "an allocator to link, and its header" },
    Package {
        names: &["libclang-rt-14-dev", "libclang-rt-19-dev"],
        purpose: "scudo, an allocator to preload",
    },
    Package { names: &["golang-go"], purpose: "go tool pprof, which reads our profiles" },
    Package { names: &["protobuf-compiler"], purpose: "protoc, for a reader of our files made by others" },
    Package { names: &["python3-protobuf"], purpose: "the library of that reader" },
    Package {
        names: &["golang-github-google-pprof-dev"],
        purpose: "profile.proto, by which our profiles are read",
    },
    Package { names: &["prometheus"], purpose: "asks for our metrics; promtool checks them and alerts" },
    Package { names: &["nginx"], purpose: "a real server with workers" },
    Package { names: &["heaptrack"], purpose: "heaptrack_print, which reads our data files" },
    Package { names: &["redis-server"], purpose: "a real program with an allocator linked in" },
    Package { names: &["redis-tools"], purpose: "redis-benchmark and redis-cli" },
    Package { names: &["gdb"], purpose: "a second opinion on symbols" },
    Package {
        names: &["valgrind"],
        purpose: "a second opinion on blocks, and a program that translates others",
    },
    Package { names: &["qemu-user"], purpose: "a program that translates others" },
    Package { names: &["make"], purpose: "a build to follow" },
    Package { names: &["binutils"], purpose: "objcopy and strip, for separate debug files" },
    Package { names: &["libsqlite3-0"], purpose: "a real library, with databases to leave open" },
    Package { names: &["libssl3", "libssl3t64"], purpose: "a real library, with objects that are counted" },
    Package {
        names: &["libpython3.11", "libpython3.12t64", "libpython3.13"],
        purpose: "a real library, with allocators of its own",
    },
    Package { names: &["python3"], purpose: "a real program that opens files and sockets" },
    Package { names: &["systemtap-sdt-dev"], purpose: "the header of probes that programs define" },
    Package { names: &["bpftool"], purpose: "shows that nothing stays attached" },
];

/// What is compiled and run beside these by what is left out of the virtual machines: the
/// comparison of stacks with gdb's, tests of optimizers, the check of our unit.
const COMPARED_PACKAGES: [Package; 6] = [
    Package { names: &["clang"], purpose: "compiles programs whose stacks are compared with gdb's" },
    Package { names: &["lld"], purpose: "links programs that LLVM optimizes as a whole" },
    Package { names: &["git"], purpose: "a real program whose stacks are compared with gdb's" },
    Package { names: &["nginx"], purpose: "a real server whose stacks are compared with gdb's" },
    Package { names: &["systemd"], purpose: "systemd-analyze, which checks our unit" },
    Package { names: &["sqlite3"], purpose: "a real program whose stacks are compared with gdb's" },
];

const INSTEAD: &str = "run `cargo xtask test --no-root` for the tests that need none";

/// Options of `test`.
#[derive(Args)]
pub(crate) struct Options {
    /// Leave out the live tests, which attach probes and so need root
    #[arg(long)]
    no_root: bool,
}

/// Runs all checks in order; the quick static ones end the run if they fail, the tests are all
/// run.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !options.no_root {
        privilege::as_root("true", INSTEAD)?;
        packages::ensure(&LIVE_PACKAGES)?;
        packages::ensure(&COMPARED_PACKAGES)?;
    }
    let live = live_targets()?;
    run::run(run::cargo().args(["fmt", "--all", "--check"]))?;
    layers::run()?;
    clippy(&live)?;
    build_ebpf::check()?;
    let mut tally = Tally::default();
    tally.run("unit and golden tests", run::cargo().args(["test", "--workspace", "--no-fail-fast"]))?;
    if options.no_root {
        println!("\nlive tests: left out (--no-root)");
    } else {
        run_live(&live, &mut tally)?;
    }
    tally.close()
}

/// Lints all targets. `--all-targets` leaves out those with `test = false`, so the live tests are
/// named.
fn clippy(live: &[String]) -> Result<()> {
    run::run(run::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    if live.is_empty() {
        return Ok(());
    }
    let tests = live.iter().flat_map(|name| ["--test", name]);
    run::run(run::cargo().args(["clippy", "-p", "memleak"]).args(tests).args(["--", "-D", "warnings"]))
}

/// Names of the live tests: the test targets of memleak that begin with `live`. They must be
/// declared `test = false`, so that a plain `cargo test` without root neither fails for them nor
/// passes them over in silence.
fn live_targets() -> Result<Vec<String>> {
    let metadata = run::output(run::cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata is not JSON")?;
    live_targets_in(&metadata)
}

fn live_targets_in(metadata: &Value) -> Result<Vec<String>> {
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let targets = packages
        .filter(|package| package["name"] == "memleak")
        .flat_map(|package| package["targets"].as_array().into_iter().flatten())
        .filter(|target| target["kind"][0] == "test");
    let mut live = Vec::new();
    for target in targets {
        let Some(name) = target["name"].as_str().filter(|name| name.starts_with("live")) else { continue };
        ensure!(
            target["test"] == false,
            "the live test `{name}` needs `test = false` in memleak/Cargo.toml: `cargo test` runs without root"
        );
        live.push(name.to_owned());
    }
    Ok(live)
}

/// Builds the live tests as who we are, optimized as what is shipped, since they judge what a run
/// costs; runs each as root, in its package's folder as cargo would.
fn run_live(live: &[String], tally: &mut Tally) -> Result<()> {
    ensure!(!live.is_empty(), "memleak has no test target `live*`: nothing would show that tracing works");
    let tests = live.iter().flat_map(|name| ["--test", name]);
    let built =
        run::executables(run::cargo().args(["test", "--release", "--no-run", "-p", "memleak"]).args(tests))?;
    for name in live {
        let executable = built.iter().find(|executable| &executable.target == name);
        let executable = executable.with_context(|| format!("cargo built no test `{name}`"))?;
        let mut command = privilege::as_root(&executable.path, INSTEAD)?;
        command.current_dir(run::root().join("memleak")).env("MEMLEAK_LIVE", "1");
        tally.run(&format!("live tests `{name}`, as root"), &mut command)?;
    }
    Ok(())
}

/// What the test programs said of themselves, added up.
#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
    /// Runs that ended with a failure, by name.
    failures: Vec<String>,
}

impl Tally {
    /// Runs a test program, or cargo with several, passing on its output.
    fn run(&mut self, what: &str, command: &mut Command) -> Result<()> {
        println!("\n{what}:");
        eprintln!("+ {}", run::shown(command));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{}`", run::shown(command)))?;
        let counted = self.passed + self.failed;
        for line in BufReader::new(child.stdout.take().context("no pipe")?).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            self.add(&line);
        }
        let status = child.wait()?;
        if !status.success() {
            self.failures.push(format!("{what} ({status})"));
        } else if self.passed + self.failed == counted {
            self.failures.push(format!("{what} (ran no test at all)"));
        }
        Ok(())
    }

    /// Adds the closing line of a test program:
    /// `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
    fn add(&mut self, line: &str) {
        let Some(counts) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) else {
            return;
        };
        for count in counts.1.split("; ") {
            let Some((number, word)) = count.split_once(' ') else { continue };
            let number = number.parse().unwrap_or(0);
            match word {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }

    /// Prints the sums as the last line; fails if anything did.
    fn close(self) -> Result<()> {
        println!();
        for failure in &self.failures {
            println!("FAILED: {failure}");
        }
        println!("{}", self.line());
        if self.failed > 0 || !self.failures.is_empty() {
            bail!("{} of the test runs failed", self.failures.len());
        }
        Ok(())
    }

    fn line(&self) -> String {
        let ignored = if self.ignored > 0 { format!(", {} ignored", self.ignored) } else { String::new() };
        format!("{} passed, {} failed{ignored}", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn closing_lines_are_added_up() {
        let mut tally = Tally::default();
        let lines = [
            "running 3 tests",
            "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test tests::result ... ok",
            "test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 7 filtered out; finished in 4.20s",
        ];
        lines.iter().for_each(|line| tally.add(line));
        assert_eq!(tally.line(), "15 passed, 2 failed, 1 ignored");
    }

    #[test]
    fn test_runs_are_judged_by_status_and_count() -> Result<()> {
        let line = "test result: ok. 1 passed; 0 failed; 0 ignored";
        let cases = [
            (format!("echo '{line}'"), None),
            (format!("echo '{line}'; kill -SEGV $$"), Some("signal: 11")),
            ("true".to_owned(), Some("ran no test at all")),
        ];
        for (script, expected) in cases {
            let mut tally = Tally::default();
            tally.run("case", Command::new("sh").args(["-c", &script]))?;
            match expected {
                None => assert!(tally.failures.is_empty(), "{:?}", tally.failures),
                Some(words) => assert!(tally.failures[0].contains(words), "{:?}", tally.failures),
            }
            assert_eq!(tally.close().is_err(), expected.is_some());
        }
        Ok(())
    }

    #[test]
    fn live_targets_are_found_by_name_and_kept_out_of_cargo_test() -> Result<()> {
        let target = |name: &str, kind: &str, test: bool| json!({"name": name, "kind": [kind], "test": test});
        let metadata = |targets: Vec<Value>| json!({"packages": [{"name": "memleak", "targets": targets}]});
        let good =
            vec![target("live", "test", false), target("cli", "test", true), target("live", "bin", true)];
        assert_eq!(live_targets_in(&metadata(good))?, ["live"]);
        assert!(live_targets_in(&metadata(vec![target("live_cpp", "test", true)])).is_err());
        Ok(())
    }
}
