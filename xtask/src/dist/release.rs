//! What is shipped: its version, the machine that it is for, and where its parts are.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::Value;
use xtask::run;

/// A machine under the names that others have for it.
#[derive(Debug)]
struct Machine {
    rust: &'static str,
    debian: &'static str,
    container: &'static str,
}

const MACHINES: [Machine; 2] = [
    Machine { rust: "x86_64", debian: "amd64", container: "amd64" },
    Machine { rust: "aarch64", debian: "arm64", container: "arm64" },
];

/// The licences among the parts: memleak's own, then those of what is linked in.
pub(super) const LICENCES: [&str; 3] = ["LICENSE-APACHE", "LICENSE-MIT", "THIRD-PARTY-LICENSES"];

/// One version of memleak, built for one target.
#[derive(Debug)]
pub(super) struct Release {
    /// As in Cargo.toml.
    pub version: String,
    /// As Rust names it: x86_64-unknown-linux-gnu.
    pub target: String,
    /// Seconds since 1970 that all files carry, so that the same commit makes the same bytes.
    pub time: u64,
    /// What `cargo metadata` says of the workspace and all crates that it is built from.
    pub metadata: Value,
    machine: &'static Machine,
}

impl Release {
    /// The release of the current commit.
    pub(super) fn new(target: &str) -> Result<Self> {
        let name = target.split('-').next().unwrap_or_default();
        let machine = MACHINES.iter().find(|machine| machine.rust == name);
        let mut cargo = run::cargo();
        cargo.args(["metadata", "--locked", "--format-version=1", "--filter-platform", target]);
        let metadata: Value = serde_json::from_str(&run::output(&mut cargo)?)?;
        let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
        let memleak = packages.iter().find(|package| package["name"] == "memleak");
        let version = memleak.and_then(|memleak| memleak["version"].as_str());
        Ok(Self {
            version: version.context("cargo metadata does not name memleak")?.to_owned(),
            target: target.to_owned(),
            time: time()?,
            machine: machine.with_context(|| format!("`{target}` is no machine that memleak runs on"))?,
            metadata,
        })
    }

    /// Name of the program's files, without what is particular to each: memleak-0.1.0-x86_64-linux.
    pub(super) fn name(&self) -> String {
        format!("memleak-{}-{}-linux", self.version, self.machine.rust)
    }

    /// The machine, as OCI images name it.
    pub(super) fn container_machine(&self) -> &'static str {
        self.machine.container
    }

    /// The archive with the static program.
    pub(super) fn archive(&self) -> PathBuf {
        released().join(format!("{}.tar.gz", self.name()))
    }

    /// The archive with its debug information.
    pub(super) fn debug_archive(&self) -> PathBuf {
        released().join(format!("{}-debug.tar.gz", self.name()))
    }

    /// The package for Debian and what came of it.
    pub(super) fn deb(&self) -> PathBuf {
        released().join(format!("memleak_{}-1_{}.deb", self.version, self.machine.debian))
    }

    /// The package for Fedora, openSUSE and the like.
    pub(super) fn rpm(&self) -> PathBuf {
        released().join(format!("memleak-{}-1.{}.rpm", self.version, self.machine.rust))
    }

    /// The container image.
    pub(super) fn image(&self) -> PathBuf {
        released().join(format!("memleak-{}-{}.oci.tar", self.version, self.machine.container))
    }

    /// All of them.
    pub(super) fn files(&self) -> [PathBuf; 5] {
        [self.archive(), self.debug_archive(), self.deb(), self.rpm(), self.image()]
    }
}

/// The folder of the parts: the program, its debug information, licences, and what `docs/` has of
/// it. The packages' lists of files in memleak/Cargo.toml name it.
pub(super) fn parts() -> PathBuf {
    run::root().join("target/shipped")
}

/// The folder of what is handed out.
pub(super) fn released() -> PathBuf {
    run::root().join("target/dist")
}

/// Reads a file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Writes a file.
pub(super) fn write(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// When the sources were committed, unless SOURCE_DATE_EPOCH says another time.
fn time() -> Result<u64> {
    let seconds = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(seconds) => seconds,
        Err(_) => run::output(run::git().args(["log", "-1", "--format=%ct"]))?,
    };
    seconds.trim().parse().with_context(|| format!("`{}` is no time in seconds since 1970", seconds.trim()))
}
