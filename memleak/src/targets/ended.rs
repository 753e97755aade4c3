//! What processes that have ended held at their end: taken out of the BPF side's tables, which
//! others need.

use std::collections::{HashMap, HashSet};

use crate::snapshot::{Outstanding, Snapshot, Stack};

/// Most numbers of owners whose records are kept one by one.
const MOST_OWNERS: usize = 512;
/// Most records that are.
const MOST_RECORDS: usize = 1 << 16;

/// Records of processes that have ended, and their stacks.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    /// Those that ended first come first.
    records: Vec<Outstanding>,
    stacks: HashMap<u64, Stack>,
}

impl Ended {
    /// Takes over the records of owners that have ended.
    pub(crate) fn add(&mut self, records: impl IntoIterator<Item = Outstanding>) {
        self.records.extend(records);
    }

    /// Takes over a stack that a record refers to.
    pub(crate) fn add_stack(&mut self, id: u64, stack: &Stack) {
        self.stacks.entry(id).or_insert_with(|| stack.clone());
    }

    /// All records.
    pub(crate) fn records(&self) -> &[Outstanding] {
        &self.records
    }

    /// A stack that one of them refers to.
    pub(crate) fn stack(&self, id: u64) -> Option<&Stack> {
        self.stacks.get(&id)
    }

    /// Numbers ([`Outstanding::space`]) that own one of them.
    pub(crate) fn owners(&self) -> HashSet<u32> {
        self.records.iter().map(|record| record.space).collect()
    }

    /// Gives away the older ones, and their stacks, if there are more than are kept one by one:
    /// whoever takes them adds them up. All of an owner go together.
    pub(crate) fn take_old(&mut self) -> Option<Snapshot> {
        if self.records.len() <= MOST_OWNERS {
            return None; // each owner has a record
        }
        let mut owners: Vec<(u32, usize)> = Vec::new();
        let mut places: HashMap<u32, usize> = HashMap::new();
        for record in &self.records {
            let place = *places.entry(record.space).or_insert_with(|| {
                owners.push((record.space, 0));
                owners.len() - 1
            });
            if let Some((_, count)) = owners.get_mut(place) {
                *count += 1;
            }
        }
        if owners.len() <= MOST_OWNERS && self.records.len() <= MOST_RECORDS {
            return None;
        }
        let (mut kept_records, mut kept_owners) = (0, 0);
        let fits = |(_, count): &&(u32, usize)| {
            kept_records += *count;
            kept_owners += 1;
            kept_owners <= MOST_OWNERS / 2 && kept_records <= MOST_RECORDS / 2
        };
        let kept: HashSet<u32> = owners.iter().rev().take_while(fits).map(|(owner, _)| *owner).collect();
        let outstanding: Vec<Outstanding> =
            self.records.extract_if(.., |record| !kept.contains(&record.space)).collect();
        self.records.shrink_to(2 * self.records.len());
        let needed: HashSet<u64> = self.records.iter().map(|record| record.stack_id).collect();
        let taken: HashSet<u64> = outstanding.iter().map(|record| record.stack_id).collect();
        let stacks = self.stacks.iter().filter(|(id, _)| taken.contains(id));
        let stacks = stacks.map(|(id, stack)| (*id, stack.clone())).collect();
        self.stacks.retain(|id, _| needed.contains(id));
        Some(Snapshot { outstanding, stacks, ..Snapshot::default() })
    }
}

#[cfg(test)]
mod tests {
    use memleak_common::probe::Resource;

    use super::*;

    fn records(owner: u32, count: usize) -> impl Iterator<Item = Outstanding> {
        (0..count as u64).map(move |address| Outstanding {
            space: owner,
            resource: Resource::Heap,
            address,
            handle: address,
            size: 8,
            stack_id: u64::from(owner % 7),
            time_ns: 0,
            birth: address,
        })
    }

    #[test]
    fn the_older_half_is_given_away() {
        let mut ended = Ended::default();
        for owner in 0..MOST_OWNERS as u32 {
            ended.add(records(owner, 3));
            ended.add_stack(u64::from(owner % 7), &Stack::default());
        }
        assert!(ended.take_old().is_none());
        ended.add(records(MOST_OWNERS as u32, 1));
        let old = ended.take_old().expect("one too many");
        let given: HashSet<u32> = old.outstanding.iter().map(|record| record.space).collect();
        assert_eq!(given, (0..=MOST_OWNERS as u32 / 2).collect());
        assert_eq!((ended.owners().len(), old.stacks.len(), ended.stacks.len()), (MOST_OWNERS / 2, 7, 7));
        assert!(ended.take_old().is_none());
    }

    #[test]
    fn one_that_held_too_much_is_given_away_whole() {
        let mut ended = Ended::default();
        ended.add(records(1, MOST_RECORDS));
        ended.add(records(2, 5));
        let old = ended.take_old().expect("too many records");
        assert_eq!((old.outstanding.len(), ended.records.len()), (MOST_RECORDS, 5));
        ended.add(records(3, MOST_RECORDS + 1));
        assert_eq!(ended.take_old().expect("all").outstanding.len(), MOST_RECORDS + 6);
        assert!(ended.owners().is_empty() && ended.stacks.is_empty());
    }
}
