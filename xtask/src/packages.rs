//! Debian and Ubuntu packages that a task needs: named where they are missing, installed where we are root.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{privilege, run};

/// A package and why it is wanted.
pub struct Package {
    /// Debian's name of it.
    pub name: &'static str,
    /// What it is wanted for, to be told to the user.
    pub purpose: &'static str,
}

/// Whether dpkg holds the package installed in full.
fn installed(name: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Status}", name]);
    let output = query.output();
    output.is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}

/// Whether the package lists on this machine know the package.
pub fn available(name: &str) -> bool {
    run::succeeds(Command::new("apt-cache").args(["show", name]))
}

/// Sees to it that the packages are there: installs the missing ones as root, else fails with the command to type.
pub fn ensure(packages: &[Package]) -> Result<()> {
    if run::find_program("dpkg-query").is_none() {
        let names = listed(packages.iter());
        eprintln!("note: no dpkg here, so nothing is installed; wanted are, by their Debian names: {names}");
        return Ok(());
    }
    let missing: Vec<&Package> = packages.iter().filter(|package| !installed(package.name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for package in &missing {
        eprintln!("missing package {}: {}", package.name, package.purpose);
    }
    if !privilege::is_root() {
        bail!("packages are missing; type: sudo apt-get install {}", listed(missing.iter().copied()));
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    // Lists that are there may be old, but a fresh machine has none: fetch them once, whatever comes of it.
    run::run(Command::new("apt-get").args(["-qq", "update"]).env("DEBIAN_FRONTEND", "noninteractive"))?;
    run::run(
        Command::new("apt-get")
            .args(["-qq", "install", "--yes", "--no-install-recommends"])
            .args(&names)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
    .with_context(|| format!("cannot install {}", names.join(" ")))
}

fn listed<'a>(packages: impl Iterator<Item = &'a Package>) -> String {
    packages.map(|package| package.name).collect::<Vec<_>>().join(" ")
}
