//! Objects that cannot be probed, or not easily: stripped, Go's, deleted, foreign, damaged.

use std::path::{Path, PathBuf};

use memleak::{
    objects::ObjectStore,
    probe::plan::{PlanError, PlanOptions, SkipReason, check_object_argument, plan},
    proc::maps::read_maps,
    target::object::{Object, SymbolNames, read_objects},
};

use crate::{
    C_LIBRARY, LIBRARIES, NEVER_FREES, WAITS,
    fixture::{Running, all_symbols, compile, run},
    indirect::INDIRECT,
    is_operator,
    nm::check_against_nm,
    objects_of, open, plan_of_file, skip_reasons,
};

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

/// Of a stripped program the debug file is read, if it is of the same build.
#[test]
fn finds_the_symbols_of_a_stripped_program_in_its_debug_file() {
    let full = compile("gcc", "plan_full", WAITS, &["-static", "-Wl,--build-id=sha1"]);
    let stripped = full.with_file_name("plan_apart");
    run("strip", &["-o", &stripped.to_string_lossy(), &full.to_string_lossy()]);
    let notes = run("readelf", &["-nW", &stripped.to_string_lossy()]);
    let id = notes.split("Build ID: ").nth(1).unwrap().split_whitespace().next().unwrap();
    let debug_directory = tempfile::tempdir().unwrap();
    let place = debug_directory.path().join(".build-id").join(&id[..2]).join(format!("{}.debug", &id[2..]));
    std::fs::create_dir_all(place.parent().unwrap()).unwrap();
    let target = Running::start(&stripped, None);
    let symbols = || {
        let store = ObjectStore::new(1 << 30, debug_directory.path());
        let names = SymbolNames::from_iter(["malloc"]);
        let objects = read_objects(&store, target.pid(), &read_maps(target.pid()).unwrap(), &names);
        let elf = objects.iter().find(|object| object.path == stripped).unwrap().elf.as_ref().unwrap();
        assert!(elf.is_static());
        (elf.has_symbol_table(), elf.symbols().to_vec())
    };
    assert_eq!(symbols(), (false, vec![]), "there is no debug file");
    let other = compile("gcc", "plan_other", NEVER_FREES, &["-static", "-Wl,--build-id=sha1"]);
    std::fs::copy(&other, &place).unwrap();
    assert_eq!(symbols(), (false, vec![]), "another program's debug file is not believed");
    run("objcopy", &["--only-keep-debug", &full.to_string_lossy(), &place.to_string_lossy()]);
    let whole = Object::open(&full, &SymbolNames::from_iter(["malloc"])).unwrap();
    assert_eq!(symbols(), (true, whole.elf.as_ref().unwrap().symbols().to_vec()));
    assert_eq!(symbols().1.len(), 1);
}

#[test]
fn puts_no_return_probes_into_a_go_program() {
    // What makes a Go program is the section that its linker writes; the toolchain is not needed
    // for that.
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
