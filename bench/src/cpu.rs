//! CPU time of processes, their own and that of those that they have waited for.

use std::{fs, io, process::Child};

use anyhow::{Context, Result, ensure};

/// Seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cpu {
    /// In user mode.
    pub user: f64,
    /// In the kernel.
    pub system: f64,
}

impl Cpu {
    /// Of both kinds.
    pub(crate) fn sum(self) -> f64 {
        self.user + self.system
    }
}

/// CPU time so far: of a process itself, and of those that it has waited for.
pub(crate) fn of(pid: u32) -> Result<[Cpu; 2]> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // SAFETY: sysconf(3) takes an integer.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    times(&stat, ticks).with_context(|| format!("cannot read /proc/{pid}/stat"))
}

/// Waits until a child has ended, and leaves it to be waited for; gives what [`of`] does.
pub(crate) fn at_end(child: &Child) -> Result<[Cpu; 2]> {
    let pid = child.id();
    // SAFETY: siginfo_t is plain data, for which zero is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is valid for the length of the call; the child is ours and not waited for
    // yet.
    let waited = unsafe { libc::waitid(libc::P_PID, pid, &raw mut info, libc::WEXITED | libc::WNOWAIT) };
    ensure!(waited == 0, "cannot wait for process {pid}: {}", io::Error::last_os_error());
    of(pid)
}

/// proc_pid_stat(5): utime, stime, cutime and cstime are the fields 14 to 17; the second is a name
/// in parentheses.
fn times(stat: &str, ticks: f64) -> Option<[Cpu; 2]> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut times = rest.split(' ').skip(11).map(|field| field.parse::<f64>().ok());
    let mut time = || Some(times.next()?? / ticks);
    Some([Cpu { user: time()?, system: time()? }, Cpu { user: time()?, system: time()? }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_apart() {
        let stat = "71 (a) b) Z 1 71 1 0 -1 4 97 0 0 0 150 25 1000 7 20 0 1 0 6 0";
        let (own, children) = (Cpu { user: 1.5, system: 0.25 }, Cpu { user: 10.0, system: 0.07 });
        assert_eq!(times(stat, 100.0), Some([own, children]));
        assert_eq!(times("71 (a) Z 1 71", 100.0), None);
    }
}
