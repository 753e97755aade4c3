//! `--why`: what is lost and what holds the rest, beside valgrind and LeakSanitizer.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use crate::{
    guard::alone,
    process::{self, Running, rounds},
    programs::{Link, build, scratch_dir, text},
    report::Report,
    tracer::{NEVER, Tracer},
};

/// What becomes of the blocks of each shape of `shapes.cc`, in order: ours, valgrind's word and
/// LeakSanitizer's. D, I and P are definitely, indirectly and possibly lost, R is still reachable.
///
/// Where the three differ: a whole circle is definitely lost to us. LeakSanitizer takes a pointer
/// into the middle for one to the start, and does not look at mapped memory. Neither it nor
/// valgrind knows what the kernel holds, or what is behind `new T[0]` (valgrind); read-only pages
/// valgrind does not read. We alone take a tag in the upper bits for a maybe, and headers for what
/// they are. Registers of threads that wait we know from the kernel, also while they are not
/// stopped; valgrind does not read those of the vector unit.
const SHAPES: &[(&str, &str, &str, &str)] = &[
    ("main_stack", "R", "R", "R"),
    ("lost", "D", "D", "D"),
    ("global", "R", "R", "R"),
    ("list", "RRR", "RRR", "RRR"),
    ("lost_list", "DII", "DII", "DII"),
    ("tree", "RRR", "RRR", "RRR"),
    ("lost_tree", "DII", "DII", "DII"),
    ("ring", "RRR", "RRR", "RRR"),
    ("lost_ring", "DDD", "DII", "III"),
    ("double", "RRR", "RRR", "RRR"),
    ("lost_double", "DDD", "DII", "III"),
    ("lost_self", "D", "D", "D"),
    ("lost_ring_holds", "DD", "DI", "II"),
    ("lost_ring_held", "I", "I", "I"),
    ("ring_inner", "PP", "PP", "RR"),
    ("inner", "P", "P", "R"),
    ("inner_holds", "P", "P", "R"),
    ("inner_held", "P", "P", "R"),
    ("old_string", "R", "R", "R"),
    ("length_before", "R", "R", "R"),
    ("new_array", "R", "R", "R"),
    ("new_array_of_none", "R", "D", "R"),
    ("second_base", "R", "R", "R"),
    ("make_shared_object", "R", "P", "R"),
    ("header", "RRRRRRRRRR", "PPPPPPPPPP", "RRRRRRRRRR"),
    ("tag_low", "P", "P", "R"),
    ("tag_high", "P", "D", "D"),
    ("unaligned", "D", "D", "D"),
    ("xor_first", "R", "R", "R"),
    ("xor_next", "DD", "DD", "DD"),
    ("freed_holder", "D", "D", "D"),
    ("unmapped_holder", "D", "D", "D"),
    ("closed_library", "D", "D", "D"),
    ("mapping", "R", "R", "D"),
    ("lost_mapping", "R", "R", "D"),
    ("read_only", "R", "D", "D"),
    ("shared_memory", "R", "R", "D"),
    ("large", "R", "R", "R"),
    ("large_held", "R", "R", "R"),
    ("lost_large", "D", "D", "D"),
    ("lost_large_held", "I", "I", "I"),
    ("aligned", "R", "R", "R"),
    ("realloc", "R", "R", "R"),
    ("of_nothing", "R", "R", "R"),
    ("unordered_map", "R", "R", "R"),
    ("epoll", "R", "D", "D"),
    ("timer", "R", "D", "D"),
    ("shared_circle", "DD", "DI", "II"),
    ("ended_stack", "D", "D", "D"),
    ("ended_thread_local", "D", "D", "D"),
    ("register", "R", "R", "R"),
    ("vector_register", "R", "D", "R"),
    ("kept_in_register", "R", "R", "R"),
    ("thread_local", "R", "R", "R"),
    ("specific", "R", "R", "R"),
    ("thread_stack", "R", "R", "R"),
    ("lost_arena", "D", "D", "D"),
    ("coroutine_stack", "R", "R", "R"),
    ("coroutine_block", "R", "R", "R"),
    ("coroutine_mapping", "R", "R", "R"),
    ("main_thread_local", "R", "R", "R"),
    ("below_stack", "D", "D", "D"),
];

/// What each tool says of the blocks of a size.
type BySize = BTreeMap<u64, char>;

/// The shapes, each with the sizes of its blocks.
fn sizes(lines: &[String]) -> Vec<(String, Vec<u64>)> {
    let mut shapes: Vec<(String, Vec<u64>)> = Vec::new();
    for line in lines {
        let Some((name, size)) = line.split_once(' ') else { continue };
        let Ok(size) = size.parse() else { continue };
        match shapes.iter_mut().find(|(known, _)| known == name) {
            Some((_, sizes)) => sizes.push(size),
            None => shapes.push((name.to_owned(), vec![size])),
        }
    }
    shapes
}

fn ours(report: &Report) -> BySize {
    let heap = report.stacks.iter().filter(|stack| stack.resource == "heap");
    let blocks = heap.flat_map(|stack| stack.allocations.iter().flatten());
    let class = |why: Option<&str>| match why {
        Some("definitely_lost") => 'D',
        Some("indirectly_lost") => 'I',
        Some("possibly_lost") => 'P',
        Some("still_reachable") => 'R',
        other => panic!("{other:?} is no class"),
    };
    blocks.map(|block| (block.size, class(block.why.as_deref()))).collect()
}

/// Runs a program to its end; gives its standard error.
fn errors_of(command: &mut Command) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    child.stdin.take().expect("a pipe").write_all(b"\n").expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The number that `text` begins with, with commas between its digits.
fn number(text: &str) -> Option<u64> {
    let digits = text.split(|c: char| !c.is_ascii_digit() && c != ',').next()?;
    digits.replace(',', "").parse().ok()
}

fn valgrinds(program: &Path) -> BySize {
    let kinds = [
        ("definitely lost", 'D'),
        ("indirectly lost", 'I'),
        ("possibly lost", 'P'),
        ("still reachable", 'R'),
    ];
    let flags = ["-q", "--num-callers=500", "--leak-check=full", "--show-leak-kinds=all"];
    let said = errors_of(Command::new("valgrind").args(flags).arg(program));
    // ==1== 3,144 (1,024 direct, 2,120 indirect) bytes in 1 blocks are definitely lost in loss
    // record 1 of 9
    let records = said.lines().filter_map(|line| {
        let rest = line.strip_prefix("==")?.split_once("== ")?.1;
        let (_, kind) = kinds.iter().find(|(words, _)| rest.contains(words))?;
        let direct = rest.split_once('(').filter(|(_, rest)| rest.contains("direct"));
        Some((number(direct.map_or(rest, |(_, rest)| rest))?, *kind))
    });
    records.collect()
}

/// It says nothing of what is reachable.
fn sanitizers(program: &Path) -> BySize {
    let mut command = Command::new(program);
    let said = errors_of(command.env("LSAN_OPTIONS", "malloc_context_size=250"));
    assert!(said.contains("SUMMARY: LeakSanitizer"), "{said}");
    let records = said.lines().filter_map(|line| {
        let (kind, rest) = line.split_once(" leak of ")?;
        Some((number(rest)?, if kind == "Direct" { 'D' } else { 'I' }))
    });
    records.collect()
}

/// What a tool says of these blocks. valgrind adds up those of one stack.
fn said(by_size: &BySize, sizes: &[u64], otherwise: char) -> String {
    let together = by_size.get(&sizes.iter().sum()).copied().unwrap_or(otherwise);
    sizes.iter().map(|size| by_size.get(size).copied().unwrap_or(together)).collect()
}

/// The report on all shapes, and what they have told.
fn report_on(program: &Path, why: &str) -> (Report, Vec<String>) {
    let arguments = ["--json", why, "-a", "-o", "0", "-T", "100000", NEVER, "--", text(program)];
    let mut tracer = Tracer::start(&arguments);
    let lines = tracer.running().expect("READY");
    (tracer.stop_with_report(), lines)
}

/// The program of shapes, built with these flags besides.
pub(crate) fn shapes_program(flags: &[&str]) -> PathBuf {
    let library = build("site_library.c", Link::Library, &["-DSITE=site"]);
    let library = format!("-DLIBRARY=\"{}\"", text(&library));
    build("shapes.cc", Link::Dynamic, &[&[library.as_str()], flags].concat())
}

/// What the three say of `program`; `checked` is the same, with LeakSanitizer.
fn compare(program: &Path, checked: &Path, table: &[(&str, &str, &str, &str)]) {
    let (report, lines) = report_on(program, "--why");
    let why = report.why.as_ref().expect("why");
    assert_eq!((why["mode"].as_str(), why["complete"].as_bool()), (Some("scans"), Some(true)), "{why}");
    let (ours, valgrinds, sanitizers) = (ours(&report), valgrinds(program), sanitizers(checked));
    let mut wrong = Vec::new();
    let shapes = sizes(&lines);
    println!("{:20} {:11} {:11} LeakSanitizer", "shape", "memleak", "valgrind");
    for (name, sizes) in &shapes {
        let all = [said(&ours, sizes, '-'), said(&valgrinds, sizes, '-'), said(&sanitizers, sizes, 'R')];
        println!("{name:20} {:11} {:11} {}", all[0], all[1], all[2]);
        let expected = table.iter().find(|(known, ..)| known == name);
        if expected != Some(&(name.as_str(), &all[0], &all[1], &all[2])) {
            wrong.push(format!("{name} {all:?}, and not {expected:?}"));
        }
    }
    assert_eq!(shapes.len(), table.len());
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn shapes_beside_valgrind_and_leak_sanitizer() {
    let _alone = alone();
    let checked = shapes_program(&["-fsanitize=leak"]);
    compare(&shapes_program(&[]), &checked, SHAPES);
    assert!(SHAPES.len() >= 40);
}

/// Those of `counted_circles.rs`, as above.
const COUNTED: &[(&str, &str, &str, &str)] = &[
    ("rc_circle", "DD", "DI", "II"),
    ("rc_three", "DDD", "DII", "III"),
    ("rc_three_hold", "ID", "II", "II"),
    ("arc_circle", "DD", "DI", "II"),
    ("arc_held", "RR", "RR", "RR"),
];

/// Rust's own pointers that count. It has no virtual table in its blocks.
#[test]
fn counted_circles_beside_valgrind_and_leak_sanitizer() {
    let _alone = alone();
    let program = counted_circles("counted_circles", &[]);
    // rustc links no libraries but those that it knows of.
    let library = |name: &str| {
        let found = Command::new("gcc").arg(format!("-print-file-name={name}")).output().expect("gcc").stdout;
        format!("-Clink-arg={}", String::from_utf8(found).expect("a path").trim())
    };
    let linked = [library("liblsan_preinit.o"), library("liblsan.a")];
    let [first, sanitizer] = [0, 1].map(|at| linked[at].as_str());
    let (all, not_all) = ("-Clink-arg=-Wl,--whole-archive", "-Clink-arg=-Wl,--no-whole-archive");
    let needed = ["-Clink-arg=-lstdc++", "-Clink-arg=-lm", "-Clink-arg=-Wl,--export-dynamic"];
    let checked = counted_circles(
        "counted_circles_checked",
        &[&[first, all, sanitizer, not_all], &needed[..]].concat(),
    );
    compare(&program, &checked, COUNTED);
}

/// Compiles `counted_circles.rs`.
fn counted_circles(name: &str, flags: &[&str]) -> PathBuf {
    rust_program("counted_circles.rs", name, &[&["-O", "-g", "-Cforce-frame-pointers"], flags].concat())
}

/// Compiles a program of Rust's to a file of this name.
pub(crate) fn rust_program(source: &str, name: &str, flags: &[&str]) -> PathBuf {
    let program = scratch_dir().join(name);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(source);
    let mut rustc = Command::new(Path::new(env!("CARGO")).with_file_name("rustc"));
    rustc.args(["--edition", "2024"]).args(flags);
    let status = rustc.arg(source).arg("-o").arg(&program).status().expect("rustc");
    assert!(status.success(), "rustc: {status}");
    program
}

/// While it is stopped all is as it was.
#[test]
fn shapes_of_a_process_that_is_stopped() {
    let _alone = alone();
    let (report, lines) = report_on(&shapes_program(&[]), "--why=exact");
    let why = report.why.as_ref().expect("why");
    assert_eq!((why["mode"].as_str(), why["scans"].as_u64()), (Some("exact"), Some(0)), "{why}");
    assert!(why["stopped_ms"].as_u64() < Some(1000), "{why}");
    let ours = ours(&report);
    for (name, sizes) in &sizes(&lines) {
        let expected = SHAPES.iter().find(|(known, ..)| known == name).expect("a shape").1;
        assert_eq!(said(&ours, sizes, '-'), expected, "{name}");
    }
}

/// The first letter of a process's state, and who traces it.
fn state(pid: u32) -> (char, u32) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).expect("a field").trim();
    (field("State:").chars().next().expect("a state"), field("TracerPid:").parse().expect("a number"))
}

#[test]
fn a_tracer_that_is_killed_leaves_the_target_running() {
    /// Targets, each with a tracer: most of a round is waiting.
    const AT_ONCE: usize = 4;
    let _alone = alone();
    let program = build("known_leaks.cc", Link::Dynamic, &[]);
    let all: Vec<u64> = rounds(200).collect();
    let stopped: u32 = thread::scope(|scope| {
        let (all, program) = (&all, &program);
        let killing = |at| scope.spawn(move || kill_tracers(program, all.iter().skip(at).step_by(AT_ONCE)));
        let killing: Vec<_> = (0..AT_ONCE).map(killing).collect();
        killing.into_iter().map(|thread| thread.join().expect("a target that runs on")).sum()
    });
    println!("stopped at the moment in {stopped} of {} rounds", all.len());
}

/// Kills a tracer in each of these rounds while it looks at a target of its own, which is to give
/// its account in the end and to end well. Gives how often the target was stopped then.
fn kill_tracers<'a>(program: &Path, rounds: impl Iterator<Item = &'a u64>) -> u32 {
    let mut target = Running::start(Command::new(program).args(["16", "4000000", "7"]));
    target.expect("READY");
    target.tell("go");
    let pid = target.pid();
    let mut stopped = 0;
    for round in rounds {
        let arguments =
            ["--json", "-v", "-p", &pid.to_string(), "--why=exact", "--why-every", "1", "-o", "0", "0.001"];
        let mut tracer = Tracer::start(&arguments);
        tracer.wait_attached();
        // From the first look to some way into a later one.
        thread::sleep(Duration::from_micros(round * 7919 % 250_000));
        stopped += u32::from(state(pid).1 != 0);
        tracer.running().signal(libc::SIGKILL);
        tracer.running().wait_status();
        let (state, tracer) = state(pid);
        assert!(tracer == 0 && !"tT".contains(state), "{state} {tracer} in round {round}");
    }
    target.expect("END");
    target.tell("end");
    assert_eq!(process::code(target.wait_status()), 0);
    stopped
}

/// What cannot be stopped, or not for so short a time, is reported without `why`.
#[test]
fn refusals_to_stop_are_one_line() {
    let _alone = alone();
    let mut target = Running::start(&mut Command::new(build("shapes.cc", Link::Dynamic, &[])));
    target.expect("READY");
    let pid = target.pid();
    let refused = |more: &[&str], said: &[&str]| {
        let pid = pid.to_string();
        let mut arguments = vec!["--json", "-p", &pid, "--why=exact", "-o", "0", "0.3", "1"];
        arguments.splice(1..1, more.iter().copied());
        let outcome = Tracer::start(&arguments).wait();
        assert_eq!(outcome.code, 0);
        let [line] = outcome.ended.stderr.as_slice() else { panic!("{:?}", outcome.ended.stderr) };
        said.iter().for_each(|part| assert!(line.contains(part), "{part}: {line}"));
        assert_eq!(outcome.reports.last().expect("a report").why, None);
    };
    refused(&["--max-pause", "1"], &["stopped for some", "--max-pause allows 1"]);
    let mut status = 0;
    // SAFETY: no memory of ours is concerned.
    let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid as libc::pid_t, 0, 0) };
    assert_eq!(seized, 0);
    refused(&[], &["traces it", "(why::refus"]);
    // SAFETY: as above. It is stopped first, or it could not be let go.
    unsafe {
        assert_eq!(libc::ptrace(libc::PTRACE_INTERRUPT, pid as libc::pid_t, 0, 0), 0);
        assert_eq!(libc::waitpid(pid as libc::pid_t, &raw mut status, libc::__WALL), pid as libc::pid_t);
        assert_eq!(libc::ptrace(libc::PTRACE_DETACH, pid as libc::pid_t, 0, 0), 0);
    }
    // A debugger, which has stopped it; scans need no tracer.
    let attach = format!("attach {pid}");
    let gdb = ["-nx", "-q", "-batch", "-ex", &attach, "-ex", "shell echo HELD", "-ex", "shell cat"];
    let mut debugger = Running::start(Command::new("gdb").args(gdb));
    debugger.expect("HELD");
    refused(&[], &["traces it", "(gdb)"]);
    let pid = pid.to_string();
    let scanned = Tracer::start(&["--json", "-p", &pid, "--why", "-o", "0", "0.3", "1"]).wait();
    assert!(scanned.reports.last().expect("a report").why.is_some(), "{:?}", scanned.ended.stderr);
    debugger.end();
}

/// wordcount with its circle, or with a std::weak_ptr in it.
pub(crate) fn wordcount(is_mended: bool) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut source = fs::read_to_string(root.join("examples/wordcount.cc")).expect("the example");
    if is_mended {
        let circle = "std::shared_ptr<word_counter> counter_; // closes the circle";
        assert!(source.contains(circle));
        source = source
            .replace(circle, "std::weak_ptr<word_counter> counter_;")
            .replace("counter_->", "counter_.lock()->");
    }
    let folder = scratch_dir().join(if is_mended { "mended" } else { "circle" });
    fs::create_dir_all(&folder).expect("a folder");
    let (file, program) = (folder.join("wordcount.cc"), folder.join("wordcount"));
    fs::write(&file, source).expect("the source");
    let flags = ["-fno-omit-frame-pointer", "-std=c++11", "-g"];
    let made = Command::new("g++").args(flags).arg(&file).arg("-o").arg(&program).status().expect("g++");
    assert!(made.success());
    program
}

/// Has so many files read.
pub(crate) fn read_books(target: &mut Running, count: usize) {
    let book = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data/constitution.txt");
    for _ in 0..count {
        target.tell(text(&book));
        target.expect_line("the number of words", |line| line.ends_with(" words"));
    }
}

/// What `--why` says of wordcount, attached after some books, at the end of three more.
fn why_of_wordcount(is_mended: bool, before: usize) -> (Report, Vec<String>) {
    let mut target = Running::start(&mut Command::new(wordcount(is_mended)));
    let pid = target.pid().to_string();
    read_books(&mut target, before);
    let mut text = Tracer::start(&["-v", "-p", &pid, "--why", "-o", "0", NEVER]);
    text.wait_attached();
    let json = Tracer::attach_with(target.pid(), &["--why", "-o", "0", "-T", "1000", NEVER]);
    read_books(&mut target, 3);
    let report = json.stop_with_report();
    let lines = text.stop().ended.stdout;
    target.end();
    let why = lines.iter().skip_while(|line| !line.starts_with("Lost:")).cloned().collect();
    (report, why)
}

#[test]
fn the_lab_ends_with_its_circle() {
    let _alone = alone();
    for before in [0, 2] {
        let (report, lines) = why_of_wordcount(false, before);
        let [cycle] = report.cycles.as_deref().expect("cycles") else { panic!("{lines:#?}") };
        assert_eq!((cycle["length"].as_u64(), cycle["count"].as_u64()), (Some(2), Some(3)), "{cycle}");
        // The third is in main's frame, still.
        assert!(cycle["pointed_at"].as_u64() <= Some(1) && cycle["bytes"].as_u64() == Some(360), "{cycle}");
        let members: Vec<_> = cycle["members"]
            .as_array()
            .expect("members")
            .iter()
            .map(|member| {
                let place = member["stack"].as_u64().expect("a stack") as usize;
                let lines: Vec<_> = report.stacks[place]
                    .frames
                    .iter()
                    .filter(|frame| frame.function.as_deref() == Some("main"))
                    .map(|frame| frame.line)
                    .collect();
                (member["type"].as_str(), member["field"].as_str(), member["offset"].as_u64(), lines)
            })
            .collect();
        let expected = [
            (Some("word_counter"), Some("printer_"), Some(0x50), vec![Some(78)]),
            (Some("count_printer"), Some("counter_"), Some(0x18), vec![Some(79)]),
        ];
        assert_eq!(members, expected, "{cycle}");
        assert!(cycle["retained_bytes"].as_u64() > Some(100_000), "{cycle}");
        for part in [
            "cycle of 2, 3 times",
            "word_counter  .printer_ (+0x50) -> count_printer",
            "made in main  wordcount.cc:78",
            "count_printer .counter_ (+0x18) -> word_counter",
            "made in main  wordcount.cc:79",
            "std::string",
            "std::weak_ptr",
        ] {
            assert!(lines.iter().any(|line| line.contains(part)), "{part}: {lines:#?}");
        }
    }
}

/// `--why-of` says what holds blocks of a type, or why nothing does; `--why-dot` draws the circle.
#[test]
fn a_type_can_be_asked_for_and_circles_are_drawn() {
    let _alone = alone();
    let mut target = Running::start(&mut Command::new(wordcount(false)));
    let pid = target.pid().to_string();
    let drawn = scratch_dir().join("circle.dot");
    let common = ["-p", &pid, "--why", "-o", "0", NEVER];
    let of_type = ["-v", "--why-of", "count_printer", "--why-dot", text(&drawn)];
    let mut asked = Tracer::start(&[&of_type[..], &common[..]].concat());
    let mut nobody = Tracer::start(&[&["-v", "--json", "--why-of", "0x10"][..], &common[..]].concat());
    asked.wait_attached();
    nobody.wait_attached();
    read_books(&mut target, 3);
    let lines = asked.stop().ended.stdout;
    let line = lines.iter().find(|line| line.starts_with("  why count_printer: ")).expect("an answer");
    // The third is in main's frame, still.
    let parts = ["bytes at 0x", "count_printer", "made in main  wordcount.cc:79"];
    assert!(parts.iter().all(|part| line.contains(part)), "{line}");
    assert!(line.contains(": by main's stack") || line.contains(": by a block that nothing holds"), "{line}");
    let drawn = fs::read_to_string(&drawn).expect("a file");
    for part in
        ["digraph cycles {", "cycle of 2, 3 times", "word_counter\\nmain", "label=\".printer_ +0x50\""]
    {
        assert!(drawn.contains(part), "{part}: {drawn}");
    }
    let nobody = nobody.stop().reports.pop().expect("a report");
    let answer = nobody.why_of.expect("an answer");
    assert_eq!(answer[0]["what"], "0x10");
    assert_eq!(answer[0]["address"], serde_json::Value::Null, "{answer:?}");
    target.end();
}

/// Of blocks in C the debug information says what they are, from the variable on.
#[test]
fn what_holds_blocks_is_told_by_its_types() {
    let _alone = alone();
    let program = build("holders.c", Link::Dynamic, &["-g"]);
    let mut tracer = Tracer::start(&["--json", "--why", "-o", "0", "-T", "100", NEVER, "--", text(&program)]);
    tracer.running().expect("READY");
    let report = tracer.stop_with_report();
    let held = report.held.as_deref().expect("held");
    let of =
        |bytes: u64| held.iter().find(|held| held["bytes"] == bytes).unwrap_or_else(|| panic!("{held:?}"));
    let bodies = of(1600);
    let by = bodies["by"].as_str().unwrap_or_default();
    assert!(by.starts_with("global g_cache [holders"), "{bodies}");
    assert_eq!(
        bodies["path"],
        serde_json::json!(["cache.map", "entry*[]", "entry.body", "body"]),
        "{bodies}"
    );
    let entries = of(256);
    assert_eq!(entries["path"], serde_json::json!(["cache.map", "entry*[]", "entry"]), "{entries}");
}

#[test]
fn with_a_weak_pointer_nothing_is_lost() {
    let _alone = alone();
    for before in [0, 2] {
        let (report, lines) = why_of_wordcount(true, before);
        let why = report.why.as_ref().expect("why");
        for class in ["definitely_lost", "indirectly_lost"] {
            assert_eq!(why[class]["count"].as_u64(), Some(0), "{why}");
        }
        assert_eq!(report.cycles.as_deref(), Some(&[][..]), "{lines:#?}");
        assert!(lines[0].starts_with("Lost: nothing of"), "{lines:#?}");
    }
}

/// Pointers that move all the time from one place to another, each the only one to its block: none
/// is lost, seen from the start or made before the attach.
#[test]
fn pointers_that_move_lose_nothing() {
    let _alone = alone();
    for is_before in [false, true] {
        let mut target = Running::start(&mut Command::new(build("mover.c", Link::Dynamic, &["-O2"])));
        target.expect("READY");
        let attach = |target: &Running| Tracer::attach_with(target.pid(), &["--why", "-o", "0", NEVER]);
        let tracer = if is_before {
            target.tell("go");
            target.expect("HELD");
            attach(&target)
        } else {
            let tracer = attach(&target);
            target.tell("go");
            target.expect("HELD");
            tracer
        };
        let report = tracer.stop_with_report();
        let why = report.why.as_ref().expect("why");
        for class in ["definitely_lost", "indirectly_lost"] {
            assert_eq!(why[class]["count"], 0, "{is_before}: {why}");
        }
        let before = &why["before_attach"];
        assert!(
            !is_before || before["in_use"]["count"].as_u64().is_some_and(|count| count >= 20_000),
            "{why}"
        );
        assert_eq!(before["lost"]["count"].as_u64().unwrap_or(0), 0, "{is_before}: {why}");
    }
}

/// A command is looked at when it is about to end, with all of its threads there; what it has lost
/// by then is said, and its own status is passed on.
#[test]
fn a_command_is_looked_at_before_it_ends() {
    const THREADS: u64 = 5;
    let _alone = alone();
    let program = build("many_threads.c", Link::Dynamic, &["-O2"]);
    for why in ["--why", "--why=exact"] {
        let arguments = ["--json", why, "-a", "-o", "0", NEVER, "--", text(&program), "5", "lose"];
        let mut tracer = Tracer::start(&arguments);
        tracer.running().expect("READY");
        tracer.running().tell("end");
        let outcome = tracer.wait();
        assert_eq!(outcome.code, 7, "{:?}", outcome.ended.stderr);
        let report = outcome.reports.last().expect("a report");
        let classes = |bytes: u64| -> Vec<&str> {
            let blocks = report.stacks.iter().flat_map(|stack| stack.allocations.iter().flatten());
            blocks.filter(|block| block.size == bytes).filter_map(|block| block.why.as_deref()).collect()
        };
        // Each sleeper's stack alone holds one; main has lost another.
        assert_eq!(classes(3001), ["still_reachable"; THREADS as usize], "{:?}", report.why);
        assert_eq!(classes(2003), ["definitely_lost"], "{:?}", report.why);
        assert!(report.is_final);
    }
}
