//! Stops all threads of a process, by ptrace(2): PTRACE_SEIZE and PTRACE_INTERRUPT, which send no
//! signal. The thread that stops them is one of its own: when it ends, in whatever way, the kernel
//! lets all of them go.

use std::{
    collections::BTreeMap,
    fs, io,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::ptrace::{Request, ptrace};
use crate::arch::STACK_POINTER;

/// `PTRACE_EVENT_STOP` (ptrace.h), which the bindings to musl lack.
const EVENT_STOP: i32 = 128;
/// Register sets (elf.h): general ones; vector ones as the kernel saves them on x86-64, and on
/// others.
const NT_PRSTATUS: u64 = 1;
const NT_PRFPREG: u64 = 2;
const NT_X86_XSTATE: u64 = 0x202;
/// Bytes of the largest of them.
const MOST_REGISTERS: usize = 16 << 10;

/// A thread that was stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoppedThread {
    /// Its stack pointer.
    pub stack_pointer: u64,
    /// All of its registers, as words.
    pub registers: Vec<u64>,
}

/// A process that is stopped, until this is dropped.
#[derive(Debug)]
pub(crate) struct StoppedProcess {
    /// Its threads.
    pub threads: Vec<StoppedThread>,
    release: Option<mpsc::Sender<()>>,
    holder: Option<thread::JoinHandle<()>>,
}

impl StoppedProcess {
    /// Stops `pid`. An error: it is traced by somebody else, not all of its threads have stopped
    /// within `patience`, or it has gone. None of them is left stopped then.
    pub(crate) fn stop(pid: u32, patience: Duration) -> io::Result<Self> {
        Self::stop_and(pid, patience, || ())
    }

    /// The same; `asked` is called when all threads have been asked to stop, once or more, whatever
    /// comes of it.
    pub(crate) fn stop_and(
        pid: u32,
        patience: Duration,
        mut asked: impl FnMut() + Send + 'static,
    ) -> io::Result<Self> {
        let (told, news) = mpsc::channel();
        let (release, released) = mpsc::channel();
        let holder = thread::Builder::new().name("stop".to_owned()).spawn(move || {
            let mut held = HeldThreads::default();
            let stopped = held.stop(pid, Instant::now() + patience, &mut asked);
            asked();
            if told.send(stopped.map(|()| held.read())).is_ok() {
                // An error: nobody waits any more.
                let _ = released.recv();
            }
            held.release();
        })?;
        let threads = news.recv().map_err(|_| io::Error::other("the thread that stops it has failed"))?;
        let mut stopped = Self { threads: Vec::new(), release: Some(release), holder: Some(holder) };
        stopped.threads = threads?;
        Ok(stopped)
    }
}

impl Drop for StoppedProcess {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(holder) = self.holder.take() {
            // If it has panicked the kernel has let the threads go.
            let _ = holder.join();
        }
    }
}

/// Threads that are traced by this thread of ours, each with the signal that it was about to get.
#[derive(Default)]
struct HeldThreads(BTreeMap<u32, Option<u64>>);

impl HeldThreads {
    /// Seizes thread after thread until the list has no new one.
    fn stop(&mut self, pid: u32, deadline: Instant, asked: &mut dyn FnMut()) -> io::Result<()> {
        loop {
            let mut new = Vec::new();
            for entry in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
                let tid = entry.file_name().to_string_lossy().parse().ok();
                let Some(tid) = tid.filter(|tid| !self.0.contains_key(tid)) else { continue };
                match ptrace(libc::PTRACE_SEIZE, tid, 0, 0) {
                    Ok(_) => {
                        ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0)?;
                        new.push(tid);
                    }
                    // It has ended.
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                    Err(_) if is_zombie(tid) => {}
                    Err(error) => return Err(error),
                }
            }
            if new.is_empty() {
                return Ok(());
            }
            asked();
            for tid in new {
                if let Some(signal) = wait_for_stop(tid, deadline)? {
                    self.0.insert(tid, signal);
                }
            }
        }
    }

    fn read(&self) -> Vec<StoppedThread> {
        let thread = |tid: &u32| {
            let mut registers = register_set(*tid, NT_PRSTATUS).ok()?;
            let stack_pointer = registers.get(STACK_POINTER).copied()?;
            let vectors = register_set(*tid, NT_X86_XSTATE).or_else(|_| register_set(*tid, NT_PRFPREG));
            registers.extend(vectors.unwrap_or_default());
            Some(StoppedThread { stack_pointer, registers })
        };
        self.0.keys().filter_map(thread).collect()
    }

    /// Lets all go, each with its signal. One that has been killed meanwhile is gone.
    fn release(self) {
        for (tid, signal) in self.0 {
            let _ = ptrace(libc::PTRACE_DETACH, tid, 0, signal.unwrap_or(0));
        }
    }
}

/// Waits until a seized thread has stopped. Gives the signal that it is about to get, if it is;
/// `None`: it has ended. Ends are left to whoever waits for them: it may be a child of ours.
fn wait_for_stop(tid: u32, deadline: Instant) -> io::Result<Option<Option<u64>>> {
    let mut pause = Duration::from_micros(20);
    loop {
        // SAFETY: siginfo_t is plain integers, for which all bits zero is a value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let flags = libc::WSTOPPED | libc::WNOHANG | libc::__WALL;
        // SAFETY: `info` is valid for the call.
        let result = unsafe { libc::waitid(libc::P_PID, tid, &raw mut info, flags) };
        if result != 0 {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => continue,
                Some(libc::ECHILD) => return Ok(None),
                _ => return Err(error),
            }
        }
        // SAFETY: waitid has filled these fields, or left them zero if there is nothing to tell.
        let (of, status) = unsafe { (info.si_pid(), info.si_status()) };
        if of != 0 {
            return Ok(Some((status >> 8 != EVENT_STOP).then_some((status & 0x7f) as u64)));
        }
        if is_zombie(tid) {
            return Ok(None);
        }
        if Instant::now() >= deadline {
            let why =
                "one of its threads does not stop: it waits in the kernel for what cannot be interrupted";
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

fn is_zombie(tid: u32) -> bool {
    let stat = fs::read(format!("/proc/{tid}/stat")).unwrap_or_default();
    super::status::stat_fields(&String::from_utf8_lossy(&stat))
        .is_none_or(|(_, mut rest)| rest.next() == Some("Z"))
}

/// The words of a set of registers.
fn register_set(tid: u32, set: u64) -> io::Result<Vec<u64>> {
    const PTRACE_GETREGSET: Request = 0x4204;
    let mut words = vec![0_u64; MOST_REGISTERS / 8];
    let mut vector = libc::iovec { iov_base: words.as_mut_ptr().cast(), iov_len: MOST_REGISTERS };
    ptrace(PTRACE_GETREGSET, tid, set, (&raw mut vector) as u64)?;
    words.truncate(vector.iov_len / 8);
    Ok(words)
}

/// Who traces a process: its number and name.
pub(crate) fn tracer_of(pid: u32) -> Option<(u32, String)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let tracer: u32 = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?.trim().parse().ok()?;
    (tracer != 0).then(|| (tracer, super::status::thread_comm(tracer).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn state(pid: u32) -> String {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().find_map(|line| line.strip_prefix("State:")).unwrap().trim().to_owned()
    }

    fn sleeper() -> Child {
        Command::new("sleep").arg("100").stdin(Stdio::null()).spawn().unwrap()
    }

    #[test]
    fn a_process_is_stopped_and_runs_on() {
        let mut child = sleeper();
        let pid = child.id();
        let stopped = StoppedProcess::stop(pid, Duration::from_secs(10)).unwrap();
        assert_eq!(stopped.threads.len(), 1);
        assert!(stopped.threads[0].stack_pointer > 0x1000 && stopped.threads[0].registers.len() > 20);
        assert!(state(pid).starts_with('t'), "{}", state(pid));
        assert_eq!(tracer_of(pid).map(|(_, name)| name).as_deref(), Some("stop"));
        drop(stopped);
        assert_eq!(tracer_of(pid), None);
        assert!(!state(pid).starts_with(['t', 'T']), "{}", state(pid));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn what_is_traced_already_is_left_alone() {
        let mut child = sleeper();
        let stopped = StoppedProcess::stop(child.id(), Duration::from_secs(10)).unwrap();
        let error = StoppedProcess::stop(child.id(), Duration::from_secs(10)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        drop(stopped);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn who_has_gone_is_an_error() {
        assert!(StoppedProcess::stop(i32::MAX as u32, Duration::ZERO).is_err());
    }
}
