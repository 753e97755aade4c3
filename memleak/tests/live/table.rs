//! The table of heap blocks grows while it is used, and what finds no place in it is kept
//! elsewhere; walks that are cached are those that a fresh walk would be.

use std::process::Command;

use crate::{
    exact::EVERYTHING,
    guard::alone,
    ledger,
    moments::BusyRun,
    process::Running,
    programs::{Link, build},
    tracer::Tracer,
};

/// Has a program fill the table with `standing` blocks, under reports that never end, and compares
/// reports of it at work with what it says of their moments. Gives the segments that were made.
fn fill(standing: u64, options: &[&str]) -> usize {
    let options = [&["-v", "-v"], options, &["0.1"]].concat();
    let run = BusyRun { threads: 2, standing, calls: 2_000_000, options: &options, reports: 10 };
    let (_, notes) = run.assert_right();
    notes.iter().filter(|note| note.contains("table of heap blocks: segment")).count()
}

#[test]
fn it_grows_while_it_is_used() {
    let _alone = alone();
    // A segment of 57,344 places, and then two of twice as many each.
    let made = fill(250_000, &[]);
    assert!(made >= 3, "{made}");
}

#[test]
fn what_finds_no_place_is_kept_elsewhere() {
    let _alone = alone();
    for (memory, segments) in [("0", 0), ("4M", 1)] {
        assert_eq!(fill(100_000, &["--max-memory", memory]), segments, "--max-memory {memory}");
    }
}

/// An address that is handed out again voids its older record, in whatever segment that is: also if
/// only the filter of older segments leads there.
#[test]
fn older_records_of_an_address_are_void() {
    const BLOCKS: u64 = 200_000;
    let _alone = alone();
    let program = build("recycled.c", Link::Dynamic, &["-O2"]);
    let mut target = Running::start(Command::new(program).arg(BLOCKS.to_string()));
    target.expect("READY");
    let options = ["-v", "-v", "-o", "0", "-T", "100000", "0.1"];
    let mut tracer = Tracer::attach_with(target.pid(), &options);
    target.tell("go");
    target.expect("HELD");
    tracer.wait_report(|report| report.totals.count == BLOCKS);
    // Made between two reports, after the segment that it is about was followed by another.
    tracer.wait_note(|note| note.contains("table of heap blocks: a filter of"));
    tracer.fresh_report();
    target.tell("recycle");
    let ledger = ledger::hear(&mut target);
    let report = tracer.stop_with_report();
    report.assert_equals(&ledger);
    report.assert_nothing_lost();
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
