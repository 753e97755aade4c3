//! What cannot be done is said in one line that says what to do, with the documented exit status,
//! and leaves no probe.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    process::{Command, Output},
};

use crate::{
    guard::{alone, assert_nothing_left},
    options::sizes,
    process::{Running, code},
    programs::{Link, build, scratch_dir, text},
    tracer::MEMLEAK,
};

/// Runs to the end; the exit status and the one line on standard error, which holds each of
/// `words`.
pub(crate) fn assert_one_line(output: &Output, status: i32, words: &[&str], what: &str) {
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(code(output.status), status, "{what}: {message}");
    assert_eq!(message.lines().count(), 1, "{what}: {message}");
    assert!(message.ends_with('\n'), "{what}: {message}");
    assert!(!message.contains("panicked"), "{what}: {message}");
    for word in words {
        assert!(message.to_lowercase().contains(&word.to_lowercase()), "{what}: no {word:?} in {message}");
    }
    assert!(output.stdout.is_empty(), "{what}: {output:?}");
    assert_nothing_left();
}

fn memleak(arguments: &[&str]) -> Output {
    Command::new(MEMLEAK).args(arguments).output().expect("memleak")
}

#[test]
fn wrong_command_lines() {
    let _alone = alone();
    let target = sizes();
    let pid = target.pid().to_string();
    let p = ["-p", pid.as_str()];
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &["-p"]),
        (&["5", "3"], &["-p"]),
        (&["-p", &pid, "--", "true"], &["-p"]),
        (&["-p", &pid, "-c", "true"], &["-p"]),
        (&["-c", "true", "--", "true"], &["command"]),
        (&["-p", &pid, "-k"], &["-p"]),
        (&["-p", "word"], &["word"]),
        (&["-p", "-5"], &["-5"]),
        (&["-p", "99999999999999999999"], &["99999999999999999999"]),
        (&["-p", &format!("{pid},x")], &["x"]),
        (&["--no-such-option"], &["--no-such-option"]),
        (&[p[0], p[1], "-z", "2K", "-Z", "1K"], &["2048"]),
        (&[p[0], p[1], "-z", "1Q"], &["1Q"]),
        (&[p[0], p[1], "-z", "99999999999G"], &["99999999999G"]),
        (&[p[0], p[1], "--sort", "colour"], &["colour", "growth"]),
        (&[p[0], p[1], "-T", "0"], &["-T"]),
        (&[p[0], p[1], "-s", "0"], &["-s"]),
        (&[p[0], p[1], "0"], &["interval"]),
        (&[p[0], p[1], "1", "0"], &["count"]),
        (&[p[0], p[1], "soon"], &["soon"]),
        (&["-c", "'unclosed"], &["quot"]),
        (&["-c", ""], &["command"]),
    ];
    for (arguments, words) in cases {
        assert_one_line(&memleak(arguments), 2, words, &format!("{arguments:?}"));
    }
}

#[test]
fn targets_that_cannot_be_traced() {
    let _alone = alone();
    let gone = {
        let mut child = Command::new("true").spawn().expect("true");
        let pid = child.id();
        child.wait().expect("waiting");
        pid.to_string()
    };
    assert_one_line(&memleak(&["-p", &gone]), 1, &[&gone], "a process that is gone");
    assert_one_line(&memleak(&["-p", "2"]), 1, &["kernel"], "a kernel thread");

    let mut zombie = Command::new("true").spawn().expect("true");
    assert!(crate::process::wait_for_end(zombie.id(), crate::process::patience()));
    let pid = zombie.id().to_string();
    assert_one_line(&memleak(&["-p", &pid]), 1, &[&pid], "a process that has ended");
    zombie.wait().expect("waiting");

    let program = build("no_allocator.c", Link::Bare, &[]);
    let bare = Running::start(&mut Command::new(&program));
    let pid = bare.pid().to_string();
    assert_one_line(&memleak(&["-p", &pid]), 1, &["allocator"], "no allocator in the target");
    assert_one_line(&memleak(&["--", text(&program)]), 1, &["allocator"], "no allocator in the command");

    let stripped = scratch_dir().join(format!("stripped-{}", std::process::id()));
    let status = Command::new("strip")
        .args([text(&build("sizes.c", Link::Static, &[])), "-o", text(&stripped)])
        .status()
        .expect("strip");
    assert!(status.success());
    let mut target = Running::start(&mut Command::new(&stripped));
    target.expect("READY");
    let pid = target.pid().to_string();
    assert_one_line(&memleak(&["-p", &pid]), 1, &["strip"], "a stripped static binary");
    fs::remove_file(&stripped).expect("removing");
}

/// They would come upon our breakpoints in the code that they read, and the program would be
/// killed.
#[test]
fn programs_that_translate_others() {
    let _alone = alone();
    let program = build("sizes.c", Link::Dynamic, &[]);
    let mut target = Running::start(Command::new("valgrind").args(["-q", "--tool=none"]).arg(program));
    target.expect("READY");
    let pid = target.pid().to_string();
    assert_one_line(&memleak(&["-p", &pid]), 1, &[&pid, "valgrind"], "a process that is valgrind");
    target.tell("q");
    target.expect("END");
}

/// What `-O` may name wrongly: files that are not there, not mapped, no ELF, or without an
/// allocator.
#[test]
fn objects_that_are_of_no_use() {
    let _alone = alone();
    let program = build("sizes.c", Link::Dynamic, &["-Wl,--no-as-needed", "-lm"]);
    let mut target = Running::start(Command::new(program).args(["map", "/etc/passwd"]));
    target.expect("READY");
    let pid = target.pid().to_string();
    let jemalloc = format!("/usr/lib/{}-linux-gnu/libjemalloc.so.2", std::env::consts::ARCH);
    let cases = [
        ("/etc/passwd", "ELF"),
        ("libm.so.6", "allocator"),
        ("/etc/hostname", "ELF"),
        (&jemalloc, "not mapped"),
        ("/nonexistent/libfoo.so", "/nonexistent/libfoo.so"),
        ("libnosuchthing", "libnosuchthing"),
        ("/proc", "/proc"),
    ];
    for (object, word) in cases {
        assert_one_line(&memleak(&["-p", &pid, "-O", object]), 1, &[object, word], object);
    }
    let output = memleak(&["-p", &pid, "-S", "no_such_prefix_"]);
    assert_one_line(&output, 1, &["no_such_prefix_"], "a prefix that no symbol has");
}

/// A user without rights, on a copy of the program that it can read.
#[test]
fn no_rights() {
    const NOBODY: u32 = 65534;
    let _alone = alone();
    let dir = std::env::temp_dir().join(format!("memleak-live-{}", std::process::id()));
    fs::create_dir(&dir).expect("a folder");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("opening it to all");
    let copy = dir.join("memleak");
    fs::copy(MEMLEAK, &copy).expect("copying");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("opening it to all");
    let target = sizes();
    let pid = target.pid().to_string();
    let output = Command::new(&copy).args(["-p", &pid]).uid(NOBODY).gid(NOBODY).output().expect("memleak");
    fs::remove_dir_all(&dir).expect("removing");
    assert_one_line(&output, 1, &["sudo"], "no rights");
}

/// The kernel as it would be without this or that.
#[test]
fn kernels_that_lack_something() {
    let _alone = alone();
    let target = sizes();
    let pid = target.pid().to_string();
    let output =
        Command::new("setarch").args(["--uname-2.6", MEMLEAK, "-p", &pid]).output().expect("setarch");
    assert_one_line(&output, 1, &["5.15"], "an old kernel");

    let script = "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" --json -o 0 -p \"$1\" 1 1";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, MEMLEAK, &pid])
        .output()
        .expect("unshare");
    if code(output.status) != 0 {
        assert_one_line(&output, 1, &["BTF"], "no BTF");
    }

    let output = memleak(&["--max-allocs", "4294967295", "-p", &pid, "1", "1"]);
    if code(output.status) != 0 {
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!([1, 2].contains(&code(output.status)), "{message}");
        assert_one_line(&output, code(output.status), &["--max-allocs"], "a table too large");
    }
}

#[test]
fn an_output_that_cannot_be_written() {
    let _alone = alone();
    let target = sizes();
    let pid = target.pid().to_string();
    let output = memleak(&["-p", &pid, "--output", "/nonexistent/folder/file", "1", "1"]);
    assert_one_line(&output, 1, &["/nonexistent/folder/file"], "a folder that is not there");
    let output = memleak(&["-p", &pid, "--output", "/dev/full", "1", "1"]);
    assert_one_line(&output, 1, &["/dev/full"], "a full disk");
}

#[test]
fn error_exitcode_tells_of_outstanding_allocations() {
    let _alone = alone();
    let program = build("one_function.c", Link::Static, &[]);
    let clean = ["--error-exitcode", "99", "--output", "/dev/null", "-Z", "1", "--", text(&program), "free"];
    assert_eq!(code(memleak(&clean).status), 0, "no block of one byte at most is outstanding");
    let leaky = ["--error-exitcode", "99", "--output", "/dev/null", "--", text(&program), "free"];
    assert_eq!(code(memleak(&leaky).status), 99);
}
