//! The target is never harmed, and what is done for that is exact or counted.

use std::process::Command;

use crate::{
    guard::alone,
    ledger::{self, Ledger},
    process::{self, Running},
    programs::{Link, build},
    report::Report,
    tracer::{NEVER, Tracer},
};

/// Threads that wait for a condition hold no mutex: not while they wait, and not when their process
/// ends.
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

/// What a handler acquires counts, although the thread that it has interrupted was in a call of the
/// same group.
#[test]
fn a_handler_is_no_callee_of_what_it_interrupts() {
    let _alone = alone();
    let (report, ledger) = allocate_under_signals("below");
    report.assert_equals(&ledger);
    assert_eq!(report.lost["missed_returns"], 0, "{}", report.describe());
}

/// A handler above the stack of the call that it has interrupted: the target lives, and all is
/// counted.
fn handler_above(place: &str) {
    let _alone = alone();
    let (report, ledger) = allocate_under_signals(place);
    report.assert_equals(&ledger);
    assert_eq!(report.lost["missed_returns"], 0, "{}", report.describe());
}

#[test]
fn a_handler_on_an_alternate_stack_above() {
    handler_above("above");
}

#[test]
fn a_handler_on_an_alternate_stack_in_thread_storage() {
    handler_above("storage");
}

/// Runs a program of the user's own pair to its end under the tracer, and compares. Returns the
/// last report and what the tracer has said.
fn trace_pair(program: &mut Command, acquire: &str, release: &str) -> (Report, Vec<String>) {
    let mut target = Running::start(program);
    target.expect("READY");
    let tracer = Tracer::attach_with(
        target.pid(),
        &["-o", "0", "-T", "100000", "--acquire", acquire, "--release", release, NEVER],
    );
    target.tell("go");
    let ledger = ledger::hear(&mut target);
    let notes = tracer.notes();
    let report = tracer.stop_with_report();
    target.tell("end");
    assert_eq!(process::code(target.wait_status()), 0, "{}", target.outputs());
    for ((site, _), amount) in &ledger {
        let count = amount.count.unwrap_or(0);
        assert_eq!(report.site(site), (amount.bytes, count), "{site}: {}", report.describe());
    }
    let sum = ledger.values().fold((0, 0), |sum, one| (sum.0 + one.bytes, sum.1 + one.count.unwrap_or(0)));
    assert_eq!((report.totals.bytes, report.totals.count), sum, "{}", report.describe());
    (report, notes)
}

/// A function that switches to another fibre and back, on either side or in another thread, while
/// the other one calls it.
fn switch_fibres(place: &str) {
    let _alone = alone();
    let program = build("fibres.c", Link::Dynamic, &["-rdynamic"]);
    let (report, notes) = trace_pair(Command::new(program).arg(place), "res_get -> ret", "res_put(arg1)");
    assert_eq!(report.lost["missed_returns"], 0, "{}", report.describe());
    assert!(!notes.iter().any(|line| line.contains("warning")), "{notes:?}");
}

#[test]
fn a_traced_function_switches_to_a_higher_fibre() {
    switch_fibres("low");
}

#[test]
fn a_traced_function_switches_to_a_lower_fibre() {
    switch_fibres("high");
}

#[test]
fn a_traced_function_goes_on_in_another_thread() {
    switch_fibres("thread");
}

/// An exception out of a traced function arrives.
#[test]
fn a_traced_function_throws() {
    let _alone = alone();
    let program = build("throws.cc", Link::Dynamic, &[]);
    let (report, _) =
        trace_pair(&mut Command::new(program), "throws_get(arg1 size) -> ret", "throws_put(arg1)");
    assert!(report.lost["missed_returns"] <= 50, "at most those that threw: {}", report.describe());
}

/// Another tracer's probes on the same library fire in this target as well, for nothing. Where no
/// return address may be replaced they must not replace one either: a stack that begins there would
/// begin with the kernel's trampoline.
#[test]
fn two_tracers_on_one_library() {
    const THREADS: &str = "20";
    let _alone = alone();
    let program = build("first_free.c", Link::Dynamic, &["-pthread"]);
    let start = || {
        let mut target = Running::start(Command::new(&program).arg(THREADS));
        target.expect("READY");
        let tracer = Tracer::attach(target.pid());
        (target, tracer)
    };
    let both = [start(), start()];
    for (mut target, tracer) in both {
        target.tell("go");
        let ledger = ledger::hear(&mut target);
        let report = tracer.stop_with_report();
        assert_eq!(report.site("site_mmap"), (8192, 1), "{ledger:?} {}", report.describe());
        report.assert_nothing_lost();
        target.tell("end");
        assert_eq!(process::code(target.wait_status()), 0, "{}", target.outputs());
    }
}
