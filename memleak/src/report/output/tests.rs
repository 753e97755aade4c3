use std::{
    io::{Seek as _, SeekFrom},
    os::{
        fd::AsRawFd as _,
        unix::fs::{PermissionsExt as _, symlink},
    },
};

use rustix::fs::{FileType, Mode, mknodat};

use super::*;

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().expect("a folder")
}

/// As /tmp is.
fn open_to_all(folder: &Path) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o1777)).expect("opening it to all");
}

fn stream(path: &Path, append: bool) -> Result<File, OutputError> {
    open_stream(path, append, &Protected::default())
}

fn write(path: &Path, append: bool, text: &str) {
    stream(path, append).expect("opens").write_all(text.as_bytes()).expect("writes");
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("reads")
}

fn names(folder: &Path) -> Vec<OsString> {
    let mut names: Vec<_> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name()).collect();
    names.sort();
    names
}

#[test]
fn a_new_file_is_for_its_owner_alone_whatever_the_folder_is() {
    let folder = folder();
    for open in [false, true] {
        if open {
            open_to_all(folder.path());
        }
        let path = folder.path().join(format!("report-{open}"));
        write(&path, false, "one\n");
        assert_eq!(read(&path), "one\n");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o7777, 0o600);
    }
}

#[test]
fn what_is_there_is_replaced_or_kept() {
    let folder = folder();
    let path = folder.path().join("report");
    fs::write(&path, "last night's, which is longer\n").expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("its mode");
    check(&path, &Protected::default()).expect("may be written");
    assert_eq!(read(&path), "last night's, which is longer\n", "looked at and not touched");
    write(&path, false, "one\n");
    write(&path, true, "two\n");
    assert_eq!(read(&path), "one\ntwo\n");
    assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o644, "its mode is its owner's choice");
    write(&folder.path().join("new"), true, "three\n");
    assert_eq!(read(&folder.path().join("new")), "three\n");
}

#[test]
fn links_of_ones_own_are_followed() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("below")).expect("a folder");
    symlink("below/report", at("relative")).expect("a link");
    symlink(at("relative"), at("absolute")).expect("a link");
    symlink("below", at("sideways")).expect("a link");
    for (name, text) in
        [("relative", "a"), ("absolute", "b"), ("sideways/report", "c"), ("below/../sideways/./report", "d")]
    {
        write(&at(name), false, text);
        assert_eq!(read(&at("below/report")), text, "{name}");
    }
    symlink("circle", at("circle")).expect("a link");
    let error = stream(&at("circle"), false).expect_err("no end");
    assert!(
        matches!(&error, OutputError::System(error) if error.raw_os_error() == Some(libc::ELOOP)),
        "{error}"
    );
}

/// A file of root's is what a link in /tmp would lead to.
#[test]
fn links_where_others_can_write_are_refused() {
    let (folder, victims) = (folder(), folder());
    let victim = victims.path().join("victim");
    fs::write(&victim, "kept").expect("written");
    let at = |name: &str| folder.path().join(name);
    symlink(&victim, at("link")).expect("a link");
    symlink(victims.path(), at("folder")).expect("a link");
    symlink(victims.path().join("not there"), at("dangling")).expect("a link");
    fs::hard_link(&victim, at("hard")).expect("a hard link");
    for mode in [0o1777, 0o777, 0o775] {
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).expect("opening it");
        for name in ["link", "folder/victim", "folder/other", "dangling"] {
            let error = stream(&at(name), false).expect_err(name);
            assert!(matches!(error, OutputError::Link(_)), "{name}: {error}");
            assert!(matches!(check(&at(name), &Protected::default()), Err(OutputError::Link(_))), "{name}");
            let whole = WholeFile::create(&at(name), &Protected::default());
            assert!(matches!(whole, Err(OutputError::Link(_))), "{name}");
        }
        for append in [false, true] {
            let error = stream(&at("hard"), append).expect_err("a hard link");
            assert!(matches!(error, OutputError::Foreign), "{error}");
        }
    }
    assert_eq!(read(&victim), "kept");
    assert_eq!(names(victims.path()), ["victim"]);
}

#[test]
fn a_folder_of_somebody_elses_is_one_that_others_can_write_to() {
    let folder = folder();
    let (path, link) = (folder.path().join("report"), folder.path().join("link"));
    fs::write(&path, "kept").expect("written");
    symlink("report", &link).expect("a link");
    let owner = fs::metadata(folder.path()).expect("there").uid();
    let stat = rustix::fs::stat(folder.path()).expect("there");
    let stranger = Caller::of(owner + 1, None, None);
    // Root's folders are trusted by all.
    assert_eq!(stranger.can_be_written_by_others(&stat), owner != 0);
    assert!(!Caller::of(owner, None, None).can_be_written_by_others(&stat));
    if owner != 0 {
        let protected = Protected::default();
        assert!(matches!(open_stream_for(&link, false, &protected, stranger), Err(OutputError::Link(_))));
        assert!(matches!(open_stream_for(&path, false, &protected, stranger), Err(OutputError::Foreign)));
    }
    assert_eq!(read(&path), "kept");
}

#[test]
fn the_caller_under_sudo_is_who_has_typed_it() {
    assert_eq!(Caller::of(0, Some(1000), Some(100)), Caller { uid: 1000, owner: Some((1000, 100)) });
    assert_eq!(Caller::of(0, None, None), Caller { uid: 0, owner: None });
    assert_eq!(Caller::of(0, Some(1000), None), Caller { uid: 0, owner: None });
    // Anybody can set them; only root can give files away.
    assert_eq!(Caller::of(7, Some(1000), Some(100)), Caller { uid: 7, owner: None });
    let caller = Caller::of(0, Some(1000), Some(100));
    assert!(caller.trusts(0) && caller.trusts(1000) && !caller.trusts(7));
}

#[test]
fn a_traced_program_is_refused_under_each_of_its_names() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("program"), "code").expect("written");
    fs::hard_link(at("program"), at("hard")).expect("a hard link");
    symlink("hard", at("soft")).expect("a link");
    let mut protected = Protected::default();
    protected.add_command(at("program").as_os_str());
    for name in ["program", "hard", "soft", "./program"] {
        for append in [false, true] {
            let error = open_stream(&at(name), append, &protected).expect_err(name);
            assert!(matches!(error, OutputError::Program), "{name}: {error}");
        }
        assert!(matches!(WholeFile::create(&at(name), &protected), Err(OutputError::Program)), "{name}");
        assert!(matches!(check(&at(name), &protected), Err(OutputError::Program)), "{name}");
    }
    assert_eq!(read(&at("program")), "code");
}

#[test]
fn a_program_is_refused_also_if_nobody_has_told_of_it() {
    let folder = folder();
    for (name, text) in [("elf", "\x7fELF\x02"), ("almost", "\x7fEL")] {
        fs::write(folder.path().join(name), text).expect("written");
    }
    assert!(matches!(stream(&folder.path().join("elf"), false), Err(OutputError::Program)));
    assert!(stream(&folder.path().join("almost"), false).is_ok());
}

#[test]
fn processes_and_commands_protect_their_files() {
    let mut ours = Protected::default();
    ours.add_process(std::process::id());
    let program = std::env::current_exe().expect("our program");
    assert!(matches!(check(&program, &ours), Err(OutputError::Program)));
    let mut command = Protected::default();
    command.add_command(OsStr::new("sh"));
    let sh = ["/bin/sh", "/usr/bin/sh"].map(PathBuf::from).into_iter().find(|path| path.exists());
    assert!(matches!(check(&sh.expect("a shell"), &command), Err(OutputError::Program)));
}

#[test]
fn a_fifo_wants_a_reader() {
    let folder = folder();
    let path = folder.path().join("fifo");
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a FIFO");
    check(&path, &Protected::default()).expect("there may be a reader by then");
    assert!(matches!(stream(&path, false), Err(OutputError::NoReader)));
    assert!(matches!(WholeFile::create(&path, &Protected::default()), Err(OutputError::NoReader)));
    let mut reader = rustix::fs::open(&path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())
        .map(File::from)
        .expect("a reader");
    write(&path, false, "one\n");
    let mut whole = WholeFile::create(&path, &Protected::default()).expect("opens");
    whole.write_all(b"two\n").expect("writes");
    whole.commit().expect("is there already");
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("reads");
    assert_eq!(text, "one\ntwo\n");
    assert!(FileType::from_raw_mode(fs::metadata(&path).expect("there").mode()).is_fifo(), "not replaced");
}

#[test]
fn devices_and_descriptors_are_written_as_they_are() {
    write(Path::new("/dev/null"), false, "nothing");
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(b"before ").expect("writes");
    for (path, append) in [("/proc/self/fd", false), ("/dev/fd", true)] {
        write(&Path::new(path).join(file.as_raw_fd().to_string()), append, "after ");
    }
    file.seek(SeekFrom::Start(0)).expect("seeks");
    let mut text = String::new();
    file.read_to_string(&mut text).expect("reads");
    assert_eq!(text, "before after after ");
}

#[test]
fn what_is_no_file_is_told_apart() {
    let folder = folder();
    for path in [folder.path().to_owned(), folder.path().join("new/"), PathBuf::from("/"), "..".into()] {
        let error = stream(&path, false).expect_err("no file");
        assert!(matches!(error, OutputError::Directory), "{}: {error}", path.display());
    }
    let error = stream(&folder.path().join("missing/report"), false).expect_err("no such folder");
    assert!(
        matches!(&error, OutputError::System(error) if error.kind() == io::ErrorKind::NotFound),
        "{error}"
    );
    fs::write(folder.path().join("file"), "").expect("written");
    let error = stream(&folder.path().join("file/report"), false).expect_err("no folder");
    assert!(
        matches!(&error, OutputError::System(error) if error.raw_os_error() == Some(libc::ENOTDIR)),
        "{error}"
    );
    assert!(stream(Path::new(""), false).is_err());
}

#[test]
fn a_file_of_one_report_is_there_whole_or_not_at_all() {
    let folder = folder();
    let path = folder.path().join("profile");
    for old in [None, Some("old")] {
        if let Some(old) = old {
            fs::write(&path, old).expect("written");
        }
        let mut whole = WholeFile::create(&path, &Protected::default()).expect("begins");
        whole.write_all(b"half").expect("writes");
        assert_eq!(fs::read_to_string(&path).ok().as_deref(), old, "nothing is seen of it yet");
        drop(whole);
        assert_eq!(fs::read_to_string(&path).ok().as_deref(), old, "and nothing stays of it");
        assert_eq!(names(folder.path()).len(), usize::from(old.is_some()));
    }
    let mut whole = WholeFile::create(&path, &Protected::default()).expect("begins");
    whole.write_all(b"new").expect("writes");
    whole.commit().expect("takes its name");
    assert_eq!(read(&path), "new");
    assert_eq!(names(folder.path()), ["profile"]);
    assert_eq!(fs::metadata(&path).expect("there").mode() & 0o7777, 0o600);
}

#[test]
fn long_names_have_room_for_the_temporary_one() {
    let folder = folder();
    let path = folder.path().join("x".repeat(255));
    let mut whole = WholeFile::create(&path, &Protected::default()).expect("begins");
    whole.write_all(b"all").expect("writes");
    whole.commit().expect("takes its name");
    assert_eq!(read(&path), "all");
}

#[test]
fn errors_are_one_line_that_says_what_to_do() {
    let errors = [
        OutputError::from(io::Error::from(io::ErrorKind::NotFound)),
        OutputError::Directory,
        OutputError::Program,
        OutputError::Link("a".to_owned()),
        OutputError::Foreign,
        OutputError::NoReader,
    ];
    for error in errors {
        let line = error.to_string();
        assert!(line.contains("; ") && !line.contains('\n'), "{line}");
    }
}
