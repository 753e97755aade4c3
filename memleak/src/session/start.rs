//! Puts probes into what is traced from the beginning.

use std::{
    ffi::OsString,
    mem,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use log::{info, warn};
use memleak_common::probe::Resource;

use super::{
    SessionError,
    state::{Mode, Session},
    user_mode::Objects,
};
use crate::{
    proc::{
        limits::raise_open_files,
        maps::{Mapping, read_maps},
        stacks::accepting,
        status::children,
    },
    target::{
        command::{CommandError, Held, HeldCommand},
        process::Process,
    },
    targets::Shared,
};

/// Longest time that a process has to load its libraries, while one that was named waits to be
/// traced.
const LOADING: Duration = Duration::from_secs(2);
/// How often is looked whether it has.
const LOOK: Duration = Duration::from_millis(5);

/// Whether the dynamic linker of a process is still to map its C library: it has only just been
/// started.
fn is_being_loaded(pid: u32) -> bool {
    let Ok(mappings) = read_maps(pid) else { return false };
    let is_linker = |mapping: &Mapping| {
        let name = mapping.path().and_then(Path::file_name);
        name.is_some_and(|name| name.as_encoded_bytes().starts_with(b"ld-"))
    };
    mappings.iter().any(is_linker)
        && !mappings.iter().any(|mapping| mapping.executable && mapping.is_of_c_library())
}

/// Waits for it: there is nothing to probe yet, and the linker tells nobody of what it maps before
/// there is a probe in it.
fn wait_until_loaded(pid: u32) {
    let began = Instant::now();
    let mut is_told = false;
    while is_being_loaded(pid) && began.elapsed() < LOADING {
        if !mem::replace(&mut is_told, true) {
            info!("process {pid} has just been started: waiting for its C library");
        }
        thread::sleep(LOOK);
    }
}

impl Session {
    /// Puts probes into a running process.
    pub(super) fn trace_running(&mut self, process: Process) -> Result<(), SessionError> {
        if let Some(warning) = process.warning() {
            warn!("{warning}");
        }
        let pid = process.pid;
        let target = self.add_target(&process, None)?;
        if self.settings.capture.resources.contains(&Resource::Fd)
            && let Some(traced) = self.targets.get_mut(target)
        {
            traced.accepting = accepting(pid);
        }
        wait_until_loaded(pid);
        // Reads what is mapped, and keeps it: the process may end at any time. Before the probes
        // are in, for the walks.
        self.observe(target);
        self.probe(target, Objects::All)?;
        if self.settings.capture.follow_forks {
            self.trace_descendants(target, pid);
        }
        Ok(())
    }

    /// Puts probes into what a target has made before it was one. (What it makes from now on it
    /// tells of.)
    fn trace_descendants(&mut self, parent: u32, pid: u32) {
        for child in children(pid) {
            if self.targets.with_pid(child).is_some() {
                continue;
            }
            let traced = Process::open(child).map_err(SessionError::from).and_then(|process| {
                let target = self.add_target(&process, Some((parent, Shared::default())))?;
                self.observe(target);
                self.probe(target, Objects::New)?;
                self.joined(target, pid);
                Ok(target)
            });
            match traced {
                Ok(target) => self.trace_descendants(target, child),
                Err(error) => {
                    warn!("a child is not traced: {error}");
                    self.lost_processes += 1;
                }
            }
        }
    }

    /// Starts a command and puts probes into each object before its code runs.
    pub(super) fn trace_command(&mut self, argv: &[OsString]) -> Result<(), SessionError> {
        let system = |error| SessionError::System("cannot hold the command", error);
        let mut held = HeldCommand::start(argv, self.settings.report.tui)?;
        // After the start, since a command would inherit it.
        raise_open_files();
        let target = self.add_target(&Process::open(held.pid())?, None)?;
        loop {
            self.observe(target);
            self.probe(target, Objects::New)?;
            match held.advance().map_err(system)? {
                Held::Mapped => {}
                // The programs have told of it before the command stopped.
                Held::Replaced => self.take_births(true),
                Held::Entry => break,
                Held::Ended(status) => {
                    return Err(CommandError::ended_early(argv, status).into());
                }
            }
        }
        // What IFUNC resolvers have chosen is known by now, and so is whether there is an allocator
        // at all.
        self.observe(target);
        self.probe(target, Objects::All)?;
        if let Mode::User(mode) = &mut self.mode {
            mode.held = Some(held);
        }
        Ok(())
    }

    /// Lets the command run free: the probes are in, and that was said.
    pub(super) fn release_command(&mut self) -> Result<(), SessionError> {
        match &mut self.mode {
            Mode::User(mode) => mode.release_command(),
            Mode::Kernel => Ok(()),
        }
    }
}
