//! The course of a run.

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal as _},
    process::ExitStatus,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use log::info;

use super::{
    SessionError,
    checks::{check_interval, check_mounts},
    confine::confine,
    follow::Birth,
    guard::{first_error, guarded},
    kernel_mode,
    members::{Members, next_members},
    publish::Publisher,
    reporter::Taken,
    state::{Mode, Session},
    user_mode::{self, UserMode},
    view::next_request,
    wait::{Reason, SignalEnds, Signals, end_command, millis, moment, ticks},
};
use crate::{
    hurry,
    probe::plan::check_object_argument,
    proc::{clock::monotonic_ns, limits::raise_open_files, memory_limit::memory_available},
    report::{
        condition::{Facts, FailCondition},
        format::Options,
        model::Report,
        sink::{Delivery, Sink},
    },
    settings::{Settings, TargetSpec},
    snapshot::{
        MOST_KEPT, Snapshot,
        own::{self, Own},
    },
    target::{process::Process, selector::Selector},
    tui,
};

/// How a run ended.
#[derive(Debug, Default)]
pub struct RunOutcome {
    /// Allocations in the last report.
    pub outstanding: u64,
    /// How the command ended, if it ended by itself.
    pub command: Option<ExitStatus>,
    /// What is so that must not be (`--fail-if`), a line each.
    pub failed: Vec<String>,
}

/// A unit that is restarted has no process for a while, of this length at most (systemd.service(5),
/// `RestartSec=`: 100 ms, and a few seconds in many units).
const RESTART: Duration = Duration::from_secs(10);

/// Traces what the settings name until there is nothing more to do.
pub async fn run(settings: Settings) -> Result<RunOutcome, SessionError> {
    check_mounts()?;
    if settings.report.tui {
        tui::check()?;
    }
    let mut sink = open_sink(&settings)?;
    if let Some(object) = &settings.capture.object {
        check_object_argument(object)?;
    }
    // Targets first: a number that is none is worth no verifying of programs.
    let Named { mut processes, members, first_member } = Named::of(&settings.target)?;
    check_interval(&settings, &processes)?;
    check_output(&mut sink, &settings.target, &processes)?;
    let publisher = Publisher::start(&settings)?;
    if !processes.is_empty() {
        raise_open_files();
    }
    let mut session = match &settings.target {
        TargetSpec::Kernel(options) => {
            let start = kernel_mode::load(&settings, options)?;
            Session::of_kernel(settings, sink, start)
        }
        TargetSpec::Pids(_) | TargetSpec::Members { .. } | TargetSpec::Command(_) => {
            let (mut mode, tracer) = user_mode::load(&settings, &processes)?;
            mode.members = members;
            Session::of_processes(settings, sink, mode, tracer)
        }
    };
    session.reporter.publishes = publisher.is_some();
    session.publisher = publisher;
    let selected = processes.split_off(first_member);
    for process in processes {
        session.trace_running(process)?;
    }
    session.trace_members(selected)?;
    if let TargetSpec::Command(argv) = session.settings.target.clone() {
        session.trace_command(&argv)?;
    }
    // Not before: while a command is held, a signal ends us both.
    let outlives_terminal = session.outlives_terminal();
    let mut signals = Signals::listen(outlives_terminal)
        .map_err(|error| SessionError::System("cannot handle signals", error))?;
    if outlives_terminal {
        session.reporter.sink.outlive_terminal();
    }
    // Whoever is told that the probes are in may make children at once.
    session.arm(true);
    session.begin_accounts();
    session.tell_attached();
    session.due.price = session.begin_price();
    session.open_view()?;
    session.release_command()?;
    confine(&session.settings, session.tracer.makes_events());
    let ended = guarded(session.report_until_done(&mut signals)).await;
    // Who has asked for the end sees what is printed then.
    if !matches!(ended, Ok(Reason::Count | Reason::Duration | Reason::TargetsEnded)) {
        session.close_view();
    }
    let last = match ended {
        Ok(Reason::ReaderGone) if !session.needs_last_report() => Ok(RunOutcome::default()),
        // What was collected is reported, whatever has happened.
        _ => guarded(async { session.last_report() }).await,
    };
    let last = first_error(ended, last, "the last report is missing");
    session.tell_left_behind();
    // Whatever has happened: no probe stays, and a command is not left behind.
    session.detach();
    let command = match &mut session.mode {
        Mode::User(mode) => mode.command.take(),
        Mode::Kernel => None,
    };
    let command = match command {
        Some(child) => guarded(end_command(child, &mut signals)).await,
        None => Ok(None),
    };
    match &last {
        Ok(_) => session.leave_view(&mut signals).await,
        Err(_) => session.close_view(),
    }
    if let Some(publisher) = session.publisher.take() {
        publisher.finish().await;
    }
    let last = last?;
    Ok(RunOutcome { command: command?, ..last })
}

/// What a target names of running processes.
#[derive(Default)]
struct Named {
    /// Those of `-p`, and after them those that are selected.
    processes: Vec<Process>,
    members: Option<Members>,
    /// Where the latter begin.
    first_member: usize,
}

impl Named {
    fn of(target: &TargetSpec) -> Result<Self, SessionError> {
        let open =
            |pids: &BTreeSet<u32>| pids.iter().map(|pid| Process::open(*pid)).collect::<Result<Vec<_>, _>>();
        match target {
            TargetSpec::Pids(pids) => {
                let processes = open(pids)?;
                Ok(Self { first_member: processes.len(), processes, members: None })
            }
            TargetSpec::Members { pids, selectors } => {
                let mut processes = open(pids)?;
                let first_member = processes.len();
                let (members, selected) = Members::of(selectors)?;
                let mut failed = None;
                for pid in selected.into_iter().filter(|pid| !pids.contains(pid)) {
                    match Process::open(pid) {
                        Ok(process) => processes.push(process),
                        Err(error) => failed = Some(error),
                    }
                }
                match failed {
                    Some(error) if processes.is_empty() => Err(error.into()),
                    _ => Ok(Self { processes, members: Some(members), first_member }),
                }
            }
            TargetSpec::Command(_) | TargetSpec::Kernel(_) => Ok(Self::default()),
        }
    }
}

/// What is meant goes on when its processes have ended.
fn is_restarted(target: &TargetSpec) -> bool {
    let is_unit = |selector: &Selector| matches!(selector, Selector::Unit(_));
    matches!(target, TargetSpec::Members { selectors, .. } if selectors.iter().any(is_unit))
}

/// Where reports go, and in which form.
fn open_sink(settings: &Settings) -> Result<Sink, SessionError> {
    let report = &settings.report;
    let is_terminal = report.output.is_none() && io::stdout().is_terminal();
    let options = Options { summary: report.summary, ..report.appearance().options(is_terminal) };
    let format = (report.format_on(is_terminal).new)(&options);
    let mut sink = Sink::open(report.output.as_ref(), format)?;
    for file in &report.files {
        sink.add_file(file.clone(), file.format(&options));
    }
    Ok(sink)
}

/// What is wrong with the file for reports, before anything is traced.
fn check_output(sink: &mut Sink, target: &TargetSpec, processes: &[Process]) -> Result<(), SessionError> {
    processes.iter().for_each(|process| sink.protect_process(process.pid));
    if let TargetSpec::Command(argv) = target
        && let Some(program) = argv.first()
    {
        sink.protect_command(program);
    }
    Ok(sink.check()?)
}

impl Session {
    /// Reports at each interval until a reason for the last report comes up.
    async fn report_until_done(&mut self, signals: &mut Signals) -> Result<Reason, SessionError> {
        self.reporter.begin();
        self.plan_look(Duration::ZERO);
        let mut more_events = false;
        let mut ticks = ticks(self.settings.interval);
        let end = self.settings.duration.and_then(|duration| Instant::now().checked_add(duration));
        loop {
            tokio::select! {
                biased;
                ended = signals.next() => match ended {
                    SignalEnds::Us => return Ok(Reason::Signal),
                    SignalEnds::Terminal => drop(self.lose_terminal()),
                },
                request = next_request(&mut self.view) => {
                    if let Some(reason) = self.asked(request)? {
                        return Ok(reason);
                    }
                }
                () = moment(end) => return Ok(Reason::Duration),
                () = moment(self.due.end) => return Ok(Reason::TargetsEnded),
                _ = ticks.tick() => {
                    if self.settings.count == Some(self.reporter.reports + 1) {
                        return Ok(Reason::Count);
                    }
                    if self.report(false)? == Delivery::ReaderGone {
                        return Ok(Reason::ReaderGone);
                    }
                }
                Some(news) = next_news(&mut self.mode) => {
                    match news {
                        Arrival::Birth(birth) => self.born(&birth, false),
                        Arrival::Members(pids) => self.join(pids),
                    }
                    if self.is_over() {
                        return Ok(Reason::TargetsEnded);
                    }
                }
                Some(target) = self.ends.1.recv() => {
                    // What it did last may have been to make a child that is followed.
                    if self.take_events_before_report()? == Delivery::ReaderGone {
                        return Ok(Reason::ReaderGone);
                    }
                    self.take_births(false);
                    self.target_ended(target)?;
                    if self.is_over() {
                        return Ok(Reason::TargetsEnded);
                    }
                }
                Some(target) = self.thread_ends.1.recv() => self.attach_anew(target),
                ready = self.tracer.ready(!more_events) => {
                    ready.map_err(|error| SessionError::System("cannot wait for events", error))?;
                    more_events = true;
                }
                // Yields, so that signals and the clock are looked at between two helpings.
                () = tokio::task::yield_now(), if more_events => {
                    let (delivery, more) = self.take_events()?;
                    if delivery == Delivery::ReaderGone {
                        return Ok(Reason::ReaderGone);
                    }
                    more_events = more;
                }
                () = moment(self.due.collection) => self.collect_stacks()?,
                () = moment(self.due.clearing) => self.clear()?,
                () = moment(self.due.price) => self.tell_price(),
                () = moment(self.due.look) => {
                    if self.look()? == Delivery::ReaderGone {
                        return Ok(Reason::ReaderGone);
                    }
                }
            }
        }
    }

    /// No process is left, and none is waited for.
    fn is_over(&mut self) -> bool {
        let is_left = !self.targets.all_ended();
        let may_come = !is_left && is_restarted(&self.settings.target);
        let end = self.due.end.take().unwrap_or_else(|| Instant::now() + RESTART);
        self.due.end = may_come.then_some(end);
        !is_left && !may_come
    }

    /// Makes and writes one report.
    pub(super) fn report(&mut self, is_final: bool) -> Result<Delivery, SessionError> {
        if self.take_events_before_report()? == Delivery::ReaderGone {
            return Ok(Delivery::ReaderGone);
        }
        self.check_threads();
        let mut taken = self.snapshot(is_final)?;
        let grouped = self.reporter.group(&self.settings, &self.targets, &taken, is_final);
        taken.why = self.examine(&mut taken, is_final);
        let report =
            Arc::new(self.reporter.make_report(&self.settings, &self.targets, &taken, grouped, is_final));
        let delivery = self.reporter.sink.report(&report)?;
        self.show(&report);
        tell_time(&taken);
        self.publish(report, &taken);
        let took = taken.began.elapsed();
        self.keep(taken.snapshot, taken.own);
        self.plan_look(took);
        Ok(delivery)
    }

    /// The last report is wanted though nobody reads it: for files, and for the exit status.
    fn needs_last_report(&self) -> bool {
        let status = self.settings.error_exitcode.is_some() || !self.settings.report.fail_if.is_empty();
        status || self.reporter.sink.has_files()
    }

    /// The last report; gives what a run ends with. The target is relieved of its probes
    /// before the work of making it begins. What fails on the way is told after it, if it can be
    /// made.
    fn last_report(&mut self) -> Result<RunOutcome, SessionError> {
        self.arm(false);
        self.take_births(false);
        let delivery = self.take_events_before_report();
        let taken = self.snapshot(true).map(|mut taken| {
            let grouped = self.reporter.group(&self.settings, &self.targets, &taken, true);
            taken.why = self.examine(&mut taken, true);
            (taken, grouped)
        });
        self.detach();
        let (taken, grouped) = taken?;
        let report =
            Arc::new(self.reporter.make_report(&self.settings, &self.targets, &taken, grouped, true));
        if matches!(delivery, Ok(Delivery::ReaderGone)) {
            self.reporter.sink.lose_reader();
        }
        let _ = self.reporter.sink.report(&report)?; // the last one: nobody to read it changes nothing
        if self.view.is_some() {
            self.show(&report);
            self.last = Some(report.clone());
        }
        tell_time(&taken);
        let facts = Facts::of_run(&report);
        let fails = |condition: &FailCondition| {
            condition.holds(&facts).map(|what| format!("--fail-if {condition}: {what}"))
        };
        let failed = self.settings.report.fail_if.iter().filter_map(fails).collect();
        let outstanding = report.totals.count;
        self.publish(report, &taken);
        delivery.map(|_| RunOutcome { outstanding, command: None, failed })
    }

    /// Reads the tables, and what is needed to name what is in them: the mappings and the kernel's
    /// symbols as they are now.
    fn snapshot(&mut self, is_final: bool) -> Result<Taken, SessionError> {
        let living: Vec<u32> = self.targets.living().map(|(target, _)| target).collect();
        let begin = Instant::now();
        let (snapshot, own, took) = self.read_tables(is_final)?;
        let ago = Duration::from_nanos(monotonic_ns().saturating_sub(snapshot.time_ns));
        let time = SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH);
        if !own.0.is_empty() {
            info!(
                "left out {} bytes in {} mappings that allocators made for themselves",
                own.bytes(),
                own.0.len()
            );
        }
        let memory = hurry::without_counting(|| self.account((&snapshot, &own), is_final));
        self.forget_released();
        for target in living {
            self.observe(target);
        }
        self.reporter.symbolizer.observe_kernel();
        let temporary = self.temporary(&snapshot)?;
        let probes = self.tracer.probes();
        let (processes, oom_killed) = (self.processes, self.oom_killed());
        let sum = || snapshot.outstanding.iter().fold(0, |sum: u64, one| sum.saturating_add(one.size));
        let held = self.publisher.as_ref().map(|_| sum());
        Ok(Taken {
            records: snapshot.outstanding.len(),
            held,
            snapshot,
            own,
            why: None,
            time,
            memory,
            began: begin,
            took,
            probes,
            processes,
            temporary,
            oom_killed,
        })
    }
}

impl Session {
    /// Reads what is outstanding, without what allocators have mapped for themselves; gives how
    /// long the first took.
    pub(super) fn read_tables(&mut self, is_final: bool) -> Result<(Snapshot, Own, Duration), SessionError> {
        let begin = Instant::now();
        self.due.clearing = None;
        self.fold_ended();
        self.take_freed_slots()?;
        if is_final {
            self.tracer.end_soon();
        }
        let (last, own) = self.kept.take().unzip();
        let before = last.as_ref().and_then(|last| last.version);
        // Millions of blocks take seconds, and much memory a second: names are read after that.
        let mut snapshot = hurry::without_counting(|| self.tracer.snapshot(last))?;
        let is_same = snapshot.is_of(before);
        snapshot.lost.processes += self.lost_processes;
        let took = begin.elapsed();
        let own = match own {
            Some(own) if is_same => own,
            _ => hurry::without_counting(|| self.take_out_own(&mut snapshot)),
        };
        Ok((snapshot, own, took))
    }

    /// Keeps what was read for the next time, or gives its memory back.
    pub(super) fn keep(&mut self, snapshot: Snapshot, own: Own) {
        match is_worth_keeping(&snapshot) {
            true => self.kept = Some((snapshot, own)),
            false => self.tracer.give_back(snapshot),
        }
    }

    /// See [`own::take_out`].
    pub(super) fn take_out_own(&self, snapshot: &mut Snapshot) -> Own {
        own::take_out(snapshot, |space| {
            let traced = self.targets.owner_of(space);
            traced.map(|traced| traced.allocator_code.as_slice()).unwrap_or_default()
        })
    }
}

impl Session {
    /// Gives a report to those who may ask for it.
    fn publish(&mut self, report: Arc<Report>, taken: &Taken) {
        if let Some(publisher) = &mut self.publisher {
            let sampling = self.settings.report.sampling;
            publisher.publish(report, taken, &self.targets, &self.tracer, sampling);
        }
    }
}

/// Processes that may have to be traced.
enum Arrival {
    /// A child or a new program of a target.
    Birth(Birth),
    /// What is selected.
    Members(Vec<u32>),
}

/// The next ones; none of the kernel's.
async fn next_news(mode: &mut Mode) -> Option<Arrival> {
    let Mode::User(mode) = mode else { return std::future::pending().await };
    let UserMode { follower, members, .. } = &mut **mode;
    tokio::select! {
        biased;
        birth = follower.next() => birth.map(Arrival::Birth),
        pids = next_members(members) => Some(Arrival::Members(pids)),
    }
}

/// It takes little memory, or little of what there is.
fn is_worth_keeping(snapshot: &Snapshot) -> bool {
    const PART: u64 = 16;
    let records = snapshot.outstanding.capacity();
    let bytes = size_of_val(snapshot.outstanding.as_slice()) as u64;
    records <= MOST_KEPT || memory_available().is_some_and(|available| bytes <= available / PART)
}

fn tell_time(taken: &Taken) {
    info!(
        "report over {} allocations took {} ms (snapshot {} ms)",
        taken.records,
        millis(taken.began.elapsed()),
        millis(taken.took)
    );
    if let Some((counted, other)) = hurry::since_signal() {
        let (counted, other) = (millis(counted), millis(other));
        info!("since the signal: {counted} ms of CPU time for names, {other} ms for the rest");
    }
}
