//! The form for people.

use memleak::offline::diff::Diff;
use memleak::report::{
    format::{Options, SplitBy, Style, html::write_html, human::write_human},
    model::{AllocationLine, Report, SortKey},
};
use memleak::verdict::Point;
use regex::Regex;

use crate::reports::{Stack, cases, frame, leaky, merged, options, report, resources, wordcount};

/// A report as a terminal of so many columns has it.
pub(crate) fn of(report: &Report, width: usize) -> String {
    with(report, Options { style: Style { width: Some(width), ..Style::default() }, ..options(10) })
}

fn with(report: &Report, options: Options) -> String {
    let mut out = Vec::new();
    write_human(report, &options, &mut out).expect("a Vec takes all");
    String::from_utf8(out).expect("UTF-8")
}

fn colored() -> Options {
    Options { style: Style { width: Some(80), color: true, ..Style::default() }, ..options(10) }
}

#[test]
fn nothing_is_wider_than_the_terminal() {
    for (name, report) in cases().into_iter().chain([("wordcount", wordcount())]) {
        for width in [40, 60, 80, 200] {
            for line in of(&report, width).lines() {
                // Words are not cut.
                let is_word = !line.trim().contains(' ');
                assert!(line.chars().count() <= width || is_word, "{name}: {width}: {line}");
            }
        }
    }
}

/// However many columns there are: the numbers with their units of the widest form, all of them.
#[test]
fn numbers_and_their_units_are_never_parted() {
    let number =
        Regex::new(r"[+-]?[0-9][0-9,.]* ([KMGT]iB|[kMGT]?B|ms|s|min|h|d|%|blocks?|bytes)\b|[0-9.]+ %")
            .expect("regex");
    let moments = vec![
        Point { at_ms: 1000, bytes: 1 << 20, count: 4 },
        Point { at_ms: 5000, bytes: 1 << 20, count: 1_234_567 },
    ];
    let mut level = Report { moments, ..wordcount() };
    level.stacks[0].growth_bytes = -123_456_789;
    (level.totals.count, level.is_final) = (1_234_567, true);
    let others = [("wordcount", wordcount()), ("level", level)];
    // Strangers name functions as they like.
    for (name, report) in cases().into_iter().filter(|(name, _)| *name != "hostile").chain(others) {
        let numbers = |width| {
            let style = Style { width: Some(width), ..Style::default() };
            // Two sites of many: the others are told of in the heading.
            let text = with(&report, Options { style, summary: true, ..options(2) });
            let found = |line: &str| number.find_iter(line).map(|found| found.as_str().to_owned()).collect();
            let mut numbers: Vec<String> =
                text.lines().flat_map(|line| -> Vec<String> { found(line) }).collect();
            numbers.sort();
            (numbers, text)
        };
        let (all, wide) = numbers(1000);
        assert!(!all.is_empty(), "{name}: {wide}");
        for width in 40..100 {
            let (shown, text) = numbers(width);
            assert_eq!(shown, all, "{name}: {width}:\n{text}");
        }
    }
}

#[test]
fn no_stranger_writes_to_the_terminal() {
    let attributes = Regex::new("\x1b\\[[0-9;]*m").expect("regex");
    for (name, report) in cases() {
        let plain = of(&report, 80);
        for line in plain.lines() {
            assert!(!line.contains(memleak::escape::acts_on_terminal), "{name}: {line:?}");
        }
        // Colours change nothing else.
        assert_eq!(attributes.replace_all(&with(&report, colored()), ""), plain, "{name}");
    }
}

/// The promise of a report of 4 sites: one screen of 80 columns, with room for the prompt.
#[test]
fn wordcount_is_one_screen() {
    let text = of(&wordcount(), 80);
    let lines: Vec<&str> = text.trim_end().lines().collect();
    assert!(lines.len() <= 23, "{} lines:\n{text}", lines.len());
    let responsible: Vec<&str> = lines.iter().filter_map(|line| line.trim().strip_prefix("-> ")).collect();
    assert_eq!(responsible.len(), 4, "{text}");
    assert!(
        responsible[0].starts_with("word_counter::word_count() ")
            && responsible[0].ends_with(" wordcount.cc:64")
    );
    assert!(responsible[2].starts_with("main ") && responsible[2].ends_with(" wordcount.cc:78"), "{text}");
    assert!(text.contains("   5 frames in std::back_insert_iterator, std::vector; operator new"), "{text}");
}

#[test]
fn frames_and_names_in_full_if_that_is_asked_for() {
    let style = Style { width: Some(300), full_stacks: true, full_names: true, ..Style::default() };
    let text = with(&wordcount(), Options { style, ..options(10) });
    assert!(text.contains("std::allocator<char>") && !text.contains("frames in"), "{text}");
    assert_eq!(text.matches("operator new(unsigned long)").count(), 4, "{text}");
}

/// The same path of functions is one site, by whatever addresses and in whatever process.
#[test]
fn the_same_path_is_one_site() {
    let again = |offset: u64| {
        let mut stack = leaky();
        stack.frames.iter_mut().for_each(|frame| frame.ip += offset);
        stack
    };
    let other = Stack { frames: vec![frame(0x55fc_a689_a300, "other", 1, None)], bytes: 200, ..leaky() };
    let text = of(&report(vec![again(0), other, again(16), Stack { pid: 124, ..again(32) }]), 80);
    assert!(text.contains(" 240 bytes in 15 allocations\n"), "{text}");
    assert!(text.contains("  (3 stacks in 2 processes)\n"), "{text}");
    assert!(text.find("240 bytes") < text.find("200 bytes"), "the larger one goes first: {text}");
    let several = of(&merged(), 80);
    assert!(several.contains("(in 30 processes)"), "{several}");
}

#[test]
fn what_has_grown_is_said() {
    let moments = vec![
        Point { at_ms: 5000, bytes: 1 << 20, count: 4 },
        Point { at_ms: 10_000, bytes: 3 << 20, count: 12 },
    ];
    let mut grown =
        Report { moments, elapsed_ms: 10_000, ..report(vec![leaky(), Stack { bytes: 8, ..leaky() }]) };
    grown.stacks[0].growth_bytes = 1 << 20;
    grown.stacks[0].growth_count = 4;
    let text = of(&grown, 100);
    assert!(text.contains(" in 10 blocks, +24 MiB/min\n"), "{text}");
    assert!(text.contains(" 88 bytes in 10 allocations  +1048576 bytes (+4), +720 MiB/h\n"), "{text}");
    // On a line of its own where there is no room.
    grown.stacks[0].bytes = 1 << 40;
    let text = of(&grown, 80);
    let below = "%  1099511627784 bytes in 10 allocations\n      +1048576 bytes (+4), +720 MiB/h\n";
    assert!(text.contains(below), "{text}");
    let text = of(&grown, 50);
    let below = "%\n      1099511627784 bytes in 10 allocations\n      +1048576 bytes (+4), +720 MiB/h\n";
    assert!(text.contains(below), "{text}");
}

/// In the form for people and in a page alike.
#[test]
fn targets_are_said_in_words() {
    let of_page = |report: &Report| {
        let mut out = Vec::new();
        write_html(report, false, &mut out).expect("a Vec takes all");
        String::from_utf8(out).expect("UTF-8")
    };
    for (pids, said) in [
        (vec![], "leak"),
        (vec![7], "leak (7)"),
        (vec![7, 8], "leak (7 and 1 more process)"),
        (vec![7, 8, 9], "leak (7 and 2 more processes)"),
    ] {
        let mut report = report(vec![leaky()]);
        report.target.pids = pids;
        assert!(of(&report, 200).starts_with(&format!("{said}, traced for ")), "{said}");
        assert!(of_page(&report).contains(&format!("\"title\":\"{said}\"")), "{said}");
    }
}

#[test]
fn a_site_is_split_if_that_is_asked_for() {
    let split = |report: &Report, by| with(report, Options { split_by: Some(by), ..options(10) });
    let text = split(&merged(), SplitBy::Process);
    assert!(text.contains("       80.0 %  process 124: 64 B in 4 blocks\n"), "{text}");
    assert!(text.contains("        3.3 %  process 200: 1 MiB in 1 block\n"), "{text}");
    assert!(text.contains("               and 22 more\n"), "{text}");
    let text = split(&report(vec![Stack { bytes: 100, ..leaky() }]), SplitBy::Size);
    assert!(text.contains("        100 %  5 of 20 B each\n"), "{text}");
    let mut threads = report(vec![leaky()]);
    let of = |tid, size| AllocationLine { pid: 123, tid, address: size, size, age_ms: 1, now: None };
    threads.stacks[0].blocks = vec![of(Some(7), 30), of(Some(7), 30), of(Some(8), 16), of(None, 4)];
    threads.threads = [(7, "worker".to_owned())].into();
    let text = split(&threads, SplitBy::Thread);
    assert!(text.contains("       75.0 %  thread 7 (worker): 60 B in 2 blocks\n"), "{text}");
    assert!(text.contains("       20.0 %  thread 8: 16 B in 1 block\n"), "{text}");
    assert!(text.contains("        5.0 %  thread not known: 4 B in 1 block\n"), "{text}");
}

#[test]
fn sites_are_in_the_order_that_is_asked_for() {
    let mut sorted = resources();
    sorted.stacks[1].growth_bytes = 1;
    let first = |sort: SortKey| {
        let text = with(&sorted, Options { sort, ..options(10) });
        let arrow = text.split("-> ").nth(1).expect("a site").to_owned();
        arrow.split(' ').next().expect("a name").to_owned()
    };
    assert_eq!(first(SortKey::Size), "map_it");
    assert_eq!(first(SortKey::Count), "leaky(...)");
    assert_eq!(first(SortKey::Age), "leaky(...)");
    assert_eq!(first(SortKey::Growth), "map_it");
}

/// Counts have commas, as everywhere for people; the first word of a heading is for scripts.
#[test]
fn two_reports_are_compared_in_words() {
    let of = |count: u64| report(vec![Stack { bytes: 1_048_576 * count, count, ..leaky() }]);
    let (old, new) = (of(1_000), of(2_234_567));
    let text = |width| {
        let mut out = Vec::new();
        let style = Style { width: Some(width), ..Style::default() };
        Diff::of(&old, &new).write_text(10, style, &mut out).expect("a Vec takes all");
        String::from_utf8(out).expect("UTF-8")
    };
    let wide = text(300);
    let lines: Vec<&str> = wide.lines().collect();
    assert_eq!(
        lines[0],
        "1000 MiB in 1,000 blocks after 5 s; 2.1 TiB in 2,234,567 blocks after 5 s: +2.1 TiB (+2,233,567 blocks); \
         stacks: 0 new, 1 grown, 0 shrunk, 0 gone"
    );
    assert_eq!(
        lines[1],
        "+2342064750592 bytes (+2,233,567): grown, 1,048,576,000 in 1,000 -> 2,343,113,326,592 in 2,234,567"
    );
    // Narrow, the same words in the same order, below each other.
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let narrow = text(60);
    assert!(words(&narrow).starts_with(&words(&lines[..2].join(" "))), "{narrow}");
    assert!(narrow.lines().all(|line| line.len() <= 60), "{narrow}");
    assert_eq!(narrow.lines().filter(|line| !line.starts_with("    ")).count(), 2, "{narrow}");
}

/// A place that leaves no room for a name stands below it, and its line is not cut.
#[test]
fn a_place_as_long_as_a_line_has_its_own() {
    let file = format!("{}.c", "generated_".repeat(2));
    let mut stack = leaky();
    stack.frames[0].file = Some(file.clone());
    let report = report(vec![stack]);
    for width in [40, 50, 60, 80] {
        let text = of(&report, width);
        assert!(text.contains("-> leaky(...)") && text.contains(&format!(" {file}:5\n")), "{width}: {text}");
    }
}
