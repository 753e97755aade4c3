//! Stacks of code without frame pointers, against gdb's at the same calls: the tracer's run and gdb's are of the same
//! program without address randomization, so that equal stacks have equal addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    guard::alone,
    process::Running,
    programs::{scratch_dir, text},
    report::{Frame, Report, Stack},
    tracer::{MEMLEAK, NEVER, Tracer},
};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/unwind_fixtures").join(name)
}

/// Compiles a fixture.
fn compile(name: &str, compiler: &str, source: &str, flags: &str) -> PathBuf {
    let program = scratch_dir().join(format!("unwinding-{name}"));
    let output = Command::new(compiler)
        .arg(fixture(source))
        .args(flags.split_whitespace())
        .arg("-o")
        .arg(&program)
        .output()
        .unwrap_or_else(|error| panic!("{compiler}: {error}: is it installed?"));
    assert!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
    program
}

/// No address randomization, for the command and what it starts (personality(2)).
fn without_randomization(command: &mut Command) -> &mut Command {
    // SAFETY: personality(2) may be called between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong) {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        })
    }
}

/// A stack's return addresses, the caller of the allocator's function first: file and address in it, as `libc.so.6+2a4f`.
type Addresses = Vec<String>;

fn addresses(stack: &Stack) -> Addresses {
    let place = |frame: &Frame| {
        let module = frame.module.as_deref().unwrap_or("?");
        let name = module.rsplit('/').next().unwrap_or(module);
        format!("{name}+{}", frame.offset.as_deref().unwrap_or("?").trim_start_matches("0x"))
    };
    let mut places: Addresses = stack.frames.iter().map(place).collect();
    places.dedup(); // inlined functions share their caller's address
    places
}

/// The environment of both runs, the whole of it: a variable more, and a dictionary of Python's grows elsewhere. Its
/// dictionaries have the same order, too.
const SAME_EACH_TIME: [(&str, &str); 7] = [
    ("PYTHONHASHSEED", "0"),
    ("PYTHONDONTWRITEBYTECODE", "1"),
    ("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin"),
    ("HOME", "/root"),
    ("SHELL", "/bin/sh"), // gdb's way to start a program, which says PWD
    ("PWD", "/"),
    ("DEBUGINFOD_URLS", ""),
];

/// All different stacks of the run, as gdb sees them.
fn truth(command: &[&str]) -> BTreeSet<Addresses> {
    const FUNCTIONS: &str = "malloc calloc realloc posix_memalign aligned_alloc memalign mmap";
    let output = Command::new("gdb")
        .args([
            "-nx",
            "-q",
            "-batch",
            "-ex",
            "unset environment LINES",
            "-ex",
            "unset environment COLUMNS",
            "-ex",
        ])
        .arg(format!("python FUNCTIONS='{FUNCTIONS}'; LIMIT=20000"))
        .arg("-x")
        .arg(fixture("gdb_stacks.py"))
        .arg("--args")
        .args(command)
        .env_clear()
        .envs(SAME_EACH_TIME)
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .expect("gdb is installed");
    let printed = String::from_utf8_lossy(&output.stdout);
    let stacks: BTreeSet<Addresses> = printed
        .lines()
        .filter_map(|line| line.strip_prefix("STACK "))
        .map(|line| {
            let mut places: Addresses = line.split(' ').map(str::to_owned).collect();
            places.dedup(); // as ours are
            places
        })
        .collect();
    assert!(printed.contains("\nDONE ") && !stacks.is_empty(), "gdb: {printed}");
    stacks
}

/// The last report on the run, all stacks.
fn traced(options: &[&str], command: &[&str]) -> Report {
    let file = scratch_dir().join(format!("unwinding-{}", std::process::id()));
    let mut tracer = Command::new(MEMLEAK);
    tracer.args(["--json", "-o", "0", "-T", "100000", "--output", text(&file)]);
    tracer.args(options).arg(NEVER).arg("--").args(command);
    tracer.env_clear().envs(SAME_EACH_TIME).current_dir("/");
    let ended = Running::start(without_randomization(&mut tracer)).end();
    assert!(ended.status.success(), "{ended:?}");
    let report = std::fs::read_to_string(&file).expect("the report can be read");
    std::fs::remove_file(&file).expect("removing the report");
    Report::parse(report.lines().last().unwrap_or_else(|| panic!("a report: {ended:?}")))
}

/// How the tracer's stacks compared with gdb's.
#[derive(Debug, Default)]
struct Score {
    stacks: usize,
    frames: usize,
    equal: usize,
    cut: usize,
    /// Stacks with a frame that is not gdb's; one that is merely cut has none.
    wrong: usize,
    differences: Vec<String>,
}

/// Compares: a stack of the tracer's has to be one of gdb's; of one that is none, the frames count that the likest one
/// begins with.
fn compare(report: &Report, truth: &BTreeSet<Addresses>) -> Score {
    let mut score = Score::default();
    for stack in &report.stacks {
        let ours = addresses(stack);
        score.stacks += 1;
        score.cut += usize::from(stack.truncated);
        let likeness = |theirs: &Addresses| {
            let same = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
            (same, theirs.len())
        };
        let best = truth.iter().map(likeness).max_by_key(|(same, len)| (*same, std::cmp::Reverse(*len)));
        let (same, len) = best.unwrap_or_default();
        score.frames += len.max(ours.len());
        score.equal += same;
        score.wrong += usize::from(same < ours.len());
        if (same != len || same != ours.len()) && score.differences.len() < 5 {
            let likest = truth.iter().max_by_key(|theirs| likeness(theirs).0);
            score.differences.push(format!("ours {ours:?}\ngdb  {likest:?}"));
        }
    }
    score
}

/// At least 99 % of the frames are gdb's, and as many stacks are whole. `at_least`: stacks.
fn assert_equal(name: &str, command: &[&str], at_least: usize) {
    let score = score(name, command, at_least);
    assert!(score.equal * 100 >= score.frames * 99, "{name}: {score:?}");
    assert!(score.cut * 100 <= score.stacks, "{name}: {score:?}");
}

fn score(name: &str, command: &[&str], at_least: usize) -> Score {
    let report = traced(&[], command);
    let score = compare(&report, &truth(command));
    println!(
        "| {name} | {} stacks | {} frames | {:.2} % equal | {} cut |",
        score.stacks,
        score.frames,
        100.0 * score.equal as f64 / score.frames.max(1) as f64,
        score.cut
    );
    assert!(score.stacks >= at_least, "{name}: {} stacks\n{}", score.stacks, report.describe());
    score
}

#[test]
fn frames_are_gdbs_in_cpp() {
    let _alone = alone();
    for (name, compiler, flags) in [
        ("g++ -O2", "g++", "-O2 -fomit-frame-pointer"),
        ("g++ -O3 -flto", "g++", "-O3 -flto -fomit-frame-pointer"),
        ("g++ -O2 stripped", "g++", "-O2 -fomit-frame-pointer -Wl,-s"),
        ("g++ -O2 not PIE", "g++", "-O2 -fomit-frame-pointer -fno-pie -no-pie"),
        ("g++ -O0", "g++", "-O0"),
        ("clang++ -O2", "clang++", "-O2 -fomit-frame-pointer"),
    ] {
        let file = name.replace([' ', '+'], "");
        let program = compile(&file, compiler, "torture.cc", &format!("{flags} -DKEEP -pthread"));
        assert_equal(name, &[text(&program)], 15);
    }
}

#[test]
fn frames_are_gdbs_in_c_and_rust() {
    let _alone = alone();
    let program = compile("musl", "musl-gcc", "kept.c", "-O2 -fomit-frame-pointer -static");
    // Debian's musl has no unwind information: what is in it is cut, and said to be.
    let score = score("musl-gcc -O2 -static", &[text(&program)], 2);
    assert!(score.wrong == 0, "{score:?}");
    let program = compile("static", "gcc", "kept.c", "-O2 -fomit-frame-pointer -static");
    assert_equal("gcc -O2 -static", &[text(&program)], 2);
    let program = compile("rust", "rustc", "kept.rs", "-O --edition 2024");
    assert_equal("rustc -O", &[text(&program)], 3);
}

#[test]
fn frames_are_gdbs_in_programs_of_the_distribution() {
    let _alone = alone();
    let sql = "create table t(a, b); insert into t values (1, 'x'), (2, 'y'); select count(*) from t;";
    for (name, command) in [
        ("python3", &["/usr/bin/python3", "-S", "-c", "import json; print(json.dumps([1]))"][..]),
        ("sqlite3", &["/usr/bin/sqlite3", ":memory:", sql]),
        ("git", &["/usr/bin/git", "config", "--list"]),
        ("redis-server", &["/usr/bin/redis-server", "--version"]),
    ] {
        assert_equal(name, command, 3);
    }
}

/// Functions of the stacks that hold what `function` acquired, callee first.
fn stack_through(report: &Report, function: &str) -> Vec<String> {
    let through = |stack: &&Stack| stack.frames.iter().any(|frame| frame.bare_function() == function);
    let stack =
        report.stacks.iter().find(through).unwrap_or_else(|| panic!("{function}: {}", report.describe()));
    stack.frames.iter().map(|frame| frame.bare_function().to_owned()).collect()
}

#[test]
fn the_direct_caller_of_operator_new_is_there() {
    let _alone = alone();
    for level in ["-O0", "-O2"] {
        let flags = format!("{level} -g -fomit-frame-pointer");
        let program = compile(&format!("new{level}"), "g++", "operator_new.cc", &flags);
        let report = traced(&[], &[text(&program)]);
        let functions = stack_through(&report, "direct_caller");
        assert_eq!(functions[..3], ["operator new", "direct_caller", "main"], "{level}: {functions:?}");
        report.assert_nothing_lost();
        // By frame pointers alone it is not, since libstdc++ keeps none.
        let report = traced(&["--unwind", "fp"], &[text(&program)]);
        let by_pointer: BTreeMap<_, _> =
            report.stacks.iter().map(|stack| (stack.frames.len(), stack)).collect();
        assert!(
            by_pointer
                .values()
                .all(|stack| stack.frames.iter().all(|frame| frame.bare_function() != "direct_caller")),
            "{level}: the fixture has to need unwinding\n{}",
            report.describe()
        );
    }
}

#[test]
fn wordcounts_stacks_name_word_count_and_main() {
    let _alone = alone();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let program = scratch_dir().join("unwinding-wordcount");
    let output = Command::new("g++")
        .args(["-O2", "-g", "-fomit-frame-pointer", "-std=c++11"])
        .arg(examples.join("wordcount.cc"))
        .arg("-o")
        .arg(&program)
        .output()
        .expect("g++ is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut target = Running::start(&mut Command::new(&program));
    let tracer = Tracer::attach(target.pid());
    target.tell(text(&examples.join("data/declaration.txt")));
    target.expect_line("count of words", |line| line.contains("declaration.txt"));
    let report = tracer.stop_with_report();
    let words = stack_through(&report, "word_counter::word_count");
    let main = words.iter().position(|function| function == "main").unwrap_or_else(|| panic!("{words:?}"));
    assert!(words[..main].iter().any(|function| function == "operator new"), "{words:?}");
    // All that main had leaked: each stack goes there.
    assert!(
        report.stacks.iter().all(|stack| stack.frames.iter().any(|frame| frame.bare_function() == "main")),
        "{}",
        report.describe()
    );
    report.assert_nothing_lost();
    target.end();
}

/// Each round maps the plugin anew, so that addresses and tables come and go; the stacks that it leaves are whole.
#[test]
fn a_plugin_is_loaded_and_unloaded_a_thousand_times() {
    const ROUNDS: u64 = 1000;
    let _alone = alone();
    let plugin = compile("plugin.so", "gcc", "plugin.c", "-O2 -fomit-frame-pointer -shared -fPIC");
    let program = compile("plugins", "gcc", "plugins.c", "-O2 -fomit-frame-pointer -rdynamic");
    let mut target = Running::start(Command::new(&program).arg(&plugin).arg(ROUNDS.to_string()));
    let tracer = Tracer::attach(target.pid());
    target.tell("go");
    target.expect("done");
    let report = tracer.stop_with_report();
    let kept: u64 = report
        .stacks
        .iter()
        .filter(|stack| stack.frames.first().is_some_and(|frame| frame.bare_function() == "keep"))
        .map(|stack| stack.count)
        .sum();
    assert_eq!(kept, 2 * ROUNDS, "{}", report.describe());
    // From the program's own code into the plugin and back out: what was walked before the tables of a round were in
    // place goes on by frame pointers, or is cut and says so.
    let whole: u64 = report
        .stacks
        .iter()
        .filter(|stack| {
            let functions: Vec<&str> = stack.frames.iter().map(Frame::bare_function).collect();
            functions.starts_with(&["keep", "plugin_leak", "main"])
        })
        .map(|stack| stack.count)
        .sum();
    println!("{whole} of {kept} stacks through the plugin are whole");
    assert!(whole * 100 >= kept * 90, "{whole} of {kept}\n{}", report.describe());
    let silent = report.stacks.iter().filter(|stack| {
        !stack.truncated
            && stack
                .frames
                .iter()
                .all(|frame| !["main", "_start", "_dl_start_user"].contains(&frame.bare_function()))
    });
    assert_eq!(silent.count(), 0, "a cut stack says so\n{}", report.describe());
    target.end();
}
