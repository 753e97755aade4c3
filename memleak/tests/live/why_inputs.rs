//! `--why` where there is little to look at, or nothing: targets that go, other namespaces.

use std::{process::Command, thread, time::Duration};

use crate::{
    guard::alone,
    process::{Running, rounds},
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
