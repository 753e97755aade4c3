//! A place to attach to: which program at which instruction of which file.

use std::{fmt, path::PathBuf};

use memleak_common::usdt::{ARGUMENTS, Argument};

use super::table::{Role, Scope};
use crate::{
    arch::{placement::Placement, returns::Unclear},
    target::object::ObjectId,
};

/// A BPF program, in the order in which points are attached: what releases comes before what
/// acquires, so that nothing that was seen acquired can be missed at its release; and a return
/// before its entry, which makes it expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProgramKind {
    /// The process is about to end.
    EndingEnter,
    /// The target's mappings changed.
    MappingsEnter,
    /// Frames are left behind.
    AbandonEnter,
    /// A release that cannot fail.
    ReleaseEnter,
    /// The same, at a probe of the target's own.
    UsdtRelease,
    /// A return probe.
    AcquireExit,
    /// A `ret` of a function whose return address is left alone.
    CallExit,
    /// The same, where that is so of all functions: the thread that entered it returns from it.
    FollowedExit,
    /// Entry of an acquire, a resize or a release that can fail.
    AcquireEnter,
    /// The same of a function whose `ret` instructions are probed.
    CallEnter,
    /// The same, where all functions' are.
    FollowedEnter,
    /// An acquire, at a probe of the target's own.
    UsdtAcquire,
}

impl ProgramKind {
    /// The program's name in the BPF object.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AcquireEnter => "acquire_enter",
            Self::AcquireExit => "acquire_exit",
            Self::CallEnter => "call_enter",
            Self::CallExit => "call_exit",
            Self::FollowedEnter => "followed_enter",
            Self::FollowedExit => "followed_exit",
            Self::ReleaseEnter => "release_enter",
            Self::UsdtRelease => "usdt_release",
            Self::UsdtAcquire => "usdt_acquire",
            Self::AbandonEnter => "abandon_enter",
            Self::MappingsEnter => "mappings_enter",
            Self::EndingEnter => "ending_enter",
        }
    }

    /// It runs when the function returns, by a return address that the kernel has replaced.
    pub const fn is_return(self) -> bool {
        matches!(self, Self::AcquireExit)
    }

    /// Few runs attach it: it is loaded when the first of them does.
    pub const fn is_rare(self) -> bool {
        matches!(self, Self::UsdtAcquire | Self::UsdtRelease | Self::EndingEnter)
    }

    /// The programs that serve a role of a function.
    pub const fn of(role: Role) -> &'static [Self] {
        match role {
            Role::Acquire
            | Role::Resize
            | Role::InPlace
            | Role::Move
            | Role::FallibleRelease
            | Role::Shield => &[Self::AcquireExit, Self::AcquireEnter],
            Role::Release | Role::Sweep => &[Self::ReleaseEnter],
            Role::Abandon => &[Self::AbandonEnter],
            Role::Notice => &[Self::MappingsEnter],
            Role::Ending => &[Self::EndingEnter],
        }
    }
}

/// Identifies an attach point across plans.
pub type PointKey = (ObjectId, u64, ProgramKind);

/// One program to attach at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachPoint {
    /// Which program.
    pub program: ProgramKind,
    /// Index in `PlanOptions::rows`: the attach cookie.
    pub row: u32,
    /// What the row's function does.
    pub role: Role,
    /// Where the row applies.
    pub scope: Scope,
    /// Which object.
    pub object: ObjectId,
    /// Path that opens the object.
    pub open_path: PathBuf,
    /// Offset in the file of the instruction to probe.
    pub file_offset: u64,
    /// Bytes from the function's entry to that instruction, and why there.
    pub placement: Placement,
    /// Name of the function, with the allocator's prefix.
    pub function: String,
    /// Why the function's `ret` instructions are not probed, though it may do what replaced return
    /// addresses do not bear.
    pub unclear: Option<Unclear>,
    /// It is a probe of the target's own.
    pub usdt: Option<UsdtSite>,
}

/// What else there is to know of a probe that a target defines itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsdtSite {
    /// Offset in the file of the counter (`u16`) by which the target knows that somebody listens,
    /// which the kernel raises and lowers.
    pub semaphore: Option<u64>,
    /// Where its arguments are.
    pub arguments: [Argument; ARGUMENTS],
}

impl AttachPoint {
    /// Identifies the point: for `PlanOptions::already`.
    pub fn key(&self) -> PointKey {
        (self.object, self.file_offset, self.program)
    }
}

/// For `-v`: `acquire_enter at free+0x3 (0x98ef3 in /proc/12/map_files/...)`.
impl fmt::Display for AttachPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (program, function, offset) = (self.program.name(), &self.function, self.placement.offset);
        let path = self.open_path.display();
        write!(f, "{program} at {function}+{offset:#x} ({:#x} in {path})", self.file_offset)
    }
}
