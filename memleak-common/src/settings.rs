//! Load-time constants of the BPF programs (global `SETTINGS`, set before the programs are loaded).

/// Bits of [`Settings::flags`].
pub mod flags {
    /// Send an event for each acquire and release (`-t`).
    pub const TRACE: u32 = 1;
    /// Children of traced processes are traced too (`--follow-forks`).
    pub const FOLLOW_FORKS: u32 = 2;
    /// Walk stacks by unwind tables; else by frame pointers.
    pub const UNWIND_TABLES: u32 = 4;
    /// With tables: one step by the frame pointer where there is no row.
    pub const UNWIND_POINTER: u32 = 8;
    /// Have the kernel walk, by `bpf_get_stackid`: what the bench compares with. Reports have no
    /// stacks then.
    pub const KERNEL_WALK: u32 = 16;
    /// Calls of several groups are probed, or the kernel's functions: a stack is walked while calls
    /// are pending, whose return addresses the kernel has replaced. So they are read at entry.
    pub const READ_RETURNS: u32 = 32;
    /// A thread that has reported new mappings waits until user space has answered (`bpf_loop`:
    /// Linux 5.17).
    pub const HOLD: u32 = 64;
    /// Records of blocks and threads are in hash maps alone. Where the kernel takes no type
    /// information it verifies each function for each way to it, and what is in arrays as well
    /// would be too much.
    pub const HASH_ALONE: u32 = 128;
    /// Count what is released, by stack and age ([`crate::history`]).
    pub const LIFETIMES: u32 = 256;
}

/// Most threads that wait at once for an answer to a birth (maps `HELD` and `BIRTH_ANSWERS`).
pub const MAX_HELD: u32 = 3;

/// Longest time that such a thread waits, ns. It is in the middle of fork(2) or execve(2), with a
/// processor that nobody else gets; an answer comes within 0.1 ms or two.
pub const HOLD_BIRTH_NS: u64 = 10_000_000;

/// Longest time that a thread waits in the dynamic linker for an answer to what it has mapped, ns.
/// Most come within one or two milliseconds; where a new allocator is to be probed it is ten. A
/// thread of a tracer that is stopped, or busy, is not waited for longer than this.
pub const HOLD_NS: u64 = 20_000_000;

/// Byte offsets of members of the kernel's structures (BTF); all 0 if they are not known.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TaskOffsets {
    /// `task_struct::tgid`.
    pub tgid: u32,
    /// `task_struct::mm`.
    pub mm: u32,
    /// `task_struct::files`.
    pub files: u32,
    /// `task_struct::signal`.
    pub signal: u32,
    /// `signal_struct::live`: the threads of a process that have not ended.
    pub signal_live: u32,
    /// `task_struct::pagefault_disabled`.
    pub pagefault_disabled: u32,
    /// `mm_struct::brk`.
    pub mm_brk: u32,
    /// Fills up; 0.
    pub reserved: u32,
}

/// As [`TaskOffsets`]: the way from a task to the segments of System V's shared memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SegmentOffsets {
    /// `task_struct::nsproxy`.
    pub nsproxy: u32,
    /// `nsproxy::ipc_ns`.
    pub ipc_ns: u32,
    /// From a namespace to the root of the tree of its segments
    /// (`ipc_namespace::ids[2].ipcs_idr.idr_rt.xa_head`).
    pub root: u32,
    /// `xa_node::shift`.
    pub node_shift: u32,
    /// `xa_node::slots`.
    pub node_slots: u32,
    /// `kern_ipc_perm::id`.
    pub id: u32,
    /// From `shmid_kernel::shm_perm`, which the tree points to, to `shmid_kernel::shm_segsz`.
    pub size: u32,
    /// Fills up; 0.
    pub reserved: u32,
}

/// What the programs are told.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Smallest size to capture, in bytes.
    pub min_size: u64,
    /// Largest size to capture, in bytes.
    pub max_size: u64,
    /// Capture one acquire in this many; 1 for all.
    pub sample_rate: u64,
    /// Blocks are captured by their bytes: one sample in this many on average
    /// ([`crate::sampling`]); 0: all.
    pub sample_bytes: u64,
    /// Device number of the tool's PID namespace (`st_dev` of /proc/self/ns/pid), or 0 in the first
    /// one.
    pub pid_ns_dev: u64,
    /// Inode of the tool's PID namespace.
    pub pid_ns_ino: u64,
    /// Bits of [`flags`].
    pub flags: u32,
    /// Most frames of a stack.
    pub max_depth: u32,
    /// Threads that may wait at once for an answer to a birth that they have reported ([`MAX_HELD`]
    /// at most); 0: none waits.
    pub held: u32,
    /// What the rows that are probed need: all their [`crate::probe::ProbeRow::features`].
    pub features: u32,
    /// Where the kernel keeps what is asked of processes.
    pub task: TaskOffsets,
    /// Where it keeps shared memory.
    pub segments: SegmentOffsets,
    /// A CPU reports the stacks that it has stored when their number has none of these bits: each
    /// time that it has stored this many and one more. Some low bits, all set.
    pub stored_mask: u64,
    /// Most records that are kept; `u64::MAX`: as many as there is room for.
    pub max_allocs: u64,
    /// Places of the map of histories: a power of two.
    pub histories: u32,
    /// Fills up; 0.
    pub reserved: u32,
}
