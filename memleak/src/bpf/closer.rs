//! Ends links beside the run: the kernel waits for grace periods at the end of each, a tenth of a
//! second and more.
//!
//! A process child of ours does it, by ending ([`end_with_a_child`]): were we killed while we close
//! a link ourselves, the kernel could not take the breakpoints out of the target
//! (`failed to unregister, leaking uprobe`; it gives up if the closing thread has a SIGKILL
//! pending). Nobody kills the child, and one that ends has nothing pending any more.

use std::{
    io::{self, Read as _},
    os::fd::{AsRawFd as _, RawFd},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread::JoinHandle,
    time::Duration,
};

/// Links of one process, and the slot that is free when they have ended.
pub(super) struct Retired<T> {
    pub(super) links: Vec<T>,
    pub(super) slot: Option<u32>,
}

/// What ends when its descriptors are closed.
pub(super) trait HoldsLinks {
    /// Adds them. Says whether they are known.
    fn add_to(&self, fds: &mut Vec<RawFd>) -> bool;
}

impl<T: HoldsLinks> HoldsLinks for Retired<T> {
    fn add_to(&self, fds: &mut Vec<RawFd>) -> bool {
        self.links.add_to(fds)
    }
}

impl<T: HoldsLinks> HoldsLinks for Vec<T> {
    fn add_to(&self, fds: &mut Vec<RawFd>) -> bool {
        self.iter().all(|one| one.add_to(fds))
    }
}

/// The thread that has links ended.
pub(super) struct Closer<T> {
    retire: Option<Sender<Retired<T>>>,
    closed: Receiver<u32>,
    thread: Option<JoinHandle<()>>,
}

/// Children of ours that close links at once: each waits most of its time.
const MOST_CHILDREN: usize = 128;
/// Processes whose links one child closes.
const BATCH: usize = 16;
/// How often children are looked after.
const PAUSE: Duration = Duration::from_millis(20);

impl<T: HoldsLinks + Send + 'static> Closer<T> {
    pub(super) fn start() -> io::Result<Self> {
        let (retire, retired) = mpsc::channel();
        let (tell, closed) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("close-links".to_owned())
            .stack_size(256 << 10)
            .spawn(move || close_until_done(&retired, &tell))?;
        Ok(Self { retire: Some(retire), closed, thread: Some(thread) })
    }

    /// Has these links ended.
    pub(super) fn retire(&self, retired: Retired<T>) {
        // The thread lives as long as we.
        if let Some(Err(mpsc::SendError(retired))) = self.retire.as_ref().map(|retire| retire.send(retired)) {
            end_with_a_child(vec![retired]);
        }
    }

    /// Slots whose links have ended since this was last asked.
    pub(super) fn closed(&self) -> Vec<u32> {
        self.closed.try_iter().collect()
    }

    /// Waits until all links have ended. Gives the slots of those that [`Self::closed`] has not
    /// given.
    pub(super) fn finish(mut self) -> Vec<u32> {
        self.join();
        self.closed()
    }
}

impl<T> Closer<T> {
    fn join(&mut self) {
        drop(self.retire.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl<T> Drop for Closer<T> {
    fn drop(&mut self) {
        self.join();
    }
}

fn close_until_done<T: HoldsLinks>(retired: &Receiver<Retired<T>>, tell: &Sender<u32>) {
    let mut waiting: Vec<Retired<T>> = Vec::new();
    let mut children: Vec<(libc::pid_t, Vec<u32>)> = Vec::new();
    let mut is_done = false;
    while !is_done || !waiting.is_empty() || !children.is_empty() {
        let idle = waiting.is_empty() && children.is_empty();
        let next = if idle {
            retired.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            retired.recv_timeout(PAUSE)
        };
        match next {
            Ok(one) => waiting.push(one),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                is_done = true;
                if !idle {
                    std::thread::sleep(PAUSE);
                }
            }
        }
        waiting.extend(retired.try_iter());
        while !waiting.is_empty() && children.len() < MOST_CHILDREN {
            let batch: Vec<Retired<T>> = waiting.drain(..waiting.len().min(BATCH)).collect();
            let slots = batch.iter().filter_map(|one| one.slot).collect();
            children.push((end_with_a_child(batch), slots));
        }
        children.retain(|(child, slots)| {
            // SAFETY: the child is ours, or none; its status is of no interest.
            let ended =
                *child <= 0 || unsafe { libc::waitpid(*child, std::ptr::null_mut(), libc::WNOHANG) } != 0;
            if ended {
                for slot in slots.iter() {
                    let _ = tell.send(*slot);
                }
            }
            !ended
        });
    }
}

/// Has a child of ours end what is dropped here, by its own end. Gives the child, which is to be
/// waited for; if none was to be had, all has ended already, and it is 0.
pub(super) fn end_with_a_child<T: HoldsLinks>(links: T) -> libc::pid_t {
    let (Ok((reader, writer)), Ok((mut told, tell))) = (io::pipe(), io::pipe()) else { return 0 };
    let mut kept = vec![reader.as_raw_fd(), tell.as_raw_fd()];
    let others = if links.add_to(&mut kept) { between(kept) } else { Vec::new() };
    let child = fork_that_waits(&reader, &writer, &tell, &others);
    // Until then it has copies of all links, and those that another child is to end would not.
    drop(tell);
    let _ = told.read(&mut [0]);
    // If there is a child, ours are not the last of them: it holds a copy of each.
    drop(links);
    drop(writer);
    child
}

/// The ranges of descriptors that are none of these.
pub(super) fn between(mut fds: Vec<RawFd>) -> Vec<(u32, u32)> {
    fds.sort_unstable();
    let mut from = 0u32;
    let mut ranges = Vec::with_capacity(fds.len() + 1);
    for fd in fds.into_iter().filter_map(|fd| u32::try_from(fd).ok()) {
        if fd > from {
            ranges.push((from, fd - 1));
        }
        from = fd + 1;
    }
    ranges.push((from, u32::MAX));
    ranges
}

fn fork_that_waits(
    reader: &io::PipeReader,
    writer: &io::PipeWriter,
    tell: &io::PipeWriter,
    others: &[(u32, u32)],
) -> libc::pid_t {
    // SAFETY: the child makes system calls only.
    match unsafe { libc::fork() } {
        0 => {
            let mut byte = 0u8;
            // SAFETY: plain system calls on descriptors that are open. The second read ends when
            // the parent has closed its links, or has been killed; _exit then closes ours, which
            // are the last.
            unsafe {
                libc::setsid(); // who kills our group does not mean it
                for (first, last) in others {
                    libc::syscall(libc::SYS_close_range, *first, *last, 0);
                }
                libc::close(writer.as_raw_fd());
                libc::write(tell.as_raw_fd(), (&raw const byte).cast(), 1);
                libc::read(reader.as_raw_fd(), (&raw mut byte).cast(), 1);
                libc::_exit(0);
            }
        }
        child => child.max(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_other_descriptors_are_between() {
        assert_eq!(between(vec![5, 3, 4]), [(0, 2), (6, u32::MAX)]);
        assert_eq!(between(vec![9, 0]), [(1, 8), (10, u32::MAX)]);
        assert_eq!(between(vec![]), [(0, u32::MAX)]);
    }

    /// Which process has a pipe's other end.
    struct End(io::PipeWriter);

    impl HoldsLinks for End {
        fn add_to(&self, fds: &mut Vec<RawFd>) -> bool {
            fds.push(self.0.as_raw_fd());
            true
        }
    }

    /// A child that is still at it holds nothing back that another one ends.
    #[test]
    fn each_child_has_only_what_it_is_to_end() {
        let (mut first, one) = io::pipe().expect("a pipe");
        let (mut second, other) = io::pipe().expect("a pipe");
        let (held, hold) = (End(one), End(other));
        let (reader, writer) = io::pipe().expect("a pipe");
        let (mut told, tell) = io::pipe().expect("a pipe");
        let mut kept = vec![reader.as_raw_fd(), tell.as_raw_fd()];
        assert!(held.add_to(&mut kept));
        let busy = fork_that_waits(&reader, &writer, &tell, &between(kept));
        drop(tell);
        assert_eq!(told.read(&mut [0]).expect("read"), 1);
        let child = end_with_a_child(hold);
        assert_eq!(second.read(&mut [0]).expect("read"), 0, "it has ended with its child");
        drop(held);
        drop(writer);
        assert_eq!(first.read(&mut [0]).expect("read"), 0);
        for child in [busy, child] {
            // SAFETY: the child is ours; its status is of no interest.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
        }
    }
}
