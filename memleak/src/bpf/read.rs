//! Reading the tables out: a snapshot as plain data.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry},
    os::fd::{AsFd as _, BorrowedFd},
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{HashMap as BpfHashMap, Map, MapData, PerCpuArray},
};
use rustc_hash::{FxHashMap, FxHashSet};

use memleak_common::{
    allocation::{Allocation, AllocationKey},
    probe::{ProbeRow, Resource, flags},
    stack::NO_STACK,
    stats::Stat,
    thread::{MAX_PENDING, Target, ThreadRecord},
};

use super::{BpfError, attach::Probes, chain, descriptors::Descriptors, maps, stacks, stacks::Stacks};
use crate::{
    probe::kernel::TWIN,
    proc::descriptors::open_descriptors,
    snapshot::{
        Lost, Outstanding, PAGE_SIZE, Snapshot, Stack,
        ranges::{Ranges, Release},
    },
};

/// What is kept from one snapshot to the next.
pub struct Reader {
    /// By attach cookie.
    rows: Vec<ProbeRow>,
    /// `None` where descriptors are not traced, or not all of them.
    descriptors: Option<Descriptors>,
    /// Stacks that were stored.
    stacks: Stacks,
    /// What was released by range.
    ranges: Ranges,
    /// Ranges of which nothing was left: released, though not by their own start.
    removed: u64,
    /// Runs that were lost, as far as they were seen.
    skipped_runs: u64,
    /// Numbers of processes, ours by the kernel side's.
    pids: HashMap<u32, u32>,
    /// Processes that have replaced their programs, and the descriptors that were open after that: the records that this
    /// has made void are still there.
    replaced: HashMap<u32, BTreeSet<u32>>,
}

/// [`memleak_common::thread::PendingCall::has_released`]: a record was taken out.
const TAKEN_OUT: u16 = 1;

impl Reader {
    /// Has read nothing yet. `rows` are those that the kernel side has. `checks_descriptors`: all descriptors are traced, and
    /// are to be compared with what the processes have open. `stack_storage_size`: entries of the map `STACKS`.
    pub fn new(rows: Vec<ProbeRow>, checks_descriptors: bool, stack_storage_size: u32) -> Self {
        let descriptors = checks_descriptors.then(Descriptors::default);
        Self {
            rows,
            descriptors,
            stacks: Stacks::new(stack_storage_size),
            ranges: Ranges::default(),
            removed: 0,
            skipped_runs: 0,
            pids: HashMap::new(),
            replaced: HashMap::new(),
        }
    }

    /// A process is about to be traced.
    pub fn add_target(&mut self, pid: u32) {
        if let Some(descriptors) = &mut self.descriptors {
            descriptors.remember(pid);
        }
    }

    /// A process has ended: its number can be another's by now.
    pub fn target_ended(&mut self, pid: u32) {
        if let Some(descriptors) = &mut self.descriptors {
            descriptors.forget(pid);
        }
    }

    /// A range was released.
    pub fn released(&mut self, release: &Release) {
        self.ranges.release(release);
    }

    /// A process has replaced its program: what it had acquired is void but for the descriptors that it has open now.
    /// [`Reader::remove_void`] is to be called some time.
    pub fn replaced(&mut self, pid: u32) {
        let traces_descriptors = self.rows.iter().any(|row| row.resource == Resource::Fd.number());
        let open =
            if traces_descriptors { open_descriptors(pid).unwrap_or_default() } else { BTreeMap::new() };
        self.replaced.insert(pid, open.into_keys().collect());
    }

    /// Removes the records that execs have made void since the last call. Reads all records, so one call serves many
    /// execs: a build has hundreds in a second.
    pub fn remove_void(&mut self, ebpf: &Ebpf) -> Result<(), BpfError> {
        let replaced = std::mem::take(&mut self.replaced);
        if replaced.is_empty() {
            return Ok(());
        }
        let targets = targets(ebpf)?;
        // A newer one is of a program that has replaced this one since the generations were read.
        let is_void = |key: &AllocationKey, allocation: &Allocation| {
            let survives = |of: u32| {
                key.resource == Resource::Fd.number()
                    && replaced.get(&of).is_none_or(|open| open.contains(&(key.handle as u32)))
            };
            targets
                .0
                .get(&key.tgid)
                .is_some_and(|(of, target)| allocation.generation < target.generation && !survives(*of))
        };
        let mut void = Vec::new();
        maps::for_each_entry(fd(ebpf, "ALLOCATIONS")?, |key, allocation| {
            if is_void(key, allocation) {
                void.push(*key);
            }
        })
        .map_err(|error| map_error("ALLOCATIONS", &error))?;
        for key in void {
            let taken = maps::take(fd(ebpf, "ALLOCATIONS")?, &key)
                .map_err(|error| map_error("ALLOCATIONS", &error))?;
            if let Some(taken) = taken
                && !is_void(&key, &taken)
            {
                put_new(ebpf, &key, &taken)?;
            }
        }
        Ok(())
    }

    /// Uses up the releases of ranges between two reports, if so many have come that they weigh.
    pub fn apply_releases(&mut self, ebpf: &Ebpf) -> Result<(), BpfError> {
        if self.ranges.is_large() {
            let targets = targets(ebpf)?;
            self.cut_ranges(ebpf, &targets, outstanding(ebpf, &targets, &self.rows)?.0)?;
        }
        Ok(())
    }

    /// Cuts what was released by range out of the records; gives what is left.
    fn cut_ranges(
        &mut self,
        ebpf: &Ebpf,
        targets: &Targets,
        records: Vec<Outstanding>,
    ) -> Result<Vec<Outstanding>, BpfError> {
        let applied = self.ranges.apply(records);
        remove_dead(ebpf, targets, &applied.dead)?;
        self.removed += applied.dead.len() as u64;
        Ok(applied.outstanding)
    }

    /// The number in our PID namespace of the process that the kernel side calls `tgid`.
    pub fn pid_of(&mut self, ebpf: &Ebpf, tgid: u32) -> Result<u32, BpfError> {
        if !self.pids.contains_key(&tgid) {
            self.pids = targets(ebpf)?.0.into_iter().map(|(tgid, (pid, _))| (tgid, pid)).collect();
        }
        Ok(self.pids.get(&tgid).copied().unwrap_or(tgid))
    }

    /// One stack.
    pub fn stack(&mut self, ebpf: &Ebpf, id: u64) -> Result<Option<&Stack>, BpfError> {
        self.stacks.get(ebpf, id)
    }

    /// When [`Self::collect_stacks`] is to be called; `None` while there is room for stacks.
    pub fn collection_due(&self, ebpf: &Ebpf) -> Result<Option<Instant>, BpfError> {
        Ok(self.stacks.due(Stats::read(ebpf)?.get(Stat::StoredStacks)))
    }

    /// Removes stacks that nothing refers to. Gives how many.
    pub fn collect_stacks(&mut self, ebpf: &Ebpf) -> Result<u64, BpfError> {
        let began = Instant::now();
        let (outstanding, last_stacks) = outstanding(ebpf, &targets(ebpf)?, &self.rows)?;
        self.collect(ebpf, &outstanding, last_stacks, began)
    }

    fn collect(
        &mut self,
        ebpf: &Ebpf,
        outstanding: &[Outstanding],
        last_stacks: FxHashSet<u64>,
        began: Instant,
    ) -> Result<u64, BpfError> {
        let mut referenced = last_stacks;
        referenced.extend(outstanding.iter().map(|found| found.stack_id));
        stacks::remembered(ebpf, &mut referenced)?;
        self.stacks.collect(ebpf, &referenced, began)
    }

    /// Reads everything. Events that were sent before must have been handed to [`Self::released`].
    pub fn snapshot(&mut self, ebpf: &Ebpf, probes: &Probes) -> Result<Snapshot, BpfError> {
        let began = Instant::now();
        let targets = targets(ebpf)?;
        let (raw, last_stacks) = outstanding(ebpf, &targets, &self.rows)?;
        let time_ns = monotonic_ns();
        let mut outstanding = self.cut_ranges(ebpf, &targets, raw)?;
        if let Some(descriptors) = &mut self.descriptors {
            let closed = descriptors.reconcile(&mut outstanding);
            remove_dead(ebpf, &targets, &closed)?;
            self.removed += closed.len() as u64;
        }
        let (stacks, unknown) = self.stacks_of(ebpf, &mut outstanding)?;
        // Skipped runs first: those that a twin makes good between the two readings are then not told as lost.
        let skipped = skipped_runs(ebpf, probes)?;
        let stats = Stats::read(ebpf)?;
        let wrong = stats.get(Stat::WrongStacks);
        if wrong > 0 {
            log::warn!("{wrong} stacks are not what was remembered of them");
        }
        // What a program's twin did in its stead was not lost.
        self.skipped_runs = self.skipped_runs.max(skipped.saturating_sub(stats.get(Stat::RescuedRuns)));
        if self.stacks.due(stats.get(Stat::StoredStacks)).is_some() {
            self.collect(ebpf, &outstanding, last_stacks, began)?;
        }
        let (found, closed) =
            self.descriptors.as_ref().map_or((0, 0), |descriptors| descriptors.found_and_closed);
        Ok(Snapshot {
            time_ns,
            outstanding,
            stacks,
            acquired: stats.get(Stat::Acquired) + found,
            released: stats.get(Stat::Released) + self.removed + closed,
            lost: Lost {
                allocations: stats.get(Stat::LostAllocations),
                stacks: stats.get(Stat::LostStacks) + unknown,
                cut_stacks: 0,
                events: stats.get(Stat::LostEvents) + stats.get(Stat::LostLines),
                trace_lines: stats.get(Stat::LostLines),
                missed_returns: stats.get(Stat::MissedReturns),
                skipped_runs: self.skipped_runs,
            },
        })
    }

    /// The stacks that are referred to. A reference to one that is not known is removed, and counted.
    fn stacks_of(
        &mut self,
        ebpf: &Ebpf,
        outstanding: &mut [Outstanding],
    ) -> Result<(HashMap<u64, Stack>, u64), BpfError> {
        let mut stacks: HashMap<u64, Option<Stack>> = HashMap::new();
        let mut unknown = 0;
        for allocation in outstanding {
            let id = allocation.stack_id;
            // Asked for once, known or not.
            if let Entry::Vacant(entry) = stacks.entry(id) {
                entry.insert(self.stack(ebpf, id)?.cloned());
            }
            if id != NO_STACK && stacks.get(&id).is_none_or(Option::is_none) {
                unknown += 1;
                allocation.stack_id = NO_STACK;
            }
        }
        Ok((stacks.into_iter().filter_map(|(id, stack)| Some((id, stack?))).collect(), unknown))
    }
}

/// Runs that the kernel skipped, of all our programs (`bpf_prog_info.recursion_misses`).
fn skipped_runs(ebpf: &Ebpf, probes: &Probes) -> Result<u64, BpfError> {
    let misses = |fd: BorrowedFd<'_>| {
        maps::recursion_misses(fd).map_err(|error| map_error("(program information)", &error))
    };
    let mut sum = 0;
    for (name, program) in ebpf.programs() {
        // A program that was not loaded has not skipped anything; a twin has nothing to do but where another was skipped.
        if !name.ends_with(TWIN)
            && let Ok(fd) = program.fd()
        {
            sum += misses(fd.as_fd())?;
        }
    }
    for fd in probes.programs() {
        sum += misses(fd.as_fd())?;
    }
    Ok(sum)
}

/// Traced processes: by their number in the kernel's first PID namespace, the number that /proc gives them here and the
/// generation of their program.
struct Targets(FxHashMap<u32, (u32, Target)>);

fn targets(ebpf: &Ebpf) -> Result<Targets, BpfError> {
    let mut targets = FxHashMap::default();
    maps::for_each_entry(fd(ebpf, "TARGETS")?, |&pid: &u32, target: &Target| {
        targets.insert(target.kernel_tgid, (pid, *target));
    })
    .map_err(|error| map_error("TARGETS", &error))?;
    Ok(Targets(targets))
}

/// What is outstanding, and the stacks of the threads' last allocations.
fn outstanding(
    ebpf: &Ebpf,
    targets: &Targets,
    rows: &[ProbeRow],
) -> Result<(Vec<Outstanding>, FxHashSet<u64>), BpfError> {
    let mut all = Vec::new();
    let mut last_stacks = FxHashSet::default();
    let mut add = |key: &AllocationKey, allocation: &Allocation| {
        // Records of a program that exec has replaced are void.
        if let Some((pid, target)) = targets.0.get(&key.tgid)
            && let Some(resource) = Resource::from_u32(key.resource)
            && is_current(resource, allocation, target)
        {
            all.push(Outstanding {
                pid: *pid,
                resource,
                address: start_of(resource, key.handle),
                handle: key.handle,
                size: allocation.size,
                stack_id: allocation.stack_id,
                time_ns: allocation.time_ns,
            });
        }
    };
    maps::for_each_entry(fd(ebpf, "ALLOCATIONS")?, &mut add)
        .map_err(|error| map_error("ALLOCATIONS", &error))?;
    // Blocks that a call in progress has taken out (realloc): still acquired, until it returns.
    let mut pending = Vec::new();
    maps::for_each_entry(fd(ebpf, "THREADS")?, |_: &u64, thread: &ThreadRecord| {
        last_stacks.insert(thread.stack_id);
        let calls = thread.pending.iter().take((thread.depth as usize).min(MAX_PENDING));
        let system_call = (thread.in_system_call != 0).then_some(&thread.system_call);
        for call in calls.chain(system_call) {
            if call.has_released == TAKEN_OUT {
                pending.push((thread.tgid, *call));
            }
        }
    })
    .map_err(|error| map_error("THREADS", &error))?;
    if !pending.is_empty() {
        let seen: HashSet<(u32, Resource, u64)> =
            all.iter().map(|found| (found.pid, found.resource, found.address)).collect();
        for (tgid, call) in pending {
            let Some((pid, target)) = targets.0.get(&tgid) else { continue };
            let Some(row) = rows.get(call.row as usize) else { continue };
            let Some(resource) = Resource::from_u32(row.resource) else { continue };
            if is_current(resource, &call.released, target)
                && row.flags & flags::GONE_WHILE_PENDING == 0
                && !seen.contains(&(*pid, resource, call.released_handle))
            {
                all.push(Outstanding {
                    pid: *pid,
                    resource,
                    address: call.released_handle,
                    handle: call.released_handle,
                    size: call.released.size,
                    stack_id: call.released.stack_id,
                    time_ns: call.released.time_ns,
                });
            }
        }
    }
    Ok((all, last_stacks))
}

/// What an exec has not made void: memory and all that is in it goes, descriptors stay, but for those that
/// [`Reader::remove_void`] finds closed.
fn is_current(resource: Resource, allocation: &Allocation, target: &Target) -> bool {
    allocation.generation == target.generation
        || (resource == Resource::Fd && allocation.generation < target.generation)
}

/// Where a record's range begins: the end of a range that was released in part may have a key within its first page.
fn start_of(resource: Resource, handle: u64) -> u64 {
    if resource == Resource::Mmap { handle & !(PAGE_SIZE - 1) } else { handle }
}

/// Removes records of ranges of which nothing is mapped any more.
fn remove_dead(ebpf: &Ebpf, targets: &Targets, dead: &[Outstanding]) -> Result<(), BpfError> {
    for record in dead {
        let Some(tgid) = targets.0.iter().find_map(|(tgid, (pid, _))| (*pid == record.pid).then_some(*tgid))
        else {
            continue;
        };
        let key = AllocationKey { tgid, resource: record.resource.number(), handle: record.handle };
        let taken: Option<Allocation> =
            maps::take(fd(ebpf, "ALLOCATIONS")?, &key).map_err(|error| map_error("ALLOCATIONS", &error))?;
        // The address may have been handed out again since it was read: then it is not the one that is dead.
        if let Some(taken) = taken
            && taken.time_ns != record.time_ns
        {
            put_new(ebpf, &key, &taken)?;
        }
    }
    Ok(())
}

/// Puts back a record that was taken out by mistake, unless there is a newer one.
fn put_new(ebpf: &Ebpf, key: &AllocationKey, record: &Allocation) -> Result<(), BpfError> {
    maps::put_new(fd(ebpf, "ALLOCATIONS")?, key, record).map_err(|error| map_error("ALLOCATIONS", &error))
}

/// Sums of the counters over all CPUs.
struct Stats(Vec<u64>);

impl Stats {
    fn read(ebpf: &Ebpf) -> Result<Self, BpfError> {
        let map = ebpf.map("STATS").ok_or(BpfError::Missing("map STATS"))?;
        let map: PerCpuArray<&MapData, u64> =
            PerCpuArray::try_from(map).map_err(|error| map_error("STATS", &error))?;
        let sums =
            map.iter().map(|values| Ok(values?.iter().sum())).collect::<Result<_, aya::maps::MapError>>();
        sums.map(Self).map_err(|error| map_error("STATS", &error))
    }

    fn get(&self, stat: Stat) -> u64 {
        self.0.get(stat as usize).copied().unwrap_or(0)
    }
}

/// CLOCK_MONOTONIC in nanoseconds: the clock of `bpf_ktime_get_ns`.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid; the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32).as_nanos() as u64
}

pub(super) fn map_error(map: &'static str, error: &dyn std::error::Error) -> BpfError {
    BpfError::Map { map, reason: chain(error) }
}

pub(super) fn fd<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<BorrowedFd<'a>, BpfError> {
    match ebpf.map(name) {
        Some(Map::HashMap(map)) => Ok(map.fd().as_fd()),
        _ => Err(BpfError::Missing(name)),
    }
}

pub(super) fn hash_map<'a, V: aya::Pod>(
    ebpf: &'a Ebpf,
    name: &'static str,
) -> Result<BpfHashMap<&'a MapData, u64, V>, BpfError> {
    let map = ebpf.map(name).ok_or(BpfError::Missing(name))?;
    BpfHashMap::try_from(map).map_err(|error| map_error(name, &error))
}
