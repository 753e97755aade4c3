//! `--listen`: HTTP for Prometheus, pprof's readers and browsers.
//!
//! In a thread of its own, with a lower priority than the run's. Anybody may connect who reaches
//! the address: so there is nothing to be written, few connections at a time, and each has to come
//! to its end in time.

use std::{
    cell::RefCell,
    collections::HashMap,
    convert::Infallible,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Shutdown},
    os::unix::net::UnixStream,
    rc::Rc,
    sync::Arc,
    thread,
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{self, HeaderValue},
    http::uri::Authority,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{Semaphore, oneshot},
    task::{LocalSet, spawn_local},
    time::{sleep, timeout},
};

use super::{
    Latest, Published,
    metrics::TextForm,
    socket::{ListenError, Listener, Remove},
};
use crate::{
    report::{
        files::gzip,
        format::{Format, Options, html, pprof},
    },
    rights::be_modest,
    settings::ListenAddress,
};

/// Connections at a time. More are closed at once.
const CONNECTIONS: usize = 64;
/// A request's head has to be there within this time,
const HEAD_TIME: Duration = Duration::from_secs(5);
/// and a connection ends after this one, whatever is on its way.
const CONNECTION_TIME: Duration = Duration::from_secs(60);
/// Bytes and lines of a head.
const HEAD_BYTES: usize = 16 << 10;
const HEAD_LINES: usize = 64;
/// From an accept that has failed (no descriptors are left, say) to the next one.
const PAUSE: Duration = Duration::from_millis(100);

/// What is at `/`.
const INDEX: &str = "memleak\n\n/metrics             for Prometheus\n/debug/pprof/heap    go tool pprof \
                     http://ADDRESS/debug/pprof/heap\n/debug/pprof/allocs  the same\n/report              the last \
                     report as a page\n/healthz             ok\n";

/// A server that runs until this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    /// Where it listens.
    pub(crate) address: ListenAddress,
    _end: oneshot::Sender<Infallible>,
    _file: Option<Remove>,
}

impl Server {
    /// Opens the address and begins to serve.
    pub(crate) fn start(asked: &ListenAddress, latest: Arc<Latest>, top: usize) -> Result<Self, ListenError> {
        let of = |source| ListenError { address: asked.clone(), source };
        let (listener, file) = Listener::open(asked)?;
        let address = listener.address(asked);
        let is_local = match &address {
            ListenAddress::Tcp(address) => address.ip().is_loopback(),
            ListenAddress::Unix(_) => false,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(of)?;
        let (end, ended) = oneshot::channel();
        let pages = Pages { latest, top, is_local, made: RefCell::default() };
        let serve = move || {
            be_modest();
            LocalSet::new().block_on(&runtime, async {
                tokio::select! {
                    _ = ended => {}
                    () = accept(listener, Rc::new(pages)) => {}
                }
            });
        };
        thread::Builder::new().name("listen".to_owned()).stack_size(1 << 20).spawn(serve).map_err(of)?;
        Ok(Self { address, _end: end, _file: file })
    }
}

async fn accept(listener: Listener, pages: Rc<Pages>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let accepted = match listener {
        Listener::Tcp(listener) => match TcpListener::from_std(listener) {
            Ok(listener) => loop {
                match listener.accept().await {
                    Ok((stream, _)) => serve(stream, &places, &pages),
                    Err(error) => rest(&error).await,
                }
            },
            Err(error) => error,
        },
        Listener::Unix(listener) => match UnixListener::from_std(listener) {
            Ok(listener) => loop {
                match listener.accept().await {
                    Ok((stream, _)) => serve(stream, &places, &pages),
                    Err(error) => rest(&error).await,
                }
            },
            Err(error) => error,
        },
    };
    log::warn!("--listen: cannot wait for connections: {accepted}");
}

async fn rest(error: &io::Error) {
    log::debug!("--listen: {error}");
    sleep(PAUSE).await;
}

/// Serves a connection, if there is a place for it.
fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, places: &Arc<Semaphore>, pages: &Rc<Pages>) {
    let Ok(place) = places.clone().try_acquire_owned() else { return };
    let pages = pages.clone();
    spawn_local(async move {
        connection(stream, &pages, false).await;
        drop(place);
    });
}

/// `half_close`: a client that sends nothing more is answered all the same.
async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin, pages: &Pages, half_close: bool) {
    let answer = service_fn(|request: Request<Incoming>| {
        let response = pages.answer(&request);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(HEAD_BYTES);
    http.max_headers(HEAD_LINES).half_close(half_close);
    let served = http.serve_connection(TokioIo::new(stream), answer);
    let _ = timeout(CONNECTION_TIME, served).await; // what a client does wrong is its own affair
}

/// What a client is answered, all in all, that sends these bytes and nothing more; there is no
/// report yet. For fuzzing.
#[doc(hidden)]
pub fn answer_to(sent: &[u8]) -> io::Result<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let pages = Pages { latest: Arc::default(), top: 10, is_local: true, made: RefCell::default() };
    let (mut client, server) = UnixStream::pair()?;
    server.set_nonblocking(true)?;
    let mut requests = client.try_clone()?;
    let answers = thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut answers = Vec::new();
            client.read_to_end(&mut answers).map(|_| answers)
        });
        // The server may have had enough before all is there.
        scope.spawn(move || requests.write_all(sent).and_then(|()| requests.shutdown(Shutdown::Write)));
        runtime.block_on(async {
            connection(tokio::net::UnixStream::from_std(server)?, &pages, true).await;
            Ok::<_, io::Error>(())
        })?;
        reader.join().unwrap_or_else(|_| Err(io::Error::other("the reader has panicked")))
    });
    match answers {
        // It closes what it has not read.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Vec::new()),
        answers => answers,
    }
}

/// What can be asked for, made once for each report.
struct Pages {
    latest: Arc<Latest>,
    top: usize,
    /// Only programs of this machine reach us. So a browser's page must not, that has been told
    /// that its own name stands for this machine.
    is_local: bool,
    made: RefCell<Made>,
}

/// What was made of a report.
#[derive(Default)]
struct Made {
    of: Option<Arc<Published>>,
    bodies: HashMap<ServedPage, Bytes>,
}

/// What can be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum ServedPage {
    Metrics(TextForm),
    Profile,
    Report,
}

impl Pages {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        if !is_read {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return closing(response);
        }
        if self.is_local && !is_named_locally(request) {
            return closing(text(StatusCode::MISDIRECTED_REQUEST, "this is not the host that was meant\n"));
        }
        let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
        match request.uri().path() {
            "/" => text(StatusCode::OK, INDEX),
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/metrics" => {
                let form = TextForm::accepted(accept.unwrap_or_default());
                self.page(ServedPage::Metrics(form), form.content_type())
            }
            "/debug/pprof/heap" | "/debug/pprof/allocs" => {
                let mut response = self.page(ServedPage::Profile, "application/octet-stream");
                let name = HeaderValue::from_static("attachment; filename=\"heap.pb.gz\"");
                response.headers_mut().insert(header::CONTENT_DISPOSITION, name);
                response
            }
            "/report" => self.page(ServedPage::Report, "text/html; charset=utf-8"),
            _ => text(StatusCode::NOT_FOUND, "no such page; / lists them\n"),
        }
    }

    fn page(&self, page: ServedPage, kind: &'static str) -> Response<Full<Bytes>> {
        let latest = self.latest.get();
        if latest.is_none() && !matches!(page, ServedPage::Metrics(_)) {
            let mut response = text(StatusCode::SERVICE_UNAVAILABLE, "there is no report yet\n");
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
            return response;
        }
        let mut made = self.made.borrow_mut();
        let is_same = match (&made.of, &latest) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        };
        if !is_same {
            *made = Made { of: latest, bodies: HashMap::new() };
        }
        // What it counts of itself changes between reports.
        if matches!(page, ServedPage::Metrics(_)) {
            made.bodies.remove(&page);
        }
        let body = match made.bodies.get(&page) {
            Some(body) => body.clone(),
            None => match self.make(page, made.of.as_deref()) {
                Ok(body) => made.bodies.entry(page).or_insert(body).clone(),
                Err(error) => {
                    log::debug!("--listen: {error}");
                    return text(StatusCode::INTERNAL_SERVER_ERROR, "it cannot be made\n");
                }
            },
        };
        response(StatusCode::OK, kind, body)
    }

    fn make(&self, page: ServedPage, published: Option<&Published>) -> io::Result<Bytes> {
        let written = |format: Box<dyn Format>| {
            let mut bytes = Vec::new();
            match published {
                Some(published) => format.report(&published.report, &mut bytes).map(|()| bytes),
                None => Ok(bytes),
            }
        };
        let options = Options::new(self.top);
        Ok(Bytes::from(match page {
            ServedPage::Metrics(form) => {
                super::metrics::page(published, form, self.top, &self.latest.counters()).into_bytes()
            }
            ServedPage::Profile => gzip(&written((pprof::KIND.new)(&options))?)?,
            ServedPage::Report => written((html::KIND.new)(&options))?,
        }))
    }
}

/// The client has meant this machine: by an address, or by the name that is always its own. It can
/// name one in the request's first line as well, or several.
fn is_named_locally(request: &Request<Incoming>) -> bool {
    let in_headers = request.headers().get_all(header::HOST).iter();
    let mut hosts = in_headers.map(|host| host.to_str().ok()?.parse::<Authority>().ok());
    hosts.all(|host| host.is_some_and(|host| is_local(&host)))
        && request.uri().authority().is_none_or(is_local)
}

fn is_local(host: &Authority) -> bool {
    let host = host.host().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok()
}

fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
}

fn response(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// What comes after this request is not read.
fn closing(mut response: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(sent: &str) -> String {
        String::from_utf8(answer_to(sent.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn requests_one_after_the_other() {
        let ask = |path| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let answer = answered(&(ask("/healthz") + &ask("/report") + &ask("/nowhere")));
        let lines: Vec<_> = answer.lines().filter(|line| line.starts_with("HTTP/1.1 ")).collect();
        let expected = ["HTTP/1.1 200 OK", "HTTP/1.1 503 Service Unavailable", "HTTP/1.1 404 Not Found"];
        assert_eq!(lines, expected, "{answer}");
    }

    #[test]
    fn every_host_that_is_named_is_this_machine() {
        for (place, hosts, status) in [
            ("/healthz", "Host: 127.0.0.1:9464\r\n", 200),
            ("http://localhost/healthz", "Host: [::1]\r\n", 200),
            ("/healthz", "Host: other.example\r\n", 421),
            ("/healthz", "Host: localhost\r\nHost: other.example\r\n", 421),
            ("http://other.example/healthz", "Host: localhost\r\n", 421),
        ] {
            let answer = answered(&format!("GET {place} HTTP/1.1\r\n{hosts}\r\n"));
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{place} {hosts}: {answer}");
        }
    }

    #[test]
    fn what_is_no_request_is_answered_or_not() {
        for sent in ["", "\0\0\0\0", "GET", "GET / HTTP/9.9\r\n\r\n"] {
            let answer = answered(sent);
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{sent:?}: {answer}");
        }
        let put = answered("PUT /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello");
        assert!(put.starts_with("HTTP/1.1 405"), "{put}");
        let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(2 * HEAD_BYTES));
        assert!(["HTTP/1.1 431", ""].iter().any(|start| answered(&long).starts_with(start)));
    }
}
