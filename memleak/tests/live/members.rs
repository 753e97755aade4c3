//! Targets by what people know: names, units, control groups, containers; and those that come
//! later.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use crate::{
    exact::EVERYTHING,
    guard::alone,
    ledger,
    process::Running,
    programs::{Link, build, scratch_dir, text},
    targets::{assert_sites, lifecycle},
    tracer::{MEMLEAK, Tracer},
};

/// Traces by a selector; returns when the probes are in.
fn trace(selector: &[&str], more: &[&str]) -> Tracer {
    let mut arguments = vec!["--json", "-v"];
    arguments.extend(selector);
    arguments.extend(more);
    let mut tracer = Tracer::start(&arguments);
    tracer.wait_attached();
    tracer
}

/// A control group, removed when it is dropped.
struct Group(PathBuf);

impl Group {
    /// Of whatever version this machine has.
    fn new(name: &str) -> Self {
        let places = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/memory", "/sys/fs/cgroup"];
        let place = places.into_iter().find(|place| Path::new(place).join("cgroup.procs").exists());
        let group = Path::new(place.expect("control groups are mounted")).join(name);
        fs::create_dir_all(&group).expect("a group can be made");
        Self(group)
    }

    fn path(&self) -> &str {
        text(&self.0)
    }

    fn add(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).expect("a process can be moved there");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The last process of it may be on its way out.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn unique(what: &str) -> String {
    format!("memleak-{what}-{}", std::process::id())
}

/// Has a command be run in a group from its beginning.
fn within(group: &Group, command: &[&str]) -> Command {
    let mut shell = Command::new("bash");
    let script = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", group.path());
    shell.args(["-c", &script, "bash"]).args(command);
    shell
}

/// nginx in a folder of its own, and under a name of its own: another one on this machine is
/// nobody's target. A master and two workers.
fn nginx(folder: &Path, name: &str, group: Option<&Group>) -> Running {
    fs::create_dir_all(folder).expect("a folder");
    let program = folder.join(name);
    fs::copy("/usr/sbin/nginx", &program).expect("nginx is installed");
    let socket = folder.join("socket");
    let _ = fs::remove_file(&socket);
    let settings = format!(
        "user root;\nworker_processes 2;\ndaemon off;\npid {0}/pid;\nerror_log stderr notice;\nevents {{}}\n\
         http {{ access_log off; server {{ listen unix:{0}/socket; }} }}\n",
        folder.display()
    );
    fs::write(folder.join("nginx.conf"), settings).expect("written");
    let words = [text(&program), "-p", text(folder), "-c", "nginx.conf", "-e", "stderr"];
    let nginx = Running::start(&mut match group {
        Some(group) => within(group, &words),
        None => {
            let mut command = Command::new(&program);
            command.args(&words[1..]);
            command
        }
    });
    let mut next = 0;
    for _ in 0..2 {
        let started = nginx.stderr().wait(next, |line| line.contains("start worker process "));
        next = started.unwrap_or_else(|| panic!("no worker: {}", nginx.outputs())).0 + 1;
    }
    nginx
}

#[test]
fn all_processes_of_a_name_and_those_that_come() {
    let _alone = alone();
    let name = format!("ngx-{}", std::process::id());
    let nginx = nginx(&scratch_dir().join(unique("nginx")), &name, None);
    assert_new_workers_join(&["--name", &name], &nginx);
}

/// The same by a unit's group, by a container's and by a pod's.
#[test]
fn nginx_in_a_group_of_its_own_and_its_new_workers() {
    let _alone = alone();
    let (unit, id, uid) = (unique("nginx"), hex_id(), hex_uid());
    let pod = PodLogs::new(&uid);
    let groups = [
        (format!("{unit}.service"), ["--unit", &unit]),
        (format!("docker-{id}.scope"), ["--container", &id[..12]]),
        (format!("kubepods-besteffort-pod{}.slice", uid.replace('-', "_")), ["--pod", &pod.name]),
    ];
    for (group, selector) in groups {
        let group = Group::new(&group);
        let name = format!("ngx-{}", std::process::id());
        let nginx = nginx(&scratch_dir().join(unique("nginx")), &name, Some(&group));
        assert_new_workers_join(&selector, &nginx);
    }
}

/// Has nginx replace its workers under trace.
fn assert_new_workers_join(selector: &[&str], nginx: &Running) {
    let mut tracer = trace(selector, &["-o", "0", "-T", "100000", "0.5"]);
    let first = tracer.wait_report(|report| report.target.pids.len() >= 3);
    assert!(first.target.pids.contains(&nginx.pid()), "{:?}", first.target);
    // New workers are made by the master, and allocate for their settings before they serve.
    nginx.signal(libc::SIGHUP);
    let is_new = |pid: &u32| !first.target.pids.contains(pid);
    let later = tracer.wait_report(|report| report.target.pids.iter().filter(|pid| is_new(pid)).count() >= 2);
    assert!(later.totals.acquired > first.totals.acquired, "{}", later.describe());
    let report = tracer.stop_with_report();
    assert_eq!(report.lost["processes"], 0, "{}", report.describe());
    assert!(report.totals.bytes > 0, "{}", report.describe());
}

/// A container's ID, as no other has it.
fn hex_id() -> String {
    format!("{:08x}", std::process::id()).repeat(8)
}

/// A pod's.
fn hex_uid() -> String {
    format!("0f4e0d1c-7a52-4a7e-9c0f-{:012x}", std::process::id())
}

/// The folder that the kubelet makes for a pod's logs, removed when this is dropped.
struct PodLogs {
    folder: PathBuf,
    /// As the user names the pod.
    name: String,
}

impl PodLogs {
    fn new(uid: &str) -> Self {
        let pod = unique("web");
        let folder = Path::new("/var/log/pods").join(format!("shop_{pod}_{uid}"));
        fs::create_dir_all(&folder).expect("a folder of logs");
        Self { folder, name: format!("shop/{pod}") }
    }
}

impl Drop for PodLogs {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.folder);
        // Only if this machine had none.
        let _ = fs::remove_dir("/var/log/pods");
    }
}

/// A process that another starts, which is none of the name's, joins by its program.
#[test]
fn one_that_comes_from_elsewhere_joins() {
    let _alone = alone();
    let program = build("lifecycle.c", Link::Dynamic, &[]);
    let name = program.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
    let mut first = lifecycle(&["threads"]);
    let mut tracer = trace(&["--name", &name], &EVERYTHING);
    let mut second = lifecycle(&["threads"]);
    tracer.wait_note(|line| line.contains(&format!("process {} ", second.pid())) && line.contains("joined"));
    for target in [&mut first, &mut second] {
        target.tell("go");
    }
    let mut ledger = ledger::hear(&mut first);
    ledger::add(&mut ledger, ledger::hear(&mut second));
    let report = tracer.stop_with_report();
    assert_sites(&report, &ledger);
    assert_eq!(report.target.pids.len(), 2, "{:?}", report.target);
    for mut target in [first, second] {
        target.tell("end");
        assert!(target.wait_status().success());
    }
}

/// What a member makes is traced from its first instruction, and to the byte.
#[test]
fn the_children_of_a_group_are_in_it() {
    let _alone = alone();
    let unit = unique("test");
    let group = Group::new(&format!("{unit}.service"));
    for selector in [["--cgroup", group.path()], ["--unit", &unit]] {
        let mut target = lifecycle(&["fork"]);
        group.add(target.pid());
        let tracer = trace(&selector, &EVERYTHING);
        target.tell("go");
        let ledger = ledger::parse(&target.expect("END"));
        let report = tracer.stop_with_report();
        assert_sites(&report, &ledger);
        assert_eq!(report.target.pids.len(), 2, "{:?}", report.target);
        target.tell("end");
        assert!(target.wait_status().success());
    }
}

/// Nothing tells of a process that is moved into a group: it joins at the next look.
#[test]
fn one_that_is_moved_into_a_group_joins() {
    let _alone = alone();
    let group = Group::new(&unique("moved"));
    let inner = Group::new(&format!("{}/inner", unique("moved")));
    let first = lifecycle(&["threads"]);
    group.add(first.pid());
    let mut tracer = trace(&["--cgroup", group.path()], &EVERYTHING);
    let mut second = lifecycle(&["threads"]);
    inner.add(second.pid());
    tracer.wait_note(|line| line.contains(&format!("process {} ", second.pid())) && line.contains("joined"));
    second.tell("go");
    let ledger = ledger::hear(&mut second);
    second.tell("end");
    assert!(second.wait_status().success());
    // The group goes on: one of its processes has ended.
    let report = tracer.stop_with_report();
    assert_sites(&report, &ledger);
    drop(first);
}

/// A group by each way to write it: its line in /proc/PID/cgroup, a link, and from where we are.
#[test]
fn a_group_by_all_that_names_it() {
    let _alone = alone();
    let name = unique("named");
    let group = Group::new(&name);
    let target = lifecycle(&["threads"]);
    group.add(target.pid());
    let lines = fs::read_to_string(format!("/proc/{}/cgroup", target.pid())).expect("its groups");
    let line = lines.lines().find(|line| line.ends_with(&name)).expect("the group");
    let link = scratch_dir().join(&name);
    let _ = fs::remove_file(&link);
    symlink(group.path(), &link).expect("a link");
    for path in [line, text(&link), "."] {
        let mut memleak = Command::new(MEMLEAK);
        memleak.args(["--json", "--cgroup", path, "0.2", "1"]).current_dir(group.path());
        let report = Tracer::run(&mut memleak).wait().into_final_report();
        assert_eq!(report.target.pids, [target.pid()], "{path}");
    }
    fs::remove_file(&link).expect("it is there");
}

/// Members that are over before they have their probes, or soon after: nothing is said of them, and
/// nothing of the one that stays is lost.
#[test]
fn members_that_are_over_at_once_are_no_news() {
    let _alone = alone();
    let program = scratch_dir().join(format!("brief-{}", std::process::id()));
    fs::copy("/bin/sleep", &program).expect("a program");
    let name = program.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
    let sites = build("sites.c", Link::Dynamic, &["-ldl"]);
    let mut first = Running::start(Command::new(sites).args(["leak", "1000"]));
    first.expect("READY");
    let stays = Running::start(Command::new(&program).arg("infinity"));
    let mut tracer = trace(&["-p", &first.pid().to_string(), "--name", &name], &EVERYTHING);
    // From no time at all to what is enough to join.
    let mut brief: Vec<Running> = (0..200)
        .map(|turn| Running::start(Command::new(&program).arg(format!("0.{:03}", turn % 50 * 10))))
        .collect();
    tracer.wait_note(|line| line.contains("has joined"));
    for mut one in brief.drain(..) {
        assert!(one.wait_status().success());
    }
    first.tell("go");
    first.expect("END");
    let outcome = tracer.stop();
    drop(stays);
    let warnings: Vec<_> =
        outcome.ended.stderr.iter().filter(|line| line.starts_with("memleak: warning: ")).collect();
    assert!(warnings.is_empty(), "{warnings:?}");
    let report = outcome.into_final_report();
    assert_eq!(report.site("site_leak"), (10_000, 10), "{}", report.describe());
    report.assert_nothing_lost();
}

/// A container as docker and containerd make them: a group of its ID, and a PID namespace.
#[test]
fn a_container_by_the_beginning_of_its_id() {
    let _alone = alone();
    let id = hex_id();
    for name in [format!("docker-{id}.scope"), format!("cri-containerd-{id}.scope")] {
        let group = Group::new(&name);
        let program = build("lifecycle.c", Link::Dynamic, &[]);
        let words = ["unshare", "--pid", "--fork", "--mount-proc", text(&program), "fork"];
        let mut target = Running::start(&mut within(&group, &words));
        target.expect("READY");
        let tracer = trace(&["--container", &id[..12]], &EVERYTHING);
        target.tell("go");
        let ledger = ledger::parse(&target.expect("END"));
        let report = tracer.stop_with_report();
        assert_sites(&report, &ledger);
        // unshare, the program and its child.
        assert_eq!(report.target.pids.len(), 3, "{:?}", report.target);
        target.tell("end");
        assert!(target.wait_status().success());
    }
}

#[test]
fn what_is_not_there_is_one_line() {
    let _alone = alone();
    let target = lifecycle(&["threads"]);
    let program = build("lifecycle.c", Link::Dynamic, &[]);
    let name: String = program.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
    let comm: String = name.chars().take(15).collect();
    for (selector, wanted) in [
        (["--name", &name.replacen("lifecycle", "lifecylce", 1)], comm.as_str()),
        (["--unit", "no-such-unit"], "no process is in a control group named no-such-unit.service"),
        (["--cgroup", "/no/such"], "no process is in it"),
        (["--cgroup", "."], "no control group has this path"),
        (["--container", "0123456789ab"], "no process is in this container"),
        (["--pod", "shop/web"], "/var/log/pods has no folder of it"),
    ] {
        let output = Command::new(MEMLEAK).args(selector).output().expect("memleak");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{selector:?}: {error}");
        assert!(error.lines().count() == 1 && error.contains(wanted), "{selector:?}: {error}");
    }
    drop(target);
}
