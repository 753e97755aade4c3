//! Exit statuses, and a program that ends before it began.

use std::{
    io::{self, Write as _},
    os::unix::process::ExitStatusExt as _,
    process::ExitStatus,
};

use crate::stderr;

/// The work is done; or nobody reads the reports any more.
pub const DONE: u8 = 0;
/// The work could not be done.
pub const FAILED: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 2;
/// A condition of `--fail-if` holds.
pub const CONDITION: u8 = 3;

/// The status that passes on a command's own end, as valgrind and strace do: its exit status, or
/// 128+N for signal N.
pub fn from_wait_status(status: ExitStatus) -> u8 {
    // wait(2): an exit status has 8 bits, a signal that ends a process 7; anything else is not an
    // end of a process.
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(FAILED),
        (None, Some(signal)) => u8::try_from(signal + 128).unwrap_or(FAILED),
        (None, None) => FAILED,
    }
}

/// The status of a run that did its work. `has_failed`: a condition of `--fail-if` holds;
/// `outstanding` is the number of allocations in the last report, `command` how a command that we
/// started ended by itself. As with valgrind, what `--error-exitcode` asks for goes before that.
pub fn of_run(
    has_failed: bool,
    error_exitcode: Option<u8>,
    outstanding: u64,
    command: Option<ExitStatus>,
) -> u8 {
    match (error_exitcode, command) {
        _ if has_failed => CONDITION,
        (Some(code), _) if outstanding > 0 => code,
        (_, Some(status)) => from_wait_status(status),
        (_, None) => DONE,
    }
}

/// Where an [`ExitMessage`] goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// What was asked for: `--help`, `--version`.
    Stdout,
    /// What went wrong.
    Stderr,
}

/// The program's last words and its exit status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitMessage {
    /// Exit status.
    pub status: u8,
    /// Where `text` goes.
    pub stream: Stream,
    /// With its last newline. On standard error: one line, `memleak: <what>: <why>; <what to do>`.
    pub text: String,
}

impl ExitMessage {
    /// The one line on standard error that ends the program with `status`.
    pub fn error(status: u8, line: &str) -> Self {
        let text = format!("memleak: {}\n", crate::escape::printable(line));
        Self { status, stream: Stream::Stderr, text }
    }

    /// Writes the text and gives the status. Nobody to read it changes nothing; help that could not
    /// be written for another reason (a full disk) is a failure, and standard error that cannot be
    /// written is not.
    pub fn emit(&self) -> u8 {
        match self.stream {
            Stream::Stderr => stderr::write(&self.text),
            Stream::Stdout => {
                let mut stdout = io::stdout();
                let written = stdout.write_all(self.text.as_bytes()).and_then(|()| stdout.flush());
                if let Err(error) = written
                    && error.kind() != io::ErrorKind::BrokenPipe
                {
                    stderr::line(&format!("standard output: cannot be written to: {error}; make room"));
                    return FAILED;
                }
            }
        }
        self.status
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn end_of(script: &str) -> ExitStatus {
        Command::new("sh").args(["-c", script]).status().expect("sh runs")
    }

    #[test]
    fn a_command_passes_on_its_status() {
        for (script, expected) in [("exit 0", 0), ("exit 7", 7), ("exit 255", 255)] {
            assert_eq!(from_wait_status(end_of(script)), expected, "{script}");
        }
        for (script, expected) in [("kill -9 $$", 137), ("kill -15 $$", 143), ("kill -6 $$", 134)] {
            assert_eq!(from_wait_status(end_of(script)), expected, "{script}");
        }
    }

    #[test]
    fn a_process_that_only_stopped_has_no_status_to_pass_on() {
        assert_eq!(from_wait_status(ExitStatus::from_raw(0x137f)), FAILED);
    }

    #[test]
    fn error_exitcode_goes_before_the_commands_status() {
        let failed = Some(end_of("exit 3"));
        assert_eq!(of_run(false, Some(99), 1, failed), 99);
        assert_eq!(of_run(false, Some(99), 0, failed), 3);
        assert_eq!(of_run(false, None, 1, failed), 3);
        assert_eq!(of_run(false, None, 1, None), DONE);
        assert_eq!(of_run(false, Some(99), 0, None), DONE);
        assert_eq!(of_run(true, Some(99), 1, failed), CONDITION);
    }

    #[test]
    fn an_error_is_one_line() {
        let message = ExitMessage::error(USAGE, "--obj: 'a\nb' is no file; x");
        assert_eq!(message.text, "memleak: --obj: 'a\\x0ab' is no file; x\n");
    }
}
