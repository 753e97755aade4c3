//! Calls that never return leave the next ones right, and leave the target alive.

use std::process::Command;

use crate::{
    guard::alone,
    ledger,
    machine::lets_programs_write_user_memory,
    process::{Running, code},
    programs::{Link, build, text},
    report::Report,
    tracer::Tracer,
};

/// Runs `unusual MODE` with `preload` in front; the last report, compared with the ledger.
fn leave_calls(mode: &str, preload: &str) -> Report {
    let program = build("unusual.cc", Link::Dynamic, &["-pthread"]);
    let mut target = Running::start(Command::new(program).arg(mode).env("LD_PRELOAD", preload));
    target.expect("READY");
    let tracer = Tracer::attach(target.pid());
    target.tell("go");
    let ledger = ledger::hear(&mut target);
    let report = tracer.stop_with_report();
    let heap = report.sum("heap");
    let totals = crate::report::Totals { bytes: heap.0, count: heap.1, ..report.totals };
    let stacks = report.stacks.iter().filter(|stack| stack.resource == "heap").cloned().collect();
    Report { totals, stacks, ..report.clone() }.assert_equals(&ledger);
    for loss in ["allocations", "stacks", "skipped_runs"] {
        assert_eq!(report.lost[loss], 0, "lost.{loss}");
    }
    assert!(report.lost["missed_returns"] <= 20, "at most the calls that did not return: {:?}", report.lost);
    target.tell("end");
    assert!(target.wait_status().success(), "{}", target.outputs());
    report
}

fn leave_calls_of_our_allocator(mode: &str) {
    let _alone = alone();
    let allocator = build("unusual_allocator.cc", Link::Library, &[]);
    leave_calls(mode, text(&allocator));
}

#[test]
fn longjmp_out_of_malloc() {
    leave_calls_of_our_allocator("jump");
}

#[test]
fn longjmp_out_of_malloc_then_deep() {
    leave_calls_of_our_allocator("jump_then_deep");
}

#[test]
fn siglongjmp_out_of_a_blocking_malloc() {
    leave_calls_of_our_allocator("signal");
}

#[test]
fn pthread_exit_inside_malloc() {
    leave_calls_of_our_allocator("exit");
}

#[test]
fn pthread_cancel_inside_malloc() {
    leave_calls_of_our_allocator("cancel");
}

/// A return probe replaces the return address on the stack, where the C++ unwinder then finds no
/// frame: unmended, an exception out of an allocator's own operator new ends the target. A kernel
/// under lockdown forbids to mend it, and the tracer must say so before it attaches; anywhere else
/// the exception must arrive.
fn throw_through_a_return_probe(preload: &str) {
    if lets_programs_write_user_memory() {
        leave_calls("bad_alloc", preload);
        return;
    }
    println!("the warning is tested, and that it is true");
    let program = build("unusual.cc", Link::Dynamic, &["-pthread"]);
    let mut target = Running::start(Command::new(program).arg("bad_alloc").env("LD_PRELOAD", preload));
    target.expect("READY");
    let tracer = Tracer::attach(target.pid());
    let warnings: Vec<String> = tracer
        .notes()
        .into_iter()
        .filter(|line| line.contains("exception") && line.contains("lockdown"))
        .collect();
    assert_eq!(warnings.len(), 1, "one warning, before the probes are in: {warnings:?}");
    target.tell("go");
    assert_eq!(code(target.wait_status()), 128 + libc::SIGABRT, "{}", target.outputs());
    let report = tracer.wait().into_final_report();
    assert_eq!(report.site("site_malloc"), (1600, 16), "{}", report.describe());
}

#[test]
fn bad_alloc_from_operator_new_of_tcmalloc() {
    let _alone = alone();
    throw_through_a_return_probe("libtcmalloc_minimal.so.4");
}

#[test]
fn bad_alloc_from_operator_new_of_jemalloc() {
    let _alone = alone();
    throw_through_a_return_probe("libjemalloc.so.2");
}

#[test]
fn bad_alloc_from_operator_new_of_libstdcxx() {
    let _alone = alone();
    leave_calls("bad_alloc", "");
}
