//! `cargo xtask dist`: the tool as it is shipped, with its debug information in a file of its own.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use clap::Args;
use xtask::{
    packages::{self, Package},
    run,
};

const BINUTILS: Package = Package { names: &["binutils"], purpose: "takes debug information apart" };

/// What is shipped is smaller than this.
const MAX_BYTES: u64 = 12_000_000;

/// Options of `dist`.
#[derive(Args)]
pub(crate) struct Options {
    /// Build for this target, not for this machine: x86_64-unknown-linux-musl
    #[arg(long, value_name = "TRIPLE")]
    target: Option<String>,
    /// Link this machine's own C library in: runs on any Linux of this machine's kind
    #[arg(long = "static", conflicts_with = "target")]
    is_static: bool,
}

/// Builds the program with the profile `dist`, and takes it apart: `memleak` and `memleak.debug`,
/// which it names. The names of functions stay in the program, so a panic's backtrace tells them;
/// with the other file beside it, lines too.
pub(crate) fn run(options: &Options) -> Result<()> {
    packages::ensure(&[BINUTILS])?;
    let mut cargo = run::cargo();
    cargo.args(["build", "--profile", "dist", "--locked", "-p", "memleak", "--bin", "memleak"]);
    if let Some(target) = &options.target {
        cargo.args(["--target", target]);
    }
    if options.is_static {
        // For a named target the flags are the program's alone: a procedural macro cannot be
        // static.
        cargo.args(["--target", &run::host_target()?]);
        cargo.env("CARGO_ENCODED_RUSTFLAGS", ["-C", "target-feature=+crt-static"].join("\x1f"));
    }
    let built = run::executables(&mut cargo)?.into_iter().find(|executable| executable.target == "memleak");
    let built = built.context("cargo built no `memleak`")?.path;
    let folder = run::root().join("target/shipped");
    fs::create_dir_all(&folder)?;
    let (program, debug) = (folder.join("memleak"), folder.join("memleak.debug"));
    let objcopy = |arguments: &[&str], from: &PathBuf, to: &PathBuf| {
        // In the folder, since the link is to a file that objcopy reads.
        run::run(Command::new("objcopy").current_dir(&folder).args(arguments).arg(from).arg(to))
    };
    objcopy(&["--only-keep-debug", "--compress-debug-sections"], &built, &debug)?;
    objcopy(&["--strip-debug", "--add-gnu-debuglink=memleak.debug"], &built, &program)?;
    let (bytes, debug_bytes) = (fs::metadata(&program)?.len(), fs::metadata(&debug)?.len());
    ensure!(bytes < MAX_BYTES, "{} has {bytes} bytes: more than {MAX_BYTES}", program.display());
    eprintln!("wrote {} ({bytes} bytes) and memleak.debug ({debug_bytes} bytes)", program.display());
    Ok(())
}
