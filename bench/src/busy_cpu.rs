//! A CPU that is kept busy, as on a machine that does other work (`--loaded`).

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, ensure};

/// How many CPUs there are for us.
pub(crate) fn cpus() -> Result<usize> {
    Ok(thread::available_parallelism()?.get())
}

/// A thread that spins on the machine's last CPU until this is dropped.
pub(crate) struct BusyCpu {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl BusyCpu {
    /// Begins. Fails on a machine with a single CPU, where the traced program would have none.
    pub(crate) fn start() -> Result<Self> {
        let cpus = cpus()?;
        ensure!(cpus > 1, "--loaded wants a machine with two CPUs or more");
        let ends = Arc::new(AtomicBool::new(false));
        let end = ends.clone();
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let pinned = pin(cpus - 1);
            let goes_on = pinned.is_ok();
            // Fails if nobody waits any more, who has then no use for it either.
            if sender.send(pinned).is_ok() && goes_on {
                while !end.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            }
        });
        let busy = Self { ends, thread: Some(thread) };
        receiver.recv().context("the thread that keeps a CPU busy has ended")??;
        Ok(busy)
    }
}

impl Drop for BusyCpu {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        // It cannot panic: it only spins.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Keeps the calling thread on one CPU.
fn pin(cpu: usize) -> io::Result<()> {
    // SAFETY: a set of CPUs is plain data, for which zero is a value: the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is ours; a number beyond its size is ignored.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the pointer is to a set of that size, valid for the length of the call.
    match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_when_it_is_dropped() -> Result<()> {
        if cpus()? > 1 {
            let busy = BusyCpu::start()?;
            let ends = busy.ends.clone();
            drop(busy);
            assert!(ends.load(Ordering::Relaxed));
            assert_eq!(Arc::strong_count(&ends), 1, "the thread has gone");
        }
        Ok(())
    }
}
