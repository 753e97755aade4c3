//! The target is never harmed, and what is done for that is exact or counted.

use std::process::Command;

use crate::{
    guard::alone,
    ledger::{self, Ledger},
    process::{self, Running},
    programs::{Link, build},
    report::Report,
    tracer::Tracer,
};

/// Threads that wait for a condition hold no mutex: not while they wait, and not when their process ends.
#[test]
fn an_idle_thread_pool_holds_no_mutex() {
    let _alone = alone();
    let mut target = Running::start(&mut Command::new(build("waiting.c", Link::Dynamic, &[])));
    target.expect("READY");
    let arguments = ["-r", "mutex", "-o", "0", "--error-exitcode", "99", "0.2"];
    let mut tracer = Tracer::attach_with(target.pid(), &arguments);
    target.tell("go");
    ledger::hear(&mut target);
    let report = tracer.fresh_report();
    assert_eq!(report.sum("mutex"), (0, 0), "while they wait: {}", report.describe());
    target.tell("end");
    let outcome = tracer.wait();
    let last = outcome.reports.last().expect("a last report");
    assert!(last.is_final && last.sum("mutex") == (0, 0), "when they end: {}", last.describe());
    assert_eq!(outcome.code, 0, "--error-exitcode: {:?}", outcome.ended.stderr);
    assert_eq!(process::code(target.wait_status()), 0, "{}", target.outputs());
}

/// Runs `signals WHERE` to its end under the tracer; the last report, and the ledger.
fn allocate_under_signals(place: &str) -> (Report, Ledger) {
    let mut target = Running::start(Command::new(build("signals.c", Link::Dynamic, &[])).arg(place));
    target.expect("READY");
    let tracer = Tracer::attach(target.pid());
    target.tell("go");
    let ledger = ledger::hear(&mut target);
    let report = tracer.stop_with_report();
    target.tell("end");
    assert_eq!(process::code(target.wait_status()), 0, "{}", target.outputs());
    (report, ledger)
}

/// What a handler acquires counts, although the thread that it has interrupted was in a call of the same group.
#[test]
fn a_handler_is_no_callee_of_what_it_interrupts() {
    let _alone = alone();
    let (report, ledger) = allocate_under_signals("below");
    report.assert_equals(&ledger);
    assert_eq!(report.lost["missed_returns"], 0, "{}", report.describe());
}

/// A handler above the stack of the call that it has interrupted: the target lives, and what is not counted is said.
fn handler_above(place: &str) {
    let _alone = alone();
    let (report, ledger) = allocate_under_signals(place);
    let site = |name: &str, resource: &str| ledger[&(name.to_owned(), resource.to_owned())];
    let mallocs = site("site_malloc", "heap");
    assert_eq!(report.site("site_malloc"), (mallocs.bytes, mallocs.count.unwrap_or(0)));
    let (_, mapped) = report.site("site_mmap");
    let lost = report.lost["missed_returns"];
    assert_eq!(Some(mapped + lost), site("site_mmap", "mmap").count, "{}", report.describe());
}

#[test]
fn a_handler_on_an_alternate_stack_above() {
    handler_above("above");
}

#[test]
fn a_handler_on_an_alternate_stack_in_thread_storage() {
    handler_above("storage");
}
