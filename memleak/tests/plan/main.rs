//! Plans for programs compiled here and for the machine's own allocators, checked against nm.

mod allocators;
#[path = "../fixture/mod.rs"]
mod fixture;
mod indirect;
mod nm;
mod objects;

use std::{
    collections::{BTreeSet, HashSet},
    path::Path,
};

use fixture::{Running, compile, dynamic_symbols};
use memleak::{
    objects::ObjectStore,
    probe::{
        plan::{AttachPoint, Plan, PlanError, PlanOptions, ProgramKind, SkipReason, plan, symbol_names},
        table::TABLE,
    },
    proc::maps::read_maps,
    target::{
        allocator::AllocatorKind,
        object::{Object, read_objects},
    },
};
use memleak_common::probe::Resource;
use nm::{check_against_nm, check_resources};

const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";
const C_LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";

const NEVER_FREES: &str = "#include <stdlib.h>\nint main(void) { return !malloc(16); }";
const WAITS: &str = "#include <stdio.h>\n#include <stdlib.h>\n\
                     int main(void) { void *volatile p = malloc(16); puts(\"ready\"); fflush(stdout); getchar(); free(p); }";

fn open(path: &Path, options: &PlanOptions<'_>) -> Object {
    Object::open(path, &symbol_names(options)).unwrap()
}

fn plan_of_file(path: &Path, options: &PlanOptions<'_>) -> Plan {
    plan(&[open(path, options)], options, None)
}

fn objects_of(pid: u32, options: &PlanOptions<'_>) -> Vec<Object> {
    read_objects(&ObjectStore::default(), pid, &read_maps(pid).unwrap(), &symbol_names(options))
}

fn is_operator(function: &str) -> bool {
    function.starts_with("_Z")
}

fn skip_reasons<'a>(plan: &'a Plan, function: &str) -> Vec<&'a SkipReason> {
    plan.skipped.iter().filter(|skip| skip.function == function).map(|skip| &skip.reason).collect()
}

#[test]
fn probes_the_c_library_of_a_running_program() {
    let program = Running::start(&compile("gcc", "plan_dynamic", WAITS, &[]), None);
    let options = PlanOptions::default();
    let objects = objects_of(program.pid(), &options);
    let whole = plan(&objects, &options, None);
    assert_eq!(whole.allocators, [(C_LIBRARY.to_owned(), AllocatorKind::Glibc)]);
    assert!(!whole.is_empty());

    // By object: the C library's functions are nm's, the dynamic linker reports dlopen, the
    // program has nothing.
    for object in &objects {
        let own = plan(std::slice::from_ref(object), &options, None);
        check_against_nm(&own, &object.path, &dynamic_symbols(&object.path), |function| {
            !is_operator(function)
        });
    }
    let notices: Vec<_> = whole.points.iter().filter(|p| p.program == ProgramKind::MappingsEnter).collect();
    assert_eq!(notices.len(), 1);
    assert!(
        whole.points.iter().all(|point| point.open_path.starts_with("/proc") && point.open_path.exists())
    );

    // Aliases are probed once, and -v says so.
    assert_eq!(skip_reasons(&whole, "cfree"), [&SkipReason::SameCode("free".to_owned())]);
    assert_eq!(skip_reasons(&whole, "mmap64"), [&SkipReason::SameCode("mmap".to_owned())]);
    assert_eq!(skip_reasons(&whole, "free_sized"), [&SkipReason::NotDefined]);
}

/// Each resource is looked for in its libraries, with all functions that nm finds, and with no
/// other's.
#[test]
fn probes_each_resource_in_its_library() {
    for (resource, library) in [
        (Resource::Fd, "libc.so.6"),
        (Resource::File, "libc.so.6"),
        (Resource::Dir, "libc.so.6"),
        (Resource::Thread, "libc.so.6"),
        (Resource::Mutex, "libc.so.6"),
        (Resource::Dl, "libc.so.6"),
        (Resource::Sqlite, "libsqlite3.so.0"),
        (Resource::SqliteStmt, "libsqlite3.so.0"),
        (Resource::Ssl, "libssl.so.3"),
        (Resource::Ssl, "libcrypto.so.3"),
        (Resource::Python, "libpython3.11.so.1.0"),
    ] {
        let file = Path::new(LIBRARIES).join(library);
        let resources = [resource];
        let options = PlanOptions { resources: &resources, ..PlanOptions::default() };
        let plan = plan_of_file(&file, &options);
        assert!(!plan.is_empty() && plan.allocators.is_empty(), "{library}");
        let symbols = dynamic_symbols(&file);
        let symbols: Vec<_> = symbols.iter().filter(|symbol| matches!(symbol.kind, 'T' | 'W')).collect();
        check_resources(&resources, &plan, &file, &symbols, |_| true);
    }
}

/// A program's own `open` or `accept` is not the C library's.
#[test]
fn leaves_functions_alone_that_only_have_the_name() {
    let own = "int open(int a) { return a; }\nint accept(int a) { return open(a); }\n\
               void *fopen(void) { return 0; }\nint main(void) { return accept(0); }";
    let program = compile("gcc", "plan_own_open", own, &["-fno-builtin", "-rdynamic"]);
    let resources = [Resource::Fd, Resource::File];
    let options = PlanOptions { resources: &resources, ..PlanOptions::default() };
    let objects = [open(&program, &options)];
    let plan = plan(&objects, &options, None);
    assert!(plan.is_empty() && plan.is_final(), "{:?}", plan.points);
    let missing = PlanError::resources_missing(&objects, &options, &plan);
    let [PlanError::NoResource { resource: "fd", .. }, PlanError::NoResource { resource: "file", .. }] =
        missing.as_slice()
    else {
        panic!("{missing:?}");
    };
    let words = missing[1].to_string();
    assert!(words.starts_with("no function of the resource file (fopen, fopen64, fdopen) in "), "{words}");
}

#[test]
fn attaches_releases_before_acquires_and_returns_before_entries() {
    let plan = plan_of_file(Path::new(C_LIBRARY), &PlanOptions::default());
    let position = |program: ProgramKind, function: &str| {
        let found = plan.points.iter().position(|p| p.program == program && p.function == function);
        found.unwrap_or_else(|| panic!("{program:?} {function}"))
    };
    use ProgramKind::{AbandonEnter, AcquireEnter, AcquireExit, CallEnter, CallExit, ReleaseEnter};
    let order = [
        position(AbandonEnter, "longjmp"),
        position(ReleaseEnter, "free"),
        position(AcquireExit, "malloc"),
        position(CallExit, "mmap"),
        position(AcquireEnter, "realloc"),
        position(AcquireEnter, "malloc"),
        position(CallEnter, "munmap"),
        position(CallEnter, "mmap"),
    ];
    assert!(order.is_sorted(), "{order:?}");
    let last_return = plan.points.iter().rposition(|p| p.program == AcquireExit).unwrap();
    let first_entry = plan.points.iter().position(|p| p.program == AcquireEnter).unwrap();
    assert!(last_return < first_entry);
}

#[test]
fn names_each_row_by_its_cookie() {
    let plan = plan_of_file(Path::new(C_LIBRARY), &PlanOptions::default());
    for point in &plan.points {
        let row = &TABLE[point.row as usize];
        assert_eq!(point.function, row.function);
        let is_followed = [ProgramKind::CallEnter, ProgramKind::CallExit].contains(&point.program);
        assert!(is_followed || ProgramKind::of(row.role).contains(&point.program), "{point}");
    }
}

#[test]
fn obeys_the_prefix() {
    let code = "void *je_malloc(unsigned long n) { return (void *)n; } void je_free(void *p) { (void)p; }\n\
                void *malloc(unsigned long n) { return (void *)(n + 1); } void free(void *p) { (void)p; }";
    let library =
        compile("gcc", "libplan_prefix.so", code, &["-shared", "-fPIC", "-fno-builtin", "-w", "-nostdlib"]);
    let functions = |options: &PlanOptions<'_>| -> BTreeSet<String> {
        plan_of_file(&library, options).points.into_iter().map(|point| point.function).collect()
    };
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(functions(&PlanOptions::default()), set(&["malloc", "free", "je_malloc", "je_free"]));
    let prefixed = PlanOptions { symbols_prefix: Some("je_"), ..PlanOptions::default() };
    assert_eq!(functions(&prefixed), set(&["je_malloc", "je_free"]));
    let wrong = PlanOptions { symbols_prefix: Some("xx_"), ..PlanOptions::default() };
    let objects = [open(&library, &wrong), open(Path::new(C_LIBRARY), &wrong)];
    assert!(plan(&objects, &wrong, None).is_empty());
    let error = PlanError::nothing_found(&objects, &wrong).to_string();
    assert!(error.starts_with("no function xx_malloc in ") && error.contains("libplan_prefix.so"), "{error}");
}

#[test]
fn takes_the_object_that_was_named() {
    let names = PlanOptions::default();
    let jemalloc = Path::new(LIBRARIES).join("libjemalloc.so.2");
    let objects = [open(Path::new(C_LIBRARY), &names), open(&jemalloc, &names)];
    let (c_library, jemalloc) = (objects[0].id, objects[1].id);
    for (name, expected) in [
        ("c", Some(c_library)),
        ("libc", Some(c_library)),
        ("libc.so", Some(c_library)),
        ("libc.so.6", Some(c_library)),
        ("/lib/x86_64-linux-gnu/libc.so.6", Some(c_library)),
        ("jemalloc", Some(jemalloc)),
        ("libjemalloc.so.2", Some(jemalloc)),
        ("/usr/lib/x86_64-linux-gnu/libjemalloc.so.2", Some(jemalloc)),
        ("alloc", None),
        ("libjemalloc.so.1", None),
        ("/libjemalloc.so.2", None),
    ] {
        let options = PlanOptions { object: Some(name), ..names };
        let plan = plan(&objects, &options, None);
        let found: BTreeSet<_> =
            plan.points.iter().filter(|p| p.program == ProgramKind::AcquireEnter).map(|p| p.object).collect();
        assert_eq!(found, expected.into_iter().collect(), "{name}");
    }
    let options = PlanOptions { object: Some("alloc"), ..names };
    let error = PlanError::nothing_found(&objects, &options).to_string();
    assert!(error.starts_with("alloc is not mapped by the target") && error.contains(C_LIBRARY), "{error}");
}

#[test]
fn plans_only_what_is_new() {
    let options = PlanOptions::default();
    let objects = [open(Path::new(C_LIBRARY), &options)];
    let first = plan(&objects, &options, None);
    let mut already: HashSet<_> = first.points.iter().map(AttachPoint::key).collect();
    assert_eq!(already.len(), first.points.len());
    assert_eq!(plan(&objects, &PlanOptions { already: Some(&already), ..options }, None).points, []);
    let removed = first.points[3].clone();
    already.remove(&removed.key());
    assert_eq!(plan(&objects, &PlanOptions { already: Some(&already), ..options }, None).points, [removed]);
}
