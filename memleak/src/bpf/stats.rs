//! What the programs and the kernel have counted.

use std::os::fd::{AsFd as _, BorrowedFd};

use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray},
};
use memleak_common::stats::Stat;

use super::{
    access::per_cpu,
    error::{BpfError, map_error},
    links::Probes,
    sys,
};
use crate::probe::kernel::TWIN;

/// Sums of the counters over all CPUs.
pub(super) struct Stats(Vec<u64>);

impl Stats {
    /// Reads them all.
    pub(super) fn read(ebpf: &Ebpf) -> Result<Self, BpfError> {
        let map: PerCpuArray<&MapData, u64> = per_cpu(ebpf, "STATS")?;
        let sums =
            map.iter().map(|values| Ok(values?.iter().sum())).collect::<Result<_, aya::maps::MapError>>();
        sums.map(Self).map_err(|error| map_error("STATS", &error))
    }

    /// One of them.
    pub(super) fn get(&self, stat: Stat) -> u64 {
        self.0.get(stat as usize).copied().unwrap_or(0)
    }
}

/// Runs that the kernel skipped, of all our programs (`bpf_prog_info.recursion_misses`).
pub(super) fn skipped_runs(ebpf: &Ebpf, probes: &Probes) -> Result<u64, BpfError> {
    let misses = |fd: BorrowedFd<'_>| {
        sys::recursion_misses(fd).map_err(|error| map_error("(program information)", &error))
    };
    let mut sum = 0;
    for (name, program) in ebpf.programs() {
        // A program that was not loaded has not skipped anything; a twin has nothing to do but where another was skipped.
        if !name.ends_with(TWIN)
            && let Ok(fd) = program.fd()
        {
            sum += misses(fd.as_fd())?;
        }
    }
    for fd in probes.programs() {
        sum += misses(fd.as_fd())?;
    }
    Ok(sum)
}
