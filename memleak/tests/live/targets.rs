//! Kinds of targets, and what happens to them: threads, fork, exec, dlopen, namespaces, seccomp,
//! Go.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    exact::EVERYTHING,
    guard::alone,
    ledger,
    process::{Running, code},
    programs::{Link, build, scratch_dir, text},
    report::Report,
    tracer::{MEMLEAK, NEVER, Tracer},
};

pub(crate) fn lifecycle(arguments: &[&str]) -> Running {
    let program = build("lifecycle.c", Link::Dynamic, &[]);
    let mut target = Running::start(Command::new(program).args(arguments));
    target.expect("READY");
    target
}

/// Compares what sites hold; the runtime's own blocks (thread records, library lists) are not the
/// ledger's.
pub(crate) fn assert_sites(report: &Report, ledger: &ledger::Ledger) {
    let stacks: Vec<_> = report.stacks.iter().filter(|stack| stack.site().is_some()).cloned().collect();
    let bytes = stacks.iter().map(|stack| stack.bytes).sum();
    let count = stacks.iter().map(|stack| stack.count).sum();
    let totals = crate::report::Totals { bytes, count, ..report.totals };
    Report { stacks, totals, ..report.clone() }.assert_equals(ledger);
    report.assert_sums();
    report.assert_nothing_lost();
}

#[test]
fn threads_come_and_go() {
    let _alone = alone();
    let mut target = lifecycle(&["threads"]);
    let tracer = Tracer::attach(target.pid());
    target.tell("go");
    let ledger = ledger::hear(&mut target);
    assert_sites(&tracer.stop_with_report(), &ledger);
    target.tell("end");
    assert!(target.wait_status().success());
}

/// Forks under trace; returns the last report, the ledger of both processes, and the child's id.
/// Its linker has mapped nothing yet: so it is when a script starts a program and a tracer at once,
/// and the machine is busy.
#[test]
fn a_process_that_loads_its_libraries_is_waited_for() {
    let _alone = alone();
    let mut command = Command::new(build("lifecycle.c", Link::Dynamic, &[]));
    // SAFETY: ptrace(2) may be called between fork and exec.
    unsafe {
        command.arg("threads").pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let mut target = Running::start(&mut command);
    let (pid, mut status) = (target.pid() as libc::pid_t, 0);
    // SAFETY: waitpid(2) writes the number; the child stops by itself when it has become the
    // program.
    unsafe {
        assert_eq!(libc::waitpid(pid, &raw mut status, libc::WUNTRACED), pid);
        assert_eq!(libc::ptrace(libc::PTRACE_DETACH, pid, 0, libc::SIGSTOP), 0);
    }
    let options = ["--json", "-v", "-p", &pid.to_string(), "-o", "0", "-T", "100000", NEVER];
    let mut tracer = Tracer::start(&options);
    tracer.wait_note(|line| line.contains("has just been started: waiting for its C library"));
    target.signal(libc::SIGCONT);
    tracer.wait_attached();
    target.expect("READY");
    target.tell("go");
    let ledger = ledger::hear(&mut target);
    assert_sites(&tracer.stop_with_report(), &ledger);
    target.tell("end");
    assert!(target.wait_status().success());
}

fn fork_under_trace(options: &[&str]) -> (Report, ledger::Ledger, u32) {
    let mut target = lifecycle(&["fork"]);
    let mut arguments = options.to_vec();
    arguments.extend(EVERYTHING);
    let tracer = Tracer::attach_with(target.pid(), &arguments);
    target.tell("go");
    let lines = target.expect("END");
    let child = lines.iter().find_map(|line| line.strip_prefix("{\"child\":")?.strip_suffix('}'));
    let child = child.and_then(|number| number.parse().ok()).expect("the child's id");
    let report = tracer.stop_with_report();
    target.tell("end");
    assert!(target.wait_status().success());
    (report, ledger::parse(&lines), child)
}

#[test]
fn a_forked_child_is_not_the_parent() {
    let _alone = alone();
    let (report, mut ledger, child) = fork_under_trace(&[]);
    ledger.retain(|(site, _), _| site != "site_child");
    assert_sites(&report, &ledger);
    assert!(!report.target.pids.contains(&child));
}

#[test]
fn a_forked_child_is_followed_when_asked() {
    let _alone = alone();
    let (report, ledger, child) = fork_under_trace(&["--follow-forks"]);
    assert_sites(&report, &ledger);
    assert!(report.target.pids.contains(&child), "{:?}", report.target);
    for stack in report.stacks.iter().filter(|stack| stack.site().is_some()) {
        assert_eq!(stack.pid == child, stack.site() == Some("site_child"), "{}", report.describe());
    }
}

#[test]
fn spawning_does_not_void_the_parents_blocks() {
    let _alone = alone();
    for options in [&[][..], &["--follow-forks"]] {
        let mut target = lifecycle(&["spawn"]);
        let mut arguments = options.to_vec();
        arguments.extend(EVERYTHING);
        let tracer = Tracer::attach_with(target.pid(), &arguments);
        target.tell("go");
        let ledger = ledger::hear(&mut target);
        assert_sites(&tracer.stop_with_report(), &ledger);
        target.tell("end");
        assert!(target.wait_status().success());
    }
}

/// Replaces the program by `next`; what the new one acquires once the tracer knows it is counted,
/// the old is gone.
fn exec_under_trace(mode: &str, next: &Path, same_objects: bool) {
    let mut target = lifecycle(&[mode, text(next)]);
    let mut tracer = Tracer::attach_with(target.pid(), &["-o", "0", "-T", "100000", "1"]);
    target.tell("go");
    target.expect("BEFORE");
    let before = tracer.fresh_report();
    assert_eq!(before.site("site_parent"), (6400, 100), "{}", before.describe());
    target.tell("go");
    target.expect("EXECUTED");
    if !same_objects {
        // First there is the dynamic linker's place alone, of a program that has one.
        tracer.wait_note(|line| line.contains("attached") && !line.contains("attached 1 probes"));
    }
    target.tell("go");
    let ledger = ledger::hear(&mut target);
    let report = tracer.stop_with_report();
    assert_sites(&report, &ledger);
    assert_eq!(report.site("site_child"), (30 * 48, 30));
    target.tell("end");
    assert!(target.wait_status().success());
}

#[test]
fn exec_of_the_same_program() {
    let _alone = alone();
    exec_under_trace("exec", &build("lifecycle.c", Link::Dynamic, &[]), true);
}

#[test]
fn exec_by_another_thread() {
    let _alone = alone();
    exec_under_trace("exec-thread", &build("lifecycle.c", Link::Dynamic, &[]), false);
}

#[test]
fn exec_of_a_static_program() {
    let _alone = alone();
    exec_under_trace("exec", &build("lifecycle.c", Link::Static, &["-DNO_DLOPEN"]), false);
}

#[test]
fn exec_of_a_musl_program() {
    let _alone = alone();
    exec_under_trace("exec", &build("lifecycle.c", Link::Musl, &["-DNO_DLOPEN"]), false);
}

#[test]
fn a_second_allocator_is_opened_later() {
    let _alone = alone();
    let library = build("plain_allocator.c", Link::Library, &["-O2"]);
    let mut target = lifecycle(&["dlopen", text(&library)]);
    let mut tracer = Tracer::attach(target.pid());
    target.tell("go");
    target.expect("OPENED");
    tracer.wait_attached();
    target.tell("go");
    let ledger = ledger::hear(&mut target);
    let report = tracer.stop_with_report();
    assert_sites(&report, &ledger);
    assert_eq!(report.site("site_library"), (40 * 500, 40));
    target.tell("end");
    assert!(target.wait_status().success());
}

/// The dynamic linker waits for probes, but not for long: here for a tracer that is stopped.
#[test]
fn probes_that_come_late_are_told_of() {
    let _alone = alone();
    let library = build("plain_allocator.c", Link::Library, &["-O2"]);
    let mut target = lifecycle(&["dlopen", text(&library)]);
    let mut tracer = Tracer::attach(target.pid());
    let stat = format!("/proc/{}/stat", tracer.running().pid());
    tracer.running().signal(libc::SIGSTOP);
    while !fs::read_to_string(&stat).expect("a tracer").contains(") T ") {
        std::thread::yield_now();
    }
    target.tell("go");
    target.expect("OPENED");
    tracer.running().signal(libc::SIGCONT);
    let told = tracer.wait_note(|line| line.contains("were not seen"));
    assert!(told.contains(&format!("process {}: ", target.pid())), "{told}");
    drop(tracer.stop());
    target.tell("go");
    let _ = ledger::hear(&mut target); // nobody has seen it
    target.tell("end");
    assert!(target.wait_status().success());
}

/// The only child of `pid`, waited for by the line that it has printed.
pub(crate) fn only_child(pid: u32) -> u32 {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("its children");
    let children: Vec<u32> = children.split_whitespace().filter_map(|id| id.parse().ok()).collect();
    assert_eq!(children.len(), 1, "{children:?}");
    children[0]
}

/// The program lies on a tmpfs that only its own mount namespace sees, under a path that is another
/// file's here.
#[test]
fn a_target_in_other_namespaces() {
    let _alone = alone();
    let program = build("sizes.c", Link::Dynamic, &[]);
    let script = "mount -t tmpfs none /mnt && mkdir -p /mnt/only && cp \"$0\" /mnt/only/inside && exec /mnt/only/inside";
    let mut shell = Running::start(
        Command::new("unshare")
            .args(["--pid", "--mount", "--fork", "--mount-proc", "sh", "-c", script])
            .arg(&program),
    );
    shell.expect("READY");
    let pid = only_child(shell.pid());
    assert!(!Path::new("/mnt/only/inside").exists(), "it is seen inside only");
    let tracer = Tracer::attach(pid);
    shell.tell("small");
    shell.tell("medium");
    shell.tell("q");
    let ledger = ledger::hear(&mut shell);
    let report = tracer.stop_with_report();
    report.assert_equals(&ledger);
    report.assert_nothing_lost();
    assert!(report.target.pids.contains(&pid), "{:?}", report.target);
    let frame = report.stacks[0].frames.iter().find(|frame| frame.bare_function().starts_with("site_"));
    let frame = frame.expect("a site's frame");
    assert_eq!(frame.module.as_deref(), Some("/mnt/only/inside"));
    assert!(frame.file.as_deref().is_some_and(|file| file.ends_with("sizes.c")), "{frame:?}");
    assert!(frame.line.is_some_and(|line| line > 1));
    shell.tell("x");
    assert!(shell.wait_status().success());
}

/// The tracer itself in a PID namespace, as in a container: ids are those that it sees.
#[test]
fn a_tracer_in_another_pid_namespace() {
    let _alone = alone();
    let program = build("one_function.c", Link::Dynamic, &[]);
    let reports = scratch_dir().join(format!("inside-{}", std::process::id()));
    let inside =
        ["--pid", "--mount", "--fork", "--mount-proc", MEMLEAK, "--json", "--output", text(&reports)];
    let mut command = Command::new("unshare");
    command.args(inside).args(EVERYTHING).args(["--", text(&program), "realloc"]);
    let ended = Running::start(&mut command).end();
    assert_eq!(code(ended.status), 0, "{ended:?}");
    let lines = fs::read_to_string(&reports).expect("the reports");
    fs::remove_file(&reports).expect("removing");
    let report = Report::parse(lines.lines().last().expect("a report"));
    report.assert_equals(&ledger::parse(&ended.stdout));
    report.assert_nothing_lost();
    assert!(report.target.pids.iter().all(|pid| *pid < 100), "ids of the namespace: {:?}", report.target);
}

#[test]
fn a_binary_that_was_deleted() {
    let _alone = alone();
    let program = scratch_dir().join(format!("deleted-{}", std::process::id()));
    fs::copy(build("sizes.c", Link::Dynamic, &[]), &program).expect("copying");
    let mut target = Running::start(&mut Command::new(&program));
    target.expect("READY");
    fs::remove_file(&program).expect("deleting");
    let tracer = Tracer::attach(target.pid());
    target.tell("small");
    target.tell("q");
    let ledger = ledger::hear(&mut target);
    tracer.stop_with_report().assert_equals(&ledger);
}

#[test]
fn several_targets_at_once() {
    let _alone = alone();
    let program = build("sizes.c", Link::Dynamic, &[]);
    let other = build("sizes.c", Link::Static, &[]);
    let mut targets: Vec<Running> = [&program, &program, &other]
        .into_iter()
        .map(|path| Running::start(&mut Command::new(path)))
        .collect();
    for target in &mut targets {
        target.expect("READY");
    }
    let pids: Vec<String> = targets.iter().map(|target| target.pid().to_string()).collect();
    let both = format!("{},{}", pids[0], pids[1]);
    let mut tracer =
        Tracer::start(&[&["--json", "-v", "-p", &both, "-p", &pids[2]][..], &EVERYTHING[..]].concat());
    tracer.wait_attached();
    for target in &mut targets {
        target.tell("small");
        target.tell("q");
        ledger::hear(target);
    }
    let report = tracer.stop_with_report();
    assert_eq!(report.site("site_small"), (3 * 1600, 300), "{}", report.describe());
    let mut expected: Vec<u32> = targets.iter().map(Running::pid).collect();
    expected.sort_unstable();
    let mut told = report.target.pids.clone();
    told.sort_unstable();
    assert_eq!(told, expected);
    assert_eq!((report.target.kind.as_str(), report.schema), ("process", 1));
    assert!(report.target.comm.starts_with("sizes-"), "{:?}", report.target);
}

#[test]
fn a_process_that_is_not_asked_for_is_not_traced() {
    let _alone = alone();
    let program = build("sizes.c", Link::Dynamic, &[]);
    let mut traced = Running::start(&mut Command::new(&program));
    let mut other = Running::start(&mut Command::new(&program));
    for target in [&mut traced, &mut other] {
        target.expect("READY");
    }
    let tracer = Tracer::attach(traced.pid());
    for target in [&mut other, &mut traced] {
        target.tell("small");
        target.tell("q");
        ledger::hear(target);
    }
    assert_eq!(tracer.stop_with_report().site("site_small"), (1600, 100));
}

#[test]
fn a_seccomp_filter_is_warned_of_and_traced() {
    let _alone = alone();
    let program = build("sizes.c", Link::Dynamic, &[]);
    let mut target = Running::start(Command::new(program).arg("seccomp"));
    target.expect("READY");
    let tracer = Tracer::attach(target.pid());
    target.tell("small");
    target.tell("q");
    let ledger = ledger::hear(&mut target);
    let outcome = tracer.stop();
    let warnings = outcome.ended.stderr.iter().filter(|line| line.to_lowercase().contains("seccomp")).count();
    assert_eq!(warnings, 1, "{:?}", outcome.ended.stderr);
    outcome.into_final_report().assert_equals(&ledger);
}

/// A program that a Go linker might have made, with an allocator of C's in it: return probes crash
/// Go programs.
fn go_like_program() -> PathBuf {
    let program = build("sizes.c", Link::Static, &[]);
    let go_like = scratch_dir().join(format!("go-like-{}", std::process::id()));
    let output = Command::new("objcopy")
        .args(["--add-section", ".go.buildinfo=/etc/hostname"])
        .args(["--set-section-flags", ".go.buildinfo=alloc,readonly,data"])
        .args([&program, &go_like])
        .output()
        .expect("objcopy");
    assert!(output.status.success(), "{output:?}");
    go_like
}

#[test]
fn a_go_program_gets_no_return_probes() {
    let _alone = alone();
    let program = go_like_program();
    let mut target = Running::start(&mut Command::new(&program));
    target.expect("READY");
    let pid = target.pid().to_string();
    let output = Command::new(MEMLEAK).args(["-p", &pid, "1", "1"]).output().expect("memleak");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(code(output.status), 1, "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.contains("Go"), "{message}");
    target.tell("x");
    assert!(target.wait_status().success(), "the target goes on");
    fs::remove_file(program).expect("removing");
}
