//! Ranges of addresses that are mapped into each other and unmapped in part, and what tells of
//! them.

use std::process::Command;

use crate::{
    guard::{alone, cpu_time},
    ledger,
    process::Running,
    programs::{Link, build},
    tracer::{NEVER, Tracer},
};

/// A release is used up when it is applied: what a report costs does not grow with all that was
/// ever mapped.
#[test]
fn a_reservation_is_committed_piece_by_piece() {
    const REPORTS: usize = 5;
    let _alone = alone();
    let program = build("commits.c", Link::Dynamic, &[]);
    let mut target = Running::start(Command::new(program).arg("400000"));
    target.expect("READY");
    let mut tracer = Tracer::attach_with(target.pid(), &["-o", "0", "-T", "100000", "0.5"]);
    for _ in 0..2 {
        target.tell("go");
        let ledger = ledger::hear(&mut target);
        let report = tracer.fresh_report();
        report.assert_equals(&ledger);
        report.assert_nothing_lost();
    }
    // Those of records that a snapshot may have missed are kept for a while.
    (0..3).for_each(|_| drop(tracer.fresh_report()));
    let before = cpu_time(tracer.running().pid()).as_secs_f64();
    for _ in 0..REPORTS {
        drop(tracer.wait_report(|_| true));
    }
    let each = (cpu_time(tracer.running().pid()).as_secs_f64() - before) / REPORTS as f64;
    assert!(each < 0.15, "{each} s of CPU for a report");
    target.tell("end");
}

/// The tracer is stopped while lines come, so that most find no room; what tells of ranges does.
#[test]
fn lines_of_trace_do_not_crowd_out_what_ranges_are_known_by() {
    const LINES: u64 = 2 * 2 * 100_000;
    let _alone = alone();
    let program = build("flood.c", Link::Dynamic, &["-pthread"]);
    let mut target = Running::start(Command::new(program).args(["100000", "10000"]));
    target.expect("READY");
    let mut tracer = Tracer::attach_with(target.pid(), &["-t", "-o", "0", "-T", "100000", NEVER]);
    tracer.running().signal(libc::SIGSTOP);
    target.tell("go");
    let ledger = ledger::hear(&mut target);
    tracer.running().signal(libc::SIGCONT);
    let report = tracer.stop_with_report();
    report.assert_equals(&ledger);
    let lost = &report.lost;
    assert!(lost["trace_lines"] > LINES / 2, "{}", report.describe());
    assert_eq!(lost["events"], lost["trace_lines"], "no control event: {}", report.describe());
    target.tell("end");
}
