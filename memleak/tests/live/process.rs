//! Child processes whose output is followed line by line, with deadlines, and that never outlive
//! their test.

use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// How long an event may take before the test fails. `MEMLEAK_LIVE_PATIENCE` has other seconds for
/// slow machines.
pub(crate) fn patience() -> Duration {
    let seconds = std::env::var("MEMLEAK_LIVE_PATIENCE").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(60))
}

/// Rounds from 0 up to `all`, of which `MEMLEAK_LIVE_ROUNDS` leaves so many, spread evenly, on slow
/// machines.
pub(crate) fn rounds(all: usize) -> impl Iterator<Item = u64> {
    let most = std::env::var("MEMLEAK_LIVE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    (0..all as u64).step_by(all.div_ceil(most.unwrap_or(all).max(1)))
}

#[derive(Default)]
struct State {
    lines: Vec<String>,
    closed: bool,
}

/// The lines of a stream, as they come.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<(Mutex<State>, Condvar)>);

impl Lines {
    fn follow(stream: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let feed = lines.clone();
        thread::spawn(move || {
            let mut reader = BufReader::new(stream);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                line.clear();
                feed.state().lines.push(text);
                feed.0.1.notify_all();
            }
            feed.state().closed = true;
            feed.0.1.notify_all();
        });
        lines
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All lines so far.
    pub(crate) fn so_far(&self) -> Vec<String> {
        self.state().lines.clone()
    }

    /// Waits for a line that is `wanted`, from the line with number `from` on; returns its number
    /// and the line. `None` if the stream ended, or [`patience`] did.
    pub(crate) fn wait(&self, from: usize, wanted: impl Fn(&str) -> bool) -> Option<(usize, String)> {
        let deadline = Instant::now() + patience();
        let mut state = self.state();
        let mut next = from;
        loop {
            while let Some(line) = state.lines.get(next) {
                if wanted(line) {
                    return Some((next, line.clone()));
                }
                next += 1;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                return None;
            }
            state = self.0.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the end of the stream; returns all its lines.
    fn wait_for_end(&self) -> Option<Vec<String>> {
        self.wait(usize::MAX, |_| false);
        let state = self.state();
        state.closed.then(|| state.lines.clone())
    }
}

/// What a process left behind.
#[derive(Debug)]
pub(crate) struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<String>,
    /// Its standard error.
    pub stderr: Vec<String>,
}

/// A running child, leader of a process group of its own, killed with the whole group when it is
/// dropped.
pub(crate) struct Running {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Lines,
    stderr: Lines,
    next: usize,
    collected: bool,
}

impl Running {
    /// Starts `command` with pipes on its standard streams.
    pub(crate) fn start(command: &mut Command) -> Self {
        let name = format!("{command:?}");
        // SAFETY: prctl(2) may be called between fork and exec.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let mut child = command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("starting {name}: {error}"));
        let stdout = Lines::follow(child.stdout.take().expect("piped"));
        let stderr = Lines::follow(child.stderr.take().expect("piped"));
        let stdin = child.stdin.take();
        Self { name, child, stdin, stdout, stderr, next: 0, collected: false }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its standard output.
    pub(crate) fn stdout(&self) -> &Lines {
        &self.stdout
    }

    /// Its standard error.
    pub(crate) fn stderr(&self) -> &Lines {
        &self.stderr
    }

    /// Writes a line to its standard input.
    pub(crate) fn tell(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("its standard input is open");
        let sent = stdin.write_all(format!("{line}\n").as_bytes());
        sent.unwrap_or_else(|error| panic!("telling {line:?}: {error}\n{}", self.outputs()));
    }

    /// Waits for the next line of its standard output that is `wanted`.
    pub(crate) fn expect_line(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        match self.stdout.wait(self.next, wanted) {
            Some((number, line)) => {
                self.next = number + 1;
                line
            }
            None => panic!("no {what} on standard output\n{}", self.outputs()),
        }
    }

    /// Waits for exactly this line, and returns those before it.
    pub(crate) fn expect(&mut self, wanted: &str) -> Vec<String> {
        let from = self.next;
        self.expect_line(wanted, |line| line == wanted);
        self.stdout.so_far()[from..self.next - 1].to_vec()
    }

    /// Sends a signal to it (not to its group).
    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: kill(2) touches no memory of ours; the child is not yet waited for, so the id is
        // its own.
        let failed = unsafe { libc::kill(self.pid() as i32, signal) };
        assert_eq!(failed, 0, "signalling {}: {}", self.name, std::io::Error::last_os_error());
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Waits for its end by itself. Its output may go on afterwards, through children.
    pub(crate) fn wait_status(&mut self) -> ExitStatus {
        assert!(wait_for_end(self.pid(), patience()), "it does not end\n{}", self.outputs());
        self.child.wait().expect("waiting for a child")
    }

    /// Closes its standard input and waits for its end and for that of its output.
    pub(crate) fn end(mut self) -> Ended {
        self.stdin = None;
        let status = self.wait_status();
        let outputs = self.outputs();
        let stdout = self.stdout.wait_for_end();
        let stderr = self.stderr.wait_for_end();
        self.collected = true;
        match (stdout, stderr) {
            (Some(stdout), Some(stderr)) => Ended { status, stdout, stderr },
            _ => panic!("it ended, but something keeps its streams open\n{outputs}"),
        }
    }

    /// Both outputs so far, for a failed test to show.
    pub(crate) fn outputs(&self) -> String {
        let show = |lines: &Lines| {
            let lines = lines.so_far();
            let skipped = lines.len().saturating_sub(40);
            let shown: Vec<String> =
                lines[skipped..].iter().map(|line| line.chars().take(2000).collect()).collect();
            format!("({skipped} lines before)\n{}", shown.join("\n"))
        };
        format!(
            "--- {}\n--- standard output {}\n--- standard error {}\n---",
            self.name,
            show(&self.stdout),
            show(&self.stderr)
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if thread::panicking() && !self.collected {
            eprintln!("{}", self.outputs());
        }
        // SAFETY: kill(2) touches no memory of ours. The group is the child's own; where the child
        // was waited for, its number is not another's as long as a member of the group lives, and
        // is nobody's else.
        unsafe { libc::kill(-(self.pid() as i32), libc::SIGKILL) };
        let _ = self.child.wait();
    }
}

/// Waits until the process has ended (a zombie has), by its pidfd; false if it did not in time.
pub(crate) fn wait_for_end(pid: u32, patience: Duration) -> bool {
    // SAFETY: pidfd_open(2) takes a number and flags, and returns a new descriptor or -1.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if descriptor < 0 {
        return true;
    }
    // SAFETY: the descriptor is new and nobody else's.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor as i32) };
    let mut poll = libc::pollfd { fd: descriptor.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, which lives through the call.
    let ready = unsafe { libc::poll(&mut poll, 1, patience.as_millis() as i32) };
    ready == 1
}

/// The exit status as a shell would say it: 128+N for signal N.
pub(crate) fn code(status: ExitStatus) -> i32 {
    status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}
