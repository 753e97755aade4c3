//! The tracer under test.

use std::{
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Instant,
};

use crate::{
    process::{self, Ended, Running, patience},
    programs::scratch_dir,
    report::Report,
};

/// The built program.
pub(crate) const MEMLEAK: &str = env!("CARGO_BIN_EXE_memleak");

/// An interval that no test lives to see: reports come at the end only.
pub(crate) const NEVER: &str = "3600";

/// A running tracer.
pub(crate) struct Tracer {
    running: Running,
    next_report: usize,
    next_note: usize,
}

/// A tracer that has ended.
pub(crate) struct Outcome {
    /// Exit status, 128+N for signal N.
    pub code: i32,
    /// All reports, of a tracer that wrote JSON to standard output.
    pub reports: Vec<Report>,
    /// Both outputs.
    pub ended: Ended,
}

impl Tracer {
    /// Starts `memleak` with these arguments.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(MEMLEAK);
        command.args(arguments);
        Self::run(&mut command)
    }

    /// Starts a command that becomes `memleak`.
    pub(crate) fn run(command: &mut Command) -> Self {
        Self { running: Running::start(command.env("RUST_BACKTRACE", "0")), next_report: 0, next_note: 0 }
    }

    /// Traces a running process, all stacks, all ages, JSON, with one report in the end; returns
    /// when the probes are in.
    pub(crate) fn attach(pid: u32) -> Self {
        Self::attach_with(pid, &["-o", "0", "-T", "100000", NEVER])
    }

    /// Traces a running process (`--json -v -p PID` and `arguments`); returns when the probes are
    /// in.
    pub(crate) fn attach_with(pid: u32, arguments: &[&str]) -> Self {
        let pid = pid.to_string();
        let mut all = vec!["--json", "-v", "-p", &pid];
        all.extend(arguments);
        let mut tracer = Self::start(&all);
        tracer.wait_attached();
        tracer
    }

    /// The process underneath.
    pub(crate) fn running(&mut self) -> &mut Running {
        &mut self.running
    }

    /// Waits for the (next) message that probes are in; needs `-v`. Returns the message.
    pub(crate) fn wait_attached(&mut self) -> String {
        self.wait_note(|line| line.contains("attached") && line.contains("probes"))
    }

    /// Waits for the next line of standard error that is `wanted`.
    pub(crate) fn wait_note(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        match self.running.stderr().wait(self.next_note, wanted) {
            Some((number, line)) => {
                self.next_note = number + 1;
                line
            }
            None => panic!("no such line on standard error\n{}", self.running.outputs()),
        }
    }

    /// Its standard error so far.
    pub(crate) fn notes(&self) -> Vec<String> {
        self.running.stderr().so_far()
    }

    /// Waits for the next JSON report that is `wanted`.
    pub(crate) fn wait_report(&mut self, wanted: impl Fn(&Report) -> bool) -> Report {
        let mut last = None;
        let started = Instant::now();
        while let Some((number, line)) = self.running.stdout().wait(self.next_report, |_| true) {
            self.next_report = number + 1;
            let report = Report::parse(&line);
            if wanted(&report) {
                return report;
            }
            last = Some(report);
            if started.elapsed() > patience() {
                break; // reports keep coming
            }
        }
        let last = last.map(|report| report.describe()).unwrap_or_default();
        panic!("no such report; the last one:\n{last}\n{}", self.running.outputs());
    }

    /// Waits for a report whose snapshot was taken after this call: the one under way may be older.
    pub(crate) fn fresh_report(&mut self) -> Report {
        self.next_report = self.running.stdout().so_far().len();
        self.wait_report(|_| true);
        self.wait_report(|_| true)
    }

    /// Sends SIGINT and waits for the end.
    pub(crate) fn stop(self) -> Outcome {
        self.running.signal(libc::SIGINT);
        self.wait()
    }

    /// Waits for the end.
    pub(crate) fn wait(self) -> Outcome {
        let ended = self.running.end();
        let reports =
            ended.stdout.iter().filter(|l| l.starts_with("{\"schema\"")).map(|l| Report::parse(l)).collect();
        Outcome { code: process::code(ended.status), reports, ended }
    }

    /// Sends SIGINT; the last report of a tracer that did its work.
    pub(crate) fn stop_with_report(self) -> Report {
        self.stop().into_final_report()
    }
}

impl Outcome {
    /// The last report of a tracer that did its work: the only final one.
    pub(crate) fn into_final_report(mut self) -> Report {
        assert_eq!(self.code, 0, "{:?}", self.ended.stderr);
        let last = self.reports.pop().unwrap_or_else(|| panic!("no report: {:?}", self.ended));
        assert!(last.is_final, "the last report says so: {}", last.describe());
        assert!(self.reports.iter().all(|report| !report.is_final), "only the last report is final");
        last
    }
}

/// What came of tracing a command.
pub(crate) struct CommandOutcome {
    /// Exit status, 128+N for signal N.
    pub code: i32,
    /// All reports.
    pub reports: Vec<Report>,
    /// Both outputs of tracer and command together; the reports went elsewhere.
    pub ended: Ended,
}

/// Traces a command to its end (`--json --output FILE OPTIONS -- COMMAND`).
pub(crate) fn trace_command(options: &[&str], command: &[&str]) -> CommandOutcome {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let file = scratch_dir().join(format!("reports-{}-{number}", std::process::id()));
    let mut arguments = vec!["--json", "--output", crate::programs::text(&file)];
    arguments.extend(options);
    arguments.push("--");
    arguments.extend(command);
    let ended = Tracer::start(&arguments).running.end();
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    std::fs::remove_file(&file).expect("removing the reports");
    let reports = text.lines().map(Report::parse).collect();
    CommandOutcome { code: process::code(ended.status), reports, ended }
}

impl CommandOutcome {
    /// The last report.
    pub(crate) fn last_report(&self) -> &Report {
        let last = self.reports.last().unwrap_or_else(|| panic!("no report: {:?}", self.ended));
        assert!(last.is_final, "{}", last.describe());
        last
    }
}
