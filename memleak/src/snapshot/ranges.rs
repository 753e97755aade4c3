//! Releases by range: of addresses (munmap, a MAP_FIXED over something), and of spans of handles
//! (close_range).
//!
//! The BPF programs find the record that begins where a release begins, and cannot search for
//! others. So they report each release, and what else it covers is found here, when the records
//! are read. A release is used up then. What it has cut out of a record is kept as that record's
//! holes, merged, for as long as the record is there.
//!
//! ```text
//! releases   [0x1000, 0x3000) at 5   [0x3000, 0x4000) at 9     when each address was last released
//! record     [0x0000, 0x8000) of 2                             is older than both
//! holes      [0x1000, 0x4000)
//! left       [0x0000, 0x1000)        [0x4000, 0x8000)
//! ```

use std::collections::{BTreeMap, HashMap};

use memleak_common::{event::Event, probe::Resource};

use super::Outstanding;
use crate::proc::PAGE_SIZE;

/// A range of addresses, or a span of handles, was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Release {
    /// Whose: [`Outstanding::space`].
    pub space: u32,
    /// What was released.
    pub resource: Resource,
    /// Its first address.
    pub start: u64,
    /// The address after its last.
    pub end: u64,
    /// CLOCK_MONOTONIC nanoseconds: what was acquired later is not affected.
    pub time_ns: u64,
}

impl Release {
    /// What an event of the kind `RELEASE_RANGE` tells.
    pub(crate) fn of(event: &Event) -> Self {
        Self {
            space: event.owner,
            resource: Resource::from_u32(event.resource).unwrap_or(Resource::Mmap),
            start: event.handle,
            end: event.handle.saturating_add(event.size),
            time_ns: event.time_ns,
        }
    }
}

/// What [`Ranges::apply`] gives.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    /// What is outstanding after all; a range with a hole in it gives two.
    pub outstanding: Vec<Outstanding>,
    /// Records of which nothing is left: they are to be removed from the kernel's table, and given
    /// again if they are there the next time.
    pub dead: Vec<Outstanding>,
}

/// What was released and not used yet, and the holes of records that are there.
#[derive(Debug, Default)]
pub(crate) struct Ranges {
    releases: HashMap<(u32, Resource), Releases>,
    /// By owner and the record's number, which the rest of a range has from the whole.
    holes: HashMap<(u32, u64), Holed>,
}

#[derive(Debug, Default)]
struct Holed {
    holes: Holes,
    /// Its record is there.
    seen: bool,
}

impl Ranges {
    /// Takes in a release that is to be applied to the records.
    pub(crate) fn release(&mut self, release: &Release) {
        let releases = self.releases.entry((release.space, release.resource)).or_default();
        releases.add(release.start, release.end, release.time_ns);
    }

    /// So many releases have come that they weigh (some 40 MB): [`Self::apply`] uses them up.
    pub(crate) fn is_large(&self) -> bool {
        const MANY: usize = 500_000;
        self.len() > MANY
    }

    /// Something of this resource is among what was released.
    pub(crate) fn release_any(&self, resource: Resource) -> bool {
        self.releases.keys().any(|(_, of)| *of == resource)
    }

    fn len(&self) -> usize {
        self.releases.values().map(|releases| releases.0.len()).sum()
    }

    /// Cuts what was released out of the records: all that there were when the last release had
    /// come.
    pub(crate) fn apply(&mut self, mut outstanding: Vec<Outstanding>) -> Applied {
        if self.releases.is_empty() && self.holes.is_empty() {
            return Applied { outstanding, dead: Vec::new() };
        }
        self.holes.values_mut().for_each(|holed| holed.seen = false);
        let mut dead = Vec::new();
        let mut pieces = Vec::new();
        let with_releases: Vec<Resource> = self.releases.keys().map(|(_, resource)| *resource).collect();
        let is_touched = |record: &mut Outstanding| match record.resource {
            Resource::Mmap => self.cut(record),
            // Most records are of the heap, of which no ranges are released.
            other => with_releases.contains(&other) && self.releases_span(record),
        };
        let touched: Vec<Outstanding> = outstanding.extract_if(.., is_touched).collect();
        for record in touched {
            let before = pieces.len();
            if let Some(holed) = self.holes.get(&(record.space, record.birth))
                && record.resource == Resource::Mmap
            {
                pieces.extend(pieces_of(&record, &holed.holes));
            }
            if pieces.len() == before {
                dead.push(record);
            }
        }
        outstanding.extend(pieces);
        // Those of dead records stay: the rest of one may have been put to another place since it
        // was read.
        self.holes.retain(|_, holed| holed.seen);
        self.releases.clear();
        Applied { outstanding, dead }
    }

    /// The handle of this record was released in a span.
    fn releases_span(&self, record: &Outstanding) -> bool {
        self.releases.get(&(record.space, record.resource)).is_some_and(|releases| {
            let end = record.handle.saturating_add(1);
            releases.overlapping(record.handle, end).any(|(_, released)| released.time_ns > record.time_ns)
        })
    }

    /// Enters the holes that releases have made in this range. Says whether it has any.
    fn cut(&mut self, range: &Outstanding) -> bool {
        let key = (range.space, range.birth);
        let end = page_end(range);
        let releases = self.releases.get(&(range.space, range.resource));
        let overlapping = releases.into_iter().flat_map(|releases| releases.overlapping(range.address, end));
        for (start, released) in overlapping.filter(|(_, released)| released.time_ns > range.time_ns) {
            let holes = &mut self.holes.entry(key).or_default().holes;
            holes.add(start.max(range.address), released.end.min(end));
        }
        match self.holes.get_mut(&key) {
            Some(holed) => {
                holed.seen = true;
                true
            }
            None => false,
        }
    }
}

/// When addresses were last released: disjoint ranges by their first address.
#[derive(Debug, Default)]
struct Releases(BTreeMap<u64, Released>);

#[derive(Clone, Copy, Debug)]
struct Released {
    /// The address after the last.
    end: u64,
    /// When.
    time_ns: u64,
}

impl Releases {
    /// These addresses were released at this time. They come nearly in the order of time; the
    /// latest counts.
    fn add(&mut self, start: u64, end: u64, time_ns: u64) {
        let mut at = start;
        while at < end {
            let next = self.overlapping(at, end).next().map(|(from, released)| (from, *released));
            match next {
                // Nothing up to the next one, or to the end.
                None => {
                    self.insert(at, end, time_ns);
                    return;
                }
                Some((from, _)) if from > at => {
                    self.insert(at, from, time_ns);
                    at = from;
                }
                Some((_, older)) if older.time_ns >= time_ns => at = older.end,
                Some((from, older)) => {
                    self.0.remove(&from);
                    if from < at {
                        self.0.insert(from, Released { end: at, ..older });
                    }
                    if end < older.end {
                        self.0.insert(end, older);
                    }
                    let until = older.end.min(end);
                    self.insert(at, until, time_ns);
                    at = until;
                }
            }
        }
    }

    /// Enters a range if there is none; joins it to one of the same release that ends where it
    /// begins.
    fn insert(&mut self, start: u64, end: u64, time_ns: u64) {
        if let Some((_, before)) = self.0.range_mut(..start).next_back()
            && (before.end, before.time_ns) == (start, time_ns)
        {
            before.end = end;
            return;
        }
        self.0.insert(start, Released { end, time_ns });
    }

    /// Those that lie in this range, at least in part, in order.
    fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, &Released)> {
        let before = self.0.range(..start).next_back().filter(|(_, released)| released.end > start);
        let from = before.map_or(start, |(from, _)| *from);
        self.0.range(from..end.max(from)).map(|(start, released)| (*start, released))
    }
}

/// Parts of a range that are released: disjoint ranges that do not touch, each by its first address
/// with the address after its last.
#[derive(Debug, Default)]
struct Holes(BTreeMap<u64, u64>);

impl Holes {
    fn add(&mut self, mut start: u64, mut end: u64) {
        if let Some((from, until)) = self.0.range(..=start).next_back()
            && *until >= start
        {
            (start, end) = (*from, end.max(*until));
        }
        while let Some((from, until)) = self.0.range(start..=end).next().map(|(from, until)| (*from, *until))
        {
            end = end.max(until);
            self.0.remove(&from);
        }
        self.0.insert(start, end);
    }
}

/// The address after the last page of a range.
fn page_end(range: &Outstanding) -> u64 {
    range.address.saturating_add(range.size.checked_next_multiple_of(PAGE_SIZE).unwrap_or(u64::MAX))
}

/// What is left of a range.
fn pieces_of(range: &Outstanding, holes: &Holes) -> Vec<Outstanding> {
    let end = range.address.saturating_add(range.size);
    let mut at = range.address;
    let mut pieces = Vec::new();
    let mut keep = |from: u64, to: u64| {
        if from < to {
            pieces.push(Outstanding { address: from, size: to - from, ..*range });
        }
    };
    // The rest of a range has the holes of the whole, some of which lie before it.
    let before = holes.0.range(..at).next_back().filter(|(_, until)| **until > at);
    for (from, until) in before.into_iter().chain(holes.0.range(at..end.max(at))) {
        keep(at, (*from).min(end));
        at = at.max(*until);
    }
    keep(at, end);
    // A range of size 0 cannot be mapped; one that was cut nowhere is whole.
    pieces
}

#[cfg(test)]
mod tests;
