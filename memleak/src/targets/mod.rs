//! The processes that are traced: their slots and numbers, from their first probe to their end.
//!
//! The BPF side knows a process by its slot, which the attach cookies of its links carry, and
//! what it acquires by the numbers of its owner ([`Owner`]). A number is never used again, a slot
//! only when nothing names it any more; so neither a PID that is used again nor an exec can mix up
//! two programs.

mod ended;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use memleak_common::thread::{MAX_TARGETS, Owner, Target};

pub(crate) use ended::Ended;

use crate::{
    snapshot::own::{Code, Nameless},
    target::{allocator::AllocatorKind, object::ObjectId},
};

/// A process, told from every other one that has had its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TargetId {
    /// Its number in our PID namespace.
    pub pid: u32,
    /// When it began: clock ticks since the machine did (proc(5), /proc/PID/stat, field 22).
    pub start_time: u64,
}

/// What a child shares with the process that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Shared {
    /// The address space (CLONE_VM).
    pub memory: bool,
    /// The descriptors (CLONE_FILES).
    pub files: bool,
}

/// One traced process.
#[derive(Debug)]
pub(crate) struct Traced {
    /// Which.
    pub id: TargetId,
    /// Command name.
    pub comm: String,
    /// The process that it was a child of when it was traced first.
    pub parent: u32,
    /// Its place in the BPF side's tables.
    pub slot: u32,
    /// Who owns what it acquires.
    pub owner: Owner,
    /// A user has named it, or it is the command.
    pub named: bool,
    /// It has ended.
    pub ended: bool,
    /// Its objects that were looked at.
    pub planned: HashSet<ObjectId>,
    /// Where its allocators' code is mapped, for [`crate::snapshot::own::take_out`].
    pub allocator_code: Vec<Code>,
    /// Threads that waited in accept when tracing began.
    pub accepting: usize,
    /// Its allocators.
    pub allocators: Vec<AllocatorKind>,
    /// The thread that its probes depend on, whose end is waited for; 0: none.
    pub watched_thread: u32,
    /// Its program, if no function of it is known.
    pub nameless: Option<Nameless>,
}

/// All traced processes, those that have ended included as long as something of theirs is known.
#[derive(Debug, Default)]
pub(crate) struct Targets {
    /// By number: the first one that the process had.
    processes: BTreeMap<u32, Traced>,
    /// The process of each number that owns something.
    numbers: HashMap<u32, u32>,
    slots: Slots,
}

impl Targets {
    /// Takes a process in. Gives its number, its slot and what the BPF side is to know of it;
    /// `None` if all slots are taken. `parent`: the process that made it, and what the two share;
    /// `descriptors`: what it opens counts.
    pub(crate) fn add(
        &mut self,
        id: TargetId,
        comm: String,
        parent: Option<(u32, Shared)>,
        descriptors: bool,
    ) -> Option<(u32, u32, Target)> {
        let (slot, number) = self.slots.claim()?;
        let mut owner = Owner { space: number, process: number };
        if let Some((parent, shared)) =
            parent.and_then(|(of, shared)| Some((self.processes.get(&of)?, shared)))
        {
            if shared.memory {
                owner.space = parent.owner.space;
            }
            if shared.files {
                owner.process = parent.owner.process;
            }
        }
        if !descriptors {
            owner.process = 0;
        }
        for mine in [owner.space, owner.process].into_iter().filter(|mine| *mine != 0) {
            self.numbers.entry(mine).or_insert(number);
        }
        self.processes.insert(
            number,
            Traced {
                id,
                comm,
                parent: 0,
                slot,
                owner,
                named: parent.is_none(),
                ended: false,
                planned: HashSet::new(),
                allocator_code: Vec::new(),
                accepting: 0,
                watched_thread: 0,
                allocators: Vec::new(),
                nameless: None,
            },
        );
        let next_space = number.checked_add(MAX_TARGETS).unwrap_or(0);
        Some((number, slot, Target { owner, number, next_space }))
    }

    /// The process of this number.
    pub(crate) fn get(&self, process: u32) -> Option<&Traced> {
        self.processes.get(&process)
    }

    /// The same, to be changed.
    pub(crate) fn get_mut(&mut self, process: u32) -> Option<&mut Traced> {
        self.processes.get_mut(&process)
    }

    /// A process has its parent's probes, and what was found out for them.
    pub(crate) fn inherit_plan(&mut self, parent: u32, child: u32) {
        let Some(parent) = self.processes.get(&parent) else { return };
        let (planned, code) = (parent.planned.clone(), parent.allocator_code.clone());
        let (allocators, nameless) = (parent.allocators.clone(), parent.nameless.clone());
        if let Some(child) = self.processes.get_mut(&child) {
            (child.planned, child.allocator_code) = (planned, code);
            (child.allocators, child.nameless) = (allocators, nameless);
        }
    }

    /// The process that a space's or a process's number belongs to: of a shared space the one that
    /// had it first.
    pub(crate) fn owner_of(&self, number: u32) -> Option<&Traced> {
        self.processes.get(self.numbers.get(&number)?)
    }

    /// The number of the process that [`Self::owner_of`] gives.
    pub(crate) fn process_of(&self, number: u32) -> Option<u32> {
        self.numbers.get(&number).copied()
    }

    /// All, with their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Traced)> {
        self.processes.iter().map(|(number, traced)| (*number, traced))
    }

    /// Those that have not ended.
    pub(crate) fn living(&self) -> impl Iterator<Item = (u32, &Traced)> {
        self.iter().filter(|(_, traced)| !traced.ended)
    }

    /// The living process that has this PID.
    pub(crate) fn with_pid(&self, pid: u32) -> Option<u32> {
        self.living().find_map(|(number, traced)| (traced.id.pid == pid).then_some(number))
    }

    /// A process has replaced its program, and has a new address space. Gives the number of the old
    /// one, if nobody lives in it any more.
    pub(crate) fn replaced(&mut self, process: u32, space: u32) -> Option<u32> {
        let traced = self.processes.get_mut(&process)?;
        let old = std::mem::replace(&mut traced.owner.space, space);
        self.numbers.insert(space, process);
        let is_left = !self.living().any(|(_, other)| other.owner.space == old);
        // A process's number still names its descriptors.
        if is_left && !self.processes.contains_key(&old) {
            self.numbers.remove(&old);
        }
        is_left.then_some(old)
    }

    /// A process has ended. Gives the numbers whose owner has ended with it.
    pub(crate) fn end(&mut self, process: u32) -> Vec<u32> {
        let Some(traced) = self.processes.get_mut(&process) else { return Vec::new() };
        traced.ended = true;
        let Owner { space, process } = traced.owner;
        let lives = |number: u32| {
            self.living().any(|(_, other)| other.owner.space == number || other.owner.process == number)
        };
        let mut ended: Vec<u32> = [space, process].into_iter().filter(|number| !lives(*number)).collect();
        ended.retain(|number| *number != 0);
        ended.dedup();
        ended
    }

    /// Nothing names the slot of an ended process any more. `last` is what the BPF side had
    /// there.
    pub(crate) fn release_slot(&mut self, slot: u32, last: Target) {
        self.slots.release(slot, last.next_space);
    }

    /// Nothing is known any more of what these numbers owned. Processes that have ended and own
    /// nothing are forgotten, but for those that a user has named.
    pub(crate) fn forget(&mut self, released: &[u32]) {
        let mut processes: Vec<u32> =
            released.iter().filter_map(|number| self.numbers.remove(number)).collect();
        processes.sort_unstable();
        processes.dedup();
        let owning: HashSet<u32> = self.numbers.values().copied().collect();
        for process in processes {
            let is_done = |traced: &Traced| traced.ended && !traced.named && !owning.contains(&process);
            if self.processes.get(&process).is_some_and(is_done) {
                self.processes.remove(&process);
            }
        }
    }

    /// Some were traced, and none of them lives.
    pub(crate) fn all_ended(&self) -> bool {
        !self.processes.is_empty() && self.living().next().is_none()
    }
}

/// Slots of the BPF side's tables, and the numbers that go with each: itself and every
/// [`MAX_TARGETS`]th after it.
#[derive(Debug, Default)]
struct Slots {
    /// Slots that were never used begin here.
    fresh: u32,
    /// Given back, the longest ago first, each with its next number.
    free: VecDeque<(u32, u32)>,
}

impl Slots {
    /// A slot, and a number of it that was never used. Slots that were used before come first, once
    /// there are so many that each has been out of use for a while: what is kept for each slot then
    /// does not grow with all processes that were.
    fn claim(&mut self) -> Option<(u32, u32)> {
        const RESTING: usize = 1024;
        if self.fresh < MAX_TARGETS && self.free.len() < RESTING {
            let slot = self.fresh;
            self.fresh += 1;
            return Some((slot, slot + MAX_TARGETS));
        }
        self.free.pop_front()
    }

    fn release(&mut self, slot: u32, next: u32) {
        // A slot whose numbers are used up is out of use.
        if next != 0 {
            self.free.push_back((slot, next));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(pid: u32) -> TargetId {
        TargetId { pid, start_time: 1 }
    }

    fn add(targets: &mut Targets, pid: u32, parent: Option<(u32, Shared)>) -> (u32, Target) {
        let (number, _, target) = targets.add(id(pid), "test".to_owned(), parent, true).unwrap();
        (number, target)
    }

    #[test]
    fn no_number_comes_twice() {
        let mut targets = Targets::default();
        let mut seen = HashSet::new();
        for pid in 1..=3 * MAX_TARGETS {
            let (process, target) = add(&mut targets, pid, None);
            assert!(seen.insert(target.owner.space));
            // An exec takes the next one.
            let slot = targets.get(process).unwrap().slot;
            assert_eq!(targets.replaced(process, target.next_space), Some(process));
            assert!(seen.insert(target.next_space));
            let mut ended = targets.end(process);
            ended.sort_unstable();
            assert_eq!(ended, [process, target.next_space]);
            let last = Target { next_space: target.next_space + MAX_TARGETS, ..target };
            targets.release_slot(slot, last);
            targets.forget(&ended);
            targets.processes.clear(); // named ones are kept
        }
        assert!(targets.numbers.is_empty());
    }

    #[test]
    fn a_slot_whose_numbers_are_used_up_is_not_given_again() {
        let mut slots = Slots { fresh: MAX_TARGETS, free: VecDeque::new() };
        slots.release(5, 0);
        assert_eq!(slots.claim(), None);
        slots.release(6, 6 + MAX_TARGETS);
        assert_eq!(slots.claim(), Some((6, 6 + MAX_TARGETS)));
    }

    #[test]
    fn a_shared_space_ends_with_its_last_user() {
        let mut targets = Targets::default();
        let (parent, of_parent) = add(&mut targets, 1, None);
        let shared = Shared { memory: true, files: false };
        let (child, of_child) = add(&mut targets, 2, Some((parent, shared)));
        assert_eq!(of_child.owner, Owner { space: of_parent.owner.space, process: child });
        assert_eq!(targets.end(parent), [] as [u32; 0], "its descriptors go by the same number");
        let mut ended = targets.end(child);
        ended.sort_unstable();
        assert_eq!(ended, [parent, child]);
        assert!(targets.all_ended());
    }

    #[test]
    fn a_vfork_child_that_execs_leaves_its_parents_memory() {
        let mut targets = Targets::default();
        let (parent, _) = add(&mut targets, 1, None);
        let (child, of_child) = add(&mut targets, 2, Some((parent, Shared { memory: true, files: false })));
        assert_eq!(targets.replaced(child, of_child.next_space), None);
        assert_eq!(targets.owner_of(of_child.next_space).unwrap().id.pid, 2);
        assert_eq!(targets.owner_of(parent).unwrap().id.pid, 1);
        assert_eq!(targets.end(parent), [parent]);
    }

    #[test]
    fn a_pid_that_comes_again_is_another_process() {
        let mut targets = Targets::default();
        let (first, _) = add(&mut targets, 7, None);
        let ended = targets.end(first);
        let (second, _) = add(&mut targets, 7, Some((first, Shared::default())));
        assert_ne!(first, second);
        assert_eq!(targets.with_pid(7), Some(second));
        targets.forget(&ended);
        assert!(targets.get(first).is_some(), "it was named");
        let ended = targets.end(second);
        targets.forget(&ended);
        assert!(targets.get(second).is_none());
    }
}
