//! /proc/PID/maps: the kernel's text, but paths are the target's words.
#![no_main]

use memleak::proc::maps::parse_maps;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let lines = input.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
    if let Ok(mappings) = parse_maps(input) {
        assert_eq!(mappings.len(), lines);
        for mapping in mappings {
            let _ = (mapping.path(), mapping.map_files_path(1));
        }
    }
    // Whatever a file is called, its line is read, and so are the others.
    let name: Vec<u8> = input.iter().map(|byte| if *byte == b'\n' { b' ' } else { *byte }).collect();
    let line =
        [b"1000-2000 r-xp 00000000 00:00 1    /", name.as_slice(), b"\n3000-4000 r--p 0 0:0 0 \n"].concat();
    assert_eq!(parse_maps(&line).expect("two lines").len(), 2);
});
