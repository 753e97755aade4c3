//! `-s N` and `--sample-bytes N`: an estimate without bias, and said to be one.

use std::process::Command;

use crate::{
    allocators::ALL_OPERATORS,
    exact::EVERYTHING,
    guard::alone,
    ledger,
    options::sizes,
    process::Running,
    programs::{Link, build},
    tracer::{NEVER, Tracer},
};

/// Blocks that `sizes` acquires at each of two sites, by turns.
const BLOCKS: f64 = 100_000.0;

/// One in N of a pattern with period 2, for even N too: neither site is left out or favoured.
/// Samples of one in N taken at random have a standard deviation of sqrt(BLOCKS * (N-1)) blocks of
/// the scaled count at most; six of those is missed once in 500 million runs.
#[test]
fn estimates_are_close_and_no_pattern_is_favoured() {
    let _alone = alone();
    for rate in [2u64, 10, 64] {
        let mut target = sizes();
        let rate_text = rate.to_string();
        let tracer = Tracer::attach_with(target.pid(), &["-s", &rate_text, "-o", "0", NEVER]);
        target.tell("a");
        target.tell("q");
        ledger::hear(&mut target);
        let report = tracer.stop_with_report();
        assert_eq!(report.sampled, Some(rate));
        let bound = 6.0 * (BLOCKS * (rate as f64 - 1.0)).sqrt();
        for site in ["site_even", "site_odd"] {
            let (bytes, count) = report.site(site);
            assert_eq!(bytes, count * 64, "{site}");
            let off = (count as f64 - BLOCKS).abs();
            assert!(off <= bound, "{site} 1 in {rate}: {count}, off by {off} of {bound}");
        }
        report.assert_sums();
    }
}

/// What is sampled is released, too: nothing stays that is gone.
#[test]
fn sampled_blocks_are_released() {
    let _alone = alone();
    let mut target = sizes();
    let tracer = Tracer::attach_with(target.pid(), &["-s", "3", "-a", "-o", "0", NEVER]);
    for _ in 0..300 {
        target.tell("p"); // acquires three, releases one
        target.expect("TOLD");
    }
    let report = tracer.stop_with_report();
    let sizes: Vec<u64> =
        report.stacks.iter().flat_map(|stack| stack.allocations.iter().flatten()).map(|a| a.size).collect();
    assert!(!sizes.is_empty() && sizes.iter().all(|size| [4321, 77].contains(size)), "{sizes:?}");
}

/// The heading of the text report of `sizes` with these options.
fn heading_with(options: &[&str]) -> String {
    let mut target = sizes();
    let pid = target.pid().to_string();
    let mut tracer = Tracer::start(&[&["-v"], options, &["-o", "0", "-p", &pid, NEVER]].concat());
    tracer.wait_attached();
    target.tell("a");
    target.tell("q");
    ledger::hear(&mut target);
    tracer.stop().ended.stdout[0].clone()
}

#[test]
fn the_heading_says_that_it_is_an_estimate() {
    let _alone = alone();
    let heading = heading_with(&["-s", "10"]);
    assert!(
        heading.ends_with("Top 10 stacks with outstanding allocations (estimated from 1 in 10):"),
        "{heading}"
    );
}

#[test]
fn without_sampling_nothing_is_said_of_it() {
    let _alone = alone();
    let mut target = sizes();
    let tracer = Tracer::attach_with(target.pid(), &["-s", "1", "-o", "0", NEVER]);
    target.tell("s");
    target.tell("q");
    let ledger = ledger::hear(&mut target);
    let report = tracer.stop_with_report();
    assert_eq!(report.sampled, None);
    report.assert_equals(&ledger);
}

/// Blocks of 64 bytes, one sample in 4 KiB or 64: neither of two sites is favoured, and what is off
/// is no more than the margin says. Margins are 1.96 standard deviations; three of them are missed
/// once in 200 million runs.
#[test]
fn samples_of_bytes_are_within_their_margin() {
    let _alone = alone();
    for (mean, said) in [("4K", 4096), ("64K", 65_536)] {
        let mut target = sizes();
        let tracer = Tracer::attach_with(target.pid(), &["--sample-bytes", mean, "-o", "0", NEVER]);
        target.tell("a");
        target.tell("q");
        ledger::hear(&mut target);
        let report = tracer.stop_with_report();
        assert_eq!((report.sample_bytes, report.sampled), (Some(said), None));
        for site in ["site_even", "site_odd"] {
            let (bytes, margin) = (report.site(site).0 as f64, report.margin_of(site));
            assert!(margin > 0.0 && margin < bytes, "{site}: {bytes} +-{margin}");
            assert!((bytes - BLOCKS * 64.0).abs() <= 3.0 * margin, "{site}: {bytes} +-{margin}");
        }
        let (bytes, margin) = (report.totals.bytes as f64, report.margin_bytes.expect("a margin") as f64);
        assert!((bytes - BLOCKS * 128.0).abs() <= 3.0 * margin, "{bytes} +-{margin}");
    }
}

/// Functions of the allocator call each other, and calls that are skipped are not seen to return:
/// nothing is counted for each of them that a call goes through. What is counted as acquired and
/// not as released is what is held.
#[test]
fn samples_of_bytes_are_taken_once_a_call() {
    let _alone = alone();
    let program = build("known_leaks.cc", Link::Dynamic, &ALL_OPERATORS);
    for library in [None, Some("libjemalloc.so.2"), Some("libtcmalloc_minimal.so.4")] {
        let mut command = Command::new(&program);
        command.args(["2", "100000", "7"]);
        command.envs(library.map(|library| ("LD_PRELOAD", library)));
        let mut target = Running::start(&mut command);
        target.expect("READY");
        let options = [&["--sample-bytes", "1K"], &EVERYTHING[..]].concat();
        let tracer = Tracer::attach_with(target.pid(), &options);
        target.tell("go");
        let ledger = ledger::hear(&mut target);
        let report = tracer.stop_with_report();
        target.tell("end");
        for ((site, _), held) in ledger.iter().filter(|((_, resource), _)| resource == "heap") {
            let (bytes, margin) = (report.site(site).0 as f64, report.margin_of(site));
            let off = (bytes - held.bytes as f64).abs();
            assert!(off <= 3.0 * margin + 1.0, "{library:?} {site}: {bytes} +-{margin}, held {held:?}");
        }
        let totals = report.totals;
        let held = totals.acquired as f64 - totals.released as f64;
        assert!((held - totals.count as f64).abs() <= 2.0 + totals.count as f64 / 100.0, "{totals:?}");
    }
}

/// What is large is always captured, and exactly.
#[test]
fn what_is_much_larger_than_a_sample_is_exact() {
    let _alone = alone();
    let mut target = sizes();
    let tracer = Tracer::attach_with(target.pid(), &["--sample-bytes", "1K", "-o", "0", NEVER]);
    target.tell("l");
    target.tell("q");
    let ledger = ledger::hear(&mut target);
    let report = tracer.stop_with_report();
    assert_eq!(report.margin_bytes, Some(0));
    report.assert_equals(&ledger);
}

#[test]
fn the_heading_says_what_goes_to_a_sample() {
    let _alone = alone();
    let heading = heading_with(&["--sample-bytes", "4K"]);
    assert!(
        heading.contains(" (estimated from 1 in 4096 bytes, +-") && heading.ends_with(" bytes in all):"),
        "{heading}"
    );
}
