//! The forms that have files of their own: all hold the numbers of the same report.

use std::collections::{BTreeMap, BTreeSet};

use memleak::heap::RootKind;
use memleak::report::{
    condition::Facts,
    filter::{Filter, Pattern},
    format::{
        FILE_KINDS, Measure, Options,
        firefox::write_firefox,
        flamegraph::write_flamegraph,
        folded::{fold_report, write_folded},
        heaptrack::write_heaptrack,
        html::write_html,
        perfetto::write_perfetto,
        pprof::write_pprof,
        saved::{self, SavedError},
        speedscope::write_speedscope,
    },
    model::{AllocationLine, OtherProcesses, Report, SortKey},
    suppressions::Suppressions,
    why::{GraphObject, ObjectGraph, Why},
};
use memleak::verdict::{Calls, Point};
use serde_json::Value;

use crate::{
    human, json_of, read_numbers,
    reports::{cases, leaky, merged, options, report, resources, wordcount},
    text_of,
};

fn bytes_of(write: impl FnOnce(&mut dyn std::io::Write) -> std::io::Result<()>) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out).expect("a Vec takes all");
    out
}

fn saved(report: &Report) -> Vec<u8> {
    let save = FILE_KINDS.iter().find(|kind| kind.name == "save").expect("save");
    bytes_of(|out| (save.new)(&options(10)).report(report, out))
}

/// Bytes by name and PID of a process, of a profile for Firefox.
fn firefox_weights(profile: &Value) -> BTreeMap<(String, String), u64> {
    let mut sums = BTreeMap::new();
    for thread in profile["threads"].as_array().expect("threads") {
        let of = |field: &str| thread[field].as_str().expect("a text").to_owned();
        assert_eq!(thread["name"], thread["processName"]);
        let weights = thread["nativeAllocations"]["weight"].as_array().cloned().unwrap_or_default();
        let sum = weights.iter().map(|weight| weight.as_u64().expect("bytes")).sum();
        assert_eq!(sums.insert((of("processName"), of("pid")), sum), None, "a process is there once");
    }
    sums
}

/// Outstanding bytes, by all that has them.
fn sums(report: &Report) -> BTreeMap<&'static str, u64> {
    let text: u64 = read_numbers(&text_of(report)).iter().map(|(bytes, _)| bytes).sum();
    let json: Value = serde_json::from_str(&json_of(report)).expect("JSON");
    let in_json =
        json["stacks"].as_array().expect("stacks").iter().filter_map(|stack| stack["bytes"].as_u64()).sum();
    let human = human::of(report, 80);
    let in_human = human
        .lines()
        .filter_map(|line| line.split_once(" bytes in ")?.0.rsplit(' ').next()?.parse::<u64>().ok());
    let folded = String::from_utf8(bytes_of(|out| write_folded(report, out))).expect("UTF-8");
    let of_line = |line: &str| line.rsplit(' ').next().and_then(|number| number.parse::<u64>().ok());
    let speedscope: Value =
        serde_json::from_slice(&bytes_of(|out| write_speedscope(report, false, out))).expect("JSON");
    let firefox: Value =
        serde_json::from_slice(&bytes_of(|out| write_firefox(report, false, out))).expect("JSON");
    let weights = firefox_weights(&firefox).into_values();
    BTreeMap::from([
        ("text", text),
        ("json", in_json),
        ("totals", json["totals"]["bytes"].as_u64().expect("a number")),
        ("human", in_human.sum()),
        ("folded", folded.lines().filter_map(of_line).sum()),
        ("speedscope", speedscope["profiles"][0]["endValue"].as_u64().expect("a number")),
        ("firefox", weights.sum()),
        ("heaptrack", heaptrack(report).iter().sum()),
        ("perfetto", perfetto(report)),
        ("flamegraph", flamegraph(report)),
        (
            "html",
            page_data(report)["sites"]
                .as_array()
                .expect("sites")
                .iter()
                .filter_map(|site| site["bytes"].as_u64())
                .sum(),
        ),
        ("pprof", pprof(report).iter().map(|values| values[1]).sum()),
        #[cfg(feature = "tui")]
        ("tui", crate::tui::state(report).rows().iter().map(|row| row.bytes).sum()),
        ("saved", saved::read_bytes(&saved(report)).expect("read").totals.bytes),
    ])
}

/// What a page shows.
fn page_data(report: &Report) -> Value {
    let page = String::from_utf8(bytes_of(|out| write_html(report, false, out))).expect("UTF-8");
    let (_, data) = page.split_once("id=\"data\">").expect("data");
    let (data, rest) = data.split_once("</script>").expect("its end");
    assert!(rest.contains("JSON.parse") && !data.contains('<'), "{data}");
    serde_json::from_str(data).expect("JSON")
}

/// What a flame graph says of all of it.
fn flamegraph(report: &Report) -> u64 {
    let svg = bytes_of(|out| write_flamegraph(report, Measure::Bytes, false, out));
    let svg = String::from_utf8(svg).expect("UTF-8");
    let Some((_, all)) = svg.split_once("<title>all (") else { return 0 };
    let digits: String =
        all.split(' ').next().unwrap_or_default().chars().filter(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}

/// What the last dump of a trace has allocated in all.
fn perfetto(report: &Report) -> u64 {
    let of = |message: &[u8], wanted: u64| -> Vec<Vec<u8>> {
        let found = fields(message).into_iter().filter(|(field, _)| *field == wanted);
        found.map(|(_, bytes)| bytes.to_vec()).collect()
    };
    let trace = bytes_of(|out| write_perfetto(report, false, out));
    let dumps: Vec<Vec<u8>> = of(&trace, 1).iter().flat_map(|packet| of(packet, 37)).collect();
    let heaps = of(dumps.last().expect("a dump"), 5);
    heaps.iter().flat_map(|heap| of(heap, 2)).map(|sample| number_of(&sample, 2)).sum()
}

/// The number in a field of a message that has numbers alone; 0 if it has none there.
fn number_of(mut message: &[u8], wanted: u64) -> u64 {
    while !message.is_empty() {
        let (tag, number) = (varint(&mut message), varint(&mut message));
        assert_eq!(tag & 7, 0, "a number");
        if tag >> 3 == wanted {
            return number;
        }
    }
    0
}

/// What the viewer needs of a profile, as formats.md has it from the viewer's sources: its version,
/// tables whose columns are of one length, references that lead somewhere, and addresses, which
/// make it balanced.
#[test]
fn a_profile_for_firefox_is_sound() {
    for (name, report) in cases().into_iter().chain([("wordcount", wordcount())]) {
        let file = bytes_of(|out| write_firefox(&report, false, out));
        let profile: Value = serde_json::from_slice(&file).expect("JSON");
        let meta = &profile["meta"];
        assert!(
            meta["preprocessedProfileVersion"].as_u64().is_some_and(|version| (40..=70).contains(&version))
        );
        for (field, is_right) in [
            ("interval", meta["interval"].is_number()),
            ("startTime", meta["startTime"].is_number()),
            ("product", meta["product"].is_string()),
            ("markerSchema", meta["markerSchema"].is_array()),
            ("processType", meta["processType"] == 0),
            ("symbolicated", meta["symbolicated"].is_boolean()),
        ] {
            assert!(is_right, "{name}: {field}: {meta}");
        }
        let colors = meta["categories"].as_array().expect("categories").iter();
        assert!(colors.map(|category| &category["color"]).any(|color| color == "grey"), "{name}");
        let threads = profile["threads"].as_array().expect("threads");
        let (mut allocations, held) = (0, report.totals.count as usize);
        for thread in threads {
            allocations += sound_thread(name, thread);
        }
        assert!(allocations <= held && (allocations > 0 || report.totals.bytes == 0), "{name}");
    }
}

/// Gives how many blocks a thread has.
fn sound_thread(name: &str, thread: &Value) -> usize {
    let length = |table: &str| {
        let columns = thread[table].as_object().expect("a table");
        let length = columns["length"].as_u64().expect("a length") as usize;
        for (column, list) in columns.iter().filter_map(|(name, list)| Some((name, list.as_array()?))) {
            assert_eq!(list.len(), length, "{name}: {table}.{column}");
        }
        length
    };
    let refers = |table: &str, column: &str, to: usize| {
        let list = thread[table][column].as_array().expect("a column");
        let is_there = |at: &Value| at.is_null() || at.as_u64().is_some_and(|at| (at as usize) < to);
        assert!(list.iter().all(is_there), "{name}: {table}.{column}");
    };
    let strings = thread["stringArray"].as_array().expect("strings").len();
    let (stacks, frames, functions) = (length("stackTable"), length("frameTable"), length("funcTable"));
    length("samples");
    refers("stackTable", "prefix", stacks);
    refers("stackTable", "frame", frames);
    refers("frameTable", "func", functions);
    refers("funcTable", "name", strings);
    if thread["nativeAllocations"].is_null() {
        return 0;
    }
    refers("nativeAllocations", "stack", stacks);
    let allocations = length("nativeAllocations");
    let addresses = thread["nativeAllocations"]["memoryAddress"].as_array().expect("addresses");
    assert_eq!((addresses.len(), thread["nativeAllocations"]["weightType"] == "bytes"), (allocations, true));
    allocations
}

/// Each process has a thread with its name and what it holds, and heaptrack's file names them all.
#[test]
fn files_of_several_processes_name_them_all() {
    let mut report = merged();
    let comms = [(123, "leak"), (124, "größe"), (200, "leak")];
    report.target.pids = vec![123, 124, 200, 201];
    report.target.comms = comms.map(|(pid, comm)| (pid, comm.to_owned())).into();
    // One that ended long ago held 5 bytes.
    report.stacks[1].others = OtherProcesses { processes: 1, bytes: 5, count: 2 };
    (report.stacks[1].bytes, report.stacks[1].count) = (85, 7);
    let of = |pid, size| AllocationLine { pid, tid: None, address: size, size, age_ms: 1, now: None };
    report.stacks[1].blocks = vec![of(123, 16), of(124, 50)];
    let profile: Value =
        serde_json::from_slice(&bytes_of(|out| write_firefox(&report, false, out))).expect("JSON");
    let mut expected: BTreeMap<(String, String), u64> = BTreeMap::new();
    for stack in report.stacks.iter().filter(|stack| stack.resource.has_size) {
        for process in &stack.processes {
            let known = comms.iter().find(|(pid, _)| *pid == process.pid).map(|(_, comm)| (*comm).to_owned());
            let name = known.unwrap_or_else(|| format!("process {}", process.pid));
            *expected.entry((name, process.pid.to_string())).or_default() += process.bytes;
        }
    }
    expected.insert(("processes that have ended".to_owned(), "0".to_owned()), 5);
    assert_eq!(firefox_weights(&profile), expected);
    let file = String::from_utf8(bytes_of(|out| write_heaptrack(&report, out))).expect("UTF-8");
    assert_eq!(file.lines().nth(1), Some("X leak (123, 200), größe (124), process 201 (201)"));
}

/// Sizes of all blocks of a heaptrack file.
fn heaptrack(report: &Report) -> Vec<u64> {
    let file = String::from_utf8(bytes_of(|out| write_heaptrack(report, out))).expect("UTF-8");
    assert!(file.starts_with("v 10400 2\nX "), "{file}");
    let hex = |text: &str| u64::from_str_radix(text, 16).expect("hexadecimal");
    let (mut infos, mut blocks) = (Vec::new(), Vec::new());
    for line in file.lines() {
        match line.split_once(' ') {
            Some(("a", info)) => infos.push(hex(info.split(' ').next().expect("a size"))),
            Some(("+", at)) => blocks.push(infos[hex(at) as usize]),
            _ => {}
        }
    }
    blocks
}

/// The values of each sample of a profile, by a reader of protocol buffers that knows nothing else.
fn pprof(report: &Report) -> Vec<Vec<u64>> {
    let bytes = bytes_of(|out| write_pprof(report, out));
    fields(&bytes)
        .into_iter()
        .filter(|(field, _)| *field == 2)
        .map(|(_, sample)| {
            let values = fields(sample).into_iter().find(|(field, _)| *field == 2).expect("values").1;
            numbers(values)
        })
        .collect()
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let (mut number, mut shift) = (0, 0);
    loop {
        let (byte, rest) = bytes.split_first().expect("more");
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return number;
        }
    }
}

fn numbers(mut bytes: &[u8]) -> Vec<u64> {
    std::iter::from_fn(|| (!bytes.is_empty()).then(|| varint(&mut bytes))).collect()
}

/// Fields that have a length; numbers are skipped.
fn fields(mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        match tag & 7 {
            0 => {
                varint(&mut bytes);
            }
            2 => {
                let length = varint(&mut bytes) as usize;
                let (field, rest) = bytes.split_at(length);
                found.push((tag >> 3, field));
                bytes = rest;
            }
            other => panic!("wire type {other}"),
        }
    }
    found
}

#[test]
fn all_forms_hold_the_same_numbers() {
    for (name, report) in cases().into_iter().chain([("wordcount", wordcount())]) {
        // Of a resource without a size the folded form has numbers.
        if report.by_resource.iter().any(|total| !total.resource.has_size) {
            continue;
        }
        let sums = sums(&report);
        assert!(sums.values().all(|sum| *sum == report.totals.bytes), "{name}: {sums:?}");
    }
}

#[test]
fn every_form_takes_every_report() {
    for (name, report) in cases() {
        for kind in FILE_KINDS {
            let bytes = bytes_of(|out| (kind.new)(&options(10)).report(&report, out));
            assert!(!bytes.is_empty(), "{name}: {}", kind.name);
        }
    }
}

#[test]
fn blocks_that_are_not_listed_are_made_up() {
    let mut report = report(vec![leaky()]);
    assert_eq!(heaptrack(&report), [16; 5]);
    (report.stacks[0].bytes, report.stacks[0].processes[0].bytes) = (83, 83);
    assert_eq!(heaptrack(&report), [16, 16, 17, 17, 17]);
    (report.stacks[0].count, report.stacks[0].processes[0].count) = (u64::MAX, u64::MAX);
    let many = heaptrack(&report);
    assert_eq!((many.len(), many.iter().sum::<u64>()), (1_000_000, 83));
    assert_eq!(heaptrack(&merged()).iter().sum::<u64>(), merged().totals.bytes);
}

#[test]
fn what_was_acquired_is_in_a_profile_if_it_is_known_of_all() {
    let calls =
        Calls { acquired: 7, bytes_acquired: 112, released: 2, bytes_released: 32, ..Calls::default() };
    let mut report = report(vec![leaky(), leaky()]);
    report.stacks[0].history.calls = Some(calls);
    assert_eq!(pprof(&report), [[5, 80], [5, 80]]);
    report.stacks[1].history.calls = Some(calls);
    assert_eq!(pprof(&report), [[7, 112, 5, 80], [7, 112, 5, 80]]);
    let acquired = fold_report(&report, Measure::Acquired, false);
    assert_eq!(acquired.into_iter().collect::<Vec<_>>(), [("main;leaky(...)".to_owned(), 224)]);
}

#[test]
fn a_page_holds_strangers_text_as_data() {
    for (name, report) in cases() {
        let data = page_data(&report);
        let sum: u64 =
            data["sites"].as_array().expect("sites").iter().filter_map(|site| site["bytes"].as_u64()).sum();
        assert_eq!(sum, report.totals.bytes, "{name}");
    }
    let mut evil = wordcount();
    evil.target.comm = "</script><script>alert(1)".to_owned();
    let page = String::from_utf8(bytes_of(|out| write_html(&evil, false, out))).expect("UTF-8");
    assert!(!page.contains("</script><script>alert"), "{page}");
}

#[test]
fn a_flame_graph_is_a_picture_of_all() {
    let svg = |measure| {
        let bytes = bytes_of(|out| write_flamegraph(&wordcount(), measure, false, out));
        String::from_utf8(bytes).expect("UTF-8")
    };
    let bytes = svg(Measure::Bytes);
    assert!(bytes.starts_with("<?xml") && bytes.contains("word_counter::word_count() ("), "{bytes}");
    assert!(bytes.contains("1,574,508 bytes, 100"), "{bytes}");
    assert!(svg(Measure::Count).contains("74 allocations, 100"));
    assert!(svg(Measure::Growth).contains("Nothing is outstanding"));
}

#[test]
fn a_saved_report_is_the_same_report() {
    for (name, report) in cases().into_iter().chain([("wordcount", wordcount())]) {
        let again = saved::read_bytes(&saved(&report)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((text_of(&again), json_of(&again)), (text_of(&report), json_of(&report)), "{name}");
        assert_eq!(saved(&again), saved(&report), "{name}");
    }
}

#[test]
fn what_is_no_saved_report_is_said() {
    let error = |bytes: &[u8]| saved::read_bytes(bytes).expect_err("an error");
    assert!(matches!(error(b"{\"schema\":1}"), SavedError::Other));
    assert!(matches!(error(b""), SavedError::Other));
    assert!(matches!(error(b"{\"memleak_report\":2,\"report\":{}}"), SavedError::Newer(2)));
    let whole = saved(&wordcount());
    assert!(matches!(error(&whole[..whole.len() / 2]), SavedError::Damaged(_)));
    assert!(matches!(error(b"{\"memleak_report\":1,\"report\":{}}"), SavedError::Damaged(_)));
}

#[test]
fn filters_take_stacks_out_and_sum_up_again() {
    let filtered = |filter: Filter| {
        let mut report = wordcount();
        report.moments = vec![Point { at_ms: 5000, bytes: report.totals.bytes, count: report.totals.count }];
        filter.apply(&mut report, SortKey::Size);
        report
    };
    let pattern = |text| vec![Pattern::new(text).expect("a pattern")];
    let only = filtered(Filter { only: pattern("^word_counter::"), ..Filter::default() });
    assert_eq!((only.stacks.len(), only.totals.bytes, only.totals.count), (2, 1_573_884, 66));
    assert_eq!(
        (only.by_resource[0].bytes, only.moments[0].bytes, only.suppressed),
        (1_573_884, 1_573_884, None)
    );
    let hidden = filtered(Filter { hide: pattern("word_count\\(\\)"), ..Filter::default() });
    assert_eq!((hidden.stacks.len(), hidden.totals.bytes), (2, 624));
    let module = filtered(Filter { only: pattern("libstdc++.so.6.0.30"), ..Filter::default() });
    assert_eq!(module.stacks.len(), 4);
    let rules = Suppressions::parse("leak:make_shared").expect("rules");
    let known = filtered(Filter { suppressions: Some(rules), ..Filter::default() });
    let suppressed = known.suppressed.expect("suppressed");
    assert_eq!((suppressed.stacks, suppressed.bytes, suppressed.count, known.stacks.len()), (1, 528, 6, 3));
    assert!(text_of(&known).contains("\n\tsuppressed: 528 bytes in 6 allocations from 1 stacks\n"));
    assert!(human::of(&known, 80).contains("\nsuppressed: 528 bytes"));
    assert_eq!(serde_json::from_str::<Value>(&json_of(&known)).expect("JSON")["suppressed"]["count"], 6);
    assert!(Pattern::new("(").is_err());
}

#[test]
fn what_is_taken_out_makes_room_for_others() {
    let mut report = resources();
    let sort = |report: &mut Report, key| {
        report.sort(key);
        report.stacks.iter().map(|stack| (stack.bytes, stack.count)).collect::<Vec<_>>()
    };
    let (memory, others) = ([(4096, 1), (80, 5)], [(0, 3), (0, 2), (0, 1)]);
    assert_eq!(sort(&mut report, SortKey::Size), [&memory[..], &others].concat());
    assert_eq!(sort(&mut report, SortKey::Count), [&[(80, 5), (4096, 1)][..], &others].concat());
    let mut first = Vec::new();
    memleak::report::format::text::write_text(&report, &Options { ..options(1) }, &mut first)
        .expect("written");
    assert_eq!(read_numbers(&String::from_utf8_lossy(&first)), [(80, 5), (0, 3), (0, 2)]);
}

#[test]
fn facts_of_a_run() {
    let mut report = wordcount();
    report.moments =
        vec![Point { at_ms: 1, bytes: 508, count: 1 }, Point { at_ms: 2, bytes: 1_574_508, count: 74 }];
    (report.lost.stacks, report.lost.cut_stacks) = (2, 1);
    let facts = Facts::of_run(&report);
    assert_eq!((facts.growth, facts.new, facts.lost, facts.leaks), (1_574_000, 0, 3, 0));
}

/// A field of a message that is there once: a number, or bytes.
fn only(message: &[u8], wanted: u64) -> u64 {
    let mut rest = message;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let tag = varint(&mut rest);
        let number = varint(&mut rest);
        if tag & 7 == 2 {
            rest = &rest[number as usize..];
        } else if tag >> 3 == wanted {
            found.push(number);
        }
    }
    assert!(found.len() < 2, "{found:?}");
    found.first().copied().unwrap_or(0)
}

/// The numbers of a packed field.
fn packed(message: &[u8], wanted: u64) -> Vec<u64> {
    let (_, mut bytes) = fields(message).into_iter().find(|(field, _)| *field == wanted).unwrap_or_default();
    let mut numbers = Vec::new();
    while !bytes.is_empty() {
        numbers.push(varint(&mut bytes));
    }
    numbers
}

/// As formats.md has it from Perfetto's sources: packets that count from 0 and of which the last
/// one alone ends the graph, objects with types that are there, and as many fields as references.
#[test]
fn a_heap_graph_has_all_objects() {
    const OBJECTS: u64 = 45_000;
    let address = |number: u64| 0x7f00_0000_1000 + number * 64;
    // A list: each holds the next, the last one the first; one in ten thousand has no type but its
    // maker.
    let object = |number: u64| GraphObject {
        address: address(number),
        size: number % 40,
        type_number: u32::from(number.is_multiple_of(10_000)),
        references: vec![((number % 2) as u32, address((number + 1) % OBJECTS)), (0, address(7))],
    };
    let graph = ObjectGraph {
        pid: 4321,
        types: vec!["node".to_owned(), "made in main (x.c:7)".to_owned()],
        fields: vec!["next".to_owned(), "+0x8".to_owned()],
        objects: (0..OBJECTS).map(object).collect(),
        roots: vec![
            (RootKind::Global, address(0)),
            (RootKind::Global, address(9)),
            (RootKind::Stack, address(1)),
        ],
    };
    let mut report = wordcount();
    report.why = Some(Box::new(Why { objects: vec![graph.clone()], ..Why::default() }));
    let trace = bytes_of(|out| write_perfetto(&report, false, out));
    let of = |message: &[u8], wanted: u64| -> Vec<Vec<u8>> {
        let found = fields(message).into_iter().filter(|(field, _)| *field == wanted);
        found.map(|(_, bytes)| bytes.to_vec()).collect()
    };
    let packets: Vec<Vec<u8>> = of(&trace, 1).into_iter().filter(|it| !of(it, 56).is_empty()).collect();
    let times: BTreeSet<u64> = packets.iter().map(|packet| only(packet, 8)).collect();
    assert_eq!(times.len(), 1, "{times:?}");
    assert!(packets.iter().all(|packet| only(packet, 10) == 1));
    let graphs: Vec<Vec<u8>> = packets.iter().flat_map(|packet| of(packet, 56)).collect();
    let order: Vec<_> = graphs.iter().map(|it| (only(it, 1), only(it, 6), only(it, 5))).collect();
    assert_eq!(order, [(4321, 0, 1), (4321, 1, 1), (4321, 2, 0)]);
    let text = |bytes: &[u8], field: u64| String::from_utf8(of(bytes, field)[0].clone()).expect("UTF-8");
    let named = |field: u64, name: u64| -> BTreeMap<u64, String> {
        let all = graphs.iter().flat_map(|it| of(it, field));
        all.map(|it| (only(&it, 1), text(&it, name))).collect()
    };
    let (types, members) = (named(9, 3), named(4, 2));
    let objects: Vec<Vec<u8>> = graphs.iter().flat_map(|it| of(it, 2)).collect();
    assert_eq!(objects.len() as u64, OBJECTS);
    for (found, made) in objects.iter().zip(&graph.objects) {
        assert_eq!((only(found, 1), only(found, 3)), (made.address, made.size));
        assert_eq!(types[&only(found, 2)], graph.types[made.type_number as usize]);
        let (held_by, held) = (packed(found, 4), packed(found, 5));
        assert_eq!(held_by.len(), held.len());
        let expected: Vec<_> =
            made.references.iter().map(|(field, to)| (&graph.fields[*field as usize], *to)).collect();
        let found: Vec<_> = held_by.iter().map(|field| &members[field]).zip(held).collect();
        assert_eq!(found, expected);
    }
    let roots: Vec<_> =
        graphs.iter().flat_map(|it| of(it, 7)).map(|it| (only(&it, 2), packed(&it, 1))).collect();
    assert_eq!(roots, [(1, vec![address(0), address(9)]), (4, vec![address(1)])]);
}
