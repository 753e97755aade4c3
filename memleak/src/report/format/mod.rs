//! The forms in which reports are written.
//!
//! A new one is a file in this folder, with a [`Kind`], and its line in [`KINDS`].

use std::{
    fmt,
    io::{self, Write},
};

use jiff::tz::TimeZone;

use super::{model::Report, trace::EventLine};

pub mod folded;
pub mod json;
pub mod text;

/// All forms: what `--format` takes, the first where nothing is asked for.
pub static KINDS: [Kind; 3] = [text::KIND, json::KIND, folded::KIND];

/// A form that can be asked for.
#[derive(Clone, Copy)]
pub struct Kind {
    /// The name that `--format` takes.
    pub name: &'static str,
    /// It can write single events, too (`-t`).
    pub has_events: bool,
    /// Makes one.
    pub new: fn(&Options) -> Box<dyn Format>,
}

impl Kind {
    /// The form of this name.
    pub fn named(name: &str) -> Option<Self> {
        KINDS.iter().find(|kind| kind.name.eq_ignore_ascii_case(name)).copied()
    }
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
    /// How many stacks of each table a list has (`-T`); bcc's heading names it, too.
    pub top: usize,
    /// Whose time of day a heading shows.
    pub time_zone: TimeZone,
}

impl Options {
    /// In the system's time zone (`TZ` or /etc/localtime; UTC where neither can be read).
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

    /// Writes an event; nothing where the form has none ([`Kind::has_events`]).
    fn event(&self, _event: &EventLine, _out: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }
}
