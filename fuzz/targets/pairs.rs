//! Pairs of functions as users write them, on the command line and in files.
#![no_main]

use memleak::probe::spec::{SpecKind, SpecError, parse_acquire, parse_release, toml::parse_file};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input);
    // What can be read is written as the same; what cannot is wrong at a column that the text has.
    let columns = 1..=text.chars().count() + 1;
    let check = |error: SpecError, kind: SpecKind| {
        assert!(columns.contains(&error.column) && error.kind == kind, "{error}");
    };
    match parse_acquire(&text) {
        Ok(read) => assert_eq!(parse_acquire(&read.to_string()), Ok(read)),
        Err(error) => check(error, SpecKind::Acquire),
    }
    match parse_release(&text) {
        Ok(read) => assert_eq!(parse_release(&read.to_string()), Ok(read)),
        Err(error) => check(error, SpecKind::Release),
    }
    if let Err(error) = parse_file("f", &text) {
        assert!(error.line <= text.matches('\n').count() + 1 && error.column <= text.chars().count() + 1, "{error}");
    }
});
