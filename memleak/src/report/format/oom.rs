//! Who was killed for want of memory, in words.

use jiff::tz::TimeZone;

use super::clock::time_of_day;
use crate::{report::model::Report, words::BinaryBytes};

/// `killed by the OOM killer at 03:12; held 14.1 GiB`, with the process if there are several;
/// nothing if nobody was.
pub(crate) fn oom_lines(report: &Report, zone: &TimeZone) -> Vec<String> {
    let is_alone = report.target.pids.len() <= 1;
    let line = |killed: &crate::report::model::OomKilled| {
        let time = time_of_day(killed.time, zone, "%H:%M");
        let held = report.stacks.iter().flat_map(|stack| &stack.processes);
        let held = held.filter(|process| process.pid == killed.pid).map(|process| process.bytes);
        let held = BinaryBytes(held.fold(0, u64::saturating_add));
        match is_alone {
            true => format!("killed by the OOM killer at {time}; held {held}"),
            false => format!("process {} was killed by the OOM killer at {time}; held {held}", killed.pid),
        }
    };
    report.oom_killed.iter().map(line).collect()
}
