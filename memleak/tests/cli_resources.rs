//! Resources on the command line: which are traced, which are listed, which files are read.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use memleak::{probe::spec::UserResource, settings::Settings};
use memleak_common::probe::Resource;
use tempfile::TempDir;

const FOO: &[&str] = &["--acquire", "libfoo.so:foo_open -> ret", "--release", "libfoo.so:foo_close(arg1)"];

/// Two resources, `pool` and `lease`.
const FILE: &str = r#"
[[resource]]
name = "pool"
description = "pools of the application"
acquire = ["app:pool_new(arg1 size) -> ret"]
release = ["app:pool_free(arg1)"]

[[resource]]
name = "lease"
acquire = ["app:lease_take -> *arg2 if ret == 0", "app:lease_dup -> ret"]
release = ["app:lease_drop(arg1)"]
"#;

/// Built-in resources, and the names of the user's.
fn selected(arguments: &[&str]) -> (Vec<Resource>, Vec<String>) {
    let all = ["memleak", "-p", "1"].iter().chain(arguments);
    let settings =
        Settings::from_args(all).unwrap_or_else(|message| panic!("{arguments:?}: {}", message.text));
    let names: Vec<String> =
        settings.capture.user_resources.into_iter().map(|resource| resource.name).collect();
    let is_built_in = |resource: &Resource| !matches!(resource, Resource::Custom(_));
    let (built_in, user): (Vec<_>, Vec<_>) = settings.capture.resources.into_iter().partition(is_built_in);
    assert_eq!(user, (0..names.len() as u16).map(Resource::Custom).collect::<Vec<_>>(), "{arguments:?}");
    (built_in, names)
}

fn user_resources(arguments: &[&str]) -> Vec<UserResource> {
    let all = ["memleak", "-p", "1"].iter().chain(arguments);
    Settings::from_args(all).expect("is right").capture.user_resources
}

/// A folder with the file above.
fn with_file() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("app.toml");
    fs::write(&path, FILE).expect("written");
    (folder, path)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Arguments in pieces, the built-in resources and the names of the user's that they select.
type Case<'a> = (&'a [&'a [&'a str]], &'a [Resource], &'a [&'a str]);

#[test]
fn naming_resources_replaces_the_default() {
    const HEAP: Resource = Resource::Heap;
    const MMAP: Resource = Resource::Mmap;
    let (_folder, file) = with_file();
    let file = ["--resources-file", text(&file)];
    let cases: &[Case<'_>] = &[
        (&[], &[HEAP, MMAP], &[]),
        (&[&["-r", "mmap"]], &[MMAP], &[]),
        (&[&["-r", "fd,sqlite-stmt"]], &[Resource::Fd, Resource::SqliteStmt], &[]),
        (&[&["-r", "mmap, heap,mmap"]], &[MMAP, HEAP], &[]),
        (&[&["-r", "mmap", "--resource=heap"]], &[MMAP, HEAP], &[]),
        (&[FOO], &[], &["foo_open"]),
        (&[FOO, &["-r", "heap"]], &[HEAP], &["foo_open"]),
        (&[FOO, &["-r", "foo_open"]], &[], &["foo_open"]),
        (&[&file], &[], &["pool", "lease"]),
        (&[&file, &["-r", "lease"]], &[], &["lease"]),
        (&[&file, &["-r", "lease,mmap"]], &[MMAP], &["lease"]),
        (&[FOO, &file], &[], &["foo_open", "pool", "lease"]),
        (&[FOO, &file, &["-r", "pool"]], &[], &["foo_open", "pool"]),
    ];
    for (arguments, built_in, user) in cases {
        let arguments = arguments.concat();
        let user = user.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(selected(&arguments), (built_in.to_vec(), user), "{arguments:?}");
    }
}

#[test]
fn pairs_go_by_the_order_in_which_they_were_typed() {
    let found = user_resources(&[
        "--acquire",
        "a -> ret",
        "--acquire",
        "a2 -> ret",
        "--release",
        "r(arg1)",
        "--acquire",
        "b -> ret",
        "--release",
        "s(arg1)",
        "--release",
        "x=t(arg1)",
        "--acquire",
        "x=c -> ret",
    ]);
    let shape: Vec<_> = found
        .iter()
        .map(|resource| (resource.name.as_str(), resource.acquires.len(), resource.releases.len()))
        .collect();
    assert_eq!(shape, [("a", 2, 1), ("b", 1, 1), ("x", 1, 1)]);
}

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// All that stands in quotes after `option`.
fn examples(text: &str, option: &str) -> Vec<String> {
    let quoted = |rest: &str| Some(rest.split_once('\'')?.1.split_once('\'')?.0.to_owned());
    let starts = text.match_indices(option).map(|(at, _)| &text[at + option.len()..]);
    starts.filter(|rest| rest.starts_with(" '")).filter_map(quoted).collect()
}

/// What docs/resources.md and `--help` show can be typed.
#[test]
fn every_example_can_be_typed() {
    let page = fs::read_to_string(project("docs/resources.md")).expect("the page");
    let help = Settings::from_args(["memleak", "--help"]).expect_err("ends the program").text;
    for (text, at_least) in [(page, 5), (help, 2)] {
        // Lines are as long as the terminal has it.
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let acquires = examples(&text, "--acquire");
        let releases = examples(&text, "--release");
        assert!(acquires.len() >= at_least && acquires.len() == releases.len(), "{acquires:?} {releases:?}");
        for (acquire, release) in acquires.iter().zip(&releases) {
            assert_eq!(user_resources(&["--acquire", acquire, "--release", release]).len(), 1);
        }
    }
}

#[test]
fn the_worked_example_can_be_read() {
    let file = project("examples/resources/pairs.toml");
    let found = user_resources(&["--resources-file", text(&file)]);
    let names: Vec<&str> = found.iter().map(|resource| resource.name.as_str()).collect();
    assert_eq!(names, ["ticket", "lease", "slot", "couple", "shared", "block"]);
    assert!(found.iter().all(|resource| !resource.description.is_empty() && !resource.unit.is_empty()));
    let page = fs::read_to_string(project("docs/resources.md")).expect("the page");
    let start = page.find("    [[resource]]").expect("the example of a file");
    let end = start + page[start..].find("\nor in short").expect("its end");
    let example: String = page[start..end].lines().map(|line| format!("{}\n", line.trim_start())).collect();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("page.toml");
    fs::write(&file, example).expect("written");
    let found = user_resources(&["--resources-file", text(&file)]);
    assert_eq!((found.len(), found[0].name.as_str()), (1, "db"));
}

/// The grammar stands in docs/resources.md as it stands beside the code.
#[test]
fn the_page_has_the_grammar_of_the_code() {
    let rules = |text: &str| -> Vec<String> {
        let lines = text.lines().map(|line| line.trim_start_matches("//!").trim());
        let rules =
            lines.skip_while(|line| !line.starts_with("acquire   = ")).take_while(|line| !line.is_empty());
        let rules = rules.filter(|line| !line.starts_with("function") && !line.starts_with("object"));
        rules.take(13).map(str::to_owned).collect()
    };
    let code = fs::read_to_string(project("memleak/src/probe/spec/mod.rs")).expect("the code");
    let page = fs::read_to_string(project("docs/resources.md")).expect("the page");
    let (code, page) = (rules(&code), rules(&page));
    assert!(code.len() >= 12 && code[11].starts_with("name"), "{code:?}");
    assert_eq!(code[..12], page[..12]);
}

#[test]
fn two_resources_of_one_name_are_refused() {
    let (_folder, file) = with_file();
    let pair = ["--acquire", "pool=f -> ret", "--release", "g(arg1)"];
    let all = ["memleak", "-p", "1", "--resources-file", text(&file)];
    let message = Settings::from_args(all.iter().chain(&pair)).expect_err("is refused");
    assert_eq!(message.status, 2);
    assert!(message.text.contains("two resources are named pool; give one"), "{}", message.text);
}

/// The program itself, with `config` as its configuration.
fn run(config: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memleak"));
    command.args(arguments).env("XDG_CONFIG_HOME", config).output().expect("memleak runs")
}

fn lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect()
}

/// A configuration with the file above, one that is wrong and one that others can write to.
fn configuration() -> TempDir {
    let config = tempfile::tempdir().expect("a folder");
    let folder = config.path().join("memleak/resources.d");
    fs::create_dir_all(&folder).expect("a folder");
    let put = |name: &str, text: &str, mode: u32| {
        let path = folder.join(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode");
    };
    put("app.toml", FILE, 0o644);
    put("bad.toml", "[[resource]]\nnam = 'x'\n", 0o644);
    put("open.toml", &FILE.replace("\"pool\"", "\"open\""), 0o666);
    put("twice.toml", &FILE.replace("\"lease\"", "\"heap\""), 0o644);
    config
}

#[test]
fn lists_a_line_for_each_resource() {
    let config = configuration();
    let output = run(config.path(), &[&["--list-resources"], FOO].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let found = lines(&output.stdout);
    let names: Vec<&str> = found.iter().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names[..2], ["heap", "mmap"]);
    assert_eq!(names[names.len() - 3..], ["foo_open", "pool", "lease"]);
    assert!(found[0].contains("malloc, calloc, realloc") && found[0].contains(" more"), "{found:?}");
    let last = &found[found.len() - 2..];
    assert!(last[0].ends_with("pools of the application: pool_new, pool_free"), "{last:?}");
    assert!(last[1].ends_with(": lease_take, lease_dup, lease_drop"), "{last:?}");
    let warnings = lines(&output.stderr);
    assert_eq!(warnings.len(), 4, "{warnings:?}");
    assert!(warnings.iter().all(|line| line.starts_with("memleak: warning: ")), "{warnings:?}");
    for (line, expected) in warnings.iter().zip([
        "bad.toml:2:1: unknown key 'nam'; did you mean name?",
        "open.toml: ignored: writable by other users",
        "resource pool is left out",
        "resource heap is left out",
    ]) {
        assert!(line.contains(expected), "{line}");
    }
}

#[test]
fn the_configuration_is_read_where_a_name_needs_it() {
    let config = configuration();
    // Process 0 is none: the command line is refused after the resources have been found.
    let output = run(config.path(), &["-p", "0", "-r", "lease"]);
    let errors = lines(&output.stderr);
    assert_eq!((output.status.code(), errors.len()), (Some(2), 1), "{errors:?}");
    assert!(errors[0].contains("'0' is not a process ID"), "{errors:?}");
    let output = run(config.path(), &["-p", "0", "-r", "leese"]);
    let errors = lines(&output.stderr);
    assert!(errors[0].contains("'leese' is not a resource; did you mean lease?"), "{errors:?}");
    // It is described where others could have written it, and why that is not read is said.
    let output = run(config.path(), &["-p", "0", "-r", "open"]);
    let errors = lines(&output.stderr);
    assert_eq!((output.status.code(), errors.len()), (Some(2), 1), "{errors:?}");
    for words in
        ["'open' is not a resource", "open.toml: ignored: writable by other users", "bad.toml:2:1: unknown"]
    {
        assert!(errors[0].contains(words), "{errors:?}");
    }
}
