//! The man page and the shells' completions are those of this command line: `cargo xtask docs`
//! writes them.

use std::{fs, path::Path, process::Command};

#[test]
fn what_is_generated_has_not_drifted() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    for (arguments, file) in [
        (&["--man"][..], "memleak.1"),
        (&["--completions", "bash"], "completions/memleak.bash"),
        (&["--completions", "zsh"], "completions/_memleak"),
        (&["--completions=fish"], "completions/memleak.fish"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_memleak")).args(arguments).output().expect("memleak");
        assert!(output.status.success(), "{arguments:?}");
        let kept =
            fs::read(docs.join(file)).unwrap_or_else(|error| panic!("{file}: {error}: cargo xtask docs"));
        assert!(output.stdout == kept, "{file} is not what memleak prints: cargo xtask docs");
    }
}

#[test]
fn an_unknown_shell_is_one_line() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_memleak")).args(["--completions", "csh"]).output().expect("memleak");
    assert_eq!(output.status.code(), Some(2));
    let expected = "memleak: --completions: 'csh' is not a shell; give bash, zsh, fish or elvish\n";
    assert_eq!(String::from_utf8_lossy(&output.stderr), expected);
}

/// Words have their own help and their own errors, a line each.
#[test]
fn words_are_read_like_options() {
    let run = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_memleak")).args(arguments).output().expect("memleak")
    };
    let help = run(&["diff", "--help"]);
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("red has grown"));
    for (arguments, status) in [
        (&["diff", "a"][..], 2),
        (&["report"], 2),
        (&["report", "a", "--nonsense"], 2),
        (&["report", "/nonexistent/a"], 1),
        (&["report", "Cargo.toml"], 1),
        (&["report", "a", "--format", "xml"], 2),
        (&["report", "a", "--pprof", "-", "--html", "-"], 2),
        (&["report", "a", "--fail-if", "new"], 2),
        (&["diff", "a", "b", "--fail-if", "often"], 2),
        (&["diff", "a", "b", "--suppressions", "/nonexistent/a"], 2),
    ] {
        let output = run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {error}");
        assert!(error.starts_with("memleak: ") && error.lines().count() == 1, "{arguments:?}: {error}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}
