//! Code that a program has copied to memory of no file, to have it in huge pages.

use std::process::Command;

use crate::{
    guard::alone,
    ledger,
    process::Running,
    programs::{Link, build},
    tracer::Tracer,
};

/// Its functions have names, stacks go through it, and what cannot be probed in it is said.
#[test]
fn copied_code_is_its_files() {
    let _alone = alone();
    let program = build("copied.c", Link::Dynamic, &["-fno-toplevel-reorder"]);
    let mut target = Running::start(&mut Command::new(program));
    target.expect("READY");
    let tracer = Tracer::attach(target.pid());
    target.tell("go");
    let truth = ledger::hear(&mut target);
    let said = tracer.notes().into_iter().find(|note| note.contains("has copied its code"));
    let report = tracer.stop_with_report();
    report.assert_equals(&truth);
    report.assert_nothing_lost();
    let stack = report.stacks.iter().find(|stack| stack.site().is_some()).expect("a stack");
    let names: Vec<&str> = stack.frames.iter().map(|frame| frame.bare_function()).collect();
    assert_eq!(names.get(..3), Some(&["site_copied", "caller", "main"][..]), "{names:?}");
    let modules = || stack.frames.iter().take(3).map(|frame| frame.module.as_deref().unwrap_or_default());
    assert!(modules().all(|module| module.contains("/copied-")), "{}", report.describe());
    let said = said.unwrap_or_else(|| panic!("no word of it"));
    assert!(said.contains("calls of dlfree, dlmalloc there are not seen"), "{said}");
    target.tell("end");
    assert!(target.wait_status().success());
}
