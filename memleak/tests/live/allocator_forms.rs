//! Allocators in the forms in which people ship them: linked in, prefixed, without symbols. Each is exact, or a warning
//! says what is missing.

use std::process::Command;

use crate::{
    guard::alone,
    ledger::{self, Amount},
    process::Running,
    programs::{Link, build},
    report::Report,
    tracer::Tracer,
};

/// What a form must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// The report equals the ledger.
    Exactly,
    /// The report cannot, and a warning has these words.
    InPart(&'static str),
}

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

fn check(form: &str, command: &mut Command, expected: Seen) {
    let outcome = trace(command);
    let told = outcome.report.sum("heap");
    let words = outcome.warnings.join("\n");
    println!("{form}: ledger {:?}, report {told:?}, {expected:?}, said: {words}", outcome.ledger);
    assert!(outcome.ledger.1 >= 40, "{form}: {:?}", outcome.ledger);
    match expected {
        Seen::Exactly => {
            assert_eq!(told, outcome.ledger, "{form}: {words}\n{}", outcome.report.describe());
            outcome.report.assert_nothing_lost();
            assert!(
                !words.contains("stripped") && !words.contains("no function that frees"),
                "{form}: {words}"
            );
        }
        Seen::InPart(wanted) => assert!(words.contains(wanted), "{form}: no word of {wanted}: {words}"),
    }
}

const NOTHING_FREES: &str = "je_malloc, but no function that frees";
const JEMALLOC_HIDDEN: &str = "contains jemalloc, but is stripped";

#[test]
fn allocators_in_c_programs() {
    let _alone = alone();
    use Link::{Dynamic, Static};
    use Seen::{Exactly, InPart};
    let (tcmalloc, jemalloc) = ("-l:libtcmalloc_minimal.a", "-l:libjemalloc.a");
    let forms: &[(&str, Link, &[&str], Seen)] = &[
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
}
