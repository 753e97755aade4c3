//! Rows that are read from machine code, against those of the same files' unwind information, at every place that a
//! call returns to.

mod unwind_fixtures;

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use iced_x86::{Decoder, DecoderOptions, FlowControl};
use memleak::unwind::UnwindTable;
use memleak_common::unwind::{Kind, Row};
use unwind_fixtures::{built, compile, library, run};

/// How rows from code compare with those of unwind information.
#[derive(Default, Debug)]
struct Score {
    /// Calls in functions that unwind information describes.
    calls: usize,
    /// Those with a row from code.
    covered: usize,
    /// Those where it says the same.
    agree: usize,
    /// Others, by what the two say.
    differences: BTreeMap<String, (usize, u64)>,
}

impl Score {
    fn add(&mut self, other: Self) {
        self.calls += other.calls;
        self.covered += other.covered;
        self.agree += other.agree;
    }

    fn tell(&self, name: &str) {
        println!(
            "{name}: {} calls, {:.2} % covered, {:.3} % of these agree",
            self.calls,
            100.0 * self.covered as f64 / self.calls.max(1) as f64,
            100.0 * self.agree as f64 / self.covered.max(1) as f64
        );
        let mut differences: Vec<_> = self.differences.iter().collect();
        differences.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
        for (what, (count, at)) in differences.iter().take(12) {
            println!("  {count:>6} {what}, as at {at:#x}");
        }
    }
}

fn describe(row: Row) -> String {
    let kind = match row.kind() {
        Kind::NONE => "none".to_owned(),
        Kind::SP => format!("rsp{:+}", row.cfa_offset()),
        Kind::FP => format!("rbp{:+}", row.cfa_offset()),
        Kind::DEREF_FP => format!("[rbp{:+}]", row.cfa_offset()),
        Kind::END => "end".to_owned(),
        Kind(other) => format!("kind {other}"),
    };
    format!("{kind} slot {}", row.slot())
}

/// Compares at each return address: a walk looks up the byte before.
fn compare(path: &Path) -> Score {
    let bytes = fs::read(path).expect("the file can be read");
    let truth = UnwindTable::from_bytes(&bytes).expect("a table");
    let begin = std::time::Instant::now();
    let code = UnwindTable::from_code(&bytes).expect("a table");
    println!("{}: {:.1} ms", path.display(), begin.elapsed().as_secs_f64() * 1e3);
    let mut score = Score::default();
    for segment in &truth.segments.segments {
        let at = segment.file_offset as usize;
        let text = &bytes[at..at + segment.len as usize];
        let pc = (segment.vaddr - truth.segments.text_base) as u32;
        for instruction in Decoder::with_ip(64, text, pc.into(), DecoderOptions::NONE).iter() {
            let is_call =
                instruction.is_call_near() || instruction.flow_control() == FlowControl::IndirectCall;
            let looked_up = (instruction.next_ip() - 1) as u32;
            let Some(expected) = truth
                .lookup(looked_up)
                .filter(|row| row.kind() != Kind::NONE && row.kind() != Kind::UNSUPPORTED)
            else {
                continue;
            };
            if !is_call {
                continue;
            }
            score.calls += 1;
            let Some(found) = code.lookup(looked_up).filter(|row| row.kind() != Kind::NONE) else {
                if std::env::var_os("UNCOVERED").is_some() {
                    println!("uncovered {looked_up:#x} {}", describe(expected));
                }
                continue;
            };
            score.covered += 1;
            if found.rule() == expected.rule() {
                score.agree += 1;
            } else {
                let what = format!("{} is {}", describe(found), describe(expected));
                let vaddr = truth.segments.text_base + u64::from(looked_up);
                score.differences.entry(what).or_insert((0, vaddr)).0 += 1;
            }
        }
    }
    score
}

#[test]
fn files_of_the_distribution_agree() {
    let files = std::env::var("FILES").unwrap_or_default();
    for file in files.split_whitespace() {
        let score = compare(Path::new(file));
        score.tell(file);
    }
}
