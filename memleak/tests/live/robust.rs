//! What was collected is reported: by a tracer whose outputs are full or closed, that lacks what it
//! needs, or that an error ends.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

use crate::{
    errors::assert_one_line,
    guard::{alone, assert_nothing_left},
    ledger,
    options::sizes,
    process::code,
    programs::{Link, build, scratch_dir},
    report::Report,
    tracer::{MEMLEAK, Outcome, Tracer},
};

/// Commands of bpf(2) (include/uapi/linux/bpf.h, `enum bpf_cmd`).
const BPF_MAP_LOOKUP_ELEM: u32 = 1;
const BPF_MAP_LOOKUP_BATCH: u32 = 24;

/// Traces `sizes` until a command of bpf(2) fails in the tracer: once, or from then on.
fn end_by_an_error(command: u32, once: bool) -> (Outcome, ledger::Ledger) {
    let preload = build("failing_bpf.c", Link::Library, &[]);
    let fail = scratch_dir().join(format!("fail-{}", std::process::id()));
    let mut target = sizes();
    let mut tracer = Command::new(MEMLEAK);
    tracer
        .args(["--json", "-v", "-o", "0", "-T", "1000", "-p", &target.pid().to_string(), "0.2"])
        .env("LD_PRELOAD", preload)
        .env("FAIL_COMMAND", command.to_string())
        .env("FAIL_WHILE", &fail);
    if once {
        tracer.env("FAIL_ONCE", "1");
    }
    let mut tracer = Tracer::run(&mut tracer);
    tracer.wait_attached();
    target.tell("s");
    target.tell("q");
    let mut ledger = ledger::hear(&mut target);
    tracer.fresh_report().assert_equals(&ledger);
    File::create(&fail).expect("a file");
    if command == BPF_MAP_LOOKUP_BATCH {
        // Of a target that does nothing the records are not read again.
        target.tell("k");
        target.tell("q");
        ledger = ledger::hear(&mut target);
    }
    let outcome = tracer.wait();
    let _ = fs::remove_file(&fail);
    assert!(!target.has_ended(), "{}", target.outputs());
    assert_nothing_left();
    (outcome, ledger)
}

fn errors(outcome: &Outcome) -> Vec<&String> {
    outcome.ended.stderr.iter().filter(|line| line.contains("cannot")).collect()
}

#[test]
fn an_error_while_tracing_is_followed_by_the_last_report() {
    let _alone = alone();
    for command in [BPF_MAP_LOOKUP_BATCH, BPF_MAP_LOOKUP_ELEM] {
        let (outcome, ledger) = end_by_an_error(command, true);
        assert_eq!(outcome.code, 1, "{:?}", outcome.ended);
        let last = outcome.reports.last().expect("a report");
        assert!(last.is_final, "{}", last.describe());
        last.assert_equals(&ledger);
        let errors = errors(&outcome);
        assert_eq!(errors.len(), 1, "{:?}", outcome.ended.stderr);
        assert_eq!(outcome.ended.stderr.last(), Some(errors[0]), "the error comes last");
    }
}

#[test]
fn an_error_that_stays_is_told_once() {
    let _alone = alone();
    let (outcome, _) = end_by_an_error(BPF_MAP_LOOKUP_BATCH, false);
    assert_eq!(outcome.code, 1, "{:?}", outcome.ended);
    assert_eq!(errors(&outcome).len(), 1, "{:?}", outcome.ended.stderr);
}

/// Standard error that takes nothing: a full disk, a closed descriptor, a pipe without a reader.
fn deaf_streams() -> [(&'static str, Stdio); 2] {
    let full = File::options().write(true).open("/dev/full").expect("/dev/full");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    [("full", full.into()), ("without a reader", writer.into())]
}

/// `-v -v` says much, and a resource that nothing in the target has is a warning.
#[test]
fn standard_error_that_takes_nothing_changes_nothing() {
    let _alone = alone();
    let target = sizes();
    let pid = target.pid().to_string();
    let arguments = ["-v", "-v", "--json", "-r", "heap,fd,sqlite", "-o", "0", "-p", &pid, "0.2", "2"];
    for (what, stream) in deaf_streams() {
        let output = Command::new(MEMLEAK).args(arguments).stderr(stream).output().expect("memleak");
        assert_eq!(code(output.status), 0, "standard error is {what}");
        let reports = String::from_utf8_lossy(&output.stdout).lines().map(Report::parse).collect::<Vec<_>>();
        assert_eq!(reports.len(), 2, "standard error is {what}");
        assert!(reports[1].is_final);
    }
    let closed = format!("exec {MEMLEAK} {} 2>&-", arguments.join(" "));
    let output = Command::new("sh").args(["-c", &closed]).output().expect("sh");
    assert_eq!(code(output.status), 0, "standard error is closed");
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 2);
    for (what, stream) in deaf_streams() {
        let status = Command::new(MEMLEAK).args(["-p", "2"]).stderr(stream).status().expect("memleak");
        assert_eq!(code(status), 1, "an error, and standard error is {what}");
    }
    for (what, stream) in deaf_streams() {
        let status = Command::new(MEMLEAK).arg("--no-such-option").stderr(stream).status().expect("memleak");
        assert_eq!(code(status), 2, "a wrong command line, and standard error is {what}");
    }
}

#[test]
fn standard_output_that_is_full_is_a_failure() {
    let _alone = alone();
    let target = sizes();
    let pid = target.pid().to_string();
    for arguments in
        [&["-p", &pid, "0.2"][..], &["--json", "-p", &pid, "0.2", "1"], &["--help"], &["--list-resources"]]
    {
        let full = File::options().write(true).open("/dev/full").expect("/dev/full");
        let output = Command::new(MEMLEAK).args(arguments).stdout(full).output().expect("memleak");
        assert_one_line(&output, 1, &["standard output", "No space"], &format!("{arguments:?}"));
    }
}

/// The limit on files' sizes is an error like a full disk, and not our end by a signal; what was
/// written stays.
#[test]
fn a_limit_on_the_size_of_files_is_an_error() {
    let _alone = alone();
    let target = sizes();
    let pid = target.pid().to_string();
    let file = scratch_dir().join(format!("limited-{}", std::process::id()));
    let limit = 2000;
    let mut memleak = Command::new(MEMLEAK);
    memleak.args(["--json", "-o", "0", "-p", &pid, "0.1"]).stdout(File::create(&file).expect("a file"));
    // SAFETY: setrlimit(2) may be called between fork and exec.
    unsafe {
        memleak.pre_exec(move || {
            let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
            match libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let output = memleak.output().expect("memleak");
    let written = fs::read_to_string(&file).expect("what was written");
    fs::remove_file(&file).expect("removing");
    assert_one_line(&output, 1, &["standard output", "too large"], "a limit on the size of files");
    assert_eq!(written.len() as u64, limit);
    Report::parse(written.lines().next().expect("a whole report"));
}

/// Runs memleak in a mount namespace of its own, without what is mounted at `place`.
fn without(place: &str, arguments: &[&str]) -> std::process::Output {
    let script = "umount --lazy --recursive \"$1\" && shift && exec \"$0\" \"$@\"";
    Command::new("unshare")
        .args(["--mount", "sh", "-c", script, MEMLEAK, place])
        .args(arguments)
        .output()
        .expect("unshare")
}

#[test]
fn without_sys_or_proc_it_says_so() {
    let _alone = alone();
    let target = sizes();
    let pid = target.pid().to_string();
    for arguments in [&["-p", &pid, "0.2", "1"][..], &["--kernel", "0.2", "1"], &["--", "/bin/true"]] {
        for place in ["/sys", "/proc"] {
            let output = without(place, arguments);
            assert_one_line(&output, 1, &[place, "mount -t"], &format!("without {place}: {arguments:?}"));
        }
    }
}

/// A failure of ours goes before `--error-exitcode`, and that before the command's own status.
#[test]
fn one_status_of_several() {
    let _alone = alone();
    let leaks = ["--", "sh", "-c", "exit 3"];
    let asked = ["--error-exitcode", "99"];
    for (output, options, expected) in [
        ("/dev/full", &asked[..], 1),
        ("/dev/full", &[], 1),
        ("/dev/null", &asked, 99),
        ("/dev/null", &[], 3),
    ] {
        let arguments = [&["--output", output][..], options, &leaks].concat();
        let ended = Command::new(MEMLEAK).args(&arguments).output().expect("memleak");
        assert_eq!(code(ended.status), expected, "{arguments:?}: {ended:?}");
        let lines = String::from_utf8_lossy(&ended.stderr).lines().count();
        assert_eq!(lines, usize::from(expected == 1), "{arguments:?}: {ended:?}");
    }
    let gone = ["--error-exitcode", "99", "--", "/nonexistent/program"];
    let ended = Command::new(MEMLEAK).args(gone).output().expect("memleak");
    assert_one_line(&ended, 1, &["/nonexistent/program"], "nothing was traced");
}
