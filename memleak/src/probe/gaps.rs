//! What of an allocator is not seen: half of its functions, or all of them, if a linker has
//! dropped their symbols.

use super::plan::Plan;
use crate::target::{
    allocator::{self, AllocatorKind},
    object::Object,
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
    /// A program holds an allocator, and no symbol says where.
    #[error(
        "{object} contains {allocator}, but is stripped: what it allocates by it is not seen; install its debug file \
         (/usr/lib/debug/.build-id) or trace a build with symbols"
    )]
    Hidden {
        /// Its path.
        object: String,
        /// By the words that it would print.
        allocator: AllocatorKind,
    },
    /// The same, but the functions that shared libraries call are named.
    #[error(
        "{object} contains {allocator}, but is stripped: calls of functions that only {allocator} has are not seen, and \
         blocks that they free are listed as outstanding; install its debug file (/usr/lib/debug/.build-id) or trace a \
         build with symbols"
    )]
    HalfHidden {
        /// Its path.
        object: String,
        /// By the words that it would print.
        allocator: AllocatorKind,
    },
}

/// The gaps in `plan`, a plan for `objects`: all that a target has mapped.
pub fn gaps(objects: &[Object], plan: &Plan) -> Vec<Gap> {
    let is_freed_elsewhere = plan.families.iter().any(|family| family.is_plain && family.releases);
    let halves =
        plan.families.iter().filter(|family| !(family.releases || (family.is_plain && is_freed_elsewhere)));
    let halves = halves
        .map(|family| Gap::NothingFrees { object: family.object.clone(), acquires: family.acquires.clone() });
    halves.chain(objects.iter().filter_map(|object| hidden(object, plan))).collect()
}

/// A stripped program may hold an allocator that is linked into it.
fn hidden(object: &Object, plan: &Plan) -> Option<Gap> {
    let elf = object.elf.as_ref().ok()?;
    if !elf.is_program() || elf.has_symbol_table() {
        return None;
    }
    let name = object.to_string();
    let mut of_object = plan.families.iter().filter(|family| family.object == name).peekable();
    if of_object.peek().is_none() {
        return Some(Gap::Hidden { allocator: allocator::told_by_words(elf)?, object: name });
    }
    if of_object.any(|family| !family.is_plain) {
        return None;
    }
    let allocator = allocator::told_by_words(elf)?;
    allocator.has_more_functions().then_some(Gap::HalfHidden { object: name, allocator })
}
