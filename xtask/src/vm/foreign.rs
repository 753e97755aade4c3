//! The disk of packages for another kind of machine than this one: downloaded and unpacked, with
//! none of their scripts run.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use sha2::{Digest as _, Sha256};

use super::disks::{LEFT_OUT, MOUNT_POINTS, Staged, remove_older};
use crate::debian::{self, Archive};

/// What the guest runs. Left out of what the tests take: Go's and Prometheus' tools and heaptrack,
/// which read our files on any machine, and qemu-user, which would be emulated itself.
const PACKAGES: [&str; 47] = [
    "base-files",
    "base-passwd",
    "bash",
    "binutils",
    "bpftool",
    "busybox-static",
    "clang",
    "coreutils",
    "dash",
    "debianutils",
    "findutils",
    "g++",
    "gdb",
    "git",
    "grep",
    "iproute2",
    "libc6-dbg",
    "libc6-dev",
    "libclang-rt-14-dev",
    "libgoogle-perftools-dev",
    "libjemalloc-dev",
    "libjemalloc2",
    "libmimalloc-dev",
    "libmimalloc2.0",
    "libpython3.11",
    "libsqlite3-0",
    "libssl3",
    "libtcmalloc-minimal4",
    "make",
    "mawk",
    "mount",
    "musl-tools",
    "ncurses-base",
    "nginx",
    "procps",
    "python3",
    "python3-minimal",
    "redis-server",
    "redis-tools",
    "rustc-web",
    "sed",
    "sqlite3",
    "systemtap-sdt-dev",
    "tar",
    "util-linux",
    "valgrind",
    "xz-utils",
];

/// Files of this machine that are the same on any.
const COPIED: [&str; 4] = ["/etc/group", "/etc/hostname", "/etc/nsswitch.conf", "/etc/passwd"];

/// What packages' scripts would link.
const LINKS: [(&str, &str); 4] = [
    ("usr/bin/awk", "mawk"),
    ("usr/bin/cc", "gcc"),
    ("usr/bin/c++", "g++"),
    ("usr/bin/which", "which.debianutils"),
];

/// A disk with packages, and the busybox among them.
pub(super) struct Foreign {
    pub disk: PathBuf,
    pub busybox: PathBuf,
}

/// The disk for a machine (`arm64`), of this machine's release of Debian. Made once for the same
/// versions, as long as what is cached is not removed; then apt is not asked.
pub(super) fn of_machine(machine: &str, cache: &Path) -> Result<Foreign> {
    let mut hasher = Sha256::new();
    hasher.update(include_bytes!("foreign.rs")); // another way to make it makes another disk
    let hash: String = hasher.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let prefix = format!("foreign-{machine}-");
    let disk = cache.join(format!("{prefix}{hash}.ext4"));
    let busybox = cache.join(format!("{prefix}{hash}.busybox"));
    if disk.is_file() && busybox.is_file() {
        return Ok(Foreign { disk, busybox });
    }
    remove_older(cache, &prefix)?;
    let work = cache.join(format!("fetch-{}", std::process::id()));
    let archive = Archive::open(&work, &debian::own_release()?, machine)?;
    let staged = Staged::new(&cache.join(format!("stage-{}", std::process::id())))?;
    let root = staged.folder();
    // The programs are in /usr, and packages still name the other folders.
    for folder in ["bin", "lib", "sbin"] {
        fs::create_dir_all(root.join("usr").join(folder))?;
        symlink(Path::new("usr").join(folder), root.join(folder))?;
    }
    archive.unpack_with_dependencies(&PACKAGES, root)?;
    fs::remove_dir_all(&work).context("cannot remove the folder that apt worked in")?;
    for folder in LEFT_OUT {
        let folder = root.join(folder.trim_start_matches('/'));
        if folder.is_dir() && !folder.ends_with("perl") {
            fs::remove_dir_all(&folder)?;
        }
    }
    for path in COPIED.map(Path::new) {
        staged.add(path)?;
    }
    for (link, target) in LINKS {
        let place = root.join(link);
        if !place.is_symlink() {
            symlink(target, place)?;
        }
    }
    for folder in MOUNT_POINTS {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::copy(root.join("usr/bin/busybox"), &busybox).context("the packages have no busybox")?;
    staged.write(&disk)?;
    Ok(Foreign { disk, busybox })
}
