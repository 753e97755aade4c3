//! What the kernel side tells at once, and what follows from it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use log::{debug, info};
use memleak_common::{
    event::{kind, shared},
    probe::Resource,
};

use super::{
    SessionError,
    state::Session,
    user_mode::Objects,
    wait::{event_line, is_kernels, millis},
};
use crate::{
    proc::{clock::monotonic_ns, status::read_status},
    report::sink::Delivery,
    snapshot::ranges::Release,
    target::process::{Process, check_program},
    targets::Shared,
};

/// From an exec or the end of a process until its records are taken out of the kernel's table, which many share.
const CLEAR_AFTER: Duration = Duration::from_secs(1);

impl Session {
    /// Handles what the kernel side has sent: some of it, so that a target that is faster than we are leaves time for
    /// signals and reports. Says whether there may be more.
    pub(super) fn take_events(&mut self) -> Result<(Delivery, bool), SessionError> {
        /// Events handled at a time, and the time given to them; one that brings new objects takes milliseconds.
        const AT_ONCE: usize = 16_384;
        const TIME: Duration = Duration::from_millis(50);
        let deadline = Instant::now() + TIME;
        // What is mapped now is read, so that one reading answers all notices up to it: none waits behind another.
        let (mut noticed, mut last_notice) = (BTreeMap::new(), None);
        let mut taken = 0;
        let mut stacks_stored = false;
        while taken < AT_ONCE
            && Instant::now() < deadline
            && let Some(event) = self.tracer.next_event()
        {
            taken += 1;
            match event.kind {
                kind::RELEASE_RANGE => self.tracer.released(&Release {
                    space: event.owner,
                    resource: Resource::from_u32(event.resource).unwrap_or(Resource::Mmap),
                    start: event.handle,
                    end: event.handle.saturating_add(event.size),
                    time_ns: event.time_ns,
                }),
                kind::MAPPINGS => {
                    noticed.entry(event.owner).or_insert(event.time_ns);
                    last_notice = last_notice.max(Some(event.time_ns));
                }
                kind::EXEC => self.program_replaced(event.owner, event.handle as u32, event.size != 0)?,
                kind::STACKS => stacks_stored = true,
                kind::FORK => {
                    let shared = Shared {
                        memory: event.size & shared::MEMORY != 0,
                        files: event.size & shared::FILES != 0,
                    };
                    self.follow(event.owner, event.handle as u32, shared);
                }
                _ => {}
            }
        }
        for (target, time_ns) in noticed {
            self.mappings_changed(target, time_ns);
        }
        if let Some(time_ns) = last_notice {
            self.tracer.answer(time_ns)?;
        }
        self.tracer.apply_releases()?;
        if stacks_stored {
            self.due.collection = self.tracer.collection_due()?;
        }
        let more = taken == AT_ONCE || Instant::now() >= deadline;
        let (delivery, more_lines) = self.print_lines(AT_ONCE, deadline)?;
        Ok((delivery, more || more_lines))
    }

    /// Prints the lines of `-t` that were sent, at most `at_once` and until `deadline`. Says whether there may be more.
    fn print_lines(&mut self, at_once: usize, deadline: Instant) -> Result<(Delivery, bool), SessionError> {
        let mut lines = Vec::new();
        let mut taken = 0;
        while taken < at_once
            && Instant::now() < deadline
            && let Some(event) = self.tracer.next_line()
        {
            taken += 1;
            // The kernel's own events name a process as they are.
            let owner = self.targets.owner_of(event.owner);
            let pid = owner.map_or(event.owner, |traced| traced.id.pid);
            let mut line = event_line(&event, pid, &self.reporter.catalog);
            if let Some(line) = &mut line
                && is_kernels(line.resource.resource)
            {
                line.tag = self.tracer.stack(event.stack_id)?.and_then(|s| s.tag.clone());
            }
            lines.extend(line);
        }
        let more = taken == at_once || Instant::now() >= deadline;
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
    fn mappings_changed(&mut self, target: u32, time_ns: u64) {
        let Some(traced) = self.targets.get(target).filter(|traced| !traced.ended) else { return };
        let pid = traced.id.pid;
        // Tables first: the new code runs as soon as the dynamic linker is done.
        self.observe(target);
        let late = monotonic_ns().saturating_sub(time_ns) / 1000;
        debug!("process {pid}: unwind tables in place {late} us after the notice");
        if let Err(error) = self.probe(target, Objects::New) {
            // It may have ended meanwhile; what was attached before stays.
            info!("{error}");
        }
        self.tell_attached();
    }

    /// A target has replaced its program, and owns memory by the number `space` from now on.
    fn program_replaced(
        &mut self,
        target: u32,
        space: u32,
        by_another_thread: bool,
    ) -> Result<(), SessionError> {
        let old = self.targets.replaced(target, space);
        let Some(traced) = self.targets.get_mut(target) else { return Ok(()) };
        let pid = traced.id.pid;
        check_program(pid)?;
        traced.planned.clear();
        traced.allocator_code.clear();
        if let Ok(status) = read_status(pid) {
            traced.comm = status.comm;
        }
        self.tracer.program_replaced(traced, old, by_another_thread);
        self.due.clearing.get_or_insert_with(|| Instant::now() + CLEAR_AFTER);
        self.reporter.sink.protect_process(pid);
        info!("process {pid} has replaced its program: its allocations are gone");
        self.mappings_changed(target, monotonic_ns());
        Ok(())
    }

    /// A target has made a child.
    fn follow(&mut self, parent: u32, pid: u32, shared: Shared) {
        let Some(of_parent) = self.targets.get(parent) else { return };
        let from = of_parent.owner.space;
        if self.targets.with_pid(pid).is_some() {
            return;
        }
        let followed = Process::open(pid)
            .map_err(SessionError::from)
            .and_then(|process| self.add_target(&process, Some((parent, shared))));
        match followed {
            Ok(target) => {
                self.reporter.symbolizer.inherit(parent, target);
                if let Some(traced) = self.targets.get(target) {
                    self.tracer.inherit_mappings(from, traced.owner.space);
                }
                self.mappings_changed(target, monotonic_ns());
            }
            Err(error) => debug!("a child is not traced: {error}"),
        }
    }

    /// A target has ended. What it held is kept, and room is made for others.
    pub(super) fn target_ended(&mut self, target: u32) -> Result<(), SessionError> {
        let owners = self.targets.end(target);
        let Some(traced) = self.targets.get(target) else { return Ok(()) };
        let slot = traced.slot;
        self.tracer.target_ended(slot, traced.id.pid, &owners)?;
        self.due.clearing.get_or_insert_with(|| Instant::now() + CLEAR_AFTER);
        // One that ends with the run takes its probes along.
        if !self.targets.all_ended() {
            let last = self.tracer.release_slot(slot)?;
            self.targets.release_slot(slot, last);
        }
        Ok(())
    }

    /// Takes out of the kernel's table what nobody can release any more.
    pub(super) fn clear(&mut self) -> Result<(), SessionError> {
        self.due.clearing = None;
        self.tracer.clear()?;
        self.forget_released();
        Ok(())
    }

    /// Forgets what was known for the sake of things that are no longer held.
    pub(super) fn forget_released(&mut self) {
        let released = self.tracer.take_released();
        self.targets.forget(&released);
        let targets = &self.targets;
        self.reporter.symbolizer.retain(|process| targets.get(process).is_some());
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
