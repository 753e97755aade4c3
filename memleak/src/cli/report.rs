//! Options of what is reported, how it looks and which files it goes to.

use std::path::PathBuf;

/// Heading of the files of the last report.
const FILES: &str = "Files (of the last report, whole or not at all)";

/// How reports look, and in which order.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct LookArguments {
    /// How many stacks to print
    #[arg(short = 'T', long, value_name = "N", default_value = "10", help_heading = "What is reported")]
    pub top: String,

    /// Order of the stacks: size, count, age, growth (since the report before) or verdict
    #[arg(long, value_name = "KEY", default_value = "size", help_heading = "What is reported")]
    pub sort: String,

    /// Colours: auto (on a terminal, as NO_COLOR and CLICOLOR_FORCE say), always or never
    #[arg(long, value_name = "WHEN", default_value = "auto", help_heading = "What is reported")]
    pub color: String,

    /// On a terminal: split each site by process, thread or size
    #[arg(long, value_name = "WHAT", help_heading = "What is reported")]
    pub by: Option<String>,

    /// On a terminal: show frames of libraries too, and whole paths
    #[arg(long, help_heading = "What is reported")]
    pub full_stacks: bool,

    /// Show lines of sources, if they are on this machine: in the view of --tui, in the page of
    /// --html
    #[arg(long, help_heading = "What is reported")]
    pub with_source: bool,

    /// On a terminal: show names with all their template arguments
    #[arg(long, help_heading = "What is reported")]
    pub full_names: bool,
}

/// What is left out of reports by what is in its stacks.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct FilterArguments {
    /// Report only stacks with a frame of this module (its file's name) or function (a regular
    /// expression); repeatable
    #[arg(long, value_name = "WHAT", help_heading = "What is reported")]
    pub only: Vec<String>,

    /// Leave out stacks with a frame like this; repeatable
    #[arg(long, value_name = "REGEX", help_heading = "What is reported")]
    pub hide: Vec<String>,

    /// Leave out the known leaks of FILE: lines leak:PATTERN as of LeakSanitizer, or valgrind's
    /// suppressions; repeatable
    #[arg(long, value_name = "FILE", help_heading = "What is reported")]
    pub suppressions: Vec<PathBuf>,
}

/// Files in other forms: of the last report, and of a saved one.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct FileArguments {
    /// Write a flame graph (SVG) of the last report to FILE; - is standard output here and below
    #[arg(long, value_name = "FILE", help_heading = FILES)]
    pub flamegraph: Option<PathBuf>,

    /// What the widths of the flame graph are: bytes, count, growth (since the report before) or
    /// acquired
    #[arg(long, value_name = "WHAT", default_value = "bytes", help_heading = FILES)]
    pub flamegraph_by: String,

    /// Write a profile for go tool pprof, Pyroscope, Parca (compressed by gzip)
    #[arg(long, value_name = "FILE", help_heading = FILES)]
    pub pprof: Option<PathBuf>,

    /// Write a data file for heaptrack_gui; compressed if FILE ends in .gz or .zst
    #[arg(long, value_name = "FILE", help_heading = FILES)]
    pub heaptrack: Option<PathBuf>,

    /// Write a page for a browser: table, flame graph, totals over time; it needs no network
    #[arg(long, value_name = "FILE", help_heading = FILES)]
    pub html: Option<PathBuf>,

    /// Write a profile for speedscope (name it FILE.speedscope.json)
    #[arg(long, value_name = "FILE", help_heading = FILES)]
    pub speedscope: Option<PathBuf>,

    /// Write a profile for the Firefox Profiler
    #[arg(long, value_name = "FILE", help_heading = FILES)]
    pub firefox: Option<PathBuf>,

    /// Write a trace for ui.perfetto.dev
    #[arg(long, value_name = "FILE", help_heading = FILES)]
    pub perfetto: Option<PathBuf>,

    /// With --why: write the circles as a graph for dot (Graphviz)
    #[arg(long, value_name = "FILE", help_heading = FILES)]
    pub why_dot: Option<PathBuf>,

    /// Write all of the last report, to make any other form of later: memleak report FILE, memleak
    /// diff OLD NEW
    #[arg(long, value_name = "FILE", help_heading = FILES)]
    pub save: Option<PathBuf>,
}

impl FileArguments {
    /// The file of the form of this name.
    pub fn path_of(&self, form: &str) -> Option<&std::path::Path> {
        let path = match form {
            "flamegraph" => &self.flamegraph,
            "pprof" => &self.pprof,
            "heaptrack" => &self.heaptrack,
            "html" => &self.html,
            "speedscope" => &self.speedscope,
            "firefox" => &self.firefox,
            "perfetto" => &self.perfetto,
            "why-dot" => &self.why_dot,
            "save" => &self.save,
            _ => &None,
        };
        path.as_deref()
    }
}
