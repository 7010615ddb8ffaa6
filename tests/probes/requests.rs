//! The probe that follows requests, in the real kernel: what it says agrees with the clocks of server and client, it sees
//! every request, and it leaves nothing behind.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use outrigger_tests::harness::{Call, Load, Metrics, Process, Proxy};
use outrigger_tests::sim::{Options, Simulator};
use serde_json::Value;

use crate::{following, is_impossible};

/// How long a server that is blocked does not read.
pub(crate) const BLOCKED: Duration = Duration::from_millis(25);

/// What a server saw of a request by its own clock.
pub(crate) struct Seen {
    /// From knowing that something has come to having read it.
    pub(crate) waited: Duration,
    /// From there to the last write.
    pub(crate) worked: Duration,
}

/// A server whose loop is blocked before each read. It looks at what has come without taking it.
pub(crate) fn blocked_server() -> (SocketAddr, Receiver<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else { return };
        let mut head = [0; 4096];
        while stream.peek(&mut head).is_ok_and(|count| count > 0) {
            let seen = serve_blocked(&mut stream, &mut head);
            if tell.send(seen).is_err() {
                return;
            }
        }
    });
    (address, told)
}

fn serve_blocked(stream: &mut TcpStream, head: &mut [u8]) -> Seen {
    let came = Instant::now();
    thread::sleep(BLOCKED);
    let count = stream.read(head).expect("a request");
    let read = Instant::now();
    assert!(head[..count].ends_with(b"\r\n\r\n"), "the whole head");
    thread::sleep(BLOCKED / 5);
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").expect("a client");
    Seen { waited: read - came, worked: read.elapsed() }
}

/// A field of a line, in seconds; without it what is no number, and compares with none.
fn seconds(line: &Value, field: &str) -> f64 {
    line[field].as_f64().unwrap_or(f64::NAN) / 1000.0
}

/// So many requests were seen so far, in all their steps.
fn complete(metrics: &Metrics) -> f64 {
    metrics.get("outrigger_app_timelines_total", &[("result", "complete")])
}

#[tokio::test]
async fn a_blocked_loop_shows_as_time_in_the_socket() {
    if is_impossible("requests") {
        return;
    }
    let (server, seen) = blocked_server();
    let proxy = Proxy::start(&following(server)).await;
    for _ in 0..20 {
        assert_eq!(Call::get("/").send(proxy.address()).await.status, 200);
    }
    let mut errors = Vec::new();
    for line in proxy.await_access(20).await {
        let seen = seen.recv().expect("the server saw it too");
        let (waited, worked) =
            (seconds(&line, "app_socket_wait_ms"), seconds(&line, "app_first_byte_ms"));
        let whole = seconds(&line, "first_byte_ms");
        assert!(waited >= BLOCKED.as_secs_f64(), "{line:#}");
        // The proxy's own clock is around the kernel's.
        assert!(waited + worked <= whole, "{line:#}");
        assert_eq!(line["app_pid"], std::process::id(), "{line:#}");
        errors.push((waited - seen.waited.as_secs_f64()).abs());
        errors.push((worked - seen.worked.as_secs_f64()).abs());
    }
    errors.sort_by(f64::total_cmp);
    let median = errors[errors.len() / 2];
    let _ = writeln!(std::io::stderr(), "kernel against server: median {:.0} us", median * 1e6);
    assert!(median < 0.001, "the kernel and the server disagree: {errors:?}");
}

#[tokio::test]
async fn every_request_is_seen_under_load() {
    if is_impossible("requests") {
        return;
    }
    let simulator = Simulator::start(Options::named("app").fast());
    let proxy = Proxy::start(&following(simulator.addr)).await;
    let report = Load::of(5000).at_once(8).run(proxy.address(), |_| Call::get("/echo")).await;
    assert_eq!(report.ok(), 5000);
    let all = |metrics: &Metrics| metrics.get("outrigger_app_timelines_total", &[]) >= 5000.0;
    let metrics = proxy.await_metrics(all).await;
    assert!(complete(&metrics) >= 4995.0, "{}", metrics.text);
    assert_eq!(metrics.get("outrigger_probe_lost_total", &[]), 0.0);
}

#[tokio::test]
async fn a_server_that_closes_every_connection_is_seen_too() {
    if is_impossible("requests") {
        return;
    }
    let mut command = Command::new("python3");
    command.args(["-u", "-m", "http.server", "--bind", "127.0.0.1", "0"]);
    let server = Process::spawn(command.current_dir(std::env::temp_dir()));
    let line = server.await_log("Serving HTTP on").await;
    let port = line.split(" port ").nth(1).and_then(|rest| rest.split(' ').next());
    let server_address =
        format!("127.0.0.1:{}", port.expect("a port")).parse().expect("an address");
    let proxy = Proxy::start(&following(server_address)).await;
    for _ in 0..50 {
        assert_eq!(Call::get("/nothing-here").send(proxy.address()).await.status, 404);
    }
    for line in proxy.await_access(50).await {
        let steps = ["app_socket_wait_ms", "app_first_byte_ms", "app_answer_ms"];
        let took: f64 = steps.iter().map(|step| seconds(&line, step)).sum();
        assert!(took <= seconds(&line, "duration_ms"), "{line:#}");
        assert_eq!(line["app_pid"], server.pid(), "{line:#}");
    }
}

/// Answers one request, and says how many bytes it was.
fn answer_once() -> (SocketAddr, Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let read = stream.read(&mut [0; 4096]).expect("a request");
        let answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";
        stream.write_all(answer).expect("the proxy");
        tell.send(read)
    });
    (address, told)
}

#[tokio::test]
async fn what_the_programs_say_is_in_the_log_at_its_debug_level() {
    if is_impossible("requests") {
        return;
    }
    let (server, read) = answer_once();
    let proxy = Proxy::start(&format!("{}log: {{ level: debug }}\n", following(server))).await;
    assert_eq!(Call::get("/").send(proxy.address()).await.status, 200);
    let read = read.recv().expect("the server saw it");
    let gone = format!("in the kernel: connection 1 is gone, of which {read} bytes were read");
    let said = proxy.await_log(&gone).await;
    assert!(said.contains("DEBUG") && said.contains("probe=\"requests\""), "{said}");
}

#[tokio::test]
async fn a_stream_is_seen_from_its_first_write_to_its_last() {
    if is_impossible("requests") {
        return;
    }
    let simulator = Simulator::start(Options::named("app").fast());
    let proxy = Proxy::start(&following(simulator.addr)).await;
    let call = || Call::chat("a song").model("m").max_tokens(20).streaming();
    assert_eq!(call().send(proxy.address()).await.status, 200);
    let line = proxy.await_access(1).await.remove(0);
    let answer = seconds(&line, "app_answer_ms");
    assert!(answer > 0.0 && answer <= seconds(&line, "duration_ms"), "{line:#}");
    let writes = line["app_writes"].as_f64().expect("a number");
    let gaps = |metrics: &Metrics, part| {
        metrics.get(&format!("outrigger_app_write_gap_seconds_{part}"), &[("backend", "app")])
    };
    let metrics = proxy.await_metrics(|metrics| gaps(metrics, "count") > 0.0).await;
    assert_eq!(gaps(&metrics, "count"), writes - 1.0, "{line:#}");
    // From the first write to the last is all that is between two.
    assert!((gaps(&metrics, "sum") - answer).abs() < 1e-6, "{line:#} {}", metrics.text);
}

#[tokio::test]
async fn the_client_is_told_where_the_time_went_if_it_may_know() {
    if is_impossible("requests") {
        return;
    }
    let (server, _seen) = blocked_server();
    let config = following(server).replace("backend: app }", "backend: app, expose: [timing] }");
    let proxy = Proxy::start(&config).await;
    let answer = Call::get("/").send(proxy.address()).await;
    let timing = answer.header("server-timing").expect("it is exposed").to_owned();
    let part = |name: &str| {
        let entry = timing.split(", ").find_map(|it| it.strip_prefix(name)?.strip_prefix(";dur="));
        entry.and_then(|it| it.parse::<f64>().ok()).unwrap_or(f64::NAN)
    };
    assert!(part("socket") >= 1000.0 * BLOCKED.as_secs_f64(), "{timing}");
    assert!(part("wire") > 0.0 && part("wire") < 25.0, "{timing}");
    assert!(part("wire") + part("socket") <= part("upstream"), "{timing}");
}

/// A server of one thread, which works on each request for so long while the others lie in their sockets.
fn slow_loop(work: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let turn = Arc::new(Turn::default());
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let turn = Arc::clone(&turn);
            thread::spawn(move || answer_in_turn(stream, &turn, work));
        }
    });
    address
}

/// Whose turn it is, in the order in which they came.
#[derive(Default)]
struct Turn {
    came: AtomicU64,
    served: Mutex<u64>,
    changed: Condvar,
}

impl Turn {
    fn take(&self) -> MutexGuard<'_, u64> {
        let own = self.came.fetch_add(1, SeqCst);
        let served = self.served.lock().expect("nobody panics with it");
        self.changed.wait_while(served, |served| *served != own).expect("nobody panics with it")
    }

    fn give(&self, mut served: MutexGuard<'_, u64>) {
        *served += 1;
        self.changed.notify_all();
    }
}

fn answer_in_turn(mut stream: TcpStream, turn: &Turn, work: Duration) {
    let mut head = [0; 4096];
    // To wait for the turn is to leave what has come in the socket.
    while stream.peek(&mut head).is_ok_and(|count| count > 0) {
        let served = turn.take();
        let is_read = stream.read(&mut head).is_ok_and(|count| count > 0);
        thread::sleep(work);
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        let is_answered = is_read && stream.write_all(answer).is_ok();
        turn.give(served);
        if !is_answered {
            return;
        }
    }
}

#[tokio::test]
async fn with_feedback_requests_wait_in_the_queue_and_not_in_the_socket() {
    if is_impossible("requests") {
        return;
    }
    let work = Duration::from_millis(4);
    let mut waits = Vec::new();
    for feedback in ["false", "true"] {
        let config = following(slow_loop(work))
            .replace("requests: true", &format!("requests: true, feedback: {feedback}"))
            .replace("'] }", "'], max_connections: 1000, queue: { size: 100, wait: 20s } }");
        let proxy = Proxy::start(&config).await;
        let report = Load::of(600).at_once(24).run(proxy.address(), |_| Call::get("/")).await;
        assert_eq!(report.ok(), 600, "nothing is lost by it");
        let mut lines: Vec<f64> = proxy
            .await_access(600)
            .await
            .iter()
            .map(|line| seconds(line, "app_socket_wait_ms"))
            .collect();
        // The last of them, when it has settled.
        let mut last = lines.split_off(400);
        last.sort_by(f64::total_cmp);
        waits.push(last[last.len() / 2]);
    }
    let _ = writeln!(std::io::stderr(), "in the socket, without and with feedback: {waits:?} s");
    assert!(waits[1] < 0.75 * waits[0], "{waits:?}");
}
