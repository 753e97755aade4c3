//! The forms in which reports are written.
//!
//! A new one is a file in this folder, with a [`Kind`], and its line in [`KINDS`].

mod blocks;
mod clock;
pub mod dot;
pub mod firefox;
pub mod flamegraph;
pub mod folded;
mod heap_graph;
pub mod heaptrack;
pub mod html;
pub mod human;
pub mod json;
mod kind;
pub(crate) mod line;
pub(crate) mod lost;
mod memory;
pub(crate) mod oom;
pub(crate) mod path;
pub mod perfetto;
pub mod pprof;
mod protobuf;
pub mod saved;
pub mod speedscope;
mod summary;
pub mod text;
mod why;

pub use kind::{Format, Kind, Measure, Occasion, Options, Scope, SplitBy, Style};

/// All forms: what `--format` takes, the first if nothing is asked for.
pub static KINDS: [Kind; 4] = [text::KIND, human::KIND, json::KIND, folded::KIND];

/// The form of this name.
pub fn named(name: &str) -> Option<Kind> {
    KINDS.iter().find(|kind| kind.name.eq_ignore_ascii_case(name)).copied()
}

/// The forms that have files of their own, beside what `--format` says: each is an option of its
/// name.
pub static FILE_KINDS: [Kind; 9] = [
    flamegraph::KIND,
    pprof::KIND,
    heaptrack::KIND,
    html::KIND,
    speedscope::KIND,
    firefox::KIND,
    perfetto::KIND,
    dot::KIND,
    saved::KIND,
];
