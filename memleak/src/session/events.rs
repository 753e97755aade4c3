//! What the kernel side tells at once, and what follows from it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use log::{debug, info};
use memleak_common::{event::kind, probe::Resource};

use super::{
    SessionError,
    state::Session,
    user_mode::Objects,
    wait::{event_line, is_kernels, millis},
};
use crate::{
    proc::clock::monotonic_ns,
    report::sink::Delivery,
    snapshot::Unmap,
    target::process::{Process, check_program},
};

/// From an exec until the records that it has made void are removed, which many execs share. No report has them.
const VOID_AFTER: Duration = Duration::from_secs(1);

impl Session {
    /// Handles what the kernel side has sent: some of it, so that a target that is faster than we are leaves time for
    /// signals and reports. Says whether there may be more.
    pub(super) fn take_events(&mut self) -> Result<(Delivery, bool), SessionError> {
        /// Events handled at a time, and the time given to them; one that brings new objects takes milliseconds.
        const AT_ONCE: usize = 16_384;
        const TIME: Duration = Duration::from_millis(50);
        let deadline = Instant::now() + TIME;
        let mut lines = Vec::new();
        // What is mapped now is read, so that one reading answers all notices up to it: none waits behind another.
        let (mut noticed, mut last_notice) = (BTreeMap::new(), None);
        let mut taken = 0;
        let mut stacks_stored = false;
        while taken < AT_ONCE
            && Instant::now() < deadline
            && let Some(event) = self.tracer.next_event()
        {
            taken += 1;
            let pid = self.tracer.pid_of(event.tgid)?;
            match event.kind {
                kind::ACQUIRE | kind::RELEASE => {
                    let mut line = event_line(&event, pid, &self.reporter.catalog);
                    if let Some(line) = &mut line
                        && is_kernels(line.resource.resource)
                    {
                        line.tag = self.tracer.stack(event.stack_id)?.and_then(|s| s.tag.clone());
                    }
                    lines.extend(line);
                }
                kind::UNMAP => self.tracer.unmapped(Unmap {
                    pid,
                    resource: Resource::from_u32(event.resource).unwrap_or(Resource::Mmap),
                    start: event.handle,
                    end: event.handle.saturating_add(event.size),
                    time_ns: event.time_ns,
                    idle: 0,
                }),
                kind::MAPPINGS => {
                    noticed.entry(pid).or_insert(event.time_ns);
                    last_notice = last_notice.max(Some(event.time_ns));
                }
                kind::EXEC => self.program_replaced(pid, event.handle != 0)?,
                kind::STACKS => stacks_stored = true,
                kind::FORK => self.follow(pid, event.handle as u32),
                _ => {}
            }
        }
        for (pid, time_ns) in noticed {
            self.mappings_changed(pid, time_ns);
        }
        if let Some(time_ns) = last_notice {
            self.tracer.answer(time_ns)?;
        }
        self.tracer.forget_unmaps()?;
        if stacks_stored {
            self.due.collection = self.tracer.collection_due()?;
        }
        let more = taken == AT_ONCE || Instant::now() >= deadline;
        if lines.is_empty() {
            Ok((Delivery::Written, more))
        } else {
            Ok((self.reporter.sink.events(&lines)?, more))
        }
    }

    /// Handles what was sent before this moment, or as much of it as a report can wait for.
    pub(super) fn take_events_before_report(&mut self) -> Result<Delivery, SessionError> {
        const TIME: Duration = Duration::from_millis(500);
        let deadline = Instant::now() + TIME;
        loop {
            let (delivery, more) = self.take_events()?;
            if delivery == Delivery::ReaderGone || !more || Instant::now() >= deadline {
                return Ok(delivery);
            }
        }
    }

    /// The target has loaded or unloaded objects, at `time_ns` (CLOCK_MONOTONIC): an allocator may be among them.
    fn mappings_changed(&mut self, pid: u32, time_ns: u64) {
        if self.targets.get(pid).is_none() {
            return;
        }
        // Tables first: the new code runs as soon as the dynamic linker is done.
        self.observe(pid);
        let late = monotonic_ns().saturating_sub(time_ns) / 1000;
        debug!("process {pid}: unwind tables in place {late} us after the notice");
        if let Err(error) = self.probe(pid, Objects::New) {
            // It may have ended meanwhile; what was attached before stays.
            info!("{error}");
        }
        self.tell_attached();
    }

    pub(super) fn program_replaced(&mut self, pid: u32, by_another_thread: bool) -> Result<(), SessionError> {
        check_program(pid)?;
        self.tracer.program_replaced(pid, by_another_thread);
        self.due.void.get_or_insert_with(|| Instant::now() + VOID_AFTER);
        self.reporter.symbolizer.forget(pid);
        self.targets.program_replaced(pid);
        info!("process {pid} has replaced its program: its allocations are gone");
        self.mappings_changed(pid, monotonic_ns());
        Ok(())
    }

    /// A traced process has made a child, which the kernel side traces already.
    fn follow(&mut self, parent: u32, pid: u32) {
        if self.targets.get(pid).is_some() {
            return;
        }
        // It begins with its parent's mappings and probes, and may be gone before it can be looked at.
        self.reporter.symbolizer.inherit(parent, pid);
        let (comm, planned) = self
            .targets
            .get(parent)
            .map_or_else(Default::default, |traced| (traced.comm.clone(), traced.planned.clone()));
        let followed = Process::open(pid).map_err(SessionError::from).and_then(|process| {
            let end =
                process.end_fd().map_err(|error| SessionError::System("cannot wait for a process", error))?;
            self.add_target(pid, process.comm, end)
        });
        if let Err(error) = followed {
            debug!("a child has ended already: {error}");
            self.targets.add_ended(pid, comm);
        } else if let Some(traced) = self.targets.get_mut(pid) {
            traced.planned = planned;
            // Its unwind tables' list is its parent's until it has one of its own.
            self.observe(pid);
        }
    }

    /// Removes what execs have made void.
    pub(super) fn remove_void(&mut self) -> Result<(), SessionError> {
        self.due.void = None;
        Ok(self.tracer.remove_void()?)
    }

    /// Makes room for stacks, unless a report has done so meanwhile. Another time is set where it was not enough.
    pub(super) fn collect_stacks(&mut self) -> Result<(), SessionError> {
        let begin = Instant::now();
        self.due.collection = self.tracer.collection_due()?;
        if self.due.collection.is_none_or(|at| at > begin) {
            return Ok(());
        }
        let removed = self.tracer.collect_stacks()?;
        self.due.collection = self.tracer.collection_due()?;
        info!("removed {removed} stacks that nothing refers to in {} ms", millis(begin.elapsed()));
        Ok(())
    }
}
