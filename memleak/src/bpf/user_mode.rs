//! User mode: loads the programs that trace processes.

use aya::{Ebpf, EbpfLoader, maps::Array, programs::RawTracePoint};
use memleak_common::{
    probe::{MAX_PROBES, ProbeRow, Resource},
    walks::CACHED_WALKS,
};

use super::{
    access::{array_mut, program},
    config::{Config, Walk, program_settings},
    error::{BpfError, load_error, map_error},
    object::{bpf_log_level, check_kernel, log_level, object_bytes},
    registers::{self, RegisterReader},
    rings::{Events, trace_bytes},
    unwind_maps,
    uprobes::Uprobes,
};
use crate::arch::HOST;
use crate::probe::table::{Row, system_calls};
use crate::proc::limits::most_open_files;

/// Raw tracepoint programs: program, tracepoint.
const LIFECYCLE: &[(&str, &str)] = &[
    ("thread_exit", "sched_process_exit"),
    ("process_exec", "sched_process_exec"),
    ("process_fork", "sched_process_fork"),
];
/// The same, where it is to be had: it asks for a kernel with type information.
const SIGNALS: (&str, &str) = ("signal_deliver", "signal_deliver");

/// Where the kernel is told of pages that are not there: of x86_64 alone.
const PAGE_FAULTS: [(&str, &str); 2] =
    [("page_fault_user", "page_fault_user"), ("page_fault_kernel", "page_fault_kernel")];

/// What was loaded.
pub(super) struct Loaded {
    /// Programs, maps and, as they are attached, links: all of them end with it.
    pub ebpf: Ebpf,
    /// What the programs tell.
    pub events: Events,
    /// The uprobe programs.
    pub uprobes: Uprobes,
    /// The stack is mended when an exception leaves a probed call. Without it the C++ runtime finds
    /// no caller there and ends the process.
    pub mends_stack: bool,
    /// Stacks are walked by unwind tables.
    pub walks_tables: bool,
    /// Resources that tracepoints tell of: no function of the target's is probed for them.
    pub by_tracepoints: Vec<Resource>,
    /// Registers of threads, if they are to be read and can be.
    pub registers: Option<RegisterReader>,
}

/// Loads the programs for this run and fills the map of rows. `unwind_words`: entries of
/// `UNWIND_WORDS`.
pub(super) fn load(config: &Config, rows: &[Row], unwind_words: u32) -> Result<Loaded, BpfError> {
    /// Descriptors of programs, maps, links and all else, with one process: 80. Where they run out
    /// amid loading, what the kernel can do is found out wrongly, and its errors mislead.
    const DESCRIPTORS: u64 = 96;
    check_kernel()?;
    if most_open_files() < DESCRIPTORS {
        return Err(BpfError::TooManyFiles);
    }
    match load_with(config, rows, unwind_words) {
        Err(BpfError::Load(reason)) if config.walk == (Walk::Tables { or_pointer: true }) => {
            let by_pointer = Config { walk: Walk::Pointer, ..config.clone() };
            // Where this fails as well, unwinding was not what was wrong.
            let loaded = load_with(&by_pointer, rows, unwind_words)?;
            log::warn!(
                "stacks are walked by frame pointers, since this kernel refuses the unwinder: {reason}; code built \
                 without them is cut"
            );
            Ok(loaded)
        }
        result => result,
    }
}

fn load_with(config: &Config, rows: &[Row], unwind_words: u32) -> Result<Loaded, BpfError> {
    let settings = program_settings(config, rows)?;
    let walks_tables = config.walks_tables();
    let register_offsets = config.reads_registers.then(registers::offsets).flatten();
    // What is not used takes no memory.
    let room = |entries: u32, is_used: bool| if is_used { entries } else { 1 };
    // It takes all its memory at once.
    let kernel_stacks = config.stack_storage_size.min(1 << 16);
    let mut ebpf = EbpfLoader::new()
        .verifier_log_level(log_level(config.verbosity))
        .override_global("SETTINGS", &settings, true)
        .override_global("REGISTER_OFFSETS", &register_offsets.unwrap_or_default(), true)
        .override_global(aya_log::LEVEL, &bpf_log_level(config.verbosity), false)
        .map_max_entries("ALLOCATIONS", config.hashed())
        .map_max_entries("HISTORIES", config.histories())
        .map_max_entries("STACKS", config.stack_storage_size)
        .map_max_entries("SHORT_STACKS", config.stack_storage_size)
        .map_max_entries("TRACE", trace_bytes(config))
        .map_max_entries("REMEMBERED", 1)
        .map_max_entries("CACHED_WALKS", room(CACHED_WALKS, walks_tables))
        .map_max_entries("UNWIND_WORDS", room(unwind_words, walks_tables))
        .map_max_entries("UNWIND_MAPPINGS", room(unwind_maps::MAPPINGS, walks_tables))
        .map_max_entries("UNWIND_LISTS", room(unwind_maps::LISTS, walks_tables))
        .map_max_entries("KERNEL_STACKS", room(kernel_stacks, config.walk == Walk::Kernel))
        .load(object_bytes()?)
        .map_err(|error| load_error(&error))?;
    fill_rows(&mut ebpf, rows)?;
    let mut uprobes = Uprobes::choose(&ebpf);
    let mends_stack = uprobes.load_all(&mut ebpf, config.traps_only)?;
    attach_lifecycle(&mut ebpf)?;
    let events = Events::take(&mut ebpf)?;
    let mut by_tracepoints = Vec::new();
    let by_kernel = !config.traps_only && !config.library_calls;
    let counted = system_calls::counted(&config.resources, config.system_calls);
    if by_kernel && !counted.is_empty() {
        match trace_system_calls(&mut ebpf, rows, &counted) {
            Ok(()) => by_tracepoints.extend(counted),
            Err(error) if config.system_calls => return Err(error),
            Err(error) => log::warn!(
                "descriptors are counted at the C library's functions, so that raw system calls are missed: {error}"
            ),
        }
    }
    if config.resources.contains(&Resource::Growth) {
        if !HOST.tells_page_faults() {
            return Err(BpfError::NoPageFaults);
        }
        for (name, tracepoint) in PAGE_FAULTS {
            load_tracepoint(&mut ebpf, name, tracepoint)?;
        }
        by_tracepoints.push(Resource::Growth);
    }
    let registers = register_offsets.and_then(|_| RegisterReader::load(&mut ebpf));
    Ok(Loaded { ebpf, events, uprobes, mends_stack, walks_tables, by_tracepoints, registers })
}

fn fill_rows(ebpf: &mut Ebpf, rows: &[Row]) -> Result<(), BpfError> {
    const MAP: &str = "PROBES";
    if rows.len() > MAX_PROBES as usize {
        return Err(BpfError::Map { map: MAP, reason: format!("more than {MAX_PROBES} rows") });
    }
    let mut probes: Array<_, ProbeRow> = array_mut(ebpf, MAP)?;
    for (index, row) in (0..).zip(rows) {
        probes.set(index, row.probe.marked(), 0).map_err(|error| map_error(MAP, &error))?;
    }
    Ok(())
}

/// Has the programs run at each system call of any process; all but those that are of interest end
/// at once.
fn trace_system_calls(ebpf: &mut Ebpf, rows: &[Row], counted: &[Resource]) -> Result<(), BpfError> {
    const MAP: &str = "SYSTEM_CALLS";
    let mut map: Array<_, u32> = array_mut(ebpf, MAP)?;
    for (number, entry) in system_calls::entries(rows, counted) {
        map.set(number, entry, 0).map_err(|error| map_error(MAP, &error))?;
    }
    // A return before its entry, which makes it expected.
    for (name, tracepoint) in [("system_exit", "sys_exit"), ("system_enter", "sys_enter")] {
        let program: &mut RawTracePoint = program(ebpf, name)?;
        program.load().map_err(|error| load_error(&error))?;
        program.attach(tracepoint).map_err(|error| load_error(&error))?;
    }
    let names: Vec<&str> = counted.iter().map(|resource| resource.name()).collect();
    log::info!("counted at system calls: {}", names.join(", "));
    Ok(())
}

/// Has the programs of processes' lives run.
fn attach_lifecycle(ebpf: &mut Ebpf) -> Result<(), BpfError> {
    for &(name, tracepoint) in LIFECYCLE {
        load_tracepoint(ebpf, name, tracepoint)?;
    }
    let (name, tracepoint) = SIGNALS;
    if let Err(error) = load_tracepoint(ebpf, name, tracepoint) {
        log::debug!("what signal handlers do within traced calls is taken for part of these: {error}");
    }
    Ok(())
}

fn load_tracepoint(ebpf: &mut Ebpf, name: &'static str, tracepoint: &str) -> Result<(), BpfError> {
    let program: &mut RawTracePoint = program(ebpf, name)?;
    program.load().map_err(|error| load_error(&error))?;
    program.attach(tracepoint).map(|_| ()).map_err(|error| load_error(&error))
}
