//! The kernel's times against those of the server and of the proxy, on one connection after the other.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use outrigger_tests::harness::{Call, Client, Protocol, Proxy};
use outrigger_tests::sim::{Options, Simulator};
use serde::Deserialize;
use serde_json::Value;

use super::run::{self, FLAVOURS, Server};
use super::say;
use crate::{assert_nothing_lost, following, is_impossible, timelines};

/// How many requests are compared.
const CALLS: usize = 400;

/// Half of the disagreements must be below this. Measured was far less (`proxy/PROBES.md`); the rest is for the machine.
pub(super) const BOUND: f64 = 0.001;

/// What the log cuts off: microseconds are written, of three intervals at most.
const CUT: f64 = 3e-6;

/// What a server noted of a request, in nanoseconds of CLOCK_MONOTONIC.
#[derive(Deserialize)]
pub(super) struct Noted {
    pub(super) path: String,
    /// It had been read.
    pub(super) read: i64,
    /// The application was about to write first.
    called: i64,
    /// It had been written first.
    pub(super) first: i64,
    /// The application was about to write last.
    recalled: i64,
    /// It had been written last.
    pub(super) last: i64,
}

/// What `/seen` says.
#[derive(Deserialize)]
pub(super) struct Seen {
    pub(super) seen: Vec<Noted>,
    /// When something had come that a blocked loop did not read.
    #[serde(default)]
    blocks: Vec<i64>,
}

/// Absolute disagreements, in seconds.
struct Errors(Vec<f64>);

impl Errors {
    fn at(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[((sorted.len() - 1) as f64 * share) as usize]
    }

    /// Says them, and that the median is as it should be.
    fn judge(&self, what: &str, bound: f64) {
        let (median, p99) = (self.at(0.5), self.at(0.99));
        let count = self.0.len();
        say(&format!("{what}: median {:.0} us, p99 {:.0} us of {count}", median * 1e6, p99 * 1e6));
        assert!(median < bound, "{what}: {median} s");
    }
}

/// Seconds of a field of a line.
pub(super) fn seconds(line: &Value, field: &str) -> f64 {
    line[field].as_f64().unwrap_or(f64::NAN) / 1000.0
}

pub(super) fn since(from: i64, to: i64) -> f64 {
    (to - from) as f64 / 1e9
}

/// Lines of so many requests on one connection, one after the other.
async fn calls(proxy: &Proxy, count: usize, target: impl Fn(usize) -> String) -> Vec<Value> {
    let mut client = Client::connect(proxy.address(), Protocol::Http1).await;
    for number in 0..count {
        let answer = client.send(Call::get(&target(number))).await.expect("an answer");
        assert_eq!((answer.status, answer.cut), (200, None));
    }
    let lines = proxy.await_access(count).await;
    let metrics = proxy.metrics().await;
    assert_eq!(timelines(&metrics, "complete"), count as f64, "{}", metrics.text);
    assert_nothing_lost(&metrics);
    lines
}

/// The proxy's own clock is around the kernel's, but where the writer was interrupted between the bytes' leaving and the
/// return of its call, which is when a write is seen. How much is around it, to the first byte.
fn around(lines: &[Value]) -> Errors {
    let [mut outside, mut late] = [const { Vec::new() }; 2];
    for line in lines {
        let [wait, first, answer] =
            ["app_socket_wait_ms", "app_first_byte_ms", "app_answer_ms"].map(|f| seconds(line, f));
        late.push(wait + first + answer - seconds(line, "duration_ms"));
        outside.push((seconds(line, "first_byte_ms") - wait - first).abs());
    }
    let late = Errors(late);
    assert!(late.at(0.9) <= CUT && late.at(0.99) < LATE, "{:?}", late.0);
    Errors(outside)
}

/// How long a writer that is interrupted may have to wait for its turn, on a busy machine.
const LATE: f64 = 0.02;

pub(super) async fn noted(server: &Server) -> Seen {
    let answer = Call::get("/seen").send(server.address).await;
    serde_json::from_value(answer.json()).expect("what was noted")
}

/// Each line with what the server noted of the same request.
fn paired(lines: &[Value], seen: Vec<Noted>) -> Vec<(&Value, Noted)> {
    let mut by_path: HashMap<_, _> =
        seen.into_iter().map(|noted| (noted.path.clone(), noted)).collect();
    let path = |line: &Value| line["path"].as_str().unwrap_or_default().to_owned();
    let noted =
        |line| (line, by_path.remove(&path(line)).expect("the server saw each request once"));
    lines.iter().map(noted).collect()
}

/// How the kernel's intervals differ from those between a server's notes.
struct Against {
    /// From read to first write.
    first_byte: Errors,
    /// From first write to last.
    answer: Errors,
    /// By how much they are shorter or longer than is possible, as each write was after the note before it and before the
    /// note after it. A server that is interrupted before it notes does not count here.
    impossible: Errors,
}

impl Against {
    fn new(pairs: &[(&Value, Noted)]) -> Self {
        let [mut first_byte, mut answer, mut impossible] = [const { Vec::new() }; 3];
        for (line, noted) in pairs {
            let (first, rest) =
                (seconds(line, "app_first_byte_ms"), seconds(line, "app_answer_ms"));
            let least = since(noted.read, noted.called);
            assert!(first + CUT >= least, "the handler took {least} s: {line:#}");
            first_byte.push((first - since(noted.read, noted.first)).abs());
            answer.push((rest - since(noted.first, noted.last)).abs());
            impossible.push(outside(first, least, since(noted.read, noted.first)));
            let (least, most) =
                (since(noted.first, noted.recalled), since(noted.called, noted.last));
            impossible.push(outside(rest, least, most));
        }
        let [first_byte, answer, impossible] = [first_byte, answer, impossible].map(Errors);
        Self { first_byte, answer, impossible }
    }

    fn judge(&self, name: &str) {
        self.first_byte
            .judge(&format!("{name}, read to first write, kernel against server"), BOUND);
        self.answer.judge(&format!("{name}, first write to last, kernel against server"), BOUND);
        self.impossible.judge(&format!("{name}, kernel beyond the server's notes"), EXACT);
    }
}

fn outside(value: f64, least: f64, most: f64) -> f64 {
    (least - value).max(value - most).max(0.0)
}

/// What the kernel may be wrong by in half of all cases, however busy the machine is.
const EXACT: f64 = 50e-6;

/// Compares a server with the kernel in requests for `target`, of which the server notes each.
async fn compare(name: &str, server: &Server, target: impl Fn(usize) -> String) {
    let proxy = Proxy::start(&following(server.address)).await;
    let lines = calls(&proxy, CALLS, target).await;
    let pids = lines.iter().all(|line| line["app_pid"] == server.process.pid());
    assert!(pids, "it is the server that read");
    let pairs = paired(&lines, noted(server).await.seen);
    Against::new(&pairs).judge(name);
    around(&lines).judge(&format!("{name}, to the first byte, kernel against proxy"), LATE);
}

#[tokio::test]
async fn uvicorn_and_the_kernel_agree() {
    if is_impossible("requests") {
        return;
    }
    for flavour in FLAVOURS {
        let Some(server) = run::uvicorn_here(flavour).await else { return };
        let target = |number| format!("/work/{number}?first=1&parts=2&gap=1");
        compare(flavour.name(), &server, target).await;
    }
}

#[tokio::test]
async fn uvicorn_and_the_kernel_agree_on_a_long_stream() {
    if is_impossible("requests") {
        return;
    }
    for flavour in FLAVOURS {
        let Some(server) = run::uvicorn_here(flavour).await else { return };
        let proxy = Proxy::start(&following(server.address)).await;
        let lines = calls(&proxy, 20, |number| format!("/work/{number}?parts=300&gap=0")).await;
        let name = format!("{}, 300 chunks", flavour.name());
        Against::new(&paired(&lines, noted(&server).await.seen)).judge(&name);
        let shortest = lines.iter().map(|line| seconds(line, "app_answer_ms")).fold(1.0, f64::min);
        assert!(shortest > 0.0, "300 chunks are more than one write");
    }
}

#[tokio::test]
async fn http_server_and_the_kernel_agree() {
    if is_impossible("requests") {
        return;
    }
    let server = run::http_server(IpAddr::V4(Ipv4Addr::LOCALHOST)).await;
    compare("http.server (threads)", &server, |number| format!("/work/{number}")).await;
}

#[tokio::test]
async fn a_server_of_io_uring_and_the_kernel_agree() {
    if is_impossible("requests") {
        return;
    }
    let Some(server) = run::io_uring().await else { return };
    let proxy = Proxy::start(&following(server.address)).await;
    let mut client = Client::connect(proxy.address(), Protocol::Http1).await;
    let mut took = Vec::new();
    for _ in 0..=CALLS {
        let answer = client.send(Call::get("/")).await.expect("an answer");
        let told = |name| answer.header(name).and_then(|it| it.parse().ok()).expect("a number");
        took.push(since(told("x-read"), told("x-written")));
    }
    let lines = proxy.await_access(took.len()).await;
    assert_eq!(timelines(&proxy.metrics().await, "complete"), took.len() as f64);
    // Each answer tells of the one before.
    let compared = lines.iter().zip(&took[1..]);
    let errors = compared.map(|(line, took)| (seconds(line, "app_first_byte_ms") - took).abs());
    Errors(errors.collect()).judge("io_uring, read to write, kernel against server", BOUND);
    assert!(lines.iter().all(|line| line["app_pid"] == server.process.pid()), "{:#}", lines[0]);
    around(&lines).judge("io_uring, to the first byte, kernel against proxy", LATE);
}

#[tokio::test]
async fn nginx_and_the_simulator_lie_inside_the_proxys_times() {
    if is_impossible("requests") {
        return;
    }
    let simulator = Simulator::start(Options::named("app").fast());
    let proxy = Proxy::start(&following(simulator.addr)).await;
    let lines = calls(&proxy, CALLS, |_| "/bytes/1000".to_owned()).await;
    around(&lines).judge("simulator, to the first byte, kernel against proxy", LATE);
    let Some(server) = run::nginx().await else { return };
    let proxy = Proxy::start(&following(server.address)).await;
    let lines = calls(&proxy, CALLS, |_| "/small".to_owned()).await;
    around(&lines).judge("nginx, to the first byte, kernel against proxy", LATE);
    assert!(lines.iter().all(|line| line["app_pid"] == server.process.pid()), "{:#}", lines[0]);
}

/// How long the loop of `asgi.py` is blocked after something has come.
const BLOCKED: Duration = Duration::from_millis(25);

#[tokio::test]
async fn a_blocked_loop_of_uvicorn_shows_as_time_in_the_socket() {
    if is_impossible("requests") {
        return;
    }
    for flavour in FLAVOURS {
        let Some(server) = run::uvicorn_here(flavour).await else { return };
        let proxy = Proxy::start(&following(server.address)).await;
        // Two connections, which the application has accepted and read from.
        let pair = || Call::get("/pair").send(proxy.address());
        tokio::join!(pair(), pair());
        let blocking = Call::get("/block").send(proxy.address());
        let waiting = async {
            server.process.await_log("BLOCKING").await;
            Call::get("/work/blocked").send(proxy.address()).await
        };
        tokio::join!(blocking, waiting);
        let lines = proxy.await_access(4).await;
        let line = lines.iter().find(|line| line["path"] == "/work/blocked").expect("its line");
        let seen = noted(&server).await;
        let noted = seen.seen.iter().find(|it| it.path == "/work/blocked").expect("it was seen");
        let by_server = since(seen.blocks[0], noted.read);
        let waited = seconds(line, "app_socket_wait_ms");
        say(&format!(
            "{}, blocked for 25 ms: the kernel says {:.3} ms in the socket, the server {:.3} ms",
            flavour.name(),
            waited * 1e3,
            by_server * 1e3
        ));
        assert!(waited >= BLOCKED.as_secs_f64(), "{line:#}");
        // The server may be interrupted before it notes that something has come, so the kernel says more, not less.
        assert!(waited + BOUND >= by_server, "the server says {by_server} s: {line:#}");
        assert!(waited <= seconds(line, "first_byte_ms"), "{line:#}");
        let other = lines.iter().find(|line| line["path"] == "/block").expect("its line");
        assert!(seconds(other, "app_first_byte_ms") >= BLOCKED.as_secs_f64(), "{other:#}");
    }
}
