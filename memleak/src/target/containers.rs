//! Containers and pods, by the names that their runtimes give to control groups and files.

use std::{fs, path::Path};

/// Digits of a container's ID: docker, containerd (CRI), cri-o and podman take 32 random bytes.
const ID_LENGTH: usize = 64;

/// The container that a group is named for: `ID` (cgroupfs), or `docker-ID.scope`,
/// `cri-containerd-ID.scope`, `crio-ID.scope`, `libpod-ID.scope`, `nerdctl-ID.scope` (systemd).
/// That of a container's monitor (`crio-conmon-ID.scope`) is none.
pub(super) fn container_of(name: &str) -> Option<&str> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let (runtime, id) = name.rsplit_once('-').unwrap_or(("", name));
    let is_id = id.len() == ID_LENGTH && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_id && !runtime.ends_with("conmon")).then_some(id)
}

/// The UID of the pod that a group is named for: `podUID` or, by systemd,
/// `kubepods-burstable-podUID.slice` with `_` for `-`.
pub(super) fn pod_of(name: &str) -> Option<String> {
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let (before, uid) = name.rsplit_once("pod")?;
    let is_uid = uid.len() >= 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || b"-_".contains(&byte));
    (is_uid && (before.is_empty() || before.starts_with("kubepods"))).then(|| uid.replace('_', "-"))
}

/// A pod that this machine has logs of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What its groups are named by.
    pub uid: String,
}

/// All pods, by the folders that the kubelet makes for their logs: NAMESPACE_NAME_UID, none of
/// which has a `_` in it.
pub(super) fn pods(host: &Path) -> Vec<Pod> {
    let pod = |folder: String| {
        let mut parts = folder.split('_').map(str::to_owned);
        Some(Pod { namespace: parts.next()?, name: parts.next()?, uid: parts.next()? })
    };
    let mut pods: Vec<Pod> = names_in(&host.join("var/log/pods")).into_iter().filter_map(pod).collect();
    pods.sort_unstable();
    pods
}

/// IDs of the containers of this name.
pub(super) fn ids_of(name: &str, host: &Path) -> Vec<String> {
    let mut ids = of_docker(name, host);
    for place in ["var/lib/containers/storage", "run/containers/storage"] {
        ids.extend(of_podman(name, &host.join(place)));
    }
    // The kubelet links POD_NAMESPACE_CONTAINER-ID.log.
    let of_log = |file: String| {
        let (container, id) = file.strip_suffix(".log")?.rsplit_once('-')?;
        (container.rsplit('_').next()? == name).then(|| id.to_owned())
    };
    ids.extend(names_in(&host.join("var/log/containers")).into_iter().filter_map(of_log));
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// By docker's own record of each container (`config.v2.json`).
fn of_docker(name: &str, host: &Path) -> Vec<String> {
    let folder = host.join("var/lib/docker/containers");
    let has_name = |id: &String| {
        let record = fs::read(folder.join(id).join("config.v2.json")).ok()?;
        let record: serde_json::Value = serde_json::from_slice(&record).ok()?;
        let found = record.get("Name")?.as_str()?;
        Some(found.trim_start_matches('/') == name)
    };
    names_in(&folder).into_iter().filter(|id| has_name(id) == Some(true)).collect()
}

/// By the list that podman and cri-o keep (containers/storage).
fn of_podman(name: &str, storage: &Path) -> Vec<String> {
    let mut ids = Vec::new();
    for driver in ["overlay-containers", "vfs-containers", "btrfs-containers"] {
        let Ok(list) = fs::read(storage.join(driver).join("containers.json")) else { continue };
        let Ok(list) = serde_json::from_slice::<Vec<serde_json::Value>>(&list) else { continue };
        ids.extend(list.iter().filter_map(|container| {
            let names = container.get("names")?.as_array()?;
            let has_name = names.iter().any(|one| one.as_str() == Some(name));
            has_name.then(|| container.get("id")?.as_str().map(str::to_owned)).flatten()
        }));
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f4e5d6c7b8a90123f4e5d6c7b8a90123f4e5d6c7b8a90123f4e5d6c7b8a9012";
    const OTHER: &str = "00005d6c7b8a90123f4e5d6c7b8a90123f4e5d6c7b8a90123f4e5d6c7b8a9012";

    #[test]
    fn groups_are_named_for_containers() {
        for before in ["", "docker-", "cri-containerd-", "crio-", "libpod-", "nerdctl-"] {
            assert_eq!(container_of(&format!("{before}{ID}.scope")), Some(ID), "{before}");
            assert_eq!(container_of(&format!("{before}{ID}")), Some(ID), "{before}");
        }
        for other in ["crio-conmon", "libpod-conmon"] {
            assert_eq!(container_of(&format!("{other}-{ID}.scope")), None, "{other}");
        }
        for other in ["docker", "system.slice", &ID[1..], "session-1.scope"] {
            assert_eq!(container_of(other), None, "{other}");
        }
    }

    #[test]
    fn groups_are_named_for_pods() {
        let uid = "0f4e0d1c-7a52-4a7e-9c0f-2f6d3b1a5e66";
        let by_systemd = format!("kubepods-besteffort-pod{}.slice", uid.replace('-', "_"));
        for name in [format!("pod{uid}"), by_systemd, format!("kubepods-pod{}.slice", uid.replace('-', "_"))]
        {
            assert_eq!(pod_of(&name).as_deref(), Some(uid), "{name}");
        }
        // That of a static pod is the hash of its file.
        assert_eq!(pod_of("pod0123456789abcdef0123456789abcdef").map(|uid| uid.len()), Some(32));
        for other in ["kubepods.slice", "podman", "tripod-0f4e", "kubepods-burstable.slice"] {
            assert_eq!(pod_of(other), None, "{other}");
        }
    }

    #[test]
    fn names_are_found_where_runtimes_keep_them() {
        let host = tempfile::tempdir().expect("a folder");
        let write = |path: &str, text: &str| {
            let path = host.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, text).expect("written");
        };
        write(&format!("var/lib/docker/containers/{ID}/config.v2.json"), "{\"Name\":\"/web\"}");
        write(&format!("var/lib/docker/containers/{OTHER}/config.v2.json"), "not json");
        write(
            "var/lib/containers/storage/overlay-containers/containers.json",
            &format!("[{{\"id\":\"{OTHER}\",\"names\":[\"db\"]}},{{\"id\":\"x\"}}]"),
        );
        write(&format!("var/log/containers/web-7d4b_shop_sidecar-{OTHER}.log"), "");
        assert_eq!(ids_of("web", host.path()), [ID]);
        assert_eq!(ids_of("db", host.path()), [OTHER]);
        assert_eq!(ids_of("sidecar", host.path()), [OTHER]);
        assert!(ids_of("none", host.path()).is_empty());
    }
}
