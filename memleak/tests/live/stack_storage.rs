//! Room for stacks: those that nothing refers to any more make room for others.

use std::{collections::BTreeMap, process::Command};

use crate::{
    guard::alone,
    process::Running,
    programs::{Link, build},
    report::Report,
    tracer::Tracer,
};

/// Room for stacks. A collection is due at half of it, and this is told after each 256 of a CPU.
const ROOM: u64 = 4096;
/// As in the program.
const BATCH: u64 = 1000;
const SIZE: u64 = 100_000;
const KEPT: u64 = 100;
/// Batches of each phase.
const BATCHES: u64 = 15;

/// The number that the functions' names spell, by the bytes of the block.
fn spelled(report: &Report) -> BTreeMap<u64, u64> {
    let mut found = BTreeMap::new();
    for stack in &report.stacks {
        let bits: String = stack
            .frames
            .iter()
            .filter_map(|frame| match frame.bare_function() {
                "zero" => Some('0'),
                "one" => Some('1'),
                _ => None,
            })
            .collect();
        let outermost = stack.frames.last().map(crate::report::Frame::bare_function);
        assert_eq!((stack.count, outermost), (1, Some("_start")), "{}", report.describe());
        // The callee comes first, and spells the highest bit.
        let number = u64::from_str_radix(&bits, 2).expect("a number is spelled");
        assert_eq!(found.insert(stack.bytes, number), None, "one block for each stack");
    }
    found
}

/// Has the program run a batch, and waits until there is room for another.
fn run_batch(target: &mut Running, tracer: &mut Tracer, phase: &str, stored: &mut u64, removed: &mut u64) {
    target.tell(phase);
    target.expect("DONE");
    *stored += BATCH;
    // From half of the room on a collection comes, after the 512 stacks more that it may take to be
    // told, at the latest.
    while *stored - *removed > ROOM / 2 + 512 {
        let note = tracer.wait_note(|note| note.contains("stacks that nothing refers to"));
        let words: Vec<&str> = note.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "removed").expect("what was removed");
        *removed += words[at + 1].parse::<u64>().expect("a number");
    }
}

#[test]
fn stacks_come_and_go() {
    let _alone = alone();
    let mut target = Running::start(&mut Command::new(build("stacks.c", Link::Dynamic, &[])));
    target.expect("READY");
    let room = ROOM.to_string();
    // Reports come all the time: the last one need not read the names, for which a slow machine has
    // no time at the end.
    let options = ["-v", "--stack-storage-size", &room, "-T", "1000000", "-o", "0", "0.5"];
    let mut tracer = Tracer::attach_with(target.pid(), &options);
    let (mut stored, mut removed) = (0, 0);
    for phase in ["b", "d"] {
        for _ in 0..BATCHES {
            run_batch(&mut target, &mut tracer, phase, &mut stored, &mut removed);
        }
    }
    target.tell("q");
    target.expect_line("the number of blocks", |line| line == format!("BLOCKS {}", 2 * BATCHES * BATCH));
    let report = tracer.stop_with_report();
    report.assert_nothing_lost();
    let kept = (0..2 * BATCHES * BATCH).step_by(KEPT as usize);
    assert_eq!(spelled(&report), kept.map(|number| (SIZE + number, number)).collect());
    assert!(removed > 6 * ROOM, "only {removed} were removed");
}
