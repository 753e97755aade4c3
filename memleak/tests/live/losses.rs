//! What cannot be kept is counted and said.

use crate::{
    guard::alone,
    ledger,
    options::sizes,
    report::Report,
    tracer::{NEVER, Tracer},
};

/// Blocks that the phases `s`, `m` and `l` of `sizes` acquire.
const BLOCKS: u64 = 153;

/// The last report over these phases under these options, and the program's ledger.
fn trace(options: &[&str]) -> (Report, ledger::Ledger) {
    let mut target = sizes();
    let tracer = Tracer::attach_with(target.pid(), &[options, &["-o", "0", NEVER]].concat());
    for phase in ["s", "m", "l", "q"] {
        target.tell(phase);
    }
    let ledger = ledger::hear(&mut target);
    (tracer.stop_with_report(), ledger)
}

#[test]
fn a_full_table_of_allocations() {
    let _alone = alone();
    let (report, _) = trace(&["--max-allocs", "50"]);
    let lost = report.lost["allocations"];
    assert!(lost > 0, "{}", report.describe());
    assert_eq!(report.totals.count + lost, BLOCKS, "{}", report.describe());
    assert_eq!(report.totals.acquired, report.totals.count, "what was lost was not acquired");
}

#[test]
fn a_full_table_of_stacks() {
    let _alone = alone();
    let (report, ledger) = trace(&["--stack-storage-size", "1"]);
    assert!(report.lost["stacks"] > 0, "{}", report.describe());
    assert_eq!(report.lost["allocations"], 0);
    let bytes: u64 = ledger.values().map(|amount| amount.bytes).sum();
    assert_eq!((report.totals.bytes, report.totals.count), (bytes, BLOCKS), "bytes are right without stacks");
    report.assert_sums();
    assert!(report.stacks.iter().any(|stack| stack.frames.is_empty()), "{}", report.describe());
}

#[test]
fn a_stack_that_is_cut() {
    let _alone = alone();
    let (report, ledger) = trace(&["--max-depth", "2"]);
    assert_eq!(report.sites(), ledger);
    assert!(
        report.stacks.iter().all(|stack| stack.truncated && stack.frames.len() == 2),
        "{}",
        report.describe()
    );
}

/// The line under the heading of the text form.
#[test]
fn losses_are_said_in_the_text() {
    let _alone = alone();
    let mut target = sizes();
    let pid = target.pid().to_string();
    let mut tracer = Tracer::start(&["-v", "--max-allocs", "50", "-o", "0", "-p", &pid, NEVER]);
    tracer.wait_attached();
    for phase in ["s", "m", "l", "q"] {
        target.tell(phase);
    }
    ledger::hear(&mut target);
    let outcome = tracer.stop();
    let line = &outcome.ended.stdout[1];
    assert!(line.contains("lost") && line.contains("allocations") && line.contains("--max-allocs"), "{line}");
}
