//! Limits of ours: files, stack, address space, memory.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    guard::alone,
    process::Running,
    programs::{Link, build},
    tracer::MEMLEAK,
};

/// Limits of ours end in a report or in one line that says what to do, and what it says works.
#[test]
fn limits_of_ours() {
    let _alone = alone();
    let mut target = Running::start(&mut Command::new(build("hostile.c", Link::Dynamic, &["-ldl"])));
    target.expect("READY");
    let pid = target.pid().to_string();
    for limit in ["-v 80000", "-v 120000", "-n 64", "-n 20", "-s 64", "-f 0"] {
        let run = |more: &str| {
            let line = format!("ulimit {limit}; exec {MEMLEAK} -o 0 {more} -p {pid} 0.2 1");
            let output = Command::new("bash").args(["-c", &line]).process_group(0).output().expect("bash");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            println!("ulimit {limit} {more}: {:?} {said}", output.status);
            (output.status, said)
        };
        let (status, said) = run("");
        assert!(
            matches!(status.code(), Some(0 | 1)) && !said.contains("panicked"),
            "{limit}: {status} {said}"
        );
        if status.code() == Some(1) {
            assert_eq!(said.lines().count(), 1, "{limit}: {said}");
            assert!(said.contains("--unwind fp") || said.contains("ulimit"), "{limit}: {said}");
            let (status, again) = run("--unwind fp");
            assert!(status.success() || !said.contains("--unwind fp"), "{limit}: {status} {again}");
        }
    }
}

/// A group with a limit of memory, of either version of control groups; `None` if this machine lets
/// us make none.
pub(crate) fn limited_group(bytes: u64) -> Option<PathBuf> {
    let places = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
    places.into_iter().find_map(|(place, limit)| {
        let group = Path::new(place).join(format!("memleak-test-{}", std::process::id()));
        let _ = fs::write(Path::new(place).join("cgroup.subtree_control"), "+memory");
        fs::create_dir(&group).ok()?;
        match fs::write(group.join(limit), bytes.to_string()) {
            Ok(()) => Some(group),
            Err(_) => {
                let _ = fs::remove_dir(&group);
                None
            }
        }
    })
}

/// In a control group with little memory there are reports, or one line with a remedy that works;
/// nobody is killed.
#[test]
fn little_memory_in_the_control_group() {
    const PROGRAM: &str = "import time, json, asyncio, ssl, sqlite3, xml.dom.minidom\nprint('READY', flush=True)\n\
                           while True: x = [bytes(1000)]; time.sleep(0.001)";
    let _alone = alone();
    let mut target = Running::start(Command::new("python3").args(["-c", PROGRAM]));
    target.expect("READY");
    let pid = target.pid().to_string();
    for megabytes in [160, 96, 64, 40] {
        let Some(group) = limited_group(megabytes << 20) else {
            println!("this machine lets us make no control group with a limit of memory");
            return;
        };
        let run = |more: &str| {
            let enter = format!("echo $$ > {}/cgroup.procs", group.display());
            let line = format!("{enter}; exec {MEMLEAK} -o 0 {more} -p {pid} 0.3 2");
            let output = Command::new("bash").args(["-c", &line]).output().expect("bash");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            println!("{megabytes} MB {more}: {:?} {said}", output.status);
            (output.status.code(), said)
        };
        let (status, said) = run("");
        let remedy = run("--unwind fp");
        fs::remove_dir(&group).expect("an empty group");
        assert!(matches!(status, Some(0 | 1)), "{megabytes} MB: {status:?} {said}");
        if status == Some(1) {
            assert_eq!(said.lines().count(), 1, "{said}");
            assert!(
                remedy.0 == Some(0) || !said.contains("--unwind fp"),
                "{megabytes} MB: {said} {remedy:?}"
            );
        }
        assert!(matches!(remedy.0, Some(0 | 1)), "{megabytes} MB: {remedy:?}");
    }
}
