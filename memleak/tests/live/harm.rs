//! The target is never harmed, and what is done for that is exact or counted.

use std::process::Command;

use crate::{
    guard::alone,
    ledger,
    process::{self, Running},
    programs::{Link, build},
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
