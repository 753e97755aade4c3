//! What the reports before held: for growth, and to judge what a stack does.

use rustc_hash::{FxBuildHasher, FxHashMap};

use super::{
    group::{AmountBefore, Group, GroupKey},
    grouping::KeptGroups,
};
use crate::verdict::Point;

/// Moments that are kept of a stack. Beyond, every second one of the older half is forgotten.
const MOST_POINTS: usize = 24;
/// The same of the totals, which are drawn over time.
const MOST_MOMENTS: usize = 240;

/// The past of a run. Starts empty.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// When the reports were that are kept: milliseconds since tracing began.
    at_ms: Vec<u64>,
    /// What each group held then; what is missing at the beginning is nothing.
    groups: FxHashMap<GroupKey, Vec<AmountHeld>>,
    totals: Vec<Point>,
    /// How often was looked since the last report; `None` before the first one.
    looks: Option<usize>,
    /// The groups of the last report, if they may be those of the next.
    pub(super) grouped: Option<KeptGroups>,
}

/// What a group held.
#[derive(Clone, Copy, Debug, Default)]
struct AmountHeld {
    bytes: u64,
    count: u64,
}

/// One report's part of the past, while it is made.
pub(super) struct News {
    at_ms: Vec<u64>,
    looks: Option<usize>,
    before: FxHashMap<GroupKey, Vec<AmountHeld>>,
    now: FxHashMap<GroupKey, Vec<AmountHeld>>,
}

impl Past {
    /// A report of this moment follows, or what was looked at without one, with about so many
    /// groups.
    pub(super) fn news(&mut self, elapsed_ms: u64, groups: usize) -> News {
        self.at_ms.push(elapsed_ms);
        News {
            at_ms: self.at_ms.clone(),
            looks: self.looks,
            before: std::mem::take(&mut self.groups),
            now: FxHashMap::with_capacity_and_hasher(groups, FxBuildHasher),
        }
    }

    /// The report is made, or all was looked at without one.
    pub(super) fn learn(&mut self, mut news: News, is_look: bool) {
        if is_look {
            // What is gone for a while has grown, or has not, since the report before.
            for (key, mut amounts) in news.before {
                amounts.push(AmountHeld::default());
                news.now.insert(key, amounts);
            }
            self.looks = self.looks.map(|looks| looks + 1);
        } else {
            self.looks = Some(0);
        }
        self.groups = news.now;
        if self.at_ms.len() > MOST_POINTS {
            let all = self.at_ms.len();
            thin(&mut self.at_ms, all);
            self.groups.values_mut().for_each(|amounts| thin(amounts, all));
        }
    }

    /// Enters the totals of a report; gives those of all that are kept.
    pub fn totals(&mut self, now: Point) -> Vec<Point> {
        self.totals.push(now);
        if self.totals.len() > MOST_MOMENTS {
            let all = self.totals.len();
            thin(&mut self.totals, all);
        }
        self.totals.clone()
    }
}

impl News {
    /// Says in a group what there was before, and remembers what it holds now; gives what it has
    /// held so far.
    pub(super) fn enter(&mut self, group: &mut Group) -> Vec<Point> {
        let mut amounts = self.before.remove(&group.key).unwrap_or_default();
        amounts.push(AmountHeld { bytes: group.bytes, count: group.count });
        let missing = self.at_ms.len().saturating_sub(amounts.len());
        // Behind the last report's are those of the looks since, and this one's.
        let reported = self.looks.and_then(|looks| amounts.len().checked_sub(looks + 2));
        let before = reported.and_then(|at| amounts.get(at)).copied().unwrap_or_default();
        group.before = AmountBefore { bytes: before.bytes, count: before.count };
        let at_ms = self.at_ms.iter().skip(missing);
        let points = at_ms
            .zip(&amounts)
            .map(|(at_ms, amount)| Point { at_ms: *at_ms, bytes: amount.bytes, count: amount.count })
            .collect();
        self.now.insert(group.key, amounts);
        points
    }
}

/// Forgets every second one of the older half of `all`, of which `list` has the last ones.
fn thin<T>(list: &mut Vec<T>, all: usize) {
    let missing = all.saturating_sub(list.len());
    let mut at = missing;
    list.retain(|_| {
        at += 1;
        at > all / 2 || at.is_multiple_of(2)
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_different_lengths_stay_aligned() {
        let mut all: Vec<usize> = (0..25).collect();
        let mut late: Vec<usize> = (7..25).collect();
        thin(&mut all, 25);
        thin(&mut late, 25);
        assert_eq!(all.len(), 19);
        assert!(all.ends_with(&late), "{all:?} {late:?}");
        assert_eq!(all.last(), Some(&24));
    }
}
