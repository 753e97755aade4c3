//! The options of kernel mode, and those that make no sense in it.

use super::usage::{MAX_PID, UsageError, WholeNumber, non_empty, one_of};
use crate::cli::Cli;
pub use crate::probe::kernel::KernelProbes;

/// Longest command name that the kernel keeps, bytes (`TASK_COMM_LEN` counts the zero after it,
/// too).
const MAX_COMM: usize = 15;

/// What is traced of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelOptions {
    /// By what its allocators are watched.
    pub probes: KernelProbes,
    /// Objects of this slab cache only (`--slab`), as it was typed: [`crate::target::kernel`] looks
    /// it up.
    pub slab: Option<String>,
    /// What threads of this process allocate, only (`--only-pid`).
    pub only_pid: Option<u32>,
    /// What threads of this command name allocate, only (`--only-comm`); 15 bytes at most.
    pub only_comm: Option<String>,
    /// Per-CPU memory as well (`-P`).
    pub percpu: bool,
    /// Compare what is remembered of stacks with what the kernel's walk gives.
    pub check_stacks: bool,
}

const ONLY_PID: WholeNumber = WholeNumber {
    what: "--only-pid",
    min: 1,
    max: MAX_PID,
    remedy: "give the number that pidof NAME or ps prints",
};

/// Options that go with a process or command only: given or not, their names, and what they are
/// about.
fn for_processes(cli: &Cli) -> [(bool, &'static str, &'static str); 5] {
    [
        (cli.object.is_some(), "-O/--obj", "names an object of a process"),
        (cli.symbols_prefix.is_some(), "-S/--symbols-prefix", "is about the allocator of a process"),
        (cli.follow_forks, "--follow-forks", "is about the children of a process"),
        (cli.unwind.is_some(), "--unwind", "is about the stacks of a process; the kernel walks its own"),
        (
            cli.sample_bytes.is_some(),
            "--sample-bytes",
            "is about the heap of a process; -s samples the kernel's",
        ),
    ]
}

/// The same for those that go with the kernel only.
fn for_the_kernel(cli: &Cli) -> [(bool, &'static str, &'static str); 5] {
    [
        (cli.percpu, "-P/--percpu", "traces the kernel's per-CPU allocations"),
        (cli.kernel_probes.is_some(), "--kernel-probes", "says how the kernel is traced"),
        (cli.slab.is_some(), "--slab", "names a cache of the kernel"),
        (cli.only_pid.is_some(), "--only-pid", "narrows the tracing of the kernel"),
        (cli.only_comm.is_some(), "--only-comm", "narrows the tracing of the kernel"),
    ]
}

fn refuse(
    options: &[(bool, &'static str, &'static str)],
    target: &str,
    remedy: &str,
) -> Result<(), UsageError> {
    match options.iter().find(|(is_given, ..)| *is_given) {
        Some((_, what, why)) => {
            Err(UsageError::new(what, format!("it {why}, and the target is {target}"), remedy))
        }
        None => Ok(()),
    }
}

/// Refuses options that go with the kernel only.
pub(super) fn refuse_kernel_options(cli: &Cli) -> Result<(), UsageError> {
    refuse(&for_the_kernel(cli), "a process", "leave it out, or trace the kernel: memleak --kernel")
}

/// What `--kernel` stands for.
pub(super) fn resolve_kernel(cli: &Cli) -> Result<KernelOptions, UsageError> {
    refuse(&for_processes(cli), "the kernel", "leave it out, or trace a process: -p PID")?;
    let probes = cli.kernel_probes.as_deref();
    let probes = probes
        .map_or(Ok(KernelProbes::Auto), |text| one_of("--kernel-probes", "way to watch the kernel", text))?;
    if cli.percpu && probes == KernelProbes::Kprobe {
        let why = "per-CPU allocations need tracepoints, and these are turned off";
        return Err(UsageError::new("-P with --kernel-probes kprobe", why, "leave one of them out"));
    }
    let slab = non_empty("--slab", "name a cache such as kmalloc-64 or dentry", cli.slab.as_deref())?;
    let only_comm = non_empty("--only-comm", "give a command name such as nginx", cli.only_comm.as_deref())?;
    if let Some(comm) = only_comm.as_deref().filter(|comm| comm.len() > MAX_COMM) {
        let why = format!("'{comm}' has {} bytes, and the kernel keeps {MAX_COMM} of a name", comm.len());
        let kept = comm.char_indices().take_while(|(at, c)| at + c.len_utf8() <= MAX_COMM);
        let kept: String = kept.map(|(_, c)| c).collect();
        return Err(UsageError::new("--only-comm", why, format!("type --only-comm '{kept}'")));
    }
    Ok(KernelOptions {
        probes,
        slab,
        only_pid: cli.only_pid.as_deref().map(|text| ONLY_PID.parse(text)).transpose()?,
        only_comm,
        percpu: cli.percpu,
        check_stacks: cli.check_stacks,
    })
}
