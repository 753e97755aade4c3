//! Reading the tables out: a snapshot as plain data.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    time::Instant,
};

use aya::Ebpf;
use memleak_common::{
    probe::{ProbeRow, Resource},
    stack::NO_STACK,
    stats::Stat,
};
use rustc_hash::FxHashSet;

use super::{
    error::BpfError,
    links::Probes,
    records::{self, outstanding, remove_dead},
    stack_store::{self, StackStore},
    stats::{Stats, skipped_runs},
    targets::targets,
};
use crate::{
    proc::{clock::monotonic_ns, descriptors::open_descriptors},
    snapshot::{Lost, Outstanding, Snapshot, Stack, Unmap, apply_unmaps, descriptors::Descriptors},
};

/// What is kept from one snapshot to the next.
pub struct Reader {
    /// By attach cookie.
    rows: Vec<ProbeRow>,
    /// `None` where descriptors are not traced, or not all of them.
    descriptors: Option<Descriptors>,
    /// Stacks that were stored.
    stacks: StackStore,
    /// Ranges unmapped in part, as long as a record overlaps one.
    unmaps: Vec<Unmap>,
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

impl Reader {
    /// Has read nothing yet. `rows` are those that the kernel side has. `checks_descriptors`: all descriptors are traced, and
    /// are to be compared with what the processes have open. `stack_storage_size`: entries of the map `STACKS`.
    pub fn new(rows: Vec<ProbeRow>, checks_descriptors: bool, stack_storage_size: u32) -> Self {
        let descriptors = checks_descriptors.then(Descriptors::default);
        Self {
            rows,
            descriptors,
            stacks: StackStore::new(stack_storage_size),
            unmaps: Vec::new(),
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

    /// Remembers that a range was unmapped.
    pub fn unmapped(&mut self, unmap: Unmap) {
        self.unmaps.push(unmap);
    }

    /// A process has replaced its program: what it had acquired is void but for the descriptors that it has open now.
    /// [`Reader::remove_void`] is to be called some time.
    pub fn replaced(&mut self, pid: u32) {
        let traces_descriptors = self.rows.iter().any(|row| row.resource == Resource::Fd.number());
        let open =
            if traces_descriptors { open_descriptors(pid).unwrap_or_default() } else { BTreeMap::new() };
        self.replaced.insert(pid, open.into_keys().collect());
    }

    /// Removes the records that execs have made void since the last call.
    pub fn remove_void(&mut self, ebpf: &Ebpf) -> Result<(), BpfError> {
        records::remove_void(ebpf, &std::mem::take(&mut self.replaced))
    }

    /// Forgets unmaps that concern no record, where so many have come up that they weigh.
    pub fn forget_unmaps(&mut self, ebpf: &Ebpf) -> Result<(), BpfError> {
        /// 16 MB of them.
        const MANY: usize = 500_000;
        if self.unmaps.len() > MANY {
            let targets = targets(ebpf)?;
            let applied = apply_unmaps(outstanding(ebpf, &targets, &self.rows)?.0, &mut self.unmaps);
            remove_dead(ebpf, &targets, &applied.dead)?;
            self.removed += applied.dead.len() as u64;
        }
        Ok(())
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
        stack_store::remembered(ebpf, &mut referenced)?;
        self.stacks.collect(ebpf, &referenced, began)
    }

    /// Reads everything. Events that were sent before must have been handed to [`Self::unmapped`].
    pub fn snapshot(&mut self, ebpf: &Ebpf, probes: &Probes) -> Result<Snapshot, BpfError> {
        let began = Instant::now();
        let targets = targets(ebpf)?;
        let (raw, last_stacks) = outstanding(ebpf, &targets, &self.rows)?;
        let time_ns = monotonic_ns();
        let applied = apply_unmaps(raw, &mut self.unmaps);
        remove_dead(ebpf, &targets, &applied.dead)?;
        self.removed += applied.dead.len() as u64;
        let mut outstanding = applied.outstanding;
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
                events: stats.get(Stat::LostEvents),
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
