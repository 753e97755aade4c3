//! Checked, resolved settings: what the rest of the program works with.

mod kernel;
mod resources;
mod usage;
mod why;

use std::{collections::BTreeSet, ffi::OsString, time::Duration};

use memleak_common::{probe::Resource, stack::MAX_STACK_DEPTH};

pub use crate::report::model::SortKey;
pub use kernel::{KernelOptions, KernelProbes};
use kernel::{refuse_kernel_options, resolve_kernel};
pub use usage::UsageError;
use usage::{MAX_PID, WholeNumber, non_empty, one_of};
use why::resolve_why;
pub use why::{WhyMode, WhySettings};

use crate::{
    cli::{self, Cli, FileArguments, FilterArguments, LookArguments},
    exit::{self, ExitMessage, Stream},
    probe::{
        resource::{Catalog, ResourceInfo},
        spec::UserResource,
        table::Row,
    },
    report::{
        condition::FailCondition,
        files::ReportFile,
        filter::{Filter, Pattern},
        format::{self, FILE_KINDS, KINDS, Kind, Measure, Options, SplitBy, Style, folded, human, json},
        output::OutputFile,
        suppressions::Suppressions,
    },
    stderr,
};

/// What is traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetSpec {
    /// Running processes.
    Pids(BTreeSet<u32>),
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

/// What a report holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportSettings {
    /// How it is written; `None`: for people on a terminal, for scripts elsewhere
    /// ([`Self::format_on`]).
    pub format: Option<Kind>,
    /// Colours, as they are asked for.
    pub color: ColorChoice,
    /// Frames of libraries too, in the form for people.
    pub full_stacks: bool,
    /// Names in full, in the form for people.
    pub full_names: bool,
    /// By what each site is split, in the form for people.
    pub split_by: Option<SplitBy>,
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
    pub output: Option<OutputFile>,
    /// Files of the last report in other forms.
    pub files: Vec<ReportFile>,
    /// What the widths of a flame graph are.
    pub flamegraph_by: Measure,
    /// The last report ends with a summary.
    pub summary: bool,
    /// Stacks that are left out.
    pub filter: Filter,
    /// What makes the run fail (`--fail-if`).
    pub fail_if: Vec<FailCondition>,
}

/// Whether there are to be colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless `NO_COLOR` is set; `CLICOLOR_FORCE` asks for them everywhere.
    #[default]
    Auto,
    /// Yes.
    Always,
    /// No.
    Never,
}

impl ColorChoice {
    /// Whether there are colours on standard output, a terminal or not, with these variables of the
    /// environment.
    pub fn on(self, is_terminal: bool, variable: impl Fn(&str) -> Option<OsString>) -> bool {
        let is_set = |name: &str| variable(name).is_some_and(|value| !value.is_empty() && value != "0");
        match self {
            Self::Always => true,
            Self::Never => false,
            // Any value that is not empty, 0 too (no-color.org).
            Self::Auto if variable("NO_COLOR").is_some_and(|value| !value.is_empty()) => false,
            Self::Auto if is_set("CLICOLOR_FORCE") => true,
            Self::Auto => is_terminal && variable("TERM").is_some_and(|term| term != "dumb"),
        }
    }
}

impl ReportSettings {
    /// The form of reports on standard output, which is a terminal or not.
    pub fn format_on(&self, is_terminal: bool) -> Kind {
        let [for_scripts, ..] = KINDS;
        match self.format {
            Some(kind) => kind,
            None if is_terminal && self.output.is_none() => human::KIND,
            None => for_scripts,
        }
    }
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
    /// Room for stacks.
    pub stack_storage_size: u32,
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
    /// Count descriptors at the C library's functions, and not at system calls (`--library-calls`).
    pub library_calls: bool,
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
    /// What is captured.
    pub capture: CaptureSettings,
    /// What a report holds.
    pub report: ReportSettings,
    /// What is said of the heap (`--why`).
    pub why: Option<WhySettings>,
    /// Exit status when the last report holds an outstanding allocation (`--error-exitcode`).
    pub error_exitcode: Option<u8>,
    /// `-v`: 0, 1, 2...
    pub verbosity: u8,
    /// What the user should know before all else, a line each.
    pub warnings: Vec<String>,
}

/// Most entries a BPF hash map can have: its buckets, a power of two, must number less than 2^32 /
/// 16 (`htab_map_alloc` in kernel/bpf/hashtab.c; 16 is the size of its `struct bucket`).
const MAX_MAP_ENTRIES: u64 = 1 << 27;

/// Longest INTERVAL in seconds: 136 years, which no timer overflows on.
const MAX_INTERVAL_SECONDS: f64 = u32::MAX as f64;

/// Shortest INTERVAL in seconds: below it a report would follow on the other without a pause.
const MIN_INTERVAL_SECONDS: f64 = 0.001;

const COUNT: WholeNumber = WholeNumber {
    what: "COUNT",
    min: 1,
    max: u64::MAX,
    remedy: "give the number of reports, or leave it out for no end",
};
const TOP: WholeNumber = WholeNumber {
    what: "-T/--top",
    min: 1,
    max: u64::MAX,
    remedy: "give the number of stacks to print, such as 10",
};
const OLDER: WholeNumber = WholeNumber {
    what: "-o/--older",
    min: 0,
    max: u64::MAX,
    remedy: "give an age in milliseconds, 0 to leave nothing out",
};
const SAMPLE_RATE: WholeNumber = WholeNumber {
    what: "-s/--sample-rate",
    min: 1,
    max: 1 << 31, // the BPF side draws 32 random bits
    remedy: "give N to trace one allocation in N, 1 for all",
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
            capture,
            report,
            why,
            // As with valgrind, 0 turns it off.
            error_exitcode: error_exitcode.filter(|code| *code != exit::DONE),
            verbosity: cli.verbose,
            warnings: selection.warnings,
        })
    }
}

fn resolve_target(cli: &Cli) -> Result<TargetSpec, UsageError> {
    const HOW: &str =
        "type memleak -p PID, memleak -c 'COMMAND ARG...', memleak -- COMMAND ARG... or memleak --kernel";
    let given: Vec<&str> = [
        (!cli.pids.is_empty(), "-p"),
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
        stack_storage_size: match &cli.stack_storage_size {
            Some(text) => STACK_STORAGE_SIZE.parse(text)?,
            // The kernel has fewer, and kernel mode takes the memory for them in advance.
            None if cli.kernel => 16_384,
            None => 65_536,
        },
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
        library_calls: cli.library_calls,
    })
}

fn resolve_report(cli: &Cli) -> Result<ReportSettings, UsageError> {
    if cli.show_allocs && cli.combined_only {
        let why = "-a lists ages and addresses, and -C keeps them out of the report";
        return Err(UsageError::new("-a with -C", why, "keep one of them"));
    }
    if cli.append && cli.output.is_none() {
        let why = "there is no file to append to";
        return Err(UsageError::new("--append", why, "name it with --output FILE, or leave --append out"));
    }
    let look = resolve_look(&cli.look, &cli.files)?;
    Ok(ReportSettings {
        format: resolve_format(cli)?,
        color: look.color,
        full_stacks: look.full_stacks,
        full_names: look.full_names,
        split_by: look.split_by,
        top: look.top,
        sort: look.sort,
        show_allocs: cli.show_allocs,
        combined_only: cli.combined_only,
        older: Duration::from_millis(OLDER.parse(&cli.older)?),
        sample_rate: SAMPLE_RATE.parse(&cli.sample_rate)?,
        output: cli.output.clone().map(|path| OutputFile { path, append: cli.append }),
        files: resolve_files(&cli.files)?,
        flamegraph_by: look.flamegraph_by,
        summary: cli.summary,
        filter: resolve_filter(&cli.filters)?,
        fail_if: resolve_conditions(&cli.fail_if, false)?,
    })
}

/// How reports look, whether they are made now or read again.
#[derive(Clone, Copy, Debug)]
pub struct Appearance {
    /// How many stacks at most.
    pub top: usize,
    /// Order of the stacks.
    pub sort: SortKey,
    /// Colours, as they are asked for.
    pub color: ColorChoice,
    /// Frames of libraries too, in the form for people.
    pub full_stacks: bool,
    /// Names in full, in the form for people.
    pub full_names: bool,
    /// By what each site is split, in the form for people.
    pub split_by: Option<SplitBy>,
    /// What the widths of a flame graph are.
    pub flamegraph_by: Measure,
}

impl Appearance {
    /// What formats are told, if standard output is a terminal or not.
    pub fn options(&self, is_terminal: bool) -> Options {
        let style = Style {
            color: self.color.on(is_terminal, |name| std::env::var_os(name)),
            full_stacks: self.full_stacks,
            full_names: self.full_names,
            width: None,
        };
        let Self { top, sort, flamegraph_by, split_by, .. } = *self;
        Options { sort, style, flamegraph_by, split_by, ..Options::new(top) }
    }
}

impl ReportSettings {
    /// How reports look.
    pub fn appearance(&self) -> Appearance {
        let Self { top, sort, color, full_stacks, full_names, flamegraph_by, split_by, .. } = *self;
        Appearance { top, sort, color, full_stacks, full_names, flamegraph_by, split_by }
    }
}

/// How reports look.
pub fn resolve_look(look: &LookArguments, files: &FileArguments) -> Result<Appearance, UsageError> {
    Ok(Appearance {
        top: parse_top(&look.top)?,
        sort: one_of("--sort", "sort key", &look.sort)?,
        color: resolve_color(&look.color)?,
        full_stacks: look.full_stacks,
        full_names: look.full_names,
        split_by: look.by.as_deref().map(|by| one_of("--by", "way to split a site", by)).transpose()?,
        flamegraph_by: one_of("--flamegraph-by", "measure", &files.flamegraph_by)?,
    })
}

/// Whether there are to be colours.
pub fn resolve_color(text: &str) -> Result<ColorChoice, UsageError> {
    one_of("--color", "choice of colours", text)
}

/// How many stacks are printed.
pub fn parse_top(text: &str) -> Result<usize, UsageError> {
    TOP.parse(text)
}

/// What is left out of reports.
pub fn resolve_filter(filters: &FilterArguments) -> Result<Filter, UsageError> {
    let patterns = |what: &str, texts: &[String]| {
        let pattern = |text: &String| {
            let wrong = |why| {
                UsageError::new(
                    what,
                    format!("'{text}': {why}"),
                    "give a module's name or a regular expression",
                )
            };
            Pattern::new(text).map_err(wrong)
        };
        texts.iter().map(pattern).collect::<Result<Vec<_>, _>>()
    };
    let mut suppressions = (!filters.suppressions.is_empty()).then(Suppressions::known);
    for path in &filters.suppressions {
        let what = format!("--suppressions {}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| {
            UsageError::new(&what, format!("cannot be read: {error}"), "name a file of suppressions")
        })?;
        let rules = Suppressions::parse(&text).map_err(|why| {
            UsageError::new(&what, why, "write leak:PATTERN, or a suppression as valgrind's")
        })?;
        suppressions.get_or_insert_default().extend(rules);
    }
    Ok(Filter {
        only: patterns("--only", &filters.only)?,
        hide: patterns("--hide", &filters.hide)?,
        suppressions,
    })
}

/// What makes a run fail. Only with two reports something can be new.
pub fn resolve_conditions(texts: &[String], has_two: bool) -> Result<Vec<FailCondition>, UsageError> {
    const HOW: &str = "give growth>SIZE, new, lost>N or leak";
    texts.iter().map(|text| resolve_condition(text, has_two, HOW)).collect()
}

fn resolve_condition(text: &str, has_two: bool, how: &str) -> Result<FailCondition, UsageError> {
    const WHAT: &str = "--fail-if";
    let limit =
        |text: &str| parse_size(WHAT, text).map_err(|error| UsageError { remedy: how.to_owned(), ..error });
    match text.split_once('>').map(|(what, limit)| (what.trim(), limit)) {
        Some(("growth", size)) => Ok(FailCondition::Growth(limit(size)?)),
        Some(("lost", number)) => Ok(FailCondition::Lost(limit(number)?)),
        None if text == "leak" => Ok(FailCondition::Leak),
        None if text == "new" && has_two => Ok(FailCondition::New),
        None if text == "new" => {
            let why = "one run has no stacks that were not there before";
            Err(UsageError::new("--fail-if new", why, "save both and compare them: memleak diff OLD NEW"))
        }
        _ => Err(UsageError::new(WHAT, format!("'{text}' is not a condition"), how)),
    }
}

/// The files that are asked for. Only one of them can go to standard output.
pub fn resolve_files(files: &FileArguments) -> Result<Vec<ReportFile>, UsageError> {
    let files: Vec<ReportFile> = FILE_KINDS
        .iter()
        .filter_map(|kind| Some(ReportFile { kind: *kind, path: files.path_of(kind.name)?.to_owned() }))
        .collect();
    let mut at_stdout = files.iter().filter(|file| file.is_stdout());
    if let (Some(one), Some(other)) = (at_stdout.next(), at_stdout.next()) {
        let why = format!("--{} goes to standard output as well", one.kind.name);
        return Err(UsageError::new(&format!("--{} -", other.kind.name), why, "name a file for one of them"));
    }
    Ok(files)
}

/// The form that is asked for, by its name or by an option of its own; `None` if none is.
fn resolve_format(cli: &Cli) -> Result<Option<Kind>, UsageError> {
    const WHAT: &str = "--format";
    let named = cli.format.as_deref().map(|name| {
        format::named(name).ok_or_else(|| {
            let names = KINDS.map(|kind| kind.name).join(", ");
            UsageError::new(WHAT, format!("'{name}' is not a format"), format!("give one of {names}"))
        })
    });
    let asked = [named.transpose()?, cli.json.then_some(json::KIND), cli.folded.then_some(folded::KIND)];
    let mut asked = asked.into_iter().flatten();
    let Some(kind) = asked.next() else { return Ok(None) };
    if let Some(other) = asked.find(|other| *other != kind) {
        let why = format!("{} and {} were both asked for", kind.name, other.name);
        return Err(UsageError::new(WHAT, why, "keep one of them"));
    }
    if cli.trace && !kind.has_events {
        let why = format!("{} has no lines for the events of -t/--trace", kind.name);
        return Err(UsageError::new(WHAT, why, "leave out -t, or take another format"));
    }
    Ok(Some(kind))
}

/// Seconds, or a time with its unit.
fn seconds(text: &str) -> Option<f64> {
    // The longer one first: s is the end of both.
    const UNITS: [(&str, f64); 4] = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let text = text.trim();
    let with_unit = UNITS.iter().find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, *seconds)));
    let (number, factor) = with_unit.unwrap_or((text, 1.0));
    // What f64 reads besides numbers ("inf", "nan") is no time.
    let number = number.parse::<f64>().ok().filter(|number| number.is_finite())?;
    Some(number * factor)
}

fn parse_duration(text: &str) -> Result<Duration, UsageError> {
    let found = seconds(text).filter(|seconds| *seconds > 0.0 && *seconds <= MAX_INTERVAL_SECONDS);
    found.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).ok_or_else(|| {
        let why = format!("'{text}' is not a time");
        UsageError::new("--duration", why, "give seconds, or a time such as 500ms, 60s, 10m or 1h")
    })
}

fn parse_interval(text: &str) -> Result<Duration, UsageError> {
    let seconds = seconds(text);
    let seconds = seconds.filter(|seconds| (MIN_INTERVAL_SECONDS..=MAX_INTERVAL_SECONDS).contains(seconds));
    // The range leaves out NaN and whatever no Duration can hold.
    seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).ok_or_else(|| {
        let why = format!(
            "'{text}' is not a number of seconds from {MIN_INTERVAL_SECONDS} to {MAX_INTERVAL_SECONDS}"
        );
        UsageError::new("INTERVAL", why, "give one such as 5 or 0.5; a command to trace goes after --")
    })
}

/// A size in bytes with an optional suffix: K, M or G, powers of 1024.
fn parse_size(what: &str, text: &str) -> Result<u64, UsageError> {
    let text = text.trim();
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let size = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    size.ok_or_else(|| {
        UsageError::new(what, format!("'{text}' is not a size"), "give bytes, such as 4096, 64K, 16M or 1G")
    })
}
