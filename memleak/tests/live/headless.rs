//! Processes that go on without their first thread, for which the kernel and /proc show what a
//! process has.

use std::{fs, process::Command};

use crate::{
    errors::assert_one_line,
    guard::alone,
    ledger,
    process::{Running, patience},
    programs::{Link, build, text},
    targets::assert_sites,
    tracer::{MEMLEAK, NEVER, Tracer},
};

const EVERYTHING: [&str; 5] = ["-o", "0", "-T", "100000", NEVER];

/// Its first thread has ended when it says so, but for the last instructions of the kernel.
fn wait_for_first_thread(pid: u32) {
    let began = std::time::Instant::now();
    while !fs::read_to_string(format!("/proc/{pid}/statm")).expect("it lives").starts_with("0 ") {
        assert!(began.elapsed() < patience(), "its first thread lives");
        std::thread::yield_now();
    }
}

fn start(arguments: &[&str]) -> Running {
    let mut target = Running::start(Command::new(build("headless.c", Link::Dynamic, &[])).args(arguments));
    target.expect("READY");
    target
}

fn is_by_thread(note: &str) -> bool {
    note.contains("is traced by its thread")
}

/// Found by its name; by the number of one of its threads it is not taken for that.
#[test]
fn a_process_without_its_first_thread_is_traced() {
    let _alone = alone();
    let mut target = start(&[]);
    wait_for_first_thread(target.pid());
    let pid = target.pid().to_string();
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).expect("it lives");
    let mut tracer = Tracer::start(&[&["--json", "-v", "--name", name.trim_end()], &EVERYTHING[..]].concat());
    let first = tracer.wait_note(is_by_thread);
    tracer.wait_attached();
    target.tell("go");
    ledger::hear(&mut target);
    // By the older one of its threads, which then ends.
    target.tell("next");
    tracer.wait_note(|note| is_by_thread(note) && *note != first);
    target.tell("go");
    let truth = ledger::hear(&mut target);
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
    let names = tasks.map(|task| task.expect("a thread").file_name().into_string().expect("a number"));
    let thread = names.max().expect("a thread");
    let said = Command::new(MEMLEAK).args(["-p", &thread]).output().expect("memleak");
    assert_one_line(&said, 1, &[&thread, "is a thread of process", &pid], "a thread");
    // Its end, after which /proc has nothing of it.
    target.tell("next");
    let report = tracer.wait().into_final_report();
    assert_eq!(truth.len(), 2, "{truth:?}");
    assert_sites(&report, &truth);
    report.assert_nothing_lost();
    assert!(target.wait_status().success());
}

/// Probes that are in stay, and those of what is loaded later come in by another thread.
#[test]
fn a_first_thread_that_ends_takes_nothing_along() {
    let _alone = alone();
    let library = build("plain_allocator.c", Link::Library, &[]);
    let mut target = start(&[text(&library)]);
    let mut tracer = Tracer::attach(target.pid());
    target.tell("leave");
    target.expect("LEFT");
    wait_for_first_thread(target.pid());
    // pthread_exit may load another library before: this is about the allocator.
    tracer.wait_note(is_by_thread);
    tracer.wait_attached();
    // Whoever has probes at the same places and ends them has the kernel ask which breakpoints
    // stay.
    let mut other = start(&[]);
    wait_for_first_thread(other.pid());
    let of_other = Tracer::attach(other.pid());
    other.tell("go");
    let truth_of_other = ledger::hear(&mut other);
    assert_sites(&of_other.stop_with_report(), &truth_of_other);
    target.tell("go");
    let truth = ledger::hear(&mut target);
    let report = tracer.stop_with_report();
    assert_eq!(truth.len(), 3, "{truth:?}");
    assert_sites(&report, &truth);
    report.assert_nothing_lost();
    for mut target in [target, other] {
        target.tell("next");
        target.tell("next");
        assert!(target.wait_status().success());
    }
}
