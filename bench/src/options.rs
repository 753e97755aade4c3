//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Measures what tracing costs, beside the bare traps, bcc's memleak, heaptrack and valgrind
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
pub(crate) struct Options {
    /// How often everything is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Seconds of traced time for each measurement
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(2..))]
    pub seconds: u32,
    /// Outstanding allocations of the big report
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub allocations: u64,
    /// Measure attaching to a process that maps 150 MB of code, and nothing else
    #[arg(long, conflicts_with = "rustc")]
    pub attach: bool,
    /// With --attach: another memleak, to be measured in turn with this one
    #[arg(long, value_name = "PROGRAM", requires = "attach", conflicts_with = "write")]
    pub beside: Option<PathBuf>,
    /// Measure whole runs of rustc, and nothing else
    #[arg(long)]
    pub rustc: bool,
    /// Measure kernel mode: what tracing costs those who have the kernel allocate
    #[arg(long)]
    pub kernel: bool,
    /// Measure looking through a heap of 5 million blocks (--why), and nothing else
    #[arg(long)]
    pub why: bool,
    /// Measure a pair of malloc and free under other loads (threads, bursts, very many stacks,
    /// blocks that stay), and nothing else
    #[arg(long)]
    pub loads: bool,
    /// With --loads: beside a loop that keeps one CPU busy
    #[arg(long, requires = "loads")]
    pub loaded: bool,
    /// Measure a real server under load, and nothing else
    #[arg(long)]
    pub redis: bool,
    /// Measure reports over 1 and 10 million blocks, and nothing else
    #[arg(long)]
    pub reports: bool,
    /// Measures nothing: compares reports of threads that allocate as fast as they can with their
    /// own diaries
    #[arg(long, conflicts_with = "write")]
    pub stress: bool,
    /// With --stress: for how long
    #[arg(long, requires = "stress", default_value_t = 10.0)]
    pub minutes: f64,
    /// Measure this memleak, where one would be built from the sources
    #[arg(long, value_name = "PROGRAM")]
    pub program: Option<PathBuf>,
    /// Write the result to BENCHMARKS.md too
    #[arg(long)]
    pub write: bool,
}
