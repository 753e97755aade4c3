//! Snapshots as chance has it, against the plainest way, and later ones against ones that are read
//! again.

use std::collections::BTreeMap;

use super::*;

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers on each run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    fn snapshot(&mut self) -> Snapshot {
        let list = (0..self.below(300))
            .map(|address| Outstanding {
                space: 1 + self.below(2) as u32,
                resource: if self.below(3) == 0 { Resource::Mmap } else { Resource::Heap },
                ..outstanding(self.below(9), address, self.below(4) * 8, self.below(4) * 250 * MS)
            })
            .collect();
        snapshot(list)
    }
}

/// Resource and stack, bytes, number.
type Sum = ((Resource, u64), u64, u64);

/// The same by the plainest means: collect everything, sort by one tuple, cut.
fn truth(snapshot: &Snapshot, settings: &ReportSettings) -> (Vec<Sum>, u64, u64) {
    let older = settings.older.as_nanos() as u64;
    let mut by_key: BTreeMap<(Resource, u64), Vec<Outstanding>> = BTreeMap::new();
    for one in snapshot.outstanding.iter().filter(|one| one.time_ns <= NOW - older) {
        by_key.entry((one.resource, one.stack_id)).or_default().push(*one);
    }
    let bytes = |list: &[Outstanding]| list.iter().map(|one| one.size).sum::<u64>();
    let mut all: Vec<_> = by_key.iter().map(|(key, list)| (*key, bytes(list), list.len() as u64)).collect();
    let totals = (all.iter().map(|group| group.1).sum(), all.iter().map(|group| group.2).sum());
    all.sort_by_key(|(key, bytes, count)| {
        let oldest = by_key[key].iter().map(|one| NOW - one.time_ns).max();
        let first = match settings.sort {
            SortKey::Size | SortKey::Growth => Some(*bytes),
            SortKey::Count => Some(*count),
            SortKey::Age => oldest,
            // After one report nothing is known of any.
            SortKey::Verdict => None,
        };
        // Addresses of stacks fall as their ids grow; no stack at all goes first.
        let stack = if key.1 == NO_STACK { 0 } else { 0x1000 - key.1 };
        (Reverse((first, *bytes, *count)), stack, *key)
    });
    all.truncate(settings.top);
    (all, totals.0, totals.1)
}

#[test]
fn any_snapshot_agrees_with_the_plain_way() {
    let mut random = Random(2);
    for round in 0..400 {
        let snapshot = random.snapshot();
        let settings = ReportSettings {
            top: 1 + random.below(40) as usize,
            older: Duration::from_millis(random.below(4) * 250),
            show_allocs: true,
            sort: SortKey::value_variants()[random.below(5) as usize],
            ..settings()
        };
        let mut run = Run::default();
        let result = run.report(&snapshot, &settings, false);
        let key = |group: &Group| (group.key.resource, run.stack(group));
        let groups: Vec<_> = top(&result).map(|group| (key(group), group.bytes, group.count)).collect();
        let (expected, bytes, count) = truth(&snapshot, &settings);
        assert_eq!(groups, expected, "round {round}, {settings:?}");
        assert_eq!((result.totals.bytes, result.totals.count), (bytes, count), "round {round}");
        let all = result.groups.iter().fold((0, 0), |sum, group| (sum.0 + group.bytes, sum.1 + group.count));
        assert_eq!(all, (bytes, count), "round {round}");
        for group in top(&result) {
            let lines = group.allocations.as_deref().unwrap_or_default();
            let (sum, len) = (lines.iter().map(|line| line.size).sum::<u64>(), lines.len() as u64);
            assert_eq!((sum, len), (group.bytes, group.count), "round {round}");
            let processes =
                group.processes.iter().fold((0, 0), |sum, it| (sum.0 + it.bytes, sum.1 + it.count));
            assert_eq!(processes, (sum, len), "round {round}");
        }
    }
}

#[test]
fn the_same_snapshot_later_is_as_if_read_again() {
    let mut random = Random(3);
    for round in 0..200 {
        let list = (0..1000)
            .map(|address| outstanding(random.below(5), address, 8, random.below(4) * 250 * MS))
            .collect();
        let first = Snapshot { version: Some(TableVersion::default()), ..snapshot(list) };
        let older = Duration::from_millis(random.below(3) * 250);
        let settings = ReportSettings { older, sort: SortKey::Age, ..settings() };
        let later = Snapshot { time_ns: first.time_ns + random.below(2000) * MS, ..first.clone() };
        let reports = [&first, &later].map(|it| [it.clone(), Snapshot { version: None, ..it.clone() }]);
        let (mut kept, mut anew) = (Run::default(), Run::default());
        for [same, read] in reports {
            let result = kept.report(&same, &settings, false);
            assert_eq!(result, anew.report(&read, &settings, false), "round {round}");
        }
        // What has changed is not taken for the same.
        let changed = Snapshot {
            version: Some(TableVersion { released: 1, ..TableVersion::default() }),
            outstanding: first.outstanding.iter().skip(500).copied().collect(),
            ..later
        };
        let result = kept.report(&changed, &settings, false);
        let read = Snapshot { version: None, ..changed };
        assert_eq!(result, anew.report(&read, &settings, false), "round {round}");
    }
}
