//! `--why` where there is little to look at, or nothing: targets that go, other namespaces; and the
//! graph of all blocks that it gives.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
    thread,
    time::Duration,
};

use crate::{
    files::fields,
    guard::alone,
    process::{Running, rounds},
    programs::{Link, build, scratch_dir, text},
    targets::only_child,
    tracer::{NEVER, Tracer},
    why::{read_books, shapes_program, wordcount},
};

/// Whenever it goes, there are reports, and one line for each that has no `why` says so.
#[test]
fn a_target_may_go_while_it_is_looked_at() {
    let _alone = alone();
    let program = shapes_program(&[]);
    let mut in_the_middle = 0;
    for round in rounds(30) {
        let mut target = Running::start(&mut Command::new(&program));
        target.expect("READY");
        let way = if round % 2 == 0 { "--why" } else { "--why=exact" };
        let pid = target.pid().to_string();
        let mut tracer =
            Tracer::start(&["--json", "-v", "-p", &pid, way, "--why-every", "1", "-o", "0", "0.001"]);
        tracer.wait_attached();
        thread::sleep(Duration::from_micros(round * 7919 % 400_000));
        target.signal(libc::SIGKILL);
        let outcome = tracer.wait();
        assert_eq!(outcome.code, 0, "{:?}", outcome.ended.stderr);
        let said: Vec<&String> =
            outcome.ended.stderr.iter().filter(|line| line.contains("--why: ")).collect();
        let without = outcome.reports.iter().filter(|report| report.why.is_none()).count();
        assert_eq!(said.len(), without, "{said:?}");
        in_the_middle += said.iter().filter(|line| line.contains("cannot look at the memory")).count();
        let last = outcome.reports.last().expect("a report");
        assert!(last.is_final && last.why.is_none(), "{:?}", last.why);
    }
    println!("gone in the middle in {in_the_middle} rounds");
}

/// It has other process ids there, and thread ids in its memory.
#[test]
fn a_target_in_a_pid_namespace_is_looked_at() {
    let _alone = alone();
    for way in ["--why", "--why=exact"] {
        let mut command = Command::new("unshare");
        let mut target = Running::start(
            command.args(["--pid", "--mount", "--fork", "--mount-proc"]).arg(wordcount(false)),
        );
        read_books(&mut target, 1);
        let tracer = Tracer::attach_with(only_child(target.pid()), &[way, "-o", "0", "-T", "1000", NEVER]);
        read_books(&mut target, 3);
        let report = tracer.stop_with_report();
        target.end();
        let [cycle] = report.cycles.as_deref().expect("cycles") else { panic!("{:?}", report.why) };
        assert_eq!((cycle["length"].as_u64(), cycle["count"].as_u64()), (Some(2), Some(3)), "{cycle}");
        let lost = &report.why.as_ref().expect("why")["definitely_lost"]["count"];
        assert!(lost.as_u64() >= Some(4), "two circles at least: {lost}");
    }
}

/// Perfetto's heap graph has all blocks, with the pointers that the program has made, as its own
/// report on what holds them says.
#[test]
fn all_blocks_are_written_as_a_graph() {
    let _alone = alone();
    let program = build("holders.c", Link::Dynamic, &["-g"]);
    let trace = scratch_dir().join(format!("holders-{}.pftrace", std::process::id()));
    let options = ["--json", "--why", "--perfetto", text(&trace), "-o", "0", "-T", "100", NEVER, "--"];
    let mut tracer = Tracer::start(&[&options[..], &[text(&program)]].concat());
    tracer.running().expect("READY");
    let report = tracer.stop_with_report();
    let written = fs::read(&trace).expect("a trace");
    fs::remove_file(&trace).expect("removing");
    let packets = fields(&written).into_iter().flat_map(|(_, _, packet)| fields(packet));
    let graph: Vec<_> =
        packets.filter(|(field, ..)| *field == 56).flat_map(|(_, _, it)| fields(it)).collect();
    let of =
        |wanted: u64| graph.iter().filter(move |(field, ..)| *field == wanted).map(|(_, _, it)| fields(it));
    let number = |message: &[(u64, u64, &[u8])], wanted: u64| {
        message.iter().find(|(field, ..)| *field == wanted).map_or(0, |(_, number, _)| *number)
    };
    let name = |message: &[(u64, u64, &[u8])], wanted: u64| -> String {
        let (_, _, name) = message.iter().find(|(field, ..)| *field == wanted).expect("a name");
        String::from_utf8_lossy(name).into_owned()
    };
    let types: BTreeMap<u64, String> = of(9).map(|it| (number(&it, 1), name(&it, 3))).collect();
    let mut sums: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    let mut addresses = BTreeSet::new();
    for object in of(2) {
        let sum = sums.entry(types[&number(&object, 2)].as_str()).or_default();
        *sum = (sum.0 + number(&object, 3), sum.1 + 1);
        assert!(addresses.insert(number(&object, 1)), "twice");
    }
    let heap = report.stacks.iter().filter(|stack| stack.resource == "heap");
    let expected = heap.fold((0, 0), |sum, stack| (sum.0 + stack.bytes, sum.1 + stack.count));
    let found = sums.values().fold((0, 0), |sum, of_type| (sum.0 + of_type.0, sum.1 + of_type.1));
    assert_eq!(found, expected, "{sums:?}");
    // As many as the table of entries has.
    assert!(sums.values().any(|of_type| *of_type == (1600, 16)), "{sums:?}");
    assert!(of(7).count() > 0, "roots");
}
