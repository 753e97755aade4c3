//! Parses the command line, runs, and turns the outcome into an exit status.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::ExitCode;

use memleak::{
    escape::printable,
    exit::{self, ExitMessage},
    session,
    settings::Settings,
};

fn main() -> ExitCode {
    give_back_large_blocks();
    let settings = match Settings::from_args(std::env::args_os()) {
        Ok(settings) => settings,
        Err(message) => return ExitCode::from(message.emit()),
    };
    let error_exitcode = settings.error_exitcode;
    StderrLog::install(settings.verbosity);
    for warning in &settings.warnings {
        log::warn!("{warning}");
    }
    match run(settings) {
        Ok(ended) => ExitCode::from(exit::of_run(error_exitcode, ended.outstanding, ended.command)),
        Err(error) => ExitCode::from(ExitMessage::error(exit::FAILED, &error.to_string()).emit()),
    }
}

/// Parts of files and unwind tables are blocks of megabytes that come and go. glibc raises the size from which blocks are
/// mapped by themselves with each that is freed, and then keeps them for itself (mallopt(3), M_MMAP_THRESHOLD): for a
/// process of 200 MB of code that was 27 of 140 MB.
fn give_back_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: two integers, and there is no other thread yet. Where it fails the threshold stays as it is.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
    }
}

fn run(settings: Settings) -> anyhow::Result<session::Ended> {
    // One thread: ptrace(2) ties a held command to the thread that started it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        anyhow::anyhow!("cannot start: {error}; raise the limit on open files (ulimit -n)")
    })?;
    Ok(runtime.block_on(session::run(settings))?)
}

/// Warnings, and with `-v` what goes on, as lines on standard error.
struct StderrLog;

impl StderrLog {
    fn install(verbosity: u8) {
        let level = match verbosity {
            0 => log::LevelFilter::Warn,
            1 => log::LevelFilter::Info,
            _ => log::LevelFilter::Debug,
        };
        if log::set_logger(&StderrLog).is_ok() {
            log::set_max_level(level);
        }
    }
}

impl log::Log for StderrLog {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        // What aya has to say of its own work is for its developers.
        metadata.level() <= log::max_level() && !metadata.target().starts_with("aya")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let kind = if record.level() <= log::Level::Warn { "warning: " } else { "" };
            eprintln!("memleak: {kind}{}", printable(&record.args().to_string()));
        }
    }

    fn flush(&self) {}
}
