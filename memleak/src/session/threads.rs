//! Breakpoints that depend on one thread of a process, which may end before the process does: when
//! it has, others hold them, or are what probes are attached by (see [`crate::bpf`]).

use log::{debug, info, warn};

use super::{state::Session, wait::millis};
use crate::{
    bpf::Scope,
    proc::{living::living_thread, readable::readable},
    target::process::PidFd,
};

impl Session {
    /// Waits for the end of the thread that a target's probes depend on, if there is one.
    pub(super) fn watch_thread(&mut self, target: u32) {
        let Some(traced) = self.targets.get_mut(target) else { return };
        let depends_on = self.tracer.depends_on(traced.slot);
        let Some(thread) = depends_on.filter(|thread| *thread != traced.watched_thread) else { return };
        traced.watched_thread = thread;
        let pid = traced.id.pid;
        if thread != pid {
            info!("process {pid} is traced by its thread {thread}: its first one has ended");
        }
        let ended = self.thread_ends.0.clone();
        match PidFd::of_thread(thread).and_then(readable) {
            Ok(watch) => {
                tokio::spawn(async move {
                    let _ = watch.readable().await; // an error: as good as ended
                    let _ = ended.send(target);
                });
            }
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => drop(ended.send(target)),
            // Before Linux 6.9. It is looked after before each report.
            Err(error) => debug!("cannot wait for thread {thread}: {error}"),
        }
    }

    /// Looks after the threads that probes depend on.
    pub(super) fn check_threads(&mut self) {
        let living: Vec<u32> = self.targets.living().map(|(target, _)| target).collect();
        living.into_iter().for_each(|target| self.attach_anew(target));
    }

    /// Attaches the probes of a target again, if the thread has ended that they depended on.
    pub(super) fn attach_anew(&mut self, target: u32) {
        let Some(traced) = self.targets.get(target).filter(|traced| !traced.ended) else { return };
        let (pid, comm, scope) =
            (traced.id.pid, traced.comm.clone(), Scope { pid: traced.id.pid, slot: traced.slot });
        let Some(thread) = self.tracer.depends_on(scope.slot) else { return };
        let next = living_thread(pid);
        // Its first thread is given if none lives: then the process has ended.
        if next == thread || next == pid {
            return;
        }
        let loses_calls = self.tracer.makes_events();
        match self.tracer.attach_anew(scope) {
            Ok(outcome) if loses_calls => {
                outcome.failed.iter().for_each(|error| warn!("{error}"));
                self.lost_processes += 1;
                warn!(
                    "process {pid} ({comm}): thread {thread} has ended, by which it was traced; its calls until it was \
                     traced by thread {next}, {} ms later, were not seen",
                    millis(outcome.took)
                );
            }
            Ok(outcome) => outcome.failed.iter().for_each(|error| warn!("{error}")),
            Err(error) => warn!("process {pid} ({comm}) is not traced any more: {error}"),
        }
        self.watch_thread(target);
    }
}
