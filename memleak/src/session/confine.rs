//! What a run can do is cut down to what it needs, once its probes are in.

use log::{info, warn};
use rustix::thread::CapabilitySet;

use crate::{
    rights::{self, Needs},
    settings::{Settings, TargetSpec},
};

/// Gives up what this run does not need any more. Links and maps are descriptors by now; what is
/// left is for what comes: libraries that are loaded, children, new programs, and names.
/// `makes_events`: probes to come are events of perf's that we make ourselves.
pub(super) fn confine(settings: &Settings, makes_events: bool) {
    let mut kept = kept(settings);
    if makes_events {
        // perf_event_open(2) of a uprobe wants no less.
        kept |= CapabilitySet::SYS_ADMIN;
    }
    if settings.seccomp {
        let needs = Needs {
            processes: !matches!(settings.target, TargetSpec::Kernel(_)),
            listens: settings.fleet.listen.is_some(),
            connects: settings.fleet.push.is_some(),
        };
        match rights::filter(needs) {
            Ok(()) => info!("system calls of our own are filtered"),
            Err(error) => warn!("no seccomp filter: {error}; --no-seccomp keeps this quiet"),
        }
    }
    match rights::keep(kept) {
        Ok(left) => info!("capabilities that are left: {left:?}"),
        Err(error) => warn!("capabilities are not given up: {error}"),
    }
}

/// The capabilities that such a run may still need.
fn kept(settings: &Settings) -> CapabilitySet {
    let mut kept = CapabilitySet::BPF | CapabilitySet::PERFMON;
    match &settings.target {
        // Symbols of modules that come and go.
        TargetSpec::Kernel(_) => kept |= CapabilitySet::SYSLOG,
        TargetSpec::Pids(_) | TargetSpec::Members { .. } | TargetSpec::Command(_) => {
            // Of processes of others: what they have mapped, their files and their memory.
            // Following links of map_files takes one of two.
            kept |= CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH;
            kept |= match has(CapabilitySet::CHECKPOINT_RESTORE) {
                true => CapabilitySet::CHECKPOINT_RESTORE,
                false => CapabilitySet::SYS_ADMIN,
            };
        }
    }
    if matches!(settings.target, TargetSpec::Command(_)) {
        // To end it, whoever it has become.
        kept |= CapabilitySet::KILL;
    }
    let report = &settings.report;
    let has_socket = matches!(settings.fleet.listen, Some(crate::settings::ListenAddress::Unix(_)));
    if report.output.is_some() || !report.files.is_empty() || has_socket {
        // To make files where the caller may, and to give them to the caller (SUDO_UID).
        kept |= CapabilitySet::CHOWN | CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER;
        kept |= CapabilitySet::SETUID | CapabilitySet::SETGID;
    }
    kept
}

fn has(capability: CapabilitySet) -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.permitted.contains(capability))
}
