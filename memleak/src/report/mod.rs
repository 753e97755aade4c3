//! A report: a snapshot, aggregated and symbolized, and the ways to write it.
//!
//! It knows no settings: what a form depends on is in its [`format::Options`].

pub mod call_sites;
pub mod condition;
pub(crate) mod descriptors;
pub mod files;
pub mod filter;
pub mod format;
pub mod model;
pub mod names;
pub mod output;
pub(crate) mod sink;
pub mod source;
pub mod suppressions;
pub mod threads;
pub mod trace;
pub mod why;
