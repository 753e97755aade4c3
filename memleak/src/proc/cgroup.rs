//! The control groups that processes are in (cgroups(7)).

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use super::living::path_of;

/// What /proc/PID/cgroup says: a group of each hierarchy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Groups(String);

impl Groups {
    /// Those of a process.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        Ok(Self(String::from_utf8_lossy(&fs::read(path_of(pid, "cgroup"))?).into_owned()))
    }

    /// From the text of the file.
    #[cfg(test)]
    pub(crate) fn parse(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Each group: the hierarchy's controllers (none: version 2), and the group's path there.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.0.lines().filter_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            Some((controllers, Path::new(path)))
        })
    }

    /// The names in the paths of all of them.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.iter().flat_map(|(_, path)| path.components()).filter_map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
    }
}

/// A group that a user has named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ControlGroup {
    /// A controller of its hierarchy, empty for version 2; `None`: it is looked for in all.
    controller: Option<String>,
    path: PathBuf,
}

impl ControlGroup {
    /// From a path in a cgroup file system, or as /proc/PID/cgroup has it.
    pub(crate) fn of(path: &Path) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self::among(&mounts, path)
    }

    fn among(mounts: &str, path: &Path) -> Self {
        let places = mounts.lines().filter_map(|line| {
            // proc_pid_mountinfo(5).
            let (place, source) = line.split_once(" - ")?;
            let mut source = source.split(' ');
            let kind = source.next()?;
            let controller = match kind {
                "cgroup2" => "",
                // The last ones are the hierarchy's own: rw,cpu,cpuacct.
                "cgroup" => source.nth(1)?.rsplit(',').next()?,
                _ => return None,
            };
            let mut place = place.split(' ').skip(3);
            let (root, at) = (place.next()?, Path::new(place.next()?));
            Some((path.strip_prefix(at).ok()?.to_owned(), root.to_owned(), at, controller.to_owned()))
        });
        // Of mounts within each other the inner one.
        match places.max_by_key(|(_, _, at, _)| at.components().count()) {
            Some((below, root, _, controller)) => {
                let path = Path::new(&root).join(below);
                // Version 1 writes a hierarchy without controllers as name=NAME.
                Self { controller: Some(controller), path: path.components().collect() }
            }
            None => Self { controller: None, path: Path::new("/").join(path).components().collect() },
        }
    }

    /// A process with these groups is in it, or in one below it.
    pub(crate) fn has(&self, groups: &Groups) -> bool {
        groups.iter().any(|(controllers, path)| {
            let is_hierarchy = self.controller.as_ref().is_none_or(|controller| match controller.as_str() {
                "" => controllers.is_empty(),
                one => controllers.split(',').any(|other| other == one),
            });
            is_hierarchy && path.starts_with(&self.path)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
30 24 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs rw\n\
31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup systemd rw,xattr,name=systemd\n\
33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn a_group_has_its_processes_and_those_below() {
        let groups = Groups::parse("4:memory:/a/b\n3:cpu,cpuacct:/\n1:name=systemd:/s\n0::/u/v:w\n");
        let has = |path: &str| ControlGroup::among(MOUNTS, Path::new(path)).has(&groups);
        assert!(has("/sys/fs/cgroup/memory/a") && has("/sys/fs/cgroup/memory/a/b/") && has("/a/b"));
        assert!(has("/u/v:w") && has("a") && has("/sys/fs/cgroup/systemd/s"));
        assert!(has("/sys/fs/cgroup/unified/u") && !has("/sys/fs/cgroup/unified/a"));
        assert!(!has("/sys/fs/cgroup/memory/u") && !has("/a/bc") && !has("/sys/fs/cgroup/memory/a/b/c"));
    }

    #[test]
    fn the_root_of_a_mount_is_a_group_of_its_own() {
        let mounts = "31 30 0:27 /kubepods /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        let group = ControlGroup::among(mounts, Path::new("/sys/fs/cgroup/pod1"));
        assert!(group.has(&Groups::parse("0::/kubepods/pod1/c\n")));
        assert!(!group.has(&Groups::parse("0::/pod1\n")));
    }

    #[test]
    fn names_of_paths() {
        let groups = Groups::parse("0::/../system.slice/nginx.service\n");
        assert_eq!(groups.names().collect::<Vec<_>>(), ["system.slice", "nginx.service"]);
        assert!(Groups::of(std::process::id()).unwrap().iter().next().is_some());
    }
}
