//! Checked, resolved settings: what the rest of the program works with.

use std::{collections::BTreeSet, ffi::OsString, path::PathBuf, time::Duration};

/// What is traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetSpec {
    /// Running processes.
    Pids(BTreeSet<u32>),
    /// A command to start: program and arguments.
    Command(Vec<OsString>),
}

/// Order of the stacks in a report; ties are broken by size, then count, then the stack itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SortKey {
    /// Most outstanding bytes first.
    Size,
    /// Most outstanding allocations first.
    Count,
    /// Oldest outstanding allocation first.
    Age,
    /// Largest growth in bytes since the report before first.
    Growth,
}

/// How a report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Spec section 2.
    Text,
    /// Spec section 5: one object a line.
    Json,
}

/// What a report holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportSettings {
    /// Text or JSON.
    pub format: Format,
    /// How many stacks at most.
    pub top: usize,
    /// Order of the stacks.
    pub sort: SortKey,
    /// List each outstanding allocation (`-a`).
    pub show_allocs: bool,
    /// Leave out ages and addresses (`-C`).
    pub combined_only: bool,
    /// Leave out allocations younger than this (`-o`).
    pub older: Duration,
    /// One acquire in this many was captured (`-s`); 1 for all.
    pub sample_rate: u64,
    /// Reports go here instead of standard output.
    pub output: Option<PathBuf>,
}

/// What is captured, in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureSettings {
    /// Smallest size in bytes (`-z`).
    pub min_size: u64,
    /// Largest size in bytes (`-Z`).
    pub max_size: u64,
    /// Print each acquire and release as it happens (`-t`).
    pub trace: bool,
    /// Trace children of the target too.
    pub follow_forks: bool,
    /// Room for outstanding allocations.
    pub max_allocs: u32,
    /// Room for stacks.
    pub stack_storage_size: u32,
    /// Most frames of a stack.
    pub max_depth: u32,
    /// Take the allocator functions from these objects only (`-O`): paths or library names.
    pub object: Option<String>,
    /// The allocator's symbols carry this prefix (`-S`).
    pub symbols_prefix: Option<String>,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What is traced.
    pub target: TargetSpec,
    /// Time between reports.
    pub interval: Duration,
    /// Number of reports; `None` for endless.
    pub count: Option<u64>,
    /// What is captured.
    pub capture: CaptureSettings,
    /// What a report holds.
    pub report: ReportSettings,
    /// Exit status when the last report holds an outstanding allocation (`--error-exitcode`).
    pub error_exitcode: Option<u8>,
    /// `-v`: 0, 1, 2...
    pub verbosity: u8,
}
