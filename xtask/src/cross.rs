//! Builds for another kind of machine than this one: what cargo is to be called with.
//!
//! Where rustup has the target's library, or can add it, it is the toolchain in use. Else it is
//! Debian's compiler, whose library for the other machine is downloaded into `target/cross` and
//! found by a folder of links (a sysroot); nothing foreign is installed. Debian's cross compiler
//! for C links, and is installed.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use xtask::{
    packages::{self, Package},
    run,
};

use crate::{
    build_ebpf::{DEBIAN_CARGO, DEBIAN_RUSTC, without_ours},
    debian::{self, Archive},
};

/// The target that is built for on machines of another kind.
pub(crate) const AARCH64: &str = "aarch64-unknown-linux-gnu";
/// Debian's name for its machine.
const MACHINE: &str = "arm64";

const LINKER: &str = "aarch64-linux-gnu-gcc";
const PACKAGES: [Package; 4] = [
    Package { names: &["gcc-aarch64-linux-gnu"], purpose: "links programs for arm64" },
    Package { names: &["libc6-dev-arm64-cross"], purpose: "the C library that they are linked with" },
    Package { names: &["rustc-web"], purpose: "a Rust compiler that has a library for arm64" },
    Package { names: &["cargo-web"], purpose: "the cargo that goes with it" },
];
/// Rust's library, in a package of the version of the compiler.
const LIBRARY: &str = "libstd-rust-web-dev";

/// How to build for a target.
pub(crate) struct Builder {
    target: String,
    /// The sysroot for Debian's compiler; none if it is the toolchain in use.
    sysroot: Option<PathBuf>,
    is_foreign: bool,
}

impl Builder {
    /// For a target. Fetches what is missing.
    pub(crate) fn of(target: &str) -> Result<Self> {
        let is_foreign = target == AARCH64 && run::host_target()? != AARCH64;
        let mut sysroot = None;
        if is_foreign {
            packages::ensure(&PACKAGES[..2])?;
            let libraries = run::rust_sysroot()?.join("lib/rustlib").join(AARCH64);
            if !libraries.is_dir() {
                add_by_rustup();
            }
            if !libraries.is_dir() {
                packages::ensure(&PACKAGES[2..])?;
                sysroot = Some(fetched_sysroot()?);
            }
        }
        Ok(Self { target: target.to_owned(), sysroot, is_foreign })
    }

    /// cargo with this subcommand, for the target, with these compiler flags.
    pub(crate) fn cargo(&self, subcommand: &str, flags: &[&str]) -> Command {
        let mut flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let mut cargo = match &self.sysroot {
            None => run::cargo(),
            Some(sysroot) => {
                let mut cargo = Command::new(DEBIAN_CARGO);
                without_ours(cargo.current_dir(run::root()));
                cargo.env("RUSTC", DEBIAN_RUSTC);
                flags.push(format!("--sysroot={}", sysroot.display()));
                cargo
            }
        };
        cargo.arg(subcommand).args(["--target", &self.target]);
        if self.is_foreign {
            cargo.arg("--target-dir").arg(self.target_directory());
            cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER);
        }
        if !flags.is_empty() {
            cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        }
        cargo
    }

    /// Where it all goes.
    pub(crate) fn target_directory(&self) -> PathBuf {
        run::root().join(if self.is_foreign { "target/arm64" } else { "target" })
    }

    /// A program of binutils for the target.
    pub(crate) fn binutils(&self, name: &str) -> String {
        if self.is_foreign { format!("aarch64-linux-gnu-{name}") } else { name.to_owned() }
    }
}

/// Has rustup add the target's library to the toolchain in use, if there is a rustup.
fn add_by_rustup() {
    if run::find_program("rustup").is_none() {
        return;
    }
    let mut rustup = Command::new("rustup");
    if let Err(error) = run::run(rustup.current_dir(run::root()).args(["target", "add", AARCH64])) {
        eprintln!("note: {error:#}: Debian's compiler is taken");
    }
}

/// The sysroot with the library of the version that the compiler has.
fn fetched_sysroot() -> Result<PathBuf> {
    let query = ["--show", "--showformat=${Version}", "rustc-web"];
    let version = run::output(Command::new("dpkg-query").args(query))?;
    let cross = run::root().join("target/cross");
    let sysroot = cross.join(format!("sysroot-{version}"));
    if sysroot.is_dir() {
        return Ok(sysroot);
    }
    let (work, unfinished) = (cross.join("apt"), cross.join("unfinished"));
    for folder in [&work, &unfinished] {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
    }
    let release = debian::own_release()?;
    let archive = Archive::open(&work, &release, MACHINE)?;
    let package = format!("{LIBRARY}={version}");
    archive.unpack([package.as_str()], &unfinished.join("unpacked")).with_context(|| {
        format!("Debian {release} has no {LIBRARY} {version} for {MACHINE}: update rustc-web")
    })?;
    let rustlib = unfinished.join("lib/rustlib");
    fs::create_dir_all(&rustlib)?;
    let host = run::host_target()?;
    symlink(Path::new("/usr/lib/rustlib").join(&host), rustlib.join(&host))?;
    symlink(Path::new("../../unpacked/usr/lib/rustlib").join(AARCH64), rustlib.join(AARCH64))?;
    fs::remove_dir_all(&work)?;
    fs::rename(&unfinished, &sysroot).context("cannot name the folder of Rust's library")?;
    Ok(sysroot)
}
