//! How `--kernel` ends, and that the machine stands it: the whole kernel traced under a mixed load.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use crate::{
    ends::read_one_line,
    errors::assert_one_line,
    guard::{alone, assert_no_links_left, assert_nothing_left, kernel_complaints, new_complaints, status_kb},
    process::{Running, code, patience, wait_for_end},
    programs::{Link, build, scratch_dir, text},
    report::Report,
    tracer::{MEMLEAK, NEVER, Tracer},
};

/// What memleak itself may take at most while it traces the whole kernel, in KiB: the report over a
/// table that is full (a million records) takes about half of it.
const MEMORY_LIMIT_KB: u64 = 600 << 10;

/// Traces all that the kernel does (`--json -v -k` and `arguments`); returns when the probes are
/// in.
fn trace(arguments: &[&str]) -> Tracer {
    let mut all = vec!["--json", "-v", "-k"];
    all.extend(arguments);
    let mut tracer = Tracer::start(&all);
    tracer.wait_attached();
    tracer
}

/// Nothing that holds memory of the kernel is left: programs, links and maps.
fn assert_all_gone() {
    assert_nothing_left();
    assert_no_links_left();
}

/// The load of the soak: forks, files, sockets and mappings, until its standard input ends.
fn load() -> Running {
    let file = scratch_dir().join(format!("kernel-load-{}", std::process::id()));
    let program = build("kernel_load.c", Link::Dynamic, &[]);
    let mut load = Running::start(Command::new(program).arg(text(&file)));
    load.expect("READY");
    load
}

/// For how long the soak runs: `MEMLEAK_SOAK_SECONDS`.
fn soak_time() -> Duration {
    let seconds = std::env::var("MEMLEAK_SOAK_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(20))
}

/// Reports of a machine at work keep coming, memleak stays small, what it allocates is not told,
/// and nothing is left.
#[test]
fn a_machine_at_work_is_traced_for_a_while() {
    let _alone = alone();
    let before = kernel_complaints();
    let mut load = load();
    let mut tracer = trace(&["-T", "50", "1"]);
    let began = Instant::now();
    let (mut reports, mut longest, mut lost) = (0, Duration::ZERO, 0);
    let mut last = began;
    while began.elapsed() < soak_time() {
        let report = tracer.wait_report(|_| true);
        longest = longest.max(last.elapsed());
        last = Instant::now();
        reports += 1;
        assert!(report.totals.acquired > 0 && !report.is_final);
        let now_lost: u64 = report.lost.values().sum();
        assert!(now_lost >= lost, "what is lost stays lost: {:?}", report.lost);
        lost = now_lost;
        assert_own_work_is_not_told(&report);
        assert!(!load.has_ended(), "the load goes on");
    }
    let memory = status_kb(tracer.running().pid(), "VmHWM");
    let report = tracer.stop_with_report();
    println!(
        "{reports} reports in {} s, the longest wait {} ms, VmHWM {memory} KiB; outstanding {}, acquired {}, lost {:?}",
        began.elapsed().as_secs(),
        longest.as_millis(),
        report.totals.count,
        report.totals.acquired,
        report.lost
    );
    assert!(memory < MEMORY_LIMIT_KB, "memleak has taken {memory} KiB");
    // Each second, but for a machine that has other things to do.
    assert!(longest < patience() / 4, "a report came after {longest:?}");
    let turns = load.end();
    assert_eq!(code(turns.status), 0, "{turns:?}");
    assert_all_gone();
    let new = new_complaints(&before);
    assert!(new.is_empty(), "the kernel complains: {new:?}");
}

/// Stacks are not walked where their return addresses are where they were: each time the kernel's
/// walk gives the same.
#[test]
fn remembered_stacks_are_what_the_kernel_walks() {
    let _alone = alone();
    let mut load = load();
    let mut tracer = trace(&["--check-stacks", "1"]);
    let enough = tracer.wait_report(|report| report.totals.acquired >= 200_000);
    assert!(!load.has_ended(), "the load goes on: {}", enough.describe());
    let notes = tracer.notes();
    assert!(!notes.iter().any(|note| note.contains("remembered")), "{notes:?}");
    tracer.stop_with_report();
    load.end();
}

/// What the tracer's programs do is none of the kernel's leaks, and their frames are not shown.
fn assert_own_work_is_not_told(report: &Report) {
    for stack in &report.stacks {
        let callee = stack.frames.first().unwrap_or_else(|| panic!("a stack without frames: {stack:?}"));
        let is_own =
            callee.module.as_deref() == Some("[bpf]") || callee.bare_function().starts_with("bpf_trace_run");
        assert!(!is_own, "a frame of the tracer's own: {stack:?}");
    }
}

/// SIGINT, SIGTERM and COUNT: a last report, status 0, nothing left.
#[test]
fn an_orderly_end_gives_one_last_report() {
    let _alone = alone();
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut tracer = trace(&[NEVER]);
        tracer.running().signal(signal);
        let outcome = tracer.wait();
        assert_eq!(outcome.reports.len(), 1, "{:?}", outcome.ended);
        assert!(outcome.into_final_report().totals.acquired > 0, "signal {signal}");
        assert_all_gone();
    }
    let outcome = trace(&["0.5", "3"]).wait();
    assert_eq!(outcome.reports.len(), 3, "COUNT reports: {:?}", outcome.ended);
    outcome.into_final_report();
    assert_all_gone();
}

/// A signal before the probes are in ends it, too.
#[test]
fn a_signal_while_it_starts() {
    let _alone = alone();
    for milliseconds in [0, 100, 300, 600, 1000, 1500, 2500] {
        for signal in [libc::SIGTERM, libc::SIGKILL] {
            let mut child = Command::new(MEMLEAK)
                .args(["-k", NEVER])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("memleak");
            wait_for_end(child.id(), Duration::from_millis(milliseconds));
            // SAFETY: kill(2) touches no memory of ours; the child is not yet waited for, so the id
            // is its own.
            unsafe { libc::kill(child.id() as i32, signal) };
            let ended = wait_for_end(child.id(), patience());
            if !ended {
                child.kill().expect("killing");
            }
            let status = child.wait().expect("waiting");
            assert!(ended, "signal {signal} after {milliseconds} ms does not end it");
            assert!([0, 128 + signal].contains(&code(status)), "{status:?}");
            assert_all_gone();
        }
    }
}

/// The links end with the process.
#[test]
fn the_tracer_is_killed() {
    let _alone = alone();
    let mut tracer = trace(&["0.5"]);
    tracer.wait_report(|report| report.totals.acquired > 0);
    tracer.running().signal(libc::SIGKILL);
    assert_eq!(code(tracer.running().wait_status()), 137);
    assert_all_gone();
}

/// A reader that has seen enough: `memleak -k | head -1`.
#[test]
fn nobody_reads_the_reports() {
    let _alone = alone();
    for format in [&["--json"][..], &[], &["-t"]] {
        let said = read_one_line(&[&["-k"], format, &["0.2"]].concat());
        assert!(said.lines().all(|line| line.contains("warning: not seen")), "{said}");
        assert_all_gone();
    }
}

/// Reports that cannot be written: said, with status 1.
#[test]
fn the_disk_is_full() {
    let _alone = alone();
    let output = memleak(&["-k", "--output", "/dev/full", "0.2", "3"]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(code(output.status), 1, "{message}");
    let said: Vec<&str> = message.lines().filter(|line| !line.contains("warning: not seen")).collect();
    assert_eq!(said.len(), 1, "{message}");
    assert!(said[0].contains("/dev/full") && said[0].contains("No space left"), "{message}");
    assert_all_gone();
}

fn memleak(arguments: &[&str]) -> Output {
    Command::new(MEMLEAK).args(arguments).output().expect("memleak")
}

/// What cannot be done is said in one line, and nothing is left.
#[test]
fn refusals() {
    let _alone = alone();
    let unknown = memleak(&["-k", "--slab", "no-such-cache", "1", "1"]);
    assert_one_line(&unknown, 1, &["no-such-cache", "slabinfo"], "an unknown cache");
    let gone = memleak(&["-k", "--only-pid", "4194305", "1", "1"]); // above the largest there can be
    assert_one_line(&gone, 1, &["4194305"], "a process that is not there");
    let command = memleak(&["-k", "--", "true"]);
    assert_one_line(&command, 2, &["-k"], "two kinds of target");
    if !crate::kernel::has_kprobes() {
        let kprobe = memleak(&["-k", "--kernel-probes", "kprobe", "1", "1"]);
        assert_one_line(&kprobe, 1, &["kprobes", "CONFIG_KPROBES"], "a kernel without kprobes");
    }
}

/// A user who is not root, and one who may load programs but not see the kernel's addresses.
#[test]
fn users_who_are_not_root() {
    let _alone = alone();
    let program = scratch_dir().join(format!("memleak-for-all-{}", std::process::id()));
    fs::copy(MEMLEAK, &program).expect("a copy that all may run");
    let run = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).args(arguments);
        // The scratch folder may be root's alone: the program is open already.
        let file = File::open(&program).expect("opening the copy");
        let path = format!("/proc/self/fd/{}", keep_open(&mut command, &file));
        command.args([path.as_str(), "-k", "1", "1"]).output().expect("setpriv (util-linux)")
    };
    let nobody = run(&["--inh-caps=-all", "--bounding-set=-all"]);
    let half = run(&["--inh-caps=+bpf,+perfmon", "--ambient-caps=+bpf,+perfmon"]);
    fs::remove_file(&program).expect("removing the copy");
    assert_one_line(&nobody, 1, &["root"], "nobody");
    // Where kernel.kptr_restrict hides nothing there is nothing to be said.
    let hides = fs::read_to_string("/proc/sys/kernel/kptr_restrict").is_ok_and(|text| text.trim() != "0")
        || fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").is_ok_and(|text| text.trim() > "1");
    if hides {
        assert_one_line(&half, 1, &["CAP_SYSLOG", "kptr_restrict"], "without CAP_SYSLOG");
    }
    assert_all_gone();
}

/// Has the command inherit a descriptor; its number.
fn keep_open(command: &mut Command, file: &File) -> i32 {
    use std::os::fd::AsRawFd as _;
    let descriptor = file.as_raw_fd();
    // SAFETY: fcntl(2) may be called between fork and exec, and the descriptor is open.
    unsafe {
        command.pre_exec(move || match libc::fcntl(descriptor, libc::F_SETFD, 0) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    descriptor
}
