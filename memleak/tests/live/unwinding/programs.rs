//! Programs of many compilers and of the distribution: their stacks are gdb's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::{Command, Stdio},
};

use super::{
    compare::{assert_equal, score, score_server, traced},
    compile, stack_through,
};
use crate::{
    guard::alone,
    programs::{scratch_dir, text},
    report::{Report, Stack},
};

/// Where stacks end: a program's or a thread's first function, or a coroutine's.
const FIRST_FUNCTIONS: [&str; 7] =
    ["_start", "_dl_start_user", "clone", "__clone", "clone3", "__clone3", "__start_context"];

/// Each stack goes to a first function (which C libraries name differently) or to main's caller.
fn assert_all_reach_the_first_function(name: &str, report: &Report) {
    for stack in &report.stacks {
        let functions: Vec<&str> = stack.frames.iter().map(|frame| frame.bare_function()).collect();
        let last = functions.last().copied().unwrap_or_default();
        // What a coroutine returns to is the middle of no function.
        let coroutine = last.is_empty() && functions.iter().rev().nth(1) == Some(&"coroutine");
        assert!(FIRST_FUNCTIONS.contains(&last) || coroutine, "{name}: ends in {last}: {functions:?}");
    }
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
        ("clang++ -O3 -flto", "clang++", "-O3 -flto -fomit-frame-pointer"),
    ] {
        let file = name.replace([' ', '+'], "");
        let program = compile(&file, compiler, "torture.cc", &format!("{flags} -DKEEP -pthread"));
        let report = assert_equal(name, &[text(&program)], 15);
        if flags.contains("-s") {
            continue; // nobody knows its functions' names
        }
        assert_all_reach_the_first_function(name, &report);
        // A handler that allocates, an exception in flight, a coroutine on a stack of its own, a thread.
        for (scene, below) in [
            ("interrupted", "main"),
            ("on_other_stack", "main"),
            ("throws", "main"),
            ("coroutine", ""),
            ("thread_start", ""),
        ] {
            let functions = stack_through(&report, scene);
            assert!(
                below.is_empty() || functions.iter().any(|function| function == below),
                "{name}: {functions:?}"
            );
        }
    }
}

#[test]
fn frames_are_gdbs_in_c() {
    let _alone = alone();
    for (name, flags) in [
        ("gcc -O2 -static", "-O2 -fomit-frame-pointer -static"),
        ("gcc -O2 -static-pie", "-O2 -fomit-frame-pointer -static-pie"),
        ("gcc -O2 not PIE", "-O2 -fomit-frame-pointer -fno-pie -no-pie"),
    ] {
        let file = name.replace([' ', '+'], "");
        let program = compile(&format!("c{file}"), "gcc", "kept.c", flags);
        let report = assert_equal(name, &[text(&program)], 4);
        assert_all_reach_the_first_function(name, &report);
    }
}

/// What `musl.c` keeps: functions of its stacks, callee first, that it knows itself. The C library's come between.
const MUSL_STACKS: [&[&str]; 4] = [
    &["keep", "compare", "sort", "main"],
    &["keep", "handler", "interrupt", "main"],
    &["keep", "thread"],
    &["keep", "at_end"],
];

/// Whether the functions are among the stack's, in their order.
fn comes_by(stack: &Stack, functions: &[&str]) -> bool {
    let mut frames = stack.frames.iter();
    functions.iter().all(|function| frames.any(|frame| frame.bare_function() == *function))
}

fn ends_at_the_first(stack: &Stack) -> bool {
    stack.frames.last().is_some_and(|frame| FIRST_FUNCTIONS.contains(&frame.bare_function()))
}

/// Functions of musl's that go on by a jump to another one.
const JUMPS: [(&str, &str); 2] = [("_start_c", "libc_start_main_stage2"), ("qsort", "__qsort_r")];

/// What the program's calls return to, and which functions they call: `None` where a register says it.
fn calls_of(program: &Path) -> BTreeMap<u64, Option<String>> {
    let output = Command::new("objdump")
        .args(["-d", "--no-show-raw-insn", text(program)])
        .output()
        .expect("binutils is installed");
    let mut calls = BTreeMap::new();
    let mut call = None;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Some((address, instruction)) = line.split_once(":\t") else { continue };
        let address = u64::from_str_radix(address.trim(), 16).expect("objdump prints hexadecimal numbers");
        if let Some(called) = call.take() {
            calls.insert(address, called);
        }
        if let Some(target) = instruction.strip_prefix("call ") {
            let name = target.split_once('<').map(|(_, name)| name.trim_end_matches('>').to_owned());
            call = Some(name.filter(|_| !target.contains('*')));
        }
    }
    calls
}

/// Each frame's address is behind a call of the frame before. Gives how many of the calls name it.
fn assert_called(report: &Report, calls: &BTreeMap<u64, Option<String>>) -> usize {
    let mut named = 0;
    for pair in report.stacks.iter().flat_map(|stack| stack.frames.windows(2)) {
        let [callee, caller] = [pair[0].bare_function(), pair[1].bare_function()];
        if [callee, caller].contains(&"") {
            continue; // the signal's way back has no name: the kernel has called, and it returns to what was interrupted
        }
        let offset = pair[1].offset.as_deref().unwrap_or_default().trim_start_matches("0x");
        let address = u64::from_str_radix(offset, 16).expect("an offset is a hexadecimal number");
        let call = calls.get(&address);
        let call =
            call.unwrap_or_else(|| panic!("{caller}: no call is before {address:#x}\n{}", report.describe()));
        if let Some(called) = call {
            let called = JUMPS.iter().find(|(from, _)| from == called).map_or(called.as_str(), |(_, to)| *to);
            assert_eq!(called, callee, "{caller}+{address:#x}\n{}", report.describe());
            named += 1;
        }
    }
    named
}

/// Debian's musl has no unwind information, and gdb gets lost in it. The program knows who called whom, and so does its
/// code: before each return address there is a call of the frame above.
#[test]
fn stacks_through_musl_are_whole() {
    let _alone = alone();
    let static_flags = "-O2 -fomit-frame-pointer -static";
    let program = compile("musl", "musl-gcc", "musl.c", static_flags);
    let report = traced(&[], &[text(&program)]);
    let named = assert_called(&report, &calls_of(&program));
    println!("musl-gcc -O2 -static: {} stacks, {named} calls\n{}", report.stacks.len(), report.describe());
    assert!(named >= 12, "{named}");
    let dynamic = compile("musl-dynamic", "musl-gcc", "musl.c", "-O2 -fomit-frame-pointer");
    let dynamic_report = traced(&[], &[text(&dynamic)]);
    for report in [&report, &dynamic_report] {
        for functions in MUSL_STACKS {
            let stack = report.stacks.iter().find(|stack| comes_by(stack, functions));
            assert!(stack.is_some(), "{functions:?}\n{}", report.describe());
        }
        assert!(report.stacks.iter().all(|stack| !stack.truncated), "{}", report.describe());
    }
    // The dynamic one's clone has no name.
    assert!(report.stacks.iter().all(ends_at_the_first), "{}", report.describe());
    // The same program without symbols (but those that are traced) has the same stacks.
    let addresses = |report: &Report| -> BTreeSet<Vec<Option<String>>> {
        let of_stack = |stack: &Stack| stack.frames.iter().map(|frame| frame.offset.clone()).collect();
        report.stacks.iter().map(of_stack).collect()
    };
    let stripped = program.with_extension("stripped");
    let mut strip = Command::new("strip");
    for function in ["malloc", "calloc", "realloc", "free"] {
        strip.args(["-K", function]);
    }
    strip.arg("-o").arg(&stripped).arg(&program);
    assert!(strip.status().expect("binutils is installed").success());
    let stripped_report = traced(&[], &[text(&stripped)]);
    assert!(stripped_report.stacks.iter().all(|stack| !stack.truncated), "{}", stripped_report.describe());
    assert_eq!(addresses(&stripped_report), addresses(&report));
}

#[test]
fn frames_are_gdbs_in_rust() {
    const FAT: &str =
        "-C opt-level=3 -C lto=fat -C codegen-units=1 -C panic=abort -C force-frame-pointers=no";
    let _alone = alone();
    for (name, flags) in [("rustc -O", "-O"), ("rustc -O3, fat LTO, panic=abort", FAT)] {
        let file = if flags == FAT { "rust-fat" } else { "rust" };
        let program = compile(file, "rustc", "kept.rs", &format!("{flags} --edition 2024"));
        let report = assert_equal(name, &[text(&program)], 3);
        assert_all_reach_the_first_function(name, &report);
    }
}

#[test]
fn frames_are_gdbs_in_programs_of_the_distribution() {
    let _alone = alone();
    let sql = "create table t(a, b); insert into t values (1, 'x'), (2, 'y'); select count(*) from t;";
    for (name, command) in [
        ("sqlite3", &["/usr/bin/sqlite3", ":memory:", sql][..]),
        ("git", &["/usr/bin/git", "config", "--list"]),
    ] {
        assert_equal(name, command, 3);
    }
}

/// One stack is another each time: where the interpreter's table of strings was when it grew last hangs on how many there
/// are, and gdb's run has a few more. `unwind_walk.rs` compares the two at the same stops, without a difference.
#[test]
fn frames_are_gdbs_in_python() {
    let _alone = alone();
    let script = "import json; print(json.dumps([1]))";
    let (_, score) = score("python3", &["/usr/bin/python3", "-S", "-c", script], 30);
    assert!(score.whole + 1 >= score.stacks && score.cut == 0, "{score:?}");
}

/// What is kept after a load of writes of all kinds, by a server with an allocator of its own and threads.
#[test]
fn frames_are_gdbs_in_redis_under_load() {
    let _alone = alone();
    let dir = scratch_dir().join(format!("unwinding-redis-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a folder for redis");
    let socket = dir.join("socket");
    let settings = [
        "--port",
        "0",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        text(&dir),
        "--unixsocket",
        text(&socket),
    ];
    let command: Vec<&str> = ["/usr/bin/redis-server"].into_iter().chain(settings).collect();
    let is_ready = |line: &str| line.contains("eady to accept connections");
    let score = score_server("redis-server under load", &command, 20, is_ready, || load(&socket));
    // Two runs of a server do not do the same at the same time: a table grows now by the clock, now by a command.
    assert!(score.whole + 1 >= score.stacks && score.cut == 0, "{score:?}");
    fs::remove_dir_all(&dir).expect("removing redis' folder");
}

/// Writes to a redis server, and shuts it down.
fn load(socket: &Path) {
    let run = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(["-s", text(socket)]).args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().unwrap_or_else(|error| panic!("{program}: {error}"))
    };
    let tests = ["-n", "60", "-c", "1", "-r", "1000", "-d", "64", "-t", "set,lpush,sadd,hset,zadd"];
    assert!(run("redis-benchmark", &tests).success());
    run("redis-cli", &["shutdown", "nosave"]); // it hangs up instead of answering
}
