//! Commands that the tracer starts.

use std::{fs, process::Command};

use crate::{
    exact::EVERYTHING,
    guard::alone,
    ledger::{self, Ledger},
    process::code,
    programs::{Link, build, scratch_dir, text},
    report::Report,
    tracer::{MEMLEAK, Tracer, trace_command},
};

fn early_program() -> std::path::PathBuf {
    let library = build("early_library.cc", Link::Library, &[]);
    build("early.cc", Link::Dynamic, &[text(&library)])
}

/// Bytes and blocks in use at the exit of `early exit 0`, by valgrind's count.
fn valgrinds_count(program: &str) -> (u64, u64) {
    let output = Command::new("valgrind")
        .args(["--run-libc-freeres=no", "--run-cxx-freeres=no", program, "exit", "0"])
        .output()
        .expect("valgrind");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = text.lines().find_map(|line| line.split("in use at exit: ").nth(1));
    let numbers: Vec<u64> = line
        .unwrap_or_else(|| panic!("valgrind said: {text}"))
        .split_whitespace()
        .filter_map(|word| word.replace(',', "").parse().ok())
        .collect();
    (numbers[0], numbers[1])
}

fn sites_only(report: &Report) -> Ledger {
    report.sites()
}

#[test]
fn a_short_program_is_seen_whole() {
    let _alone = alone();
    let program = early_program();
    let outcome = trace_command(&EVERYTHING, &[text(&program), "exit", "0"]);
    assert_eq!(outcome.code, 0, "{:?}", outcome.ended);
    let ledger = ledger::parse(&outcome.ended.stdout);
    assert_eq!(ledger.len(), 4, "blocks of a library, of a constructor, of main, and of new: {ledger:?}");
    let report = outcome.last_report();
    assert_eq!(sites_only(report), ledger, "{}", report.describe());
    assert_eq!(report.sum("heap"), valgrinds_count(text(&program)), "{}", report.describe());
    assert!(
        report.stacks.iter().any(|stack| (stack.bytes, stack.count) == (72704, 1)),
        "libstdc++'s emergency pool, taken before main: {}",
        report.describe()
    );
    report.assert_nothing_lost();
    assert_eq!(report.target.kind, "command");
}

/// The target has ended: nothing of it is young, though every block is.
#[test]
fn older_does_not_apply_to_an_ended_target() {
    let _alone = alone();
    let program = early_program();
    let outcome = trace_command(&["-o", "60000", "-T", "1000"], &[text(&program), "exit", "0"]);
    assert_eq!(sites_only(outcome.last_report()), ledger::parse(&outcome.ended.stdout));
}

#[test]
fn command_line_is_split_as_a_shell_would() {
    let _alone = alone();
    let link = scratch_dir().join(format!("a name with spaces {}", std::process::id()));
    std::os::unix::fs::symlink(early_program(), &link).expect("linking");
    let command = format!("'{}' \"exit\" 5", text(&link));
    let tracer = Tracer::start(&["--json", "-T", "1000", "-c", &command]);
    let outcome = tracer.wait();
    fs::remove_file(&link).expect("removing");
    assert_eq!(outcome.code, 5, "{:?}", outcome.ended);
    let report = outcome.reports.iter().rfind(|report| report.is_final).expect("a last report");
    assert_eq!(report.site("site_early"), (2100, 20));
}

#[test]
fn exit_status_is_passed_on() {
    let _alone = alone();
    let program = early_program();
    for (how, number, expected) in
        [("exit", "0", 0), ("exit", "3", 3), ("signal", "9", 137), ("signal", "15", 143)]
    {
        let outcome = trace_command(&["-T", "1000"], &[text(&program), how, number]);
        assert_eq!(outcome.code, expected, "{how} {number}: {:?}", outcome.ended);
        assert_eq!(outcome.last_report().site("site_main"), (99, 1));
    }
}

/// Standard output is the command's own where reports go to a file, byte for byte; so is standard
/// error.
#[test]
fn a_command_keeps_our_streams() {
    let _alone = alone();
    let script = "read line; echo \"out $line\"; echo err >&2; exit 0";
    let file = scratch_dir().join(format!("streams-{}", std::process::id()));
    let mut tracer = Tracer::start(&["--json", "--output", text(&file), "--", "sh", "-c", script]);
    tracer.running().tell("hello");
    let outcome = tracer.wait();
    fs::remove_file(file).expect("removing");
    assert_eq!(outcome.code, 0, "{:?}", outcome.ended);
    assert_eq!(outcome.ended.stdout, ["out hello"]);
    assert_eq!(outcome.ended.stderr, ["err"]);
}

/// The failed child must not run our main, or our exit handlers, again (bcc 5552): one line, one
/// report at most.
#[test]
fn a_command_that_cannot_be_executed() {
    let _alone = alone();
    let not_executable = scratch_dir().join(format!("not-executable-{}", std::process::id()));
    fs::write(&not_executable, "text").expect("writing");
    for command in ["/nonexistent/program", "no-such-command-anywhere", text(&not_executable), "/tmp"] {
        let output = Command::new(MEMLEAK).args(["--json", "--", command]).output().expect("memleak");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(code(output.status), 1, "{command}: {message}");
        assert_eq!(message.lines().count(), 1, "{command}: {message}");
        assert!(message.contains(command), "{message}");
        assert!(output.stdout.is_empty(), "{output:?}");
    }
    fs::remove_file(not_executable).expect("removing");
}

/// One that outlives the last report is sent SIGTERM and waited for.
#[test]
fn a_command_that_outlives_the_last_report_is_terminated() {
    let _alone = alone();
    let file = scratch_dir().join(format!("outlives-{}", std::process::id()));
    let script = "trap 'echo terminated; exit 0' TERM; echo started; while :; do sleep 0.05; done";
    let mut tracer =
        Tracer::start(&["--json", "-v", "--output", text(&file), "1", "1", "--", "bash", "-c", script]);
    tracer.running().expect("started");
    let outcome = tracer.wait();
    assert_eq!(outcome.code, 0, "{:?}", outcome.ended);
    assert!(outcome.ended.stdout.iter().any(|line| line == "terminated"), "{:?}", outcome.ended);
    let reports: Vec<Report> =
        fs::read_to_string(&file).expect("the reports").lines().map(Report::parse).collect();
    fs::remove_file(&file).expect("removing");
    assert_eq!(reports.len(), 1);
    assert!(reports[0].is_final);
}
