//! The maps, and small accessors to them.

use core::intrinsics::AtomicOrdering;

use aya_ebpf::{
    bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_map_type},
    btf_maps::ArrayOfMaps,
    helpers::generated::bpf_map_lookup_elem,
    macros::{btf_map, map},
    maps::{Array, HashMap, PerCpuArray, RingBuf, StackTrace},
};
use memleak_common::{
    allocation::{Allocation, AllocationKey},
    clock::Tick,
    event::Event,
    history::StackHistory,
    kernel::{
        CACHE_NAME_WORDS, KernelCall, KernelRow, KernelSettings, LastReleased, MAX_KERNEL_ROWS,
        REMEMBERED_STACKS, RememberedStack, StackWindow, TRACEPOINTS,
    },
    mappings::MappingState,
    probe::{MAX_PROBES, ProbeRow},
    registers::{RegisterOffsets, SavedRegisters},
    settings::{MAX_HELD, SegmentOffsets, Settings, TaskOffsets},
    stack::{ShortStackRecord, StackRecord},
    stats::{STATS as STAT_COUNT, Stat},
    system_call::MAX_SYSTEM_CALLS,
    table::{BlockSet, MAX_SEGMENTS, TableHeader},
    thread::{
        CallKey, MAX_TARGETS, OpenCall, THREAD_PLACES as THREAD_PLACE_COUNT, Target, ThreadPlace, ThreadRecord,
    },
    unwind::{KNOWN_RULES, KnownRule, Mapping, PublishedList},
    usdt::{MAX_SITES, SiteRow},
    walks::{CACHED_WALKS as CACHED_WALK_COUNT, CachedWalk},
};

/// What a map says of a key that is there already.
pub const EEXIST: i32 = -17;

/// Of segments: those of a map of maps may differ in size.
const SEGMENT_FLAGS: usize = (BPF_F_MMAPABLE | BPF_F_INNER_MAP) as usize;

// Sizes of tables that a user can set are set by the loader. NO_PREALLOC: no memory is taken before
// it is needed.

/// Rows by attach cookie.
#[map]
pub static PROBES: Array<ProbeRow> = Array::with_max_entries(MAX_PROBES, 0);

/// Places of probes that programs define themselves, by attach cookie.
#[map]
pub static USDT_SITES: Array<SiteRow> = Array::with_max_entries(MAX_SITES, 0);

/// Traced system calls.
#[map]
pub static SYSTEM_CALLS: Array<u32> = Array::with_max_entries(MAX_SYSTEM_CALLS, 0);

/// Traced processes, by the slot that their links' cookies name.
#[map]
pub static TARGETS: Array<Target> = Array::with_max_entries(MAX_TARGETS, 0);

/// Slots of traced processes by their number in the tool's PID namespace, for programs that run for
/// all processes.
#[map]
pub static TARGET_SLOTS: HashMap<u32, u32> = HashMap::with_max_entries(MAX_TARGETS, BPF_F_NO_PREALLOC);

/// When what address spaces have mapped changes. User space reads and writes it by mmap.
#[map]
pub static MAPPING_STATES: Array<MappingState> = Array::with_max_entries(MAX_TARGETS, BPF_F_MMAPABLE);

/// Threads of traced processes that have called a probed function. User space reads it by mmap.
#[map]
pub static THREAD_PLACES: Array<ThreadPlace> = Array::with_max_entries(THREAD_PLACE_COUNT, BPF_F_MMAPABLE);

/// Those that have no place there.
#[map]
pub static THREADS: HashMap<u64, ThreadRecord> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// Pending calls of functions whose `ret` instructions are probed.
#[map]
pub static CALLS: HashMap<CallKey, OpenCall> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// All zeroes: what such a call starts as.
#[map]
pub static EMPTY_CALL: Array<OpenCall> = Array::with_max_entries(1, 0);

/// 1 once such a call has been left by another thread than had entered it.
#[map]
pub static SWITCHED: Array<u32> = Array::with_max_entries(1, 0);

/// All zeroes: what a thread's record starts as. It is too large for a program's stack.
#[map]
pub static EMPTY_THREAD: Array<ThreadRecord> = Array::with_max_entries(1, 0);

/// The table of heap blocks, in segments, and its filter. User space makes them, and reads them by
/// mmap.
#[btf_map]
pub static SEGMENTS: ArrayOfMaps<SegmentMap, { MAX_SEGMENTS as usize + 1 }> = ArrayOfMaps::new();

/// What a segment is made like: an array of sets. By sizes and not by types, as aya's maps are: one
/// with types cannot be made where the kernel takes no type information.
#[repr(C)]
pub struct SegmentMap {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_ARRAY as usize],
    key_size: *const [i32; size_of::<u32>()],
    value_size: *const [i32; size_of::<BlockSet>()],
    max_entries: *const [i32; 1],
    map_flags: *const [i32; SEGMENT_FLAGS],
}

impl SegmentMap {
    /// One of the sets.
    #[inline(always)]
    pub fn get_ptr_mut(&self, set: u32) -> Option<*mut BlockSet> {
        let map = (&raw const *self).cast_mut().cast();
        // SAFETY: the helper takes a map and a key of its size.
        let found: *mut BlockSet = unsafe { bpf_map_lookup_elem(map, (&raw const set).cast()) }.cast();
        (!found.is_null()).then_some(found)
    }
}

/// What there is of the table. User space writes it by mmap.
#[map]
pub static TABLE: Array<TableHeader> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The current tick.
#[map]
pub static CLOCK: Array<Tick> = Array::with_max_entries(1, 0);

/// What else is outstanding, and heap blocks that found no place in the table.
#[map]
pub static ALLOCATIONS: HashMap<AllocationKey, Allocation> =
    HashMap::with_max_entries(1_000_000, BPF_F_NO_PREALLOC);

/// What was released, by stack. User space reads it by mmap.
#[map]
pub static HISTORIES: Array<StackHistory> = Array::with_max_entries(4, BPF_F_MMAPABLE);

/// Long stacks by id.
#[map]
pub static STACKS: HashMap<u64, StackRecord> = HashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);

/// Short stacks by id.
#[map]
pub static SHORT_STACKS: HashMap<u64, ShortStackRecord> =
    HashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);

/// Rows and page indices of unwind tables (`memleak_common::unwind`). User space writes it, and the
/// next two, by mmap.
#[map]
pub static UNWIND_WORDS: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Executable mappings of processes, with their tables.
#[map]
pub static UNWIND_MAPPINGS: Array<Mapping> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Rules that walks have found, by address.
#[map]
pub static KNOWN: Array<KnownRule> = Array::with_max_entries(KNOWN_RULES, 0);

/// Walks that were made before. User space reads it by mmap.
#[map]
pub static CACHED_WALKS: Array<CachedWalk> = Array::with_max_entries(CACHED_WALK_COUNT, BPF_F_MMAPABLE);

/// Processes' lists of mappings, by slot.
#[map]
pub static UNWIND_LISTS: Array<PublishedList> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The kernel's own map of stacks, for the bench to compare with.
#[map]
pub static KERNEL_STACKS: StackTrace = StackTrace::with_max_entries(1, 0);

/// Where registers of threads are read into.
#[map]
pub static REGISTERS: PerCpuArray<SavedRegisters> = PerCpuArray::with_max_entries(1, 0);

/// Kernel mode: names of slab caches by address, with zeroes after them.
#[map]
pub static CACHES: HashMap<u64, [u64; CACHE_NAME_WORDS]> = HashMap::with_max_entries(4096, 0);

/// Kernel mode: functions by address.
#[map]
pub static KERNEL_ROWS: HashMap<u64, KernelRow> = HashMap::with_max_entries(MAX_KERNEL_ROWS, 0);

/// Kernel mode: pending calls by stack pointer.
#[map]
pub static KERNEL_CALLS: HashMap<u64, KernelCall> = HashMap::with_max_entries(16_384, 0);

/// Kernel mode: where stacks are taken into, by tracepoint or row.
#[map]
pub static KERNEL_SCRATCH: PerCpuArray<StackRecord> =
    PerCpuArray::with_max_entries(TRACEPOINTS as u32 + MAX_KERNEL_ROWS, 0);

/// Kernel mode: pieces of the kernel's stack, by tracepoint or row.
#[map]
pub static KERNEL_WINDOWS: PerCpuArray<StackWindow> =
    PerCpuArray::with_max_entries(TRACEPOINTS as u32 + MAX_KERNEL_ROWS, 0);

/// Kernel mode: stacks that were walked before.
#[map]
pub static REMEMBERED: PerCpuArray<RememberedStack> = PerCpuArray::with_max_entries(REMEMBERED_STACKS, 0);

/// Kernel mode: what each release's program was last run for, by tracepoint.
#[map]
pub static LAST_RELEASED: PerCpuArray<LastReleased> = PerCpuArray::with_max_entries(TRACEPOINTS as u32, 0);

/// The time (`bpf_ktime_get_ns`) of the last notice of new mappings that user space has answered.
#[map]
pub static ANSWERED: Array<u64> = Array::with_max_entries(1, 0);

/// Births, which user space is to know of before the process that was born runs.
#[map]
pub static BIRTHS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Places of [`BIRTH_ANSWERS`] at which somebody waits.
#[map]
pub static HELD: HashMap<u32, u32> = HashMap::with_max_entries(MAX_HELD, 0);

/// The time (`bpf_ktime_get_ns`) of the last birth that was answered, by place. User space writes
/// it by mmap.
#[map]
pub static BIRTH_ANSWERS: Array<u64> = Array::with_max_entries(MAX_HELD, BPF_F_MMAPABLE);

/// Counters by [`Stat`].
#[map]
pub static STATS: PerCpuArray<u64> = PerCpuArray::with_max_entries(STAT_COUNT, 0);

/// What user space is to know: never crowded out by what `-t` prints.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// What has left its place in `ALLOCATIONS` while user space reads it.
#[map]
pub static MOVED: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// The epoch (`memleak_common::cut`). User space writes it, by mmap.
#[map]
pub static EPOCH: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// What `-t` prints. The loader makes it as small as can be where nothing is to be printed.
#[map]
pub static TRACE: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// Set by the loader before the programs are verified, so that what is off costs nothing.
#[unsafe(no_mangle)]
pub static SETTINGS: Settings = Settings {
    min_size: 0,
    max_size: u64::MAX,
    sample_rate: 1,
    sample_bytes: 0,
    pid_ns_dev: 0,
    pid_ns_ino: 0,
    flags: 0,
    max_depth: 127,
    held: 0,
    features: 0,
    task: TaskOffsets { tgid: 0, mm: 0, files: 0, signal: 0, signal_live: 0, pagefault_disabled: 0, mm_brk: 0, reserved: 0 },
    segments: SegmentOffsets { nsproxy: 0, ipc_ns: 0, root: 0, node_shift: 0, node_slots: 0, id: 0, size: 0, reserved: 0 },
    stored_mask: u64::MAX,
    max_allocs: u64::MAX,
    histories: 4,
    reserved: 0,
};

/// As [`SETTINGS`], for kernel mode.
#[unsafe(no_mangle)]
pub static KERNEL_SETTINGS: KernelSettings = KernelSettings::EMPTY;

/// As [`SETTINGS`], for [`crate::registers`].
#[unsafe(no_mangle)]
pub static REGISTER_OFFSETS: RegisterOffsets = RegisterOffsets {
    pid: 0,
    on_cpu: 0,
    nvcsw: 0,
    nivcsw: 0,
    fpstate: 0,
    fpstate_size: 0,
    fpstate_regs: 0,
    reserved: 0,
};

/// One of the settings. A macro, so that only its own bytes are read.
macro_rules! setting {
    ($($member:tt)+) => {
        $crate::maps::read_setting(&$crate::maps::SETTINGS.$($member)+)
    };
}
pub(crate) use setting;

/// One of the settings of kernel mode.
macro_rules! kernel_setting {
    ($($member:tt)+) => {
        $crate::maps::read_setting(&$crate::maps::KERNEL_SETTINGS.$($member)+)
    };
}
pub(crate) use kernel_setting;

/// One of [`REGISTER_OFFSETS`].
macro_rules! register_offset {
    ($member:ident) => {
        $crate::maps::read_setting(&$crate::maps::REGISTER_OFFSETS.$member)
    };
}
pub(crate) use register_offset;

/// Reads a member of [`SETTINGS`]: see [`setting`].
#[inline(always)]
pub fn read_setting<T: Copy>(member: &'static T) -> T {
    // SAFETY: valid and aligned; the volatile read keeps the compiler from folding in the initial
    // value that the loader replaces.
    unsafe { core::ptr::read_volatile(member) }
}

/// The row has a flag (`memleak_common::probe::flags`). What is done for a flag that no row has is
/// not even verified.
#[inline(always)]
pub fn has(row: &ProbeRow, flag: u32) -> bool {
    setting!(features) & flag != 0 && row.flags & flag != 0
}

/// Adds 1 to a counter.
#[inline(always)]
pub fn count(stat: Stat) {
    count_at(stat as u32, 1);
}

/// Adds 1 to the counter that counts something in an epoch: see [`Stat::at`].
#[inline(always)]
pub fn count_in(stat: Stat, epoch: u32) {
    count_at(stat.at(epoch), 1);
}

/// The same, for so many.
#[inline(always)]
pub fn add_in(stat: Stat, epoch: u32, number: u64) {
    count_at(stat.at(epoch), number);
}

#[inline(always)]
fn count_at(index: u32, number: u64) {
    if let Some(counter) = STATS.get_ptr_mut(index) {
        // Uprobe programs can be preempted by another task's on the same CPU, so even a CPU's own
        // counter needs an atomic addition. (`AtomicU64::fetch_add` does not exist for a target
        // without compare-and-swap in its base instruction set.) SAFETY: a valid, aligned map value
        // that is only ever added to atomically.
        unsafe { add(counter, number) };
    }
}

/// Adds to a word of a map's value that other CPUs may be adding to. It wraps.
///
/// # Safety
///
/// `word` is a valid and aligned word of a map's value.
#[inline(always)]
pub unsafe fn add(word: *mut u64, amount: u64) {
    // SAFETY: the caller's promise.
    unsafe { core::intrinsics::atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(word, amount) };
}

/// Changes a word from one value to another, and says whether it had that value.
///
/// # Safety
/// `word` is an aligned word of a map's value.
#[inline(always)]
pub unsafe fn change<T: Copy>(word: *mut T, from: T, to: T) -> bool {
    const ORDER: AtomicOrdering = AtomicOrdering::SeqCst;
    // SAFETY: the caller's promise.
    unsafe { core::intrinsics::atomic_cxchg::<T, ORDER, ORDER>(word, from, to) }.1
}

/// When the reader of the ring buffer `EVENTS` is woken.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// At once.
    Now,
    /// When the buffer is half full; else it looks by itself, at each report.
    Lazily,
}

/// Sends a line for `-t` to print; counts it as lost if the buffer is full. The reader is woken
/// unless it is still reading.
#[inline(always)]
pub fn send_line(event: &Event) {
    if TRACE.output::<Event>(event, 0).is_err() {
        count(Stat::LostLines);
    }
}

/// Sends an event; counts it as lost if the buffer is full.
#[inline(always)]
pub fn send(event: &Event, wake: Wake) {
    const BPF_RB_NO_WAKEUP: u64 = 1;
    const BPF_RB_FORCE_WAKEUP: u64 = 2;
    const BPF_RB_AVAIL_DATA: u64 = 0;
    const HALF_FULL: u64 = 2 << 20;
    let wakeup = match wake {
        Wake::Now => BPF_RB_FORCE_WAKEUP,
        Wake::Lazily if EVENTS.query(BPF_RB_AVAIL_DATA) > HALF_FULL => BPF_RB_FORCE_WAKEUP,
        Wake::Lazily => BPF_RB_NO_WAKEUP,
    };
    if EVENTS.output::<Event>(event, wakeup).is_err() {
        count(Stat::LostEvents);
    }
}
