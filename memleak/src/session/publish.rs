//! What a run gives to those who ask for it (`--listen`, `--push`).

use std::{collections::BTreeMap, sync::Arc};

use log::{Level, info, log, warn};
use rustc_hash::FxHashMap;

use super::{SessionError, reporter::Taken};
use crate::{
    bpf::{ProgramRuns, RunStatistics, Tracer},
    proc::status::resident,
    report::model::Report,
    sampling::Sampling,
    serve::{
        Latest, ProgramUse, Published, PublishedProcess,
        http::Server,
        push::{PushCounters, Pusher},
    },
    settings::{FleetSettings, ListenAddress, Settings},
    targets::Targets,
};

/// Those who are given reports.
pub(super) struct Publisher {
    latest: Arc<Latest>,
    _server: Option<Server>,
    pusher: Option<Pusher>,
    allocated: Allocated,
    /// The kernel counts our programs' runs as long as this is there.
    statistics: Option<RunStatistics>,
}

/// Bytes acquired since tracing began: what is held, and what stacks have released. The history of
/// a stack can be forgotten when it holds nothing; what was known of it stays in the sum.
#[derive(Default)]
struct Allocated {
    released: FxHashMap<u64, u64>,
    forgotten: u64,
    last: u64,
}

impl Publisher {
    /// Opens what others can ask at. `None`: nobody asks.
    pub(super) fn start(settings: &Settings) -> Result<Option<Self>, SessionError> {
        let FleetSettings { listen, push } = &settings.fleet;
        if listen.is_none() && push.is_none() {
            return Ok(None);
        }
        let counters = Arc::new(PushCounters::default());
        let pushed = push.is_some().then(|| counters.clone());
        let latest = Arc::new(Latest::new(pushed));
        let server = listen.as_ref().map(|at| Server::start(at, latest.clone(), settings.report.top));
        let server = server.transpose()?;
        let cannot = |error| SessionError::System("cannot start a thread", error);
        let pusher = push.clone().map(|to| Pusher::start(to, counters)).transpose().map_err(cannot)?;
        let mut statistics = None;
        if let Some(server) = &server {
            tell(&server.address, listen.as_ref());
            statistics = RunStatistics::begin()
                .inspect_err(|error| info!("the kernel does not count our programs' runs: {error}"))
                .ok();
        }
        Ok(Some(Self { latest, _server: server, pusher, allocated: Allocated::default(), statistics }))
    }

    /// Sends what is left to be sent, as far as it can be in a short time.
    pub(super) async fn finish(self) {
        if let Some(pusher) = self.pusher {
            pusher.finish().await;
        }
    }
}

/// Who can read it should be known; and where it is, if the kernel has chosen the port.
fn tell(address: &ListenAddress, asked: Option<&ListenAddress>) {
    match address {
        ListenAddress::Tcp(tcp) if !tcp.ip().is_loopback() => warn!(
            "whoever reaches {address} can read what is traced: names of functions and files, and how much they hold; \
             keep it behind a firewall, or leave the address out for this machine alone"
        ),
        ListenAddress::Tcp(_) => {
            let level = if asked == Some(address) { Level::Info } else { Level::Warn };
            log!(
                level,
                "listening at {address}; any user of this machine can read it: unix:PATH is for you alone"
            );
        }
        ListenAddress::Unix(_) => info!("listening at {address}"),
    }
}

impl Publisher {
    /// Gives a report to those who may ask for it.
    pub(super) fn publish(
        &mut self,
        report: Arc<Report>,
        taken: &Taken,
        targets: &Targets,
        tracer: &Tracer,
        sampling: Sampling,
    ) {
        let allocated_bytes = match sampling {
            // Sizes of samples say nothing of bytes before they are weighed.
            Sampling::Bytes(_) => None,
            Sampling::All | Sampling::OneIn(_) => {
                self.allocated.count(taken).map(|bytes| sampling.whole(bytes))
            }
        };
        let programs = match &self.statistics {
            Some(_) => tracer.program_runs().unwrap_or_default(),
            None => Vec::new(),
        };
        let programs = programs
            .into_iter()
            .filter(|program| program.runs > 0)
            .map(|ProgramRuns { name, runs, time }| ProgramUse { name, runs, time })
            .collect();
        let processes = targets.iter().map(|(_, traced)| {
            let resident = if traced.ended { None } else { resident(traced.id.pid) };
            PublishedProcess { pid: traced.id.pid, comm: traced.comm.clone(), resident }
        });
        // A number that came twice is the later process.
        let processes: BTreeMap<u32, PublishedProcess> =
            processes.map(|process| (process.pid, process)).collect();
        let processes = processes.into_values().collect();
        let published = Arc::new(Published { report, processes, allocated_bytes, programs });
        if let Some(pusher) = &self.pusher {
            pusher.push(&published);
        }
        self.latest.set(published);
    }
}

impl Allocated {
    fn count(&mut self, taken: &Taken) -> Option<u64> {
        let snapshot = &taken.snapshot;
        let histories = snapshot.histories.as_ref()?;
        let now: FxHashMap<u64, u64> =
            histories.iter().map(|(stack, history)| (*stack, history.bytes())).collect();
        for (stack, released) in std::mem::take(&mut self.released) {
            // One that is there with less has begun anew.
            if now.get(&stack).is_none_or(|now| *now < released) {
                self.forgotten = self.forgotten.saturating_add(released);
            }
        }
        let released = now.values().fold(self.forgotten, |sum, bytes| sum.saturating_add(*bytes));
        self.released = now;
        // A range that was released in part is held no longer, and has no history.
        self.last = self.last.max(taken.held?.saturating_add(released));
        Some(self.last)
    }
}
