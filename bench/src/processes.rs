//! The two processes of a measurement: the program that is traced, which clocks itself, and the
//! tracer.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use xtask::{privilege, run};

use crate::median::median;

/// A tracer that takes longer than this beyond its traced time (bcc compiles first) hangs.
const PATIENCE: Duration = Duration::from_secs(90);

/// Time to acquire a block, traced, on a slow machine.
pub(crate) const A_BLOCK: Duration = Duration::from_micros(30);

/// Left out at both ends of the traced time.
pub(crate) const MARGIN: Duration = Duration::from_millis(250);
/// What to do if there is no way to become root.
pub(crate) const INSTEAD: &str = "run the bench as root";

/// A line that a process wrote, and when it came.
#[derive(PartialEq)]
struct Line {
    /// CLOCK_MONOTONIC.
    time: Duration,
    text: String,
}

/// CLOCK_MONOTONIC, which the traced program stamps its windows with.
pub(crate) fn now() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the length of the call, and the clock exists on every
    // Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Reads a stream line by line on a thread of its own, so that lines are stamped when they come.
fn lines(stream: impl Read + Send + 'static, sender: mpsc::Sender<Line>) {
    thread::spawn(move || {
        for text in BufReader::new(stream).lines().map_while(Result::ok) {
            if sender.send(Line { time: now(), text }).is_err() {
                break;
            }
        }
    });
}

/// The program that is traced. Dropping it ends it.
pub(crate) struct Target {
    child: Child,
    /// `None` once it has been told to end.
    input: Option<ChildStdin>,
    lines: Receiver<Line>,
}

/// A traced program of bench/programs, compiled; each process of it has a C library of its own.
pub(crate) struct Program {
    program: PathBuf,
    /// The system's C library, as the compiler finds it.
    libc: PathBuf,
    /// Where each target's own copy of it is put.
    own_libc: PathBuf,
}

impl Program {
    /// Compiles it.
    pub(crate) fn compile(source: &str, flags: &[&str]) -> Result<Self> {
        let program = compile(source, &[&["-fno-omit-frame-pointer"], flags].concat())?;
        let own_libc = program.with_file_name("libc");
        let libc = run::output(Command::new("gcc").arg("-print-file-name=libc.so.6"))?;
        Ok(Self { program, libc: libc.trim().into(), own_libc })
    }

    /// Starts it with a C library of its own.
    pub(crate) fn start(&self, arguments: &[&str]) -> Result<Target> {
        own_copy(&self.libc, &self.own_libc)?;
        let mut command = Command::new(&self.program);
        Target::start(command.args(arguments).env("LD_LIBRARY_PATH", &self.own_libc))
    }

    /// Has others start it: `words` are the beginning of their command line.
    pub(crate) fn start_under(&self, words: &[OsString], arguments: &[&str]) -> Result<Target> {
        let (first, others) = words.split_first().context("no command")?;
        Target::start(Command::new(first).args(others).arg(&self.program).args(arguments))
    }
}

/// Puts a copy of a library into a folder: a new file, not new bytes in the one that may be there,
/// since probes belong to an inode.
pub(crate) fn own_copy(library: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let copy = folder.join(library.file_name().context("a library without a name")?);
    if copy.exists() {
        fs::remove_file(&copy)?;
    }
    fs::copy(library, &copy).with_context(|| format!("cannot copy {}", library.display()))?;
    Ok(())
}

/// Compiles a program of bench/programs into target/bench.
pub(crate) fn compile(source: &str, flags: &[&str]) -> Result<PathBuf> {
    let directory = run::root().join("target/bench");
    fs::create_dir_all(&directory)?;
    let program = directory.join(source.trim_end_matches(".c"));
    let mut compiler = Command::new("gcc");
    compiler.current_dir(run::root()).args(["-O2", "-Wall", "-Wextra"]).args(flags);
    run::run(compiler.arg(Path::new("bench/programs").join(source)).arg("-o").arg(&program))?;
    Ok(program)
}

impl Target {
    /// Starts a program that prints windows until its standard input ends.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let shown = run::shown(command);
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = piped.spawn().with_context(|| format!("cannot start `{shown}`"))?;
        let (sender, receiver) = mpsc::channel();
        lines(child.stdout.take().context("no pipe")?, sender);
        let input = child.stdin.take();
        Ok(Self { child, input, lines: receiver })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets one that waits begin.
    pub(crate) fn go(&mut self) -> Result<()> {
        self.tell("go")
    }

    /// Whether it runs, or how it has ended.
    pub(crate) fn state(&mut self) -> String {
        match self.child.try_wait() {
            Ok(Some(status)) => format!("the traced program has ended ({status})"),
            _ => "the traced program runs".to_owned(),
        }
    }

    /// Writes a line to it.
    pub(crate) fn tell(&mut self, line: &str) -> Result<()> {
        // At once: what comes later it would take for another line.
        Ok(self.input.as_mut().context("no pipe")?.write_all(format!("{line}\n").as_bytes())?)
    }

    /// Waits for its next window, and passes over what others have said before.
    pub(crate) fn next_window(&self) -> Result<Pace> {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).context("the traced program says nothing")?;
            if let Some((_, pace)) = parse_window(&line.text) {
                return Ok(pace);
            }
        }
    }

    /// Ends it by the end of its input, and waits for it: one that others have started ends with
    /// all of theirs.
    pub(crate) fn end(mut self) -> Result<()> {
        drop(self.input.take());
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            // The end of its output comes first.
            ensure!(Instant::now() < deadline, "the traced program does not end");
            if self.lines.recv_timeout(Duration::from_millis(10)) == Err(RecvTimeoutError::Disconnected) {
                thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }

    /// Waits for this line, and passes over those before it; `longer`: for what it does first.
    pub(crate) fn wait_for(&self, text: &str, longer: Duration) -> Result<()> {
        loop {
            let line = self.lines.recv_timeout(PATIENCE + longer);
            if line.with_context(|| format!("the traced program does not say `{text}`"))?.text == text {
                return Ok(());
            }
        }
    }

    /// Waits for its next line.
    pub(crate) fn next_line(&self) -> Result<String> {
        Ok(self.lines.recv_timeout(PATIENCE).context("the traced program says nothing")?.text)
    }

    /// Waits for its next line, which has to be this one.
    pub(crate) fn expect(&self, text: &str) -> Result<()> {
        let line = self.next_line()?;
        ensure!(line == text, "the traced program says `{line}` and should say `{text}`");
        Ok(())
    }

    /// Medians of the windows within `length` from `start`, less a margin at both ends; waits for
    /// the last of them.
    pub(crate) fn pace(&self, start: Duration, length: Duration, margin: Duration) -> Result<Pace> {
        let (from, to) = (start + margin, start + length - margin);
        let mut inside = Vec::new();
        let mut last_end = None;
        loop {
            let line = self.lines.recv_timeout(PATIENCE).context("the traced program says nothing")?;
            let (end, pace) =
                parse_window(&line.text).with_context(|| format!("no window: {}", line.text))?;
            // A window reaches from the end of the one before it to its own.
            if last_end.is_some_and(|begin| begin >= from) && end <= to {
                inside.push(pace);
            }
            if end > to {
                break;
            }
            last_end = Some(end);
        }
        let too_short = "the traced time holds no whole window: give it more with --seconds";
        Ok(Pace {
            turn_ns: median(inside.iter().map(|pace| pace.turn_ns)).context(too_short)?,
            cpu_share: median(inside.iter().map(|pace| pace.cpu_share)).context(too_short)?,
        })
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // Fails only if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How fast the traced program went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pace {
    /// Nanoseconds for a turn of its loop: a pair of malloc and free, say.
    pub turn_ns: f64,
    /// Share of the time for which it had a CPU; well below 1 on a machine that does other work
    /// too. Of a program with threads, the sum.
    pub cpu_share: f64,
}

impl Pace {
    /// CPU time of a turn, in nanoseconds.
    pub(crate) fn cpu_ns(self) -> f64 {
        self.turn_ns * self.cpu_share
    }
}

/// `END_NS TURN_NS CPU_SHARE`, as the programs of bench/programs print it.
fn parse_window(line: &str) -> Option<(Duration, Pace)> {
    let mut words = line.split(' ');
    let end = Duration::from_nanos(words.next()?.parse().ok()?);
    let pace = Pace { turn_ns: words.next()?.parse().ok()?, cpu_share: words.next()?.parse().ok()? };
    Some((end, pace))
}

/// A tracer to run for one report.
pub(crate) struct Tracer {
    /// The command line.
    pub command: Command,
    /// A line with this text tells when the traced time begins, or ends.
    pub mark: &'static str,
}

/// The command line of a memleak that says what it does.
pub(crate) fn memleak_command(memleak: &Path) -> Result<Command> {
    let mut command = privilege::as_root(memleak, INSTEAD)?;
    command.arg("-v");
    Ok(command)
}

/// What memleak says when it has attached.
pub(crate) const ATTACHED: &str = "memleak: attached ";

/// Words of a memleak that says what it does and makes no report but the last, for [`Running`].
pub(crate) fn memleak_words(memleak: &Path, options: &[&str], pid: u32) -> Vec<OsString> {
    let pid = pid.to_string();
    let words = [&["-v", "-T", "1"], options, &["-p", &pid, "3600"]].concat();
    std::iter::once(memleak.into()).chain(words.into_iter().map(Into::into)).collect()
}

/// What came of a tracer's run.
pub(crate) struct Traced {
    /// When the marked line came (CLOCK_MONOTONIC).
    pub marked: Duration,
    lines: Vec<String>,
}

impl Tracer {
    /// Runs it to its end; calls `at_line` with the process that was started and each line, when it
    /// comes.
    pub(crate) fn run_watched(
        mut self,
        seconds: Duration,
        mut at_line: impl FnMut(u32, &str) -> Result<()>,
    ) -> Result<Traced> {
        let shown = run::shown(&self.command);
        let command = self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start `{shown}`"))?;
        let (sender, receiver) = mpsc::channel();
        lines(child.stdout.take().context("no pipe")?, sender.clone());
        lines(child.stderr.take().context("no pipe")?, sender);
        let deadline = Instant::now() + seconds + PATIENCE;
        let collected = collect(&receiver, self.mark, deadline, |line| at_line(child.id(), line));
        if collected.is_err() {
            // It hangs, or we cannot go on: it must not stay attached. Fails for a tracer that sudo
            // raised, and for one that has ended.
            let _ = child.kill();
        }
        let status = child.wait()?;
        let (marked, lines) = collected.with_context(|| format!("`{shown}`"))?;
        let said = || lines.iter().rev().take(3).rev().cloned().collect::<Vec<_>>().join(" / ");
        ensure!(status.success(), "`{shown}` failed ({status}): {}", said());
        let Some(marked) = marked else { bail!("`{shown}` never said `{}`: {}", self.mark, said()) };
        Ok(Traced { marked, lines })
    }
}

/// A tracer that runs until it is dropped, or [`Self::end`] is called.
pub(crate) struct Running {
    /// When the marked line came (CLOCK_MONOTONIC).
    pub marked: Duration,
    shown: String,
    /// A shell that waits for this to end, and then ends the tracer: also if sudo raised it, and
    /// whatever ends us.
    input: Option<ChildStdin>,
    shell: Child,
    lines: Receiver<Line>,
    said: Vec<String>,
}

impl Running {
    /// Starts a tracer as root and waits for a line with `mark`. `words`: its command line.
    pub(crate) fn start(words: &[OsString], mark: &str) -> Result<Self> {
        const SCRIPT: &str = r#""$@" & read -r line; kill -TERM $!; wait $!"#;
        let mut command = privilege::as_root("/bin/sh", INSTEAD)?;
        command.args(["-c", SCRIPT, "sh"]).args(words);
        let shown = words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut shell = piped.spawn().with_context(|| format!("cannot start `{shown}`"))?;
        let (sender, lines_of) = mpsc::channel();
        lines(shell.stdout.take().context("no pipe")?, sender.clone());
        lines(shell.stderr.take().context("no pipe")?, sender);
        let input = shell.stdin.take();
        let mut running =
            Self { marked: Duration::ZERO, shown, input, shell, lines: lines_of, said: Vec::new() };
        let deadline = Instant::now() + PATIENCE;
        loop {
            match running.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.text.contains(mark) => {
                    running.marked = line.time;
                    running.said.push(line.text);
                    return Ok(running);
                }
                // A tracer that has ended leaves the shell waiting: its last words are all that
                // comes.
                Ok(line) => running.said.push(line.text),
                Err(_) => bail!("`{}` does not say `{mark}`: {}", running.shown, running.said.join(" / ")),
            }
        }
    }

    /// Ends it; gives all that it said.
    pub(crate) fn end(mut self) -> Result<Vec<String>> {
        drop(self.input.take());
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.said.push(line.text),
                Err(RecvTimeoutError::Disconnected) => return Ok(std::mem::take(&mut self.said)),
                Err(RecvTimeoutError::Timeout) => bail!("`{}` does not end", self.shown),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.input.take());
        // Fails for a shell that sudo raised and that has ended.
        let _ = self.shell.wait();
    }
}

/// Takes lines until the streams end; gives the time of the first with the mark, and all lines.
fn collect(
    lines: &Receiver<Line>,
    mark: &str,
    deadline: Instant,
    mut at_line: impl FnMut(&str) -> Result<()>,
) -> Result<(Option<Duration>, Vec<String>)> {
    let (mut marked, mut texts) = (None, Vec::new());
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                if marked.is_none() && line.text.contains(mark) {
                    marked = Some(line.time);
                }
                at_line(&line.text)?;
                texts.push(line.text);
            }
            Err(RecvTimeoutError::Disconnected) => return Ok((marked, texts)),
            Err(RecvTimeoutError::Timeout) => bail!("does not end"),
        }
    }
}

impl Traced {
    /// The lines that begin with `prefix`.
    pub(crate) fn lines_with<'t>(&'t self, prefix: &'t str) -> impl Iterator<Item = &'t str> {
        self.lines.iter().map(String::as_str).filter(move |line| line.starts_with(prefix))
    }

    /// How many lines have `text` in them.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.lines.iter().filter(|line| line.contains(text)).count()
    }

    /// The number after `before` in the first line that starts with `prefix`.
    pub(crate) fn number(&self, prefix: &str, before: &str) -> Result<f64> {
        number_said(&self.lines, prefix, before)
    }
}

/// The number after `before` in the first of memleak's lines that starts with `prefix`.
pub(crate) fn number_said(lines: &[String], prefix: &str, before: &str) -> Result<f64> {
    let line = lines.iter().find(|line| line.starts_with(prefix));
    number_in(line.with_context(|| format!("memleak -v did not say `{prefix}...`"))?, before)
}

/// The number after `before` in a line.
pub(crate) fn number_in(line: &str, before: &str) -> Result<f64> {
    let (_, rest) = line.split_once(before).with_context(|| format!("no `{before}` in: {line}"))?;
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    rest[..end].parse().with_context(|| format!("no number after `{before}` in: {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(text: &str) -> Tracer {
        let mut command = Command::new("sh");
        command.args(["-c", text]);
        Tracer { command, mark: "memleak: attached" }
    }

    #[test]
    fn figures_of_memleak_are_read() -> Result<()> {
        let traced = script(
            "echo 'memleak: attached 24 probes in 83.5 ms' >&2
             echo 'memleak: report over 1000000 allocations took 412.25 ms (snapshot 301 ms)' >&2
             echo 'memleak: report over 7 allocations took 1 ms (snapshot 0.5 ms)' >&2",
        )
        .run_watched(Duration::ZERO, |_, _| Ok(()))?;
        assert_eq!(traced.number(ATTACHED, " in ")?, 83.5);
        let line = traced.lines_with("memleak: report").next().context("no report")?;
        let numbers = ["over ", "took ", "snapshot "].map(|before| number_in(line, before).ok());
        assert_eq!(numbers, [Some(1_000_000.0), Some(412.25), Some(301.0)]);
        assert!(number_in(line, "memleak: ").is_err());
        Ok(())
    }

    #[test]
    fn failing_tracer_is_an_error_with_its_last_words() {
        let outcome = script("echo 'memleak: attached'; echo 'memleak: no rights' >&2; exit 1")
            .run_watched(Duration::ZERO, |_, _| Ok(()));
        let message = outcome.err().map(|error| format!("{error:#}")).unwrap_or_default();
        assert!(message.contains("memleak: no rights"), "{message}");
        let outcome = script("echo nothing").run_watched(Duration::ZERO, |_, _| Ok(()));
        let message = outcome.err().map(|error| format!("{error:#}")).unwrap_or_default();
        assert!(message.contains("never said `memleak: attached`: nothing"), "{message}");
    }

    #[test]
    fn windows_within_the_traced_time_count() -> Result<()> {
        let (sender, receiver) = mpsc::channel();
        // Ends at 1, 2, 3... seconds; the windows from 2 to 3, 3 to 4 and 4 to 5 lie in 1.5..5.5
        // whole.
        for (end, pair_ns) in [(1, 100.0), (2, 90.0), (3, 7.0), (4, 5.0), (5, 6.0), (6, 80.0)] {
            sender.send(Line { time: Duration::ZERO, text: format!("{}000000000 {pair_ns} 0.5", end) })?;
        }
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let input = child.stdin.take();
        let target = Target { child, input, lines: receiver };
        let half = Duration::from_millis(500);
        let pace = target.pace(Duration::from_secs(1), Duration::from_secs(5), half)?;
        assert_eq!(pace, Pace { turn_ns: 6.0, cpu_share: 0.5 });
        Ok(())
    }
}
