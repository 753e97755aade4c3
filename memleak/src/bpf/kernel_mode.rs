//! Kernel mode: loads and attaches the programs that a plan names.

use aya::{
    Ebpf, EbpfLoader,
    programs::{KProbe, RawTracePoint},
};
use memleak_common::kernel::{KernelRow, role};

use super::{
    access::{fd, program},
    config::{Config, program_settings},
    error::{BpfError, chain, load_error, map_error},
    links::{Link, Probes},
    object::{bpf_log_level, check_kernel, log_level, object_bytes, preallocate},
    rings::{Events, trace_bytes},
    sys,
};
use crate::probe::kernel::{KernelFunction, KernelPlan, WORK_START};

/// Maps that the programs of this mode write to: their entries are made in advance, since a program
/// that allocates would trace itself.
const PREALLOCATED: &[&str] = &["ALLOCATIONS", "STACKS", "SHORT_STACKS"];
/// Maps that this mode has no use for.
const UNUSED: &[&str] = &[
    "THREADS",
    "THREAD_PLACES",
    "CACHED_WALKS",
    "TARGETS",
    "TARGET_SLOTS",
    "MAPPING_STATES",
    "UNWIND_WORDS",
    "UNWIND_MAPPINGS",
    "UNWIND_LISTS",
    "KERNEL_STACKS",
];

/// What was loaded and attached.
pub(super) struct LoadedKernelMode {
    /// Programs and maps.
    pub ebpf: Ebpf,
    /// What the programs tell.
    pub events: Events,
    /// All links.
    pub probes: Probes,
    /// Functions that could not be probed, and why.
    pub failed: Vec<BpfError>,
}

/// Loads the programs of a plan, and attaches them.
pub(super) fn load(config: &Config, plan: &KernelPlan) -> Result<LoadedKernelMode, BpfError> {
    check_kernel()?;
    let object = preallocate(object_bytes()?, PREALLOCATED).ok_or(BpfError::Missing("section maps"))?;
    let settings = program_settings(&Config { max_allocs: None, lifetimes: false, ..config.clone() }, &[])?;
    let mut loader = EbpfLoader::new();
    for name in UNUSED {
        loader.map_max_entries(name, 1);
    }
    let mut ebpf = loader
        .verifier_log_level(log_level(config.verbosity))
        .override_global("SETTINGS", &settings, true)
        .override_global("KERNEL_SETTINGS", &plan.settings, true)
        .override_global(aya_log::LEVEL, &bpf_log_level(config.verbosity), false)
        .map_max_entries("ALLOCATIONS", config.hashed())
        .map_max_entries("STACKS", config.stack_storage_size)
        .map_max_entries("SHORT_STACKS", config.stack_storage_size)
        .map_max_entries("TRACE", trace_bytes(config))
        .load(&object)
        .map_err(|error| load_error(&error))?;
    fill_rows(&ebpf, &plan.functions)?;
    let events = Events::take(&mut ebpf)?;
    let mut links = Vec::new();
    let mut failed = Vec::new();
    // Functions first: what is released in bulk must not be missed.
    attach_functions(&mut ebpf, &plan.functions, &mut links, &mut failed)?;
    if plan.watches_work {
        links.push(attach_tracepoint(&mut ebpf, "work_start", WORK_START)?);
    }
    for row in &plan.tracepoints {
        for program in std::iter::once(row.program).chain(row.twin) {
            links.push(attach_tracepoint(&mut ebpf, program, row.name)?);
        }
    }
    Ok(LoadedKernelMode { ebpf, events, probes: Probes::of_kernel(links), failed })
}

fn fill_rows(ebpf: &Ebpf, functions: &[KernelFunction]) -> Result<(), BpfError> {
    const MAP: &str = "KERNEL_ROWS";
    for function in functions {
        let row: &KernelRow = &function.row;
        sys::put_new(fd(ebpf, MAP)?, &function.address, row).map_err(|error| map_error(MAP, &error))?;
    }
    Ok(())
}

fn attach_tracepoint(ebpf: &mut Ebpf, name: &'static str, tracepoint: &str) -> Result<Link, BpfError> {
    let program: &mut RawTracePoint = program(ebpf, name)?;
    program.load().map_err(|error| load_error(&error))?;
    let link = program.attach(tracepoint).and_then(|id| program.take_link(id));
    link.map(Link::Tracepoint).map_err(|error| load_error(&error))
}

/// Attaches kprobes: releases, then returns, then entries.
fn attach_functions(
    ebpf: &mut Ebpf,
    functions: &[KernelFunction],
    links: &mut Vec<Link>,
    failed: &mut Vec<BpfError>,
) -> Result<(), BpfError> {
    let releases =
        |function: &&KernelFunction| matches!(function.row.role, role::RELEASE | role::RELEASE_ARRAY);
    let acquires = |function: &&KernelFunction| !releases(function);
    attach_kprobes(ebpf, "kernel_release", functions.iter().filter(releases), links, failed)?;
    attach_kprobes(ebpf, "kernel_exit", functions.iter().filter(acquires), links, failed)?;
    attach_kprobes(ebpf, "kernel_enter", functions.iter().filter(acquires), links, failed)
}

fn attach_kprobes<'a>(
    ebpf: &mut Ebpf,
    name: &'static str,
    functions: impl Iterator<Item = &'a KernelFunction>,
    links: &mut Vec<Link>,
    failed: &mut Vec<BpfError>,
) -> Result<(), BpfError> {
    let mut functions = functions.peekable();
    if functions.peek().is_none() {
        return Ok(());
    }
    let program: &mut KProbe = program(ebpf, name)?;
    program.load().map_err(|error| load_error(&error))?;
    for function in functions {
        match program.attach(&function.name, 0).and_then(|id| program.take_link(id)) {
            Ok(link) => links.push(Link::Function(link)),
            Err(error) => failed.push(BpfError::Attach {
                function: function.name.clone(),
                object: "the kernel".to_owned(),
                reason: chain(&error),
            }),
        }
    }
    Ok(())
}
