//! The forms in which reports are written.
//!
//! A new one is a file in this folder, with a [`Kind`], and its line in [`KINDS`].

pub mod folded;
pub mod json;
mod kind;
mod memory;
pub mod text;
mod why;

pub use kind::{Format, Kind, Occasion, Options, Scope};

/// All forms: what `--format` takes, the first if nothing is asked for.
pub static KINDS: [Kind; 3] = [text::KIND, json::KIND, folded::KIND];

/// The form of this name.
pub fn named(name: &str) -> Option<Kind> {
    KINDS.iter().find(|kind| kind.name.eq_ignore_ascii_case(name)).copied()
}
