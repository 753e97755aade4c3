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
    Objects, Session, SessionError,
    wait::{event_line, is_kernels, millis, next_event},
};
use crate::{
    bpf::{load, read::monotonic_ns, targets},
    proc::status::read_status,
    report::sink::Delivery,
    snapshot::Unmap,
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
        let mut lines = Vec::new();
        // What is mapped now is read, so that one reading answers all notices up to it: none waits behind another.
        let (mut noticed, mut last_notice) = (BTreeMap::new(), None);
        let mut taken = 0;
        let mut stacks_stored = false;
        while taken < AT_ONCE
            && Instant::now() < deadline
            && let Some(event) = next_event(self.events.get_mut())
        {
            taken += 1;
            match event.kind {
                kind::ACQUIRE | kind::RELEASE => {
                    // The kernel's own events name a process as they are.
                    let owner = self.targets.owner_of(event.owner);
                    let pid = owner.map_or(event.owner, |traced| traced.id.pid);
                    let mut line = event_line(&event, pid, &self.catalog);
                    if let Some(line) = &mut line
                        && is_kernels(line.resource.resource)
                    {
                        line.tag = self.reader.stack(&self.ebpf, event.stack_id)?.and_then(|s| s.tag.clone());
                    }
                    lines.extend(line);
                }
                kind::UNMAP => self.reader.unmapped(Unmap {
                    space: event.owner,
                    resource: Resource::from_u32(event.resource).unwrap_or(Resource::Mmap),
                    start: event.handle,
                    end: event.handle.saturating_add(event.size),
                    time_ns: event.time_ns,
                    idle: 0,
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
            load::answer(&mut self.ebpf, time_ns)?;
        }
        self.reader.forget_unmaps(&self.ebpf)?;
        if stacks_stored {
            self.collection = self.reader.collection_due(&self.ebpf)?;
        }
        let more = taken == AT_ONCE || Instant::now() >= deadline;
        if lines.is_empty() { Ok((Delivery::Written, more)) } else { Ok((self.sink.events(&lines)?, more)) }
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
        if self.targets.get(target).is_none_or(|traced| traced.ended) {
            return;
        }
        let pid = self.pid_of(target);
        // Tables first: the new code runs as soon as the dynamic linker is done.
        self.observe(target);
        let late = monotonic_ns().saturating_sub(time_ns) / 1000;
        debug!("process {pid}: unwind tables in place {late} us after the notice");
        let planned = self.plan(target, Objects::New).and_then(|plan| self.attach(target, &plan));
        if let Err(error) = planned {
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
        let (pid, slot, owner) = (traced.id.pid, traced.slot, traced.owner);
        check_program(pid)?;
        if by_another_thread {
            self.probes.forget(slot);
        }
        traced.planned.clear();
        if let Ok(status) = read_status(pid) {
            traced.comm = status.comm;
        }
        self.reader.replaced(pid, owner, old);
        self.clearing.get_or_insert_with(|| Instant::now() + CLEAR_AFTER);
        if let Some(old) = old {
            self.symbolizer.forget(old);
        }
        if let Some(unwinding) = &mut self.unwinding {
            unwinding.forget(slot);
        }
        info!("process {pid} has replaced its program: its allocations are gone");
        self.mappings_changed(target, monotonic_ns());
        Ok(())
    }

    /// A target has made a child.
    fn follow(&mut self, parent: u32, pid: u32, shared: Shared) {
        if self.targets.with_pid(pid).is_some() {
            return;
        }
        let Some(of_parent) = self.targets.get(parent) else { return };
        let from = of_parent.owner.space;
        let followed = Process::open(pid)
            .map_err(SessionError::from)
            .and_then(|process| self.add_target(&process, Some((parent, shared))));
        match followed {
            Ok(target) => {
                if let Some(traced) = self.targets.get(target) {
                    self.symbolizer.inherit(from, traced.owner.space);
                }
                self.mappings_changed(target, monotonic_ns());
            }
            Err(error) => debug!("a child is not traced: {error}"),
        }
    }

    /// A target has ended. What it held is kept, and room is made for others.
    pub(super) fn target_ended(&mut self, target: u32) -> Result<(), SessionError> {
        let ended = self.targets.end(target);
        let Some(traced) = self.targets.get(target) else { return Ok(()) };
        let (pid, slot) = (traced.id.pid, traced.slot);
        targets::forget_pid(&mut self.ebpf, slot, pid)?;
        if let Some(unwinding) = &mut self.unwinding {
            unwinding.remove(slot);
        }
        self.reader.ended(&ended);
        self.clearing.get_or_insert_with(|| Instant::now() + CLEAR_AFTER);
        // One that ends with the run takes its probes along.
        if !self.targets.all_ended() {
            self.probes.forget(slot);
            let last = targets::remove(&mut self.ebpf, slot)?;
            self.targets.release_slot(slot, last);
        }
        Ok(())
    }

    /// Takes out of the kernel's table what nobody can release any more.
    pub(super) fn clear(&mut self) -> Result<(), SessionError> {
        self.clearing = None;
        self.reader.clear(&self.ebpf)?;
        self.forget_released();
        Ok(())
    }

    /// Forgets what was known for the sake of things that are no longer held.
    pub(super) fn forget_released(&mut self) {
        let released = self.reader.take_released();
        self.symbolizer.forget_all(&released);
        self.targets.forget(&released);
    }

    /// Makes room for stacks, unless a report has done so meanwhile. Another time is set where it was not enough.
    pub(super) fn collect_stacks(&mut self) -> Result<(), SessionError> {
        let begin = Instant::now();
        self.collection = self.reader.collection_due(&self.ebpf)?;
        if self.collection.is_none_or(|at| at > begin) {
            return Ok(());
        }
        let removed = self.reader.collect_stacks(&self.ebpf)?;
        self.collection = self.reader.collection_due(&self.ebpf)?;
        info!("removed {removed} stacks that nothing refers to in {} ms", millis(begin.elapsed()));
        Ok(())
    }
}
