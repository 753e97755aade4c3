//! Resources that users describe, in a file alone and on the command line alone: a small library's
//! handles, of which its program knows how many it has leaked.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    guard::alone,
    ledger::{self, Ledger},
    process::{self, Running},
    programs::{Link, build, scratch_dir, text},
    report::Report,
    tracer::{MEMLEAK, NEVER, Tracer},
};

const RESOURCES: [&str; 6] = ["ticket", "lease", "slot", "couple", "shared", "block"];

/// What the file of the examples says, in the words of the command line; `LIB` stands for the
/// library.
const PAIRS: &[&str] = &[
    "--acquire",
    "ticket=LIB:ticket_take -> ret",
    "--release",
    "LIB:ticket_drop(arg1)",
    "--acquire",
    "lease=LIB:lease_open(arg2 size) -> *arg1 if ret == 0",
    "--release",
    "LIB:lease_close(arg1) if ret == 0",
    "--acquire",
    "slot=LIB:slot_get -> ret as int",
    "--release",
    "LIB:slot_put(arg1)",
    "--acquire",
    "couple=LIB:couple_make -> *(arg1+8) as int, *(arg1+12) as int if ret == 0",
    "--release",
    "LIB:couple_end(arg1)",
    "--acquire",
    "shared=LIB:shared_get -> ret counted",
    "--release",
    "LIB:shared_put(arg1)",
    "--acquire",
    "block=LIB:block_new(arg1*arg2 size) -> ret",
    "--acquire",
    "LIB:block_move(arg2 size) -> ret releasing arg1",
    "--release",
    "LIB:block_free(*arg1)",
];

fn library_and_program() -> (PathBuf, PathBuf) {
    let library = build("pairs_library.c", Link::Library, &["-O2"]);
    let program = build("pairs.c", Link::Dynamic, &[text(&library)]);
    (library, program)
}

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/resources/pairs.toml")
}

/// Traces the program with `arguments`: its ledger, and the last report.
fn traced(arguments: &[&str]) -> (Ledger, Report) {
    let (_, program) = library_and_program();
    let mut target = Running::start(&mut Command::new(program));
    target.expect("READY");
    let tracer = Tracer::attach_with(target.pid(), &[arguments, &["-o", "0", "-T", "100", NEVER]].concat());
    target.tell("go");
    let ledger = ledger::hear(&mut target);
    let report = tracer.stop_with_report();
    target.tell("end");
    assert!(target.wait_status().success());
    (ledger, report)
}

fn assert_exact(ledger: &Ledger, report: &Report, resources: &[&str]) {
    let expected: Ledger = ledger
        .iter()
        .filter(|((_, resource), _)| resources.contains(&&**resource))
        .map(|(k, v)| (k.clone(), *v))
        .collect();
    assert!(!expected.is_empty());
    report.assert_equals(&expected);
    report.assert_nothing_lost();
    for resource in resources {
        report.assert_only_sites(resource);
    }
}

#[test]
fn a_file_alone_makes_a_resource() {
    let _alone = alone();
    let (ledger, report) = traced(&["--resources-file", text(&example())]);
    assert_eq!(ledger.len(), 7, "{ledger:?}");
    assert_exact(&ledger, &report, &RESOURCES);
}

#[test]
fn the_command_line_alone_makes_a_resource() {
    let _alone = alone();
    let (library, _) = library_and_program();
    let name = library.file_name().and_then(|name| name.to_str()).expect("a name");
    for object in [text(&library), name] {
        let pairs: Vec<String> = PAIRS.iter().map(|word| word.replace("LIB", object)).collect();
        let pairs: Vec<&str> = pairs.iter().map(String::as_str).collect();
        let (ledger, report) = traced(&pairs);
        assert_exact(&ledger, &report, &RESOURCES);
    }
}

#[test]
fn naming_one_of_a_file_traces_that_one() {
    let _alone = alone();
    let (ledger, report) = traced(&["--resources-file", text(&example()), "-r", "lease,block"]);
    assert_exact(&ledger, &report, &["lease", "block"]);
}

/// `-r` alone finds what lies in the configuration's folder.
#[test]
fn the_configurations_folder_is_found() {
    let _alone = alone();
    let config = scratch_dir().join(format!("config-{}", std::process::id()));
    let folder = config.join("memleak/resources.d");
    fs::create_dir_all(&folder).expect("a folder");
    fs::copy(example(), folder.join("pairs.toml")).expect("a file");
    let (_, program) = library_and_program();
    let mut target = Running::start(&mut Command::new(program));
    target.expect("READY");
    let pid = target.pid().to_string();
    let arguments = ["--json", "-v", "-p", &pid, "-r", "slot", "-o", "0", NEVER];
    let mut tracer = Tracer::run(Command::new(MEMLEAK).args(arguments).env("XDG_CONFIG_HOME", &config));
    tracer.wait_attached();
    target.tell("go");
    let ledger = ledger::hear(&mut target);
    assert_exact(&ledger, &tracer.stop_with_report(), &["slot"]);
    fs::remove_dir_all(&config).expect("removed");
}

/// The text form: each resource its own table, by number where there is no size, handles as they
/// are.
#[test]
fn the_text_form_speaks_of_each_in_its_own_words() {
    let _alone = alone();
    let (_, program) = library_and_program();
    let mut target = Running::start(&mut Command::new(program));
    target.expect("READY");
    let pid = target.pid().to_string();
    let file = example();
    let arguments = [
        "-v",
        "-a",
        "-o",
        "0",
        "-p",
        &pid,
        "-r",
        "lease,slot,heap",
        "--error-exitcode",
        "9",
        "--resources-file",
    ];
    let mut tracer = Tracer::run(Command::new(MEMLEAK).args(arguments).arg(&file).arg(NEVER));
    tracer.wait_attached();
    target.tell("go");
    target.expect("END");
    let outcome = tracer.stop();
    assert_eq!(outcome.code, 9, "{:?}", outcome.ended);
    let lines = &outcome.ended.stdout;
    let headings: Vec<&str> =
        lines.iter().filter_map(|line| line.split_once("] Top ").map(|(_, rest)| rest)).collect();
    let expected =
        ["allocations", "leases", "slots"].map(|what| format!("10 stacks with outstanding {what}:"));
    assert_eq!(headings, expected);
    let has = |wanted: &str| lines.iter().any(|line| line == wanted);
    assert!(has("\t800 bytes in 8 allocations from stack"), "{lines:?}");
    assert!(has("\t7 outstanding from stack"), "{lines:?}");
    let slots: Vec<&str> =
        lines.iter().filter_map(|line| line.strip_prefix("\thandle = ")?.split(' ').next()).collect();
    assert_eq!(slots, ["0", "1", "2", "3", "4", "5", "6"]);
}

/// A word that is wrong is said before anything is attached.
#[test]
fn what_is_not_there_is_one_line() {
    let _alone = alone();
    let (library, program) = library_and_program();
    let name = library.file_name().and_then(|name| name.to_str()).expect("a name");
    let mut target = Running::start(&mut Command::new(program));
    target.expect("READY");
    let pid = target.pid().to_string();
    for (acquire, expected) in [
        (format!("{name}:ticket_tke -> ret"), "no function ticket_tke to probe; write it as nm"),
        ("libnowhere.so:ticket_take -> ret".to_owned(), "no object named libnowhere.so is mapped"),
    ] {
        let arguments =
            ["-p", &pid, "--acquire", &acquire, "--release", "ticket_drop(arg1)", "-o", "0", "1", "1"];
        let ended = Tracer::start(&arguments).wait().ended;
        assert_eq!(process::code(ended.status), 1, "{ended:?}");
        assert_eq!(ended.stderr.len(), 1, "{ended:?}");
        assert!(ended.stderr[0].contains(expected), "{ended:?}");
    }
    let arguments =
        ["-p", &pid, "--acquire", "ticket_take -> ret", "--release", "ticket_dropp(arg1)", "1", "1"];
    let outcome = Tracer::start(&arguments).wait();
    assert_eq!(outcome.code, 0, "{:?}", outcome.ended);
    let warned =
        |line: &String| line.contains("warning: ") && line.contains("no function ticket_dropp to probe");
    assert!(outcome.ended.stderr.iter().any(warned), "{:?}", outcome.ended);
}
