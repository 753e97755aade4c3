//! A row of the probe table as the BPF programs read it (map `PROBES`, found by attach cookie).

/// No argument: the value of the `*_arg` fields of [`ProbeRow`] that do not apply.
pub const NO_ARG: u8 = 255;

/// Capacity of the map `PROBES`.
pub const MAX_PROBES: u32 = 1024;

/// What is acquired.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// Blocks of an allocator: malloc and its kin.
    Heap = 0,
    /// Address ranges mapped by mmap.
    Mmap = 1,
    /// Objects of the kernel's slab caches: kmalloc, kmem_cache_alloc.
    Slab = 2,
    /// The kernel's pages, those of its other allocators left out.
    Pages = 3,
    /// Ranges of the kernel's vmalloc.
    Vmalloc = 4,
    /// The kernel's per-CPU memory.
    Percpu = 5,
}

impl Resource {
    /// All of them, in order of their numbers.
    pub const ALL: &[Self] = &[Self::Heap, Self::Mmap, Self::Slab, Self::Pages, Self::Vmalloc, Self::Percpu];

    /// The resource with this number.
    pub fn from_u32(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }

    /// The name that users and reports give it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Heap => "heap",
            Self::Mmap => "mmap",
            Self::Slab => "slab",
            Self::Pages => "pages",
            Self::Vmalloc => "vmalloc",
            Self::Percpu => "percpu",
        }
    }
}

/// Where an acquired handle is found when the call returns.
pub mod handle {
    /// The call acquires nothing (munmap).
    pub const NONE: u8 = 0;
    /// The return value.
    pub const RETURN: u8 = 1;
    /// The pointer-sized value at the address in `handle_arg` (posix_memalign's first argument).
    pub const BEHIND_ARG: u8 = 2;
}

/// Where the size is found when the call is entered.
pub mod size {
    /// The resource has no size.
    pub const NONE: u8 = 0;
    /// Argument `size_arg`.
    pub const ARG: u8 = 1;
    /// Product of arguments `size_arg` and `size_arg2` (calloc).
    pub const PRODUCT: u8 = 2;
    /// The row's `constant`.
    pub const CONSTANT: u8 = 3;
}

/// What tells that the call did its work.
pub mod success {
    /// The handle is neither 0 nor -1 (malloc's null, mmap's MAP_FAILED).
    pub const HANDLE: u8 = 0;
    /// The return value, an `int`, is 0 (posix_memalign, munmap).
    pub const RETURN_ZERO: u8 = 1;
}

/// Bits of [`ProbeRow::flags`].
pub mod flags {
    /// Handles are ranges of addresses: a release may cover part of one or several of them.
    pub const RANGE: u32 = 1;
    /// A call that returned null for size 0 has released the old handle all the same (realloc).
    pub const ZERO_SIZE_RELEASES: u32 = 2;
    /// The call can end by an exception (C++ operator new).
    pub const MAY_THROW: u32 = 4;
}

/// One function. All argument numbers count from 0 and address the integer arguments of the platform's C ABI.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeRow {
    /// [`Resource`] as a number.
    pub resource: u32,
    /// Bits of [`flags`].
    pub flags: u32,
    /// One of [`handle`].
    pub handle: u8,
    /// For [`handle::BEHIND_ARG`].
    pub handle_arg: u8,
    /// One of [`size`].
    pub size: u8,
    /// For [`size::ARG`] and [`size::PRODUCT`].
    pub size_arg: u8,
    /// For [`size::PRODUCT`].
    pub size_arg2: u8,
    /// One of [`success`].
    pub success: u8,
    /// Argument with the handle that the call releases, else [`NO_ARG`].
    pub release_arg: u8,
    /// Argument with the length of the range that the call releases, else [`NO_ARG`].
    pub release_len_arg: u8,
    /// Argument with the call's own flags (mmap's 4th), else [`NO_ARG`].
    pub flags_arg: u8,
    /// Fills the gap before `replace_mask`; 0.
    pub reserved: [u8; 3],
    /// Where `flags_arg` has one of these bits, what was in the new range before is released (MAP_FIXED).
    pub replace_mask: u32,
    /// Where `flags_arg` has one of these bits, the old range stays (MREMAP_DONTUNMAP).
    pub keep_mask: u32,
    /// Calls of one group count once when they nest: the outermost (malloc and the mmap inside it).
    pub group: u32,
    /// For [`size::CONSTANT`].
    pub constant: u64,
}

impl ProbeRow {
    /// A row in which nothing applies: to be filled by struct update.
    pub const EMPTY: Self = Self {
        resource: 0,
        flags: 0,
        handle: handle::NONE,
        handle_arg: NO_ARG,
        size: size::NONE,
        size_arg: NO_ARG,
        size_arg2: NO_ARG,
        success: success::HANDLE,
        release_arg: NO_ARG,
        release_len_arg: NO_ARG,
        flags_arg: NO_ARG,
        reserved: [0; 3],
        replace_mask: 0,
        keep_mask: 0,
        group: 0,
        constant: 0,
    };

    /// Bit N is set where the programs read argument N at the function's entry: these must still be in their
    /// registers at the instruction that is probed.
    pub const fn arguments_read(&self) -> u8 {
        let args = [
            self.handle_arg,
            self.size_arg,
            self.size_arg2,
            self.release_arg,
            self.release_len_arg,
            self.flags_arg,
        ];
        let mut mask = 0;
        let mut i = 0;
        while i < args.len() {
            if args[i] != NO_ARG {
                mask |= 1 << args[i];
            }
            i += 1;
        }
        mask
    }
}
