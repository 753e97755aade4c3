//! Saved reports that are cut, damaged, or made by somebody who means harm: one line, or a report.

use std::{
    io::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
};

use flate2::{Compression, write::GzEncoder};
use memleak::{
    offline::diff::Diff,
    report::{
        condition::Facts,
        format::{
            FILE_KINDS, KINDS, Options, Style,
            saved::{self, SavedError},
        },
        model::Report,
    },
    tui::{State, ViewLook, draw},
};
use ratatui::{Terminal, backend::TestBackend};
use serde_json::{Value, json};

use crate::reports::{cases, wordcount};

fn saved(report: &Report) -> Vec<u8> {
    let mut bytes = Vec::new();
    (saved::KIND.new)(&Options::new(10)).report(report, &mut bytes).expect("written");
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(bytes).expect("packed");
    packed.finish().expect("packed")
}

/// What is said of a file, in one line that is not long.
fn error(bytes: &[u8]) -> SavedError {
    let error = saved::read_bytes(bytes).expect_err("an error");
    let line = error.to_string();
    assert!(line.len() < 400 && line.contains("; "), "{line}");
    error
}

/// Cut after any byte, and with any byte changed, packed or not.
#[test]
fn a_damaged_file_is_said_to_be() {
    let whole = saved(&wordcount());
    let packed = gzip(&whole);
    for bytes in [&whole, &packed] {
        for length in (0..bytes.len() - 1).step_by(bytes.len() / 300) {
            assert!(!matches!(error(&bytes[..length]), SavedError::System(_)), "{length}");
        }
    }
    for at in (0..packed.len()).step_by(7) {
        let mut changed = packed.clone();
        changed[at] ^= 0x55;
        // The header's name and time may be any.
        let _ = saved::read_bytes(&changed).map(use_up);
    }
    assert!(matches!(error(&[&whole[..], b"x"].concat()), SavedError::Damaged(_)));
    assert!(saved::read_bytes(&[&whole[..], b"\n \n"].concat()).is_ok());
}

#[test]
fn other_versions_and_other_files_are_told_apart() {
    for (text, wanted) in [
        ("{\"memleak_report\":2}", "of a later memleak (form 2)"),
        (" {\n \"memleak_report\" : 99999999999 ,", "of a later memleak (form 4294967295)"),
        ("{\"memleak_report\":-1}", "not a saved report"),
        ("{\"memleak_report\":\"1\"}", "not a saved report"),
        ("{\"report\":{},\"memleak_report\":1}", "not a saved report"),
        ("{\"memleak_report\":1}", "is damaged: missing field `report`"),
        ("{\"memleak_report\":1,\"report\":[[[[", "is damaged"),
        ("\u{feff}{}", "not a saved report"),
    ] {
        let line = error(text.as_bytes()).to_string();
        assert!(line.contains(wanted), "{text}: {line}");
    }
    let deep = format!("{{\"memleak_report\":1,\"x\":{}", "[".repeat(1 << 20));
    assert!(matches!(error(deep.as_bytes()), SavedError::Damaged(_)));
    // What is in the file is not repeated at any length.
    let long = format!("{{\"memleak_report\":1,\"report\":\"{}\"}}", "x".repeat(1 << 20));
    assert!(error(long.as_bytes()).to_string().contains("xxx..."));
}

/// What unpacks to more than there is room for is not unpacked.
#[test]
fn a_file_that_has_no_end_is_given_up() {
    let bomb = [&b"{\"memleak_report\":1,"[..], &vec![b' '; 4 << 20]].concat();
    let path = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(path.path(), gzip(&bomb)).expect("written");
    let error = saved::read(path.path(), 2 << 20).expect_err("too large").to_string();
    assert!(error.starts_with("is larger than 2 MiB"), "{error}");
    let error = saved::read(path.path(), u64::MAX).expect_err("cut").to_string();
    assert!(error.starts_with("is damaged: EOF"), "{error}");
    // It is not looked at to its end.
    let error = saved::read("/dev/zero".as_ref(), u64::MAX).expect_err("no report");
    assert!(matches!(error, SavedError::Other), "{error}");
}

/// Makes all that can be made of it.
fn use_up(report: Report) {
    // Blocks that are not listed are made up, a million of a stack: not for each of so many
    // reports.
    let is_large = report.stacks.iter().any(|stack| stack.count > 10_000);
    for kind in KINDS.iter().chain(&FILE_KINDS) {
        let form = (kind.new)(&Options::new(10));
        if !(is_large && form.needs_blocks()) {
            let _ = form.report(&report, &mut Vec::new());
        }
    }
    let diff = Diff::of(&report, &report);
    diff.write_text(10, Style::default(), &mut Vec::new()).expect("written");
    let before = wordcount();
    Diff::of(&before, &report).write_text(10, Style::default(), &mut Vec::new()).expect("written");
    let _ = Facts::of_run(&report);
    let mut state = State::new(ViewLook::default());
    state.show(report.into());
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("a terminal");
    terminal.draw(|frame| draw(frame, &mut state)).expect("drawn");
}

/// The values in a tree, by number: the one of this number becomes another.
fn change(value: &mut Value, at: &mut usize, to: &Value) -> bool {
    if *at == 0 {
        *value = to.clone();
        return true;
    }
    *at -= 1;
    match value {
        // Those between are like these.
        Value::Array(values) => match values.as_mut_slice() {
            [first, .., last] => [first, last].into_iter().any(|value| change(value, at, to)),
            values => values.iter_mut().any(|value| change(value, at, to)),
        },
        Value::Object(fields) => fields.values_mut().any(|value| change(value, at, to)),
        _ => false,
    }
}

/// Any number as large or small as it can be, any list empty: a report, or one line, and no panic.
/// (Tests are built so that numbers that overflow panic.)
#[test]
fn no_value_brings_it_down() {
    let mut failed = Vec::new();
    let wild = [
        json!(0),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1e300),
        json!(null),
        json!([]),
        json!("\u{1b}[2J<script>"),
    ];
    let cases = cases().into_iter().filter(|(name, _)| ["allocations", "memory", "resources"].contains(name));
    for (name, report) in cases {
        let whole: Value = serde_json::from_slice(&saved(&report)).expect("JSON");
        for to in &wild {
            for number in 0.. {
                let (mut changed, mut at) = (whole.clone(), number);
                if !change(&mut changed, &mut at, to) {
                    break;
                }
                let bytes = serde_json::to_vec(&changed).expect("JSON");
                let Ok(report) = saved::read_bytes(&bytes) else { continue };
                if catch_unwind(AssertUnwindSafe(|| use_up(report))).is_err() {
                    failed.push(format!("{name}: value {number} as {to}"));
                }
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
