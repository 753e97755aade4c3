//! The account of the target's memory, against what the kernel and the C library say of it.

use std::{fs, process::Command};

use crate::{
    guard::alone,
    process::Running,
    programs::{Link, build, scratch_dir, text},
    report::{Memory, Report},
    tracer::{NEVER, Tracer},
};

const SECOND: &[&str] = &["-o", "0", "1"];

/// A program that does what it is told.
fn program() -> Running {
    let mut target = Running::start(&mut Command::new(build("account.c", Link::Dynamic, &[])));
    target.expect("READY");
    target
}

fn tell(target: &mut Running, what: &str) {
    target.tell(what);
    target.expect("done");
}

/// The resident bytes of a process, by the kernel's own sum.
fn rss(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("it lives");
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).expect("a sum");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// The account of a report: its parts are the kernel's sum, and nothing is in two of them.
fn checked(report: &Report, pid: u32) -> Memory {
    let memory = report.memory.clone().unwrap_or_else(|| panic!("no account: {}", report.describe()));
    let parts = memory.outstanding_resident
        + memory.allocator_free.unwrap_or(0)
        + memory.allocator
        + memory.thread_stacks
        + memory.files
        + memory.before_attach
        + memory.unaccounted;
    assert_eq!(parts, memory.rss, "{memory:?}");
    let kernel = rss(pid);
    assert!(memory.rss.abs_diff(kernel) <= kernel / 50, "the kernel counts {kernel}: {memory:?}");
    memory
}

/// The first report with an account of those whose snapshots are taken from now on: where one takes
/// long the next reports go without.
fn accounted(tracer: &mut Tracer) -> Report {
    let report = tracer.fresh_report();
    if report.memory.is_some() { report } else { tracer.wait_report(|report| report.memory.is_some()) }
}

fn percent(part: u64, of: u64) -> f64 {
    part as f64 * 100.0 / of as f64
}

/// Traces a command from its start until `ready`, and accounts for it when it is quiet.
fn started(command: &[&str], ready: impl Fn(u32)) -> (Report, Memory) {
    let _alone = alone();
    let mut arguments = vec!["--json", "-v", "-o", "0", "1", "--"];
    arguments.extend(command);
    let mut tracer = Tracer::start(&arguments);
    tracer.wait_attached();
    let pid = tracer.wait_report(|_| true).target.pids[0];
    ready(pid);
    let report = accounted(&mut tracer);
    let memory = checked(&report, pid);
    println!("{command:?}: {memory:?}");
    tracer.stop();
    (report, memory)
}

fn wait_for(file: &std::path::Path) {
    let began = std::time::Instant::now();
    while !file.exists() {
        assert!(began.elapsed() < crate::process::patience(), "{} is not there", file.display());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn python_is_accounted_for() {
    let file = scratch_dir().join(format!("python-{}", std::process::id()));
    let _ = fs::remove_file(&file);
    let script = format!(
        "import json, re, sqlite3, threading, time\n\
         kept = [json.dumps({{'a': [i] * 9}}) for i in range(60000)]\n\
         threads = [threading.Thread(target=time.sleep, args=(3600,), daemon=True) for _ in range(8)]\n\
         [thread.start() for thread in threads]\n\
         del kept[::2]\n\
         open({:?}, 'w')\n\
         time.sleep(3600)",
        text(&file)
    );
    let (_, memory) = started(&["python3", "-c", &script], |_| wait_for(&file));
    fs::remove_file(&file).expect("it was there");
    assert!(memory.outstanding_resident > memory.rss / 4, "{memory:?}");
    assert!(memory.files > 1 << 20 && memory.thread_stacks > 0, "{memory:?}");
    assert!(percent(memory.unaccounted, memory.rss) <= 3.0, "{memory:?}");
    assert!(percent(memory.before_attach, memory.rss) <= 3.0, "traced from its start: {memory:?}");
}

#[test]
fn redis_is_accounted_for() {
    let log = scratch_dir().join(format!("redis-{}", std::process::id()));
    let _ = fs::remove_file(&log);
    let port = "17379";
    let command = [
        "redis-server",
        "--port",
        port,
        "--save",
        "",
        "--enable-debug-command",
        "yes",
        "--logfile",
        text(&log),
    ];
    let (report, memory) = started(&command, |_| {
        wait_for(&log);
        let populate = ["-p", port, "debug", "populate", "50000", "key", "200"];
        let done =
            || Command::new("redis-cli").args(populate).output().is_ok_and(|output| output.stdout == b"OK\n");
        let began = std::time::Instant::now();
        while !done() {
            assert!(began.elapsed() < crate::process::patience(), "redis does not answer");
        }
    });
    fs::remove_file(&log).expect("it was there");
    assert!(memory.outstanding_resident > 8 << 20, "{memory:?}");
    // It is a link to redis-check-rdb.
    let modules =
        || report.stacks.iter().flat_map(|stack| &stack.frames).filter_map(|frame| frame.module.as_deref());
    assert!(modules().any(|module| module == "/usr/bin/redis-server"), "{}", report.describe());
    assert!(modules().all(|module| !module.contains("redis-check-rdb")), "{}", report.describe());
    assert_eq!(memory.allocator_free, None, "jemalloc's arenas are not read");
    assert!(percent(memory.unaccounted, memory.rss) <= 3.0, "{memory:?}");
    assert!(percent(memory.before_attach, memory.rss) <= 3.0, "traced from its start: {memory:?}");
}

/// Of a process that held a lot when tracing began.
#[test]
fn what_grows_after_the_attach_is_accounted_for() {
    let _alone = alone();
    let mut target = program();
    tell(&mut target, "leak 100000 150");
    tell(&mut target, "fragments 100000 150");
    let mut tracer = Tracer::attach_with(target.pid(), SECOND);
    let first = checked(&accounted(&mut tracer), target.pid());
    assert!(first.before_attach > 20 << 20, "100,000 blocks and a half more: {first:?}");
    assert!(first.unaccounted < 1 << 16, "{first:?}");
    tell(&mut target, "leak 200000 150");
    tell(&mut target, "fragments 100000 3000");
    let last = checked(&accounted(&mut tracer), target.pid());
    let growth = u64::try_from(last.rss_growth).expect("it grew");
    println!("{first:?}\n{last:?}");
    assert!(growth > 100 << 20, "{last:?}");
    assert!(percent(last.unaccounted, growth) <= 3.0, "{last:?}");
    assert!(last.before_attach.abs_diff(first.before_attach) <= growth / 33, "{first:?} {last:?}");
    let held = last.outstanding_resident;
    let truth = 200_000 * 150 + 50_000 * 3000 + 200_000 * 8 + 100_000 * 8;
    assert!(held.abs_diff(truth) < truth / 100, "{held} for {truth}");
}

/// Against mallinfo2(3), which counts what is free in all arenas, but for the threads' caches:
/// without those.
fn free_is_what_the_library_says(command: &str, freed: u64) {
    let _alone = alone();
    let mut run = Command::new(build("account.c", Link::Dynamic, &[]));
    let mut target = Running::start(run.env("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0"));
    target.expect("READY");
    let mut tracer = Tracer::attach_with(target.pid(), SECOND);
    tell(&mut target, command);
    target.tell("free");
    let said = target.expect_line("what is free", |line| line.starts_with("free "));
    let said: u64 = said.trim_start_matches("free ").parse().expect("a number");
    let memory = checked(&accounted(&mut tracer), target.pid());
    let free = memory.allocator_free.expect("glibc's arenas can be read");
    println!("{command}: {said} {memory:?}");
    // The last word of the block before a free chunk lies in the chunk. The top of each arena is
    // free, too, of which not all was ever written.
    let said = said - freed * 8;
    assert!(free.abs_diff(said) <= said / 100 + (256 << 10), "{said} {memory:?}");
    assert!(memory.unaccounted < 1 << 16, "{memory:?}");
}

#[test]
fn free_memory_of_bins_is_found() {
    free_is_what_the_library_says("fragments 40000 1000", 20_000);
}

#[test]
fn free_memory_of_fastbins_is_found() {
    free_is_what_the_library_says("fragments 200000 40", 100_000);
}

#[test]
fn free_memory_of_other_arenas_is_found() {
    free_is_what_the_library_says("threads 30000 700", 60_000);
}

/// Of an allocator that cannot be read: so many hundredths at the least of what it says itself, and
/// not more (its counters and ours are not of one moment). Blocks of a size of its own, and of
/// others.
fn free_at_least_is_what_it_says(link: Link, flags: &[&str], least: u64) {
    let _alone = alone();
    for sizes in [&[200][..], &[33, 200, 1000], &[16, 24, 40, 72, 100, 264, 600, 5000], &[8000, 20000, 70000]]
    {
        let mut target = Running::start(&mut Command::new(build("account.c", link, flags)));
        target.expect("READY");
        let mut tracer = Tracer::attach_with(target.pid(), SECOND);
        for size in sizes {
            let count = 30_000_000 / size / sizes.len();
            tell(&mut target, &format!("fragments {count} {size}"));
        }
        target.tell("free");
        let said = target.expect_line("what is free", |line| line.starts_with("free "));
        let said: u64 = said.trim_start_matches("free ").parse().expect("a number");
        // Of the first one something may have been acquired while it was made.
        accounted(&mut tracer);
        let memory = checked(&accounted(&mut tracer), target.pid());
        println!("{flags:?} {sizes:?}: {said} {memory:?}");
        let free = memory.allocator_free_at_least.expect("it has free blocks");
        assert!(free <= said + said / 100, "{sizes:?}: {said} {memory:?}");
        assert!(free * 100 >= said * least, "{sizes:?}: {said} {memory:?}");
        tracer.stop();
    }
}

#[test]
fn what_is_free_in_jemalloc_is_what_it_says() {
    free_at_least_is_what_it_says(Link::Dynamic, &["-ljemalloc"], 75);
}

#[test]
fn what_is_free_in_mimalloc_is_what_it_says() {
    free_at_least_is_what_it_says(Link::Dynamic, &["-Wl,--no-as-needed", "-lmimalloc"], 75);
}

#[test]
fn what_is_free_in_tcmalloc_is_what_it_says() {
    free_at_least_is_what_it_says(Link::Dynamic, &["-Wl,--no-as-needed", "-ltcmalloc_minimal"], 65);
}

/// The text form of a run in which the target does as it is told after each report.
fn texts(commands: &[&str]) -> String {
    let _alone = alone();
    let mut target = program();
    let file = scratch_dir().join(format!("account-{}", std::process::id()));
    let pid = target.pid().to_string();
    let mut tracer = Tracer::start(&["-v", "-o", "0", "-p", &pid, "--output", text(&file), "1"]);
    tracer.wait_attached();
    for command in commands {
        tell(&mut target, command);
        // The one under way may have been before it.
        tracer.wait_note(|line| line.contains("report over"));
        tracer.wait_note(|line| line.contains("report over"));
    }
    tracer.stop();
    let reports = fs::read_to_string(&file).expect("reports");
    fs::remove_file(&file).expect("it was there");
    println!("{reports}");
    reports
}

const NO_LEAK: &str = "\tnot a leak of blocks: ";

#[test]
fn fragmentation_is_no_leak() {
    let reports = texts(&["fragments 100000 200", "fragments 100000 200"]);
    let last = reports.rsplit("] Top ").next().expect("a report");
    let line = last.lines().find(|line| line.starts_with(NO_LEAK)).unwrap_or_else(|| panic!("{last}"));
    let wanted = " MB are free inside glibc's arenas (fragmentation; malloc_trim, MALLOC_ARENA_MAX)";
    let free: f64 = line.trim_start_matches(NO_LEAK).trim_end_matches(wanted).parse().expect("megabytes");
    // Those of the first time were used again by the second.
    assert!((free - 10.0).abs() < 0.5, "{line}");
}

#[test]
fn a_leak_is_one() {
    let reports = texts(&["fragments 5000 200", "leak 100000 200", "leak 100000 200", "leak 100000 200"]);
    assert!(!reports.contains(NO_LEAK));
    assert!(!reports.contains("most growth"));
}

/// A leak first, which no report calls anything else, not even one in which nothing has grown; then
/// the same allocator keeps what was freed.
fn fragments_of(link: Link, flags: &[&str], name: &str) {
    let _alone = alone();
    let mut target = Running::start(&mut Command::new(build("account.c", link, flags)));
    target.expect("READY");
    let file = scratch_dir().join(format!("fragments-{}", std::process::id()));
    let pid = target.pid().to_string();
    let mut tracer = Tracer::start(&["-v", "-o", "0", "-p", &pid, "--output", text(&file), "0.25"]);
    tracer.wait_attached();
    let mut read_to = 0;
    let mut reports = |tracer: &mut Tracer, is_enough: &dyn Fn(&str) -> bool| {
        for _ in 0..400 {
            tracer.wait_note(|line| line.contains("report over"));
            let said = fs::read_to_string(&file).expect("reports").split_off(read_to);
            if is_enough(&said) {
                read_to += said.len();
                return said;
            }
        }
        panic!("{name}: {}", fs::read_to_string(&file).expect("reports").split_off(read_to));
    };
    for size in [33, 200, 1000] {
        tell(&mut target, &format!("leak 2500 {size}"));
    }
    // The second one in which nothing has grown.
    let said = reports(&mut tracer, &|said| said.matches("\tmemory: ").count() >= 4);
    assert!(said.contains(" outstanding, ") && !said.contains(NO_LEAK), "{name}: {said}");
    tell(&mut target, "fragments 150000 200");
    let said = reports(&mut tracer, &|said| said.contains(NO_LEAK));
    let line = said.lines().find(|line| line.starts_with(NO_LEAK)).expect("it is there");
    println!("{name}: {line}");
    let wanted = format!(" MB or more are free inside {name} or its own (fragmentation");
    let (free, _) = line.trim_start_matches(NO_LEAK).split_once(&wanted).unwrap_or_else(|| panic!("{line}"));
    let free: f64 = free.parse().expect("megabytes");
    assert!((7.0..=25.0).contains(&free), "15 MB, less what the others may be rounded up by: {line}");
    tracer.stop();
    fs::remove_file(&file).expect("it was there");
}

#[test]
fn fragmentation_is_no_leak_in_other_allocators() {
    fragments_of(Link::Dynamic, &["-ljemalloc"], "jemalloc");
    fragments_of(Link::Dynamic, &["-Wl,--no-as-needed", "-ltcmalloc_minimal"], "tcmalloc");
    fragments_of(Link::Dynamic, &["-Wl,--no-as-needed", "-lmimalloc"], "mimalloc");
    fragments_of(Link::Musl, &[], "musl");
}

#[test]
fn an_empty_report_says_what_is_attached() {
    let reports = texts(&[]);
    let said = regex(
        r"\tnothing was outstanding at the end: \d+ probes are attached, of glibc; 0 acquired, 0 released\n",
    );
    assert!(said.is_match(&reports));
}

fn regex(pattern: &str) -> regex::Regex {
    regex::Regex::new(pattern).expect("a pattern")
}

/// A mapping made by no function of the C library's, as a Go program or an allocator of its own
/// makes it.
#[test]
fn memory_that_nobody_handed_out_is_said() {
    let reports = texts(&["raw 50000000"]);
    let line = "\tmost growth is not accounted for: 50.0 MB were handed out by no function that is traced";
    assert!(reports.contains(line));
}

/// As many mappings as a process can have: an account takes little, and the target waits for none.
#[test]
fn many_mappings_cost_little() {
    let _alone = alone();
    let mut target = program();
    tell(&mut target, "many 60000");
    let mut tracer = Tracer::attach_with(target.pid(), SECOND);
    let memory = checked(&accounted(&mut tracer), target.pid());
    assert!(memory.unaccounted < 1 << 16, "{memory:?}");
    let notes = tracer.notes();
    let took = notes
        .iter()
        .filter_map(|note| note.split_once(" of memory in ")?.1.strip_suffix(" ms")?.parse().ok());
    let took: Vec<f64> = took.collect();
    println!("{took:?} ms");
    assert!(!took.is_empty() && took.iter().all(|ms| *ms < 2000.0), "{took:?}");
}

/// What a report cannot account for it does not speak of.
#[test]
fn a_part_of_the_blocks_gives_no_account() {
    let _alone = alone();
    let target = program();
    let tracer = Tracer::attach_with(target.pid(), &["-z", "100", NEVER]);
    assert!(tracer.stop_with_report().memory.is_none());
}

const NAMELESS: &str = "seems to have one of its own";

/// What is said of a heap that is not seen: of a stripped program with so many bytes of its own
/// pool when tracing begins, and as many more as it then takes.
fn said_of_own_pool(flags: &[&str], before: &str, more: &str) -> Vec<String> {
    let _alone = alone();
    let program = build("own_pool.c", Link::Dynamic, flags);
    let mut target = Running::start(Command::new(program).arg(before));
    target.expect("READY");
    let mut tracer = Tracer::attach_with(target.pid(), SECOND);
    tell(&mut target, more);
    accounted(&mut tracer);
    let memory = checked(&accounted(&mut tracer), target.pid());
    println!("{flags:?} {before} {more}: {memory:?}");
    let notes = tracer.notes().into_iter().filter(|note| note.contains(NAMELESS));
    notes.inspect(|note| println!("{note}")).collect()
}

#[test]
fn a_heap_that_nothing_names_is_said() {
    for (before, more) in [("8000000", "0"), ("0", "8000000"), ("8000000", "8000000")] {
        let said = said_of_own_pool(&["-s"], before, more);
        assert!(matches!(&said[..], [one] if one.contains("/own_pool-")), "{before} {more}: {said:?}");
    }
    // Nothing but malloc's blocks, of each size; and a program whose functions have names.
    assert_eq!(said_of_own_pool(&["-s"], "0", "0"), [] as [String; 0]);
    assert_eq!(said_of_own_pool(&[], "8000000", "8000000"), [] as [String; 0]);
}
