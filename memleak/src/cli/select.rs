//! Options that name processes by what people know of them.

use std::path::PathBuf;

/// Heading of the options that say what is traced.
const TARGET: &str = "Target (exactly one kind)";

/// Processes by name, unit, group, container or pod; new ones join while it runs.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct SelectArguments {
    /// Trace all processes of this name, and those that come later; repeatable, as are the next
    /// four
    #[arg(long = "name", value_name = "NAME", help_heading = TARGET)]
    pub names: Vec<String>,

    /// Trace the processes of a unit of systemd (nginx, or nginx.service)
    #[arg(long = "unit", value_name = "UNIT", help_heading = TARGET)]
    pub units: Vec<String>,

    /// Trace the processes of a control group and those below it: a path in /sys/fs/cgroup, or as
    /// in /proc/PID/cgroup
    #[arg(long = "cgroup", value_name = "PATH", help_heading = TARGET)]
    pub cgroups: Vec<PathBuf>,

    /// Trace the processes of a container of docker, containerd, cri-o or podman: the beginning of
    /// its ID, or its name
    #[arg(long = "container", value_name = "ID", help_heading = TARGET)]
    pub containers: Vec<String>,

    /// Trace the processes of a pod of Kubernetes on this machine
    #[arg(long = "pod", value_name = "NAMESPACE/NAME", help_heading = TARGET)]
    pub pods: Vec<String>,
}

impl SelectArguments {
    /// The first of these options that was given.
    pub fn given(&self) -> Option<&'static str> {
        [
            (!self.names.is_empty(), "--name"),
            (!self.units.is_empty(), "--unit"),
            (!self.cgroups.is_empty(), "--cgroup"),
            (!self.containers.is_empty(), "--container"),
            (!self.pods.is_empty(), "--pod"),
        ]
        .into_iter()
        .find_map(|(is_given, name)| is_given.then_some(name))
    }
}
