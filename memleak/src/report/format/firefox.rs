//! Firefox Profiler's processed profile (profiler.firefox.com): a thread of allocations for each
//! process, with their addresses, so that its view of retained memory shows what is held.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use fxprof_processed_profile::{
    CategoryHandle, CpuDelta, Frame as Place, FrameFlags, FrameInfo, ProcessHandle, Profile,
    SamplingInterval, StackHandle, ThreadHandle, Timestamp,
};

use super::{Format, Kind, Options, blocks::blocks_of, kind::FileForm};
use crate::{
    report::{
        model::{Report, StackReport},
        names::name,
    },
    snapshot::KERNEL_PID,
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
    let profile = Profile::new("memleak", began.into(), SamplingInterval::from_millis(1));
    let mut tracks = Tracks { profile, report, full_names, threads: BTreeMap::new() };
    let pids = report.target.pids.iter().map(|pid| Some(*pid));
    for pid in pids.chain(report.target.pids.is_empty().then_some(Some(KERNEL_PID))) {
        tracks.thread(pid);
    }
    tracks.add_blocks();
    let Tracks { mut profile, threads, .. } = tracks;
    let first = report.target.pids.first().copied().unwrap_or(KERNEL_PID);
    if let Some((process, _)) = threads.get(&Some(first)) {
        let counter = profile.add_counter(*process, "malloc", "Memory", "What is outstanding");
        let mut before = 0i64;
        for moment in &report.moments {
            let now = i64::try_from(moment.bytes).unwrap_or(i64::MAX);
            profile.add_counter_sample(counter, at(moment.at_ms), (now - before) as f64, 1);
            before = now;
        }
    }
    serde_json::to_writer(&mut *out, &profile)?;
    out.write_all(b"\n")
}

fn at(ms: u64) -> Timestamp {
    Timestamp::from_nanos_since_reference(ms.saturating_mul(1_000_000))
}

/// The profile, and a thread of each process in it.
struct Tracks<'a> {
    profile: Profile,
    report: &'a Report,
    full_names: bool,
    /// By PID; `None` stands for processes that ended long ago.
    threads: BTreeMap<Option<u32>, (ProcessHandle, ThreadHandle)>,
}

impl Tracks<'_> {
    /// The thread of a process, which may be new.
    fn thread(&mut self, pid: Option<u32>) -> ThreadHandle {
        if let Some((_, thread)) = self.threads.get(&pid) {
            return *thread;
        }
        let name =
            pid.map_or_else(|| "processes that have ended".into(), |pid| self.report.target.comm_of(pid));
        let number = pid.unwrap_or(0);
        let process = self.profile.add_process(&name, number, at(0));
        let thread = self.profile.add_thread(process, number, at(0), true);
        self.profile.set_thread_name(thread, &name);
        // The viewer shows the range of the samples; there are no others. Those that are idle it
        // hides, unless they are named here.
        for ms in [0, self.report.elapsed_ms] {
            self.profile.add_sample(thread, at(ms), None, CpuDelta::ZERO, 1);
        }
        self.profile.add_initial_visible_thread(thread);
        self.threads.insert(pid, (process, thread));
        thread
    }

    /// All that is held, in the order of births.
    fn add_blocks(&mut self) {
        let report = self.report;
        let mut births = Vec::new();
        for stack in report.stacks.iter().filter(|stack| stack.resource.has_size) {
            let mut handles: BTreeMap<Option<u32>, (ThreadHandle, Option<StackHandle>)> = BTreeMap::new();
            for block in blocks_of(stack) {
                let (thread, handle) = *handles.entry(block.pid).or_insert_with(|| {
                    let thread = self.thread(block.pid);
                    (thread, self.stack(thread, stack))
                });
                births.push((report.elapsed_ms.saturating_sub(block.age_ms), thread, handle, block.size));
            }
        }
        births.sort_by_key(|(ms, ..)| *ms);
        for (number, (ms, thread, handle, size)) in births.into_iter().enumerate() {
            // Any address that no other block has: those of several processes may be equal.
            let address = number as u64 + 1;
            let size = i64::try_from(size).unwrap_or(i64::MAX);
            self.profile.add_allocation_sample(thread, at(ms), handle, address, size);
        }
    }

    fn stack(&mut self, thread: ThreadHandle, stack: &StackReport) -> Option<StackHandle> {
        let frames: Vec<FrameInfo> = self
            .report
            .frames_of(stack)
            .rev()
            .map(|frame| FrameInfo {
                frame: Place::Label(self.profile.intern_string(&name(frame, self.full_names))),
                category_pair: CategoryHandle::OTHER.into(),
                flags: FrameFlags::empty(),
            })
            .collect();
        self.profile.intern_stack_frames(thread, frames.into_iter())
    }
}
