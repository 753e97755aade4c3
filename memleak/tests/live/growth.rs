//! `--growth`: pages of memory by what touched them first, and only those that are still there.

use std::{fs, process::Command};

use crate::{
    exact::EVERYTHING,
    guard::alone,
    ledger,
    process::Running,
    programs::{Link, build},
    report::Report,
    tracer::{Tracer, trace_command},
};

const PAGE: u64 = 4096;
/// Pages that a site may have besides: of the stack, and of the program's own data.
const FEW: u64 = 4 * PAGE;

/// Bytes of memory that are a process's own: what the kernel says.
fn anonymous(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("its memory");
    let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).expect("a line of it");
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kilobytes << 10
}

fn grow(link: Link) -> (Report, ledger::Ledger, u64) {
    let mut target = Running::start(&mut Command::new(build("growth.c", link, &[])));
    target.expect("READY");
    let before = anonymous(target.pid());
    let options = ["--growth", "-o", "0", "-T", "100000", "0.5"];
    let mut tracer = Tracer::attach_with(target.pid(), &options);
    target.tell("go");
    target.expect("MOVED");
    // What is touched where the pages were is told from them once their move was heard of.
    tracer.fresh_report();
    target.tell("go");
    let ledger = ledger::hear(&mut target);
    let grown = anonymous(target.pid()) - before;
    let report = tracer.stop_with_report();
    target.tell("end");
    assert!(target.wait_status().success());
    (report, ledger, grown)
}

/// Each site has the pages that it has touched and that are still there, all of them together are
/// what the kernel says that the process has grown by.
fn pages_are_those_that_are_there(link: Link) {
    let _alone = alone();
    let (report, ledger, grown) = grow(link);
    let sites = [
        "site_whole",
        "site_half",
        "site_unmapped",
        "site_gone",
        "site_read",
        "site_break",
        "site_moved",
        "site_where_it_was",
        "site_huge",
    ];
    for site in sites {
        let held = ledger.get(&(site.to_owned(), "growth".to_owned())).map_or(0, |amount| amount.bytes);
        let (bytes, _) = report.site(site);
        assert!(bytes >= held && bytes <= held + FEW, "{site}: {bytes}, held {held}\n{}", report.describe());
    }
    let off = report.totals.bytes.abs_diff(grown);
    assert!(off <= 4 * FEW, "{} for {grown}\n{}", report.totals.bytes, report.describe());
    assert!(report.stacks.iter().all(|stack| stack.resource == "growth" && !stack.truncated));
    report.assert_nothing_lost();
}

#[test]
fn pages_are_those_that_are_there_in_a_program_with_shared_libraries() {
    pages_are_those_that_are_there(Link::Dynamic);
}

#[test]
fn pages_are_those_that_are_there_in_a_static_program() {
    pages_are_those_that_are_there(Link::Static);
}

/// No function is probed for it, and a program is seen from its first instruction.
#[test]
fn a_command_is_seen_from_its_beginning() {
    let _alone = alone();
    let options = [&["--growth", "-v"], &EVERYTHING[..]].concat();
    let outcome = trace_command(
        &options,
        &["/bin/sh", "-c", "x=$(head -c 3000000 /dev/zero | tr '\\0' a); echo ${#x}"],
    );
    assert_eq!(outcome.code, 0, "{:?}", outcome.ended);
    assert_eq!(outcome.ended.stdout.first().map(String::as_str), Some("3000000"));
    assert!(outcome.last_report().totals.bytes >= 3_000_000, "{}", outcome.last_report().describe());
}
