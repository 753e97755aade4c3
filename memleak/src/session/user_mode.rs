//! User mode: what is probed in processes.

use std::{collections::HashSet, process::Child};

use log::info;
use memleak_common::probe::Resource;

use super::{
    SessionError,
    checks::{check_plan, tell_gaps},
    config::config,
    dangers::Dangers,
    follow::Follower,
    members::Members,
    wait::millis,
};
use crate::{
    bpf::{Tracer, UserStart, answering_threads},
    objects::ObjectStore,
    probe::{
        gaps::{self, Gap, gaps},
        plan::{Plan, PlanOptions, ProgramKind, plan, symbol_names},
        table::{Role, Row, TABLE},
    },
    proc::{
        copied::copies,
        cpu_times::CpuTimes,
        maps::read_maps,
        memory::{ProcessMemory, ReadMemory},
    },
    settings::{CaptureSettings, Settings, TargetSpec},
    target::{
        command::HeldCommand,
        object::{ObjectId, read_objects},
        process::{Process, ProcessError},
    },
    targets::Traced,
};

/// What LeakSanitizer asks a program for its known leaks (sanitizer/lsan_interface.h).
const CARRIED: &str = "__lsan_default_suppressions";
/// Longest text of them.
const MOST_CARRIED: u64 = 64 << 10;

/// Which of a process's objects are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Objects {
    /// All.
    All,
    /// Those that were not looked at before.
    New,
}

/// What is probed in processes, and the command that was started.
pub(super) struct UserMode {
    /// What processes have mapped, open.
    pub(super) store: ObjectStore,
    /// The table of this run.
    rows: Vec<Row>,
    /// Resources that functions of the target's are probed for.
    probed: Vec<Resource>,
    /// Replaced return addresses can be put back on a target's stack.
    mends_stack: bool,
    /// What replaced return addresses could do.
    pub(super) dangers: Dangers,
    /// Follows children and new programs.
    pub(super) follower: Follower,
    /// Processes that are selected, and those to come.
    pub(super) members: Option<Members>,
    /// What is not seen of allocators, as far as it was told.
    told_gaps: HashSet<Gap>,
    /// Suppressions that objects carry, and that were not taken in yet; `None` if they are not
    /// asked for.
    pub(super) carried: Option<Vec<String>>,
    /// A command that does not run yet.
    pub(super) held: Option<HeldCommand>,
    /// A command that runs.
    pub(super) command: Option<Child>,
    /// CPUs that the processes kept busy while the programs were loaded: they were not traced yet.
    pub(super) untraced_cpus: f64,
}

/// Loads the programs, and enters the unwind tables of `processes`.
pub(super) fn load(settings: &Settings, processes: &[Process]) -> Result<(UserMode, Tracer), SessionError> {
    let mut rows = [TABLE.as_slice(), &settings.capture.user_rows].concat();
    // mremap leaves no frame behind.
    let is_growth_alone = settings.capture.resources == [Resource::Growth];
    rows.retain(|row| match row.role {
        Role::Ending => asks_for_end(settings),
        Role::Abandon => !is_growth_alone,
        _ => true,
    });
    let store = ObjectStore::default();
    let pids = processes.iter().map(|process| process.pid);
    let times = CpuTimes::of(pids.clone());
    let UserStart { tracer, births, by_tracepoints, took } =
        Tracer::of_processes(&config(settings), &rows, pids, &store)?;
    info!("loaded the BPF programs in {} ms", millis(took));
    let (untraced_cpus, _) = times.cpus_so_far();
    // Pages are told by tracepoints, but for their moves.
    let is_probed = |resource: &Resource| *resource == Resource::Growth || !by_tracepoints.contains(resource);
    let probed = settings.capture.resources.iter().copied().filter(is_probed).collect();
    let follower = Follower::start(births, answering_threads())
        .map_err(|error| SessionError::System("cannot start a thread", error))?;
    let (mends_stack, told_gaps) = (tracer.mends_stack(), HashSet::new());
    let (members, dangers, held, command) = (None, Dangers::default(), None, None);
    let carried = settings.report.filter.suppressions.is_some().then(Vec::new);
    let mode = UserMode {
        store,
        rows,
        probed,
        mends_stack,
        dangers,
        told_gaps,
        follower,
        members,
        carried,
        held,
        command,
        untraced_cpus,
    };
    Ok((mode, tracer))
}

/// A command is looked at before it ends.
fn asks_for_end(settings: &Settings) -> bool {
    settings.why.is_some() && matches!(settings.target, TargetSpec::Command(_))
}

impl UserMode {
    /// Plans probes for what a process has mapped: for all of it, if that must hold an
    /// allocator, or for the objects that were not looked at yet.
    pub(super) fn plan(
        &mut self,
        capture: &CaptureSettings,
        traced: &mut Traced,
        which: Objects,
    ) -> Result<Plan, SessionError> {
        let pid = traced.id.pid;
        let options = PlanOptions {
            rows: &self.rows,
            resources: &self.probed,
            object: capture.object.as_deref(),
            symbols_prefix: capture.symbols_prefix.as_deref(),
            mends_stack: self.mends_stack,
            already: None,
        };
        let mut mappings = read_maps(pid).map_err(|error| ProcessError::of(pid, error))?;
        let copies = copies(pid, &mappings);
        if which == Objects::New {
            // Before they are read, which takes milliseconds, in which the target keeps running and
            // the next notice waits.
            mappings.retain(|mapping| {
                !traced.planned.contains(&ObjectId { device: mapping.device, inode: mapping.inode })
            });
        }
        let names = match self.carried {
            Some(_) => symbol_names(&options).with_name(CARRIED),
            None => symbol_names(&options),
        };
        let mut objects = read_objects(&self.store, pid, &mappings, &names);
        objects.retain(|object| traced.planned.insert(object.id) || which == Objects::All);
        if let Some(carried) = &mut self.carried {
            let texts = objects
                .iter()
                .filter_map(|object| object.elf.as_ref().ok()?.returned_text(CARRIED, MOST_CARRIED));
            carried.extend(texts);
        }
        let memory = ProcessMemory::open(pid).ok();
        let mut plan = plan(&objects, &options, memory.as_ref().map(|memory| memory as &dyn ReadMemory));
        if which == Objects::All {
            check_plan(pid, &plan, &objects, &options, self.probed == capture.resources)?;
        }
        if capture.resources.contains(&Resource::Heap) {
            let gaps = match which {
                Objects::All => gaps(&objects, &plan),
                Objects::New => gaps::of_programs(&objects, &plan),
            };
            if let Some(nameless) = gaps::nameless(&objects, &plan, &gaps) {
                traced.nameless = Some(nameless);
            }
            tell_gaps(
                pid,
                gaps.into_iter().chain(gaps::copied(&plan, &copies)).collect(),
                &mut self.told_gaps,
            );
        }
        tell_gaps(pid, gaps::without_returns(&plan), &mut self.told_gaps);
        if capture.releases_only {
            plan.points.retain(|point| point.program == ProgramKind::ReleaseEnter);
        }
        if which == Objects::All {
            traced.allocator_code.clear();
            traced.allocators.clear();
        }
        traced.allocator_code.extend_from_slice(&plan.allocator_code);
        traced.allocators.extend(plan.allocators.iter().map(|(_, kind)| *kind));
        for (path, allocator) in &plan.allocators {
            info!("{path}: {allocator}");
        }
        for object in &objects {
            if let Some(build) = object.elf.as_ref().ok().and_then(|elf| elf.recognised()) {
                info!("{object}: stripped, its allocator's functions are known by their code: {build}");
            }
        }
        if which == Objects::All {
            for skip in &plan.skipped {
                info!("skipped: {skip}");
            }
        }
        Ok(plan)
    }

    /// Lets the command run free: the probes are in, and that was said.
    pub(super) fn release_command(&mut self) -> Result<(), SessionError> {
        if let Some(held) = self.held.take() {
            let released = held.release();
            self.command =
                Some(released.map_err(|error| SessionError::System("cannot release the command", error))?);
        }
        Ok(())
    }
}
