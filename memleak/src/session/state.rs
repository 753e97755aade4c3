//! The state of a run, and what its parts do together.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use log::{debug, info, warn};
use tokio::sync::mpsc;

use super::{
    SessionError,
    examined::Examinations,
    kernel_mode::KernelStart,
    price::PriceCheck,
    publish::Publisher,
    reporter::Reporter,
    user_mode::{Objects, UserMode},
    wait::millis,
};
use crate::{
    account::Accounting,
    bpf::{Scope, Tracer},
    hurry,
    objects::ObjectStore,
    probe::plan::Plan,
    proc::{
        copied::read_maps_of_code,
        dynamic_linker::debug_address,
        memory::ProcessMemory,
        oom::OomLog,
        readable::readable,
        status::{has_ended, parent_of},
    },
    report::{
        model::{OomKilled, Processes, Report},
        sink::Sink,
        suppressions::Suppressions,
    },
    settings::Settings,
    snapshot::{Snapshot, own::Own},
    symbolize::{LiveTarget, Observed},
    target::process::{Process, ProcessError},
    targets::{Shared, TargetId, Targets},
    tui::View,
};

/// What is traced.
pub(super) enum Mode {
    /// Processes.
    User(Box<UserMode>),
    /// The kernel: all is attached when it begins.
    Kernel,
}

/// What is to be done some time.
#[derive(Default)]
pub(super) struct Due {
    /// When stacks that nothing refers to are to be removed.
    pub(super) collection: Option<Instant>,
    /// When the kernel's table is to be cleared of what nobody can release any more.
    pub(super) clearing: Option<Instant>,
    /// When it is to be said what tracing costs.
    pub(super) price: Option<Instant>,
    /// When it is to be looked at what is outstanding, without a report.
    pub(super) look: Option<Instant>,
    /// When the run ends, if no process has come by then.
    pub(super) end: Option<Instant>,
}

/// Everything of a run.
pub(super) struct Session {
    pub(super) settings: Settings,
    pub(super) mode: Mode,
    pub(super) tracer: Tracer,
    pub(super) targets: Targets,
    pub(super) reporter: Reporter,
    /// Who else is given reports.
    pub(super) publisher: Option<Publisher>,
    /// What is counted of its first moments.
    pub(super) price: Option<PriceCheck>,
    pub(super) due: Due,
    /// What the targets' memory is, if all of it is traced.
    pub(super) accounts: Option<Accounting>,
    /// Numbers of targets that have ended.
    pub(super) ends: (mpsc::UnboundedSender<u32>, mpsc::UnboundedReceiver<u32>),
    /// Numbers of targets whose probes depended on a thread that has ended.
    pub(super) thread_ends: (mpsc::UnboundedSender<u32>, mpsc::UnboundedReceiver<u32>),
    /// What targets have made and is not traced, the latest last.
    pub(super) untraced: VecDeque<u32>,
    /// Processes that came and went.
    pub(super) processes: Processes,
    /// What the kernel says of whom it has killed for want of memory; `None` if we cannot read it.
    oom: Option<OomLog>,
    /// Those targets that it has killed.
    oom_killed: Vec<OomKilled>,
    /// Processes that were not traced, or not from their beginning, as far as we know and the
    /// programs do not.
    pub(super) lost_processes: u64,
    /// What came of looking at the command, this process, just before it ended (`--why`).
    pub(super) at_end: Option<(u32, Examinations)>,
    /// What shows the reports (`--tui`).
    pub(super) view: Option<View>,
    /// The last report, as long as the view keeps it from standard output.
    pub(super) last: Option<Arc<Report>>,
    /// What the last report was made of: the next one's, if nothing happens.
    pub(super) kept: Option<(Snapshot, Own)>,
    /// Probes attached, and the time that it took, since it was last said.
    attached: (usize, Duration),
}

impl Session {
    /// Of processes: nothing is traced yet.
    pub(super) fn of_processes(settings: Settings, sink: Sink, mode: UserMode, tracer: Tracer) -> Self {
        Self::new(settings, sink, Mode::User(Box::new(mode)), tracer)
    }

    /// Of the kernel.
    pub(super) fn of_kernel(settings: Settings, sink: Sink, start: KernelStart) -> Self {
        let mut session = Self::new(settings, sink, Mode::Kernel, start.tracer);
        session.reporter.symbolizer.set_kernel(start.symbols);
        session.attached = (session.tracer.probes(), start.took);
        session
    }

    fn new(settings: Settings, sink: Sink, mode: Mode, tracer: Tracer) -> Self {
        let store = match &mode {
            Mode::User(mode) => mode.store.clone(),
            Mode::Kernel => ObjectStore::default(),
        };
        let accounts = Self::new_accounts(&settings, &mode);
        let reporter = Reporter::new(&settings, sink, store);
        let (targets, due, ends) = (Targets::default(), Due::default(), mpsc::unbounded_channel());
        Self {
            settings,
            mode,
            tracer,
            targets,
            reporter,
            publisher: None,
            price: None,
            due,
            accounts,
            ends,
            thread_ends: mpsc::unbounded_channel(),
            untraced: VecDeque::new(),
            processes: Processes::default(),
            oom: OomLog::open(),
            oom_killed: Vec::new(),
            lost_processes: 0,
            at_end: None,
            view: None,
            last: None,
            kept: None,
            attached: (0, Duration::ZERO),
        }
    }

    /// Makes a process known to the programs and waits for its end. `parent`: the target that made
    /// it, and what the two share. Gives its number.
    pub(super) fn add_target(
        &mut self,
        process: &Process,
        parent: Option<(u32, Shared)>,
    ) -> Result<u32, SessionError> {
        let follows = self.settings.capture.follow_forks;
        let is_followed = parent.is_none() || follows || self.selects(process.pid);
        let cannot_wait = |error| SessionError::System("cannot wait for a process", error);
        let end = process.end_fd().map_err(cannot_wait)?;
        let watch = readable(end.try_clone().map_err(cannot_wait)?).map_err(cannot_wait)?;
        let id = TargetId { pid: process.pid, start_time: process.start_time };
        let (number, slot, target) = self
            .targets
            .add(id, process.comm.clone(), parent, is_followed)
            .ok_or(ProcessError::TooMany(process.pid))?;
        self.tracer.add_target(slot, process.pid, target, &end)?;
        if let Some(traced) = self.targets.get_mut(number) {
            traced.parent = parent_of(process.pid).unwrap_or(0);
        }
        self.reporter.sink.protect_process(process.pid);
        let ended = self.ends.0.clone();
        tokio::spawn(async move {
            // An error would mean that it can no longer be waited for: as good as ended.
            let _ = watch.readable().await;
            let _ = ended.send(number);
        });
        Ok(number)
    }

    /// Plans and attaches probes for what a target has mapped.
    pub(super) fn probe(&mut self, target: u32, which: Objects) -> Result<(), SessionError> {
        let Mode::User(mode) = &mut self.mode else { return Ok(()) };
        let Some(traced) = self.targets.get_mut(target) else { return Ok(()) };
        let plan = mode.plan(&self.settings.capture, traced, which)?;
        let scope = Scope { pid: traced.id.pid, slot: traced.slot };
        if let (Some(carried), Some(known)) =
            (&mut mode.carried, &mut self.settings.report.filter.suppressions)
        {
            for text in carried.drain(..) {
                match Suppressions::parse(&text) {
                    Ok(rules) => known.extend(rules),
                    Err(why) => {
                        warn!("suppressions that process {} carries are not read: {why}", traced.id.pid)
                    }
                }
            }
        }
        mode.dangers.tell(&self.tracer, &mode.store, scope.pid, &plan.points);
        if plan.points.is_empty() {
            return Ok(());
        }
        self.attach(scope, &plan)?;
        self.watch_thread(target);
        Ok(())
    }

    fn attach(&mut self, scope: Scope, plan: &Plan) -> Result<(), SessionError> {
        let pid = scope.pid;
        let outcome = self.tracer.attach(scope, &plan.points)?;
        for point in &plan.points {
            debug!("{point}");
        }
        let mut failed = outcome.failed.into_iter();
        if outcome.attached == 0
            && let Some(error) = failed.next()
        {
            return Err(error.into());
        }
        if failed.len() > 0 && has_ended(pid) {
            info!("process {pid} has ended before it had all its probes");
        } else {
            failed.for_each(|error| warn!("{error}"));
        }
        self.attached.0 += outcome.attached;
        self.attached.1 += outcome.took;
        Ok(())
    }

    /// Says what was attached since it was last said: all that was asked for is in by now.
    pub(super) fn tell_attached(&mut self) {
        if self.settings.verbosity > 0
            && let Some(news) = self.tracer.unwinding_news()
        {
            info!("{news}");
        }
        let (count, took) = std::mem::take(&mut self.attached);
        if count > 0 {
            info!("attached {count} probes in {} ms", millis(took));
        }
    }

    /// Takes over what a process has mapped now: the unwind tables at once, since it keeps running.
    pub(super) fn observe(&mut self, target: u32) {
        /// Readings tried: one that something was unmapped meanwhile says nothing of any time.
        const READINGS: usize = 4;
        let Some(traced) = self.targets.get(target) else { return };
        let (pid, slot, space) = (traced.id.pid, traced.slot, traced.owner.space);
        let live = LiveTarget(pid);
        for _ in 0..READINGS {
            let generation = self.tracer.generation(space);
            let mappings = match read_maps_of_code(pid) {
                Ok(mappings) => mappings,
                Err(error) => {
                    debug!("cannot read what process {pid} has mapped: {error}");
                    return;
                }
            };
            self.tracer.observe(slot, &mappings, &live);
            if self.tracer.generation(space) != generation {
                continue;
            }
            let symbolizer = &mut self.reporter.symbolizer;
            if symbolizer.observe_mappings(target, generation, mappings, &live) == Observed::Grown {
                break;
            }
            debug!("process {pid} has unmapped objects, and its dynamic linker has not told");
            self.tracer.end_generation(space);
        }
        let memory = || ProcessMemory::open(pid).ok();
        self.tracer.find_dynamic_linker(space, || debug_address(pid, &memory()?));
    }

    /// Which of the targets that have ended the kernel has killed for want of memory. `ended`: one
    /// that has just ended.
    pub(super) fn find_oom_killed(&mut self, ended: u32) {
        let killed = self.oom.as_mut().map(|log| log.kills(&[ended])).unwrap_or_default();
        let killed = killed.into_iter().map(|kill| OomKilled { pid: kill.pid, time: kill.time });
        self.oom_killed.extend(killed);
    }

    /// The targets that the kernel has killed for want of memory.
    pub(super) fn oom_killed(&self) -> Vec<OomKilled> {
        self.oom_killed.clone()
    }

    pub(super) fn detach(&mut self) {
        if let Some((count, took)) = hurry::without_counting(|| self.tracer.detach()) {
            info!("detached {count} probes in {} ms", millis(took));
        }
    }
}
