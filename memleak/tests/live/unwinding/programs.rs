//! Programs of many compilers and of the distribution: their stacks are gdb's.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use super::{
    compare::{assert_equal, assert_server_equal, score},
    compile, stack_through,
};
use crate::{
    guard::alone,
    programs::{scratch_dir, text},
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
    let program = compile("musl", "musl-gcc", "kept.c", "-O2 -fomit-frame-pointer -static");
    // Debian's musl has no unwind information: what is in it is cut, and said to be. gdb gets no further there.
    let (_, score) = score("musl-gcc -O2 -static", &[text(&program)], 4);
    assert!(score.wrong == 0, "{score:?}");
    for (name, flags) in [
        ("gcc -O2 -static", "-O2 -fomit-frame-pointer -static"),
        ("gcc -O2 -static-pie", "-O2 -fomit-frame-pointer -static-pie"),
        ("gcc -O2 not PIE", "-O2 -fomit-frame-pointer -fno-pie -no-pie"),
    ] {
        let file = name.replace([' ', '+'], "");
        let program = compile(&format!("c{file}"), "gcc", "kept.c", flags);
        assert_equal(name, &[text(&program)], 4);
    }
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

#[test]
fn frames_are_gdbs_in_python() {
    let _alone = alone();
    let script = "import json; print(json.dumps([1]))";
    assert_equal("python3", &["/usr/bin/python3", "-S", "-c", script], 30);
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
    let mut command = Command::new("/usr/bin/redis-server");
    command.args(settings);
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
