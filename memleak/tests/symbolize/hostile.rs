//! Files that are damaged, and files that were made to do damage.

use std::{
    fs,
    time::{Duration, Instant},
};

use crate::tools::{BIAS, Directory, FileTarget, fixture, mappings, return_addresses, run, symbolizer};

/// xorshift: the same sequence in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

/// Symbolizes all of `ips` in many damaged versions of `/NAME`; what it finds does not matter, that
/// it ends does.
fn survive(directory: &Directory, name: &str, rounds: usize, mut damage: impl FnMut(&mut Vec<u8>)) {
    let file = directory.path(name);
    let sound = fs::read(&file).unwrap();
    let maps = mappings(&file, name, BIAS);
    let mut ips: Vec<u64> = return_addresses(&file).iter().map(|ip| ip + BIAS).collect();
    ips.truncate(20);
    let target = FileTarget { root: directory.0.clone() };
    for _ in 0..rounds {
        let mut bytes = sound.clone();
        damage(&mut bytes);
        fs::write(&file, &bytes).unwrap();
        let mut symbolizer = symbolizer(directory);
        symbolizer.observe_mappings(1, 0, maps.clone(), &target);
        assert!(symbolizer.symbolize(1, 0, &ips).len() >= ips.len());
    }
    fs::write(&file, &sound).unwrap();
}

fn compile(options: &str) -> Directory {
    let directory = Directory::new();
    run(&format!("gcc {options} -o {{}} {{}}"), &[&directory.path("waits"), &fixture("waits.c")]);
    directory
}

#[test]
fn flipped_bits() {
    let directory = compile("-g -O2");
    let mut random = Random(0x5eed);
    let start = Instant::now();
    survive(&directory, "waits", 1500, |bytes| {
        for _ in 0..=random.below(8) {
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
        }
    });
    assert!(start.elapsed() < Duration::from_secs(60));
}

/// The places that matter most: the headers, and the sections that are parsed.
#[test]
fn flipped_bits_where_it_hurts() {
    let directory = compile("-g -O2 -gz=none");
    let file = directory.path("waits");
    let number = |text: &str| usize::from_str_radix(text, 16).unwrap();
    let mut ranges = vec![(0, 64 + 56 * 13)];
    for line in run("readelf -SW {}", &[&file]).lines() {
        let Some((_, rest)) = line.split_once(']') else { continue };
        let words: Vec<&str> = rest.split_whitespace().collect();
        if words
            .first()
            .is_some_and(|name| name.starts_with(".debug") || name.ends_with("sym") || name.contains("note"))
        {
            ranges.push((number(words[3]), number(words[4])));
        }
    }
    assert!(ranges.len() > 8);
    let length = fs::metadata(&file).unwrap().len() as usize;
    ranges.push((length - 64 * 30, 64 * 30)); // the section headers
    let mut random = Random(0xbad);
    survive(&directory, "waits", 3000, |bytes| {
        for _ in 0..=random.below(3) {
            let (start, size) = ranges[random.below(ranges.len())];
            let at = (start + random.below(size)).min(bytes.len() - 1);
            bytes[at] = match random.below(4) {
                0 => 0,
                1 => 0xff,
                _ => bytes[at] ^ 1 << random.below(8),
            };
        }
    });
}

#[test]
fn files_cut_short() {
    let directory = compile("-g");
    let mut random = Random(0xc07);
    survive(&directory, "waits", 300, |bytes| bytes.truncate(random.below(bytes.len())));
}

/// A file that shrinks after it was opened is an error, no SIGBUS.
#[test]
fn a_file_truncated_after_it_was_opened() {
    let directory = compile("-g");
    let file = directory.path("waits");
    let ips: Vec<u64> = return_addresses(&file).iter().map(|ip| ip + BIAS).collect();
    let mut symbolizer = symbolizer(&directory);
    let target = FileTarget { root: directory.0.clone() };
    symbolizer.observe_mappings(1, 0, mappings(&file, "waits", BIAS), &target);
    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(100).unwrap();
    assert_eq!(symbolizer.symbolize(1, 0, &ips).len(), ips.len());
}

/// DWARF with inlined calls nested a million deep, written as assembly: `addr2line` would recurse
/// once for each.
#[test]
fn nesting_without_end() {
    let directory = Directory::new();
    let depth = 1_000_000;
    let source = format!(
        r#"
    .text
    .globl main
    .type main, @function
main:
    call main
    ret
    .size main, .-main
.Lend:
    .section .debug_abbrev,"",@progbits
    .uleb128 1, 0x11
    .byte 1
    .uleb128 0x11, 0x01, 0x12, 0x07, 0, 0
    .uleb128 2, 0x2e
    .byte 1
    .uleb128 0x11, 0x01, 0x12, 0x07, 0, 0
    .uleb128 3, 0x1d
    .byte 1
    .uleb128 0, 0
    .uleb128 0
    .section .debug_info,"",@progbits
    .long .Linfo_end - .Linfo_start
.Linfo_start:
    .short 4
    .long 0
    .byte 8
    .uleb128 1
    .quad main
    .quad .Lend - main
    .uleb128 2
    .quad main
    .quad .Lend - main
    .fill {depth}, 1, 3
    .fill {depth}, 1, 0
    .byte 0, 0
.Linfo_end:
"#
    );
    let assembly = directory.path("deep.s");
    fs::write(&assembly, source).unwrap();
    let file = directory.path("deep");
    run("gcc -o {} {}", &[&file, &assembly]);
    let ips: Vec<u64> = return_addresses(&file).iter().map(|ip| ip + BIAS).collect();
    let mut symbolizer = symbolizer(&directory);
    let target = FileTarget { root: directory.0.clone() };
    symbolizer.observe_mappings(1, 0, mappings(&file, "deep", BIAS), &target);
    let frames = std::thread::Builder::new()
        .stack_size(2 << 20)
        .spawn(move || symbolizer.symbolize(1, 0, &ips))
        .unwrap()
        .join()
        .unwrap();
    assert!(frames.iter().any(|frame| frame.function.as_deref() == Some("main")), "{frames:?}");
}
