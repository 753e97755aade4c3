//! What a process says itself of its descriptors (/proc/PID/fd), against what was counted.
//!
//! Calls are counted when they are entered and when they return, and other threads' calls may come
//! between: a descriptor that another thread closes before the call that made it has returned is
//! entered all the same. And some are made in ways that are not traced: io_uring, an ioctl. So a
//! snapshot is put right by the process's own list.

use std::collections::{BTreeMap, HashMap, HashSet, hash_map::Entry};

use memleak_common::{probe::Resource, stack::NO_STACK};
use rustc_hash::FxHashSet;

use super::Outstanding;
use crate::{
    proc::{clock::monotonic_ns, descriptors::open_descriptors, maps::read_maps},
    target::process::PidFd,
};

/// A process whose descriptors are compared.
struct Listed {
    pid: u32,
    end: PidFd,
    /// What was open before it was traced.
    before: BTreeMap<u32, String>,
}

/// What is known of processes' descriptors beside the counted ones.
#[derive(Default)]
pub(crate) struct Descriptors {
    /// Processes, by the number that owns their descriptors.
    processes: HashMap<u32, Listed>,
    /// Those that were not seen to be made: when they were first found, and what they were.
    found: HashMap<(u32, u32), (u64, String)>,
    /// Found so far, and of these found closed.
    pub found_and_closed: (u64, u64),
}

/// What processes had open: by the number that owns it, with the time at which it was asked for.
pub(crate) struct OpenLists(HashMap<u32, (u64, BTreeMap<u32, String>)>);

impl Descriptors {
    /// Remembers what process `pid` has open now: it is about to be traced. `end` is readable when
    /// it has ended.
    pub(crate) fn remember(&mut self, owner: u32, pid: u32, end: &PidFd) {
        let before = open_descriptors(pid).unwrap_or_default();
        // Several processes may share one list.
        if let (Ok(end), Entry::Vacant(entry)) = (end.try_clone(), self.processes.entry(owner)) {
            entry.insert(Listed { pid, end, before });
        }
    }

    /// Leaves the records of this owner, which has ended, as they are from now on. Gives those that
    /// have none in the kernel's table: what was found when its list was last looked at.
    pub(crate) fn forget(&mut self, owner: u32) -> Vec<Outstanding> {
        self.processes.remove(&owner);
        let found = self.found.extract_if(|(of, _), _| *of == owner);
        found.map(|((_, fd), (time_ns, _))| unseen(owner, fd, time_ns)).collect()
    }

    /// What the processes have open: to be asked for before the snapshot is made that it is
    /// compared with.
    pub(crate) fn list(&self) -> OpenLists {
        let list = |listed: &Listed| {
            // What is acquired from here on may not be in the list.
            let listed_ns = monotonic_ns();
            Some((listed_ns, open_descriptors(listed.pid).ok()?))
        };
        let lists = self.processes.iter().filter_map(|(owner, listed)| Some((*owner, list(listed)?)));
        OpenLists(lists.collect())
    }

    /// Puts the records of descriptors right. `lists` were made before the snapshot, of which
    /// `newer` descriptors (owner, number) are no part. Processes that have ended are left as they
    /// were counted.
    pub(crate) fn reconcile(
        &mut self,
        mut lists: OpenLists,
        newer: &FxHashSet<(u32, u64)>,
        outstanding: &mut Vec<Outstanding>,
    ) -> Corrections {
        let mut corrections = Corrections::default();
        for (owner, Listed { pid, end, before }) in &mut self.processes {
            let Some((listed_ns, mut open)) = lists.0.remove(owner) else { continue };
            let Ok(still) = open_descriptors(*pid) else { continue };
            // Without a record it counts only if it was open before and after the moment of the
            // snapshot.
            let ours = outstanding.iter().filter(|record| record.space == *owner);
            let counted: HashSet<u64> = ours.map(|record| record.handle).collect();
            open.retain(|fd, file| {
                let number = u64::from(*fd);
                counted.contains(&number)
                    || (still.get(fd) == Some(file) && !newer.contains(&(*owner, number)))
            });
            // One that ends loses its memory first, and then its descriptors, all at once
            // (kernel/exit.c, `do_exit`).
            if still.is_empty() && read_maps(*pid).map_or(true, |maps| maps.is_empty()) {
                continue;
            }
            // The list may be that of another process which has its number by now.
            if end.has_ended() {
                continue;
            }
            let open = (&open, listed_ns);
            let (found, closed) =
                reconcile_one((*owner, before), open, &mut self.found, outstanding, &mut corrections);
            self.found_and_closed.0 += found;
            self.found_and_closed.1 += closed;
        }
        corrections
    }
}

/// What the kernel's table is to be told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Corrections {
    /// Records of descriptors that are closed.
    pub dead: Vec<Outstanding>,
    /// Those that were found for the second time: no call is about to return that enters them. From
    /// here on they are records like any other, which a close removes, and which stay when the
    /// process has ended.
    pub lasting: Vec<Outstanding>,
}

/// A descriptor that was not seen to be made.
fn unseen(owner: u32, fd: u32, time_ns: u64) -> Outstanding {
    Outstanding {
        space: owner,
        resource: Resource::Fd,
        address: u64::from(fd),
        handle: u64::from(fd),
        size: 0,
        stack_id: NO_STACK,
        time_ns,
        birth: time_ns,
    }
}

/// For one process, whose list was made at `listed_ns`. Gives how many descriptors are newly found,
/// and how many of those found before are closed.
fn reconcile_one(
    (owner, before): (u32, &mut BTreeMap<u32, String>),
    (open, listed_ns): (&BTreeMap<u32, String>, u64),
    found: &mut HashMap<(u32, u32), (u64, String)>,
    outstanding: &mut Vec<Outstanding>,
    corrections: &mut Corrections,
) -> (u64, u64) {
    let is_ours = |record: &Outstanding| record.space == owner && record.resource == Resource::Fd;
    corrections.dead.extend(outstanding.extract_if(.., |record| {
        is_ours(record) && record.time_ns < listed_ns && !open.contains_key(&(record.handle as u32))
    }));
    let counted: HashSet<u32> =
        outstanding.iter().filter(|record| is_ours(record)).map(|record| record.handle as u32).collect();
    // A number that has another file now is not what it was.
    before.retain(|fd, file| open.get(fd) == Some(file) && !counted.contains(fd));
    let known = found.len();
    found.retain(|(of, fd), (_, file)| *of != owner || (open.get(fd) == Some(file) && !counted.contains(fd)));
    let left = found.len();
    let mut newly_found = 0;
    for (fd, file) in open {
        if counted.contains(fd) || before.contains_key(fd) {
            continue;
        }
        let (time_ns, is_new) = match found.remove(&(owner, *fd)) {
            Some((time_ns, _)) => (time_ns, false),
            None => (listed_ns, true),
        };
        let record = unseen(owner, *fd, time_ns);
        outstanding.push(record);
        if is_new {
            newly_found += 1;
            found.insert((owner, *fd), (time_ns, file.clone()));
        } else {
            corrections.lasting.push(record);
        }
    }
    (newly_found, (known - left) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(fd: u32, time_ns: u64) -> Outstanding {
        let handle = u64::from(fd);
        Outstanding {
            space: 1,
            resource: Resource::Fd,
            address: handle,
            handle,
            size: 0,
            stack_id: 7,
            time_ns,
            birth: time_ns,
        }
    }

    fn files(files: &[(u32, &str)]) -> BTreeMap<u32, String> {
        files.iter().map(|(fd, file)| (*fd, (*file).to_owned())).collect()
    }

    #[test]
    fn drops_what_is_closed_and_finds_what_was_not_seen() {
        let mut before = files(&[(0, "tty"), (1, "tty"), (2, "tty")]);
        let mut found = HashMap::new();
        let memory = Outstanding { resource: Resource::Heap, ..record(9, 1) };
        let mut outstanding = vec![record(3, 10), record(4, 10), record(9, 10), record(8, 60), memory];
        let mut told = Corrections::default();
        // 9 is closed, 8 is newer than the list, 1 is another file than before, 5 was made unseen.
        let open = files(&[(0, "tty"), (1, "socket"), (2, "tty"), (3, "a"), (4, "b"), (5, "c")]);
        let counts = reconcile_one((1, &mut before), (&open, 50), &mut found, &mut outstanding, &mut told);
        assert_eq!(counts, (2, 0));
        assert_eq!(told, Corrections { dead: vec![record(9, 10)], lasting: Vec::new() });
        let seen = [record(3, 10), record(4, 10), record(8, 60), memory];
        assert_eq!(outstanding, [&seen[..], &[unseen(1, 1, 50), unseen(1, 5, 50)]].concat());
        // The next time 1 has been counted, and 5 is as old as it was, and here to stay; 6 is new.
        let mut outstanding = vec![record(1, 70), record(3, 10)];
        let open = files(&[(0, "tty"), (1, "socket"), (3, "a"), (5, "c"), (6, "d")]);
        let counts = reconcile_one((1, &mut before), (&open, 90), &mut found, &mut outstanding, &mut told);
        assert_eq!(counts, (1, 1));
        assert_eq!(outstanding, [record(1, 70), record(3, 10), unseen(1, 5, 50), unseen(1, 6, 90)]);
        assert_eq!(told, Corrections { dead: vec![record(9, 10)], lasting: vec![unseen(1, 5, 50)] });
        assert!(!before.contains_key(&2), "closed: the next one of that number is new");
        // The process ends: 5 is in the kernel's table, 6 is not.
        let mut descriptors = Descriptors { found, ..Descriptors::default() };
        assert_eq!(descriptors.forget(2), []);
        assert_eq!(descriptors.forget(1), [unseen(1, 6, 90)]);
        assert_eq!(descriptors.forget(1), []);
    }
}
