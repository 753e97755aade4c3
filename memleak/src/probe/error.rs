//! Why there is nothing to probe, in one line that says what to do.

use std::{
    collections::{HashMap, HashSet},
    io::{self, Read as _},
    path::Path,
};

use super::{
    plan::{Plan, PlanOptions},
    table::{DEFAULT_RESOURCES, Role, Row, Scope},
};
use crate::near::by_likeness;
use crate::target::object::{Object, ObjectError, names_object};
use memleak_common::probe::Resource;

/// Most objects named in a message.
const NAMED: usize = 8;

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// `-O` names nothing that is mapped.
    #[error("{object} is not mapped by the target; give one of these to -O: {candidates}")]
    ObjectNotMapped {
        /// As the user gave it.
        object: String,
        /// File names of what is mapped.
        candidates: String,
    },
    /// `-O` names a file that is not an ELF file.
    #[error("{object} is not an ELF file; give -O the allocator's shared library or the program itself")]
    NotElf {
        /// Its path.
        object: String,
    },
    /// An object cannot be read.
    #[error("{object} {reason}; run as root, or name another object with -O")]
    Unreadable {
        /// Its path.
        object: String,
        /// From [`ObjectError`].
        reason: String,
    },
    /// Code of another kind of processor, or of its 32-bit kind.
    #[error("{object} is not a 64-bit program for this machine; trace a 64-bit build of it")]
    Foreign {
        /// Its path.
        object: String,
    },
    /// A Go program without an allocator in C.
    #[error("{object} is a Go program: its heap is not malloc's; use Go's own heap profile (go tool pprof)")]
    Go {
        /// Its path.
        object: String,
    },
    /// A static program without symbols.
    #[error(
        "{object} is stripped: no symbol names malloc in it; install its debug file \
         (/usr/lib/debug/.build-id), trace a build with symbols, or name another object with -O"
    )]
    Stripped {
        /// Its path.
        object: String,
    },
    /// No function with the prefix of `-S`.
    #[error(
        "no function {prefix}malloc in {objects}; check the prefix given to -S, or name the object with -O"
    )]
    NothingPrefixed {
        /// As the user gave it.
        prefix: String,
        /// What was looked at.
        objects: String,
    },
    /// No function that acquires a built-in resource other than memory.
    #[error(
        "no function of the resource {resource} ({functions}) in {objects}; trace a program that calls one, or name \
         other resources with -r (see --list-resources)"
    )]
    NoResource {
        /// Its name.
        resource: &'static str,
        /// Some of the functions that acquire it.
        functions: String,
        /// What was looked at.
        objects: String,
    },
    /// No probe of a target's own.
    #[error(
        "no probe {probes} (USDT) in {objects}: no allocator there tells of samples; trace without --usdt, or build \
         the allocator with them"
    )]
    NoUsdt {
        /// The probes that acquire.
        probes: String,
        /// What was looked at.
        objects: String,
    },
    /// A user's specification names an object that is not mapped.
    #[error(
        "no object named {object} is mapped, so {function} is not probed; name one of these, or leave the object out: \
         {candidates}"
    )]
    NoUserObject {
        /// As the user gave it.
        object: String,
        /// The function that was to be probed.
        function: String,
        /// File names of what is mapped.
        candidates: String,
    },
    /// A user's specification names a function that is not there.
    #[error(
        "{objects}: no function {function} to probe; write it as nm or nm -D prints it, a C++ function mangled"
    )]
    NoUserFunction {
        /// What was looked at.
        objects: String,
        /// The function.
        function: String,
    },
    /// A user's function cannot be probed.
    #[error("{skip}; name another function")]
    UserFunctionSkipped {
        /// Which, where and why.
        skip: String,
    },
    /// No allocator.
    #[error(
        "no allocator (malloc, free, mmap) in {objects}; name the object that has one with -O, and the prefix \
         of its functions, if they have one, with -S"
    )]
    NoAllocator {
        /// What was looked at.
        objects: String,
    },
}

impl PlanError {
    /// Built-in resources, memory left out, of which `plan`, a plan for all that the target has
    /// mapped, attaches to no acquiring function: one error for each.
    pub fn resources_missing(objects: &[Object], options: &PlanOptions<'_>, plan: &Plan) -> Vec<Self> {
        let acquires = |row: &&Row| matches!(row.role, Role::Acquire | Role::Resize);
        let planned: HashSet<u32> = plan.points.iter().map(|point| point.row).collect();
        let of = |resource: Resource| {
            (0..)
                .zip(options.rows)
                .filter(move |(_, row)| acquires(row) && row.probe.resource == resource.number())
        };
        let is_memory = |resource: &Resource| {
            DEFAULT_RESOURCES.contains(resource) || matches!(resource, Resource::Custom(_) | Resource::Growth)
        };
        options
            .resources
            .iter()
            .filter(|resource| {
                !is_memory(resource) && !of(**resource).any(|(index, _)| planned.contains(&index))
            })
            .map(|resource| {
                let functions: Vec<_> = of(*resource).take(3).map(|(_, row)| &*row.function).collect();
                let (functions, objects) = (functions.join(", "), list(objects.iter()));
                match of(*resource).all(|(_, row)| row.scope == Scope::Usdt) {
                    true => Self::NoUsdt { probes: functions, objects },
                    false => Self::NoResource { resource: resource.name(), functions, objects },
                }
            })
            .collect()
    }

    /// Why the user's functions that `plan`, a plan for all that the target has mapped, does not
    /// attach to are not probed: one error for each row.
    pub fn users_missing(objects: &[Object], options: &PlanOptions<'_>, plan: &Plan) -> Vec<Self> {
        let planned: HashSet<u32> = plan.points.iter().map(|point| point.row).collect();
        let missing = (0..).zip(options.rows).filter(|(index, row)| {
            row.scope == Scope::User && row.serves(options.resources) && !planned.contains(index)
        });
        missing.map(|(_, row)| Self::user_missing(objects, row, plan)).collect()
    }

    fn user_missing(objects: &[Object], row: &Row, plan: &Plan) -> Self {
        let function = row.function.to_string();
        let is_meant = |object: &&Object| row.object.as_deref().is_none_or(|name| names_object(name, object));
        let meant: Vec<&Object> = objects.iter().filter(is_meant).collect();
        let skipped = plan.skipped.iter().find(|skip| {
            skip.function == function && meant.iter().any(|object| object.to_string() == skip.object)
        });
        match (skipped, &row.object) {
            (Some(skip), _) => Self::UserFunctionSkipped { skip: skip.to_string() },
            (None, Some(object)) if meant.is_empty() => {
                Self::NoUserObject { object: object.clone(), function, candidates: nearest(object, objects) }
            }
            _ => Self::NoUserFunction { objects: list(meant.into_iter()), function },
        }
    }

    /// Why a plan for `objects`, all that the target has mapped, found nothing to acquire from.
    pub fn nothing_found(objects: &[Object], options: &PlanOptions<'_>) -> Self {
        let chosen: Vec<_> = match options.object {
            Some(name) => objects.iter().filter(|object| names_object(name, object)).collect(),
            None => objects.iter().collect(),
        };
        if let (Some(name), true) = (options.object, chosen.is_empty()) {
            let (object, candidates) = (name.to_owned(), nearest(name, objects));
            return Self::ObjectNotMapped { object, candidates };
        }
        let find = |wanted: &dyn Fn(&Object) -> Option<Self>| chosen.iter().find_map(|object| wanted(object));
        let go = |object: &Object| {
            let is_go = object.elf.as_ref().is_ok_and(|elf| elf.is_go());
            is_go.then(|| Self::Go { object: object.to_string() })
        };
        let stripped = |object: &Object| {
            let is_stripped = object.elf.as_ref().is_ok_and(|elf| elf.is_static() && !elf.has_symbol_table());
            is_stripped.then(|| Self::Stripped { object: object.to_string() })
        };
        let unreadable = |object: &Object| match &object.elf {
            Ok(_) => None,
            // Files of other kinds are also mapped for execution (JIT compilers do): no matter,
            // unless it was named.
            Err(ObjectError::NotElf) if options.object.is_none() => None,
            Err(ObjectError::NotElf) => Some(Self::NotElf { object: object.to_string() }),
            Err(ObjectError::ForeignMachine) => Some(Self::Foreign { object: object.to_string() }),
            Err(error) => Some(Self::Unreadable { object: object.to_string(), reason: error.to_string() }),
        };
        find(&go).or_else(|| find(&stripped)).or_else(|| find(&unreadable)).unwrap_or_else(|| {
            let objects = list(chosen.into_iter());
            match options.symbols_prefix {
                Some(prefix) => Self::NothingPrefixed { prefix: prefix.to_owned(), objects },
                None => Self::NoAllocator { objects },
            }
        })
    }
}

/// Checks what the user gave to `-O` before there is a target: a path in our own file tree must
/// lead to an ELF file. One that is not there may still be the name of something in the target's.
pub fn check_object_argument(object: &str) -> Result<(), PlanError> {
    let path = Path::new(object);
    if !object.contains('/') || !path.exists() {
        return Ok(());
    }
    let mut magic = [0; 4];
    let read = match path.is_file() {
        true => std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    };
    match read {
        Ok(()) if magic == object::elf::ELFMAG => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(PlanError::Unreadable {
            object: object.to_owned(),
            reason: format!("cannot be read: {error}"),
        }),
        _ => Err(PlanError::NotElf { object: object.to_owned() }),
    }
}

/// As [`list`], those first that are named most like `name`.
fn nearest(name: &str, objects: &[Object]) -> String {
    let mut objects: Vec<&Object> = objects.iter().collect();
    let order = by_likeness(name, objects.iter().map(|object| object.file_name()));
    let places: HashMap<String, usize> =
        (0..).zip(order).map(|(place, name)| (name.to_owned(), place)).collect();
    objects.sort_by_key(|object| places.get(object.file_name()).copied());
    list(objects.into_iter())
}

fn list<'a>(objects: impl Iterator<Item = &'a Object>) -> String {
    let names: Vec<_> = objects.map(ToString::to_string).collect();
    match names.len() {
        0 => "the target, which has no object mapped".to_owned(),
        len if len <= NAMED => names.join(", "),
        len => format!("{} and {} more", names.get(..NAMED).unwrap_or_default().join(", "), len - NAMED),
    }
}
