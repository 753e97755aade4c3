//! CPU time of processes and threads.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs,
    time::{Duration, Instant},
};

/// CPU time of processes so far, by thread: to the nanosecond, unlike those of /proc/PID/stat.
pub(crate) struct CpuTimes {
    times: HashMap<(u32, OsString), Duration>,
    pids: Vec<u32>,
    taken: Instant,
}

impl CpuTimes {
    pub(crate) fn of(pids: impl IntoIterator<Item = u32>) -> Self {
        let pids: Vec<u32> = pids.into_iter().collect();
        let times = pids.iter().flat_map(|pid| thread_times(*pid).map(|(tid, time)| ((*pid, tid), time)));
        Self { times: times.collect(), taken: Instant::now(), pids }
    }

    /// CPUs that they have kept busy until now, and how long that was.
    pub(crate) fn cpus_so_far(&self) -> (f64, Duration) {
        Self::of(self.pids.iter().copied()).cpus_since(self)
    }

    /// CPUs that they have kept busy since `before`, and how long that was.
    pub(crate) fn cpus_since(&self, before: &Self) -> (f64, Duration) {
        let took = self.taken - before.taken;
        (self.ran_since(before).as_secs_f64() / took.as_secs_f64().max(1e-9), took)
    }

    /// How long they have run since `before`.
    pub(crate) fn ran_since(&self, before: &Self) -> Duration {
        let ran = self
            .times
            .iter()
            .map(|(thread, time)| time.saturating_sub(before.times.get(thread).copied().unwrap_or_default()));
        ran.sum()
    }
}

/// CPU time of the calling thread so far.
pub(crate) fn own_thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for the call.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// CPU time of each thread of a process (Documentation/scheduler/sched-stats.rst).
fn thread_times(pid: u32) -> impl Iterator<Item = (OsString, Duration)> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        let ran = text.split_ascii_whitespace().next()?.parse().ok()?;
        Some((thread.file_name(), Duration::from_nanos(ran)))
    })
}
