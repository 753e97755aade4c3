//! `cargo xtask bench`: what memleak's tracing costs.

mod attach;
mod bcc;
mod cpu;
mod document;
mod kernel;
mod median;
mod memory;
mod options;
mod pairs;
mod processes;
mod results;
mod rustc;
mod table;
mod why;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use xtask::{
    packages::{self, Package},
    privilege, run,
};

use crate::{options::Options, processes::INSTEAD};

const COMPILER: Package = Package { names: &["gcc"], purpose: "compiles the program that is traced" };

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures and prints; with `--write` into BENCHMARKS.md too.
fn run(options: &Options) -> Result<()> {
    packages::ensure(&[COMPILER])?;
    privilege::as_root("true", INSTEAD)?;
    if options.attach || options.rustc || options.kernel || options.why {
        return run_part(options);
    }
    let mut text = table::markdown(&pairs::measure(options)?, options)?;
    println!("{text}");
    // The parts that were not measured stay as they are.
    let old = document::read();
    for title in [attach::TITLE, rustc::TITLE, kernel::TITLE, why::TITLE] {
        if let Some(section) = document::section_of(&old, title) {
            text = document::with_section(&text, title, section);
        }
    }
    document::write(options, &text)
}

/// One of the parts that are measured when they are asked for.
fn run_part(options: &Options) -> Result<()> {
    let memleak = run::memleak_binary()?;
    let (title, section) = if options.attach {
        (attach::TITLE, attach::section(options, &memleak)?)
    } else if options.rustc {
        (rustc::TITLE, rustc::section(options, &memleak)?)
    } else if options.why {
        (why::TITLE, why::section(options, &memleak)?)
    } else {
        (kernel::TITLE, kernel::section(options, memleak)?)
    };
    println!("{section}");
    document::write(options, &document::with_section(&document::read(), title, &section))
}
