//! What reports hold, how they look and where they go.

use std::{ffi::OsString, time::Duration};

use memleak_common::sampling::MAX_SAMPLE_BYTES;

use super::{
    units::parse_size,
    usage::{UsageError, WholeNumber, one_of},
};
use crate::{
    cli::{Cli, FileArguments, FilterArguments, LookArguments},
    report::{
        condition::FailCondition,
        files::ReportFile,
        filter::{Filter, Pattern},
        format::{self, FILE_KINDS, KINDS, Kind, Measure, Options, SplitBy, Style, folded, human, json},
        model::SortKey,
        output::OutputFile,
        suppressions::Suppressions,
    },
    sampling::Sampling,
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

/// What a report holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportSettings {
    /// A view shows them (`--tui`).
    pub tui: bool,
    /// How it is written; `None`: for people on a terminal, for scripts elsewhere
    /// ([`Self::format_on`]).
    pub format: Option<Kind>,
    /// Colours, as they are asked for.
    pub color: ColorChoice,
    /// Frames of libraries too, in the form for people.
    pub full_stacks: bool,
    /// Names in full, in the form for people.
    pub full_names: bool,
    /// Lines of sources, where there is room for them.
    pub with_source: bool,
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
    /// Which acquires are captured (`-s`, `--sample-bytes`).
    pub sampling: Sampling,
    /// Reports go here instead of standard output.
    pub output: Option<OutputFile>,
    /// Files of the last report in other forms.
    pub files: Vec<ReportFile>,
    /// What the widths of a flame graph are.
    pub flamegraph_by: Measure,
    /// The last report ends with a summary.
    pub summary: bool,
    /// Stacks are listed whose allocations are released at once.
    pub temporary: bool,
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

/// What reports hold, as the command line asks for.
pub(super) fn resolve_report(cli: &Cli) -> Result<ReportSettings, UsageError> {
    if cli.show_allocs && cli.combined_only {
        let why = "-a lists ages and addresses, and -C keeps them out of the report";
        return Err(UsageError::new("-a with -C", why, "keep one of them"));
    }
    if cli.append && cli.output.is_none() {
        let why = "there is no file to append to";
        return Err(UsageError::new("--append", why, "name it with --output FILE, or leave --append out"));
    }
    if cli.temporary && (cli.no_lifetimes || cli.kernel) {
        let (with, why) = match cli.kernel {
            true => ("--kernel", "how long the kernel's objects live is not kept"),
            false => ("--no-lifetimes", "how long blocks live is not kept then"),
        };
        return Err(UsageError::new(&format!("--temporary with {with}"), why, "keep one of them"));
    }
    let look = resolve_look(&cli.look, &cli.files)?;
    let format = resolve_format(cli)?;
    let files = resolve_files(&cli.files)?;
    if cli.tui {
        check_view(cli, format, &files)?;
    }
    Ok(ReportSettings {
        tui: cli.tui,
        format,
        color: look.color,
        full_stacks: look.full_stacks,
        full_names: look.full_names,
        with_source: look.with_source,
        split_by: look.split_by,
        top: look.top,
        sort: look.sort,
        show_allocs: cli.show_allocs,
        combined_only: cli.combined_only,
        older: Duration::from_millis(OLDER.parse(&cli.older)?),
        sampling: resolve_sampling(cli)?,
        output: cli.output.clone().map(|path| OutputFile { path, append: cli.append }),
        files,
        flamegraph_by: look.flamegraph_by,
        summary: cli.summary,
        temporary: cli.temporary,
        filter: resolve_filter(&cli.filters)?,
        fail_if: resolve_conditions(&cli.fail_if, false)?,
    })
}

/// A view has standard output for itself.
fn check_view(cli: &Cli, format: Option<Kind>, files: &[ReportFile]) -> Result<(), UsageError> {
    let to_stdout = files.iter().find(|file| file.is_stdout());
    let other = match (cli.output.is_some(), to_stdout) {
        (_, Some(file)) => Some(file.name()),
        (false, None) if cli.trace => Some("-t".to_owned()),
        (false, None) => {
            format.filter(|kind| *kind != human::KIND).map(|kind| format!("--format {}", kind.name))
        }
        (true, None) => None,
    };
    match other {
        Some(other) => {
            let why = "the view has the terminal, and this would be written there as well";
            Err(UsageError::new(&format!("--tui with {other}"), why, "name a file for it (--output FILE)"))
        }
        None => Ok(()),
    }
}

/// Which acquires are captured.
fn resolve_sampling(cli: &Cli) -> Result<Sampling, UsageError> {
    const WHAT: &str = "--sample-bytes";
    let rate: u64 = SAMPLE_RATE.parse(&cli.sample_rate)?;
    let Some(text) = &cli.sample_bytes else {
        return Ok(if rate > 1 { Sampling::OneIn(rate) } else { Sampling::All });
    };
    if rate > 1 {
        let why = "-s samples by number, and --sample-bytes by bytes";
        return Err(UsageError::new("-s with --sample-bytes", why, "keep one of them"));
    }
    let mean = parse_size(WHAT, text)?;
    if !(1..=MAX_SAMPLE_BYTES).contains(&mean) {
        let why = format!("'{text}' is not from 1 to 1024G");
        return Err(UsageError::new(WHAT, why, "give the bytes that go to a sample, such as 512K"));
    }
    Ok(Sampling::Bytes(mean))
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
    /// Lines of sources, where there is room for them.
    pub with_source: bool,
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
            with_source: self.with_source,
            width: None,
        };
        let Self { top, sort, flamegraph_by, split_by, .. } = *self;
        Options { sort, style, flamegraph_by, split_by, ..Options::new(top) }
    }
}

impl ReportSettings {
    /// How reports look.
    pub fn appearance(&self) -> Appearance {
        let Self { top, sort, color, full_stacks, full_names, with_source, flamegraph_by, split_by, .. } =
            *self;
        Appearance { top, sort, color, full_stacks, full_names, with_source, flamegraph_by, split_by }
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
        with_source: look.with_source,
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
    let how = match has_two {
        true => "give growth>SIZE, new, lost>N or leak",
        false => "give growth>SIZE (such as growth>1M), lost>N or leak",
    };
    texts.iter().map(|text| resolve_condition(text, has_two, how)).collect()
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
