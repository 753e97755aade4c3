//! Debian and Ubuntu packages that a task needs: named if they are missing, installed if we
//! are root.

use std::{
    fs::{self, File},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{privilege, run};

/// A package and why it is wanted.
pub struct Package {
    /// Its names, the newest or most usual first: releases disagree, and any of them will do.
    pub names: &'static [&'static str],
    /// What it is wanted for, to be told to the user.
    pub purpose: &'static str,
}

impl Package {
    /// Whether dpkg holds it, under any of its names, installed in full.
    fn installed(&self) -> bool {
        self.names.iter().any(|name| {
            let mut query = Command::new("dpkg-query");
            query.args(["--show", "--showformat=${db:Status-Status}", name]);
            let output = query.output();
            output.is_ok_and(|output| output.status.success() && output.stdout == b"installed")
        })
    }

    /// The first of its names that this machine's package lists know.
    pub fn available(&self) -> Option<&'static str> {
        self.names.iter().copied().find(|name| {
            // `show` succeeds for a name that others only mention; a candidate is one that can be
            // installed.
            let policy = Command::new("apt-cache").args(["policy", name]).env("LC_ALL", "C").output();
            policy.is_ok_and(|policy| {
                let text = String::from_utf8_lossy(&policy.stdout).into_owned();
                text.contains("Candidate:") && !text.contains("Candidate: (none)")
            })
        })
    }

    /// The name to type: an available one, else the usual one.
    fn name(&self) -> &'static str {
        self.available().or(self.names.first().copied()).unwrap_or_default()
    }
}

/// The names of packages, as `apt-get install` takes them.
pub fn names<'a>(packages: impl IntoIterator<Item = &'a Package>) -> String {
    packages.into_iter().map(Package::name).collect::<Vec<_>>().join(" ")
}

/// Sees to it that the packages are there: installs the missing ones as root, else fails with the
/// command to type.
pub fn ensure(packages: &[Package]) -> Result<()> {
    if run::find_program("dpkg-query").is_none() {
        let usual: Vec<&str> = packages.iter().filter_map(|package| package.names.first().copied()).collect();
        eprintln!("note: no dpkg here, so see for yourself to (by their Debian names): {}", usual.join(" "));
        return Ok(());
    }
    if missing_of(packages).is_empty() {
        return Ok(());
    }
    let _alone = alone()?;
    // What another task has installed meanwhile is there.
    let missing = missing_of(packages);
    if missing.is_empty() {
        return Ok(());
    }
    for package in &missing {
        eprintln!("missing package {}: {}", package.names.join(" or "), package.purpose);
    }
    if !privilege::is_root() {
        bail!("packages are missing; type: sudo apt-get install {}", names(missing));
    }
    if missing.iter().any(|package| package.available().is_none()) {
        update_lists()?;
    }
    install(&missing).or_else(|_| {
        // Lists that are old name versions that are gone.
        update_lists()?;
        install(&missing)
    })
}

fn missing_of(packages: &[Package]) -> Vec<&Package> {
    packages.iter().filter(|package| !package.installed()).collect()
}

/// Waits until no other task of ours installs packages: two that fetch the lists at once fail.
fn alone() -> Result<File> {
    let folder = run::root().join("target");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let lock = File::create(folder.join("packages.lock"))?;
    lock.lock().context("cannot wait for another task that installs packages")?;
    Ok(lock)
}

/// Fetches the package lists again.
pub fn update_lists() -> Result<()> {
    run::run(Command::new("apt-get").args(["-qq", "update"])).context("cannot fetch package lists")
}

fn install(packages: &[&Package]) -> Result<()> {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").args(["-qq", "install", "--yes", "--no-install-recommends"]);
    // Another task, or the machine's own updates, may be at it.
    apt.args(["-o", "DPkg::Lock::Timeout=600"]);
    apt.args(packages.iter().map(|package| package.name()));
    run::run(&mut apt)
}
