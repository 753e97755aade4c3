//! The BPF side of a run: the loaded object, its links, its ring buffer and what its programs
//! log.

use std::{
    io,
    panic::resume_unwind,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::debug;
use memleak_common::{event::Event, probe::Resource, thread::Target};
use tokio::io::unix::AsyncFd;

use super::{
    access::array_mut,
    births::Births,
    config::Config,
    cut::Epoch,
    error::{BpfError, map_error},
    growth::MovedPages,
    kernel_mode,
    links::{Outcome, Probes, Scope},
    mapped::MappedMaps,
    mapping_states::MappingStates,
    reader::Reader,
    registers::RegisterReader,
    rings::Events,
    room,
    runs::{ProgramRuns, program_runs},
    targets,
    unwind_maps::{Unwinding, has_room, words_for},
    user_mode::{self, Loaded},
};
use crate::{
    arch::returns::Unclear,
    objects::ObjectStore,
    probe::{kernel::KernelPlan, plan::AttachPoint, table::Row},
    proc::{maps::Mapping, readable::readable},
    sampling::Sampling,
    snapshot::{Snapshot, Stack, ranges::Release},
    symbolize::Target as SymbolTarget,
    target::process::PidFd,
    targets::Traced,
    unwind::{MappedObject, ProcessTables},
};

type Logger = EbpfLogger<&'static dyn log::Log>;

/// What runs in the kernel for a session. Its links end with it.
pub(crate) struct Tracer {
    ebpf: Ebpf,
    events: AsyncFd<Events>,
    log: Option<AsyncFd<Logger>>,
    probes: Probes,
    reader: Reader,
    /// `None` if stacks are walked otherwise.
    unwinding: Option<Unwinding>,
    /// `None` in kernel mode.
    mapping_states: Option<MappingStates>,
    traps_only: bool,
    registers: Option<Arc<RegisterReader>>,
}

/// A tracer of processes that has nothing attached yet.
pub(crate) struct UserStart {
    /// The tracer.
    pub tracer: Tracer,
    /// Notices of children and new programs.
    pub births: Births,
    /// Resources that tracepoints tell of: no function of the target's is probed for them.
    pub by_tracepoints: Vec<Resource>,
    /// How long the kernel took to take the programs in.
    pub took: Duration,
}

impl Tracer {
    /// Loads the programs that trace processes by these rows, and enters the unwind tables of the
    /// processes `pids`, which will be the first that are taken in; `store` opens their objects.
    pub(crate) fn of_processes(
        config: &Config,
        rows: &[Row],
        pids: impl Iterator<Item = u32>,
        store: &ObjectStore,
    ) -> Result<UserStart, BpfError> {
        let pids: Vec<u32> = if config.walks_tables() { pids.collect() } else { Vec::new() };
        let mut tables = ProcessTables::new(store.clone());
        let Prepared { objects, mut loaded, took } = match pids.is_empty() || config.memory_left.is_some() {
            true => prepare_in_turn(config, rows, &pids, &mut tables),
            false => prepare_at_once(config, rows, &pids, &mut tables),
        }?;
        let births = Births::open(&mut loaded.ebpf)?;
        // What was left out by sampling is open, too.
        let checks_descriptors = config.resources.contains(&Resource::Fd) && config.sampling == Sampling::All;
        let mut unwinding = loaded.walks_tables.then(|| Unwinding::open(&loaded.ebpf, tables)).transpose()?;
        if let Some(unwinding) = &mut unwinding {
            for (slot, objects) in &objects {
                unwinding.set(*slot, objects);
            }
        }
        let probes = Probes::new(loaded.uprobes, loaded.mends_stack);
        let rows = rows.iter().map(|row| row.probe).collect();
        let mut reader =
            Reader::new(Epoch::open(&mut loaded.ebpf)?, rows, checks_descriptors, config.stack_storage_size);
        if config.resources.contains(&Resource::Growth) {
            reader.trace_growth();
        }
        reader.set_mapped(MappedMaps::open(&loaded.ebpf, config.max_memory)?);
        let mapping_states = MappingStates::open(&loaded.ebpf)?;
        let mut tracer = Self::new(config, loaded.ebpf, loaded.events, probes, reader, unwinding)?;
        tracer.mapping_states = Some(mapping_states);
        tracer.registers = loaded.registers.map(Arc::new);
        Ok(UserStart { tracer, births, by_tracepoints: loaded.by_tracepoints, took })
    }

    /// Loads and attaches the programs of a plan for the kernel. Gives also why some functions
    /// could not be probed.
    pub(crate) fn of_kernel(config: &Config, plan: &KernelPlan) -> Result<(Self, Vec<BpfError>), BpfError> {
        let mut loaded = kernel_mode::load(config, plan)?;
        let reader = Reader::of_kernel(Epoch::open(&mut loaded.ebpf)?, config.stack_storage_size);
        let tracer = Self::new(config, loaded.ebpf, loaded.events, loaded.probes, reader, None)?;
        Ok((tracer, loaded.failed))
    }

    fn new(
        config: &Config,
        mut ebpf: Ebpf,
        events: Events,
        probes: Probes,
        reader: Reader,
        unwinding: Option<Unwinding>,
    ) -> Result<Self, BpfError> {
        let log = (config.verbosity > 0).then(|| logger(&mut ebpf)).flatten();
        let events = readable(events).map_err(|error| map_error("EVENTS", &error))?;
        let (mapping_states, traps_only) = (None, config.traps_only);
        let registers = None;
        Ok(Self { ebpf, events, log, probes, reader, unwinding, mapping_states, traps_only, registers })
    }

    /// Makes the process `pid` known to the programs, in this slot. `end` is readable when it has
    /// ended.
    pub(crate) fn add_target(
        &mut self,
        slot: u32,
        pid: u32,
        target: Target,
        end: &PidFd,
    ) -> Result<(), BpfError> {
        self.reader.add_target(target.owner, pid, end);
        targets::enter(&mut self.ebpf, slot, pid, target)
    }

    /// The process with this slot has ended, and with it these owners. [`Self::clear`] is to be
    /// called some time.
    pub(crate) fn owners_ended(&mut self, slot: u32, owners: &[u32]) {
        if let Some(unwinding) = &mut self.unwinding {
            unwinding.remove(slot);
        }
        self.reader.ended(owners);
    }

    /// The programs know the process `pid`, which had this slot, no longer.
    pub(crate) fn forget_pid(&mut self, slot: u32, pid: u32) -> Result<(), BpfError> {
        targets::forget_pid(&mut self.ebpf, slot, pid)
    }

    /// Ends what was attached to a process that has ended: [`Self::freed`] will give its slot.
    pub(crate) fn release_slot(&mut self, slot: u32) {
        self.probes.release(slot);
    }

    /// A process goes on untraced: nothing is counted of it from here on. Its links end later.
    pub(crate) fn silence(&mut self, slot: u32) -> Result<(), BpfError> {
        targets::silence(&mut self.ebpf, slot)
    }

    /// Ends what is attached to the process with this slot, and waits until it has.
    pub(crate) fn end_probes(&mut self, slot: u32) {
        self.probes.end(slot);
    }

    /// Waits until all links have ended that are to end.
    pub(crate) fn finish_closing(&mut self) {
        self.probes.finish_closing();
    }

    /// Slots that nothing names any more, since this was last asked, each with what the programs
    /// had there.
    pub(crate) fn freed(&mut self) -> Result<Vec<(u32, Target)>, BpfError> {
        let closed = self.probes.closed();
        targets::forget_slots(&mut self.ebpf, &closed)?;
        closed.into_iter().map(|slot| Ok((slot, targets::remove(&mut self.ebpf, slot)?))).collect()
    }

    /// Gives a child the probes and the unwind tables of the process that has made it. Says whether
    /// the probes are all in.
    pub(crate) fn inherit(&mut self, parent: u32, child: Scope) -> Result<bool, BpfError> {
        // Tables first: it walks as soon as it runs.
        if let Some(unwinding) = &mut self.unwinding {
            unwinding.inherit(parent, child.slot);
        }
        let is_whole = self.probes.inherit(&mut self.ebpf, parent, child, self.traps_only)?;
        if !is_whole {
            self.probes.forget(child.slot);
        }
        Ok(is_whole)
    }

    /// A process has replaced its program, and owns what it acquires by other numbers from now on:
    /// see [`Reader::replaced`]. `by_another_thread`: by another than its first, so that it is
    /// another task, to which nothing is attached; the old links are waited for, since they fire
    /// for it wherever others have put a breakpoint: both tasks are of one thread group
    /// (kernel/trace/bpf_trace.c, `same_thread_group`), and calls would come twice. [`Self::clear`]
    /// is to be called some time.
    pub(crate) fn program_replaced(&mut self, traced: &Traced, old: Option<u32>, by_another_thread: bool) {
        if by_another_thread {
            self.probes.end(traced.slot);
        }
        self.reader.replaced(traced.id.pid, traced.owner, old);
        if let Some(unwinding) = &mut self.unwinding {
            unwinding.forget(traced.slot);
        }
    }

    /// Brings the unwind tables of the process with this slot up to date with what it has mapped.
    pub(crate) fn observe(&mut self, slot: u32, mappings: &[Mapping], target: &dyn SymbolTarget) {
        // One that has ended has nothing mapped; its last stacks have been walked.
        if let Some(unwinding) = &mut self.unwinding
            && !mappings.is_empty()
        {
            unwinding.observe(slot, mappings, target);
        }
    }

    /// The generation of what is mapped in an address space: what is read between two equal answers
    /// was mapped all that time, or came meanwhile.
    pub(crate) fn generation(&self, space: u32) -> u64 {
        self.mapping_states.as_ref().map_or(0, |states| states.generation(space))
    }

    /// Something was unmapped in an address space of which nobody has told.
    pub(crate) fn end_generation(&self, space: u32) {
        if let Some(states) = &self.mapping_states {
            states.end_generation(space);
        }
    }

    /// A process that lives in `parent` has made one that lives in `child`.
    pub(crate) fn inherit_mappings(&self, parent: u32, child: u32) {
        if let Some(states) = self.mapping_states.as_ref().filter(|_| parent != child) {
            states.inherit(parent, child);
        }
    }

    /// Has the programs ask the dynamic linker what it is doing, once it is known where (`find`:
    /// the address of its `struct r_debug`).
    pub(crate) fn find_dynamic_linker(&self, space: u32, find: impl FnOnce() -> Option<u64>) {
        if let Some(states) = &self.mapping_states
            && states.debug(space) == 0
            && let Some(address) = find()
        {
            states.set_debug(space, address);
        }
    }

    /// What is new of the unwind tables, in words.
    pub(crate) fn unwinding_news(&mut self) -> Option<String> {
        self.unwinding.as_mut()?.news()
    }

    /// Probes of a process do not fire for another that shares its memory
    /// (kernel/trace/bpf_trace.c, `uprobe_prog_run`); perf's do (kernel/trace/trace_uprobe.c,
    /// `uprobe_perf_filter`).
    pub(crate) fn tells_sharers_apart(&self) -> bool {
        self.probes.are_of_threads()
    }

    /// See [`Probes::makes_events`]. Not in kernel mode, in which nothing is attached later.
    pub(crate) fn makes_events(&self) -> bool {
        self.mapping_states.is_some() && self.probes.makes_events()
    }

    /// See [`Probes::depends_on`].
    pub(crate) fn depends_on(&self, slot: u32) -> Option<u32> {
        self.probes.depends_on(slot)
    }

    /// See [`Probes::attach_anew`].
    pub(crate) fn attach_anew(&mut self, scope: Scope) -> Result<Outcome, BpfError> {
        self.probes.attach_anew(&mut self.ebpf, scope, self.traps_only)
    }

    /// See [`Probes::mends_stack`].
    pub(crate) fn mends_stack(&self) -> bool {
        self.probes.mends_stack()
    }

    /// See [`Probes::dangers`].
    pub(crate) fn dangers<'a>(
        &self,
        points: &'a [AttachPoint],
    ) -> impl Iterator<Item = (&'a AttachPoint, Unclear)> {
        self.probes.dangers(points)
    }

    /// Attaches what is not attached yet, in the plan's order.
    pub(crate) fn attach(&mut self, scope: Scope, points: &[AttachPoint]) -> Result<Outcome, BpfError> {
        self.probes.attach(&mut self.ebpf, scope, points, self.traps_only)
    }

    /// Number of probes.
    pub(crate) fn probes(&self) -> usize {
        self.probes.len()
    }

    /// Ends all links, and waits until the last one has. Gives how many there were and how long it
    /// took.
    pub(crate) fn detach(&mut self) -> Option<(usize, Duration)> {
        let count = self.probes.len();
        (count > 0).then(|| (count, self.probes.detach()))
    }

    /// Waits until there may be events to take, if `for_events`; passes on what the programs log
    /// meanwhile.
    pub(crate) async fn ready(&mut self, for_events: bool) -> io::Result<()> {
        if for_events && self.events.get_ref().has_passed_over() {
            return Ok(());
        }
        loop {
            tokio::select! {
                biased;
                ready = self.events.readable_mut(), if for_events => {
                    ready?.clear_ready();
                    return Ok(());
                }
                () = flush_log(&mut self.log) => {}
            }
        }
    }

    /// The next event that is not a line of `-t`.
    pub(crate) fn next_event(&mut self) -> Option<Event> {
        self.events.get_mut().next_control()
    }

    /// The next line of `-t`.
    pub(crate) fn next_line(&mut self) -> Option<Event> {
        self.events.get_mut().next_line()
    }

    /// Answers all notices of new mappings up to this time: threads that wait for it go on.
    pub(crate) fn answer(&mut self, time_ns: u64) -> Result<(), BpfError> {
        const MAP: &str = "ANSWERED";
        array_mut(&mut self.ebpf, MAP)?.set(0, time_ns, 0).map_err(|error| map_error(MAP, &error))
    }

    /// Programs have found the table of heap blocks full.
    pub(crate) fn overflow(&mut self) {
        self.reader.overflow(&self.ebpf);
    }

    /// Pages of memory are somewhere else now.
    pub(crate) fn moved(&mut self, pages: &MovedPages) -> Result<(), BpfError> {
        self.reader.moved(&self.ebpf, pages)
    }

    /// A range was released.
    pub(crate) fn released(&mut self, release: &Release) {
        self.reader.released(release);
    }

    /// Uses up the releases of ranges between two reports, if so many have come that they weigh.
    pub(crate) fn apply_releases(&mut self) -> Result<(), BpfError> {
        self.reader.apply_releases(&self.ebpf, self.events.get_mut())
    }

    /// Takes the records out of the kernel's table that nobody can release any more.
    pub(crate) fn clear(&mut self) -> Result<(), BpfError> {
        self.reader.clear(&self.ebpf, self.events.get_mut())
    }

    /// What processes held that ended long ago, if it is too much to be kept here: see
    /// [`crate::targets::Ended::take_old`].
    pub(crate) fn take_old_ended(&mut self) -> Option<Snapshot> {
        self.reader.take_old_ended()
    }

    /// Owners that have ended and hold nothing: nothing needs to be known of them any more.
    pub(crate) fn take_released(&mut self) -> Vec<u32> {
        self.reader.take_released()
    }

    /// One stack.
    pub(crate) fn stack(&mut self, id: u64) -> Result<Option<&Stack>, BpfError> {
        self.reader.stack(&self.ebpf, id)
    }

    /// When [`Self::collect_stacks`] is to be called; `None` while there is room for stacks.
    pub(crate) fn collection_due(&self) -> Result<Option<Instant>, BpfError> {
        self.reader.collection_due(&self.ebpf)
    }

    /// Removes stacks that nothing refers to.
    pub(crate) fn collect_stacks(&mut self) -> Result<(), BpfError> {
        self.reader.collect_stacks(&self.ebpf, self.events.get_mut())
    }

    /// Everything that was outstanding at one moment, the present one. What was told before of
    /// processes is known of them. `last`: see [`Reader::snapshot`].
    pub(crate) fn snapshot(&mut self, last: Option<Snapshot>) -> Result<Snapshot, BpfError> {
        self.reader.snapshot(&self.ebpf, &self.probes, self.events.get_mut(), last)
    }

    /// The last report is being made.
    pub(crate) fn end_soon(&mut self) {
        self.reader.end_soon();
    }

    /// Reads registers of threads, if that was asked for and the kernel can.
    pub(crate) fn registers(&self) -> Option<Arc<RegisterReader>> {
        self.registers.clone()
    }

    /// What the kernel has counted of our programs.
    pub(crate) fn program_runs(&self) -> Result<Vec<ProgramRuns>, BpfError> {
        program_runs(&self.ebpf, &self.probes)
    }

    /// A snapshot is done with: its memory serves the next one.
    pub(crate) fn give_back(&mut self, snapshot: Snapshot) {
        self.reader.give_back(snapshot.outstanding);
    }
}

/// The programs, and unwind tables for the first processes.
struct Prepared {
    /// Executable mappings with their tables, by slot.
    objects: Vec<(u32, Vec<MappedObject>)>,
    loaded: Loaded,
    /// How long the kernel took to take the programs in.
    took: Duration,
}

/// Makes the tables first: the size of an array is set when it is made, and there may be little
/// room.
fn prepare_in_turn(
    config: &Config,
    rows: &[Row],
    pids: &[u32],
    tables: &mut ProcessTables,
) -> Result<Prepared, BpfError> {
    let objects = tables.observe_running((0..).zip(pids.iter().copied()));
    let sums = (!objects.is_empty()).then(|| tables.sums());
    let words = room::fit(config, sums.as_ref(), words_for(sums))?;
    let begin = Instant::now();
    let loaded = user_mode::load(config, rows, words)?;
    Ok(Prepared { objects, loaded, took: begin.elapsed() })
}

/// Makes the tables while the kernel verifies the programs. Those are loaded again if the tables
/// are more than there is room for in what was made for them.
fn prepare_at_once(
    config: &Config,
    rows: &[Row],
    pids: &[u32],
    tables: &mut ProcessTables,
) -> Result<Prepared, BpfError> {
    let words = words_for(None);
    let begin = Instant::now();
    let (objects, loaded, took) = thread::scope(|scope| {
        let making = scope.spawn(|| tables.observe_running((0..).zip(pids.iter().copied())));
        let loaded = user_mode::load(config, rows, words);
        let took = begin.elapsed();
        (making.join().unwrap_or_else(|panic| resume_unwind(panic)), loaded, took)
    });
    let loaded = loaded?;
    if has_room(words, &tables.sums()) {
        return Ok(Prepared { objects, loaded, took });
    }
    drop(loaded);
    let loaded = user_mode::load(config, rows, words_for(Some(tables.sums())))?;
    Ok(Prepared { objects, loaded, took: begin.elapsed() })
}

fn logger(ebpf: &mut Ebpf) -> Option<AsyncFd<Logger>> {
    let logger =
        EbpfLogger::init(ebpf).inspect_err(|error| debug!("no diagnostics of the BPF side: {error}")).ok()?;
    readable(logger).ok()
}

/// Passes on what the programs have logged; waits for ever where they do not log.
async fn flush_log(log: &mut Option<AsyncFd<Logger>>) {
    match log {
        None => std::future::pending().await,
        Some(log) => {
            if let Ok(mut ready) = log.readable_mut().await {
                ready.get_inner_mut().flush();
                ready.clear_ready();
            }
        }
    }
}
