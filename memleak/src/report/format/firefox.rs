//! Firefox Profiler's processed profile (profiler.firefox.com): a thread of allocations for each
//! process, with their addresses, so that its view of retained memory shows what is held.

use std::io::{self, Write};

use fxprof_processed_profile::{
    CategoryHandle, CpuDelta, Frame as Place, FrameFlags, FrameInfo, Profile, SamplingInterval, ThreadHandle,
    Timestamp,
};

use super::{Format, Kind, Options, blocks::blocks_of, kind::FileForm};
use crate::report::{
    model::{Report, StackReport},
    names::name,
};

/// `--firefox`.
pub const KIND: Kind = Kind { name: "firefox", has_events: false, new };

fn new(options: &Options) -> Box<dyn Format> {
    FileForm::boxed(options, true, |report, options, out| {
        write_firefox(report, options.style.full_names, out)
    })
}

/// Writes a report.
pub fn write_firefox(report: &Report, full_names: bool, out: &mut dyn Write) -> io::Result<()> {
    let began =
        report.time.checked_sub(std::time::Duration::from_millis(report.elapsed_ms)).unwrap_or(report.time);
    // A clock that has never been set; the form has nothing before.
    let began = began.max(std::time::UNIX_EPOCH);
    let mut profile = Profile::new("memleak", began.into(), SamplingInterval::from_millis(1));
    let pid = report.target.pids.first().copied().unwrap_or(0);
    let at = |ms: u64| Timestamp::from_nanos_since_reference(ms.saturating_mul(1_000_000));
    let process = profile.add_process(&report.target.comm, pid, at(0));
    let thread = profile.add_thread(process, pid, at(0), true);
    profile.set_thread_name(thread, &report.target.comm);
    // The viewer shows the range of the samples; there are no others.
    for ms in [0, report.elapsed_ms] {
        profile.add_sample(thread, at(ms), None, CpuDelta::ZERO, 1);
    }
    let mut births = Vec::new();
    for stack in report.stacks.iter().filter(|stack| stack.resource.has_size) {
        let handle = intern(&mut profile, thread, report, stack, full_names);
        for (size, age_ms) in blocks_of(stack) {
            births.push((report.elapsed_ms.saturating_sub(age_ms), handle, size));
        }
    }
    births.sort_by_key(|(ms, ..)| *ms);
    for (number, (ms, handle, size)) in births.into_iter().enumerate() {
        // Any address that no other block has: those of several processes may be equal.
        let address = number as u64 + 1;
        profile.add_allocation_sample(
            thread,
            at(ms),
            handle,
            address,
            i64::try_from(size).unwrap_or(i64::MAX),
        );
    }
    let counter = profile.add_counter(process, "malloc", "Memory", "What is outstanding");
    let mut before = 0i64;
    for moment in &report.moments {
        let now = i64::try_from(moment.bytes).unwrap_or(i64::MAX);
        profile.add_counter_sample(counter, at(moment.at_ms), (now - before) as f64, 1);
        before = now;
    }
    serde_json::to_writer(&mut *out, &profile)?;
    out.write_all(b"\n")
}

fn intern(
    profile: &mut Profile,
    thread: ThreadHandle,
    report: &Report,
    stack: &StackReport,
    full_names: bool,
) -> Option<fxprof_processed_profile::StackHandle> {
    let frames: Vec<FrameInfo> = report
        .frames_of(stack)
        .rev()
        .map(|frame| FrameInfo {
            frame: Place::Label(profile.intern_string(&name(frame, full_names))),
            category_pair: CategoryHandle::OTHER.into(),
            flags: FrameFlags::empty(),
        })
        .collect();
    profile.intern_stack_frames(thread, frames.into_iter())
}
