//! How tracing ends: by a signal, by the target's end, by a closed pipe, by SIGKILL.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    os::unix::fs::FileExt as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    guard::{KERNEL_PATIENCE, alone, assert_nothing_left},
    ledger,
    options::sizes,
    process::{Running, code, rounds, wait_for_end},
    programs::{Link, build, text},
    report::Report,
    tracer::{MEMLEAK, NEVER, Tracer},
};

fn loops() -> Running {
    let mut target = Running::start(&mut Command::new(build("loops.c", Link::Dynamic, &[])));
    target.expect("READY");
    target
}

/// Where two images differ: offsets and the bytes of the second.
fn differences(before: &[u8], after: &[u8]) -> String {
    let pairs = before.iter().zip(after).enumerate().filter(|(_, (before, after))| before != after);
    pairs.map(|(offset, (_, byte))| format!("{offset:#x}: {byte:#x}")).collect::<Vec<_>>().join(", ")
}

/// No breakpoint stays in the code of libc in `pid`. One of another tracer at work on this machine
/// (a probe under `--follow-forks` is in every process) goes with that tracer; one that was left
/// behind stays for good.
fn assert_untouched(pid: u32, untouched: &[u8]) {
    let deadline = Instant::now() + KERNEL_PATIENCE;
    loop {
        let found = differences(untouched, &code_of_libc(pid));
        if found.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "breakpoints stay in the target's code: {found}");
        std::thread::sleep(Duration::from_millis(50)); // the kernel has no event for this
    }
}

/// How many turns its loops have made.
fn turns(target: &mut Running) -> u64 {
    target.tell("?");
    let line = target.expect_line("turns", |line| line.starts_with("{\"turns\":"));
    line.trim_start_matches("{\"turns\":").trim_end_matches('}').parse().expect("a number")
}

/// The target goes on: its loops advance, and their blocks keep what is written into them.
fn assert_goes_on(target: &mut Running) {
    let before = turns(target);
    while turns(target) == before {}
    assert!(!target.has_ended());
}

/// The executable part of libc in `pid`, as it is in memory: probes are bytes in it.
fn code_of_libc(pid: u32) -> Vec<u8> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("its maps");
    let line = maps.lines().find(|line| line.contains("r-xp") && line.contains("libc.so")).expect("libc");
    let (start, end) =
        line.split_whitespace().next().and_then(|range| range.split_once('-')).expect("a range");
    let address = |text| u64::from_str_radix(text, 16).expect("an address");
    let (start, end) = (address(start), address(end));
    let mut code = vec![0; (end - start) as usize];
    let memory = File::open(format!("/proc/{pid}/mem")).expect("its memory");
    memory.read_exact_at(&mut code, start).expect("reading its memory");
    code
}

#[test]
fn the_tracer_is_killed() {
    let _alone = alone();
    let mut target = loops();
    let untouched = code_of_libc(target.pid());
    let mut tracer = Tracer::attach_with(target.pid(), &["1"]);
    assert_ne!(differences(&untouched, &code_of_libc(target.pid())), "", "the probes are there");
    tracer.wait_report(|report| report.totals.acquired > 0);
    tracer.running().signal(libc::SIGKILL);
    assert_eq!(code(tracer.running().wait_status()), 137);
    assert_nothing_left();
    assert_untouched(target.pid(), &untouched);
    assert_goes_on(&mut target);
}

/// A command that was started by the tracer goes on without it.
#[test]
fn the_tracer_of_a_command_is_killed() {
    let _alone = alone();
    let program = build("loops.c", Link::Dynamic, &[]);
    let mut tracer = Tracer::start(&["--json", "-v", "0.5", "--", text(&program)]);
    let line = tracer.running().expect_line("report", |line| line.starts_with("{\"schema\""));
    let pid = Report::parse(&line).target.pids[0];
    let command = KillOnDrop(pid);
    tracer.running().signal(libc::SIGKILL);
    assert_eq!(code(tracer.running().wait_status()), 137);
    assert_nothing_left();
    // It still has the pipes that it took over.
    let before = turns(tracer.running());
    while turns(tracer.running()) == before {}
    drop(command);
}

/// A process that is no child of ours.
struct KillOnDrop(u32);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // SAFETY: kill(2) touches no memory of ours; the process lives until it is told to end.
        unsafe { libc::kill(self.0 as i32, libc::SIGKILL) };
    }
}

/// Kills the tracer so long after `begin` has told it something; the target goes on, without a
/// program of ours.
fn kill_after(target: &mut Running, milliseconds: u64, begin: impl Fn(&mut Tracer)) {
    let pid = target.pid().to_string();
    let mut tracer = Tracer::start(&["--json", "-v", "-p", &pid, NEVER]);
    begin(&mut tracer);
    // No event stands for "halfway": the moments are spread.
    wait_for_end(tracer.running().pid(), Duration::from_millis(milliseconds));
    tracer.running().signal(libc::SIGKILL);
    tracer.running().wait_status();
    assert_nothing_left();
    assert_goes_on(target);
}

/// A thread with SIGKILL pending cannot take its breakpoints out again (the kernel then says
/// "failed to unregister, leaking uprobe"), so nothing may be detached by a thread that can still
/// be killed: at a process's exit none can.
#[test]
fn the_tracer_is_killed_while_it_detaches() {
    let _alone = alone();
    let mut target = loops();
    let untouched = code_of_libc(target.pid());
    for round in rounds(20) {
        kill_after(&mut target, round * 5, |tracer| {
            tracer.wait_attached();
            tracer.running().signal(libc::SIGINT);
        });
        assert_untouched(target.pid(), &untouched);
    }
}

/// Before 6.11, where links are made by ourselves, the kernel may leave a breakpoint without a
/// program, for the same reason, which no tracer can prevent: it costs the target a trap, and
/// nothing else. From 6.11 on a child of ours makes them, which is not killed
/// (`soak::killed_again_and_again` counts the kernel's complaints).
#[test]
fn the_tracer_is_killed_while_it_attaches() {
    let _alone = alone();
    let mut target = loops();
    for round in rounds(15) {
        kill_after(&mut target, 20 + round * 20, |_| ());
    }
}

#[test]
fn signals_give_one_last_report() {
    let _alone = alone();
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut target = sizes();
        let mut tracer = Tracer::attach_with(target.pid(), &["-o", "0", NEVER]);
        target.tell("s");
        target.tell("q");
        let ledger = ledger::hear(&mut target);
        tracer.running().signal(signal);
        let outcome = tracer.wait();
        assert_eq!(outcome.reports.len(), 1, "{:?}", outcome.ended);
        outcome.into_final_report().assert_equals(&ledger);
        assert_nothing_left();
        assert!(!target.has_ended(), "a process is never signalled");
    }
}

#[test]
fn the_target_ends_by_itself_or_is_killed() {
    let _alone = alone();
    for killed in [false, true] {
        let mut target = sizes();
        let tracer = Tracer::attach_with(target.pid(), &["-o", "60000", NEVER]);
        target.tell("s");
        target.tell("m");
        target.tell("q");
        let ledger = ledger::hear(&mut target);
        if killed {
            target.signal(libc::SIGKILL);
        } else {
            target.tell("x");
        }
        let outcome = tracer.wait();
        assert_eq!(outcome.code, 0, "{:?}", outcome.ended);
        let report = outcome.into_final_report();
        report.assert_equals(&ledger); // young as they are; and every site has its name
        let frame = report.stacks[0].frames.iter().find(|frame| frame.bare_function() == "site_medium");
        assert!(frame.is_some_and(|frame| frame.line.is_some()), "{}", report.describe());
    }
}

/// One of several targets ends: the others go on being traced.
#[test]
fn one_of_two_targets_ends() {
    let _alone = alone();
    let (mut first, mut second) = (sizes(), sizes());
    let pids = format!("{},{}", first.pid(), second.pid());
    let mut tracer = Tracer::start(&["--json", "-v", "-o", "0", "-T", "100", "-p", &pids, "0.5"]);
    tracer.wait_attached();
    first.tell("s");
    first.tell("x");
    assert!(first.wait_status().success());
    second.tell("m");
    second.tell("q");
    ledger::hear(&mut second);
    let report = tracer.wait_report(|report| report.site("site_medium").1 == 50);
    assert!(!report.is_final);
    assert_eq!(tracer.stop_with_report().site("site_medium"), (50_000, 50));
}

/// A reader that has seen enough closes its pipe: no message, no failure.
#[test]
fn nobody_reads_the_reports() {
    let _alone = alone();
    for format in [&["--json"][..], &[], &["-t"]] {
        let mut target = loops();
        let pid = target.pid().to_string();
        let said = read_one_line(&[format, &["-o", "0", "-p", &pid, "0.2"]].concat());
        // What it costs to trace a program that does nothing but allocate is said when it begins.
        let other: Vec<&str> =
            said.lines().filter(|line| !line.contains("allocator calls a second: tracing costs")).collect();
        assert!(other.is_empty(), "{other:?}");
        assert_nothing_left();
        assert_goes_on(&mut target);
    }
}

/// Runs memleak, reads a line and closes the pipe, upon which it is to end with status 0:
/// `memleak ... | head -1`. Gives what it wrote to standard error.
pub(crate) fn read_one_line(arguments: &[&str]) -> String {
    let mut child = Command::new(MEMLEAK)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("memleak");
    let mut first_line = String::new();
    let mut reports = BufReader::new(child.stdout.take().expect("piped"));
    reports.read_line(&mut first_line).expect("reading");
    drop(reports);
    let ended = wait_for_end(child.id(), crate::process::patience());
    if !ended {
        child.kill().expect("killing");
    }
    let output = child.wait_with_output().expect("waiting");
    assert!(!first_line.is_empty(), "it never printed anything: {output:?}");
    assert!(ended, "it goes on although nobody reads: {output:?}");
    assert_eq!(code(output.status), 0, "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Tracing a process twice in a row, and by two tracers at once, tells the same.
#[test]
fn two_tracers_at_once() {
    let _alone = alone();
    let mut target = sizes();
    let one = Tracer::attach(target.pid());
    let two = Tracer::attach(target.pid());
    target.tell("s");
    target.tell("q");
    let ledger = ledger::hear(&mut target);
    one.stop_with_report().assert_equals(&ledger);
    target.tell("m");
    target.tell("q");
    let ledger = ledger::hear(&mut target);
    two.stop_with_report().assert_equals(&ledger);
}
