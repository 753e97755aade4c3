//! What is known of a process at the beginning of a look, and all its pointers, read.

use std::{
    io,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Block,
    blocks::HeapBlocks,
    graph::{Graph, Sources},
    hidden::HiddenRegisters,
    index::BlockIndex,
    look::{Populated, ReadCost, populated, sample},
    registers::{Asleep, RegisterSource},
    roots::{self, RootSource},
};
use crate::{
    account::Allocators,
    objects::ObjectStore,
    proc::{
        maps::{Mapping, read_maps},
        stacks::ThreadRegisters,
        stop::StoppedProcess,
    },
};

/// What is known of a process's blocks at one moment.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    /// Its blocks, in any order.
    pub blocks: HeapBlocks,
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
    /// Who can be asked for registers while it runs.
    pub registers: RegisterSource,
    /// It may be stopped once, for so long, and is not looked at three times.
    pub max_pause: Option<Duration>,
    /// It is stopped, and is looked at once.
    pub(crate) stopped: Option<Arc<StoppedProcess>>,
    /// The number of the stack of what was there before tracing began.
    pub before: u32,
    /// An address of which the block is asked for.
    pub asked: Option<u64>,
    /// All of its blocks are asked for, with their pointers.
    pub wants_objects: bool,
}

impl Sight {
    /// The blocks are in order from now on.
    pub(super) fn sorted(mut self) -> Self {
        self.blocks.sort();
        self
    }
}

/// What is known before the memory is read.
pub(super) struct Surveyed {
    pub(super) mappings: Vec<Mapping>,
    pub(super) populated: Populated,
    /// In order.
    pub(super) blocks: HeapBlocks,
    pub(super) places: roots::RootPlaces,
    /// Registers at its beginning.
    pub(super) registers: Vec<ThreadRegisters>,
    pub(super) took: Duration,
}

impl Surveyed {
    pub(super) fn of(
        target: &HeapTarget,
        sight: Sight,
        stopped: Option<&StoppedProcess>,
    ) -> io::Result<Self> {
        let began = Instant::now();
        let mappings = read_maps(target.pid)?;
        if mappings.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        let populated = populated(target.pid, &mappings)?;
        let Sight { mut blocks, own, mapped } = sight.sorted();
        // They are not asked for before a stop: that look is to take as long as the one after.
        let registers = match target.max_pause {
            None if stopped.is_none() => target.registers.read(target.pid),
            _ => Vec::new(),
        };
        let source = RootSource {
            pid: target.pid,
            mappings: &mappings,
            store: &target.store,
            allocators: target.allocators,
            from_start: target.from_start,
            own: &own,
            mapped: &mapped,
            blocks: &blocks,
            runs: &populated.runs,
            stopped: stopped.map(|stopped| stopped.threads.as_slice()),
            registers: &registers,
        };
        let places = roots::find(&source)?;
        if let Some(unknown) = places.unknown.as_deref().filter(|unknown| !unknown.is_empty()) {
            let block = |range: &Range<u64>| Block {
                start: range.start,
                size: range.end - range.start,
                birth: 0,
                stack: target.before,
            };
            blocks.extend(unknown.iter().map(block));
            blocks.sort();
        }
        Ok(Self { mappings, populated, blocks, places, registers, took: began.elapsed() })
    }
}

/// What a look could not see that has begun with these registers, and ends now.
pub(super) fn hidden_registers(
    target: &HeapTarget,
    places: &roots::RootPlaces,
    before: &[ThreadRegisters],
    mappings: &[Mapping],
) -> HiddenRegisters {
    if target.max_pause.is_some() {
        return HiddenRegisters::default();
    }
    let after = if before.is_empty() { Vec::new() } else { target.registers.read(target.pid) };
    let asleep = Asleep::of(before, &after);
    HiddenRegisters::of(target.pid, &places.threads, &asleep, mappings, &target.store)
}

/// All pointers of a process, not followed yet.
pub(super) struct ReadHeap {
    pub(super) graph: Graph,
    pub(super) mappings: Vec<Mapping>,
    pub(super) populated: Populated,
    pub(super) places: roots::RootPlaces,
    pub(super) hidden: HiddenRegisters,
    /// What finding the roots took, and all of it.
    pub(super) found: Duration,
    pub(super) read: Duration,
    pub(super) cost: ReadCost,
}

impl ReadHeap {
    /// How long [`Self::of`] will take: by a part of the memory, if there is much of it.
    pub(super) fn estimate(target: &HeapTarget, sight: Sight) -> io::Result<Duration> {
        let began = Instant::now();
        let prepared = Surveyed::of(target, sight, None)?;
        let Surveyed { populated, blocks, places, .. } = prepared;
        let index = BlockIndex::new(blocks);
        let prepared = began.elapsed();
        let (runs, times) = sample(&populated.runs);
        let from = Sources { pid: target.pid, is_stopped: false, places: &places, runs: &runs, others: None };
        Graph::read(index, &from)?;
        Ok(prepared + began.elapsed().saturating_sub(prepared).mul_f64(times))
    }

    /// Reads a process's memory. If it is `stopped`, and nobody else keeps it so, it is let go
    /// then.
    pub(super) fn of(
        target: &HeapTarget,
        sight: Sight,
        stopped: Option<Arc<StoppedProcess>>,
    ) -> io::Result<Self> {
        let began = Instant::now();
        let prepared = Surveyed::of(target, sight, stopped.as_deref())?;
        let Surveyed { mappings, populated, blocks, places, registers, took: found } = prepared;
        let runs = &populated.runs;
        let from =
            Sources { pid: target.pid, is_stopped: stopped.is_some(), places: &places, runs, others: None };
        let (graph, cost) = Graph::read(BlockIndex::new(blocks), &from)?;
        let was_stopped = stopped.is_some();
        drop(stopped);
        let read = began.elapsed();
        let hidden = match was_stopped {
            true => HiddenRegisters::default(),
            false => hidden_registers(target, &places, &registers, &mappings),
        };
        Ok(Self { graph, mappings, populated, places, hidden, found, read, cost })
    }
}
