//! Programs of many compilers and of the distribution: their stacks are gdb's.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::{UnixDatagram, UnixStream},
    path::Path,
    process::{Command, Stdio},
};

use super::{
    compare::{assert_equal, assert_equal_driven, assert_server_equal, score},
    compile, stack_through,
};
use crate::{
    guard::alone,
    process::patience,
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
    let program = compile("clang-O3", "clang", "kept.c", "-O3 -fomit-frame-pointer -Wno-unknown-attributes");
    assert_equal("clang -O3", &[text(&program)], 4);
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
