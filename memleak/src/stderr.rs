//! Standard error: warnings, notes, and the program's last words.
//!
//! It can be full, closed or read by nobody. Then what is said is lost, and nothing else is:
//! neither a report nor the exit status depends on it. So nothing is printed with `eprintln!`,
//! which panics there.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    collections::VecDeque,
    io::{self, IsTerminal as _, Write as _},
    panic::PanicHookInfo,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::escape::printable;

/// Writes `memleak: TEXT` as one line, by one system call.
pub fn line(text: &str) {
    write(&format!("memleak: {}\n", printable(text)));
}

/// Writes `text` as it is.
pub fn write(text: &str) {
    let mut held = held();
    match held.is_on {
        true => held.add(text),
        false => drop(io::stderr().write_all(text.as_bytes())),
    }
}

/// What is to be written when a terminal is ours no more that shows something else meanwhile.
#[derive(Debug)]
struct HeldTexts {
    is_on: bool,
    texts: VecDeque<String>,
    /// Texts so far.
    number: u64,
}

/// Texts that are held; beyond, the oldest are lost.
const MOST_HELD: usize = 200;

static HELD: Mutex<HeldTexts> = Mutex::new(HeldTexts { is_on: false, texts: VecDeque::new(), number: 0 });

fn held() -> MutexGuard<'static, HeldTexts> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HeldTexts {
    fn add(&mut self, text: &str) {
        if self.texts.len() == MOST_HELD {
            self.texts.pop_front();
        }
        self.texts.push_back(text.to_owned());
        self.number += 1;
    }
}

/// What is said from now on is held if standard error is a terminal: another one has it.
pub fn hold() {
    held().is_on = io::stderr().is_terminal();
}

/// How many texts were held so far, and the last one, without our name.
pub fn last_held() -> Option<(u64, String)> {
    let held = held();
    let text = held.texts.back()?.trim_end();
    Some((held.number, printable(text.strip_prefix("memleak: ").unwrap_or(text)).into_owned()))
}

/// Writes what was held, and all that is said from now on.
pub fn release() {
    let mut held = held();
    held.is_on = false;
    for text in std::mem::take(&mut held.texts) {
        let _ = io::stderr().write_all(text.as_bytes());
    }
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
    fn of_very_many_texts_the_latest_are_held() {
        let mut held = HeldTexts { is_on: true, texts: VecDeque::new(), number: 0 };
        (0..MOST_HELD + 5).for_each(|number| held.add(&number.to_string()));
        assert_eq!((held.number, held.texts.len()), (MOST_HELD as u64 + 5, MOST_HELD));
        assert_eq!(held.texts.front().map(String::as_str), Some("5"));
    }

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
