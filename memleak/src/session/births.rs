//! Children and new programs of targets, and their ends.

use std::time::{Duration, Instant};

use log::{debug, info, warn};
use memleak_common::event::{kind, shared};

use super::{
    SessionError,
    follow::Birth,
    state::{Mode, Session},
};
use crate::{
    bpf::Scope,
    proc::{
        clock::monotonic_ns,
        status::{read_status, successors},
    },
    stderr,
    target::process::{Process, ProcessError, check_program},
    targets::{Shared, Traced},
};

/// From an exec or the end of a process until its records are taken out of the kernel's table,
/// which many share.
const CLEAR_AFTER: Duration = Duration::from_secs(1);

impl Session {
    /// Deals with all births that were told of by now. `is_held`: they are of a command that has
    /// not begun to run.
    pub(super) fn take_births(&mut self, is_held: bool) {
        while let Some(birth) = self.next_told_birth() {
            self.born(&birth, is_held);
        }
    }

    /// Whether children and new programs are stopped until their probes are in.
    pub(super) fn arm(&self, is_armed: bool) {
        if let Mode::User(mode) = &self.mode {
            mode.follower.arm(is_armed);
        }
    }

    fn next_told_birth(&mut self) -> Option<Birth> {
        match &mut self.mode {
            Mode::User(mode) => mode.follower.try_next(),
            Mode::Kernel => None,
        }
    }

    /// Puts probes into a child or a new program, and lets it run. `is_held`: it is held already,
    /// by ptrace.
    pub(super) fn born(&mut self, birth: &Birth, is_held: bool) {
        let event = &birth.event;
        if event.kind == kind::ENDING {
            return self.ending(birth);
        }
        let is_traced = match event.kind {
            kind::FORK => self.follow(birth),
            _ => self.program_replaced(birth),
        };
        // Asked when all is done: it may have been let go meanwhile.
        let is_whole = is_held || birth.is_held();
        match is_traced {
            Ok(true) if !is_whole => self.lost_processes += 1,
            Ok(_) => {}
            Err(error) => {
                debug!("process {} is not traced: {error}", event.tid);
                // One that has ended before its first instruction has done nothing.
                self.lost_processes += u64::from(!is_whole || read_status(event.tid).is_ok());
            }
        }
        if let Mode::User(mode) = &self.mode {
            mode.follower.release(birth);
        }
    }

    /// A target has made a child. Says whether it is traced.
    fn follow(&mut self, birth: &Birth) -> Result<bool, SessionError> {
        let (parent, pid) = (birth.event.owner, birth.event.tid);
        let shared = Shared {
            memory: birth.event.size & shared::MEMORY != 0,
            files: birth.event.size & shared::FILES != 0,
        };
        let Some((from, slot)) = self.targets.get(parent).map(|parent| (parent.owner.space, parent.slot))
        else {
            return Err(ProcessError::Gone(pid).into());
        };
        // A target is asked for its children when tracing begins: this may be one of them.
        if self.targets.with_pid(pid).is_some() {
            return Ok(false);
        }
        // Without either, what shares the memory is traced for its sake.
        if !shared.memory && !self.settings.capture.follow_forks && !self.selects(pid) {
            self.has_made(pid);
            return Ok(false);
        }
        // Links of the older kind fire for all who share the memory.
        if shared.memory && !self.tracer.tells_sharers_apart() {
            return Ok(false);
        }
        let child = self.add_target(&Process::open(pid)?, Some((parent, shared)))?;
        let Some(traced) = self.targets.get(child) else { return Ok(false) };
        let scope = Scope { pid, slot: traced.slot };
        self.reporter.symbolizer.inherit(parent, child);
        if !shared.memory {
            self.tracer.inherit_mappings(from, traced.owner.space);
        }
        if !self.tracer.inherit(slot, scope)? {
            self.mappings_changed(child, monotonic_ns());
        } else {
            self.targets.inherit_plan(parent, child);
        }
        let maker = self.targets.get(parent).map_or(0, |parent| parent.id.pid);
        self.joined(child, maker);
        Ok(true)
    }

    /// A target has replaced its program, and has another address space from now on. Says whether
    /// it is still traced.
    fn program_replaced(&mut self, birth: &Birth) -> Result<bool, SessionError> {
        let (target, space) = (birth.event.owner, birth.event.handle as u32);
        let by_another_thread = birth.event.size != 0;
        let translator = check_program(birth.event.tid).err();
        if self.targets.get(target).is_none_or(|traced| traced.ended) {
            // Untraced by now, but its links may not have ended yet.
            if translator.is_some() {
                self.tracer.finish_closing();
            }
            return Ok(false);
        }
        let old = self.targets.replaced(target, space);
        let follows = self.settings.capture.follow_forks;
        let follows = follows || self.selects(birth.event.tid);
        let Some(traced) = self.targets.get_mut(target) else { return Ok(false) };
        let (pid, slot) = (traced.id.pid, traced.slot);
        if let Some(error) = translator {
            warn!("process {pid} keeps running untraced: {error}");
            self.lost_processes += 1;
            self.tracer.end_probes(slot);
            self.leave(target, slot)?;
            self.tracer.forget_pid(slot, pid)?;
            return Ok(false);
        }
        if !traced.named && !follows {
            // It was traced for the memory that it shared.
            self.leave(target, slot)?;
            self.has_made(pid);
            return Ok(false);
        }
        traced.planned.clear();
        traced.allocator_code.clear();
        traced.allocators.clear();
        traced.nameless = None;
        if let Some(accounts) = &mut self.accounts {
            accounts.replaced(space);
        }
        if let Ok(status) = read_status(pid) {
            traced.comm = status.comm;
        }
        self.tracer.program_replaced(traced, old, by_another_thread);
        self.due.clearing.get_or_insert_with(|| Instant::now() + CLEAR_AFTER);
        self.reporter.sink.protect_process(pid);
        info!("process {pid} has replaced its program: its allocations are gone");
        self.mappings_changed(target, monotonic_ns());
        Ok(true)
    }

    /// A target keeps running without us. Its links end later: until then the programs report its
    /// execs, for the sake of those programs that must not have any.
    pub(super) fn leave(&mut self, target: u32, slot: u32) -> Result<(), SessionError> {
        self.tracer.silence(slot)?;
        let owners = self.targets.end(target);
        self.tracer.owners_ended(slot, &owners);
        self.due.clearing.get_or_insert_with(|| Instant::now() + CLEAR_AFTER);
        if !self.targets.all_ended() {
            self.tracer.release_slot(slot);
        }
        Ok(())
    }

    /// A child is traced from now on.
    pub(super) fn joined(&mut self, child: u32, maker: u32) {
        self.processes.joined += 1;
        if let Some(Traced { id, comm, .. }) = self.targets.get(child) {
            info!("process {} ({comm}), which process {maker} has made, is traced", id.pid);
        }
    }

    /// Says that a target has ended, and whether another process has taken its place. Of a target
    /// that was followed it is an event like others; one that a user has named is missed.
    fn left(&mut self, target: u32) {
        self.processes.left += 1;
        let Some(Traced { id, comm, named, parent, .. }) = self.targets.get(target) else { return };
        let followers = match (named, self.settings.capture.follow_forks) {
            (true, false) => successors(*parent, comm, id.start_time),
            _ => Vec::new(),
        };
        let untraced = followers.into_iter().find(|pid| self.targets.with_pid(*pid).is_none());
        let what = format!("process {} ({comm}) has ended", id.pid);
        match untraced {
            Some(pid) => stderr::line(&format!(
                "{what}; process {pid}, which process {parent} has made since, is not traced: to follow such \
                 processes type -p {parent} --follow-forks"
            )),
            None if *named && !self.targets.all_ended() => {
                stderr::line(&format!("{what}; the others are traced further"));
            }
            None => info!("{what}"),
        }
    }

    /// A target has ended. What it held is kept, and room is made for others.
    pub(super) fn target_ended(&mut self, target: u32) -> Result<(), SessionError> {
        if self.targets.get(target).is_none_or(|traced| traced.ended) {
            return Ok(());
        }
        let owners = self.targets.end(target);
        self.left(target);
        let Some(traced) = self.targets.get(target) else { return Ok(()) };
        let (slot, pid) = (traced.slot, traced.id.pid);
        self.tracer.forget_pid(slot, pid)?;
        self.find_oom_killed(pid);
        self.tracer.owners_ended(slot, &owners);
        self.due.clearing.get_or_insert_with(|| Instant::now() + CLEAR_AFTER);
        // One that ends with the run takes its probes along.
        if !self.targets.all_ended() {
            self.tracer.release_slot(slot);
        }
        Ok(())
    }
}
