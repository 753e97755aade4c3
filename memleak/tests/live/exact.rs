//! Counts and bytes equal the truth, exactly.

use std::process::Command;

use crate::{
    guard::alone,
    ledger,
    machine::IS_ARM,
    process::Running,
    programs::{Link, build, text},
    tracer::{NEVER, Tracer, trace_command},
};

/// Options that leave nothing out of a report.
pub(crate) const EVERYTHING: [&str; 5] = ["-o", "0", "-T", "100000", NEVER];

#[test]
fn eight_threads_and_two_million_calls() {
    let _alone = alone();
    let program = build("known_leaks.cc", Link::Dynamic, &[]);
    let mut target = Running::start(Command::new(program).args(["8", "280000", "20260102"]));
    target.expect("READY");
    let mut tracer = Tracer::attach_with(target.pid(), &["-o", "0", "-T", "100000", "1"]);
    target.tell("go");
    let lines = target.expect("END");
    let calls = lines.iter().find_map(|line| line.strip_prefix("{\"calls\":")?.strip_suffix('}'));
    let calls: u64 = calls.and_then(|number| number.parse().ok()).expect("a number of calls");
    assert!(calls > 2_000_000, "{calls}");
    let ledger = ledger::parse(&lines);
    assert!(ledger.len() >= 14, "sites that hold something: {ledger:?}");

    // Reports while it runs, and one after: it has the names that the last one needs, for which a
    // slow machine has no time after the signal.
    let fresh = tracer.fresh_report();
    for report in [fresh, tracer.stop_with_report()] {
        report.assert_equals(&ledger);
        report.assert_nothing_lost();
        report.assert_only_sites("heap");
        report.assert_only_sites("mmap");
        assert_eq!(report.totals.acquired - report.totals.released, report.totals.count);
    }
    target.tell("end");
    assert!(target.wait_status().success());
}

/// Each function alone, in a program that ends at once: exact, with every block found where the
/// program says.
fn each_function_alone(link: Link, functions: &[&str]) {
    let _alone = alone();
    let program = build("one_function.c", link, &[]);
    for function in functions {
        let outcome = trace_command(&EVERYTHING, &[text(&program), function]);
        assert_eq!(outcome.code, 0, "{function}: {:?}", outcome.ended);
        let ledger = ledger::parse(&outcome.ended.stdout);
        assert!(!ledger.is_empty(), "{function}: {:?}", outcome.ended);
        let report = outcome.last_report();
        println!("{function}");
        if IS_ARM && matches!(link, Link::Musl | Link::MuslShared) {
            // No rows are derived from its code there.
            report.assert_equals_but_cut(&ledger);
            continue;
        }
        report.assert_equals(&ledger);
        report.assert_nothing_lost();
    }
}

const POSIX_FUNCTIONS: [&str; 12] = [
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "posix_memalign",
    "aligned_alloc",
    "memalign",
    "valloc",
    "free",
    "mmap",
    "munmap",
    "mremap",
];

#[test]
fn each_function_alone_with_shared_glibc() {
    each_function_alone(Link::Dynamic, &POSIX_FUNCTIONS);
    each_function_alone(Link::Dynamic, &["pvalloc"]);
}

#[test]
fn each_function_alone_with_static_glibc() {
    each_function_alone(Link::Static, &POSIX_FUNCTIONS);
    each_function_alone(Link::Static, &["pvalloc"]);
}

#[test]
fn each_function_alone_with_static_pie_glibc() {
    each_function_alone(Link::StaticPie, &POSIX_FUNCTIONS);
}

#[test]
fn each_function_alone_with_static_musl() {
    each_function_alone(Link::Musl, &POSIX_FUNCTIONS);
}

#[test]
fn each_function_alone_with_shared_musl() {
    each_function_alone(Link::MuslShared, &POSIX_FUNCTIONS);
}

/// There the stack is at the end of the address space, and the kernel's return trampoline
/// elsewhere.
#[test]
fn a_function_jumps_to_another_where_addresses_are_not_randomized() {
    let _alone = alone();
    let program = build("one_function.c", Link::Dynamic, &[]);
    let mut target =
        Running::start(Command::new("setarch").arg("-R").arg(program).args(["reallocarray", "wait"]));
    target.expect("READY");
    let tracer = Tracer::attach(target.pid());
    target.tell("go");
    let ledger = ledger::hear(&mut target);
    let report = tracer.stop_with_report();
    report.assert_equals(&ledger);
    report.assert_nothing_lost();
}

/// Reports come all the time, so that records move while they are read.
#[test]
fn ranges_are_split_moved_and_replaced() {
    let _alone = alone();
    let program = build("mappings.c", Link::Dynamic, &[]);
    let mut target = Running::start(&mut Command::new(program));
    target.expect("READY");
    let mut tracer = Tracer::attach_with(target.pid(), &["-o", "0", "-T", "100000", "0.05"]);
    target.tell("go");
    let ledger = ledger::hear(&mut target);
    assert!(ledger.len() >= 18, "{ledger:?}");
    let report = tracer.fresh_report();
    report.assert_equals(&ledger);
    report.assert_only_sites("mmap");

    target.tell("go");
    let ledger = ledger::hear(&mut target);
    let report = tracer.stop_with_report();
    report.assert_equals(&ledger);
    report.assert_nothing_lost();
    report.assert_only_sites("mmap");
    report.assert_only_sites("heap");
    // The rest of a range that was cut in two by others counts as another one.
    let pieces = report.totals.count - (report.totals.acquired - report.totals.released);
    assert!(pieces < report.totals.count / 2, "{}", report.describe());
    target.tell("end");
    assert!(target.wait_status().success());
}

/// While nothing happens a report is made of what the one before was made of. One call is enough
/// for another.
#[test]
fn one_call_between_reports_that_are_the_same() {
    let calls = ["m", "m", "a", "m", "f", "x", "h", "r", "x", "u", "m", "a", "f"];
    one_by_one(&[], &calls);
    one_by_one(&["-DJEMALLOC", "-ljemalloc"], &["m", "m", "s", "m", "s"]);
}

fn one_by_one(flags: &[&str], calls: &[&str]) {
    let _alone = alone();
    let program = build("one_by_one.c", Link::Dynamic, flags);
    let mut target = Running::start(&mut Command::new(program));
    target.expect("READY");
    let mut tracer = Tracer::attach_with(target.pid(), &["-o", "0", "-T", "100000", "0.05"]);
    let mut oldest_ms = 0;
    for told in calls {
        target.tell(told);
        let ledger = ledger::hear(&mut target);
        for _ in 0..2 {
            let report = tracer.fresh_report();
            report.assert_equals(&ledger);
            report.assert_nothing_lost();
            assert_eq!(report.totals.acquired - report.totals.released, report.totals.count, "{told}");
            let oldest = report.stacks.iter().filter_map(|stack| stack.oldest_ms).max();
            let oldest = oldest.expect("an age");
            assert!(oldest > oldest_ms, "{told}: {oldest} after {oldest_ms} ms");
            oldest_ms = oldest;
        }
    }
    target.tell("q");
    assert!(target.wait_status().success());
}
