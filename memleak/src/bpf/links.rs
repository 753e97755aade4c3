//! Attaching: points of a plan become links. All links end with the [`Probes`] that holds them; the
//! kernel ends them too when this process does, however it does.

use std::{
    collections::{HashMap, HashSet},
    io,
    num::NonZeroU32,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd},
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    programs::{
        ProgramError, UProbe,
        kprobe::KProbeLink,
        raw_trace_point::RawTracePointLink,
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope},
    },
};

use log::debug;
use memleak_common::probe::cookie;

use super::{
    access::program,
    closer::{Closer, HoldsLinks, Retired, end_with_a_child},
    error::{BpfError, chain, load_error, os_error},
    multi::MultiPrograms,
    perf_links,
    uprobes::{ABANDON, ACQUIRE_PLAIN, EMPTY_SESSION, SESSION, Uprobes},
};
use crate::{
    arch::returns::Unclear,
    probe::{
        plan::{AttachPoint, PointKey, ProgramKind},
        table::Scope as RowScope,
    },
    proc::living::living_thread,
};

/// The process in which a probe fires: itself, and no child of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scope {
    /// Its number in our PID namespace.
    pub pid: u32,
    /// Its place in the map `TARGETS`, which attach cookies carry.
    pub slot: u32,
}

/// What is attached.
pub(super) struct Probes {
    uprobes: Uprobes,
    /// See [`super::user_mode::Loaded::mends_stack`].
    mends_stack: bool,
    /// By the process's slot.
    processes: HashMap<u32, Attached>,
    /// Places with a probe.
    count: usize,
    /// `None` while nothing was to be ended yet.
    closer: Option<Closer<Link>>,
    /// Slots that are free without it.
    freed: Vec<u32>,
}

/// What is attached to one process.
#[derive(Default)]
struct Attached {
    links: Vec<Link>,
    /// The thread by which it is attached: the process's first, unless that has ended.
    thread: u32,
    /// Those of the points that are attached by links of their own.
    singles: Vec<Arc<AttachPoint>>,
    /// In the order in which they were attached.
    points: Vec<Arc<AttachPoint>>,
    keys: HashSet<PointKey>,
    /// Places with a probe.
    count: usize,
}

/// Ends when it is dropped.
pub(super) enum Link {
    /// Of one place, made by ourselves.
    Perf(OwnedFd),
    /// Of one place.
    Single(#[expect(dead_code, reason = "held for its end")] UProbeLink),
    /// Of the places of one file.
    Multi(OwnedFd),
    /// Of a tracepoint of the kernel.
    Tracepoint(#[expect(dead_code, reason = "held for its end")] RawTracePointLink),
    /// Of a function of the kernel.
    Function(#[expect(dead_code, reason = "held for its end")] KProbeLink),
}

impl HoldsLinks for Link {
    fn add_to(&self, fds: &mut Vec<RawFd>) -> bool {
        match self {
            Self::Multi(fd) | Self::Perf(fd) => {
                fds.push(fd.as_raw_fd());
                true
            }
            // aya keeps theirs to itself.
            Self::Single(_) | Self::Tracepoint(_) | Self::Function(_) => false,
        }
    }
}

impl HoldsLinks for Attached {
    fn add_to(&self, fds: &mut Vec<RawFd>) -> bool {
        self.links.add_to(fds)
    }
}

/// How attaching a plan went.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Points attached.
    pub attached: usize,
    /// Points that could not be, with the reason.
    pub failed: Vec<BpfError>,
    /// How long it took.
    pub took: Duration,
}

/// Children that end links at once, at the end of all: each waits for the kernel's grace periods.
const CHILDREN: usize = 8;

/// What becomes of a process's slot when its links have ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SlotFate {
    /// Another task of the process has it.
    Kept,
    /// It is free for another process.
    Freed,
}

impl Probes {
    /// Nothing is attached yet.
    pub(super) fn new(uprobes: Uprobes, mends_stack: bool) -> Self {
        let (processes, freed) = (HashMap::new(), Vec::new());
        Self { uprobes, mends_stack, processes, count: 0, closer: None, freed }
    }

    /// What kernel mode has attached.
    pub(super) fn of_kernel(links: Vec<Link>) -> Self {
        let count = links.len();
        let kernel = Attached { links, count, ..Attached::default() };
        Self { processes: HashMap::from([(0, kernel)]), count, ..Self::new(Uprobes::Single, true) }
    }

    /// Attaches what is not attached yet, in the plan's order.
    pub(super) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        scope: Scope,
        points: &[AttachPoint],
        traps_only: bool,
    ) -> Result<Outcome, BpfError> {
        let points = points.iter().map(|point| Arc::new(point.clone())).collect();
        self.attach_shared(ebpf, scope, points, traps_only)
    }

    fn attach_shared(
        &mut self,
        ebpf: &mut Ebpf,
        scope: Scope,
        mut new: Vec<Arc<AttachPoint>>,
        traps_only: bool,
    ) -> Result<Outcome, BpfError> {
        let start = Instant::now();
        let mut outcome = Outcome::default();
        let mut attached = self.processes.remove(&scope.slot).unwrap_or_default();
        new.retain(|point| attached.keys.insert(point.key()));
        attached.thread = living_thread(scope.pid);
        let multi = self.multi(&attached, scope);
        let (wanted, links_before) = (new.clone(), attached.links.len());
        // One link for what one program serves: the kernel takes its places in order, and each link
        // costs grace periods at its end.
        if multi.is_some_and(MultiPrograms::serves_both_ends) {
            let before = new.len();
            new.retain(|point| !point.program.is_return());
            outcome.attached += before - new.len(); // with their entries
        }
        let name_of = |point: &AttachPoint| self.program_name(multi, point.program, traps_only);
        for group in new.chunk_by(|a, b| name_of(a) == name_of(b) && a.object == b.object) {
            let Some(first) = group.first() else { continue };
            let name = name_of(first);
            match multi.map(|programs| attach_many(programs, name, scope, group)) {
                Some(Ok(link)) => {
                    attached.links.push(Link::Multi(link));
                    outcome.attached += group.len();
                }
                Some(Err(error)) => {
                    outcome.failed.extend(group.iter().map(|point| attach_error(point, why(&error))));
                }
                None => {
                    let by = By { uprobes: &self.uprobes, thread: attached.thread };
                    if let Err(error) = by.attach(ebpf, name, scope, group, &mut attached, &mut outcome) {
                        outcome.failed.push(error);
                    }
                }
            }
        }
        if multi.is_some() && living_thread(scope.pid) != scope.pid {
            // Its first thread has ended meanwhile: by others, then.
            attached.links.truncate(links_before);
            for point in &wanted {
                attached.keys.remove(&point.key());
            }
            self.processes.insert(scope.slot, attached);
            return self.attach_shared(ebpf, scope, wanted, traps_only);
        }
        attached.points.extend(wanted);
        attached.count += outcome.attached;
        self.count += outcome.attached;
        self.processes.insert(scope.slot, attached);
        outcome.took = start.elapsed();
        Ok(outcome)
    }

    /// How places of a process are attached to: by one link for many, if the kernel has that and
    /// the process's first thread lives. Such a link finds the process's memory by that thread
    /// alone (kernel/trace/bpf_trace.c, `uprobe_multi_link_filter`), and where that is gone it is
    /// made and sets no breakpoint.
    fn multi(&self, attached: &Attached, scope: Scope) -> Option<&MultiPrograms> {
        match &self.uprobes {
            Uprobes::Multi(programs) if attached.thread == scope.pid => Some(programs),
            _ => None,
        }
    }

    /// The thread of the process with this slot whose end ends what is attached, though the process
    /// goes on: see [`Self::attach_anew`].
    pub(super) fn depends_on(&self, slot: u32) -> Option<u32> {
        let attached = self.processes.get(&slot)?;
        (!attached.singles.is_empty()).then_some(attached.thread)
    }

    /// Attaches the same again by another thread of the process: the one by which it was attached
    /// has ended, and so the kernel takes the breakpoints out at the next hit
    /// (kernel/trace/trace_uprobe.c, `uprobe_perf_filter`).
    pub(super) fn attach_anew(
        &mut self,
        ebpf: &mut Ebpf,
        scope: Scope,
        traps_only: bool,
    ) -> Result<Outcome, BpfError> {
        let Some(attached) = self.processes.get_mut(&scope.slot) else { return Ok(Outcome::default()) };
        let points = std::mem::take(&mut attached.singles);
        for point in &points {
            attached.keys.remove(&point.key());
        }
        let keys = &attached.keys;
        attached.points.retain(|point| keys.contains(&point.key()));
        let links = attached.links.extract_if(.., |link| !matches!(link, Link::Multi(_))).collect();
        attached.count -= points.len();
        self.count -= points.len();
        let outcome = self.attach_shared(ebpf, scope, points, traps_only);
        // They do nothing any more, and take long to end.
        self.close(Retired { links, slot: None });
        outcome
    }

    /// Ends what is attached to the process with this slot, which has become another task.
    pub(super) fn forget(&mut self, slot: u32) {
        self.retire(slot, SlotFate::Kept);
    }

    /// Ends what was attached to the process with this slot, which has ended: [`Self::closed`] will
    /// give the slot.
    pub(super) fn release(&mut self, slot: u32) {
        self.retire(slot, SlotFate::Freed);
    }

    fn retire(&mut self, slot: u32, after: SlotFate) {
        let attached = self.processes.remove(&slot).unwrap_or_default();
        self.count -= attached.count;
        self.close(Retired { links: attached.links, slot: (after == SlotFate::Freed).then_some(slot) });
    }

    /// Ends links, if possible beside the run.
    fn close(&mut self, retired: Retired<Link>) {
        if self.closer.is_none() {
            self.closer =
                Closer::start().inspect_err(|error| debug!("links are ended at once: {error}")).ok();
        }
        match &self.closer {
            Some(closer) => closer.retire(retired),
            None => {
                wait_for(end_with_a_child(retired.links));
                self.freed.extend(retired.slot);
            }
        }
    }

    /// Ends what is attached to the process with this slot, and waits until it has.
    pub(super) fn end(&mut self, slot: u32) {
        if let Some(attached) = self.processes.remove(&slot) {
            self.count -= attached.count;
            wait_for(end_with_a_child(attached.links));
        }
    }

    /// Waits until all links have ended that are to end.
    pub(super) fn finish_closing(&mut self) {
        if let Some(closer) = self.closer.take() {
            self.freed.extend(closer.finish());
        }
    }

    /// Slots of ended processes whose links have ended since this was last asked.
    pub(super) fn closed(&mut self) -> Vec<u32> {
        let mut closed = std::mem::take(&mut self.freed);
        closed.extend(self.closer.iter().flat_map(Closer::closed));
        closed
    }

    /// Attaches to a process what is attached to the one that has made it. Says whether all of it
    /// could be.
    pub(super) fn inherit(
        &mut self,
        ebpf: &mut Ebpf,
        parent: u32,
        scope: Scope,
        traps_only: bool,
    ) -> Result<bool, BpfError> {
        let Some(points) = self.processes.get(&parent).map(|parent| parent.points.clone()) else {
            return Ok(false);
        };
        let outcome = self.attach_shared(ebpf, scope, points, traps_only)?;
        Ok(outcome.failed.is_empty())
    }

    fn program_name(
        &self,
        multi: Option<&MultiPrograms>,
        kind: ProgramKind,
        traps_only: bool,
    ) -> &'static str {
        let [_, abandon_plain] = ABANDON;
        // The program at a call's entry runs at its return, too.
        let both_ends = multi.is_some_and(MultiPrograms::serves_both_ends);
        match (traps_only, kind) {
            (false, ProgramKind::AcquireEnter) if both_ends => SESSION,
            (true, ProgramKind::AcquireEnter) if both_ends => EMPTY_SESSION,
            (false, ProgramKind::AcquireEnter) if !self.mends_stack => ACQUIRE_PLAIN,
            (false, ProgramKind::AbandonEnter) if !self.mends_stack => abandon_plain,
            (false, kind) => kind.name(),
            (true, ProgramKind::AcquireExit) => "empty_exit",
            (true, _) => "empty_enter",
        }
    }

    /// The stack is mended when an exception leaves a call whose return address is replaced.
    pub(super) fn mends_stack(&self) -> bool {
        self.mends_stack
    }

    /// A call that would end the process if it switched stacks or, if the stack cannot be mended
    /// here, threw an exception; with the reason why its `ret` instructions are not probed instead.
    pub(super) fn dangers<'a>(
        &self,
        points: &'a [AttachPoint],
    ) -> impl Iterator<Item = (&'a AttachPoint, Unclear)> {
        let mends_stack = self.mends_stack;
        let is_dangerous = move |point: &AttachPoint| match point.scope {
            RowScope::User => true,
            RowScope::Operator => !mends_stack,
            _ => false,
        };
        let unclear = points.iter().filter_map(|point| Some((point, point.unclear?)));
        unclear.filter(move |(point, _)| is_dangerous(point))
    }

    /// Links are made of perf's events, by ourselves and not by a child that keeps its rights.
    pub(super) fn makes_events(&self) -> bool {
        matches!(self.uprobes, Uprobes::Single)
    }

    /// The probes of the process with this slot fire for its threads, and not for all that share
    /// its memory.
    pub(super) fn are_of_threads(&self, slot: u32) -> bool {
        matches!(self.uprobes, Uprobes::Multi(_)) && self.depends_on(slot).is_none()
    }

    /// Number of probes.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Ends all links, and waits until the last one has. See [`super::closer`] for how.
    pub(super) fn detach(&mut self) -> Duration {
        let start = Instant::now();
        self.closer = None; // what it has begun comes to its end
        self.count = 0;
        let attached = std::mem::take(&mut self.processes).into_values();
        let mut links: Vec<Link> = attached.flat_map(|attached| attached.links).collect();
        let at_once = links.len().div_ceil(CHILDREN).max(1);
        let mut children = Vec::with_capacity(CHILDREN);
        while !links.is_empty() {
            let rest = links.split_off(links.len().min(at_once));
            children.push(end_with_a_child(std::mem::replace(&mut links, rest)));
        }
        children.into_iter().for_each(wait_for);
        start.elapsed()
    }

    /// Programs that aya does not know of.
    pub(super) fn programs(&self) -> impl Iterator<Item = &OwnedFd> {
        match &self.uprobes {
            Uprobes::Single => None,
            Uprobes::Multi(programs) => Some(programs.loaded()),
        }
        .into_iter()
        .flatten()
    }
}

fn attach_many(
    programs: &MultiPrograms,
    name: &str,
    scope: Scope,
    points: &[Arc<AttachPoint>],
) -> io::Result<OwnedFd> {
    let first = points.first().ok_or(io::ErrorKind::InvalidInput)?;
    let places: Vec<(u64, u64)> =
        points.iter().map(|point| (point.file_offset, cookie(point.row, scope.slot))).collect();
    let path = as_seen_by(scope.pid, &first.open_path);
    programs.attach(name, first.program.is_return(), &path, &places, scope.pid)
}

/// The path that opens the object of a point in process `pid`: a child has what its parent had
/// mapped, at the same addresses.
fn as_seen_by(pid: u32, open_path: &Path) -> PathBuf {
    let mut parts = open_path.components();
    let is_of_process = parts.next() == Some(Component::RootDir)
        && parts.next() == Some(Component::Normal("proc".as_ref()))
        && parts.next().is_some();
    let thread = living_thread(pid).to_string();
    if is_of_process { Path::new("/proc").join(thread).join(parts) } else { open_path.to_owned() }
}

fn wait_for(child: libc::pid_t) {
    if child > 0 {
        // SAFETY: the child is ours; its status is of no interest.
        unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    }
}

/// By what places are attached to one by one.
struct By<'a> {
    uprobes: &'a Uprobes,
    thread: u32,
}

impl By<'_> {
    fn attach(
        &self,
        ebpf: &mut Ebpf,
        name: &'static str,
        scope: Scope,
        points: &[Arc<AttachPoint>],
        attached: &mut Attached,
        outcome: &mut Outcome,
    ) -> Result<(), BpfError> {
        let program: &mut UProbe = program(ebpf, name)?;
        // Where there are links for many places it is loaded for those alone until now.
        if matches!(program.fd(), Err(ProgramError::NotLoaded)) {
            program.load().map_err(|error| load_error(&error))?;
        }
        for point in points {
            let link = match self.uprobes {
                Uprobes::Single => attach_one(program, self.thread, scope, point).map(Link::Single),
                Uprobes::Multi(programs) => self.attach_by_event(program, programs, scope, point),
            };
            match link {
                Ok(link) => {
                    attached.links.push(link);
                    attached.singles.push(point.clone());
                    outcome.attached += 1;
                }
                Err(error) => outcome.failed.push(error),
            }
        }
        Ok(())
    }

    fn attach_by_event(
        &self,
        program: &UProbe,
        programs: &MultiPrograms,
        scope: Scope,
        point: &AttachPoint,
    ) -> Result<Link, BpfError> {
        let failed = |error: io::Error| attach_error(point, why(&error));
        let program = program.fd().map_err(|error| attach_error(point, why(&error)))?;
        let place = perf_links::EventPlace {
            path: &as_seen_by(scope.pid, &point.open_path),
            offset: point.file_offset,
            is_return: point.program.is_return(),
            thread: self.thread,
        };
        let mut request = perf_links::request(place).map_err(failed)?;
        let event = programs.open_event(&mut request).map_err(failed)?;
        let cookie = cookie(point.row, scope.slot);
        perf_links::link(program.as_fd(), &event, cookie).map(Link::Perf).map_err(failed)
    }
}

fn attach_one(
    program: &mut UProbe,
    thread: u32,
    scope: Scope,
    point: &AttachPoint,
) -> Result<UProbeLink, BpfError> {
    let thread =
        NonZeroU32::new(thread).ok_or_else(|| attach_error(point, "there is no process 0".to_owned()))?;
    let location = UProbeAttachLocation::AbsoluteOffset(point.file_offset);
    let attach_point = UProbeAttachPoint { location, cookie: Some(cookie(point.row, scope.slot)) };
    let path = as_seen_by(scope.pid, &point.open_path);
    program
        .attach(attach_point, path, UProbeScope::OneProcess(thread))
        .and_then(|id| program.take_link(id))
        .map_err(|error| attach_error(point, why(&error)))
}

fn attach_error(point: &AttachPoint, reason: String) -> BpfError {
    BpfError::Attach {
        function: point.function.clone(),
        object: point.open_path.display().to_string(),
        reason,
    }
}

fn why(error: &(dyn std::error::Error + 'static)) -> String {
    match os_error(error) {
        Some(libc::ESRCH) => "the process has ended".to_owned(),
        Some(libc::EPERM | libc::EACCES) => {
            "permission denied; run as root, or give CAP_PERFMON and CAP_SYS_PTRACE".to_owned()
        }
        // kernel/events/uprobes.c, uprobe_register: two tools that give one place different
        // reference counters.
        Some(libc::EINVAL) => {
            "the kernel refuses a probe there; end other tools that trace the same function, and try again"
                .to_owned()
        }
        Some(libc::EMFILE) => "too many open files; raise the limit (ulimit -n)".to_owned(),
        _ => chain(error),
    }
}
