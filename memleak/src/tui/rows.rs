//! A report as a table of call sites.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use crate::{
    escape::printable,
    report::{
        call_sites::{CallSite, call_sites},
        format::SplitBy,
        format::path::responsible,
        model::{FrameId, ProcessCount, Report, SortKey, ThreadCount},
        names::{name, place},
    },
    symbolize::Frame,
    verdict::{Calls, VerdictKind},
};

/// One call site, or what one process or thread holds of it.
#[derive(Clone, Debug)]
pub struct Row {
    /// The same for the same site in each report.
    pub key: u64,
    /// Whose it is, if it is what one process or thread holds: `4711`, `4712 worker`.
    pub part: Option<String>,
    /// The responsible function.
    pub name: String,
    /// Where it is: `wordcount.cc:64`, or its module.
    pub place: String,
    /// What is held, if that is not memory: `fd`.
    pub resource: Option<String>,
    /// Outstanding bytes.
    pub bytes: u64,
    /// Outstanding allocations.
    pub count: u64,
    /// It has a size.
    pub has_size: bool,
    /// Its part of what its table holds, in thousandths.
    pub share: u64,
    /// Bytes by which it has become more: since the report before, or since the mark. `None` if
    /// that is not known.
    pub growth_bytes: Option<i64>,
    /// Allocations by which it has become more.
    pub growth_count: Option<i64>,
    /// What it held in the reports so far (bytes, or how many).
    pub points: Vec<u64>,
    /// Age of the oldest.
    pub oldest_ms: Option<u64>,
    /// What that shows.
    pub verdict: VerdictKind,
    /// Why.
    pub reason: String,
    /// What was released.
    pub calls: Option<Calls>,
    /// Stacks that are put together.
    pub stacks: usize,
    /// Who holds it, the largest first.
    pub processes: Vec<ProcessCount>,
    /// Which threads have acquired it, the largest first, if the report tells.
    pub threads: Vec<ThreadCount>,
    /// The largest stack, callee first.
    pub frames: Vec<FrameId>,
    /// Which of these is responsible.
    pub own: usize,
}

/// By what rows are in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortColumn {
    /// Most outstanding bytes first.
    #[default]
    Bytes,
    /// Most outstanding allocations first.
    Count,
    /// What has grown most first.
    Growth,
    /// The oldest first.
    Age,
    /// The worst verdict first.
    Verdict,
    /// By name.
    Site,
}

impl SortColumn {
    /// All, in the order of the keys `<` and `>`.
    pub const ALL: [Self; 6] = [Self::Site, Self::Bytes, Self::Count, Self::Growth, Self::Age, Self::Verdict];

    /// The one so many further on.
    #[must_use]
    pub fn step(self, by: usize) -> Self {
        let at = Self::ALL.iter().position(|column| *column == self).unwrap_or(0);
        Self::ALL.get((at + by) % Self::ALL.len()).copied().unwrap_or_default()
    }
}

/// What was outstanding at a mark, by row.
pub(super) type AmountsAtMark = HashMap<u64, (u64, u64)>;

/// The rows of a report, in no order.
pub(super) fn rows_of(
    report: &Report,
    split_by: Option<SplitBy>,
    full_names: bool,
    mark: Option<&AmountsAtMark>,
) -> Vec<Row> {
    let mut rows = Vec::new();
    for (table, (_, sites)) in call_sites(report, SortKey::Size).into_iter().enumerate() {
        let all = sites.iter().map(CallSite::amount).fold(0, u64::saturating_add);
        for site in &sites {
            let row = row_of(report, site, table, full_names);
            let of_site: Vec<Row> = match split_by {
                Some(SplitBy::Process) => row.processes.iter().map(|part| row.of_process(*part)).collect(),
                Some(SplitBy::Thread) if !row.threads.is_empty() => {
                    row.threads.iter().map(|part| row.of_thread(*part, report)).collect()
                }
                _ => vec![row],
            };
            rows.extend(of_site.into_iter().map(|row| Row { share: share(row.amount(), all), ..row }));
        }
    }
    if let Some(marked) = mark {
        rows.iter_mut().for_each(|row| row.since(marked));
    }
    rows
}

/// Thousandths.
fn share(part: u64, all: u64) -> u64 {
    u64::try_from(u128::from(part) * 1000 / u128::from(all.max(1))).unwrap_or(1000)
}

impl Row {
    /// Bytes, or how many, of a resource without a size.
    pub fn amount(&self) -> u64 {
        if self.has_size { self.bytes } else { self.count }
    }

    /// What one process holds of it.
    fn of_process(&self, part: ProcessCount) -> Self {
        let of_it = |thread: &&ThreadCount| thread.pid == part.pid;
        let threads = self.threads.iter().filter(of_it).copied().collect();
        let alone = self.processes.len() == 1;
        let row = self.part(part.pid, 0, (part.bytes, part.count), alone);
        Self { part: Some(part.pid.to_string()), processes: vec![part], threads, ..row }
    }

    /// What one thread has acquired of it.
    fn of_thread(&self, part: ThreadCount, report: &Report) -> Self {
        let ThreadCount { pid, tid, bytes, count } = part;
        let row = self.part(pid, tid, (bytes, count), self.threads.len() == 1);
        Self {
            part: Some(thread_name(report, tid)),
            processes: vec![ProcessCount { pid, bytes, count }],
            threads: vec![part],
            ..row
        }
    }

    /// A part of it. `alone`: there is no other.
    fn part(&self, pid: u32, tid: u32, (bytes, count): (u64, u64), alone: bool) -> Self {
        let mut hasher = DefaultHasher::new();
        (self.key, pid, tid).hash(&mut hasher);
        Self {
            key: hasher.finish(),
            bytes,
            count,
            growth_bytes: self.growth_bytes.filter(|_| alone),
            growth_count: self.growth_count.filter(|_| alone),
            points: if alone { self.points.clone() } else { Vec::new() },
            ..self.clone()
        }
    }

    /// Its growth is what came since the mark.
    fn since(&mut self, marked: &AmountsAtMark) {
        let (bytes, count) = marked.get(&self.key).copied().unwrap_or_default();
        let change = |now: u64, before: u64| i64::try_from(i128::from(now) - i128::from(before)).ok();
        self.growth_bytes = change(self.bytes, bytes);
        self.growth_count = change(self.count, count);
    }

    /// Bytes, or how many, by which it has become more.
    pub fn growth(&self) -> i64 {
        if self.has_size { self.growth_bytes } else { self.growth_count }.unwrap_or(0)
    }
}

/// `4712 worker`; 0 stands for those that are not known.
pub(super) fn thread_name(report: &Report, tid: u32) -> String {
    match (tid, report.threads.get(&tid)) {
        (0, _) => "?".to_owned(),
        (_, Some(name)) => format!("{tid} {}", printable(name)),
        (_, None) => tid.to_string(),
    }
}

fn row_of(report: &Report, site: &CallSite<'_>, table: usize, full_names: bool) -> Row {
    let stack = site.largest();
    let frames: Vec<&Frame> = stack.into_iter().flat_map(|stack| report.frames_of(stack)).collect();
    let own = responsible(&frames);
    let responsible = frames.get(own);
    let mut hasher = DefaultHasher::new();
    let tag = stack.and_then(|stack| stack.tag.as_ref()).map(ToString::to_string);
    (table, &tag, site.resource().map(|resource| &resource.name)).hash(&mut hasher);
    for frame in &frames {
        (&frame.function, frame.function.is_none().then_some((&frame.module, frame.offset)))
            .hash(&mut hasher);
    }
    if frames.is_empty() {
        stack.map(|stack| stack.stack_id).hash(&mut hasher);
    }
    let has_size = site.resource().is_some_and(|resource| resource.has_size);
    let is_memory = table == 0 && has_size && tag.is_none();
    let resource = site.resource().map(|resource| match &tag {
        Some(tag) => format!("{} {tag}", resource.name),
        None => resource.name.clone(),
    });
    let point = |point: &crate::verdict::Point| if has_size { point.bytes } else { point.count };
    Row {
        key: hasher.finish(),
        part: None,
        name: responsible
            .map_or_else(|| "[unknown stack]".to_owned(), |frame| name(frame, full_names).into_owned()),
        place: responsible.map_or_else(String::new, |frame| place(frame)),
        resource: resource.filter(|_| !is_memory),
        bytes: site.bytes,
        count: site.count,
        has_size,
        share: 0,
        growth_bytes: Some(site.growth_bytes),
        growth_count: Some(site.growth_count),
        points: site.history.points.iter().map(point).collect(),
        oldest_ms: site.history.oldest_ms,
        verdict: site.verdict.kind,
        reason: site.verdict.reason.clone(),
        calls: site.history.calls,
        stacks: site.stacks.len(),
        processes: processes_of(site),
        threads: threads_of(report, site),
        frames: stack.map(|stack| stack.frames.clone()).unwrap_or_default(),
        own,
    }
}

/// What each process holds of a site, the largest first.
fn processes_of(site: &CallSite<'_>) -> Vec<ProcessCount> {
    let mut sums: BTreeMap<u32, ProcessCount> = BTreeMap::new();
    for process in site.stacks.iter().flat_map(|stack| &stack.processes) {
        let sum = sums.entry(process.pid).or_insert(ProcessCount { pid: process.pid, bytes: 0, count: 0 });
        sum.bytes = sum.bytes.saturating_add(process.bytes);
        sum.count = sum.count.saturating_add(process.count);
    }
    let mut processes: Vec<ProcessCount> = sums.into_values().collect();
    processes.sort_by_key(|process| Reverse((process.bytes, process.count)));
    processes
}

/// Which threads have acquired a site's blocks, the largest sum first.
fn threads_of(report: &Report, site: &CallSite<'_>) -> Vec<ThreadCount> {
    ThreadCount::sums(site.stacks.iter().flat_map(|stack| report.threads_of(stack).into_owned()))
}

/// Puts rows in order.
pub(super) fn sort(rows: &mut [Row], by: SortColumn) {
    let key = |a: &Row, b: &Row| match by {
        SortColumn::Bytes => Ordering::Equal,
        SortColumn::Count => b.count.cmp(&a.count),
        SortColumn::Growth => b.growth().cmp(&a.growth()),
        SortColumn::Age => b.oldest_ms.cmp(&a.oldest_ms),
        SortColumn::Verdict => a.verdict.cmp(&b.verdict),
        SortColumn::Site => a.name.cmp(&b.name),
    };
    rows.sort_by(|a, b| {
        key(a, b).then_with(|| (b.bytes, b.count).cmp(&(a.bytes, a.count))).then_with(|| a.key.cmp(&b.key))
    });
}

/// Some frame of it has this in its function, file or module, in letters of any case.
pub(super) fn matches(row: &Row, report: &Report, wanted: &str) -> bool {
    let wanted = wanted.to_lowercase();
    let has = |text: &str| text.to_lowercase().contains(&wanted);
    let of_frame = |frame: &Frame| {
        [&frame.function, &frame.file, &frame.module].into_iter().flatten().any(|text| has(text))
    };
    wanted.is_empty()
        || has(&row.name)
        || [&row.resource, &row.part].into_iter().flatten().any(|text| has(text))
        || has(row.verdict.words())
        || row.frames.iter().filter_map(|id| report.frames.get(*id)).any(of_frame)
}
