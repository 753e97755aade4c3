//! Processes by what people know of them (`--name`, `--unit`, ...): those that are there, and those
//! that come later.
//!
//! What a member makes is told by the BPF programs, and is traced from its first instruction on.
//! Others are found when they have a new program or name, of which the kernel tells (`ExecWatch`),
//! or at a look at all processes now and then: nothing tells of one that is moved into a group.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    time::Duration,
};

use log::info;
use tokio::{
    io::unix::AsyncFd,
    time::{Interval, MissedTickBehavior, interval},
};

use crate::{
    proc::{
        exec_watch::ExecWatch,
        readable::readable,
        status::{in_first_pid_namespace, read_status},
    },
    settings::TargetSpec,
    target::selector::{Chosen, SelectError, Selector},
};

/// How often all processes are looked at, beside what is told.
const LOOK: Duration = Duration::from_secs(1);

/// A name is looked up again after so many looks: a container of the same name may be another one.
const LOOKS_TO_RESOLVE: u32 = 10;

/// A newcomer is given up at this failure: the libraries of one whose program has just begun are
/// not mapped yet.
const TRIES: u32 = 3;

/// What is selected, and how newcomers are found.
pub(super) struct Members {
    selectors: Vec<Selector>,
    selections: Vec<Chosen>,
    /// `None`: the kernel does not tell us.
    watch: Option<AsyncFd<ExecWatch>>,
    looks: Interval,
    looked: u32,
    /// Processes that cannot be traced, by when they began: each is said once.
    pub(super) refused: HashMap<u32, u64>,
    /// How often newcomers could not be traced.
    failed: HashMap<u32, u32>,
}

impl Members {
    /// Finds out what is meant. An error if there is no process of a selector.
    pub(super) fn of(selectors: &[Selector]) -> Result<(Self, Vec<u32>), SelectError> {
        let (mut selections, mut all) = (Vec::new(), Vec::new());
        for selector in selectors {
            let selection = Chosen::of(selector, Path::new("/"))?;
            let processes = selection.processes();
            if processes.is_empty() {
                return Err(selection.nothing_found());
            }
            all.extend(processes);
            selections.push(selection);
        }
        all.sort_unstable();
        all.dedup();
        let watch = ExecWatch::open().and_then(readable);
        if let Err(error) = &watch {
            info!("the kernel does not tell of new programs ({error}): processes are looked at each second");
        }
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let members = Self {
            selectors: selectors.to_vec(),
            selections,
            watch: watch.ok(),
            looks,
            looked: 0,
            refused: HashMap::new(),
            failed: HashMap::new(),
        };
        Ok((members, all))
    }

    /// A process is one of them.
    pub(super) fn takes(&self, pid: u32) -> bool {
        self.selections.iter().any(|selection| selection.takes(pid))
    }

    /// A newcomer could not be traced: whether that may have been too early.
    pub(super) fn may_come_yet(&mut self, pid: u32) -> bool {
        let failed = self.failed.entry(pid).or_default();
        *failed += 1;
        *failed < TRIES
    }

    /// Waits until there may be new ones; gives all of which that is so.
    pub(super) async fn next(&mut self) -> Vec<u32> {
        let Self { watch, looks, .. } = self;
        let told = async {
            match watch {
                Some(watch) => match watch.readable().await {
                    Ok(mut ready) => {
                        ready.clear_ready();
                        watch.get_ref().take()
                    }
                    Err(_) => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(pids) = told => {
                let pids: HashSet<u32> = pids.into_iter().filter(|pid| self.takes(*pid)).collect();
                // A new program may be one that can be traced.
                self.refused.retain(|pid, _| !pids.contains(pid));
                self.failed.retain(|pid, _| !pids.contains(pid));
                pids.into_iter().collect()
            }
            _ = looks.tick() => self.look(),
        }
    }

    fn look(&mut self) -> Vec<u32> {
        self.looked += 1;
        if self.looked.is_multiple_of(LOOKS_TO_RESOLVE) {
            self.refused.retain(|pid, began| has_begun_at(*pid, *began));
            self.failed.retain(|pid, _| self.refused.contains_key(pid));
            for (selector, selection) in self.selectors.iter().zip(&mut self.selections) {
                if let Ok(found) = Chosen::of(selector, Path::new("/")) {
                    *selection = found;
                }
            }
        }
        self.selections.iter().flat_map(Chosen::processes).collect()
    }
}

fn has_begun_at(pid: u32, began: u64) -> bool {
    read_status(pid).is_ok_and(|status| status.start_time == began)
}

/// Children of what is traced are to be told of by the programs: they are members, too, and are to
/// be traced from the beginning. What the programs need for it is not there in a PID namespace, nor
/// without the kernel's types; newcomers are found all the same.
pub(super) fn follow(target: &TargetSpec) -> bool {
    matches!(target, TargetSpec::Members { .. })
        && Path::new("/sys/kernel/btf/vmlinux").exists()
        && in_first_pid_namespace()
}

/// The next processes that may be members.
pub(super) async fn next_members(members: &mut Option<Members>) -> Vec<u32> {
    match members {
        Some(members) => members.next().await,
        None => std::future::pending().await,
    }
}
