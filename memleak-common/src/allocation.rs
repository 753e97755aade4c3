//! What is outstanding: keys and records of the map `ALLOCATIONS`.

/// Identifies one outstanding thing: an address (or descriptor) is one of a process and of a resource.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AllocationKey {
    /// Thread group id in the kernel's first PID namespace.
    pub tgid: u32,
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
    /// Key into the map `STACKS`; [`crate::stack::NO_STACK`] where none could be stored.
    pub stack_id: u64,
    /// `bpf_ktime_get_ns` (CLOCK_MONOTONIC) when it was acquired.
    pub time_ns: u64,
    /// Thread that acquired it.
    pub tid: u32,
    /// [`crate::thread::Target::generation`] of its process then: records from before an exec are void.
    pub generation: u32,
    /// How often it was acquired and not released, for resources that count ([`crate::probe::flags::COUNTED`]); else 1.
    pub count: u64,
}

/// [`Allocation::generation`] of what is no record: of a handle that was released before the call that acquires it has
/// returned ([`crate::probe::flags::EARLY_RELEASE`]).
pub const RELEASED_EARLY: u32 = u32::MAX;
