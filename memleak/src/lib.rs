//! memleak: a leak tracer for Linux processes.
//!
//! The data runs one way: arguments -> settings -> target -> plan -> load and attach -> events in the kernel ->
//! snapshot -> aggregate -> symbolize -> report. ARCHITECTURE.md draws it.

pub mod aggregate;
pub mod arch;
pub mod bpf;
pub mod cli;
pub mod escape;
pub mod exit;
pub mod kernel_labels;
pub mod near;
pub mod probe;
pub mod proc;
pub mod report;
pub mod session;
pub mod settings;
pub mod snapshot;
pub mod stderr;
pub mod symbolize;
pub mod target;
pub mod targets;
pub mod unwind;
