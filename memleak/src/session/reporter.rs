//! Making a report: a snapshot, aggregated and symbolized.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::{Duration, Instant, SystemTime},
};

use super::{examined::Examinations, explain::Explainer, hints::Hints};
use memleak_common::probe::Resource;

use crate::{
    account::Memory,
    aggregate::{Aggregated, Folded, Found, GroupKey, Past, Wanted, aggregate},
    hurry,
    objects::ObjectStore,
    probe::resource::Catalog,
    proc::{descriptors::open_descriptors, status::thread_comm},
    report::{
        descriptors::{Open, describe},
        format::Scope,
        model::{
            AllocationLine, Frames, Note, OomKilled, Processes, Report, StackReport, TargetInfo,
            TemporaryStack, Totals,
        },
        sink::Sink,
        why::Why,
    },
    settings::{ReportSettings, Settings, TargetSpec},
    sites::{Locate, SiteId, Sites},
    snapshot::{Cut, KERNEL_PID, KERNEL_SPACE, Lost, Outstanding, Snapshot, Stack, own::Own},
    symbolize::{Anchor, Frame, Location, ObjectNumber, Symbolizer},
    targets::Targets,
    verdict::Point,
};

/// What a report is made of.
pub(super) struct Taken {
    /// Its records may have been used up, once they are grouped ([`Session::examine`]).
    ///
    /// [`Session::examine`]: super::state::Session::examine
    pub(super) snapshot: Snapshot,
    /// How many records there were.
    pub(super) records: usize,
    /// Their bytes, if somebody is to be told.
    pub(super) held: Option<u64>,
    /// What was taken out of it.
    pub(super) own: Own,
    /// What is lost and what holds the rest, if that was asked for.
    pub(super) why: Option<Examinations>,
    /// The moment that it is of.
    pub(super) time: SystemTime,
    /// The account of the targets' memory at that moment.
    pub(super) memory: Option<Memory>,
    /// When the work on it began.
    pub(super) began: Instant,
    /// What reading the maps took.
    pub(super) took: Duration,
    /// Probes that were attached then.
    pub(super) probes: usize,
    /// Which came and went.
    pub(super) processes: Processes,
    /// What is released at once.
    pub(super) temporary: Vec<Passing>,
    /// Which of them were killed for want of memory.
    pub(super) oom_killed: Vec<OomKilled>,
}

/// What was taken, grouped.
pub(super) struct GroupedRecords {
    aggregated: Aggregated,
    /// Milliseconds since tracing began.
    elapsed_ms: u64,
}

/// A stack and what it has released.
pub(super) struct Passing {
    /// The process in whose memory its addresses are.
    pub(super) process: u32,
    pub(super) stack: Stack,
    pub(super) released: u64,
    pub(super) at_once: u64,
    pub(super) bytes: u64,
}

/// What makes reports, and where they go.
pub(super) struct Reporter {
    /// What is traced.
    pub(super) catalog: Catalog,
    pub(super) symbolizer: Symbolizer,
    pub(super) sink: Sink,
    /// All stacks of each report are wanted, whatever the form of what is written.
    pub(super) publishes: bool,
    sites: Sites,
    /// What processes held that ended long ago.
    folded: Folded,
    past: Past,
    hints: Hints,
    /// What threads were called in the report before, if those are told apart.
    threads: BTreeMap<u32, String>,
    /// When tracing began.
    start: Instant,
    /// Reports made so far.
    pub(super) reports: u64,
}

impl Reporter {
    /// Has made no report yet.
    pub(super) fn new(settings: &Settings, sink: Sink, store: ObjectStore) -> Self {
        Self {
            catalog: settings.capture.catalog(),
            symbolizer: Symbolizer::with_objects(store),
            sink,
            publishes: false,
            sites: Sites::default(),
            folded: Folded::new(settings.report.sampling),
            past: Past::default(),
            hints: Hints::default(),
            threads: BTreeMap::new(),
            start: Instant::now(),
            reports: 0,
        }
    }

    /// Tracing begins.
    pub(super) fn begin(&mut self) {
        self.start = Instant::now();
    }

    /// Adds up what processes held that ended long ago: they need not be known any more.
    pub(super) fn fold(&mut self, old: &Snapshot, targets: &Targets) {
        self.sites.find(old, &mut ByProcess { symbolizer: &mut self.symbolizer, targets });
        let mut by_space: HashMap<u32, Vec<(SiteId, Outstanding)>> = HashMap::new();
        for record in &old.outstanding {
            let site = self.sites.of(record.space, record.stack_id);
            by_space.entry(record.space).or_default().push((site, *record));
        }
        for (space, records) in by_space {
            let pid = targets.owner_of(space).map_or(KERNEL_PID, |traced| traced.id.pid);
            self.folded.add(pid, records);
        }
        self.sites.hold(self.folded.sites());
    }

    /// Groups what was taken.
    pub(super) fn group(
        &mut self,
        settings: &Settings,
        targets: &Targets,
        taken: &Taken,
        is_final: bool,
    ) -> GroupedRecords {
        self.sites.update(&taken.snapshot, &mut ByProcess { symbolizer: &mut self.symbolizer, targets });
        let wanted = self.wanted(is_final, targets.all_ended());
        self.group_records(settings, targets, &taken.snapshot, wanted)
    }

    /// Remembers what each group holds, without a report.
    pub(super) fn look(&mut self, settings: &Settings, targets: &Targets, snapshot: &Snapshot) {
        // What is gone for a while keeps its site until the next report.
        self.sites.find(snapshot, &mut ByProcess { symbolizer: &mut self.symbolizer, targets });
        let wanted = Wanted { is_look: true, ..Wanted::default() };
        let _ = self.group_records(settings, targets, snapshot, wanted);
    }

    fn group_records(
        &mut self,
        settings: &Settings,
        targets: &Targets,
        snapshot: &Snapshot,
        wanted: Wanted,
    ) -> GroupedRecords {
        let pid_of = |space| targets.owner_of(space).map_or(KERNEL_PID, |traced| traced.id.pid);
        let elapsed_ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let found = Found { snapshot, folded: &self.folded, sites: &self.sites, pid_of: &pid_of, elapsed_ms };
        let work = || aggregate(found, &self.catalog, &settings.report, wanted, &mut self.past);
        let aggregated = hurry::without_counting(work);
        GroupedRecords { aggregated, elapsed_ms }
    }

    /// Makes a report of what was taken and grouped.
    pub(super) fn make_report(
        &mut self,
        settings: &Settings,
        targets: &Targets,
        taken: &Taken,
        GroupedRecords { aggregated, elapsed_ms }: GroupedRecords,
        is_final: bool,
    ) -> Report {
        let snapshot = &taken.snapshot;
        let target = target_info(&settings.target, targets);
        let settings = &settings.report;
        let Totals { bytes, count, .. } = aggregated.totals;
        let mut frames = Frames::default();
        let mut open = Open::new();
        let (mut stacks, mut cut_stacks) = (Vec::with_capacity(aggregated.groups.len()), 0);
        let keys: Vec<GroupKey> = aggregated.groups.iter().map(|group| group.key).collect();
        let wants_all =
            self.publishes || !settings.filter.is_empty() || self.sink.scope(is_final) == Scope::All;
        for mut group in aggregated.groups {
            let resource = self.catalog.get(group.key.resource);
            let lists = if resource.is_descriptor { group.allocations.as_deref_mut() } else { None };
            let mut waited_in_accept = false;
            let now = lists.and_then(|lines| {
                add_open(&mut open, lines, targets);
                let now = describe(lines, &open);
                waited_in_accept = waited(lines, targets);
                now
            });
            let is_written = group.is_top || wants_all;
            let site = self.sites.get(group.key.site);
            let mut report = group.report(resource, site, settings);
            report.notes.extend(now.map(Note::Now));
            report.notes.extend((waited_in_accept && site.is_none()).then_some(Note::WaitedInAccept));
            if let Some(site) = site.filter(|_| is_written) {
                let of_stack = self.symbolizer.frames(site.locations(), &site.ips);
                self.hints.tell(&of_stack, report.pid());
                report.notes.retain(|note| !is_no_loss(note, &of_stack));
                cut_stacks += u64::from(report.cut().is_some());
                report.frames = of_stack.into_iter().map(|frame| frames.intern(frame)).collect();
            }
            stacks.push(report);
        }
        self.reports += 1;
        let temporary = taken.temporary.iter().map(|stack| self.temporary(stack, &mut frames)).collect();
        self.name_threads(&stacks);
        let threads = self.threads.clone();
        let why = taken.why.as_ref().map(|looked| self.why(looked, targets, &keys, &mut stacks));
        let mut report = Report {
            suppressed: None,
            temporary,
            threads,
            oom_killed: taken.oom_killed.clone(),
            time: taken.time,
            elapsed_ms,
            moments: self.past.totals(Point { at_ms: elapsed_ms, bytes, count }),
            cut_ns: snapshot.time_ns,
            cut_within_ns: snapshot.within_ns,
            is_final,
            target,
            processes: taken.processes,
            totals: aggregated.totals,
            by_resource: aggregated.by_resource,
            lost: Lost { cut_stacks, ..snapshot.lost },
            if_empty: stacks.is_empty().then(|| if_empty(settings, targets, taken, is_final)),
            memory: taken.memory,
            why: why.map(Box::new),
            sampling: settings.sampling,
            margin: aggregated.margin,
            frames,
            stacks,
        };
        settings.filter.apply(&mut report, settings.sort);
        report
    }
}

impl Reporter {
    /// What a report has of what is outstanding.
    fn wanted(&self, is_final: bool, all_ended: bool) -> Wanted {
        Wanted {
            ignore_older: is_final && all_ended,
            blocks: self.sink.needs_blocks(is_final),
            threads: self.sink.needs_threads(is_final),
            is_look: false,
        }
    }

    /// What the threads are called that have acquired something; of those that have ended, what
    /// they were called in the report before.
    fn name_threads(&mut self, stacks: &[StackReport]) {
        let threads: BTreeSet<u32> =
            stacks.iter().flat_map(|stack| &stack.threads).map(|thread| thread.tid).collect();
        let before = std::mem::take(&mut self.threads);
        let name = |tid: &u32| thread_comm(*tid).or_else(|| before.get(tid).cloned());
        self.threads = threads.iter().filter_map(|tid| Some((*tid, name(tid)?))).collect();
    }

    fn temporary(&mut self, passing: &Passing, frames: &mut Frames) -> TemporaryStack {
        let Passing { process, stack, released, at_once, bytes } = passing;
        let locations = self.symbolizer.locate(*process, stack.generation, &stack.ips);
        let of_stack = self.symbolizer.frames(&locations, &stack.ips);
        TemporaryStack {
            released: *released,
            at_once: *at_once,
            bytes: *bytes,
            frames: of_stack.into_iter().map(|frame| frames.intern(frame)).collect(),
        }
    }

    /// What is to be said of what is lost. `keys`: what the report's `stacks` are made of.
    fn why(
        &mut self,
        looked: &Examinations,
        targets: &Targets,
        keys: &[GroupKey],
        stacks: &mut [StackReport],
    ) -> Why {
        let process_of = |space| targets.process_of(space).unwrap_or(KERNEL_SPACE);
        let explainer = Explainer::new(&mut self.symbolizer, &self.sites, looked, &process_of);
        let classes = explainer.classes();
        let is_heap = |key: &GroupKey| key.resource == Resource::Heap;
        for (key, stack) in keys.iter().zip(stacks.iter_mut()).filter(|(key, _)| is_heap(key)) {
            stack.why = classes.get(&key.site).copied();
        }
        let place = |site: SiteId| keys.iter().position(|key| is_heap(key) && key.site == site);
        let mut why = explainer.explain(&classes, &place);
        let of_heap = keys.iter().zip(stacks.iter()).filter(|(key, _)| is_heap(key));
        let listed = of_heap.flat_map(|(_, stack)| stack.allocations.iter().flatten());
        why.allocations = listed
            .filter_map(|line| {
                let heap = looked.heaps.iter().find(|heap| heap.pid == line.pid)?;
                Some(((line.pid, line.address), heap.examined.class_of(line.address)))
            })
            .collect();
        why
    }
}

/// What is outstanding names owners; mappings are known by process, whose generations go on over an
/// exec.
struct ByProcess<'a> {
    symbolizer: &'a mut Symbolizer,
    targets: &'a Targets,
}

impl Locate for ByProcess<'_> {
    fn locations(&mut self, space: u32, stack: &Stack) -> Vec<Location> {
        let process = self.targets.process_of(space).unwrap_or(KERNEL_SPACE);
        self.symbolizer.locate(process, stack.generation, &stack.ips)
    }

    fn anchors(&mut self, locations: &[Location]) -> Vec<Anchor> {
        self.symbolizer.anchors(locations)
    }

    fn keep(&mut self, used: &HashSet<ObjectNumber>) {
        self.symbolizer.forget_located(used);
    }
}

/// These descriptors are sockets, and as many threads waited in accept when tracing began: those
/// calls were not seen to be entered.
fn waited(lines: &[AllocationLine], targets: &Targets) -> bool {
    let is_socket = |line: &AllocationLine| line.now.as_deref().is_some_and(|now| now.starts_with("socket:"));
    let accepting: usize = targets.iter().map(|(_, traced)| traced.accepting).sum();
    !lines.is_empty() && lines.len() <= accepting && lines.iter().all(is_socket)
}

/// Nothing is outstanding: that, and what would have been seen.
fn if_empty(settings: &ReportSettings, targets: &Targets, taken: &Taken, is_final: bool) -> String {
    let mut allocators: Vec<String> =
        targets.iter().flat_map(|(_, traced)| &traced.allocators).map(ToString::to_string).collect();
    allocators.sort_unstable();
    allocators.dedup();
    let allocators = match allocators.as_slice() {
        [] => String::new(),
        allocators => format!(", of {}", allocators.join(" and ")),
    };
    let yet = if is_final { "was outstanding at the end" } else { "is outstanding yet" };
    let age = match settings.older.as_millis() {
        0 => String::new(),
        _ if is_final && targets.all_ended() => String::new(),
        ms => format!(" for {ms} ms or more (-o)"),
    };
    let seen = format!("{} acquired, {} released", taken.snapshot.acquired, taken.snapshot.released);
    format!("nothing {yet}{age}: {} probes are attached{allocators}; {seen}", taken.probes)
}

/// Reads what the processes of these descriptors have open, if that was not read yet. The number
/// of a process that has ended may be another's by now.
fn add_open(open: &mut Open, lines: &[AllocationLine], targets: &Targets) {
    let lives = |pid: &u32| targets.with_pid(*pid).is_some();
    for pid in lines.iter().map(|line| line.pid).filter(lives) {
        open.entry(pid).or_insert_with(|| open_descriptors(pid).unwrap_or_default());
    }
}

/// The stack is cut, but the program's own part is there: what calls `main` is start code, of which
/// musl's and a few others' say nothing. What a walk could not follow for another reason is
/// missing.
fn is_no_loss(note: &Note, frames: &[Frame]) -> bool {
    matches!(note, Note::Cut(Cut::NoUnwindInformation))
        && frames.last().is_some_and(|frame| frame.symbol.as_deref() == Some("main"))
}

fn target_info(target: &TargetSpec, targets: &Targets) -> TargetInfo {
    let kind = match target {
        TargetSpec::Pids(_) | TargetSpec::Members { .. } => "process",
        TargetSpec::Command(_) => "command",
        TargetSpec::Kernel(_) => return TargetInfo::kernel(),
    };
    TargetInfo {
        kind: kind.into(),
        pids: targets.iter().map(|(_, traced)| traced.id.pid).collect(),
        comm: targets.iter().next().map_or_else(String::new, |(_, traced)| traced.comm.clone()),
        comms: targets.iter().map(|(_, traced)| (traced.id.pid, traced.comm.clone())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbolize::NoSymbol;

    #[test]
    fn only_start_code_without_unwind_information_is_no_loss() {
        let frames = |last: &str| {
            let nameless = Frame::without_function(1, None, None, NoSymbol::NotInSymbolTable);
            ["keep", last].map(|name| Frame { symbol: Some(name.to_owned()), ..nameless.clone() })
        };
        assert!(is_no_loss(&Note::Cut(Cut::NoUnwindInformation), &frames("main")));
        assert!(!is_no_loss(&Note::Cut(Cut::NoUnwindInformation), &frames("run")));
        for cut in
            [Cut::TooDeep, Cut::Unsupported, Cut::Unreadable, Cut::NoProgress, Cut::UnknownStackPointer]
        {
            assert!(!is_no_loss(&Note::Cut(cut), &frames("main")), "{cut:?}");
        }
        assert!(!is_no_loss(&Note::WaitedInAccept, &frames("main")));
    }
}
