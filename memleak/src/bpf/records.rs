//! The records of what is outstanding (the table of heap blocks and the map `ALLOCATIONS`), and
//! those that calls in progress have taken out (maps `THREADS` and `CALLS`).

use std::cell::Cell;

use aya::Ebpf;
use log::debug;
use memleak_common::{
    allocation::{Allocation, AllocationKey, RELEASED_EARLY},
    probe::{ProbeRow, Resource, flags},
    thread::{CallKey, MAX_PENDING, OpenCall, Owner, PendingCall, ThreadRecord},
};
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    access::fd,
    cut::{Epoch, Reading},
    error::{BpfError, map_error},
    growth::MovedPages,
    mapped::MappedMaps,
    sys,
};
use crate::{
    proc::PAGE_SIZE,
    snapshot::{Outstanding, StackUses},
};

/// [`memleak_common::thread::PendingCall::has_released`]: a record was taken out.
const TAKEN_OUT: u16 = 1;

/// What was read of the tables.
#[derive(Default)]
pub(super) struct ReadRecords {
    /// What was outstanding at the cut in the table of heap blocks: there may be millions of them,
    /// and little is to be looked for among them.
    pub blocks: Vec<Outstanding>,
    /// The stacks of those.
    pub uses: StackUses,
    /// What else was outstanding: a few blocks among it.
    pub others: Vec<Outstanding>,
    /// Stacks that newer records and the threads' last allocations refer to.
    pub other_stacks: FxHashSet<u64>,
    /// Descriptors that are newer than the cut: owner and number.
    pub newer_descriptors: FxHashSet<(u32, u64)>,
    /// Records in the newest segment of the table of heap blocks.
    pub newest_blocks: u64,
    /// A call in progress has taken something out that is not outstanding meanwhile; if the call
    /// fails, it will be again, which nothing counts.
    pub may_come_back: bool,
}

/// What names a record, wherever it has moved to meanwhile. The rest of a range has another handle
/// than the whole.
type Identity = (u32, Resource, u64, u64);

fn identity(record: &Outstanding) -> Identity {
    let handle = if record.resource == Resource::Mmap { 0 } else { record.handle };
    (record.space, record.resource, handle, record.birth)
}

/// What of the owners that are `known` was outstanding at the cut: what is in the table or in a
/// call in progress, or was told to have left it since, and is older than the cut. Blocks are added
/// to `blocks`, which is empty. Ends the reading.
pub(super) fn outstanding(
    blocks: Vec<Outstanding>,
    (ebpf, mapped): (&Ebpf, Option<&MappedMaps>),
    (epoch, reading): (&mut Epoch, &Reading),
    known: impl Fn(u32) -> bool,
    rows: &[ProbeRow],
) -> Result<ReadRecords, BpfError> {
    let mut read = ReadRecords { blocks, ..ReadRecords::default() };
    let last = Cell::new(None);
    let known = |owner| match last.get() {
        Some((of, is_known)) if of == owner => is_known,
        _ => {
            let is_known = known(owner);
            last.set(Some((owner, is_known)));
            is_known
        }
    };
    let mut told: FxHashMap<Identity, Outstanding> = FxHashMap::default();
    let mut take_moved = |epoch: &mut Epoch| {
        epoch.take_moved(reading, |moved| {
            if let Some(found) = found(known, &moved.key, &moved.allocation) {
                told.entry(identity(&found)).or_insert(found);
            }
        });
    };
    let result = read_tables((ebpf, mapped), reading.epoch, &known, rows, &mut read, || take_moved(epoch));
    epoch.end()?;
    result?;
    take_moved(epoch);
    if !told.is_empty() {
        // What was told is whole; what was read may have changed while it was copied.
        let births: FxHashSet<u64> = told.values().map(|record| record.birth).collect();
        let is_told =
            |record: &Outstanding| births.contains(&record.birth) && told.contains_key(&identity(record));
        read.blocks.retain(|record| !is_told(record));
        read.others.retain(|record| !is_told(record));
        read.others.extend(told.into_values());
    }
    Ok(read)
}

fn read_tables(
    (ebpf, mapped): (&Ebpf, Option<&MappedMaps>),
    epoch: u32,
    known: &impl Fn(u32) -> bool,
    rows: &[ProbeRow],
    read: &mut ReadRecords,
    mut between: impl FnMut(),
) -> Result<(), BpfError> {
    let ReadRecords { blocks, uses, others, other_stacks, newer_descriptors, newest_blocks, may_come_back } =
        read;
    // Blocks that a call in progress has taken out (realloc): still acquired, until it returns.
    let mut add_taken_out = |owner: Owner, call: &PendingCall| {
        if call.has_released == TAKEN_OUT
            && call.released.epoch != epoch
            && let Some(row) = rows.get(call.row as usize)
        {
            if row.flags & flags::GONE_WHILE_PENDING != 0 {
                *may_come_back = true;
                return;
            }
            let (space, handle) = (owner.of(row.resource), call.released_handle);
            let key = AllocationKey { space, resource: row.resource, handle };
            others.extend(found(known, &key, &call.released));
        }
    };
    let mut add_thread = |thread: &ThreadRecord| {
        other_stacks.insert(thread.stack_id);
        let calls = thread.pending.iter().take((thread.depth as usize).min(MAX_PENDING));
        let system_call = (thread.in_system_call != 0).then_some(&thread.system_call);
        calls.chain(system_call).for_each(|call| add_taken_out(thread.owner, call));
    };
    if let Some(mapped) = mapped {
        mapped.for_each_thread(&mut add_thread);
    }
    sys::for_each_entry(fd(ebpf, "THREADS")?, |_: &u64, thread: &ThreadRecord| add_thread(thread))
        .map_err(|error| map_error("THREADS", &error))?;
    sys::for_each_entry(fd(ebpf, "CALLS")?, |_: &CallKey, open: &OpenCall| {
        add_taken_out(open.owner, &open.call);
    })
    .map_err(|error| map_error("CALLS", &error))?;
    let mut older = |key: &AllocationKey, allocation: &Allocation| {
        if allocation.epoch == epoch {
            other_stacks.insert(allocation.stack_id);
            if key.resource == Resource::Fd.number() {
                newer_descriptors.insert((key.space, key.handle));
            }
            return None;
        }
        (allocation.count != RELEASED_EARLY).then(|| found(known, key, allocation)).flatten()
    };
    if let Some(mapped) = mapped {
        let add = |key: &AllocationKey, allocation: &Allocation| {
            if let Some(block) = older(key, allocation) {
                uses.add(block.use_of_stack());
                blocks.push(block);
            }
        };
        *newest_blocks = mapped.blocks.for_each(add, &mut between);
    }
    let add = |key: &AllocationKey, allocation: &Allocation| others.extend(older(key, allocation));
    sys::for_each_entry_with(fd(ebpf, "ALLOCATIONS")?, add, &mut between)
        .map_err(|error| map_error("ALLOCATIONS", &error))
}

/// A record as plain data; `None` for what is not known, of an owner that has gone, say.
fn found(known: impl Fn(u32) -> bool, key: &AllocationKey, allocation: &Allocation) -> Option<Outstanding> {
    let resource = Resource::from_u32(key.resource)?;
    known(key.space).then(|| Outstanding {
        space: key.space,
        resource,
        address: start_of(resource, key.handle),
        handle: key.handle,
        size: allocation.size,
        stack_id: allocation.stack_id,
        time_ns: allocation.time_ns,
        birth: allocation.birth,
    })
}

/// Where a record's range begins: the end of a range that was released in part may have a key
/// within its first page.
fn start_of(resource: Resource, handle: u64) -> u64 {
    if resource == Resource::Mmap { handle & !(PAGE_SIZE - 1) } else { handle }
}

fn key_of(record: &Outstanding) -> AllocationKey {
    AllocationKey { space: record.space, resource: record.resource.number(), handle: record.handle }
}

/// Makes a filter of the table's sealed segments, if there is not yet one of all. Without it
/// programs look through all of them.
pub(super) fn filter(ebpf: &Ebpf, mapped: &mut MappedMaps) {
    if !mapped.blocks.is_to_be_filtered() {
        return;
    }
    let made = mapped.blocks.filter(|each| {
        let each = |key: &AllocationKey, _: &Allocation| {
            if key.resource == Resource::Heap.number() {
                each(key);
            }
        };
        sys::for_each_entry(fd(ebpf, "ALLOCATIONS")?, each).map_err(|error| map_error("ALLOCATIONS", &error))
    });
    if let Err(error) = made {
        debug!("no filter of the table's older segments: {error}");
    }
}

/// Removes records of owners in whose name nobody acquires or releases any more.
pub(super) fn remove_for_good<'a>(
    (ebpf, mapped): (&Ebpf, Option<&MappedMaps>),
    records: impl Iterator<Item = &'a Outstanding>,
) -> Result<(), BpfError> {
    let mut removed = 0;
    let is_elsewhere = |record: &&Outstanding| {
        removed += 1;
        !mapped.is_some_and(|mapped| mapped.blocks.remove(&key_of(record), record.birth))
    };
    let keys: Vec<AllocationKey> = records.filter(is_elsewhere).map(key_of).collect();
    adjust_held(mapped, -removed);
    sys::remove_all(fd(ebpf, "ALLOCATIONS")?, &keys).map_err(|error| map_error("ALLOCATIONS", &error))
}

/// Removes records that are dead: ranges of which nothing is mapped any more, descriptors that are
/// closed. Gives how many there were: others have moved since they were read, or are gone.
pub(super) fn remove_dead(
    (ebpf, mapped): (&Ebpf, Option<&MappedMaps>),
    dead: &[Outstanding],
) -> Result<u64, BpfError> {
    let mut removed: u64 = 0;
    for record in dead {
        let key = key_of(record);
        let taken: Option<Allocation> =
            sys::take(fd(ebpf, "ALLOCATIONS")?, &key).map_err(|error| map_error("ALLOCATIONS", &error))?;
        // The address may have been handed out again since it was read: then it is not the one that
        // is dead.
        match taken {
            Some(taken) if taken.birth != record.birth => drop(put_new(ebpf, &key, &taken)?),
            Some(_) => removed += 1,
            None => {}
        }
    }
    adjust_held(mapped, -removed.cast_signed());
    Ok(removed)
}

/// Enters things that no program has seen acquired, unless there is a record by now.
pub(super) fn enter_found(
    (ebpf, mapped): (&Ebpf, Option<&MappedMaps>),
    found: &[Outstanding],
) -> Result<(), BpfError> {
    for record in found {
        let (size, stack_id, time_ns) = (record.size, record.stack_id, record.time_ns);
        let birth = record.birth;
        let allocation = Allocation { size, stack_id, time_ns, count: 1, birth, ..Allocation::default() };
        if put_new(ebpf, &key_of(record), &allocation)? {
            adjust_held(mapped, 1);
        }
    }
    Ok(())
}

/// Enters the records of pages under the addresses that these have now.
pub(super) fn move_pages(
    (ebpf, mapped): (&Ebpf, Option<&MappedMaps>),
    moved: &MovedPages,
) -> Result<(), BpfError> {
    /// Of more pages all records are looked at instead.
    const MANY: u64 = 1 << 14;
    const MAP: &str = "ALLOCATIONS";
    let resource = Resource::Growth.number();
    let key = |handle| AllocationKey { space: moved.space, resource, handle };
    let keys: Vec<AllocationKey> = if moved.from.end - moved.from.start <= MANY * PAGE_SIZE {
        moved.from.clone().step_by(PAGE_SIZE as usize).map(key).collect()
    } else {
        let mut keys = Vec::new();
        sys::for_each_entry(fd(ebpf, MAP)?, |found: &AllocationKey, _: &Allocation| {
            if *found == key(found.handle) && moved.from.contains(&found.handle) {
                keys.push(*found);
            }
        })
        .map_err(|error| map_error(MAP, &error))?;
        keys
    };
    let mut lost: i64 = 0;
    for from in keys {
        let taken: Option<Allocation> =
            sys::take(fd(ebpf, MAP)?, &from).map_err(|error| map_error(MAP, &error))?;
        let Some(record) = taken else { continue };
        // What was touched after that is another page, and stays.
        let to = if record.time_ns < moved.time_ns { key(moved.new_address(from.handle)) } else { from };
        lost += i64::from(!put_new(ebpf, &to, &record)?);
    }
    adjust_held(mapped, -lost);
    Ok(())
}

fn adjust_held(mapped: Option<&MappedMaps>, difference: i64) {
    if let Some(mapped) = mapped {
        mapped.blocks.adjust_held(difference);
    }
}

/// Enters a record unless there is a newer one; says whether it did.
fn put_new(ebpf: &Ebpf, key: &AllocationKey, record: &Allocation) -> Result<bool, BpfError> {
    sys::put_new(fd(ebpf, "ALLOCATIONS")?, key, record).map_err(|error| map_error("ALLOCATIONS", &error))
}
