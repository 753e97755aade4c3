//! `memleak doctor`: what this machine offers, and what tracing a process would cost.

mod child;
mod machine;
mod page;
mod price;

use clap::Args;

pub(crate) use child::run_pairs;

use crate::exit::{self, ExitMessage};
use page::Findings;

/// `memleak doctor`.
#[derive(Debug, Args)]
pub struct DoctorArguments {
    /// Also say what tracing this process would cost: it is traced for some three seconds;
    /// repeatable
    #[arg(short = 'p', long = "pid", value_name = "PID")]
    pub pids: Vec<u32>,

    /// One object of JSON
    #[arg(long)]
    pub json: bool,

    /// Make pairs of malloc and free, for the doctor that has started this
    #[arg(long, hide = true)]
    pub pairs: bool,
}

/// Finds out, and gives what is to be printed.
pub(crate) fn run(arguments: &DoctorArguments) -> Result<Vec<u8>, ExitMessage> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| {
        ExitMessage::error(exit::FAILED, &format!("cannot start: {error}; raise the limit on open files"))
    })?;
    let checks = machine::checks();
    let prices = runtime.block_on(price::of_all(&arguments.pids));
    let findings = Findings::new(checks, prices);
    Ok(if arguments.json { findings.json() } else { findings.text() })
}
