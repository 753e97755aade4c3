//! An allocator's own samples, by probes that it defines itself.

use std::process::Command;

use crate::{
    errors::assert_one_line,
    guard::alone,
    ledger,
    options::sizes,
    process::Running,
    programs::{Link, build},
    tracer::{MEMLEAK, Tracer},
};

/// What the program says after its ledger: how often it was listened to, and by how many it is now.
fn listened(target: &mut Running) -> String {
    target.expect_line("what it was listened to", |line| line.starts_with("listened "))
}

/// Ten of a hundred calls, twice; the third site has a place of the probe of its own. Later nobody
/// listens.
const COUNTED: [&str; 2] = ["listened 20, now 2 and 1", "listened 20, now 0 and 0"];

/// The weights are exact, the program knows that it is listened to (by so many places of its
/// probes), and knows when nobody does any more. Frees of blocks that were not chosen release
/// nothing.
fn samples_are_taken(options: &[&str], flags: &[&str], listening: [&str; 2]) {
    let _alone = alone();
    let mut target = Running::start(&mut Command::new(build("usdt.c", Link::Dynamic, flags)));
    target.expect("READY");
    let mut tracer =
        Tracer::attach_with(target.pid(), &[options, &["-o", "0", "-T", "100000", "0.1"]].concat());
    target.tell("go");
    let ledger = ledger::hear(&mut target);
    assert_eq!(ledger.len(), 3, "{ledger:?}");
    let [before, after] = listening;
    assert_eq!(listened(&mut target), before);
    let fresh = tracer.fresh_report();
    for report in [fresh, tracer.stop_with_report()] {
        report.assert_equals(&ledger);
        report.assert_nothing_lost();
        report.assert_only_sites("otel-memory");
        assert!(report.stacks.iter().all(|stack| !stack.truncated), "{}", report.describe());
    }
    target.tell("go");
    let _ = ledger::hear(&mut target); // of nobody's interest
    assert_eq!(listened(&mut target), after);
    target.tell("q");
    assert!(target.wait_status().success());
}

#[test]
fn samples_that_are_asked_for() {
    samples_are_taken(&["--usdt"], &[], COUNTED);
}

/// Kernels before 6.11 have it so as well.
#[test]
fn samples_without_counters() {
    samples_are_taken(
        &["--usdt"],
        &["-DNO_COUNTERS"],
        ["listened 20, now 1 and 1", "listened 40, now 1 and 1"],
    );
}

/// No function of its allocator is known, so that its own samples are all that is to be had.
#[test]
fn samples_are_found() {
    samples_are_taken(&[], &[], COUNTED);
}

#[test]
fn a_program_without_samples_is_refused() {
    let _alone = alone();
    let target = sizes();
    let pid = target.pid().to_string();
    let output = Command::new(MEMLEAK).args(["--usdt", "-p", &pid, "1", "1"]).output().expect("memleak");
    assert_one_line(&output, 1, &["otel_memory:alloc", "without --usdt"], "--usdt");
}
