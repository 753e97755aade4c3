//! Standard error: warnings, notes, and the program's last words.
//!
//! It can be full, closed or read by nobody. Then what is said is lost, and nothing else is:
//! neither a report nor the exit status depends on it. So nothing is printed with `eprintln!`,
//! which panics there.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{self, Write as _},
    panic::PanicHookInfo,
};

use crate::escape::printable;

/// Writes `memleak: TEXT` as one line, by one system call.
pub fn line(text: &str) {
    write(&format!("memleak: {}\n", printable(text)));
}

/// Writes `text` as it is.
pub fn write(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Messages of the `log` crate as lines on standard error: warnings, and with `-v` what happens.
#[derive(Debug)]
pub struct StderrLog;

impl StderrLog {
    /// To be called once. `verbosity`: how often `-v` was given.
    pub fn install(verbosity: u8) {
        let level = match verbosity {
            0 => log::LevelFilter::Warn,
            1 => log::LevelFilter::Info,
            _ => log::LevelFilter::Debug,
        };
        if log::set_logger(&Self).is_ok() {
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
            line(&format!("{kind}{}", record.args()));
        }
    }

    fn flush(&self) {}
}

/// Has a panic say one line instead of the standard library's three. With `RUST_BACKTRACE=1` the
/// backtrace follows.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        line(&panic_line(info));
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            write(&backtrace.to_string());
        }
    }));
}

fn panic_line(info: &PanicHookInfo<'_>) -> String {
    let what = info.payload_as_str().unwrap_or("a panic");
    let place = info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    format!("internal error: {what}, at {place}; this is a bug: please report this line")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn a_panic_is_one_line_that_says_where() {
        let said = Arc::new(Mutex::new(String::new()));
        let hook = std::panic::take_hook();
        let heard = Arc::clone(&said);
        std::panic::set_hook(Box::new(move |info| {
            if info.payload_as_str() == Some("5 of 3") {
                *heard.lock().expect("no panic before") = panic_line(info);
            }
        }));
        let ended = std::panic::catch_unwind(|| panic!("{} of {}", 5, 3));
        std::panic::set_hook(hook);
        assert!(ended.is_err());
        let line = said.lock().expect("no panic before").clone();
        assert!(line.starts_with("internal error: 5 of 3, at memleak/src/stderr.rs:"), "{line}");
        assert!(line.ends_with("please report this line") && !line.contains('\n'), "{line}");
    }
}
