//! Whom the kernel has killed for want of memory, as its own log says.
//!
//! What user space kills for that (systemd-oomd, earlyoom) is not told here: nobody but its own
//! log knows why.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::fs::OpenOptionsExt as _,
    thread,
    time::{Duration, SystemTime},
};

use super::clock::monotonic_ns;

/// A process that was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OomKill {
    /// Which, by its number in the first PID namespace.
    pub(crate) pid: u32,
    /// When.
    pub(crate) time: SystemTime,
}

/// The log of the kernel from some moment on, and what its counter was then.
#[derive(Debug)]
pub(crate) struct OomLog {
    log: File,
    kills: u64,
}

impl OomLog {
    /// From now on; `None` if the log cannot be read (dmesg(1) as somebody without CAP_SYSLOG).
    pub(crate) fn open() -> Option<Self> {
        let mut log = File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg").ok()?;
        log.seek(SeekFrom::End(0)).ok()?;
        Some(Self { log, kills: kills()? })
    }

    /// The kills since then. One of a process that has just ended is in the log a little later.
    pub(crate) fn kills(&mut self, ended: &[u32]) -> Vec<OomKill> {
        const TRIES: usize = 20;
        let mut found = Vec::new();
        if ended.is_empty() || kills().is_none_or(|kills| kills == self.kills) {
            return found;
        }
        for _ in 0..TRIES {
            self.read(&mut found);
            if found.iter().any(|kill| ended.contains(&kill.pid)) {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        found.retain(|kill| ended.contains(&kill.pid));
        found
    }

    fn read(&mut self, found: &mut Vec<OomKill>) {
        // A read gives one line; EPIPE says that some were overwritten before they were read.
        let mut line = vec![0; 8192];
        loop {
            match self.log.read(&mut line) {
                Ok(length @ 1..) => {
                    let text = String::from_utf8_lossy(line.get(..length).unwrap_or_default());
                    if let Some((pid, at_us)) = killed(&text) {
                        let ago = (monotonic_ns() / 1000).saturating_sub(at_us);
                        let time = SystemTime::now().checked_sub(Duration::from_micros(ago));
                        found.push(OomKill { pid, time: time.unwrap_or(SystemTime::UNIX_EPOCH) });
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Ok(_) | Err(_) => return,
            }
        }
    }
}

/// How many the kernel has killed since it began (proc(5), Linux 4.13).
fn kills() -> Option<u64> {
    let text = fs::read_to_string("/proc/vmstat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

/// Process and time (microseconds since the machine began) of a line of /dev/kmsg such as
/// `3,1234,5678901,-;Out of memory: Killed process 42 (server) total-vm:...` (`__oom_kill_process`
/// in mm/oom_kill.c; `Memory cgroup out of memory:` of a control group's limit). A program can
/// write lines of its own there, which say so: their facility is not the kernel's.
fn killed(line: &str) -> Option<(u32, u64)> {
    let (head, text) = line.split_once(';')?;
    let mut head = head.split(',');
    let priority: u32 = head.next()?.parse().ok()?;
    let at_us = head.nth(1)?.parse().ok()?;
    let (why, rest) = text.split_once(": Killed process ")?;
    // The upper bits are the facility; 0 is the kernel (syslog(3)).
    let is_kernels = priority >> 3 == 0;
    let is_oom = why.to_ascii_lowercase().ends_with("out of memory");
    let pid = rest.split_once(' ')?.0.parse().ok()?;
    (is_kernels && is_oom).then_some((pid, at_us))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernels_log() {
        let of_machine =
            "3,1234,5678901,-;Out of memory: Killed process 42 (a b) total-vm:1kB, anon-rss:2kB\n";
        assert_eq!(killed(of_machine), Some((42, 5_678_901)));
        let of_group = "3,9,7,-,caller=T1;Memory cgroup out of memory: Killed process 7 (x) total-vm:1kB";
        assert_eq!(killed(of_group), Some((7, 7)));
        // As root can write it there: facility 1.
        let of_a_program = of_machine.replacen('3', "11", 1);
        for line in [
            of_a_program.as_str(),
            "6,1,2,-;oom_reaper: reaped process 42 (x)",
            "3,1,2,-;Out of memory: Killed process x",
            "",
            "3,1;Out of memory: Killed process 42 (x)",
        ] {
            assert_eq!(killed(line), None, "{line}");
        }
    }
}
