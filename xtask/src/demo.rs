//! `cargo xtask demo`: the whole story on one screen. A program that leaks runs, memleak is pointed
//! at it from outside, and what its reports show is said in plain words.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use xtask::{
    packages::{self, Package},
    privilege, run,
};

const COMPILER: Package = Package { names: &["g++"], purpose: "compiles examples/wordcount.cc" };
const TEXTS: [&str; 2] = ["examples/data/constitution.txt", "examples/data/declaration.txt"];
/// Stacks in a report, what holds what at the end, seconds between reports, number of reports.
const REPORTS: [&str; 5] = ["--top", "4", "--why", "2", "3"];
/// Between two files: slow enough that the leak is one of megabytes and not of gigabytes.
const PACE: Duration = Duration::from_millis(100);
/// The function whose leak the reports must show.
const CULPRIT: &str = "word_counter::word_count";
/// What the last report must say of why: the circle, its two types and members, and where they are
/// made.
const CIRCLE: [&str; 6] = [
    "cycle of 2, ",
    ".printer_ (+0x50) -> count_printer",
    ".counter_ (+0x18) -> word_counter",
    "made in main  wordcount.cc:78",
    "made in main  wordcount.cc:79",
    "std::weak_ptr",
];

/// Runs the demo.
pub(crate) fn run() -> Result<()> {
    packages::ensure(&[COMPILER])?;
    privilege::as_root("true", "run the demo as root")?;
    let memleak = run::memleak_binary()?;
    let wordcount = compile_wordcount()?;
    let mut feeder = Feeder::start(&wordcount)?;
    let pid = feeder.child.id().to_string();
    println!("\nwordcount runs as process {pid} and counts the words of two texts again and again.");
    println!("memleak now looks at it from outside; wordcount is neither rebuilt nor restarted for that.\n");
    let traced = trace(&memleak, &pid);
    let counted = feeder.end()?;
    let report = traced?;
    ensure!(
        report.contains(CULPRIT),
        "the reports do not show {CULPRIT}: this is not what the demo promises"
    );
    for part in CIRCLE {
        ensure!(
            report.contains(part),
            "the last report does not say \"{part}\": this is not what the demo promises"
        );
    }
    println!("{}", explanation(counted));
    Ok(())
}

fn compile_wordcount() -> Result<PathBuf> {
    let directory = run::root().join("target/demo");
    fs::create_dir_all(&directory)?;
    let wordcount = directory.join("wordcount");
    let mut compiler = Command::new("g++");
    compiler.current_dir(run::root()).args(["-fno-omit-frame-pointer", "-std=c++11", "-g"]);
    run::run(compiler.arg("examples/wordcount.cc").arg("-o").arg(&wordcount))?;
    Ok(wordcount)
}

/// Traces the process for a few reports, passing them on; gives all that was printed.
fn trace(memleak: &Path, pid: &str) -> Result<String> {
    let mut command = privilege::as_root(memleak, "run the demo as root")?;
    command.args(["-p", pid]).args(REPORTS).stdout(Stdio::piped());
    eprintln!("+ {}", run::shown(&command));
    let mut child = command.spawn().with_context(|| format!("cannot start `{}`", run::shown(&command)))?;
    let mut printed = String::new();
    for line in BufReader::new(child.stdout.take().context("no pipe")?).lines() {
        let line = line?;
        println!("{line}");
        printed.push_str(&line);
        printed.push('\n');
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{}` failed: {status}", run::shown(&command));
    }
    Ok(printed)
}

/// wordcount, with a thread that gives it one file name after the other.
struct Feeder {
    child: Child,
    /// Gives the number of answers that came.
    thread: Option<JoinHandle<usize>>,
}

impl Feeder {
    fn start(wordcount: &Path) -> Result<Self> {
        let mut child = Command::new(wordcount)
            .current_dir(run::root())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", wordcount.display()))?;
        let mut names = child.stdin.take().context("no pipe")?;
        let answers: ChildStdout = child.stdout.take().context("no pipe")?;
        let thread = thread::spawn(move || {
            let mut answers = BufReader::new(answers).lines();
            let mut counted = 0;
            for text in TEXTS.iter().cycle() {
                // Both fail when wordcount is gone, which is how this ends.
                if writeln!(names, "{text}").is_err() || !matches!(answers.next(), Some(Ok(_))) {
                    break;
                }
                counted += 1;
                thread::sleep(PACE);
            }
            counted
        });
        Ok(Self { child, thread: Some(thread) })
    }

    /// Ends wordcount and its feeder; gives the number of files counted.
    fn end(&mut self) -> Result<usize> {
        // Not an error if it has ended by itself: the trace has said so then.
        let _ = self.child.kill();
        self.child.wait()?;
        let Some(thread) = self.thread.take() else { return Ok(0) };
        thread.join().map_err(|_| anyhow::anyhow!("the feeding thread panicked"))
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        if self.thread.is_some() {
            let _ = self.end();
        }
    }
}

fn explanation(counted: usize) -> String {
    format!(
        "What there is to see

  Each heading says how many bytes, in how many allocations, were acquired by one stack of calls and have not been
  released; below it stands the stack, the innermost call first. The largest comes first.

  1. The largest stack passes through word_counter::word_count, std::copy and std::back_insert_iterator: this is the
     vector of strings that a file is read into. Read it from the bottom: main calls word_count, which copies words into
     the vector, which makes room for them (_M_realloc_insert).
  2. Two small stacks end in main with std::make_shared: one word_counter and one count_printer for each file, and none of
     them ever goes ({counted} files were counted in all, some before memleak looked).
     Stacks through std::string's constructor hold the letters of words too long to fit into a string itself; they are
     whole, though libstdc++ is built without frame pointers: the callers come from its unwind tables.
  3. From report to report the same stacks grow. wordcount has long done with those files: this is a leak.

  Why: the last lines of the last report say it (--why). The word_counter owns a count_printer by its member printer_,
  which owns the word_counter back by counter_, both by std::shared_ptr. Neither count ever reaches zero, so all that hangs
  off them is lost, although main has let go of it. A std::weak_ptr in count_printer (examples/wordcount.cc, the line marked
  \"closes the circle\") mends it.

  Make the change, run this demo again, and the stacks are gone. Or point memleak at your own program:
    sudo target/release/memleak -p PID
"
    )
}
