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

    /// One of them that an epoch tells apart ([`Stat::at`]): what was counted in programs of this
    /// epoch.
    fn get_in(&self, stat: Stat, epoch: u32) -> u64 {
        self.0.get(stat.at(epoch) as usize).copied().unwrap_or(0)
    }

    /// What one of them had counted at the cut of the reading of this epoch. `self` was read since
    /// programs from before the cut have ended; `before` before the cut.
    pub(super) fn at_cut(&self, before: &Self, stat: Stat, epoch: u32) -> u64 {
        let (even, other_reading) = (epoch.wrapping_sub(1), epoch.wrapping_sub(2));
        self.get_in(stat, even) + self.get_in(stat, other_reading) + before.get_in(stat, epoch)
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
        // A program that was not loaded has not skipped anything; a twin has nothing to do but
        // where another was skipped.
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
