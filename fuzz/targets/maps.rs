//! /proc/PID/maps: the kernel's text, but paths are the target's words.
#![no_main]

use memleak::proc::maps::parse_maps;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let lines = input.split(|byte| *byte == b'\n').count();
    if let Ok(mappings) = parse_maps(input) {
        assert!(mappings.len() <= lines);
        for mapping in mappings {
            let _ = (mapping.path(), mapping.map_files_path(1));
        }
    }
});
