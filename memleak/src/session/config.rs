//! What the command line asks of the BPF programs.

use super::members;
use crate::{
    bpf::{Config, STACKS_OF_KERNEL, Walk, stacks_of_processes},
    proc::memory_limit::memory_left,
    settings::{Settings, TargetSpec, UnwindMode},
};

/// The programs' part of the settings.
pub(super) fn config(settings: &Settings) -> Config {
    let capture = &settings.capture;
    let memory_left = memory_left();
    Config {
        resources: capture.resources.clone(),
        min_size: capture.min_size,
        max_size: capture.max_size,
        sampling: settings.report.sampling,
        trace: capture.trace,
        follow_forks: capture.follow_forks || members::follow(&settings.target),
        max_allocs: capture.max_allocs,
        max_memory: capture.max_memory,
        lifetimes: capture.lifetimes,
        stack_storage_size: capture
            .stack_storage_size
            .unwrap_or_else(|| room_for_stacks(settings, memory_left)),
        memory_left,
        max_depth: capture.max_depth,
        walk: match capture.unwind {
            UnwindMode::Auto => Walk::Tables { or_pointer: true },
            UnwindMode::Dwarf => Walk::Tables { or_pointer: false },
            UnwindMode::Fp => Walk::Pointer,
            UnwindMode::Kernel => Walk::Kernel,
        },
        traps_only: capture.traps_only,
        library_calls: capture.library_calls,
        system_calls: capture.system_calls,
        reads_registers: settings.why.is_some(),
        verbosity: settings.verbosity,
    }
}

/// How many stacks are kept where it is not said.
fn room_for_stacks(settings: &Settings, memory_left: Option<u64>) -> u32 {
    match settings.target {
        TargetSpec::Kernel(_) => STACKS_OF_KERNEL,
        _ => stacks_of_processes(memory_left),
    }
}
