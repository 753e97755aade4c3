//! Programs of many compilers and of the distribution: their stacks are gdb's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read as _, Write as _},
    os::unix::net::{UnixDatagram, UnixStream},
    path::Path,
    process::{Command, Stdio},
};

use super::{
    compare::{assert_equal, assert_equal_driven, assert_equal_or_cut, assert_server_equal},
    compile, stack_through, traced,
};
use crate::{
    guard::alone,
    machine::IS_ARM,
    process::patience,
    programs::{redis_settings, scratch_dir, text},
    report::{Report, Stack},
};

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
        // A handler that allocates, an exception in flight, a coroutine on a stack of its own, a
        // thread.
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
        assert_equal(name, &[text(&program)], 4);
    }
    let program = compile("clang-O3", "clang", "kept.c", "-O3 -fomit-frame-pointer -Wno-unknown-attributes");
    assert_equal("clang -O3", &[text(&program)], 4);
}

/// Code without unwind information between functions that have it. Its instructions tell its frame;
/// on arm64 once such that they do not. There its frame record does not tell its caller's stack
/// pointer: the caller's own record does, where it keeps one.
#[test]
fn frames_are_gdbs_beyond_code_without_unwind_information() {
    let _alone = alone();
    for (compiler, flags) in [("gcc", "-O2"), ("clang", "-O2 -Wno-unknown-attributes")] {
        for (name, readable) in [("records", ""), ("records-unreadable", " -DUNREADABLE")] {
            let program =
                compile(&format!("{name}-{compiler}"), compiler, "records.c", &format!("{flags}{readable}"));
            assert_equal(&format!("{compiler} {flags}{readable}, frame records"), &[text(&program)], 6);
        }
    }
    let program = compile("records-omitted", "gcc", "records.c", "-O2 -fomit-frame-pointer");
    assert_equal("gcc -O2 -fomit-frame-pointer, frame records", &[text(&program)], 6);
    let flags = "-O2 -fomit-frame-pointer -DUNREADABLE";
    let program = compile("records-unreadable-omitted", "gcc", "records.c", flags);
    let name = &format!("gcc {flags}, frame records");
    let cut = assert_equal_or_cut(name, &[text(&program)], 6);
    // All but the one of `main`, which saves its return address alone.
    assert_eq!(cut, if IS_ARM { 5 } else { 0 }, "{name}");
}

#[test]
fn frames_are_gdbs_in_cpp_coroutines() {
    let _alone = alone();
    for (compiler, level) in [("g++", "-O0"), ("g++", "-O2"), ("clang++", "-O2")] {
        let flags = format!("-std=c++20 {level} -fomit-frame-pointer -Wno-unknown-attributes");
        let program = compile(&format!("coroutines-{compiler}{level}"), compiler, "coroutines.cc", &flags);
        let name = format!("{compiler} {level}, C++20 coroutines");
        let report = assert_equal(&name, &[text(&program)], 9);
        let functions = stack_through(&report, "keep");
        assert!(functions.iter().any(|function| function == "main"), "{name}: {functions:?}");
    }
}

/// What `musl.c` keeps: functions of its stacks, callee first. Others of the C library's come
/// between.
const MUSL_STACKS: [&[&str]; 4] = [
    &["keep", "compare", "sort", "main"],
    &["keep", "handler", "raise", "interrupt", "main"],
    &["keep", "thread"],
    &["keep", "at_end", "exit"],
];

/// Whether the functions are among the stack's, in their order.
fn comes_by(stack: &Stack, functions: &[&str]) -> bool {
    let mut frames = stack.frames.iter();
    functions.iter().all(|function| frames.any(|frame| frame.bare_function() == *function))
}

/// Where stacks begin: on arm64 `_start` and `_start_c` go on by jumps.
const MUSLS_FIRST: [&str; 3] = ["_start", "__clone", "libc_start_main_stage2"];

fn ends_at_the_first(stack: &Stack) -> bool {
    let firsts = if IS_ARM { &MUSLS_FIRST[1..] } else { &MUSLS_FIRST[..2] };
    stack.frames.last().is_some_and(|frame| firsts.contains(&frame.bare_function()))
}

/// Functions of musl's that go on by a jump to another one.
const JUMPS: [(&str, &str); 2] = [("_start_c", "libc_start_main_stage2"), ("qsort", "__qsort_r")];

/// musl's ways back from signal handlers, of x86_64 and arm64.
const WAYS_BACK: [&str; 2] = ["__restore_rt", "__restore"];

/// What the program's calls return to, and which functions they call: `None` if a register says
/// it.
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
        let target = ["call ", "bl\t", "blr\t"].iter().find_map(|call| instruction.strip_prefix(call));
        if let Some(target) = target {
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
        if [callee, caller].iter().any(|function| WAYS_BACK.contains(function)) {
            continue; // the kernel has called, and it returns to what was interrupted
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

/// Debian's musl has no unwind information, and gdb gets lost in it. The program knows who called
/// whom, and so does its code: before each return address there is a call of the frame above.
#[test]
fn stacks_through_musl_are_whole() {
    let _alone = alone();
    let static_flags = "-O2 -fomit-frame-pointer -static";
    let program = compile("musl", "musl-gcc", "musl.c", static_flags);
    let report = traced(&[], &[text(&program)]);
    let named = assert_called(&report, &calls_of(&program));
    println!("musl-gcc -O2 -static: {} stacks, {named} calls\n{}", report.stacks.len(), report.describe());
    assert!(named >= 12, "{named}");
    let returning = report.stacks.iter().flat_map(|stack| &stack.frames);
    let ways_back = returning.filter(|frame| WAYS_BACK.contains(&frame.bare_function()));
    assert_eq!(ways_back.count(), 1, "{}", report.describe());
    let dynamic = compile("musl-dynamic", "musl-gcc", "musl.c", "-O2 -fomit-frame-pointer");
    let dynamic_report = traced(&[], &[text(&dynamic)]);
    for report in [&report, &dynamic_report] {
        for functions in MUSL_STACKS {
            let is_there = report.stacks.iter().any(|stack| comes_by(stack, functions));
            assert!(is_there, "{functions:?}\n{}", report.describe());
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
        assert_equal(name, &[text(&program)], 3);
    }
    let program = compile("rust-threads", "rustc", "threads.rs", "-O --edition 2024");
    assert_equal("rustc -O, threads", &[text(&program)], 15);
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

/// It leaves without freeing, so that all that it held is compared: what an orderly end leaves
/// differs from machine to machine, and is too little on arm64.
#[test]
fn frames_are_gdbs_in_python() {
    let _alone = alone();
    let script = "import json, os; print(json.dumps([1]), flush=True); os._exit(0)";
    assert_equal("python3", &["/usr/bin/python3", "-S", "-c", script], 100);
}

/// What is kept after a load of writes of all kinds, by a server with an allocator of its own and
/// threads.
#[test]
fn frames_are_gdbs_in_redis_under_load() {
    let _alone = alone();
    let dir = scratch_dir().join(format!("unwinding-redis-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a folder for redis");
    let socket = dir.join("socket");
    let mut command = Command::new("/usr/bin/redis-server");
    command.args(redis_settings(&dir, &socket));
    let is_ready = |line: &str| line.contains("eady to accept connections");
    assert_server_equal("redis-server under load", &mut command, 20, is_ready, |_| load(&socket));
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

/// What nginx holds when it is killed: of its settings, and of requests whose connections are open.
#[test]
fn frames_are_gdbs_in_nginx_serving() {
    let _alone = alone();
    let dir = scratch_dir().join(format!("unwinding-nginx-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a folder for nginx");
    let socket = dir.join("socket");
    let log = UnixDatagram::bind(dir.join("log")).expect("a socket for nginx's log");
    let settings = format!(
        "daemon off; master_process off; pid {dir}/pid; error_log syslog:server=unix:{dir}/log notice;\n\
         events {{}}\n\
         http {{ access_log off; gzip on; gzip_min_length 1; gzip_types *;\n\
         server {{ listen unix:{dir}/socket; root {dir};\n\
         location = /text {{ return 200 'some text'; }} }} }}\n",
        dir = text(&dir)
    );
    fs::write(dir.join("settings"), settings).expect("writing nginx's settings");
    fs::write(dir.join("file"), "a line\n".repeat(5000) + "the end").expect("writing a file to serve");
    let file = dir.join("settings");
    let command = ["/usr/sbin/nginx", "-e", "stderr", "-c", text(&file)];
    assert_equal_driven("nginx serving", &command, 20, |pid| {
        wait_for_message(&log, "getrlimit(RLIMIT_NOFILE)"); // its sockets are open by then
        let _open = ask_for_pages(&socket);
        // SAFETY: kill(2) touches no memory of ours; gdb has not waited for the process yet.
        let failed = unsafe { libc::kill(pid as i32, libc::SIGKILL) };
        assert_eq!(failed, 0, "killing nginx");
    });
    fs::remove_dir_all(&dir).expect("removing nginx' folder");
}

/// Waits for a datagram that holds these words.
fn wait_for_message(log: &UnixDatagram, words: &str) {
    log.set_read_timeout(Some(patience())).expect("a socket can have a time limit");
    let mut message = [0; 4096];
    loop {
        let length =
            log.recv(&mut message).unwrap_or_else(|error| panic!("no {words} in nginx' log: {error}"));
        if String::from_utf8_lossy(&message[..length]).contains(words) {
            return;
        }
    }
}

/// Asks an HTTP server for pages of several kinds; returns connections that are left open.
fn ask_for_pages(socket: &Path) -> Vec<UnixStream> {
    let connect = || UnixStream::connect(socket).expect("the server listens");
    for request in [
        "GET /file HTTP/1.1\r\nAccept-Encoding: gzip\r\n",
        "GET /file HTTP/1.1\r\nRange: bytes=10-20,30-40\r\n",
        "GET /missing HTTP/1.0\r\n",
    ] {
        let mut connection = connect();
        write!(connection, "{request}Host: test\r\nConnection: close\r\n\r\n").expect("it reads");
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).expect("it answers");
        assert!(answer.starts_with(b"HTTP/1.1 "), "{request}: {answer:?}");
    }
    let ask = |request: &str, end: &str| {
        let mut connection = connect();
        write!(connection, "{request} HTTP/1.1\r\nHost: test\r\n\r\n").expect("it reads");
        let mut answer = Vec::new();
        let mut piece = [0; 4096];
        while !answer.ends_with(end.as_bytes()) {
            let length = connection.read(&mut piece).expect("it answers");
            assert_ne!(length, 0, "{request}: {}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&piece[..length]);
        }
        connection
    };
    vec![ask("GET /text", "some text"), ask("GET /file", "the end"), ask("POST /text", "some text")]
}
