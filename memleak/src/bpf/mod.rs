//! The side of the BPF programs: loads and attaches them, writes plans into their maps and reads
//! snapshots out. Only this module talks to aya and to the `bpf` system call. From the ground up:
//!
//! - `error`, `sys` (bpf(2)), `access` (maps and programs by name);
//! - `config` (what a run asks for), `object` (the embedded object), `multi` and `uprobes`
//!   (programs), `links`;
//! - `closer` (ends links beside the run), `births` (notices of children and new programs);
//! - `targets`, `records`, `rings`, `cut`, `stack_store`, `unwind_maps`, `mapping_states`, `stats`
//!   (maps), `runs` (what the kernel counts), `registers` (an iterator);
//! - `user_mode` and `kernel_mode` (loading), `reader` (snapshots);
//! - `tracer`, which is all that a session sees.

mod access;
mod births;
mod blocks;
mod closer;
mod config;
mod cut;
mod error;
mod growth;
mod kernel_mode;
mod links;
mod maker;
mod mapped;
mod mapping_states;
mod multi;
mod object;
mod perf_events;
mod reader;
mod records;
mod registers;
mod rings;
mod room;
mod runs;
mod stack_store;
mod stats;
mod sys;
mod targets;
mod tracer;
mod unwind_maps;
mod uprobes;
mod usdt;
mod user_mode;

use std::time::Duration;

pub(crate) use access::can_write_to_targets;
pub(crate) use births::Births;
pub(crate) use config::{Config, Walk, answering_threads};
pub(crate) use error::BpfError;
pub(crate) use growth::MovedPages;
pub(crate) use links::Scope;
pub(crate) use room::{STACKS_OF_KERNEL, stacks_of_processes};
pub(crate) use runs::{ProgramRuns, RunStatistics};
pub(crate) use tracer::{Tracer, UserStart};

/// Longest time that a process is held at its birth.
pub(crate) const HOLD: Duration = Duration::from_nanos(memleak_common::settings::HOLD_BIRTH_NS);
