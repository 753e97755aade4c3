//! `cargo xtask bench`: what memleak's tracing costs.

mod attach;
mod bcc;
mod busy_cpu;
mod cpu;
mod document;
mod kernel;
mod loads;
mod median;
mod memory;
mod options;
mod pairs;
mod peers;
mod processes;
mod redis;
mod reports;
mod results;
mod rustc;
mod series;
mod stress;
mod table;
mod turns;
mod why;

use std::{path::Path, process::ExitCode};

use anyhow::Result;
use clap::Parser;
use xtask::{
    packages::{self, Package},
    privilege, run,
};

use crate::{options::Options, processes::INSTEAD};

const PACKAGES: [Package; 2] = [
    Package { names: &["gcc"], purpose: "compiles the program that is traced" },
    Package {
        names: &["bpftool", "linux-tools-common"],
        purpose: "tells what memory the kernel's maps take",
    },
];

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
    packages::ensure(&PACKAGES)?;
    privilege::as_root("true", INSTEAD)?;
    let memleak = match &options.program {
        Some(program) => program.clone(),
        None => run::memleak_binary()?,
    };
    if options.stress {
        return stress::run(options, &memleak);
    }
    if let Some((title, section)) = part(options, &memleak)? {
        println!("{section}");
        return document::write(options, &document::with_section(&document::read(), title, &section));
    }
    peers::ensure();
    let others = loads::section(options, &memleak)?;
    let mut text = table::markdown(&pairs::measure(options, memleak)?, options)?;
    // The parts that were not measured stay as they are.
    let old = document::read();
    for title in [
        loads::TITLE,
        loads::LOADED_TITLE,
        redis::TITLE,
        reports::TITLE,
        attach::TITLE,
        rustc::TITLE,
        kernel::TITLE,
        why::TITLE,
    ] {
        let section = if title == loads::TITLE { Some(&*others) } else { document::section_of(&old, title) };
        if let Some(section) = section {
            text = document::with_section(&text, title, section);
        }
    }
    println!("{text}");
    document::write(options, &text)
}

/// One of the parts that are measured when they are asked for: its title and section.
fn part(options: &Options, memleak: &Path) -> Result<Option<(&'static str, String)>> {
    Ok(Some(if options.attach {
        (attach::TITLE, attach::section(options, memleak)?)
    } else if options.rustc {
        (rustc::TITLE, rustc::section(options, memleak)?)
    } else if options.why {
        (why::TITLE, why::section(options, memleak)?)
    } else if options.kernel {
        (kernel::TITLE, kernel::section(options, memleak.to_owned())?)
    } else if options.loads {
        let title = if options.loaded { loads::LOADED_TITLE } else { loads::TITLE };
        (title, loads::section(options, memleak)?)
    } else if options.redis {
        (redis::TITLE, redis::section(options, memleak)?)
    } else if options.reports {
        (reports::TITLE, reports::section(options, memleak)?)
    } else {
        return Ok(None);
    }))
}
