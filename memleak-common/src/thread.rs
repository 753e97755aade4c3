//! Records of traced processes (map `TARGETS`, by slot, which attach cookies name) and threads
//! (maps `THREAD_PLACES` and `THREADS`, key: `pid_tgid`).

use crate::{
    allocation::Allocation,
    probe::Resource,
    stack::{MAX_STACK_DEPTH, StackRecord},
    unwind::State,
};

/// Calls a thread can have pending: outermost ones, one for each group of rows
/// ([`crate::probe::ProbeRow::group`]), and those nested in them. A power of two.
pub const MAX_PENDING: usize = 8;

/// Words of a thread's stack that are kept of what was read last. A power of two.
pub const STACK_WINDOW: usize = 512;

/// Processes that can be traced at once: slots of the map `TARGETS`.
pub const MAX_TARGETS: u32 = 16_384;

/// Who owns what a thread acquires: numbers that are never used again ([`Target`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Owner {
    /// The address space. Processes that share it (CLONE_VM) share its number; an exec makes
    /// another one.
    pub space: u32,
    /// The process, which keeps its descriptors over an exec. Processes that share them
    /// (CLONE_FILES) share this number. 0: its descriptors are not traced.
    pub process: u32,
}

impl Owner {
    /// Both numbers in one word.
    #[inline(always)]
    pub const fn packed(self) -> u64 {
        self.space as u64 | (self.process as u64) << 32
    }

    /// From [`Self::packed`].
    #[inline(always)]
    pub const fn unpacked(word: u64) -> Self {
        Self { space: word as u32, process: (word >> 32) as u32 }
    }

    /// The number that owns things of a resource ([`Resource::number`]).
    #[inline(always)]
    pub const fn of(self, resource: u32) -> u32 {
        if resource == Resource::Fd.number() { self.process } else { self.space }
    }
}

/// A traced process. A slot's numbers are itself and each [`MAX_TARGETS`] after that, so that no
/// two slots have one in common; 0 is the kernel's.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Target {
    /// Who owns what it acquires; all 0 while nobody has the slot.
    pub owner: Owner,
    /// Its own number: the first of the slot's that it had.
    pub number: u32,
    /// The number that its next program gets; 0 if there is none left.
    pub next_space: u32,
}

/// A call that was entered and has not returned.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PendingCall {
    /// The stack pointer at entry: where the return address is.
    pub sp: u64,
    /// The return address, which the kernel replaces by that of its trampoline for as long as the
    /// call is pending. Read where the call can end by an exception, else 0.
    pub return_address: u64,
    /// Attach cookie: index of the row.
    pub row: u32,
    /// 1 if `released` holds a record that the call took out of the table; 2 if it gave back
    /// one reference of several, and the record is still there.
    pub has_released: u16,
    /// 1 if the call nests in one of its group and does not count.
    pub nested: u8,
    /// 1 if the filters have let the call pass at its entry.
    pub is_chosen: u8,
    /// Size asked for; of rows with [`crate::probe::size::BEHIND_ARG`] the address where it stands
    /// when the call returns.
    pub size_or_address: u64,
    /// Address of the out-parameter that gets the handle, for rows that have one.
    pub out_pointer: u64,
    /// Handle that the call releases.
    pub released_handle: u64,
    /// Length of the range that the call releases.
    pub released_len: u64,
    /// The call's own flags argument.
    pub call_flags: u64,
    /// `bpf_ktime_get_ns` at entry.
    pub time_ns: u64,
    /// The record taken out, to be put back if the call fails.
    pub released: Allocation,
}

/// Where the return address of a call is: the key of the map `CALLS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CallKey {
    /// The stack pointer at entry.
    pub sp: u64,
    /// The address space: [`Owner::space`].
    pub space: u32,
    /// Fills up; 0.
    pub reserved: u32,
}

/// A pending call of a function whose `ret` instructions are probed: it belongs to a stack, not to
/// a thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct OpenCall {
    /// The call.
    pub call: PendingCall,
    /// Who owns what it acquires.
    pub owner: Owner,
    /// The thread that has entered it.
    pub tid: u32,
    /// Fills up; 0.
    pub reserved: u32,
}

/// A traced thread. Its scratch space is its own: uprobe programs can be preempted, so a CPU's
/// would not do.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ThreadRecord {
    /// Who owns what it acquires: [`Target::owner`] when the record was made.
    pub owner: Owner,
    /// Acquires, or bytes, to go until the next sample; 0 if none was drawn yet.
    pub sample_countdown: u64,
    /// Valid entries of `pending`, outermost first.
    pub depth: u32,
    /// The thread.
    pub tid: u32,
    /// Calls that were entered and have not returned.
    pub pending: [PendingCall; MAX_PENDING],
    /// 1 if `system_call` is under way.
    pub in_system_call: u32,
    /// 1 if a signal was delivered since the first of `pending` was entered: calls may be a
    /// handler's.
    pub interrupted: u32,
    /// [`PendingCall::sp`] of a call that a signal has interrupted in the kernel's return
    /// trampoline, where its return address is no longer on the stack; else 0.
    pub returning: u64,
    /// Calls in [`OpenCall`]s that the thread has entered and not left, as far as it knows: of heap
    /// and mappings, and of all other groups.
    pub open: [u32; 2],
    /// The system call that the thread is in, where it is one that is traced.
    pub system_call: PendingCall,
    /// Where a stack is walked into before it is stored.
    pub stack: StackRecord,
    /// The id under which `stack` is stored, so that the same stack again need not be looked up;
    /// else 0.
    pub stack_id: u64,
    /// Its process's place in `TARGETS` and `UNWIND_LISTS`.
    pub slot: u32,
    /// The epoch ([`crate::cut`]) that the program has found which does now what a call has done:
    /// all of that is of one moment.
    pub epoch: u32,
    /// [`Allocation::birth`] of the next record: the thread's number and the time at which it was
    /// first seen, and then one more for each. It is slower than the clock, so a number that comes
    /// again does not bring them back.
    pub next_birth: u64,
    /// When the call was entered whose record is being entered, for rows with
    /// [`crate::probe::flags::EARLY_RELEASE`].
    pub entered_ns: u64,
    /// [`PendingCall::sp`] of the last call of malloc's kind whose return is of no interest;
    /// else 0.
    pub skipped_sp: u64,
    /// Its return address: while it is there, the call may not have returned.
    pub skipped_return: u64,
    /// Its row.
    pub skipped_row: u64,
    /// What a walk needs.
    pub unwind: Unwind,
}

/// A place for a thread's record (map `THREAD_PLACES`): that of its number's low bits, unless
/// another thread has it. Then it has a record in the map `THREADS`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ThreadPlace {
    /// `pid_tgid` of the thread that has it; 0 if none has.
    pub holder: u64,
    /// Its record.
    pub record: ThreadRecord,
}

/// Places for threads' records. A power of two.
pub const THREAD_PLACES: u32 = 512;

/// A piece of the thread's stack, while it is walked: one large read costs less than a few small
/// ones.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Where it begins.
    pub base: u64,
    /// Valid bytes of `words`.
    pub bytes: u64,
    /// What was read.
    pub words: [u64; STACK_WINDOW],
}

/// What a walk by unwind tables needs, and what the next one can use of it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Unwind {
    /// The frame that was reached.
    pub state: State,
    /// The stack around it.
    pub window: Window,
    /// [`crate::unwind::PublishedList::generation`] under which `rules` were found.
    pub generation: u64,
    /// Of the walk, so far: not 0 if a frame is not that of the walk before.
    pub changed: u64,
    /// Of the walk, so far: the hash of its frames.
    pub hash: u64,
    /// [`crate::unwind::Row::rule`] for the frame that was reached: before a step the known one or
    /// 0, after it the found one.
    pub rule: u32,
    /// The place where the walk is recorded ([`crate::walks`]), plus 1; 0 if it is not.
    pub recording: u32,
    /// Rules of the frames of the last stack: an unchanged frame needs no search.
    pub rules: [u32; RULES],
}

/// Entries of [`Unwind::rules`]: one for each frame of a stack, rounded up to a power of two.
pub const RULES: usize = (MAX_STACK_DEPTH + 1).next_power_of_two();
