//! `--push`: profiles for receivers that are up, down, slow, and that refuse.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::{
    guard::alone,
    process::Running,
    programs::{Link, build, scratch_dir, text},
    tracer::Tracer,
};

fn target() -> Running {
    let mut target =
        Running::start(Command::new(build("sites.c", Link::Dynamic, &[])).args(["leak", "1000"]));
    target.expect("READY");
    target
}

/// A receiver, and its port.
fn receiver(folder: &Path, port: u16, status: u16) -> (Running, u16) {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/receiver.py");
    let mut receiver = Running::start(
        Command::new("python3").arg(program).arg(folder).args([port.to_string(), status.to_string()]),
    );
    let line = receiver.expect_line("port", |line| line.starts_with("PORT "));
    (receiver, line["PORT ".len()..].parse().expect("a number"))
}

fn folder(name: &str) -> PathBuf {
    let folder = scratch_dir().join(format!("push-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder");
    folder
}

fn trace(target: &mut Running, url: &str) -> Tracer {
    let tracer = Tracer::attach_with(target.pid(), &["--push", url, "-o", "0", "0.3"]);
    target.tell("go");
    target.expect("END");
    tracer
}

#[test]
fn profiles_are_delivered() {
    let _alone = alone();
    let folder = folder("up");
    let (mut receiver, port) = receiver(&folder, 0, 200);
    for (kind, path) in [("pyroscope", ""), ("ingest", "/ingest"), ("parca", "/api/profiles/writeraw")] {
        let mut target = target();
        let tracer = trace(&mut target, &format!("http://user:word@127.0.0.1:{port}{path}"));
        let basic = "Basic dXNlcjp3b3Jk";
        let wanted =
            |line: &str| line.starts_with(&format!("RECEIVED {kind} sites-")) && line.ends_with(basic);
        for _ in 0..3 {
            receiver.expect_line(kind, wanted);
        }
        let outcome = tracer.stop();
        assert_eq!(outcome.code, 0, "{:?}", outcome.ended.stderr);
        let last = fs::read_dir(&folder).expect("read").flatten().map(|entry| entry.path());
        let number = |path: &PathBuf| -> u32 {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            name.trim_start_matches(kind)
                .trim_start_matches('-')
                .split('.')
                .next()
                .unwrap_or_default()
                .parse()
                .unwrap_or(0)
        };
        let last = last.max_by_key(number).expect("a profile");
        let output = Command::new("go")
            .args(["tool", "pprof", "-top", "-sample_index=inuse_space", text(&last)])
            .env("HOME", scratch_dir())
            .output()
            .expect("go");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.contains("site_leak"), "{kind}: {said} {output:?}");
    }
}

/// One that is down is tried again; when it is there it gets what was kept.
#[test]
fn a_receiver_that_is_down_gets_it_later() {
    let _alone = alone();
    let folder = folder("down");
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its number").port();
    let mut target = target();
    let mut tracer = trace(&mut target, &format!("http://127.0.0.1:{port}"));
    tracer.wait_note(|line| line.contains("--push 127.0.0.1:") && line.contains("Connection refused"));
    for _ in 0..4 {
        tracer.fresh_report();
    }
    let (mut receiver, _) = receiver(&folder, port, 200);
    for _ in 0..4 {
        receiver.expect_line("profile", |line| line.starts_with("RECEIVED pyroscope"));
    }
    let outcome = tracer.stop();
    let told = outcome.ended.stderr.iter().filter(|line| line.contains("Connection refused")).count();
    assert_eq!((outcome.code, told), (0, 1), "{:?}", outcome.ended.stderr);
}

/// How many of how many reports were never delivered, by the last line that a run says of it.
fn undelivered(stderr: &[String]) -> Option<(usize, usize)> {
    let line = stderr.iter().find(|line| line.ends_with(" reports were never delivered"))?;
    let mut numbers = line.split(' ').filter_map(|word| word.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

/// Reports come in time whatever a receiver does, and the end does not wait for long. None of them
/// was taken, so that all are counted.
#[test]
fn a_receiver_that_is_slow_or_refuses_disturbs_nothing() {
    let _alone = alone();
    for (status, said) in [(0, "HANGS"), (400, "REFUSED"), (503, "REFUSED")] {
        let (mut receiver, port) = receiver(&folder("slow"), 0, status);
        let mut target = target();
        let mut tracer = trace(&mut target, &format!("http://127.0.0.1:{port}"));
        receiver.expect(said);
        for _ in 0..3 {
            let begin = Instant::now();
            tracer.fresh_report();
            assert!(begin.elapsed() < Duration::from_secs(3), "{status}: {:?}", begin.elapsed());
        }
        let begin = Instant::now();
        let outcome = tracer.stop();
        assert!(begin.elapsed() < Duration::from_secs(10), "{status}: {:?}", begin.elapsed());
        assert_eq!(outcome.code, 0, "{:?}", outcome.ended.stderr);
        let made = outcome.reports.len();
        assert_eq!(
            undelivered(&outcome.ended.stderr),
            Some((made, made)),
            "{status}: {:?}",
            outcome.ended.stderr
        );
    }
}

/// What was taken is delivered once, though the answer never ends.
#[test]
fn a_profile_that_was_taken_is_not_sent_again() {
    let _alone = alone();
    let (mut receiver, port) = receiver(&folder("taken"), 0, 202);
    let mut target = target();
    let tracer = trace(&mut target, &format!("http://127.0.0.1:{port}"));
    for _ in 0..3 {
        receiver.expect_line("a profile", |line| line.starts_with("RECEIVED pyroscope"));
    }
    let begin = Instant::now();
    let outcome = tracer.stop();
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!((outcome.code, undelivered(&outcome.ended.stderr)), (0, None), "{:?}", outcome.ended.stderr);
    // All of them have come by now, the first three among them.
    for _ in 3..outcome.reports.len() {
        receiver.expect_line("a profile", |line| line.starts_with("RECEIVED pyroscope"));
    }
}

/// What is done with a connection.
type Answer = fn(TcpStream);

/// Does this with each connection, on a port of its own.
fn answering(with: Answer) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its number").port();
    thread::spawn(move || {
        listener.incoming().flatten().for_each(|stream| drop(thread::spawn(move || with(stream))))
    });
    port
}

fn read_some(stream: &mut TcpStream) {
    let _ = stream.read(&mut [0; 64]);
}

/// What speaks no HTTP, breaks off, says too much or too slowly: said once, in one line that does
/// nothing to a terminal, and all reports are counted.
#[test]
fn whatever_answers_is_told_and_counted() {
    let _alone = alone();
    let answers: [(&str, Answer, &str); 6] = [
        // Unread bytes make it a reset.
        ("reset", |mut stream| read_some(&mut stream), "it is tried again"),
        (
            "TLS",
            |mut stream| {
                read_some(&mut stream);
                let _ = stream.write_all(b"\x15\x03\x01\x00\x02\x02\x0a");
            },
            "what answers there is no HTTP",
        ),
        (
            "forerunners",
            |mut stream| {
                read_some(&mut stream);
                while stream.write_all(&b"HTTP/1.1 100 Continue\r\n\r\n".repeat(1000)).is_ok() {}
            },
            "it answers 100 times that it goes on; it is tried again",
        ),
        (
            "control characters",
            |mut stream| {
                let _ = stream.write_all(b"HTTP/1.1 500 No\r\nContent-Length: 9\r\n\r\n\x1b[2Jno\x07\xff\n");
                let _ = stream.read_to_end(&mut Vec::new());
            },
            "500 Internal Server Error: ",
        ),
        (
            "endless",
            |mut stream| {
                let _ = stream.write_all(b"HTTP/1.1 500 No\r\nContent-Length: 99999999999\r\n\r\n");
                while stream.write_all(&[b'a'; 65536]).is_ok() {}
            },
            "500 Internal Server Error;",
        ),
        (
            "words that never end",
            |mut stream| {
                let _ = stream.write_all(b"HTTP/1.1 400 No\r\nContent-Length: 99\r\n\r\nbecause");
                let _ = stream.read_to_end(&mut Vec::new());
            },
            "400 Bad Request;",
        ),
    ];
    for (name, with, said) in answers {
        let port = answering(with);
        let mut target = target();
        let mut tracer = trace(&mut target, &format!("http://127.0.0.1:{port}"));
        let line = tracer.wait_note(|line| line.contains("--push 127.0.0.1:"));
        assert!(line.contains(said) && !line.contains(char::is_control), "{name}: {line:?}");
        for _ in 0..3 {
            tracer.fresh_report();
        }
        let begin = Instant::now();
        let outcome = tracer.stop();
        assert!(begin.elapsed() < Duration::from_secs(10), "{name}: {:?}", begin.elapsed());
        let made = outcome.reports.len();
        let stderr = &outcome.ended.stderr;
        assert_eq!((outcome.code, undelivered(stderr)), (0, Some((made, made))), "{name}: {stderr:?}");
        assert_eq!(stderr.iter().filter(|line| line.contains("--push ")).count(), 2, "{name}: {stderr:?}");
    }
}
