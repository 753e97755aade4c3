//! What a form of reports is.

use std::{
    fmt,
    io::{self, Write},
};

use jiff::tz::TimeZone;

use crate::report::{
    model::{Report, SortKey, StackReport},
    trace::EventLine,
};

/// A form that can be asked for.
#[derive(Clone, Copy)]
pub struct Kind {
    /// The name that `--format` takes.
    pub name: &'static str,
    /// It can also write single events (`-t`).
    pub has_events: bool,
    /// Makes one.
    pub new: fn(&Options) -> Box<dyn Format>,
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Kind {}

/// What a form depends on besides the report.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many stacks of each table a list has (`-T`); bcc's heading names it as well.
    pub top: usize,
    /// Their order, where a form puts stacks together before it lists them.
    pub sort: SortKey,
    /// Whose time of day a heading shows.
    pub time_zone: TimeZone,
    /// How the form for people looks.
    pub style: Style,
    /// What the widths of a flame graph are.
    pub flamegraph_by: Measure,
    /// The last report ends with a summary.
    pub summary: bool,
    /// By what each site is split.
    pub split_by: Option<SplitBy>,
}

impl Options {
    /// In the system's time zone (`TZ` or /etc/localtime; UTC if neither can be read).
    pub fn new(top: usize) -> Self {
        Self {
            top,
            sort: SortKey::Size,
            time_zone: TimeZone::system(),
            style: Style::default(),
            flamegraph_by: Measure::default(),
            summary: false,
            split_by: None,
        }
    }
}

/// What is measured of stacks that are folded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Measure {
    /// Outstanding bytes.
    #[default]
    Bytes,
    /// How many are outstanding.
    Count,
    /// Bytes by which it has grown since the report before.
    Growth,
    /// Bytes that were acquired since tracing began.
    Acquired,
}

impl Measure {
    /// The number of a stack; of a resource without a size, how many.
    pub fn of(self, stack: &StackReport) -> u64 {
        let by_size = |bytes, count| if stack.resource.has_size { bytes } else { count };
        match self {
            Self::Bytes => by_size(stack.bytes, stack.count),
            Self::Count => stack.count,
            Self::Growth => {
                let growth = if stack.resource.has_size { stack.growth_bytes } else { stack.growth_count };
                u64::try_from(growth).unwrap_or(0)
            }
            Self::Acquired => {
                let calls = stack.history.calls.unwrap_or_default();
                by_size(calls.bytes_acquired, calls.acquired)
            }
        }
    }
}

/// By what each site is split in the form for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SplitBy {
    /// By process.
    Process,
    /// By the thread that has acquired it.
    Thread,
    /// By size of the blocks.
    Size,
}

/// How the form for people looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Style {
    /// With colours.
    pub color: bool,
    /// Frames of libraries too, and all of a path.
    pub full_stacks: bool,
    /// Names with all their template arguments and parameters.
    pub full_names: bool,
    /// Lines of sources beside stacks, where a form has room for them.
    pub with_source: bool,
    /// Columns; `None`: as many as the terminal has.
    pub width: Option<usize>,
}

impl Style {
    /// Columns of a line: as many as asked for, as the terminal has, as `COLUMNS` says, or 80.
    pub fn columns(self) -> usize {
        /// A window of a few columns shows nothing; then lines may be broken.
        const FEWEST: usize = 40;
        let terminal = || {
            let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
            Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
        };
        let variable = || std::env::var("COLUMNS").ok()?.parse().ok();
        self.width.or_else(terminal).or_else(variable).unwrap_or(80).max(FEWEST)
    }
}

/// The stacks that a form writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The top ones of each table: no others' frames are looked up.
    Top,
    /// All.
    All,
}

/// The reports that a form writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// Each: they follow on each other.
    Each,
    /// The last alone: readers of the form would add up what follows on each other.
    Last,
}

/// One form.
pub trait Format: fmt::Debug + Send {
    /// The stacks that it writes.
    fn scope(&self) -> Scope {
        Scope::Top
    }

    /// The reports that it writes.
    fn occasion(&self) -> Occasion {
        Occasion::Each
    }

    /// It writes what each thread has acquired: [`StackReport::threads`] is wanted.
    ///
    /// [`StackReport::threads`]: crate::report::model::StackReport::threads
    fn needs_threads(&self) -> bool {
        false
    }

    /// It writes single blocks: [`StackReport::blocks`] is wanted.
    ///
    /// [`StackReport::blocks`]: crate::report::model::StackReport::blocks
    fn needs_blocks(&self) -> bool {
        false
    }

    /// Writes a report.
    fn report(&self, report: &Report, out: &mut dyn Write) -> io::Result<()>;

    /// Writes an event; nothing if the form has none ([`Kind::has_events`]).
    fn event(&self, _event: &EventLine, _out: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }
}

/// A form of the last report alone, of all its stacks: that of a file.
#[derive(Debug)]
pub(super) struct FileForm {
    options: Options,
    needs_blocks: bool,
    write: WriteFile,
}

/// Writes a report's file.
type WriteFile = fn(&Report, &Options, &mut dyn Write) -> io::Result<()>;

impl FileForm {
    /// `needs_blocks`: see [`Format::needs_blocks`].
    pub(super) fn boxed(options: &Options, needs_blocks: bool, write: WriteFile) -> Box<dyn Format> {
        Box::new(Self { options: options.clone(), needs_blocks, write })
    }
}

impl Format for FileForm {
    fn scope(&self) -> Scope {
        Scope::All
    }

    fn occasion(&self) -> Occasion {
        Occasion::Last
    }

    fn needs_blocks(&self) -> bool {
        self.needs_blocks
    }

    fn report(&self, report: &Report, out: &mut dyn Write) -> io::Result<()> {
        (self.write)(report, &self.options, out)
    }
}
