//! Plans for programs compiled here and for the machine's own allocators, checked against nm.

mod fixture;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::{Path, PathBuf},
};

use fixture::{NmSymbol, Running, Segments, all_symbols, compile, dynamic_symbols, run};
use memleak::{
    objects::ObjectStore,
    probe::{
        gaps::{Gap, gaps},
        plan::{
            AttachPoint, Plan, PlanError, PlanOptions, ProgramKind, SkipReason, check_object_argument, plan,
            symbol_names,
        },
        table::{DEFAULT_RESOURCES, Role, Row, Scope, TABLE},
    },
    proc::{maps::read_maps, memory::ProcessMemory},
    target::{
        allocator::AllocatorKind,
        ifunc::IfuncError,
        object::{Object, read_objects},
    },
};
use memleak_common::probe::Resource;

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

/// Functions with their entries, by program.
fn entries(plan: &Plan, file: &Path, program: ProgramKind) -> BTreeMap<u64, String> {
    let segments = Segments::of(file);
    let entry =
        |point: &AttachPoint| segments.vaddr_of(point.file_offset) - u64::from(point.placement.offset);
    plan.points
        .iter()
        .filter(|point| point.program == program)
        .map(|point| (entry(point), point.function.clone()))
        .collect()
}

/// Checks a plan for one file against nm: each row's function that nm has as a global or weak one is probed at its
/// address, each address once for each program, and nothing else is.
fn check_against_nm(plan: &Plan, file: &Path, symbols: &[NmSymbol], applies: impl Fn(&str) -> bool) {
    let symbols: Vec<_> = symbols.iter().filter(|symbol| matches!(symbol.kind, 'T' | 'W')).collect();
    check_against_symbols(plan, file, &symbols, applies);
}

fn check_against_symbols(plan: &Plan, file: &Path, symbols: &[&NmSymbol], applies: impl Fn(&str) -> bool) {
    check_resources(DEFAULT_RESOURCES, plan, file, symbols, applies);
}

fn check_resources(
    resources: &[Resource],
    plan: &Plan,
    file: &Path,
    symbols: &[&NmSymbol],
    applies: impl Fn(&str) -> bool,
) {
    let by_role = |wanted: &[Role]| -> BTreeSet<u64> {
        // What serves system calls is not looked for in objects, though the C library has functions of these names.
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

    // By object: the C library's functions are nm's, the dynamic linker tells of dlopen, the program has nothing.
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

/// Each resource is looked for in its libraries, with all functions that nm finds, and with no other's.
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
fn finds_the_allocator_of_static_programs() {
    // musl-gcc of Debian 12 links no static-pie programs.
    for (compiler, flag, kind) in [
        ("gcc", "-static", AllocatorKind::Glibc),
        ("gcc", "-static-pie", AllocatorKind::Glibc),
        ("musl-gcc", "-static", AllocatorKind::Musl),
    ] {
        for (what, code) in [("waits", WAITS), ("never_frees", NEVER_FREES)] {
            let program = compile(compiler, &format!("plan_{compiler}{flag}_{what}"), code, &[flag]);
            let plan = plan_of_file(&program, &PlanOptions::default());
            assert_eq!(plan.allocators, [(program.display().to_string(), kind)]);
            let symbols = all_symbols(&program);
            // In a static-pie program the linker made hidden functions, malloc among them, local ones.
            check_against_symbols(&plan, &program, &symbols.iter().collect::<Vec<_>>(), |f| !is_operator(f));
            let malloc = symbols.iter().find(|symbol| symbol.name == "malloc").unwrap().vaddr;
            assert!(entries(&plan, &program, ProgramKind::AcquireEnter).contains_key(&malloc));
        }
    }
}

#[test]
fn knows_the_packaged_allocators_and_probes_their_operators() {
    for (library, kind) in [
        ("libjemalloc.so.2", AllocatorKind::Jemalloc),
        ("libtcmalloc_minimal.so.4", AllocatorKind::Tcmalloc),
        ("libmimalloc.so.2.0", AllocatorKind::Mimalloc),
    ] {
        let path = Path::new(LIBRARIES).join(library);
        let plan = plan_of_file(&path, &PlanOptions::default());
        assert_eq!(plan.allocators, [(path.display().to_string(), kind)]);
        check_against_nm(&plan, &path, &dynamic_symbols(&path), |_| true);
        let acquires = entries(&plan, &path, ProgramKind::AcquireEnter);
        let new = dynamic_symbols(&path).into_iter().find(|symbol| symbol.name == "_Znwm").unwrap();
        assert_eq!(acquires.get(&new.vaddr).map(String::as_str), Some("_Znwm"));
    }
    let musl = plan_of_file(Path::new("/lib/ld-musl-x86_64.so.1"), &PlanOptions::default());
    assert_eq!(musl.allocators[0].1, AllocatorKind::Musl);
    assert!(musl.points.iter().any(|point| point.program == ProgramKind::MappingsEnter));
}

#[test]
fn leaves_operators_alone_where_they_call_malloc() {
    let code = "#include <string>\nint main() { return (new std::string(\"x\"))->size() != 1; }";
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (source, program) = (directory.join("plan_operators.cc"), directory.join("plan_operators"));
    std::fs::write(&source, code).unwrap();
    run("g++", &["-static", "-o", program.to_str().unwrap(), source.to_str().unwrap()]);
    let plan = plan_of_file(&program, &PlanOptions::default());
    check_against_nm(&plan, &program, &all_symbols(&program), |function| !is_operator(function));
    assert_eq!(skip_reasons(&plan, "_Znwm"), [&SkipReason::CallsMalloc(AllocatorKind::Glibc)]);
    assert!(plan.points.iter().any(|point| point.function == "_Unwind_RaiseException"));
}

#[test]
fn refuses_a_stripped_static_program_clearly() {
    let program = compile("gcc", "plan_stripped", NEVER_FREES, &["-static", "-s"]);
    let options = PlanOptions::default();
    let objects = [open(&program, &options)];
    let plan = plan(&objects, &options, None);
    assert!(plan.is_empty());
    let error = PlanError::nothing_found(&objects, &options);
    assert_eq!(error, PlanError::Stripped { object: program.display().to_string() });
    assert!(error.to_string().contains("is stripped: no symbol names malloc in it; install its debug file"));
}

#[test]
fn does_not_take_a_local_free_for_the_allocator() {
    let code = "static __attribute__((noinline, used)) void free(void *p) { __asm__ volatile(\"\" :: \"r\"(p)); }\n\
                static __attribute__((noinline, used)) void *malloc(unsigned long n) { return (void *)n; }\n\
                void *entry(unsigned long n) { void *p = malloc(n); free(p); return p; }";
    let library = compile("gcc", "plan_local.so", code, &["-shared", "-fPIC", "-fno-builtin", "-w"]);
    let local: Vec<_> = all_symbols(&library).into_iter().filter(|symbol| symbol.name == "free").collect();
    assert_eq!(local.iter().map(|symbol| symbol.kind).collect::<Vec<_>>(), ['t']);
    let options = PlanOptions { object: Some("plan_local.so"), ..PlanOptions::default() };
    for options in [PlanOptions::default(), options] {
        assert_eq!(plan_of_file(&library, &options).points, []);
    }
}

#[test]
fn takes_a_hidden_function_for_what_it_is() {
    let code = "#define HIDDEN __attribute__((visibility(\"hidden\"), noinline))\n\
                HIDDEN void *je_malloc(unsigned long n) { __asm__(\"\"); return (void *)n; }\n\
                HIDDEN void je_free(void *p) { __asm__ volatile(\"\" :: \"r\"(p)); }\n\
                static __attribute__((noinline)) void *je_calloc(unsigned long n) { __asm__(\"\"); return (void *)n; }\n\
                int main(int c, char **v) { je_free(je_malloc(c)); je_free(je_calloc(c)); return 0; }";
    for linker in ["bfd", "gold"] {
        let program =
            compile("gcc", &format!("plan_hidden_{linker}"), code, &["-pie", &format!("-fuse-ld={linker}")]);
        let plan = plan_of_file(&program, &PlanOptions::default());
        let functions: BTreeSet<_> = plan.points.iter().map(|point| point.function.as_str()).collect();
        assert_eq!(functions, BTreeSet::from(["je_free", "je_malloc"]), "{linker}");
    }
}

/// Compiles a library that defines these functions and nothing else.
fn library_of(name: &str, code: &str) -> PathBuf {
    compile("gcc", name, code, &["-shared", "-fPIC", "-fno-builtin", "-w", "-nostdlib"])
}

#[test]
fn takes_half_an_allocator_and_says_what_is_missing() {
    let options = PlanOptions::default();
    let malloc = "void *malloc(unsigned long n) { return (void *)n; }";
    let half = library_of("libplan_half.so", malloc);
    for options in [options, PlanOptions { object: Some("plan_half"), ..options }] {
        let objects = [open(&half, &options)];
        let plan = plan(&objects, &options, None);
        assert!(!plan.is_empty());
        let [gap] = &gaps(&objects, &plan)[..] else { panic!("{plan:?}") };
        let (object, acquires) = (half.display().to_string(), "malloc".to_owned());
        assert_eq!(*gap, Gap::NothingFrees { object, acquires });
        assert!(gap.to_string().contains("names malloc, but no function that frees"), "{gap}");
    }
    // What it returns may be freed by another library's free, not so by a prefix's.
    let objects = [open(&half, &options), open(Path::new(C_LIBRARY), &options)];
    assert_eq!(gaps(&objects, &plan(&objects, &options, None)), []);
    let prefixed =
        library_of("libplan_prefixed_half.so", "void *je_malloc(unsigned long n) { return (void *)n; }");
    let objects = [open(&prefixed, &options), open(Path::new(C_LIBRARY), &options)];
    assert_eq!(gaps(&objects, &plan(&objects, &options, None)).len(), 1);
}

/// A linker keeps what is called, so a family need not be whole; and a prefix is what its functions show.
#[test]
fn takes_what_there_is_of_an_allocator() {
    let define = |names: &[&str]| -> String {
        names.iter().map(|name| format!("void *{name}(void *p) {{ return p; }}\n")).collect()
    };
    for (number, names, expected) in [
        (0, &["je_malloc", "je_sdallocx"][..], &["je_malloc", "je_sdallocx"][..]),
        (1, &["_rjem_mallocx", "_rjem_sdallocx"], &["_rjem_mallocx", "_rjem_sdallocx"]),
        // Nobody has heard of this prefix.
        (2, &["my_mallocx", "my_sdallocx", "my_realloc"], &["my_mallocx", "my_realloc", "my_sdallocx"]),
        (3, &["a_malloc", "a_free", "a_malloc_usable_size"], &["a_free", "a_malloc"]),
        (4, &["mi_zalloc_aligned", "mi_free"], &["mi_free", "mi_zalloc_aligned"]),
        (5, &["sn_rust_alloc", "sn_rust_dealloc"], &["sn_rust_alloc", "sn_rust_dealloc"]),
        (6, &["rpaligned_alloc", "rpfree"], &["rpaligned_alloc", "rpfree"]),
        (7, &["mspace_malloc", "mspace_free"], &["mspace_free", "mspace_malloc"]),
        // A program's own wrappers of malloc, and functions that only sound alike.
        (8, &["x_malloc", "x_free", "x_realloc", "mi_free", "heap_alloc", "je_free"], &[]),
        (9, &["my_mallocx"], &[]),
    ] {
        let library = library_of(&format!("libplan_family{number}.so"), &define(names));
        let plan = plan_of_file(&library, &PlanOptions::default());
        let functions: BTreeSet<_> = plan.points.iter().map(|point| point.function.as_str()).collect();
        assert_eq!(functions, expected.iter().copied().collect(), "{names:?}");
        assert_eq!(plan.allocators.is_empty(), expected.is_empty(), "{names:?}");
    }
}

/// A stripped program that holds tcmalloc names what the C++ library refers to, and glibc's internal names with it.
#[test]
fn probes_the_operators_of_a_stripped_program() {
    let code = "#include <cstdlib>\nint main() { delete new int; return !malloc(1); }";
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (source, program) = (directory.join("plan_own_new.cc"), directory.join("plan_own_new"));
    std::fs::write(&source, code).unwrap();
    let paths = [program.to_str().unwrap(), source.to_str().unwrap()];
    run("g++", &["-s", "-pthread", "-o", paths[0], paths[1], "-l:libtcmalloc_minimal.a"]);
    let symbols = dynamic_symbols(&program);
    assert!(symbols.iter().any(|symbol| symbol.name == "__libc_memalign"));
    let plan = plan_of_file(&program, &PlanOptions::default());
    assert_eq!(plan.allocators[0].1, AllocatorKind::Unknown);
    check_against_nm(&plan, &program, &symbols, |_| true);
    let acquires = entries(&plan, &program, ProgramKind::AcquireEnter);
    let new = symbols.iter().find(|symbol| symbol.name == "_Znwm").unwrap();
    assert_eq!(acquires.get(&new.vaddr).map(String::as_str), Some("_Znwm"));
}

#[test]
fn says_which_allocator_a_stripped_program_hides() {
    let code = format!("const char *words = \"<jemalloc>: Error in \";\n{NEVER_FREES}");
    let options = PlanOptions::default();
    for (name, flags, is_hidden) in [("plan_hidden_words", &["-s"][..], true), ("plan_words", &[], false)] {
        let program = compile("gcc", name, &code, flags);
        let objects = [open(&program, &options), open(Path::new(C_LIBRARY), &options)];
        let object = program.display().to_string();
        let expected = Gap::Hidden { object, allocator: AllocatorKind::Jemalloc };
        let gaps = gaps(&objects, &plan(&objects, &options, None));
        assert_eq!(gaps, if is_hidden { vec![expected] } else { vec![] }, "{name}");
    }
}

/// Functions with a prefix, one of them indirect: a constructor-free arena.
const INDIRECT: &str = "
    static char arena[4096]; static unsigned long used;
    static void *chosen(unsigned long n) { void *p = arena + used; used += n; return p; }
    static void *other(unsigned long n) { (void)n; return 0; }
    static void *(*choose(void))(unsigned long) { return used == 77 ? other : chosen; }
    void *my_malloc(unsigned long n) __attribute__((ifunc(\"choose\")));
    void my_free(void *p) { (void)p; }
    void *my_truth(void) { return (void *)chosen; }";
const USES_INDIRECT: &str = "
    #include <stdio.h>
    void *my_malloc(unsigned long); void my_free(void *); void *my_truth(void);
    int main(void) { my_free(my_malloc(8)); printf(\"%p\\n\", my_truth()); fflush(stdout); getchar(); }";

/// Address in the object of what the program printed.
fn printed_vaddr(program: &Running, object: &Object) -> u64 {
    let printed = u64::from_str_radix(program.ready.trim_start_matches("0x"), 16).unwrap();
    let maps = read_maps(program.pid()).unwrap();
    let mapping = maps.iter().find(|mapping| (mapping.start..mapping.end).contains(&printed)).unwrap();
    Segments::of(&object.path).vaddr_of(printed - mapping.start + mapping.file_offset)
}

fn check_indirect(program: &Path, object_name: &str, directory: Option<&Path>) {
    let running = Running::start(program, directory);
    let options = PlanOptions { symbols_prefix: Some("my_"), ..PlanOptions::default() };
    let objects = objects_of(running.pid(), &options);
    let object = objects.iter().find(|object| object.file_name() == object_name).unwrap();
    let memory = ProcessMemory::open(running.pid()).unwrap();
    let with_memory = plan(&objects, &options, Some(&memory));
    assert!(!with_memory.is_empty());
    let vaddr = printed_vaddr(&running, object);
    let own: Vec<_> =
        with_memory.points.iter().filter(|p| p.object == object.id && p.function == "my_malloc").collect();
    let entry = |point: &AttachPoint| {
        Segments::of(&object.path).vaddr_of(point.file_offset) - u64::from(point.placement.offset)
    };
    assert_eq!(own.iter().map(|point| entry(point)).collect::<Vec<_>>(), [vaddr; 2]);

    let without = plan(&objects, &options, None);
    assert_eq!(skip_reasons(&without, "my_malloc"), [&SkipReason::Ifunc(IfuncError::NoMemory)]);
    assert!(without.is_empty(), "mappings alone are not what -S asked for");
}

#[test]
fn resolves_an_indirect_function_of_a_shared_object() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = compile("gcc", "libplan_indirect.so", INDIRECT, &["-shared", "-fPIC"]);
    for (name, binding) in [("plan_indirect_lazy", "-Wl,-z,lazy"), ("plan_indirect_now", "-Wl,-z,now")] {
        let program = compile("gcc", name, USES_INDIRECT, &[library.to_str().unwrap(), binding]);
        check_indirect(&program, "libplan_indirect.so", Some(directory));
    }
}

#[test]
fn resolves_an_indirect_function_of_a_static_program() {
    for flag in ["-static", "-static-pie"] {
        let name = format!("plan_indirect{flag}");
        let program = compile("gcc", &name, &format!("{INDIRECT}\n{USES_INDIRECT}"), &[flag]);
        check_indirect(&program, &name, None);
    }
}

#[test]
fn says_when_an_indirect_function_is_not_resolved_yet() {
    let library = compile("gcc", "libplan_unresolved.so", INDIRECT, &["-shared", "-fPIC"]);
    let code = "#include <stdio.h>\nvoid *my_malloc(unsigned long);\n\
                int main(int c, char **v) { puts(\"ready\"); fflush(stdout); getchar(); return c > 9 && my_malloc(1); }";
    let arguments = [library.to_str().unwrap(), "-Wl,-z,lazy", "-fno-pie", "-no-pie"];
    let running = Running::start(
        &compile("gcc", "plan_unresolved", code, &arguments),
        Some(Path::new(env!("CARGO_TARGET_TMPDIR"))),
    );
    let options = PlanOptions { symbols_prefix: Some("my_"), ..PlanOptions::default() };
    let memory = ProcessMemory::open(running.pid()).unwrap();
    let plan = plan(&objects_of(running.pid(), &options), &options, Some(&memory));
    assert_eq!(skip_reasons(&plan, "my_malloc"), [&SkipReason::Ifunc(IfuncError::NotResolved)]);
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

#[test]
fn puts_no_return_probes_into_a_go_program() {
    // What makes a Go program is the section that its linker writes; the toolchain is not needed for that.
    let code = format!(
        "{NEVER_FREES}\n__attribute__((section(\".go.buildinfo\"), used)) static const char go[32] = {{1}};"
    );
    let program = compile("gcc", "plan_go", &code, &["-static"]);
    let options = PlanOptions::default();
    let objects = [open(&program, &options)];
    let plan = plan(&objects, &options, None);
    assert!(plan.is_empty());
    assert!(plan.points.iter().all(|point| !point.program.is_return()));
    assert_eq!(skip_reasons(&plan, "malloc"), [&SkipReason::Go]);
    let error = PlanError::nothing_found(&objects, &options).to_string();
    assert!(error.contains("is a Go program") && error.contains("go tool pprof"), "{error}");
}

#[test]
fn reads_a_program_that_was_deleted() {
    let program = compile("gcc", "plan_deleted", WAITS, &["-static"]);
    let symbols = all_symbols(&program);
    let kept = program.with_file_name("plan_deleted.kept");
    std::fs::copy(&program, &kept).unwrap();
    let running = Running::start(&program, None);
    std::fs::write(program.with_extension("new"), "not the program").unwrap();
    std::fs::rename(program.with_extension("new"), &program).unwrap();
    let options = PlanOptions::default();
    let plan = plan(&objects_of(running.pid(), &options), &options, None);
    check_against_nm(&plan, &kept, &symbols, |function| !is_operator(function));
}

fn write(name: &str, contents: &[u8]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, contents).unwrap();
    path
}

#[test]
fn says_what_is_wrong_with_an_object() {
    let text = write("plan_text", b"#!/bin/sh\n");
    let name = text.display().to_string();
    assert_eq!(check_object_argument(&name), Err(PlanError::NotElf { object: name.clone() }));
    assert_eq!(check_object_argument(LIBRARIES), Err(PlanError::NotElf { object: LIBRARIES.to_owned() }));
    assert_eq!(check_object_argument(C_LIBRARY), Ok(()));
    assert_eq!(check_object_argument("c"), Ok(()));
    assert_eq!(check_object_argument("/nowhere/libc.so.6"), Ok(()), "the target's file tree may have it");

    let options = PlanOptions { object: Some(&name), ..PlanOptions::default() };
    let objects = [open(&text, &options)];
    assert!(matches!(plan(&objects, &options, None).skipped[0].reason, SkipReason::Unreadable(_)));
    assert_eq!(PlanError::nothing_found(&objects, &options), PlanError::NotElf { object: name.clone() });
    let no_object = PlanOptions::default();
    let error = PlanError::nothing_found(&objects, &no_object);
    assert_eq!(error, PlanError::NoAllocator { objects: name });

    let mut foreign = std::fs::read(C_LIBRARY).unwrap();
    foreign[4] = 1; // ELFCLASS32
    let foreign = write("plan_foreign", &foreign);
    let reason = plan_of_file(&foreign, &PlanOptions::default()).skipped[0].reason.to_string();
    assert_eq!(reason, "the object is not a 64-bit ELF file for this machine");
    let (objects, object) = ([open(&foreign, &no_object)], foreign.display().to_string());
    assert_eq!(PlanError::nothing_found(&objects, &no_object), PlanError::Foreign { object });
}

#[test]
fn explains_each_skip_in_one_line() {
    let plan = plan_of_file(Path::new(C_LIBRARY), &PlanOptions::default());
    let lines: Vec<_> = plan.skipped.iter().map(ToString::to_string).collect();
    let cfree = "cfree in /usr/lib/x86_64-linux-gnu/libc.so.6 is not probed: it is the same code as free, which is probed";
    assert!(lines.iter().any(|line| line == cfree), "{lines:?}");
    assert!(lines.iter().all(|line| !line.contains('\n')));
}

#[test]
fn survives_damaged_files() {
    let code = format!(
        "{INDIRECT}\nvoid *malloc(unsigned long n) {{ return my_malloc(n); }} void free(void *p) {{ (void)p; }}"
    );
    let library =
        compile("gcc", "plan_damaged.so", &code, &["-shared", "-fPIC", "-nostdlib", "-fno-builtin", "-w"]);
    let whole = std::fs::read(&library).unwrap();
    let options = PlanOptions::default();
    assert!(!plan_of_file(&library, &options).is_empty());
    // A fixed sequence of damages: cuts and bytes overwritten, most of them in headers and tables.
    let mut state = 1_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let interesting = [0x00, 0x01, 0x7f, 0x80, 0xff];
    for round in 0..400 {
        let mut bytes = whole.clone();
        if round % 4 == 0 {
            bytes.truncate(random(whole.len()));
        }
        for _ in 0..1 + round % 8 {
            let reach = if round % 2 == 0 { 0x400 } else { whole.len() }.min(bytes.len());
            if reach > 0 {
                bytes[random(reach)] = interesting[random(interesting.len())];
            }
        }
        let path = write("plan_damaged_copy", &bytes);
        let object = open(&path, &options);
        let _ = plan(&[object], &options, None);
    }
}
