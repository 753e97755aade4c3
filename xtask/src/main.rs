//! Builds, tests, demonstrates and measures memleak: `cargo xtask --help`.

mod build_ebpf;
mod comments;
mod cross;
mod debian;
mod demo;
mod dist;
mod docs;
mod fuzz;
mod layers;
mod record;
mod signatures;
mod soak;
mod sources;
mod test;
mod vm;

use std::{ffi::OsString, os::unix::process::CommandExt, process::ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};
use xtask::run;

/// Builds, tests, demonstrates and measures memleak.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Measures what tracing costs, beside the bare traps and bcc's memleak
    #[command(disable_help_flag = true)]
    Bench {
        /// Options of the program that measures: `cargo xtask bench --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
        options: Vec<OsString>,
    },
    /// Builds the BPF programs into the object that the tool embeds (memleak/ebpf/)
    BuildEbpf(build_ebpf::Options),
    /// Wraps comments at 100 columns, which rustfmt leaves alone
    Comments,
    /// Traces a leaking program for a few reports and says what there is to see in them
    Demo,
    /// Writes the man page and shells' completions (docs/memleak.1, docs/completions/)
    Docs,
    /// Builds the tool as it is shipped, with its debug information in a file of its own
    Dist(dist::Options),
    /// Fuzzes the parsers that read what a target wrote
    Fuzz(fuzz::Options),
    /// Checks that the source files keep to the layers that ARCHITECTURE.md draws
    Layers,
    /// Writes down which live tests have passed where, as they have printed (docs/arm64-tests.md)
    Record(record::Options),
    /// Writes the table by which allocators are known in programs without symbols
    Signatures(signatures::Options),
    /// Runs for long what may not change with time: a mixed load, very many children, tracers that
    /// are killed
    Soak(soak::Options),
    /// Checks format and lints, runs all tests, the live ones as root
    Test(test::Options),
    /// Runs live tests on other kernels, in virtual machines under software emulation
    Vm(vm::Options),
}

fn main() -> ExitCode {
    if let Some(status) = build_ebpf::as_rustc() {
        return status.unwrap_or_else(failed);
    }
    let outcome = match Arguments::parse().task {
        Task::Bench { options } => bench(&options),
        Task::BuildEbpf(options) => build_ebpf::run(&options),
        Task::Comments => comments::run(),
        Task::Demo => demo::run(),
        Task::Docs => docs::run(),
        Task::Dist(options) => dist::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Layers => layers::run(),
        Task::Record(options) => record::run(&options),
        Task::Signatures(options) => signatures::run(&options),
        Task::Soak(options) => soak::run(&options),
        Task::Test(options) => test::run(&options),
        Task::Vm(options) => vm::run(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(error),
    }
}

/// Becomes the program that measures, a crate of its own: bench/.
fn bench(options: &[OsString]) -> anyhow::Result<()> {
    let mut cargo = run::cargo();
    cargo.args(["run", "--quiet", "--package", "bench", "--"]).args(options);
    Err(cargo.exec()).with_context(|| format!("cannot start `{}`", run::shown(&cargo)))
}

fn failed(error: anyhow::Error) -> ExitCode {
    eprintln!("xtask: {error:#}");
    ExitCode::FAILURE
}
