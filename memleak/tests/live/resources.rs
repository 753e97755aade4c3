//! Resources other than memory: each by all its functions, with what a program says of itself as the truth.

use std::process::Command;

use crate::{
    guard::alone,
    ledger,
    process::Running,
    programs::{Link, build},
    tracer::Tracer,
};

/// Real libraries, by the names under which programs load them: no package for building against them is wanted.
const LIBRARIES: &[&str] = &["-l:libsqlite3.so.0", "-l:libssl.so.3", "-l:libcrypto.so.3"];

/// After acquiring, after failing to acquire and after releasing (some of it twice) the report is the program's ledger.
fn each_phase(resource: &str) {
    let _alone = alone();
    let program = build("resources.c", Link::Dynamic, LIBRARIES);
    let mut target = Running::start(Command::new(program).arg(resource));
    target.expect("READY");
    let mut tracer =
        Tracer::attach_with(target.pid(), &["-r", resource, "-o", "0", "-T", "100000", "0.2"]);
    for phase in ["acquired", "failed", "released"] {
        target.tell("go");
        let ledger = ledger::hear(&mut target);
        println!("{resource} {phase}: {ledger:?}");
        assert!(!ledger.is_empty());
        let report = tracer.fresh_report();
        report.assert_equals(&ledger);
        report.assert_only_sites(resource);
        report.assert_nothing_lost();
        // A mutex is not held while its holder waits for a condition, and not released either.
        let waited_for = u64::from(resource == "mutex" && phase != "released");
        let held = report.totals.acquired - report.totals.released;
        assert_eq!(held, report.totals.count + waited_for, "{}", report.describe());
    }
    target.tell("end");
    assert!(target.wait_status().success(), "{}", target.outputs());
    assert_eq!(tracer.wait().code, 0);
}

#[test]
fn descriptors_in_each_phase() {
    each_phase("fd");
}

#[test]
fn streams_in_each_phase() {
    each_phase("file");
}

#[test]
fn directories_in_each_phase() {
    each_phase("dir");
}

#[test]
fn databases_in_each_phase() {
    each_phase("sqlite");
}

#[test]
fn statements_in_each_phase() {
    each_phase("sqlite-stmt");
}

#[test]
fn threads_in_each_phase() {
    each_phase("thread");
}

#[test]
fn mutexes_in_each_phase() {
    each_phase("mutex");
}

#[test]
fn loaded_objects_in_each_phase() {
    each_phase("dl");
}

#[test]
fn openssl_objects_in_each_phase() {
    each_phase("ssl");
}
