//! One history for each verdict, as programs make them.

use super::*;

const SECOND: u64 = 1000;

/// What was held at each report, 5 seconds apart, in blocks of 64 bytes.
fn points(counts: impl IntoIterator<Item = u64>) -> Vec<Point> {
    let point =
        |(at, count): (usize, u64)| Point { at_ms: (at as u64 + 1) * 5 * SECOND, bytes: count * 64, count };
    counts.into_iter().enumerate().map(point).collect()
}

fn history(counts: impl IntoIterator<Item = u64>, ages: (u64, u64)) -> History {
    let points = points(counts);
    let watched_ms = points.last().map_or(0, |point| point.at_ms);
    History { calls: None, points, oldest_ms: Some(ages.0), newest_ms: Some(ages.1), watched_ms }
}

/// Calls of which those that were released were held as long as these buckets say.
fn calls(held: u64, lifetimes: &[(usize, u64)]) -> Option<Calls> {
    let mut calls = Calls::default();
    for (bucket, number) in lifetimes {
        calls.lifetimes[*bucket] += number;
        calls.released += number;
        calls.longest_ms = calls.longest_ms.max(1 << bucket);
    }
    calls.acquired = calls.released + held;
    (calls.bytes_acquired, calls.bytes_released) = (calls.acquired * 64, calls.released * 64);
    Some(calls)
}

#[track_caller]
fn assert_verdict(history: &History, kind: VerdictKind, reason: &str) {
    let verdict = judge(history);
    assert_eq!((verdict.kind, verdict.reason.as_str()), (kind, reason));
}

#[test]
fn one_forgotten_in_a_thousand_is_a_leak() {
    let slow =
        History { calls: calls(12, &[(3, 11_900), (11, 90)]), ..history(1..=12, (60 * SECOND, 5 * SECOND)) };
    assert_verdict(
        &slow,
        VerdictKind::Leak,
        "12,002 acquired, 99.9 % released, 99 % within 8 ms, the longest after 2 s; \
         the 12 held are 5 s to 60 s old",
    );
    // Some of what is held may be in use.
    let busy = History { newest_ms: Some(1), ..slow };
    assert!(judge(&busy).reason.ends_with("; of the 12 held the oldest is 60 s old"), "{:?}", judge(&busy));
}

/// A table of a JVM's garbage collector in 5 minutes: one to three are held, for minutes, and all
/// others are released within seconds. It is at its most again and again.
#[test]
fn what_is_at_its_most_again_is_no_leak() {
    let held = [2, 3, 1, 1, 1, 1, 1, 1, 3, 2, 3, 3, 2, 2, 2, 3, 3, 2, 2, 3];
    let table = History { calls: calls(3, &[(12, 103)]), ..history(held, (70 * SECOND, SECOND)) };
    assert_verdict(
        &table,
        VerdictKind::Unknown,
        "97 % of 106 released, the oldest held is 70 s old, and what is held grows no more, or not steadily",
    );
    // One report in which more are held is no growth.
    let held = [9, 12, 12, 10, 12, 10, 11, 12, 12, 10, 12, 10, 10, 11, 17];
    let spike = History { calls: calls(17, &[(12, 672)]), ..history(held, (70 * SECOND, SECOND)) };
    assert_eq!(judge(&spike).kind, VerdictKind::Unknown, "{:?}", judge(&spike));
    // Nor is what a program makes while it warms up.
    let warm =
        History { calls: calls(16, &[(12, 111)]), ..history([3, 5, 6, 9, 12, 16], (49 * SECOND, SECOND)) };
    assert_verdict(&warm, VerdictKind::Growing, "87 % of 127 released, +1.9 KiB/min for 25 s");
    // A leak below what comes and goes is one all the same.
    let noisy = [3, 6, 5, 7, 8, 9, 11, 10, 13];
    let leak = History { calls: calls(13, &[(12, 672)]), ..history(noisy, (70 * SECOND, SECOND)) };
    assert_eq!(judge(&leak).kind, VerdictKind::Leak, "{:?}", judge(&leak));
    // Nor are a few that have come for the first time.
    let few = History {
        calls: calls(4, &[(12, 103)]),
        ..history([1, 1, 1, 2, 2, 2, 3, 3, 4], (70 * SECOND, SECOND))
    };
    assert_verdict(&few, VerdictKind::Growing, "96 % of 107 released, +288 B/min for 40 s");
}

#[test]
fn what_only_grows_is_growing() {
    let queue = history((1..=12).map(|at| at * 1000), (60 * SECOND, 1));
    assert_verdict(&queue, VerdictKind::Growing, "never fell in 12 reports, +750 KiB/min for 55 s");
    let counted = History { calls: calls(12_000, &[]), ..queue };
    assert_verdict(&counted, VerdictKind::Growing, "none of 12,000 released in 60 s, +750 KiB/min for 55 s");
    let hardly = History { calls: calls(12_000, &[(4, 600)]), ..counted };
    assert_verdict(&hardly, VerdictKind::Growing, "4 % of 12,600 released, +750 KiB/min for 55 s");
}

/// The oldest in a queue is never older than what it gave out last, and still it becomes longer.
#[test]
fn a_queue_that_takes_in_more_than_it_gives_out_is_growing() {
    let given_out = || calls(12_000, &[(10, 1000), (12, 2000), (14, 9000)]);
    let held = |counts: [u64; 12]| History { calls: given_out(), ..history(counts, (15 * SECOND, 1)) };
    let backlog = [900, 2000, 3000, 4000, 4900, 6000, 7100, 7000, 9000, 10_000, 11_000, 12_000];
    assert_verdict(
        &held(backlog),
        VerdictKind::Growing,
        "50 % of 24,000 released, the rest piles up, +757 KiB/min for 55 s",
    );
    // It drains at times, it is about to be full, or there are ever more calls.
    let drained = held([4000, 8000, 2000, 6000, 9000, 3000, 7000, 10_000, 4000, 8000, 11_000, 12_000]);
    let filled = held([3000, 5500, 7000, 8500, 9500, 10_200, 10_800, 11_200, 11_500, 11_700, 11_850, 12_000]);
    let ramp = History { oldest_ms: Some(400), ..held(backlog) };
    for in_use in [drained, filled, ramp] {
        assert_eq!(judge(&in_use).kind, VerdictKind::InUse, "{:?}", judge(&in_use));
    }
}

#[test]
fn what_is_kept_and_flat_is_a_cache() {
    let filled = [200, 700, 1024].into_iter().chain([1024; 9]);
    let filled = history(filled, (60 * SECOND, 45 * SECOND));
    assert_verdict(&filled, VerdictKind::Cache, "flat at 1,024 for 45 s");
    let counted = History { calls: calls(1024, &[]), ..filled.clone() };
    assert_verdict(&counted, VerdictKind::Cache, "never released, flat at 1,024 for 45 s");
    // A pool: most come back at once, some stay.
    let pool = History { calls: calls(1024, &[(2, 5000)]), ..filled };
    assert_verdict(&pool, VerdictKind::Cache, "flat at 1,024 for 45 s, 83 % of 6,024 released");
    // What a program makes once when it starts.
    let single = History { calls: calls(1, &[]), ..history([1; 6], (30 * SECOND, 30 * SECOND)) };
    assert_verdict(&single, VerdictKind::Cache, "never released, flat at 1 for 25 s");
}

#[test]
fn what_is_no_older_than_what_was_released_is_in_use() {
    // A ring buffer: each is released when it comes round again.
    let ring = History { calls: calls(256, &[(12, 30_000)]), ..history([256; 12], (4 * SECOND, 1)) };
    assert_verdict(
        &ring,
        VerdictKind::InUse,
        "the oldest held is 4 s old, others were released after up to 4 s",
    );
    // A queue that grows under load and drains.
    let drains = [10, 500, 4000, 9000, 3000, 0, 100, 2000, 8000];
    let queue =
        History { calls: calls(8000, &[(3, 20_000), (14, 9000)]), ..history(drains, (9 * SECOND, 1)) };
    assert_eq!(judge(&queue).kind, VerdictKind::InUse);
    let unseen = History { calls: None, ..queue };
    assert_verdict(&unseen, VerdictKind::InUse, "they become more and fewer, the oldest is 9 s old");
}

#[test]
fn thousands_that_are_released_at_once_are_temporary() {
    let temporary = History { calls: calls(3, &[(0, 40_000), (1, 100)]), ..history([2, 1, 3, 2, 3], (1, 0)) };
    assert_verdict(&temporary, VerdictKind::Temporary, "40,000 of 40,103 released at once");
    // Unless some are forgotten.
    let leak = History { oldest_ms: Some(20 * SECOND), points: points(1..=5), ..temporary };
    assert_eq!(judge(&leak).kind, VerdictKind::Leak);
}

#[test]
fn one_report_is_too_little_to_judge_by() {
    let once = history([40], (3 * SECOND, 1));
    assert_verdict(&once, VerdictKind::Unknown, "watched for 5 s and 1 report only");
    let once = History { calls: calls(40, &[(3, 200)]), ..once };
    assert_verdict(&once, VerdictKind::Unknown, "watched for 5 s and 1 report only");
    assert_eq!(judge(&History::default()).kind, VerdictKind::Unknown);
    // Without ages (-C) nothing can be said of what is held.
    let combined =
        History { oldest_ms: None, newest_ms: None, calls: calls(5, &[(3, 200)]), ..history(1..=5, (0, 0)) };
    assert_eq!(judge(&combined).kind, VerdictKind::Unknown);
}

#[test]
fn parts_of_a_site_are_judged_together() {
    // Each falls when the other one grows: together they are flat.
    let one = history([10, 20, 10, 20, 10, 20], (30 * SECOND, 1));
    let other = History { points: points([20, 10, 20, 10, 20, 10]), newest_ms: None, ..one.clone() };
    let mut both = one.clone();
    both.merge(&other);
    assert_eq!(both.points, points([30; 6]));
    assert_eq!((both.oldest_ms, both.newest_ms, both.calls), (Some(30 * SECOND), Some(1), None));
    assert_verdict(&both, VerdictKind::Cache, "flat at 30 for 25 s");
    // One of them is younger.
    let mut late =
        History { calls: calls(1, &[(0, 5)]), points: points([1; 6])[4..].to_vec(), ..one.clone() };
    late.merge(&History { calls: calls(2, &[(0, 7), (31, 1)]), ..one });
    let counts: Vec<u64> = late.points.iter().map(|point| point.count).collect();
    assert_eq!(counts, [10, 20, 10, 20, 11, 21]);
    let sum = late.calls.expect("both are known");
    assert_eq!((sum.acquired, sum.released, sum.lifetimes[0], sum.lifetimes[31]), (16, 13, 12, 1));
}

#[test]
fn lifetimes_are_read_from_their_buckets() {
    let calls = calls(0, &[(0, 90), (5, 9), (20, 1)]).expect("calls");
    let [half, most, all] = [0.5, 0.99, 1.0].map(|share| calls.lifetime_ms(share));
    assert_eq!((half, most, all), (Some(1), Some(32), Some(1 << 20)));
    assert_eq!(Calls::default().lifetime_ms(0.5), None);
}

#[test]
fn a_share_is_not_rounded_to_all() {
    assert_eq!([99.95, 100.0, 83.9].map(lower_percent), ["99.9 %", "100 %", "83 %"]);
}

#[test]
fn every_kind_has_a_name() {
    for (kind, name) in VerdictKind::ALL {
        assert_eq!((kind.name(), VerdictKind::named(name)), (name, Some(kind)));
    }
}
