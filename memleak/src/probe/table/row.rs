//! A row of the table, and the words that rows are written in.

use std::borrow::Cow;

use memleak_common::probe::{ProbeRow, Resource, handle, success};

/// What a call of the function does to the resource, and so which programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Hands out something new: `acquire_enter` and `acquire_exit`.
    Acquire,
    /// Releases what it was given and hands out something instead, or fails and does neither
    /// (realloc, mremap): `acquire_enter` and `acquire_exit`.
    Resize,
    /// Changes the size of what it was given, where it is (xallocx): `acquire_enter` and
    /// `acquire_exit`.
    InPlace,
    /// Moves what it was given, of which all else that is known stays (mremap, where pages are what
    /// is traced): `acquire_enter` and `acquire_exit`.
    Move,
    /// Releases and cannot fail: `release_enter`.
    Release,
    /// Releases many at once, and nothing tells which (mi_heap_destroy): counted by
    /// `release_enter`.
    Sweep,
    /// Releases, unless it fails (munmap): `acquire_enter` and `acquire_exit`.
    FallibleRelease,
    /// Acquires for its own use, by functions of its group, and releases in other ways
    /// (sqlite3_exec): what it calls does not count. `acquire_enter` and `acquire_exit`.
    Shield,
    /// Leaves frames behind without their return (longjmp, exceptions): `abandon_enter`.
    Abandon,
    /// Is called when the target's mappings have changed: `mappings_enter`.
    Notice,
    /// Ends the process: `ending_enter`. Probed only where its end is asked for.
    Ending,
}

impl Role {
    /// It does nothing to a resource.
    pub const fn is_control(self) -> bool {
        matches!(self, Self::Abandon | Self::Notice | Self::Ending)
    }
}

/// Which objects' symbols a row applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Objects that define an allocator; the symbols may carry its prefix (`je_`).
    Heap,
    /// As `Heap`, but only some allocators have it: that it is missing is not worth a word.
    HeapExtension,
    /// Every object that defines the function, unless `-O` or `-S` says otherwise: an allocator's
    /// function that is named as nobody else's is. The name is whole.
    Allocator,
    /// Objects of allocators whose C++ operators do not call malloc ([`crate::target::allocator`]).
    /// Never prefixed.
    Operator,
    /// Objects that define the C library's mmap and munmap. Never prefixed.
    Mapping,
    /// Objects of the C library, or static programs: the name is too common to be looked for
    /// elsewhere.
    CLibrary,
    /// Every object that defines the function. Never prefixed.
    Anywhere,
    /// Objects that define a probe of their own (USDT) named so, `PROVIDER:NAME`, and no function
    /// of an allocator; all that define it if the resource is asked for.
    Usdt,
    /// A system call: served, and not looked for in any object.
    SystemCall,
    /// A user's: the objects that [`Row::object`] names, as `-O` would; without a name every
    /// object.
    User,
}

/// One function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Name of the symbol, without version and without an allocator's prefix.
    pub function: Cow<'static, str>,
    /// What it does.
    pub role: Role,
    /// Where it is looked for.
    pub scope: Scope,
    /// For [`Scope::User`].
    pub object: Option<String>,
    /// What the BPF programs read.
    pub probe: ProbeRow,
}

impl Row {
    /// A run over these resources needs it.
    pub fn serves(&self, resources: &[Resource]) -> bool {
        self.role.is_control()
            || self.scope == Scope::Usdt && resources.contains(&Resource::Heap)
            || resources.iter().any(|resource| resource.number() == self.probe.resource)
    }
}

/// What is traced if nothing else is asked for.
pub const DEFAULT_RESOURCES: &[Resource] = &[Resource::Heap, Resource::Mmap];

/// A built-in row.
pub(super) const fn row(function: &'static str, role: Role, scope: Scope, probe: ProbeRow) -> Row {
    Row { function: Cow::Borrowed(function), role, scope, object: None, probe }
}

/// Rows of a resource that is neither `heap` nor `mmap`. Those of different groups count each for
/// itself.
pub(super) const fn of(resource: Resource, group: u8) -> ProbeRow {
    let number = resource.number();
    ProbeRow { resource: number, group: number << 8 | group as u32, ..ProbeRow::EMPTY }
}

/// Returns the handle, a pointer; null if it fails.
pub(super) const fn returns(row: ProbeRow) -> ProbeRow {
    ProbeRow { handle: handle::RETURN, ..row }
}

/// Stores the handle, a pointer, where argument `handle_arg` says; null if it fails.
pub(super) const fn stores(row: ProbeRow, handle_arg: u8) -> ProbeRow {
    ProbeRow { handle: handle::BEHIND_ARG, handle_arg, ..row }
}

/// Acquires what argument `handle_arg` is, if it returns `value`.
pub(super) const fn takes(row: ProbeRow, handle_arg: u8, value: i64) -> ProbeRow {
    ProbeRow { handle: handle::ARG, handle_arg, ..if_equal(row, value) }
}

/// Releases argument `release_arg`.
pub(super) const fn releases(row: ProbeRow, release_arg: u8) -> ProbeRow {
    ProbeRow { release_arg, ..row }
}

/// Where it returns this `int`.
pub(super) const fn if_equal(row: ProbeRow, success_value: i64) -> ProbeRow {
    ProbeRow { success: success::EQUAL, success_value, ..row }
}

/// With more flags.
pub(super) const fn with(row: ProbeRow, more: u32) -> ProbeRow {
    ProbeRow { flags: row.flags | more, ..row }
}
