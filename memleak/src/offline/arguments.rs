//! clap types of the words behind the program's name.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::{
    cli::{self, FileArguments, FilterArguments, LookArguments},
    doctor::DoctorArguments,
    exit::ExitMessage,
};

/// Shows which stacks of a running process hold its memory: no rebuild, no restart
#[derive(Debug, Parser)]
#[command(name = "memleak", version)]
pub(super) struct Words {
    #[command(subcommand)]
    word: Word,
}

/// The word, with its arguments.
#[derive(Debug, Subcommand)]
pub(super) enum Word {
    /// Writes a saved report (--save) again, in any form
    #[command(args_override_self = true)]
    Report(Box<ReportArguments>),
    /// Compares two saved reports by their stacks: what has grown, what is new, what has gone
    #[command(args_override_self = true)]
    Diff(Box<DiffArguments>),
    /// Says what this machine offers, and with -p what tracing a process would cost
    Doctor(DoctorArguments),
}

#[derive(Debug, Args)]
pub(super) struct ReportArguments {
    /// A file that --save has written
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,

    /// How the report is written: text, human, json or folded [default: human on a terminal, text
    /// in a pipe or file, nothing with files]
    #[arg(long, value_name = "NAME")]
    pub(super) format: Option<String>,

    /// --format json
    #[arg(long)]
    pub(super) json: bool,

    /// --format folded
    #[arg(long)]
    pub(super) folded: bool,

    #[command(flatten)]
    pub(super) look: LookArguments,

    #[command(flatten)]
    pub(super) files: FileArguments,

    #[command(flatten)]
    pub(super) filters: FilterArguments,

    /// Exit with 3 if this holds: growth>SIZE (since the first report), lost>N, or leak; repeatable
    #[arg(long, value_name = "CONDITION")]
    pub(super) fail_if: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct DiffArguments {
    /// The earlier report
    #[arg(value_name = "OLD")]
    pub(super) old: PathBuf,

    /// The later one
    #[arg(value_name = "NEW")]
    pub(super) new: PathBuf,

    /// How many stacks to print
    #[arg(short = 'T', long, value_name = "N", default_value = "10")]
    pub(super) top: String,

    /// One object of JSON, with all stacks
    #[arg(long)]
    pub(super) json: bool,

    /// Write a flame graph of the difference to FILE: red has grown, blue has shrunk
    #[arg(long, value_name = "FILE")]
    pub(super) flamegraph: Option<PathBuf>,

    /// Show names with all their template arguments
    #[arg(long)]
    pub(super) full_names: bool,

    /// Colours: auto, always or never
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub(super) color: String,

    #[command(flatten)]
    pub(super) filters: FilterArguments,

    /// Exit with 3 if this holds: growth>SIZE, new, lost>N, or leak; repeatable
    #[arg(long, value_name = "CONDITION")]
    pub(super) fail_if: Vec<String>,
}

/// Reads a command line of which the second word is one of ours.
pub(super) fn parse(args: &[OsString]) -> Result<Word, ExitMessage> {
    Words::try_parse_from(args).map(|words| words.word).map_err(|error| cli::exit_message(&error))
}
