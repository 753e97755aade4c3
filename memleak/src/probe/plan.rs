//! Rows of the table x symbols of the target's objects = points to attach to, with a reason for
//! each row left out: what is asked for and what comes of it. [`plan`] does it.

use std::{collections::HashSet, fmt};

use memleak_common::probe::Resource;

use super::table::{DEFAULT_RESOURCES, Row, Scope, TABLE};
use crate::{
    arch::returns::Unclear,
    snapshot::own::Code,
    target::{
        allocator::{self, AllocatorKind},
        ifunc::IfuncError,
        object::SymbolNames,
    },
};

pub use super::{
    error::{PlanError, check_object_argument},
    planner::plan,
    point::{AttachPoint, PointKey, ProgramKind},
};

/// What an object names of an allocator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family {
    /// The object's path.
    pub object: String,
    /// The first of its functions that acquire.
    pub acquires: String,
    /// One that releases is also named.
    pub releases: bool,
    /// Its functions are malloc's and C++'s own, which other objects may define as well.
    pub is_plain: bool,
}

/// Why a function is not probed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SkipReason {
    /// The object cannot be read.
    #[error("the object {0}")]
    Unreadable(String),
    /// No such symbol.
    #[error("the object does not define it")]
    NotDefined,
    /// Another row has the address.
    #[error("it is the same code as {0}, which is probed")]
    SameCode(String),
    /// Another row, with other semantics, has the address.
    #[error("it is the same code as {0}, which does something else")]
    OtherMeaning(String),
    /// Return probes crash Go's stack copier (golang/go issue 22008).
    #[error("the object is a Go program, in which return probes are not safe")]
    Go,
    /// The allocator's operators call malloc and free.
    #[error("in {0} it calls malloc or free, which are probed")]
    CallsMalloc(AllocatorKind),
    /// The resolver's choice is not known.
    #[error("it is {0}")]
    Ifunc(#[from] IfuncError),
    /// Its returns are not known, and no return address may be replaced on this machine.
    #[error("its returns cannot be found: {0}")]
    Returns(#[from] Unclear),
    /// The address is in no executable segment.
    #[error("its code is not in the file")]
    NoCode,
    /// A probe of the object's own, whose arguments are where we do not look.
    #[error("its arguments are in places that are not read: {0}")]
    Arguments(String),
}

/// A function, or an object with all of them, that is not probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    /// The object's path.
    pub object: String,
    /// The function, `*` for all.
    pub function: String,
    /// Why.
    pub reason: SkipReason,
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {} is not probed: {}", self.function, self.object, self.reason)
    }
}

/// What the user asked for, and what is already attached.
#[derive(Clone, Copy, Debug)]
pub struct PlanOptions<'a> {
    /// All rows: those of [`TABLE`], and after them the user's own.
    pub rows: &'a [Row],
    /// What is traced by probes: rows of other resources are left out.
    pub resources: &'a [Resource],
    /// `-O`: take the allocator functions from this object only: a path, a file name, or a
    /// library's name without `lib` and `.so` (`c`, `jemalloc`).
    pub object: Option<&'a str>,
    /// `-S`: the allocator's functions carry this prefix; those without it are another allocator's.
    /// Mapping functions and C++ operators have none.
    pub symbols_prefix: Option<&'a str>,
    /// The programs can put replaced return addresses back on the stack.
    pub mends_stack: bool,
    /// Points of earlier plans: they are not planned again.
    pub already: Option<&'a HashSet<PointKey>>,
}

impl Default for PlanOptions<'_> {
    fn default() -> Self {
        Self {
            rows: &TABLE,
            resources: DEFAULT_RESOURCES,
            object: None,
            symbols_prefix: None,
            mends_stack: true,
            already: None,
        }
    }
}

impl<'a> PlanOptions<'a> {
    /// Rows that the resources need, each with its index.
    pub(super) fn selected(&self) -> impl Iterator<Item = (u32, &'a Row)> + use<'a> {
        let resources = self.resources;
        (0_u32..).zip(self.rows).filter(move |(_, row)| row.serves(resources))
    }

    pub(super) fn rows_of(&self, scope: Scope) -> impl Iterator<Item = &'a Row> + use<'a> {
        self.selected().map(|(_, row)| row).filter(move |row| row.scope == scope)
    }
}

/// What to attach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which to attach them.
    pub points: Vec<AttachPoint>,
    /// What was left out.
    pub skipped: Vec<Skip>,
    /// Objects that hold an allocator: path and which.
    pub allocators: Vec<(String, AllocatorKind)>,
    /// What they name of it.
    pub families: Vec<Family>,
    /// Where their code is in the target: what it maps, it maps for itself.
    pub allocator_code: Vec<Code>,
    /// The user named an allocator by its prefix: mappings alone will not do.
    pub(super) needs_heap: bool,
}

impl Plan {
    /// It attaches nothing that acquires what was asked for: to be told with
    /// [`PlanError::nothing_found`] once all objects are mapped.
    pub fn is_empty(&self) -> bool {
        !self.points.iter().any(|point| {
            use ProgramKind::{AcquireEnter, CallEnter, FollowedEnter, UsdtAcquire};
            matches!(point.program, AcquireEnter | CallEnter | FollowedEnter | UsdtAcquire)
                && (!self.needs_heap || is_allocators(point.scope))
        })
    }

    /// It is empty, and nothing will report objects that are mapped later.
    pub fn is_final(&self) -> bool {
        self.is_empty() && !self.points.iter().any(|point| point.program == ProgramKind::MappingsEnter)
    }
}

/// The symbols that a plan needs of each object: to read the objects with.
pub fn symbol_names(options: &PlanOptions<'_>) -> SymbolNames {
    let rows = || options.selected().map(|(_, row)| row);
    let markers = allocator::marker_names().chain([C_LIBRARY_MARKER]).map(str::to_owned);
    let plain = rows().map(|row| row.function.to_string()).chain(markers);
    let prefixed = || rows().filter(|row| is_prefixed(row.scope)).map(|row| row.function.to_string());
    let names: SymbolNames = match options.symbols_prefix {
        Some(prefix) => plain.chain(prefixed().map(|function| format!("{prefix}{function}"))).collect(),
        // Whatever the prefix: which are an allocator's is told by all that an object defines.
        None => plain
            .collect::<SymbolNames>()
            .with_endings(prefixed().chain(allocator::marker_endings().map(str::to_owned))),
    };
    names.with_local(allocator::own_prefixes(), allocator::own_names())
}
/// A function that glibc and musl define, and nobody else (where `errno` is).
pub(super) const C_LIBRARY_MARKER: &str = "__errno_location";

/// Functions that may carry an allocator's prefix.
pub(super) fn is_prefixed(scope: Scope) -> bool {
    matches!(scope, Scope::Heap | Scope::HeapExtension)
}

/// Functions of the allocator that `-S` names.
pub(super) fn is_allocators(scope: Scope) -> bool {
    is_prefixed(scope) || scope == Scope::Allocator
}
