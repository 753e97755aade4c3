//! A program whose calls are known: this one, started again, makes pairs of malloc and free.

use std::{
    hint::black_box,
    io::{self, BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use crate::proc::cpu_times::own_thread_time;

/// Calls that are on the stack of each pair: as many as in an ordinary program.
const DEPTH: u32 = 12;

/// Makes as many pairs as each line of standard input asks for, and answers with the CPU time that
/// they took, in nanoseconds.
pub(crate) fn run_pairs() {
    for line in io::stdin().lock().lines() {
        let Some(count) = line.ok().and_then(|line| line.trim().parse::<u32>().ok()) else { return };
        let begin = own_thread_time();
        for _ in 0..count {
            nested(DEPTH);
        }
        let took = own_thread_time().saturating_sub(begin);
        println!("{}", took.as_nanos());
        let _ = io::stdout().flush();
    }
}

#[inline(never)]
fn nested(depth: u32) {
    if black_box(depth) > 0 {
        nested(depth - 1);
        black_box(depth); // no tail call
        return;
    }
    // SAFETY: malloc's block, or null, goes to free.
    unsafe { libc::free(black_box(libc::malloc(black_box(64)))) };
}

/// It runs until this is dropped.
pub(super) struct Pairs {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Pairs {
    pub(super) fn start() -> io::Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .args(["doctor", "--pairs"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let answers = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self { child, answers: BufReader::new(answers) })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time of a pair. `None` if it has ended.
    pub(super) fn time(&mut self, count: u32) -> Option<Duration> {
        writeln!(self.child.stdin.as_mut()?, "{count}").ok()?;
        let mut line = String::new();
        self.answers.read_line(&mut line).ok()?;
        Some(Duration::from_nanos(line.trim().parse().ok()?) / count.max(1))
    }
}

impl Drop for Pairs {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
