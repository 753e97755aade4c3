//! Parses the command line, runs, and turns the outcome into an exit status.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{ffi::OsString, process::ExitCode, thread};

use memleak::{
    exit::{self, ExitMessage},
    offline,
    session::{self, SessionError},
    settings::Settings,
    signals,
    stderr::{self, StderrLog},
};

fn main() -> ExitCode {
    give_back_large_blocks();
    stderr::install_panic_hook();
    if let Err(error) = signals::install() {
        return ExitCode::from(
            ExitMessage::error(exit::FAILED, &format!("cannot handle signals: {error}")).emit(),
        );
    }
    // A panic has said its line by then; what it leaves behind (links, maps) ends with us.
    let status = match thread::Builder::new().stack_size(STACK).spawn(status) {
        Ok(work) => work.join(),
        Err(_) => std::panic::catch_unwind(status),
    };
    ExitCode::from(status.unwrap_or(exit::FAILED))
}

/// The stack that we work on, bytes: the main thread's may be no more than 64 KiB (`ulimit -s`),
/// which overflows.
const STACK: usize = 8 << 20;

/// Does what the command line says; gives the exit status.
fn status() -> u8 {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some(status) = offline::run(&args) {
        return status;
    }
    let settings = match Settings::from_args(args) {
        Ok(settings) => settings,
        Err(message) => return message.emit(),
    };
    let error_exitcode = settings.error_exitcode;
    StderrLog::install(settings.verbosity);
    for warning in &settings.warnings {
        log::warn!("{warning}");
    }
    match run(settings) {
        Ok(ended) => {
            ended.failed.iter().for_each(|line| stderr::line(line));
            exit::of_run(!ended.failed.is_empty(), error_exitcode, ended.outstanding, ended.command)
        }
        Err(error) if matches!(error.downcast_ref(), Some(SessionError::Internal)) => exit::FAILED,
        Err(error) => ExitMessage::error(exit::FAILED, &error.to_string()).emit(),
    }
}

/// Parts of files and unwind tables are blocks of megabytes that come and go. glibc raises the size
/// from which blocks are mapped by themselves with each that is freed, and then keeps them for
/// itself (mallopt(3), M_MMAP_THRESHOLD): for a process of 200 MB of code that was 27 of 140 MB.
fn give_back_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: two integers, and there is no other thread yet. If it fails the threshold stays as
    // it is. One arena: another reserves 128 MB of addresses for each thread, which `ulimit -v`
    // counts.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

fn run(settings: Settings) -> anyhow::Result<session::RunOutcome> {
    // One thread: ptrace(2) ties a held command to the thread that started it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        anyhow::anyhow!("cannot start: {error}; raise the limit on open files (ulimit -n)")
    })?;
    Ok(runtime.block_on(session::run(settings))?)
}
