//! What a process had mapped at each time: an address is looked up in the mappings that were there
//! when it was recorded.
//!
//! Time is counted in generations. One ends whenever something may be unmapped, so within one code
//! only comes: two readings of /proc/PID/maps in one generation add up. Which generation an address
//! belongs to is recorded with its stack. The dynamic linker tells twice of each object that it
//! closes, before it is unmapped and after that: one generation ends with each.
//!
//! A reading may come too late, so that a generation has none, or none that has all that ran in it.
//! What is then not certain is not guessed.

use std::{
    collections::VecDeque,
    ops::{Range, RangeInclusive},
    sync::Arc,
};

use memleak_common::mappings::NEW_PROGRAM;

/// Most readings that are kept of one process: what is older than all of them is not known any
/// more.
const MAX_READINGS: usize = 4096;

/// Readings that stay when all that is outstanding was looked up: a stack may have been recorded a
/// moment ago.
const KEPT: usize = 16;

/// Programs of one process that are kept.
const PROGRAMS: usize = 4;

/// Generations from a reading that has an object to the first that can have it again after another
/// one was in its place: the object may be about to be unmapped when it is read (one generation),
/// and the other one is unmapped after that (two).
const BACK_AFTER: u64 = 3;

/// Some code that is mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Region<T> {
    /// Its addresses.
    pub range: Range<u64>,
    /// What is mapped there: equal only if it is the same code at the same place.
    pub code: T,
}

/// What is known of an address at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MappingAt<'a, T> {
    /// This was mapped there.
    Code(&'a T),
    /// Nothing that can run was.
    Nothing,
    /// One of several may have been, or nobody has looked in time.
    Uncertain,
}

/// The mappings of one generation.
#[derive(Clone, Debug)]
struct MapsReading<T> {
    generation: u64,
    /// By address, disjoint. Shared with the reading before, if nothing is new.
    regions: Arc<[Region<T>]>,
    /// Parts where a second reading of the generation has found something else than the first, by
    /// address, disjoint.
    replaced: Vec<Range<u64>>,
}

/// What [`Mapped::observe`] has found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observed {
    /// All that was there is there still, and maybe more.
    Grown,
    /// Something is gone or replaced, though nobody has reported it: a new generation is to be
    /// begun, and read.
    Shrunk,
}

/// The executable mappings of one address space, as they were in each generation.
#[derive(Clone, Debug)]
pub(super) struct Mapped<T> {
    /// In order of generation, one each.
    readings: VecDeque<MapsReading<T>>,
    /// Programs, the last ones.
    programs: VecDeque<Program<T>>,
}

/// A program itself, which is mapped as long as it runs.
#[derive(Clone, Debug)]
struct Program<T> {
    regions: Vec<Region<T>>,
    /// The first generation in which it was read, and the last.
    seen: RangeInclusive<u64>,
}

impl<T> Default for Mapped<T> {
    fn default() -> Self {
        Self { readings: VecDeque::new(), programs: VecDeque::new() }
    }
}

impl<T: Clone + PartialEq> Mapped<T> {
    /// Takes over what is mapped in `generation`, which must not have ended when it was read:
    /// `regions` in order of address. A reading of a generation that is over when a newer one is
    /// known changes nothing. `counts` says of code that is gone whether that is of interest.
    pub(super) fn observe(
        &mut self,
        generation: u64,
        regions: &[Region<T>],
        counts: impl Fn(&T) -> bool,
    ) -> Observed {
        match self.readings.back_mut() {
            Some(last) if last.generation > generation => return Observed::Grown,
            Some(last) if last.generation == generation => return last.merge(regions, counts),
            _ => {}
        }
        let same = self.readings.back().filter(|last| *last.regions == *regions);
        let regions = same.map_or_else(|| regions.into(), |last| last.regions.clone());
        if self.readings.len() >= MAX_READINGS {
            self.readings.pop_front();
        }
        self.readings.push_back(MapsReading { generation, regions, replaced: Vec::new() });
        Observed::Grown
    }

    /// Takes over where the program itself is mapped in `generation`: it stays there until there is
    /// another one.
    pub(super) fn keep(&mut self, generation: u64, regions: &[Region<T>]) {
        match self.programs.back_mut() {
            Some(last) if last.regions == regions => {
                last.seen = *last.seen.start()..=generation.max(*last.seen.end());
            }
            _ => {
                self.programs.push_back(Program { regions: regions.to_vec(), seen: generation..=generation })
            }
        }
        if self.programs.len() > PROGRAMS {
            self.programs.pop_front();
        }
    }

    /// What of a program was mapped at `address`, as far as no other one can have been there.
    fn find_program(&self, generation: u64, address: u64) -> Option<&T> {
        let ran = |program: &&Program<T>| {
            (*program.seen.start()..program.seen.end().saturating_add(NEW_PROGRAM)).contains(&generation)
        };
        let regions = self.programs.iter().filter(ran).flat_map(|program| &program.regions);
        regions.into_iter().find(|region| region.range.contains(&address)).map(|region| &region.code)
    }

    /// What was mapped at `address` in `generation`.
    pub(super) fn find(&self, generation: u64, address: u64) -> MappingAt<'_, T> {
        if let Some(code) = self.find_program(generation, address) {
            return MappingAt::Code(code);
        }
        let from = self.readings.partition_point(|reading| reading.generation < generation);
        let own = self.readings.get(from).filter(|reading| reading.generation == generation);
        let before = from.checked_sub(1).and_then(|at| self.readings.get(at));
        let after = self.readings.get(from + usize::from(own.is_some()));
        if let Some(own) = own {
            match own.find(address) {
                MappingAt::Nothing => {}
                found => return found,
            }
        }
        match (own, before, after) {
            // Still to be read again.
            (Some(_), _, None) => MappingAt::Nothing,
            (None, Some(before), Some(after)) if after.generation - before.generation < BACK_AFTER => {
                match (before.find(address), after.find(address)) {
                    (MappingAt::Code(code), MappingAt::Code(same)) if code == same => MappingAt::Code(code),
                    _ => MappingAt::Uncertain,
                }
            }
            // Code may have come and gone that nobody has seen.
            _ => MappingAt::Uncertain,
        }
    }

    /// Forgets what only addresses of long ago are looked up in.
    pub(super) fn forget_old(&mut self) {
        let old = self.readings.len().saturating_sub(KEPT);
        self.readings.drain(..old);
    }

    /// All code that may still be found, some of it several times.
    pub(super) fn code(&self) -> impl Iterator<Item = &T> {
        let regions = self.readings.iter().flat_map(|reading| reading.regions.iter());
        let programs = self.programs.iter().flat_map(|program| &program.regions);
        regions.chain(programs).map(|region| &region.code)
    }
}

impl<T: Clone + PartialEq> MapsReading<T> {
    fn find(&self, address: u64) -> MappingAt<'_, T> {
        let at = self.replaced.partition_point(|range| range.end <= address);
        if self.replaced.get(at).is_some_and(|range| range.contains(&address)) {
            return MappingAt::Uncertain;
        }
        let at = self.regions.partition_point(|region| region.range.end <= address);
        match self.regions.get(at).filter(|region| region.range.contains(&address)) {
            Some(region) => MappingAt::Code(&region.code),
            None => MappingAt::Nothing,
        }
    }

    /// Takes in what was read again in the same generation.
    fn merge(&mut self, regions: &[Region<T>], counts: impl Fn(&T) -> bool) -> Observed {
        if *self.regions == *regions {
            return Observed::Grown;
        }
        let mut all: Vec<Region<T>> = self.regions.to_vec();
        for region in regions {
            let known = overlapping(&self.regions, &region.range);
            self.replaced.extend(replaced(known, region));
            let free = between(known, &region.range);
            all.extend(free.into_iter().map(|range| Region { range, code: region.code.clone() }));
        }
        all.sort_by_key(|region| region.range.start);
        join(&mut self.replaced);
        let mut of_interest = self.regions.iter().filter(|old| counts(&old.code));
        let shrunk = !of_interest.all(|old| is_all_there(regions, old));
        self.regions = all.into();
        if shrunk { Observed::Shrunk } else { Observed::Grown }
    }
}

/// Those of `regions`, which are disjoint and in order of address, that have addresses of `range`.
fn overlapping<'a, T>(regions: &'a [Region<T>], range: &Range<u64>) -> &'a [Region<T>] {
    let from = regions.partition_point(|region| region.range.end <= range.start);
    let rest = regions.get(from..).unwrap_or_default();
    let (overlapping, _) = rest.split_at(rest.partition_point(|region| region.range.start < range.end));
    overlapping
}

/// Where other code than that of `region` is known.
fn replaced<T: PartialEq>(known: &[Region<T>], region: &Region<T>) -> impl Iterator<Item = Range<u64>> {
    known
        .iter()
        .filter(|known| known.code != region.code)
        .map(|known| known.range.start.max(region.range.start)..known.range.end.min(region.range.end))
}

/// The parts of `range` that are in none of `known`, all of which overlap it.
fn between<T>(known: &[Region<T>], range: &Range<u64>) -> Vec<Range<u64>> {
    let starts = known.iter().map(|region| region.range.start).chain([range.end]);
    let ends = [range.start].into_iter().chain(known.iter().map(|region| region.range.end));
    ends.zip(starts).map(|(end, start)| end..start).filter(|free| !free.is_empty()).collect()
}

/// Each address of `old` has the same code in `regions`.
fn is_all_there<T: PartialEq>(regions: &[Region<T>], old: &Region<T>) -> bool {
    let now = overlapping(regions, &old.range);
    between(now, &old.range).is_empty() && now.iter().all(|new| new.code == old.code)
}

/// Brings ranges in order and joins those that overlap or touch.
fn join(ranges: &mut Vec<Range<u64>>) {
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, last| {
        let is_joined = next.start <= last.end;
        if is_joined {
            last.end = last.end.max(next.end);
        }
        is_joined
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(start: u64, end: u64, code: char) -> Region<char> {
        Region { range: start..end, code }
    }

    /// First address, the one after the last, what is there.
    type Part = (u64, u64, char);

    fn mapped(readings: &[(u64, &[Part])]) -> Mapped<char> {
        let mut mapped = Mapped::default();
        for (generation, regions) in readings {
            let regions: Vec<_> =
                regions.iter().map(|(start, end, code)| region(*start, *end, *code)).collect();
            mapped.observe(*generation, &regions, |_| true);
        }
        mapped
    }

    fn at(mapped: &Mapped<char>, generation: u64, address: u64) -> Option<char> {
        match mapped.find(generation, address) {
            MappingAt::Code(code) => Some(*code),
            MappingAt::Nothing => Some('-'),
            MappingAt::Uncertain => None,
        }
    }

    #[test]
    fn each_generation_has_its_own_mappings() {
        let mapped = mapped(&[
            (0, &[(10, 20, 'm')]),
            (0, &[(10, 20, 'm'), (30, 40, 'a')]),
            (1, &[(10, 20, 'm'), (30, 40, 'a')]),
            (2, &[(10, 20, 'm')]),
            (2, &[(10, 20, 'm'), (30, 40, 'b')]),
        ]);
        for generation in 0..3 {
            assert_eq!(at(&mapped, generation, 10), Some('m'));
            assert_eq!(at(&mapped, generation, 19), Some('m'));
        }
        assert_eq!([0, 1, 2].map(|generation| at(&mapped, generation, 35)), ['a', 'a', 'b'].map(Some));
        assert_eq!(at(&mapped, 2, 25), Some('-'));
        // A generation that is over may have had code that came and went.
        assert_eq!((at(&mapped, 0, 25), at(&mapped, 3, 25)), (None, None));
    }

    #[test]
    fn a_reading_that_came_too_late_names_nothing() {
        // A was there in generation 0, unseen; B is in its place.
        let late = mapped(&[(0, &[(10, 20, 'm')]), (2, &[(10, 20, 'm'), (30, 40, 'b')])]);
        assert_eq!(at(&late, 0, 35), None);
        assert_eq!(at(&late, 2, 35), Some('b'));
        // No reading of 1: what is there on both sides was there.
        assert_eq!((at(&late, 1, 15), at(&late, 1, 35)), (Some('m'), None));
        // As many generations as it takes to be unmapped, to close another one and to be loaded
        // again.
        let again = mapped(&[(0, &[(10, 20, 'a')]), (3, &[(10, 20, 'a')])]);
        let found = [0, 1, 2, 3].map(|generation| at(&again, generation, 15));
        assert_eq!(found, [Some('a'), None, None, Some('a')]);
        // Generations after the last reading and before the first.
        let one = mapped(&[(5, &[(30, 40, 'a')])]);
        assert_eq!([4, 5, 6].map(|generation| at(&one, generation, 35)), [None, Some('a'), None]);
    }

    #[test]
    fn what_changes_without_a_notice_is_said_and_not_guessed() {
        let mut mapped = mapped(&[(7, &[(10, 20, 'a'), (30, 40, 'c')])]);
        assert_eq!(
            mapped.observe(7, &[region(10, 20, 'a'), region(30, 40, 'c'), region(40, 50, 'c')], |_| true),
            Observed::Grown
        );
        assert_eq!(
            mapped.observe(7, &[region(15, 25, 'b'), region(30, 50, 'c')], |_| true),
            Observed::Shrunk
        );
        let expected =
            [(12, Some('a')), (17, None), (22, Some('b')), (35, Some('c')), (45, Some('c')), (55, Some('-'))];
        for (address, code) in expected {
            assert_eq!(at(&mapped, 7, address), code, "{address}");
        }
        mapped.observe(8, &[region(15, 25, 'b'), region(30, 50, 'c')], |_| true);
        assert_eq!([12, 17, 35].map(|address| at(&mapped, 8, address)), [Some('-'), Some('b'), Some('c')]);
        // Of no interest.
        let gone = mapped.observe(8, &[region(15, 25, 'b')], |code| *code != 'c');
        assert_eq!((gone, at(&mapped, 8, 35)), (Observed::Grown, Some('c')));
        // A reading that was overtaken.
        assert_eq!(mapped.observe(7, &[], |_| true), Observed::Grown);
        assert_eq!(at(&mapped, 8, 17), Some('b'));
    }

    #[test]
    fn a_program_is_known_as_long_as_it_runs() {
        let mut mapped = mapped(&[(9, &[(10, 20, 'm')])]);
        mapped.keep(9, &[region(10, 20, 'm')]);
        mapped.keep(19, &[region(10, 20, 'm')]);
        // Before it was first seen, and when another one may run, nobody knows.
        let found = [8, 9, 14, 22, 23].map(|generation| at(&mapped, generation, 10));
        assert_eq!(found, [None, Some('m'), Some('m'), Some('m'), None]);
        mapped.keep(23, &[region(10, 20, 'n')]);
        assert_eq!([22, 23].map(|generation| at(&mapped, generation, 10)), [Some('m'), Some('n')]);
    }

    /// As many mappings as a process may have (sysctl vm.max_map_count), of two files in turn,
    /// which change places.
    #[test]
    fn many_mappings_take_no_time() {
        const COUNT: u64 = 65_530;
        let regions = |codes: [char; 2]| -> Vec<_> {
            (0..COUNT).map(|at| region(at * 10, at * 10 + 8, codes[at as usize % 2])).collect()
        };
        let mut mapped = Mapped::default();
        let begin = std::time::Instant::now();
        for codes in [['a', 'b'], ['b', 'a'], ['a', 'b']] {
            mapped.observe(1, &regions(codes), |_| true);
        }
        assert_eq!([5, 9].map(|address| at(&mapped, 1, address)), [None, Some('-')]);
        // A quadratic way takes minutes.
        assert!(begin.elapsed().as_secs() < 5, "{:?}", begin.elapsed());
    }

    #[test]
    fn readings_are_forgotten_and_shared() {
        let mut all = Mapped::default();
        for generation in 0..2 * MAX_READINGS as u64 {
            all.observe(generation, &[region(10, 20, 'm')], |_| true);
        }
        assert_eq!(all.readings.len(), MAX_READINGS);
        assert!(all.readings.iter().all(|reading| Arc::ptr_eq(&reading.regions, &all.readings[0].regions)));
        let last = 2 * MAX_READINGS as u64 - 1;
        all.forget_old();
        assert_eq!((all.readings.len(), all.code().count()), (KEPT, KEPT));
        let kept = last - KEPT as u64 + 1;
        assert_eq!([kept - 1, kept].map(|generation| at(&all, generation, 15)), [None, Some('m')]);
    }

    /// Programs that load, run and close at random, read now and then: whatever is named was there.
    #[test]
    fn no_address_is_ever_given_to_the_wrong_object() {
        let mut state = 1u64;
        let mut below = |end: u64| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 33) % end
        };
        let read = |mapped: &mut Mapped<char>, generation, places: &[Option<char>; 3]| {
            let place = |(at, code): (u64, &Option<char>)| Some(region(at * 10, at * 10 + 10, (*code)?));
            mapped.observe(generation, &(0..).zip(places).filter_map(place).collect::<Vec<_>>(), |_| true)
        };
        let mut named = 0;
        for round in 0..300 {
            let mut mapped = Mapped::default();
            let (mut places, mut generation) = ([None; 3], 0u64);
            let mut truth: Vec<(u64, u64, char)> = Vec::new();
            for _ in 0..60 {
                let place = below(3) as usize;
                match places[place] {
                    None => places[place] = Some(['a', 'b', 'c'][below(3) as usize]),
                    Some(_) => {
                        generation += 1; // before it is unmapped
                        if below(3) == 0 {
                            read(&mut mapped, generation, &places);
                        }
                        places[place] = None;
                        if below(3) == 0 {
                            read(&mut mapped, generation, &places);
                        }
                        generation += 1; // after that
                    }
                }
                let runs =
                    (0..).zip(&places).filter_map(|(at, code)| Some((generation, at * 10 + 5, (*code)?)));
                truth.extend(runs);
                if below(3) == 0 {
                    read(&mut mapped, generation, &places);
                }
            }
            // As before each report.
            read(&mut mapped, generation, &places);
            for (generation, address, code) in truth {
                let found = at(&mapped, generation, address);
                assert!(
                    found.is_none() || found == Some(code),
                    "round {round}: {generation} {address}: {found:?}, not {code}"
                );
                named += u32::from(found.is_some());
            }
        }
        assert!(named > 5_000, "{named}: it names hardly anything");
    }
}
