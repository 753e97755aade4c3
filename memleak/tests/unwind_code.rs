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
use memleak::unwind::UnwindTable;
use memleak_common::unwind::{Kind, Row};
use unwind_fixtures::{compile, library, run};

/// How rows from code compare with those of unwind information.
#[derive(Default, Debug)]
struct Score {
    /// Calls in functions that unwind information describes.
    calls: usize,
    /// Those with a row from code.
    covered: usize,
    /// Those where it says the same.
    agree: usize,
    /// Those where it goes by the stack pointer, and unwind information by the frame pointer: both
    /// can be right, and the rows do not say.
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
    format!("{place} slot {}", row.slot())
}

/// `pc`s of the last bytes of all calls: what a walk looks up for a return address.
fn calls(table: &UnwindTable, bytes: &[u8]) -> Vec<u32> {
    let mut calls = Vec::new();
    for segment in &table.segments.segments {
        let at = segment.file_offset as usize;
        let text = &bytes[at..at + segment.len as usize];
        let pc = segment.vaddr - table.segments.text_base;
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

fn compare(path: &Path) -> Score {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let truth = UnwindTable::from_bytes(&bytes).expect("a table");
    let code = UnwindTable::from_code(&bytes).expect("a table");
    let mut score = Score::default();
    for pc in calls(&truth, &bytes) {
        let Some(expected) = row_at(&truth, pc) else { continue };
        score.calls += 1;
        let Some(found) = row_at(&code, pc) else { continue };
        score.covered += 1;
        if found.rule() == expected.rule() {
            score.agree += 1;
        } else if (found.kind(), expected.kind()) == (Kind::SP, Kind::FP)
            && found.slot() == expected.slot()
            && found.cfa_offset() > 8
        {
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
