//! Kernels to boot: which series there are, where Debian keeps them, and how they come into the
//! cache.

use std::{
    cmp::Ordering,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use xtask::run;

use super::emulated::Emulated;
use crate::debian::Archive;

/// What memleak must do on a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// Trace: the live tests pass.
    Traces,
    /// Say in one line that the kernel is too old, and end with status 1.
    Refuses,
}

/// A series of kernels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Series {
    /// As in `--kernel`.
    pub name: &'static str,
    /// The Debian release whose main and security archives have it.
    pub release: &'static str,
    /// What memleak must do there.
    pub expected: Expected,
}

/// The matrix. Debian has no 5.15, 5.19 or anything else between 5.10 and 6.1.
pub(super) const MATRIX: [Series; 3] = [
    Series { name: "5.10", release: "bullseye", expected: Expected::Refuses },
    Series { name: "6.1", release: "bookworm", expected: Expected::Traces },
    Series { name: "6.12", release: "trixie", expected: Expected::Traces },
];

/// Where all newer series are: 6.16 and what came after it, for as long as the mirror keeps them.
const NEWER: &str = "trixie-backports";

/// A kernel that can be booted.
#[derive(Debug)]
pub(super) struct Kernel {
    /// The series or the file's name: what reports call it.
    pub name: String,
    /// The compressed kernel (`vmlinuz`).
    pub image: PathBuf,
    /// Its modules (`.../lib/modules/VERSION`), if they are known.
    pub modules: Option<PathBuf>,
    /// What memleak must do there.
    pub expected: Expected,
}

impl Kernel {
    /// The newest kernel of a series: from the cache, which is filled first if it has none.
    pub(super) fn of_series(series: &str, emulated: Emulated, cache: &Path) -> Result<Self> {
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        ensure!(
            matches!(series.split('.').collect::<Vec<_>>()[..], [major, minor] if digits(major) && digits(minor)),
            "`{series}` is not a series of kernels: type two numbers, as in --kernel 6.12"
        );
        let row = MATRIX.iter().find(|row| row.name == series);
        let unpacked = cache.join(format!("linux-{series}{}", emulated.suffix()));
        if !unpacked.is_dir() {
            let release = row.map_or(NEWER, |row| row.release);
            fetch((series, release), emulated, cache, &unpacked)
                .with_context(|| format!("cannot get a kernel {series}: give one by --kernel-image PATH"))?;
        }
        let image = only_entry(&unpacked.join("boot"), "vmlinuz-")?;
        let expected = row.map_or(Expected::Traces, |row| row.expected);
        Ok(Self { name: series.to_owned(), modules: modules_of(&image), image, expected })
    }

    /// A kernel that the user has. Its modules are looked for beside it, as packages have them, and
    /// where installed kernels have theirs.
    pub(super) fn of_image(image: &Path) -> Result<Self> {
        ensure!(image.is_file(), "{} is not a file", image.display());
        let name = image.file_name().unwrap_or(image.as_os_str()).to_string_lossy().into_owned();
        Ok(Self { name, image: image.to_owned(), modules: modules_of(image), expected: Expected::Traces })
    }
}

/// The modules of `.../boot/vmlinuz-VERSION`.
fn modules_of(image: &Path) -> Option<PathBuf> {
    let version = image.file_name()?.to_str()?.strip_prefix("vmlinuz-")?;
    let unpacked = image.parent()?.parent()?;
    [unpacked.join("lib/modules"), PathBuf::from("/lib/modules")]
        .into_iter()
        .map(|modules| modules.join(version))
        .find(|modules| modules.is_dir())
}

/// The one entry of a folder whose name begins so.
fn only_entry(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    let [only] = found.as_slice() else { bail!("{} has not one {prefix}*: {found:?}", folder.display()) };
    Ok(only.clone())
}

/// Downloads the newest kernel of a series and unpacks it to `unpacked`, which appears when it is
/// complete.
fn fetch((series, release): (&str, &str), emulated: Emulated, cache: &Path, unpacked: &Path) -> Result<()> {
    let work = cache.join(format!("fetch-{}", std::process::id()));
    let fetched = fetch_into(series, release, emulated.debian(), &work).and_then(|()| {
        let kernel = work.join("kernel");
        arrange(&kernel)?;
        run::run(Command::new("depmod").arg("-b").arg(&kernel).arg(version_in(&kernel)?))?;
        fs::rename(kernel, unpacked).context("cannot name the unpacked kernel")
    });
    let removed = fs::remove_dir_all(&work);
    fetched?;
    removed.context("cannot remove the folder that apt worked in")
}

/// Gives what newer packages unpack the places of older ones: modules in usr/lib, and from 7.0 on
/// the kernel beside them.
fn arrange(kernel: &Path) -> Result<()> {
    if !kernel.join("lib").exists() {
        symlink("usr/lib", kernel.join("lib"))?;
    }
    if !kernel.join("boot").exists() {
        let modules = only_entry(&kernel.join("lib/modules"), "")?;
        let version = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
        fs::create_dir(kernel.join("boot"))?;
        let image = Path::new("../lib/modules").join(&version).join("vmlinuz");
        symlink(image, kernel.join(format!("boot/vmlinuz-{version}")))?;
    }
    Ok(())
}

/// `VERSION` of `boot/vmlinuz-VERSION`.
fn version_in(kernel: &Path) -> Result<String> {
    let image = only_entry(&kernel.join("boot"), "vmlinuz-")?;
    let name = image.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(name.trim_start_matches("vmlinuz-").to_owned())
}

fn fetch_into(series: &str, release: &str, machine: &str, work: &Path) -> Result<()> {
    let archive = Archive::open(work, release, machine)?;
    let pattern = format!("^linux-image-{}[.-].*-cloud-{machine}$", series.replace('.', "[.]"));
    let names = run::output(archive.apt("apt-cache").args(["search", "--names-only", &pattern]))?;
    let newest = newest(&names).with_context(|| format!("{release} has no cloud kernel {series}"))?;
    let depends = run::output(archive.apt("apt-cache").args(["depends", "--important", newest]))?;
    archive.unpack(std::iter::once(newest).chain(parts(&depends)), &work.join("kernel"))
}

/// The kernel with the greatest version, in the output of `apt-cache search`.
fn newest(names: &str) -> Option<&str> {
    let names = names.lines().filter_map(|line| line.split(' ').next());
    names.max_by(|left, right| compare_versions(left, right))
}

/// By the numbers in them, one after the other.
fn compare_versions(left: &str, right: &str) -> Ordering {
    let numbers = |name: &str| -> Vec<u64> {
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    numbers(left).cmp(&numbers(right))
}

/// What newer kernels have in packages of their own, in the output of `apt-cache depends`.
fn parts(depends: &str) -> impl Iterator<Item = &str> {
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.filter(|name| {
        ["linux-base-", "linux-binary-", "linux-modules-"].iter().any(|part| name.starts_with(part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_kernel_is_by_numbers() {
        let names = "linux-image-6.12.9+deb13-cloud-amd64 - Linux 6.12\nlinux-image-6.12.117+deb13-cloud-amd64 - x\n\
                     linux-image-6.12.90+deb13.1-cloud-amd64 - x\n";
        assert_eq!(newest(names), Some("linux-image-6.12.117+deb13-cloud-amd64"));
        assert_eq!(newest(""), None);
    }

    #[test]
    fn modules_in_packages_of_their_own_are_found() {
        let depends = "linux-image-7.3.4-cloud-amd64\n |Depends: dracut\n  Depends: linux-base\n  Depends: linux-base-7.3.4\n  \
                       Depends: linux-binary-7.3.4-cloud-amd64\n  Depends: linux-modules-7.3.4-cloud-amd64\n";
        let expected =
            ["linux-base-7.3.4", "linux-binary-7.3.4-cloud-amd64", "linux-modules-7.3.4-cloud-amd64"];
        assert_eq!(parts(depends).collect::<Vec<_>>(), expected);
    }
}
