//! The scans: each is a look at the table of blocks, at the memory and along the pointers. What is
//! lost in all of them is lost.

use std::{
    collections::hash_map::Entry,
    io,
    ops::Range,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use log::{debug, warn};
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    Block,
    before::Before,
    before_kinds::BlockKinds,
    blocks::HeapBlocks,
    circles,
    graph::{Graph, Sources, tagged_in},
    hidden::HiddenRegisters,
    index::BlockIndex,
    kinds::Kinds,
    look::read_all,
    mark::{Class, Marked},
    newest::maybe_held,
    objects::HeapObjects,
    outcome::{Examined, StackBlocks},
    roots::RootPlaces,
    survey::{HeapTarget, ReadHeap, Sight, Surveyed, hidden_registers},
    ways::{AskedBlock, Way, asked, ways},
};
use crate::proc::{
    maps::Mapping,
    stop::{StoppedProcess, tracer_of},
};

/// How many in a row must have found nothing that those before have missed: pointers move, and one
/// that was missed may be so again. How many at most, and how long all of them may take then.
const SCANS: u32 = 3;
const MOST_SCANS: u32 = 16;
const LONGEST: Duration = Duration::from_secs(10);
/// The time from one to the next.
const BETWEEN: Duration = Duration::from_millis(100);
/// What came of the first look, along all pointers, and of the ones after it. Of what is held for
/// sure only sums are kept: nothing else is to be known of it, and most blocks are.
struct Scan {
    /// The others, with what only a stack or a register holds, and what is lost from before tracing
    /// began.
    graph: Graph,
    kinds: Kinds,
    marked: Marked,
    /// Sums of what is not in `graph`.
    stacks: FxHashMap<u32, StackBlocks>,
    ways: Vec<Way>,
    asked: Option<AskedBlock>,
    /// All blocks, if they are asked for.
    objects: Option<HeapObjects>,
    runs: Vec<Range<u64>>,
    places: RootPlaces,
    swapped: u64,
    /// What is from before tracing began, if that can be told.
    before: Option<Before>,
    /// What it could not see.
    hidden: HiddenRegisters,
    /// Blocks that a word with a tag in its upper bits may hold, if that was looked for.
    tagged: Option<Vec<Block>>,
}

impl Scan {
    /// Follows the pointers.
    fn of(target: &HeapTarget, heap: ReadHeap) -> Self {
        let began = Instant::now();
        let ReadHeap { mut graph, mappings, populated, places, hidden, found, read, cost } = heap;
        graph.leave_out_chunks(&chunk_lists(target, &mappings));
        let mut kinds = Kinds::of(&graph);
        let before = Some(target.before);
        let mut marked = Marked::follow(&graph, &kinds, before);
        let is_doubtful = |block: u32| marked.classes.get(block as usize) != Some(&Class::Reachable);
        if kinds.look(target.pid, &mappings, &graph, is_doubtful) {
            marked = Marked::follow(&graph, &kinds, before);
        }
        let is_told = places.unknown.is_some();
        let before = is_told.then(|| {
            let mut before = Before::of(&graph, &marked, target.before, places.free);
            let blocks = graph.blocks().iter().filter(|block| block.stack == target.before);
            before.kinds = BlockKinds::of(target.pid, &mappings, blocks, before.count as usize);
            before
        });
        debug!(
            "process {}: {} pointers in {} blocks and {} at roots; {found:.0?} for the roots, {:.0?} to read, \
             with {:.0} ms of CPU a reader ({} bytes could not be), {:.0?} to follow",
            target.pid,
            graph.count_pointers(),
            graph.len(),
            graph.roots.len(),
            read.saturating_sub(found),
            cost.reader_cpu.as_secs_f64() * 1000.0,
            cost.unread,
            began.elapsed()
        );
        let ways = ways(&graph, &marked, target.before);
        let asked = target.asked.and_then(|address| asked(&graph, &marked, address, target.before));
        let objects = target.wants_objects.then(|| HeapObjects::of(&graph));
        if matches!(objects, Some(None)) {
            warn!("--perfetto: no graph of process {}: it has too many blocks ({})", target.pid, graph.len());
        }
        let (runs, swapped) = (populated.runs, populated.swapped);
        let mut scan = Self {
            graph,
            kinds,
            marked,
            stacks: FxHashMap::default(),
            ways,
            asked,
            objects: objects.flatten(),
            runs,
            places,
            swapped,
            before,
            hidden,
            tagged: None,
        };
        scan.add_up(target.before);
        scan
    }

    /// Adds up what is held for sure, and forgets it, but for what circles may be of.
    fn add_up(&mut self, before: u32) {
        let lost_before = self.lost_before();
        let mut kept = Vec::new();
        for (number, block) in (0..).zip(self.graph.blocks().iter()) {
            let is_held = self.class(number) == Class::Reachable && !lost_before.contains(&number);
            if !is_held || self.marked.by(&self.graph, number).is_doubtful() {
                kept.push(number);
            } else if block.stack != before {
                StackBlocks::add(&mut self.stacks, Class::Reachable, block);
            }
        }
        let roots = self.marked.retain(&kept);
        self.graph.retain(&kept, &roots);
    }

    /// What is lost from before tracing began.
    fn lost_before(&self) -> FxHashSet<u32> {
        let lost_before = self.before.iter().flat_map(|before| &before.lost);
        lost_before.filter_map(|block| self.graph.blocks().number_of(block)).collect()
    }

    fn class(&self, number: u32) -> Class {
        self.marked.classes.get(number as usize).copied().unwrap_or(Class::Reachable)
    }

    /// The blocks that nothing holds for sure, by their numbers, in order.
    fn loose(&self) -> Vec<u32> {
        let lost_before = self.lost_before();
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
        let prepared = Surveyed::of(target, sight, None)?;
        let Surveyed { mappings, populated, blocks, places, registers, took } = prepared;
        let began = Instant::now();
        let loose = self.loose();
        let mut there = Vec::new();
        for number in loose {
            let Some(block) = self.graph.blocks().get(number as usize) else { continue };
            match blocks.number_of(&block) {
                Some(_) => there.push(number),
                // What is gone was held by who has freed it.
                None => _ = self.improve(number, Class::Reachable),
            }
        }
        let asked = there.iter().filter_map(|number| self.graph.blocks().get(*number as usize)).collect();
        let runs = &populated.runs;
        let others = Some(&blocks);
        let from = Sources { pid: target.pid, is_stopped: false, places: &places, runs, others };
        let (mut graph, _) = Graph::read(BlockIndex::new(asked), &from)?;
        let read = began.elapsed();
        let hidden = hidden_registers(target, &places, &registers, &mappings);
        self.tagged = Some(in_use(&graph.tagged, graph.blocks(), &blocks, &places));
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
                let number = graph.blocks().number_of(block);
                number.is_some_and(|number| !marked.is_reached(number))
            };
            is_better |= before.retain_lost(is_lost);
            before.count(blocks.iter().filter(|block| block.stack == target.before), places.free);
        }
        debug!(
            "process {}: {} of {} blocks looked for again; {took:.0?} for the roots, {read:.0?} to read",
            target.pid,
            there.len(),
            blocks.len()
        );
        self.swapped = self.swapped.max(populated.swapped);
        Ok((is_better, hidden))
    }

    /// What is gone by now was held by who has freed it. `left`: the blocks that there are, in any
    /// order.
    fn forget_gone(&mut self, left: &HeapBlocks, before: u32) {
        let numbers = self.loose().into_iter();
        let known = numbers.filter_map(|number| Some((number, self.graph.blocks().get(number as usize)?)));
        let mut gone: FxHashMap<u64, (u32, Block)> = known
            .filter(|(_, block)| block.stack != before)
            .map(|(number, block)| (block.start, (number, block)))
            .collect();
        for block in left.iter() {
            if let Entry::Occupied(entry) = gone.entry(block.start)
                && entry.get().1.is_same(&block)
            {
                entry.remove();
            }
        }
        for (number, _) in gone.into_values() {
            self.improve(number, Class::Reachable);
        }
    }

    /// A lost block whose address is somewhere with other bits in its upper 16 (a tag) may be held
    /// by that. `now`: gives the blocks that there are, in any order.
    fn find_tagged(&mut self, pid: u32, now: impl FnOnce() -> io::Result<HeapBlocks>) -> io::Result<()> {
        let held = match self.tagged.take() {
            Some(held) => held,
            None => {
                let numbered = (0..).zip(self.graph.blocks().iter());
                let lost = numbered.filter(|(number, _)| self.class(*number) == Class::Definitely);
                let index = BlockIndex::new(lost.map(|(_, block)| block).collect());
                let mut found = Vec::new();
                let find = |start: u64, words: &[u64]| tagged_in(&index, start, words);
                read_all(pid, false, &self.runs, find, |piece| found.extend(piece))?;
                if found.is_empty() {
                    return Ok(());
                }
                let mut now = now()?;
                now.sort();
                in_use(&found, index.blocks(), &now, &self.places)
            }
        };
        for block in held {
            match self.graph.blocks().number_of(&block) {
                Some(number) if self.class(number) == Class::Definitely => self.hold_doubtfully(number),
                _ => {}
            }
        }
        Ok(())
    }

    fn has_lost(&self) -> bool {
        self.marked.classes.contains(&Class::Definitely)
    }

    /// This block, and what it leads to, may be held.
    fn hold_doubtfully(&mut self, block: u32) {
        let mut queue = vec![block];
        while let Some(block) = queue.pop() {
            let Some(class) = self.marked.classes.get_mut(block as usize) else { continue };
            if *class < Class::Possibly {
                *class = Class::Possibly;
                queue.extend(self.graph.pointers(block).map(|pointer| pointer.to));
            }
        }
    }

    /// What has come of it. `told`: how it was looked at.
    fn end(self, target: &HeapTarget, (scans, stopped): (u32, Duration), unread_bytes: u64) -> Examined {
        let mut circles = circles::find(&self.graph, &self.kinds, &self.marked);
        circles.iter_mut().for_each(|circle| circle.sample.read_heads(target.pid));
        let numbered = (0..).zip(self.graph.blocks().iter());
        let of_graph: Vec<(Block, Class)> =
            numbered.map(|(number, block)| (block, self.class(number))).collect();
        let class_of = |block: &Block| {
            let at = of_graph.binary_search_by_key(&block.start, |(known, _)| known.start);
            at.ok().and_then(|at| of_graph.get(at)).map_or(Class::Reachable, |(_, class)| *class)
        };
        let Self { mut stacks, mut ways, mut asked, objects, before, .. } = self;
        ways.retain(|way| class_of(&way.block) == Class::Reachable);
        if let Some(asked) = &mut asked {
            asked.class = class_of(&asked.block);
        }
        // What was there before is told by itself.
        let told = || of_graph.iter().filter(|(block, _)| block.stack != target.before);
        told().for_each(|(block, class)| StackBlocks::add(&mut stacks, *class, *block));
        let is_loose = |(_, class): &&(Block, Class)| *class != Class::Reachable;
        let loose = told().filter(is_loose).map(|(block, class)| (block.start, *class)).collect();
        Examined { scans, stopped, stacks, loose, unread_bytes, before, circles, ways, asked, objects }
    }
}

/// Of what words with a tag would point to (their places, and numbers in `to`) that for which such
/// a word is at a root, or in another block of `now`.
fn in_use(tagged: &[(u64, u32)], to: &HeapBlocks, now: &HeapBlocks, places: &RootPlaces) -> Vec<Block> {
    let unknown = places.unknown.as_deref().unwrap_or_default();
    let is_in_use = |place: u64| {
        if let Some((_, block)) = now.at(place) {
            return to.number_of(&block).is_none();
        }
        let area = places.areas.partition_point(|area| area.range.end <= place);
        let before = unknown.partition_point(|range| range.end <= place);
        places.areas.get(area).is_some_and(|area| area.range.start <= place)
            || unknown.get(before).is_some_and(|range| range.start <= place)
    };
    let held = tagged.iter().filter(|(place, _)| is_in_use(*place));
    held.filter_map(|(_, block)| to.get(*block as usize)).collect()
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
    let Looks { mut scan, scans, stopped, hidden, now } = looks;
    let unread_bytes = scan.swapped;
    if unread_bytes > 0 {
        // What is in swap may point to it.
        scan.marked.classes.iter_mut().for_each(|class| *class = (*class).max(Class::Possibly));
    }
    if scan.has_lost() {
        let now = || now.map_or_else(|| Ok(again()?.blocks), Ok);
        scan.find_tagged(target.pid, now)?;
    }
    scan.marked.split_lost(&scan.graph);
    let held = maybe_held(&scan.graph, &scan.marked, &hidden, ips_of);
    held.into_iter().for_each(|block| scan.hold_doubtfully(block));
    Ok(scan.end(target, (scans, stopped), unread_bytes))
}

/// What the looks have in common.
struct Looks {
    scan: Scan,
    scans: u32,
    stopped: Duration,
    /// What each of them could not see.
    hidden: Vec<HiddenRegisters>,
    /// The blocks that there were after them, in any order, if that was asked for.
    now: Option<HeapBlocks>,
}

/// Looks three times while the process runs, and more often if blocks turn up that were lost: their
/// pointers move.
fn look_repeatedly(
    target: &HeapTarget,
    first: Sight,
    again: &mut dyn FnMut() -> io::Result<Sight>,
) -> io::Result<Looks> {
    let began = Instant::now();
    let mut scan = Scan::of(target, ReadHeap::of(target, first, None)?);
    let mut hidden = vec![std::mem::take(&mut scan.hidden)];
    let (mut scans, mut quiet) = (1, 1);
    while scans < SCANS || (quiet < SCANS && scans < MOST_SCANS && began.elapsed() < LONGEST) {
        // What does not change shall have time to: a look at a small heap takes a millisecond.
        thread::sleep(BETWEEN);
        let found = scan.look_again(target, again()?)?;
        scans += 1;
        quiet = if found.0 { 0 } else { quiet + 1 };
        hidden.push(found.1);
    }
    scan.forget_gone(&again()?.blocks, target.before);
    // The last look has found words with tags: nobody asks for the blocks again.
    Ok(Looks { scan, scans, stopped: Duration::ZERO, hidden, now: None })
}

/// Looks at a process that is stopped, and will not run any more.
fn look_once(target: &HeapTarget, first: Sight, stopped: &Arc<StoppedProcess>) -> io::Result<Looks> {
    let heap = ReadHeap::of(target, first, Some(stopped.clone()))?;
    let stopped = heap.read;
    Ok(Looks { stopped, scan: Scan::of(target, heap), scans: 0, hidden: Vec::new(), now: None })
}

/// Looks once while the process is stopped, if that takes no longer than it may. Some of it is
/// looked at before while it runs, to know how long that is.
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
    let mut estimate = ReadHeap::estimate(target, first)?;
    let began = Instant::now();
    let mut sight = again()?.sorted();
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
        sight = again()?.sorted();
    }
    let reached = began.elapsed();
    let heap = ReadHeap::of(target, sight, Some(Arc::new(stopped)))?;
    let stopped = reached + heap.read;
    let (mut scan, mut now) = (Scan::of(target, heap), None);
    if walks_chunks {
        let left = again()?.blocks;
        scan.forget_gone(&left, target.before);
        now = Some(left);
    }
    Ok(Looks { stopped, scan, scans: 0, hidden: Vec::new(), now })
}

#[cfg(test)]
mod tests;
