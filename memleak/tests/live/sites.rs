//! A stack is places in objects, not addresses: over processes, runs, copies, and what a dlclose
//! leaves.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    guard::alone,
    process::Running,
    programs::{Link, build, scratch_dir, text},
    report::{ProcessCount, Report, Stack},
    tracer::{MEMLEAK, NEVER, Tracer},
};

fn program() -> PathBuf {
    build("sites.c", Link::Dynamic, &["-ldl"])
}

fn start(program: &Path, arguments: &[&str]) -> Running {
    let mut target = Running::start(Command::new(program).args(arguments));
    target.expect("READY");
    target
}

fn end(mut target: Running) {
    target.tell("end");
    assert!(target.wait_status().success());
}

/// Bytes and blocks whose stack passes through `site`.
fn held(report: &Report, site: &str) -> (u64, u64) {
    let stacks = report.stacks.iter().filter(|stack| stack.site() == Some(site));
    stacks.fold((0, 0), |sum, stack| (sum.0 + stack.bytes, sum.1 + stack.count))
}

#[test]
fn addresses_are_read_with_the_mappings_of_their_time() {
    let _alone = alone();
    let library = |site: &str| build("site_library.c", Link::Library, &[&format!("-DSITE={site}")]);
    let (a, b) = (library("site_a"), library("site_b"));
    for (pause, unwind) in [("0", "auto"), ("100000", "auto"), ("0", "fp")] {
        let mut target = start(&program(), &["reload", pause, text(&a), text(&b)]);
        let arguments = ["-o", "0", "-T", "100000", "--unwind", unwind, NEVER];
        let tracer = Tracer::attach_with(target.pid(), &arguments);
        target.tell("go");
        let said = target.expect("END");
        assert!(said.iter().any(|line| line == "SAME"), "B is not where A was: nothing is tested: {said:?}");
        let report = tracer.stop_with_report();
        end(target);
        let found = (held(&report, "site_a"), held(&report, "site_b"));
        assert_eq!(found, ((1000, 10), (2000, 10)), "pause {pause}, {unwind}: {}", report.describe());
        let modules = |site: &str| -> BTreeSet<String> {
            let stacks = report.stacks.iter().filter(|stack| stack.site() == Some(site));
            stacks.filter_map(|stack| stack.frames[0].module.clone()).collect()
        };
        assert_eq!(modules("site_a"), BTreeSet::from([text(&a).to_owned()]));
        assert_eq!(modules("site_b"), BTreeSet::from([text(&b).to_owned()]));
        report.assert_sums();
    }
}

/// Traces a process of each program, which leaks 10 blocks of `bytes`; gives its stack, and their
/// PIDs.
fn leak(programs: &[&Path], bytes: u64) -> (Stack, Vec<u32>) {
    let bytes = bytes.to_string();
    let mut targets: Vec<Running> =
        programs.iter().map(|program| start(program, &["leak", &bytes])).collect();
    let pids: Vec<u32> = targets.iter().map(Running::pid).collect();
    let all = pids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let tracer = Tracer::attach_with(pids[0], &["-p", &all, "-a", "-o", "0", "-T", "100000", NEVER]);
    for target in &mut targets {
        target.tell("go");
        target.expect("END");
    }
    let report = tracer.stop_with_report();
    targets.into_iter().for_each(end);
    report.assert_sums();
    let mut of_site = report.stacks.iter().filter(|stack| stack.site() == Some("site_leak"));
    let stack = of_site.next().unwrap_or_else(|| panic!("no such site: {}", report.describe())).clone();
    assert!(of_site.next().is_none(), "it is one site: {}", report.describe());
    (stack, pids)
}

#[test]
fn the_same_code_is_one_site_with_one_id_in_all_processes_and_copies() {
    let _alone = alone();
    let program = program();
    let copy = scratch_dir().join(format!("a-copy-elsewhere-{}", std::process::id()));
    fs::copy(&program, &copy).expect("copying the program");
    let (one, _) = leak(&[&program], 1000);
    assert_eq!((one.bytes, one.count, one.process_counts.is_none()), (10_000, 10, true));
    let (three, pids) = leak(&[&program, &program, &copy], 1000);
    assert_eq!((three.bytes, three.count), (30_000, 30));
    let mut expected: Vec<_> =
        pids.iter().map(|pid| ProcessCount { pid: *pid, bytes: 10_000, count: 10 }).collect();
    expected.sort_by_key(|count| count.pid);
    assert_eq!(three.process_counts.as_deref(), Some(&*expected));
    let allocations = three.allocations.as_deref().expect("-a lists them");
    for pid in &pids {
        assert_eq!(allocations.iter().filter(|line| line.pid == Some(*pid)).count(), 10);
    }
    // Elsewhere in memory, by another name: the same code.
    let (copied, _) = leak(&[&copy], 500);
    fs::remove_file(&copy).expect("removing the copy");
    assert_ne!(copied.frames[0].ip, one.frames[0].ip, "addresses are random");
    let ids = [&one, &three, &copied].map(|stack| stack.stack_id.clone().expect("an id"));
    assert!(ids.iter().all(|id| *id == ids[0] && id.len() == 16), "{ids:?}");
    // Another build has another one.
    let (other, _) = leak(&[&build("sites.c", Link::Dynamic, &["-ldl", "-O2"])], 1000);
    assert_ne!(other.stack_id, one.stack_id);
}

#[test]
fn text_folded_stacks_and_json_hold_the_same() {
    let _alone = alone();
    let program = program();
    let run = |options: &[&str]| {
        let mut targets = [1000, 2000].map(|bytes: u32| start(&program, &["leak", &bytes.to_string()]));
        let pids = targets.iter().map(|target| target.pid().to_string()).collect::<Vec<_>>().join(",");
        let mut tracer =
            Tracer::run(Command::new(MEMLEAK).args(["-v", "-o", "0", "-p", &pids]).args(options).arg(NEVER));
        tracer.wait_attached();
        for target in &mut targets {
            target.tell("go");
            target.expect("END");
        }
        let outcome = tracer.stop();
        targets.into_iter().for_each(end);
        assert_eq!(outcome.code, 0, "{:?}", outcome.ended);
        outcome.ended.stdout
    };
    let folded = run(&["--folded"]);
    let sum: u64 = folded.iter().filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum();
    assert_eq!(sum, 30_000, "{folded:?}");
    assert!(folded.iter().all(|line| line.ends_with(";main;site_leak 30000")), "{folded:?}");
    let lines = run(&[]);
    let heading = lines.iter().position(|line| line == "\t30000 bytes in 20 allocations from stack");
    assert!(heading.is_some(), "{lines:?}");
    let split = lines.iter().find(|line| line.starts_with("\t\t(in 2 processes: "));
    assert!(split.is_some_and(|line| line.contains("holds 20000 bytes in 10, ")), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains("[process")), "{lines:?}");
}
