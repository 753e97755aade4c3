//! The memory that our control groups leave us: one that uses more is killed without a word.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Files of a group, of either version (Documentation/admin-guide/cgroup-v2.rst and
/// cgroup-v1/memory.rst): limit, use, statistics, and in these what the kernel gives back first,
/// the pages of files.
struct FileNames {
    limit: &'static str,
    used: &'static str,
    files: &'static str,
}

const VERSION_1: FileNames =
    FileNames { limit: "memory.limit_in_bytes", used: "memory.usage_in_bytes", files: "total_cache" };
const VERSION_2: FileNames = FileNames { limit: "memory.max", used: "memory.current", files: "file" };

/// Bytes that we may still use: the least that one of our groups and those above them leaves.
/// `None`: there is no limit, or nothing names it.
pub(crate) fn memory_left() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    left_in(&groups, &mounts)
}

/// Bytes that we may use: what the machine has to give (/proc/meminfo, MemAvailable), or less if
/// our control groups leave less. `None` if nothing tells.
pub(crate) fn memory_available() -> Option<u64> {
    [meminfo("MemAvailable:"), memory_left()].into_iter().flatten().min()
}

/// Bytes of memory that the machine has.
pub(crate) fn memory_total() -> Option<u64> {
    meminfo("MemTotal:")
}

/// A line of /proc/meminfo (proc_meminfo(5)), bytes.
fn meminfo(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn left_in(groups: &str, mounts: &str) -> Option<u64> {
    mounts.lines().filter_map(Mount::parse).filter_map(|mount| mount.left(groups)).min()
}

/// A place where groups that limit memory are mounted.
struct Mount {
    /// The group that is there.
    root: PathBuf,
    at: PathBuf,
    names: &'static FileNames,
}

impl Mount {
    /// Of a line of /proc/PID/mountinfo (proc_pid_mountinfo(5)).
    fn parse(line: &str) -> Option<Self> {
        let (place, source) = line.split_once(" - ")?;
        let mut source = source.split(' ');
        let names = match (source.next()?, source.nth(1)?) {
            ("cgroup2", _) => &VERSION_2,
            ("cgroup", options) if options.split(',').any(|option| option == "memory") => &VERSION_1,
            _ => return None,
        };
        let mut place = place.split(' ').skip(3);
        Some(Self { root: place.next()?.into(), at: place.next()?.into(), names })
    }

    /// What the group that we are in here, and those above it, leave us.
    fn left(&self, groups: &str) -> Option<u64> {
        let is_ours = |controllers: &str| match self.names.limit == VERSION_2.limit {
            true => controllers.is_empty(),
            false => controllers.split(',').any(|controller| controller == "memory"),
        };
        // A line is ID:CONTROLLERS:PATH (cgroups(7)).
        let path = groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            is_ours(controllers).then_some(path)
        })?;
        let below = Path::new(path).strip_prefix(&self.root).ok()?;
        let group = self.at.join(below);
        group
            .ancestors()
            .take_while(|group| group.starts_with(&self.at))
            .filter_map(|g| self.names.left(g))
            .min()
    }
}

impl FileNames {
    fn left(&self, group: &Path) -> Option<u64> {
        let number = |name| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
        // Version 2 says `max` if there is no limit, version 1 a number near the highest one.
        let limit = number(self.limit).filter(|limit| *limit < 1 << 60)?;
        let statistics = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        let of_files = statistics.lines().find_map(|line| line.strip_prefix(self.files)?.trim().parse().ok());
        let used = number(self.used)?.saturating_sub(of_files.unwrap_or(0));
        Some(limit.saturating_sub(used))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(path: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(path).expect("a folder");
        for (name, text) in files {
            fs::write(path.join(name), text).expect("a file");
        }
    }

    #[test]
    fn the_least_that_a_group_leaves_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let (at, inner) = (folder.path(), folder.path().join("a/b"));
        let mounts = format!("31 24 0:27 / {} rw - cgroup2 cgroup2 rw,nsdelegate\n", at.display());
        assert_eq!(left_in("0::/a/b\n", &mounts), None);
        group(&inner, &[("memory.max", "max\n"), ("memory.current", "7\n")]);
        assert_eq!(left_in("0::/a/b\n", &mounts), None);
        let stat = "anon 900\nfile 100\nfile_mapped 50\n";
        let files = [("memory.max", "5000\n"), ("memory.current", "1000\n"), ("memory.stat", stat)];
        group(&at.join("a"), &files);
        assert_eq!(left_in("0::/a/b\n", &mounts), Some(4100));
        group(&inner, &[("memory.max", "1000\n")]);
        assert_eq!(left_in("0::/a/b\n", &mounts), Some(993));
        assert_eq!(left_in("0::/a\n", &mounts), Some(4100));
        // A namespace whose root is the group itself.
        let mounts = mounts.replacen(" / ", " /x ", 1);
        assert_eq!((left_in("0::/x/a/b\n", &mounts), left_in("0::/y\n", &mounts)), (Some(993), None));
    }

    #[test]
    fn version_1_counts_too() {
        let folder = tempfile::tempdir().expect("a folder");
        let mounts = format!(
            "30 24 0:26 / /nowhere rw - cgroup cgroup rw,cpu\n31 24 0:27 / {} rw - cgroup cgroup rw,memory\n",
            folder.path().display()
        );
        let none = "9223372036854771712\n";
        group(folder.path(), &[("memory.limit_in_bytes", none), ("memory.usage_in_bytes", "1\n")]);
        let groups = "5:memory:/m\n4:cpu:/c\n0::/\n";
        assert_eq!(left_in(groups, &mounts), None);
        let stat = "cache 1\ntotal_cache 300\n";
        let files =
            [("memory.limit_in_bytes", "1000\n"), ("memory.usage_in_bytes", "500\n"), ("memory.stat", stat)];
        group(&folder.path().join("m"), &files);
        assert_eq!(left_in(groups, &mounts), Some(800));
    }
}
