//! Which functions are an allocator's: static programs, the packaged allocators, and parts of one.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use memleak::{
    probe::{
        gaps::{Gap, gaps},
        plan::{PlanOptions, ProgramKind, SkipReason, plan},
    },
    target::allocator::AllocatorKind,
};

use crate::{
    C_LIBRARY, LIBRARIES, NEVER_FREES, WAITS,
    fixture::{all_symbols, compile, dynamic_symbols, run},
    is_operator,
    nm::{check_against_nm, check_against_symbols, entries},
    open, plan_of_file, skip_reasons,
};

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
            // In a static-pie program the linker made hidden functions, malloc among them, local
            // ones.
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

/// A library's version script makes local what it does not name: so are the allocators in Rust's
/// libraries, and lld leaves nothing to tell them from a source file's own functions.
#[test]
fn takes_what_a_version_script_has_made_local() {
    let code = "__attribute__((noinline)) void *je_malloc(unsigned long n) { __asm__(\"\"); return (void *)n; }\n\
                __attribute__((noinline)) void je_free(void *p) { __asm__ volatile(\"\" :: \"r\"(p)); }\n\
                __attribute__((noinline)) void free(void *p) { __asm__ volatile(\"\" :: \"r\"(p)); }\n\
                void entry(unsigned long n) { void *p = je_malloc(n); je_free(p); free(p); }";
    let script = Path::new(env!("CARGO_TARGET_TMPDIR")).join("plan_version_script");
    std::fs::write(&script, "{ global: entry; local: *; };").unwrap();
    for linker in ["bfd", "lld"] {
        let flags = [format!("-fuse-ld={linker}"), format!("-Wl,--version-script={}", script.display())];
        let flags = ["-shared", "-fPIC", "-fno-builtin", "-w", &flags[0], &flags[1]];
        let library = compile("gcc", &format!("plan_script_{linker}.so"), code, &flags);
        let local = all_symbols(&library).into_iter().filter(|symbol| symbol.name == "je_malloc");
        assert_eq!(local.map(|symbol| symbol.kind).collect::<Vec<_>>(), ['t'], "{linker}");
        let plan = plan_of_file(&library, &PlanOptions::default());
        let functions: BTreeSet<_> = plan.points.iter().map(|point| point.function.as_str()).collect();
        assert!(functions.is_superset(&BTreeSet::from(["je_free", "je_malloc"])), "{linker}: {functions:?}");
        assert!(linker == "bfd" || !functions.contains("free"), "{functions:?}");
        // With jemalloc's own functions beside them, they are its.
        let code = format!(
            "{code}\n__attribute__((used)) void *mallocx(unsigned long n, int f) {{ return (void *)n; }}\n\
             __attribute__((used)) void dallocx(void *p, int f) {{}}"
        );
        let library = compile("gcc", &format!("plan_script_whole_{linker}.so"), &code, &flags);
        let plan = plan_of_file(&library, &PlanOptions::default());
        let functions: BTreeSet<_> = plan.points.iter().map(|point| point.function.as_str()).collect();
        assert!(functions.is_superset(&BTreeSet::from(["free", "mallocx", "dallocx"])), "{functions:?}");
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

/// A linker keeps what is called, so a family need not be whole; and a prefix is what its functions
/// show.
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

/// A stripped program that holds tcmalloc names what the C++ library refers to, and glibc's
/// internal names with it.
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

/// So is one that a library hides, such as an extension of Python's, which maps memory itself.
#[test]
fn says_which_allocator_a_stripped_library_hides() {
    let code = |function: &str| {
        format!(
            "#include <sys/mman.h>\nconst char *words = \"<jemalloc>: Error in \";\n\
             int give(char *p) {{ return {function}(p, 1, 1) + (mmap(p, 1, 1, 1, 1, 1) == p); }}"
        )
    };
    let options = PlanOptions::default();
    for (name, function, strip, is_hidden) in [
        ("plan_hidden_library", "madvise", "-s", true),
        ("plan_named_library", "madvise", "-g", false),
        ("plan_other_library", "mprotect", "-s", false),
    ] {
        let library = compile("gcc", name, &code(function), &["-shared", "-fPIC", strip]);
        let objects = [open(&library, &options), open(Path::new(C_LIBRARY), &options)];
        let object = library.display().to_string();
        let expected = Gap::Hidden { object, allocator: AllocatorKind::Jemalloc };
        let gaps = gaps(&objects, &plan(&objects, &options, None));
        assert_eq!(gaps, if is_hidden { vec![expected] } else { vec![] }, "{name}");
    }
}

/// A linker that optimizes the whole program copies an allocator's functions to where they are
/// called.
#[test]
fn says_that_an_allocator_may_be_inlined() {
    let code = "#define OWN __attribute__((used))\n\
                static char pool[1 << 16]; static unsigned long taken;\n\
                static OWN __attribute__((noinline)) int one(char *p) { __asm__(\"\"); return *p; }\n\
                OWN void *malloc(unsigned long n) { taken += n; return pool + taken - n; }\n\
                OWN void free(void *p) { __asm__ volatile(\"\" :: \"r\"(p)); }\n\
                static OWN __attribute__((noinline)) int two(char *p) { __asm__(\"\"); return *p; }\n\
                int main(void) { char *p = malloc(9); int c = one(p) + two(p); free(p); return c; }";
    let options = PlanOptions::default();
    let flags = ["-O2", "-fno-builtin", "-w"];
    for (name, lto, is_inlined) in [("plan_lto", &["-flto"][..], true), ("plan_no_lto", &[], false)] {
        let program = compile("gcc", name, code, &[&flags, lto].concat());
        let objects = [open(&program, &options), open(Path::new(C_LIBRARY), &options)];
        let (object, acquires) = (program.display().to_string(), "malloc".to_owned());
        let expected = Gap::Inlined { object, allocator: AllocatorKind::Unknown, acquires };
        let gaps = gaps(&objects, &plan(&objects, &options, None));
        assert_eq!(gaps, if is_inlined { vec![expected] } else { vec![] }, "{name}");
    }
}

/// A stripped program that defines malloc names what shared libraries refer to, which is not all.
#[test]
fn says_that_a_stripped_program_does_not_name_all() {
    let malloc = "void *malloc(unsigned long n) { return (void *)n; }\nvoid free(void *p) {}\n";
    let operators: String = ["_Znwm", "_Znam", "_ZdlPv", "_ZdaPv", "_ZdlPvm"]
        .iter()
        .map(|name| format!("void *{name}(void *p) {{ return p; }}\n"))
        .collect();
    let (c, cxx) = (format!("{malloc}{NEVER_FREES}"), format!("{malloc}{operators}{NEVER_FREES}"));
    let options = PlanOptions::default();
    let all = ["-w", "-fno-builtin", "-rdynamic"];
    for (name, code, flags, is_whole) in [
        ("plan_stripped_c", &c, &["-s"][..], false),
        ("plan_stripped_cxx", &cxx, &["-s"], true),
        ("plan_whole_c", &c, &[], true),
    ] {
        let program = compile("gcc", name, code, &[&all, flags].concat());
        let objects = [open(&program, &options), open(Path::new(C_LIBRARY), &options)];
        let object = program.display().to_string();
        let expected = Gap::HalfHidden { object, allocator: AllocatorKind::Unknown };
        let gaps = gaps(&objects, &plan(&objects, &options, None));
        assert_eq!(gaps, if is_whole { vec![] } else { vec![expected] }, "{name}");
    }
}
