//! What the kernel counts of our programs: runs, and the time in them.

use std::{io, os::fd::OwnedFd, time::Duration};

use aya::{
    Ebpf,
    sys::{Stats, enable_stats},
};

use super::{
    error::{BpfError, map_error},
    links::Probes,
    sys,
};

/// As long as this is there, the kernel counts (Linux 5.8). It takes the time twice for each run of
/// any program of the machine.
#[derive(Debug)]
pub(crate) struct RunStatistics(#[expect(dead_code, reason = "held for its end")] OwnedFd);

impl RunStatistics {
    /// Has the kernel begin.
    pub(crate) fn begin() -> io::Result<Self> {
        enable_stats(Stats::RunTime).map(Self).map_err(|error| error.io_error)
    }
}

/// What was counted of one program.
#[derive(Debug)]
pub(crate) struct ProgramRuns {
    /// Its name, 15 bytes at most.
    pub name: String,
    /// Runs.
    pub runs: u64,
    /// Time in them.
    pub time: Duration,
}

/// Of all programs that are loaded.
pub(super) fn program_runs(ebpf: &Ebpf, probes: &Probes) -> Result<Vec<ProgramRuns>, BpfError> {
    use std::os::fd::AsFd as _;
    let mut all = Vec::new();
    let mut add = |fd| -> Result<(), BpfError> {
        let info = sys::program_info(fd).map_err(|error| map_error("(program information)", &error))?;
        let name = info.name.iter().map(|byte| *byte as u8).take_while(|byte| *byte != 0).collect();
        all.push(ProgramRuns {
            name: String::from_utf8(name).unwrap_or_default(),
            runs: info.run_cnt,
            time: Duration::from_nanos(info.run_time_ns),
        });
        Ok(())
    };
    for (_, program) in ebpf.programs() {
        if let Ok(fd) = program.fd() {
            add(fd.as_fd())?;
        }
    }
    probes.programs().try_for_each(|fd| add(fd.as_fd()))?;
    // Several of one name are one to a reader.
    all.sort_by(|one: &ProgramRuns, other| one.name.cmp(&other.name));
    all.dedup_by(|next, kept| {
        let is_same = next.name == kept.name;
        if is_same {
            kept.runs = kept.runs.saturating_add(next.runs);
            kept.time = kept.time.saturating_add(next.time);
        }
        is_same
    });
    Ok(all)
}
