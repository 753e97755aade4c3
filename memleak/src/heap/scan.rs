//! The scans: each is a look at the table of blocks, at the memory and along the pointers. What is
//! lost in all of them is lost.

use std::{
    io,
    ops::Range,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use log::debug;
use rustc_hash::FxHashSet;

use super::{
    Block,
    before::Before,
    circles::{self, Circle},
    graph::{Graph, Sources},
    hidden::HiddenRegisters,
    index::BlockIndex,
    kinds::Kinds,
    look::read_all,
    mark::{Class, Classes, Marked, Parent},
    newest::maybe_held,
    roots::{RootKind, RootPlaces},
    survey::{HeapTarget, IndexedSight, ReadHeap, Sight, Surveyed, hidden_registers},
};
use crate::proc::{
    maps::Mapping,
    stop::{StoppedProcess, tracer_of},
};

/// How many, and as long as pointers are seen to move; how long all of them may take then.
const SCANS: u32 = 3;
const MOST_SCANS: u32 = 12;
const LONGEST: Duration = Duration::from_secs(10);
/// The time from one to the next.
const BETWEEN: Duration = Duration::from_millis(100);
/// Blocks on the way from a root that are kept.
const LONGEST_WAY: usize = 64;

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

/// A block that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedBlock {
    /// The block.
    pub block: Block,
    /// What became of it.
    pub class: Class,
    /// What holds it; `None` if nothing does for sure.
    pub way: Option<Way>,
    /// Else another block that points into it, and where in that the pointer is.
    pub pointed_from: Option<(Block, u32)>,
}

/// What came of all scans.
#[derive(Debug)]
pub struct Examined {
    /// How many scans there were, if it was not stopped.
    pub scans: u32,
    /// How long it was stopped.
    pub stopped: Duration,
    /// Blocks in order of address, those of the first look.
    blocks: Vec<Block>,
    /// What became of each.
    classes: Vec<Class>,
    /// Bytes that are in swap, and were not looked at.
    pub unread_bytes: u64,
    /// Blocks in use in glibc's arenas that we have not seen made; `None` if that cannot be told.
    pub before: Option<Before>,
    /// Circles.
    pub circles: Vec<Circle>,
    /// A way to one block of each stack that has one that is reachable.
    pub ways: Vec<Way>,
    /// The block that was asked for, if there is one at that address.
    pub asked: Option<AskedBlock>,
}

impl Examined {
    /// What became of each block.
    pub fn blocks(&self) -> impl Iterator<Item = (&Block, Class)> {
        self.blocks.iter().zip(self.classes.iter().copied())
    }

    /// What became of the block at `address`.
    pub fn class_of(&self, address: u64) -> Option<Class> {
        let at = self.blocks.binary_search_by_key(&address, |block| block.start).ok()?;
        self.classes.get(at).copied()
    }

    /// Sums for each stack.
    pub fn classes(&self) -> Vec<Classes> {
        let mut sums: Vec<Classes> = Vec::new();
        for (block, class) in self.blocks() {
            let stack = block.stack as usize;
            if sums.len() <= stack {
                sums.resize(stack + 1, Classes::default());
            }
            if let Some(sum) = sums.get_mut(stack) {
                sum.add(class, block.size);
            }
        }
        sums
    }
}

/// The first look, along all pointers.
struct Scan {
    graph: Graph,
    kinds: Kinds,
    marked: Marked,
    runs: Vec<Range<u64>>,
    places: RootPlaces,
    swapped: u64,
    /// What is from before tracing began, if that can be told.
    before: Option<Before>,
    /// What it could not see.
    hidden: HiddenRegisters,
}

impl Scan {
    /// Follows the pointers.
    fn of(target: &HeapTarget, heap: ReadHeap) -> Self {
        let began = Instant::now();
        let ReadHeap { mut graph, mappings, populated, places, hidden, found, read, unread } = heap;
        graph.leave_out_chunks(&chunk_lists(target, &mappings));
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
            "process {}: {} pointers in {} blocks and {} at roots; {found:.0?} for the roots, {:.0?} to read \
             ({unread} bytes could not be), {:.0?} to follow",
            target.pid,
            graph.all_pointers().len(),
            graph.len(),
            graph.roots.len(),
            read.saturating_sub(found),
            began.elapsed()
        );
        let (runs, swapped) = (populated.runs, populated.swapped);
        Self { graph, kinds, marked, runs, places, swapped, before, hidden }
    }

    fn class(&self, number: u32) -> Class {
        self.marked.classes.get(number as usize).copied().unwrap_or(Class::Reachable)
    }

    /// The blocks that nothing holds for sure, by their numbers, in order.
    fn loose(&self) -> Vec<u32> {
        let lost_before = self.before.iter().flat_map(|before| &before.lost);
        let lost_before: FxHashSet<u32> =
            lost_before.filter_map(|block| self.graph.index.number_of(block)).collect();
        let is_loose = |number: &u32| self.class(*number) != Class::Reachable || lost_before.contains(number);
        (0..self.graph.len() as u32).filter(is_loose).collect()
    }

    /// Takes over what another look has seen of a block, if that is better. Says whether it is.
    fn improve(&mut self, number: u32, seen: Class) -> bool {
        match self.marked.classes.get_mut(number as usize) {
            Some(class) if seen > *class => {
                *class = seen;
                true
            }
            _ => false,
        }
    }

    /// Looks again: whether something holds what nothing held before. Only pointers to that are
    /// looked for, and whatever has one, and is in use, holds it. Says whether something was found.
    fn look_again(&mut self, target: &HeapTarget, sight: Sight) -> io::Result<(bool, HiddenRegisters)> {
        let prepared = Surveyed::of(target, sight.into(), None)?;
        let Surveyed { mappings, populated, index, places, registers, took } = prepared;
        let began = Instant::now();
        let loose = self.loose();
        let mut there = Vec::new();
        for number in loose {
            let Some(block) = self.graph.blocks().get(number as usize) else { continue };
            match index.number_of(block) {
                Some(_) => there.push(number),
                // What is gone was held by who has freed it.
                None => _ = self.improve(number, Class::Reachable),
            }
        }
        let blocks = there.iter().filter_map(|number| self.graph.blocks().get(*number as usize).copied());
        let runs = &populated.runs;
        let others = Some(index.blocks());
        let from = Sources { pid: target.pid, is_stopped: false, places: &places, runs, others };
        let (mut graph, _) = Graph::read(BlockIndex::new(blocks.collect()), &from)?;
        let read = began.elapsed();
        let hidden = hidden_registers(target, &places, &registers, &mappings);
        graph.leave_out_chunks(&chunk_lists(target, &mappings));
        let mut marked = Marked::follow(&graph, &self.kinds, None);
        let is_doubtful = |block: u32| marked.classes.get(block as usize) != Some(&Class::Reachable);
        if self.kinds.look(target.pid, &mappings, &graph, is_doubtful) {
            marked = Marked::follow(&graph, &self.kinds, None);
        }
        let mut is_better = false;
        for (number, seen) in there.iter().zip(&marked.classes) {
            is_better |= self.improve(*number, *seen);
        }
        if let Some(before) = &mut self.before {
            // What points into the middle of one may hold it.
            let is_lost = |block: &Block| {
                let number = graph.index.number_of(block);
                number.is_some_and(|number| !marked.is_reached(number))
            };
            is_better |= before.retain_lost(is_lost);
            let blocks = index.blocks().iter().filter(|block| block.stack == target.before);
            before.count(blocks, places.free);
        }
        debug!(
            "process {}: {} of {} blocks looked for again; {took:.0?} for the roots, {read:.0?} to read",
            target.pid,
            there.len(),
            index.blocks().len()
        );
        self.swapped = self.swapped.max(populated.swapped);
        Ok((is_better, hidden))
    }

    /// What is gone by now was held by who has freed it.
    fn forget_gone(&mut self, left: &BlockIndex, before: u32) {
        for number in self.loose() {
            let Some(block) = self.graph.blocks().get(number as usize) else { continue };
            if block.stack != before && left.number_of(block).is_none() {
                self.improve(number, Class::Reachable);
            }
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
            if *class < Class::Possibly {
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

    /// What is to be said of the block at `address`.
    fn asked(&self, address: u64, before: u32) -> Option<AskedBlock> {
        let (number, _) = self.graph.index.find(address)?;
        let block = *self.graph.blocks().get(number as usize)?;
        let from = |source: u32| {
            let from = self.graph.pointers(source).iter().find(|pointer| pointer.to == number)?.from;
            Some((*self.graph.blocks().get(source as usize)?, from))
        };
        let numbered = (0..).zip(self.graph.blocks());
        let mut made = numbered.filter(|(_, block)| block.stack != before).map(|(number, _)| number);
        Some(AskedBlock {
            block,
            class: *self.marked.classes.get(number as usize)?,
            way: self.way(number),
            // One that somebody is known to have made says more.
            pointed_from: made.find_map(from).or_else(|| (0..self.graph.len() as u32).find_map(from)),
        })
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

/// Where glibc has its lists of free chunks.
fn chunk_lists(target: &HeapTarget, mappings: &[Mapping]) -> Vec<Range<u64>> {
    let has_lists = |it: &&Mapping| target.allocators.glibc && it.writable && it.is_of_c_library();
    mappings.iter().filter(has_lists).map(|it| it.start..it.end).collect()
}

/// Examines a process. `first` is what is known of it now, `again` gives the same anew, at once;
/// `ips_of` gives the return addresses of a stack.
pub fn examine(
    target: &HeapTarget,
    first: Sight,
    again: &mut dyn FnMut() -> io::Result<Sight>,
    ips_of: &dyn Fn(u32) -> Vec<u64>,
) -> io::Result<Examined> {
    let looks = match (&target.stopped, target.max_pause) {
        (Some(stopped), _) => look_once(target, first, stopped)?,
        (None, Some(most)) => look_stopped(target, first, again, most)?,
        (None, None) => look_repeatedly(target, first, again)?,
    };
    let Looks { mut scan, scans, stopped, hidden } = looks;
    let unread_bytes = scan.swapped;
    if unread_bytes > 0 {
        // What is in swap may point to it.
        scan.marked.classes.iter_mut().for_each(|class| *class = (*class).max(Class::Possibly));
    }
    scan.find_tagged(target.pid)?;
    scan.marked.split_lost(&scan.graph);
    let held = maybe_held(&scan.graph, &scan.marked, &hidden, ips_of);
    held.into_iter().for_each(|block| scan.hold_doubtfully(block));
    let (circles, ways) = (circles::find(&scan.graph, &scan.kinds, &scan.marked), scan.ways(target.before));
    let asked = target.asked.and_then(|address| scan.asked(address, target.before));
    let Scan { graph, marked, before, .. } = scan;
    // What was there before is told by itself.
    let (mut blocks, mut classes) = (graph.into_blocks(), marked.classes);
    let mut is_told = blocks.iter().map(|block| block.stack != target.before).collect::<Vec<_>>().into_iter();
    classes.retain(|_| is_told.next() == Some(true));
    blocks.retain(|block| block.stack != target.before);
    Ok(Examined { scans, stopped, unread_bytes, before, circles, ways, asked, blocks, classes })
}

/// What the looks have in common.
struct Looks {
    scan: Scan,
    scans: u32,
    stopped: Duration,
    /// What each of them could not see.
    hidden: Vec<HiddenRegisters>,
}

/// Looks three times while the process runs, and more often as long as blocks turn up that were
/// lost: their pointers move.
fn look_repeatedly(
    target: &HeapTarget,
    first: Sight,
    again: &mut dyn FnMut() -> io::Result<Sight>,
) -> io::Result<Looks> {
    let began = Instant::now();
    let mut scan = Scan::of(target, ReadHeap::of(target, first.into(), None)?);
    let mut hidden = vec![std::mem::take(&mut scan.hidden)];
    let (mut scans, mut is_moving) = (1, false);
    while scans < SCANS || (is_moving && scans < MOST_SCANS && began.elapsed() < LONGEST) {
        // What does not change shall have time to: a look at a small heap takes a millisecond.
        thread::sleep(BETWEEN);
        let found = scan.look_again(target, again()?)?;
        scans += 1;
        is_moving = found.0;
        hidden.push(found.1);
    }
    scan.forget_gone(&BlockIndex::new(again()?.blocks), target.before);
    Ok(Looks { scan, scans, stopped: Duration::ZERO, hidden })
}

/// Looks at a process that is stopped, and will not run any more.
fn look_once(target: &HeapTarget, first: Sight, stopped: &Arc<StoppedProcess>) -> io::Result<Looks> {
    let heap = ReadHeap::of(target, first.into(), Some(stopped.clone()))?;
    let stopped = heap.read;
    Ok(Looks { stopped, scan: Scan::of(target, heap), scans: 0, hidden: Vec::new() })
}

/// Looks once while the process is stopped, if that takes no longer than it may. It is looked at
/// before while it runs, to know how long that is.
///
/// What is known of its blocks is from just before: what it has made since is found by walking
/// glibc's chunks, and is in use without being known; what it has freed since is gone afterwards.
/// Of other allocators it is asked for while the process is stopped.
fn look_stopped(
    target: &HeapTarget,
    first: Sight,
    again: &mut dyn FnMut() -> io::Result<Sight>,
    most: Duration,
) -> io::Result<Looks> {
    if let Some((tracer, name)) = tracer_of(target.pid) {
        return Err(io::Error::other(format!(
            "process {tracer} ({name}) traces it; --why alone needs no stop"
        )));
    }
    let walks_chunks = target.allocators.glibc && !target.allocators.others;
    let mut estimate = ReadHeap::of(target, first.into(), None)?.read;
    let began = Instant::now();
    let mut sight = IndexedSight::from(again()?);
    if !walks_chunks {
        estimate += began.elapsed();
    }
    if estimate > most {
        return Err(io::Error::other(format!(
            "it would be stopped for some {} ms, and --max-pause allows {}; raise it, or leave out =exact",
            estimate.as_millis(),
            most.as_millis()
        )));
    }
    let began = Instant::now();
    let stopped = StoppedProcess::stop(target.pid, most)?;
    debug!("process {}: {} threads stopped in {:.0?}", target.pid, stopped.threads.len(), began.elapsed());
    if !walks_chunks {
        sight = again()?.into();
    }
    let reached = began.elapsed();
    let heap = ReadHeap::of(target, sight, Some(Arc::new(stopped)))?;
    let stopped = reached + heap.read;
    let mut scan = Scan::of(target, heap);
    if walks_chunks {
        scan.forget_gone(&BlockIndex::new(again()?.blocks), target.before);
    }
    Ok(Looks { stopped, scan, scans: 0, hidden: Vec::new() })
}

#[cfg(test)]
mod tests;
