//! A program that is traced and debugged in one run: the tracer's stacks beside gdb's, at the very
//! same calls.
//!
//! gdb stops at each call of an allocator's function before the tracer's probe in it, takes the
//! stack, and sees what the call returns. So each block that the tracer reports in the end is the
//! one of a call, by its address, and so is its stack.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    os::unix::fs::FileExt as _,
    process::Command,
};

use super::fixture;
use crate::{
    machine::IS_ARM,
    process::Running,
    report::{Allocation, Frame, Report, Stack},
    tracer::{NEVER, Tracer},
};

/// What gdb stops at: all that acquires memory, by the tracer's count. The usual ones first, since
/// the processor has four breakpoints for functions that are probed at their first byte.
const FUNCTIONS: &str =
    "malloc calloc realloc mmap reallocarray mremap posix_memalign aligned_alloc memalign";

/// A stack's return addresses, the caller of the allocator's function first.
type Addresses = Vec<u64>;

/// What gdb saw.
#[derive(Default)]
struct Truth {
    stacks: HashMap<usize, Addresses>,
    /// By resource and the address that calls returned, of the last of them: the bytes asked for
    /// and the stack's number.
    blocks: BTreeMap<(String, u64), (u64, usize)>,
    calls: u64,
}

impl Truth {
    /// Reads what `gdb_calls.py` prints.
    fn parse(lines: &[String]) -> Self {
        let hex = |word: &str| u64::from_str_radix(word, 16).expect(word);
        let mut truth = Self::default();
        for line in lines {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["STACK", number, ref addresses @ ..] => {
                    let addresses = addresses.iter().map(|word| hex(word)).collect();
                    truth.stacks.insert(number.parse().expect(line), addresses);
                }
                ["BLOCK", resource, address, size, stack] => {
                    let call = (size.parse().expect(line), stack.parse().expect(line));
                    truth.blocks.insert((resource.to_owned(), hex(address)), call);
                }
                ["DONE", calls] => truth.calls = calls.parse().expect(line),
                _ => {}
            }
        }
        assert!(truth.calls > 0, "gdb saw no calls: {lines:?}");
        truth
    }

    /// The number of the stack of the call that acquired a block. Of a mapping it can be a part
    /// that is left.
    fn call(&self, resource: &str, block: &Allocation) -> Option<usize> {
        let address = hexadecimal(&block.address);
        let upto = (resource.to_owned(), address);
        let ((found, start), (size, number)) = self.blocks.range(..=upto).next_back()?;
        let is_whole = (*start, *size) == (address, block.size);
        let is_part = resource == "mmap" && address + block.size <= start + size;
        (found == resource && (is_whole || is_part)).then_some(*number)
    }
}

/// gdb, to be told of a program by more arguments. `setting`: python.
fn gdb(setting: &str) -> Command {
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-q", "-batch", "-ex"]).arg(format!("python FUNCTIONS='{FUNCTIONS}'{setting}"));
    gdb.arg("-x").arg(fixture("gdb_calls.py"));
    gdb
}

/// Has gdb and the tracer watch a process from before its first call, or from now on, to its end,
/// which `drive` (told the process's id) may bring about.
fn watch(gdb: &mut Command, drive: impl FnOnce(u32)) -> (Report, Truth) {
    let mut gdb = Running::start(gdb);
    let ready = gdb.expect_line("READY", |line| line.starts_with("READY "));
    let pid = ready.split(' ').nth(1).and_then(|pid| pid.parse().ok()).expect("gdb says which process");
    let tracer = Tracer::attach_with(pid, &["-a", "-o", "0", "-T", "100000", NEVER]);
    gdb.tell("go on");
    drive(pid);
    let report = tracer.wait().into_final_report();
    (report, Truth::parse(&gdb.end().stdout))
}

/// How the tracer's stacks compared with gdb's.
#[derive(Debug, Default)]
pub(super) struct Score {
    /// Calls whose blocks were left.
    blocks: usize,
    pub stacks: usize,
    frames: usize,
    equal: usize,
    /// Stacks that are gdb's from the first frame to the last.
    pub whole: usize,
    pub cut: usize,
    /// Stacks with another frame where gdb's have one; where one of the two is merely cut there is
    /// none.
    pub wrong: usize,
    differences: Vec<String>,
}

impl Score {
    fn new(name: &str, report: &Report, truth: &Truth) -> Self {
        assert_eq!(report.totals.acquired, truth.calls, "{name}: the tracer and gdb see the same calls");
        let mut score = Self::default();
        for stack in &report.stacks {
            score.add(name, stack, truth);
        }
        score
    }

    /// Compares a stack with gdb's of each call whose block it stands for.
    fn add(&mut self, name: &str, stack: &Stack, truth: &Truth) {
        let ours: Addresses = outer_frames(stack).map(|frame| hexadecimal(&frame.ip)).collect();
        let blocks = stack.allocations.as_deref().unwrap_or_default();
        let numbers: BTreeSet<usize> = blocks
            .iter()
            .map(|block| {
                let call = truth.call(&stack.resource, block);
                call.unwrap_or_else(|| panic!("{name}: gdb saw no call for {block:?}: {stack:?}"))
            })
            .collect();
        assert!(!numbers.is_empty(), "{name}: a stack without blocks: {stack:?}");
        self.blocks += blocks.len();
        self.stacks += 1;
        self.cut += usize::from(stack.truncated);
        let theirs: Vec<&Addresses> = numbers.iter().map(|number| &truth.stacks[number]).collect();
        for theirs in &theirs {
            let same = ours.iter().zip(*theirs).take_while(|(a, b)| a == b).count();
            self.frames += theirs.len().max(ours.len());
            self.equal += same;
            self.wrong += usize::from(same < ours.len().min(theirs.len()));
        }
        if theirs.iter().all(|theirs| **theirs == ours) {
            self.whole += 1;
        } else if self.differences.len() < 5 {
            self.differences.push(format!("ours {ours:x?}\ngdb  {theirs:x?}"));
        }
    }

    /// Prints a row of the table in `tests/unwind_fixtures/README.md`.
    fn tell(&self, name: &str, at_least: usize, report: &Report) {
        println!(
            "| {name} | {} | {} | {} | {} | {:.2} % | {} | {} |",
            report.totals.acquired,
            self.blocks,
            self.stacks,
            self.frames,
            100.0 * self.equal as f64 / self.frames.max(1) as f64,
            self.whole,
            self.cut
        );
        assert!(self.stacks >= at_least, "{name}: {} stacks\n{}", self.stacks, report.describe());
    }

    /// Every frame is gdb's, and no stack is cut.
    fn assert_equal(&self, name: &str) {
        let differences = self.differences.join("\n");
        assert!(self.equal == self.frames && self.whole == self.stacks, "{name}: {self:?}\n{differences}");
        assert!(self.cut == 0, "{name}: {self:?}");
    }
}

fn hexadecimal(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Frames that are on the stack: an inlined function has its caller's.
fn outer_frames(stack: &Stack) -> impl DoubleEndedIterator<Item = &Frame> {
    stack.frames.iter().filter(|frame| !frame.inlined)
}

/// Runs a command that `drive` (told the process's id) makes work and end under both, and compares.
/// `at_least`: stacks.
fn score_driven(name: &str, command: &[&str], at_least: usize, drive: impl FnOnce(u32)) -> (Report, Score) {
    let (report, truth) = watch(gdb("").arg("--args").args(command), drive);
    let score = Score::new(name, &report, &truth);
    score.tell(name, at_least, &report);
    (report, score)
}

/// All frames are gdb's, as far as the stacks go; those that do not go to the end say so. Gives how
/// many.
pub(super) fn assert_equal_or_cut(name: &str, command: &[&str], at_least: usize) -> usize {
    let (_, score) = score_driven(name, command, at_least, drop);
    assert_eq!((score.wrong, score.whole + score.cut), (0, score.stacks), "{name}: {score:?}");
    score.cut
}

/// All frames are gdb's, and all stacks end where stacks begin.
pub(super) fn assert_equal(name: &str, command: &[&str], at_least: usize) -> Report {
    assert_equal_driven(name, command, at_least, drop)
}

/// The same of a command that `drive` (told the process's id) makes work and end.
pub(super) fn assert_equal_driven(
    name: &str,
    command: &[&str],
    at_least: usize,
    drive: impl FnOnce(u32),
) -> Report {
    let (report, score) = score_driven(name, command, at_least, drive);
    score.assert_equal(name);
    assert_all_end(name, &report);
    report
}

/// The same of a server that is attached to when it is ready (a line that `is_ready`), and that
/// `drive` makes work and end.
pub(super) fn assert_server_equal(
    name: &str,
    command: &mut Command,
    at_least: usize,
    is_ready: impl Fn(&str) -> bool,
    drive: impl FnOnce(u32),
) {
    let mut server = Running::start(command);
    server.expect_line("readiness", is_ready);
    let (report, truth) = watch(&mut gdb(&format!("; PID={}", server.pid())), drive);
    server.end();
    let score = Score::new(name, &report, &truth);
    score.tell(name, at_least, &report);
    score.assert_equal(name);
    assert_all_end(name, &report);
}

/// Where stacks end: a program's or a thread's first function, or a coroutine's.
const FIRST_FUNCTIONS: [&str; 7] =
    ["_start", "_dl_start_user", "clone", "__clone", "clone3", "__clone3", "__start_context"];

/// Each stack goes to a first function, or to the entry point of a program that does not name it.
fn assert_all_end(name: &str, report: &Report) {
    let ends = |stack: &Stack| {
        let mut frames = outer_frames(stack).rev();
        let (Some(last), Some(before)) = (frames.next(), frames.next()) else { return false };
        FIRST_FUNCTIONS.contains(&last.bare_function())
            || is_thread_start(last)
            || is_entry(last)
            // What a coroutine returns to is the middle of no function. A stripped program does not
            // name the coroutine.
            || last.function.is_none() && ["coroutine", ""].contains(&before.bare_function())
    };
    for stack in &report.stacks {
        let functions: Vec<&str> = stack.frames.iter().map(Frame::bare_function).collect();
        assert!(ends(stack), "{name}: ends too early: {functions:?} {:?}", stack.frames.last());
    }
}

/// The C library's first function of a thread on arm64 (glibc's clone.S). A program can have
/// another one of this name.
fn is_thread_start(frame: &Frame) -> bool {
    let of_libc = |module: &String| module.ends_with("/libc.so.6");
    IS_ARM && frame.bare_function() == "thread_start" && frame.module.as_ref().is_some_and(of_libc)
}

/// The frame is in the first instructions of its file (ELF header, `e_entry`).
fn is_entry(frame: &Frame) -> bool {
    const LONGEST: u64 = 0x40;
    let (Some(module), Some(offset)) = (&frame.module, &frame.offset) else { return false };
    let mut entry = [0; 8];
    let read = File::open(module).and_then(|file| file.read_exact_at(&mut entry, 24));
    let entry = u64::from_le_bytes(entry);
    read.is_ok() && (entry..entry + LONGEST).contains(&hexadecimal(offset))
}
