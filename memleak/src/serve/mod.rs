//! What others get of a run: the last report, in the forms that Prometheus, pprof's readers and
//! browsers ask for.
//!
//! A run puts what it has found into `Latest`, which takes no longer than to exchange a pointer.
//! All else happens in threads of their own: no client can make a run wait.

pub(crate) mod http;
mod latest;
pub mod metrics;
pub(crate) mod push;
mod socket;

use std::{sync::Arc, time::Duration};

use crate::report::model::Report;
#[doc(hidden)]
pub use http::answer_to;
pub(crate) use latest::Latest;
pub use socket::ListenError;

/// What is known of a traced process besides the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedProcess {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// Bytes that it has in memory; `None` if it has ended.
    pub resident: Option<u64>,
}

/// What the kernel has counted of one of our programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramUse {
    /// The program's name.
    pub name: String,
    /// Runs.
    pub runs: u64,
    /// Time in them, traps not included.
    pub time: Duration,
}

/// One report, and what goes with it.
#[derive(Clone, Debug)]
pub struct Published {
    /// The report, with all its stacks.
    pub report: Arc<Report>,
    /// The traced processes, those that have ended included.
    pub processes: Vec<PublishedProcess>,
    /// Bytes acquired since tracing began, at least; `None` if that is not counted.
    pub allocated_bytes: Option<u64>,
    /// Our programs; empty if the kernel does not count.
    pub programs: Vec<ProgramUse>,
}
