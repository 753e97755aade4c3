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
    /// From a path in a cgroup file system, or as /proc/PID/cgroup has it. `None` of one that means
    /// something only from where we are, and is not in such a file system.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        // /sys/fs/cgroup/cpu is a link to cpu,cpuacct.
        let found = fs::canonicalize(path).ok().and_then(|path| Self::among(&mounts, &path));
        found.or_else(|| Self::among(&mounts, path)).or_else(|| Self::listed(path))
    }

    /// As /proc/PID/cgroup has it: the path alone, or the whole line.
    fn listed(path: &Path) -> Option<Self> {
        let named = path.to_str().and_then(|line| {
            let (number, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            number.parse::<u32>().ok()?;
            Some((controllers.rsplit(',').next()?.to_owned(), Path::new(path)))
        });
        let (controller, path) = named.map_or((None, path), |(controller, path)| (Some(controller), path));
        // What is left of `.` would be the root, which all processes are in.
        let is_plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
        if !path.components().all(is_plain) {
            return None;
        }
        Some(Self { controller, path: Path::new("/").join(path).components().collect() })
    }

    /// In one of these mounts.
    fn among(mounts: &str, path: &Path) -> Option<Self> {
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
        let (below, root, _, controller) = places.max_by_key(|(_, _, at, _)| at.components().count())?;
        let path = Path::new(&root).join(below);
        // Version 1 writes a hierarchy without controllers as name=NAME.
        Some(Self { controller: Some(controller), path: path.components().collect() })
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
        let group = |path: &str| {
            let path = Path::new(path);
            ControlGroup::among(MOUNTS, path).or_else(|| ControlGroup::listed(path)).expect("a group")
        };
        let has = |path: &str| group(path).has(&groups);
        assert!(has("/sys/fs/cgroup/memory/a") && has("/sys/fs/cgroup/memory/a/b/") && has("/a/b"));
        assert!(has("4:memory:/a/b") && has("3:cpu,cpuacct:/") && has("1:name=systemd:/s") && has("0::/u"));
        assert!(!has("3:cpu:/a") && !has("0::/a/b") && !has("u/v"));
        assert!(has("/u/v:w") && has("a") && has("/sys/fs/cgroup/systemd/s"));
        assert!(has("/sys/fs/cgroup/unified/u") && !has("/sys/fs/cgroup/unified/a"));
        assert!(!has("/sys/fs/cgroup/memory/u") && !has("/a/bc") && !has("/sys/fs/cgroup/memory/a/b/c"));
    }

    #[test]
    fn the_root_of_a_mount_is_a_group_of_its_own() {
        let mounts = "31 30 0:27 /kubepods /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        let group = ControlGroup::among(mounts, Path::new("/sys/fs/cgroup/pod1")).expect("is in it");
        assert!(group.has(&Groups::parse("0::/kubepods/pod1/c\n")));
        assert!(!group.has(&Groups::parse("0::/pod1\n")));
    }

    /// All processes are in the root, which a path from here must not come to.
    #[test]
    fn a_path_from_here_is_no_group() {
        let here = tempfile::tempdir().expect("a folder");
        let linked = here.path().join("link");
        std::os::unix::fs::symlink(here.path(), &linked).expect("made");
        for path in [".", "..", "./a", "/a/../b", "4:memory:.."] {
            assert_eq!(ControlGroup::of(Path::new(path)), None, "{path}");
        }
        // What a link leads to counts only if it is a group.
        assert_eq!(ControlGroup::of(&linked).expect("a path").path, linked);
    }

    #[test]
    fn names_of_paths() {
        let groups = Groups::parse("0::/../system.slice/nginx.service\n");
        assert_eq!(groups.names().collect::<Vec<_>>(), ["system.slice", "nginx.service"]);
        assert!(Groups::of(std::process::id()).unwrap().iter().next().is_some());
    }
}
