//! Allocators in the forms in which people ship them: linked in, prefixed, without symbols. Each is
//! exact, or a warning says what is missing.

use std::{path::PathBuf, process::Command};

use crate::{
    errors::assert_one_line,
    exact::EVERYTHING,
    guard::alone,
    ledger::{self, Amount},
    process::Running,
    programs::{Link, build, scratch_dir, text},
    report::Report,
    tracer::{MEMLEAK, Tracer, trace_command},
};

/// What a form must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen<'a> {
    /// The report equals the ledger.
    Exactly,
    /// The report cannot, and a warning has these words.
    InPart(&'a str),
}

/// Functions of the C library that keep blocks for each thread: they are no program's own.
const RUNTIMES: [&str; 2] = ["pthread_create", "__cxa_thread_atexit_impl"];

/// Bytes and count of the heap: by the program's ledger, by the report. And what was said.
struct Outcome {
    ledger: (u64, u64),
    report: Report,
    warnings: Vec<String>,
}

fn trace(command: &mut Command) -> Outcome {
    let mut target = Running::start(command);
    target.expect("READY");
    let tracer = Tracer::attach(target.pid());
    target.tell("go");
    let ledger = ledger::hear(&mut target);
    let sum = |sum: (u64, u64), amount: &Amount| (sum.0 + amount.bytes, sum.1 + amount.count.unwrap_or(0));
    let ledger = ledger.values().fold((0, 0), sum);
    let warnings = tracer.notes().into_iter().filter(|note| note.contains("warning: ")).collect();
    let report = tracer.stop_with_report();
    target.tell("end");
    assert!(target.wait_status().success());
    Outcome { ledger, report, warnings }
}

/// Traces the program and compares its ledger with the report, or the warnings with what they must
/// say.
pub(crate) fn check(form: &str, command: &mut Command, expected: Seen<'_>) {
    let outcome = trace(command);
    let told = outcome.report.sum_but("heap", &RUNTIMES);
    let words = outcome.warnings.join("\n");
    println!("{form}: ledger {:?}, report {told:?}, {expected:?}, said: {words}", outcome.ledger);
    assert!(outcome.ledger.1 >= 40, "{form}: {:?}", outcome.ledger);
    match expected {
        Seen::Exactly => {
            assert_eq!(told, outcome.ledger, "{form}: {words}\n{}", outcome.report.describe());
            outcome.report.assert_nothing_lost();
            assert!(
                ["stripped", "no function that frees", "-flto"].iter().all(|word| !words.contains(word)),
                "{form}: {words}"
            );
        }
        Seen::InPart(wanted) => assert!(words.contains(wanted), "{form}: no word of {wanted}: {words}"),
    }
}

const NOTHING_FREES: &str = "je_malloc, but no function that frees";
const JEMALLOC_HIDDEN: &str = "contains jemalloc, but is stripped";

/// Debian has it among clang's run-time libraries, of one version or another.
fn scudo() -> PathBuf {
    let versions =
        std::fs::read_dir("/usr/lib/llvm-14/lib/clang").or_else(|_| std::fs::read_dir("/usr/lib/clang"));
    let versions = versions.expect("clang's run-time libraries: is libclang-rt-dev installed?");
    let library = format!("lib/linux/libclang_rt.scudo_standalone-{}.so", std::env::consts::ARCH);
    let mut found = versions.map(|version| version.expect("a version").path().join(&library));
    found.find(|library| library.exists()).expect("scudo's library: is libclang-rt-dev installed?")
}

#[test]
fn allocators_in_c_programs() {
    let _alone = alone();
    use Link::{Dynamic, Static};
    use Seen::{Exactly, InPart};
    let (tcmalloc, jemalloc) = ("-l:libtcmalloc_minimal.a", "-l:libjemalloc.a");
    let forms: &[(&str, Link, &[&str], Seen<'_>)] = &[
        ("glibc, stripped", Dynamic, &["-s"], Exactly),
        ("glibc, static", Static, &[], Exactly),
        ("a prefixed allocator without free", Dynamic, &["-DPREFIXED"], Exactly),
        ("one that never frees", Dynamic, &["-DPREFIXED", "-DNEVER_FREES"], InPart(NOTHING_FREES)),
        ("tcmalloc linked in", Dynamic, &[tcmalloc], Exactly),
        ("tcmalloc linked in, stripped", Dynamic, &[tcmalloc, "-s"], Exactly),
        ("tcmalloc, static", Static, &[tcmalloc], Exactly),
        ("jemalloc linked in", Dynamic, &["-DJEMALLOC", jemalloc, "-lm", "-ldl"], Exactly),
        (
            "jemalloc linked in, stripped",
            Dynamic,
            &["-DJEMALLOC", jemalloc, "-lm", "-ldl", "-s"],
            InPart(JEMALLOC_HIDDEN),
        ),
        ("jemalloc, shared", Dynamic, &["-DJEMALLOC", "-ljemalloc"], Exactly),
        ("mimalloc, shared", Dynamic, &["-DMIMALLOC", "-lmimalloc"], Exactly),
    ];
    for (form, link, flags, expected) in forms {
        let program = build("allocator_forms.cc", *link, flags);
        check(form, &mut Command::new(program), *expected);
    }
    let program = build("allocator_forms.cc", Dynamic, &[]);
    check("scudo, preloaded", Command::new(program).env("LD_PRELOAD", scudo()), Exactly);
}

/// Nothing tells where its functions are.
#[test]
fn a_stripped_static_program_is_refused() {
    let _alone = alone();
    for link in [Link::Static, Link::StaticPie, Link::Musl] {
        let program = build("one_function.c", link, &["-s"]);
        let output = Command::new(MEMLEAK).args(["--", text(&program), "malloc"]).output().expect("memleak");
        assert_one_line(&output, 1, &["stripped", "debug file"], &format!("{link:?}"));
    }
}

/// Google's tcmalloc as its crate has it, which takes minutes to compile: its words alone.
#[test]
fn googles_tcmalloc_is_known_by_its_words() {
    let _alone = alone();
    let said = |flags: &[&str]| {
        let program =
            build("words.c", Link::Dynamic, &[&[r#"-DWORDS="PARAMETER tcmalloc_a""#][..], flags].concat());
        let output = Command::new(MEMLEAK).args(["--", text(&program)]).output().expect("memleak");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let stripped = said(&["-s"]);
    assert!(stripped.contains("contains tcmalloc, but is stripped: what it allocates"), "{stripped}");
    let whole = said(&[]);
    assert!(!whole.contains("stripped"), "its symbols would say so: {whole}");
}

/// What glibc maps in `free` is its own; what the program maps is not, and neither are its threads'
/// stacks.
#[test]
fn an_arena_that_free_maps_is_the_allocators() {
    const THREADS: usize = 4;
    let _alone = alone();
    let mut target = Running::start(Command::new(build("first_free.c", Link::Dynamic, &[])).arg("4"));
    target.expect("READY");
    let mut tracer = Tracer::attach(target.pid());
    target.tell("go");
    let ledger = ledger::hear(&mut target);
    // A thread's number as an interval is an interval.
    let tasks = std::fs::read_dir(format!("/proc/{}/task", target.pid())).expect("its threads");
    let names = tasks.map(|task| task.expect("a thread").file_name().into_string().expect("a number"));
    let thread = names.filter(|name| *name != target.pid().to_string()).min().expect("a thread");
    let second = Tracer::attach_with(target.pid(), &[&thread]);
    assert_eq!(second.stop().code, 0);
    tracer.running().signal(libc::SIGINT);
    let note = tracer.wait_note(|note| note.contains("mappings that allocators made for themselves"));
    let outcome = tracer.wait();
    assert!(note.contains("left out ") && !note.contains("left out 0 bytes"), "{note}");
    let report = outcome.into_final_report();
    report.assert_equals(&ledger);
    let sites = |wanted: &str| {
        let has = |stack: &&crate::report::Stack| {
            stack.frames.iter().any(|frame| frame.bare_function().starts_with(wanted))
        };
        report.stacks.iter().filter(has).fold((0, 0), |sum, stack| (sum.0 + stack.bytes, sum.1 + stack.count))
    };
    assert_eq!(sites("free"), (0, 0), "{}", report.describe());
    assert_eq!(report.site("site_mmap"), (8192, 1));
    assert_eq!(
        sites("pthread_create").1,
        THREADS as u64 * 2,
        "stacks and their records: {}",
        report.describe()
    );
    target.tell("end");
    assert!(target.wait_status().success());
}

/// A program that another one has replaced itself by, as scripts start servers, is looked at, too.
#[test]
fn an_allocator_in_a_program_that_a_shell_becomes_is_said() {
    let _alone = alone();
    let flags = ["-DJEMALLOC", "-l:libjemalloc.a", "-lm", "-ldl", "-s"];
    let program = build("allocator_forms.cc", Link::Dynamic, &flags);
    let script = format!("exec {} </dev/null", text(&program));
    let output = Command::new(MEMLEAK).args(["--", "sh", "-c", &script]).output().expect("memleak");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(JEMALLOC_HIDDEN), "{said}");
}

fn run(command: &str, arguments: &[&str]) -> String {
    let output =
        Command::new(command).args(arguments).output().unwrap_or_else(|error| panic!("{command}: {error}"));
    assert!(output.status.success(), "{command} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A file that goes with the test, and the folders that were made for it.
struct DebugFile(PathBuf);

impl Drop for DebugFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
        // A folder that has others' files stays.
        self.0.ancestors().skip(1).take(2).for_each(|folder| drop(std::fs::remove_dir(folder)));
    }
}

/// Its symbols are in a section of its own (`.gnu_debugdata`, as distributions add it), or in the
/// debug file of its build id.
#[test]
fn a_stripped_static_program_is_exact_by_its_debug_data() {
    let _alone = alone();
    let full = build("one_function.c", Link::Static, &["-Wl,--build-id=sha1"]);
    let path = |name: &str| scratch_dir().join(format!("{name}-{}", std::process::id()));
    let (stripped, mini, with_mini) = (path("stripped"), path("mini"), path("with-mini"));
    run("strip", &[text(&full), "-o", text(&stripped)]);
    let is_exact = |form: &str, program: &std::path::Path| {
        for function in ["malloc", "free"] {
            let outcome = trace_command(&EVERYTHING, &[text(program), function]);
            assert_eq!(outcome.code, 0, "{form}: {:?}", outcome.ended);
            let truth = ledger::parse(&outcome.ended.stdout);
            assert!(!truth.is_empty(), "{form}");
            outcome.last_report().assert_equals(&truth);
            outcome.last_report().assert_nothing_lost();
        }
    };
    run("objcopy", &["--only-keep-debug", text(&full), text(&mini)]);
    run("xz", &["-f", text(&mini)]);
    let section = format!(".gnu_debugdata={}.xz", text(&mini));
    run("objcopy", &["--add-section", &section, text(&stripped), text(&with_mini)]);
    is_exact(".gnu_debugdata", &with_mini);

    let output = Command::new(MEMLEAK).args(["--", text(&stripped), "malloc"]).output().expect("memleak");
    assert_one_line(&output, 1, &["stripped", "debug file"], "without a debug file");
    let notes = run("readelf", &["-nW", text(&stripped)]);
    let id =
        notes.split("Build ID: ").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("a build id");
    let place = PathBuf::from(format!("/usr/lib/debug/.build-id/{}/{}.debug", &id[..2], &id[2..]));
    std::fs::create_dir_all(place.parent().expect("a folder")).expect("a folder for debug files");
    let debug = DebugFile(place);
    run("objcopy", &["--only-keep-debug", text(&full), text(&debug.0)]);
    is_exact("a debug file", &stripped);
    for file in [stripped, with_mini, mini.with_file_name(format!("{}.xz", text(&mini)))] {
        std::fs::remove_file(file).expect("it was there");
    }
}
