//! Counts the calls of processes, to say what tracing them costs.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs,
    time::{Duration, Instant},
};

use log::warn;
use tokio::time::sleep;

use super::{
    SessionError,
    price::{COUNTING, DEAR, PriceCheck, TrapCounts, USUAL_TRAP},
    state::{Mode, Session},
    user_mode,
};
use crate::{
    bpf::RunStatistics,
    report::{
        format::{Options, text},
        sink::Sink,
    },
    settings::{Settings, TargetSpec},
    target::process::Process,
};

/// Calls of a process, a second.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rates {
    /// What acquires.
    pub acquired: f64,
    /// What releases.
    pub released: f64,
    /// Traps that they are together.
    pub traps: f64,
    /// CPUs that it keeps busy.
    pub cpus: f64,
    /// Its allocators, in words.
    pub allocators: Vec<String>,
}

/// Counts a process's calls by programs that do nothing. `trap`: what one costs, to know how much
/// slower it is meanwhile.
pub(crate) async fn count(pid: u32, trap: Duration) -> Result<Rates, SessionError> {
    let before = work(pid).await;
    let session = attach(pid, &[TRAPS_ONLY])?;
    let statistics = RunStatistics::begin()
        .map_err(|error| SessionError::System("the kernel does not count runs of programs", error));
    let counted = match &statistics {
        Ok(_) => session.counted(pid).await,
        Err(_) => Ok((TrapCounts::default(), Work::default(), COUNTING)),
    };
    let allocators = session.targets.iter().flat_map(|(_, traced)| &traced.allocators);
    let mut allocators: Vec<String> = allocators.map(ToString::to_string).collect();
    allocators.sort_unstable();
    allocators.dedup();
    end(session);
    statistics?;
    let (runs, during, took) = counted?;
    let rate = |runs: u64| runs as f64 / took.as_secs_f64();
    let in_traps = rate(runs.all) * trap.as_secs_f64();
    let faster = faster_without(in_traps, before.cpus, during);
    Ok(Rates {
        acquired: rate(runs.acquires) * faster,
        released: rate(runs.releases) * faster,
        traps: rate(runs.all) * faster,
        cpus: before.cpus,
        allocators,
    })
}

/// As how many times as many calls a process makes that has no traps, which took `in_traps` CPUs.
fn faster_without(in_traps: f64, before: f64, during: Work) -> f64 {
    // One that waits for something beside the CPU has kept its pace, and took as much longer for
    // it: what is left of it then is the small difference of two large numbers, and says nothing.
    let has_kept_pace = during.cpus - before > in_traps / 2.0;
    if !during.is_bound || has_kept_pace {
        return 1.0;
    }
    let own = (during.cpus - in_traps).max(during.cpus / 20.0);
    if own > 0.0 { (before / own).clamp(1.0, 20.0) } else { 1.0 }
}

/// Programs that do nothing.
pub(crate) const TRAPS_ONLY: &str = "--traps-only";

/// Attaches to a process of ours with these options for as long as `work` takes. Gives also how
/// many traps there were meanwhile.
pub(crate) async fn traced<T>(
    pid: u32,
    options: &[&str],
    work: impl FnOnce() -> T,
) -> Result<(T, u64), SessionError> {
    let session = attach(pid, options)?;
    let done = (|| {
        let _statistics = RunStatistics::begin()
            .map_err(|error| SessionError::System("the kernel does not count runs of programs", error))?;
        let before = session.runs()?.all;
        let done = work();
        Ok((done, session.runs()?.all.saturating_sub(before)))
    })();
    end(session);
    done
}

fn attach(pid: u32, options: &[&str]) -> Result<Session, SessionError> {
    let pid = pid.to_string();
    let arguments = [&["memleak", "-p", &pid], options].concat();
    let settings = Settings::from_args(arguments).map_err(|_| SessionError::Internal)?;
    let sink = Sink::open(None, (text::KIND.new)(&Options::new(1)))?;
    let TargetPid(process) = TargetPid::of(&settings)?;
    let processes = [process];
    let (mode, tracer) = user_mode::load(&settings, &processes)?;
    let mut session = Session::of_processes(settings, sink, mode, tracer);
    for process in processes {
        if let Err(error) = session.trace_running(process) {
            end(session);
            return Err(error);
        }
    }
    Ok(session)
}

/// The one process of such a run.
struct TargetPid(Process);

impl TargetPid {
    fn of(settings: &Settings) -> Result<Self, SessionError> {
        match &settings.target {
            TargetSpec::Pids(pids) => {
                let pid = pids.iter().next().copied().unwrap_or_default();
                Ok(Self(Process::open(pid)?))
            }
            _ => Err(SessionError::Internal),
        }
    }
}

fn end(mut session: Session) {
    session.detach();
}

impl Session {
    fn runs(&self) -> Result<TrapCounts, SessionError> {
        Ok(TrapCounts::of(&self.tracer.program_runs()?))
    }

    /// Traps in a while, what the process has done meanwhile, and how long the while was.
    async fn counted(&self, pid: u32) -> Result<(TrapCounts, Work, Duration), SessionError> {
        let (before, begin) = (self.runs()?, Instant::now());
        let done = work(pid).await;
        Ok((self.runs()?.since(before), done, begin.elapsed()))
    }
}

/// What a process has done over a while.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    /// CPUs that it has kept busy.
    cpus: f64,
    /// Half of that, and more, is of threads that had nothing to wait for but a CPU.
    is_bound: bool,
}

async fn work(pid: u32) -> Work {
    /// A thread that wants to run for so much of the time.
    const BOUND: f64 = 0.9;
    let (before, begin) = (thread_times(pid), Instant::now());
    sleep(COUNTING).await;
    let (after, took) = (thread_times(pid), begin.elapsed().as_secs_f64());
    let (mut all, mut bound) = (0.0, 0.0);
    for (tid, (ran, waited)) in after {
        let (ran_before, waited_before) = before.get(&tid).copied().unwrap_or_default();
        let share = |now: Duration, before: Duration| now.saturating_sub(before).as_secs_f64() / took;
        let (ran, waited) = (share(ran, ran_before), share(waited, waited_before));
        all += ran;
        bound += if ran + waited > BOUND { ran } else { 0.0 };
    }
    Work { cpus: all, is_bound: bound > all / 2.0 }
}

/// CPU time of each of its threads so far, and how long it has waited for a CPU
/// (Documentation/scheduler/sched-stats.rst): to the nanosecond, unlike those of /proc/PID/stat.
fn thread_times(pid: u32) -> HashMap<OsString, (Duration, Duration)> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let times = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        let mut numbers =
            text.split_ascii_whitespace().map(|number| number.parse().map(Duration::from_nanos));
        Some((thread.file_name(), (numbers.next()?.ok()?, numbers.next()?.ok()?)))
    });
    times.collect()
}

impl Session {
    /// Begins to count what tracing of these running processes costs; [`Self::tell_price`] is due
    /// some time later.
    pub(super) fn begin_price(&mut self) -> Option<Instant> {
        let is_running =
            matches!(self.mode, Mode::User(_)) && !matches!(self.settings.target, TargetSpec::Command(_));
        if !is_running || self.settings.capture.traps_only {
            return None;
        }
        self.price = Some(PriceCheck { _statistics: RunStatistics::begin().ok()?, began: Instant::now() });
        Some(Instant::now() + COUNTING)
    }

    /// Says what tracing costs, if that is much.
    pub(super) fn tell_price(&mut self) {
        self.due.price = None;
        let Some(check) = self.price.take() else { return };
        let seconds = check.began.elapsed().as_secs_f64();
        let Ok(programs) = self.tracer.program_runs() else { return };
        let runs = TrapCounts::of(&programs);
        let in_programs: f64 = programs.iter().map(|program| program.time.as_secs_f64()).sum();
        let in_traps = runs.all as f64 * USUAL_TRAP.as_secs_f64();
        let cpus = (in_programs + in_traps) / seconds;
        if cpus > DEAR && seconds > 0.0 {
            let calls = (runs.acquires + runs.releases) as f64 / seconds;
            warn!(
                "{:.0} allocator calls a second: tracing costs about {:.0} % of a CPU; memleak doctor -p PID says what \
                 costs less",
                calls,
                cpus * 100.0
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_bound_by_the_cpu_gets_faster() {
        let bound = |cpus| Work { cpus, is_bound: true };
        // A loop: nine tenths of its time were in traps.
        assert!((faster_without(0.9, 1.0, bound(1.0)) - 10.0).abs() < 1e-9);
        // The same on a machine that gives it half of a CPU.
        assert!((faster_without(0.45, 0.5, bound(0.5)) - 10.0).abs() < 1e-9);
        // One that takes as much more as the traps have taken, or waits for something else.
        assert_eq!(faster_without(0.05, 0.02, bound(0.06)), 1.0);
        assert_eq!(faster_without(0.05, 0.02, Work { cpus: 0.051, is_bound: false }), 1.0);
        // Nothing can be said of more than this.
        assert!((faster_without(2.0, 1.0, bound(1.0)) - 20.0).abs() < 1e-9);
    }
}
