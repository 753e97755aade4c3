//! Resources other than memory: each by all its functions, with what a program says of itself as
//! the truth.

use std::{collections::BTreeSet, fs, process::Command};

use crate::{
    guard::alone,
    ledger,
    process::Running,
    programs::{Link, build, scratch_dir, text},
    report::{Report, Stack},
    tracer::Tracer,
};

/// Real libraries, by the names under which programs load them: no package for building against
/// them is wanted.
const LIBRARIES: &[&str] = &["-l:libsqlite3.so.0", "-l:libssl.so.3", "-l:libcrypto.so.3"];

/// After acquiring, after failing to acquire and after releasing (some of it twice) the report is
/// the program's ledger.
fn each_phase(resource: &str) {
    each_phase_but(resource, &[], None);
}

/// The same with more options. Of the site `unseen` the stack is not known.
fn each_phase_but(resource: &str, options: &[&str], unseen: Option<&str>) {
    let _alone = alone();
    let program = build("resources.c", Link::Dynamic, LIBRARIES);
    let mut target = Running::start(Command::new(program).arg(resource));
    target.expect("READY");
    let all = [&["-r", resource, "-o", "0", "-T", "100000", "0.2"], options].concat();
    let mut tracer = Tracer::attach_with(target.pid(), &all);
    for phase in ["acquired", "failed", "released"] {
        target.tell("go");
        let mut ledger = ledger::hear(&mut target);
        println!("{resource} {phase}: {ledger:?}");
        assert!(!ledger.is_empty());
        let report = tracer.fresh_report();
        let held: u64 = ledger.values().filter_map(|amount| amount.count).sum();
        assert_eq!(report.totals.count, held, "{}", report.describe());
        ledger.retain(|(site, _), _| Some(site.as_str()) != unseen);
        report.assert_equals(&ledger);
        if unseen.is_none() {
            report.assert_only_sites(resource);
        }
        report.assert_nothing_lost();
        // A mutex is not held while its holder waits for a condition, and not released either.
        let waited_for = u64::from(resource == "mutex" && phase != "released");
        let held = report.totals.acquired - report.totals.released;
        assert_eq!(held, report.totals.count + waited_for, "{}", report.describe());
    }
    target.tell("end");
    assert!(target.wait_status().success(), "{}", target.outputs());
    assert_eq!(tracer.wait().code, 0);
}

#[test]
fn descriptors_in_each_phase() {
    each_phase("fd");
}

/// Where the kernel's tracepoints are not to be had. The stack of a raw system call is not known
/// then.
#[test]
fn descriptors_at_the_c_library_in_each_phase() {
    each_phase_but("fd", &["--library-calls"], Some("site_raw"));
}

#[test]
fn streams_in_each_phase() {
    each_phase("file");
}

#[test]
fn directories_in_each_phase() {
    each_phase("dir");
}

#[test]
fn databases_in_each_phase() {
    each_phase("sqlite");
}

#[test]
fn statements_in_each_phase() {
    each_phase("sqlite-stmt");
}

#[test]
fn threads_in_each_phase() {
    each_phase("thread");
}

#[test]
fn mutexes_in_each_phase() {
    each_phase("mutex");
}

#[test]
fn loaded_objects_in_each_phase() {
    each_phase("dl");
}

#[test]
fn openssl_objects_in_each_phase() {
    each_phase("ssl");
}

#[test]
fn blocks_of_python_in_each_phase() {
    each_phase("python");
}

/// Numbers of the descriptors in a report that lists them.
fn listed(report: &Report) -> BTreeSet<u32> {
    let lines = report.stacks.iter().flat_map(|stack| stack.allocations.iter().flatten());
    let number = |address: &str| u32::from_str_radix(address.strip_prefix("0x")?, 16).ok();
    lines.map(|line| number(&line.address).expect("a descriptor")).collect()
}

/// What a process has open, by its own account.
pub(crate) fn open_descriptors(pid: u32) -> BTreeSet<u32> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("the target's descriptors");
    entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
}

/// fds.c, before it has made anything.
fn holder_of_descriptors(arguments: &[&str]) -> Running {
    let program = build("fds.c", Link::Dynamic, &["-Wno-unused-result"]);
    let mut target = Running::start(Command::new(program).args(arguments));
    target.expect("READY");
    target
}

#[test]
fn eight_threads_with_descriptors_at_random() {
    let _alone = alone();
    let mut target = holder_of_descriptors(&["random", "8", "50000", "20260105"]);
    let before = open_descriptors(target.pid());
    let mut tracer = Tracer::attach_with(target.pid(), &["-r", "fd", "-a", "-o", "0", "-T", "100000", "0.3"]);
    target.tell("go");
    target.expect("END");
    let open = open_descriptors(target.pid());
    let report = tracer.fresh_report();
    let traced: BTreeSet<u32> = open.difference(&before).copied().collect();
    assert!(traced.len() > 10, "{traced:?}");
    assert_eq!(listed(&report), traced);
    assert_eq!(report.totals.count, traced.len() as u64);
    for loss in ["allocations", "stacks", "events", "missed_returns", "skipped_runs"] {
        assert_eq!(report.lost[loss], 0, "lost.{loss}");
    }
    let unknown = report.stacks.iter().filter(|stack| stack.frames.is_empty()).map(|stack| stack.count);
    assert_eq!(unknown.sum::<u64>(), 0, "each has the stack that made it: {}", report.describe());
    target.tell("end");
    assert!(target.wait_status().success());
    assert_eq!(tracer.wait().code, 0);
}

#[test]
fn descriptors_that_no_call_returns_are_found() {
    let _alone = alone();
    let mut target = holder_of_descriptors(&["unseen"]);
    let before = open_descriptors(target.pid());
    let mut tracer = Tracer::attach_with(target.pid(), &["-r", "fd", "-a", "-o", "0", "0.3"]);
    target.tell("go");
    target.expect("END");
    let report = tracer.fresh_report();
    let new: BTreeSet<u32> = open_descriptors(target.pid()).difference(&before).copied().collect();
    assert_eq!(new.len(), 3, "two in the message, one by ioctl");
    assert_eq!(listed(&report), new);
    assert_eq!(report.site("site_receive").1, 2, "{}", report.describe());
    target.tell("end");
    assert!(target.wait_status().success());
    assert_eq!(tracer.wait().code, 0);
}

#[test]
fn an_exec_keeps_descriptors_and_closes_some() {
    let _alone = alone();
    let mut target = holder_of_descriptors(&["exec"]);
    let mut tracer = Tracer::attach_with(target.pid(), &["-r", "fd", "-a", "-o", "0", "0.3"]);
    target.tell("go");
    tracer.wait_note(|line| line.contains("has replaced its program"));
    tracer.fresh_report();
    for _ in 0..2 {
        target.tell("go");
        let ledger = ledger::hear(&mut target);
        let report = tracer.fresh_report();
        let count: u64 = ledger.values().filter_map(|amount| amount.count).sum();
        assert_eq!(report.totals.count, count, "{}", report.describe());
        let after = &ledger[&("site_after".to_owned(), "fd".to_owned())];
        assert_eq!(report.site("site_after").1, after.count.unwrap());
    }
    target.tell("end");
    assert!(target.wait_status().success());
    assert_eq!(tracer.wait().code, 0);
}

/// Traces Python running `script` to the script's `input()`; the last report before it goes on.
fn trace_python(resource: &str, script: &str) -> (Report, BTreeSet<u32>) {
    let mut target = Running::start(Command::new("/usr/bin/python3").args([
        "-u",
        "-c",
        &format!("print('READY')\ninput()\n{script}\nprint('END')\ninput()"),
    ]));
    target.expect("READY");
    let before = open_descriptors(target.pid());
    let mut tracer =
        Tracer::attach_with(target.pid(), &["-r", resource, "-a", "-o", "0", "-T", "100000", "0.3"]);
    target.tell("go");
    target.expect("END");
    let open = open_descriptors(target.pid()).difference(&before).copied().collect();
    let report = tracer.fresh_report();
    target.tell("end");
    assert!(target.wait_status().success(), "{}", target.outputs());
    assert_eq!(tracer.wait().code, 0);
    (report, open)
}

#[test]
fn python_opens_files_and_sockets() {
    let _alone = alone();
    let script = "import socket\n\
                  files = [open('/etc/passwd') for i in range(30)]\n\
                  for i in range(20): files.pop().close()\n\
                  sockets = [socket.socket() for i in range(7)]\n\
                  for i in range(50): socket.socket().close()";
    let (report, open) = trace_python("fd", script);
    assert_eq!((report.totals.count, open.len()), (17, 17), "{}", report.describe());
    assert_eq!(listed(&report), open);
    let by_call = |name: &str| -> u64 {
        let calls = |stack: &&Stack| stack.frames.iter().any(|frame| frame.bare_function().contains(name));
        report.stacks.iter().filter(calls).map(|stack| stack.count).sum()
    };
    assert_eq!((by_call("open"), by_call("socket")), (10, 7), "{}", report.describe());
    assert!(report.stacks.iter().all(|stack| !stack.truncated), "{}", report.describe());
}

/// A program that forgets to close every third database.
#[test]
fn forgotten_databases_are_counted() {
    let _alone = alone();
    let program = build("databases.c", Link::Dynamic, LIBRARIES);
    let mut target = Running::start(Command::new(program).arg("300"));
    target.expect("READY");
    let mut tracer = Tracer::attach_with(
        target.pid(),
        &["-r", "sqlite,sqlite-stmt,heap,fd", "-o", "0", "-T", "100000", "0.3"],
    );
    target.tell("go");
    let ledger = ledger::hear(&mut target);
    let report = tracer.fresh_report();
    for ((site, resource), amount) in &ledger {
        assert_eq!(amount.count, Some(100), "{site}");
        let of = |stack: &&Stack| stack.resource == *resource && stack.site() == Some(site);
        let found: Vec<&Stack> = report.stacks.iter().filter(of).collect();
        let count: u64 = found.iter().map(|stack| stack.count).sum();
        assert_eq!(count, 100, "{resource}: {}", report.describe());
        assert_eq!(report.sum(resource).1, 100, "{resource}: {}", report.describe());
        let frames: Vec<&str> = found[0].frames.iter().map(|frame| frame.bare_function()).collect();
        let from = frames.iter().position(|name| *name == "site_open_database").expect("the site");
        assert_eq!(frames[from..from + 3], ["site_open_database", "use_database", "main"], "{resource}");
    }
    assert_eq!(ledger.len(), 2);
    // How many files it has open for them is the library's own affair.
    assert!(report.sum("fd").1 >= 100, "{}", report.describe());
    // The library's own memory, and all else that is held meanwhile, has whole stacks, too.
    assert!(report.sum("heap").1 >= 100, "{}", report.describe());
    assert!(report.stacks.iter().all(|stack| !stack.truncated), "{}", report.describe());
    report.assert_nothing_lost();
    target.tell("end");
    assert!(target.wait_status().success());
    assert_eq!(tracer.wait().code, 0);
}

/// Traces a redis server's descriptors under load; `preload` may plant a leak. Gives the last
/// report, when all clients have gone, and how many connections there were.
fn trace_redis(name: &str, preload: &str) -> (Report, u64) {
    let dir = scratch_dir().join(format!("{name}-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a folder for redis");
    let socket = dir.join("socket");
    let options = ["--port", "0", "--save", "", "--appendonly", "no", "--dir", text(&dir), "--unixsocket"];
    let mut server =
        Running::start(Command::new("redis-server").args(options).arg(&socket).env("LD_PRELOAD", preload));
    server.expect_line("readiness", |line| line.contains("eady to accept connections"));
    let before = open_descriptors(server.pid());
    let mut tracer = Tracer::attach_with(server.pid(), &["-r", "fd", "-a", "-o", "0", "-T", "100000", "0.3"]);
    let benchmark = Command::new("redis-benchmark")
        .args(["-s", text(&socket), "-n", "400", "-c", "20", "-k", "0", "-q", "-t", "set,get"])
        .output()
        .expect("redis-benchmark");
    assert!(benchmark.status.success());
    let stats = Command::new("redis-cli").args(["-s", text(&socket), "info", "stats"]).output();
    let stats = String::from_utf8_lossy(&stats.expect("redis-cli").stdout).into_owned();
    let connections = stats.lines().find_map(|line| line.trim().strip_prefix("total_connections_received:"));
    let connections: u64 = connections.and_then(|number| number.parse().ok()).expect("a number");
    // The server learns by and by that its clients have gone.
    let planted = if preload.is_empty() { 0 } else { connections / 10 };
    tracer.fresh_report();
    let report = tracer.wait_report(|report| report.totals.count == planted);
    let open: BTreeSet<u32> = open_descriptors(server.pid()).difference(&before).copied().collect();
    assert_eq!(listed(&report), open);
    server.signal(libc::SIGTERM);
    server.wait_status();
    assert_eq!(tracer.wait().code, 0);
    fs::remove_dir_all(&dir).expect("removing redis' folder");
    (report, connections)
}

#[test]
fn redis_server_with_a_planted_leak() {
    let _alone = alone();
    let leak = build("descriptor_leak.c", Link::Library, &[]);
    let (report, connections) = trace_redis("redis-leak", text(&leak));
    assert!(connections > 800, "{connections}");
    assert_eq!(report.site("site_planted_leak").1, connections / 10, "{}", report.describe());
    let [stack] = report.stacks.as_slice() else { panic!("{}", report.describe()) };
    let frames: Vec<&str> = stack.frames.iter().map(|frame| frame.bare_function()).collect();
    assert_eq!(frames[1..3], ["site_planted_leak", "leaky"], "{frames:?}");
    assert!(frames.contains(&"main") && !stack.truncated, "{frames:?}");
}

#[test]
fn redis_server_leaks_no_descriptors() {
    let _alone = alone();
    let (report, connections) = trace_redis("redis-sound", "");
    assert!(connections > 800, "{connections}");
    assert!(report.stacks.is_empty(), "{}", report.describe());
    assert!(report.totals.acquired >= connections, "they were seen");
}

/// Each system call that makes a descriptor, by its number: what stays open is there with the stack
/// that made it, what was closed is not. A call that this kernel refuses is named, and only such as
/// need a newer kernel or a setting may be.
#[test]
fn each_system_call_that_makes_descriptors() {
    const MAY_BE_MISSING: &[&str] = &[
        "site_open_tree_attr", // Linux 6.15
        "site_memfd_secret",   // boot parameter secretmem.enable
        "site_peerpidfd",      // Linux 6.5
        "site_fanotify_init",
        "site_perf_event_open",
        "site_io_uring_setup",
        "site_userfaultfd",
        "site_open_by_handle_at",
        "site_landlock_create_ruleset",
    ];
    let _alone = alone();
    let program = build("descriptor_calls.c", Link::Dynamic, &[]);
    let mut target = Running::start(&mut Command::new(program));
    target.expect("READY");
    let before = open_descriptors(target.pid());
    let mut tracer = Tracer::attach_with(target.pid(), &["-r", "fd", "-a", "-o", "0", "-T", "1000", "1"]);
    target.tell("go");
    let lines = target.expect("END");
    for missing in lines.iter().filter(|line| line.starts_with("{\"missing\"")) {
        println!("not tried here: {missing}");
        assert!(MAY_BE_MISSING.iter().any(|name| missing.contains(name)), "{missing}");
    }
    let ledger = ledger::parse(&lines);
    assert!(ledger.len() >= 30, "{ledger:?}");
    let new: BTreeSet<u32> = open_descriptors(target.pid()).difference(&before).copied().collect();
    // A report before the last one: it has the names, for which a slow machine has no time after
    // the signal.
    tracer.fresh_report().assert_equals(&ledger);
    let report = tracer.stop_with_report();
    report.assert_equals(&ledger);
    assert_eq!(listed(&report), new);
    // Nothing had to be found by comparing: as many were acquired by calls as are there and were
    // closed.
    assert!(report.stacks.iter().all(|stack| !stack.frames.is_empty()), "{}", report.describe());
    target.tell("end");
    assert!(target.wait_status().success());
}

/// What no call returns is there also in the last report of a process that has ended, unless it was
/// closed.
#[test]
fn descriptors_that_no_call_returns_outlive_their_process() {
    let _alone = alone();
    for reports in [1, 3] {
        let mut target = holder_of_descriptors(&["unseen"]);
        let before = open_descriptors(target.pid());
        let mut tracer = Tracer::attach_with(target.pid(), &["-r", "fd", "-a", "-o", "0", "0.3"]);
        target.tell("go");
        target.expect("END");
        let new: BTreeSet<u32> = open_descriptors(target.pid()).difference(&before).copied().collect();
        let mut live = tracer.fresh_report();
        for _ in 1..reports {
            live = tracer.fresh_report();
        }
        assert_eq!(listed(&live), new);
        target.tell("end");
        assert!(target.wait_status().success());
        let last = tracer.wait().into_final_report();
        assert_eq!(listed(&last), new, "{}", last.describe());
        assert_eq!(last.totals.acquired - last.totals.released, new.len() as u64, "{}", last.describe());
    }
}
