//! The view on a terminal (`--tui`): reports as they come, to be sorted, searched and looked into.
//!
//! It runs in a thread of its own, which gets reports and gives requests. Whoever makes reports
//! never waits for it: a report is put where the thread finds it, in the place of one that it has
//! not looked at. `terminal` has the terminal, `keys` reads it, `rows` makes a table of a report,
//! `state` is what the user sees of it, and `table` and `detail` draw that.

#[cfg(feature = "tui")]
mod canvas;
#[cfg(feature = "tui")]
mod detail;
#[cfg(feature = "tui")]
mod keys;
#[cfg(not(feature = "tui"))]
mod none;
#[cfg(feature = "tui")]
mod rows;
#[cfg(feature = "tui")]
mod state;
#[cfg(feature = "tui")]
mod table;
#[cfg(feature = "tui")]
mod terminal;
#[cfg(feature = "tui")]
mod view;

use std::{io, path::PathBuf};

use crate::report::format::SplitBy;

#[cfg(not(feature = "tui"))]
pub use none::{NoView as View, check};
#[cfg(feature = "tui")]
pub use {
    keys::{Decoder, Keystroke},
    rows::{Row, SortColumn},
    state::{Action, State},
    table::draw,
    view::{View, check},
};

/// What the user asks of the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ViewRequest {
    /// The end, with a last report.
    Quit,
    /// A report of now in this file, in the form that its name says.
    Write(PathBuf),
    /// Reports tell what each thread has acquired, from now on; or no longer do.
    Threads(bool),
    /// Nothing more: the terminal has gone.
    Gone,
}

/// How it looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ViewLook {
    /// With colours.
    pub color: bool,
    /// Names with all their template arguments and parameters.
    pub full_names: bool,
    /// Lines of sources beside their stacks.
    pub with_source: bool,
    /// Each process, or each thread, by itself.
    pub split_by: Option<SplitBy>,
}

/// Why there is no view: one line.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// It was left out when memleak was built.
    #[error("--tui: this memleak was built without it; leave it out, or build with --features tui")]
    NotBuilt,
    /// It cannot be shown anywhere.
    #[error("--tui: standard output is no terminal; run it in one, or leave --tui out")]
    NoTerminal,
    /// The system says so.
    #[error("--tui: cannot use the terminal: {0}; leave it out")]
    System(#[from] io::Error),
}
