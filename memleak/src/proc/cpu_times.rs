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

    /// CPUs that they have kept busy since then, and how long that was.
    pub(crate) fn cpus_since(&self) -> (f64, Duration) {
        let now = Self::of(self.pids.iter().copied());
        let took = now.taken - self.taken;
        let ran = now
            .times
            .into_iter()
            .map(|(thread, time)| time.saturating_sub(self.times.get(&thread).copied().unwrap_or_default()));
        (ran.sum::<Duration>().as_secs_f64() / took.as_secs_f64().max(1e-9), took)
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
