//! Makes a [`Plan`]: finds the functions of each object, and where to probe each.

use std::{
    cell::OnceCell,
    collections::{BTreeSet, HashMap, HashSet},
    ops::Range,
};

use memleak_common::probe::{ProbeRow, Resource};

use super::{
    plan::{C_LIBRARY_MARKER, Family, Plan, PlanOptions, Skip, SkipReason, is_allocators, is_prefixed},
    point::{AttachPoint, ProgramKind},
    table::{Role, Row, Scope},
    usdt,
};
use crate::{
    arch::{
        self,
        placement::{Placement, Reason},
        returns::{SlotFunction, Unclear},
    },
    proc::memory::ReadMemory,
    snapshot::own::Code,
    target::{
        allocator::{self, AllocatorKind},
        ifunc,
        object::{Elf, FunctionSymbol, Object, SymbolKind, names_object},
    },
};

/// Plans for `objects`: all that a target has mapped, or those that are new. Objects are read with
/// [`super::plan::symbol_names`] of the same options. `memory` is the target's, for indirect
/// functions.
///
/// An empty plan is not an error here: a command that has just been started has nothing mapped yet.
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
    // A release that can fail is attached by the programs of an acquire: among these it comes
    // first.
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

fn acquires(row: &Row) -> bool {
    matches!(row.role, Role::Acquire | Role::Resize)
}

/// The programs for calls whose `ret` instructions are probed.
struct Followed {
    entry: &'static [ProgramKind],
    exit: ProgramKind,
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
    /// Addresses in the object of the allocator's functions.
    code: Vec<Range<u64>>,
    /// [`Elf::functions_by_slot`], once it was needed.
    by_slot: OnceCell<HashMap<u64, SlotFunction>>,
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
        let (taken, code, by_slot) = (HashMap::new(), Vec::new(), OnceCell::new());
        Self { objects, object, elf, options, memory, is_chosen, taken, code, by_slot }
    }

    fn run(mut self, plan: &mut Plan) {
        let prefixes = self.prefixes();
        let families = self.families(&prefixes);
        let has_own_functions = self.is_chosen && self.defines_whole(|_| true);
        let kind = allocator::identify(self.elf);
        let has_allocator = !families.is_empty() || has_own_functions;
        if has_allocator {
            plan.allocators.push((self.object.to_string(), kind));
            // Functions of a prefix that are other names of malloc's own free what its others
            // acquire.
            let (plain, named): (Vec<_>, Vec<_>) = prefixes.iter().partition(|prefix| prefix.is_empty());
            let new = |prefix: &&String| families.contains(*prefix);
            plan.families.extend(self.family(plain.into_iter().filter(new), &[], true));
            plan.families.extend(self.family(named.iter().copied().filter(new), &named, false));
        }
        for prefix in &families {
            self.add_rows(plan, prefix, is_prefixed, None);
        }
        if has_allocator {
            let reason = (!kind.has_own_operators()).then_some(SkipReason::CallsMalloc(kind));
            self.add_rows(plan, "", |scope| scope == Scope::Operator, reason);
        }
        if has_own_functions {
            self.add_rows(plan, "", |scope| scope == Scope::Allocator, None);
        }
        if has_allocator {
            self.add_allocator_code(plan, kind);
        }
        if self.has_mapping_functions() {
            self.add_rows(plan, "", |scope| scope == Scope::Mapping, None);
        }
        if self.elf.is_static() || self.elf.defines(C_LIBRARY_MARKER) {
            self.add_rows(plan, "", |scope| scope == Scope::CLibrary, None);
        }
        self.add_rows(plan, "", |scope| matches!(scope, Scope::Anywhere | Scope::User), None);
        self.add_usdt(plan, has_allocator);
    }

    /// Adds the object's own probes: those of an allocator's samples if they are all that is to be
    /// had of it, or were asked for.
    fn add_usdt(&self, plan: &mut Plan, has_allocator: bool) {
        for (index, row) in self.options.selected().filter(|(_, row)| row.scope == Scope::Usdt) {
            let is_asked = row.probe.resource == Resource::OtelMemory.number()
                && self.options.resources.contains(&Resource::OtelMemory);
            if !is_asked && has_allocator {
                continue;
            }
            for point in usdt::points(index, row, self.object, self.elf) {
                match point {
                    Ok(point) => plan.points.extend(Some(point).filter(|point| self.is_new(point))),
                    Err(reason) => plan.skipped.push(self.skip(&row.function, reason)),
                }
            }
        }
    }

    /// Prefixes under which it may define something of an allocator.
    fn prefixes(&self) -> Vec<String> {
        match (self.is_chosen, self.options.symbols_prefix) {
            (false, _) => Vec::new(),
            (true, Some(prefix)) => vec![prefix.to_owned()],
            (true, None) => allocator::prefixes_of(self.elf),
        }
    }

    /// Prefixes under which the object defines something of an allocator, complete or not: a linker
    /// takes from a static library only what is called, and leaves the symbols out that nobody
    /// refers to. If nothing under a prefix acquires, what it frees is something else: a
    /// program's own `mi_free` may free menu items. A prefix that names what another one has named
    /// already adds nothing.
    fn families(&self, prefixes: &[String]) -> Vec<String> {
        let mut known = HashSet::new();
        let mut adds_something = |prefix: &str| {
            let is_counted = |row: &&Row| is_prefixed(row.scope) && row.role != Role::Sweep;
            let rows = self.options.selected().map(|(_, row)| row).filter(is_counted);
            let releases_count = prefix.is_empty() || self.defines_whole(|name| name.starts_with(prefix));
            let mut is_new = false;
            for row in rows.filter(|row| releases_count || acquires(row)) {
                let symbols = self.elf.symbols_named(&format!("{prefix}{}", row.function));
                is_new |= symbols.iter().fold(false, |is_new, symbol| known.insert(symbol.vaddr) | is_new);
            }
            is_new
        };
        prefixes.iter().filter(|prefix| adds_something(prefix)).cloned().collect()
    }

    /// What the object names of malloc's and C++'s own functions, or of those under these prefixes
    /// and with whole names. What it frees may be named under one of `others`, too.
    fn family<'p>(
        &self,
        prefixes: impl Iterator<Item = &'p String>,
        others: &[&String],
        is_plain: bool,
    ) -> Option<Family> {
        let whole = if is_plain { Scope::Operator } else { Scope::Allocator };
        let prefixes: Vec<_> = prefixes.collect();
        let (mut acquired_by, mut releases) = (None, false);
        for (_, row) in self.options.selected() {
            let under = |prefix: &&String| format!("{prefix}{}", row.function);
            let names: Vec<_> = match row.scope {
                scope if is_prefixed(scope) => prefixes.iter().map(under).collect(),
                scope if scope == whole && self.may_take(row) => vec![row.function.to_string()],
                _ => continue,
            };
            let is_release = row.role == Role::Release;
            if is_release && is_prefixed(row.scope) {
                releases |=
                    others.iter().any(|prefix| self.elf.defines(&under(prefix)) && self.acquires(prefix));
            }
            let Some(name) = names.into_iter().find(|name| self.elf.defines(name)) else { continue };
            releases |= is_release;
            if acquires(row) {
                acquired_by.get_or_insert(name);
            }
        }
        let object = self.object.to_string();
        Some(Family { object, acquires: acquired_by?, releases, is_plain })
    }

    /// The object defines a function that acquires under this prefix.
    fn acquires(&self, prefix: &str) -> bool {
        let mut rows = self.options.selected().filter(|(_, row)| is_prefixed(row.scope) && acquires(row));
        rows.any(|(_, row)| self.elf.defines(&format!("{prefix}{}", row.function)))
    }

    /// Notes where the allocator's code is: all of a library that is nothing else, or the functions
    /// that have names.
    fn add_allocator_code(&mut self, plan: &mut Plan, kind: AllocatorKind) {
        let Some(bias) = self.object.load_bias else { return };
        if kind.is_all_of_its_library() && !self.elf.is_program() {
            self.code = self.elf.code_ranges().collect();
        } else {
            let internal = allocator::internal_functions(self.elf);
            self.code.extend(internal.map(|symbol| symbol.vaddr..symbol.vaddr.saturating_add(symbol.size)));
        }
        let in_target = |code: &Range<u64>| code.start.wrapping_add(bias)..code.end.wrapping_add(bias);
        plan.allocator_code.push(Code {
            object: self.elf.code_ranges().map(|code| in_target(&code)).collect(),
            functions: self.code.iter().map(in_target).collect(),
        });
    }

    /// The object defines a function that acquires under a whole name, one of those that are
    /// `wanted`.
    fn defines_whole(&self, wanted: impl Fn(&str) -> bool) -> bool {
        let mut rows =
            self.options.rows_of(Scope::Allocator).filter(|row| acquires(row) && self.may_take(row));
        rows.any(|row| wanted(&row.function) && self.elf.defines(&row.function))
    }

    /// The row's function belongs to the allocator that `-S` names, if it names one.
    fn may_take(&self, row: &Row) -> bool {
        let is_named = |prefix: &str| row.scope != Scope::Allocator || row.function.starts_with(prefix);
        self.options.symbols_prefix.is_none_or(is_named)
    }

    /// The object is a C library, or holds one: it defines functions of each role, or is static and
    /// has some of them.
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

    /// Adds the rows of some scopes: points, or a reason why not (`reason`, if there is one for
    /// all of them).
    fn add_rows(
        &mut self,
        plan: &mut Plan,
        prefix: &str,
        applies: impl Fn(Scope) -> bool,
        reason: Option<SkipReason>,
    ) {
        for (index, row) in self.options.selected().filter(|(_, row)| applies(row.scope)) {
            let is_others = row.object.as_deref().is_some_and(|name| !names_object(name, self.object));
            if is_others || !self.may_take(row) {
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
        if self.elf.is_go() && !row.role.is_control() {
            return Err(SkipReason::Go);
        }
        let (vaddr, size) = match symbol.kind {
            SymbolKind::Function => self.code_of(symbol.vaddr, symbol.size, row),
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
        let (mut programs, mut unclear) = (ProgramKind::of(row.role), None);
        let mut returns = BTreeSet::new();
        let mut exit = ProgramKind::CallExit;
        if let Some(followed) = self.followed(row) {
            match self.returns(vaddr, size) {
                Ok(found) => {
                    (programs, returns) = (followed.entry, found);
                    exit = followed.exit;
                }
                Err(why) if !arch::HOST.replaces_returns() => return Err(why.into()),
                Err(why) => unclear = Some(why),
            }
        }
        let place = |program, file_offset, placement| AttachPoint {
            program,
            row: index,
            role: row.role,
            scope: row.scope,
            object: self.object.id,
            open_path: self.object.open_path.clone(),
            file_offset,
            placement,
            function: symbol.name.clone(),
            unclear,
            usdt: None,
        };
        let mut points = Vec::new();
        for at in returns {
            let offset = u32::try_from(at.wrapping_sub(vaddr)).unwrap_or(0);
            let file_offset = self.elf.file_offset_of(at).ok_or(SkipReason::NoCode)?;
            points.push(place(exit, file_offset, Placement { offset, reason: Reason::Return }));
        }
        let file_offset = self
            .elf
            .file_offset_of(vaddr.wrapping_add(u64::from(placement.offset)))
            .ok_or(SkipReason::NoCode)?;
        points.extend(programs.iter().map(|program| place(*program, file_offset, placement)));
        self.taken.insert(vaddr, (symbol.name.clone(), row.probe));
        if is_allocators(row.scope) || row.scope == Scope::Operator {
            self.code.push(vaddr..vaddr.saturating_add(size));
        }
        Ok(points)
    }

    /// The row's calls are followed by their `ret` instructions, wherever these are known: those of
    /// functions that users name, of which nobody knows whether they throw or switch stacks; those
    /// of mmap and related functions, which signal handlers call on stacks of their own; and those
    /// that throw if the stack cannot be mended; and all, where return addresses cannot be
    /// replaced.
    fn followed(&self, row: &Row) -> Option<Followed> {
        const ANY_THREAD: Followed =
            Followed { entry: &[ProgramKind::CallEnter], exit: ProgramKind::CallExit };
        const SAME_THREAD: Followed =
            Followed { entry: &[ProgramKind::FollowedEnter], exit: ProgramKind::FollowedExit };
        if !ProgramKind::of(row.role).contains(&ProgramKind::AcquireEnter) {
            return None;
        }
        match row.scope {
            Scope::User | Scope::Mapping => Some(ANY_THREAD),
            _ if !arch::HOST.replaces_returns() => Some(SAME_THREAD),
            Scope::Operator if !self.options.mends_stack => Some(ANY_THREAD),
            _ => None,
        }
    }

    /// The code of a function of this row, and its size. One that only jumps to another one of the
    /// same row (mimalloc's memalign to mi_memalign) is a name of that: its calls would be taken
    /// for calls of one function that have not returned.
    fn code_of(&self, vaddr: u64, size: u64, row: &Row) -> (u64, u64) {
        let code_from = |from, len| self.elf.code(from, len);
        let other = arch::HOST.other_name_of(vaddr, code_from, |slot| self.of_slot(slot));
        let is_of_row = |symbol: &FunctionSymbol, other| {
            symbol.vaddr == other
                && symbol.kind == SymbolKind::Function
                && symbol.name.ends_with(row.function.as_ref())
        };
        let other = other.filter(|other| self.elf.symbols().iter().any(|symbol| is_of_row(symbol, *other)));
        other.map_or((vaddr, size), |other| (other, self.elf.function_size_at(other)))
    }

    fn of_slot(&self, slot: u64) -> Option<SlotFunction> {
        self.by_slot.get_or_init(|| self.elf.functions_by_slot()).get(&slot).copied()
    }

    /// Where the function at `vaddr`, of this size or 0, returns.
    fn returns(&self, vaddr: u64, size: u64) -> Result<BTreeSet<u64>, Unclear> {
        let whole = |other| self.whole_function(other, if other == vaddr { size } else { 0 });
        let code_from = |from, len| self.elf.code(from, len);
        arch::HOST.returns(vaddr, whole, code_from, |slot| self.of_slot(slot))
    }

    /// All code of the function at `vaddr`, whose size is this or, if it is 0, a symbol's.
    fn whole_function(&self, vaddr: u64, size: u64) -> Option<Vec<u8>> {
        let size = if size == 0 { self.elf.function_size_at(vaddr) } else { size };
        self.elf.whole_function(vaddr, size)
    }

    fn place(&self, vaddr: u64, size: u64, row: &Row) -> Placement {
        // Only objects of this machine are planned for (`ObjectError::ForeignMachine`).
        match self.elf.whole_function(vaddr, size) {
            Some(code) => arch::HOST.place(&code, vaddr, row.probe.arguments_read()),
            None => Placement::entry(Reason::BodyUnknown),
        }
    }
}
