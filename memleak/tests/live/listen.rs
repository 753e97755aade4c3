//! `--listen`: what others are given, and what they cannot do to a run.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        net::UnixStream,
    },
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    guard::{alone, status_kb},
    process::Running,
    programs::{Link, build, scratch_dir, text},
    tracer::{MEMLEAK, Tracer},
};

/// Where a tracer says that it listens.
pub(crate) fn listening_at(tracer: &Tracer) -> SocketAddr {
    let said = tracer.notes().into_iter().find_map(|line| {
        let (_, rest) = line.split_once("listening at http://")?;
        rest.split(';').next()?.parse().ok()
    });
    said.expect("it says where it listens")
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
    stream
}

/// Sends bytes as they are, and reads until the other side closes.
pub(crate) fn send(address: SocketAddr, request: &[u8]) -> Vec<u8> {
    let mut stream = connect(address);
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

/// A program that holds something, under a tracer that listens.
struct Served {
    tracer: Tracer,
    address: SocketAddr,
    /// It lives as long.
    _target: Running,
}

impl Served {
    fn start(more: &[&str]) -> Self {
        let mut target =
            Running::start(Command::new(build("sites.c", Link::Dynamic, &[])).args(["leak", "1000"]));
        target.expect("READY");
        let arguments = [&["--listen", "0", "-o", "0", "0.2"], more].concat();
        let mut tracer = Tracer::attach_with(target.pid(), &arguments);
        target.tell("go");
        target.expect("END");
        let address = listening_at(&tracer);
        tracer.wait_report(|_| true);
        Self { tracer, address, _target: target }
    }

    fn get(&self, path: &str, more: &str) -> (String, Vec<u8>) {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{more}\r\n", self.address);
        let answer = send(self.address, request.as_bytes());
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        (head, answer[end + 4..].to_vec())
    }

    fn text(&self, path: &str) -> String {
        let (head, body) = self.get(path, "");
        assert!(head.starts_with("HTTP/1.1 200 "), "{path}: {head}");
        String::from_utf8(body).expect("text")
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

/// What the page says is what the report says, in both forms, and promtool finds nothing to say.
#[test]
fn metrics_are_those_of_the_report() {
    let _alone = alone();
    let mut served = Served::start(&[]);
    let report = served.tracer.fresh_report();
    let page = served.text("/metrics");
    let value = |name: &str| -> f64 {
        let values =
            page.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit_once(' '));
        values.map(|(_, value)| value.parse::<f64>().expect("a number")).sum()
    };
    assert!(report.totals.bytes > 0, "{}", report.describe());
    assert_eq!(value("memleak_outstanding_bytes{") as u64, report.totals.bytes, "{page}");
    assert_eq!(value("memleak_outstanding_allocations{") as u64, report.totals.count, "{page}");
    assert_eq!(value("memleak_allocations_total ") as u64, report.totals.acquired, "{page}");
    assert_eq!(value("memleak_lost_total{"), 0.0, "{page}");
    assert!(value("memleak_allocated_bytes_total ") as u64 >= report.totals.bytes, "{page}");
    assert!(value("memleak_probe_hits_total{") >= report.totals.acquired as f64, "{page}");
    assert!(value("memleak_target_resident_bytes{") > 0.0, "{page}");
    let site = page.lines().find(|line| line.starts_with("memleak_stack_outstanding_bytes{"));
    assert!(site.is_some_and(|line| line.contains("site=\"") && line.contains("stack=\"")), "{page}");
    let (head, open) = served.get("/metrics", "Accept: application/openmetrics-text;version=1.0.0\r\n");
    assert!(
        head.to_lowercase().contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    assert!(open.ends_with(b"# EOF\n"));
    check_by_promtool(&page);
}

pub(crate) fn check_by_promtool(page: &str) {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool, of Debian's package prometheus");
    child.stdin.take().expect("piped").write_all(page.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

/// The rules of `contrib/` tell what leaks from what does not.
#[test]
fn alerts_fire_when_they_should() {
    let _alone = alone();
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/../contrib/prometheus/alerts-test.yaml");
    let output = Command::new("promtool").args(["test", "rules", rules]).output();
    let output = output.expect("promtool, of Debian's package prometheus");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn pprof_reads_both_profiles() {
    let _alone = alone();
    let served = Served::start(&[]);
    for path in ["/debug/pprof/heap", "/debug/pprof/allocs"] {
        let output = Command::new("go")
            .args(["tool", "pprof", "-top", "-sample_index=inuse_space", &served.url(path)])
            .env("HOME", scratch_dir())
            .env("PPROF_TMPDIR", scratch_dir())
            .output()
            .expect("go");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.contains("Type: inuse_space") && said.contains("site_"), "{said}");
    }
    let page = served.text("/report");
    assert!(page.starts_with("<!") && page.contains("site_"), "{}", &page[..200]);
    assert_eq!(served.text("/healthz"), "ok\n");
}

/// Nothing can be written, and no other name leads here.
#[test]
fn only_reading_is_answered() {
    let _alone = alone();
    let served = Served::start(&[]);
    for (request, status) in [
        ("POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", "405"),
        ("DELETE / HTTP/1.1\r\nHost: localhost\r\n\r\n", "405"),
        ("GET /nothing HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", "404"),
        ("GET /../../etc/passwd HTTP/1.1\r\nHost: [::1]:80\r\nConnection: close\r\n\r\n", "404"),
        ("GET /metrics HTTP/1.1\r\nHost: evil.example:9464\r\n\r\n", "421"),
        ("GET http://evil.example/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", "421"),
        ("GET http://localhost/metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", "200"),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", "421"),
        ("HEAD /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", "200"),
        ("GET /metrics HTTP/9.9\r\n\r\n", "400"),
        ("\x16\x03\x01\x02\x00nonsense\r\n\r\n", "400"),
    ] {
        let answer = String::from_utf8_lossy(&send(served.address, request.as_bytes())).into_owned();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
        let body = answer.split_once("\r\n\r\n").expect("a head").1;
        assert!(!request.starts_with("HEAD") || body.is_empty(), "{answer}");
    }
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(1 << 20));
    let answer = String::from_utf8_lossy(&send(served.address, long.as_bytes())).into_owned();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(1000));
    let answer = String::from_utf8_lossy(&send(served.address, many.as_bytes())).into_owned();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
}

/// Clients that never come to an end, thousands of them, and those that ask without end: memory
/// stays as it is, reports come in time, and whoever behaves is answered afterwards.
#[test]
fn clients_do_not_disturb_a_run() {
    let _alone = alone();
    let mut served = Served::start(&[]);
    served.text("/metrics");
    let pid = served.tracer.running().pid();
    let early = status_kb(pid, "VmRSS");
    let mut slow = Vec::new();
    for _ in 0..10_000 {
        // What is not taken in time waits in the kernel, or is closed at once.
        let Ok(mut stream) = TcpStream::connect_timeout(&served.address, Duration::from_secs(5)) else {
            continue;
        };
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-");
        if slow.len() < 500 {
            slow.push(stream);
        }
    }
    let begin = Instant::now();
    served.tracer.fresh_report();
    assert!(begin.elapsed() < Duration::from_secs(3), "two reports took {:?}", begin.elapsed());
    // Asked for without end, and never read.
    let mut deaf = connect(served.address);
    deaf.set_write_timeout(Some(Duration::from_secs(1))).expect("a limit");
    let requests = "GET /debug/pprof/heap HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(10_000);
    let _ = deaf.write_all(requests.as_bytes());
    served.tracer.fresh_report();
    drop(slow);
    let _ = deaf.shutdown(Shutdown::Both);
    let answered = Instant::now();
    while !send(served.address, b"GET /healthz HTTP/1.0\r\n\r\n").ends_with(b"ok\n") {
        assert!(answered.elapsed() < Duration::from_secs(30), "nobody is answered any more");
    }
    served.text("/metrics");
    let late = status_kb(pid, "VmRSS");
    println!("memory: {early} kB before, {late} kB after");
    assert!(late < early + 8192, "{early} kB have become {late} kB");
    let report = served.tracer.stop_with_report();
    report.assert_nothing_lost();
}

/// What is in the way is left as it is, and one line says what to do.
#[test]
fn what_is_in_the_way_is_one_line() {
    let _alone = alone();
    let folder = scratch_dir().join(format!("listen-way-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let (file, link) = (folder.join("file"), folder.join("link"));
    fs::write(&file, "kept").expect("written");
    let _ = fs::remove_file(&link);
    symlink(folder.join("nowhere"), &link).expect("a link");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its number").port().to_string();
    let at = |path: &Path| format!("unix:{}", path.display());
    for (address, wanted) in [
        (at(&file), "a file that is not a socket is there; give another path"),
        (at(&link), "a file that is not a socket is there; give another path"),
        (at(&folder.join("none/socket")), "No such file or directory"),
        (port, "Address already in use (os error 98); give another address, or end what listens there"),
        ("192.0.2.1:9464".to_owned(), "give an address of this machine"),
    ] {
        let own = std::process::id().to_string();
        let output = Command::new(MEMLEAK).args(["--listen", &address, "-p", &own, "1", "1"]).output();
        let output = output.expect("memleak");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{address}: {error}");
        assert!(error.lines().count() == 1 && error.contains(wanted), "{address}: {error}");
    }
    assert_eq!(fs::read_to_string(&file).expect("it is there"), "kept");
    assert!(fs::read_link(&link).is_ok() && !folder.join("nowhere").exists());
    fs::remove_dir_all(&folder).expect("it is ours");
}

/// A socket in the file system is its owner's alone, gone at the end, and no other is taken away.
#[test]
fn a_unix_socket_is_private() {
    let _alone = alone();
    let path = scratch_dir().join(format!("listen-{}", std::process::id()));
    let address = format!("unix:{}", text(&path));
    let mut target =
        Running::start(Command::new(build("sites.c", Link::Dynamic, &[])).args(["leak", "1000"]));
    target.expect("READY");
    let arguments = ["--listen", &address, "-o", "0", "0.2"];
    let mut tracer = Tracer::attach_with(target.pid(), &arguments);
    tracer.wait_report(|_| true);
    let mode = fs::symlink_metadata(&path).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut stream = UnixStream::connect(&path).expect("it listens");
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    assert!(answer.ends_with("ok\n"), "{answer}");
    let second = Command::new(MEMLEAK)
        .args(["--listen", &address, "-p", &target.pid().to_string(), "1", "1"])
        .output()
        .expect("memleak");
    let error = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{error}");
    assert!(error.lines().count() == 1 && error.contains("Address already in use"), "{error}");
    tracer.stop_with_report();
    assert!(!path.exists(), "it is removed at the end");
    // One that a killed tracer has left is in nobody's way.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket is left"));
    let mut tracer = Tracer::attach_with(target.pid(), &arguments);
    tracer.wait_report(|_| true);
    tracer.stop_with_report();
}
