//! clap types: the command line as it is typed. `settings` checks and resolves it.
//!
//! Values are kept as text: one place (`settings`) says in one line what is wrong with them.

mod fleet;
mod help;
mod report;
mod select;

use std::{ffi::OsString, path::PathBuf};

use clap::{
    ArgMatches, CommandFactory as _, FromArgMatches as _, Parser,
    error::{ContextKind, ContextValue, ErrorKind},
};

pub use fleet::FleetArguments;
use help::{AFTER_HELP, SHORT_HELP};
pub use report::{FileArguments, FilterArguments, LookArguments};
pub use select::SelectArguments;

use crate::exit::{self, ExitMessage, Stream};

const RESOURCES: &str = "Resources (what is acquired and released)";

/// One `--acquire` or `--release`, as it was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pair {
    /// The value of `--acquire`.
    Acquire(String),
    /// The value of `--release`.
    Release(String),
}

/// Heading of the options that go with --kernel.
const KERNEL_MODE: &str = "Kernel mode (with --kernel)";

/// Shows which stacks of a running process hold its memory: no rebuild, no restart
#[derive(Clone, Debug, Parser)]
#[command(
    name = "memleak",
    version,
    after_help = AFTER_HELP,
    disable_help_flag = true,
    args_override_self = true, // the last one wins, as with bcc's memleak
    override_usage = "memleak [OPTIONS] [INTERVAL] [COUNT]\n       \
                      memleak [OPTIONS] [INTERVAL] [COUNT] -- COMMAND [ARG...]"
)]
pub struct Cli {
    /// Time between reports: seconds, fractions allowed, or with a unit (500ms, 5s, 10m, 1h)
    #[arg(value_name = "INTERVAL", default_value = "5")]
    pub interval: String,

    /// Number of reports [default: endless]
    #[arg(value_name = "COUNT")]
    pub count: Option<String>,

    /// End after this time, with a last report: seconds, or with a unit (60s, 10m)
    #[arg(long, value_name = "TIME", help_heading = "What is reported")]
    pub duration: Option<String>,

    /// End with a summary: calls, the most that was outstanding and when, what was lost
    #[arg(long, help_heading = "What is reported")]
    pub summary: bool,

    /// Print completions for SHELL (bash, zsh, fish, elvish) and exit; the first argument
    #[arg(long, value_name = "SHELL")]
    pub completions: Option<String>,

    /// After --: run COMMAND and trace it from its first instruction
    #[arg(value_name = "COMMAND", last = true, help_heading = "Target (exactly one kind)")]
    pub command_line: Vec<OsString>,

    /// Trace a running process; repeatable, or a comma list
    #[arg(short = 'p', long = "pid", value_name = "PID", help_heading = "Target (exactly one kind)")]
    pub pids: Vec<String>,

    /// Processes by what people know of them
    #[command(flatten)]
    pub select: SelectArguments,

    /// Start CMD, split into words as a shell would, and trace it from its first instruction
    #[arg(short = 'c', long, value_name = "CMD", help_heading = "Target (exactly one kind)")]
    pub command: Option<String>,

    /// Trace the kernel's allocators: slab caches, pages, vmalloc
    #[arg(short = 'k', long, help_heading = "Target (exactly one kind)")]
    pub kernel: bool,

    /// Also trace the target's children and their descendants, whatever programs they run
    #[arg(long, help_heading = "Target (exactly one kind)")]
    pub follow_forks: bool,

    /// Trace these resources; repeatable, or a comma list [default: heap,mmap, or all of
    /// --resources-file]
    #[arg(short = 'r', long = "resource", value_name = "NAME", help_heading = RESOURCES)]
    pub resources: Vec<String>,

    /// Print the resources that can be named with -r, one a line, and exit
    #[arg(long, help_heading = RESOURCES)]
    pub list_resources: bool,

    /// A function that hands out a resource: 'OBJECT:FUNCTION -> ret' (see Resources below);
    /// repeatable
    #[arg(long, value_name = "SPEC", help_heading = RESOURCES)]
    pub acquire: Vec<String>,

    /// A function that releases it: 'OBJECT:FUNCTION(arg1)'; belongs to the --acquire before it;
    /// repeatable
    #[arg(long, value_name = "SPEC", help_heading = RESOURCES)]
    pub release: Vec<String>,

    /// Both of the above, in the order in which they were typed
    #[arg(skip)]
    pub pairs: Vec<Pair>,

    /// Also take resources from this TOML file; repeatable
    #[arg(long = "resources-file", value_name = "FILE", help_heading = RESOURCES)]
    pub resources_files: Vec<PathBuf>,

    /// Show what makes the process grow: pages of memory that are still there, by the stack that
    /// touched each first; no function is probed, which costs next to nothing and works for any
    /// program (the same as -r growth)
    #[arg(long, help_heading = RESOURCES)]
    pub growth: bool,

    /// Take an allocator's own samples (its USDT probes otel_memory:alloc and otel_memory:free),
    /// with the bytes that each stands for, and probe no function; an error if the target has none
    /// (the same as -r otel-memory)
    #[arg(long, help_heading = RESOURCES)]
    pub usdt: bool,

    /// Count mappings (the resource mmap) at system calls, and not at the C library's functions:
    /// raw calls and the break are seen as well, and what allocators map for themselves unless heap
    /// is traced too
    #[arg(long, help_heading = RESOURCES)]
    pub system_calls: bool,

    /// Count descriptors at the C library's functions, and not at system calls
    #[arg(long, hide = true)]
    pub library_calls: bool,

    /// Capture allocations of at least SIZE bytes; suffixes K, M, G (1024-based)
    #[arg(short = 'z', long, value_name = "SIZE", help_heading = "What is captured")]
    pub min_size: Option<String>,

    /// Capture allocations of at most SIZE bytes; suffixes K, M, G (1024-based)
    #[arg(short = 'Z', long, value_name = "SIZE", help_heading = "What is captured")]
    pub max_size: Option<String>,

    /// Trace every N-th allocation; reports are then scaled estimates
    #[arg(short = 's', long, value_name = "N", default_value = "1", help_heading = "What is captured")]
    pub sample_rate: String,

    /// Capture heap blocks by their bytes, one sample in SIZE on average (512K): large blocks
    /// always, small ones by chance; numbers are estimates, with their margin
    #[arg(long, value_name = "SIZE", help_heading = "What is captured")]
    pub sample_bytes: Option<String>,

    /// Take the allocator functions from this object, a path or a library's name [default: what the
    /// target links]
    #[arg(short = 'O', long = "obj", value_name = "OBJECT", help_heading = "What is captured")]
    pub object: Option<String>,

    /// The allocator's symbols carry this prefix (je_, tc_, mi_)
    #[arg(short = 'S', long, value_name = "PREFIX", help_heading = "What is captured")]
    pub symbols_prefix: Option<String>,

    /// Also trace per-CPU allocations
    #[arg(short = 'P', long, help_heading = KERNEL_MODE)]
    pub percpu: bool,

    /// How to instrument the kernel: auto (tracepoints, and kprobes for what has none), tracepoint
    /// or kprobe [default: auto]
    #[arg(long, value_name = "HOW", help_heading = KERNEL_MODE)]
    pub kernel_probes: Option<String>,

    /// Capture objects of this slab cache only (kmalloc-64, dentry; see /proc/slabinfo)
    #[arg(long, value_name = "NAME", help_heading = KERNEL_MODE)]
    pub slab: Option<String>,

    /// Only kernel allocations made by this process
    #[arg(long, value_name = "PID", help_heading = KERNEL_MODE)]
    pub only_pid: Option<String>,

    /// Only kernel allocations made by threads of this command name
    #[arg(long, value_name = "NAME", help_heading = KERNEL_MODE)]
    pub only_comm: Option<String>,

    /// Accepted for compatibility with bcc; always on
    #[arg(short = 'F', long, help_heading = "What is captured")]
    pub wa_missing_free: bool,

    /// Maximum number of frames of a stack, 1 to 127
    #[arg(long, value_name = "N", default_value = "127", help_heading = "What is captured")]
    pub max_depth: String,

    /// Maximum number of distinct stacks kept [default: 262144, or from 65536 on as many as an
    /// eighth of the memory is enough for; 16384 with --kernel]
    #[arg(long, value_name = "N", help_heading = "What is captured")]
    pub stack_storage_size: Option<String>,

    /// Maximum number of outstanding allocations kept [default: as many as --max-memory has room
    /// for]
    #[arg(long, value_name = "N", help_heading = "What is captured")]
    pub max_allocs: Option<String>,

    /// Kernel memory that the table of heap blocks may take [default: 2G, or an eighth of the
    /// memory if that is less]
    #[arg(long, value_name = "SIZE", help_heading = "What is captured")]
    pub max_memory: Option<String>,

    /// Do not keep how much each stack has released, and at what age
    #[arg(long, help_heading = "What is captured")]
    pub no_lifetimes: bool,

    /// How stacks are walked: auto (unwind tables, and the frame pointer if a file has none),
    /// dwarf or fp [default: auto]
    #[arg(long, value_name = "HOW", help_heading = "What is captured")]
    pub unwind: Option<String>,

    /// Attach programs that do nothing: what the traps alone cost (cargo xtask bench)
    #[arg(long, hide = true)]
    pub traps_only: bool,

    /// With --traps-only: at functions that release, and at no others (memleak doctor)
    #[arg(long, hide = true, requires = "traps_only")]
    pub releases_only: bool,

    /// Kernel mode: compare what is remembered of stacks with what the kernel's walk gives (a test)
    #[arg(long, hide = true)]
    pub check_stacks: bool,

    /// Print each acquire and release as it happens
    #[arg(short = 't', long, help_heading = "What is reported")]
    pub trace: bool,

    /// List each outstanding allocation (address, size, age) above its stack
    #[arg(short = 'a', long, help_heading = "What is reported")]
    pub show_allocs: bool,

    /// Keep totals for each stack only: no ages or addresses in the report
    #[arg(short = 'C', long, help_heading = "What is reported")]
    pub combined_only: bool,

    /// Leave out allocations younger than MS milliseconds
    #[arg(short = 'o', long, value_name = "MS", default_value = "500", help_heading = "What is reported")]
    pub older: String,

    /// With each report: the stacks whose allocations were released at once, in numbers
    #[arg(long, help_heading = "What is reported")]
    pub temporary: bool,

    /// Show reports on the terminal as they come, to sort, search and look into; ? shows the keys
    #[arg(long, help_heading = "What is reported")]
    pub tui: bool,

    /// Go on when the terminal goes (a dropped ssh), as with --save and other files
    #[arg(long, help_heading = "What is reported")]
    pub detach: bool,

    /// How reports look
    #[command(flatten)]
    pub look: LookArguments,

    /// How reports are written: text, human, json or folded [default: human on a terminal, text in
    /// a pipe or file]
    #[arg(long, value_name = "NAME", help_heading = "What is reported")]
    pub format: Option<String>,

    /// Say what of the heap is lost, which blocks hold each other in a circle, and what holds the
    /// rest: at the last report. --why=exact stops the target for it, which makes epoll_wait and a
    /// few other calls return EINTR
    #[arg(
        long,
        value_name = "HOW",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "scans",
        help_heading = "What is reported"
    )]
    pub why: Option<String>,

    /// With --why: at every N-th report, too
    #[arg(long, value_name = "N", help_heading = "What is reported")]
    pub why_every: Option<String>,

    /// With --why: say what holds the block at ADDRESS, or the blocks of TYPE
    #[arg(long, value_name = "ADDRESS|TYPE", help_heading = "What is reported")]
    pub why_of: Option<String>,

    /// With --why=exact: leave it out if the target would be stopped for longer than MS
    /// milliseconds [default: 1000]
    #[arg(long, value_name = "MS", help_heading = "What is reported")]
    pub max_pause: Option<String>,

    /// Write each report as one line of JSON: --format json
    #[arg(long, help_heading = "What is reported")]
    pub json: bool,

    /// Write the last report as folded stacks, for flame graphs: --format folded
    #[arg(long, help_heading = "What is reported")]
    pub folded: bool,

    /// Write reports to FILE, not to standard output; what was in it is replaced when the first
    /// report is ready
    #[arg(long, value_name = "FILE", help_heading = "What is reported")]
    pub output: Option<PathBuf>,

    /// With --output: add to what is in FILE
    #[arg(long, help_heading = "What is reported")]
    pub append: bool,

    /// Files in other forms
    #[command(flatten)]
    pub files: FileArguments,

    /// What is left out
    #[command(flatten)]
    pub filters: FilterArguments,

    /// Where others get what is found
    #[command(flatten)]
    pub fleet: FleetArguments,

    /// Exit with 3 if this holds at the end: growth>SIZE (since the first report), lost>N, or leak;
    /// repeatable
    #[arg(long, value_name = "CONDITION", help_heading = "What is reported")]
    pub fail_if: Vec<String>,

    /// Exit with N (1 to 255) if the last report holds an outstanding allocation
    #[arg(long, value_name = "N", help_heading = "What is reported")]
    pub error_exitcode: Option<String>,

    /// Put up no filter of system calls once probes are in
    #[arg(long)]
    pub no_seccomp: bool,

    /// More detail on standard error; -vv for debug output
    #[arg(short = 'v', long, action = clap::ArgAction::Count)]
    pub verbose: u8,

    /// Print the most used options, on one screen
    #[arg(short = 'h')]
    pub short_help: bool,

    /// Print all options, with examples
    #[arg(long, action = clap::ArgAction::HelpLong)]
    pub help: Option<bool>,
}

/// Reads a command line; `args` begins with the program's name.
///
/// `--help` and `--version` come back as an [`ExitMessage`] for standard output, a command line
/// that clap cannot read as one line for standard error.
pub fn parse<I, T>(args: I) -> Result<Cli, ExitMessage>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    // A negative number is a wrong value, to be called so by `settings`, and no option of that
    // name.
    let command = Cli::command().mut_args(|arg| {
        let takes_values = arg.get_action().takes_values();
        arg.allow_negative_numbers(takes_values)
    });
    command
        .try_get_matches_from(args)
        .and_then(|matches| {
            let mut cli = Cli::from_arg_matches(&matches)?;
            cli.pairs = pairs(&cli, &matches);
            Ok(cli)
        })
        .map_err(|error| exit_message(&error))
        .and_then(|cli| match cli.short_help {
            true => {
                Err(ExitMessage { status: exit::DONE, stream: Stream::Stdout, text: SHORT_HELP.to_owned() })
            }
            false => Ok(cli),
        })
}

/// `--acquire` and `--release` in the order of the command line.
fn pairs(cli: &Cli, matches: &ArgMatches) -> Vec<Pair> {
    let places = |id: &str| matches.indices_of(id).into_iter().flatten();
    let acquires = places("acquire").zip(cli.acquire.iter().cloned().map(Pair::Acquire));
    let releases = places("release").zip(cli.release.iter().cloned().map(Pair::Release));
    let mut pairs: Vec<(usize, Pair)> = acquires.chain(releases).collect();
    pairs.sort_by_key(|(place, _)| *place);
    pairs.into_iter().map(|(_, pair)| pair).collect()
}

/// One line for what clap says in several.
pub(crate) fn exit_message(error: &clap::Error) -> ExitMessage {
    let argument = context(error, ContextKind::InvalidArg);
    let value = context(error, ContextKind::InvalidValue);
    let line = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let text = error.render().to_string();
            return ExitMessage { status: exit::DONE, stream: Stream::Stdout, text };
        }
        ErrorKind::UnknownArgument if !argument.starts_with('-') => {
            format!(
                "'{argument}': one argument too many; after INTERVAL and COUNT nothing may follow, \
                     put a command to trace after --: memleak -- COMMAND [ARG...]"
            )
        }
        ErrorKind::UnknownArgument => match context(error, ContextKind::SuggestedArg).as_str() {
            "" => format!(
                "{argument}: no such option; see memleak --help, and put a command's own options after --"
            ),
            suggested => {
                format!("{argument}: no such option; did you mean {suggested}? (see memleak --help)")
            }
        },
        ErrorKind::InvalidValue if value.is_empty() && argument.contains("--pid") => {
            "--pid: no process ID follows; is the program running? Try: pidof NAME".to_owned()
        }
        ErrorKind::InvalidValue if value.is_empty() => {
            format!("{argument}: its value is missing; write it after the option, see memleak --help")
        }
        ErrorKind::TooManyValues => {
            format!("{argument}: takes no value, but '{value}' was given; leave the value out")
        }
        ErrorKind::InvalidUtf8 => {
            "an argument is not UTF-8 text: only FILE and the words of a command after -- \
                                   may be anything; write it in UTF-8"
                .to_owned()
        }
        // Nothing that this command line can give today; still one line, should clap learn
        // something new.
        _ => {
            let rendered = error.render().to_string();
            let first = rendered.lines().next().unwrap_or_default();
            format!("{}: cannot be read; see memleak --help", first.trim_start_matches("error: "))
        }
    };
    ExitMessage::error(exit::USAGE, &line)
}

/// A detail of clap's error as text; empty if it has none of that kind.
fn context(error: &clap::Error, kind: ContextKind) -> String {
    match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(", "),
        _ => String::new(),
    }
}
