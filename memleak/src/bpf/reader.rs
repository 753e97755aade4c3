//! Reading the tables out: a snapshot as plain data.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    time::Instant,
};

use aya::Ebpf;
use memleak_common::{
    event::Event,
    probe::{ProbeRow, Resource},
    stack::NO_STACK,
    stats::Stat,
    thread::Owner,
};
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    cut::{Epoch, Reading},
    error::BpfError,
    growth::{Growth, MovedPages},
    links::Probes,
    mapped::MappedMaps,
    records::{self, enter_found, remove_dead, remove_for_good},
    rings::Events,
    stack_store::{self, StackStore},
    stats::{Stats, skipped_runs},
};
use crate::{
    proc::{clock::monotonic_ns, descriptors::open_descriptors},
    snapshot::{
        KERNEL_SPACE, Lost, MOST_KEPT, Outstanding, Snapshot, Stack, StackUses, TableVersion,
        descriptors::Descriptors,
        ranges::{Ranges, Release},
    },
    target::process::PidFd,
    targets::Ended,
};

/// What is kept from one snapshot to the next.
pub(super) struct Reader {
    /// By attach cookie.
    rows: Vec<ProbeRow>,
    /// `None` if descriptors are not traced, or not all of them.
    descriptors: Option<Descriptors>,
    /// Stacks that were stored.
    stacks: StackStore,
    /// What was released by range.
    ranges: Ranges,
    /// The same, after the cut of the snapshot that is being made.
    released_later: Vec<Release>,
    epoch: Epoch,
    /// Memory for the next reading: to get it anew takes as long as to read.
    spare: Vec<Outstanding>,
    /// `None` in kernel mode.
    mapped: Option<MappedMaps>,
    /// Records that were dead, and removed by us: released, though not by their own start.
    removed: u64,
    /// Runs that were lost, as far as they were seen.
    skipped_runs: u64,
    /// Numbers of owners whose records count.
    owners: FxHashMap<u32, State>,
    /// Numbers of owners that are gone: their records are still there.
    void: FxHashSet<u32>,
    /// Processes that have replaced their programs, by number: when, and the descriptors that were
    /// open after that.
    replaced: FxHashMap<u32, (u64, BTreeSet<u32>)>,
    /// What those held that have ended.
    ended: Ended,
    /// `None` if growth is not traced.
    growth: Option<Growth>,
    /// What has changed otherwise than by an acquire or a release that programs have counted.
    changes: u64,
    /// The last report is being made.
    is_ending: bool,
}

/// A cut that was made, and whose tables are to be read.
struct MadeCut {
    reading: Reading,
    /// Acquires up to the cut.
    acquired: u64,
    /// Releases up to the cut of what was seen acquired.
    released: u64,
    /// What was resized before it, or less.
    resized: u64,
}

/// What was read of the kernel's tables.
struct Read {
    /// The moment of the cut: CLOCK_MONOTONIC nanoseconds.
    time_ns: u64,
    /// By so many nanoseconds it may have been later.
    within_ns: u64,
    /// What was outstanding in the table of heap blocks.
    blocks: Vec<Outstanding>,
    /// The stacks of those, and of others.
    uses: StackUses,
    /// What else was outstanding.
    others: Vec<Outstanding>,
    /// Stacks that other records and the threads' last allocations refer to.
    other_stacks: FxHashSet<u64>,
    /// Descriptors that are newer: owner and number.
    newer_descriptors: FxHashSet<(u32, u64)>,
    /// See [`records::ReadRecords::may_come_back`].
    may_come_back: bool,
    /// Records that were dead at the cut, and were gone or had moved when they were to be removed.
    dead_elsewhere: u64,
}

/// What is known of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It may acquire and release.
    Living,
    /// It has ended; what it held is in the kernel's table still.
    Ended,
    /// It has ended, and what it held is ours ([`Reader::ended`]).
    Folded,
}

impl Reader {
    /// Has read nothing yet. `rows` are those that the BPF side has. `checks_descriptors`: all
    /// descriptors are traced, and are to be compared with what the processes have open.
    /// `stack_storage_size`: entries of the map `STACKS`.
    pub(super) fn new(
        epoch: Epoch,
        rows: Vec<ProbeRow>,
        checks_descriptors: bool,
        stack_storage_size: u32,
    ) -> Self {
        let descriptors = checks_descriptors.then(Descriptors::default);
        Self {
            rows,
            descriptors,
            stacks: StackStore::new(stack_storage_size, false),
            ranges: Ranges::default(),
            released_later: Vec::new(),
            epoch,
            spare: Vec::new(),
            mapped: None,
            removed: 0,
            skipped_runs: 0,
            owners: FxHashMap::default(),
            void: FxHashSet::default(),
            replaced: FxHashMap::default(),
            ended: Ended::default(),
            growth: None,
            changes: 0,
            is_ending: false,
        }
    }

    /// Pages are traced as well.
    pub(super) fn trace_growth(&mut self) {
        self.growth = Some(Growth::default());
    }

    /// Reads these maps as well.
    pub(super) fn set_mapped(&mut self, mapped: MappedMaps) {
        self.mapped = Some(mapped);
    }

    /// The last report is being made: nothing is made ready for more records.
    pub(super) fn end_soon(&mut self) {
        self.is_ending = true;
    }

    /// The records of a snapshot are done with: their memory serves the next one.
    pub(super) fn give_back(&mut self, mut outstanding: Vec<Outstanding>) {
        if outstanding.capacity() > 0 && outstanding.capacity() <= MOST_KEPT {
            outstanding.clear();
            self.spare = outstanding;
        }
    }

    /// Programs have found the table of heap blocks full.
    pub(super) fn overflow(&mut self, ebpf: &Ebpf) {
        if let Some(mapped) = &mut self.mapped {
            mapped.blocks.overflow();
            records::filter(ebpf, mapped);
        }
    }

    /// Pages of memory are somewhere else now.
    pub(super) fn moved(&mut self, ebpf: &Ebpf, pages: &MovedPages) -> Result<(), BpfError> {
        records::move_pages((ebpf, self.mapped.as_ref()), pages)
    }

    /// The kernel's own things count.
    pub(super) fn of_kernel(epoch: Epoch, stack_storage_size: u32) -> Self {
        let mut reader = Self::new(epoch, Vec::new(), false, stack_storage_size);
        reader.stacks = StackStore::new(stack_storage_size, true);
        reader.owners.insert(KERNEL_SPACE, State::Living);
        reader
    }

    /// A process is about to be traced: who owns what it acquires.
    pub(super) fn add_target(&mut self, owner: Owner, pid: u32, end: &PidFd) {
        self.changes += 1;
        self.owners.insert(owner.space, State::Living);
        self.growth.iter_mut().for_each(|growth| growth.add(owner.space, pid));
        if owner.process == 0 {
            return;
        }
        self.owners.insert(owner.process, State::Living);
        if let Some(descriptors) = &mut self.descriptors {
            descriptors.remember(owner.process, pid, end);
        }
    }

    /// Owners that have ended with a process. What they held is theirs for good; [`Reader::clear`]
    /// is to be called some time.
    pub(super) fn ended(&mut self, owners: &[u32]) {
        self.changes += 1;
        for owner in owners {
            self.owners.insert(*owner, State::Ended);
            self.growth.iter_mut().for_each(|growth| growth.forget(*owner));
            if let Some(descriptors) = &mut self.descriptors {
                self.ended.add(descriptors.forget(*owner));
            }
        }
    }

    /// Owners that have ended and hold nothing, as far as is known for good; they are forgotten
    /// here.
    pub(super) fn take_released(&mut self) -> Vec<u32> {
        let holding = self.ended.owners();
        let folded = |state: &State| *state == State::Folded;
        self.owners
            .extract_if(|owner, state| folded(state) && !holding.contains(owner))
            .map(|(owner, _)| owner)
            .collect()
    }

    /// See [`Ended::take_old`].
    pub(super) fn take_old_ended(&mut self) -> Option<Snapshot> {
        let old = self.ended.take_old();
        self.changes += u64::from(old.is_some());
        old
    }

    /// A range was released.
    pub(super) fn released(&mut self, release: &Release) {
        self.changes += 1;
        self.ranges.release(release);
    }

    /// A process has replaced its program and owns memory by a new number from now on. What was
    /// acquired in the `old` space, if nobody else lives there, is void, and so are the descriptors
    /// that are not open any more. [`Reader::clear`] is to be called some time.
    pub(super) fn replaced(&mut self, pid: u32, owner: Owner, old: Option<u32>) {
        self.changes += 1;
        self.owners.insert(owner.space, State::Living);
        self.growth.iter_mut().for_each(|growth| growth.add(owner.space, pid));
        if let Some(old) = old {
            self.growth.iter_mut().for_each(|growth| growth.forget(old));
            self.void.insert(old);
            // A process's number still names its descriptors.
            if old != owner.process {
                self.owners.remove(&old);
            }
        }
        if self.rows.iter().any(|row| row.resource == Resource::Fd.number()) {
            let time_ns = monotonic_ns();
            let open = open_descriptors(pid).unwrap_or_default();
            self.replaced.insert(owner.process, (time_ns, open.into_keys().collect()));
        }
    }

    /// Something is to be done by [`Self::clear`].
    pub(super) fn is_unclear(&self) -> bool {
        !self.void.is_empty()
            || !self.replaced.is_empty()
            || self.owners.values().any(|state| *state == State::Ended)
    }

    /// Takes the records out of the kernel's table that nobody can release any more: those that
    /// execs have made void go, those of owners that have ended become ours. Reads all records, so
    /// one call serves many processes: a build has hundreds in a second.
    pub(super) fn clear(&mut self, ebpf: &Ebpf, events: &mut Events) -> Result<(), BpfError> {
        if self.is_unclear() { self.read(ebpf, events).map(drop) } else { Ok(()) }
    }

    /// Removes dead records. Gives how many were not where they were read: whoever moves them
    /// counts them.
    fn remove_dead(&mut self, ebpf: &Ebpf, dead: &[Outstanding]) -> Result<u64, BpfError> {
        let removed = remove_dead((ebpf, self.mapped.as_ref()), dead)?;
        self.removed += removed;
        Ok(dead.len() as u64 - removed)
    }

    /// Does what [`Self::clear`] is for with these records: gives those that are left in the
    /// kernel's table.
    fn settle(
        &mut self,
        ebpf: &Ebpf,
        mut outstanding: Vec<Outstanding>,
    ) -> Result<Vec<Outstanding>, BpfError> {
        if !self.is_unclear() {
            return Ok(outstanding);
        }
        let (void, replaced, owners) = (&self.void, &self.replaced, &self.owners);
        let is_void = |record: &Outstanding| {
            if record.resource == Resource::Fd {
                return replaced.get(&record.space).is_some_and(|(time_ns, open)| {
                    record.time_ns < *time_ns && !open.contains(&(record.handle as u32))
                });
            }
            void.contains(&record.space)
        };
        let has_ended = |record: &Outstanding| owners.get(&record.space) == Some(&State::Ended);
        let voided: Vec<_> = outstanding.extract_if(.., |record| is_void(record)).collect();
        let mut ended: Vec<_> = outstanding.extract_if(.., |record| has_ended(record)).collect();
        remove_for_good((ebpf, self.mapped.as_ref()), voided.iter().chain(&ended))?;
        let uses = ended.iter().map(Outstanding::use_of_stack).collect();
        for (id, stack) in self.stacks_of(ebpf, &uses, &mut ended)?.0 {
            self.ended.add_stack(id, &stack);
        }
        self.ended.add(ended);
        self.void.clear();
        self.replaced.clear();
        for state in self.owners.values_mut().filter(|state| **state == State::Ended) {
            *state = State::Folded;
        }
        Ok(outstanding)
    }

    /// Uses up the releases of ranges between two reports, if so many have come that they weigh.
    pub(super) fn apply_releases(&mut self, ebpf: &Ebpf, events: &mut Events) -> Result<(), BpfError> {
        if self.ranges.is_large() { self.read(ebpf, events).map(drop) } else { Ok(()) }
    }

    /// Makes a cut. It is to be read ([`Self::read_at`]), or given up ([`Epoch::lower`]).
    fn cut(&mut self, ebpf: &Ebpf, events: &mut Events) -> Result<MadeCut, BpfError> {
        let before = Stats::read(ebpf)?;
        let reading = self.epoch.begin()?;
        let is_later = |event: &Event| event.stack_id as u32 == reading.epoch;
        events.take_releases(|event| {
            self.changes += 1;
            match Release::of(event) {
                release if is_later(event) => self.released_later.push(release),
                release => self.ranges.release(&release),
            }
        });
        let counted = Stats::read(ebpf).inspect_err(|_| self.epoch.lower())?;
        Ok(MadeCut {
            acquired: counted.at_cut(&before, Stat::Acquired, reading.epoch),
            released: counted.at_cut(&before, Stat::Released, reading.epoch),
            resized: before.get(Stat::Resized),
            reading,
        })
    }

    /// Makes a cut and reads what was outstanding then in the kernel's table.
    fn read(&mut self, ebpf: &Ebpf, events: &mut Events) -> Result<Read, BpfError> {
        let cut = self.cut(ebpf, events)?;
        self.read_at(ebpf, &cut.reading)
    }

    /// Reads what was outstanding in the kernel's table at a cut.
    fn read_at(&mut self, ebpf: &Ebpf, reading: &Reading) -> Result<Read, BpfError> {
        let known = |owner| self.owners.contains_key(&owner) || self.void.contains(&owner);
        let tables = records::outstanding(
            std::mem::take(&mut self.spare),
            (ebpf, self.mapped.as_ref()),
            (&mut self.epoch, reading),
            known,
            &self.rows,
        )?;
        if let Some(mapped) = &mut self.mapped {
            if !self.is_ending {
                mapped.blocks.read_newest(tables.newest_blocks);
            }
            records::filter(ebpf, mapped);
        }
        let (mut blocks, mut others) = (tables.blocks, tables.others);
        if self.is_unclear() || self.ranges.release_any(Resource::Heap) {
            others.append(&mut blocks);
        }
        let applied = self.ranges.apply(others);
        let dead_elsewhere = self.remove_dead(ebpf, &applied.dead)?;
        let mut others = self.settle(ebpf, applied.outstanding)?;
        let gone = self.growth.as_ref().map(|growth| growth.take_gone(&mut others, reading.time_ns));
        let dead_elsewhere = dead_elsewhere + self.remove_dead(ebpf, &gone.unwrap_or_default())?;
        for release in self.released_later.drain(..) {
            self.changes += 1;
            self.ranges.release(&release);
        }
        Ok(Read {
            time_ns: reading.time_ns,
            within_ns: reading.within_ns,
            blocks,
            uses: tables.uses,
            others,
            other_stacks: tables.other_stacks,
            newer_descriptors: tables.newer_descriptors,
            may_come_back: tables.may_come_back,
            dead_elsewhere,
        })
    }

    /// The state that a cut found; `None` if programs do not count all that changes it: what
    /// processes have open and which pages they have is looked up.
    fn version(&self, cut: &MadeCut) -> Option<TableVersion> {
        let MadeCut { acquired, released, resized, .. } = *cut;
        let all_counted = self.descriptors.is_none() && self.growth.is_none();
        all_counted.then_some(TableVersion { acquired, released, changes: self.changes + resized })
    }

    /// One stack.
    pub(super) fn stack(&mut self, ebpf: &Ebpf, id: u64) -> Result<Option<&Stack>, BpfError> {
        self.stacks.get(ebpf, id)
    }

    /// When [`Self::collect_stacks`] is to be called; `None` while there is room for stacks.
    pub(super) fn collection_due(&self, ebpf: &Ebpf) -> Result<Option<Instant>, BpfError> {
        Ok(self.stacks.due(Stats::read(ebpf)?.get(Stat::StoredStacks)))
    }

    /// Removes stacks that nothing refers to.
    pub(super) fn collect_stacks(&mut self, ebpf: &Ebpf, events: &mut Events) -> Result<(), BpfError> {
        let began = Instant::now();
        let read = self.read(ebpf, events)?;
        let records = read.blocks.iter().chain(&read.others);
        let uses = records.map(|record| record.stack_id);
        let referenced = self.referenced(ebpf, uses, read.other_stacks)?;
        self.collect(ebpf, &referenced, began)
    }

    fn collect(&mut self, ebpf: &Ebpf, referenced: &FxHashSet<u64>, began: Instant) -> Result<(), BpfError> {
        if let Some(mapped) = &self.mapped {
            mapped.forget_histories(referenced);
        }
        self.stacks.collect(ebpf, referenced, began)
    }

    /// The stacks that something refers to.
    fn referenced(
        &self,
        ebpf: &Ebpf,
        stack_ids: impl Iterator<Item = u64>,
        other_stacks: FxHashSet<u64>,
    ) -> Result<FxHashSet<u64>, BpfError> {
        let mut referenced = other_stacks;
        referenced.extend(stack_ids);
        match &self.mapped {
            Some(mapped) => mapped.add_cached_stacks(&mut referenced),
            None => stack_store::remembered(ebpf, &mut referenced)?,
        }
        Ok(referenced)
    }

    /// Everything that was outstanding at one moment, the present one. `last`: what this gave the
    /// last time, of which nothing may have been taken; if the same is outstanding still, it is
    /// given again, of the new moment.
    pub(super) fn snapshot(
        &mut self,
        ebpf: &Ebpf,
        probes: &Probes,
        events: &mut Events,
        last: Option<Snapshot>,
    ) -> Result<Snapshot, BpfError> {
        let began = Instant::now();
        let open = self.descriptors.as_ref().map(Descriptors::list);
        let cut = self.cut(ebpf, events)?;
        let version = self.version(&cut);
        match last {
            Some(last) if last.is_of(version) => {
                self.epoch.lower();
                let Reading { time_ns, within_ns, .. } = cut.reading;
                let (lost, _) = self.lost(ebpf, probes)?;
                return Ok(Snapshot { time_ns, within_ns, lost, ..last });
            }
            last => self.give_back(last.map(|last| last.outstanding).unwrap_or_default()),
        }
        let read = self.read_at(ebpf, &cut.reading)?;
        let Read {
            time_ns, within_ns, blocks, mut uses, mut others, other_stacks, newer_descriptors, ..
        } = read;
        let mut dead_elsewhere = read.dead_elsewhere;
        if let (Some(descriptors), Some(open)) = (&mut self.descriptors, open) {
            let corrections = descriptors.reconcile(open, &newer_descriptors, &mut others);
            dead_elsewhere += self.remove_dead(ebpf, &corrections.dead)?;
            enter_found((ebpf, self.mapped.as_ref()), &corrections.lasting)?;
        }
        others.iter().for_each(|record| uses.add(record.use_of_stack()));
        let (count, mut outstanding) = (blocks.len(), blocks);
        outstanding.append(&mut others);
        let (mut stacks, unknown) = self.stacks_of(ebpf, &uses, &mut outstanding)?;
        let (lost, stats) = self.lost(ebpf, probes)?;
        let is_due = self.stacks.due(stats.get(Stat::StoredStacks)).is_some();
        if is_due || self.stacks.has_many() {
            let referenced = self.referenced(ebpf, uses.iter().map(|(_, id)| id), other_stacks)?;
            match is_due {
                true => self.collect(ebpf, &referenced, began)?,
                false => self.stacks.forget(&referenced),
            }
        }
        for record in self.ended.records() {
            if let Some(stack) = self.ended.stack(record.stack_id) {
                stacks.entry(record.stack_id).or_insert_with(|| stack.clone());
            }
            uses.add(record.use_of_stack());
        }
        outstanding.extend(self.ended.records());
        let (found, closed) =
            self.descriptors.as_ref().map_or((0, 0), |descriptors| descriptors.found_and_closed);
        Ok(Snapshot {
            // What was not where it was read, or is not known yet, may be found the next time.
            version: version.filter(|_| dead_elsewhere == 0 && unknown == 0 && !read.may_come_back),
            time_ns,
            within_ns,
            outstanding,
            blocks: count,
            uses: Some(uses),
            stacks,
            acquired: cut.acquired + found,
            released: cut.released + self.removed + dead_elsewhere + closed,
            histories: self.mapped.as_ref().and_then(MappedMaps::histories),
            lost_histories: stats.get(Stat::LostHistories),
            lost: Lost { stacks: lost.stacks + unknown, ..lost },
        })
    }

    /// What was lost so far, and what that was taken from.
    fn lost(&mut self, ebpf: &Ebpf, probes: &Probes) -> Result<(Lost, Stats), BpfError> {
        // Skipped runs first: those that a twin makes good between the two readings are then not
        // told as lost.
        let skipped = skipped_runs(ebpf, probes)?;
        let stats = Stats::read(ebpf)?;
        let wrong = stats.get(Stat::WrongStacks);
        if wrong > 0 {
            log::warn!("{wrong} cached stacks did not match a fresh walk");
        }
        // What a program's twin did in its stead was not lost. Kprobes that were skipped before
        // they came to a program show only as releases that nobody saw; some may be among the
        // former.
        let told = skipped.saturating_sub(stats.get(Stat::RescuedRuns));
        self.skipped_runs = self.skipped_runs.max(told).max(stats.get(Stat::UnseenReleases));
        let lost = Lost {
            allocations: stats.get(Stat::LostAllocations),
            stacks: stats.get(Stat::LostStacks),
            cut_stacks: 0,
            events: stats.get(Stat::LostEvents) + stats.get(Stat::LostLines),
            trace_lines: stats.get(Stat::LostLines),
            processes: stats.get(Stat::LostProcesses),
            moved: stats.get(Stat::LostMoves),
            missed_returns: stats.get(Stat::MissedReturns),
            skipped_runs: self.skipped_runs,
            mass_releases: stats.get(Stat::Sweeps),
        };
        Ok((lost, stats))
    }

    /// The stacks that are referred to: those that are used. A reference to one that is not known
    /// is removed, and counted.
    fn stacks_of(
        &mut self,
        ebpf: &Ebpf,
        uses: &StackUses,
        outstanding: &mut [Outstanding],
    ) -> Result<(HashMap<u64, Stack>, u64), BpfError> {
        let mut stacks = HashMap::new();
        let mut missing = FxHashSet::default();
        for (_, id) in uses.iter() {
            if let Entry::Vacant(entry) = stacks.entry(id)
                && !missing.contains(&id)
            {
                match self.stack(ebpf, id)? {
                    Some(stack) => drop(entry.insert(stack.clone())),
                    None => drop(missing.insert(id)),
                }
            }
        }
        missing.remove(&NO_STACK);
        let mut unknown = 0;
        if !missing.is_empty() {
            for record in outstanding.iter_mut().filter(|record| missing.contains(&record.stack_id)) {
                unknown += 1;
                record.stack_id = NO_STACK;
            }
        }
        Ok((stacks, unknown))
    }
}
