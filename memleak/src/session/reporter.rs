//! Making a report: a snapshot, aggregated and symbolized.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Instant, SystemTime},
};

use super::targets::Targets;
use crate::{
    aggregate::{History, aggregate},
    probe::resource::Catalog,
    proc::descriptors::open_descriptors,
    report::{Report, StackReport, TargetInfo, descriptors::describe, sink::Sink},
    settings::{Settings, TargetSpec},
    snapshot::{Lost, Snapshot},
    symbolize::Symbolizer,
};

/// What makes reports, and where they go.
pub(super) struct Reporter {
    /// What is traced.
    pub(super) catalog: Catalog,
    pub(super) symbolizer: Symbolizer,
    pub(super) sink: Sink,
    history: History,
    /// When tracing began.
    start: Instant,
    /// Reports made so far.
    pub(super) reports: u64,
}

impl Reporter {
    /// Has made no report yet.
    pub(super) fn new(catalog: Catalog, sink: Sink) -> Self {
        Self {
            catalog,
            symbolizer: Symbolizer::new(),
            sink,
            history: History::default(),
            start: Instant::now(),
            reports: 0,
        }
    }

    /// Tracing begins.
    pub(super) fn begin(&mut self) {
        self.start = Instant::now();
    }

    /// Makes a report of a snapshot that was taken at `time`.
    pub(super) fn make_report(
        &mut self,
        settings: &Settings,
        targets: &Targets,
        snapshot: &Snapshot,
        time: SystemTime,
        is_final: bool,
    ) -> Report {
        let target = target_info(&settings.target, targets);
        let settings = &settings.report;
        let all_ended = targets.all_ended();
        let aggregated =
            aggregate(snapshot, &self.catalog, settings, is_final && all_ended, &mut self.history);
        let mut stacks = Vec::with_capacity(aggregated.groups.len());
        let mut open: HashMap<u32, BTreeMap<u32, String>> = HashMap::new();
        for mut group in aggregated.groups {
            let stack = snapshot.stacks.get(&group.key.stack_id);
            let frames =
                stack.map_or_else(Vec::new, |stack| self.symbolizer.symbolize(group.key.pid, &stack.ips));
            let resource = self.catalog.get(group.key.resource);
            let pid = group.key.pid;
            let lists = if resource.is_descriptor { group.allocations.as_deref_mut() } else { None };
            // The number of a process that has ended may be another's by now.
            let now = lists.filter(|_| targets.lives(pid)).and_then(|lines| {
                let open = open.entry(pid).or_insert_with(|| open_descriptors(pid).unwrap_or_default());
                describe(lines, open)
            });
            stacks.push(StackReport { now, ..StackReport::new(group, resource, stack, frames, settings) });
        }
        self.reports += 1;
        let cut_stacks = stacks.iter().filter(|stack| stack.cut.is_some()).count() as u64;
        Report {
            time,
            elapsed_ms: u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX),
            is_final,
            target,
            totals: aggregated.totals,
            by_resource: aggregated.by_resource,
            lost: Lost { cut_stacks, ..snapshot.lost },
            sampled: (settings.sample_rate > 1).then_some(settings.sample_rate),
            stacks,
        }
    }
}

fn target_info(target: &TargetSpec, targets: &Targets) -> TargetInfo {
    let kind = match target {
        TargetSpec::Pids(_) => "process",
        TargetSpec::Command(_) => "command",
        TargetSpec::Kernel(_) => return TargetInfo::kernel(),
    };
    TargetInfo { kind, pids: targets.pids(), comm: targets.comm() }
}
