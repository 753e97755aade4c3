//! The records of what is outstanding (map `ALLOCATIONS`), and those that calls in progress have taken out (map `THREADS`).

use std::collections::{BTreeSet, HashMap, HashSet};

use aya::Ebpf;
use memleak_common::{
    allocation::{Allocation, AllocationKey},
    probe::{ProbeRow, Resource, flags},
    thread::{MAX_PENDING, Target, ThreadRecord},
};
use rustc_hash::FxHashSet;

use super::{
    access::fd,
    error::{BpfError, map_error},
    sys,
    targets::{Targets, targets},
};
use crate::snapshot::{Outstanding, PAGE_SIZE};

/// [`memleak_common::thread::PendingCall::has_released`]: a record was taken out.
const TAKEN_OUT: u16 = 1;

/// What is outstanding, and the stacks of the threads' last allocations.
pub(super) fn outstanding(
    ebpf: &Ebpf,
    targets: &Targets,
    rows: &[ProbeRow],
) -> Result<(Vec<Outstanding>, FxHashSet<u64>), BpfError> {
    let mut all = Vec::new();
    let mut last_stacks = FxHashSet::default();
    let mut add = |key: &AllocationKey, allocation: &Allocation| {
        // Records of a program that exec has replaced are void.
        if let Some((pid, target)) = targets.0.get(&key.tgid)
            && let Some(resource) = Resource::from_u32(key.resource)
            && is_current(resource, allocation, target)
        {
            all.push(Outstanding {
                pid: *pid,
                resource,
                address: start_of(resource, key.handle),
                handle: key.handle,
                size: allocation.size,
                stack_id: allocation.stack_id,
                time_ns: allocation.time_ns,
            });
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
                pending.push((thread.tgid, *call));
            }
        }
    })
    .map_err(|error| map_error("THREADS", &error))?;
    if !pending.is_empty() {
        let seen: HashSet<(u32, Resource, u64)> =
            all.iter().map(|found| (found.pid, found.resource, found.address)).collect();
        for (tgid, call) in pending {
            let Some((pid, target)) = targets.0.get(&tgid) else { continue };
            let Some(row) = rows.get(call.row as usize) else { continue };
            let Some(resource) = Resource::from_u32(row.resource) else { continue };
            if is_current(resource, &call.released, target)
                && row.flags & flags::GONE_WHILE_PENDING == 0
                && !seen.contains(&(*pid, resource, call.released_handle))
            {
                all.push(Outstanding {
                    pid: *pid,
                    resource,
                    address: call.released_handle,
                    handle: call.released_handle,
                    size: call.released.size,
                    stack_id: call.released.stack_id,
                    time_ns: call.released.time_ns,
                });
            }
        }
    }
    Ok((all, last_stacks))
}

/// What an exec has not made void: memory and all that is in it goes, descriptors stay, but for those that
/// [`remove_void`] finds closed.
fn is_current(resource: Resource, allocation: &Allocation, target: &Target) -> bool {
    allocation.generation == target.generation
        || (resource == Resource::Fd && allocation.generation < target.generation)
}

/// Where a record's range begins: the end of a range that was released in part may have a key within its first page.
fn start_of(resource: Resource, handle: u64) -> u64 {
    if resource == Resource::Mmap { handle & !(PAGE_SIZE - 1) } else { handle }
}

/// Removes records of ranges of which nothing is mapped any more.
pub(super) fn remove_dead(ebpf: &Ebpf, targets: &Targets, dead: &[Outstanding]) -> Result<(), BpfError> {
    for record in dead {
        let Some(tgid) = targets.0.iter().find_map(|(tgid, (pid, _))| (*pid == record.pid).then_some(*tgid))
        else {
            continue;
        };
        let key = AllocationKey { tgid, resource: record.resource.number(), handle: record.handle };
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

/// Puts back a record that was taken out by mistake, unless there is a newer one.
fn put_new(ebpf: &Ebpf, key: &AllocationKey, record: &Allocation) -> Result<(), BpfError> {
    sys::put_new(fd(ebpf, "ALLOCATIONS")?, key, record).map_err(|error| map_error("ALLOCATIONS", &error))
}

/// Removes the records that execs have made void. `replaced`: the processes that have replaced their programs, with the
/// descriptors that were open after that. Reads all records, so one call serves many execs: a build has hundreds in a
/// second.
pub(super) fn remove_void(ebpf: &Ebpf, replaced: &HashMap<u32, BTreeSet<u32>>) -> Result<(), BpfError> {
    if replaced.is_empty() {
        return Ok(());
    }
    let targets = targets(ebpf)?;
    // A newer one is of a program that has replaced this one since the generations were read.
    let is_void = |key: &AllocationKey, allocation: &Allocation| {
        let survives = |of: u32| {
            key.resource == Resource::Fd.number()
                && replaced.get(&of).is_none_or(|open| open.contains(&(key.handle as u32)))
        };
        targets
            .0
            .get(&key.tgid)
            .is_some_and(|(of, target)| allocation.generation < target.generation && !survives(*of))
    };
    let mut void = Vec::new();
    sys::for_each_entry(fd(ebpf, "ALLOCATIONS")?, |key, allocation| {
        if is_void(key, allocation) {
            void.push(*key);
        }
    })
    .map_err(|error| map_error("ALLOCATIONS", &error))?;
    for key in void {
        let taken =
            sys::take(fd(ebpf, "ALLOCATIONS")?, &key).map_err(|error| map_error("ALLOCATIONS", &error))?;
        if let Some(taken) = taken
            && !is_void(&key, &taken)
        {
            put_new(ebpf, &key, &taken)?;
        }
    }
    Ok(())
}
