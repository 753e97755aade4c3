//! Rows that are read from machine code, against those of the same files' unwind information, at
//! every place that a call returns to.

mod unwind_fixtures;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use iced_x86::{Decoder, DecoderOptions, FlowControl};
use memleak::unwind::{Machine, UnwindTable};
use memleak_common::unwind::{Kind, Row, SLOT_AT_FP, SLOT_AT_SP};
use unwind_fixtures::{compile, compile_aarch64, library, run};

/// How rows from code compare with those of unwind information.
#[derive(Default, Debug)]
struct Score {
    /// Calls in functions that unwind information describes.
    calls: usize,
    /// Those with a row from code.
    covered: usize,
    /// Those where it says the same.
    agree: usize,
    /// Those where it goes by the stack pointer, and unwind information by the frame pointer (or
    /// the other way round on aarch64): both can be right, and the rows do not say.
    other_register: usize,
    /// Others, by what the two say: how many, and where the first is.
    differences: BTreeMap<String, (usize, u64)>,
}

impl Score {
    fn covered_percent(&self) -> f64 {
        100.0 * self.covered as f64 / self.calls.max(1) as f64
    }

    /// Of those that can be compared.
    fn agreed_percent(&self) -> f64 {
        100.0 * self.agree as f64 / (self.covered - self.other_register).max(1) as f64
    }

    fn tell(&self, path: &Path) {
        println!(
            "| {} | {} | {:.2} % | {:.3} % | {} |",
            path.file_name().expect("a file").to_string_lossy(),
            self.calls,
            self.covered_percent(),
            self.agreed_percent(),
            self.other_register
        );
        for (what, (count, at)) in &self.differences {
            println!("    {count:>6} {what}, as at {at:#x}");
        }
    }
}

fn describe(row: Row) -> String {
    let place = match row.kind() {
        Kind::NONE => "none".to_owned(),
        Kind::SP => format!("rsp{:+}", row.cfa_offset()),
        Kind::FP => format!("rbp{:+}", row.cfa_offset()),
        Kind::DEREF_FP => format!("[rbp{:+}]", row.cfa_offset()),
        Kind::END => "end".to_owned(),
        Kind(other) => format!("kind {other}"),
    };
    format!("{place} {:+} slot {}", row.cfa_offset(), row.slot())
}

/// `pc`s of the last bytes of all calls: what a walk looks up for a return address.
fn calls(table: &UnwindTable, bytes: &[u8]) -> Vec<u32> {
    let mut calls = Vec::new();
    for segment in &table.segments.segments {
        let at = segment.file_offset as usize;
        let text = &bytes[at..at + segment.len as usize];
        let pc = segment.vaddr - table.segments.text_base;
        if table.machine == Machine::Aarch64 {
            // `bl` and `blr`.
            let is_call = |code: u32| code & 0xfc00_0000 == 0x9400_0000 || code & 0xffff_fc1f == 0xd63f_0000;
            let codes =
                text.chunks_exact(4).map(|code| u32::from_le_bytes(code.try_into().expect("four bytes")));
            let found = (pc as u32..).step_by(4).zip(codes).filter(|(_, code)| is_call(*code));
            calls.extend(found.map(|(pc, _)| pc + 3));
            continue;
        }
        let decoder = Decoder::with_ip(64, text, pc, DecoderOptions::NONE);
        calls.extend(decoder.into_iter().filter_map(|instruction| {
            let is_call =
                instruction.is_call_near() || instruction.flow_control() == FlowControl::IndirectCall;
            is_call.then_some((instruction.next_ip() - 1) as u32)
        }));
    }
    calls
}

fn row_at(table: &UnwindTable, pc: u32) -> Option<Row> {
    table.lookup(pc).filter(|row| ![Kind::NONE, Kind::UNSUPPORTED].contains(&row.kind()))
}

/// Whether a row goes by the other one of stack pointer and frame pointer, and may be as right.
fn is_by_other_register(table: &UnwindTable, found: Row, expected: Row) -> bool {
    let kinds = (found.kind(), expected.kind());
    match table.machine {
        Machine::X86_64 => {
            kinds == (Kind::SP, Kind::FP) && found.slot() == expected.slot() && found.cfa_offset() > 8
        }
        Machine::Aarch64 => {
            [(Kind::SP_PAIR, Kind::FP_PAIR), (Kind::FP_PAIR, Kind::SP_PAIR)].contains(&kinds)
                && record(found) == record(expected)
        }
    }
}

/// Where a row has the frame record, in bytes from the CFA.
fn record(row: Row) -> i64 {
    match row.slot() {
        SLOT_AT_SP | SLOT_AT_FP => -row.cfa_offset(),
        above @ 1.. => 8 * i64::from(above) - row.cfa_offset(),
        below => 8 * i64::from(below),
    }
}

fn compare(path: &Path) -> Score {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    compare_code(path, &bytes, &bytes)
}

/// The same of a file's bytes and of others with the same code.
fn compare_code(path: &Path, bytes: &[u8], others: &[u8]) -> Score {
    let truth = UnwindTable::from_bytes(bytes).expect("a table");
    let code = UnwindTable::from_code(others).expect("a table");
    let mut score = Score::default();
    for pc in calls(&truth, bytes) {
        let Some(expected) = row_at(&truth, pc) else { continue };
        score.calls += 1;
        let Some(found) = row_at(&code, pc) else { continue };
        score.covered += 1;
        if found.rule() == expected.rule() {
            score.agree += 1;
        } else if is_by_other_register(&truth, found, expected) {
            score.other_register += 1;
        } else {
            let what = format!("{} is {}", describe(found), describe(expected));
            let vaddr = truth.segments.text_base + u64::from(pc);
            score.differences.entry(what).or_insert((0, vaddr)).0 += 1;
        }
    }
    score.tell(path);
    score
}

/// Compares, and holds the shares (percent) of covered places and of equal rows to what was
/// measured.
fn assert_score(path: &Path, covered: f64, agreed: f64) {
    let score = compare(path);
    let name = path.display();
    assert!(score.calls > 20, "{name}: {} calls", score.calls);
    assert!(score.covered_percent() >= covered, "{name}: {:.2} % covered", score.covered_percent());
    assert!(score.agreed_percent() >= agreed, "{name}: {:.3} % agree", score.agreed_percent());
    assert!(
        score.other_register * 20 <= score.calls,
        "{name}: {} by the stack pointer",
        score.other_register
    );
}

fn strip(path: &Path) -> PathBuf {
    let output = path.with_extension("stripped");
    run(Command::new("strip").arg("-o").arg(&output).arg(path));
    output
}

/// All of them are stripped. Where the C++ library's code is reached by exceptions alone nothing
/// leads there. Of libc's four other rows two are its entry point's, where a stack ends.
#[test]
fn files_of_the_distribution_agree() {
    assert_score(&library("libc.so.6"), 98.0, 99.9);
    assert_score(&library("libstdc++.so.6"), 80.0, 99.9);
    assert_score(Path::new("/usr/bin/python3"), 98.5, 99.9);
}

#[test]
fn compilers_agree() {
    for (name, compiler, source, flags) in [
        ("code-gcc", "gcc", "kept.c", "-O2 -fomit-frame-pointer -static"),
        ("code-gcc-size", "gcc", "kept.c", "-Os -fomit-frame-pointer -static"),
        ("code-plain", "gcc", "plain.c", "-O3 -fomit-frame-pointer -static"),
        ("code-clang", "clang", "kept.c", "-O2 -fomit-frame-pointer -static"),
        ("code-rust", "rustc", "kept.rs", "-O --edition 2024"),
    ] {
        let program = compile(name, compiler, source, flags);
        let (covered, agreed) = if compiler == "rustc" { (80.0, 99.9) } else { (96.5, 99.9) };
        assert_score(&program, covered, agreed);
        assert_score(&strip(&program), covered, agreed);
    }
}

/// With exceptions: what they lead to looks like what follows a call.
#[test]
fn cpp_agrees() {
    for (name, compiler) in [("code-g++", "g++"), ("code-clang++", "clang++")] {
        let program = compile(name, compiler, "torture.cc", "-O2 -fomit-frame-pointer -DKEEP -pthread");
        assert_score(&program, 90.0, 99.9);
        assert_score(&strip(&program), 75.0, 90.0);
    }
}

/// Each call of a small library has the row that its compiler describes; stripped, those that
/// something leads to.
#[test]
fn aarch64_agrees() {
    for (name, flags, stripped) in [
        ("O0", "-O0", 90.0),
        ("O2", "-O2 -fomit-frame-pointer", 90.0),
        ("O3", "-O3 -fno-omit-frame-pointer", 90.0),
        ("Os", "-Os -mbranch-protection=standard", 90.0),
    ] {
        let library = compile_aarch64(&format!("code-aarch64-{name}.so"), flags);
        let score = compare(&library);
        let all = (score.calls, score.agree + score.other_register);
        assert!(score.calls >= 5 && all == (score.covered, score.covered), "{name}: {score:?}");
        let bytes = fs::read(&library).expect("the library");
        let mut without = bytes.clone();
        // e_shoff, then e_shentsize, e_shnum, e_shstrndx: no symbols either.
        without[0x28..0x30].fill(0);
        without[0x3a..0x40].fill(0);
        let score = compare_code(&library, &bytes, &without);
        assert!(score.covered_percent() >= stripped, "{name}: {score:?}");
        assert_eq!(score.agree + score.other_register, score.covered, "{name}: {score:?}");
    }
}

/// Without symbols musl's code has the rows that it has with them, and hardly a call in it has
/// none.
#[test]
fn musl_is_read_with_symbols_and_without() {
    let program = compile("code-musl", "musl-gcc", "musl.c", "-O2 -fomit-frame-pointer -static");
    let bytes = fs::read(&program).expect("the program");
    let with = UnwindTable::from_bytes(&bytes).expect("a table");
    let stripped = fs::read(strip(&program)).expect("the program");
    let without = UnwindTable::from_bytes(&stripped).expect("a table");
    assert!(with.stats.code_rows > 500, "{:?}", with.stats);
    let calls = calls(&with, &bytes);
    let both: Vec<_> =
        calls.iter().filter_map(|pc| Some((*pc, row_at(&with, *pc)?, row_at(&without, *pc)?))).collect();
    let count = |table: &UnwindTable| calls.iter().filter(|pc| row_at(table, **pc).is_some()).count();
    println!("{} calls, {} with a row, stripped {}", calls.len(), count(&with), count(&without));
    for (pc, with, without) in &both {
        assert_eq!(with.rule(), without.rule(), "{pc:#x}: {} is {}", describe(*without), describe(*with));
    }
    assert!(both.len() * 100 >= calls.len() * 98, "{} of {}", both.len(), calls.len());
    let loader = fs::read("/lib/ld-musl-x86_64.so.1").expect("musl-tools is installed");
    let table = UnwindTable::from_bytes(&loader).expect("a table");
    let calls = self::calls(&table, &loader);
    let covered = calls.iter().filter(|pc| row_at(&table, **pc).is_some()).count();
    println!("ld-musl: {covered} of {} calls with a row", calls.len());
    assert!(covered * 100 >= calls.len() * 97, "{covered} of {}", calls.len());
}
