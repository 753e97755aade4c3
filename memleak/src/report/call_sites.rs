//! Stacks with the same path of functions, put together: for people the same loop is one place,
//! whatever addresses and processes its stacks are of.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, HashMap},
};

use super::model::{Report, SortKey, StackReport};
use crate::{
    probe::resource::ResourceInfo,
    symbolize::Frame,
    verdict::{History, Verdict, judge},
};

/// Stacks of one path of functions.
#[derive(Clone, Debug)]
pub struct CallSite<'a> {
    /// The stacks, the largest first; there is one at least.
    pub stacks: Vec<&'a StackReport>,
    /// Outstanding bytes.
    pub bytes: u64,
    /// Outstanding allocations.
    pub count: u64,
    /// Bytes by which it has become more since the report before.
    pub growth_bytes: i64,
    /// Allocations by which it has become more.
    pub growth_count: i64,
    /// Processes that hold some of it.
    pub processes: u64,
    /// What it did so far.
    pub history: History,
    /// What that shows.
    pub verdict: Verdict,
}

impl<'a> CallSite<'a> {
    fn new(mut stacks: Vec<&'a StackReport>) -> Option<Self> {
        stacks.sort_by_key(|stack| Reverse((stack.bytes, stack.count)));
        let (first, others) = stacks.split_first()?;
        let mut site = Self {
            bytes: first.bytes,
            count: first.count,
            growth_bytes: first.growth_bytes,
            growth_count: first.growth_count,
            processes: 0,
            history: first.history.clone(),
            verdict: first.verdict.clone(),
            stacks: Vec::new(),
        };
        for stack in others {
            site.bytes = site.bytes.saturating_add(stack.bytes);
            site.count = site.count.saturating_add(stack.count);
            site.growth_bytes = site.growth_bytes.saturating_add(stack.growth_bytes);
            site.growth_count = site.growth_count.saturating_add(stack.growth_count);
            site.history.merge(&stack.history);
        }
        if !others.is_empty() {
            site.verdict = judge(&site.history);
        }
        let mut pids: Vec<u32> =
            stacks.iter().flat_map(|stack| &stack.processes).map(|process| process.pid).collect();
        pids.sort_unstable();
        pids.dedup();
        let others = stacks.iter().map(|stack| stack.others.processes);
        site.processes = others.fold(pids.len() as u64, u64::saturating_add);
        site.stacks = stacks;
        Some(site)
    }

    /// The stack that holds most of it.
    pub fn largest(&self) -> Option<&'a StackReport> {
        self.stacks.first().copied()
    }

    /// What it holds.
    pub fn resource(&self) -> Option<&'a ResourceInfo> {
        self.largest().map(|stack| &*stack.resource)
    }

    /// Bytes, or how many, of a resource without a size.
    pub fn amount(&self) -> u64 {
        match self.resource() {
            Some(resource) if resource.has_size => self.bytes,
            _ => self.count,
        }
    }
}

/// A frame as a part of a path: its function, or its place if that is not known.
fn step(frame: &Frame) -> (Option<&str>, Option<&str>, Option<u64>) {
    match &frame.function {
        Some(function) => (Some(function), None, None),
        None => (None, frame.module.as_deref(), frame.offset.or(Some(frame.ip))),
    }
}

/// The call sites of each table of a report, in this order, by the table's first resource.
pub fn call_sites<'a>(report: &'a Report, sort: SortKey) -> Vec<(&'a ResourceInfo, Vec<CallSite<'a>>)> {
    let tables: Vec<&ResourceInfo> = report.tables().collect();
    let mut by_path: HashMap<_, Vec<&StackReport>> = HashMap::new();
    for stack in &report.stacks {
        let path: Vec<_> = report.frames_of(stack).map(step).collect();
        // What is not known need not be the same.
        let alone = path.is_empty().then_some(stack.stack_id);
        let key = (stack.resource.table(), stack.resource.has_size, &stack.tag, path, alone);
        by_path.entry(key).or_default().push(stack);
    }
    let mut sites: BTreeMap<usize, Vec<CallSite<'_>>> = BTreeMap::new();
    for ((table, ..), stacks) in by_path {
        let at = tables.iter().position(|known| known.table() == table);
        if let (Some(at), Some(site)) = (at, CallSite::new(stacks)) {
            sites.entry(at).or_default().push(site);
        }
    }
    let mut sites: Vec<_> = tables
        .into_iter()
        .enumerate()
        .map(|(at, table)| (table, sites.remove(&at).unwrap_or_default()))
        .collect();
    sites.iter_mut().for_each(|(_, sites)| sites.sort_by(|a, b| compare(report, sort, a, b)));
    sites
}

/// As stacks are ordered: the sort key, then size, then count, then the path.
fn compare(report: &Report, sort: SortKey, a: &CallSite<'_>, b: &CallSite<'_>) -> Ordering {
    let growth = |site: &CallSite<'_>| match site.resource() {
        Some(resource) if resource.has_size => site.growth_bytes,
        _ => site.growth_count,
    };
    let by_key = match sort {
        SortKey::Size => Ordering::Equal,
        SortKey::Count => b.count.cmp(&a.count),
        SortKey::Age => b.history.oldest_ms.cmp(&a.history.oldest_ms),
        SortKey::Growth => growth(b).cmp(&growth(a)),
        SortKey::Verdict => a.verdict.kind.cmp(&b.verdict.kind),
    };
    let path = |site: &CallSite<'_>| -> Vec<_> {
        site.largest().into_iter().flat_map(|stack| report.frames_of(stack)).map(|frame| frame.ip).collect()
    };
    by_key.then_with(|| (b.bytes, b.count).cmp(&(a.bytes, a.count))).then_with(|| path(a).cmp(&path(b)))
}
