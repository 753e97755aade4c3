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
