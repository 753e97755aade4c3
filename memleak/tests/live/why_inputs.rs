//! `--why` where there is little to look at, or nothing, or much: targets that go, other
//! namespaces, thousands of threads.

use std::{process::Command, thread, time::Duration};

use crate::{
    guard::alone,
    process::{Running, rounds},
    programs::{Link, build, text},
    report::Stack,
    targets::only_child,
    tracer::{NEVER, Tracer},
    why::{read_books, shapes_program, wordcount},
};

/// Whenever it goes, there are reports, and one line for each that has no `why` says so.
#[test]
fn a_target_may_go_while_it_is_looked_at() {
    let _alone = alone();
    let program = shapes_program(&[]);
    let mut in_the_middle = 0;
    for round in rounds(30) {
        let mut target = Running::start(&mut Command::new(&program));
        target.expect("READY");
        let way = if round % 2 == 0 { "--why" } else { "--why=exact" };
        let pid = target.pid().to_string();
        let mut tracer =
            Tracer::start(&["--json", "-v", "-p", &pid, way, "--why-every", "1", "-o", "0", "0.001"]);
        tracer.wait_attached();
        thread::sleep(Duration::from_micros(round * 7919 % 400_000));
        target.signal(libc::SIGKILL);
        let outcome = tracer.wait();
        assert_eq!(outcome.code, 0, "{:?}", outcome.ended.stderr);
        let said: Vec<&String> =
            outcome.ended.stderr.iter().filter(|line| line.contains("--why: ")).collect();
        let without = outcome.reports.iter().filter(|report| report.why.is_none()).count();
        assert_eq!(said.len(), without, "{said:?}");
        in_the_middle += said.iter().filter(|line| line.contains("cannot look at the memory")).count();
        let last = outcome.reports.last().expect("a report");
        assert!(last.is_final && last.why.is_none(), "{:?}", last.why);
    }
    println!("gone in the middle in {in_the_middle} rounds");
}

/// It has other process ids there, and thread ids in its memory.
#[test]
fn a_target_in_a_pid_namespace_is_looked_at() {
    let _alone = alone();
    for way in ["--why", "--why=exact"] {
        let mut command = Command::new("unshare");
        let mut target = Running::start(
            command.args(["--pid", "--mount", "--fork", "--mount-proc"]).arg(wordcount(false)),
        );
        read_books(&mut target, 1);
        let tracer = Tracer::attach_with(only_child(target.pid()), &[way, "-o", "0", "-T", "1000", NEVER]);
        read_books(&mut target, 3);
        let report = tracer.stop_with_report();
        target.end();
        let [cycle] = report.cycles.as_deref().expect("cycles") else { panic!("{:?}", report.why) };
        assert_eq!((cycle["length"].as_u64(), cycle["count"].as_u64()), (Some(2), Some(3)), "{cycle}");
        let lost = &report.why.as_ref().expect("why")["definitely_lost"]["count"];
        assert!(lost.as_u64() >= Some(4), "two circles at least: {lost}");
    }
}

/// Two thousand threads are stopped within the time that is said, and what their stacks hold is
/// found.
#[test]
fn thousands_of_threads_are_looked_at() {
    const THREADS: u64 = 2000;
    let _alone = alone();
    let program = build("many_threads.c", Link::Dynamic, &["-O2"]);
    let arguments = ["--json", "-vv", "--why=exact", "--max-pause", "3000", "-a", "-o", "0", NEVER, "--"];
    let mut tracer = Tracer::start(&[&arguments[..], &[text(&program), "2000"]].concat());
    tracer.running().expect("READY");
    tracer.running().signal(libc::SIGINT);
    let outcome = tracer.wait();
    let said = outcome.ended.stderr.iter().find_map(|line| line.split_once(" threads stopped in ")?.1.into());
    // It takes 0.05 s on a machine that is busy with other things.
    let milliseconds =
        said.and_then(|took| took.strip_suffix("ms")).and_then(|took| took.parse::<u64>().ok());
    assert!(milliseconds.is_some_and(|took| took <= 300), "{said:?}");
    let report = outcome.reports.last().expect("a report");
    let why = report.why.as_ref().expect("it was looked at");
    assert!(why["stopped_ms"].as_u64() < Some(3000), "{why}");
    assert_eq!(why["definitely_lost"]["count"], 0, "{why}");
    let made = |stack: &&Stack| (stack.bytes, stack.count) == (3001 * THREADS, THREADS);
    let made = report.stacks.iter().find(made).expect("the threads' blocks");
    let blocks = made.allocations.iter().flatten();
    let held = blocks.filter(|block| block.why.as_deref() == Some("still_reachable")).count() as u64;
    assert_eq!(held, THREADS, "{why}");
}
