//! The life of processes: children, shared memory, PIDs that come again, programs that must not be
//! touched.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    exact::EVERYTHING,
    guard::alone,
    machine::IS_ARM,
    process::{Running, wait_for_end},
    programs::{Link, build, scratch_dir, text},
    report::Report,
    tracer::{NEVER, Tracer, trace_command},
};

fn life(arguments: &[&str]) -> Running {
    Running::start(Command::new(build("life.c", Link::Dynamic, &[])).args(arguments))
}

/// Traces a mode of the program and compares the totals with what it says of itself.
fn holds_what_it_says(mode: &str) {
    let mut target = life(&[mode]);
    target.expect("READY");
    let tracer = Tracer::attach(target.pid());
    target.tell("go");
    let said = target.expect_line("account", |line| line.starts_with("EXPECT "));
    let numbers: Vec<u64> = said.split(' ').filter_map(|number| number.parse().ok()).collect();
    let report = tracer.stop_with_report();
    assert_eq!([report.totals.bytes, report.totals.count], numbers[..], "{mode}: {}", report.describe());
    report.assert_sums();
    target.tell("end");
    assert!(target.wait_status().success(), "{mode}");
}

#[test]
fn a_process_that_shares_the_memory_frees_its_blocks() {
    let _alone = alone();
    holds_what_it_says("clone-vm");
}

#[test]
fn a_vfork_child_acquires_and_frees_for_its_parent() {
    let _alone = alone();
    holds_what_it_says("vfork");
}

#[test]
fn spawned_programs_are_not_the_parents() {
    let _alone = alone();
    holds_what_it_says("spawns");
}

/// What the children of `forks` hold, and what is counted as lost.
fn children_of(report: &Report) -> (u64, u64) {
    let stacks =
        report.stacks.iter().filter(|stack| stack.frames.iter().any(|frame| frame.bare_function() == "hold"));
    (stacks.map(|stack| stack.count).sum(), report.lost["processes"])
}

#[test]
fn every_short_lived_child_is_traced_or_counted() {
    const CHILDREN: u64 = 150;
    let _alone = alone();
    let program = build("life.c", Link::Dynamic, &[]);
    let options = [&["--follow-forks"], &EVERYTHING[..]].concat();
    let outcome = trace_command(&options, &[text(&program), "forks", &CHILDREN.to_string()]);
    assert_eq!(outcome.code, 0, "{:?}", outcome.ended);
    let report = outcome.last_report();
    let (traced, lost) = children_of(report);
    assert!(traced <= CHILDREN && traced + lost >= CHILDREN, "{traced} + {lost}: {}", report.describe());
    // A busy machine answers some too late; without the hold hardly any would be seen.
    assert!(lost < CHILDREN / 2, "{lost} lost");
}

/// More than are kept one by one: the older ones are added up, and what the tracer has of each is
/// given back.
#[test]
fn children_that_ended_long_ago_are_added_up() {
    const CHILDREN: u64 = 1500;
    let _alone = alone();
    let program = build("life.c", Link::Dynamic, &[]);
    let options = [&["--follow-forks"], &EVERYTHING[..4], &["0.2"]].concat();
    let outcome = trace_command(&options, &[text(&program), "forks", &CHILDREN.to_string()]);
    assert_eq!(outcome.code, 0, "{:?}", outcome.ended);
    for report in &outcome.reports {
        report.assert_sums();
    }
    let report = outcome.last_report();
    let held: Vec<_> = report.stacks.iter().filter(|stack| stack.bytes >= 1000).collect();
    let [stack] = held[..] else { panic!("one site: {}", report.describe()) };
    let lost = report.lost["processes"];
    assert!(
        stack.count <= CHILDREN && stack.count + lost >= CHILDREN,
        "{}: {}",
        stack.count,
        report.describe()
    );
    assert_eq!(stack.bytes, 1000 * stack.count);
    let others = stack.other_processes.as_ref().expect("others");
    let named = stack.process_counts.as_ref().expect("those that ended last").len() as u64;
    assert_eq!((others.processes + named, others.bytes), (stack.count, 1000 * others.processes));
    assert_eq!(others.count, others.processes);
    assert!(named < 700, "{named}");
}

/// A program that looks whether anything was done to the code in its memory, under the name of one
/// that translates code.
fn translator() -> PathBuf {
    let folder = scratch_dir().join("valgrind");
    fs::create_dir_all(&folder).expect("making a folder");
    let program = folder.join(if IS_ARM { "none-arm64-linux" } else { "none-amd64-linux" });
    fs::copy(build("life.c", Link::Dynamic, &[]), &program).expect("copying");
    program
}

#[test]
fn a_child_that_translates_code_is_left_out_and_the_run_goes_on() {
    let _alone = alone();
    let (program, translator) = (build("life.c", Link::Dynamic, &[]), translator());
    let script = format!("{} forks 1; {} untouched", text(&program), text(&translator));
    for script in [script.clone(), format!("({script}); exit $?")] {
        let options = [&["--follow-forks"], &EVERYTHING[..]].concat();
        let outcome = trace_command(&options, &["sh", "-c", &script]);
        assert_eq!(outcome.code, 0, "it was touched: {:?}", outcome.ended);
        let warnings =
            outcome.ended.stderr.iter().filter(|line| line.contains("keeps running untraced")).count();
        assert_eq!(warnings, 1, "{:?}", outcome.ended);
        assert!(outcome.last_report().lost["processes"] > 0);
    }
}

#[test]
fn strangers_are_not_touched() {
    let _alone = alone();
    let mut target = life(&["for-ever"]);
    target.expect("READY");
    let tracer = Tracer::attach_with(target.pid(), &["--follow-forks", "-o", "0", NEVER]);
    target.tell("go");
    target.expect_line("child", |line| line.starts_with("child "));
    for _ in 0..20 {
        assert!(life(&["untouched"]).wait_status().success(), "breakpoints in a stranger");
    }
    tracer.stop_with_report();
}

/// Has two processes traced, ends one and starts a stranger with its number (`set_tid` of
/// clone3(2)). Says whether it could be had: a thread of a compiler, say, may have it by then.
fn a_stranger_with_the_pid_is_not_traced() -> bool {
    let (mut first, mut other) = (life(&["clone-vm"]), life(&["clone-vm"]));
    first.expect("READY");
    other.expect("READY");
    let pid = first.pid();
    let pids = format!("{pid},{}", other.pid());
    let mut tracer =
        Tracer::start(&[&["--json", "-v", "-r", "fd", "-p", &pids][..], &EVERYTHING[..]].concat());
    tracer.wait_attached();
    drop(first); // kills it and waits for it
    assert!(wait_for_end(pid, Duration::from_secs(10)));
    let mut stranger = life(&["as", &pid.to_string(), "files", "5"]);
    let answer = stranger.expect_line("answer", |_| true);
    if answer == "TAKEN" {
        return false;
    }
    assert_eq!(answer, "OPEN");
    let report = tracer.stop_with_report();
    assert_eq!(report.totals.count, 0, "{}", report.describe());
    stranger.tell("end");
    assert!(stranger.wait_status().success());
    true
}

#[test]
fn a_pid_that_comes_again_is_another_process() {
    const TRIES: usize = 10;
    let _alone = alone();
    assert!((0..TRIES).any(|_| a_stranger_with_the_pid_is_not_traced()), "the PID again");
}

/// The state of a process (proc(5)): `t` is stopped by a tracer.
fn state(pid: u32) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("State:\t").map(str::to_owned))
}

fn children(pid: u32) -> Vec<u32> {
    let path = PathBuf::from(format!("/proc/{pid}/task/{pid}/children"));
    let text = fs::read_to_string(Path::new(&path)).unwrap_or_default();
    text.split_whitespace().filter_map(|id| id.parse().ok()).collect()
}

#[test]
fn a_tracer_that_is_killed_leaves_no_child_stopped() {
    const KILLS: u64 = 12;
    let _alone = alone();
    let mut target = life(&["for-ever"]);
    target.expect("READY");
    target.tell("go");
    for kill in 0..KILLS {
        let mut tracer = Tracer::attach_with(target.pid(), &["--follow-forks", "-o", "0", NEVER]);
        // At another moment of a child's birth each time: after so many of them, and a little
        // later.
        for _ in 0..=kill {
            target.expect_line("child", |line| line.starts_with("child "));
        }
        tracer.running().signal(libc::SIGKILL);
        assert!(wait_for_end(tracer.running().pid(), Duration::from_secs(30)));
        // It makes children, and they come to their ends.
        for _ in 0..5 {
            target.expect_line("child", |line| line.starts_with("child "));
        }
        let stopped: Vec<_> = children(target.pid()).into_iter().map(|pid| (pid, state(pid))).collect();
        assert!(
            stopped.iter().all(|(_, state)| !state.as_deref().unwrap_or("").starts_with('t')),
            "{stopped:?}"
        );
    }
}
