//! The terminal while we have all of it, and how it is given back: whatever ends us.
//!
//! Its settings and its first screen are restored when the view is left, and by a child if we end
//! without that: by SIGKILL, say, or a signal that nobody handles.

use std::{
    env,
    ffi::OsStr,
    fs::File,
    io::{self, IsTerminal as _, Read as _, Write as _},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd},
};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// The second screen, and no cursor.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l";
/// Buttons and the wheel of a mouse are told, in decimal numbers where the terminal knows that
/// form.
const MOUSE: &[u8] = b"\x1b[?1000h\x1b[?1006h";
/// The first screen, the cursor, no colours, and a mouse that is the terminal's own.
const LEAVE: &[u8] = b"\x1b[0m\x1b[?1006l\x1b[?1000l\x1b[?25h\x1b[?1049l";

/// A terminal that is ours.
#[derive(Debug)]
pub(super) struct Terminal {
    input: File,
    output: File,
    before: Termios,
    guard: Guard,
}

impl Terminal {
    /// Takes it.
    pub(super) fn enter() -> io::Result<Self> {
        let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        // A pipe may be our standard input; keys come from the terminal.
        let input = match io::stdin().is_terminal() {
            true => File::from(io::stdin().as_fd().try_clone_to_owned()?),
            false => match File::open("/dev/tty") {
                Ok(terminal) => terminal,
                Err(_) => output.try_clone()?,
            },
        };
        Self::enter_on(input, output, has_mouse(env::var_os("TERM").as_deref()))
    }

    fn enter_on(input: File, output: File, has_mouse: bool) -> io::Result<Self> {
        let before = tcgetattr(&output)?;
        let guard = Guard::start(&output)?;
        let mut terminal = Self { input, output, before, guard };
        let mut raw = terminal.before.clone();
        raw.make_raw();
        tcsetattr(&terminal.output, OptionalActions::Now, &raw)?;
        terminal.output.write_all(ENTER)?;
        terminal.output.write_all(if has_mouse { MOUSE } else { b"" })?;
        Ok(terminal)
    }

    /// What is drawn goes there.
    pub(super) fn output(&self) -> io::Result<File> {
        self.output.try_clone()
    }

    /// Waits for keys or for `other`, so many milliseconds at most; gives what was typed, and
    /// whether `other` has something. An error: the terminal has gone.
    pub(super) fn read(&mut self, other: &OwnedFd, wait_ms: i32) -> io::Result<(Vec<u8>, bool)> {
        let of = |fd: RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut polled = [of(self.input.as_raw_fd()), of(other.as_raw_fd())];
        // SAFETY: two valid pollfds, of descriptors that live through the call.
        let ready = unsafe { libc::poll(polled.as_mut_ptr(), 2, wait_ms) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::Interrupted => Ok((Vec::new(), false)),
                _ => Err(error),
            };
        }
        let [keys, other] = polled.map(|polled| polled.revents);
        let mut bytes = vec![0; 256];
        let length = match keys {
            0 => 0,
            _ if keys & libc::POLLIN != 0 => match self.input.read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            },
            _ => return Err(io::ErrorKind::BrokenPipe.into()),
        };
        bytes.truncate(length);
        Ok((bytes, other != 0))
    }
}

/// The terminal of this name may have a mouse. Others than those that are known to have none ignore
/// what they do not know.
fn has_mouse(name: Option<&OsStr>) -> bool {
    let name = name.and_then(OsStr::to_str).unwrap_or_default();
    !name.is_empty() && !["dumb", "linux", "vt"].iter().any(|without| name.starts_with(without))
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Of a terminal that has gone nothing is left to restore.
        let shown = self.output.write_all(LEAVE);
        let set = tcsetattr(&self.output, OptionalActions::Now, &self.before);
        if shown.is_ok() && set.is_ok() {
            self.guard.dismiss();
        }
    }
}

/// A child that restores the terminal if we end without having done so. It has a session of its
/// own, so that what ends all of our process group does not end it.
#[derive(Debug)]
struct Guard {
    child: libc::pid_t,
    to_child: File,
}

impl Guard {
    fn start(terminal: &File) -> io::Result<Self> {
        let (from_us, to_child) = io::pipe()?;
        let (from_us, to_child) = (File::from(OwnedFd::from(from_us)), File::from(OwnedFd::from(to_child)));
        let terminal = terminal.as_raw_fd();
        // SAFETY: plain integers, for which all zeroes is a value.
        let mut before: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: `before` is valid for the call.
        if unsafe { libc::tcgetattr(terminal, &raw mut before) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the child makes system calls only (signal-safety(7)), and never returns.
        match unsafe { libc::fork() } {
            // SAFETY: we are the child.
            0 => unsafe { guard(from_us.as_raw_fd(), terminal, &before) },
            child if child < 0 => Err(io::Error::last_os_error()),
            child => Ok(Self { child, to_child }),
        }
    }

    /// The terminal is as it was: the child is not needed any more.
    fn dismiss(&mut self) {
        if self.to_child.write_all(b"x").is_ok() {
            // SAFETY: our own child, which nobody else waits for, and whose status is of no
            // interest.
            unsafe { libc::waitpid(self.child, std::ptr::null_mut(), 0) };
        }
    }
}

/// Waits until our parent writes or ends; in the second case the terminal is restored.
///
/// # Safety
///
/// Only in a child of fork(2), with open descriptors: it closes all others.
unsafe fn guard(from_parent: RawFd, terminal: RawFd, before: &libc::termios) -> ! {
    // SAFETY: system calls with valid descriptors and addresses. Signals are blocked: one that
    // belongs to job control would stop us when we set the terminal.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, c"memleak-tty".as_ptr());
        // What else is open, such as links of probes, must not outlive our parent. Neither number
        // is overwritten before it is read: both are above 1, or are where they belong.
        let terminal = libc::fcntl(terminal, libc::F_DUPFD, 10);
        let from_parent = libc::fcntl(from_parent, libc::F_DUPFD, 10);
        libc::dup2(from_parent, 0);
        libc::dup2(terminal, 1);
        libc::syscall(libc::SYS_close_range, 2, u32::MAX, 0);
        let mut byte = 0u8;
        let read = loop {
            let read = libc::read(0, (&raw mut byte).cast(), 1);
            if read >= 0 || *libc::__errno_location() != libc::EINTR {
                break read;
            }
        };
        if read <= 0 {
            libc::tcsetattr(1, libc::TCSANOW, before);
            libc::write(1, LEAVE.as_ptr().cast(), LEAVE.len());
        }
        libc::_exit(0)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::FromRawFd as _;

    use super::*;

    /// A terminal: the end that shows it, and ours.
    fn terminal() -> (File, File) {
        let (mut shows, mut ours) = (-1, -1);
        let (name, settings, size) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
        // SAFETY: openpty(3) writes two descriptors, which are ours from then on.
        let result = unsafe { libc::openpty(&raw mut shows, &raw mut ours, name, settings, size) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        // SAFETY: both are open, and nobody else's.
        unsafe { (File::from_raw_fd(shows), File::from_raw_fd(ours)) }
    }

    fn settings(terminal: &File) -> String {
        format!("{:?}", tcgetattr(terminal).expect("settings"))
    }

    /// What was written to a terminal whose other end is closed.
    fn shown(mut shows: File) -> Vec<u8> {
        let mut all = Vec::new();
        let mut part = [0; 4096];
        while let Ok(length @ 1..) = shows.read(&mut part) {
            all.extend_from_slice(&part[..length]);
        }
        all
    }

    #[test]
    fn a_panic_gives_the_terminal_back() {
        let (shows, ours) = terminal();
        let before = settings(&ours);
        let copies = (ours.try_clone().expect("a copy"), ours.try_clone().expect("a copy"));
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let ended = std::thread::spawn(move || {
            let terminal = Terminal::enter_on(copies.0, copies.1, true).expect("a terminal");
            assert_ne!(settings(&terminal.output), "", "as if something were wrong");
            panic!("in the view");
        });
        assert!(ended.join().is_err());
        std::panic::set_hook(hook);
        assert_eq!(settings(&ours), before);
        drop(ours);
        let shown = shown(shows);
        assert!(shown.starts_with(&[ENTER, MOUSE].concat()) && shown.ends_with(LEAVE), "{shown:?}");
    }

    /// As after SIGKILL: nobody says that the terminal was given back.
    #[test]
    fn the_child_gives_the_terminal_back_if_we_do_not() {
        let (shows, ours) = terminal();
        let before = settings(&ours);
        let guard = Guard::start(&ours).expect("a child");
        let mut raw = tcgetattr(&ours).expect("settings");
        raw.make_raw();
        tcsetattr(&ours, OptionalActions::Now, &raw).expect("set");
        assert_ne!(settings(&ours), before);
        let Guard { child, to_child } = guard;
        drop(to_child);
        // SAFETY: our own child.
        assert_eq!(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }, child);
        assert_eq!(settings(&ours), before);
        drop(ours);
        assert_eq!(shown(shows), LEAVE);
    }

    #[test]
    fn a_mouse_is_asked_for_where_there_may_be_one() {
        let has = |name: &str| has_mouse(Some(OsStr::new(name)));
        assert!(has("xterm-256color") && has("tmux-256color") && has("foot"));
        assert!(!has("linux") && !has("dumb") && !has("vt220") && !has("") && !has_mouse(None));
    }

    #[test]
    fn keys_and_the_end_of_a_terminal() {
        let (mut shows, ours) = terminal();
        let (other, wakes) = io::pipe().expect("a pipe");
        let other = OwnedFd::from(other);
        let copy = ours.try_clone().expect("a copy");
        let mut terminal = Terminal::enter_on(ours, copy, false).expect("a terminal");
        assert_eq!(terminal.read(&other, 1).expect("nothing yet"), (Vec::new(), false));
        shows.write_all(b"q").expect("typed");
        assert_eq!(terminal.read(&other, 1000).expect("a key"), (b"q".to_vec(), false));
        (&wakes).write_all(b"x").expect("woken");
        assert_eq!(terminal.read(&other, 1000).expect("woken"), (Vec::new(), true));
        drop(shows);
        // Children of other tests have its other end for a moment, from fork(2) on.
        let begin = std::time::Instant::now();
        while terminal.read(&other, 100).is_ok() {
            assert!(begin.elapsed() < std::time::Duration::from_secs(10), "it has gone");
        }
    }
}
