//! A row of the probe table as the BPF programs read it (map `PROBES`, found by attach cookie).

/// No argument: the value of the `*_arg` fields of [`ProbeRow`] that do not apply.
pub const NO_ARG: u8 = 255;

/// Capacity of the map `PROBES`.
pub const MAX_PROBES: u32 = 1024;

/// The attach cookie of a row in the process that has this slot of the map `TARGETS`.
pub const fn cookie(row: u32, slot: u32) -> u64 {
    row as u64 | (slot as u64) << 32
}

/// The row that an attach cookie names.
#[inline(always)]
pub const fn row_of(cookie: u64) -> u32 {
    cookie as u32
}

/// The slot that an attach cookie names.
#[inline(always)]
pub const fn slot_of(cookie: u64) -> u32 {
    (cookie >> 32) as u32
}

/// Numbers of [`Resource::Custom`] begin here: those below are built in.
pub const FIRST_CUSTOM: u32 = 256;

/// What is acquired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// Blocks of an allocator: malloc and related functions.
    Heap,
    /// Address ranges mapped by mmap.
    Mmap,
    /// Objects of the kernel's slab caches: kmalloc, kmem_cache_alloc.
    Slab,
    /// The kernel's pages, those of its other allocators left out.
    Pages,
    /// Ranges of the kernel's vmalloc.
    Vmalloc,
    /// The kernel's per-CPU memory.
    Percpu,
    /// File descriptors.
    Fd,
    /// The C library's streams (`FILE`).
    File,
    /// The C library's directory streams (`DIR`).
    Dir,
    /// Connections to SQLite databases.
    Sqlite,
    /// SQLite's prepared statements.
    SqliteStmt,
    /// Threads that are neither joined nor detached.
    Thread,
    /// Mutexes that are locked.
    Mutex,
    /// Objects loaded by dlopen.
    Dl,
    /// OpenSSL's objects.
    Ssl,
    /// Blocks of Python's allocators.
    Python,
    /// Pages of memory, by what touched them first.
    Growth,
    /// Blocks that an allocator has chosen as samples, by what they stand for.
    OtelMemory,
    /// A user's own: the N-th of the run.
    Custom(u16),
}

impl Resource {
    /// All that are built in, in order of their numbers.
    pub const ALL: &[Self] = &[
        Self::Heap,
        Self::Mmap,
        Self::Slab,
        Self::Pages,
        Self::Vmalloc,
        Self::Percpu,
        Self::Fd,
        Self::File,
        Self::Dir,
        Self::Sqlite,
        Self::SqliteStmt,
        Self::Thread,
        Self::Mutex,
        Self::Dl,
        Self::Ssl,
        Self::Python,
        Self::Growth,
        Self::OtelMemory,
    ];

    /// The number that keys, rows and events carry.
    pub const fn number(self) -> u32 {
        match self {
            Self::Heap => 0,
            Self::Mmap => 1,
            Self::Slab => 2,
            Self::Pages => 3,
            Self::Vmalloc => 4,
            Self::Percpu => 5,
            Self::Fd => 6,
            Self::File => 7,
            Self::Dir => 8,
            Self::Sqlite => 9,
            Self::SqliteStmt => 10,
            Self::Thread => 11,
            Self::Mutex => 12,
            Self::Dl => 13,
            Self::Ssl => 14,
            Self::Python => 15,
            Self::Growth => 16,
            Self::OtelMemory => 17,
            Self::Custom(n) => FIRST_CUSTOM + n as u32,
        }
    }

    /// The resource with this number.
    pub fn from_u32(number: u32) -> Option<Self> {
        match number.checked_sub(FIRST_CUSTOM) {
            Some(n) => u16::try_from(n).ok().map(Self::Custom),
            None => Self::ALL.get(number as usize).copied(),
        }
    }

    /// The name that users and reports give it. Names of a user's own are kept elsewhere.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Heap => "heap",
            Self::Mmap => "mmap",
            Self::Slab => "slab",
            Self::Pages => "pages",
            Self::Vmalloc => "vmalloc",
            Self::Percpu => "percpu",
            Self::Fd => "fd",
            Self::File => "file",
            Self::Dir => "dir",
            Self::Sqlite => "sqlite",
            Self::SqliteStmt => "sqlite-stmt",
            Self::Thread => "thread",
            Self::Mutex => "mutex",
            Self::Dl => "dl",
            Self::Ssl => "ssl",
            Self::Python => "python",
            Self::Growth => "growth",
            Self::OtelMemory => "otel-memory",
            Self::Custom(_) => "custom",
        }
    }

    /// What is acquired has a number of bytes.
    pub const fn has_size(self) -> bool {
        use Resource::{Growth, Heap, Mmap, OtelMemory, Pages, Percpu, Python, Slab, Vmalloc};
        matches!(self, Heap | Mmap | Slab | Pages | Vmalloc | Percpu | Python | Growth | OtelMemory)
    }
}

/// Where an acquired handle is found when the call returns.
pub mod handle {
    /// The call acquires nothing (munmap).
    pub const NONE: u8 = 0;
    /// The return value.
    pub const RETURN: u8 = 1;
    /// The value `handle_offset` bytes after the address that argument `handle_arg` was at entry
    /// (posix_memalign's first argument). Pipes have two, one after the other: `handle_count`.
    pub const BEHIND_ARG: u8 = 2;
    /// What argument `handle_arg` was at entry (pthread_mutex_lock).
    pub const ARG: u8 = 3;
    /// The value `handle_offset` bytes after the address that the call returned.
    pub const BEHIND_RETURN: u8 = 4;
    /// The descriptors in the message (SCM_RIGHTS) that argument `handle_arg` points to, a
    /// `struct msghdr`.
    pub const IN_MESSAGE: u8 = 5;
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
    /// The 64-bit word at the address in argument `size_arg`, when the call returns.
    pub const BEHIND_ARG: u8 = 4;
    /// The length of the string that the call returned, with the zero behind it (strdup).
    pub const STRING: u8 = 5;
}

/// What tells that the call did its work. Return values are compared with the row's `success_value`
/// as an `int`, or with [`flags::WIDE_RETURN`] as a `long`.
///
/// Whatever is chosen, a handle of 0 is none, unless [`flags::ZERO_IS_HANDLE`] says otherwise.
pub mod success {
    /// The handle is neither 0 nor -1 (malloc's null, mmap's MAP_FAILED).
    pub const HANDLE: u8 = 0;
    /// The return value equals the row's (0 for posix_memalign, munmap).
    pub const EQUAL: u8 = 1;
    /// The return value differs from the row's.
    pub const NOT_EQUAL: u8 = 2;
    /// The return value, signed, is the row's or more (0 for open).
    pub const AT_LEAST: u8 = 3;
    /// The return value, signed, is the row's or less.
    pub const AT_MOST: u8 = 4;
    /// It cannot fail.
    pub const ALWAYS: u8 = 5;
    /// What it releases it takes back before it returns (pthread_cond_wait).
    pub const NEVER: u8 = 6;
    /// The return value is the size asked for or more (xallocx).
    pub const SIZE_OR_MORE: u8 = 7;
}

/// Which calls of the function count at all. The others are as if they were not traced.
pub mod only {
    /// All.
    pub const ALL: u8 = 0;
    /// Those where argument `only_arg`, an `int`, is one of `only_values` (fcntl's F_DUPFD).
    pub const ARG_IN: u8 = 1;
    /// Those where the `int` `only_values[0]` bytes after the address in argument `only_arg` has
    /// none of the bits `only_values[1]`, or the address is null (the attributes of
    /// pthread_create).
    pub const BEHIND_ARG_CLEAR: u8 = 2;
    /// Those where argument `only_arg`, an `int`, differs from argument `only_values[0]` (dup2).
    pub const ARGS_DIFFER: u8 = 3;
    /// Those where argument `only_arg` is the number of a bit that is set in `only_values`, the
    /// lower bits first (bpf's commands).
    pub const ARG_IN_BITS: u8 = 4;
    /// Those where argument `only_arg` has one of the bits `only_values[0]` (clone's flags).
    pub const ARG_HAS: u8 = 5;
    /// Those where argument `only_arg`, an `int`, is `only_values[0]`, and the next one
    /// `only_values[1]` (an option of getsockopt).
    pub const ARGS_ARE: u8 = 6;
    /// Those where the `int` `only_values[0]` bytes after the address in argument `only_arg` has
    /// one of the bits `only_values[1]` (clone3's flags).
    pub const BEHIND_ARG_HAS: u8 = 7;
    /// Those where argument `only_arg` points to `arena.N.reset` or `arena.N.destroy` (jemalloc's
    /// mallctl).
    pub const ARENA_SWEEP: u8 = 8;
}

/// Bits of [`ProbeRow::flags`].
pub mod flags {
    /// Handles are ranges of addresses: a release may cover part of one or several of them.
    pub const RANGE: u32 = 1;
    /// A call that returned null for size 0 has released the old handle all the same (realloc).
    pub const ZERO_SIZE_RELEASES: u32 = 1 << 1;
    /// The call can end by an exception (C++ operator new).
    pub const MAY_THROW: u32 = 1 << 2;
    /// [`super::success`]: the return value is a `long` or a pointer.
    pub const WIDE_RETURN: u32 = 1 << 3;
    /// 0 is a handle like any other (file descriptors).
    pub const ZERO_IS_HANDLE: u32 = 1 << 4;
    /// One handle can be acquired several times, and is outstanding until it has been released as
    /// often (dlopen). On all rows of the resource, or on none.
    pub const COUNTED: u32 = 1 << 5;
    /// A call counts even if it nests in another of its group (dlopen in a constructor that
    /// dlopen runs).
    pub const COUNTS_NESTED: u32 = 1 << 6;
    /// The old handle is released even if the call fails (freopen).
    pub const RELEASES_ANYWAY: u32 = 1 << 7;
    /// A handle can be released before the call that acquires it has returned (a thread that
    /// detaches itself). On all rows of the resource, or on none.
    pub const EARLY_RELEASE: u32 = 1 << 8;
    /// What the call has released is not outstanding while the call is pending (pthread_cond_wait).
    pub const GONE_WHILE_PENDING: u32 = 1 << 9;
    /// The call releases all handles from `release_arg` to `release_len_arg`, both included
    /// (close_range).
    pub const SPAN: u32 = 1 << 10;
    /// `release_arg` is an address at entry, and the handle is `release_offset` bytes after it.
    pub const RELEASE_BEHIND: u32 = 1 << 11;
    /// With [`super::handle::BEHIND_ARG`], of system calls: the handle's address is not the
    /// argument, but stands `constant` bytes after it (clone3's `pidfd`).
    pub const THROUGH_POINTER: u32 = 1 << 13;
    /// What the call acquires it had been given: it has another size now, and all else of its
    /// record stays (xallocx).
    pub const IN_PLACE: u32 = 1 << 14;
    /// The call releases many handles that nothing tells (mi_heap_destroy): it is counted.
    pub const SWEEPS: u32 = 1 << 15;
    /// Not of a row, but of [`super::ProbeRow::features`]: a call can acquire several handles.
    pub const SEVERAL_HANDLES: u32 = 1 << 12;
    /// Found by [`super::ProbeRow::marked`]: the row is one of malloc's kind, for which the
    /// programs have a short way. It returns a block of as many bytes as its first argument says,
    /// and does nothing else.
    pub const PLAIN: u32 = 1 << 16;
    /// The call moves the break (brk): what lies between the old one and the new one is acquired or
    /// released.
    pub const MOVES_BREAK: u32 = 1 << 17;
    /// The range is a segment of System V's shared memory: what is acquired is as long as the one
    /// whose number is in `size_arg` (shmat), and a release is of the whole (shmdt).
    pub const SEGMENT: u32 = 1 << 18;
    /// The call may have moved pages: user space is told (mremap, where pages are what is traced).
    /// `handle_arg` is where they were, `flags_arg` how many bytes, `size_arg` how many there are
    /// now.
    pub const MOVES_PAGES: u32 = 1 << 19;
}

/// One function. All argument numbers count from 0 and address the integer arguments of the
/// platform's C ABI.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeRow {
    /// [`Resource::number`].
    pub resource: u32,
    /// Bits of [`flags`].
    pub flags: u32,
    /// One of [`handle`].
    pub handle: u8,
    /// For [`handle::BEHIND_ARG`], [`handle::ARG`] and [`handle::IN_MESSAGE`].
    pub handle_arg: u8,
    /// Bytes of a handle, acquired or released: 8, or 4 for an `int`.
    pub handle_width: u8,
    /// Handles that one call acquires, one after the other in memory: 1, or 2 for
    /// [`handle::BEHIND_ARG`] (pipe).
    pub handle_count: u8,
    /// One of [`size`].
    pub size: u8,
    /// For [`size::ARG`], [`size::PRODUCT`] and [`size::BEHIND_ARG`].
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
    /// One of [`only`].
    pub only: u8,
    /// For [`only`], else [`NO_ARG`].
    pub only_arg: u8,
    /// Fills the gap before `replace_mask`; 0.
    pub reserved: [u8; 3],
    /// Where `flags_arg` has one of these bits, what was in the new range before is released
    /// (MAP_FIXED).
    pub replace_mask: u32,
    /// Where `flags_arg` has one of these bits, nothing is released (MREMAP_DONTUNMAP).
    pub keep_mask: u32,
    /// Calls of one group count once when they nest: the outermost (malloc and the mmap inside it).
    pub group: u32,
    /// For [`handle::BEHIND_ARG`] and [`handle::BEHIND_RETURN`]: bytes.
    pub handle_offset: i32,
    /// For [`flags::RELEASE_BEHIND`]: bytes.
    pub release_offset: i32,
    /// Fills the gap before `constant`; 0.
    pub reserved_word: u32,
    /// For [`only`].
    pub only_values: [u32; 2],
    /// For [`size::CONSTANT`] and [`flags::THROUGH_POINTER`].
    pub constant: u64,
    /// For the members of [`success`] that compare with it.
    pub success_value: i64,
}

/// What all rows of file descriptors have in common: a descriptor is an `int`, and 0 is one.
pub const DESCRIPTOR: ProbeRow = ProbeRow {
    resource: Resource::Fd.number(),
    flags: flags::ZERO_IS_HANDLE,
    handle_width: 4,
    group: Resource::Fd.number() << 8,
    ..ProbeRow::EMPTY
};

impl ProbeRow {
    /// A row in which nothing applies: to be filled by struct update.
    pub const EMPTY: Self = Self {
        resource: 0,
        flags: 0,
        handle: handle::NONE,
        handle_arg: NO_ARG,
        handle_width: 8,
        handle_count: 1,
        size: size::NONE,
        size_arg: NO_ARG,
        size_arg2: NO_ARG,
        success: success::HANDLE,
        release_arg: NO_ARG,
        release_len_arg: NO_ARG,
        flags_arg: NO_ARG,
        only: only::ALL,
        only_arg: NO_ARG,
        reserved: [0; 3],
        replace_mask: 0,
        keep_mask: 0,
        group: 0,
        handle_offset: 0,
        release_offset: 0,
        reserved_word: 0,
        only_values: [0; 2],
        constant: 0,
        success_value: 0,
    };

    /// The row, with [`flags::PLAIN`] if it is of that kind.
    pub fn marked(self) -> Self {
        let plain = Self {
            resource: Resource::Heap.number(),
            handle: handle::RETURN,
            size: size::ARG,
            size_arg: 0,
            ..Self::EMPTY
        };
        let flags = if self == plain { flags::PLAIN } else { 0 };
        Self { flags: self.flags | flags, ..self }
    }

    /// Numbers of the arguments that the programs read, [`NO_ARG`] among them.
    pub const fn arguments(&self) -> [u8; 8] {
        let compared = match self.only {
            only::ARGS_DIFFER => self.only_values[0] as u8,
            only::ARGS_ARE => self.only_arg + 1,
            _ => NO_ARG,
        };
        [
            self.handle_arg,
            self.size_arg,
            self.size_arg2,
            self.release_arg,
            self.release_len_arg,
            self.flags_arg,
            self.only_arg,
            compared,
        ]
    }

    /// Bits of [`flags`]: what the programs must be able to do for the row. The verifier leaves out
    /// of them what no row that is probed needs.
    pub const fn features(&self) -> u32 {
        let is_several = self.handle_count > 1 || self.handle == handle::IN_MESSAGE;
        self.flags | if is_several { flags::SEVERAL_HANDLES } else { 0 }
    }

    /// Bit N is set where the programs read argument N at the function's entry: these must still be
    /// in their registers at the instruction that is probed.
    pub const fn arguments_read(&self) -> u8 {
        let args = self.arguments();
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
