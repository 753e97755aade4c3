//! `--output`: when the file is opened, what happens to what is in it, and what is never written
//! over.

use std::{
    fs::{self, File},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::{
    errors::assert_one_line,
    guard::alone,
    options::sizes,
    process::{Running, code, wait_for_end},
    programs::{Link, build, scratch_dir, text},
    report::Report,
    tracer::MEMLEAK,
};

/// A folder that goes with its test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = scratch_dir().join(format!("outputs-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn memleak(output: &Path, arguments: &[&str]) -> Output {
    Command::new(MEMLEAK).arg("--output").arg(output).args(arguments).output().expect("memleak")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("the file")
}

const OLD: &str = "last night's report\n";

#[test]
fn a_run_that_fails_leaves_what_was_there() {
    let _alone = alone();
    let folder = Folder::new("failing");
    let report = folder.at("report");
    fs::write(&report, OLD).expect("written");
    let mut gone = Command::new("true").spawn().expect("true");
    gone.wait().expect("waiting");
    let gone = gone.id().to_string();
    let bare = build("no_allocator.c", Link::Bare, &[]);
    for arguments in [&["-p", &gone][..], &["-p", "2"], &["--", "/nonexistent/program"], &["--", text(&bare)]]
    {
        assert_one_line(&memleak(&report, arguments), 1, &[], &format!("{arguments:?}"));
        assert_eq!(read(&report), OLD, "{arguments:?}");
    }
    assert_eq!(code(memleak(&report, &["-p", "word"]).status), 2);
    assert_eq!(read(&report), OLD);
}

/// The file is as it was until there is a report, and then as `--append` says.
#[test]
fn a_report_replaces_what_was_there_or_is_added() {
    let _alone = alone();
    let folder = Folder::new("replacing");
    let report = folder.at("report");
    let target = sizes();
    let pid = target.pid().to_string();
    fs::write(&report, OLD).expect("written");
    let output = memleak(&report, &["--json", "-p", &pid, "0.2", "2"]);
    assert_eq!(code(output.status), 0, "{output:?}");
    let first = read(&report);
    assert_eq!(first.lines().map(Report::parse).count(), 2);
    let output = memleak(&report, &["--json", "--append", "-p", &pid, "0.2", "1"]);
    assert_eq!(code(output.status), 0, "{output:?}");
    let all = read(&report);
    assert!(all.starts_with(&first), "{all}");
    assert_eq!(all.lines().map(Report::parse).count(), 3);
}

/// Our own file is for the one who has asked, under sudo the one who has called it.
#[test]
fn a_new_file_belongs_to_who_has_asked() {
    let _alone = alone();
    let folder = Folder::new("owner");
    let target = sizes();
    let pid = target.pid().to_string();
    for (uid, gid) in [(0, 0), (12_345, 12_346)] {
        let report = folder.at(&format!("report-{uid}"));
        let mut command = Command::new(MEMLEAK);
        command.arg("--output").arg(&report).args(["-p", &pid, "0.2", "1"]);
        if uid != 0 {
            command.env("SUDO_UID", uid.to_string()).env("SUDO_GID", gid.to_string());
        }
        assert_eq!(code(command.status().expect("memleak")), 0);
        let found = fs::metadata(&report).expect("the report");
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (uid, gid, 0o600));
    }
}

/// A running program would be killed by it (its pages are gone), and one that has ended is lost all
/// the same.
#[test]
fn the_program_itself_is_refused_under_each_of_its_names() {
    let _alone = alone();
    let folder = Folder::new("program");
    let at = |name: &str| folder.at(name);
    fs::copy(build("one_function.c", Link::Dynamic, &[]), at("x")).expect("copying");
    fs::hard_link(at("x"), at("hard")).expect("a hard link");
    symlink("x", at("soft")).expect("a link");
    let code_of_x = fs::read(at("x")).expect("reading");
    let program = at("x");
    for output in ["x", "hard", "soft"] {
        let ended = memleak(&at(output), &["--", text(&program), "free"]);
        assert_one_line(&ended, 1, &[output, "is a program"], output);
    }
    // The command is another program, which becomes this one.
    let script = format!("exec {} free", text(&program));
    let ended = memleak(&at("hard"), &["--", "sh", "-c", &script]);
    assert_eq!(code(ended.status), 1, "{ended:?}");
    let mut target = Running::start(Command::new(&program).args(["free", "wait"]));
    target.expect("READY");
    let pid = target.pid().to_string();
    let ended = memleak(&at("hard"), &["-p", &pid, "0.2", "1"]);
    assert_one_line(&ended, 1, &["is a program"], "a running one");
    let libc = fs::read_to_string(format!("/proc/{pid}/maps")).expect("its maps");
    let libc = libc.lines().find_map(|line| line.contains("libc.so").then(|| line.split(' ').next_back()));
    let libc = PathBuf::from(libc.flatten().expect("libc"));
    let ended = memleak(&libc, &["-p", &pid, "0.2", "1"]);
    assert_one_line(&ended, 1, &["library"], "a library of it");
    assert_eq!(fs::read(at("x")).expect("reading"), code_of_x, "not touched");
    assert!(!target.has_ended());
}

#[test]
fn a_link_that_others_could_have_made_is_refused() {
    let _alone = alone();
    let (folder, victims) = (Folder::new("links"), Folder::new("victims"));
    let (link, victim) = (folder.at("report"), victims.at("victim"));
    fs::write(&victim, OLD).expect("written");
    symlink(&victim, &link).expect("a link");
    let target = sizes();
    let pid = target.pid().to_string();
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o1777)).expect("opening it");
    let ended = memleak(&link, &["-p", &pid, "0.2", "1"]);
    assert_one_line(&ended, 1, &["symbolic link", "others can write"], "a link in a folder like /tmp");
    assert_eq!(read(&victim), OLD);
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o755)).expect("closing it");
    assert_eq!(code(memleak(&link, &["-p", &pid, "0.2", "1"]).status), 0);
    assert!(read(&victim).contains("outstanding"), "a link of one's own is followed");
}

#[test]
fn fifos_and_streams_are_written_as_they_are() {
    let _alone = alone();
    let folder = Folder::new("fifo");
    let fifo = folder.at("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    let target = sizes();
    let pid = target.pid().to_string();
    let arguments = ["--json", "-p", &pid, "0.2", "1"];
    let mut unread = Command::new(MEMLEAK);
    unread.arg("--output").arg(&fifo).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let unread = unread.spawn().expect("memleak");
    assert!(wait_for_end(unread.id(), crate::process::patience()), "it waits for a reader");
    let unread = unread.wait_with_output().expect("memleak");
    assert_one_line(&unread, 1, &["fifo", "reads"], "nobody reads it");

    let reader = Command::new("cat").arg(&fifo).stdout(Stdio::piped()).spawn().expect("cat");
    // Opening it for both keeps it open until memleak has opened it too.
    let both = File::options().read(true).write(true).open(&fifo).expect("the FIFO");
    assert_eq!(code(memleak(&fifo, &arguments).status), 0);
    drop(both);
    let heard = reader.wait_with_output().expect("cat").stdout;
    assert_eq!(String::from_utf8_lossy(&heard).lines().map(Report::parse).count(), 1);

    for output in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        let ended = memleak(Path::new(output), &arguments);
        assert_eq!(code(ended.status), 0, "{output}: {ended:?}");
        assert_eq!(String::from_utf8_lossy(&ended.stdout).lines().map(Report::parse).count(), 1, "{output}");
    }
    assert_eq!(code(memleak(Path::new("/dev/null"), &arguments).status), 0);
}
