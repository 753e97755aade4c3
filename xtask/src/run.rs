//! Runs other programs: every command of every task goes through here, so that each is shown and
//! each failure says which command it was.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// Root of the repository: where the workspace's Cargo.toml is.
pub fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// The cargo that runs us, to be started in the repository's root.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// git, in the repository's root.
pub fn git() -> Command {
    let mut command = Command::new("git");
    command.current_dir(root());
    command
}

/// The command as a line that can be pasted into a shell (near enough for a log).
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// Shows the command, runs it with our own streams and fails if it fails.
pub fn run(command: &mut Command) -> Result<()> {
    eprintln!("+ {}", shown(command));
    quietly(command)
}

/// The same without showing it: one of very many.
pub fn quietly(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", shown(command)))?;
    if status.success() { Ok(()) } else { bail!("`{}` failed: {status}", shown(command)) }
}

/// Runs the command quietly and gives what it wrote to standard output; its standard error is ours.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !output.status.success() {
        bail!("`{}` failed: {}", shown(command), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// An executable that cargo built.
#[derive(Debug)]
pub struct Executable {
    /// Name of the cargo target.
    pub target: String,
    /// Where it is.
    pub path: PathBuf,
}

/// Runs a cargo command that builds, and gives the executables that came of it, whether fresh or
/// not.
pub fn executables(cargo: &mut Command) -> Result<Vec<Executable>> {
    cargo.arg("--message-format=json-render-diagnostics");
    eprintln!("+ {}", shown(cargo));
    let messages = output(cargo)?;
    Ok(messages.lines().filter_map(executable).collect())
}

/// The executable that a line of cargo's JSON messages names.
fn executable(line: &str) -> Option<Executable> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let path = message.get("executable")?.as_str()?;
    let target = message.get("target")?.get("name")?.as_str()?;
    Some(Executable { target: target.to_owned(), path: path.into() })
}

/// Builds the tool as users get it and tells where it is.
pub fn memleak_binary() -> Result<PathBuf> {
    let built = executables(cargo().args(["build", "--release", "-p", "memleak", "--bin", "memleak"]))?;
    let memleak = built.into_iter().find(|executable| executable.target == "memleak");
    Ok(memleak.context("cargo built no `memleak`")?.path)
}

/// The folder of the Rust toolchain in use.
pub fn rust_sysroot() -> Result<PathBuf> {
    Ok(output(Command::new("rustc").current_dir(root()).args(["--print", "sysroot"]))?.trim().into())
}

/// The target that the Rust toolchain in use builds for by itself.
pub fn host_target() -> Result<String> {
    let version = output(Command::new("rustc").current_dir(root()).arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc names no host")?.to_owned())
}

/// Where on PATH (or in sbin, which a user's PATH leaves out) a program is.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}
