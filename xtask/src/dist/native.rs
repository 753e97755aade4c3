//! Packages for Debian and Fedora, made by cargo's own tools for them from the lists of files in
//! memleak/Cargo.toml.

use std::{ffi::OsString, fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};
use xtask::run;

use super::release::Release;

/// A tool and its version.
const DEB: [&str; 2] = ["cargo-deb", "3.8.0"];
const RPM: [&str; 2] = ["cargo-generate-rpm", "0.21.1"];

/// Makes the .deb and the .rpm.
pub(super) fn write(release: &Release) -> Result<()> {
    let mut deb = tool(DEB)?;
    deb.args([
        "deb",
        "--quiet",
        "--no-build",
        "--no-strip",
        "--package",
        "memleak",
        "--target",
        &release.target,
    ]);
    run::run(deb.arg("--output").arg(release.deb()).env("SOURCE_DATE_EPOCH", release.time.to_string()))?;
    let mut rpm = tool(RPM)?;
    // It is linked with nothing, so there is nothing to require.
    rpm.args(["generate-rpm", "--package", "memleak", "--target", &release.target, "--auto-req", "disabled"]);
    rpm.args(["--source-date", &release.time.to_string(), "--output"]).arg(release.rpm());
    run::run(&mut rpm)
}

/// cargo, which finds the tool: it is built once, into a folder below `target`.
fn tool([name, version]: [&str; 2]) -> Result<Command> {
    let folder = run::root().join("target/tools").join(format!("{name}-{version}"));
    let programs = folder.join("bin");
    if !programs.join(name).is_file() {
        let built = folder.join("build");
        let mut install = run::cargo();
        install.args(["install", "--locked", name, "--version", version, "--root"]).arg(&folder);
        run::run(install.env("CARGO_TARGET_DIR", &built)).with_context(|| format!("cannot build {name}"))?;
        fs::remove_dir_all(&built).with_context(|| format!("cannot remove {}", built.display()))?;
    }
    let mut cargo = run::cargo();
    cargo.env("PATH", path_with(programs)?);
    Ok(cargo)
}

fn path_with(first: PathBuf) -> Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    Ok(std::env::join_paths(std::iter::once(first).chain(std::env::split_paths(&path)))?)
}
