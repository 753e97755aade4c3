//! `--why`: the targets' heaps, looked at while they live.

use std::{borrow::Cow, collections::HashMap, io, ops::Range, sync::Arc, time::Instant};

use log::{debug, info, warn};
use memleak_common::probe::Resource;
use rustc_hash::FxHashMap;

use super::{
    SessionError,
    accounts::allocators,
    examined::{Examinations, ExaminedHeap, KindsBefore},
    follow::Birth,
    reporter::Taken,
    state::{Mode, Session},
};
use crate::{
    heap::{Block, Examined, HeapTarget, RegisterSource, Sight, TypeAt, TypeNames, examine},
    hurry,
    proc::{maps::read_maps, ptrace::explained, stacks::places, stop::StoppedProcess},
    report::format::perfetto,
    sampling::Sampling,
    settings::{TargetSpec, WhyMode, WhyOf},
    snapshot::{Outstanding, Snapshot, own::Own},
    targets::Traced,
};

/// Stands for the stacks of what was there before tracing began: no stack has this id.
const BEFORE: u64 = u64::MAX;

/// Numbers for the stacks.
#[derive(Default)]
struct Numbers {
    stacks: Vec<(u32, u64)>,
    known: FxHashMap<(u32, u64), u32>,
}

impl Numbers {
    fn of(&mut self, space: u32, stack_id: u64) -> u32 {
        *self.known.entry((space, stack_id)).or_insert_with(|| {
            self.stacks.push((space, stack_id));
            self.stacks.len() as u32 - 1
        })
    }

    /// What is known of an address space. Of what is used up the memory becomes that of the blocks.
    fn sight(&mut self, outstanding: Cow<'_, [Outstanding]>, own: &Own, space: u32) -> Sight {
        let (own, mapped) = (ranges(&own.0, space), ranges(&outstanding, space));
        let is_block = |it: &Outstanding| it.space == space && it.resource == Resource::Heap;
        let blocks = match outstanding {
            Cow::Borrowed(all) => all.iter().filter(|it| is_block(it)).map(|it| self.block(it)).collect(),
            Cow::Owned(all) => all.into_iter().filter(is_block).map(|it| self.block(&it)).collect(),
        };
        Sight { blocks, own, mapped }
    }

    fn block(&mut self, it: &Outstanding) -> Block {
        Block { start: it.address, size: it.size, birth: it.birth, stack: self.of(it.space, it.stack_id) }
    }
}

/// The mappings of an address space.
fn ranges(all: &[Outstanding], space: u32) -> Vec<Range<u64>> {
    let is_range = |it: &&Outstanding| it.space == space && it.resource == Resource::Mmap;
    all.iter().filter(is_range).map(|it| it.address..it.address.saturating_add(it.size)).collect()
}

impl Session {
    /// Looks at the heaps of all targets that live, if this report is to say why. What cannot be
    /// looked at is told, and left out. The records of what was taken are used up: there may be
    /// millions, and looking needs memory.
    pub(super) fn examine(&mut self, taken: &mut Taken, is_final: bool) -> Option<Examinations> {
        self.settings.why.as_ref().filter(|why| why.is_due(self.reporter.reports + 1, is_final))?;
        let others_live = |pid: u32| self.targets.living().any(|(_, traced)| traced.id.pid != pid);
        if is_final && self.at_end.as_ref().is_some_and(|(pid, _)| !others_live(*pid)) {
            return self.at_end.take().map(|(_, found)| found);
        }
        self.examine_all(&mut taken.snapshot, &taken.own, None)
    }

    /// The command is about to end, and is stopped: it is looked at for the last report.
    pub(super) fn ending(&mut self, birth: &Birth) {
        let Some(stopped) = &birth.stopped else { return };
        let Mode::User(mode) = &self.mode else { return };
        let pid = birth.event.tid;
        if mode.command.as_ref().is_none_or(|command| command.id() != pid) {
            return; // a child of its
        }
        let looked =
            self.now().map(|(mut snapshot, own)| self.examine_all(&mut snapshot, &own, Some((pid, stopped))));
        match looked {
            Ok(found) => self.at_end = found.map(|found| (pid, found)),
            Err(error) => warn!("--why: cannot look at the command before it ends: {error}"),
        }
    }

    /// All that is outstanding, without what allocators have for themselves.
    fn now(&mut self) -> Result<(Snapshot, Own), SessionError> {
        let began = Instant::now();
        // What it has mapped and unmapped since comes first.
        let _ = self.take_events_before_report()?; // nobody reads: it ends soon
        let mut snapshot = self.tracer.snapshot(None)?;
        let own = self.take_out_own(&mut snapshot);
        debug!("read the table again in {:.0?}", began.elapsed());
        Ok((snapshot, own))
    }

    /// Looks at the heaps of all targets that live, or of one that is stopped. Uses up the records.
    fn examine_all(
        &mut self,
        snapshot: &mut Snapshot,
        own: &Own,
        stopped: Option<(u32, &Arc<StoppedProcess>)>,
    ) -> Option<Examinations> {
        let why = self.settings.why.as_ref()?;
        let max_pause = (why.mode == WhyMode::Exact).then_some(why.max_pause);
        let asked = match why.of {
            Some(WhyOf::Address(address)) => Some(address),
            Some(WhyOf::Type(_)) | None => None,
        };
        let wants_objects = self.settings.report.files.iter().any(|file| file.kind == perfetto::KIND);
        let mut spaces: Vec<(u32, HeapTarget)> = Vec::new();
        let mut numbers = Numbers::default();
        let Mode::User(mode) = &self.mode else { return None };
        let is_meant = |traced: &&Traced| stopped.is_none_or(|(pid, _)| pid == traced.id.pid);
        for traced in self.targets.living().map(|(_, traced)| traced).filter(is_meant) {
            let space = traced.owner.space;
            if !spaces.iter().any(|(known, _)| *known == space) {
                let (pid, allocators, store) = (traced.id.pid, allocators(traced), mode.store.clone());
                let before = numbers.of(space, BEFORE);
                // An allocator that comes with another program is probed when that has begun.
                let from_start = self.is_known_from_start() && self.targets.process_of(space) == Some(space);
                spaces.push((
                    space,
                    HeapTarget {
                        pid,
                        allocators,
                        store,
                        from_start,
                        registers: self.registers(),
                        max_pause,
                        stopped: stopped.map(|(_, stopped)| stopped.clone()),
                        before,
                        asked,
                        wants_objects,
                    },
                ));
            }
        }
        if spaces.is_empty() {
            warn!(
                "--why: the target has ended, and its memory with it, and not by exit(3) or _exit(2), before which it \
                 would have been looked at: look at it while it runs, with --why-every 1 and a short INTERVAL"
            );
            return None;
        }
        let began = Instant::now();
        let mut heaps = Vec::new();
        // Nobody is to take it for what is outstanding.
        (snapshot.version, snapshot.blocks) = (None, 0);
        let mut left = spaces.len();
        for (space, target) in spaces {
            left -= 1;
            let outstanding = match left {
                0 => Cow::Owned(std::mem::take(&mut snapshot.outstanding)),
                _ => Cow::Borrowed(snapshot.outstanding.as_slice()),
            };
            let first = numbers.sight(outstanding, own, space);
            let known = numbers.stacks.clone();
            let ips_of = |number: u32| {
                let id = known.get(number as usize).map(|(_, stack_id)| stack_id);
                let stack = id.and_then(|id| snapshot.stacks.get(id));
                stack.map(|stack| stack.ips.clone()).unwrap_or_default()
            };
            let look = || self.examine_one(space, &target, first, &mut numbers, &ips_of);
            let looked = hurry::without_counting(look);
            match looked {
                Ok(heap) => heaps.push(heap),
                Err(error) => warn!(
                    "--why: cannot look at the memory of process {}: {}; the report says nothing of it",
                    target.pid,
                    explained(error)
                ),
            }
        }
        if heaps.is_empty() {
            return None;
        }
        info!("looked at the heap in {:.0} ms", began.elapsed().as_secs_f64() * 1000.0);
        let complete = heaps.iter().all(ExaminedHeap::is_complete);
        let of = self.settings.why.as_ref().and_then(|why| why.of.clone());
        Some(Examinations { stacks: numbers.stacks, heaps, complete, of })
    }

    fn registers(&self) -> RegisterSource {
        match self.tracer.registers() {
            Some(reader) => RegisterSource::new(move |pid| reader.read(pid)),
            None => RegisterSource::default(),
        }
    }

    fn examine_one(
        &mut self,
        space: u32,
        target: &HeapTarget,
        first: Sight,
        numbers: &mut Numbers,
        ips_of: &dyn Fn(u32) -> Vec<u64>,
    ) -> io::Result<ExaminedHeap> {
        let may_hide = target.allocators.others && !target.from_start;
        let mut again = || {
            let (snapshot, own) = self.now().map_err(io::Error::other)?;
            Ok(numbers.sight(Cow::Owned(snapshot.outstanding), &own, space))
        };
        let examined = examine(target, first, &mut again, ips_of)?;
        let types = types(target.pid, &examined).unwrap_or_default();
        let kinds_before = kinds_before(target.pid, &examined).unwrap_or_default();
        let main_stack = main_stack(target.pid).unwrap_or(0..0);
        let HeapTarget { pid, from_start, .. } = *target;
        Ok(ExaminedHeap { space, pid, examined, types, kinds_before, main_stack, may_hide, from_start })
    }

    /// Tracing began before the targets' first instruction, and all of their allocations are
    /// recorded.
    fn is_known_from_start(&self) -> bool {
        let settings = &self.settings;
        matches!(settings.target, TargetSpec::Command(_))
            && settings.report.sampling == Sampling::All
            && super::accounts::is_complete(&settings.capture)
    }
}

/// The type of a block of each stack: of one that is lost, if there is one.
fn types(pid: u32, examined: &Examined) -> io::Result<HashMap<u32, TypeAt>> {
    let mut names = TypeNames::of(pid)?;
    let samples = examined.stacks.iter().map(|(stack, blocks)| (*stack, blocks.worst.1));
    let typed = samples.filter_map(|(stack, block)| Some((stack, names.at(&block)?)));
    Ok(typed.collect())
}

/// What the blocks from before the attach are: those that are lost, and all.
fn kinds_before(pid: u32, examined: &Examined) -> io::Result<KindsBefore> {
    /// Lost blocks that are looked at.
    const MOST: usize = 1 << 20;
    let Some(before) = &examined.before else { return Ok(KindsBefore::default()) };
    let (mut names, mut kinds) = (TypeNames::of(pid)?, KindsBefore::default());
    for block in before.lost.iter().take(MOST) {
        let name = names.at(block).map(|found| found.name);
        kinds.lost.add(name, block.size, 1);
    }
    let mut known: HashMap<u64, Option<String>> = HashMap::new();
    for ((word, size), count) in &before.kinds.counts {
        let name = known.entry(*word).or_insert_with(|| names.of_vtable(*word));
        kinds.all.add(name.clone(), *size, *count);
    }
    kinds.each = before.kinds.each;
    Ok(kinds)
}

fn main_stack(pid: u32) -> Option<Range<u64>> {
    let stack = places(pid)?.stack;
    let mappings = read_maps(pid).ok()?;
    let mapping = mappings.into_iter().find(|mapping| (mapping.start..mapping.end).contains(&stack))?;
    Some(mapping.start..mapping.end)
}
