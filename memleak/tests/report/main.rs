//! Reports as they are written: golden files, and readers of the two forms that agree with each
//! other.
//!
//! `MEMLEAK_BLESS=1 cargo test --test report` writes the golden files again; read the difference
//! before you commit it.

mod files;
#[cfg(feature = "tui")]
mod hostile_saved;
mod human;
mod reports;
mod trace;
#[cfg(feature = "tui")]
mod tui;

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use memleak::{
    aggregate::{AmountBefore, Group, GroupKey},
    report::{
        filter::Filter,
        format::{KINDS, Measure, Options, folded::write_folded, json::write_json, text, text::write_text},
        model::{AllocationLine, OtherProcesses, ProcessCount, Report, StackReport},
    },
    sampling::Sampling,
    settings::{ColorChoice, ReportSettings, SortKey},
    sites::SiteId,
    verdict::{History, judge},
};
use memleak_common::probe::Resource;
use regex::Regex;
use reports::{cases, hostile, info, kernel, leaky, mapping, merged, no_symbols, options, report, resources};
use serde_json::Value;

fn text_of(report: &Report) -> String {
    let mut out = Vec::new();
    write_text(report, &options(10), &mut out).expect("a Vec takes all");
    String::from_utf8(out).expect("UTF-8")
}

fn json_of(report: &Report) -> String {
    let mut out = Vec::new();
    write_json(report, 10, &mut out).expect("a Vec takes all");
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
        check_golden(&format!("{name}.human"), &human::of(&report, 80));
        #[cfg(feature = "tui")]
        check_golden(&format!("{name}.screen"), &tui::screens(&report));
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
    let names = cases.iter().map(|(name, _)| *name);
    let screens = names.clone().map(|name| format!("{name}.screen"));
    let human = names.clone().map(|name| format!("{name}.human"));
    let both = names.chain(["trace", "trace_kernel"]);
    let both = both.flat_map(|name| [format!("{name}.txt"), format!("{name}.json")]);
    let expected = both.chain(human).chain(screens).collect();
    assert_eq!(found, expected);
}

/// The documented text form to the letter, with K and the time as here.
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

/// The documented JSON object, but for what was added since: read as JSON and compared field by
/// field.
#[test]
fn the_json_of_the_spec() {
    let spec: Value = serde_json::from_str(
        r#"{"schema":1,"time":"2026-01-02T03:04:05.678Z","target":{"kind":"process","pids":[123],"comm":"leak"},
         "elapsed_ms":5000,"cut_ns":77000000000,"cut_within_ns":90,"final":false,
         "totals":{"bytes":80,"count":5,"acquired":12,"released":7},
         "lost":{"allocations":0,"stacks":0,"events":0,"trace_lines":0,"processes":0,"moved":0,"missed_returns":0,"skipped_runs":0,"cut_stacks":0},
         "stacks":[{"resource":"heap","bytes":80,"count":5,"oldest_ms":4000,"newest_ms":900,"truncated":false,
           "frames":[{"ip":"0x55fca689a188","module":"/tmp/leak","offset":"0x1188","function":"leaky(unsigned long)",
                      "symbol":"_Z5leakym","function_offset":15,"file":"leak.c","line":5,"inlined":false}],
           "allocations":[{"address":"0x55fca0","size":16,"age_ms":900}]}]}"#,
    )
    .expect("the documented object");
    let mut stack = leaky();
    stack.frames.truncate(1);
    stack.allocations = Some(vec![AllocationLine {
        pid: 123,
        tid: None,
        address: 0x55_fca0,
        size: 16,
        age_ms: 900,
        now: None,
    }]);
    let mut actual: Value = serde_json::from_str(&json_of(&report(vec![stack]))).expect("JSON");
    let by_resource = serde_json::json!({"heap":{"bytes":80,"count":5},"mmap":{"bytes":0,"count":0}});
    let totals = actual["totals"].as_object_mut().expect("totals");
    assert_eq!(totals.remove("by_resource"), Some(by_resource));
    let added = &mut actual["stacks"][0];
    let added_fields = added.as_object_mut().expect("a stack");
    assert_eq!(added_fields.remove("pid"), Some(123.into()));
    assert_eq!(added_fields.remove("stack_id"), Some("0123456789abcdef".into()));
    assert_eq!(added_fields.remove("growth_bytes"), Some(0.into()));
    assert_eq!(added_fields.remove("growth_count"), Some(0.into()));
    assert_eq!(added_fields.remove("verdict"), Some("unknown".into()));
    assert!(added_fields.remove("verdict_reason").is_some());
    let frame = added["frames"][0].as_object_mut().expect("a frame");
    assert_eq!(frame.remove("no_symbol"), Some(Value::Null));
    assert_eq!(actual, spec);
}

/// What a script written for bcc's memleak gets out of a report of memory: bytes, allocations and
/// addresses of each stack.
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
            .map(|stack| (stack.bytes, stack.count, report.frames_of(stack).map(|frame| frame.ip).collect()))
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
    for (read, written) in json["stacks"][0]["frames"]
        .as_array()
        .expect("frames")
        .iter()
        .zip(report.frames_of(&report.stacks[0]))
    {
        assert_eq!(read["function"].as_str(), written.function.as_deref());
        assert_eq!(read["module"].as_str(), written.module.as_deref());
        assert_eq!(read["file"].as_str(), written.file.as_deref());
    }
}

/// What the JSON form has of a kernel stack, and that the text form has it after what bcc's scripts
/// read.
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
        format: Some(text::KIND),
        color: ColorChoice::Never,
        full_stacks: false,
        full_names: false,
        with_source: false,
        tui: false,
        temporary: false,
        split_by: None,
        top: 3,
        sort: SortKey::Size,
        show_allocs: false,
        combined_only,
        older: Duration::ZERO,
        sampling: Sampling::All,
        output: None,
        files: Vec::new(),
        flamegraph_by: Measure::Bytes,
        summary: false,
        filter: Filter::default(),
        fail_if: Vec::new(),
    }
}

#[test]
fn a_group_becomes_a_stack_of_the_report() {
    let processes =
        vec![ProcessCount { pid: 9, bytes: 8, count: 1 }, ProcessCount { pid: 7, bytes: 2, count: 1 }];
    let mut group = Group {
        key: GroupKey { resource: Resource::Mmap, site: SiteId::UNKNOWN },
        bytes: 10,
        count: 2,
        variance: 0,
        processes: processes.clone(),
        others: OtherProcesses { processes: 3, bytes: 5, count: 4 },
        threads: Vec::new(),
        oldest_ns: 2_999_999,
        oldest_birth: 0,
        newest_ns: 1_000_000,
        growth: 10,
        before: AmountBefore::default(),
        history: History::default(),
        verdict: judge(&History::default()),
        is_top: true,
        has_blocks: false,
        allocations: None,
    };
    group.judge(Vec::new(), 5000, false);
    let stack = group.clone().report(info(Resource::Mmap), None, &settings(false));
    assert_eq!((stack.growth_bytes, stack.growth_count), (10, 2));
    assert_eq!((stack.pid(), stack.is_merged(), &stack.processes), (9, true, &processes));
    assert_eq!((stack.resource.resource, stack.bytes, stack.count), (Resource::Mmap, 10, 2));
    assert_eq!((stack.oldest_ms, stack.newest_ms, stack.stack_id), (Some(2), Some(1), None));
    group.judge(Vec::new(), 5000, true);
    let stack = group.report(info(Resource::Mmap), None, &settings(true));
    assert_eq!((stack.oldest_ms, stack.newest_ms, stack.cut()), (None, None, None));
}

/// Spec section 5: `process_counts` where merged.
#[test]
fn what_several_processes_hold_is_split_by_process() {
    let report = merged();
    let text = text_of(&report);
    let split = "\t\t(in 30 processes: 200 holds 1048576 bytes in 1, 201 holds";
    assert!(text.contains(split) && text.contains(", 22 more hold 23068672 bytes in 22)\n"), "{text}");
    assert!(text.contains("\t\t(in 2 processes: 123 holds 2, 124 holds 1)\n"), "{text}");
    let mut folded = report.clone();
    folded.stacks[0].others = OtherProcesses { processes: 1000, bytes: 5, count: 7 };
    let text = text_of(&folded);
    assert!(
        text.contains("(in 1030 processes: 200") && text.contains(", 1022 more hold 23068677 bytes in 29)\n"),
        "{text}"
    );
    let json: Value = serde_json::from_str(&json_of(&folded)).expect("JSON");
    let others = serde_json::json!({"processes": 1000, "bytes": 5, "count": 7});
    assert_eq!(
        (&json["stacks"][0]["other_processes"], &json["stacks"][1]["other_processes"]),
        (&others, &Value::Null)
    );
    assert!(text.contains("\taddr = 0x55fca0 size = 16 age = 900 ms process = 123\n"), "{text}");
    assert!(!text.contains("[process"), "{text}");
    let json: Value = serde_json::from_str(&json_of(&report)).expect("JSON");
    for (stack, written) in json["stacks"].as_array().expect("a list").iter().zip(&report.stacks) {
        let counts = stack["process_counts"].as_array().expect("counts");
        let sum = |key: &str| counts.iter().filter_map(|count| count[key].as_u64()).sum::<u64>();
        assert_eq!((sum("bytes"), sum("count")), (written.bytes, written.count));
        assert_eq!(stack["pid"], counts[0]["pid"]);
    }
    assert_eq!(json["stacks"][1]["allocations"][1]["pid"], 123);
}

#[test]
fn the_heading_names_the_number_that_was_asked_for() {
    let mut out = Vec::new();
    write_text(&report(vec![leaky()]), &Options::new(3), &mut out).expect("a Vec takes all");
    assert_eq!(read_as_bcc_script(&String::from_utf8_lossy(&out)).0, 3);
}

#[test]
fn lists_have_the_top_of_each_table_and_sums_all() {
    let report = resources();
    let mut text = Vec::new();
    write_text(&report, &options(1), &mut text).expect("a Vec takes all");
    assert_eq!(read_numbers(&String::from_utf8_lossy(&text)), [(80, 5), (0, 3), (0, 2)]);
    let mut json = Vec::new();
    write_json(&report, 1, &mut json).expect("a Vec takes all");
    let json: Value = serde_json::from_slice(&json).expect("JSON");
    let bytes: Vec<_> =
        json["stacks"].as_array().expect("a list").iter().map(|stack| stack["bytes"].as_u64()).collect();
    assert_eq!((bytes, &json["totals"]["bytes"]), (vec![Some(80), Some(0), Some(0)], &4176.into()));
}

fn folded_of(report: &Report) -> String {
    let mut out = Vec::new();
    write_folded(report, &mut out).expect("a Vec takes all");
    String::from_utf8(out).expect("UTF-8")
}

#[test]
fn folded_stacks_sum_up_to_the_totals() {
    for (name, report) in cases() {
        let folded = folded_of(&report);
        let numbers = folded.lines().map(|line| {
            let (stack, number) = line.rsplit_once(' ').expect("a number at the end");
            assert!(
                !stack.is_empty() && !stack.contains(memleak::escape::acts_on_terminal),
                "{name}: {line:?}"
            );
            number.parse::<u64>().expect("a whole number")
        });
        let has_size = |stack: &&StackReport| stack.resource.has_size;
        let counted: u64 =
            report.stacks.iter().filter(|stack| !has_size(stack)).map(|stack| stack.count).sum();
        assert_eq!(numbers.sum::<u64>(), report.totals.bytes + counted, "{name}:\n{folded}");
    }
}

#[test]
fn folded_stacks_begin_with_the_outermost_frame() {
    let mut odd = leaky();
    odd.frames[0].function = Some("lambda;1 2".to_owned());
    let twice = report(vec![leaky(), mapping(), odd, leaky()]);
    assert_eq!(folded_of(&twice), "main;lambda:1 2 80\nmain;leaky(unsigned long) 160\nmap_it 4096\n");
    // Equal stacks of different resources stay apart.
    let several = resources();
    let last = folded_of(&several);
    assert_eq!(last.lines().find(|line| line.starts_with("fd;")), Some("fd;open_it 3"), "{last}");
    let cut = no_symbols();
    let folded = folded_of(&cut);
    assert!(folded.contains("[unknown stack] 16\n"), "{folded}");
    assert!(
        folded.contains("\n[cut];LazyCompile:~f /app/x.js:3;") || folded.starts_with("[cut];"),
        "{folded}"
    );
    assert!(folded.contains(";[libbar.so]+0x2345;[libfoo.so.1]+0x1234 80\n"), "{folded}");
}

#[test]
fn formats_are_told_apart_by_name() {
    let names: BTreeSet<_> = KINDS.iter().map(|kind| kind.name).collect();
    assert_eq!(names.len(), KINDS.len());
    let help = memleak::cli::parse(["memleak", "--help"]).expect_err("help ends the program").text;
    assert!(names.iter().all(|name| help.contains(name)), "{names:?}");
}
