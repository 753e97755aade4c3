//! What is captured and what is shown.

use std::process::Command;

use crate::{
    exact::EVERYTHING,
    guard::alone,
    ledger,
    process::Running,
    programs::{Link, build, text},
    report::Report,
    tracer::{NEVER, Outcome, Tracer, trace_command},
};

/// The program `sizes`, waiting for phases.
pub(crate) fn sizes() -> Running {
    let mut target = Running::start(&mut Command::new(build("sizes.c", Link::Dynamic, &[])));
    target.expect("READY");
    target
}

/// Runs these phases of `sizes` under a tracer with these options; its end.
fn trace_phases(options: &[&str], phases: &str) -> Outcome {
    let mut target = sizes();
    let tracer = Tracer::attach_with(target.pid(), options);
    run_phases(&mut target, phases);
    tracer.stop()
}

/// Runs phases, one for each letter, to their end.
fn run_phases(target: &mut Running, phases: &str) {
    for phase in phases.chars() {
        target.tell(&phase.to_string());
    }
    target.tell("q");
    ledger::hear(target);
}

/// The sites of a report in its order.
fn order(report: &Report) -> Vec<&str> {
    report.stacks.iter().filter_map(|stack| stack.site()).collect()
}

#[test]
fn sizes_are_filtered_both_ends_included() {
    let _alone = alone();
    for (options, expected) in [
        (&["-z", "1000"][..], &["site_large", "site_medium", "site_exact"][..]),
        (&["-z", "1001"], &["site_large", "site_exact"]),
        (&["-z", "1K"], &["site_large", "site_exact"]),
        (&["-Z", "1K"], &["site_medium", "site_exact", "site_small"]),
        (&["-Z", "1023"], &["site_medium", "site_small"]),
        (&["--min-size", "1K", "--max-size", "1M"], &["site_large", "site_exact"]),
        (&["-z", "17", "-Z", "999"], &[]),
    ] {
        let report = trace_phases(&[options, &EVERYTHING[..]].concat(), "smlk").into_final_report();
        assert_eq!(order(&report), expected, "{options:?}\n{}", report.describe());
        report.assert_sums();
    }
}

#[test]
fn top_cuts_the_list_and_not_the_totals() {
    let _alone = alone();
    let report = trace_phases(&["-o", "0", "-T", "1", NEVER], "sml").into_final_report();
    assert_eq!(order(&report), ["site_large"]);
    let (bytes, count) = (100 * 16 + 50 * 1000 + 3 * 100_000, 153);
    assert_eq!((report.totals.bytes, report.totals.count), (bytes, count));
    assert_eq!((report.totals.acquired, report.totals.released), (count, 0));
}

#[test]
fn top_is_ten_by_default() {
    let _alone = alone();
    let report = trace_phases(&["-o", "0", NEVER], "smlkpogy").into_final_report();
    let all = trace_phases(&EVERYTHING, "smlkpogy").into_final_report();
    assert_eq!(report.stacks.len(), all.stacks.len().min(10));
    assert_eq!(report.totals, all.totals);
}

#[test]
fn each_sort_key_orders() {
    let _alone = alone();
    let sorted = |key: &str, phases: &str| {
        let options = [&["--sort", key][..], &EVERYTHING[..]].concat();
        trace_phases(&options, phases).into_final_report()
    };
    assert_eq!(order(&sorted("size", "sml")), ["site_large", "site_medium", "site_small"]);
    assert_eq!(order(&sorted("count", "lms")), ["site_small", "site_medium", "site_large"]);
    assert_eq!(order(&sorted("age", "msl")), ["site_medium", "site_small", "site_large"]);
}

/// What has grown since the report before comes first, however little it is.
#[test]
fn growth_is_against_the_report_before() {
    let _alone = alone();
    let mut target = sizes();
    let mut tracer = Tracer::attach_with(target.pid(), &["-o", "0", "-T", "100", "--sort", "growth", "0.5"]);
    run_phases(&mut target, "l");
    tracer.wait_report(|report| report.site("site_large").1 == 3);
    tracer.wait_report(|_| true); // large has not grown in this one
    run_phases(&mut target, "g");
    let report = tracer.wait_report(|report| report.site("site_growing").1 == 10);
    assert_eq!(order(&report), ["site_growing", "site_large"]);
}

#[test]
fn show_allocs_lists_the_true_addresses() {
    let _alone = alone();
    let mut target = sizes();
    let tracer = Tracer::attach_with(target.pid(), &[&["-a"][..], &EVERYTHING[..]].concat());
    let told = tell_addresses(&mut target);
    let report = tracer.stop_with_report();
    let stack = report.stacks.iter().filter(|stack| stack.site() == Some("site_told"));
    let mut listed: Vec<(String, u64)> = stack
        .flat_map(|stack| stack.allocations.iter().flatten())
        .map(|allocation| (allocation.address.clone(), allocation.size))
        .collect();
    listed.sort();
    let mut expected: Vec<(String, u64)> =
        told.into_iter().filter(|told| !told.2).map(|told| (told.0, told.1)).collect();
    expected.sort();
    assert_eq!(listed, expected);
    let without = trace_phases(&EVERYTHING, "p").into_final_report();
    assert!(without.stacks.iter().all(|stack| stack.allocations.is_none()));
}

/// The program's own list: address, size, whether released.
fn tell_addresses(target: &mut Running) -> Vec<(String, u64, bool)> {
    target.tell("p");
    target
        .expect("TOLD")
        .iter()
        .map(|line| {
            let told: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let address = told["address"].as_str().expect("an address").to_owned();
            (address, told["size"].as_u64().expect("a size"), told["released"].as_bool().expect("a fact"))
        })
        .collect()
}

#[test]
fn trace_prints_each_event() {
    let _alone = alone();
    for json in [false, true] {
        let mut target = sizes();
        let pid = target.pid().to_string();
        let mut options = vec!["-v", "-t", "-p", &pid, NEVER];
        if json {
            options.push("--json");
        }
        let mut tracer = Tracer::start(&options);
        tracer.wait_attached();
        let told = tell_addresses(&mut target);
        let outcome = tracer.stop();
        assert_eq!(outcome.code, 0, "{:?}", outcome.ended);
        for (address, size, released) in told {
            for (event, expected) in [("acquire", 1), ("release", usize::from(released))] {
                let found = outcome.ended.stdout.iter().filter(|line| {
                    line.contains(event) && line.contains(&address) && line.contains(&size.to_string())
                });
                let found: Vec<&String> = found.filter(|line| !line.contains("\"stacks\"")).collect();
                assert_eq!(found.len(), expected, "{event} of {address}: {:?}", outcome.ended.stdout);
            }
        }
    }
}

/// No line waits for the next report, whatever was sent before it.
#[test]
fn trace_prints_at_once() {
    let _alone = alone();
    let mut target = sizes();
    let pid = target.pid().to_string();
    let mut tracer = Tracer::start(&["-v", "-t", "-p", &pid, NEVER]);
    tracer.wait_attached();
    for _ in 0..10 {
        target.tell("u");
        target.expect("UNMAPPED");
        for (address, _, _) in tell_addresses(&mut target) {
            tracer.running().expect_line("the block", |line| line.contains(&address));
        }
    }
}

#[test]
fn count_is_the_number_of_reports() {
    let _alone = alone();
    let mut target = sizes();
    let pid = target.pid().to_string();
    let started = std::time::Instant::now();
    let outcome = Tracer::start(&["--json", "-p", &pid, "1", "3"]).wait();
    let seconds = started.elapsed().as_secs_f64();
    assert_eq!(outcome.code, 0, "{:?}", outcome.ended);
    let finals: Vec<bool> = outcome.reports.iter().map(|report| report.is_final).collect();
    assert_eq!(finals, [false, false, true]);
    assert!((2.9..10.0).contains(&seconds), "{seconds}");
    let elapsed: Vec<u64> = outcome.reports.iter().map(|report| report.elapsed_ms).collect();
    for (report, elapsed) in elapsed.iter().enumerate() {
        let due = (report as u64 + 1) * 1000;
        assert!((due - 100..due + 700).contains(elapsed), "{elapsed}");
    }
    assert!(!target.has_ended(), "a process is never signalled");
}

/// One that is young is left out until it is old enough; the two batches are told apart.
#[test]
fn older_leaves_out_the_young() {
    let _alone = alone();
    let mut target = sizes();
    let mut tracer = Tracer::attach_with(target.pid(), &["-o", "1500", "0.25"]);
    run_phases(&mut target, "o");
    let first = tracer.fresh_report();
    assert_eq!(first.site("site_old"), (0, 0), "{}", first.describe());
    let old = tracer.wait_report(|report| report.site("site_old").1 > 0);
    assert_eq!(old.site("site_old"), (320, 5));
    assert!(old.stacks[0].newest_ms.is_some_and(|age| age >= 1500), "{}", old.describe());
    run_phases(&mut target, "y");
    let both = tracer.fresh_report();
    assert_eq!((both.site("site_old"), both.site("site_young")), ((320, 5), (0, 0)));
    assert_eq!(both.totals.bytes, 320, "totals cover what passes the filters");
    let later = tracer.wait_report(|report| report.site("site_young").1 > 0);
    assert_eq!(later.site("site_young"), (448, 7));
    // The last report of a target that goes on obeys -o.
    run_phases(&mut target, "s");
    assert_eq!(tracer.stop_with_report().site("site_small"), (0, 0));
}

/// `-C` shows the same numbers, without ages.
#[test]
fn combined_only_tells_the_same_totals() {
    let _alone = alone();
    let program = build("one_function.c", Link::Dynamic, &[]);
    for function in ["malloc", "realloc", "free"] {
        let command = [text(&program), function];
        let full = trace_command(&EVERYTHING, &command);
        let combined = trace_command(&[&["-C"][..], &EVERYTHING[..]].concat(), &command);
        let (full, combined) = (full.last_report(), combined.last_report());
        assert_eq!(full.totals, combined.totals);
        assert_eq!(full.sites(), combined.sites());
        assert!(full.stacks.iter().all(|stack| stack.oldest_ms.is_some() && stack.newest_ms.is_some()));
        assert!(combined.stacks.iter().all(|stack| stack.oldest_ms.is_none() && stack.newest_ms.is_none()));
    }
}

/// Read as a script for bcc's memleak would: `N bytes in M allocations from stack` under
/// `Top K stacks ...`.
#[test]
fn the_text_form_is_bccs() {
    let _alone = alone();
    let mut target = sizes();
    let pid = target.pid().to_string();
    let mut tracer = Tracer::start(&["-v", "-o", "0", "-T", "7", "-p", &pid, NEVER]);
    tracer.wait_attached();
    run_phases(&mut target, "sml");
    let outcome = tracer.stop();
    assert_eq!(outcome.code, 0, "{:?}", outcome.ended);
    let lines = &outcome.ended.stdout;
    let heading = lines[0].split_once("] ").expect("a time, then the heading");
    assert_eq!(heading.0.len(), "[11:16:33".len(), "{lines:?}");
    assert_eq!(heading.1, "Top 7 stacks with outstanding allocations:");
    let stacks: Vec<(u64, u64)> = lines
        .iter()
        .filter_map(|line| line.strip_suffix(" allocations from stack"))
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            assert_eq!((words[1], words[2]), ("bytes", "in"), "{line}");
            (words[0].parse().expect("bytes"), words[3].parse().expect("a count"))
        })
        .collect();
    assert_eq!(stacks, [(300_000, 3), (50_000, 50), (1600, 100)]);
    let frame = lines.iter().find(|line| line.contains("site_large")).expect("the site's frame");
    assert!(frame.starts_with("\t\t0x") && frame.contains(" at sizes.c:"), "{frame}");
}

#[test]
fn object_and_prefix_choose_the_allocator() {
    let _alone = alone();
    let library = build("plain_allocator.c", Link::Library, &["-O2"]);
    let program = build("one_function.c", Link::Dynamic, &[text(&library)]);
    let name = library.file_name().and_then(|name| name.to_str()).expect("a name");
    for (object, expected) in [(text(&library), true), (name, true), ("libc.so.6", false), ("libc", false)] {
        let options = [&["-O", object][..], &EVERYTHING[..]].concat();
        let outcome = trace_command(&options, &[text(&program), "malloc"]);
        let report = outcome.last_report();
        let (bytes, _) = report.site("site_malloc");
        assert_eq!(bytes > 0, expected, "-O {object}: {}", report.describe());
    }
    let prefixed =
        build("plain_allocator.c", Link::Library, &["-O2", "-Dmalloc=zz_malloc", "-Dfree=zz_free"]);
    let program = build("sizes.c", Link::Dynamic, &["-Dmalloc=zz_malloc", text(&prefixed)]);
    for (options, expected) in [(&[][..], 0), (&["-S", "zz_"], 1600)] {
        let mut target = Running::start(&mut Command::new(&program));
        target.expect("READY");
        let tracer = Tracer::attach_with(target.pid(), &[options, &EVERYTHING[..]].concat());
        run_phases(&mut target, "s");
        assert_eq!(tracer.stop_with_report().site("site_small").0, expected, "{options:?}");
    }
}
