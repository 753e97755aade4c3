//! `--system-calls`: ranges of addresses that no function of the C library has mapped.

use std::process::Command;

use crate::{
    exact::EVERYTHING,
    guard::alone,
    ledger::{self, Ledger},
    process::Running,
    programs::{Link, build},
    report::{Report, Stack},
    tracer::Tracer,
};

fn trace(link: Link, options: &[&str]) -> (Report, Ledger) {
    trace_command(&mut Command::new(build("raw_maps.c", link, &[])), options)
}

fn trace_command(command: &mut Command, options: &[&str]) -> (Report, Ledger) {
    let mut target = Running::start(command);
    target.expect("READY");
    let tracer = Tracer::attach_with(target.pid(), &[options, &EVERYTHING[..]].concat());
    target.tell("go");
    let ledger = ledger::hear(&mut target);
    let report = tracer.stop_with_report();
    target.tell("end");
    (report, ledger)
}

/// The sites that mapped something themselves: exact, with pieces cut off; what malloc has mapped
/// for its blocks is no mapping of theirs.
#[test]
fn raw_calls_and_the_break_are_exact() {
    let _alone = alone();
    for link in [Link::Dynamic, Link::Static] {
        let (report, ledger) = trace(link, &["-r", "heap,mmap", "--system-calls"]);
        for site in ["site_raw", "site_failing", "site_break", "site_block"] {
            let held = |resource: &str| {
                ledger
                    .get(&(site.to_owned(), resource.to_owned()))
                    .map_or((0, 0), |amount| (amount.bytes, amount.count.unwrap_or(0)))
            };
            let expected = (held("mmap").0 + held("heap").0, held("mmap").1 + held("heap").1);
            assert_eq!(report.site(site), expected, "{site}\n{}", report.describe());
        }
        report.assert_nothing_lost();
    }
}

/// Segments of shared memory, by either way: as long as they are, until they are detached.
#[test]
fn attached_segments_are_exact() {
    let _alone = alone();
    for (arguments, options) in
        [(&[][..], &["-r", "mmap"][..]), (&["raw"][..], &["-r", "mmap", "--system-calls"][..])]
    {
        let mut command = Command::new(build("shared_segments.c", Link::Dynamic, &[]));
        let (report, ledger) = trace_command(command.args(arguments), options);
        for site in ["site_attach", "site_removed", "site_over", "site_failing", "site_child"] {
            let held = ledger
                .get(&(site.to_owned(), "mmap".to_owned()))
                .map_or((0, 0), |amount| (amount.bytes, amount.count.unwrap_or(0)));
            assert_eq!(report.site(site), held, "{site} {arguments:?}\n{}", report.describe());
        }
        report.assert_nothing_lost();
    }
}

/// Without the heap, what malloc maps is seen as well.
#[test]
fn an_allocators_own_mappings_are_seen_alone() {
    let _alone = alone();
    let (report, _) = trace(Link::Dynamic, &["-r", "mmap", "--system-calls"]);
    let of_blocks = |stack: &&Stack| stack.site() == Some("site_block") && stack.count == 4;
    let bytes: Vec<u64> = report.stacks.iter().filter(of_blocks).map(|stack| stack.bytes).collect();
    assert_eq!(bytes, [4 * ((1 << 20) + 4096)], "{}", report.describe());
}

/// The C library's functions see none of it.
#[test]
fn raw_calls_are_not_seen_unless_it_is_asked_for() {
    let _alone = alone();
    let (report, _) = trace(Link::Dynamic, &["-r", "mmap"]);
    assert_eq!(report.site("site_raw"), (0, 0), "{}", report.describe());
}
