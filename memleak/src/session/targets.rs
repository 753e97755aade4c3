//! The traced processes.

use std::collections::{BTreeMap, HashSet};

use tokio::sync::mpsc;

use super::SessionError;
use crate::{
    proc::{readable::readable, status::read_status},
    target::{object::ObjectId, process::PidFd},
};

/// One traced process.
pub(super) struct Traced {
    pub(super) comm: String,
    pub(super) ended: bool,
    /// Its objects that were looked at.
    pub(super) planned: HashSet<ObjectId>,
}

/// All of them, by PID.
pub(super) struct Targets {
    traced: BTreeMap<u32, Traced>,
    ends: (mpsc::UnboundedSender<u32>, mpsc::UnboundedReceiver<u32>),
}

impl Targets {
    /// Nothing is traced yet.
    pub(super) fn new() -> Self {
        Self { traced: BTreeMap::new(), ends: mpsc::unbounded_channel() }
    }

    /// Takes in a process, and waits for its end.
    pub(super) fn add(&mut self, pid: u32, comm: String, end: PidFd) -> Result<(), SessionError> {
        let watch =
            readable(end).map_err(|error| SessionError::System("cannot wait for a process", error))?;
        let ended = self.ends.0.clone();
        tokio::spawn(async move {
            // An error would mean that it can no longer be waited for: as good as ended.
            let _ = watch.readable().await;
            let _ = ended.send(pid);
        });
        self.traced.insert(pid, Traced { comm, ended: false, planned: HashSet::new() });
        Ok(())
    }

    /// Takes in a process that has ended already.
    pub(super) fn add_ended(&mut self, pid: u32, comm: String) {
        self.traced.insert(pid, Traced { comm, ended: true, planned: HashSet::new() });
    }

    /// The next one that ends. It is to be told to [`Self::set_ended`].
    pub(super) async fn next_end(&mut self) -> Option<u32> {
        self.ends.1.recv().await
    }

    /// A process has ended.
    pub(super) fn set_ended(&mut self, pid: u32) {
        if let Some(traced) = self.traced.get_mut(&pid) {
            traced.ended = true;
        }
    }

    /// A process has replaced its program: nothing of it was looked at.
    pub(super) fn program_replaced(&mut self, pid: u32) {
        if let Some(traced) = self.traced.get_mut(&pid) {
            traced.planned.clear();
            if let Ok(status) = read_status(pid) {
                traced.comm = status.comm;
            }
        }
    }

    /// One of them.
    pub(super) fn get(&self, pid: u32) -> Option<&Traced> {
        self.traced.get(&pid)
    }

    /// One of them.
    pub(super) fn get_mut(&mut self, pid: u32) -> Option<&mut Traced> {
        self.traced.get_mut(&pid)
    }

    /// It is one of them, and has not ended.
    pub(super) fn lives(&self, pid: u32) -> bool {
        self.get(pid).is_some_and(|traced| !traced.ended)
    }

    /// Those that have not ended.
    pub(super) fn living(&self) -> Vec<u32> {
        self.traced.iter().filter(|(_, traced)| !traced.ended).map(|(pid, _)| *pid).collect()
    }

    /// There were some, and all have ended. Not so of the kernel.
    pub(super) fn all_ended(&self) -> bool {
        !self.traced.is_empty() && self.traced.values().all(|traced| traced.ended)
    }

    /// PIDs, also of those that have ended.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.traced.keys().copied().collect()
    }

    /// The command name of the first.
    pub(super) fn comm(&self) -> String {
        self.traced.values().next().map_or_else(String::new, |traced| traced.comm.clone())
    }
}
