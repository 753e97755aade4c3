//! Allocators other than libc's: preloaded, linked, a server's own.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use crate::{
    exact::EVERYTHING,
    guard::alone,
    ledger,
    machine::{PROTECTED, PROTECTION, UNPROTECTED},
    process::{self, Running, patience},
    programs::{Link, build, redis_settings, scratch_dir, text},
    report::Report,
    resources::open_descriptors,
    tracer::{NEVER, Tracer, trace_command},
};

/// The full ledger, with C++'s operators, exact: each call is counted once, whichever functions
/// call each other inside.
fn known_leaks_under(library: Option<&str>, operators: &[&str]) {
    let _alone = alone();
    let program = build("known_leaks.cc", Link::Dynamic, operators);
    let mut command = Command::new(program);
    command.args(["4", "40000", "7"]);
    if let Some(library) = library {
        command.env("LD_PRELOAD", library);
    }
    let mut target = Running::start(&mut command);
    target.expect("READY");
    if let Some(library) = library {
        let maps = fs::read_to_string(format!("/proc/{}/maps", target.pid())).expect("its maps");
        assert!(maps.contains(library), "{library} is not loaded: is it installed?\n{}", target.outputs());
    }
    let tracer = Tracer::attach(target.pid());
    target.tell("go");
    let ledger = ledger::hear(&mut target);
    assert!(ledger.len() >= 15, "{ledger:?}");
    let report = tracer.stop_with_report();
    let heap_only = Report {
        stacks: report.stacks.iter().filter(|stack| stack.resource == "heap").cloned().collect(),
        ..report.clone()
    };
    report.assert_sums();
    let heap = heap_only.sum("heap");
    let totals = crate::report::Totals { bytes: heap.0, count: heap.1, ..report.totals };
    Report { totals, ..heap_only }.assert_equals(&ledger);
    report.assert_only_sites("heap");
    report.assert_nothing_lost();
    target.tell("end");
    assert!(target.wait_status().success());
}

/// libstdc++'s operators call malloc; the aligned ones lose the stack's thread (no frame pointer,
/// and %rbp in use).
const OPERATORS: [&str; 2] = ["-std=c++17", "-DOPERATORS"];
pub(crate) const ALL_OPERATORS: [&str; 3] = ["-std=c++17", "-DOPERATORS", "-DALIGNED_OPERATORS"];

#[test]
fn operators_of_libstdcxx_count_once() {
    known_leaks_under(None, &OPERATORS);
}

#[test]
fn jemalloc_preloaded() {
    known_leaks_under(Some("libjemalloc.so.2"), &ALL_OPERATORS);
}

#[test]
fn tcmalloc_preloaded() {
    known_leaks_under(Some("libtcmalloc_minimal.so.4"), &ALL_OPERATORS);
}

#[test]
fn mimalloc_preloaded() {
    known_leaks_under(Some("libmimalloc.so.2"), &ALL_OPERATORS);
}

/// An allocator of the target's own that is linked before libc, with every kind of function start:
/// arguments are read right where the probe is moved past endbr64 and the frame's set-up, and where
/// it is not.
#[test]
fn arguments_are_right_at_shifted_places() {
    let _alone = alone();
    for flags in [
        &["-O2", PROTECTED, "-fomit-frame-pointer"][..],
        &["-O0", PROTECTED],
        &["-O2", UNPROTECTED],
        &["-O0", UNPROTECTED],
        &["-Os", PROTECTED],
    ] {
        let library = build("plain_allocator.c", Link::Library, flags);
        let program = build("one_function.c", Link::Dynamic, &[text(&library)]);
        for function in ["malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc", "memalign", "free"]
        {
            let outcome = trace_command(&EVERYTHING, &[text(&program), function]);
            println!("{flags:?} {function}");
            assert_eq!(outcome.code, 0, "{:?}", outcome.ended);
            let report = outcome.last_report();
            report.assert_equals(&ledger::parse(&outcome.ended.stdout));
            report.assert_nothing_lost();
        }
    }
}

#[test]
fn protection_is_where_the_test_above_wants_it() {
    let library = build("plain_allocator.c", Link::Library, &["-O2", PROTECTED, "-fomit-frame-pointer"]);
    let output = Command::new("objdump")
        .args(["-d", "--disassemble=malloc", text(&library)])
        .output()
        .expect("objdump");
    assert!(String::from_utf8_lossy(&output.stdout).contains(PROTECTION), "{output:?}");
}

/// The size that jemalloc 5 sets aside for a block of `size` bytes: size classes are 8, then 16
/// apart up to 128, then four to each doubling (jemalloc(3), "IMPLEMENTATION NOTES").
fn jemalloc_class(size: u64) -> u64 {
    if size <= 8 {
        return 8;
    }
    let spacing = if size <= 128 { 16 } else { (size - 1).next_power_of_two() / 8 };
    let spacing = if size > 128 && (size - 1).is_power_of_two() { (size - 1) / 4 } else { spacing };
    size.div_ceil(spacing) * spacing
}

#[test]
fn size_classes_are_jemallocs() {
    // From jemalloc(3), "Size classes".
    for (size, class) in [
        (1, 8),
        (9, 16),
        (17, 32),
        (33, 48),
        (128, 128),
        (129, 160),
        (161, 192),
        (256, 256),
        (257, 320),
        (513, 640),
        (1025, 1280),
        (14337, 16384),
        (16385, 20480),
    ] {
        assert_eq!(jemalloc_class(size), class, "{size}");
    }
}

/// What a redis server's `INFO memory` says under `key`.
fn redis_info(socket: &Path, key: &str) -> u64 {
    let output = Command::new("redis-cli").args(["-s", text(socket), "info", "memory"]).output();
    let output = output.expect("redis-cli");
    let info = String::from_utf8_lossy(&output.stdout).into_owned();
    let value = info.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("no {key} in {info}"))
}

/// Whether this is a function of redis' zmalloc.c: zmalloc, zcalloc, zrealloc, ztrymalloc, zstrdup
/// and their variants.
fn is_of_zmalloc(function: &str) -> bool {
    ["zmalloc", "zcalloc", "zrealloc", "ztry", "zstrdup"].iter().any(|prefix| function.starts_with(prefix))
}

/// Waits until a server has closed its clients' sockets: it frees what it has of a client then.
fn wait_without_clients(server: u32, without: &BTreeSet<u32>) {
    let begun = Instant::now();
    while open_descriptors(server) != *without {
        assert!(begun.elapsed() < patience(), "redis keeps clients that have ended");
        thread::yield_now();
    }
}

/// redis counts what jemalloc sets aside for each block that it takes through its `zmalloc` and
/// related functions (`used_memory`). The tracer counts what was asked for, so each block is
/// rounded up to its size class first, and those whose stacks do not pass a function of zmalloc.c
/// (the Lua interpreter's, OpenSSL's, libc's) are left out. What remains is the client that asks:
/// `INFO` counts its record and its buffers (a reply buffer of 16 KiB and a query buffer of up to
/// 32 KiB), and they are gone when the report is made. `CLIENT` is room for those.
#[test]
fn redis_server_agrees_with_its_own_count() {
    const CLIENT: u64 = 64 << 10;
    let _alone = alone();
    let dir = scratch_dir().join(format!("redis-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a folder for redis");
    let socket = dir.join("socket");
    let arguments = ["--json", "-v", "-a", "-o", "0", "-T", "100000", "--output"];
    let reports = dir.join("reports");
    let mut tracer = Tracer::run(
        Command::new(crate::tracer::MEMLEAK)
            .args(arguments)
            .arg(&reports)
            .args([NEVER, "--", "redis-server"])
            .args(redis_settings(&dir, &socket))
            .args(["--maxmemory", "0", "--hz", "1"]),
    );
    tracer.wait_attached();
    let ready = tracer.running().expect_line("readiness", |line| line.contains("eady to accept connections"));
    let server = ready.split(':').next().and_then(|pid| pid.parse().ok()).expect("redis' PID");
    let without_clients = open_descriptors(server);
    let benchmark = Command::new("redis-benchmark")
        .args(["-s", text(&socket), "-n", "30000", "-c", "20", "-r", "20000", "-d", "100", "-q"])
        .args(["-t", "set,lpush,sadd,hset,zadd"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("redis-benchmark");
    assert!(benchmark.success());
    let used = redis_info(&socket, "used_memory");
    wait_without_clients(server, &without_clients);
    tracer.running().signal(libc::SIGINT);
    let ended = process::code(tracer.running().wait_status());
    assert_eq!(ended, 0, "{}", tracer.running().outputs());
    let text = fs::read_to_string(&reports).expect("the reports");
    let report = Report::parse(text.lines().last().expect("a report"));
    report.assert_nothing_lost();
    let through_zmalloc = report.stacks.iter().filter(|stack| {
        let mut functions = stack.frames.iter().map(|frame| frame.bare_function());
        stack.resource == "heap" && functions.any(is_of_zmalloc)
    });
    let sizes = through_zmalloc.flat_map(|stack| stack.allocations.iter().flatten());
    let rounded: u64 = sizes.map(|allocation| jemalloc_class(allocation.size)).sum();
    println!("redis says {used}; the report {rounded}, asked for {:?} in all", report.sum("heap"));
    assert!(used > 10 << 20, "the benchmark left something: {used}");
    assert!(rounded <= used && used - rounded <= CLIENT, "report {rounded}, redis {used}");
    fs::remove_dir_all(&dir).expect("removing redis' folder");
}

/// Sizes that change where the blocks are, with the stacks that they had; and releases of many at
/// once, which are said.
fn in_place_by(flags: &[&str]) {
    let _alone = alone();
    let mut target = Running::start(&mut Command::new(build("in_place.c", Link::Dynamic, flags)));
    target.expect("READY");
    let mut tracer = Tracer::attach_with(target.pid(), &["-o", "0", "-T", "1000", "1"]);
    target.tell("go");
    let ledger = ledger::hear(&mut target);
    let report = tracer.fresh_report();
    report.assert_equals(&ledger);
    report.assert_only_sites("heap");
    report.assert_nothing_lost();
    assert!(!report.lost.contains_key("mass_releases"), "{:?}", report.lost);
    target.tell("sweep");
    target.expect("swept");
    let report = tracer.fresh_report();
    assert_eq!(report.lost.get("mass_releases"), Some(&1), "{:?}", report.lost);
    assert_eq!(report.site("site_swept"), (50 * 64, 50), "they are still listed: {}", report.describe());
    target.tell("end");
    assert!(target.wait_status().success());
}

#[test]
fn jemallocs_blocks_change_in_place() {
    in_place_by(&["-ljemalloc"]);
}

#[test]
fn mimallocs_blocks_change_in_place() {
    in_place_by(&["-DMIMALLOC", "-lmimalloc"]);
}
