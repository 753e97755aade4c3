//! Attaching: points of a plan become links. All links end with the [`Probes`] that holds them; the kernel ends them
//! too when this process does, however it does.

use std::{
    collections::{HashMap, HashSet},
    io,
    num::NonZeroU32,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
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

use memleak_common::probe::cookie;

use super::{
    access::program,
    error::{BpfError, chain, os_error},
    multi::MultiPrograms,
    uprobes::{ABANDON, ACQUIRE_PLAIN, EMPTY_SESSION, SESSION, Uprobes},
};
use crate::probe::{
    plan::{AttachPoint, PointKey, ProgramKind},
    table::Scope as RowScope,
};

/// The process in which a probe fires: itself, and no child of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Its number in our PID namespace.
    pub pid: u32,
    /// Its place in the map `TARGETS`, which attach cookies carry.
    pub slot: u32,
}

/// What is attached.
pub struct Probes {
    uprobes: Uprobes,
    /// See [`super::user_mode::Loaded::mends_stack`].
    mends_stack: bool,
    /// By the process's slot.
    processes: HashMap<u32, Attached>,
    /// Places with a probe.
    count: usize,
}

/// What is attached to one process.
#[derive(Default)]
struct Attached {
    links: Vec<Link>,
    points: HashSet<PointKey>,
    /// Places with a probe.
    count: usize,
}

/// Ends when it is dropped.
pub(super) enum Link {
    /// Of one place.
    Single(#[expect(dead_code, reason = "held for its end")] UProbeLink),
    /// Of the places of one file.
    Multi(#[expect(dead_code, reason = "held for its end")] OwnedFd),
    /// Of a tracepoint of the kernel.
    Tracepoint(#[expect(dead_code, reason = "held for its end")] RawTracePointLink),
    /// Of a function of the kernel.
    Function(#[expect(dead_code, reason = "held for its end")] KProbeLink),
}

/// How attaching a plan went.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Points attached.
    pub attached: usize,
    /// Points that could not be, with the reason.
    pub failed: Vec<BpfError>,
    /// How long it took.
    pub took: Duration,
}

impl Probes {
    /// Nothing is attached yet.
    pub fn new(uprobes: Uprobes, mends_stack: bool) -> Self {
        Self { uprobes, mends_stack, processes: HashMap::new(), count: 0 }
    }

    /// What kernel mode has attached.
    pub(super) fn of_kernel(links: Vec<Link>) -> Self {
        let count = links.len();
        let kernel = Attached { links, points: HashSet::new(), count };
        Self { processes: HashMap::from([(0, kernel)]), count, ..Self::new(Uprobes::Single, true) }
    }

    /// Attaches what is not attached yet, in the plan's order.
    pub fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        scope: Scope,
        points: &[AttachPoint],
        traps_only: bool,
    ) -> Result<Outcome, BpfError> {
        let start = Instant::now();
        let mut outcome = Outcome::default();
        let mut attached = self.processes.remove(&scope.slot).unwrap_or_default();
        let new: Vec<&AttachPoint> =
            points.iter().filter(|point| attached.points.insert(point.key())).collect();
        for group in new.chunk_by(|a, b| a.program == b.program && a.object == b.object) {
            let Some(first) = group.first() else { continue };
            if first.program.is_return() && self.serves_both_ends() {
                outcome.attached += group.len(); // with their entries
                continue;
            }
            let name = self.program_name(first.program, traps_only);
            let whole = match &self.uprobes {
                Uprobes::Multi(programs) => attach_many(programs, name, scope, group),
                Uprobes::Single => Err(io::ErrorKind::Unsupported.into()),
            };
            match (whole, &self.uprobes) {
                (Ok(link), _) => {
                    attached.links.push(Link::Multi(link));
                    outcome.attached += group.len();
                }
                (Err(error), Uprobes::Multi(_)) => {
                    outcome.failed.extend(group.iter().map(|point| attach_error(point, why(&error))));
                }
                (Err(_), Uprobes::Single) => {
                    let program: &mut UProbe = program(ebpf, name)?;
                    for point in group {
                        match attach_one(program, scope, point) {
                            Ok(link) => {
                                attached.links.push(Link::Single(link));
                                outcome.attached += 1;
                            }
                            Err(error) => outcome.failed.push(error),
                        }
                    }
                }
            }
        }
        attached.count += outcome.attached;
        self.count += outcome.attached;
        self.processes.insert(scope.slot, attached);
        outcome.took = start.elapsed();
        Ok(outcome)
    }

    /// Ends what was attached to the process with this slot, which has ended or become another task.
    pub fn forget(&mut self, slot: u32) {
        if let Some(attached) = self.processes.remove(&slot) {
            self.count -= attached.count;
        }
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

    /// An exception that leaves one of these calls would end the process, since its stack cannot be mended here.
    pub fn dangers<'a>(&self, points: &'a [AttachPoint]) -> Option<&'a AttachPoint> {
        let throws = |point: &&AttachPoint| point.program.is_return() && point.scope == RowScope::Operator;
        if self.mends_stack { None } else { points.iter().find(throws) }
    }

    /// Number of probes.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Ends all links, and waits until the last one has.
    ///
    /// A process child of ours does it, by ending: were we killed while we close a link ourselves, the kernel could not
    /// take the breakpoints out of the target (`failed to unregister, leaking uprobe`; it gives up where the closing
    /// thread has a SIGKILL pending). Nobody kills the child, and one that ends has nothing pending any more.
    pub fn detach(&mut self) -> Duration {
        let start = Instant::now();
        if let Ok((reader, writer)) = io::pipe() {
            // SAFETY: the child makes system calls only.
            match unsafe { libc::fork() } {
                0 => {
                    let mut byte = 0u8;
                    // SAFETY: plain system calls on descriptors that are open. The read ends when the parent has closed
                    // its links, or has been killed; _exit then closes ours, which are the last.
                    unsafe {
                        libc::close(writer.as_raw_fd());
                        libc::read(reader.as_raw_fd(), (&raw mut byte).cast(), 1);
                        libc::_exit(0);
                    }
                }
                child if child > 0 => {
                    self.processes.clear();
                    drop(writer);
                    // SAFETY: the child is ours; its status is of no interest.
                    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
                }
                _ => {}
            }
        }
        self.processes.clear(); // where no child was to be had
        self.count = 0;
        start.elapsed()
    }

    /// Programs that aya does not know of.
    pub fn programs(&self) -> impl Iterator<Item = &OwnedFd> {
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
    points: &[&AttachPoint],
) -> io::Result<OwnedFd> {
    let first = points.first().ok_or(io::ErrorKind::InvalidInput)?;
    let places: Vec<(u64, u64)> =
        points.iter().map(|point| (point.file_offset, cookie(point.row, scope.slot))).collect();
    programs.attach(name, first.program.is_return(), &first.open_path, &places, scope.pid)
}

fn attach_one(program: &mut UProbe, scope: Scope, point: &AttachPoint) -> Result<UProbeLink, BpfError> {
    let pid =
        NonZeroU32::new(scope.pid).ok_or_else(|| attach_error(point, "there is no process 0".to_owned()))?;
    let location = UProbeAttachLocation::AbsoluteOffset(point.file_offset);
    let attach_point = UProbeAttachPoint { location, cookie: Some(cookie(point.row, scope.slot)) };
    let path: &Path = &point.open_path;
    program
        .attach(attach_point, path, UProbeScope::OneProcess(pid))
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
        // kernel/events/uprobes.c, uprobe_register: two tools that give one place different reference counters.
        Some(libc::EINVAL) => {
            "the kernel refuses a probe there; end other tools that trace the same function, and try again"
                .to_owned()
        }
        Some(libc::EMFILE) => "too many open files; raise the limit (ulimit -n)".to_owned(),
        _ => chain(error),
    }
}
