//! The state of a run, and what its parts do together.

use std::time::{Duration, Instant};

use log::{debug, info, warn};

use super::{
    SessionError,
    kernel_mode::KernelStart,
    reporter::Reporter,
    targets::Targets,
    user_mode::{Objects, UserMode, scope},
    wait::millis,
};
use crate::{
    bpf::Tracer,
    objects::ObjectStore,
    probe::plan::Plan,
    proc::{maps::read_maps, status::read_status},
    report::sink::Sink,
    settings::Settings,
    symbolize::LiveTarget,
    target::process::PidFd,
};

/// What is traced.
pub(super) enum Mode {
    /// Processes.
    User(UserMode),
    /// The kernel: all is attached when it begins.
    Kernel,
}

/// What is to be done some time.
#[derive(Default)]
pub(super) struct Due {
    /// When stacks that nothing refers to are to be removed.
    pub(super) collection: Option<Instant>,
    /// When what execs have made void is to be removed.
    pub(super) void: Option<Instant>,
}

/// Everything of a run.
pub(super) struct Session {
    pub(super) settings: Settings,
    pub(super) mode: Mode,
    pub(super) tracer: Tracer,
    pub(super) targets: Targets,
    pub(super) reporter: Reporter,
    pub(super) due: Due,
    /// Probes attached, and the time that it took, since it was last said.
    attached: (usize, Duration),
}

impl Session {
    /// Of processes: nothing is traced yet.
    pub(super) fn of_processes(settings: Settings, sink: Sink, mode: UserMode, tracer: Tracer) -> Self {
        Self::new(settings, sink, Mode::User(mode), tracer)
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
        let reporter = Reporter::new(settings.capture.catalog(), sink, store);
        let (targets, due) = (Targets::new(), Due::default());
        Self { settings, mode, tracer, targets, reporter, due, attached: (0, Duration::ZERO) }
    }

    /// Makes a process known to the programs and waits for its end.
    pub(super) fn add_target(&mut self, pid: u32, comm: String, end: PidFd) -> Result<(), SessionError> {
        self.tracer.add_target(pid)?;
        self.targets.add(pid, comm, end)
    }

    /// Plans and attaches probes for what process `pid` has mapped.
    pub(super) fn probe(&mut self, pid: u32, which: Objects) -> Result<(), SessionError> {
        let Mode::User(mode) = &mut self.mode else { return Ok(()) };
        let plan = mode.plan(&self.settings.capture, &mut self.targets, pid, which)?;
        if plan.points.is_empty() {
            return Ok(());
        }
        mode.warn_of_dangers(&self.tracer, pid, &plan.points);
        self.attach(pid, &plan)
    }

    fn attach(&mut self, pid: u32, plan: &Plan) -> Result<(), SessionError> {
        let outcome = self.tracer.attach(scope(&self.settings.capture, pid), &plan.points)?;
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

    /// Takes over what a process has mapped now: the unwind tables at once, since it goes on.
    pub(super) fn observe(&mut self, pid: u32) {
        let mappings = match read_maps(pid) {
            Ok(mappings) => mappings,
            Err(error) => {
                debug!("cannot read what process {pid} has mapped: {error}");
                return;
            }
        };
        if let Err(error) = self.tracer.observe(pid, &mappings, &LiveTarget(pid)) {
            warn!("{error}");
        }
        self.reporter.symbolizer.observe_mappings(pid, mappings, &LiveTarget(pid));
    }

    pub(super) fn detach(&mut self) {
        if let Some((count, took)) = self.tracer.detach() {
            info!("detached {count} probes in {} ms", millis(took));
        }
    }
}
