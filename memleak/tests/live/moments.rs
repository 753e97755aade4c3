//! A report is of one moment, also while the program goes on (spec section 4).

use std::process::Command;

use crate::{
    guard::alone,
    process::Running,
    programs::{Link, build},
    report::Report,
    tracer::Tracer,
};

/// What a program held at most and at least: blocks and bytes.
struct Bounds {
    count: (u64, u64),
    bytes: (u64, u64),
}

/// Compares what a report says of `site_busy` with what the program says. Gives how many calls were
/// in progress, of which nobody can say whether they had done it.
pub(crate) fn assert_right_at_its_moment(target: &mut Running, report: &Report) -> u64 {
    let bounds = ask(target, report.cut_ns, report.cut_ns + report.cut_within_ns);
    let (bytes, count) = report.site("site_busy");
    let is_within = (bounds.count.0..=bounds.count.1).contains(&count);
    assert!(is_within, "{:?}\n{}", bounds.count, report.describe());
    let is_within = (bounds.bytes.0..=bounds.bytes.1).contains(&bytes);
    assert!(is_within, "{:?}\n{}", bounds.bytes, report.describe());
    bounds.count.1 - bounds.count.0
}

/// What `busy` says of a moment.
fn ask(target: &mut Running, from_ns: u64, to_ns: u64) -> Bounds {
    target.tell(&format!("{from_ns} {to_ns}"));
    let line = target.expect_line("bounds", |line| line.split(' ').count() == 4);
    let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().expect("a number")).collect();
    Bounds { count: (numbers[0], numbers[1]), bytes: (numbers[2], numbers[3]) }
}

/// What a run of `busy` is to be.
pub(crate) struct BusyRun<'a> {
    /// Threads that are at it.
    pub threads: u64,
    /// Blocks that are held all the time.
    pub standing: u64,
    /// Calls that a thread makes at most.
    pub calls: u64,
    /// Options of the tracer, and its interval.
    pub options: &'a [&'a str],
    /// Reports that are looked at.
    pub reports: u64,
}

impl BusyRun<'_> {
    /// Compares reports of `busy` at work with what it says of their moments. Gives how many calls
    /// were in progress in all of them, and what the tracer noted.
    pub(crate) fn assert_right(&self) -> (u64, Vec<String>) {
        let program = build("busy.c", Link::Dynamic, &["-pthread"]);
        let numbers = [self.threads, self.standing, self.calls].map(|number| number.to_string());
        let mut target = Running::start(Command::new(program).args(numbers));
        target.expect("READY");
        let mut tracer =
            Tracer::attach_with(target.pid(), &[&["-o", "0", "-T", "100000"], self.options].concat());
        target.tell("go");
        target.expect("FILLED");
        target.tell("go");
        // Those that are asked for afterwards are the ones of the time at which the threads were at
        // it.
        tracer.wait_report(|report| report.site("site_busy").1 > 0);
        let reports: Vec<Report> = (0..self.reports).map(|_| tracer.wait_report(|_| true)).collect();
        target.tell("stop");
        target.expect("DONE");
        let mut in_progress = 0;
        for report in &reports {
            report.assert_nothing_lost();
            in_progress += assert_right_at_its_moment(&mut target, report);
            assert_eq!(report.site("site_standing").1, self.standing);
            assert_eq!(report.totals.acquired - report.totals.released, report.totals.count);
        }
        (in_progress, tracer.notes())
    }
}

/// Each report of what four threads hold that allocate, resize and free all the time is right at
/// its own moment.
#[test]
fn reports_of_a_busy_program_are_right_at_their_moment() {
    let _alone = alone();
    let run = BusyRun { threads: 4, standing: 50_000, calls: 4_000_000, options: &["0.1"], reports: 50 };
    let (in_progress, _) = run.assert_right();
    // The bounds are tight: a thread has one call in progress at most.
    assert!(in_progress <= run.threads * run.reports, "{in_progress} in {} reports", run.reports);
}
