//! What the BPF programs tell at once: through the ring buffer `TRACE` what `-t` prints, through
//! `BIRTHS` births, through `EVENTS` all else.

/// [`Event::kind`].
pub mod kind {
    /// `-t`: something was acquired.
    pub const ACQUIRE: u32 = 1;
    /// `-t`: something was released.
    pub const RELEASE: u32 = 2;
    /// The target mapped or unmapped objects (`_dl_debug_state`).
    pub const MAPPINGS: u32 = 3;
    /// A birth: the target replaced its program (exec). `handle` is its new address space
    /// ([`crate::thread::Owner::space`]); `size` is 1 if a thread other than its first did, which
    /// took the first one's place.
    pub const EXEC: u32 = 4;
    /// A birth: a traced process made another; `size` has the bits of [`super::shared`].
    pub const FORK: u32 = 5;
    /// A range was unmapped (or mapped over), or a span of handles released: whatever of the
    /// resource was acquired before [`super::Event::time_ns`] in `handle..handle + size` is
    /// released.
    pub const RELEASE_RANGE: u32 = 6;
    /// Many stacks were stored since this was last said
    /// ([`crate::settings::Settings::stored_mask`]): those that nothing refers to any more may take
    /// the room of others.
    pub const STACKS: u32 = 7;
    /// The target has made a process that is not traced.
    pub const CHILD: u32 = 8;
    /// Records have found no place in the table of heap blocks ([`crate::table`]).
    pub const OVERFLOW: u32 = 9;
    /// The target is about to end by itself. Told as births are, and waited at: all of it is still
    /// there.
    pub const ENDING: u32 = 10;
    /// Pages were moved (mremap): those in `handle..handle + size` that were touched before
    /// [`super::Event::time_ns`] are at [`super::Event::stack_id`] and behind now.
    pub const MOVED: u32 = 11;
}

/// Bits of [`Event::size`] for [`kind::FORK`]: what a child shares with its parent.
pub mod shared {
    /// Its memory (CLONE_VM).
    pub const MEMORY: u64 = 1;
    /// Its descriptors (CLONE_FILES).
    pub const FILES: u64 = 2;
}

/// One event.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Event {
    /// One of [`kind`].
    pub kind: u32,
    /// Who acquired or released ([`crate::thread::Owner::of`]); for events about a process its
    /// number; in kernel mode the thread group id.
    pub owner: u32,
    /// Thread id; of a birth, that of the process that was born, in the tool's PID namespace.
    pub tid: u32,
    /// [`crate::probe::Resource::number`], for acquire, release and release of a range. For births,
    /// the place in `BIRTH_ANSWERS`, plus 1, where the answer is waited for; 0 if it is not.
    pub resource: u32,
    /// Handle, for acquire and release.
    pub handle: u64,
    /// Bytes, for acquire and release.
    pub size: u64,
    /// `bpf_ktime_get_ns` (CLOCK_MONOTONIC).
    pub time_ns: u64,
    /// Key into `STACKS`, for acquire; for the release of a range the epoch ([`crate::cut`]) in
    /// which it was released.
    pub stack_id: u64,
}
