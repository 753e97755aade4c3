//! What a run asks of the programs, as plain values, and the settings that they read.

use std::{collections::HashSet, io, os::unix::fs::MetadataExt as _};

use aya::util::KernelVersion;
use memleak_common::{
    history::WAYS,
    probe::{Resource, handle},
    settings::{MAX_HELD, SegmentOffsets, Settings, TaskOffsets, flags},
};

use super::error::BpfError;
use crate::{
    probe::table::{Row, Scope, system_calls},
    proc::btf,
    sampling::Sampling,
};

/// How stacks are walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Walk {
    /// By unwind tables.
    Tables {
        /// Frames that no table describes are left by the frame pointer. A kernel that refuses the
        /// walk is not an error: then all are.
        or_pointer: bool,
    },
    /// By frame pointers.
    Pointer,
    /// By the kernel's own walk.
    Kernel,
}

/// What a run asks of the programs.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// What is traced.
    pub resources: Vec<Resource>,
    /// Smallest size, bytes.
    pub min_size: u64,
    /// Largest size, bytes.
    pub max_size: u64,
    /// Which acquires are captured.
    pub sampling: Sampling,
    /// Each acquire and release is sent as an event.
    pub trace: bool,
    /// Children are traced from their fork on.
    pub follow_forks: bool,
    /// Most outstanding allocations that are kept; `None`: as many as there is room for.
    pub max_allocs: Option<u32>,
    /// Kernel memory for the table of heap blocks, bytes; `None`: the default.
    pub max_memory: Option<u64>,
    /// What is released is counted, by stack and age.
    pub lifetimes: bool,
    /// Room for stacks.
    pub stack_storage_size: u32,
    /// Bytes that our control groups leave us, before anything was made; `None` if there is no
    /// limit.
    pub memory_left: Option<u64>,
    /// Most frames of a stack.
    pub max_depth: u32,
    /// How stacks are walked.
    pub walk: Walk,
    /// Programs that do nothing are attached.
    pub traps_only: bool,
    /// Descriptors are counted at the C library's functions, and not at system calls.
    pub library_calls: bool,
    /// Ranges of addresses are counted at system calls, and not at the C library's functions.
    pub system_calls: bool,
    /// What threads have in their registers will be asked for.
    pub reads_registers: bool,
    /// `-v`: 0, 1, 2...
    pub verbosity: u8,
}

/// Entries of the map `ALLOCATIONS` if no maximum is given, where it is for all that is traced.
const HASHED: u32 = 1_000_000;
/// Where it is for mappings, and for the heap blocks that find no place in their table until that
/// has grown. Each entry takes time at each report, whether it is used or not.
const HASHED_BESIDE_BLOCKS: u32 = 1 << 18;

impl Config {
    /// Entries of the map `ALLOCATIONS`.
    pub(crate) fn hashed(&self) -> u32 {
        let of_memory = |resource: &Resource| matches!(resource, Resource::Heap | Resource::Mmap);
        let hashed = if self.resources.iter().all(of_memory) { HASHED_BESIDE_BLOCKS } else { HASHED };
        self.max_allocs.unwrap_or(hashed)
    }

    /// What is released is counted by stack. Without types each way to it would be verified.
    fn keeps_lifetimes(&self) -> bool {
        self.lifetimes && !self.traps_only && takes_types()
    }

    /// Places of the map `HISTORIES`: for the stacks that there is room for, or as many as nearly
    /// all programs have. A power of two.
    pub(super) fn histories(&self) -> u32 {
        const MOST: u32 = 1 << 14;
        let wanted = if self.keeps_lifetimes() { self.stack_storage_size } else { 1 };
        wanted.clamp(WAYS, MOST).next_power_of_two()
    }

    /// Stacks are walked by unwind tables.
    pub(crate) fn walks_tables(&self) -> bool {
        matches!(self.walk, Walk::Tables { .. }) && !self.traps_only
    }
}

/// The rows that are probed in a run over these resources are of several groups, or functions and
/// system calls: calls of one can be made while one of another is pending. `counts_system_calls`:
/// ranges of addresses are counted at system calls.
fn has_several_groups(rows: &[Row], resources: &[Resource], counts_system_calls: bool) -> bool {
    let by_system_calls = system_calls::counted(resources, counts_system_calls);
    let is_probed = |row: &&Row| match row.scope {
        Scope::SystemCall => row.serves(&by_system_calls),
        // Elsewhere they are instead of functions, in objects that have none.
        Scope::Usdt => resources.contains(&Resource::OtelMemory),
        _ => row.serves(resources),
    };
    let acquiring = rows.iter().filter(|row| row.probe.handle != handle::NONE).filter(is_probed);
    let kinds = acquiring.map(|row| (row.probe.group, row.scope == Scope::SystemCall));
    kinds.collect::<HashSet<_>>().len() > 1
}

/// The settings that the programs read, for a run with these rows.
pub(super) fn program_settings(config: &Config, rows: &[Row]) -> Result<Settings, BpfError> {
    let mut bits = 0;
    if config.trace {
        bits |= flags::TRACE;
    }
    if has_several_groups(rows, &config.resources, config.system_calls) {
        bits |= flags::READ_RETURNS;
    }
    if !config.traps_only && may_hold() {
        bits |= flags::HOLD;
    }
    if config.follow_forks {
        bits |= flags::FOLLOW_FORKS;
    }
    if !takes_types() {
        bits |= flags::HASH_ALONE;
    }
    if config.keeps_lifetimes() {
        bits |= flags::LIFETIMES;
    }
    let task = match task_offsets() {
        Err(error) if config.follow_forks => return Err(BpfError::NoBtf(error.to_string())),
        offsets => offsets.unwrap_or_default(),
    };
    bits |= match config.walk {
        Walk::Tables { or_pointer: true } => flags::UNWIND_TABLES | flags::UNWIND_POINTER,
        Walk::Tables { or_pointer: false } => flags::UNWIND_TABLES,
        Walk::Pointer => 0,
        Walk::Kernel => flags::KERNEL_WALK,
    };
    let (pid_ns_dev, pid_ns_ino) = own_pid_namespace();
    if config.follow_forks && pid_ns_ino != 0 {
        return Err(BpfError::ForksInNamespace);
    }
    Ok(Settings {
        min_size: config.min_size,
        max_size: config.max_size,
        sample_rate: config.sampling.rate(),
        sample_bytes: config.sampling.bytes(),
        pid_ns_dev,
        pid_ns_ino,
        flags: bits,
        max_depth: config.max_depth,
        task,
        segments: segment_offsets().unwrap_or_default(),
        held: if may_hold() && task != TaskOffsets::default() { held() } else { 0 },
        features: rows
            .iter()
            .filter(|row| row.serves(&config.resources))
            .fold(0, |features, row| features | row.probe.features()),
        stored_mask: stored_mask(config.stack_storage_size),
        max_allocs: config.max_allocs.map_or(u64::MAX, u64::from),
        histories: config.histories(),
        reserved: 0,
    })
}

/// Where the running kernel keeps what the programs ask of processes.
fn task_offsets() -> io::Result<TaskOffsets> {
    let btf = btf::Btf::kernel()?;
    let offset = |structure: &str, member: &str| {
        btf.member_offset(structure, member)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no {structure}.{member}")))
    };
    Ok(TaskOffsets {
        tgid: offset("task_struct", "tgid")?,
        mm: offset("task_struct", "mm")?,
        files: offset("task_struct", "files")?,
        signal: offset("task_struct", "signal")?,
        signal_live: offset("signal_struct", "live")?,
        pagefault_disabled: offset("task_struct", "pagefault_disabled")?,
        mm_brk: offset("mm_struct", "brk")?,
        reserved: 0,
    })
}

/// Where it keeps shared memory; `None` if it has none, or does not say.
fn segment_offsets() -> Option<SegmentOffsets> {
    /// ipc/util.h, `IPC_SHM_IDS`.
    const SHARED_MEMORY: u32 = 2;
    let btf = btf::Btf::kernel().ok()?;
    let offset = |structure: &str, member: &str| btf.member_offset(structure, member);
    let ids = offset("ipc_namespace", "ids")? + SHARED_MEMORY * btf.size("ipc_ids")?;
    let tree = offset("ipc_ids", "ipcs_idr")? + offset("idr", "idr_rt")?;
    Some(SegmentOffsets {
        nsproxy: offset("task_struct", "nsproxy")?,
        ipc_ns: offset("nsproxy", "ipc_ns")?,
        root: ids + tree + offset("xarray", "xa_head")?,
        node_shift: offset("xa_node", "shift")?,
        node_slots: offset("xa_node", "slots")?,
        id: offset("kern_ipc_perm", "id")?,
        size: offset("shmid_kernel", "shm_segsz")?.wrapping_sub(offset("shmid_kernel", "shm_perm")?),
        reserved: 0,
    })
}

/// The kernel takes type information of programs.
pub(super) fn takes_types() -> bool {
    aya::features().btf().is_some()
}

/// Threads of the target can wait for us: the kernel has `bpf_loop` and takes the type information
/// that it needs, and there is another CPU for us to answer on.
fn may_hold() -> bool {
    if !takes_types() {
        return false;
    }
    let has_loop = KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(5, 17, 0));
    has_loop && std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1)
}

/// Threads of ours that answer births: one more than may wait, on a processor each.
pub(crate) fn answering_threads() -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    cpus.min(MAX_HELD as usize + 1)
}

fn held() -> u32 {
    answering_threads().saturating_sub(1) as u32
}

/// How many stacks a CPU stores before it says so, less one: all CPUs together an eighth of the
/// room.
fn stored_mask(stack_storage_size: u32) -> u64 {
    let cpus = aya::util::nr_cpus().unwrap_or(1).max(1) as u64;
    let wanted = (u64::from(stack_storage_size) / 8 / cpus).max(1);
    (1 << wanted.ilog2()) - 1
}

/// Device and inode of our PID namespace, or zeroes in the kernel's first one, if no translation
/// is needed.
fn own_pid_namespace() -> (u64, u64) {
    const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC; // PROC_PID_INIT_INO, include/linux/proc_ns.h
    match std::fs::metadata("/proc/self/ns/pid") {
        Ok(namespace) if namespace.ino() != FIRST_PID_NAMESPACE => (namespace.dev(), namespace.ino()),
        _ => (0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::table::{DEFAULT_RESOURCES, TABLE};

    /// What a run does not probe makes no entry dearer.
    #[test]
    fn only_what_is_probed_makes_several_groups() {
        use Resource::{Fd, Heap, OtelMemory};
        let is_so = |resources: &[Resource], calls| has_several_groups(&TABLE, resources, calls);
        assert!(!is_so(DEFAULT_RESOURCES, false) && is_so(DEFAULT_RESOURCES, true));
        assert!(is_so(&[Heap, Fd], false) && !is_so(&[Heap], false));
        assert!(is_so(&[Heap, OtelMemory], false) && !is_so(&[OtelMemory], false));
    }
}
