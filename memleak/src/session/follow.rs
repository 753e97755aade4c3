//! Children and new programs of targets, stopped before their first instruction until the probes
//! are in.
//!
//! The thread that makes a child, or has replaced its program, reports it (ring buffer `BIRTHS`)
//! and waits in the kernel for an answer. Meanwhile one of our threads seizes the child by
//! ptrace(2) and asks it to stop: no signal is sent, and nobody but a debugger could tell. When the
//! probes are in, it is let go. If we are killed, the kernel lets it go.
//!
//! ptrace(2) ties a stopped process to the thread that has seized it. There are several threads,
//! each on a processor of its own, since the one that waits in the kernel takes a processor that
//! cannot be ours.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, TryRecvError},
    },
    time::{Duration, Instant},
};

use memleak_common::event::{Event, kind};
use tokio::sync::mpsc as tokio_mpsc;

use crate::{
    bpf::{Births, HOLD},
    proc::{clock::monotonic_ns, ptrace::ptrace, stop::StoppedProcess},
};

/// Longest time that a process is stopped at its birth: a run that is busy (with a report, say)
/// lets it go untraced.
const STOP: Duration = Duration::from_secs(1);

/// A child or a new program of a target.
#[derive(Debug)]
pub(super) struct Birth {
    /// What the programs have told.
    pub(super) event: Event,
    /// It was seized before its first instruction in user mode.
    is_whole: bool,
    /// The thread that has seized it.
    seized_by: Option<usize>,
    /// It is no birth but about to end, and is stopped until this is dropped.
    pub(super) stopped: Option<Arc<StoppedProcess>>,
}

impl Birth {
    /// It is or will be stopped before its first instruction, and has not been let go yet.
    pub(super) fn is_held(&self) -> bool {
        let since = Duration::from_nanos(monotonic_ns().saturating_sub(self.event.time_ns));
        self.is_whole && since < STOP
    }
}

/// The threads that seize and let go.
pub(super) struct Follower {
    births: Arc<Births>,
    born: tokio_mpsc::UnboundedReceiver<Birth>,
    threads: Vec<Seizer>,
    /// Somebody deals with births: they are worth a stop.
    is_armed: Arc<AtomicBool>,
}

/// One of them, as others see it.
struct Seizer {
    release: mpsc::Sender<u32>,
    wake: Arc<OwnedFd>,
}

impl Follower {
    /// Starts the threads. `count`: how many.
    pub(super) fn start(births: Births, count: usize) -> io::Result<Self> {
        let births = Arc::new(births);
        let (tell, born) = tokio_mpsc::unbounded_channel();
        let is_armed = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (index, cpu) in own_cpus().into_iter().take(count).enumerate() {
            let (release, releases) = mpsc::channel();
            let wake = Arc::new(event_fd()?);
            let mut thread = Thread {
                index,
                births: births.clone(),
                tell: tell.clone(),
                releases,
                wake: wake.clone(),
                is_armed: is_armed.clone(),
                stopped: Vec::new(),
            };
            std::thread::Builder::new().name(format!("follow-{index}")).stack_size(256 << 10).spawn(
                move || {
                    be_prompt(cpu);
                    thread.run();
                },
            )?;
            threads.push(Seizer { release, wake });
        }
        Ok(Self { births, born, threads, is_armed })
    }

    /// Whether births are dealt with from now on: nothing is stopped while they are not.
    pub(super) fn arm(&self, is_armed: bool) {
        self.is_armed.store(is_armed, Ordering::Release);
    }

    /// The next birth.
    pub(super) async fn next(&mut self) -> Option<Birth> {
        self.born.recv().await
    }

    /// The next birth of those that were told of by now.
    pub(super) fn try_next(&mut self) -> Option<Birth> {
        loop {
            if let Ok(birth) = self.born.try_recv() {
                return Some(birth);
            }
            // One that no thread has come to yet.
            let mut found = None;
            let was_told = self.births.next(|event| found = Some(*event));
            if let Some(event) = found {
                self.births.answer(&event);
                return Some(Birth { event, is_whole: false, seized_by: None, stopped: None });
            }
            if !was_told {
                // What a thread had come to before is in the channel.
                return self.born.try_recv().ok();
            }
        }
    }

    /// Lets it run free.
    pub(super) fn release(&self, birth: &Birth) {
        let Some(thread) = birth.seized_by.and_then(|index| self.threads.get(index)) else { return };
        if thread.release.send(birth.event.tid).is_ok() {
            wake_up(&thread.wake);
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // A thread ends when nobody can ask anything of it; what it has seized then runs free.
        for Seizer { release, wake } in self.threads.drain(..) {
            drop(release);
            wake_up(&wake);
        }
    }
}

struct Thread {
    index: usize,
    births: Arc<Births>,
    tell: tokio_mpsc::UnboundedSender<Birth>,
    releases: mpsc::Receiver<u32>,
    wake: Arc<OwnedFd>,
    is_armed: Arc<AtomicBool>,
    /// What was seized, and until when it may be stopped.
    stopped: Vec<(u32, Instant)>,
}

impl Thread {
    fn run(&mut self) {
        /// How often those are looked at that are to be let go and have not stopped yet, ms.
        const PAUSE: libc::c_int = 1;
        let mut leaving: Vec<u32> = Vec::new();
        loop {
            let left = |(_, until): &(u32, Instant)| until.saturating_duration_since(Instant::now());
            let timeout = match self.stopped.iter().map(left).min() {
                _ if !leaving.is_empty() => PAUSE,
                Some(left) => left.as_millis() as libc::c_int + 1,
                None => -1,
            };
            wait_for(&[self.births.fd(), self.wake.as_raw_fd()], timeout);
            let births = self.births.clone();
            while births.next(|event| self.take(event)) {}
            take_wake_ups(&self.wake);
            loop {
                match self.releases.try_recv() {
                    Ok(pid) => {
                        leaving.extend(self.stopped.extract_if(.., |one| one.0 == pid).map(|one| one.0))
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            let now = Instant::now();
            leaving.extend(self.stopped.extract_if(.., |(_, until)| *until <= now).map(|(pid, _)| pid));
            leaving.retain(|pid| !let_go(*pid));
        }
    }

    fn take(&mut self, event: &Event) {
        if event.kind == kind::ENDING {
            let _ = self.tell.send(self.stop(event));
            self.births.answer(event);
            return;
        }
        let seized = if self.is_armed.load(Ordering::Acquire) {
            seize(event.tid)
        } else {
            Err(io::ErrorKind::ResourceBusy.into())
        };
        if let Err(error) = &seized {
            log::debug!("cannot hold process {}: {error}", event.tid);
        }
        let is_held =
            event.resource != 0 && monotonic_ns().saturating_sub(event.time_ns) < HOLD.as_nanos() as u64;
        let is_whole = seized.is_ok() && is_held;
        if seized.is_ok() {
            self.stopped.push((event.tid, Instant::now() + STOP));
        }
        let _ = self.tell.send(Birth {
            event: *event,
            is_whole,
            seized_by: seized.is_ok().then_some(self.index),
            stopped: None,
        });
        self.births.answer(event);
    }

    /// Stops a process that is about to end. The thread that tells of it comes back to user mode,
    /// where it can be stopped, when it is answered.
    fn stop(&self, event: &Event) -> Birth {
        let (births, told) = (self.births.clone(), *event);
        let stopped = match self.is_armed.load(Ordering::Acquire) {
            true => StoppedProcess::stop_and(event.tid, STOP, move || births.answer(&told)),
            false => Err(io::ErrorKind::ResourceBusy.into()),
        };
        let stopped = stopped.inspect_err(|error| log::debug!("cannot stop process {}: {error}", event.tid));
        Birth { event: *event, is_whole: false, seized_by: None, stopped: stopped.ok().map(Arc::new) }
    }
}

/// Has a process stop as soon as it comes back to user mode. ptrace(2): PTRACE_SEIZE stops nothing
/// by itself.
fn seize(pid: u32) -> io::Result<()> {
    ptrace(libc::PTRACE_SEIZE, pid, 0, 0)?;
    ptrace(libc::PTRACE_INTERRUPT, pid, 0, 0).map(drop)
}

/// Lets a process go, if it has stopped. Says whether nothing is left to be done.
fn let_go(pid: u32) -> bool {
    let mut status = 0;
    // SAFETY: `status` is valid. A process that somebody else waits for is not waited for here: it
    // is our thread's tracee.
    let waited = unsafe { libc::waitpid(pid as libc::pid_t, &raw mut status, libc::__WALL | libc::WNOHANG) };
    if waited == 0 {
        return false;
    }
    if waited > 0 && libc::WIFSTOPPED(status) {
        // A signal that has stopped it on its way is delivered.
        let is_signal = status >> 16 == 0;
        let signal = if is_signal { libc::WSTOPSIG(status) as u64 } else { 0 };
        let _ = ptrace(libc::PTRACE_DETACH, pid, 0, signal);
    }
    true
}

/// The processors that we may run on.
fn own_cpus() -> Vec<usize> {
    // SAFETY: plain bits: all zeroes is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: a set of the size given.
    let result = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
    if result < 0 {
        return vec![0];
    }
    let size = libc::CPU_SETSIZE as usize;
    // SAFETY: an index within the set.
    (0..size).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect()
}

/// Keeps the thread on one processor, where it comes before whatever else runs there. Without the
/// privilege it is as prompt as others.
fn be_prompt(cpu: usize) {
    // SAFETY: plain bits: all zeroes is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // The kernel's `struct sched_param`: musl's has more in it, and its function does nothing.
    let priority: libc::c_int = 1;
    // SAFETY: an index that `own_cpus` gave, a set of the size given and a valid parameter.
    unsafe {
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
        libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_FIFO, &raw const priority);
    }
}

fn event_fd() -> io::Result<OwnedFd> {
    // SAFETY: eventfd(2) takes two integers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the system call has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn wake_up(wake: &OwnedFd) {
    let one = 1u64;
    // SAFETY: eight bytes that live through the call.
    unsafe { libc::write(wake.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
}

fn take_wake_ups(wake: &OwnedFd) {
    let mut count = 0u64;
    // SAFETY: as above.
    unsafe { libc::read(wake.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
}

/// Waits until one of the descriptors is readable, or for so many milliseconds.
fn wait_for(fds: &[RawFd; 2], timeout: libc::c_int) {
    let mut polled = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    // SAFETY: so many entries, which live through the call.
    unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout) };
}
