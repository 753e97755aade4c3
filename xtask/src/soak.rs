//! `cargo xtask soak`: the live tests of `soak`, long. A mixed load for twenty minutes, a hundred
//! thousand children, three hundred tracers that are killed, a build with others beside it.

use anyhow::{Context, Result, ensure};
use clap::Args;
use xtask::{packages, privilege, run};

use crate::test;

/// Options of `soak`.
#[derive(Args)]
pub(crate) struct Options {
    /// How long the mixed load runs
    #[arg(long, value_name = "SECONDS", default_value_t = 1200)]
    seconds: u64,
    /// How many children there are to follow
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    children: u64,
    /// How many tracers are killed
    #[arg(long, value_name = "N", default_value_t = 300)]
    kills: u64,
    /// Only soaks whose names have this in them: a_mixed_load, very_many_children,
    /// killed_again_and_again, a_build
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

/// Runs the soaks and shows what they print.
pub(crate) fn run(options: &Options) -> Result<()> {
    const INSTEAD: &str = "run it as root";
    privilege::as_root("true", INSTEAD)?;
    packages::ensure(&test::LIVE_PACKAGES)?;
    let mut cargo = run::cargo();
    cargo.args(["test", "--release", "--no-run", "-p", "memleak", "--test", "live"]);
    let built = run::executables(&mut cargo)?;
    let live = built.iter().find(|executable| executable.target == "live");
    let live = live.context("cargo built no live tests")?;
    let filter = format!("soak::{}", options.name.as_deref().unwrap_or_default());
    let status = privilege::as_root(&live.path, INSTEAD)?
        .args([&filter, "--nocapture", "--test-threads=1"])
        .current_dir(run::root().join("memleak"))
        .env("MEMLEAK_LIVE", "1")
        .env("MEMLEAK_LIVE_PATIENCE", "600")
        .env("MEMLEAK_SOAK_SECONDS", options.seconds.to_string())
        .env("MEMLEAK_SOAK_CHILDREN", options.children.to_string())
        .env("MEMLEAK_SOAK_KILLS", options.kills.to_string())
        .env("MEMLEAK_SOAK_BUILD", "jemalloc")
        .status()
        .context("cannot start the live tests")?;
    ensure!(status.success(), "the soak failed: {status}");
    Ok(())
}
