//! Checked, resolved settings: what the rest of the program works with.

mod kernel;
mod listen;
mod push;
mod report;
mod resources;
mod select;
mod units;
mod usage;
mod why;

use std::{collections::BTreeSet, ffi::OsString, time::Duration};

use memleak_common::{probe::Resource, stack::MAX_STACK_DEPTH};

pub use crate::report::model::SortKey;
pub use kernel::{KernelOptions, KernelProbes};
use kernel::{refuse_kernel_options, resolve_kernel};
pub use listen::ListenAddress;
use listen::parse_listen;
use push::parse_push;
pub use push::{PushProtocol, PushTarget};
use report::resolve_report;
pub use report::{
    ColorChoice, ReportSettings, parse_top, resolve_color, resolve_conditions, resolve_files, resolve_filter,
    resolve_look,
};
use select::resolve_selectors;
use units::{parse_duration, parse_interval, parse_size};
pub use usage::UsageError;
use usage::{MAX_PID, WholeNumber, non_empty, one_of};
use why::resolve_why;
pub use why::{WhyMode, WhyOf, WhySettings};

use crate::{
    cli::{self, Cli},
    exit::{self, ExitMessage, Stream},
    probe::{
        resource::{Catalog, ResourceInfo},
        spec::UserResource,
        table::Row,
    },
    stderr,
    target::selector::Selector,
};

/// What is traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetSpec {
    /// Running processes.
    Pids(BTreeSet<u32>),
    /// Running processes, and those that these selectors take now and later.
    Members {
        /// Traced as they are.
        pids: BTreeSet<u32>,
        /// At least one.
        selectors: Vec<Selector>,
    },
    /// A command to start: program and arguments.
    Command(Vec<OsString>),
    /// The kernel's allocators.
    Kernel(KernelOptions),
}

/// How stacks are walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum UnwindMode {
    /// By unwind tables; one step by the frame pointer if there is no row.
    Auto,
    /// By unwind tables alone.
    Dwarf,
    /// By frame pointers alone.
    Fp,
    /// By the kernel's `bpf_get_stackid`: what the bench compares with. Reports have no stacks.
    #[value(hide = true)]
    Kernel,
}

/// What is captured, in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureSettings {
    /// What is traced (`-r`): built-in resources, and after them those that users have described.
    pub resources: Vec<Resource>,
    /// Those that users have described, by the number of [`Resource::Custom`].
    pub user_resources: Vec<UserResource>,
    /// Their rows of the probe table.
    pub user_rows: Vec<Row>,
    /// Smallest size in bytes (`-z`).
    pub min_size: u64,
    /// Largest size in bytes (`-Z`).
    pub max_size: u64,
    /// Print each acquire and release as it happens (`-t`).
    pub trace: bool,
    /// Trace children of the target too.
    pub follow_forks: bool,
    /// Most outstanding allocations that are kept; `None`: as many as there is room for.
    pub max_allocs: Option<u32>,
    /// Kernel memory for the table of heap blocks, bytes; `None`: the default.
    pub max_memory: Option<u64>,
    /// Keep how much each stack has released, and at what age.
    pub lifetimes: bool,
    /// Room for stacks, so many; `None`: as many as the memory is enough for.
    pub stack_storage_size: Option<u32>,
    /// Most frames of a stack.
    pub max_depth: u32,
    /// How stacks are walked.
    pub unwind: UnwindMode,
    /// Take the allocator functions from these objects only (`-O`): paths or library names.
    pub object: Option<String>,
    /// The allocator's symbols carry this prefix (`-S`).
    pub symbols_prefix: Option<String>,
    /// Attach programs that do nothing: what the traps alone cost (`--traps-only`, for the bench).
    pub traps_only: bool,
    /// At functions that release alone (`--releases-only`, for the doctor).
    pub releases_only: bool,
    /// Count descriptors at the C library's functions, and not at system calls (`--library-calls`).
    pub library_calls: bool,
    /// Count ranges of addresses at system calls (`--system-calls`).
    pub system_calls: bool,
}

impl CaptureSettings {
    /// The resources that are traced.
    pub fn catalog(&self) -> Catalog {
        Catalog::new(self.resources.iter().map(|resource| match resource {
            Resource::Custom(number) => match self.user_resources.get(usize::from(*number)) {
                Some(user) => ResourceInfo::of_user(*resource, user),
                None => ResourceInfo::built_in(*resource),
            },
            built_in => ResourceInfo::built_in(*built_in),
        }))
    }
}

/// Where others get what is found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FleetSettings {
    /// They ask here (`--listen`).
    pub listen: Option<ListenAddress>,
    /// They are sent reports (`--push`).
    pub push: Option<PushTarget>,
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
    /// The run ends after this time (`--duration`).
    pub duration: Option<Duration>,
    /// It outlives its terminal (`--detach`).
    pub detach: bool,
    /// What is captured.
    pub capture: CaptureSettings,
    /// What a report holds.
    pub report: ReportSettings,
    /// What is said of the heap (`--why`).
    pub why: Option<WhySettings>,
    /// Where others get what is found.
    pub fleet: FleetSettings,
    /// Exit status when the last report holds an outstanding allocation (`--error-exitcode`).
    pub error_exitcode: Option<u8>,
    /// A filter of system calls is put up once probes are in (not with `--no-seccomp`).
    pub seccomp: bool,
    /// `-v`: 0, 1, 2...
    pub verbosity: u8,
    /// What the user should know before all else, a line each.
    pub warnings: Vec<String>,
}

/// Most entries a BPF hash map can have: its buckets, a power of two, must number less than 2^32 /
/// 16 (`htab_map_alloc` in kernel/bpf/hashtab.c; 16 is the size of its `struct bucket`).
const MAX_MAP_ENTRIES: u64 = 1 << 27;

const COUNT: WholeNumber = WholeNumber {
    what: "COUNT",
    min: 1,
    max: u64::MAX,
    remedy: "give the number of reports, or leave it out for no end",
};
const MAX_DEPTH: WholeNumber = WholeNumber {
    what: "--max-depth",
    min: 1,
    max: MAX_STACK_DEPTH as u64,
    remedy: "give the maximum number of frames of a stack",
};
const STACK_STORAGE_SIZE: WholeNumber = WholeNumber {
    what: "--stack-storage-size",
    min: 1,
    max: MAX_MAP_ENTRIES,
    remedy: "give the number of different stacks to make room for, such as 16384",
};
const MAX_ALLOCS: WholeNumber = WholeNumber {
    what: "--max-allocs",
    min: 1,
    max: MAX_MAP_ENTRIES,
    remedy: "give the number of outstanding allocations to make room for, such as 1000000",
};
const ERROR_EXITCODE: WholeNumber = WholeNumber {
    what: "--error-exitcode",
    min: 0,
    max: u8::MAX as u64,
    remedy: "give the exit status for a run that ends with something outstanding, such as 99",
};

impl Settings {
    /// Reads and checks a command line; `args` begins with the program's name.
    pub fn from_args<I, T>(args: I) -> Result<Self, ExitMessage>
    where
        I: IntoIterator<Item = T>,
        T: Into<OsString> + Clone,
    {
        let cli = cli::parse(args)?;
        if cli.list_resources {
            let (text, warnings) = resources::list(&cli)?;
            for warning in warnings {
                stderr::line(&format!("warning: {warning}"));
            }
            return Err(ExitMessage { status: exit::DONE, stream: Stream::Stdout, text });
        }
        Ok(Self::resolve(cli)?)
    }

    /// Checks what was typed. Besides the command line it looks at files of resources alone:
    /// whether a process or another file exists shows later.
    pub fn resolve(cli: Cli) -> Result<Self, UsageError> {
        if cli.completions.is_some() {
            let why = "there are other options beside it";
            return Err(UsageError::new("--completions", why, "type memleak --completions SHELL alone"));
        }
        let interval = parse_interval(&cli.interval)?;
        let count = cli.count.as_deref().map(|text| COUNT.parse(text)).transpose()?;
        let error_exitcode =
            cli.error_exitcode.as_deref().map(|text| ERROR_EXITCODE.parse(text)).transpose()?;
        let selection = resources::select(&cli)?;
        let capture = CaptureSettings {
            resources: selection.resources,
            user_resources: selection.user,
            user_rows: selection.rows,
            ..resolve_capture(&cli)?
        };
        let report = resolve_report(&cli)?;
        let why = resolve_why(&cli, &capture.resources)?;
        Ok(Self {
            target: resolve_target(&cli)?,
            interval,
            count,
            duration: cli.duration.as_deref().map(parse_duration).transpose()?,
            detach: cli.detach,
            capture,
            report,
            why,
            fleet: FleetSettings {
                listen: cli.fleet.listen.as_deref().map(parse_listen).transpose()?,
                push: cli.fleet.push.as_deref().map(parse_push).transpose()?,
            },
            // As with valgrind, 0 turns it off.
            error_exitcode: error_exitcode.filter(|code| *code != exit::DONE),
            seccomp: !cli.no_seccomp,
            verbosity: cli.verbose,
            warnings: selection.warnings,
        })
    }
}

fn resolve_target(cli: &Cli) -> Result<TargetSpec, UsageError> {
    const HOW: &str = "type memleak -p PID, memleak --name NAME, memleak -c 'COMMAND ARG...', memleak -- COMMAND ARG... or memleak --kernel";
    let selects = cli.select.given();
    let given: Vec<&str> = [
        // Both are processes.
        (!cli.pids.is_empty() && selects.is_none(), "-p"),
        (selects.is_some(), selects.unwrap_or_default()),
        (cli.command.is_some(), "-c"),
        (!cli.command_line.is_empty(), "-- COMMAND"),
        (cli.kernel, "-k"),
    ]
    .into_iter()
    .filter_map(|(is_given, name)| is_given.then_some(name))
    .collect();
    match given.as_slice() {
        [] => return Err(no_target(cli, HOW)),
        [_] => {}
        several => {
            let why = format!("{} were given, and one run traces one kind", several.join(" and "));
            return Err(UsageError::new("more than one target", why, "keep one of them"));
        }
    }
    if cli.kernel {
        return resolve_kernel(cli).map(TargetSpec::Kernel);
    }
    refuse_kernel_options(cli)?;
    match &cli.command {
        Some(line) => split_command(line).map(TargetSpec::Command),
        None if selects.is_some() => {
            let pids = if cli.pids.is_empty() { BTreeSet::new() } else { parse_pids(&cli.pids)? };
            Ok(TargetSpec::Members { pids, selectors: resolve_selectors(&cli.select)? })
        }
        None if cli.pids.is_empty() => {
            checked_command("--", cli.command_line.clone()).map(TargetSpec::Command)
        }
        None => parse_pids(&cli.pids).map(TargetSpec::Pids),
    }
}

/// A number alone may have been meant for a process.
fn no_target(cli: &Cli, how: &str) -> UsageError {
    let number = &cli.interval;
    // The default is 5: no process of a user's has so low a number.
    let may_be_process = number.parse::<u64>().is_ok_and(|number| (6..=MAX_PID).contains(&number));
    match &cli.count {
        None if may_be_process => {
            let why = format!("{number} alone is a number of seconds, and nothing says what to trace");
            UsageError::new(
                "no target",
                why,
                format!("to trace process {number} type memleak -p {number}; or {how}"),
            )
        }
        _ => UsageError::new("no target", "nothing says what to trace", how),
    }
}

/// Takes commas and white space between process IDs: `-p "$(pidof NAME)"` gives the latter.
fn parse_pids(values: &[String]) -> Result<BTreeSet<u32>, UsageError> {
    const WHAT: &str = "-p/--pid";
    const HOW: &str = "give the number that pidof NAME or ps prints";
    let mut pids = BTreeSet::new();
    for text in values.iter().flat_map(|value| value.split(|c: char| c == ',' || c.is_whitespace())) {
        if text.is_empty() {
            continue;
        }
        let pid = text.parse::<u64>().ok().filter(|pid| (1..=MAX_PID).contains(pid));
        let pid = pid.and_then(|pid| u32::try_from(pid).ok());
        pids.insert(pid.ok_or_else(|| UsageError::new(WHAT, format!("'{text}' is not a process ID"), HOW))?);
    }
    if pids.is_empty() {
        return Err(UsageError::new(WHAT, "it is empty", "is the program running? Try: pidof NAME"));
    }
    Ok(pids)
}

fn split_command(line: &str) -> Result<Vec<OsString>, UsageError> {
    let words = shell_words::split(line).map_err(|_| {
        let why = format!("a quote in '{line}' has no end");
        UsageError::new("-c/--command", why, "close it, or put the command after -- unquoted")
    })?;
    checked_command("-c/--command", words.into_iter().map(OsString::from).collect())
}

fn checked_command(what: &str, words: Vec<OsString>) -> Result<Vec<OsString>, UsageError> {
    match words.first() {
        Some(program) if !program.is_empty() => Ok(words),
        _ => Err(UsageError::new(what, "the command is empty", "name a program to start")),
    }
}

fn resolve_capture(cli: &Cli) -> Result<CaptureSettings, UsageError> {
    let min_size = cli.min_size.as_deref().map_or(Ok(0), |text| parse_size("-z/--min-size", text))?;
    let max_size = cli.max_size.as_deref().map_or(Ok(u64::MAX), |text| parse_size("-Z/--max-size", text))?;
    if min_size > max_size {
        let why = format!("{min_size} bytes are more than the {max_size} of -Z/--max-size");
        return Err(UsageError::new("-z/--min-size", why, "swap the two, or leave one out"));
    }
    Ok(CaptureSettings {
        resources: Vec::new(),
        user_resources: Vec::new(),
        user_rows: Vec::new(),
        min_size,
        max_size,
        trace: cli.trace,
        follow_forks: cli.follow_forks,
        max_allocs: cli.max_allocs.as_deref().map(|text| MAX_ALLOCS.parse(text)).transpose()?,
        lifetimes: !cli.no_lifetimes,
        max_memory: cli.max_memory.as_deref().map(|text| parse_size("--max-memory", text)).transpose()?,
        stack_storage_size: cli
            .stack_storage_size
            .as_deref()
            .map(|text| STACK_STORAGE_SIZE.parse(text))
            .transpose()?,
        max_depth: MAX_DEPTH.parse(&cli.max_depth)?,
        unwind: cli
            .unwind
            .as_deref()
            .map_or(Ok(UnwindMode::Auto), |text| one_of("--unwind", "way to walk a stack", text))?,
        object: non_empty("-O/--obj", "name a file or a library such as libc", cli.object.as_deref())?,
        symbols_prefix: non_empty(
            "-S/--symbols-prefix",
            "give a prefix such as je_",
            cli.symbols_prefix.as_deref(),
        )?,
        traps_only: cli.traps_only,
        releases_only: cli.releases_only,
        library_calls: cli.library_calls,
        system_calls: cli.system_calls,
    })
}
