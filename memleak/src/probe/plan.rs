//! Rows of the table x symbols of the target's objects = points to attach to, with a reason for each row left out.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    path::PathBuf,
};

use memleak_common::probe::{ProbeRow, Resource};

use super::table::{DEFAULT_RESOURCES, Role, Row, Scope, TABLE};
use crate::{
    arch::{
        self,
        placement::{Placement, Reason},
    },
    proc::memory::ReadMemory,
    target::{
        allocator::{self, AllocatorKind},
        ifunc::{self, IfuncError},
        object::{Elf, FunctionSymbol, Object, ObjectId, SymbolKind, SymbolNames, names_object},
    },
};

pub use super::error::{PlanError, check_object_argument};

/// A BPF program, in the order in which points are attached: what releases comes before what acquires, so that nothing
/// that was seen acquired can be missed at its release; and a return before its entry, which makes it expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProgramKind {
    /// The target's mappings changed.
    MappingsEnter,
    /// Frames are left behind.
    AbandonEnter,
    /// A release that cannot fail.
    ReleaseEnter,
    /// A return probe.
    AcquireExit,
    /// Entry of an acquire, a resize or a release that can fail.
    AcquireEnter,
}

impl ProgramKind {
    /// The program's name in the BPF object.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AcquireEnter => "acquire_enter",
            Self::AcquireExit => "acquire_exit",
            Self::ReleaseEnter => "release_enter",
            Self::AbandonEnter => "abandon_enter",
            Self::MappingsEnter => "mappings_enter",
        }
    }

    /// It runs when the function returns.
    pub const fn is_return(self) -> bool {
        matches!(self, Self::AcquireExit)
    }

    /// The programs that serve a role.
    pub const fn of(role: Role) -> &'static [Self] {
        match role {
            Role::Acquire | Role::Resize | Role::FallibleRelease | Role::Shield => {
                &[Self::AcquireExit, Self::AcquireEnter]
            }
            Role::Release => &[Self::ReleaseEnter],
            Role::Abandon => &[Self::AbandonEnter],
            Role::Notice => &[Self::MappingsEnter],
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
    /// Index in [`PlanOptions::rows`]: the attach cookie.
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
}

impl AttachPoint {
    /// Identifies the point: for [`PlanOptions::already`].
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
    /// The address is in no executable segment.
    #[error("its code is not in the file")]
    NoCode,
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
    /// All rows: those of [`TABLE`], and behind them the user's own.
    pub rows: &'a [Row],
    /// What is traced by probes: rows of other resources are left out.
    pub resources: &'a [Resource],
    /// `-O`: take the allocator functions from this object only: a path, a file name, or a library's name without
    /// `lib` and `.so` (`c`, `jemalloc`).
    pub object: Option<&'a str>,
    /// `-S`: the allocator's functions carry this prefix; those without it are another allocator's. Mapping functions
    /// and C++ operators have none.
    pub symbols_prefix: Option<&'a str>,
    /// Points of earlier plans: they are not planned again.
    pub already: Option<&'a HashSet<PointKey>>,
}

impl Default for PlanOptions<'_> {
    fn default() -> Self {
        Self { rows: &TABLE, resources: DEFAULT_RESOURCES, object: None, symbols_prefix: None, already: None }
    }
}

impl<'a> PlanOptions<'a> {
    /// Rows that the resources need, each with its index.
    fn selected(&self) -> impl Iterator<Item = (u32, &'a Row)> + use<'a> {
        let resources = self.resources;
        (0_u32..).zip(self.rows).filter(move |(_, row)| row.serves(resources))
    }

    fn rows_of(&self, scope: Scope) -> impl Iterator<Item = &'a Row> + use<'a> {
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
    /// The user named an allocator by its prefix: mappings alone will not do.
    needs_heap: bool,
}

impl Plan {
    /// It attaches nothing that acquires what was asked for: to be told with [`PlanError::nothing_found`] once all
    /// objects are mapped.
    pub fn is_empty(&self) -> bool {
        !self.points.iter().any(|point| {
            point.program == ProgramKind::AcquireEnter && (!self.needs_heap || is_prefixed(point.scope))
        })
    }

    /// It is empty, and nothing will tell of objects that are mapped later.
    pub fn is_final(&self) -> bool {
        self.is_empty() && !self.points.iter().any(|point| point.program == ProgramKind::MappingsEnter)
    }
}

/// The symbols that a plan needs of each object: to read the objects with.
pub fn symbol_names(options: &PlanOptions<'_>) -> SymbolNames {
    let rows = || options.selected().map(|(_, row)| row);
    let prefixed = rows()
        .filter(|row| is_prefixed(row.scope))
        .flat_map(|row| prefixes(options).iter().map(move |prefix| format!("{prefix}{}", row.function)));
    let markers = allocator::marker_names().chain([C_LIBRARY_MARKER]);
    let plain = rows().map(|row| row.function.to_string()).chain(markers.map(str::to_owned));
    prefixed.chain(plain).collect()
}

/// Plans for `objects`: all that a target has mapped, or those that are new. Objects are read with [`symbol_names`] of
/// the same options. `memory` is the target's, for indirect functions.
///
/// An empty plan is no error here: a command that has just been started has nothing mapped yet.
pub fn plan(objects: &[Object], options: &PlanOptions<'_>, memory: Option<&dyn ReadMemory>) -> Plan {
    let mut plan = Plan { needs_heap: options.symbols_prefix.is_some(), ..Plan::default() };
    for object in objects {
        match &object.elf {
            Ok(elf) => Planner::new(objects, object, elf, options, memory).run(&mut plan),
            Err(error) => plan.skipped.push(Skip {
                object: object.to_string(),
                function: "*".to_owned(),
                reason: SkipReason::Unreadable(error.to_string()),
            }),
        }
    }
    // A release that can fail is attached by the programs of an acquire: among these it comes first.
    plan.points.sort_by_key(|point| (point.program, role_rank(point.role)));
    plan
}

fn role_rank(role: Role) -> u8 {
    match role {
        Role::FallibleRelease => 0,
        Role::Resize => 1,
        _ => 2,
    }
}

/// A function that glibc and musl define, and nobody else (where `errno` is).
const C_LIBRARY_MARKER: &str = "__errno_location";

fn is_prefixed(scope: Scope) -> bool {
    matches!(scope, Scope::Heap | Scope::HeapExtension)
}

/// Prefixes to look for.
fn prefixes<'a>(options: &'a PlanOptions<'_>) -> &'a [&'a str] {
    match &options.symbols_prefix {
        Some(prefix) => std::slice::from_ref(prefix),
        None => allocator::PREFIXES,
    }
}

/// Plans for one object.
struct Planner<'a> {
    objects: &'a [Object],
    object: &'a Object,
    elf: &'a Elf,
    options: &'a PlanOptions<'a>,
    memory: Option<&'a dyn ReadMemory>,
    /// The object is one of those that `-O` allows.
    is_chosen: bool,
    /// Function at each address that has been dealt with, and its row.
    taken: HashMap<u64, (String, ProbeRow)>,
}

impl<'a> Planner<'a> {
    fn new(
        objects: &'a [Object],
        object: &'a Object,
        elf: &'a Elf,
        options: &'a PlanOptions<'a>,
        memory: Option<&'a dyn ReadMemory>,
    ) -> Self {
        let is_chosen = options.object.is_none_or(|name| names_object(name, object));
        Self { objects, object, elf, options, memory, is_chosen, taken: HashMap::new() }
    }

    fn run(mut self, plan: &mut Plan) {
        let families = self.families();
        let kind = allocator::identify(self.elf);
        if !families.is_empty() {
            plan.allocators.push((self.object.to_string(), kind));
        }
        for prefix in &families {
            self.add_rows(plan, prefix, is_prefixed, None);
        }
        if !families.is_empty() {
            let reason = (!kind.has_own_operators()).then_some(SkipReason::CallsMalloc(kind));
            self.add_rows(plan, "", |scope| scope == Scope::Operator, reason);
        }
        if self.has_mapping_functions() {
            self.add_rows(plan, "", |scope| scope == Scope::Mapping, None);
        }
        if self.elf.is_static() || self.elf.defines(C_LIBRARY_MARKER) {
            self.add_rows(plan, "", |scope| scope == Scope::CLibrary, None);
        }
        self.add_rows(plan, "", |scope| matches!(scope, Scope::Anywhere | Scope::User), None);
    }

    /// Prefixes under which the object defines an allocator. A linker takes from a static library only what is called,
    /// so that a static program may have `malloc` and no `free`, or `aligned_alloc` alone; and `-O` is taken at its
    /// word. Where two prefixes name the same malloc, the second would only add its aliases.
    fn families(&self) -> Vec<&'a str> {
        if !self.is_chosen {
            return Vec::new();
        }
        let any_function = self.elf.is_static() || self.options.object.is_some();
        let mut mallocs = HashSet::new();
        let mut defines_allocator = |prefix: &str| {
            let free = self.elf.defines(&format!("{prefix}free"));
            match self.elf.symbols_named(&format!("{prefix}malloc")).first() {
                Some(malloc) => mallocs.insert(malloc.vaddr) && (free || any_function),
                None => any_function && self.defines_acquire(prefix),
            }
        };
        prefixes(self.options).iter().copied().filter(|prefix| defines_allocator(prefix)).collect()
    }

    fn defines_acquire(&self, prefix: &str) -> bool {
        self.options
            .rows_of(Scope::Heap)
            .filter(|row| matches!(row.role, Role::Acquire | Role::Resize))
            .any(|row| self.elf.defines(&format!("{prefix}{}", row.function)))
    }

    /// The object is a C library, or holds one: it defines functions of each role, or is static and has some of them.
    fn has_mapping_functions(&self) -> bool {
        let mut rows = self.options.rows_of(Scope::Mapping);
        let defines = |role: Role| {
            self.options
                .rows_of(Scope::Mapping)
                .any(|row| row.role == role && self.elf.defines(&row.function))
        };
        self.is_chosen
            && if self.elf.is_static() {
                rows.any(|row| self.elf.defines(&row.function))
            } else {
                defines(Role::Acquire) && defines(Role::FallibleRelease)
            }
    }

    /// Adds the rows of some scopes: points, or a reason why not (`reason`, where there is one for all of them).
    fn add_rows(
        &mut self,
        plan: &mut Plan,
        prefix: &str,
        applies: impl Fn(Scope) -> bool,
        reason: Option<SkipReason>,
    ) {
        for (index, row) in self.options.selected().filter(|(_, row)| applies(row.scope)) {
            if row.object.as_deref().is_some_and(|name| !names_object(name, self.object)) {
                continue;
            }
            let function = format!("{prefix}{}", row.function);
            let symbols = self.elf.symbols_named(&function);
            if symbols.is_empty() && matches!(row.scope, Scope::Heap | Scope::Mapping) {
                plan.skipped.push(self.skip(&function, SkipReason::NotDefined));
            }
            for symbol in symbols {
                let outcome = match &reason {
                    Some(reason) => Err(reason.clone()),
                    None => self.points(index, row, symbol),
                };
                match outcome {
                    Ok(points) => plan.points.extend(points.into_iter().filter(|point| self.is_new(point))),
                    Err(reason) => plan.skipped.push(self.skip(&function, reason)),
                }
            }
        }
    }

    fn is_new(&self, point: &AttachPoint) -> bool {
        self.options.already.is_none_or(|already| !already.contains(&point.key()))
    }

    fn skip(&self, function: &str, reason: SkipReason) -> Skip {
        Skip { object: self.object.to_string(), function: function.to_owned(), reason }
    }

    /// The points for one row at one symbol.
    fn points(
        &mut self,
        index: u32,
        row: &Row,
        symbol: &FunctionSymbol,
    ) -> Result<Vec<AttachPoint>, SkipReason> {
        let programs = ProgramKind::of(row.role);
        if self.elf.is_go() && !matches!(row.role, Role::Abandon | Role::Notice) {
            return Err(SkipReason::Go);
        }
        let (vaddr, size) = match symbol.kind {
            SymbolKind::Function => (symbol.vaddr, symbol.size),
            SymbolKind::Indirect => {
                let vaddr = ifunc::resolve(self.objects, self.object, symbol, self.memory)?;
                (vaddr, self.elf.function_size_at(vaddr))
            }
        };
        if let Some((function, probe)) = self.taken.get(&vaddr) {
            return Err(match *probe == row.probe {
                true => SkipReason::SameCode(function.clone()),
                false => SkipReason::OtherMeaning(function.clone()),
            });
        }
        let placement = self.place(vaddr, size, row);
        let file_offset = self
            .elf
            .file_offset_of(vaddr.wrapping_add(u64::from(placement.offset)))
            .ok_or(SkipReason::NoCode)?;
        self.taken.insert(vaddr, (symbol.name.clone(), row.probe));
        Ok(programs
            .iter()
            .map(|program| AttachPoint {
                program: *program,
                row: index,
                role: row.role,
                scope: row.scope,
                object: self.object.id,
                open_path: self.object.open_path.clone(),
                file_offset,
                placement,
                function: symbol.name.clone(),
            })
            .collect())
    }

    fn place(&self, vaddr: u64, size: u64, row: &Row) -> Placement {
        // Only objects of this machine are planned for (`ObjectError::ForeignMachine`).
        match self.elf.whole_function(vaddr, size) {
            Some(code) => arch::HOST.place(&code, vaddr, row.probe.arguments_read()),
            None => Placement::entry(Reason::BodyUnknown),
        }
    }
}
