//! What is outstanding: keys and records of the map `ALLOCATIONS`.

/// Identifies one outstanding thing: an address is one of an address space and of a resource, a
/// descriptor one of a process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AllocationKey {
    /// The number of the address space or process that owns it ([`crate::thread::Owner::of`]); 0 is
    /// the kernel.
    pub space: u32,
    /// [`crate::probe::Resource::number`].
    pub resource: u32,
    /// Address of the block, or whatever number the resource's functions hand out.
    pub handle: u64,
}

/// One outstanding thing.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Allocation {
    /// Bytes asked for.
    pub size: u64,
    /// Key into the map `STACKS`; [`crate::stack::NO_STACK`] if none could be stored.
    pub stack_id: u64,
    /// `bpf_ktime_get_ns` (CLOCK_MONOTONIC) when it was acquired.
    pub time_ns: u64,
    /// Thread that acquired it.
    pub tid: u32,
    /// The epoch ([`crate::cut`]) in which it was acquired.
    pub epoch: u32,
    /// How often it was acquired and not released, for resources that count
    /// ([`crate::probe::flags::COUNTED`]); else 1, or [`RELEASED_EARLY`].
    pub count: u64,
    /// A number that no other record of its key has: the record's own, wherever it is moved to.
    pub birth: u64,
}

/// [`Allocation::count`] of what is not a record: of a handle that was released before the call
/// that acquires it has returned ([`crate::probe::flags::EARLY_RELEASE`]).
pub const RELEASED_EARLY: u64 = 0;
