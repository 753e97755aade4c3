//! Kernel mode: loads and attaches the programs that a plan names.

use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap as BpfHashMap, MapData},
    programs::{KProbe, RawTracePoint},
};
use memleak_common::{
    kernel::{CACHE_NAME_LEN, CACHE_NAME_WORDS, KernelRow, role},
    thread::Target,
};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

use super::{
    BpfError,
    attach::{Link, Probes},
    chain,
    load::{self, OBJECT, load_error, program},
    maps,
    read::{fd, map_error},
    rings::Events,
};
use crate::{
    probe::kernel::{KernelFunction, KernelPlan, WORK_START},
    settings::{CaptureSettings, ReportSettings},
};

/// Maps that the programs of this mode write to: their entries are made in advance, since a program that allocates would
/// trace itself.
const PREALLOCATED: &[&str] = &["ALLOCATIONS", "STACKS", "SHORT_STACKS"];
/// Maps that this mode has no use for.
const UNUSED: &[&str] =
    &["THREADS", "UNWIND_WORDS", "UNWIND_MAPPINGS", "UNWIND_LISTS", "UNWIND_SLOTS", "KERNEL_STACKS"];

/// What was loaded and attached.
pub struct Loaded {
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
pub fn load(
    capture: &CaptureSettings,
    report: &ReportSettings,
    plan: &KernelPlan,
    verbosity: u8,
) -> Result<Loaded, BpfError> {
    load::check_kernel()?;
    let object = preallocate(OBJECT, PREALLOCATED).ok_or(BpfError::Missing("section maps"))?;
    let settings = load::kernel_settings(capture, report, &[])?;
    let mut loader = EbpfLoader::new();
    for name in UNUSED {
        loader.map_max_entries(name, 1);
    }
    let mut ebpf = loader
        .verifier_log_level(load::log_level(verbosity))
        .override_global("SETTINGS", &settings, true)
        .override_global("KERNEL_SETTINGS", &plan.settings, true)
        .override_global(aya_log::LEVEL, &load::bpf_log_level(verbosity), false)
        .map_max_entries("ALLOCATIONS", capture.max_allocs)
        .map_max_entries("TRACE", load::trace_bytes(capture))
        .map_max_entries("STACKS", capture.stack_storage_size)
        .map_max_entries("SHORT_STACKS", capture.stack_storage_size)
        .load(&object)
        .map_err(|error| load_error(&error))?;
    fill_rows(&ebpf, &plan.functions)?;
    // The kernel's records are those of process 0.
    maps::put_new(fd(&ebpf, "TARGETS")?, &0, &Target::default())
        .map_err(|error| map_error("TARGETS", &error))?;
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
    Ok(Loaded { ebpf, events, probes: Probes::of_kernel(links), failed })
}

/// A copy of the object in which these maps' entries are made in advance: `map_flags` (the fifth of the 32-bit words of
/// `struct bpf_map_def`) without BPF_F_NO_PREALLOC.
fn preallocate(object: &[u8], names: &[&str]) -> Option<Vec<u8>> {
    const FLAGS_OFFSET: usize = 16;
    let mut copy = object.to_vec();
    let file = object::File::parse(object).ok()?;
    let section = file.section_by_name("maps")?;
    let (section_offset, _) = section.file_range()?;
    let mut patched = 0;
    for symbol in file.symbols() {
        if symbol.section_index() == Some(section.index()) && names.contains(&symbol.name().ok()?) {
            let at = usize::try_from(section_offset + symbol.address()).ok()? + FLAGS_OFFSET;
            copy.get_mut(at..at + 4)?.fill(0);
            patched += 1;
        }
    }
    (patched == names.len()).then_some(copy)
}

fn fill_rows(ebpf: &Ebpf, functions: &[KernelFunction]) -> Result<(), BpfError> {
    const MAP: &str = "KERNEL_ROWS";
    for function in functions {
        let row: &KernelRow = &function.row;
        maps::put_new(fd(ebpf, MAP)?, &function.address, row).map_err(|error| map_error(MAP, &error))?;
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

/// Name of a slab cache, as the programs have read it.
pub(super) fn cache_name(ebpf: &Ebpf, address: u64) -> Option<String> {
    let map: BpfHashMap<&MapData, u64, [u64; CACHE_NAME_WORDS]> =
        BpfHashMap::try_from(ebpf.map("CACHES")?).ok()?;
    let words = map.get(&address, 0).ok()?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(CACHE_NAME_LEN);
    let name = String::from_utf8_lossy(bytes.get(..len)?).into_owned();
    (!name.is_empty()).then_some(name)
}
