//! A run of a program under the tracer, beside the same run under gdb.

use std::{
    collections::BTreeSet,
    io,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

use super::fixture;
use crate::{
    process::Running,
    programs::{scratch_dir, text},
    report::{Frame, Report, Stack},
    tracer::{MEMLEAK, NEVER, Tracer},
};

/// No address randomization, for the command and what it starts (personality(2)).
fn without_randomization(command: &mut Command) -> &mut Command {
    // SAFETY: personality(2) may be called between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong) {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        })
    }
}

/// A stack's return addresses, the caller of the allocator's function first: file and address in it, as `libc.so.6+2a4f`.
type Addresses = Vec<String>;

fn addresses(stack: &Stack) -> Addresses {
    let place = |frame: &Frame| {
        let module = frame.module.as_deref().unwrap_or("?");
        let name = module.rsplit('/').next().unwrap_or(module);
        format!("{name}+{}", frame.offset.as_deref().unwrap_or("?").trim_start_matches("0x"))
    };
    let mut places: Addresses = stack.frames.iter().map(place).collect();
    places.dedup(); // inlined functions share their caller's address
    places
}

/// The environment of both runs, the whole of it: a variable more, and a dictionary of Python's grows elsewhere. Its
/// dictionaries have the same order, too.
const SAME_EACH_TIME: [(&str, &str); 7] = [
    ("PYTHONHASHSEED", "0"),
    ("PYTHONDONTWRITEBYTECODE", "1"),
    ("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin"),
    ("HOME", "/root"),
    ("SHELL", "/bin/sh"), // gdb's way to start a program, which says PWD
    ("PWD", "/"),
    ("DEBUGINFOD_URLS", ""),
];

/// gdb, to be told of a program by `setting` (python) and more arguments.
fn gdb(setting: &str) -> Command {
    const FUNCTIONS: &str = "malloc calloc realloc posix_memalign aligned_alloc memalign mmap";
    let mut gdb = Command::new("gdb");
    gdb.args([
        "-nx",
        "-q",
        "-batch",
        "-ex",
        "unset environment LINES",
        "-ex",
        "unset environment COLUMNS",
        "-ex",
    ])
    .arg(format!("python FUNCTIONS='{FUNCTIONS}'; LIMIT=20000{setting}"))
    .arg("-x")
    .arg(fixture("gdb_stacks.py"));
    gdb.env_clear().envs(SAME_EACH_TIME).current_dir("/");
    gdb
}

/// All different stacks of the run, as gdb sees them.
fn truth(command: &[&str]) -> BTreeSet<Addresses> {
    let output = gdb("").arg("--args").args(command).stdin(Stdio::null()).output().expect("gdb is installed");
    stacks_of(&String::from_utf8_lossy(&output.stdout))
}

/// The same of a running process, from now to its end, which `drive` brings about.
fn truth_of_running(pid: u32, drive: impl FnOnce()) -> BTreeSet<Addresses> {
    let mut gdb = Running::start(&mut gdb(&format!("; PID={pid}")));
    gdb.expect("READY");
    drive();
    stacks_of(&gdb.end().stdout.join("\n"))
}

fn stacks_of(printed: &str) -> BTreeSet<Addresses> {
    let stacks: BTreeSet<Addresses> = printed
        .lines()
        .filter_map(|line| line.strip_prefix("STACK "))
        .map(|line| {
            let mut places: Addresses = line.split(' ').map(str::to_owned).collect();
            places.dedup(); // as ours are
            places
        })
        .collect();
    assert!(printed.contains("\nDONE ") && !stacks.is_empty(), "gdb: {printed}");
    stacks
}

/// The last report on the run, all stacks.
pub fn traced(options: &[&str], command: &[&str]) -> Report {
    let file = scratch_dir().join(format!("unwinding-{}", std::process::id()));
    let mut tracer = Command::new(MEMLEAK);
    tracer.args(["--json", "-o", "0", "-T", "100000", "--output", text(&file)]);
    tracer.args(options).arg(NEVER).arg("--").args(command);
    tracer.env_clear().envs(SAME_EACH_TIME).current_dir("/");
    let ended = Running::start(without_randomization(&mut tracer)).end();
    assert!(ended.status.success(), "{ended:?}");
    let report = std::fs::read_to_string(&file).expect("the report can be read");
    std::fs::remove_file(&file).expect("removing the report");
    Report::parse(report.lines().last().unwrap_or_else(|| panic!("a report: {ended:?}")))
}

/// How the tracer's stacks compared with gdb's.
#[derive(Debug, Default)]
pub struct Score {
    pub stacks: usize,
    frames: usize,
    equal: usize,
    /// Stacks that are gdb's from the first frame to the last.
    pub whole: usize,
    pub cut: usize,
    differences: Vec<String>,
}

/// Compares: a stack of the tracer's has to be one of gdb's; of one that is none, the frames count that the likest one
/// begins with.
fn compare(report: &Report, truth: &BTreeSet<Addresses>) -> Score {
    let mut score = Score::default();
    for stack in &report.stacks {
        let ours = addresses(stack);
        score.stacks += 1;
        score.cut += usize::from(stack.truncated);
        let likeness = |theirs: &Addresses| {
            let same = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
            (same, theirs.len())
        };
        let best = truth.iter().map(likeness).max_by_key(|(same, len)| (*same, std::cmp::Reverse(*len)));
        let (same, len) = best.unwrap_or_default();
        score.frames += len.max(ours.len());
        score.equal += same;
        score.whole += usize::from(same == len && same == ours.len());
        if (same != len || same != ours.len()) && score.differences.len() < 5 {
            let likest = truth.iter().max_by_key(|theirs| likeness(theirs).0);
            score.differences.push(format!("ours {ours:?}\ngdb  {likest:?}"));
        }
    }
    score
}

/// Runs a command under the tracer and under gdb, and compares. `at_least`: stacks.
pub fn score(name: &str, command: &[&str], at_least: usize) -> (Report, Score) {
    let report = traced(&[], command);
    let score = compare(&report, &truth(command));
    score.tell(name, at_least, &report);
    (report, score)
}

/// The same of a server that is attached to when it is ready (a line that `is_ready`), once by the tracer and once by
/// gdb, and that `drive` makes work and end.
pub fn score_server(
    name: &str,
    command: &[&str],
    at_least: usize,
    is_ready: impl Fn(&str) -> bool,
    drive: impl Fn(),
) -> Score {
    let start = || {
        let (program, arguments) = command.split_first().expect("a command");
        let mut server = Command::new(program);
        server.args(arguments).env_clear().envs(SAME_EACH_TIME);
        let mut server = Running::start(without_randomization(&mut server));
        server.expect_line("readiness", &is_ready);
        server
    };
    let server = start();
    let tracer = Tracer::attach(server.pid());
    drive();
    let report = tracer.wait().into_final_report();
    server.end();
    let server = start();
    let score = compare(&report, &truth_of_running(server.pid(), drive));
    server.end();
    score.tell(name, at_least, &report);
    score
}

/// At least 99 % of the frames are gdb's, and as many stacks are gdb's from end to end.
pub fn assert_equal(name: &str, command: &[&str], at_least: usize) -> Report {
    let (report, score) = score(name, command, at_least);
    score.assert_equal(name);
    report
}

impl Score {
    /// Prints a row of the table in `tests/unwind_fixtures/README.md`.
    fn tell(&self, name: &str, at_least: usize, report: &Report) {
        println!(
            "| {name} | {} | {} | {:.2} % | {} | {} |",
            self.stacks,
            self.frames,
            100.0 * self.equal as f64 / self.frames.max(1) as f64,
            self.whole,
            self.cut
        );
        assert!(self.stacks >= at_least, "{name}: {} stacks\n{}", self.stacks, report.describe());
    }

    pub fn assert_equal(&self, name: &str) {
        assert!(self.equal * 100 >= self.frames * 99, "{name}: {self:?}");
        assert!(self.whole * 100 >= self.stacks * 99 && self.cut * 100 <= self.stacks, "{name}: {self:?}");
    }
}
