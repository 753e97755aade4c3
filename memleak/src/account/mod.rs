//! The account of the targets' memory: what of their resident bytes is outstanding, free inside the
//! allocator, stacks, files, or nobody's that we know. It reads from outside only, and so much as
//! one report may cost.

mod beside;
mod glibc;
mod process;
mod resident;

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use log::{debug, info, warn};

pub(crate) use beside::Accounting;
pub(crate) use glibc::{Arenas, BlockStarts, chunk_of};
pub use process::{Allocators, KnownMemory};
use process::{MemoryParts, Remembered, measure};
pub(crate) use process::{files_of, glibc_arenas};

use crate::{
    objects::ObjectStore,
    proc::{maps::read_maps, status::memory_sizes},
    snapshot::TableVersion,
    target::allocator::AllocatorKind,
};

/// A process that has an address space of its own.
#[derive(Debug)]
pub struct AccountedProcess {
    /// Its number.
    pub pid: u32,
    /// The number of its address space.
    pub space: u32,
    /// Its allocators.
    pub allocators: Allocators,
    /// Its program, if no function of it is known.
    pub nameless: Option<String>,
    /// What is known of it.
    pub known: KnownMemory,
}

/// Resident bytes of all targets together, by whose they are. The parts add up to `rss`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Memory {
    /// All of them.
    pub rss: u64,
    /// So much more than when tracing began.
    pub rss_growth: i64,
    /// Outstanding blocks and mappings that we see.
    pub outstanding_resident: u64,
    /// Free inside the allocator, if that can be read.
    pub allocator_free: Option<u64>,
    /// The same of an allocator that cannot be read: so much at the least. What it has handed out
    /// is known, and so is by how much it may have rounded that up.
    #[serde(default)]
    pub allocator_free_at_least: Option<u64>,
    /// Which allocator that is, if it is one.
    #[serde(default)]
    pub unread_allocator: Option<AllocatorKind>,
    /// What the allocator has mapped for itself: headers and rounding, and, where it cannot be
    /// read, what is free in it.
    pub allocator: u64,
    /// Stacks.
    pub thread_stacks: u64,
    /// Mapped files.
    pub files: u64,
    /// What none of these was when tracing began, as far as it is still there.
    pub before_attach: u64,
    /// What has come since, and none of these is.
    pub unaccounted: u64,
    /// So much more is from before than was in memory then: it was written since, in older
    /// mappings.
    #[serde(skip)]
    pub older_growth: u64,
    /// What is to be said of it.
    pub finding: Option<Finding>,
}

/// What an account shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// What grows is free memory inside the allocator.
    FreeInside,
    /// Most of what grows is not accounted for.
    Unaccounted,
    /// Most of what grows is in memory that was mapped before tracing began.
    OlderMappings,
}

/// What one address space was when its account began.
#[derive(Debug, Default)]
struct Base {
    parts: MemoryParts,
    remembered: Remembered,
}

/// Accounts from report to report.
#[derive(Debug)]
pub struct Accounts {
    store: ObjectStore,
    spaces: HashMap<u32, Base>,
    /// What was outstanding at the account before.
    outstanding_before: Option<u64>,
    /// What of an allocator that cannot be read seemed to be free then.
    unread_before: u64,
    /// One in so many is captured.
    sample_rate: u64,
    /// Spaces of which it was said that a heap in them is not seen.
    told_nameless: HashSet<u32>,
    /// When the last account was made, and what it took.
    last: Option<(Instant, Duration)>,
    made: Option<MadeAccount>,
}

/// An account, and by what it is known whether it still holds.
#[derive(Debug)]
struct MadeAccount {
    memory: Memory,
    /// What there was when tracing began.
    base: MemoryParts,
    /// By process: [`memory_sizes`], before the account was made.
    sizes: Vec<(u32, Option<String>)>,
    /// What was outstanding.
    state: TableState,
}

/// What was outstanding at an account.
#[derive(Clone, Copy, Debug, Default)]
pub struct TableState {
    /// `None` if nothing tells how much of it has changed since another.
    pub version: Option<TableVersion>,
    /// How many records there were.
    pub records: u64,
}

impl TableState {
    /// So many records of another state are not in this one, or the other way about, at most.
    /// `None` if that is not known.
    fn distance(&self, other: &Self) -> Option<u64> {
        let (now, then) = (self.version?, other.version?);
        let changes =
            [(now.acquired, then.acquired), (now.released, then.released), (now.changes, then.changes)];
        Some(changes.iter().fold(0, |sum: u64, (now, then)| sum.saturating_add(now.abs_diff(*then))))
    }
}

/// An account may take this part of the time between two.
const SHARE: u32 = 10;
/// Most of one account: what is slower is left out, and said.
const MAX_TIME: Duration = Duration::from_secs(2);
/// Growth that nothing is said of: every program has some.
const LITTLE: u64 = 2 << 20;

impl Accounts {
    /// None made yet. `store`: the files that targets have mapped.
    pub fn new(store: ObjectStore, sample_rate: u64) -> Self {
        Self {
            store,
            spaces: HashMap::new(),
            outstanding_before: None,
            unread_before: 0,
            sample_rate: sample_rate.max(1),
            told_nameless: HashSet::new(),
            last: None,
            made: None,
        }
    }

    /// Tracing of a process begins: what is there already is from before.
    pub fn begin(&mut self, process: AccountedProcess) {
        let (pid, space, began) = (process.pid, process.space, Instant::now());
        let mut remembered = Remembered::default();
        if let Some(parts) = self.measure(process, &mut remembered) {
            self.spaces.insert(space, Base { parts, remembered });
            info!("process {pid}: accounted for {} bytes of memory in {:?}", parts.rss, began.elapsed());
        }
    }

    /// A target has replaced its program: nothing of the new one's memory is from before.
    pub fn replaced(&mut self, space: u32) {
        let remembered = Remembered::of_new_program();
        self.spaces.insert(space, Base { remembered, ..Base::default() });
    }

    /// Whether an account is worth its time now: in the last report always.
    pub fn is_due(&self, is_final: bool) -> bool {
        is_final || self.last.is_none_or(|(at, took)| at.elapsed() >= took * SHARE)
    }

    /// The last account, if the processes have as much memory as they had then, and hardly anything
    /// else is outstanding: less than an account is off by. In the last report nothing else may be.
    pub fn unchanged(&self, state: TableState, is_final: bool) -> Option<Memory> {
        const HARDLY: u64 = 1000;
        let MadeAccount { memory, base, sizes, state: then } = self.made.as_ref()?;
        let most = if is_final { 0 } else { then.records / HARDLY };
        if state.distance(then)? > most {
            return None;
        }
        let has_as_much = |(pid, size): &(u32, Option<String>)| size.is_some() && memory_sizes(*pid) == *size;
        // Nothing was acquired between its snapshot and it: what seemed to be free is.
        let unread = memory.allocator_free_at_least.map(|_| self.unread_before);
        let memory = Memory { allocator_free_at_least: unread, ..*memory };
        // That nothing has grown since may be what was missing.
        let finding = memory.find(base, Some(memory.outstanding_resident));
        sizes.iter().all(has_as_much).then_some(Memory { finding, ..memory })
    }

    /// The account of these processes; `None` if none of them can be read.
    pub fn make(&mut self, processes: Vec<AccountedProcess>, state: TableState) -> Option<Memory> {
        let began = Instant::now();
        let sizes = processes.iter().map(|process| (process.pid, memory_sizes(process.pid))).collect();
        let living: HashSet<u32> = processes.iter().map(|process| process.space).collect();
        self.spaces.retain(|space, _| living.contains(space));
        self.told_nameless.retain(|space| living.contains(space));
        let (mut memory, mut before) = (Memory::default(), MemoryParts::default());
        for process in processes {
            if began.elapsed() > MAX_TIME {
                info!("no account of memory: it would take more than {} s", MAX_TIME.as_secs());
                return None;
            }
            let space = process.space;
            let known = self.spaces.remove(&space);
            let (is_new, mut base) = (known.is_none(), known.unwrap_or_default());
            let Some(parts) = self.measure(process, &mut base.remembered) else { continue };
            if is_new {
                // Made by a target since the last account: what it has is what it was born with.
                base.parts = MemoryParts { outstanding: 0, ..parts };
            }
            memory.add(&parts, &base.parts);
            before.outstanding += base.parts.outstanding;
            before.free = Some(before.free.unwrap_or(0) + base.parts.free.unwrap_or(0));
            self.spaces.insert(space, base);
        }
        if memory.rss == 0 {
            return None;
        }
        // What was acquired since the snapshot is in memory and not yet known: it seems to be free
        // once.
        if let Some(unread) = &mut memory.allocator_free_at_least {
            let now = *unread;
            *unread = now.min(std::mem::replace(&mut self.unread_before, now));
        }
        memory.finding = memory.find(&before, self.outstanding_before);
        self.outstanding_before = Some(memory.outstanding_resident);
        let took = began.elapsed();
        self.last = Some((Instant::now(), took));
        self.made = Some(MadeAccount { memory, base: before, sizes, state });
        info!("accounted for {} bytes of memory in {:.1} ms", memory.rss, took.as_secs_f64() * 1e3);
        Some(memory)
    }

    fn measure(&mut self, process: AccountedProcess, remembered: &mut Remembered) -> Option<MemoryParts> {
        let AccountedProcess { pid, space, allocators, known, nameless } = process;
        let measured = read_maps(pid).and_then(|mappings| {
            let mappings = &mappings;
            measure(pid, mappings, &self.store, allocators, known, remembered)
        });
        match measured {
            Ok(parts) if parts.rss > 0 => {
                if let Some(program) = nameless.filter(|_| parts.has_nameless_heap())
                    && self.told_nameless.insert(space)
                {
                    warn!(
                        "process {pid}: {:.1} MB of its memory are in no allocator that is probed: {program}, which is \
                         stripped, seems to have one of its own (that of a language's runtime, or one that was linked \
                         in), whose blocks are not seen; install its debug file (/usr/lib/debug/.build-id) or trace a \
                         build with symbols",
                        parts.nameless as f64 / 1e6
                    );
                }
                Some(parts.scaled(self.sample_rate))
            }
            Ok(_) => None,
            Err(error) => {
                debug!("no account of the memory of process {pid}: {error}");
                None
            }
        }
    }
}

impl MemoryParts {
    /// What may be the heap of an allocator that nothing names is more than programs map now and
    /// then.
    fn has_nameless_heap(&self) -> bool {
        self.nameless >= LITTLE && self.nameless >= self.rss / 10
    }

    /// With one in `rate` blocks known, the others are among what nobody has claimed.
    fn scaled(self, rate: u64) -> Self {
        let others = self.outstanding.saturating_mul(rate - 1).min(self.rest);
        Self { outstanding: self.outstanding + others, rest: self.rest - others, ..self }
    }
}

impl Memory {
    fn add(&mut self, parts: &MemoryParts, base: &MemoryParts) {
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.rss += parts.rss;
        self.rss_growth += signed(parts.rss) - signed(base.rss);
        self.outstanding_resident += parts.outstanding;
        if let Some(free) = parts.free {
            *self.allocator_free.get_or_insert(0) += free;
        }
        // What was there before may be where an allocator is known by now to have its blocks.
        let from_before = base.rest + base.older;
        let rest_before = parts.rest.min(base.rest);
        let before = parts.older + rest_before;
        let before_in_areas = parts.areas.min(from_before.saturating_sub(before));
        let since_in_areas = parts.areas - before_in_areas;
        self.allocator += parts.allocator + since_in_areas;
        if parts.areas > 0 {
            let kind = parts.area_allocator;
            self.unread_allocator = match self.allocator_free_at_least {
                None => kind,
                Some(_) => self.unread_allocator.filter(|known| Some(*known) == kind),
            };
            *self.allocator_free_at_least.get_or_insert(0) += since_in_areas.saturating_sub(parts.rounding);
        }
        self.thread_stacks += parts.stacks;
        self.files += parts.files;
        self.before_attach += before + before_in_areas;
        self.older_growth += (before + before_in_areas).saturating_sub(from_before);
        self.unaccounted += parts.rest - rest_before;
    }

    /// What is to be said: `base` is what there was when tracing began, `before` what was
    /// outstanding at the last account.
    fn find(&self, base: &MemoryParts, before: Option<u64>) -> Option<Finding> {
        let growth = u64::try_from(self.rss_growth).ok().filter(|growth| *growth >= LITTLE)?;
        // Of a large heap a part is an estimate, which is off by some hundredths.
        if self.unaccounted > growth / 2 && self.unaccounted > self.rss / 20 {
            return Some(Finding::Unaccounted);
        }
        if self.older_growth > growth / 2 && self.older_growth > self.rss / 20 {
            return Some(Finding::OlderMappings);
        }
        let outstanding = self.outstanding_resident.saturating_sub(base.outstanding);
        let grows_now = before.is_none_or(|before| self.outstanding_resident > before + before / 100);
        let is_most = |free: u64| free >= LITTLE && free >= growth / 4;
        let free = self.allocator_free.unwrap_or(0).saturating_sub(base.free.unwrap_or(0));
        let is_free = is_most(free) && (outstanding <= growth / 4 || !grows_now);
        // What is free in an allocator that cannot be read is believed while nothing grows.
        let unread = self.allocator_free_at_least.unwrap_or(0);
        (is_free || (is_most(unread) && !grows_now)).then_some(Finding::FreeInside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    fn parts(outstanding: u64, free: u64, rest: u64) -> MemoryParts {
        let rss = outstanding + free + rest;
        MemoryParts { rss, outstanding, free: Some(free), rest, ..MemoryParts::default() }
    }

    fn finding(base: MemoryParts, now: MemoryParts, before: Option<u64>) -> Option<Finding> {
        let mut memory = Memory::default();
        memory.add(&now, &base);
        assert_eq!(memory.before_attach + memory.unaccounted, now.rest);
        memory.find(&base, before)
    }

    #[test]
    fn free_memory_is_no_leak_of_blocks() {
        let base = parts(0, MB, 5 * MB);
        assert_eq!(finding(base, parts(MB, 50 * MB, 5 * MB), None), Some(Finding::FreeInside));
        // Half of it is in use, and has not become more.
        let half = parts(40 * MB, 40 * MB, 5 * MB);
        assert_eq!(finding(base, half, Some(40 * MB)), Some(Finding::FreeInside));
        assert_eq!(finding(base, half, Some(20 * MB)), None, "it leaks");
        assert_eq!(finding(base, half, None), None, "it may leak");
        assert_eq!(finding(base, parts(50 * MB, 2 * MB, 5 * MB), Some(50 * MB)), None, "nothing is free");
        assert_eq!(finding(base, parts(0, 2 * MB, 5 * MB), Some(0)), None, "too little to speak of");
        assert_eq!(
            finding(parts(0, 50 * MB, 0), parts(0, 52 * MB, 4 * MB), Some(0)),
            Some(Finding::Unaccounted)
        );
    }

    #[test]
    fn what_came_before_is_not_what_came_since() {
        let (base, now) = (parts(0, 0, 5 * MB), parts(MB, 0, 8 * MB));
        let mut memory = Memory::default();
        memory.add(&now, &base);
        assert_eq!((memory.before_attach, memory.unaccounted, memory.rss_growth), (5 * MB, 3 * MB, 4 << 20));
        memory.add(&parts(0, 0, MB), &base);
        assert_eq!((memory.before_attach, memory.unaccounted, memory.rss_growth), (6 * MB, 3 * MB, 0));
    }

    /// Of an allocator that cannot be read: what it has handed out, with what this may have been
    /// rounded up by, is not free.
    #[test]
    fn what_is_free_at_the_least_is_no_leak_either() {
        let unread = |outstanding: u64, areas: u64, rounding: u64| MemoryParts {
            rss: outstanding + areas,
            outstanding,
            areas,
            rounding,
            area_allocator: Some(AllocatorKind::Jemalloc),
            ..MemoryParts::default()
        };
        let none = MemoryParts::default();
        let fragmented = unread(40 * MB, 50 * MB, 10 * MB);
        assert_eq!(finding(none, fragmented, Some(40 * MB)), Some(Finding::FreeInside));
        assert_eq!(finding(none, fragmented, Some(20 * MB)), None, "it grows");
        assert_eq!(finding(none, unread(40 * MB, 15 * MB, 10 * MB), Some(40 * MB)), None, "it leaked");
        // What has come since the snapshot is in memory already.
        assert_eq!(finding(none, unread(MB, 8 * MB, 0), Some(MB / 2)), None, "it grows from little");
        let mut memory = Memory::default();
        memory.add(&fragmented, &none);
        assert_eq!(memory.allocator_free_at_least, Some(40 * MB));
        assert_eq!(memory.unread_allocator, Some(AllocatorKind::Jemalloc));
        memory.add(&MemoryParts { area_allocator: Some(AllocatorKind::Musl), ..fragmented }, &none);
        assert_eq!((memory.allocator_free_at_least, memory.unread_allocator), (Some(80 * MB), None));
    }

    #[test]
    fn blocks_from_before_are_not_the_allocators() {
        let base = MemoryParts { rss: 20, rest: 20, ..MemoryParts::default() };
        let now = MemoryParts { rss: 40, outstanding: 5, areas: 30, rest: 5, ..MemoryParts::default() };
        let mut memory = Memory::default();
        memory.add(&now, &base);
        assert_eq!((memory.before_attach, memory.allocator, memory.unaccounted), (20, 15, 0));
    }

    #[test]
    fn older_mappings_are_from_before() {
        let base = MemoryParts { rss: 6 * MB, older: 4 * MB, rest: 2 * MB, ..MemoryParts::default() };
        let now = MemoryParts { rss: 90 * MB, older: 80 * MB, rest: 10 * MB, ..MemoryParts::default() };
        let mut memory = Memory::default();
        memory.add(&now, &base);
        assert_eq!((memory.before_attach, memory.unaccounted), (82 * MB, 8 * MB));
        assert_eq!(memory.find(&base, None), Some(Finding::OlderMappings));
    }

    #[test]
    fn an_account_holds_while_hardly_anything_changes() {
        let pid = std::process::id();
        let state = |acquired: u64, released: u64| TableState {
            version: Some(TableVersion { acquired, released, changes: 7 }),
            records: 10_000,
        };
        let mut accounts = Accounts::new(ObjectStore::default(), 1);
        let made = |size: Option<String>| MadeAccount {
            memory: Memory { rss: 40, ..Memory::default() },
            base: MemoryParts::default(),
            sizes: vec![(pid, size)],
            state: state(15_000, 5_000),
        };
        // Our own size may change at any moment: only what has not changed can be expected.
        let holds = |accounts: &mut Accounts, now: TableState, is_final: bool| {
            (0..1000).any(|_| {
                accounts.made = Some(made(memory_sizes(pid)));
                accounts.unchanged(now, is_final).is_some()
            })
        };
        assert!(holds(&mut accounts, state(15_000, 5_000), true));
        assert!(holds(&mut accounts, state(15_004, 5_006), false));
        assert!(!holds(&mut accounts, state(15_004, 5_006), true), "the last one is of its own moment");
        assert!(!holds(&mut accounts, state(15_005, 5_006), false), "more than a thousandth");
        assert!(!holds(&mut accounts, TableState { version: None, records: 10_000 }, false));
        accounts.made = Some(made(Some(String::new())));
        assert!(accounts.unchanged(state(15_000, 5_000), false).is_none(), "another size");
    }

    #[test]
    fn samples_stand_for_the_others() {
        let parts = parts(10, 0, 100).scaled(4);
        assert_eq!((parts.outstanding, parts.rest), (40, 70));
        assert_eq!(parts.scaled(1000).rest, 0);
    }
}
