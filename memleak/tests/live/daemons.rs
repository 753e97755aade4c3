//! What is said of what was not seen: daemons that a command leaves behind, workers that are
//! replaced, calls that had begun before; and what our own clock says.

use std::{io::Read as _, net::TcpStream, process::Command};

use crate::{
    guard::alone,
    process::{Running, code},
    programs::{Link, build},
    report::{Processes, Report},
    tracer::{MEMLEAK, NEVER, Tracer},
};

/// Traces a command that ends and leaves one process behind: that is said, and how to trace it.
fn is_told_of(command: &[&str]) {
    let _alone = alone();
    let mut arguments = vec!["-v", NEVER, "--"];
    arguments.extend(command);
    let mut tracer = Tracer::start(&arguments);
    let note = tracer.wait_note(|line| line.contains("left behind"));
    let pid = note.split_once("process ").and_then(|(_, rest)| rest.split(' ').next()?.parse::<i32>().ok());
    let pid = pid.unwrap_or_else(|| panic!("no process: {note}"));
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).expect("it lives");
    // SAFETY: kill(2) takes two integers; the process was seen to live and is a test's own.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    let ended = tracer.wait().ended;
    assert_eq!(code(ended.status), 0, "{ended:?}");
    assert!(note.contains(&format!("process {pid} ({})", comm.trim_end())), "{note}");
    assert!(note.contains("--follow-forks"), "{note}");
}

#[test]
fn a_child_that_is_left_behind_is_told_of() {
    is_told_of(&["sh", "-c", "sleep 3600 >/dev/null 2>&1 </dev/null & exit 0"]);
}

/// The usual beginning of a daemon: a child that makes a session of its own and another child.
#[test]
fn a_daemon_that_is_left_behind_is_told_of() {
    let daemon = "import os, time\n\
                  if os.fork(): os._exit(0)\n\
                  os.setsid()\n\
                  if os.fork(): os._exit(0)\n\
                  os.closerange(0, 3)\n\
                  time.sleep(3600)";
    is_told_of(&["python3", "-c", daemon]);
}

#[test]
fn a_child_that_ends_first_is_not_told_of() {
    let _alone = alone();
    let ended = Tracer::start(&["-v", NEVER, "--", "sh", "-c", "true & wait; exit 0"]).wait().ended;
    assert!(!ended.stderr.iter().any(|line| line.contains("left behind")), "{ended:?}");
}

/// Its entry was not seen, and nobody has sent the descriptor.
#[test]
fn an_accept_that_had_begun_is_told_of() {
    let _alone = alone();
    let server = "import socket, time\n\
                  listening = socket.create_server(('127.0.0.1', 0))\n\
                  print(listening.getsockname()[1], flush=True)\n\
                  one, _ = listening.accept()\n\
                  one.send(b'x')\n\
                  time.sleep(3600)";
    let mut target = Running::start(Command::new("python3").args(["-c", server]));
    let port = target.expect_line("a port", |line| line.parse::<u16>().is_ok()).parse().expect("a port");
    let call = format!("/proc/{}/syscall", target.pid());
    let waits = || {
        let number = std::fs::read_to_string(&call).unwrap_or_default();
        [libc::SYS_accept, libc::SYS_accept4].iter().any(|call| number.starts_with(&format!("{call} ")))
    };
    let began = std::time::Instant::now();
    while !waits() {
        assert!(began.elapsed() < crate::process::patience(), "it does not wait in accept");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let pid = target.pid().to_string();
    let mut tracer = Tracer::start(&["-v", "-o", "0", "-r", "fd", "-p", &pid, NEVER]);
    tracer.wait_attached();
    let mut connection = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    connection.read_exact(&mut [0]).expect("it was accepted");
    let outcome = tracer.stop();
    let said =
        outcome.ended.stdout.iter().any(|line| line.contains("was waiting in accept when tracing began"));
    assert!(said, "{:?}", outcome.ended);
}

/// A server that replaces its worker when it is told to, as nginx does on `nginx -s reload`.
const SERVER: &str = "import os, sys, time\n\
                      def worker():\n\
                      \x20   pid = os.fork()\n\
                      \x20   if pid == 0:\n\
                      \x20       time.sleep(3600)\n\
                      \x20   return pid\n\
                      pid = worker()\n\
                      print(pid, flush=True)\n\
                      for line in sys.stdin:\n\
                      \x20   new = worker()\n\
                      \x20   os.kill(pid, 9)\n\
                      \x20   os.waitpid(pid, 0)\n\
                      \x20   pid = new\n\
                      \x20   print(pid, flush=True)\n\
                      os.kill(pid, 9)\n";

fn number(target: &mut Running) -> u32 {
    target.expect_line("a number", |line| line.parse::<u32>().is_ok()).parse().expect("a number")
}

#[test]
fn a_worker_that_is_replaced_is_told_of() {
    let _alone = alone();
    let mut target = Running::start(Command::new("python3").args(["-c", SERVER]));
    let (server, worker) = (target.pid(), number(&mut target));
    let mut tracer = Tracer::start(&["-v", "--json", "-p", &format!("{server},{worker}"), NEVER]);
    tracer.wait_attached();
    target.tell("reload");
    let new = number(&mut target);
    let said = tracer.wait_note(|line| line.contains(&format!("process {worker} (")));
    let expected =
        format!(") has ended; process {new}, which process {server} has made since, is not traced");
    assert!(said.contains(&expected) && said.contains("--follow-forks"), "{said}");
    let report = tracer.stop_with_report();
    assert_eq!(report.processes, Some(Processes { joined: 0, left: 1 }));
    assert!(!report.target.pids.contains(&new), "{:?}", report.target);

    // With it the worker that is there is traced, and the one that comes.
    let mut tracer = Tracer::start(&["-v", "--json", "--follow-forks", "-p", &server.to_string(), NEVER]);
    tracer.wait_attached();
    target.tell("reload");
    let last = number(&mut target);
    tracer.wait_note(|line| line.contains(&format!("process {last} (")) && line.contains("is traced"));
    tracer.wait_note(|line| line.contains(&format!("process {new} (")) && line.contains(") has ended"));
    let report = tracer.stop_with_report();
    assert_eq!(report.processes, Some(Processes { joined: 2, left: 1 }));
    assert!(report.target.pids.contains(&last), "{:?}", report.target);
}

/// The kernel's programs know the machine's clock alone.
#[test]
fn ages_are_right_in_a_time_namespace() {
    let _alone = alone();
    let mut target = Running::start(Command::new(build("own_pool.c", Link::Dynamic, &[])).arg("0"));
    target.expect("READY");
    for added in ["100000", "-100"] {
        let pid = target.pid().to_string();
        let mut command = Command::new("unshare");
        command.args([
            "--time",
            "--monotonic",
            added,
            "--",
            MEMLEAK,
            "--json",
            "-a",
            "-o",
            "500",
            "-r",
            "mmap",
        ]);
        let running = Running::start(command.args(["-v", "-p", &pid, "3", "1"]));
        running.stderr().wait(0, |line| line.contains("attached ")).expect("it attaches");
        target.tell("4000000");
        target.expect("done");
        let ended = running.end();
        let report = Report::parse(ended.stdout.last().expect("a report"));
        let ages = report.stacks.iter().flat_map(|stack| stack.allocations.iter().flatten());
        let ages: Vec<u64> = ages.map(|allocation| allocation.age_ms).collect();
        assert!(!ages.is_empty() && ages.iter().all(|age| (500..60_000).contains(age)), "{added}: {ages:?}");
    }
}
