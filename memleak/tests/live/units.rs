//! Units of a systemd that is process 1: `cargo xtask vm --systemd` boots one.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    guard::alone,
    ledger,
    listen::send,
    process::Running,
    programs::{Link, build, text},
    targets::assert_sites,
    tracer::{MEMLEAK, Tracer},
};

fn systemctl(arguments: &[&str]) -> String {
    let output = Command::new("systemctl").args(arguments).output().expect("systemctl");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A unit, stopped when it is dropped.
struct Unit(String);

impl Unit {
    /// A new one, whose program has the streams of what is returned.
    fn run(name: &str, command: &[&str]) -> (Self, Running) {
        let name = format!("memleak-{name}-{}", std::process::id());
        let mut run = Command::new("systemd-run");
        let running = Running::start(run.args(["--quiet", "--pipe", "--unit", &name]).args(command));
        (Self(name), running)
    }

    fn process(&self) -> u32 {
        let number = systemctl(&["show", "--property=MainPID", "--value", &self.0]);
        number.parse().expect("the id of its process")
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        // It may have ended by itself, which is said.
        let _ = Command::new("systemctl").args(["stop", &self.0]).output();
    }
}

/// As a user would who knows no more than its name. What a restart brings is traced, too.
#[test]
#[ignore = "wants systemd as process 1: cargo xtask vm --systemd"]
fn a_unit_is_traced_to_the_byte() {
    let _alone = alone();
    let program = build("lifecycle.c", Link::Dynamic, &[]);
    let (unit, mut target) = Unit::run("leaky", &[text(&program), "threads"]);
    target.expect("READY");
    let first = unit.process();
    let mut tracer = Tracer::start(&["--json", "-v", "--unit", &unit.0, "-o", "0", "-T", "100000", "1"]);
    tracer.wait_attached();
    target.tell("go");
    let mut ledger = ledger::hear(&mut target);
    systemctl(&["restart", &unit.0]);
    target.expect("READY");
    let second = unit.process();
    tracer.wait_note(|line| line.contains(&format!("process {second} ")) && line.contains("joined"));
    target.tell("go");
    ledger::add(&mut ledger, ledger::hear(&mut target));
    // Not the last one: names that a slow machine has not read when the signal comes are missing.
    let report = tracer.fresh_report();
    assert_sites(&report, &ledger);
    assert_eq!(tracer.stop().code, 0);
    let all = report.target.pids.iter().copied().collect::<BTreeSet<_>>();
    assert_eq!(all, BTreeSet::from([first, second]));
}

/// The end of the unit is that of the run, some time later.
#[test]
#[ignore = "wants systemd as process 1: cargo xtask vm --systemd"]
fn a_run_ends_with_the_unit() {
    let _alone = alone();
    let program = build("sites.c", Link::Dynamic, &[]);
    let (unit, mut target) = Unit::run("stopped", &[text(&program), "leak", "1000"]);
    target.expect("READY");
    let service = format!("{}.service", unit.0);
    let mut tracer = Tracer::start(&["--json", "-v", "--unit", &service, "-o", "0", "1"]);
    tracer.wait_attached();
    target.tell("go");
    target.expect("END");
    systemctl(&["stop", &unit.0]);
    let report = tracer.wait().into_final_report();
    assert_eq!(report.site("site_leak"), (10_000, 10), "{}", report.describe());
}

/// Our unit for units, under the same sandbox but for its name and where the program is; what it
/// traces, its settings and itself are gone when this is dropped.
struct Contrib {
    /// `memleak-contrib@UNIT`
    name: String,
    files: [PathBuf; 2],
}

impl Contrib {
    fn start(unit: &Unit, options: &str) -> Self {
        let text = fs::read_to_string(contrib()).expect("our unit").replace("/usr/bin/memleak", MEMLEAK);
        let files = [
            PathBuf::from("/run/systemd/system/memleak-contrib@.service"),
            Path::new("/etc/memleak").join(format!("{}.conf", unit.0)),
        ];
        fs::create_dir_all("/etc/memleak").expect("a folder");
        for (file, text) in files.iter().zip([text, format!("MEMLEAK_OPTIONS={options}\n")]) {
            fs::write(file, text).expect("written");
        }
        let contrib = Self { name: format!("memleak-contrib@{}", unit.0), files };
        systemctl(&["daemon-reload"]);
        systemctl(&["start", &contrib.name]);
        contrib
    }
}

impl Drop for Contrib {
    fn drop(&mut self) {
        let _ = Command::new("systemctl").args(["stop", &self.name]).status();
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
        // Only if there was none.
        let _ = fs::remove_dir("/etc/memleak");
        let _ = Command::new("systemctl").arg("daemon-reload").status();
    }
}

fn contrib() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/systemd/memleak@.service")
}

/// It may do what it says that it needs, and no more, and that is enough.
#[test]
#[ignore = "wants systemd as process 1: cargo xtask vm --systemd"]
fn our_own_unit_traces_with_the_rights_that_it_names() {
    let _alone = alone();
    let program = build("sites.c", Link::Dynamic, &[]);
    let (unit, mut target) = Unit::run("served", &[text(&program), "leak", "1000"]);
    target.expect("READY");
    let contrib = Contrib::start(&unit, "-v --listen 0 -o 0 1");
    let mut journal = Command::new("journalctl");
    journal.args(["--follow", "--lines=all", "--output=cat", "--unit", &contrib.name]);
    let mut journal = Running::start(&mut journal);
    let said = journal.expect_line("address", |line| line.contains("listening at http://"));
    journal.expect_line("probes", |line| line.contains("attached") && line.contains("probes"));
    target.tell("go");
    target.expect("END");
    // The report that is under way may be older.
    for _ in 0..2 {
        journal.expect_line("report", |line| line.contains("report over"));
    }
    let (_, address) = said.split_once("http://").expect("an address");
    let address = address.split(';').next().and_then(|address| address.parse().ok()).expect("an address");
    let answer = send(address, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let metrics = String::from_utf8_lossy(&answer).into_owned();
    let of_site =
        |line: &&str| line.starts_with("memleak_stack_outstanding_bytes{") && line.contains("site_leak");
    let lines: Vec<&str> = metrics.lines().filter(of_site).collect();
    assert!(matches!(lines[..], [line] if line.ends_with("} 10000")), "{metrics}");
    let pid = systemctl(&["show", "--property=MainPID", "--value", &contrib.name]);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).expect("a line");
    let bounding = u64::from_str_radix(bounding.trim(), 16).expect("bits");
    let unit = fs::read_to_string(self::contrib()).expect("our unit");
    let named = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("a line");
    assert_eq!(bounding.count_ones() as usize, named.split(' ').count(), "{status}");
    systemctl(&["stop", &contrib.name]);
    assert_eq!(systemctl(&["show", "--property=Result", "--value", &contrib.name]), "success");
}
