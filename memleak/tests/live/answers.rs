//! What reports say beside what is held: what a program knows of its leaks, which thread has
//! acquired something, what is released at once, and who was killed for want of memory.

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{
    guard::alone,
    limits::limited_group,
    machine::UNPROTECTED,
    process::Running,
    programs::{Link, build, scratch_dir, text},
    tracer::MEMLEAK,
};

/// The last report in JSON of a command.
fn last(options: &[&str], command: &[&str]) -> Value {
    let mut memleak = Command::new(MEMLEAK);
    memleak.args(options).args(["--json", "--"]).args(command).stderr(Stdio::inherit());
    let output = memleak.output().expect("memleak");
    let written = String::from_utf8(output.stdout).expect("UTF-8");
    let line = written.lines().rfind(|line| line.starts_with("{\"schema\""));
    serde_json::from_str(line.expect("a report")).expect("JSON")
}

/// Compiled with optimization and without, and only where suppressions are asked for.
#[test]
fn known_leaks_that_a_program_carries_are_suppressed() {
    let _alone = alone();
    let empty = scratch_dir().join("no-suppressions");
    fs::write(&empty, "").expect("written");
    for flags in ["-O0", "-O2", UNPROTECTED] {
        let program = build("carries.c", Link::Dynamic, &[flags]);
        let command = [text(&program), "leaks"];
        let all = last(&["-o", "0"], &command);
        assert_eq!((&all["totals"]["bytes"], &all["suppressed"]), (&1035.into(), &Value::Null), "{flags}");
        let rest = last(&["-o", "0", "--suppressions", text(&empty)], &command);
        assert_eq!(rest["totals"]["bytes"], 35, "{flags}: {rest}");
        let suppressed = serde_json::json!({"stacks": 1, "bytes": 1000, "count": 10});
        assert_eq!(rest["suppressed"], suppressed, "{flags}");
    }
}

/// As valgrind's `--gen-suppressions=all` writes them for this program.
#[test]
fn suppressions_that_valgrind_has_made_are_taken() {
    let _alone = alone();
    let file = scratch_dir().join("valgrinds-suppressions");
    let rule = "{\n   <insert_a_suppression_name_here>\n   Memcheck:Leak\n   match-leak-kinds: definite\n   \
                fun:malloc\n   fun:other_leak\n   fun:main\n}\n";
    fs::write(&file, rule).expect("written");
    let program = build("carries.c", Link::Dynamic, &["-O0"]);
    let rest = last(&["-o", "0", "--suppressions", text(&file)], &[text(&program), "leaks"]);
    assert_eq!(rest["totals"]["bytes"], 0, "{rest}");
    assert_eq!(rest["suppressed"], serde_json::json!({"stacks": 2, "bytes": 1035, "count": 15}));
}

#[test]
fn a_site_is_split_by_the_threads_that_have_acquired_it() {
    let _alone = alone();
    let program = build("carries.c", Link::Dynamic, &["-pthread"]);
    let mut memleak = Command::new(MEMLEAK);
    memleak.args(["-o", "0", "--format", "human", "--by", "thread", "2", "1", "--"]);
    memleak.args([text(&program), "threads"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = memleak.spawn().expect("memleak");
    let input = child.stdin.take();
    let output = child.wait_with_output().expect("memleak");
    drop(input);
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(said.contains(" 3200 bytes in 50 allocations"), "{said}");
    assert!(said.contains(" (many): 2.5 KiB in 40 blocks\n"), "{said}");
    assert!(said.contains(" (few): 640 B in 10 blocks\n"), "{said}");
}

/// Nothing is held there when a report is made.
#[test]
fn what_is_released_at_once_is_listed() {
    let _alone = alone();
    let program = build("kinds.c", Link::Dynamic, &[]);
    let report = last(&["--temporary", "1", "3"], &[text(&program)]);
    let temporary = report["temporary"].as_array().expect("a list");
    let of = |stack: &Value| stack["frames"][0]["function"].as_str().unwrap_or_default().to_owned();
    let found = temporary.iter().find(|stack| of(stack) == "is_temporary");
    let found = found.unwrap_or_else(|| panic!("{temporary:#?}"));
    assert!(found["at_once"].as_u64() >= Some(1000) && found["released"].as_u64() >= Some(1000), "{found}");
    assert!(!temporary.iter().any(|stack| of(stack) == "goes_round"), "{temporary:#?}");
}

/// What the kernel kills is told, and what somebody else kills is not called so.
#[test]
fn a_target_that_was_killed_for_want_of_memory_is_said_to_be() {
    let _alone = alone();
    let program = build("carries.c", Link::Dynamic, &["-pthread"]);
    for is_limited in [true, false] {
        let mut command = Command::new("bash");
        let group = match is_limited {
            true => match limited_group(48 << 20) {
                Some(group) => Some(group),
                None => {
                    println!("this machine lets us make no control group with a limit of memory");
                    continue;
                }
            },
            false => None,
        };
        let enter = group.as_ref().map(|group| format!("echo $$ > {}/cgroup.procs; ", group.display()));
        let line = format!("{}exec {} eats", enter.unwrap_or_default(), text(&program));
        let mut target = Running::start(command.args(["-c", &line]));
        target.expect("READY");
        let pid = target.pid();
        let mut memleak = Command::new(MEMLEAK);
        memleak.args(["-p", &pid.to_string(), "-o", "0", "--json", "0.2"]).stdout(Stdio::piped());
        let memleak = memleak.spawn().expect("memleak");
        thread::sleep(Duration::from_millis(1500));
        target.tell("go");
        if !is_limited {
            thread::sleep(Duration::from_millis(500));
            // SAFETY: kill(2) takes two integers; the process is ours, and was not waited for.
            assert_eq!(unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) }, 0);
        }
        let output = memleak.wait_with_output().expect("memleak");
        drop(target);
        let written = String::from_utf8(output.stdout).expect("UTF-8");
        let report: Value = serde_json::from_str(written.lines().last().expect("a report")).expect("JSON");
        assert_eq!(report["final"], true);
        if let Some(group) = group {
            let _ = fs::remove_dir(group);
        }
        match is_limited {
            true => {
                assert_eq!(report["oom_killed"][0]["pid"], pid, "{report}");
                assert!(report["totals"]["bytes"].as_u64() > Some(20 << 20), "{report}");
            }
            false => assert_eq!(report["oom_killed"], Value::Null),
        }
    }
}
