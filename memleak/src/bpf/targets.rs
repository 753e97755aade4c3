//! The map of traced processes.

use aya::Ebpf;
use memleak_common::thread::Target;
use rustc_hash::FxHashMap;

use super::{
    access::fd,
    config::is_first_pid_namespace,
    error::{BpfError, map_error},
    sys,
};

const MAP: &str = "TARGETS";

/// Makes a process (its number in our PID namespace) known to the programs.
pub(super) fn add_target(ebpf: &Ebpf, pid: u32) -> Result<(), BpfError> {
    // In a PID namespace the kernel side learns its own number for it when it first sees one of its threads.
    let kernel_tgid = if is_first_pid_namespace() { pid } else { 0 };
    // The fork that made it may have entered it already.
    sys::put_new(fd(ebpf, MAP)?, &pid, &Target { generation: 0, kernel_tgid })
        .map_err(|error| map_error(MAP, &error))
}

/// Makes the kernel known, whose records are those of process 0.
pub(super) fn add_kernel(ebpf: &Ebpf) -> Result<(), BpfError> {
    sys::put_new(fd(ebpf, MAP)?, &0, &Target::default()).map_err(|error| map_error(MAP, &error))
}

/// Traced processes: by their number in the kernel's first PID namespace, the number that /proc gives them here and the
/// generation of their program.
pub(super) struct Targets(pub(super) FxHashMap<u32, (u32, Target)>);

/// Reads them.
pub(super) fn targets(ebpf: &Ebpf) -> Result<Targets, BpfError> {
    let mut targets = FxHashMap::default();
    sys::for_each_entry(fd(ebpf, MAP)?, |&pid: &u32, target: &Target| {
        targets.insert(target.kernel_tgid, (pid, *target));
    })
    .map_err(|error| map_error(MAP, &error))?;
    Ok(Targets(targets))
}
