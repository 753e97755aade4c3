//! Kernel mode: what both sides know of the kernel's own allocators.

use crate::probe::NO_ARG;

/// Longest name of a slab cache that is kept, with the zero after it.
pub const CACHE_NAME_LEN: usize = 32;

/// What a stack's objects are, as [`crate::stack::Record::context`] carries it: 0 for user mode.
///
/// | label | meaning |
/// | --- | --- |
/// | 0 | nothing is known |
/// | `0xff..` | a `struct kmem_cache *`: its name is in the map `CACHES` |
/// | `1 << 56 \| type << 48 \| bytes` | a cache of kmalloc: [`KmallocType`], bytes of its objects |
/// | `2 << 56 \| order` | 2^order pages |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Label {
    /// A slab cache, by its address.
    Cache(u64),
    /// One of kmalloc's caches.
    Kmalloc(KmallocType, u64),
    /// 2^order pages.
    Pages(u8),
}

/// Which set of kmalloc's caches (include/linux/slab.h, `enum kmalloc_cache_type`).
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KmallocType {
    /// `kmalloc-N`.
    Normal = 0,
    /// `kmalloc-cg-N`: charged to a control group.
    Cgroup = 1,
    /// `kmalloc-rcl-N`: reclaimable.
    Reclaimable = 2,
    /// `dma-kmalloc-N`.
    Dma = 3,
}

impl KmallocType {
    /// All of them, in order of their numbers.
    pub const ALL: &[Self] = &[Self::Normal, Self::Cgroup, Self::Reclaimable, Self::Dma];
}

const KIND_SHIFT: u32 = 56;
const TYPE_SHIFT: u32 = 48;
const KIND_KMALLOC: u64 = 1;
const KIND_PAGES: u64 = 2;
const KIND_POINTER: u64 = 0xff;

impl Label {
    /// As a [`crate::stack::StackRecord`] carries it.
    pub const fn encode(self) -> u64 {
        match self {
            Self::Cache(address) => address,
            Self::Kmalloc(kind, bytes) => KIND_KMALLOC << KIND_SHIFT | (kind as u64) << TYPE_SHIFT | bytes,
            Self::Pages(order) => KIND_PAGES << KIND_SHIFT | order as u64,
        }
    }

    /// The reverse of [`Self::encode`]; `None` for 0 and what is none.
    pub fn decode(label: u64) -> Option<Self> {
        let low = label & ((1 << TYPE_SHIFT) - 1);
        match label >> KIND_SHIFT {
            KIND_POINTER => Some(Self::Cache(label)),
            KIND_KMALLOC => {
                let kind = (label >> TYPE_SHIFT & 0xff) as usize;
                Some(Self::Kmalloc(*KmallocType::ALL.get(kind)?, low))
            }
            KIND_PAGES => Some(Self::Pages(low as u8)),
            _ => None,
        }
    }
}

/// Rows that can be attached at a time.
pub const MAX_KERNEL_ROWS: u32 = 64;

/// A tracepoint of an allocator, and the place of its program's scratch space.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracepoint {
    /// `kmem:kmalloc`.
    Kmalloc = 0,
    /// `kmem:kfree`.
    Kfree = 1,
    /// `kmem:kmem_cache_alloc`.
    CacheAlloc = 2,
    /// `kmem:kmem_cache_free`.
    CacheFree = 3,
    /// `kmem:mm_page_alloc`.
    PageAlloc = 4,
    /// `kmem:mm_page_free`.
    PageFree = 5,
    /// `percpu:percpu_alloc_percpu`.
    PercpuAlloc = 6,
    /// `percpu:percpu_free_percpu`.
    PercpuFree = 7,
    /// `kmem:kmalloc_node`: before 6.1 kmalloc's calls that name a node have a tracepoint of their
    /// own.
    KmallocNode = 8,
    /// `kmem:kmem_cache_alloc_node`, likewise.
    CacheAllocNode = 9,
}

/// Number of them.
pub const TRACEPOINTS: usize = 10;

/// Where a tracepoint's arguments are: their positions after the first (`__data`), else
/// [`NO_ARG`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TracepointArgs {
    /// The address that is handed out or taken back.
    pub handle: u8,
    /// Bytes that the allocator gave; the order, for pages.
    pub size: u8,
    /// `struct kmem_cache *`.
    pub cache: u8,
    /// `gfp_t`.
    pub gfp: u8,
    /// Who has called the allocator.
    pub call_site: u8,
    /// Fills up; 0.
    pub reserved: [u8; 3],
}

impl TracepointArgs {
    /// It has none of them.
    pub const NONE: Self = Self {
        handle: NO_ARG,
        size: NO_ARG,
        cache: NO_ARG,
        gfp: NO_ARG,
        call_site: NO_ARG,
        reserved: [0; 3],
    };
}

/// What a release's program was last run for, on a CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastReleased {
    /// Place of the next, in a ring.
    pub next: u64,
    /// Handles.
    pub handles: [u64; LAST_RELEASED],
}

/// A power of two.
pub const LAST_RELEASED: usize = 8;

/// A piece of the kernel's code.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CodeRange {
    /// Its first address.
    pub start: u64,
    /// The address after its last; 0 for none.
    pub end: u64,
}

/// Pieces of code at most in [`KernelSettings::page_users`].
pub const CODE_RANGES: usize = 16;

/// Words of the kernel's stack that are read at a time, from the program's own frame up. A power of
/// two.
pub const KERNEL_WINDOW: usize = 256;
/// Words at most that are remembered of a stack.
pub const REMEMBERED_WORDS: usize = 96;
/// Stacks that a CPU remembers. A power of two.
pub const REMEMBERED_STACKS: u32 = 512;
/// Places in which a stack is looked for.
pub const REMEMBERED_WAYS: u32 = 4;

/// A piece of the kernel's stack, with where it was read (map `KERNEL_WINDOWS`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct StackWindow {
    /// Its first address.
    pub start: u64,
    /// Valid words.
    pub len: u64,
    /// Whose turn it is to be forgotten.
    pub turn: u64,
    /// Frames that were found, while they are looked for.
    pub found: u64,
    /// What was read.
    pub words: [u64; KERNEL_WINDOW],
}

/// A stack that was walked before, and the words of the window that look like addresses of code
/// (map `REMEMBERED`).
///
/// Its return addresses are among them. A function's frame has one size at one return address: so,
/// where these words are again what they were, so are the return addresses, from the innermost
/// outwards. What else was among the words (left over from calls that have returned) is found out
/// when it differs and a walk gives the same stack, and is dropped. The outermost return address is
/// counted from the top of the stack: the kernel moves what is below it at random with each system
/// call (`randomize_kstack_offset`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RememberedStack {
    /// Its id; 0 for none.
    pub id: u64,
    /// Its [`Label`], encoded.
    pub label: u64,
    /// The outermost return address.
    pub last_ip: u64,
    /// Valid entries of `values` and `words`.
    pub len: u32,
    /// Bytes from the outermost return address to the top of the stack.
    pub from_top: u32,
    /// What looks like an address of code.
    pub values: [u64; REMEMBERED_WORDS],
    /// For each its place in the window, or [`DROPPED`].
    pub words: [u16; REMEMBERED_WORDS],
}

/// No place in the window.
pub const DROPPED: u16 = u16::MAX;

/// Where `kfree_rcu` keeps what it will free in bulk, which no tracepoint reports
/// (mm/slab_common.c, `struct kfree_rcu_cpu`, `struct kfree_rcu_cpu_work`,
/// `struct kvfree_rcu_bulk_data`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct DeferredFrees {
    /// The functions of the work that frees: addresses; 0 if this is not known.
    pub functions: [u64; DEFERRED_FUNCTIONS],
    /// For each of them the way from its `struct work_struct` to its two lists (slab objects,
    /// vmalloc), in bytes.
    pub lists: [i64; DEFERRED_FUNCTIONS],
    /// Byte offset of `func` in `struct work_struct`.
    pub function_offset: u32,
    /// Byte offset of `nr_records` in a block.
    pub count_offset: u32,
    /// Byte offset of `records` in a block.
    pub records_offset: u32,
    /// Byte offset of the address of the next block. The last one's is 0 or the list's.
    pub next_offset: u32,
    /// Bytes from the first list to the second.
    pub list_size: u32,
    /// Fills up; 0.
    pub reserved: u32,
}

/// `kfree_rcu_monitor` and `kfree_rcu_work`.
pub const DEFERRED_FUNCTIONS: usize = 2;

/// What the programs of kernel mode are told (global `KERNEL_SETTINGS`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelSettings {
    /// By [`Tracepoint`].
    pub tracepoints: [TracepointArgs; TRACEPOINTS],
    /// Byte offset of `size` in `struct kmem_cache`.
    pub cache_size_offset: u32,
    /// Byte offset of `name` in `struct kmem_cache`.
    pub cache_name_offset: u32,
    /// Our own thread group (in our PID namespace): what it allocates does not count.
    pub own_tgid: u32,
    /// `--only-pid`: what other processes allocate does not count; 0 for all.
    pub only_tgid: u32,
    /// `--only-comm`, with zeroes after it; all zeroes for all.
    pub only_comm: [u64; COMM_WORDS],
    /// `--slab` with a cache of kmalloc: its [`Label`], else 0.
    pub only_label: u64,
    /// `--slab`: the cache's name, with zeroes after it; all zeroes for all.
    pub only_cache: [u64; CACHE_NAME_WORDS],
    /// Code of other allocators: pages that it takes are counted there.
    pub page_users: [CodeRange; CODE_RANGES],
    /// 1: what is remembered of stacks is compared with what a walk gives
    /// ([`crate::stats::Stat::WrongStacks`]).
    pub checks_stacks: u64,
    /// For the program `work_start`.
    pub deferred: DeferredFrees,
}

/// Words of a command name (`TASK_COMM_LEN`).
pub const COMM_WORDS: usize = 2;
/// Words of a slab cache's name.
pub const CACHE_NAME_WORDS: usize = CACHE_NAME_LEN / 8;

impl KernelSettings {
    /// Nothing is filtered, and nothing is known.
    pub const EMPTY: Self = Self {
        tracepoints: [TracepointArgs::NONE; TRACEPOINTS],
        cache_size_offset: 0,
        cache_name_offset: 0,
        own_tgid: 0,
        only_tgid: 0,
        only_comm: [0; COMM_WORDS],
        only_label: 0,
        only_cache: [0; CACHE_NAME_WORDS],
        page_users: [CodeRange { start: 0, end: 0 }; CODE_RANGES],
        checks_stacks: 0,
        deferred: DeferredFrees {
            functions: [0; DEFERRED_FUNCTIONS],
            lists: [0; DEFERRED_FUNCTIONS],
            function_offset: 0,
            count_offset: 0,
            records_offset: 0,
            next_offset: 0,
            list_size: 0,
            reserved: 0,
        },
    };
}

/// What a function of the kernel does.
pub mod role {
    /// Returns a handle.
    pub const ACQUIRE: u8 = 0;
    /// Writes several handles to an array and returns their number (`kmem_cache_alloc_bulk`).
    pub const ACQUIRE_ARRAY: u8 = 1;
    /// Takes a handle back.
    pub const RELEASE: u8 = 2;
    /// Takes an array of handles back (`kmem_cache_free_bulk`).
    pub const RELEASE_ARRAY: u8 = 3;
}

/// A function of the kernel (map `KERNEL_ROWS`, key: its address). Arguments count from 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelRow {
    /// [`crate::probe::Resource`] as a number.
    pub resource: u32,
    /// Place of its scratch space.
    pub scratch: u32,
    /// One of [`role`].
    pub role: u8,
    /// The handle that it takes back, or the array.
    pub handle_arg: u8,
    /// Number of the array's entries.
    pub count_arg: u8,
    /// Bytes asked for.
    pub size_arg: u8,
    /// `struct kmem_cache *`.
    pub cache_arg: u8,
    /// `gfp_t`; if there is one and no cache, sizes are those of kmalloc's caches.
    pub gfp_arg: u8,
    /// Fills up; 0.
    pub reserved: [u8; 2],
}

/// A call of a function of the kernel that was entered and has not returned (map `KERNEL_CALLS`,
/// key: its stack pointer at entry, which is one call's in the whole machine).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelCall {
    /// The row's key.
    pub function: u64,
    /// Arguments by [`KernelRow`]: size, cache, gfp, array.
    pub size: u64,
    /// `struct kmem_cache *`, or 0.
    pub cache: u64,
    /// `gfp_t`, or 0.
    pub gfp: u64,
    /// The array, or 0.
    pub array: u64,
    /// `bpf_ktime_get_ns` at entry.
    pub time_ns: u64,
}

/// Bytes that kmalloc gives for `size`: those of its next cache, or whole pages
/// (include/linux/slab.h, `__kmalloc_index`).
pub const fn kmalloc_size(size: u64) -> u64 {
    match size {
        0..=8 => 8,
        65..=96 => 96,
        129..=192 => 192,
        _ => next_power_of_two(size),
    }
}

/// Largest size that kmalloc's caches have; larger blocks are pages.
pub const KMALLOC_MAX_CACHE: u64 = 8192;

/// As `u64::next_power_of_two`, without the instruction that BPF does not have.
const fn next_power_of_two(size: u64) -> u64 {
    let mut filled = size.wrapping_sub(1);
    let mut shift = 1;
    while shift < 64 {
        filled |= filled >> shift;
        shift *= 2;
    }
    filled.wrapping_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_survive_the_way_through_the_kernel() {
        for label in [
            Label::Cache(0xffff_8881_0004_2400),
            Label::Kmalloc(KmallocType::Normal, 96),
            Label::Kmalloc(KmallocType::Dma, 8192),
            Label::Pages(0),
            Label::Pages(10),
        ] {
            assert_eq!(Label::decode(label.encode()), Some(label));
        }
        assert_eq!(Label::decode(0), None);
    }

    #[test]
    fn kmalloc_rounds_up_as_its_caches_are() {
        let sizes = [8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192];
        for size in 1..=8192 {
            let expected = sizes.into_iter().find(|cache| *cache >= size);
            assert_eq!(Some(kmalloc_size(size)), expected, "{size}");
        }
        assert_eq!(kmalloc_size(8193), 16384);
    }
}
