//! What can be said to be wrong before anything is traced.

use std::{collections::HashSet, path::Path};

use log::warn;
use memleak_common::probe::Resource;

use super::SessionError;
use crate::{
    probe::{
        gaps::Gap,
        plan::{Plan, PlanError, PlanOptions},
        table::DEFAULT_RESOURCES,
    },
    proc::status::read_status,
    settings::Settings,
    target::{object::Object, process::Process},
};

/// Without these nothing can be traced, and a report not be made: better said before anything is
/// attached.
pub(super) fn check_mounts() -> Result<(), SessionError> {
    // A /proc that was mounted for another PID namespace has no `self` here.
    if !Path::new("/proc/self/status").exists() {
        return Err(SessionError::NotMounted { what: "/proc", kind: "proc" });
    }
    // aya takes the number of CPUs from it, and with that what per-CPU maps hold.
    if !Path::new("/sys/devices/system/cpu/possible").exists() {
        return Err(SessionError::NotMounted { what: "/sys", kind: "sysfs" });
    }
    Ok(())
}

/// The shell makes two words of two process ids, and the second would be taken for INTERVAL.
pub(super) fn check_interval(settings: &Settings, processes: &[Process]) -> Result<(), SessionError> {
    let (Some(process), Ok(interval)) = (processes.first(), u32::try_from(settings.interval.as_secs()))
    else {
        return Ok(());
    };
    match read_status(interval) {
        // A thread of a process has its name, and is not what was meant by a second number.
        Ok(status) if status.comm == process.comm && interval != process.pid && status.tgid == interval => {
            Err(SessionError::IntervalIsProcess { interval, pid: process.pid, comm: status.comm })
        }
        _ => Ok(()),
    }
}

/// A plan for all that process `pid` has mapped must attach something, if anything is probed.
/// What is not there is warned of: it may come with a library that is yet to be loaded. `is_all`:
/// nothing is traced but by the plan.
pub(super) fn check_plan(
    pid: u32,
    plan: &Plan,
    objects: &[Object],
    options: &PlanOptions<'_>,
    is_all: bool,
) -> Result<(), PlanError> {
    let is_users = |resource: &Resource| matches!(resource, Resource::Custom(_));
    let mut missing = PlanError::users_missing(objects, options, plan).into_iter();
    if plan.is_empty()
        && options.resources.iter().all(is_users)
        && let Some(error) = missing.next()
    {
        return Err(error);
    }
    let mut missing = missing.chain(PlanError::resources_missing(objects, options, plan));
    // Samples that were asked for are insisted on.
    let insists = plan.is_empty() && options.resources == [Resource::OtelMemory];
    if (plan.is_final() || insists)
        && is_all
        && let Some(error) = missing.next()
    {
        return Err(error);
    }
    missing.for_each(|missing| warn!("process {pid}: {missing}"));
    let is_memory = |resource: &Resource| DEFAULT_RESOURCES.contains(resource);
    match plan.is_empty() && options.resources.iter().any(is_memory) {
        true => Err(PlanError::nothing_found(objects, options)),
        false => Ok(()),
    }
}

/// Warns of what reports on process `pid` will lack, of each thing once in a run.
pub(super) fn tell_gaps(pid: u32, gaps: Vec<Gap>, told: &mut HashSet<Gap>) {
    for gap in gaps {
        if told.insert(gap.clone()) {
            warn!("process {pid}: {gap}");
        }
    }
}
