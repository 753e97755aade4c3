//! The records of what is outstanding (map `ALLOCATIONS`), and those that calls in progress have taken out (maps `THREADS` and
//! `CALLS`).

use std::collections::HashSet;

use aya::Ebpf;
use memleak_common::{
    allocation::{Allocation, AllocationKey, RELEASED_EARLY},
    probe::{ProbeRow, Resource, flags},
    thread::{CallKey, MAX_PENDING, OpenCall, ThreadRecord},
};
use rustc_hash::FxHashSet;

use super::{
    access::fd,
    error::{BpfError, map_error},
    sys,
};
use crate::snapshot::{Outstanding, PAGE_SIZE};

/// [`memleak_common::thread::PendingCall::has_released`]: a record was taken out.
const TAKEN_OUT: u16 = 1;

/// What of the owners that are `known` is outstanding, and the stacks of the threads' last allocations.
pub(super) fn outstanding(
    ebpf: &Ebpf,
    known: impl Fn(u32) -> bool,
    rows: &[ProbeRow],
) -> Result<(Vec<Outstanding>, FxHashSet<u64>), BpfError> {
    let mut all = Vec::new();
    let mut last_stacks = FxHashSet::default();
    let mut add = |key: &AllocationKey, allocation: &Allocation| {
        if allocation.count != RELEASED_EARLY
            && let Some(found) = found(&known, key, allocation)
        {
            all.push(found);
        }
    };
    sys::for_each_entry(fd(ebpf, "ALLOCATIONS")?, &mut add)
        .map_err(|error| map_error("ALLOCATIONS", &error))?;
    // Blocks that a call in progress has taken out (realloc): still acquired, until it returns.
    let mut pending = Vec::new();
    sys::for_each_entry(fd(ebpf, "THREADS")?, |_: &u64, thread: &ThreadRecord| {
        last_stacks.insert(thread.stack_id);
        let calls = thread.pending.iter().take((thread.depth as usize).min(MAX_PENDING));
        let system_call = (thread.in_system_call != 0).then_some(&thread.system_call);
        for call in calls.chain(system_call) {
            if call.has_released == TAKEN_OUT {
                pending.push((thread.owner, *call));
            }
        }
    })
    .map_err(|error| map_error("THREADS", &error))?;
    sys::for_each_entry(fd(ebpf, "CALLS")?, |_: &CallKey, open: &OpenCall| {
        if open.call.has_released == TAKEN_OUT {
            pending.push((open.owner, open.call));
        }
    })
    .map_err(|error| map_error("CALLS", &error))?;
    if pending.is_empty() {
        return Ok((all, last_stacks));
    }
    let seen: HashSet<(u32, Resource, u64)> =
        all.iter().map(|found| (found.space, found.resource, found.address)).collect();
    for (owner, call) in pending {
        let Some(row) = rows.get(call.row as usize) else { continue };
        if row.flags & flags::GONE_WHILE_PENDING != 0 {
            continue;
        }
        let (space, resource, handle) = (owner.of(row.resource), row.resource, call.released_handle);
        if let Some(found) = found(&known, &AllocationKey { space, resource, handle }, &call.released)
            && !seen.contains(&(found.space, found.resource, found.address))
        {
            all.push(found);
        }
    }
    Ok((all, last_stacks))
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
    })
}

/// Where a record's range begins: the end of a range that was released in part may have a key within its first page.
fn start_of(resource: Resource, handle: u64) -> u64 {
    if resource == Resource::Mmap { handle & !(PAGE_SIZE - 1) } else { handle }
}

fn key_of(record: &Outstanding) -> AllocationKey {
    AllocationKey { space: record.space, resource: record.resource.number(), handle: record.handle }
}

/// Removes records of owners in whose name nobody acquires or releases any more.
pub(super) fn remove_for_good<'a>(
    ebpf: &Ebpf,
    records: impl Iterator<Item = &'a Outstanding>,
) -> Result<(), BpfError> {
    let keys: Vec<AllocationKey> = records.map(key_of).collect();
    sys::remove_all(fd(ebpf, "ALLOCATIONS")?, &keys).map_err(|error| map_error("ALLOCATIONS", &error))
}

/// Removes records that are dead: ranges of which nothing is mapped any more, descriptors that are closed.
pub(super) fn remove_dead(ebpf: &Ebpf, dead: &[Outstanding]) -> Result<(), BpfError> {
    for record in dead {
        let key = key_of(record);
        let taken: Option<Allocation> =
            sys::take(fd(ebpf, "ALLOCATIONS")?, &key).map_err(|error| map_error("ALLOCATIONS", &error))?;
        // The address may have been handed out again since it was read: then it is not the one that is dead.
        if let Some(taken) = taken
            && taken.time_ns != record.time_ns
        {
            put_new(ebpf, &key, &taken)?;
        }
    }
    Ok(())
}

/// Enters things that no program has seen acquired, unless there is a record by now.
pub(super) fn enter_found(ebpf: &Ebpf, found: &[Outstanding]) -> Result<(), BpfError> {
    for record in found {
        let (size, stack_id, time_ns) = (record.size, record.stack_id, record.time_ns);
        let allocation = Allocation { size, stack_id, time_ns, count: 1, ..Allocation::default() };
        put_new(ebpf, &key_of(record), &allocation)?;
    }
    Ok(())
}

/// Puts back a record that was taken out by mistake, unless there is a newer one.
fn put_new(ebpf: &Ebpf, key: &AllocationKey, record: &Allocation) -> Result<(), BpfError> {
    sys::put_new(fd(ebpf, "ALLOCATIONS")?, key, record).map_err(|error| map_error("ALLOCATIONS", &error))
}
