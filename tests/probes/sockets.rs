//! The probe that asks about sockets and threads: what it says agrees with what a server does and with `/proc`, and it needs
//! no privilege.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{Backlog, listen};
use outrigger_tests::harness::{Call, Launch, Metrics, Process, Proxy, program};
use outrigger_tests::sim::{Options, Simulator};

use crate::is_impossible;

fn asking(server: SocketAddr) -> String {
    format!(
        "backends: {{ app: {{ endpoints: ['{server}'] }} }}\nroutes: [{{ backend: app }}]\n\
         drain: {{ delay: 0s }}\nprobes: {{ sockets: true }}\n"
    )
}

/// What a metric says of the endpoint; without a series what is no number, and compares with none.
fn said(metrics: &Metrics, name: &str) -> f64 {
    let labels = [("backend", "app")];
    if metrics.has(name, &labels) { metrics.get(name, &labels) } else { f64::NAN }
}

/// Answers one request after another on a connection, each when it is let.
fn serve(mut stream: TcpStream, let_go: &Receiver<()>) {
    let mut head = [0; 4096];
    while let_go.recv().is_ok() && stream.read(&mut head).is_ok_and(|count| count > 0) {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        stream.write_all(answer).expect("a client");
    }
}

#[tokio::test]
async fn what_a_server_does_not_read_is_seen_until_it_does() {
    if is_impossible("sockets") {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let server = listener.local_addr().expect("an address");
    let (go, let_go) = mpsc::channel();
    thread::spawn(move || serve(listener.accept().expect("a connection").0, &let_go));
    let proxy = Proxy::start(&asking(server)).await;
    let call = tokio::spawn(Call::get("/").send(proxy.address()));
    let metrics =
        proxy.await_metrics(|metrics| said(metrics, "outrigger_app_unread_seconds") >= 2.0).await;
    let bytes = said(&metrics, "outrigger_app_unread_bytes");
    assert!((20.0..4096.0).contains(&bytes), "a request's head: {bytes}");
    assert_eq!(said(&metrics, "outrigger_app_unread_connections"), 1.0);
    assert_eq!(said(&metrics, "outrigger_app_accept_queue"), 0.0);
    go.send(()).expect("the server waits");
    assert_eq!(call.await.expect("no panic").status, 200);
    let read = |metrics: &Metrics| said(metrics, "outrigger_app_unread_bytes") == 0.0;
    let metrics = proxy.await_metrics(read).await;
    assert_eq!(said(&metrics, "outrigger_app_unread_seconds"), 0.0);
    assert_eq!(said(&metrics, "outrigger_app_unread_connections"), 0.0);
}

#[tokio::test]
async fn a_server_that_does_not_accept_has_a_queue_and_turns_away() {
    if is_impossible("sockets") {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listen(&listener, Backlog::new(1).expect("a length")).expect("it listens already");
    let server = listener.local_addr().expect("an address");
    let proxy = Proxy::start(&asking(server)).await;
    let call = tokio::spawn(Call::get("/").send(proxy.address()));
    let waits = |metrics: &Metrics| said(metrics, "outrigger_app_accept_queue") == 1.0;
    let metrics = proxy.await_metrics(waits).await;
    assert_eq!(said(&metrics, "outrigger_app_accept_queue_limit"), 1.0);
    assert!(said(&metrics, "outrigger_app_unread_bytes") > 0.0, "the request came: {metrics:?}");
    let before = metrics.get("outrigger_app_accept_overflows_total", &[]);
    // One more has room; the next has not, and its client goes on trying.
    let connect = || TcpStream::connect_timeout(&server, Duration::from_millis(100));
    let second = connect();
    assert!(second.is_ok() && connect().is_err());
    let overflowed =
        |metrics: &Metrics| metrics.get("outrigger_app_accept_overflows_total", &[]) > before;
    proxy.await_metrics(overflowed).await;
    let (go, let_go) = mpsc::channel();
    go.send(()).expect("there");
    thread::spawn(move || {
        serve(listener.accept().expect("the proxy").0, &let_go);
        drop(listener);
    });
    assert_eq!(call.await.expect("no panic").status, 200);
    let waits = |metrics: &Metrics| said(metrics, "outrigger_app_accept_queue") == 1.0;
    proxy.await_metrics(waits).await;
}

/// A program that runs the proxy with no capability at all.
fn without_capabilities(folder: &tempfile::TempDir) -> std::path::PathBuf {
    let path = folder.path().join("outrigger");
    // Only who has capabilities can, and must, give them up.
    let text = format!(
        "#!/bin/sh\n[ \"$(id -u)\" = 0 ] || exec '{0}' \"$@\"\n\
         exec setpriv --bounding-set=-all --inh-caps=-all '{0}' \"$@\"\n",
        program().display()
    );
    fs::write(&path, text).expect("writable");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("ours");
    path
}

#[tokio::test]
async fn no_privilege_is_needed_but_for_the_processes() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = without_capabilities(&folder);
    let (_, told) = Process::finish(Command::new(&path).arg("doctor")).await;
    let line = told.iter().find(|line| line.starts_with("sockets")).expect("a line of it");
    assert!(line.contains(" off "), "{line}");
    let simulator = Simulator::start(Options::named("app").fast());
    let proxy = Launch::new(&asking(simulator.addr)).binary(&path).start().await;
    for _ in 0..20 {
        assert_eq!(Call::get("/echo").send(proxy.address()).await.status, 200);
    }
    let known = |metrics: &Metrics| said(metrics, "outrigger_upstream_tcp_rtt_seconds") > 0.0;
    let metrics = proxy.await_metrics(known).await;
    let rtt = said(&metrics, "outrigger_upstream_tcp_rtt_seconds");
    let min_rtt = said(&metrics, "outrigger_upstream_tcp_min_rtt_seconds");
    assert!(0.0 < min_rtt && min_rtt <= rtt && rtt < 0.1, "{min_rtt} {rtt}");
    assert_eq!(said(&metrics, "outrigger_upstream_unacked_bytes"), 0.0);
    assert_eq!(said(&metrics, "outrigger_upstream_tcp_retransmits_total"), 0.0);
    assert_eq!(said(&metrics, "outrigger_app_unread_bytes"), 0.0);
    assert!(said(&metrics, "outrigger_app_accept_queue_limit") > 0.0);
    assert!(said(&metrics, "outrigger_upstream_connect_seconds_count") >= 1.0);
    assert!(said(&metrics, "outrigger_upstream_connect_seconds_sum") > 0.0);
    assert_eq!(metrics.get("outrigger_probe_running", &[("probe", "sockets")]), 1.0);
    assert_eq!(metrics.get("outrigger_probe_lost_total", &[]), 0.0);
    // The simulator is a process with capabilities, if there are any.
    if fs::metadata(&path).expect("ours").uid() == 0 {
        let line = proxy.await_log("nothing is told of the application's processes").await;
        assert!(line.contains("SYS_PTRACE"), "{line}");
        assert!(!proxy.metrics().await.has("outrigger_app_cpu_seconds_total", &[]));
    }
}

/// Serves, and keeps the first processor busy from its first request on.
const SPINNING: &str = "
import http.server, os, threading
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        threading.Thread(target=spin, daemon=True).start()
        self.send_response(200)
        self.send_header('content-length', '0')
        self.end_headers()
def spin():
    while True: pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
print('on port', server.server_address[1], flush=True)
server.serve_forever()
";

/// Wants the same processor.
const CONTENDING: &str = "
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
while True: pass
";

fn python(script: &str) -> Process {
    Process::spawn(Command::new("python3").args(["-c", script]))
}

/// Seconds that the threads of a process ran and waited, as `/proc` says now.
fn ran(process: u32) -> [f64; 2] {
    let folder = fs::read_dir(format!("/proc/{process}/task")).expect("a running process");
    let mut sum = [0.0; 2];
    for thread in folder {
        let path = thread.expect("a thread").path().join("schedstat");
        let Ok(text) = fs::read_to_string(path) else { continue };
        for (sum, number) in sum.iter_mut().zip(text.split(' ')) {
            *sum += number.parse::<f64>().expect("a number") / 1e9;
        }
    }
    sum
}

#[tokio::test]
async fn a_process_that_waits_for_a_processor_is_seen_to() {
    if is_impossible("sockets") {
        return;
    }
    let server = python(SPINNING);
    let line = server.await_log("on port").await;
    let port = line.rsplit(' ').next().expect("a port");
    let address = format!("127.0.0.1:{port}").parse().expect("an address");
    let _contender = python(CONTENDING);
    let names = ["outrigger_app_cpu_seconds_total", "outrigger_app_runnable_seconds_total"];
    let values = |metrics: &Metrics| names.map(|name| said(metrics, name));
    let at_first = ran(server.pid());
    let proxy = Proxy::start(&asking(address)).await;
    // It is told of from here on, whatever was before.
    let told = |metrics: &Metrics| values(metrics).iter().all(|value| *value >= 0.0);
    proxy.await_metrics(told).await;
    let before = ran(server.pid());
    assert_eq!(Call::get("/").send(proxy.address()).await.status, 200);
    let metrics = proxy.await_metrics(|metrics| values(metrics)[1] >= 0.5).await;
    let during = ran(server.pid());
    for (said, (during, first)) in
        values(&metrics).into_iter().zip(during.into_iter().zip(at_first))
    {
        assert!(said <= during - first, "more than /proc knows: {said} {during} {first}");
    }
    // And not less: what /proc knew by now is told by the next round.
    let all = |metrics: &Metrics| {
        let told = values(metrics).into_iter().zip(during.into_iter().zip(before));
        told.into_iter().all(|(said, (during, before))| said >= during - before)
    };
    proxy.await_metrics(all).await;
}
