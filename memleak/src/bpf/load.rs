//! Loads the BPF object: settings in, programs verified, lifecycle programs attached.

use std::{collections::HashSet, os::unix::fs::MetadataExt as _};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::Array,
    programs::{Program, RawTracePoint, UProbe},
    util::KernelVersion,
};
use memleak_common::{
    probe::{MAX_PROBES, ProbeRow, Resource, handle},
    settings::{Settings as KernelSettings, flags},
    thread::Target,
};

use super::{
    BpfError, chain, maps,
    multi::MultiPrograms,
    os_error,
    read::{fd, map_error},
    rings::Events,
    unwind,
};
use crate::{
    probe::table::{Row, system_calls},
    proc::btf,
    settings::{CaptureSettings, ReportSettings, UnwindMode},
};

/// The BPF programs and maps, built from memleak-ebpf by `cargo xtask build-ebpf`.
#[cfg(target_arch = "x86_64")]
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!("../../ebpf/memleak-x86_64.bpf.o");
#[cfg(target_arch = "aarch64")]
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!("../../ebpf/memleak-aarch64.bpf.o");

/// Uprobe programs, all of one kind to the loader.
const UPROBES: &[&str] = &["acquire_enter", "acquire_exit", "release_enter", "mappings_enter"];
/// Mends the stack for an unwinder; and the same without, for kernels that forbid to write to a process.
pub(super) const ABANDON: [&str; 2] = ["abandon_enter", "abandon_enter_plain"];
/// The uprobe programs that `--traps-only` attaches in their place.
const EMPTY_UPROBES: &[&str] = &["empty_enter", "empty_exit"];
/// Raw tracepoint programs: program, tracepoint.
const LIFECYCLE: &[(&str, &str)] = &[
    ("thread_exit", "sched_process_exit"),
    ("process_exec", "sched_process_exec"),
    ("process_fork", "sched_process_fork"),
];

/// How uprobe programs are loaded, and so attached.
pub enum Uprobes {
    /// By aya: one link for each place.
    Single,
    /// One link for all places of a file.
    Multi(Box<MultiPrograms>),
}

/// What was loaded.
pub struct Loaded {
    /// Programs, maps and, as they are attached, links: all of them end with it.
    pub ebpf: Ebpf,
    /// What the programs tell.
    pub events: Events,
    /// The uprobe programs.
    pub uprobes: Uprobes,
    /// The stack is mended when an exception leaves a probed call. Without it the C++ runtime finds no caller there and
    /// ends the process.
    pub mends_stack: bool,
    /// Stacks are walked by unwind tables.
    pub walks_tables: bool,
    /// Resources that system calls tell of: no function of the target's is probed for them.
    pub by_system_calls: &'static [Resource],
}

/// Loads the programs with these settings and fills the map of rows. `unwind_words`: entries of `UNWIND_WORDS`.
pub fn load(
    capture: &CaptureSettings,
    report: &ReportSettings,
    rows: &[Row],
    unwind_words: u32,
    verbosity: u8,
) -> Result<Loaded, BpfError> {
    check_kernel()?;
    match load_with(capture, report, rows, unwind_words, verbosity) {
        Err(BpfError::Load(reason)) if capture.unwind == UnwindMode::Auto => {
            let by_pointer = CaptureSettings { unwind: UnwindMode::Fp, ..capture.clone() };
            // Where this fails as well, unwinding was not what was wrong.
            let loaded = load_with(&by_pointer, report, rows, unwind_words, verbosity)?;
            log::warn!(
                "stacks are walked by frame pointers, since this kernel refuses the unwinder: {reason}; code built \
                 without them is cut"
            );
            Ok(loaded)
        }
        result => result,
    }
}

fn load_with(
    capture: &CaptureSettings,
    report: &ReportSettings,
    rows: &[Row],
    unwind_words: u32,
    verbosity: u8,
) -> Result<Loaded, BpfError> {
    let settings = kernel_settings(capture, report, rows)?;
    let walks_tables = capture.walks_tables();
    // What is not used takes no memory.
    let room = |entries: u32, is_used: bool| if is_used { entries } else { 1 };
    let mut ebpf = EbpfLoader::new()
        .verifier_log_level(log_level(verbosity))
        .override_global("SETTINGS", &settings, true)
        .override_global(aya_log::LEVEL, &bpf_log_level(verbosity), false)
        .map_max_entries("ALLOCATIONS", capture.max_allocs)
        .map_max_entries("STACKS", capture.stack_storage_size)
        .map_max_entries("SHORT_STACKS", capture.stack_storage_size)
        .map_max_entries("REMEMBERED", 1)
        .map_max_entries("TRACE", trace_bytes(capture))
        .map_max_entries("UNWIND_WORDS", room(unwind_words, walks_tables))
        .map_max_entries("UNWIND_MAPPINGS", room(unwind::MAPPINGS, walks_tables))
        .map_max_entries("UNWIND_LISTS", room(unwind::LISTS, walks_tables))
        .map_max_entries(
            "KERNEL_STACKS",
            room(capture.stack_storage_size, capture.unwind == UnwindMode::Kernel),
        )
        .load(OBJECT)
        .map_err(|error| load_error(&error))?;
    fill_rows(&mut ebpf, rows)?;
    let mut uprobes = choose_uprobes(&ebpf);
    let mends_stack = load_programs(&mut ebpf, &mut uprobes, capture.traps_only)?;
    let events = Events::take(&mut ebpf)?;
    let mut by_system_calls: &[Resource] = &[];
    let by_kernel = !capture.traps_only && !capture.library_calls;
    if by_kernel && system_calls::RESOURCES.iter().any(|one| capture.resources.contains(one)) {
        match trace_system_calls(&mut ebpf, rows) {
            Ok(()) => by_system_calls = system_calls::RESOURCES,
            Err(error) => log::warn!(
                "descriptors are counted at the C library's functions, so that raw system calls are missed: {error}"
            ),
        }
    }
    Ok(Loaded { ebpf, events, uprobes, mends_stack, walks_tables, by_system_calls })
}

/// No log at first: aya would retry a failed load with ever larger ones, which takes long. With -v -v the user wants the
/// words.
pub(super) fn log_level(verbosity: u8) -> VerifierLogLevel {
    if verbosity >= 2 { VerifierLogLevel::DEBUG | VerifierLogLevel::STATS } else { VerifierLogLevel::DISABLE }
}

/// What the programs themselves say.
pub(super) fn bpf_log_level(verbosity: u8) -> u8 {
    if verbosity > 0 { aya_log::Level::Debug as u8 } else { 0 }
}

pub(super) fn check_kernel() -> Result<(), BpfError> {
    let version = KernelVersion::current().map_err(|error| BpfError::Load(error.to_string()))?;
    if version < KernelVersion::new(5, 15, 0) {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        return Err(BpfError::KernelTooOld(release.trim().to_owned()));
    }
    Ok(())
}

/// Bytes of the ring buffer of lines: the least that there can be, a page, if no line is to be printed.
pub(super) fn trace_bytes(capture: &CaptureSettings) -> u32 {
    if capture.trace { 4 << 20 } else { 4096 }
}

/// The rows are of several groups: calls of one can be made while one of another is pending.
fn has_several_groups(rows: &[Row], resources: &[Resource]) -> bool {
    let acquiring = rows.iter().filter(|row| row.probe.handle != handle::NONE && row.serves(resources));
    acquiring.map(|row| row.probe.group).collect::<HashSet<_>>().len() > 1
}

pub(super) fn kernel_settings(
    capture: &CaptureSettings,
    report: &ReportSettings,
    rows: &[Row],
) -> Result<KernelSettings, BpfError> {
    let mut bits = 0;
    let mut task_tgid_offset = 0;
    if capture.trace {
        bits |= flags::TRACE;
    }
    if has_several_groups(rows, &capture.resources) {
        bits |= flags::READ_RETURNS;
    }
    // Not by frame pointers, which is also the way where the kernel takes no BTF: `bpf_loop` needs it.
    if capture.walks_tables() && may_hold() {
        bits |= flags::HOLD;
    }
    if capture.follow_forks {
        bits |= flags::FOLLOW_FORKS;
        task_tgid_offset = btf::kernel_member_offset("task_struct", "tgid")
            .map_err(|error| BpfError::NoBtf(error.to_string()))?;
    }
    bits |= match capture.unwind {
        UnwindMode::Auto => flags::UNWIND_TABLES | flags::UNWIND_POINTER,
        UnwindMode::Dwarf => flags::UNWIND_TABLES,
        UnwindMode::Fp => 0,
        UnwindMode::Kernel => flags::KERNEL_WALK,
    };
    let (pid_ns_dev, pid_ns_ino) = own_pid_namespace();
    if capture.follow_forks && pid_ns_ino != 0 {
        return Err(BpfError::ForksInNamespace);
    }
    Ok(KernelSettings {
        min_size: capture.min_size,
        max_size: capture.max_size,
        sample_rate: report.sample_rate,
        pid_ns_dev,
        pid_ns_ino,
        flags: bits,
        max_depth: capture.max_depth,
        task_tgid_offset,
        features: rows
            .iter()
            .filter(|row| row.serves(&capture.resources))
            .fold(0, |features, row| features | row.probe.features()),
        stored_mask: stored_mask(capture.stack_storage_size),
    })
}

/// Threads of the target can wait for us: the kernel has `bpf_loop`, and there is another CPU for us to answer on.
fn may_hold() -> bool {
    let has_loop = KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(5, 17, 0));
    has_loop && std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1)
}

/// Answers all notices of new mappings up to this time: threads that wait for it go on.
pub fn answer(ebpf: &mut Ebpf, time_ns: u64) -> Result<(), BpfError> {
    let map = ebpf.map_mut("ANSWERED").ok_or(BpfError::Missing("map ANSWERED"))?;
    let mut answered: Array<_, u64> = Array::try_from(map).map_err(|error| map_error("ANSWERED", &error))?;
    answered.set(0, time_ns, 0).map_err(|error| map_error("ANSWERED", &error))
}

/// How many stacks a CPU stores before it says so, less one: all CPUs together an eighth of the room.
fn stored_mask(stack_storage_size: u32) -> u64 {
    let cpus = aya::util::nr_cpus().unwrap_or(1).max(1) as u64;
    let wanted = (u64::from(stack_storage_size) / 8 / cpus).max(1);
    (1 << wanted.ilog2()) - 1
}

/// Device and inode of our PID namespace, or zeroes in the kernel's first one, where no translation is needed.
fn own_pid_namespace() -> (u64, u64) {
    const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC; // PROC_PID_INIT_INO, include/linux/proc_ns.h
    match std::fs::metadata("/proc/self/ns/pid") {
        Ok(namespace) if namespace.ino() != FIRST_PID_NAMESPACE => (namespace.dev(), namespace.ino()),
        _ => (0, 0),
    }
}

fn fill_rows(ebpf: &mut Ebpf, rows: &[Row]) -> Result<(), BpfError> {
    const MAP: &str = "PROBES";
    if rows.len() > MAX_PROBES as usize {
        return Err(BpfError::Map { map: MAP, reason: format!("more than {MAX_PROBES} rows") });
    }
    let map = ebpf.map_mut(MAP).ok_or(BpfError::Missing("map PROBES"))?;
    let error = |error: aya::maps::MapError| BpfError::Map { map: MAP, reason: chain(&error) };
    let mut probes: Array<_, ProbeRow> = Array::try_from(map).map_err(error)?;
    for (index, row) in (0..).zip(rows) {
        probes.set(index, row.probe, 0).map_err(error)?;
    }
    Ok(())
}

/// Has the programs run at each system call of any process; all but those that are of interest end at once.
fn trace_system_calls(ebpf: &mut Ebpf, rows: &[Row]) -> Result<(), BpfError> {
    const MAP: &str = "SYSTEM_CALLS";
    let map = ebpf.map_mut(MAP).ok_or(BpfError::Missing("map SYSTEM_CALLS"))?;
    let error = |error: aya::maps::MapError| BpfError::Map { map: MAP, reason: chain(&error) };
    let mut map: Array<_, u32> = Array::try_from(map).map_err(error)?;
    for (number, entry) in system_calls::entries(rows) {
        map.set(number, entry, 0).map_err(error)?;
    }
    // A return before its entry, which makes it expected.
    for (name, tracepoint) in [("system_exit", "sys_exit"), ("system_enter", "sys_enter")] {
        let program: &mut RawTracePoint = program(ebpf, name)?;
        program.load().map_err(|error| load_error(&error))?;
        program.attach(tracepoint).map_err(|error| load_error(&error))?;
    }
    log::info!("descriptors are counted at system calls");
    Ok(())
}

/// Makes a process (its number in our PID namespace) known to the programs.
pub fn add_target(ebpf: &Ebpf, pid: u32) -> Result<(), BpfError> {
    const MAP: &str = "TARGETS";
    // In a PID namespace the kernel side learns its own number for it when it first sees one of its threads.
    let kernel_tgid = if own_pid_namespace() == (0, 0) { pid } else { 0 };
    // The fork that made it may have entered it already.
    maps::put_new(fd(ebpf, MAP)?, &pid, &Target { generation: 0, kernel_tgid })
        .map_err(|error| map_error(MAP, &error))
}

/// Links for many places came with 6.6; up to 6.10 one for a process fires in its first thread alone.
fn choose_uprobes(ebpf: &Ebpf) -> Uprobes {
    if KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(6, 11, 0)) {
        return Uprobes::Single;
    }
    match MultiPrograms::prepare(OBJECT, ebpf) {
        Ok(programs) => Uprobes::Multi(Box::new(programs)),
        Err(error) => {
            log::debug!("one link for each probe: {error}");
            Uprobes::Single
        }
    }
}

impl Uprobes {
    fn load(&mut self, ebpf: &mut Ebpf, name: &'static str) -> Result<(), BpfError> {
        match self {
            Self::Single => program::<UProbe>(ebpf, name)?.load().map_err(|error| load_error(&error)),
            Self::Multi(programs) => programs.load(name).map_err(|error| load_error(&error)),
        }
    }
}

/// Loads what will be attached. Gives whether the kernel lets us mend a stack: not where it is locked down (integrity),
/// nor without CAP_SYS_ADMIN (kernel/trace/bpf_trace.c, `bpf_get_probe_write_proto`).
fn load_programs(ebpf: &mut Ebpf, uprobes: &mut Uprobes, traps_only: bool) -> Result<bool, BpfError> {
    for &name in if traps_only { EMPTY_UPROBES } else { UPROBES } {
        uprobes.load(ebpf, name)?;
    }
    for &(name, tracepoint) in LIFECYCLE {
        let program: &mut RawTracePoint = program(ebpf, name)?;
        program.load().map_err(|error| load_error(&error))?;
        program.attach(tracepoint).map_err(|error| load_error(&error))?;
    }
    if traps_only {
        return Ok(true);
    }
    let [mending, plain] = ABANDON;
    let mends = uprobes.load(ebpf, mending);
    if let Err(error) = &mends {
        log::debug!("{mending} is not to be had here: {error}");
        uprobes.load(ebpf, plain)?;
    }
    Ok(mends.is_ok())
}

/// The program of this name, as the kind it is.
pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, BpfError>
where
    &'a mut P: TryFrom<&'a mut Program>,
{
    ebpf.program_mut(name).and_then(|program| <&mut P>::try_from(program).ok()).ok_or(BpfError::Missing(name))
}

pub(super) fn load_error(error: &(dyn std::error::Error + 'static)) -> BpfError {
    match os_error(error) {
        Some(libc::EPERM) => BpfError::NotPermitted(why_not_permitted()),
        Some(libc::ENOMEM) => BpfError::NoMemory,
        Some(libc::EMFILE | libc::ENFILE) => BpfError::TooManyFiles,
        // The verifier's EACCES, too, which is not about permissions: an access that it finds wrong.
        _ => {
            log::debug!("{error}"); // with the verifier's log, where there is one
            BpfError::Load(chain(error))
        }
    }
}

/// What root may still lack.
fn why_not_permitted() -> &'static str {
    // SAFETY: geteuid(2) takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return "";
    }
    let lockdown = std::fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    if lockdown.contains("[confidentiality]") {
        "; this kernel is locked down (confidentiality), which forbids it to root too"
    } else {
        "; root lacks them here, as in a container that was started without --privileged"
    }
}
