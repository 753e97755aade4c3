//! What goes with the view on a terminal (`--tui`) and with lists beside reports, and what does
//! not.

use std::process::Command;

/// The exit status and the line on standard error.
fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_memleak"))
        .args(arguments)
        .args(["-p", "1"])
        .output()
        .expect("memleak");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_view_has_standard_output_for_itself() {
    for (arguments, other) in [
        (&["--tui", "--json"][..], "--format json"),
        (&["--tui", "--folded"], "--format folded"),
        (&["--tui", "--format", "text"], "--format text"),
        (&["--tui", "-t"], "-t"),
        (&["--tui", "--html", "-"], "--html -"),
        (&["--tui", "--pprof", "-", "--output", "x"], "--pprof -"),
    ] {
        let why = "the view has the terminal, and this would be written there as well";
        let line = format!("memleak: --tui with {other}: {why}; name a file for it (--output FILE)\n");
        assert_eq!(refused(arguments), (Some(2), line));
    }
}

#[test]
fn a_view_needs_a_terminal() {
    let (status, line) = refused(&["--tui"]);
    assert_eq!((status, line.lines().count()), (Some(1), 1), "{line}");
    let known = [
        "memleak: --tui: standard output is no terminal; run it in one, or leave --tui out\n",
        "memleak: --tui: this memleak was built without it; leave it out, or build with --features tui\n",
    ];
    assert!(known.contains(&line.as_str()), "{line}");
}

#[test]
fn what_is_released_at_once_is_known_by_lifetimes_alone() {
    let (status, line) = refused(&["--temporary", "--no-lifetimes"]);
    assert_eq!(status, Some(2));
    assert_eq!(
        line,
        "memleak: --temporary with --no-lifetimes: how long blocks live is not kept then; keep one of them\n"
    );
}
