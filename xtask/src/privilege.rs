//! Root, for the few steps that need it: everything is built as the user, and only a tracer or a
//! test that attaches probes is raised.

use std::{ffi::OsStr, process::Command};

use anyhow::{Result, bail};

use crate::run;

/// Whether we are root already.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no arguments, no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// A command that runs `program` as root: itself if we are root, else through sudo. `instead`
/// says what to do if there is no way to become root.
pub fn as_root(program: impl AsRef<OsStr>, instead: &str) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    let Some(sudo) = run::find_program("sudo") else {
        bail!("this needs root and there is no sudo here: {instead}");
    };
    let mut command = Command::new(sudo);
    // The variables that the tracer and the live tests read; sudo drops all others.
    command
        .arg(concat!(
            "--preserve-env=MEMLEAK_LIVE,MEMLEAK_LIVE_PATIENCE,MEMLEAK_SOAK_SECONDS,MEMLEAK_SOAK_CHILDREN,",
            "MEMLEAK_SOAK_KILLS,MEMLEAK_SOAK_BUILD,RUST_BACKTRACE,CI"
        ))
        .arg("--")
        .arg(program);
    Ok(command)
}
