//! The scans: each is a look at the table of blocks, at the memory and along the pointers. What is
//! lost in all of them is lost.

use std::{
    io,
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use log::debug;

use super::{
    Block,
    before::Before,
    circles::{self, Circle},
    graph::Graph,
    index::BlockIndex,
    kinds::Kinds,
    look::{populated, read_all},
    mark::{Class, Classes, Marked, Parent},
    roots::{self, RootKind, RootSource},
};
use crate::{
    account::Allocators,
    objects::ObjectStore,
    proc::{
        maps::read_maps,
        stop::{StoppedProcess, tracer_of},
    },
};

/// How many, and as long as pointers are seen to move; how long all of them may take then.
const SCANS: u32 = 3;
const MOST_SCANS: u32 = 12;
const LONGEST: Duration = Duration::from_secs(10);
/// The time from one to the next.
const BETWEEN: Duration = Duration::from_millis(100);
/// Blocks on the way from a root that are kept.
const LONGEST_WAY: usize = 64;

/// What is known of a process's blocks at one moment.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    /// Its blocks, in any order.
    pub blocks: Vec<Block>,
    /// What allocators have mapped for themselves, in any order.
    pub own: Vec<Range<u64>>,
    /// What the program has mapped.
    pub mapped: Vec<Range<u64>>,
}

/// A process.
#[derive(Clone, Debug)]
pub struct HeapTarget {
    /// Its number.
    pub pid: u32,
    /// Its allocators.
    pub allocators: Allocators,
    /// The files that it has mapped.
    pub store: ObjectStore,
    /// All that it has acquired since it began is known.
    pub from_start: bool,
    /// It may be stopped once, for so long, and is not looked at three times.
    pub max_pause: Option<Duration>,
    /// The number of the stack of what was there before tracing began.
    pub before: u32,
}

/// What holds a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The block.
    pub block: Block,
    /// The root's kind and place.
    pub root: (RootKind, u64),
    /// From the root on: the blocks that lead to it, and where in each the pointer is.
    pub hops: Vec<(Block, u32)>,
}

/// What came of all scans.
#[derive(Debug)]
pub struct Examined {
    /// How many scans there were, if it was not stopped.
    pub scans: u32,
    /// How long it was stopped.
    pub stopped: Duration,
    /// Blocks in order of address, those of the first look, each with what became of it.
    blocks: Vec<(Block, Class)>,
    /// Bytes that are in swap, and were not looked at.
    pub unread_bytes: u64,
    /// Blocks in use in glibc's arenas that we have not seen made; `None` if that cannot be told.
    pub before: Option<Before>,
    /// Circles.
    pub circles: Vec<Circle>,
    /// A way to one block of each stack that has one that is reachable.
    pub ways: Vec<Way>,
}

impl Examined {
    /// What became of each block.
    pub fn blocks(&self) -> &[(Block, Class)] {
        &self.blocks
    }

    /// What became of the block at `address`.
    pub fn class_of(&self, address: u64) -> Option<Class> {
        let at = self.blocks.binary_search_by_key(&address, |(block, _)| block.start).ok()?;
        self.blocks.get(at).map(|(_, class)| *class)
    }

    /// Sums for each stack.
    pub fn classes(&self) -> Vec<Classes> {
        let mut sums: Vec<Classes> = Vec::new();
        for (block, class) in &self.blocks {
            let stack = block.stack as usize;
            if sums.len() <= stack {
                sums.resize(stack + 1, Classes::default());
            }
            if let Some(sum) = sums.get_mut(stack) {
                sum.add(*class, block.size);
            }
        }
        sums
    }
}

/// One scan.
struct Scan {
    graph: Graph,
    kinds: Kinds,
    marked: Marked,
    runs: Vec<Range<u64>>,
    places: roots::RootPlaces,
    swapped: u64,
    /// What reading took: all that a process must be stopped for.
    read: Duration,
    /// What is from before tracing began, if that can be told.
    before: Option<Before>,
}

impl Scan {
    /// Looks at a process. If it is `stopped`, it is let go when its memory has been read.
    fn of(target: &HeapTarget, sight: Sight, stopped: Option<StoppedProcess>) -> io::Result<Self> {
        let began = Instant::now();
        let mappings = read_maps(target.pid)?;
        if mappings.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        let populated = populated(target.pid, &mappings)?;
        let index = BlockIndex::new(sight.blocks);
        let source = RootSource {
            pid: target.pid,
            mappings: &mappings,
            store: &target.store,
            allocators: target.allocators,
            from_start: target.from_start,
            own: &sight.own,
            mapped: &sight.mapped,
            blocks: index.blocks(),
            runs: &populated.runs,
            stopped: stopped.as_ref().map(|stopped| stopped.threads.as_slice()),
        };
        let places = roots::find(&source)?;
        let index = match places.unknown.as_deref().unwrap_or_default() {
            [] => index,
            blocks => index.with(blocks.iter().map(|block| Block {
                start: block.start,
                size: block.end - block.start,
                birth: 0,
                stack: target.before,
            })),
        };
        let prepared = began.elapsed();
        let (graph, unread) = Graph::read(target.pid, stopped.is_some(), index, &places, &populated.runs)?;
        drop(stopped);
        let read = began.elapsed();
        let mut kinds = Kinds::of(&graph);
        let before = Some(target.before);
        let mut marked = Marked::follow(&graph, &kinds, before);
        let is_doubtful = |block: u32| marked.classes.get(block as usize) != Some(&Class::Reachable);
        if kinds.look(target.pid, &mappings, &graph, is_doubtful) {
            marked = Marked::follow(&graph, &kinds, before);
        }
        let is_told = places.unknown.is_some();
        let before = is_told.then(|| Before::of(&graph, &marked, target.before, places.free));
        debug!(
            "process {}: {} pointers in {} blocks and {} at roots; {prepared:.0?} for the roots, {:.0?} to read \
             ({unread} bytes could not be), {:.0?} to follow",
            target.pid,
            graph.all_pointers().len(),
            graph.len(),
            graph.roots.len(),
            read - prepared,
            began.elapsed() - read
        );
        let (runs, swapped) = (populated.runs, populated.swapped);
        Ok(Self { graph, kinds, marked, runs, places, swapped, read, before })
    }

    /// What became of a block; `None` if it is there no more.
    fn class(&self, block: &Block) -> Option<Class> {
        let at = self.graph.blocks().binary_search_by_key(&block.start, |it| it.start);
        let same =
            at.ok().filter(|at| self.graph.blocks().get(*at).is_some_and(|it| it.birth == block.birth));
        same.and_then(|at| self.marked.classes.get(at)).copied()
    }

    /// Of all blocks that are not known to the first look nothing is said.
    fn set_classes(&mut self, of: &[(Block, Class)]) {
        for (block, class) in self.graph.blocks().iter().zip(&mut self.marked.classes) {
            let at = of.binary_search_by_key(&block.start, |(it, _)| it.start).ok().and_then(|at| of.get(at));
            let known = at.filter(|(it, _)| it.birth == block.birth).map(|(_, class)| *class);
            *class = known.unwrap_or(Class::Reachable).max(*class);
        }
    }

    /// A lost block whose address is somewhere with other bits in its upper 16 (a tag) may be held
    /// by that.
    fn find_tagged(&mut self, pid: u32) -> io::Result<()> {
        const ADDRESS: u64 = (1 << 48) - 1;
        let lost = |class: &Class| *class == Class::Definitely;
        let blocks: Vec<Block> = self
            .graph
            .blocks()
            .iter()
            .zip(&self.marked.classes)
            .filter(|(_, class)| lost(class))
            .map(|(block, _)| *block)
            .collect();
        if blocks.is_empty() {
            return Ok(());
        }
        let (index, graph, classes) = (BlockIndex::new(blocks), &self.graph, &self.marked.classes);
        let (areas, mut held) = (&self.places.areas, Vec::new());
        let is_live = |place: u64| {
            let at = graph.index.first_after(place);
            if graph.blocks().get(at).is_some_and(|block| block.start <= place) {
                return classes.get(at).is_some_and(|class| !lost(class));
            }
            let at = areas.partition_point(|area| area.range.end <= place);
            areas.get(at).is_some_and(|area| area.range.start <= place)
        };
        let find = |start: u64, words: &[u64]| -> Vec<u32> {
            let tagged = words.iter().enumerate().filter(|(_, word)| **word > ADDRESS);
            let found = tagged.filter_map(|(at, word)| Some((at, index.find(word & ADDRESS)?.0)));
            found.filter(|(at, _)| is_live(start + *at as u64 * 8)).map(|(_, block)| block).collect()
        };
        read_all(pid, false, &self.runs, find, |found| held.extend(found))?;
        let held = held.into_iter().filter_map(|block| index.blocks().get(block as usize));
        let starts: Vec<u64> = held.map(|block| block.start).collect();
        for start in starts {
            if let Ok(at) = self.graph.blocks().binary_search_by_key(&start, |block| block.start) {
                self.hold_doubtfully(at as u32);
            }
        }
        Ok(())
    }

    /// This block, and what it leads to, may be held.
    fn hold_doubtfully(&mut self, block: u32) {
        let mut queue = vec![block];
        while let Some(block) = queue.pop() {
            let Some(class) = self.marked.classes.get_mut(block as usize) else { continue };
            if *class == Class::Definitely {
                *class = Class::Possibly;
                queue.extend(self.graph.pointers(block).iter().map(|pointer| pointer.to));
            }
        }
    }

    /// A way to one block of each stack but `before` that is reachable: to the oldest of those that
    /// are held best.
    fn ways(&self, before: u32) -> Vec<Way> {
        let mut best: rustc_hash::FxHashMap<u32, (RootKind, u64, u32)> = rustc_hash::FxHashMap::default();
        for (number, block) in self.graph.blocks().iter().enumerate() {
            if self.marked.classes.get(number) != Some(&Class::Reachable) || block.stack == before {
                continue;
            }
            let Some(by) = self.marked.by.get(number) else { continue };
            let this = (*by, block.birth, number as u32);
            best.entry(block.stack).and_modify(|known| *known = (*known).min(this)).or_insert(this);
        }
        let mut ways: Vec<Way> = best.into_values().filter_map(|(.., block)| self.way(block)).collect();
        ways.sort_unstable_by_key(|way| way.block.stack);
        ways
    }

    fn way(&self, block: u32) -> Option<Way> {
        let of = |block: u32| self.graph.blocks().get(block as usize).copied();
        let (mut at, mut hops) = (block, Vec::new());
        while hops.len() < LONGEST_WAY {
            match self.marked.parent(at) {
                Parent::Block(parent) => {
                    let from = self.graph.pointers(parent).iter().find(|pointer| pointer.to == at)?.from;
                    hops.push((of(parent)?, from));
                    at = parent;
                }
                Parent::Root(root) => {
                    hops.reverse();
                    let root = self.graph.roots.get(root as usize)?;
                    return Some(Way { block: of(block)?, root: (root.kind, root.place), hops });
                }
                Parent::None => return None,
            }
        }
        None
    }
}

/// Examines a process. `first` is what is known of it now, `again` gives the same anew, at once.
pub fn examine(
    target: &HeapTarget,
    first: Sight,
    again: &mut dyn FnMut() -> io::Result<Sight>,
) -> io::Result<Examined> {
    let index = BlockIndex::new(first.blocks.clone());
    let mut blocks: Vec<(Block, Class)> =
        index.blocks().iter().map(|block| (*block, Class::Definitely)).collect();
    drop(index);
    let looks = match target.max_pause {
        Some(most) => look_stopped(target, first, again, &mut blocks, most)?,
        None => look_repeatedly(target, first, again, &mut blocks)?,
    };
    let Looks { mut scan, scans, stopped, unread_bytes, before } = looks;
    if unread_bytes > 0 {
        // What is in swap may point to it.
        blocks.iter_mut().for_each(|(_, class)| *class = (*class).max(Class::Possibly));
    }
    scan.set_classes(&blocks);
    scan.find_tagged(target.pid)?;
    scan.marked.split_lost(&scan.graph);
    for (block, class) in &mut blocks {
        // What has been freed since was classed as reachable before.
        *class = (*class).max(scan.class(block).unwrap_or(Class::Reachable));
    }
    Ok(Examined {
        scans,
        stopped,
        unread_bytes,
        before,
        circles: circles::find(&scan.graph, &scan.kinds, &scan.marked),
        ways: scan.ways(target.before),
        blocks,
    })
}

/// The last look, and what all of them have in common.
struct Looks {
    scan: Scan,
    scans: u32,
    stopped: Duration,
    unread_bytes: u64,
    before: Option<Before>,
}

/// Looks three times while the process runs, and more often as long as blocks turn up that were
/// lost: their pointers move.
fn look_repeatedly(
    target: &HeapTarget,
    first: Sight,
    again: &mut dyn FnMut() -> io::Result<Sight>,
    blocks: &mut [(Block, Class)],
) -> io::Result<Looks> {
    let began = Instant::now();
    let mut scan = Scan::of(target, first, None)?;
    let (mut unread_bytes, mut before) = (scan.swapped, scan.before.take());
    merge(blocks, |block| scan.class(block));
    let (mut scans, mut is_moving) = (1, false);
    while scans < SCANS || (is_moving && scans < MOST_SCANS && began.elapsed() < LONGEST) {
        // What does not change shall have time to: a look at a small heap takes a millisecond.
        thread::sleep(BETWEEN);
        drop(scan);
        scan = Scan::of(target, again()?, None)?;
        scans += 1;
        unread_bytes = unread_bytes.max(scan.swapped);
        // What is made while it is looked at is known the next time.
        is_moving = match (&mut before, &scan.before) {
            (Some(before), Some(now)) => before.and(now),
            _ => {
                before = None;
                false
            }
        };
        is_moving |= merge(blocks, |block| scan.class(block));
    }
    let left = BlockIndex::new(again()?.blocks);
    merge(blocks, |block| {
        let at = left.blocks().binary_search_by_key(&block.start, |it| it.start).ok();
        let same = at.and_then(|at| left.blocks().get(at)).is_some_and(|it| it.birth == block.birth);
        same.then_some(Class::Definitely)
    });
    Ok(Looks { scan, scans, stopped: Duration::ZERO, unread_bytes, before })
}

/// Looks once while the process is stopped, if that takes no longer than it may. It is looked at
/// before while it runs, to know how long that is.
fn look_stopped(
    target: &HeapTarget,
    first: Sight,
    again: &mut dyn FnMut() -> io::Result<Sight>,
    blocks: &mut [(Block, Class)],
    most: Duration,
) -> io::Result<Looks> {
    if let Some((tracer, name)) = tracer_of(target.pid) {
        return Err(io::Error::other(format!(
            "process {tracer} ({name}) traces it; --why alone needs no stop"
        )));
    }
    let read = Scan::of(target, first, None)?.read;
    let began = Instant::now();
    again()?;
    let estimate = read + began.elapsed();
    if estimate > most {
        return Err(io::Error::other(format!(
            "it would be stopped for some {} ms, and --max-pause allows {}; raise it, or leave out =exact",
            estimate.as_millis(),
            most.as_millis()
        )));
    }
    let began = Instant::now();
    let stopped = StoppedProcess::stop(target.pid, most)?;
    let sight = again()?;
    let reached = began.elapsed();
    let mut scan = Scan::of(target, sight, Some(stopped))?;
    merge(blocks, |block| scan.class(block));
    let (unread_bytes, before) = (scan.swapped, scan.before.take());
    Ok(Looks { stopped: reached + scan.read, scan, scans: 0, unread_bytes, before })
}

/// Each block is as good as the best that was seen of it; what is gone was held by who has freed
/// it. Gives whether a block that is there is better than it was.
fn merge(blocks: &mut [(Block, Class)], seen: impl Fn(&Block) -> Option<Class>) -> bool {
    let mut is_better = false;
    for (block, class) in blocks.iter_mut().filter(|(_, class)| *class != Class::Reachable) {
        match seen(block) {
            Some(now) if now > *class => (*class, is_better) = (now, true),
            Some(_) => {}
            None => *class = Class::Reachable,
        }
    }
    is_better
}

#[cfg(test)]
mod tests;
