//! Attaching: points of a plan become links. All links end with the [`Probes`] that holds them; the
//! kernel ends them too when this process does, however it does.

use std::{
    collections::{HashMap, HashSet},
    io,
    num::NonZeroU32,
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    programs::{
        UProbe,
        kprobe::KProbeLink,
        raw_trace_point::RawTracePointLink,
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope},
    },
};

use super::{
    access::program,
    closer::{Closer, HoldsLinks, Retired, end_with_a_child},
    error::{BpfError, chain, os_error},
    multi::{MultiPrograms, ProbePlace},
    perf_events,
    uprobes::{ABANDON, ACQUIRE_PLAIN, EMPTY_SESSION, SESSION, Uprobes},
    usdt::UsdtSites,
};
use crate::{
    arch::returns::Unclear,
    probe::{
        plan::{AttachPoint, PointKey, ProgramKind},
        table::Scope as RowScope,
    },
    proc::living::living_thread,
    target::object::ObjectId,
};
use log::debug;

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
    usdt_sites: UsdtSites,
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
    /// The thread by whose memory the kernel sets breakpoints: the process's first, unless that has
    /// ended.
    thread: u32,
    /// Places that events of that thread hold.
    held: HashSet<(ObjectId, u64)>,
    /// In the order in which they were attached.
    points: Vec<Arc<AttachPoint>>,
    keys: HashSet<PointKey>,
    /// Places with a probe.
    count: usize,
}

/// Ends when it is dropped.
pub(super) enum Link {
    /// Not one by itself: an event that keeps the breakpoint of one place in.
    Event(OwnedFd),
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
            Self::Multi(fd) | Self::Event(fd) => {
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
        let usdt_sites = UsdtSites::default();
        Self { uprobes, mends_stack, processes, usdt_sites, count: 0, closer: None, freed }
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
        // One link for what one program serves: the kernel takes its places in order, and each link
        // costs grace periods at its end.
        if self.serves_both_ends() {
            let before = new.len();
            attached.points.extend(new.extract_if(.., |point| point.program.is_return()));
            outcome.attached += before - new.len(); // with their entries
        }
        let names: Vec<_> = new.iter().map(|point| self.program_name(point.program, traps_only)).collect();
        let mut rest = new.as_slice();
        while let (Some(first), Some(name)) = (rest.first(), names.get(new.len() - rest.len())) {
            let of_link = |(point, other): (&Arc<AttachPoint>, &&'static str)| {
                *other == *name && point.object == first.object
            };
            let others = names.get(new.len() - rest.len()..).unwrap_or_default();
            let len = rest.iter().zip(others).take_while(|it| of_link(*it)).count();
            let (group, after) = rest.split_at(len);
            self.attach_group(ebpf, scope, (name, group), (&mut attached, &mut outcome))?;
            rest = after;
        }
        attached.points.append(&mut new);
        self.hold(&mut attached, scope, &mut outcome);
        attached.count += outcome.attached;
        self.count += outcome.attached;
        self.processes.insert(scope.slot, attached);
        outcome.took = start.elapsed();
        Ok(outcome)
    }

    /// Attaches one program to points of one object.
    fn attach_group(
        &mut self,
        ebpf: &mut Ebpf,
        scope: Scope,
        (name, group): (&'static str, &[Arc<AttachPoint>]),
        (attached, outcome): (&mut Attached, &mut Outcome),
    ) -> Result<(), BpfError> {
        let Some(first) = group.first() else { return Ok(()) };
        // What is attached already stays.
        let places = match self.places(ebpf, scope, (name, group)) {
            Ok(places) => places,
            Err(error) => {
                let reason = error.to_string();
                outcome.failed.extend(group.iter().map(|point| attach_error(point, reason.clone())));
                return Ok(());
            }
        };
        match &self.uprobes {
            Uprobes::Multi(programs) => match attach_many(programs, name, scope, (first, &places)) {
                Ok(link) => {
                    attached.links.push(Link::Multi(link));
                    outcome.attached += group.len();
                }
                Err(error) => {
                    outcome.failed.extend(group.iter().map(|point| attach_error(point, why(&error))));
                }
            },
            Uprobes::Single => {
                let program: &mut UProbe = program(ebpf, name)?;
                for (point, place) in group.iter().zip(&places) {
                    match attach_one(program, attached.thread, scope, (point, place)) {
                        Ok(link) => {
                            attached.links.push(Link::Single(link));
                            outcome.attached += 1;
                        }
                        Err(error) => outcome.failed.push(error),
                    }
                }
            }
        }
        Ok(())
    }

    /// The places of points, of which the programs are told what they need to know.
    fn places(
        &mut self,
        ebpf: &mut Ebpf,
        scope: Scope,
        (name, group): (&'static str, &[Arc<AttachPoint>]),
    ) -> Result<Vec<ProbePlace>, BpfError> {
        if group.iter().any(|point| point.program.is_rare()) {
            self.uprobes.load_late(ebpf, name)?;
        }
        let place = |point: &Arc<AttachPoint>| {
            let counter_offset = point.usdt.and_then(|usdt| usdt.semaphore).unwrap_or(0);
            let cookie = self.usdt_sites.cookie(ebpf, point, scope.slot)?;
            Ok(ProbePlace { file_offset: point.file_offset, cookie, counter_offset })
        };
        group.iter().map(place).collect()
    }

    /// Has the kernel set the breakpoints of a process whose first thread has ended, and keep them
    /// in. A link for many places finds the process's memory by that thread
    /// (kernel/trace/bpf_trace.c, `uprobe_multi_link_filter`): without it the link sets none, and
    /// those that are in go when whoever has one at the same place takes it out. But it fires where
    /// there is one, so an event of perf's by a thread that lives, which runs nothing, will do.
    fn hold(&self, attached: &mut Attached, scope: Scope, outcome: &mut Outcome) {
        let Uprobes::Multi(programs) = &self.uprobes else { return };
        // Once more: it may have ended meanwhile.
        attached.thread = living_thread(scope.pid);
        if attached.thread == scope.pid {
            return;
        }
        let Attached { links, held, points, thread, .. } = attached;
        for point in points.iter().filter(|point| held.insert((point.object, point.file_offset))) {
            let path = as_seen_by(scope.pid, &point.open_path);
            let event = perf_events::request(&path, point.file_offset, *thread)
                .and_then(|mut request| programs.open_event(&mut request));
            match event {
                Ok(event) => links.push(Link::Event(event)),
                Err(error) => outcome.failed.push(attach_error(point, why(&error))),
            }
        }
    }

    /// The thread of the process with this slot without which breakpoints go: see
    /// [`Self::attach_anew`].
    pub(super) fn depends_on(&self, slot: u32) -> Option<u32> {
        let attached = self.processes.get(&slot)?;
        (!attached.points.is_empty()).then_some(attached.thread)
    }

    /// The thread of a process has ended by which it was attached, and another one lives. Links for
    /// many places stay, and so do their breakpoints. Those for one place are made again: the
    /// kernel takes their breakpoints out at the next hit (kernel/trace/trace_uprobe.c,
    /// `uprobe_perf_filter`).
    pub(super) fn attach_anew(
        &mut self,
        ebpf: &mut Ebpf,
        scope: Scope,
        traps_only: bool,
    ) -> Result<Outcome, BpfError> {
        let mut outcome = Outcome::default();
        let Some(mut attached) = self.processes.remove(&scope.slot) else { return Ok(outcome) };
        let links = match self.uprobes {
            Uprobes::Multi(_) => {
                let events = attached.links.extract_if(.., |link| matches!(link, Link::Event(_))).collect();
                attached.held.clear();
                self.hold(&mut attached, scope, &mut outcome);
                self.processes.insert(scope.slot, attached);
                events
            }
            Uprobes::Single => {
                self.count -= attached.count;
                outcome = self.attach_shared(ebpf, scope, attached.points, traps_only)?;
                attached.links
            }
        };
        // They do nothing any more, and take long to end.
        self.close(Retired { links, slot: None });
        Ok(outcome)
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

    /// The program at a call's entry runs at its return, too.
    fn serves_both_ends(&self) -> bool {
        matches!(&self.uprobes, Uprobes::Multi(programs) if programs.serves_both_ends())
    }

    fn program_name(&self, kind: ProgramKind, traps_only: bool) -> &'static str {
        let [_, abandon_plain] = ABANDON;
        match (traps_only, kind) {
            (false, ProgramKind::AcquireEnter) if self.serves_both_ends() => SESSION,
            (true, ProgramKind::AcquireEnter) if self.serves_both_ends() => EMPTY_SESSION,
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

    /// A probe fires for the threads of a process, and not for all that share its memory.
    pub(super) fn are_of_threads(&self) -> bool {
        matches!(self.uprobes, Uprobes::Multi(_))
    }

    /// Links are made of perf's events, by ourselves and not by a child that keeps its rights.
    pub(super) fn makes_events(&self) -> bool {
        matches!(self.uprobes, Uprobes::Single)
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
    (first, places): (&AttachPoint, &[ProbePlace]),
) -> io::Result<OwnedFd> {
    let path = as_seen_by(scope.pid, &first.open_path);
    programs.attach(name, first.program.is_return(), &path, places, scope.pid)
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

fn attach_one(
    program: &mut UProbe,
    thread: u32,
    scope: Scope,
    (point, place): (&AttachPoint, &ProbePlace),
) -> Result<UProbeLink, BpfError> {
    if place.counter_offset != 0 {
        let reason = "the program waits for its counter to be raised, which needs Linux 6.11".to_owned();
        return Err(attach_error(point, reason));
    }
    let thread =
        NonZeroU32::new(thread).ok_or_else(|| attach_error(point, "there is no process 0".to_owned()))?;
    let location = UProbeAttachLocation::AbsoluteOffset(place.file_offset);
    let attach_point = UProbeAttachPoint { location, cookie: Some(place.cookie) };
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
