//! memleak: a leak tracer for Linux processes.
//!
//! The data runs one way: arguments -> settings -> target -> plan -> load and attach -> events in
//! the kernel -> snapshot -> aggregate -> symbolize -> report. ARCHITECTURE.md draws it.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod account;
pub mod aggregate;
pub mod arch;
mod bpf;
pub mod cli;
pub mod doctor;
pub mod elf;
pub mod escape;
pub mod exit;
pub mod heap;
pub(crate) mod hurry;
pub mod kernel_labels;
mod near;
pub mod objects;
pub mod offline;
pub mod probe;
pub mod proc;
mod recent;
pub mod report;
mod rights;
pub mod sampling;
pub mod serve;
pub mod session;
pub mod settings;
pub mod signals;
pub mod sites;
pub mod snapshot;
pub mod stderr;
pub mod symbolize;
pub mod target;
mod targets;
pub mod tui;
pub mod unwind;
pub mod verdict;
pub mod words;
