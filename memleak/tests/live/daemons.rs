//! What is said of what was not seen: daemons that a command leaves behind, calls that had begun
//! before.

use std::{io::Read as _, net::TcpStream, process::Command};

use crate::{
    guard::alone,
    process::{Running, code},
    tracer::{NEVER, Tracer},
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
