//! The thread that has the terminal, and what the run knows of it.

use std::{
    fs::File,
    io::{self, IsTerminal as _, PipeWriter, Write as _},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ratatui::{backend::CrosstermBackend, layout::Size};
use rustix::termios::tcgetwinsize;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{
    ViewError, ViewLook, ViewRequest,
    keys::Decoder,
    state::{Action, State},
    table::draw,
    terminal::Terminal,
};
use crate::{report::model::Report, stderr};

/// How long the thread may take to give the terminal back. One that takes no bytes (Ctrl-S) would
/// hold us for ever.
const PATIENCE: Duration = Duration::from_millis(500);
/// Milliseconds after which an escape is the key of that name.
const ESCAPE_MS: i32 = 50;
/// Milliseconds after which the terminal's size and standard error are looked at.
const LOOK_MS: i32 = 250;

/// What the run leaves for the thread.
#[derive(Debug, Default)]
struct Inbox {
    report: Option<Arc<Report>>,
    said: Option<String>,
    close: bool,
}

/// The view, as the run has it.
#[derive(Debug)]
pub struct View {
    inbox: Arc<Mutex<Inbox>>,
    wake: PipeWriter,
    requests: UnboundedReceiver<ViewRequest>,
    thread: JoinHandle<()>,
}

/// Whether there is a terminal to show it on.
pub fn check() -> Result<(), ViewError> {
    if io::stdout().is_terminal() { Ok(()) } else { Err(ViewError::NoTerminal) }
}

impl View {
    /// Takes the terminal. What is said on standard error is shown there, and written when it is
    /// left.
    pub fn open(appearance: ViewLook) -> Result<Self, ViewError> {
        check()?;
        outlive_stops()?;
        let terminal = Terminal::enter()?;
        let (woken, wake) = io::pipe()?;
        for end in [woken.as_raw_fd(), wake.as_raw_fd()] {
            // SAFETY: fcntl(2) on a descriptor that is ours.
            unsafe { libc::fcntl(end, libc::F_SETFL, libc::O_NONBLOCK) };
        }
        let inbox = Arc::new(Mutex::new(Inbox::default()));
        let (tell, requests) = unbounded_channel();
        stderr::hold();
        let theirs = inbox.clone();
        let spawned = thread::Builder::new().name("memleak-view".to_owned()).spawn(move || {
            // A panic, too, gives the terminal back and is told.
            let _restores_stderr = ReleasesStderr;
            let screen = ViewThread { terminal, woken: woken.into(), inbox: theirs };
            // The terminal has gone, or does not take what we write: then nobody sees us.
            let _ = screen.run(State::new(appearance), &tell);
            let _ = tell.send(ViewRequest::Gone);
        });
        let thread = spawned.inspect_err(|_| stderr::release())?;
        Ok(Self { inbox, wake, requests, thread })
    }

    /// Shows a report, sooner or later.
    pub fn show(&self, report: &Arc<Report>) {
        locked(&self.inbox).report = Some(report.clone());
        self.wake();
    }

    /// Says something in one line.
    pub fn say(&self, text: String) {
        locked(&self.inbox).said = Some(text);
        self.wake();
    }

    /// What the user asks for.
    pub async fn request(&mut self) -> ViewRequest {
        self.requests.recv().await.unwrap_or(ViewRequest::Gone)
    }

    /// Gives the terminal back.
    pub fn close(self) {
        drop(self);
    }

    fn wake(&self) {
        // A full pipe wakes as well.
        let _ = (&self.wake).write(b"x");
    }
}

impl Drop for View {
    fn drop(&mut self) {
        locked(&self.inbox).close = true;
        self.wake();
        let begin = Instant::now();
        while !self.thread.is_finished() && begin.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(2));
        }
        // What is said from now on is about our end.
        stderr::release();
    }
}

/// A stopped run leaves the terminal as it is to the shell (SIGTSTP; Ctrl-Z is a key here), and the
/// children of its targets waiting. A command that we start stops as ever: a handler is none of
/// its.
fn outlive_stops() -> io::Result<()> {
    // SAFETY: the action does nothing.
    unsafe { signal_hook_registry::register(libc::SIGTSTP, || {})? };
    Ok(())
}

fn locked(inbox: &Mutex<Inbox>) -> MutexGuard<'_, Inbox> {
    inbox.lock().unwrap_or_else(PoisonError::into_inner)
}

struct ReleasesStderr;

impl Drop for ReleasesStderr {
    fn drop(&mut self) {
        stderr::release();
    }
}

/// What the thread has.
struct ViewThread {
    terminal: Terminal,
    woken: OwnedFd,
    inbox: Arc<Mutex<Inbox>>,
}

impl ViewThread {
    /// Shows what comes and does what is typed, until it is told to close. An error: the terminal
    /// has gone.
    fn run(mut self, mut state: State, tell: &UnboundedSender<ViewRequest>) -> io::Result<()> {
        let output = self.terminal.output()?;
        let mut drawn = ratatui::Terminal::new(CrosstermBackend::new(self.terminal.output()?))?;
        let (mut decoder, mut size, mut is_new) = (Decoder::default(), None, true);
        loop {
            let now = window_size(&output);
            if now != size {
                size = now;
                is_new = true;
                drawn.autoresize()?;
            }
            if is_new {
                drawn.draw(|frame| draw(frame, &mut state))?;
                is_new = false;
            }
            let wait = if decoder.is_waiting() { ESCAPE_MS } else { LOOK_MS };
            let (bytes, is_woken) = self.terminal.read(&self.woken, wait)?;
            decoder.feed(&bytes);
            while let Some(key) = decoder.next(bytes.is_empty()) {
                is_new = true;
                match state.key(key) {
                    Action::None => {}
                    Action::Redraw => drawn.clear()?,
                    Action::Ask(request) => {
                        let _ = tell.send(request);
                    }
                }
            }
            is_new |= state.heard(stderr::last_held());
            if is_woken && self.take(&mut state) {
                return Ok(());
            }
            is_new |= is_woken;
        }
    }

    /// Takes over what came in; gives whether it is the end.
    fn take(&self, state: &mut State) -> bool {
        let mut bytes = [0u8; 64];
        while let Ok(1..) = rustix::io::read(&self.woken, &mut bytes) {}
        let Inbox { report, said, close } = std::mem::take(&mut *locked(&self.inbox));
        if let Some(report) = report {
            state.show(report);
        }
        if let Some(said) = said {
            state.say(said);
        }
        close
    }
}

fn window_size(terminal: &File) -> Option<Size> {
    let size = tcgetwinsize(terminal).ok()?;
    Some(Size::new(size.ws_col, size.ws_row))
}
