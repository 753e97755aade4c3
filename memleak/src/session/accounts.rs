//! The account of the targets' memory: which processes, and what a snapshot says of each.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use memleak_common::probe::Resource;

use super::state::{Mode, Session};
use crate::{
    account::{AccountedProcess, Accounting, Accounts, Allocators, KnownMemory, Memory, TableState},
    settings::{CaptureSettings, Settings},
    snapshot::{Outstanding, Snapshot, own::Own},
    target::allocator::AllocatorKind,
    targets::{Targets, Traced},
};

/// Whether all memory is seen that there is to see: what a part of the settings leaves out cannot
/// be told from what no function has handed out.
pub(super) fn is_complete(settings: &CaptureSettings) -> bool {
    let all = [Resource::Heap, Resource::Mmap].iter().all(|memory| settings.resources.contains(memory));
    all && settings.min_size == 0 && settings.max_size == u64::MAX && settings.object.is_none()
}

impl Session {
    /// Accounts for what the targets have when tracing begins.
    pub(super) fn begin_accounts(&mut self) {
        let Some(Accounting::Idle(accounts)) = &mut self.accounts else { return };
        for process in processes(&self.targets, HashMap::new()) {
            accounts.begin(process);
        }
    }

    /// Accounts for what the targets have now, given what is outstanding and what allocators have
    /// mapped for themselves. With very much outstanding that is done beside the reports: the next
    /// one has what was found. The last one waits for its own.
    pub(super) fn account(&mut self, (snapshot, own): (&Snapshot, &Own), is_final: bool) -> Option<Memory> {
        let accounting = self.accounts.as_mut()?;
        let made = accounting.take_made(is_final);
        if made.is_some() && !is_final {
            return made;
        }
        let Accounting::Idle(accounts) = accounting else { return None };
        let state = TableState { version: snapshot.version, records: snapshot.outstanding.len() as u64 };
        if let Some(memory) = accounts.unchanged(state, is_final) {
            return Some(memory);
        }
        if !accounts.is_due(is_final) {
            return None;
        }
        let processes = processes(&self.targets, known(snapshot, own, &self.targets));
        accounting.make(processes, state, is_final)
    }

    /// Accounts for processes' memory, if all of it is traced. Not with samples by bytes: the pages
    /// of the blocks that they stand for are not known.
    pub(super) fn new_accounts(settings: &Settings, mode: &Mode) -> Option<Accounting> {
        let Settings { capture, report, .. } = settings;
        match mode {
            Mode::User(mode) if is_complete(capture) && report.sampling.bytes() == 0 => {
                Some(Accounting::new(Accounts::new(mode.store.clone(), report.sampling.rate())))
            }
            Mode::User(_) | Mode::Kernel => None,
        }
    }
}

/// The living address spaces, each by one of its processes.
fn processes(targets: &Targets, mut known: HashMap<u32, KnownMemory>) -> Vec<AccountedProcess> {
    let mut taken = HashSet::new();
    let living = targets.living().filter(|(_, traced)| taken.insert(traced.owner.space));
    let accounted = living.map(|(_, traced)| {
        let space = traced.owner.space;
        AccountedProcess {
            pid: traced.id.pid,
            space,
            allocators: allocators(traced),
            nameless: traced.nameless.as_ref().map(|nameless| nameless.program.clone()),
            known: known.remove(&space).unwrap_or_default(),
        }
    });
    accounted.collect()
}

pub(super) fn allocators(traced: &Traced) -> Allocators {
    let is_glibc = |kind: &AllocatorKind| *kind == AllocatorKind::Glibc;
    let mut others = traced.allocators.iter().filter(|kind| !is_glibc(kind));
    let first = others.next().copied();
    Allocators {
        glibc: traced.allocators.iter().any(is_glibc),
        others: first.is_some(),
        other: first.filter(|first| others.all(|other| other == first)),
    }
}

/// What is known of each address space.
fn known(snapshot: &Snapshot, own: &Own, targets: &Targets) -> HashMap<u32, KnownMemory> {
    let range = |it: &Outstanding| -> Range<u64> { it.address..it.address.saturating_add(it.size) };
    let is_of_nameless = |mapping: &Outstanding| {
        let nameless = targets.owner_of(mapping.space).and_then(|traced| traced.nameless.as_ref());
        let stack = snapshot.stacks.get(&mapping.stack_id);
        nameless.zip(stack).is_some_and(|(nameless, stack)| nameless.has_made(&stack.ips))
    };
    let mut known: HashMap<u32, KnownMemory> = HashMap::new();
    for of_space in snapshot.outstanding.chunk_by(|a, b| a.space == b.space) {
        let Some(first) = of_space.first() else { continue };
        let memory = known.entry(first.space).or_default();
        memory.blocks.reserve(of_space.len());
        for record in of_space {
            match record.resource {
                Resource::Heap => memory.blocks.push(range(record)),
                Resource::Mmap if is_of_nameless(record) => memory.nameless.push(range(record)),
                Resource::Mmap => memory.mappings.push(range(record)),
                _ => {}
            }
        }
    }
    for mapping in &own.0 {
        known.entry(mapping.space).or_default().own.push(range(mapping));
    }
    known
}
