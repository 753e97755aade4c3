//! Pages that were touched first while we traced (`memleak-ebpf/src/growth.rs`), and are still
//! there. The programs are not told when a page goes, so the target's page map is asked.

use std::{collections::HashMap, io, ops::Range};

use log::debug;
use memleak_common::{event::Event, probe::Resource};

use crate::{
    proc::{
        PAGE_SIZE,
        pagemap::{KeptPages, Pagemap},
    },
    snapshot::Outstanding,
};

/// Bytes of a huge page of the lowest level.
const HUGE: u64 = 2 << 20;
/// What was touched so shortly before the moment of a reading and is not there may come yet: it
/// does not count, and its record stays. Nanoseconds.
const FRESH_NS: u64 = 1_000_000_000;
/// Pages that lie no further apart are asked for together, bytes.
const NEAR: u64 = 1 << 20;

/// Pages that a call of mremap has moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MovedPages {
    /// Whose: [`Outstanding::space`].
    pub space: u32,
    /// The addresses that they had, whole pages.
    pub from: Range<u64>,
    /// The address that the first of them has now.
    pub to: u64,
    /// CLOCK_MONOTONIC nanoseconds: what was touched later is not among them.
    pub time_ns: u64,
}

impl MovedPages {
    /// What an event of the kind `MOVED` tells.
    pub(crate) fn of(event: &Event) -> Self {
        let end = event.handle.saturating_add(event.size);
        Self {
            space: event.owner,
            from: event.handle..end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(end),
            to: event.stack_id,
            time_ns: event.time_ns,
        }
    }

    /// The address that the page at `address` has now.
    pub(super) fn new_address(&self, address: u64) -> u64 {
        self.to.wrapping_add(address - self.from.start)
    }
}

/// The processes whose growth is traced, by the number of their address space.
#[derive(Debug, Default)]
pub(super) struct Growth {
    pids: HashMap<u32, u32>,
}

impl Growth {
    /// The memory that has this number is this process's.
    pub(super) fn add(&mut self, space: u32, pid: u32) {
        self.pids.insert(space, pid);
    }

    /// The memory that had this number is gone; nobody can be asked of it any more.
    pub(super) fn forget(&mut self, space: u32) {
        self.pids.remove(&space);
    }

    /// Takes those pages out of `outstanding` that are gone, and gives them. What is left of huge
    /// pages counts for whole ones.
    pub(super) fn take_gone(&self, outstanding: &mut Vec<Outstanding>, now_ns: u64) -> Vec<Outstanding> {
        if self.pids.is_empty() {
            return Vec::new();
        }
        let is_asked_for = |record: &mut Outstanding| {
            record.resource == Resource::Growth && self.pids.contains_key(&record.space)
        };
        let mut by_space: HashMap<u32, Vec<Outstanding>> = HashMap::new();
        for record in outstanding.extract_if(.., is_asked_for) {
            by_space.entry(record.space).or_default().push(record);
        }
        let mut gone = Vec::new();
        for (space, mut records) in by_space {
            records.sort_unstable_by_key(|record| record.address);
            match self.pids.get(&space).map(|pid| kept(*pid, &records)) {
                Some(Ok(kept)) => gone.extend(take_out(&mut records, &kept, now_ns)),
                // It has ended: what it had last is what it had.
                Some(Err(error)) => debug!("the pages of address space {space} are not known: {error}"),
                None => {}
            }
            outstanding.append(&mut records);
        }
        gone
    }
}

/// What a process keeps around these records, which are in order of address.
fn kept(pid: u32, records: &[Outstanding]) -> io::Result<Vec<KeptPages>> {
    let mut pagemap = Pagemap::open(pid)?;
    let mut kept = Vec::new();
    for range in ranges(records) {
        pagemap.add_kept(range, &mut kept)?;
    }
    Ok(kept)
}

/// The ranges to ask for.
fn ranges(records: &[Outstanding]) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for record in records {
        let end = record.address + PAGE_SIZE;
        match ranges.last_mut() {
            Some(last) if record.address <= last.end + NEAR => last.end = end,
            _ => ranges.push(record.address..end),
        }
    }
    ranges
}

/// Takes out the records whose pages are not kept, and makes one of each huge page as large as all
/// of the page that no other record stands for. All are in order of address.
fn take_out(records: &mut Vec<Outstanding>, kept: &[KeptPages], now_ns: u64) -> Vec<Outstanding> {
    let mut at = kept.iter().peekable();
    let mut gone = Vec::new();
    let mut left: Vec<Outstanding> = Vec::with_capacity(records.len());
    // The huge page of the last record, and which record stands for all of it.
    let mut huge: Option<(u64, usize)> = None;
    for record in records.drain(..) {
        while at.next_if(|pages| pages.range.end <= record.address).is_some() {}
        let pages = at.peek().filter(|pages| pages.range.contains(&record.address));
        let is_fresh = now_ns.saturating_sub(record.time_ns) < FRESH_NS;
        match pages {
            None if is_fresh => {}
            None => gone.push(record),
            Some(pages) if !pages.are_huge => left.push(record),
            Some(_) => {
                let page = record.address / HUGE;
                match huge.filter(|(last, _)| *last == page).and_then(|(_, first)| left.get_mut(first)) {
                    Some(first) => {
                        first.size -= PAGE_SIZE;
                        left.push(record);
                    }
                    None => {
                        huge = Some((page, left.len()));
                        left.push(Outstanding { size: HUGE, ..record });
                    }
                }
            }
        }
    }
    *records = left;
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(address: u64, time_ns: u64) -> Outstanding {
        Outstanding {
            space: 1,
            resource: Resource::Growth,
            address,
            handle: address,
            size: PAGE_SIZE,
            stack_id: 1,
            time_ns,
            birth: address,
        }
    }

    fn kept(range: Range<u64>, are_huge: bool) -> KeptPages {
        KeptPages { range, are_huge }
    }

    #[test]
    fn what_is_not_kept_is_gone_or_may_come_yet() {
        let now = 10 * FRESH_NS;
        let mut records =
            vec![page(0x1000, 0), page(0x2000, 0), page(0x5000, 0), page(0x6000, now - 1), page(0x9000, 0)];
        let gone = take_out(&mut records, &[kept(0x2000..0x3000, false), kept(0x8000..0xa000, false)], now);
        let addresses = |of: &[Outstanding]| of.iter().map(|record| record.address).collect::<Vec<_>>();
        assert_eq!(addresses(&gone), [0x1000, 0x5000]);
        assert_eq!(addresses(&records), [0x2000, 0x9000]);
    }

    #[test]
    fn a_huge_page_counts_once() {
        let mut records = vec![
            page(HUGE, 0),
            page(HUGE + 5 * PAGE_SIZE, 0),
            page(2 * HUGE + PAGE_SIZE, 0),
            page(3 * HUGE, 0),
        ];
        let gone = take_out(
            &mut records,
            &[kept(HUGE..3 * HUGE, true), kept(3 * HUGE..4 * HUGE, false)],
            10 * FRESH_NS,
        );
        assert!(gone.is_empty());
        let sizes: Vec<u64> = records.iter().map(|record| record.size).collect();
        assert_eq!(sizes, [HUGE - PAGE_SIZE, PAGE_SIZE, HUGE, PAGE_SIZE]);
    }

    #[test]
    fn pages_that_are_near_are_asked_for_together() {
        let records = [page(0x1000, 0), page(0x2000, 0), page(0x10_0000, 0), page(0x4000_0000, 0)];
        assert_eq!(ranges(&records), [0x1000..0x10_1000, 0x4000_0000..0x4000_1000]);
    }
}
