//! Making a report: a snapshot, aggregated and symbolized.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant, SystemTime},
};

use log::info;

use super::{Session, SessionError, wait::millis};
use crate::{
    aggregate::aggregate,
    proc::descriptors::open_descriptors,
    report::{
        descriptors::describe,
        format::Scope,
        model::{Frames, Note, Report, TargetInfo},
        sink::Delivery,
    },
    settings::TargetSpec,
    snapshot::{Cut, Lost, Snapshot},
    symbolize::Frame,
};

impl Session {
    /// Makes and writes one report.
    pub(super) fn report(&mut self, is_final: bool) -> Result<Delivery, SessionError> {
        if self.take_events_before_report()? == Delivery::ReaderGone {
            return Ok(Delivery::ReaderGone);
        }
        let (snapshot, time, began) = self.snapshot()?;
        let report = self.make_report(&snapshot, time, is_final);
        let delivery = self.sink.report(&report)?;
        self.tell_time(&snapshot, began);
        Ok(delivery)
    }

    pub(super) fn snapshot(&mut self) -> Result<(Snapshot, SystemTime, (Instant, Duration)), SessionError> {
        let pids: Vec<u32> =
            self.traced.iter().filter(|(_, traced)| !traced.ended).map(|(pid, _)| *pid).collect();
        let begin = Instant::now();
        let time = SystemTime::now();
        self.remove_void()?;
        let snapshot = self.reader.snapshot(&self.ebpf, &self.probes)?;
        let took = begin.elapsed();
        for pid in pids {
            self.observe(pid);
        }
        self.symbolizer.observe_kernel();
        Ok((snapshot, time, (begin, took)))
    }

    pub(super) fn make_report(&mut self, snapshot: &Snapshot, time: SystemTime, is_final: bool) -> Report {
        let settings = &self.settings.report;
        let aggregated =
            aggregate(snapshot, &self.catalog, settings, is_final && self.all_ended(), &mut self.history);
        let mut frames = Frames::default();
        let mut open: HashMap<u32, BTreeMap<u32, String>> = HashMap::new();
        let (mut stacks, mut cut_stacks) = (Vec::with_capacity(aggregated.groups.len()), 0);
        for mut group in aggregated.groups {
            let pid = group.key.pid;
            let resource = self.catalog.get(group.key.resource);
            let lists = if resource.is_descriptor { group.allocations.as_deref_mut() } else { None };
            // The number of a process that has ended may be another's by now.
            let lives = self.traced.get(&pid).is_some_and(|traced| !traced.ended);
            let now = lists.filter(|_| lives).and_then(|lines| {
                let open = open.entry(pid).or_insert_with(|| open_descriptors(pid).unwrap_or_default());
                describe(lines, open)
            });
            let is_written = group.is_top || self.sink.scope() == Scope::All;
            let stack = snapshot.stacks.get(&group.key.stack_id);
            let mut report = group.report(resource, stack, settings);
            report.notes.extend(now.map(Note::Now));
            if let Some(stack) = stack.filter(|_| is_written) {
                let of_stack = self.symbolizer.symbolize(pid, &stack.ips);
                report.notes.retain(|note| !is_no_loss(note, &of_stack));
                cut_stacks += u64::from(report.cut().is_some());
                report.frames = of_stack.into_iter().map(|frame| frames.intern(frame)).collect();
            }
            stacks.push(report);
        }
        self.reports += 1;
        Report {
            time,
            elapsed_ms: u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX),
            is_final,
            target: self.target_info(),
            totals: aggregated.totals,
            by_resource: aggregated.by_resource,
            lost: Lost { cut_stacks, ..snapshot.lost },
            sampled: (settings.sample_rate > 1).then_some(settings.sample_rate),
            frames,
            stacks,
        }
    }

    pub(super) fn target_info(&self) -> TargetInfo {
        let kind = match self.settings.target {
            TargetSpec::Pids(_) => "process",
            TargetSpec::Command(_) => "command",
            TargetSpec::Kernel(_) => return TargetInfo::kernel(),
        };
        TargetInfo {
            kind,
            pids: self.traced.keys().copied().collect(),
            comm: self.traced.values().next().map_or_else(String::new, |traced| traced.comm.clone()),
        }
    }

    pub(super) fn tell_time(&self, snapshot: &Snapshot, (begin, took): (Instant, Duration)) {
        info!(
            "report over {} allocations took {} ms (snapshot {} ms)",
            snapshot.outstanding.len(),
            millis(begin.elapsed()),
            millis(took)
        );
    }
}

/// The stack is cut, but the program's own part is there: what calls `main` is start code, of which musl's and a few others'
/// say nothing.
fn is_no_loss(note: &Note, frames: &[Frame]) -> bool {
    matches!(note, Note::Cut(cut) if *cut != Cut::TooDeep)
        && frames.last().is_some_and(|frame| frame.symbol.as_deref() == Some("main"))
}
