//! The guest's two disks: one with the programs of this machine's packages, kept from run to run,
//! and one with what was just built.
//!
//! Both are ext4 images made of a staged folder of hard links, if the file system allows them,
//! without mounting anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::symlink,
    path::{Component, Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use sha2::{Digest as _, Sha256};
use xtask::run;

/// Folders of packages that no test reads.
pub(super) const LEFT_OUT: [&str; 6] = [
    "/usr/share/doc",
    "/usr/share/man",
    "/usr/share/locale",
    "/usr/share/info",
    "/usr/share/lintian",
    "/usr/share/perl",
];

/// Files that no package owns and programs need.
const UNOWNED: [&str; 7] = [
    "/etc/alternatives",
    "/etc/group",
    "/etc/hostname",
    "/etc/ld.so.cache",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/usr/bin/awk",
];

/// Folders that the guest mounts something on.
pub(super) const MOUNT_POINTS: [&str; 8] = ["dev", "proc", "sys", "tmp", "run", "root", "var/tmp", "built"];

/// The disk with these packages, and those they need, as they are installed here. Made once for the
/// same versions.
pub(super) fn of_packages(wanted: &[&str], cache: &Path) -> Result<PathBuf> {
    let format =
        "--showformat=${Package}\t${Version}\t${db:Status-Status}\t${Provides}\t${Pre-Depends}, ${Depends}\n";
    let database = run::output(Command::new("dpkg-query").args(["--show", format]))?;
    let packages = closure(&database, wanted);
    let mut hasher = Sha256::new();
    hasher.update(include_bytes!("disks.rs")); // another way to make it makes another disk
    packages.iter().for_each(|(name, version)| hasher.update(format!("{name} {version}\n")));
    let hash: String = hasher.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let image = cache.join(format!("packages-{hash}.ext4"));
    if image.is_file() {
        return Ok(image);
    }
    remove_older(cache, "packages-")?;
    let staged = Staged::new(&cache.join(format!("stage-{}", std::process::id())))?;
    let files = run::output(Command::new("dpkg-query").arg("--listfiles").args(packages.keys()))?;
    for path in files.lines().filter(|line| line.starts_with('/')) {
        if !LEFT_OUT.iter().any(|folder| Path::new(path).starts_with(folder)) {
            staged.add_one(Path::new(path))?;
        }
    }
    for path in UNOWNED.map(Path::new) {
        staged.add(path)?;
    }
    for top in ["/bin", "/sbin", "/lib", "/lib64", "/lib32", "/libx32"].map(Path::new) {
        staged.add_one(top)?; // links into /usr, or folders
    }
    for folder in MOUNT_POINTS {
        fs::create_dir_all(staged.folder.join(folder))?;
    }
    staged.write(&image)?;
    Ok(image)
}

/// The disk with these files and folders of this machine, at the same paths.
pub(super) fn of_paths(paths: &[PathBuf], extra: &[(&str, &str)], work: &Path) -> Result<PathBuf> {
    let staged = Staged::new(&work.join("stage"))?;
    for path in paths {
        staged.add(path)?;
    }
    for (name, content) in extra {
        fs::write(staged.folder.join(name), content)?;
    }
    let image = work.join("built.ext4");
    staged.write(&image)?;
    Ok(image)
}

pub(super) fn remove_older(cache: &Path, prefix: &str) -> Result<()> {
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// A folder that is about to become a disk; removed in the end.
pub(super) struct Staged {
    folder: PathBuf,
}

impl Staged {
    pub(super) fn new(folder: &Path) -> Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Where it is.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Adds a file, or a folder with all that is in it. What does not exist is left out.
    pub(super) fn add(&self, path: &Path) -> Result<()> {
        self.add_one(path)?;
        if path.is_dir() && !path.is_symlink() {
            for entry in fs::read_dir(path)? {
                self.add(&entry?.path())?;
            }
        }
        Ok(())
    }

    /// Adds a file, a link as a link, or an empty folder.
    fn add_one(&self, path: &Path) -> Result<()> {
        let Ok(found) = path.symlink_metadata() else { return Ok(()) };
        // dpkg names /lib/libx.so if /lib is a link to /usr/lib: to where the file really is.
        let parent = path.parent().unwrap_or(Path::new("/")).canonicalize()?;
        let below: PathBuf = parent.components().filter(|part| *part != Component::RootDir).collect();
        let folder = self.folder.join(below);
        fs::create_dir_all(&folder)?;
        let place = folder.join(path.file_name().unwrap_or_default());
        let added = if found.is_dir() {
            fs::create_dir_all(&place)
        } else if place.is_symlink() || place.exists() {
            Ok(())
        } else if found.is_symlink() {
            symlink(fs::read_link(path)?, &place)
        } else if found.is_file() {
            fs::hard_link(path, &place).or_else(|_| fs::copy(path, &place).map(drop))
        } else {
            Ok(())
        };
        added
            .or_else(|error| if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) })
            .with_context(|| format!("cannot stage {}", path.display()))
    }

    /// Writes the image, with room for what tests make. It appears when it is complete.
    pub(super) fn write(&self, image: &Path) -> Result<()> {
        let kilobytes = run::output(Command::new("du").args(["-sk", "--apparent-size"]).arg(&self.folder))?;
        let used: u64 =
            kilobytes.split_whitespace().next().unwrap_or_default().parse().context("du's output")?;
        let unfinished = image.with_extension("unfinished");
        let size = used / 1024 * 5 / 4 + 256;
        let mut mke2fs = Command::new(run::find_program("mke2fs").context("mke2fs is missing (e2fsprogs)")?);
        mke2fs.args(["-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal", "-d"]).arg(&self.folder);
        run::run(mke2fs.arg(&unfinished).arg(format!("{size}M")))?;
        fs::rename(&unfinished, image).context("cannot name the disk image")
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("note: cannot remove {}: {error}", self.folder.display());
        }
    }
}

/// The wanted packages that are installed, with all that they depend on, and their versions.
/// `database` has a line for each package: name, version, status, what it provides, what it depends
/// on.
fn closure<'a>(database: &'a str, wanted: &[&'a str]) -> BTreeMap<&'a str, &'a str> {
    let mut installed = BTreeMap::new();
    let mut providers: BTreeMap<&str, &str> = BTreeMap::new();
    for line in database.lines() {
        let [name, version, "installed", provides, depends] = line.split('\t').collect::<Vec<_>>()[..] else {
            continue;
        };
        installed.insert(name, (version, depends));
        let provided = provides.split(',').map(bare).filter(|provided| !provided.is_empty());
        providers.extend(provided.map(|provided| (provided, name)));
    }
    let resolve = |name: &'a str| {
        installed.get_key_value(name).map(|(name, _)| *name).or_else(|| providers.get(name).copied())
    };
    let mut found: BTreeSet<&str> = BTreeSet::new();
    let mut open: Vec<&str> = wanted.iter().filter_map(|name| resolve(name)).collect();
    while let Some(name) = open.pop() {
        if found.insert(name) {
            let (_, depends) = installed[name];
            let groups = depends.split(',');
            open.extend(groups.filter_map(|group| group.split('|').find_map(|name| resolve(bare(name)))));
        }
    }
    found.into_iter().map(|name| (name, installed[name].0)).collect()
}

/// `name` of `name:amd64 (>= 1.2)`.
fn bare(dependency: &str) -> &str {
    let name = dependency.trim().split([' ', '(', ':']).next();
    name.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closure_follows_alternatives_and_provided_names() {
        let database = "gcc\t4\tinstalled\tc-compiler\t, cpp (= 4), gcc-12:amd64 (>= 12) | clang\n\
                        cpp\t5\tinstalled\t\t, \ngcc-12\t6\tinstalled\t\tlibgcc, gone | virtual (>= 1)\n\
                        libgcc\t7\tinstalled\t\t, gcc-12\nreal\t8\tinstalled\tvirtual (= 2), other\t, \n\
                        gone\t9\tconfig-files\t\t, \nunwanted\t1\tinstalled\t\t, gcc\n";
        let packages = closure(database, &["c-compiler", "missing"]);
        let expected = [("cpp", "5"), ("gcc", "4"), ("gcc-12", "6"), ("libgcc", "7"), ("real", "8")];
        assert_eq!(packages.into_iter().collect::<Vec<_>>(), expected);
    }
}
