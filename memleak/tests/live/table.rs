//! The table of heap blocks grows while it is used, and what finds no place in it is kept
//! elsewhere; walks that are cached are those that a fresh walk would be.

use std::process::Command;

use crate::{
    exact::EVERYTHING,
    guard::alone,
    ledger,
    moments::assert_right_at_its_moment,
    process::Running,
    programs::{Link, build},
    report::Report,
    tracer::Tracer,
};

/// Has a program fill the table with `standing` blocks, under reports that never end, and compares
/// reports of it at work with what it says of their moments. Gives what was noted.
fn fill(standing: u64, options: &[&str]) -> Vec<String> {
    const THREADS: &str = "2";
    const REPORTS: usize = 10;
    let program = build("busy.c", Link::Dynamic, &["-pthread"]);
    let mut target = Running::start(Command::new(program).args([THREADS, &standing.to_string(), "2000000"]));
    target.expect("READY");
    let always = ["-v", "-v", "-o", "0", "-T", "100000"];
    let mut tracer = Tracer::attach_with(target.pid(), &[&always, options, &["0.1"]].concat());
    target.tell("go");
    target.expect("FILLED");
    target.tell("go");
    tracer.wait_report(|report| report.site("site_busy").1 > 0);
    let reports: Vec<Report> = (0..REPORTS).map(|_| tracer.wait_report(|_| true)).collect();
    target.tell("stop");
    target.expect("DONE");
    for report in &reports {
        report.assert_nothing_lost();
        assert_right_at_its_moment(&mut target, report);
        assert_eq!(report.site("site_standing").1, standing);
        assert_eq!(report.totals.acquired - report.totals.released, report.totals.count);
    }
    tracer.notes()
}

#[test]
fn it_grows_while_it_is_used() {
    let _alone = alone();
    // A segment of 57,344 places, and then two of twice as many each.
    let notes = fill(250_000, &[]);
    let made = notes.iter().filter(|note| note.contains("table of heap blocks: segment")).count();
    assert!(made >= 3, "{notes:?}");
}

#[test]
fn what_finds_no_place_is_kept_elsewhere() {
    let _alone = alone();
    for (memory, segments) in [("0", 0), ("4M", 1)] {
        let notes = fill(100_000, &["--max-memory", memory]);
        let made = notes.iter().filter(|note| note.contains("table of heap blocks: segment")).count();
        assert_eq!(made, segments, "{notes:?}");
    }
}

/// Each call's stack is compared with what a cached walk has read: stacks that begin alike are not
/// taken for each other.
#[test]
fn cached_walks_are_what_a_walk_gives() {
    let _alone = alone();
    for flags in [&["-O2"] as &[&str], &["-O2", "-fomit-frame-pointer"]] {
        let program = build("same_place.c", Link::Dynamic, flags);
        let mut target = Running::start(Command::new(program).arg("60000"));
        target.expect("READY");
        let tracer = Tracer::attach_with(target.pid(), &EVERYTHING);
        target.tell("go");
        let ledger = ledger::hear(&mut target);
        assert_eq!(ledger.len(), 5, "{ledger:?}");
        let report = tracer.stop_with_report();
        report.assert_equals(&ledger);
        report.assert_nothing_lost();
        assert!(report.stacks.iter().all(|stack| !stack.truncated), "{}", report.describe());
    }
}
