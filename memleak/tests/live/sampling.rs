//! `-s N`: an estimate without bias, and said to be one.

use crate::{
    guard::alone,
    ledger,
    options::sizes,
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

#[test]
fn the_heading_says_that_it_is_an_estimate() {
    let _alone = alone();
    let mut target = sizes();
    let pid = target.pid().to_string();
    let mut tracer = Tracer::start(&["-v", "-s", "10", "-o", "0", "-p", &pid, NEVER]);
    tracer.wait_attached();
    target.tell("a");
    target.tell("q");
    ledger::hear(&mut target);
    let outcome = tracer.stop();
    let heading = &outcome.ended.stdout[0];
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
