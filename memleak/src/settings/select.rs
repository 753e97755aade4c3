//! Processes by what people know of them.

use std::path::Path;

use super::usage::UsageError;
use crate::{cli::SelectArguments, target::selector::Selector};

/// The selectors that were typed.
pub(super) fn resolve_selectors(arguments: &SelectArguments) -> Result<Vec<Selector>, UsageError> {
    let mut selectors = Vec::new();
    for name in &arguments.names {
        selectors.push(Selector::Name(given("--name", name, "give a name as ps -e prints it")?));
    }
    for unit in &arguments.units {
        selectors.push(Selector::Unit(given("--unit", unit, "give a unit as systemctl prints it")?));
    }
    for path in &arguments.cgroups {
        if path.as_os_str().is_empty() || path == Path::new("/") {
            let why = if path.as_os_str().is_empty() { "it is empty" } else { "that is the whole machine" };
            return Err(UsageError::new("--cgroup", why, "give a group such as /system.slice/nginx.service"));
        }
        selectors.push(Selector::Cgroup(path.clone()));
    }
    for id in &arguments.containers {
        let remedy = "give an ID or a name as docker ps, crictl ps or podman ps prints it";
        selectors.push(Selector::Container(given("--container", id, remedy)?));
    }
    for pod in &arguments.pods {
        let parts = pod.split_once('/').filter(|(namespace, name)| {
            !namespace.is_empty() && !name.is_empty() && !name.contains('/') && !pod.contains('_')
        });
        let Some((namespace, name)) = parts else {
            let why = format!("'{pod}' is not NAMESPACE/NAME");
            return Err(UsageError::new("--pod", why, "give both, as kubectl get pods -A prints them"));
        };
        selectors.push(Selector::Pod { namespace: namespace.to_owned(), name: name.to_owned() });
    }
    Ok(selectors)
}

fn given(what: &str, value: &str, remedy: &str) -> Result<String, UsageError> {
    match value.trim() {
        "" => Err(UsageError::new(what, "it is empty", remedy)),
        value => Ok(value.to_owned()),
    }
}
