//! Options for machines that are watched by others than people.

/// Heading of these options.
const FLEET: &str = "Fleets (Prometheus, Pyroscope, Parca)";

/// Where others get what is found.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct FleetArguments {
    /// Serve /metrics, /debug/pprof/heap, /report and /healthz by HTTP: a port of 127.0.0.1,
    /// IP:PORT, or unix:PATH (which other users cannot read)
    #[arg(long, value_name = "ADDRESS", help_heading = FLEET)]
    pub listen: Option<String>,

    /// Send each report as a profile: http://HOST:4040 (Pyroscope), http://HOST:4040/ingest, or
    /// http://HOST:7070/api/profiles/writeraw (Parca)
    #[arg(long, value_name = "URL", help_heading = FLEET)]
    pub push: Option<String>,
}
