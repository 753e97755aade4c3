//! Stacks of code without frame pointers: what they have to hold, and gdb's at the same calls
//! beside them.

mod compare;
mod programs;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    guard::alone,
    ledger::{self, Ledger},
    machine::IS_ARM,
    process::Running,
    programs::{Link, build, scratch_dir, text},
    report::{Frame, Report, Stack, Totals},
    tracer::{NEVER, Tracer, trace_command},
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

/// The last report on a command's run, all stacks.
fn traced(options: &[&str], command: &[&str]) -> Report {
    let all = [&["-o", "0", "-T", "100000", NEVER], options].concat();
    trace_command(&all, command).last_report().clone()
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
        // By frame pointers alone a frame is passed over: libstdc++ keeps none, or has its caller's
        // return address and the program keeps none.
        let lost = if IS_ARM { "main" } else { "direct_caller" };
        let report = traced(&["--unwind", "fp"], &[text(&program)]);
        let by_pointer: BTreeMap<_, _> =
            report.stacks.iter().map(|stack| (stack.frames.len(), stack)).collect();
        assert!(
            by_pointer.values().all(|stack| stack.frames.iter().all(|frame| frame.bare_function() != lost)),
            "{level}: the fixture has to need unwinding\n{}",
            report.describe()
        );
    }
}

/// Code of Go's compiler has no tables that know of its switches of stacks: it is crossed by its
/// frame pointers, from one stack to the other. On arm64 none leads back, and the stack says so.
#[test]
fn gos_frame_pointers_lead_from_one_stack_to_another() {
    let _alone = alone();
    let flags = ["-fno-asynchronous-unwind-tables", "-fno-unwind-tables"];
    let program = build("go_like.c", Link::Dynamic, &flags);
    let mut target = Running::start(&mut Command::new(program));
    target.expect("READY");
    let tracer = Tracer::attach_with(target.pid(), &["-o", "0", "-T", "100000", NEVER]);
    target.tell("go");
    let ledger = ledger::hear(&mut target);
    let report = tracer.stop_with_report();
    if IS_ARM {
        return assert_cut_at_the_switch(&report, ledger);
    }
    report.assert_equals(&ledger);
    report.assert_nothing_lost();
    // The function that switches has no frame record, so its caller's frame is passed over.
    let there = stack_through(&report, "site_there");
    assert_eq!(there[..4], ["allocate", "call_on_other_stack", "site_there", "main"], "{there:?}");
    assert_eq!(there.last().map(String::as_str), Some("_start"), "{there:?}");
}

/// What was acquired on the other stack is under two frames, cut, and counted as such; the rest is
/// whole.
fn assert_cut_at_the_switch(report: &Report, mut ledger: Ledger) {
    let there = ledger.remove(&("site_there".to_owned(), "heap".to_owned())).expect("it holds blocks");
    let (cut, whole): (Vec<_>, Vec<_>) = report.stacks.iter().cloned().partition(|stack| stack.truncated);
    let [cut] = &cut[..] else { panic!("{}", report.describe()) };
    let functions: Vec<&str> = cut.frames.iter().map(Frame::bare_function).collect();
    assert_eq!(functions, ["allocate", "call_on_other_stack"], "{}", report.describe());
    assert_eq!((cut.bytes, Some(cut.count)), (there.bytes, there.count), "{}", report.describe());
    let (bytes, count) = (report.totals.bytes - cut.bytes, report.totals.count - cut.count);
    let totals = Totals { bytes, count, ..report.totals };
    let lost = report.lost.iter().map(|(name, lost)| (name.clone(), lost - u64::from(name == "cut_stacks")));
    let rest = Report { stacks: whole, totals, lost: lost.collect(), ..report.clone() };
    rest.assert_equals(&ledger);
    rest.assert_nothing_lost();
    let here = stack_through(&rest, "site_here");
    assert_eq!(here[..3], ["allocate", "site_here", "main"], "{here:?}");
    assert_eq!(here.last().map(String::as_str), Some("_start"), "{here:?}");
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

/// Prints how long after the dynamic linker's notices the tables were in place.
fn tell_delays(notes: &[String]) {
    let delay = |line: &String| {
        line.split_once("tables in place ")?.1.split_once(" us after the notice")?.0.parse::<u64>().ok()
    };
    let mut delays: Vec<u64> = notes.iter().filter_map(delay).collect();
    delays.sort_unstable();
    let at = |percent: usize| delays[(delays.len() - 1) * percent / 100];
    assert!(delays.len() > 100, "{} notices", delays.len()); // one reading can answer several
    println!(
        "{} notices, tables after {} us (median), {} us (95 %), {} us (most)",
        delays.len(),
        at(50),
        at(95),
        at(100)
    );
}

/// Each round maps the plugin anew, so that addresses and tables come and go; the stacks that it
/// leaves are whole.
#[test]
fn a_plugin_is_loaded_and_unloaded_a_thousand_times() {
    const ROUNDS: u64 = 1000;
    let _alone = alone();
    let plugin = compile("plugin.so", "gcc", "plugin.c", "-O2 -fomit-frame-pointer -shared -fPIC");
    let program = compile("plugins", "gcc", "plugins.c", "-O2 -fomit-frame-pointer -rdynamic");
    let mut target = Running::start(Command::new(&program).arg(&plugin).arg(ROUNDS.to_string()));
    let tracer = Tracer::attach_with(target.pid(), &["-v", "-o", "0", "-T", "100000", NEVER]);
    target.tell("go");
    target.expect("done");
    let outcome = tracer.stop();
    tell_delays(&outcome.ended.stderr);
    let report = outcome.into_final_report();
    let kept: u64 = report
        .stacks
        .iter()
        .filter(|stack| stack.frames.first().is_some_and(|frame| frame.bare_function() == "keep"))
        .map(|stack| stack.count)
        .sum();
    assert_eq!(kept, 3 * ROUNDS, "{}", report.describe());
    // From the program's own code into the plugin and back out. The plugin's code runs when its
    // tables are in, at once: what was walked before they were goes on by frame pointers, or is cut
    // and says so.
    let whole: u64 = report
        .stacks
        .iter()
        .filter(|stack| {
            let functions: Vec<&str> = stack.frames.iter().map(Frame::bare_function).collect();
            functions.starts_with(&["keep", "plugin_leak", "main"])
                || (functions.starts_with(&["keep", "plugin_starts"]) && functions.contains(&"main"))
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
