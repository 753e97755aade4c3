//! Reports as they are written: golden files, and readers of the two forms that agree with each other.
//!
//! `MEMLEAK_BLESS=1 cargo test --test report` writes the golden files anew; read the difference before you commit it.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jiff::tz::{TimeZone, offset};
use memleak::{
    aggregate::{Group, GroupKey},
    probe::resource::ResourceInfo,
    report::{
        AllocationLine, Report, ResourceTotal, StackReport, TargetInfo, Totals,
        json::write_json,
        text::{TextOptions, write_text},
        trace::{EventKind, EventLine, write_event_json, write_event_text},
    },
    settings::{Format, ReportSettings, SortKey},
    snapshot::{Cut, KERNEL_PID, Lost, Stack},
    symbolize::{Frame, NoSymbol},
};
use memleak_common::probe::Resource;
use regex::Regex;
use serde_json::Value;

/// 2026-01-02T03:04:05.678Z
fn time() -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(1_767_323_045_678)
}

/// A place two hours east of Greenwich: its time of day is no UTC.
fn options(top: usize) -> TextOptions {
    TextOptions { top, time_zone: TimeZone::fixed(offset(2)) }
}

fn frame(ip: u64, function: &str, function_offset: u64, place: Option<(&str, u32)>) -> Frame {
    Frame {
        ip,
        module: Some("/tmp/leak".to_owned()),
        offset: Some(ip - 0x55fc_a689_9000),
        function: Some(function.to_owned()),
        symbol: Some(function.to_owned()),
        function_offset: Some(function_offset),
        file: place.map(|(file, _)| file.to_owned()),
        line: place.map(|(_, line)| line),
        inlined: false,
        no_symbol: None,
    }
}

fn unknown(ip: u64, module: Option<&str>, offset: Option<u64>, reason: NoSymbol) -> Frame {
    Frame {
        ip,
        module: module.map(str::to_owned),
        offset,
        function: None,
        symbol: None,
        function_offset: None,
        file: None,
        line: None,
        inlined: false,
        no_symbol: Some(reason),
    }
}

/// The stack of spec section 2.
fn leaky() -> StackReport {
    StackReport {
        pid: 123,
        resource: info(Resource::Heap),
        bytes: 80,
        count: 5,
        oldest_ms: Some(4000),
        newest_ms: Some(900),
        label: None,
        cut: None,
        frames: vec![
            Frame {
                symbol: Some("_Z5leakym".to_owned()),
                ..frame(0x55fc_a689_a188, "leaky(unsigned long)", 15, Some(("leak.c", 5)))
            },
            frame(0x55fc_a689_a1cc, "main", 0x2e, Some(("/home/me/src/leak.c", 7))),
        ],
        now: None,
        allocations: None,
    }
}

fn mapping() -> StackReport {
    StackReport {
        resource: info(Resource::Mmap),
        bytes: 4096,
        count: 1,
        oldest_ms: Some(1000),
        newest_ms: Some(1000),
        frames: vec![frame(0x55fc_a689_a200, "map_it", 0x10, None)],
        ..leaky()
    }
}

fn info(resource: Resource) -> Arc<ResourceInfo> {
    Arc::new(ResourceInfo::built_in(resource))
}

fn report(stacks: Vec<StackReport>) -> Report {
    report_of(&[Resource::Heap, Resource::Mmap].map(info), stacks)
}

fn report_of(resources: &[Arc<ResourceInfo>], stacks: Vec<StackReport>) -> Report {
    let total = |resource: &Arc<ResourceInfo>| {
        let of_it = || stacks.iter().filter(|stack| stack.resource == *resource);
        ResourceTotal {
            resource: resource.clone(),
            bytes: of_it().map(|stack| stack.bytes).sum(),
            count: of_it().map(|stack| stack.count).sum(),
        }
    };
    Report {
        by_resource: resources.iter().map(total).collect(),
        time: time(),
        elapsed_ms: 5000,
        is_final: false,
        target: TargetInfo { kind: "process", pids: vec![123], comm: "leak".to_owned() },
        totals: Totals {
            bytes: stacks.iter().map(|stack| stack.bytes).sum(),
            count: stacks.iter().map(|stack| stack.count).sum(),
            acquired: 12,
            released: 7,
        },
        lost: Lost::default(),
        sampled: None,
        stacks,
    }
}

/// What a user has described: without a size, its handles numbers or addresses.
fn user(name: &str, unit: &str, is_number: bool) -> Arc<ResourceInfo> {
    Arc::new(ResourceInfo {
        resource: Resource::Custom(u16::from(is_number)),
        name: name.to_owned(),
        description: String::new(),
        unit: unit.to_owned(),
        has_size: false,
        is_number,
        is_descriptor: false,
    })
}

fn line(address: u64, age_ms: u64, now: Option<&str>) -> AllocationLine {
    AllocationLine { address, size: 0, age_ms, now: now.map(str::to_owned) }
}

/// Three tables: that of memory, descriptors with what they are now, and a user's own.
fn resources() -> Report {
    let fd = info(Resource::Fd);
    let lease = user("lease", "leases \x1b[1m", false);
    let unused = user("slot", "slot", true);
    let resources = [info(Resource::Heap), fd.clone(), info(Resource::Mmap), lease.clone(), unused];
    let opened = StackReport {
        resource: fd,
        bytes: 0,
        now: Some("1 file (/tmp/a\nb), 1 socket".to_owned()),
        count: 3,
        frames: vec![frame(0x55fc_a689_a200, "open_it", 0x10, None)],
        allocations: Some(vec![
            line(5, 84_000, Some("socket:[123]")),
            line(6, 1200, Some("/tmp/a\nb")),
            line(7, 900, None),
        ]),
        ..leaky()
    };
    let leased = StackReport { resource: lease, bytes: 0, count: 1, allocations: None, ..leaky() };
    let leased_more = StackReport {
        count: 2,
        allocations: Some(vec![line(0x7f00, 5, None), line(0x7f10, 4, None)]),
        ..leased.clone()
    };
    let lost = Lost { allocations: 1, ..Lost::default() };
    Report { lost, ..report_of(&resources, vec![leaky(), mapping(), opened, leased_more, leased]) }
}

fn inlined() -> Report {
    let push = Frame {
        inlined: true,
        file: Some("/usr/include/c++/12/bits/stl_vector.h".to_owned()),
        line: Some(1287),
        ..frame(0x55fc_a689_a1f0, "std::vector<int>::push_back(int&&)", 0x40, None)
    };
    let no_line = Frame { file: Some("gen.c".to_owned()), ..frame(0x55fc_a689_a2f0, "generated", 4, None) };
    let no_offset = Frame { function_offset: None, ..frame(0x55fc_a689_a3f0, "plt_entry", 0, None) };
    let host = frame(0x55fc_a689_a1f0, "fill(std::vector<int>&)", 0x40, Some(("fill.cc", 12)));
    report(vec![StackReport { frames: vec![push, host, no_line, no_offset], ..leaky() }])
}

fn no_symbols() -> Report {
    let frames = vec![
        unknown(0x7f00_0000_1234, Some("/usr/lib/libfoo.so.1"), Some(0x1234), NoSymbol::NotInSymbolTable),
        unknown(0x7f00_0000_2345, Some("/gone/libbar.so"), Some(0x2345), NoSymbol::UnreadableObject),
        unknown(0x7f00_0000_3456, Some("/gone/libbar.so"), None, NoSymbol::UnreadableObject),
        unknown(0x7ffd_0000_0a10, Some("[vdso]"), Some(0xa10), NoSymbol::NotInSymbolTable),
        unknown(0x7f11_0000_0000, None, None, NoSymbol::Anonymous),
        unknown(0x3, None, None, NoSymbol::Unmapped),
        Frame {
            module: Some("[perf map]".to_owned()),
            offset: None,
            ..frame(0x7f11_0000_1000, "LazyCompile:~f /app/x.js:3", 0x10, None)
        },
    ];
    let no_stack = StackReport { bytes: 16, count: 1, frames: vec![], ..leaky() };
    report(vec![StackReport { frames, cut: Some(Cut::TooDeep), ..leaky() }, no_stack])
}

/// What kernel mode gives: no process, and stacks that say what their objects are.
fn kernel() -> Report {
    let frame = |ip: u64, function: &str, function_offset, module: &str| Frame {
        module: Some(module.to_owned()),
        offset: Some(ip & 0xff_ffff),
        ..frame(ip, function, function_offset, None)
    };
    let of = |resource, bytes, count, label: Option<&str>, frames| StackReport {
        pid: KERNEL_PID,
        resource: info(resource),
        bytes,
        count,
        label: label.map(str::to_owned),
        frames,
        ..leaky()
    };
    let epoll = vec![
        frame(0xffff_ffff_815c_9f4a, "__kmalloc_cache_noprof", 0x2aa, "[kernel]"),
        frame(0xffff_ffff_8173_1b2c, "do_epoll_create", 0x2c, "[kernel]"),
        frame(0xffff_ffff_8100_012b, "entry_SYSCALL_64_after_hwframe", 0x71, "[kernel]"),
    ];
    let table = vec![frame(0xffff_ffff_c0a0_1010, "nft_do_chain", 0x10, "[nf_tables]")];
    let pages = vec![unknown(0xffff_ffff_c030_0100, None, None, NoSymbol::NotInSymbolTable)];
    let resources = [Resource::Slab, Resource::Pages, Resource::Vmalloc].map(info);
    let stacks = vec![
        of(Resource::Slab, 4096, 16, Some("kmalloc-256"), epoll),
        of(Resource::Pages, 16384, 1, Some("order 2"), pages),
        of(Resource::Slab, 192, 1, Some("dentry"), table.clone()),
        of(Resource::Slab, 16, 1, Some("a\n\t9 bytes\x1b[2J"), vec![]),
        of(Resource::Vmalloc, 8192, 1, None, table),
    ];
    let mut report = report_of(&resources, stacks);
    report.target = TargetInfo::kernel();
    report
}

fn hostile() -> Report {
    let forged = "x\n\t999 bytes in 9 allocations from stack\n\t\t0x0000000000000000\ty";
    let frames = vec![
        frame(0x55fc_a689_a188, forged, 1, Some(("/a/\x1b]0;owned\x07.c", 1))),
        Frame {
            module: Some("/tmp/\u{9b}31m\r[evil]".to_owned()),
            ..frame(0x55fc_a689_a189, "\u{202e}gnp.exe \"quoted\\\"", 2, Some(("/", 2)))
        },
        Frame { module: Some("/tmp/dir\n/".to_owned()), ..unknown(1, None, Some(1), NoSymbol::Unmapped) },
        Frame { module: Some(String::new()), ..frame(0x55fc_a689_a18a, "\u{fffd}", 3, Some(("", 3))) },
    ];
    let mut report = report(vec![StackReport { frames, ..leaky() }]);
    report.target.comm = "a\x1b[2J\"\n\u{2028}\u{85}".to_owned();
    report
}

fn cases() -> Vec<(&'static str, Report)> {
    let with_allocations = StackReport {
        allocations: Some(vec![
            AllocationLine { address: 0x55_fca0, size: 16, age_ms: 4000, now: None },
            AllocationLine { address: 0x55_fcc0, size: 64, age_ms: 900, now: None },
        ]),
        ..leaky()
    };
    let combined = StackReport { oldest_ms: None, newest_ms: None, ..leaky() };
    let all_lost =
        Lost { allocations: 12, stacks: 1, events: 34, missed_returns: 2, skipped_runs: 5, cut_stacks: 3 };
    vec![
        ("plain", report(vec![mapping(), leaky()])),
        ("empty", report(vec![])),
        ("inlined", inlined()),
        ("sampled", Report { sampled: Some(100), ..report(vec![leaky()]) }),
        ("lost", Report { lost: all_lost, ..report(vec![leaky()]) }),
        ("lost_one", Report { lost: Lost { allocations: 1, ..Lost::default() }, ..report(vec![]) }),
        ("allocations", report(vec![with_allocations])),
        ("combined", Report { is_final: true, ..report(vec![combined]) }),
        ("no_symbols", no_symbols()),
        ("hostile", hostile()),
        ("resources", resources()),
        ("user", report_of(&[user("lease", "leases", false)], vec![])),
        ("kernel", kernel()),
        ("processes", {
            let mut two = report(vec![leaky(), StackReport { pid: 124, ..leaky() }]);
            two.target.kind = "command";
            two
        }),
    ]
}

fn text_of(report: &Report) -> String {
    let mut out = Vec::new();
    write_text(report, &options(10), &mut out).expect("a Vec takes all");
    String::from_utf8(out).expect("UTF-8")
}

fn json_of(report: &Report) -> String {
    let mut out = Vec::new();
    write_json(report, &mut out).expect("a Vec takes all");
    String::from_utf8(out).expect("UTF-8")
}

/// Compares with a golden file, or writes it when that is asked for.
fn check_golden(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("MEMLEAK_BLESS").is_some() {
        fs::write(&path, actual).expect("the golden file is written");
    }
    let expected = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(actual, expected, "{name} differs from its golden file");
}

#[test]
fn golden_files() {
    for (name, report) in cases() {
        check_golden(&format!("{name}.txt"), &text_of(&report));
        check_golden(&format!("{name}.json"), &json_of(&report));
    }
}

#[test]
fn every_golden_file_belongs_to_a_case() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let found: BTreeSet<String> = fs::read_dir(directory)
        .expect("the directory is there")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    let cases = cases();
    let names = cases.iter().map(|(name, _)| *name).chain(["trace", "trace_kernel"]);
    let expected = names.flat_map(|name| [format!("{name}.txt"), format!("{name}.json")]).collect();
    assert_eq!(found, expected);
}

/// The very text of spec section 2, with K and the time as here.
#[test]
fn the_text_of_the_spec() {
    let expected = "\
[05:04:05] Top 10 stacks with outstanding allocations:
\t80 bytes in 5 allocations from stack
\t\t0x000055fca689a188\tleaky(unsigned long)+0xf at leak.c:5 [leak]
\t\t0x000055fca689a1cc\tmain+0x2e at leak.c:7 [leak]
";
    assert_eq!(text_of(&report(vec![leaky()])), expected);
}

/// The very object of spec section 5, but for what was added since: read as JSON and compared field by field.
#[test]
fn the_json_of_the_spec() {
    let spec: Value = serde_json::from_str(
        r#"{"schema":1,"time":"2026-01-02T03:04:05.678Z","target":{"kind":"process","pids":[123],"comm":"leak"},
         "elapsed_ms":5000,"final":false,
         "totals":{"bytes":80,"count":5,"acquired":12,"released":7},
         "lost":{"allocations":0,"stacks":0,"events":0,"missed_returns":0,"skipped_runs":0,"cut_stacks":0},
         "stacks":[{"resource":"heap","bytes":80,"count":5,"oldest_ms":4000,"newest_ms":900,"truncated":false,
           "frames":[{"ip":"0x55fca689a188","module":"/tmp/leak","offset":"0x1188","function":"leaky(unsigned long)",
                      "symbol":"_Z5leakym","function_offset":15,"file":"leak.c","line":5,"inlined":false}],
           "allocations":[{"address":"0x55fca0","size":16,"age_ms":900}]}]}"#,
    )
    .expect("the spec's object");
    let mut stack = leaky();
    stack.frames.truncate(1);
    stack.allocations = Some(vec![AllocationLine { address: 0x55_fca0, size: 16, age_ms: 900, now: None }]);
    let mut actual: Value = serde_json::from_str(&json_of(&report(vec![stack]))).expect("JSON");
    let by_resource = serde_json::json!({"heap":{"bytes":80,"count":5},"mmap":{"bytes":0,"count":0}});
    let totals = actual["totals"].as_object_mut().expect("totals");
    assert_eq!(totals.remove("by_resource"), Some(by_resource));
    let added = &mut actual["stacks"][0];
    assert_eq!(added.as_object_mut().and_then(|stack| stack.remove("pid")), Some(123.into()));
    let frame = added["frames"][0].as_object_mut().expect("a frame");
    assert_eq!(frame.remove("no_symbol"), Some(Value::Null));
    assert_eq!(actual, spec);
}

/// What a script written for bcc's memleak gets out of a report of memory: bytes, allocations and addresses of each stack.
fn read_as_bcc_script(text: &str) -> (usize, Vec<(u64, u64, Vec<u64>)>) {
    let heading =
        Regex::new(r"^\[\d\d:\d\d:\d\d\] Top (\d+) stacks with outstanding allocations").expect("regex");
    let stack = Regex::new(r"^\t(\d+) bytes in (\d+) allocations from stack(?: \(.+\))?$").expect("regex");
    let address = Regex::new(r"^\t\t0x([0-9a-f]{16})\t").expect("regex");
    let mut top = None;
    let mut stacks: Vec<(u64, u64, Vec<u64>)> = Vec::new();
    for line in memory_lines(text) {
        if let Some(found) = heading.captures(line) {
            assert_eq!(top.replace(found[1].parse().expect("a number")), None, "two headings");
        } else if let Some(found) = stack.captures(line) {
            let number = |at: usize| found[at].parse().expect("a number");
            stacks.push((number(1), number(2), Vec::new()));
        } else if let Some(found) = address.captures(line) {
            let ip = u64::from_str_radix(&found[1], 16).expect("a number");
            stacks.last_mut().expect("a stack before its frames").2.push(ip);
        }
    }
    (top.expect("a heading"), stacks)
}

/// The lines of the table of memory: it comes first where there is one.
fn memory_lines(text: &str) -> impl Iterator<Item = &str> {
    let other = |line: &&str| line.starts_with('[') && !line.contains(" outstanding allocations");
    text.lines().take_while(move |line| !other(line))
}

fn is_memory(stack: &&StackReport) -> bool {
    stack.resource.has_size
}

/// The lines that a cruder script takes for stacks: those of one tab whose first word is a number.
fn read_first_words(text: &str) -> Vec<u64> {
    let of_one_tab = memory_lines(text).filter_map(|line| line.strip_prefix('\t'));
    of_one_tab.filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
}

#[test]
fn a_script_for_bcc_reads_every_report() {
    for (name, report) in cases() {
        let text = text_of(&report);
        if !text.contains("outstanding allocations") {
            continue; // nothing of memory in it
        }
        let (top, stacks) = read_as_bcc_script(&text);
        let expected: Vec<_> = report
            .stacks
            .iter()
            .filter(is_memory)
            .map(|stack| (stack.bytes, stack.count, stack.frames.iter().map(|frame| frame.ip).collect()))
            .collect();
        assert_eq!((top, stacks), (10, expected), "{name}:\n{text}");
        let bytes: Vec<u64> = report.stacks.iter().filter(is_memory).map(|stack| stack.bytes).collect();
        assert_eq!(read_first_words(&text), bytes, "{name}:\n{text}");
    }
}

/// Bytes and number of each stack's heading, of whatever resource.
fn read_numbers(text: &str) -> Vec<(u64, u64)> {
    let heading =
        Regex::new(r"^\t(?:(\d+) bytes in (\d+) allocations|(\d+) outstanding) from stack(?: \(.*\))?$")
            .expect("regex");
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let found = text.lines().filter_map(|line| heading.captures(line));
    found
        .map(|found| match found.get(3) {
            Some(count) => (0, number(count.as_str())),
            None => (number(&found[1]), number(&found[2])),
        })
        .collect()
}

#[test]
fn both_forms_say_the_same() {
    for (name, report) in cases() {
        let json: Value = serde_json::from_str(&json_of(&report)).expect("JSON");
        let numbers = read_numbers(&text_of(&report));
        let in_json = json["stacks"].as_array().expect("a list").iter();
        let in_json: Vec<_> =
            in_json.filter_map(|stack| Some((stack["bytes"].as_u64()?, stack["count"].as_u64()?))).collect();
        assert_eq!(numbers, in_json, "{name}");
        let sum: u64 = numbers.iter().map(|(bytes, _)| bytes).sum();
        assert_eq!(json["totals"]["bytes"], sum, "{name}");
    }
}

#[test]
fn no_form_lets_a_stranger_write_to_the_terminal() {
    for (name, report) in cases() {
        for line in text_of(&report).lines() {
            let shown = line.trim_start_matches('\t').replacen('\t', "", 1);
            assert!(!shown.contains(memleak::escape::acts_on_terminal), "{name}: {line:?}");
        }
        let json = json_of(&report);
        let (line, end) = json.split_at(json.len() - 1);
        assert_eq!(end, "\n");
        assert!(!line.contains(memleak::escape::acts_on_terminal), "{name}: {line:?}");
    }
}

#[test]
fn json_escapes_change_no_value() {
    let report = hostile();
    let json: Value = serde_json::from_str(&json_of(&report)).expect("JSON");
    assert_eq!(json["target"]["comm"], report.target.comm.as_str());
    for (read, written) in
        json["stacks"][0]["frames"].as_array().expect("frames").iter().zip(&report.stacks[0].frames)
    {
        assert_eq!(read["function"].as_str(), written.function.as_deref());
        assert_eq!(read["module"].as_str(), written.module.as_deref());
        assert_eq!(read["file"].as_str(), written.file.as_deref());
    }
}

fn acquire() -> EventLine {
    EventLine {
        time: time(),
        kind: EventKind::Acquire,
        pid: 123,
        tid: 125,
        resource: info(Resource::Heap),
        address: 0x7f12_3456_7890,
        size: 128,
        label: None,
        comm: None,
        frames: leaky().frames,
    }
}

/// Writes events in both forms, compares with golden files, and gives the text form.
fn check_trace(name: &str, events: &[EventLine]) -> String {
    let (mut text, mut json) = (Vec::new(), Vec::new());
    for event in events {
        write_event_text(event, &options(10), &mut text).expect("a Vec takes all");
        write_event_json(event, &mut json).expect("a Vec takes all");
    }
    let json = String::from_utf8(json).expect("UTF-8");
    for line in json.lines() {
        assert!(line.starts_with("{\"event\":\""), "{line}");
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
    }
    let text = String::from_utf8(text).expect("UTF-8");
    check_golden(&format!("{name}.txt"), &text);
    check_golden(&format!("{name}.json"), &json);
    text
}

#[test]
fn trace_lines() {
    let release = EventLine {
        kind: EventKind::Release,
        resource: info(Resource::Mmap),
        size: 0,
        frames: vec![],
        ..acquire()
    };
    let opened = EventLine { resource: info(Resource::Fd), address: 5, size: 0, frames: vec![], ..acquire() };
    let leased = EventLine { resource: user("lease", "leases", false), address: 0x7f00, ..opened.clone() };
    let text = check_trace("trace", &[acquire(), release, opened, leased]);
    assert_eq!(text.lines().next(), Some("[05:04:05.678] 123/125 acquire heap 0x7f1234567890 128 bytes"));
    let last: Vec<&str> = text.lines().rev().take(2).collect();
    let expected =
        ["acquire lease 0x7f00", "acquire fd 5"].map(|what| format!("[05:04:05.678] 123/125 {what}"));
    assert_eq!(last, expected);
}

#[test]
fn trace_lines_of_the_kernel() {
    let slab = EventLine {
        resource: info(Resource::Slab),
        address: 0xffff_8881_0234_5600,
        label: Some("kmalloc-128".to_owned()),
        comm: Some("kworker/0:1".to_owned()),
        frames: vec![],
        ..acquire()
    };
    let pages = EventLine {
        resource: info(Resource::Pages),
        size: 16384,
        label: Some("order 2".to_owned()),
        comm: Some("a\n\x1b[2Jb".to_owned()),
        ..slab.clone()
    };
    // In an interrupt that came while nothing ran.
    let release = EventLine {
        kind: EventKind::Release,
        pid: KERNEL_PID,
        tid: 0,
        label: None,
        comm: None,
        ..slab.clone()
    };
    let text = check_trace("trace_kernel", &[slab, pages, release]);
    let lines: Vec<&str> = text.lines().collect();
    let slab =
        "[05:04:05.678] 123/125 acquire slab 0xffff888102345600 128 bytes (kmalloc-128) by kworker/0:1";
    assert_eq!((lines.len(), lines[0]), (3, slab));
    assert_eq!(lines[2], "[05:04:05.678] kernel/0 release slab 0xffff888102345600 128 bytes");
}

/// What spec section 5 says of a stack of the kernel's, and that the text form has it behind what bcc's scripts read.
#[test]
fn stacks_of_the_kernel_say_what_they_hold() {
    let report = kernel();
    let text = text_of(&report);
    assert!(
        text.contains("\n\t4096 bytes in 16 allocations from stack (kmalloc-256)\n\t\t0xffffffff815c9f4a\t"),
        "{text}"
    );
    assert!(!text.contains("[process"), "{text}");
    let json: Value = serde_json::from_str(&json_of(&report)).expect("JSON");
    assert_eq!(json["target"], serde_json::json!({"kind": "kernel", "pids": [], "comm": "kernel"}));
    let stacks = json["stacks"].as_array().expect("a list");
    let has = |at: usize, key: &str| stacks[at].get(key).cloned();
    assert_eq!((has(0, "cache"), has(0, "order")), (Some("kmalloc-256".into()), None));
    assert_eq!((has(1, "cache"), has(1, "order")), (None, Some(2.into())));
    assert_eq!((has(4, "cache"), has(4, "order")), (None, None));
    assert!(stacks.iter().all(|stack| stack["pid"] == 0));
}

fn settings(combined_only: bool) -> ReportSettings {
    ReportSettings {
        format: Format::Text,
        top: 3,
        sort: SortKey::Size,
        show_allocs: false,
        combined_only,
        older: Duration::ZERO,
        sample_rate: 1,
        output: None,
    }
}

#[test]
fn a_group_becomes_a_stack_of_the_report() {
    let group = Group {
        key: GroupKey { pid: 9, resource: Resource::Mmap, stack_id: 5 },
        bytes: 10,
        count: 2,
        oldest_ns: 2_999_999,
        newest_ns: 1_000_000,
        growth: 10,
        allocations: None,
    };
    let cut = Stack { ips: vec![1], cut: Some(Cut::TooDeep), label: Some("dentry".to_owned()) };
    let stack =
        StackReport::new(group.clone(), info(Resource::Mmap), Some(&cut), leaky().frames, &settings(false));
    assert_eq!((stack.pid, stack.resource.resource, stack.bytes, stack.count), (9, Resource::Mmap, 10, 2));
    assert_eq!((stack.oldest_ms, stack.newest_ms, stack.cut), (Some(2), Some(1), Some(Cut::TooDeep)));
    assert_eq!((stack.frames, stack.label.as_deref()), (leaky().frames, Some("dentry")));
    let stack = StackReport::new(group, info(Resource::Mmap), None, vec![], &settings(true));
    assert_eq!((stack.oldest_ms, stack.newest_ms, stack.cut), (None, None, None));
}

#[test]
fn the_heading_names_the_number_that_was_asked_for() {
    let options = TextOptions::new(&settings(false));
    let mut out = Vec::new();
    write_text(&report(vec![leaky()]), &options, &mut out).expect("a Vec takes all");
    assert_eq!(read_as_bcc_script(&String::from_utf8_lossy(&out)).0, 3);
}
