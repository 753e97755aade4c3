//! What a form of reports is.

use std::{
    fmt,
    io::{self, Write},
};

use jiff::tz::TimeZone;

use crate::report::{model::Report, trace::EventLine};

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
    /// Whose time of day a heading shows.
    pub time_zone: TimeZone,
}

impl Options {
    /// In the system's time zone (`TZ` or /etc/localtime; UTC if neither can be read).
    pub fn new(top: usize) -> Self {
        Self { top, time_zone: TimeZone::system() }
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

    /// Writes a report.
    fn report(&self, report: &Report, out: &mut dyn Write) -> io::Result<()>;

    /// Writes an event; nothing if the form has none ([`Kind::has_events`]).
    fn event(&self, _event: &EventLine, _out: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }
}
