//! `--push`: each report as a profile, to Pyroscope or Parca.
//!
//! In a thread of its own. What cannot be delivered is tried again, less and less often; so many
//! are kept, the latest ones, and what is dropped is counted.

use std::{
    collections::VecDeque,
    fs, io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    ext::on_informational,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, LOCATION, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use log::warn;
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    sync::{Notify, mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};

use super::Published;
use crate::{
    report::{files::gzip, format::pprof::write_pprof},
    rights::be_modest,
    settings::{PushProtocol, PushTarget},
};

/// Reports that are kept for a receiver that is down.
const KEPT: usize = 16;
/// Reports that wait for being made into profiles.
const WAITING: usize = 4;
/// One delivery.
const DELIVERY: Duration = Duration::from_secs(10);
/// From a delivery that has failed to the next one: twice as long each time, up to a minute.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// At the end of a run, for what is left.
const LAST: Duration = Duration::from_secs(5);
/// For the words of a receiver that refuses.
const REASON: Duration = Duration::from_secs(1);
/// Answers that only say that one will come (1xx). They take time of ours, and no time-out ends
/// them sooner than silence.
const FORERUNNERS: u32 = 100;
/// Bytes of an answer that are looked at.
const ANSWER: usize = 64 << 10;

/// What became of reports.
#[derive(Debug, Default)]
pub(crate) struct PushCounters {
    sent: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
}

impl PushCounters {
    /// Name, help, value.
    pub(super) fn all(&self) -> [(&'static str, &'static str, u64); 3] {
        [
            ("memleak_push_sent_total", "Reports that were delivered.", self.sent.load(Relaxed)),
            ("memleak_push_failed_total", "Deliveries that have failed.", self.failed.load(Relaxed)),
            ("memleak_push_dropped_total", "Reports that were never delivered.", self.dropped.load(Relaxed)),
        ]
    }
}

/// Sends reports as long as this is there.
#[derive(Debug)]
pub(crate) struct Pusher {
    reports: mpsc::Sender<Arc<Published>>,
    done: oneshot::Receiver<()>,
    counters: Arc<PushCounters>,
    to: String,
}

impl Pusher {
    pub(crate) fn start(target: PushTarget, counters: Arc<PushCounters>) -> io::Result<Self> {
        let (reports, taken) = mpsc::channel(WAITING);
        let (end, done) = oneshot::channel();
        let to = target.to_string();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut courier = Courier::new(target, counters.clone());
        let work = move || {
            be_modest();
            runtime.block_on(courier.run(taken));
            // A look-up of a name that hangs holds nobody up.
            runtime.shutdown_background();
            let _ = end.send(());
        };
        thread::Builder::new().name("push".to_owned()).stack_size(1 << 20).spawn(work)?;
        Ok(Self { reports, done, counters, to })
    }

    /// Sends a report, some time. Never waits.
    pub(crate) fn push(&self, published: &Arc<Published>) {
        if self.reports.try_send(published.clone()).is_err() {
            self.counters.dropped.fetch_add(1, Relaxed);
        }
    }

    /// No more reports: those that are left are sent, as far as they can be in a short time.
    pub(crate) async fn finish(self) {
        let Self { reports, done, counters, to } = self;
        drop(reports);
        // It may be making a profile just then.
        let _ = timeout(2 * LAST, done).await;
        let dropped = counters.dropped.load(Relaxed);
        if dropped > 0 {
            let all = dropped + counters.sent.load(Relaxed);
            warn!("--push {to}: {dropped} of {all} reports were never delivered");
        }
    }
}

/// Why a report was not delivered.
enum Failure {
    /// It may be another time.
    Later(String),
    /// The receiver does not want it.
    Never(String),
}

struct Courier {
    target: Arc<PushTarget>,
    counters: Arc<PushCounters>,
    /// Without the one that is on its way.
    queue: VecDeque<Parcel>,
    pause: Duration,
    next: Instant,
    is_told: bool,
}

/// A report as it is sent.
struct Parcel {
    time: SystemTime,
    name: String,
    bytes: Vec<u8>,
}

/// A parcel on its way, and what becomes of it.
type Delivery = Pin<Box<dyn Future<Output = (Parcel, Result<(), Failure>)>>>;

impl Courier {
    fn new(target: PushTarget, counters: Arc<PushCounters>) -> Self {
        let (queue, next) = (VecDeque::new(), Instant::now());
        Self { target: Arc::new(target), counters, queue, pause: FIRST_PAUSE, next, is_told: false }
    }

    /// Reports are taken whatever the receiver does meanwhile, so that the last ones are kept.
    async fn run(&mut self, mut reports: mpsc::Receiver<Arc<Published>>) {
        let mut under_way: Option<Delivery> = None;
        let mut end: Option<Instant> = None;
        while end.is_none() || under_way.is_some() || !self.queue.is_empty() {
            let may_leave = under_way.is_none() && !self.queue.is_empty();
            tokio::select! {
                biased;
                report = reports.recv(), if end.is_none() => match report {
                    Some(report) => self.take(&report),
                    None => {
                        end = Some(Instant::now() + LAST);
                        (self.next, self.pause) = (Instant::now(), FIRST_PAUSE);
                    }
                },
                (parcel, delivered) = arrival(&mut under_way) => {
                    under_way = None;
                    self.settle(parcel, delivered);
                }
                () = sleep_until(self.next), if may_leave => under_way = self.depart(),
                () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => break,
            }
        }
        if under_way.is_some() {
            self.tell("no answer until the end of the run");
        }
        let left = self.queue.len() + usize::from(under_way.is_some());
        self.counters.dropped.fetch_add(left as u64, Relaxed);
    }

    fn take(&mut self, published: &Published) {
        let mut bytes = Vec::new();
        let made = write_pprof(&published.report, &mut bytes).and_then(|()| gzip(&bytes));
        let Ok(bytes) = made else {
            self.counters.dropped.fetch_add(1, Relaxed);
            return;
        };
        if self.queue.len() == KEPT {
            self.queue.pop_front();
            self.counters.dropped.fetch_add(1, Relaxed);
        }
        let name = published.report.target.comm.clone();
        self.queue.push_back(Parcel { time: published.report.time, name, bytes });
    }

    /// Sends off the oldest one.
    fn depart(&mut self) -> Option<Delivery> {
        let (parcel, target) = (self.queue.pop_front()?, self.target.clone());
        Some(Box::pin(async move {
            let delivered = match timeout(DELIVERY, post(&target, &parcel)).await {
                Ok(delivered) => delivered,
                Err(_) => Err(Failure::Later(format!("no answer within {} s", DELIVERY.as_secs()))),
            };
            (parcel, delivered)
        }))
    }

    fn settle(&mut self, parcel: Parcel, delivered: Result<(), Failure>) {
        match delivered {
            Ok(()) => {
                self.counters.sent.fetch_add(1, Relaxed);
                (self.next, self.pause, self.is_told) = (Instant::now(), FIRST_PAUSE, false);
            }
            Err(Failure::Later(why)) => {
                self.counters.failed.fetch_add(1, Relaxed);
                self.tell(&format!("{why}; it is tried again, and the last {KEPT} reports are kept"));
                if self.queue.len() < KEPT {
                    self.queue.push_front(parcel);
                } else {
                    self.counters.dropped.fetch_add(1, Relaxed);
                }
                self.next = Instant::now() + self.pause;
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            }
            Err(Failure::Never(why)) => {
                self.counters.failed.fetch_add(1, Relaxed);
                self.counters.dropped.fetch_add(1, Relaxed);
                self.tell(&format!("{why}; reports are dropped until it takes one"));
                self.next = Instant::now();
            }
        }
    }

    /// Once, until something was delivered again.
    fn tell(&mut self, what: &str) {
        if !std::mem::replace(&mut self.is_told, true) {
            warn!("--push {}: {what}", self.target);
        }
    }
}

async fn arrival(under_way: &mut Option<Delivery>) -> (Parcel, Result<(), Failure>) {
    match under_way {
        Some(delivery) => delivery.await,
        None => std::future::pending().await,
    }
}

async fn post(target: &PushTarget, profile: &Parcel) -> Result<(), Failure> {
    let later = |error: &dyn std::fmt::Display| Failure::Later(error.to_string());
    let unanswered = |error: hyper::Error| match error.is_parse() {
        true => Failure::Later(format!("what answers there is no HTTP ({error}); name a port without TLS")),
        false => later(&error),
    };
    let mut request = request(target, profile).map_err(|error| Failure::Never(error.to_string()))?;
    let too_many = tell_too_many(&mut request);
    let stream = TcpStream::connect((target.host.as_str(), target.port)).await;
    let stream = stream.map_err(|error| later(&error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(unanswered)?;
    let connection = tokio::spawn(connection);
    let answered = tokio::select! {
        answered = sender.send_request(request) => answered.map_err(unanswered),
        () = too_many.notified() => Err(Failure::Later(format!("it answers {FORERUNNERS} times that it goes on"))),
    };
    let answer = match answered {
        Ok(answer) => answer,
        Err(failure) => {
            connection.abort();
            return Err(failure);
        }
    };
    let status = answer.status();
    if status.is_success() {
        // It has the profile, whatever else it has to say: it is not sent once more.
        connection.abort();
        return Ok(());
    }
    let moved = answer.headers().get(LOCATION).and_then(|place| place.to_str().ok()).map(str::to_owned);
    let body = timeout(REASON, Limited::new(answer.into_body(), ANSWER).collect()).await;
    connection.abort();
    let said = match moved {
        Some(place) if status.is_redirection() => format!("give its new place, {place}"),
        _ => match body {
            Ok(Ok(body)) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
            _ => String::new(),
        },
    };
    let said: String = said.lines().next().unwrap_or_default().chars().take(200).collect();
    let failed = format!("{status}{}{said}", if said.is_empty() { "" } else { ": " });
    match status {
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Err(Failure::Later(failed)),
        status if status.is_server_error() => Err(Failure::Later(failed)),
        _ => Err(Failure::Never(failed)),
    }
}

/// Has it be told if there are too many answers before the answer.
fn tell_too_many(request: &mut Request<Full<Bytes>>) -> Arc<Notify> {
    let (too_many, seen) = (Arc::new(Notify::new()), AtomicU32::new(0));
    let told = too_many.clone();
    on_informational(request, move |_| {
        if seen.fetch_add(1, Relaxed) == FORERUNNERS {
            told.notify_one();
        }
    });
    too_many
}

/// The request that delivers a profile.
fn request(target: &PushTarget, profile: &Parcel) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    let seconds = profile.time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (path, kind, body) = match target.protocol {
        PushProtocol::Pyroscope => {
            let body = json!({"series": [{
                "labels": labels(profile),
                "samples": [{"ID": identifier(), "rawProfile": BASE64_STANDARD.encode(&profile.bytes)}],
            }]});
            (target.path.clone(), "application/json".to_owned(), body.to_string().into_bytes())
        }
        PushProtocol::Parca => {
            let body = json!({"normalized": false, "series": [{
                "labels": {"labels": labels(profile)},
                "samples": [{"rawProfile": BASE64_STANDARD.encode(&profile.bytes)}],
            }]});
            (target.path.clone(), "application/json".to_owned(), body.to_string().into_bytes())
        }
        PushProtocol::Ingest => {
            let name = query_safe(&profile.name);
            let path = format!("{}?name={name}&from={seconds}&until={seconds}&format=pprof", target.path);
            let (boundary, body) = form(profile);
            (path, format!("multipart/form-data; boundary={boundary}"), body)
        }
    };
    let mut request = Request::post(path)
        .header(HOST, target.authority())
        .header(USER_AGENT, concat!("memleak/", env!("CARGO_PKG_VERSION")))
        .header(CONTENT_TYPE, kind);
    if let Some(user) = &target.user {
        request = request.header(AUTHORIZATION, format!("Basic {}", BASE64_STANDARD.encode(user)));
    }
    request.body(Full::new(Bytes::from(body)))
}

/// What the profile is of, for Pyroscope and Parca alike.
fn labels(profile: &Parcel) -> Value {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    json!([
        {"name": "__name__", "value": "memory"},
        {"name": "service_name", "value": profile.name},
        {"name": "instance", "value": host},
    ])
}

fn identifier() -> String {
    fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default().trim().to_owned()
}

/// A name without what means something in a query.
fn query_safe(name: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    name.chars().map(safe).collect()
}

/// The parts of a form: the profile, and how its values are to be shown.
fn form(profile: &Parcel) -> (String, Vec<u8>) {
    let kinds = json!({
        "alloc_objects": {"units": "objects", "aggregation": "sum"},
        "alloc_space": {"units": "bytes", "aggregation": "sum"},
        "inuse_objects": {"units": "objects", "aggregation": "average"},
        "inuse_space": {"units": "bytes", "aggregation": "average"},
    });
    let boundary = format!("memleak-{}", identifier());
    let mut body = Vec::with_capacity(profile.bytes.len() + 1024);
    let kinds = kinds.to_string();
    for (name, file, bytes) in [
        ("profile", "profile.pprof", profile.bytes.as_slice()),
        ("sample_type_config", "config.json", kinds.as_bytes()),
    ] {
        let head = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{file}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    (boundary, body)
}
