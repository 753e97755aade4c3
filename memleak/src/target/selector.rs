//! Targets by what people know: a name, a unit of systemd, a control group, a container, a pod.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fmt, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use crate::{
    near::by_likeness,
    proc::{
        cgroup::{ControlGroup, Groups},
        living::path_of,
        status::{processes, thread_comm},
    },
};

use super::containers::{self, container_of, pods};

/// Which processes are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// All of this name.
    Name(String),
    /// Those of a unit of systemd.
    Unit(String),
    /// Those of a control group, and of the groups below it.
    Cgroup(PathBuf),
    /// Those of a container: the beginning of its ID, or its name.
    Container(String),
    /// Those of a pod of Kubernetes.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "--name {name}"),
            Self::Unit(unit) => write!(f, "--unit {unit}"),
            Self::Cgroup(path) => write!(f, "--cgroup {}", path.display()),
            Self::Container(id) => write!(f, "--container {id}"),
            Self::Pod { namespace, name } => write!(f, "--pod {namespace}/{name}"),
        }
    }
}

/// Nothing is there, or too much: one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{selector}: {why}; {remedy}")]
pub struct SelectError {
    selector: Selector,
    why: String,
    remedy: String,
}

/// Longest command name that the kernel keeps, bytes (TASK_COMM_LEN).
const COMM_LENGTH: usize = 15;

/// How processes of a selector are told from others, as things are now.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Criterion {
    Name(String),
    /// A group with this name, or one below it.
    GroupNamed(String),
    Group(ControlGroup),
    /// A group that is named for this container.
    Container(String),
    /// A group that is named for a pod of this UID.
    Pod(String),
}

/// A selector, and what it comes to on this machine.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    selector: Selector,
    rule: Criterion,
}

impl Chosen {
    /// Finds out what is meant. `host`: the folder that the machine's files are in, `/`.
    pub(crate) fn of(selector: &Selector, host: &Path) -> Result<Self, SelectError> {
        let rule = match selector {
            Selector::Name(name) => Criterion::Name(name.clone()),
            Selector::Unit(unit) => Criterion::GroupNamed(with_suffix(unit)),
            Selector::Cgroup(path) => Criterion::Group(group(selector, path)?),
            Selector::Container(id) => Criterion::Container(container_id(selector, id, host)?),
            Selector::Pod { namespace, name } => Criterion::Pod(pod_uid(selector, namespace, name, host)?),
        };
        Ok(Self { selector: selector.clone(), rule })
    }

    /// A process is meant. One that has ended is not.
    pub(crate) fn takes(&self, pid: u32) -> bool {
        let of_groups = |is_meant: &dyn Fn(&Groups) -> bool| Groups::of(pid).is_ok_and(|all| is_meant(&all));
        match &self.rule {
            Criterion::Name(name) => has_name(pid, name),
            Criterion::GroupNamed(name) => of_groups(&|groups| groups.names().any(|one| one == name)),
            Criterion::Group(group) => of_groups(&|groups| group.has(groups)),
            Criterion::Container(id) => {
                of_groups(&|groups| groups.names().any(|one| one == id || container_of(one) == Some(id)))
            }
            Criterion::Pod(uid) => {
                of_groups(&|groups| groups.names().any(|one| containers::pod_of(one).as_ref() == Some(uid)))
            }
        }
    }

    /// All processes that are meant, but for ourselves and the kernel's.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let ours = std::process::id();
        let is_program = |pid: &u32| *pid != ours && has_program(*pid);
        processes().into_iter().filter(|pid| self.takes(*pid)).filter(is_program).collect()
    }

    /// That there is none, and what there is like it.
    pub(crate) fn nothing_found(&self) -> SelectError {
        let (why, remedy) = match &self.selector {
            Selector::Name(name) => {
                ("no process has this name".to_owned(), like(name, "process", &names_of_processes()))
            }
            Selector::Unit(_) => {
                let Criterion::GroupNamed(unit) = &self.rule else { return self.error("", "") };
                let ending = unit.rsplit_once('.').map_or("", |(_, ending)| ending);
                let is_unit = |name: &str| name.ends_with(ending) && name.len() > ending.len() + 1;
                let units = names_of_groups(|name| is_unit(name).then(|| name.to_owned()));
                (format!("no process is in a control group named {unit}"), like(unit, "unit", &units))
            }
            Selector::Cgroup(path) => {
                let groups = paths_of_groups();
                let group = path.to_string_lossy();
                ("no process is in it or in a group below it".to_owned(), like(&group, "group", &groups))
            }
            Selector::Container(_) => {
                let ids = names_of_groups(|name| container_of(name).map(short));
                ("no process is in this container".to_owned(), like("", "container", &ids))
            }
            Selector::Pod { .. } => {
                ("none of its processes runs".to_owned(), "is it on this machine?".to_owned())
            }
        };
        self.error(&why, &remedy)
    }

    fn error(&self, why: &str, remedy: &str) -> SelectError {
        SelectError { selector: self.selector.clone(), why: why.to_owned(), remedy: remedy.to_owned() }
    }
}

/// The first characters of a container's ID, as its tools print it.
fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

/// A unit's name in full: `nginx` is `nginx.service`, as for systemctl.
fn with_suffix(unit: &str) -> String {
    const KINDS: [&str; 4] = [".service", ".scope", ".slice", ".socket"];
    if KINDS.iter().any(|kind| unit.ends_with(kind)) { unit.to_owned() } else { format!("{unit}.service") }
}

/// A kernel thread has none (proc(5), /proc/PID/exe). Of one that we may not look at it is said
/// when it is to be traced.
fn has_program(pid: u32) -> bool {
    fs::read_link(path_of(pid, "exe"))
        .map_or_else(|error| error.kind() == ErrorKind::PermissionDenied, |_| true)
}

/// The process or its program has this name. The kernel keeps the first 15 bytes of a name.
fn has_name(pid: u32, name: &str) -> bool {
    let Some(comm) = thread_comm(pid) else { return false };
    if comm == name {
        return true;
    }
    let program = || fs::read_link(path_of(pid, "exe")).ok();
    let is_program = || program().is_some_and(|path| path.file_name() == Some(OsStr::new(name)));
    // A program's own name for itself goes before its file's: asked only if it may have been cut.
    let is_cut = comm.len() == COMM_LENGTH && name.starts_with(&comm);
    is_cut && (is_program() || first_word_of(pid).is_some_and(|word| word == name)) || is_program()
}

/// The file name of the first word of a process's command line.
fn first_word_of(pid: u32) -> Option<String> {
    let line = fs::read(path_of(pid, "cmdline")).ok()?;
    let word = String::from_utf8_lossy(line.split(|byte| *byte == 0).next()?).into_owned();
    Some(Path::new(&word).file_name()?.to_string_lossy().into_owned())
}

/// The group that a path names.
fn group(selector: &Selector, path: &Path) -> Result<ControlGroup, SelectError> {
    ControlGroup::of(path).ok_or_else(|| SelectError {
        selector: selector.clone(),
        why: "no control group has this path".to_owned(),
        remedy: "give a path in /sys/fs/cgroup, or as /proc/PID/cgroup has it".to_owned(),
    })
}

/// The whole ID of a container. A name goes before the beginning of an ID, as for docker; `kubectl`
/// writes the runtime before an ID (`containerd://ID`).
fn container_id(selector: &Selector, id: &str, host: &Path) -> Result<String, SelectError> {
    let running: BTreeSet<String> =
        groups_of_all().iter().flat_map(Groups::names).filter_map(container_of).map(str::to_owned).collect();
    let mut found: Vec<String> =
        containers::ids_of(id, host).into_iter().filter(|one| running.contains(one)).collect();
    if found.is_empty() {
        let digits = id.split_once("://").map_or(id, |(_, digits)| digits).to_ascii_lowercase();
        let is_hex = digits.len() >= 3 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        found = running.into_iter().filter(|one| is_hex && one.starts_with(&digits)).collect();
    }
    let error = |why: String, remedy: String| SelectError { selector: selector.clone(), why, remedy };
    match found.as_slice() {
        [one] => Ok(one.clone()),
        // What runs without an ID of the usual form has the group of its name.
        [] => Ok(id.to_owned()),
        several => {
            let ids: Vec<String> = several.iter().take(5).map(|id| short(id)).collect();
            let why = format!("{} containers are named so: {}", several.len(), ids.join(", "));
            Err(error(why, "give one ID".to_owned()))
        }
    }
}

/// The UID of a pod, by the folder of its logs.
fn pod_uid(selector: &Selector, namespace: &str, name: &str, host: &Path) -> Result<String, SelectError> {
    let pods = pods(host);
    let found = pods.iter().rev().find(|pod| pod.namespace == namespace && pod.name == name);
    match found {
        Some(pod) => Ok(pod.uid.clone()),
        None => {
            let names: BTreeMap<String, u64> =
                pods.iter().map(|pod| (format!("{}/{}", pod.namespace, pod.name), 1)).collect();
            let why = format!("/var/log/pods has no folder of it ({} pods have one)", names.len());
            let remedy = like(&format!("{namespace}/{name}"), "pod", &names);
            Err(SelectError { selector: selector.clone(), why, remedy })
        }
    }
}

fn groups_of_all() -> Vec<Groups> {
    processes().into_iter().filter_map(|pid| Groups::of(pid).ok()).collect()
}

/// Names that processes have, with how many of each.
fn names_of_processes() -> BTreeMap<String, u64> {
    let mut names = BTreeMap::new();
    for pid in processes() {
        // Kernel threads have no program.
        if fs::read_link(path_of(pid, "exe")).is_ok()
            && let Some(comm) = thread_comm(pid)
        {
            *names.entry(comm).or_default() += 1;
        }
    }
    names
}

/// Names in the paths of groups that processes are in, with how many are in each.
fn names_of_groups(named: impl Fn(&str) -> Option<String>) -> BTreeMap<String, u64> {
    let mut names = BTreeMap::new();
    for groups in groups_of_all() {
        let of_process: BTreeSet<String> = groups.names().filter_map(&named).collect();
        of_process.into_iter().for_each(|name| *names.entry(name).or_default() += 1);
    }
    names
}

/// Paths of groups that processes are in.
fn paths_of_groups() -> BTreeMap<String, u64> {
    let mut paths = BTreeMap::new();
    for groups in groups_of_all() {
        let of_process: BTreeSet<String> =
            groups.iter().map(|(_, path)| path.to_string_lossy().into_owned()).collect();
        of_process.into_iter().for_each(|path| *paths.entry(path).or_default() += 1);
    }
    paths
}

/// What there is that is most like `name`.
fn like(name: &str, what: &str, candidates: &BTreeMap<String, u64>) -> String {
    const MOST: usize = 3;
    let first = by_likeness(name, candidates.keys().map(String::as_str));
    let of = |name: &str| match candidates.get(name) {
        Some(1) | None => name.to_owned(),
        Some(several) => format!("{name} ({several} processes)"),
    };
    let first: Vec<String> = first.into_iter().take(MOST).map(of).collect();
    match first.as_slice() {
        [] => format!("there is no {what} at all on this machine, or none that we can see"),
        several => format!("most like it: {}", several.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(selector: Selector) -> Chosen {
        Chosen::of(&selector, Path::new("/")).expect("can be looked for")
    }

    #[test]
    fn a_unit_has_an_ending() {
        assert_eq!(with_suffix("nginx"), "nginx.service");
        assert_eq!(with_suffix("system.slice"), "system.slice");
        assert_eq!(with_suffix("getty@tty1"), "getty@tty1.service");
    }

    #[test]
    fn what_is_not_there_is_one_line_with_what_is() {
        let name = thread_comm(std::process::id()).expect("our own name");
        let wrong: String = name.chars().rev().collect::<String>() + "zz";
        let error = selection(Selector::Name(wrong.clone())).nothing_found().to_string();
        assert!(
            error.starts_with(&format!("--name {wrong}: no process has this name; most like it: ")),
            "{error}"
        );
        for selector in [
            Selector::Unit("no-such".to_owned()),
            Selector::Cgroup("/no/such/group".into()),
            Selector::Container("0123456789ab".to_owned()),
        ] {
            let selection = selection(selector);
            assert!(selection.processes().is_empty());
            assert_eq!(selection.nothing_found().to_string().lines().count(), 1);
        }
    }

    #[test]
    fn a_pod_is_found_by_the_folder_of_its_logs() {
        let host = tempfile::tempdir().expect("a folder");
        let uid = "0f4e0d1c-7a52-4a7e-9c0f-2f6d3b1a5e66";
        fs::create_dir_all(host.path().join(format!("var/log/pods/shop_web-7d4b_{uid}"))).expect("made");
        let pod = |name: &str| Selector::Pod { namespace: "shop".to_owned(), name: name.to_owned() };
        let found = Chosen::of(&pod("web-7d4b"), host.path()).expect("is there");
        assert_eq!(found.rule, Criterion::Pod(uid.to_owned()));
        let error = Chosen::of(&pod("web"), host.path()).expect_err("is not").to_string();
        assert!(error.contains("most like it: shop/web-7d4b"), "{error}");
    }

    #[test]
    fn we_are_found_by_our_program() {
        let exe = std::env::current_exe().expect("our program");
        let name = exe.file_name().and_then(OsStr::to_str).expect("its name").to_owned();
        assert!(has_name(std::process::id(), &name) && !has_name(std::process::id(), "sh"));
        assert!(!selection(Selector::Name(name)).processes().contains(&std::process::id()));
    }
}
