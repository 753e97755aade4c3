//! What the BPF side tells at once, and what follows from it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use log::{debug, info, warn};
use memleak_common::{event::kind, settings::HOLD_NS};

use super::{
    SessionError,
    state::Session,
    user_mode::Objects,
    wait::{event_line, is_kernels},
};
use crate::{bpf::MovedPages, proc::clock::monotonic_ns, report::sink::Delivery, snapshot::ranges::Release};

impl Session {
    /// Handles what the BPF side has sent: some of it, so that a target that is faster than we
    /// are leaves time for signals and reports. Says whether there may be more.
    pub(super) fn take_events(&mut self) -> Result<(Delivery, bool), SessionError> {
        /// Events handled at a time, and the time given to them; one that brings new objects takes
        /// milliseconds.
        const AT_ONCE: usize = 16_384;
        const TIME: Duration = Duration::from_millis(50);
        let deadline = Instant::now() + TIME;
        // What is mapped now is read, so that one reading answers all notices up to it: none waits
        // behind another.
        let (mut noticed, mut last_notice) = (BTreeMap::new(), None);
        let mut taken = 0;
        let (mut stacks_stored, mut is_full) = (false, false);
        while taken < AT_ONCE
            && Instant::now() < deadline
            && let Some(event) = self.tracer.next_event()
        {
            taken += 1;
            match event.kind {
                kind::RELEASE_RANGE => self.tracer.released(&Release::of(&event)),
                kind::MAPPINGS => {
                    noticed.entry(event.owner).or_insert((event.time_ns, 0)).1 = event.time_ns;
                    last_notice = last_notice.max(Some(event.time_ns));
                }
                kind::STACKS => stacks_stored = true,
                kind::OVERFLOW => is_full = true,
                kind::MOVED => self.tracer.moved(&MovedPages::of(&event))?,
                kind::CHILD => self.has_made(event.tid),
                _ => {}
            }
        }
        if is_full {
            self.tracer.overflow();
        }
        for (target, (first_ns, last_ns)) in noticed {
            let before = self.tracer.probes();
            self.mappings_changed(target, first_ns);
            if self.tracer.probes() > before {
                self.tell_late(target, last_ns);
            }
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

    /// Prints the lines of `-t` that were sent, at most `at_once` and until `deadline`. Says
    /// whether there may be more.
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
        const TIME: Duration = Duration::from_secs(2);
        let deadline = Instant::now() + TIME;
        loop {
            let (delivery, more) = self.take_events()?;
            if delivery == Delivery::ReaderGone || !more || Instant::now() >= deadline {
                return Ok(delivery);
            }
        }
    }

    /// The target has loaded or unloaded objects, at `time_ns` (CLOCK_MONOTONIC): an allocator may
    /// be among them.
    pub(super) fn mappings_changed(&mut self, target: u32, time_ns: u64) {
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

    /// Says so if code of a target was running for a while when its probes came. Its thread waited
    /// for them from `noticed_ns` (CLOCK_MONOTONIC) on.
    fn tell_late(&self, target: u32, noticed_ns: u64) {
        let late = monotonic_ns().saturating_sub(noticed_ns);
        if late > HOLD_NS
            && let Some(traced) = self.targets.get(target)
        {
            warn!(
                "process {}: probes in what it has loaded came after {} ms, and it waited for {}: calls in between were \
                 not seen",
                traced.id.pid,
                late / 1_000_000,
                HOLD_NS / 1_000_000
            );
        }
    }

    /// Takes out of the kernel's table what nobody can release any more.
    pub(super) fn clear(&mut self) -> Result<(), SessionError> {
        self.due.clearing = None;
        self.tracer.clear()?;
        self.fold_ended();
        self.forget_released();
        self.take_freed_slots()
    }

    /// Slots whose links have ended are free for others.
    pub(super) fn take_freed_slots(&mut self) -> Result<(), SessionError> {
        for (slot, last) in self.tracer.freed()? {
            self.targets.release_slot(slot, last);
        }
        Ok(())
    }

    /// Adds up what processes held that ended long ago. Not between a snapshot, which has it too,
    /// and its report.
    pub(super) fn fold_ended(&mut self) {
        while let Some(mut old) = self.tracer.take_old_ended() {
            self.take_out_own(&mut old);
            self.reporter.fold(&old, &self.targets);
        }
    }

    /// Forgets what was known for the sake of things that are no longer held.
    pub(super) fn forget_released(&mut self) {
        let released = self.tracer.take_released();
        self.targets.forget(&released);
        let targets = &self.targets;
        self.reporter.symbolizer.retain(|process| targets.get(process).is_some());
    }

    /// Makes room for stacks, unless a report has done so meanwhile. Another time is set if it
    /// was not enough.
    pub(super) fn collect_stacks(&mut self) -> Result<(), SessionError> {
        self.due.collection = self.tracer.collection_due()?;
        if self.due.collection.is_none_or(|at| at > Instant::now()) {
            return Ok(());
        }
        self.tracer.collect_stacks()?;
        self.due.collection = self.tracer.collection_due()?;
        Ok(())
    }
}
