//! Mangled names of C++ and Rust, which back references let stand for far more than their length.
#![no_main]

use memleak::symbolize::demangle::{demangle, printable_bytes};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let text = demangle(&String::from_utf8_lossy(input));
    assert!(!text.contains(char::is_control));
    // 64 KiB, the last piece, and one byte made a character of three; a name that is none stays as
    // it is.
    assert!(text.len() <= (128 << 10).max(input.len() * 3), "{}", text.len());
    printable_bytes(input);
});
