//! Debian's Prometheus asks memleak for its metrics, with the alerts of `contrib/`: what leaks is
//! told, and what does not is left alone.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::mpsc::{self, Receiver},
    thread,
};

use serde_json::Value;

use crate::{
    guard::alone,
    listen::{check_by_promtool, listening_at, send},
    process::{Running, patience},
    programs::{Link, build, scratch_dir, text},
    tracer::Tracer,
};

/// What stands in the rules for 10 and 30 minutes, and a minute between two looks at them.
const SHORTER: [(&str, &str); 4] =
    [("interval: 1m", "interval: 1s"), ("[10m]", "[4s]"), ("[30m]", "[12s]"), ("for: 30m", "for: 12s")];

/// Takes alerts as Alertmanager does, and hands them on; gives its address.
fn alertmanager() -> (SocketAddr, Receiver<Vec<Value>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its number");
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            if sender.send(take_alerts(stream)).is_err() {
                return;
            }
        }
    });
    (address, receiver)
}

/// The alerts of one request (`POST /api/v2/alerts`).
fn take_alerts(mut stream: TcpStream) -> Vec<Value> {
    let mut reader = BufReader::new(stream.try_clone().expect("the same"));
    let mut length = 0;
    for line in reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()) {
        if let Some(value) = line.to_lowercase().strip_prefix("content-length: ") {
            length = value.parse().expect("a length");
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("the whole body");
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    stream.write_all(answer.as_bytes()).expect("answered");
    serde_json::from_slice(&body).expect("alerts")
}

/// A Prometheus that asks memleak each second.
struct Prometheus {
    address: SocketAddr,
    /// It lives as long.
    _running: Running,
}

impl Prometheus {
    fn start(folder: &Path, memleak: SocketAddr, alertmanager: SocketAddr) -> Self {
        let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/../contrib/prometheus/alerts.yaml");
        let mut rules = fs::read_to_string(rules).expect("the rules");
        for (long, short) in SHORTER {
            assert!(rules.contains(long), "{long}");
            rules = rules.replace(long, short);
        }
        fs::write(folder.join("alerts.yaml"), rules).expect("written");
        let settings = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\n\
             rule_files: [alerts.yaml]\n\
             alerting: {{alertmanagers: [{{static_configs: [{{targets: ['{alertmanager}']}}]}}]}}\n\
             scrape_configs: [{{job_name: memleak, static_configs: [{{targets: ['{memleak}']}}]}}]\n"
        );
        let file = folder.join("prometheus.yaml");
        fs::write(&file, settings).expect("written");
        let running = Running::start(
            Command::new("prometheus")
                .arg(format!("--config.file={}", text(&file)))
                .arg(format!("--storage.tsdb.path={}", text(&folder.join("data"))))
                .arg("--web.listen-address=127.0.0.1:0"),
        );
        let says = running.stderr().wait(0, |line| line.contains("msg=\"Listening on\""));
        let (_, line) = says.unwrap_or_else(|| panic!("it does not listen\n{}", running.outputs()));
        let address = line.split_once("address=").expect("an address").1.trim().parse().expect("an address");
        Self { address, _running: running }
    }

    /// What a query gives (`/api/v1/query`).
    fn query(&self, query: &str) -> Vec<Value> {
        let query: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        self.get(&format!("query?query={query}"))["data"]["result"].as_array().expect("results").clone()
    }

    fn get(&self, path: &str) -> Value {
        let request = format!("GET /api/v1/{path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        let answer = send(self.address, request.as_bytes());
        let at = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
        serde_json::from_slice(&answer[at..]).expect("JSON")
    }
}

#[test]
fn an_alert_fires_for_what_leaks_and_for_nothing_else() {
    let _alone = alone();
    let folder = scratch_dir().join(format!("prometheus-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let program = build("sawtooth.c", Link::Dynamic, &[]);
    let mut targets = ["leaky", "sound"].map(|name| Running::start(Command::new(&program).arg(name)));
    targets.iter_mut().for_each(|target| _ = target.expect("READY"));
    let pids = format!("{},{}", targets[0].pid(), targets[1].pid());
    let mut tracer = Tracer::start(&["--json", "-v", "-p", &pids, "--listen", "0", "-o", "0", "0.5"]);
    tracer.wait_attached();
    let (alertmanager, alerts) = alertmanager();
    let memleak = listening_at(&tracer);
    let prometheus = Prometheus::start(&folder, memleak, alertmanager);
    let first = alerts.recv_timeout(patience()).unwrap_or_else(|_| panic!("{}", prometheus.get("rules")));
    let [alert] = first.as_slice() else { panic!("{first:?}") };
    let labels = &alert["labels"];
    assert_eq!(
        [&labels["alertname"], &labels["comm"], &labels["resource"], &labels["severity"]],
        ["MemleakOutstandingGrows", "leaky", "heap", "warning"]
    );
    assert_eq!(labels["instance"], memleak.to_string());
    let summary = alert["annotations"]["summary"].as_str().unwrap_or_default();
    assert!(summary.starts_with("leaky on ") && summary.ends_with(" holds more and more heap"), "{alert}");
    // Nothing else is told, though both were there all the time.
    let alerts = prometheus.get("alerts");
    let mut firing = alerts["data"]["alerts"].as_array().expect("alerts").iter();
    let is_other = |alert: &&Value| alert["state"] == "firing" && alert["labels"]["comm"] != "leaky";
    assert!(firing.find(is_other).is_none(), "{alerts}");
    for name in ["leaky", "sound"] {
        let seen = prometheus.query(&format!(
            "count_over_time(memleak_outstanding_bytes{{comm=\"{name}\",resource=\"heap\"}}[12s])"
        ));
        let [seen] = seen.as_slice() else { panic!("{name}: {seen:?}") };
        let number = seen["value"][1].as_str().and_then(|number| number.parse::<u32>().ok());
        assert!(number >= Some(6), "{name}: {seen}");
    }
    let up = prometheus.query("min_over_time(up[1m])");
    assert!(up.len() == 1 && up[0]["value"][1] == "1", "{up:?}");
    let page = send(memleak, b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n");
    let page = String::from_utf8(page).expect("text");
    check_by_promtool(page.split_once("\r\n\r\n").expect("a head").1);
    tracer.fresh_report().assert_nothing_lost();
    drop(prometheus);
    let _ = fs::remove_dir_all(folder);
}
