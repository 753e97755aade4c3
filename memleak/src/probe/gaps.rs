//! What of an allocator is not seen: half of its functions, or all of them, if a linker has
//! dropped their symbols.

use std::{collections::BTreeSet, ops::Range};

use super::{
    plan::{Family, Plan, SkipReason},
    point::AttachPoint,
};
use crate::{
    proc::maps::Mapping,
    snapshot::own::Nameless,
    target::{
        allocator::{self, AllocatorKind},
        object::{Object, ObjectId},
    },
};

/// What a report will lack, in one line that says what to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Gap {
    /// A half of an allocator.
    #[error(
        "{object} names {acquires}, but no function that frees what it returns: blocks that were freed will be listed \
         as outstanding; trace a build in which the allocator is not inlined or stripped"
    )]
    NothingFrees {
        /// Its path.
        object: String,
        /// A function that is probed.
        acquires: String,
    },
    /// A program or a library holds an allocator, and no symbol says where.
    #[error(
        "{object} contains {allocator}, but is stripped: what it allocates by it is not seen; install its debug file \
         (/usr/lib/debug/.build-id) or trace a build with symbols; --growth shows which stacks its memory grows by"
    )]
    Hidden {
        /// Its path.
        object: String,
        /// By the words that it would print.
        allocator: AllocatorKind,
    },
    /// The same, but the functions that shared libraries refer to are named.
    #[error(
        "{object} contains {}, but is stripped: calls of its functions that no shared library refers to (some of C++'s \
         operators, those that only it has) are not seen, and blocks that they free are listed as outstanding; install its \
         debug file (/usr/lib/debug/.build-id) or trace a build with symbols",
        in_words(*allocator)
    )]
    HalfHidden {
        /// Its path.
        object: String,
        /// By the words that it would print.
        allocator: AllocatorKind,
    },
    /// Code with functions that are probed is in memory of no file, where nothing can be probed.
    #[error(
        "{program} has copied its code to memory of no file (as node --use-largepages does): calls of {functions} there \
         are not seen; start it without that"
    )]
    Copied {
        /// Path of the file that it was copied from.
        program: String,
        /// Functions.
        functions: String,
    },
    /// The linker's optimizer has copied its functions into their callers.
    #[error(
        "{object} was optimized as a whole when it was linked (-flto), with {} in it: what calls of {acquires} and others \
         acquire and free where they were inlined is not seen; trace a build in which the allocator is compiled without \
         -flto",
        in_words(*allocator)
    )]
    Inlined {
        /// Its path.
        object: String,
        /// What it is known to be.
        allocator: AllocatorKind,
        /// A function that is probed.
        acquires: String,
    },
    /// A function's returns are not known, and no return address may be replaced (arm64).
    #[error("{0}: what it acquires is not seen; trace a build in which it is compiled otherwise")]
    NoReturns(String),
}

/// Functions that are left out since it is not known where they return.
pub fn without_returns(plan: &Plan) -> Vec<Gap> {
    let unknown = plan.skipped.iter().filter(|skip| matches!(skip.reason, SkipReason::Returns(_)));
    unknown.map(|skip| Gap::NoReturns(skip.to_string())).collect()
}

/// The program, if nothing tells which allocator it holds, or whether it does: it is stripped.
pub fn nameless(objects: &[Object], plan: &Plan, gaps: &[Gap]) -> Option<Nameless> {
    objects.iter().find_map(|object| {
        let elf = object.elf.as_ref().ok().filter(|elf| elf.is_program() && !elf.has_symbol_table())?;
        let program = object.to_string();
        let is_told = |gap: &Gap| matches!(gap, Gap::Hidden { object, .. } if *object == program);
        if families_of(&program, plan).next().is_some() || gaps.iter().any(is_told) {
            return None;
        }
        let bias = object.load_bias?;
        let in_target = |code: Range<u64>| code.start.wrapping_add(bias)..code.end.wrapping_add(bias);
        Some(Nameless { code: elf.code_ranges().map(in_target).collect(), program })
    })
}

fn in_words(allocator: AllocatorKind) -> String {
    match allocator {
        AllocatorKind::Unknown => "an allocator of its own".to_owned(),
        known => known.to_string(),
    }
}

/// The gaps in `plan`, a plan for `objects`: all that a target has mapped.
pub fn gaps(objects: &[Object], plan: &Plan) -> Vec<Gap> {
    let is_freed_elsewhere = plan.families.iter().any(|family| family.is_plain && family.releases);
    let halves =
        plan.families.iter().filter(|family| !(family.releases || (family.is_plain && is_freed_elsewhere)));
    let halves = halves
        .map(|family| Gap::NothingFrees { object: family.object.clone(), acquires: family.acquires.clone() });
    halves.chain(of_programs(objects, plan)).collect()
}

/// Those that a program has, whatever else its process has mapped.
pub fn of_programs(objects: &[Object], plan: &Plan) -> Vec<Gap> {
    let of_objects = objects.iter().flat_map(|object| [hidden(object, plan), inlined(object, plan)]);
    of_objects.flatten().collect()
}

/// C++'s operators: who lacks one of these lacks others. They are the commonest that acquire and
/// that free.
const OPERATORS: [&str; 5] = ["_Znwm", "_Znam", "_ZdlPv", "_ZdaPv", "_ZdlPvm"];

/// A stripped program may hold an allocator that is linked into it, and so may a library (an
/// extension of Python's that is written in Rust), which then maps memory itself.
fn hidden(object: &Object, plan: &Plan) -> Option<Gap> {
    let elf = object.elf.as_ref().ok()?;
    if elf.has_symbol_table() || elf.recognised().is_some() || !(elf.is_program() || elf.maps_memory()) {
        return None;
    }
    let name = object.to_string();
    if families_of(&name, plan).next().is_none() {
        return Some(Gap::Hidden { allocator: allocator::told_by_words(elf)?, object: name });
    }
    // A library names what others are to call.
    if !elf.is_program() || families_of(&name, plan).any(|family| !family.is_plain) {
        return None;
    }
    let allocator = allocator::told_by_words(elf).unwrap_or(AllocatorKind::Unknown);
    let is_whole = !allocator.has_more_functions() && OPERATORS.iter().all(|operator| elf.defines(operator));
    (!is_whole).then_some(Gap::HalfHidden { object: name, allocator })
}

/// A program may hold an allocator whose functions are in part copied to where they are called.
fn inlined(object: &Object, plan: &Plan) -> Option<Gap> {
    let elf = object.elf.as_ref().ok().filter(|elf| elf.is_program())?;
    let name = object.to_string();
    let is_inlined = |function: &str| {
        elf.symbols_named(function).iter().any(|symbol| elf.is_optimized_when_linked(symbol.vaddr))
    };
    let family = families_of(&name, plan).find(|family| is_inlined(&family.acquires))?;
    let acquires = family.acquires.clone();
    let allocator = match allocator::identify(elf) {
        AllocatorKind::Unknown => allocator::told_by_words(elf).unwrap_or(AllocatorKind::Unknown),
        known => known,
    };
    Some(Gap::Inlined { object: name, allocator, acquires })
}

/// What of the plan is in code that was copied. `copies`: as if the files were mapped there.
pub fn copied(plan: &Plan, copies: &[Mapping]) -> Option<Gap> {
    /// Functions that are named.
    const NAMED: usize = 3;
    let is_copied = |point: &&AttachPoint| {
        copies.iter().any(|copy| {
            let id = ObjectId { device: copy.device, inode: copy.inode };
            let end = copy.file_offset.saturating_add(copy.end - copy.start);
            id == point.object && (copy.file_offset..end).contains(&point.file_offset)
        })
    };
    let functions: BTreeSet<&str> =
        plan.points.iter().filter(is_copied).map(|point| point.function.as_str()).collect();
    let program = copies.first()?.path()?.display().to_string();
    let named: Vec<&str> = functions.iter().take(NAMED).copied().collect();
    let others = if functions.len() > NAMED { " and others" } else { "" };
    (!named.is_empty()).then(|| Gap::Copied { program, functions: format!("{}{others}", named.join(", ")) })
}

fn families_of<'a>(object: &'a str, plan: &'a Plan) -> impl Iterator<Item = &'a Family> {
    plan.families.iter().filter(move |family| family.object == object)
}
