//! What takes long: a while of everything at once, very many children, a tracer that is killed
//! again and again. Short here; `cargo xtask soak` asks for more by these variables.

use std::{
    env, fs,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    guard::{alone, assert_nothing_left, kernel_complaints, new_complaints, status_kb},
    moments::assert_right_at_its_moment,
    process::{Running, code, rounds, wait_for_end},
    programs::{Link, build, scratch_dir, text},
    report::Report,
    tracer::{MEMLEAK, NEVER, Tracer},
};

/// How much of something there is to be: by a variable, or few.
fn amount(variable: &str, usual: u64) -> u64 {
    env::var(variable).ok().and_then(|amount| amount.parse().ok()).unwrap_or(usual)
}

/// Memory may grow by 5 % and 2 MB from early on to the end: what is kept has its limits, and all
/// have been reached.
fn assert_flat(early_kb: u64, late_kb: u64) {
    println!("memory: {early_kb} kB early, {late_kb} kB in the end");
    assert!(late_kb * 100 <= early_kb * 105 + 200_000, "{early_kb} kB has become {late_kb} kB");
}

/// Children, libraries, commits into a reservation, signals on alternate stacks; and of 100 reports
/// each is right.
#[test]
fn a_mixed_load() {
    const REPORTS: usize = 100;
    const RESERVED: u64 = 64 << 20;
    let seconds = amount("MEMLEAK_SOAK_SECONDS", 12);
    let _alone = alone();
    let before = kernel_complaints();
    let library = build("site_library.c", Link::Library, &["-DSITE=site_loaded"]);
    let program = build("busy.c", Link::Dynamic, &["-pthread", "-ldl"]);
    // 4 threads that make 50 calls in 4 ms or more.
    let calls = (seconds * 15_000 + 400_000).to_string();
    let mut target =
        Running::start(Command::new(program).args(["4", "1000", &calls, "4000", text(&library)]));
    target.expect("READY");
    let interval = (seconds as f64 / REPORTS as f64).to_string();
    let mut tracer = Tracer::attach_with(target.pid(), &["-o", "0", "-T", "100000", &interval]);
    target.tell("go");
    target.expect("FILLED");
    target.tell("go");
    tracer.wait_report(|report| report.site("site_committed").1 > 0);
    let (mut reports, mut early) = (Vec::with_capacity(REPORTS), 0);
    for number in 0..REPORTS {
        reports.push(tracer.wait_report(|_| true));
        if number == REPORTS / 5 {
            early = status_kb(tracer.running().pid(), "VmRSS");
        }
    }
    let late = status_kb(tracer.running().pid(), "VmRSS");
    target.tell("stop");
    target.expect("DONE");
    for report in &reports {
        report.assert_nothing_lost();
        assert_right_at_its_moment(&mut target, report);
        assert_eq!(report.site("site_standing").1, 1000);
        let reserved = report.site("site_reserved").0 + report.site("site_committed").0;
        assert_eq!(reserved, RESERVED, "{}", report.describe());
        assert!(
            report.site("site_in_handler").1 <= 4 && report.site("site_loaded").1 <= 1,
            "{}",
            report.describe()
        );
    }
    tracer.stop_with_report().assert_nothing_lost();
    target.tell("end");
    assert!(target.wait_status().success());
    assert_flat(early, late);
    assert_eq!(new_complaints(&before), [] as [String; 0]);
}

/// Each child leaks 1000 bytes and ends: all are traced or counted, and the tracer's memory does
/// not grow with them.
#[test]
fn very_many_children() {
    let children = amount("MEMLEAK_SOAK_CHILDREN", 3000);
    let _alone = alone();
    let program = build("life.c", Link::Dynamic, &[]);
    let forks = children.to_string();
    let mut tracer =
        Tracer::start(&["--json", "--follow-forks", "-o", "0", "1", "--", text(&program), "forks", &forks]);
    let began = Instant::now();
    let (mut early, mut late) = (0, 0);
    let is_early = |report: &Report| report.totals.count * 10 >= children;
    let last = loop {
        let report = tracer.wait_report(|_| true);
        if report.is_final {
            break report;
        }
        late = status_kb(tracer.running().pid(), "VmRSS");
        if early == 0 && is_early(&report) {
            early = late;
        }
    };
    let (held, lost) = (last.sum("heap"), last.lost["processes"]);
    println!("{children} children in {:?}: {} traced, {lost} lost", began.elapsed(), held.1);
    assert!(held.1 <= children && held.1 + lost >= children, "{}", last.describe());
    assert_eq!(held.0, 1000 * held.1);
    assert_flat(early, late);
    assert_eq!(tracer.wait().code, 0);
}

/// Programs that translate others, started again and again: none may find our breakpoints in the
/// code that it translates.
struct Translators(Arc<AtomicBool>, JoinHandle<u64>);

impl Translators {
    fn start() -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let end = ends.clone();
        let thread = thread::spawn(move || {
            let mut runs = 0;
            while !end.load(Ordering::Relaxed) {
                for command in
                    [&["valgrind", "-q", "--tool=none", "/bin/true"][..], &["qemu-x86_64", "/bin/true"]]
                {
                    let output =
                        Command::new(command[0]).args(&command[1..]).output().expect("it is installed");
                    assert!(output.status.success(), "{command:?}: {output:?}");
                    runs += 1;
                }
            }
            runs
        });
        Self(ends, thread)
    }

    /// Gives how many there were.
    fn end(self) -> u64 {
        self.0.store(true, Ordering::Relaxed);
        self.1.join().expect("each has ended well")
    }
}

/// A folder with a project to build: jemalloc's, which the crate brings along, or one of forty
/// small files.
fn project() -> PathBuf {
    let folder = scratch_dir().join("project");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("making a folder");
    if env::var_os("MEMLEAK_SOAK_BUILD").is_some_and(|name| name == "jemalloc") {
        let script = "crate=$(echo ${CARGO_HOME:-$HOME/.cargo}/registry/src/*/tikv-jemalloc-sys-*) && \
                      cp -r $crate/jemalloc/. . && cp $crate/configure/configure . && sh ./configure -q";
        let status =
            Command::new("sh").args(["-c", script]).current_dir(&folder).stdout(Stdio::null()).status();
        assert!(
            status.expect("sh").success(),
            "jemalloc's sources: run the live tests of rust_allocators first"
        );
        return folder;
    }
    for number in 0..40 {
        let text =
            format!("#include <stdio.h>\nint f{number}(void) {{ return printf(\"%d\", {number}); }}\n");
        fs::write(folder.join(format!("f{number}.c")), text).expect("written");
    }
    let rules = "all: $(patsubst %.c,%.o,$(wildcard *.c))\n\tar rcs all.a $^\nclean:\n\trm -f *.o all.a\n";
    fs::write(folder.join("Makefile"), rules).expect("written");
    folder
}

#[test]
fn a_build_with_others_beside_it() {
    let _alone = alone();
    let (folder, reports) = (project(), scratch_dir().join("build-reports"));
    let make = |target: &[&str]| {
        let begin = Instant::now();
        let output = Command::new("make").args(["-s", "-j4", "-C", text(&folder)]).args(target).output();
        let output = output.expect("make");
        assert!(output.status.success(), "{output:?}");
        begin.elapsed()
    };
    let alone = make(&[]);
    make(&["clean"]);
    let translators = Translators::start();
    let begin = Instant::now();
    let arguments = ["--json", "--follow-forks", "-o", "0", "-T", "3", "--output", text(&reports), "2", "--"];
    let ended = Running::start(Command::new(MEMLEAK).args(arguments).args([
        "make",
        "-s",
        "-j4",
        "-C",
        text(&folder),
    ]))
    .end();
    let traced = begin.elapsed();
    let runs = translators.end();
    assert_eq!(code(ended.status), 0, "{ended:?}");
    let lines = fs::read_to_string(&reports).expect("the reports");
    let report = Report::parse(lines.lines().last().expect("a report"));
    println!(
        "make -j4: {alone:?} alone, {traced:?} traced; acquired {}, lost {:?}; {runs} programs beside it",
        report.totals.acquired, report.lost
    );
    assert!(report.totals.acquired > 10_000 && runs >= 2, "{}", report.describe());
    make(&["clean"]);
}

/// Kills tracers at moments of attach, run and detach, one after the other, beside children and
/// without them.
#[test]
fn killed_again_and_again() {
    let kills = amount("MEMLEAK_SOAK_KILLS", 12);
    let _alone = alone();
    let before = kernel_complaints();
    let program = build("life.c", Link::Dynamic, &[]);
    let mut target = Running::start(Command::new(&program).arg("for-ever"));
    target.expect("READY");
    target.tell("go");
    let pid = target.pid().to_string();
    for kill in rounds(kills as usize) {
        let follow: &[&str] = if kill % 2 == 0 { &["--follow-forks"] } else { &[] };
        let mut tracer =
            Tracer::start(&[&["--json", "-v", "-o", "0", "-p", &pid], follow, &[NEVER]].concat());
        // Up to a second after the start, in an order that is no order; of every third one the end
        // has begun.
        let moment = kill * 389 % 1000;
        wait_for_end(tracer.running().pid(), Duration::from_millis(moment));
        if kill % 3 == 0 {
            tracer.running().signal(libc::SIGTERM);
            wait_for_end(tracer.running().pid(), Duration::from_millis(kill * 37 % 200));
        }
        tracer.running().signal(libc::SIGKILL);
        tracer.running().wait_status();
        assert_nothing_left();
        // It goes on, and its children end well.
        for _ in 0..3 {
            target.expect_line("child", |line| line.starts_with("child "));
        }
    }
    let report = {
        let mut tracer = Tracer::attach_with(target.pid(), &["--follow-forks", "-o", "0", "0.5"]);
        tracer.wait_report(|report| report.totals.count > 10)
    };
    assert_eq!(report.totals.bytes, 10 * report.totals.count, "{}", report.describe());
    let complaints = new_complaints(&before);
    println!("{kills} kills: {} lines of the kernel's", complaints.len());
    // Before 6.11 links are made by ourselves, and a breakpoint can stay behind (maker.rs).
    let version = aya::util::KernelVersion::current().expect("the kernel's version");
    let is_excused =
        |line: &String| version < aya::util::KernelVersion::new(6, 11, 0) && line.contains("leaking uprobe");
    assert!(complaints.iter().all(is_excused), "{complaints:?}");
    assert!(fs::metadata(format!("/proc/{pid}")).is_ok());
}
