//! Traced processes, as the programs know them (maps `TARGETS` and `TARGET_SLOTS`).

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
};
use memleak_common::thread::Target;

use super::{
    access::array_mut,
    error::{BpfError, map_error},
};

const TARGETS: &str = "TARGETS";
const SLOTS: &str = "TARGET_SLOTS";

/// Makes a process known to the programs: `pid` is its number in our PID namespace.
pub(super) fn enter(ebpf: &mut Ebpf, slot: u32, pid: u32, target: Target) -> Result<(), BpfError> {
    array_mut(ebpf, TARGETS)?.set(slot, target, 0).map_err(|error| map_error(TARGETS, &error))?;
    slots(ebpf)?.insert(pid, slot, 0).map_err(|error| map_error(SLOTS, &error))
}

/// A process has ended: its number can be another's. The programs may have seen to it already.
pub(super) fn forget_pid(ebpf: &mut Ebpf, slot: u32, pid: u32) -> Result<(), BpfError> {
    let mut slots = slots(ebpf)?;
    if slots.get(&pid, 0).is_ok_and(|of| of == slot) {
        match slots.remove(&pid) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(map_error(SLOTS, &error)),
        }
    }
    Ok(())
}

/// No process has these slots any more: those that go on untraced are forgotten.
pub(super) fn forget_slots(ebpf: &mut Ebpf, freed: &[u32]) -> Result<(), BpfError> {
    if freed.is_empty() {
        return Ok(());
    }
    let mut slots = slots(ebpf)?;
    let is_freed = |entry: &(u32, u32)| freed.contains(&entry.1);
    let left: Vec<u32> = slots.iter().filter_map(Result::ok).filter(is_freed).map(|(pid, _)| pid).collect();
    for pid in left {
        match slots.remove(&pid) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(map_error(SLOTS, &error)),
        }
    }
    Ok(())
}

/// Nobody owns what the process with this slot acquires from here on.
pub(super) fn silence(ebpf: &mut Ebpf, slot: u32) -> Result<(), BpfError> {
    let mut targets = array_mut(ebpf, TARGETS)?;
    let Target { next_space, .. } = targets.get(&slot, 0).map_err(|error| map_error(TARGETS, &error))?;
    let silent = Target { next_space, ..Target::default() };
    targets.set(slot, silent, 0).map_err(|error| map_error(TARGETS, &error))
}

/// Frees a slot that nothing names any more. Gives what the programs had there.
pub(super) fn remove(ebpf: &mut Ebpf, slot: u32) -> Result<Target, BpfError> {
    let mut targets = array_mut(ebpf, TARGETS)?;
    let last = targets.get(&slot, 0).map_err(|error| map_error(TARGETS, &error))?;
    targets.set(slot, Target::default(), 0).map_err(|error| map_error(TARGETS, &error))?;
    Ok(last)
}

fn slots(ebpf: &mut Ebpf) -> Result<HashMap<&mut MapData, u32, u32>, BpfError> {
    let map = ebpf.map_mut(SLOTS).ok_or(BpfError::Missing(SLOTS))?;
    HashMap::try_from(map).map_err(|error| map_error(SLOTS, &error))
}
