//! Why a run cannot go on.

use std::io;

use crate::{
    bpf::BpfError,
    probe::{kernel::KernelPlanError, plan::PlanError},
    report::sink::SinkError,
    serve::ListenError,
    symbolize::KernelSymbolsError,
    target::{
        command::CommandError, kernel::KernelTargetError, process::ProcessError, selector::SelectError,
    },
    tui::ViewError,
};

/// Why a run cannot go on. One line each: what, why, what to do.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The BPF side.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// A process that cannot be traced.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// None of what was named runs.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// A command that does not run.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// What of the kernel was asked for is not there.
    #[error(transparent)]
    KernelTarget(#[from] KernelTargetError),
    /// Nothing to probe.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The kernel has no allocator that we know.
    #[error(transparent)]
    KernelPlan(#[from] KernelPlanError),
    /// The kernel's stacks could not be read.
    #[error(transparent)]
    KernelSymbols(#[from] KernelSymbolsError),
    /// `-p $(pidof server)` of a server with two processes.
    #[error(
        "INTERVAL: {interval} is a process named {comm} as well as a number of seconds; type -p {pid},{interval} to trace \
         both, or another INTERVAL"
    )]
    IntervalIsProcess {
        /// What was given as INTERVAL.
        interval: u32,
        /// The process that was given.
        pid: u32,
        /// The name of both.
        comm: String,
    },
    /// A file system of the kernel's that we cannot do without.
    #[error(
        "cannot trace: {what} is not mounted in this mount and PID namespace; type mount -t {kind} {kind} {what}"
    )]
    NotMounted {
        /// Where it belongs.
        what: &'static str,
        /// Its type.
        kind: &'static str,
    },
    /// Reports cannot be written.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// There is no view.
    #[error(transparent)]
    View(#[from] ViewError),
    /// A panic, which has been told where it happened.
    #[error("internal error; this is a bug: please report it")]
    Internal,
    /// Nobody could ask.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A system call that does not fail on a sound system.
    #[error("{0}: {1}; try again")]
    System(&'static str, io::Error),
}
