//! Counts the calls of processes, to say what tracing them costs.

use std::time::Instant;

use log::warn;
use tokio::time::sleep;

use super::{
    SessionError,
    price::{COUNTING, Counted, DEAR, PriceCheck, TrapCost, TrapCounts, price},
    state::{Mode, Session},
    user_mode,
    work::{Work, middle},
};
use crate::{
    bpf::RunStatistics,
    proc::{cpu_times::CpuTimes, io::reads_and_writes},
    report::{
        format::{Options, text},
        sink::Sink,
    },
    settings::{Settings, TargetSpec},
    target::process::Process,
};

/// Calls of a process, a second, and what ways to trace it cost.
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
    /// For each way, the CPUs that it takes; `None` if this kernel does not have it.
    pub prices: Vec<Option<f64>>,
}

/// How often the pace of a process is counted, and, of one that is told by its work, what each way
/// takes of it: what is in the middle is taken.
const PACES: usize = 3;

/// The calls of a process in a while, which makes `faster` times as many without traps, and keeps
/// `untraced` CPUs busy then.
struct Pace {
    calls: Counted,
    faster: f64,
    untraced: f64,
}

impl Pace {
    fn traps_untraced(&self) -> f64 {
        self.calls.runs.all as f64 / self.calls.took.as_secs_f64().max(1e-9) * self.faster
    }
}

/// Counts a process's calls by programs that do nothing, and then, in each way to trace it, the
/// time in ours: it depends on how deep and how many its stacks are.
pub(crate) async fn count(pid: u32, trap: &TrapCost, ways: &[&[&str]]) -> Result<Rates, SessionError> {
    let (mut paces, mut allocators) = (Vec::new(), Vec::new());
    let mut untraced = vec![watched(pid).await];
    for _ in 0..PACES {
        let (few, _) = counted(pid, RELEASES_ONLY).await?;
        let (calls, found) = counted(pid, TRAPS_ONLY).await?;
        let (before, after) = (untraced[untraced.len() - 1], watched(pid).await);
        let cpus = f64::midpoint(before.cpus, after.cpus);
        let faster = calls.faster_than(&few, cpus, trap);
        paces.push(Pace { calls, faster, untraced: cpus });
        untraced.push(after);
        allocators = found;
    }
    let with_traps: Vec<Counted> = paces.iter().map(|pace| pace.calls).collect();
    let is_told_by_work = Work::of(&untraced, &with_traps).is_some();
    let mut counted_ways = vec![Vec::new(); ways.len()];
    for _ in 0..if is_told_by_work { PACES } else { 1 } {
        for (way, times) in ways.iter().zip(&mut counted_ways) {
            times.extend(counted(pid, way).await.ok().map(|(counted, _)| counted));
            if is_told_by_work {
                untraced.push(watched(pid).await);
            }
        }
    }
    // What others on the machine do changes from one moment to the next.
    paces.sort_by(|a, b| a.traps_untraced().total_cmp(&b.traps_untraced()));
    let mut pace = paces.swap_remove(PACES / 2);
    let work = Work::of(&untraced, &with_traps);
    if let Some(work) = &work {
        pace.faster = work.pace / pace.calls.a_second(pace.calls.operations);
        pace.untraced = work.cpus();
    }
    let rate = |runs: u64| pace.calls.a_second(runs) * pace.faster;
    let of_way = |times: Vec<Counted>| match &work {
        Some(work) if !times.is_empty() => Some(work.price(&times, trap)),
        _ => times.first().map(|way| price(way, &pace.calls, pace.faster, trap)),
    };
    Ok(Rates {
        acquired: rate(pace.calls.runs.acquires),
        released: rate(pace.calls.runs.releases),
        traps: rate(pace.calls.runs.all),
        cpus: pace.untraced,
        allocators,
        prices: counted_ways.into_iter().map(of_way).collect(),
    })
}

/// Traces a process for a while in a way, and counts; gives its allocators as well.
async fn counted(pid: u32, options: &[&str]) -> Result<(Counted, Vec<String>), SessionError> {
    let session = attach(pid, options)?;
    let counted = async {
        // What is met for the first time takes longer.
        sleep(COUNTING / 2).await;
        let _statistics = statistics()?;
        let runs = session.runs()?;
        let counted = watched(pid).await;
        Ok(Counted { runs: session.runs()?.since(runs), ..counted })
    };
    let counted: Result<Counted, SessionError> = counted.await;
    let allocators = session.targets.iter().flat_map(|(_, traced)| &traced.allocators);
    let mut allocators: Vec<String> = allocators.map(ToString::to_string).collect();
    allocators.sort_unstable();
    allocators.dedup();
    end(session);
    Ok((counted?, allocators))
}

/// What a process does in a while, traced or not.
async fn watched(pid: u32) -> Counted {
    /// What others on the machine do for a moment is in few of these.
    const SLICES: u32 = 8;
    let look = || (reads_and_writes(pid).unwrap_or_default(), CpuTimes::of([pid]));
    let first = look();
    let mut slices = Vec::new();
    for _ in 0..SLICES {
        sleep(COUNTING / SLICES).await;
        slices.push(look());
    }
    let starts = std::iter::once(&first).chain(&slices);
    let of_operation =
        middle(starts.zip(&slices).filter_map(|((before, times_before), (operations, times))| {
            let operations = operations.saturating_sub(*before);
            (operations > 0).then(|| times.ran_since(times_before).as_secs_f64() / operations as f64)
        }));
    let (operations, times) = slices.last().unwrap_or(&first);
    let (cpus, took) = times.cpus_since(&first.1);
    let operations = operations.saturating_sub(first.0);
    Counted { runs: TrapCounts::default(), took, cpus, operations, of_operation }
}

fn statistics() -> Result<RunStatistics, SessionError> {
    RunStatistics::begin()
        .map_err(|error| SessionError::System("the kernel does not count runs of programs", error))
}

/// Programs that do nothing.
pub(crate) const TRAPS_ONLY: &[&str] = &["--traps-only"];

/// The same at functions that release, and at no others.
pub(crate) const RELEASES_ONLY: &[&str] = &["--traps-only", "--releases-only"];

/// Attaches to a process of ours with these options. Gives what comes of `work` then, of a second
/// time, while the kernel counts, and what it has counted.
pub(crate) fn traced<T>(
    pid: u32,
    options: &[&str],
    mut work: impl FnMut() -> T,
) -> Result<([T; 2], TrapCounts), SessionError> {
    let session = attach(pid, options)?;
    let mut done = || {
        let alone = work();
        let _statistics = statistics()?;
        let before = session.runs()?;
        Ok(([alone, work()], session.runs()?.since(before)))
    };
    let done = done();
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
        let times = CpuTimes::of(self.living_pids());
        let runs = self.runs().ok()?;
        self.price = Some(PriceCheck { _statistics: RunStatistics::begin().ok()?, runs, times });
        Some(Instant::now() + COUNTING)
    }

    /// Says what tracing costs, if that is much.
    pub(super) fn tell_price(&mut self) {
        self.due.price = None;
        let (Some(check), Mode::User(mode)) = (self.price.take(), &self.mode) else { return };
        let Ok(runs) = self.runs() else { return };
        let (cpus, took) = check.times.cpus_so_far();
        let counted = Counted { runs: runs.since(check.runs), took, cpus, ..Counted::default() };
        let trap = TrapCost::USUAL;
        let faster = counted.faster_untraced(mode.untraced_cpus, &trap);
        let cpus = price(&counted, &counted, faster, &trap);
        if cpus > DEAR {
            let calls = (counted.runs.acquires + counted.runs.releases) as f64 * faster;
            warn!(
                "{:.0} allocator calls a second: tracing costs about {:.0} % of a CPU; memleak doctor -p PID says what \
                 costs less",
                calls / took.as_secs_f64().max(1e-9),
                cpus * 100.0
            );
        }
    }

    fn living_pids(&self) -> Vec<u32> {
        self.targets.iter().filter(|(_, traced)| !traced.ended).map(|(_, traced)| traced.id.pid).collect()
    }
}
