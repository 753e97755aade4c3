//! Starting a command that is traced from its first instruction.
//!
//! It is held by ptrace(2) at its exec, and again each time its dynamic linker has mapped code, so
//! that the probes are in an object before any of it runs: also the constructors of libraries,
//! which run before the program itself. From its entry point on it runs free: ptrace would get in
//! the way of debuggers, leak checkers and speed.

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Child, Command, ExitStatus, Stdio},
};

use crate::{
    arch::Breakpoint,
    proc::ptrace::{beginning_system_call, closed_to_all, ptrace},
};

/// Why a command does not run. One line: what, why, what to do.
#[derive(Debug, thiserror::Error)]
#[error("cannot run {program}: {why}")]
pub struct CommandError {
    program: String,
    why: String,
}

impl CommandError {
    /// It ended before its own code ran: its dynamic linker has said why.
    pub fn ended_early(argv: &[OsString], status: ExitStatus) -> Self {
        let why = format!("it ended before its own code ran ({status}); try to run it by itself");
        Self { program: program_name(argv), why }
    }
}

fn program_name(argv: &[OsString]) -> String {
    argv.first().map_or_else(String::new, |program| program.to_string_lossy().into_owned())
}

/// What would use the terminal uses nothing.
fn away_from_terminal(command: &mut Command) {
    if io::stdin().is_terminal() {
        command.stdin(Stdio::null());
    }
    if io::stdout().is_terminal() {
        command.stdout(Stdio::null());
    }
    if io::stderr().is_terminal() {
        command.stderr(Stdio::null());
    }
}

/// What a held command has come to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// It has mapped code that has not run yet.
    Mapped,
    /// It has replaced its program, before its own code ran.
    Replaced,
    /// All objects that it is linked with are mapped, and its own code is about to run.
    Entry,
    /// It has ended.
    Ended(ExitStatus),
}

/// A command that was started, stopped at its exec.
#[derive(Debug)]
pub(crate) struct HeldCommand {
    child: Child,
    entry: Option<Breakpoint>,
    /// The system call it is in maps code.
    mapping_code: bool,
}

impl HeldCommand {
    /// Starts the program `argv[0]` with our standard streams; those that are the terminal lead
    /// nowhere if that is ours alone.
    pub(crate) fn start(argv: &[OsString], owns_terminal: bool) -> Result<Self, CommandError> {
        let failed = |error: &io::Error| CommandError { program: program_name(argv), why: explain(error) };
        let (program, args) = argv.split_first().ok_or_else(|| failed(&io::ErrorKind::NotFound.into()))?;
        let mut command = Command::new(program);
        command.args(args);
        if owns_terminal {
            away_from_terminal(&mut command);
        }
        // SAFETY: between fork and exec only a system call is made.
        unsafe { command.pre_exec(|| ptrace(libc::PTRACE_TRACEME, 0, 0, 0).map(drop)) };
        let child = command.spawn().map_err(|error| failed(&error))?;
        let mut held = Self { child, entry: None, mapping_code: false };
        held.set_up().map_err(|error| failed(&error))?;
        Ok(held)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn set_up(&mut self) -> io::Result<()> {
        let pid = self.child.id();
        if !libc::WIFSTOPPED(wait(pid)?) {
            return Err(io::Error::other("it ended before its first instruction"));
        }
        let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACEEXEC;
        ptrace(libc::PTRACE_SETOPTIONS, pid, 0, options as u64)?;
        self.set_breakpoint()
    }

    fn set_breakpoint(&mut self) -> io::Result<()> {
        let pid = self.child.id();
        let (entry, interpreter) = auxiliary_vector(pid)?;
        // Without a dynamic linker nothing more will be mapped before its own code runs.
        self.entry = if interpreter == 0 { None } else { Some(Breakpoint::set(pid, entry)?) };
        Ok(())
    }

    /// Lets it run until it has mapped more code, comes to its entry point or ends.
    pub(crate) fn advance(&mut self) -> io::Result<Held> {
        let pid = self.child.id();
        if self.entry.is_none() {
            return Ok(Held::Entry);
        }
        let mut signal = 0;
        loop {
            ptrace(libc::PTRACE_SYSCALL, pid, 0, signal)?;
            signal = 0;
            let status = wait(pid)?;
            if !libc::WIFSTOPPED(status) {
                return Ok(Held::Ended(ExitStatus::from_raw(status)));
            }
            if status >> 8 == libc::SIGTRAP | libc::PTRACE_EVENT_EXEC << 8 {
                // A constructor has replaced the program, which has cleared the debug registers.
                self.set_breakpoint()?;
                return Ok(Held::Replaced);
            }
            match libc::WSTOPSIG(status) {
                stop if stop == libc::SIGTRAP | 0x80 => {
                    if self.has_mapped_code()? {
                        return Ok(Held::Mapped);
                    }
                }
                libc::SIGTRAP if self.entry.as_ref().is_some_and(|entry| entry.was_hit(pid)) => {
                    if let Some(entry) = self.entry.take() {
                        entry.remove(pid)?;
                    }
                    return Ok(Held::Entry);
                }
                other => signal = other as u64,
            }
        }
    }

    /// A system call begins or ends: says whether one has ended that has mapped code.
    fn has_mapped_code(&mut self) -> io::Result<bool> {
        if let Some(call) = beginning_system_call(self.child.id())? {
            let maps = matches!(call.number, libc::SYS_mmap | libc::SYS_mprotect);
            self.mapping_code = maps && call.arguments[2] & libc::PROT_EXEC as u64 != 0;
            return Ok(false);
        }
        Ok(std::mem::take(&mut self.mapping_code))
    }

    /// Lets it run free.
    pub(crate) fn release(self) -> io::Result<Child> {
        ptrace(libc::PTRACE_DETACH, self.child.id(), 0, 0)?;
        Ok(self.child)
    }
}

/// Addresses of the program's entry point and of its dynamic linker (0 if it has none):
/// /proc/PID/auxv, getauxval(3).
fn auxiliary_vector(pid: u32) -> io::Result<(u64, u64)> {
    let bytes = std::fs::read(format!("/proc/{pid}/auxv"))?;
    let words: Vec<u64> = bytes
        .chunks_exact(8)
        .map(|word| word.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
        .collect();
    let value = |key: u64| words.chunks_exact(2).find(|pair| pair[0] == key).map_or(0, |pair| pair[1]);
    Ok((value(libc::AT_ENTRY), value(libc::AT_BASE)))
}

/// waitpid(2) for a child that we trace; its raw status.
fn wait(pid: u32) -> io::Result<libc::c_int> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is valid.
        let result = unsafe { libc::waitpid(pid as libc::pid_t, &raw mut status, libc::__WALL) };
        if result >= 0 {
            return Ok(status);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "no such program; give its path, or a name that is in PATH".to_owned(),
        Some(libc::EACCES) => "permission denied; make the file executable (chmod +x)".to_owned(),
        Some(libc::ENOEXEC) => {
            "it is not a program that this machine can run; give it an interpreter".to_owned()
        }
        Some(libc::EPERM) => match closed_to_all() {
            Some(why) => format!("tracing it is not permitted: {why}; start it by itself, and give -p"),
            None => "tracing it is not permitted; run as root, or give CAP_SYS_PTRACE".to_owned(),
        },
        _ => format!("{error}; try to run it by itself"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn stops_when_code_is_mapped_and_at_the_entry_point() {
        let mut held = HeldCommand::start(&argv(&["/bin/sh", "-c", "exit 7"]), false).unwrap();
        let mut mapped = 0;
        loop {
            match held.advance().unwrap() {
                Held::Mapped => {
                    mapped += 1;
                    // The first stop comes before the C library has run: it is mapped by then, or
                    // is about to be.
                    assert!(mapped < 100);
                }
                Held::Entry => break,
                other => panic!("unexpected: {other:?}"),
            }
        }
        assert!(mapped > 0);
        let maps = crate::proc::maps::read_maps(held.pid()).unwrap();
        assert!(
            maps.iter()
                .any(|map| map.executable && map.path().is_some_and(|path| path.ends_with("libc.so.6")))
        );
        assert_eq!(held.release().unwrap().wait().unwrap().code(), Some(7));
    }

    #[test]
    fn says_why_a_program_does_not_run() {
        let missing = HeldCommand::start(&argv(&["/nonexistent/program"]), false).unwrap_err();
        assert!(missing.to_string().contains("no such program"), "{missing}");
        let not_executable = HeldCommand::start(&argv(&["/etc/passwd"]), false).unwrap_err();
        assert!(not_executable.to_string().contains("permission denied"), "{not_executable}");
    }
}
