//! Puts probes into processes that are selected.

use log::{debug, info, warn};

use super::{
    SessionError,
    members::Members,
    state::{Mode, Session},
};
use crate::{
    proc::status::{has_ended, read_status},
    target::process::{Process, ProcessError},
};

impl Session {
    fn members(&mut self) -> Option<&mut Members> {
        match &mut self.mode {
            Mode::User(mode) => mode.members.as_mut(),
            Mode::Kernel => None,
        }
    }

    /// A process is traced because it is selected.
    pub(super) fn selects(&mut self, pid: u32) -> bool {
        self.members().is_some_and(|members| members.takes(pid))
    }

    /// Puts probes into the members that are there. An error if none of them can be traced and
    /// nothing else is.
    pub(super) fn trace_members(&mut self, processes: Vec<Process>) -> Result<(), SessionError> {
        let mut failed = None;
        for process in processes {
            failed = self.trace_member(process, false).err().or(failed);
        }
        match failed {
            Some(error) if self.targets.living().next().is_none() => Err(error),
            _ => Ok(()),
        }
    }

    /// What cannot be traced is left out, and that is said once; a newcomer is tried again.
    fn trace_member(&mut self, process: Process, is_new: bool) -> Result<(), SessionError> {
        let (pid, comm, began) = (process.pid, process.comm.clone(), process.start_time);
        let traced = self.trace_running(process);
        let target = self.targets.with_pid(pid);
        if let Err(error) = &traced {
            if is_new && self.members().is_some_and(|members| members.may_come_yet(pid)) {
                debug!("process {pid} ({comm}) does not join yet: {error}");
            } else {
                if !has_ended(pid) {
                    warn!("process {pid} ({comm}) is left out: {error}");
                }
                self.refuse(pid, began);
            }
            if let Some(target) = target
                && let Some(slot) = self.targets.get(target).map(|traced| traced.slot)
            {
                self.leave(target, slot)?;
            }
        } else if let Some(traced) = target.and_then(|target| self.targets.get_mut(target)) {
            // It comes and goes like a child that is followed.
            traced.named = false;
        }
        traced
    }

    fn refuse(&mut self, pid: u32, began: u64) {
        if let Some(members) = self.members() {
            members.refused.insert(pid, began);
        }
    }

    /// Traces those of these members that are not traced yet.
    pub(super) fn join(&mut self, pids: Vec<u32>) {
        for pid in pids {
            if self.targets.with_pid(pid).is_some()
                || self.members().is_none_or(|members| members.refused.contains_key(&pid))
            {
                continue;
            }
            let process = match Process::open(pid) {
                Ok(process) => process,
                Err(error) => {
                    debug!("process {pid} does not join: {error}");
                    if !matches!(error, ProcessError::Gone(_)) {
                        let began = read_status(pid).map_or(0, |status| status.start_time);
                        self.refuse(pid, began);
                    }
                    continue;
                }
            };
            let comm = process.comm.clone();
            if self.trace_member(process, true).is_ok() {
                self.processes.joined += 1;
                info!("process {pid} ({comm}) has joined");
                self.tell_attached();
            }
        }
    }
}
