//! A report: a snapshot, aggregated and symbolized, and the ways to write it.
//!
//! It knows no settings: what a form depends on is in its [`format::Options`].

pub(crate) mod descriptors;
pub mod format;
pub mod model;
pub mod output;
pub(crate) mod sink;
pub mod trace;
pub mod why;
