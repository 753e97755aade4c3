//! Counts the calls of processes, to say what tracing them costs.

use std::{
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
    let before = cpus(pid).await;
    let session = attach(pid, &[TRAPS_ONLY])?;
    let statistics = RunStatistics::begin()
        .map_err(|error| SessionError::System("the kernel does not count runs of programs", error));
    let counted = match &statistics {
        Ok(_) => session.counted(pid).await,
        Err(_) => Ok((TrapCounts::default(), 0.0, COUNTING)),
    };
    let allocators = session.targets.iter().flat_map(|(_, traced)| &traced.allocators);
    let mut allocators: Vec<String> = allocators.map(ToString::to_string).collect();
    allocators.sort_unstable();
    allocators.dedup();
    end(session);
    statistics?;
    let (runs, during, took) = counted?;
    let rate = |runs: u64| runs as f64 / took.as_secs_f64();
    // One that has nothing to wait for does as much less as the traps take.
    let in_traps = rate(runs.all) * trap.as_secs_f64();
    let own = (during - in_traps).max(during / 20.0);
    let faster = if own > 0.0 { (before / own).clamp(1.0, 20.0) } else { 1.0 };
    Ok(Rates {
        acquired: rate(runs.acquires) * faster,
        released: rate(runs.releases) * faster,
        traps: rate(runs.all) * faster,
        cpus: before,
        allocators,
    })
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

    /// TrapCounts in a while, the CPUs that the process has kept busy, and how long the while was.
    async fn counted(&self, pid: u32) -> Result<(TrapCounts, f64, Duration), SessionError> {
        let (before, begin) = (self.runs()?, Instant::now());
        let cpus = cpus(pid).await;
        Ok((self.runs()?.since(before), cpus, begin.elapsed()))
    }
}

/// CPUs that a process keeps busy, over a while.
async fn cpus(pid: u32) -> f64 {
    let (before, begin) = (cpu_time(pid), Instant::now());
    sleep(COUNTING).await;
    let used = cpu_time(pid).saturating_sub(before);
    used.as_secs_f64() / begin.elapsed().as_secs_f64()
}

/// CPU time of all its threads so far (Documentation/scheduler/sched-stats.rst): to the nanosecond,
/// unlike that of /proc/PID/stat. One that has ended meanwhile is missing, which is little.
fn cpu_time(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let times = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_ascii_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(times.sum())
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
