//! A run, from the first probe to the last report.

mod checks;
mod error;
mod events;
mod kernel;
mod reporting;
mod wait;

use std::{
    collections::{BTreeMap, HashSet},
    process::{Child, ExitStatus},
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use aya_log::EbpfLogger;
use log::{debug, info, warn};
use memleak_common::probe::Resource;
use tokio::{io::unix::AsyncFd, sync::mpsc};

use checks::{check_interval, check_plan};
pub use error::SessionError;
use wait::{Signals, bpf_log, end_command, flush_log, millis, moment, readable, ticks};

use crate::{
    aggregate::History,
    bpf::{
        attach::{Probes, Scope},
        load,
        read::Reader,
        unwind::{Unwinding, words_for},
    },
    objects::ObjectStore,
    probe::{
        plan::{Plan, PlanOptions, check_object_argument, plan, symbol_names},
        resource::Catalog,
        table::{Row, TABLE},
    },
    proc::{
        limits::raise_open_files,
        maps::read_maps,
        memory::{ProcessMemory, ReadMemory},
        status::read_status,
    },
    report::sink::{Delivery, Sink},
    settings::{Settings, TargetSpec},
    symbolize::{LiveTarget, Symbolizer},
    target::{
        command::{CommandError, Held, HeldCommand},
        object::{ObjectId, read_objects},
        process::{PidFd, Process, ProcessError, check_program},
    },
    unwind::ProcessTables,
};

/// How a run ended.
#[derive(Debug, Default)]
pub struct Ended {
    /// Allocations in the last report.
    pub outstanding: u64,
    /// How the command ended, where it ended by itself.
    pub command: Option<ExitStatus>,
}

/// Why the last report is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// COUNT reports were made: the one that was due is the last.
    Count,
    /// A signal.
    Signal,
    /// No traced process is left.
    TargetsEnded,
    /// Nobody reads the reports.
    ReaderGone,
}

/// Which of a process's objects are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Objects {
    /// All.
    All,
    /// Those that were not looked at before.
    New,
}

/// One traced process.
struct Traced {
    comm: String,
    ended: bool,
    /// Its objects that were looked at.
    planned: HashSet<ObjectId>,
}

/// Everything of a run.
pub struct Session {
    settings: Settings,
    ebpf: Ebpf,
    events: AsyncFd<RingBuf<MapData>>,
    log: Option<AsyncFd<EbpfLogger<&'static dyn log::Log>>>,
    probes: Probes,
    reader: Reader,
    /// The table of this run.
    rows: Vec<Row>,
    /// Resources that functions of the target's are probed for.
    probed: Vec<Resource>,
    /// What is mapped, open.
    objects: ObjectStore,
    symbolizer: Symbolizer,
    /// `None` where stacks are walked otherwise.
    unwinding: Option<Unwinding>,
    sink: Sink,
    /// What is traced.
    catalog: Catalog,
    history: History,
    traced: BTreeMap<u32, Traced>,
    ends: (mpsc::UnboundedSender<u32>, mpsc::UnboundedReceiver<u32>),
    held: Option<HeldCommand>,
    command: Option<Child>,
    /// When stacks that nothing refers to are to be removed.
    collection: Option<Instant>,
    /// When what execs have made void is to be removed.
    void_due: Option<Instant>,
    /// The danger of exceptions was told.
    warned: bool,
    /// Probes attached, and the time that it took, since it was last said.
    attached: (usize, Duration),
    start: Instant,
    reports: u64,
}

/// What a session begins with.
struct Start {
    objects: ObjectStore,
    ebpf: Ebpf,
    events: RingBuf<MapData>,
    probes: Probes,
    reader: Reader,
    rows: Vec<Row>,
    probed: Vec<Resource>,
    unwinding: Option<Unwinding>,
}

/// Traces what the settings name until there is nothing more to do.
pub async fn run(settings: Settings) -> Result<Ended, SessionError> {
    let sink = Sink::open(&settings.report)?;
    if let Some(object) = &settings.capture.object {
        check_object_argument(object)?;
    }
    // Targets first: a number that is none is worth no verifying of programs.
    let processes = match &settings.target {
        TargetSpec::Pids(pids) => {
            pids.iter().map(|pid| Process::open(*pid)).collect::<Result<Vec<_>, _>>()?
        }
        TargetSpec::Command(_) | TargetSpec::Kernel(_) => Vec::new(),
    };
    check_interval(&settings, &processes)?;
    let mut session = match settings.target.clone() {
        TargetSpec::Kernel(options) => Session::trace_kernel(settings, &options, sink)?,
        TargetSpec::Pids(_) | TargetSpec::Command(_) => Session::load(settings, sink, &processes)?,
    };
    if !processes.is_empty() {
        raise_open_files();
    }
    for process in processes {
        session.trace_running(process)?;
    }
    if let TargetSpec::Command(argv) = session.settings.target.clone() {
        session.trace_command(&argv)?;
    }
    // Not before: while a command is held, a signal ends us both.
    let mut signals =
        Signals::listen().map_err(|error| SessionError::System("cannot handle signals", error))?;
    session.tell_attached();
    session.release_command()?;
    let outcome = match session.report_until_done(&mut signals).await {
        Ok(reason) => session.last_report(reason),
        Err(error) => Err(error),
    };
    // Whatever has happened: no probe stays, and a command is not left behind.
    session.detach();
    let command = match session.command.take() {
        Some(child) => end_command(child, &mut signals).await?,
        None => None,
    };
    Ok(Ended { outstanding: outcome?, command })
}

impl Session {
    /// Loads the programs, and enters the unwind tables of `processes`.
    fn load(settings: Settings, sink: Sink, processes: &[Process]) -> Result<Self, SessionError> {
        let rows = [TABLE.as_slice(), &settings.capture.user_rows].concat();
        // The tables first: an array's size is set when it is made.
        let store = ObjectStore::default();
        let mut tables = ProcessTables::new(store.clone());
        let mut objects = Vec::new();
        if settings.capture.walks_tables() {
            objects = tables.observe_running(processes.iter().map(|process| process.pid));
        }
        let words = words_for((!objects.is_empty()).then(|| tables.sums()));
        let begin = Instant::now();
        let mut loaded = load::load(&settings.capture, &settings.report, &rows, words, settings.verbosity)?;
        info!("loaded the BPF programs in {} ms", millis(begin.elapsed()));
        // What was left out by sampling is open, too.
        let checks_descriptors =
            settings.capture.resources.contains(&Resource::Fd) && settings.report.sample_rate == 1;
        let is_probed = |resource: &Resource| !loaded.by_system_calls.contains(resource);
        let probed = settings.capture.resources.iter().copied().filter(is_probed).collect();
        let mut unwinding = loaded.walks_tables.then(|| Unwinding::open(&loaded.ebpf, tables)).transpose()?;
        if let Some(unwinding) = &mut unwinding {
            for (pid, objects) in &objects {
                unwinding.set(&mut loaded.ebpf, *pid, objects)?;
            }
        }
        let stack_storage_size = settings.capture.stack_storage_size;
        let probes = Probes::new(loaded.uprobes, loaded.mends_stack);
        let reader =
            Reader::new(rows.iter().map(|row| row.probe).collect(), checks_descriptors, stack_storage_size);
        let (ebpf, events) = (loaded.ebpf, loaded.events);
        Self::new(
            settings,
            sink,
            Start { objects: store, ebpf, events, probes, reader, rows, probed, unwinding },
        )
    }

    /// Nothing is traced yet.
    fn new(settings: Settings, sink: Sink, mut start: Start) -> Result<Self, SessionError> {
        let catalog = settings.capture.catalog();
        let log = (settings.verbosity > 0).then(|| bpf_log(&mut start.ebpf)).flatten();
        let events =
            readable(start.events).map_err(|error| SessionError::System("cannot wait for events", error))?;
        Ok(Self {
            settings,
            ebpf: start.ebpf,
            events,
            log,
            probes: start.probes,
            reader: start.reader,
            rows: start.rows,
            probed: start.probed,
            symbolizer: Symbolizer::with_objects(start.objects.clone()),
            objects: start.objects,
            unwinding: start.unwinding,
            sink,
            catalog,
            history: History::default(),
            traced: BTreeMap::new(),
            ends: mpsc::unbounded_channel(),
            held: None,
            command: None,
            collection: None,
            void_due: None,
            warned: false,
            attached: (0, Duration::ZERO),
            start: Instant::now(),
            reports: 0,
        })
    }

    /// Puts probes into a running process.
    fn trace_running(&mut self, process: Process) -> Result<(), SessionError> {
        if let Some(warning) = process.warning() {
            warn!("{warning}");
        }
        let pid = process.pid;
        let end =
            process.end_fd().map_err(|error| SessionError::System("cannot wait for a process", error))?;
        self.add_target(pid, process.comm, end)?;
        let plan = self.plan(pid, Objects::All)?;
        // Reads what is mapped, and keeps it: the process may end at any time. Before the probes are in, for the walks.
        self.observe(pid);
        self.attach(pid, &plan)?;
        Ok(())
    }

    /// Starts a command and puts probes into each object before its code runs.
    fn trace_command(&mut self, argv: &[std::ffi::OsString]) -> Result<(), SessionError> {
        let system = |error| SessionError::System("cannot hold the command", error);
        let mut held = HeldCommand::start(argv)?;
        // After the start, since a command would inherit it.
        raise_open_files();
        let pid = held.pid();
        check_program(pid)?;
        let end = PidFd::open(pid).map_err(system)?;
        let comm = read_status(pid).map(|status| status.comm).unwrap_or_default();
        self.add_target(pid, comm, end)?;
        loop {
            let plan = self.plan(pid, Objects::New)?;
            self.observe(pid);
            self.attach(pid, &plan)?;
            match held.advance().map_err(system)? {
                Held::Mapped => {}
                Held::Replaced => self.program_replaced(pid, false)?,
                Held::Entry => break,
                Held::Ended(status) => {
                    return Err(CommandError::ended_early(argv, status).into());
                }
            }
        }
        // What IFUNC resolvers have chosen is known by now, and so is whether there is an allocator at all.
        let plan = self.plan(pid, Objects::All)?;
        self.observe(pid);
        self.attach(pid, &plan)?;
        self.held = Some(held);
        Ok(())
    }

    /// Lets the command run free: the probes are in, and that was said.
    fn release_command(&mut self) -> Result<(), SessionError> {
        if let Some(held) = self.held.take() {
            let released = held.release();
            self.command =
                Some(released.map_err(|error| SessionError::System("cannot release the command", error))?);
        }
        Ok(())
    }

    /// Makes a process known to the kernel side and waits for its end.
    fn add_target(&mut self, pid: u32, comm: String, end: PidFd) -> Result<(), SessionError> {
        load::add_target(&self.ebpf, pid)?;
        self.reader.add_target(pid);
        let watch =
            readable(end).map_err(|error| SessionError::System("cannot wait for a process", error))?;
        let ended = self.ends.0.clone();
        tokio::spawn(async move {
            // An error would mean that it can no longer be waited for: as good as ended.
            let _ = watch.readable().await;
            let _ = ended.send(pid);
        });
        self.traced.insert(pid, Traced { comm, ended: false, planned: HashSet::new() });
        Ok(())
    }

    /// Plans probes for what a process has mapped: for all of it, where that must hold an allocator, or for the
    /// objects that were not looked at yet.
    fn plan(&mut self, pid: u32, which: Objects) -> Result<Plan, SessionError> {
        let capture = &self.settings.capture;
        let options = PlanOptions {
            rows: &self.rows,
            resources: &self.probed,
            object: capture.object.as_deref(),
            symbols_prefix: capture.symbols_prefix.as_deref(),
            already: None,
        };
        let mut mappings = read_maps(pid).map_err(|error| ProcessError::of(pid, error))?;
        if which == Objects::New
            && let Some(traced) = self.traced.get(&pid)
        {
            // Before they are read, which takes milliseconds, in which the target goes on and the next notice waits.
            mappings.retain(|mapping| {
                !traced.planned.contains(&ObjectId { device: mapping.device, inode: mapping.inode })
            });
        }
        let mut objects = read_objects(&self.objects, pid, &mappings, &symbol_names(&options));
        if let Some(traced) = self.traced.get_mut(&pid) {
            objects.retain(|object| traced.planned.insert(object.id) || which == Objects::All);
        }
        let memory = ProcessMemory::open(pid).ok();
        let plan = plan(&objects, &options, memory.as_ref().map(|memory| memory as &dyn ReadMemory));
        if which == Objects::All {
            check_plan(pid, &plan, &objects, &options, self.probed == capture.resources)?;
        }
        for (path, allocator) in &plan.allocators {
            info!("{path}: {allocator}");
        }
        if which == Objects::All {
            for skip in &plan.skipped {
                info!("skipped: {skip}");
            }
        }
        Ok(plan)
    }

    fn attach(&mut self, pid: u32, plan: &Plan) -> Result<(), SessionError> {
        if plan.points.is_empty() {
            return Ok(());
        }
        let capture = &self.settings.capture;
        let scope = if capture.follow_forks { Scope::All } else { Scope::Process(pid) };
        if !self.warned
            && let Some(point) = self.probes.dangers(&plan.points)
        {
            self.warned = true;
            let name = crate::symbolize::demangle::demangle(&point.function);
            warn!(
                "process {pid}: an exception thrown out of {name} (out of memory) will end it while it is traced, since \
                 this kernel is locked down and forbids to mend the stack; to be safe boot without lockdown"
            );
        }
        let outcome = self.probes.attach(&mut self.ebpf, scope, &plan.points, capture.traps_only)?;
        for point in &plan.points {
            debug!("{point}");
        }
        let mut failed = outcome.failed.into_iter();
        if outcome.attached == 0
            && let Some(error) = failed.next()
        {
            return Err(error.into());
        }
        if failed.len() > 0 && read_status(pid).is_err() {
            info!("process {pid} has ended before it had all its probes");
        } else {
            failed.for_each(|error| warn!("{error}"));
        }
        self.attached.0 += outcome.attached;
        self.attached.1 += outcome.took;
        Ok(())
    }

    /// Says what was attached since it was last said: all that was asked for is in by now.
    fn tell_attached(&mut self) {
        if self.settings.verbosity > 0
            && let Some(news) = self.unwinding.as_mut().and_then(Unwinding::news)
        {
            info!("{news}");
        }
        let (count, took) = std::mem::take(&mut self.attached);
        if count > 0 {
            info!("attached {count} probes in {} ms", millis(took));
        }
    }

    /// Takes over what a process has mapped now: the unwind tables at once, since it goes on.
    fn observe(&mut self, pid: u32) {
        let mappings = match read_maps(pid) {
            Ok(mappings) => mappings,
            Err(error) => {
                debug!("cannot read what process {pid} has mapped: {error}");
                return;
            }
        };
        // One that has ended has nothing mapped; its last stacks have been walked.
        if let Some(unwinding) = &mut self.unwinding
            && !mappings.is_empty()
            && let Err(error) = unwinding.observe(&mut self.ebpf, pid, &mappings, &LiveTarget(pid))
        {
            warn!("{error}");
        }
        self.symbolizer.observe_mappings(pid, mappings, &LiveTarget(pid));
    }

    /// Reports at each interval until a reason for the last report comes up.
    async fn report_until_done(&mut self, signals: &mut Signals) -> Result<Reason, SessionError> {
        self.start = Instant::now();
        let mut more_events = false;
        let mut ticks = ticks(self.settings.interval);
        loop {
            tokio::select! {
                biased;
                () = signals.any() => return Ok(Reason::Signal),
                _ = ticks.tick() => {
                    if self.settings.count == Some(self.reports + 1) {
                        return Ok(Reason::Count);
                    }
                    if self.report(false)? == Delivery::ReaderGone {
                        return Ok(Reason::ReaderGone);
                    }
                }
                Some(pid) = self.ends.1.recv() => {
                    // What it did last may have been to make a child that is followed.
                    if self.take_events_before_report()? == Delivery::ReaderGone {
                        return Ok(Reason::ReaderGone);
                    }
                    if let Some(traced) = self.traced.get_mut(&pid) {
                        traced.ended = true;
                    }
                    if let Some(unwinding) = &mut self.unwinding {
                        unwinding.remove(&mut self.ebpf, pid);
                    }
                    self.reader.target_ended(pid);
                    if self.all_ended() {
                        return Ok(Reason::TargetsEnded);
                    }
                }
                ready = self.events.readable_mut(), if !more_events => {
                    ready.map_err(|error| SessionError::System("cannot wait for events", error))?.clear_ready();
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
                () = moment(self.collection) => self.collect_stacks()?,
                () = moment(self.void_due) => self.remove_void()?,
                () = flush_log(&mut self.log) => {}
            }
        }
    }

    /// Not so of the kernel.
    fn all_ended(&self) -> bool {
        !self.traced.is_empty() && self.traced.values().all(|traced| traced.ended)
    }

    /// The last report; gives the number of allocations in it. The target is relieved of its probes before the work of
    /// making it begins.
    fn last_report(&mut self, reason: Reason) -> Result<u64, SessionError> {
        if reason == Reason::ReaderGone {
            return Ok(0);
        }
        let delivery = self.take_events_before_report()?;
        let (snapshot, time, began) = self.snapshot()?;
        self.detach();
        let report = self.make_report(&snapshot, time, true);
        if delivery == Delivery::Written {
            let _ = self.sink.report(&report)?; // the last one: nobody to read it changes nothing
        }
        self.tell_time(&snapshot, began);
        Ok(report.totals.count)
    }

    fn detach(&mut self) {
        let count = self.probes.len();
        if count == 0 {
            return;
        }
        let took = self.probes.detach();
        info!("detached {count} probes in {} ms", millis(took));
    }
}
