//! Files of the last report, read by the programs that they are for; saved reports, compared.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{
    decoded::{decode_profile, decode_trace},
    guard::alone,
    human::{terminal, wordcount},
    ledger::{self, Amount},
    process::{Running, code},
    programs::{Link, build, scratch_dir, text},
    tracer::{MEMLEAK, Tracer},
};

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).env("PPROF_TMPDIR", scratch_dir()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}: is it installed?"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn memleak(arguments: &[&str]) -> Output {
    Command::new(MEMLEAK).args(arguments).output().expect("memleak")
}

fn memleak_json(arguments: &[&str]) -> Value {
    serde_json::from_slice(&memleak(arguments).stdout).expect("JSON")
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).expect("the file")).expect("JSON")
}

/// Traces wordcount while it counts `files` files; gives bytes and number of what is outstanding,
/// as its text says.
fn trace(files: usize, options: &[&str]) -> (u64, u64) {
    let mut target = wordcount();
    let mut input = target.stdin.take().expect("a pipe");
    let pid = target.id().to_string();
    let feeder = thread::spawn(move || {
        thread::sleep(Duration::from_millis(1500));
        for _ in 0..files {
            input.write_all(b"constitution.txt\n").expect("it reads");
        }
        thread::sleep(Duration::from_millis(1500));
    });
    let mut command = Command::new(MEMLEAK);
    command.args(["-p", &pid, "-o", "0", "-T", "100000"]).args(options).stderr(Stdio::inherit());
    let output = command.output().expect("memleak");
    feeder.join().expect("the feeder ends");
    target.wait().expect("waiting");
    assert!(output.status.success(), "{:?}", output.status);
    let written = String::from_utf8(output.stdout).expect("UTF-8");
    let (_, last) = written.rsplit_once("stacks with outstanding").expect("a report");
    let numbers = last.lines().filter_map(|line| {
        let (bytes, rest) = line.strip_prefix('\t')?.split_once(" bytes in ")?;
        Some((bytes.parse::<u64>().ok()?, rest.split(' ').next()?.parse::<u64>().ok()?))
    });
    numbers.fold((0, 0), |sum, (bytes, count)| (sum.0 + bytes, sum.1 + count))
}

fn folder() -> PathBuf {
    let path = scratch_dir().join(format!("files-{}", std::process::id()));
    fs::create_dir_all(&path).expect("a folder");
    path
}

/// What heaptrack's own reader says of a file, and by its stacks (`main (main.c);leaky (leak.c);`)
/// what they cost: `leaked` bytes, or `allocations`.
fn heaptrack_print(file: &Path, cost: &str) -> (String, Vec<(String, u64)>) {
    let folded = file.with_extension(cost);
    let report =
        run("heaptrack_print", &["-f", text(file), "-F", text(&folded), "--flamegraph-cost-type", cost]);
    let folded = fs::read_to_string(folded).expect("folded stacks");
    let stack_of = |line: &str| {
        let (stack, sum) = line.rsplit_once(' ').expect("a stack and a number");
        (stack.to_owned(), sum.parse().expect("a number"))
    };
    (report, folded.lines().map(stack_of).collect())
}

/// Sums by site (functions `site_*`); of stacks without one by the empty name.
fn by_site(stacks: &[(String, u64)]) -> BTreeMap<&str, u64> {
    let mut sums = BTreeMap::new();
    for (stack, sum) in stacks {
        let mut functions = stack.split(';').rev().filter_map(|frame| frame.split(' ').next());
        let site = functions.find(|function| function.starts_with("site_"));
        *sums.entry(site.unwrap_or_default()).or_default() += sum;
    }
    sums
}

/// All formats of one run hold the numbers of its text, as their own readers read them.
#[test]
fn readers_find_the_numbers_of_the_text() {
    let _alone = alone();
    let folder = folder();
    let at = |name: &str| folder.join(name);
    let files = [
        ("--pprof", at("a.pb.gz")),
        ("--heaptrack", at("a.zst")),
        ("--speedscope", at("a.speedscope.json")),
        ("--firefox", at("a.firefox.json")),
        ("--flamegraph", at("a.svg")),
        ("--perfetto", at("a.pftrace")),
        ("--html", at("a.html")),
        ("--save", at("a.save.gz")),
    ];
    let options: Vec<&str> = files.iter().flat_map(|(option, path)| [*option, text(path)]).collect();
    let (bytes, count) = trace(20, &options);
    assert!(bytes > 1 << 20 && count > 100, "{bytes} bytes in {count}");
    // go tool pprof, in bytes.
    let top = run(
        "go",
        &[
            "tool",
            "pprof",
            "-top",
            "-unit=b",
            "-nodefraction=0",
            "-sample_index=inuse_space",
            text(&at("a.pb.gz")),
        ],
    );
    assert!(top.contains(&format!(" of {bytes}B total")), "{top}");
    assert!(top.contains("word_counter::word_count") && top.contains("operator new(unsigned long)"), "{top}");
    let top = run("go", &["tool", "pprof", "-top", "-sample_index=inuse_objects", text(&at("a.pb.gz"))]);
    assert!(top.contains(&format!(" of {count} total")), "{top}");
    // heaptrack's own reader: its leaks, in bytes, by stack.
    let (report, stacks) = heaptrack_print(&at("a.zst"), "leaked");
    assert!(
        report.contains("calls to allocation functions: ") && report.contains(&format!(": {count} (")),
        "{report}"
    );
    assert_eq!(stacks.iter().map(|(_, sum)| sum).sum::<u64>(), bytes, "{stacks:?}");
    // The others, as they are written.
    let speedscope = json(&at("a.speedscope.json"));
    assert_eq!(
        (&speedscope["profiles"][0]["endValue"], &speedscope["profiles"][1]["endValue"]),
        (&bytes.into(), &count.into())
    );
    let firefox = json(&at("a.firefox.json"));
    let allocations = &firefox["threads"][0]["nativeAllocations"];
    let weights = allocations["weight"].as_array().expect("weights").iter().filter_map(Value::as_u64);
    assert_eq!((weights.sum::<u64>(), &allocations["length"]), (bytes, &count.into()));
    let [svg, page] = ["a.svg", "a.html"].map(|name| fs::read_to_string(at(name)).expect(name));
    for file in [&svg, &page] {
        assert!(file.contains("word_counter::word_count()"), "{file}");
    }
    assert!(svg.contains(&format!("<title>all ({} bytes, 100%)", grouped(bytes))), "{svg}");
    let data = page.split_once("id=\"data\">").and_then(|(_, rest)| rest.split_once("</script>"));
    let data: Value = serde_json::from_str(data.expect("the page's data").0).expect("JSON");
    let moment = data["moments"].as_array().and_then(|moments| moments.last()).expect("a moment");
    assert_eq!((&moment[1], &moment[2]), (&bytes.into(), &count.into()), "{data}");
    // Google's library for protocol buffers.
    let held: Value = [count, bytes].as_slice().into();
    assert_eq!(decode_trace(&at("a.pftrace"))["total"], held);
    let total = &decode_profile(&at("a.pb.gz"))["total"];
    assert_eq!([&total[2], &total[3]], [&held[0], &held[1]], "{total}");
    // The saved one gives all of them again.
    let again = memleak(&["report", text(&at("a.save.gz")), "--json", "--pprof", text(&at("b.pb.gz"))]);
    let again: Value = serde_json::from_slice(&again.stdout).expect("JSON");
    assert_eq!((&again["totals"]["bytes"], &again["totals"]["count"]), (&bytes.into(), &count.into()));
    assert_eq!(fs::read(at("a.pb.gz")).expect("one"), fs::read(at("b.pb.gz")).expect("the other"));
    let _ = fs::remove_dir_all(folder);
}

/// A million blocks that are held: heaptrack's own reader finds at each site what the program says.
#[test]
fn heaptrack_reads_a_million_blocks() {
    const BLOCKS: &str = "1000000";
    let _alone = alone();
    let folder = folder().join("million");
    fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("a.zst");
    let mut target = Running::start(Command::new(build("million.c", Link::Dynamic, &[])).arg(BLOCKS));
    target.expect("READY");
    let mut tracer = Tracer::attach_with(target.pid(), &["--heaptrack", text(&file), "-o", "0", "1"]);
    target.tell("go");
    let ledger = ledger::hear(&mut target);
    // A slow machine has no time to look for names after the signal.
    tracer.fresh_report();
    tracer.stop_with_report().assert_nothing_lost();
    let held = |of: fn(&Amount) -> u64| -> BTreeMap<&str, u64> {
        ledger.iter().map(|((site, _), amount)| (site.as_str(), of(amount))).collect()
    };
    let (bytes, blocks) = (held(|amount| amount.bytes), held(|amount| amount.count.expect("a number")));
    assert!(blocks.len() == 6 && blocks.values().sum::<u64>() > 1_000_000, "{blocks:?}");
    let (_, leaked) = heaptrack_print(&file, "leaked");
    assert_eq!(by_site(&leaked), bytes);
    let (said, calls) = heaptrack_print(&file, "allocations");
    assert_eq!(by_site(&calls), blocks);
    let all = format!("calls to allocation functions: {} (", blocks.values().sum::<u64>());
    assert!(said.contains(&all), "{said}");
    let _ = fs::remove_dir_all(folder);
}

/// A number as people write it.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A terminal that goes takes what is shown there with it, and not what was asked to be kept.
#[test]
fn a_saved_report_outlives_the_terminal() {
    let _alone = alone();
    let folder = folder().join("hangup");
    fs::create_dir_all(&folder).expect("a folder");
    let save = folder.join("save");
    let mut target = wordcount();
    let mut input = target.stdin.take().expect("a pipe");
    let (ours, theirs) = terminal();
    let pid = target.id().to_string();
    let mut command = Command::new(MEMLEAK);
    command.args(["-v", "-p", &pid, "-o", "0", "--save", text(&save), "0.2"]);
    command.stdin(Stdio::null()).stdout(theirs).stderr(Stdio::piped());
    let mut memleak = command.spawn().expect("memleak");
    drop(command);
    let mut said = String::new();
    let mut notes = BufReader::new(memleak.stderr.take().expect("a pipe"));
    // How many allocations the next report is over.
    let mut reported = || loop {
        let begin = said.len();
        assert!(notes.read_line(&mut said).expect("a pipe") > 0, "it has ended: {said}");
        let over = said[begin..].split_once("report over ").and_then(|(_, rest)| rest.split_once(" alloc"));
        if let Some((number, _)) = over {
            break number.parse::<u64>().expect("a number");
        }
    };
    let before = reported();
    // The first report is there.
    let mut reader = BufReader::new(ours);
    let mut line = String::new();
    while !line.contains("Top 10 stacks") {
        line.clear();
        assert!(reader.read_line(&mut line).expect("a terminal") > 0);
    }
    // SAFETY: kill(2) takes two integers; the child was not waited for.
    assert_eq!(unsafe { libc::kill(memleak.id() as libc::pid_t, libc::SIGHUP) }, 0);
    drop(reader);
    input.write_all(b"constitution.txt\n").expect("it reads");
    // What comes after the terminal is in a report.
    while reported() <= before {}
    thread::spawn(move || std::io::copy(&mut notes, &mut std::io::sink()));
    drop(input);
    target.wait().expect("waiting");
    assert!(memleak.wait().expect("waiting").success());
    let report = memleak_json(&["report", text(&save), "--json"]);
    assert!(report["final"] == true && report["totals"]["bytes"].as_u64() > Some(100_000), "{report}");
    let _ = fs::remove_dir_all(folder);
}

#[test]
fn two_runs_are_compared_and_conditions_have_a_status_of_their_own() {
    let _alone = alone();
    let folder = folder().join("diff");
    fs::create_dir_all(&folder).expect("a folder");
    let [old, new, svg] = ["old", "new", "diff.svg"].map(|name| folder.join(name));
    let [old, new, svg] = [&old, &new, &svg].map(|path| text(path));
    let before = trace(5, &["--save", old]);
    let after = trace(15, &["--save", new]);
    // Another process, another place in memory: the same stacks.
    let diff = memleak(&["diff", old, new, "--json", "--flamegraph", svg]);
    assert_eq!(code(diff.status), 0, "{}", String::from_utf8_lossy(&diff.stderr));
    let diff: Value = serde_json::from_slice(&diff.stdout).expect("JSON");
    assert_eq!((&diff["growth"]["bytes"], &diff["growth"]["new"]), (&(after.0 - before.0).into(), &0.into()));
    assert_eq!(diff["growth"]["count"], after.1 - before.1);
    let stacks = diff["stacks"].as_array().expect("stacks");
    assert!(stacks.iter().all(|stack| stack["change"] == "grown"), "{diff}");
    assert!(fs::read_to_string(svg).expect("a picture").contains("word_counter::word_count()"));
    for (condition, expected) in [("growth>1M", 3), ("growth>1G", 0), ("new", 0), ("lost>0", 0)] {
        assert_eq!(
            code(memleak(&["diff", old, new, "--fail-if", condition]).status),
            expected,
            "{condition}"
        );
    }
    let none = memleak(&["diff", new, new, "--fail-if", "growth>0", "--fail-if", "new"]);
    assert_eq!(code(none.status), 0);
    let wrong = memleak(&["diff", old, "/nonexistent"]);
    assert_eq!(code(wrong.status), 1);
    assert!(String::from_utf8_lossy(&wrong.stderr).starts_with("memleak: /nonexistent: cannot be read: "));
    let _ = fs::remove_dir_all(folder);
}

/// A command that holds more and more, and ends with 7.
const GROWS: &[&str] = &[
    "-o",
    "0",
    "0.1",
    "--",
    "sh",
    "-c",
    "for i in 1 2 3 4 5 6 7 8; do a=\"$a$(head -c 9000 /dev/zero | tr '\\0' x)\"; sleep 0.1; done; exit 7",
];

/// Our own failure, a condition, what --error-exitcode asks for, the command's own status: the
/// first of them that there is.
#[test]
fn of_several_statuses_the_worst_is_given() {
    let _alone = alone();
    let (grows, grows_much) = (["--fail-if", "growth>1K"], ["--fail-if", "growth>1G", "--fail-if", "lost>0"]);
    let coded = ["--error-exitcode", "9"];
    let run = |options: &[&[&str]]| {
        let output = memleak(&[&options.concat()[..], GROWS].concat());
        (code(output.status), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (status, said) = run(&[&grows, &coded, &["--html", "/dev/full"]]);
    assert!(status == 1 && said.contains("--html /dev/full: cannot be written to: "), "{status}: {said}");
    let (status, said) = run(&[&grows, &["--fail-if", "growth>2K"], &grows_much, &coded]);
    let told = said.lines().filter(|line| line.contains(": outstanding bytes have grown by ")).count();
    assert!(status == 3 && told == 2 && said.lines().count() == 2, "{status}: {said}");
    assert_eq!(run(&[&grows_much, &coded]), (9, String::new()));
    assert_eq!(run(&[&grows_much]), (7, String::new()));
    // Nothing is left of the report: nothing has grown.
    assert_eq!(run(&[&["--fail-if", "growth>0", "--only", "no_such_function"]]), (7, String::new()));
}

/// Who has gone away from the reports still gets the status that he has asked for.
#[test]
fn a_condition_holds_whether_or_not_somebody_reads() {
    let _alone = alone();
    let mut run = Command::new(MEMLEAK);
    let mut run =
        run.args(["--fail-if", "growth>1K"]).args(GROWS).stdout(Stdio::piped()).spawn().expect("memleak");
    let mut reports =
        BufReader::new(run.stdout.take().expect("a pipe")).lines().map(|line| line.expect("UTF-8"));
    // What it holds has grown when the third report is there.
    let _ = reports.by_ref().filter(|line| line.contains("Top 10 stacks")).nth(2).expect("three reports");
    drop(reports);
    assert_eq!(code(run.wait().expect("waiting")), 3);
}

/// What cannot be read is told in one line before anything is begun.
#[test]
fn a_condition_that_cannot_be_read_ends_it_at_once() {
    let made = folder().join("made");
    for condition in
        ["", "größe", "growth", "growth>", "growth>1T", "growth>-1", "growth>1.5M", "leak>0", "lost>x", "new"]
    {
        let output = memleak(&["--fail-if", condition, "--", "touch", text(&made)]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((code(output.status), said.lines().count()), (2, 1), "{condition}: {said}");
        assert!(said.starts_with("memleak: --fail-if"), "{condition}: {said}");
        assert!(output.stdout.is_empty() && !made.exists(), "{condition}");
    }
}

/// The limit is in bytes, K, M or G: what the run's own reports have grown by tells which hold.
#[test]
fn limits_of_growth_have_units() {
    let _alone = alone();
    let folder = folder().join("units");
    fs::create_dir_all(&folder).expect("a folder");
    let save = folder.join("saved");
    let target = build("sites.c", Link::Dynamic, &[]);
    let mut target = Running::start(Command::new(target).args(["leak", "1000"]));
    target.expect("READY");
    let mut tracer = Tracer::attach_with(target.pid(), &["--save", text(&save), "-o", "0", "0.3"]);
    tracer.fresh_report();
    target.tell("go");
    target.expect("END");
    let outcome = tracer.stop();
    let bytes = |report: &crate::report::Report| report.totals.bytes;
    let (first, last) = (outcome.reports.first().expect("one"), outcome.reports.last().expect("one"));
    let grown = bytes(last) - bytes(first);
    assert!(grown > 1 << 10, "{grown}");
    for (unit, shift) in [("", 0), ("K", 10), ("k", 10), ("M", 20), ("G", 30)] {
        let whole = grown >> shift;
        for (limit, holds) in [(whole, grown > whole << shift), (whole + 1, false)] {
            let condition = format!("growth>{limit}{unit}");
            let status = code(memleak(&["report", text(&save), "--fail-if", &condition]).status);
            assert_eq!(status, if holds { 3 } else { 0 }, "{condition} of {grown}");
        }
    }
    let _ = fs::remove_dir_all(folder);
}

/// Each process by its name in Firefox's file, as Python reads it, and all names where heaptrack
/// has room for one.
#[test]
fn files_of_several_processes_name_them_all() {
    let _alone = alone();
    let folder = folder().join("several");
    fs::create_dir_all(&folder).expect("a folder");
    let [firefox, heaptrack] = ["a.json", "a.zst"].map(|name| folder.join(name));
    let sites = build("sites.c", Link::Dynamic, &[]);
    let other = folder.join("größe two");
    fs::copy(&sites, &other).expect("a copy");
    let name =
        |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).expect("its name").trim().to_owned();
    let mut targets = [(&sites, "1000"), (&other, "200")].map(|(program, times)| {
        let mut target = Running::start(Command::new(program).args(["leak", times]));
        target.expect("READY");
        target
    });
    let second = targets[1].pid().to_string();
    let files = ["--firefox", text(&firefox), "--heaptrack", text(&heaptrack)];
    let options = [&["-p", &second, "-o", "0", "-T", "1000"][..], &files, &["0.3"]].concat();
    let tracer = Tracer::attach_with(targets[0].pid(), &options);
    for target in &mut targets {
        target.tell("go");
        target.expect("END");
    }
    let outcome = tracer.stop();
    let mut expected: BTreeMap<(String, String), u64> = BTreeMap::new();
    for stack in &outcome.reports.last().expect("a report").stacks {
        let whole = [(stack.pid, stack.bytes)];
        let parts: Vec<(u32, u64)> = match &stack.process_counts {
            Some(parts) => parts.iter().map(|part| (part.pid, part.bytes)).collect(),
            None => whole.to_vec(),
        };
        for (pid, bytes) in parts {
            *expected.entry((name(pid), pid.to_string())).or_default() += bytes;
        }
    }
    let script = "import json, sys\nfor t in json.load(open(sys.argv[1]))['threads']:\n  \
        print(t['processName'], t['pid'], sum(t.get('nativeAllocations', {'weight': []})['weight']), sep='\\t')";
    let read = run("python3", &["-c", script, text(&firefox)]);
    let read = read.lines().map(|line| {
        let parts: Vec<&str> = line.split('\t').collect();
        ((parts[0].to_owned(), parts[1].to_owned()), parts[2].parse().expect("bytes"))
    });
    assert_eq!(read.collect::<BTreeMap<_, u64>>(), expected);
    let (said, _) = heaptrack_print(&heaptrack, "leaked");
    for (name, pid) in expected.keys() {
        assert!(said.contains(&format!("{name} ({pid})")), "{said}");
    }
    let _ = fs::remove_dir_all(folder);
}
