//! Plans compared with what nm says of a file.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::Path,
};

use memleak::probe::{
    plan::{AttachPoint, Plan, ProgramKind},
    table::{DEFAULT_RESOURCES, Role, Row, Scope, TABLE},
};
use memleak_common::probe::Resource;

use crate::fixture::{NmSymbol, Segments};

/// Functions with their entries, by program.
pub(crate) fn entries(plan: &Plan, file: &Path, program: ProgramKind) -> BTreeMap<u64, String> {
    let segments = Segments::of(file);
    let entry =
        |point: &AttachPoint| segments.vaddr_of(point.file_offset) - u64::from(point.placement.offset);
    plan.points
        .iter()
        .filter(|point| point.program == program)
        .map(|point| (entry(point), point.function.clone()))
        .collect()
}

/// Checks a plan for one file against nm: each row's function that nm has as a global or weak one
/// is probed at its address, each address once for each program, and nothing else is.
pub(crate) fn check_against_nm(
    plan: &Plan,
    file: &Path,
    symbols: &[NmSymbol],
    applies: impl Fn(&str) -> bool,
) {
    let symbols: Vec<_> = symbols.iter().filter(|symbol| matches!(symbol.kind, 'T' | 'W')).collect();
    check_against_symbols(plan, file, &symbols, applies);
}

pub(crate) fn check_against_symbols(
    plan: &Plan,
    file: &Path,
    symbols: &[&NmSymbol],
    applies: impl Fn(&str) -> bool,
) {
    check_resources(DEFAULT_RESOURCES, plan, file, symbols, applies);
}

pub(crate) fn check_resources(
    resources: &[Resource],
    plan: &Plan,
    file: &Path,
    symbols: &[&NmSymbol],
    applies: impl Fn(&str) -> bool,
) {
    let by_role = |wanted: &[Role]| -> BTreeSet<u64> {
        // What serves system calls is not looked for in objects, though the C library has functions
        // of these names.
        let rows = TABLE.iter().filter(|row| row.serves(resources) && row.scope != Scope::SystemCall);
        let rows = rows.filter(|row| wanted.contains(&row.role) && applies(&row.function));
        let names: HashSet<_> = rows.flat_map(names_of).collect();
        symbols.iter().filter(|symbol| names.contains(&symbol.name)).map(|symbol| symbol.vaddr).collect()
    };
    let mut acquires =
        by_role(&[Role::Acquire, Role::Resize, Role::InPlace, Role::FallibleRelease, Role::Shield]);
    // Each is followed in one of two ways.
    let by_returns: BTreeSet<u64> = entries(plan, file, ProgramKind::CallEnter).into_keys().collect();
    assert!(by_returns.is_subset(&acquires), "{}", file.display());
    let returning: BTreeSet<u64> = entries(plan, file, ProgramKind::CallExit).into_keys().collect();
    assert_eq!(returning, by_returns, "{}", file.display());
    acquires.retain(|address| !by_returns.contains(address));
    let expected = [
        (ProgramKind::AcquireEnter, acquires.clone()),
        (ProgramKind::AcquireExit, acquires),
        (ProgramKind::CallEnter, by_returns),
        (ProgramKind::ReleaseEnter, by_role(&[Role::Release, Role::Sweep])),
        (ProgramKind::AbandonEnter, by_role(&[Role::Abandon])),
        (ProgramKind::MappingsEnter, by_role(&[Role::Notice])),
        (ProgramKind::EndingEnter, by_role(&[Role::Ending])),
    ];
    let mut points = 0;
    for (program, addresses) in expected {
        points += addresses.len();
        let planned: BTreeSet<u64> = entries(plan, file, program).into_keys().collect();
        assert_eq!(planned, addresses, "{program:?} in {}", file.display());
    }
    let planned = plan.points.iter().filter(|point| point.program != ProgramKind::CallExit).count();
    assert_eq!(planned, points, "{}: each address once", file.display());
}

/// The names that a row's function has in the libraries under test.
fn names_of(row: &Row) -> Vec<String> {
    let is_prefixed = matches!(row.scope, Scope::Heap | Scope::HeapExtension);
    let prefixes: &[&str] = if is_prefixed { &["", "mi_", "tc_"] } else { &[""] };
    prefixes.iter().map(|prefix| format!("{prefix}{}", row.function)).collect()
}
