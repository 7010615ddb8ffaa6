//! Requests that do not come or go in one piece: uploads, streams, aborts, deaths, large files, and other addresses.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use outrigger_tests::harness::{Call, Client, Feed, Load, Protocol, Proxy, Raw};
use outrigger_tests::sim::{Options, Simulator};
use serde_json::Value;

use super::clocks::{BOUND, noted, seconds, since};
use super::run::{self, FILES, FLAVOURS, Server};
use super::say;
use crate::guest::connections;
use crate::{assert_nothing_lost, following, is_impossible, timelines};

/// Sends a piece, and waits until the application has read so many bytes in all.
async fn feed(feed: &Feed, server: &Server, piece: &'static [u8], all: usize) {
    assert!(feed.send(piece).await, "the body is read");
    let answer = Call::get(&format!("/until?bytes={all}")).send(server.address).await;
    assert_eq!(answer.text(), "ok");
}

/// The line of a path, and what the server says of first byte and answer of the same request.
async fn compared(proxy: &Proxy, server: &Server, path: &str) -> Value {
    let line = line_of(proxy, path).await;
    let seen = noted(server).await.seen;
    let seen = seen.iter().find(|it| it.path == path).expect("the server saw it");
    for (field, by_server) in [
        ("app_first_byte_ms", since(seen.read, seen.first)),
        ("app_answer_ms", since(seen.first, seen.last)),
    ] {
        let error = (seconds(&line, field) - by_server).abs();
        assert!(error < 5.0 * BOUND, "{field}: the server says {by_server} s: {line:#}");
    }
    line
}

async fn line_of(proxy: &Proxy, path: &str) -> Value {
    let lines = proxy.await_access(1).await;
    lines.into_iter().find(|line| line["path"] == path).expect("a line of it")
}

/// So many timelines are complete, and nothing else happened.
async fn assert_complete(proxy: &Proxy, count: f64) {
    let metrics = proxy.metrics().await;
    assert_eq!(timelines(&metrics, "complete"), count, "{}", metrics.text);
    assert_eq!(timelines(&metrics, ""), count, "{}", metrics.text);
    assert_nothing_lost(&metrics);
}

#[tokio::test]
async fn an_upload_that_comes_in_pieces_is_one_request() {
    if is_impossible("requests") {
        return;
    }
    for flavour in FLAVOURS {
        let Some(server) = run::uvicorn_here(flavour).await else { return };
        let proxy = Proxy::start(&following(server.address)).await;
        let (call, body) = Call::post("/upload").fed();
        let fed = async {
            feed(&body, &server, b"one", 3).await;
            let begun = Instant::now();
            feed(&body, &server, b"two", 6).await;
            feed(&body, &server, b"three", 11).await;
            let came = begun.elapsed();
            drop(body);
            came
        };
        let (answer, came) = tokio::join!(call.send(proxy.address()), fed);
        assert_eq!(answer.text(), "11");
        let line = compared(&proxy, &server, "/upload").await;
        // It was not answered before it had come.
        assert!(seconds(&line, "app_first_byte_ms") >= came.as_secs_f64(), "{came:?}: {line:#}");
        assert_complete(&proxy, 1.0).await;
    }
}

#[tokio::test]
async fn an_answer_that_begins_before_the_upload_has_ended_is_one_request() {
    if is_impossible("requests") {
        return;
    }
    for flavour in FLAVOURS {
        let Some(server) = run::uvicorn_here(flavour).await else { return };
        let proxy = Proxy::start(&following(server.address)).await;
        let (call, body) = Call::post("/early").fed();
        let mut answer = call.open(proxy.address()).await;
        assert_eq!(answer.part().await.as_deref(), Some(&b"early\n"[..]));
        feed(&body, &server, b"one", 3).await;
        // By now the server's first write has returned.
        let begun = Instant::now();
        feed(&body, &server, b"two", 6).await;
        let came = begun.elapsed();
        drop(body);
        assert_eq!(answer.rest().await.text(), "6");
        let line = compared(&proxy, &server, "/early").await;
        // The last of it was written after the last of the upload had come.
        assert!(seconds(&line, "app_answer_ms") >= came.as_secs_f64(), "{came:?}: {line:#}");
        assert_complete(&proxy, 1.0).await;
    }
}

#[tokio::test]
async fn uploads_of_a_megabyte_are_seen_whole() {
    if is_impossible("requests") {
        return;
    }
    const SIZE: usize = 1 << 20;
    for flavour in FLAVOURS {
        let Some(server) = run::uvicorn_here(flavour).await else { return };
        let proxy = Proxy::start(&following(server.address)).await;
        let mut client = Client::connect(proxy.address(), Protocol::Http1).await;
        for _ in 0..20 {
            let call = Call::post("/upload").body(vec![b'x'; SIZE]);
            assert_eq!(client.send(call).await.expect("an answer").text(), SIZE.to_string());
        }
        for line in proxy.await_access(20).await {
            assert!(seconds(&line, "app_first_byte_ms") > 0.0, "{line:#}");
        }
        assert_complete(&proxy, 20.0).await;
        let connections = connections(&proxy);
        let read: Vec<_> = connections.iter().map(|it| it.bytes_in).collect();
        assert!(read.iter().all(|read| *read as usize > SIZE), "{read:?}");
        assert_eq!(read.len(), 1, "one connection was kept");
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_in_the_middle_costs_no_line() {
    if is_impossible("requests") {
        return;
    }
    for flavour in FLAVOURS {
        let Some(server) = run::uvicorn_here(flavour).await else { return };
        let proxy = Proxy::start(&following(server.address)).await;
        let mut answer = Call::get("/hang").open(proxy.address()).await;
        assert!(answer.part().await.is_some());
        drop(answer);
        server.process.await_log("DISCONNECTED").await;
        let line = line_of(&proxy, "/hang").await;
        assert_eq!(line["outcome"], "client_gone", "{line:#}");
        assert_eq!(timelines(&proxy.metrics().await, "broken_off"), 1.0);
    }
}

/// Serves one request with this answer, and keeps its end of the connection until it is told to close it.
fn lingering(answer: &'static str) -> (SocketAddr, mpsc::Sender<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (close, told) = mpsc::channel();
    thread::spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else { return };
        let mut head = [0; 4096];
        let count = stream.read(&mut head).expect("a request");
        assert!(head[..count].ends_with(b"\r\n\r\n"), "the whole head");
        stream.write_all(answer.as_bytes()).expect("a client");
        // By disconnection at the latest.
        let _ = told.recv();
    });
    (address, close)
}

/// All steps of the only request are known, although the application's socket is still there.
async fn assert_known(proxy: &Proxy, result: &str) {
    let line = line_of(proxy, "/").await;
    for step in ["app_socket_wait_ms", "app_first_byte_ms", "app_answer_ms"] {
        assert!(line[step].is_number(), "{step}: {line:#}");
    }
    assert_eq!(timelines(&proxy.metrics().await, result), 1.0, "{line:#}");
}

#[tokio::test]
async fn a_connection_that_the_proxy_closes_first_is_looked_at_once_more() {
    if is_impossible("requests") {
        return;
    }
    let (server, close) =
        lingering("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok");
    let proxy = Proxy::start(&following(server)).await;
    assert_eq!(Call::get("/").send(proxy.address()).await.text(), "ok");
    assert_known(&proxy, "complete").await;
    drop(close);

    let (server, close) =
        lingering("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n");
    let proxy = Proxy::start(&following(server)).await;
    let mut answer = Call::get("/").open(proxy.address()).await;
    assert!(answer.part().await.is_some());
    drop(answer);
    assert_known(&proxy, "broken_off").await;
    drop(close);
}

#[tokio::test]
async fn an_application_that_dies_in_the_middle_costs_no_line() {
    if is_impossible("requests") {
        return;
    }
    for flavour in FLAVOURS {
        for (target, has_answered) in [("/die?parts=1", true), ("/die", false)] {
            let Some(server) = run::uvicorn_here(flavour).await else { return };
            let proxy = Proxy::start(&following(server.address)).await;
            let answer = Call::get(target).send(proxy.address()).await;
            assert_eq!(answer.cut.is_some(), has_answered, "{answer:?}");
            let line = line_of(&proxy, "/die").await;
            assert_ne!(line["outcome"], "ok", "{line:#}");
            assert!(line["app_socket_wait_ms"].is_number(), "{line:#}");
            assert_eq!(line["app_first_byte_ms"].is_number(), has_answered, "{line:#}");
            assert_eq!(timelines(&proxy.metrics().await, "broken_off"), 1.0);
        }
    }
}

/// What nginx wrote is the head and the file, however it wrote them.
#[tokio::test]
async fn files_that_nginx_sends_from_the_disk_are_counted_to_the_byte() {
    if is_impossible("requests") {
        return;
    }
    let Some(server) = run::nginx().await else { return };
    for (name, size) in FILES {
        let proxy = Proxy::start(&following(server.address)).await;
        let mut direct = Raw::connect(server.address).await;
        direct.get(&format!("/{name}")).await;
        let head = direct.head().await.expect("a head").text.len();
        for _ in 0..5 {
            let answer = Call::get(&format!("/{name}")).send(proxy.address()).await;
            assert_eq!((answer.status, answer.body.len(), answer.cut), (200, size, None));
        }
        let lines = proxy.await_access(5).await;
        assert_complete(&proxy, 5.0).await;
        let connections = connections(&proxy);
        let written: Vec<_> = connections.iter().map(|it| it.bytes_out as usize).collect();
        assert_eq!(written, [head + size], "{name}");
        let answer = lines.iter().map(|line| seconds(line, "app_answer_ms")).fold(1.0, f64::min);
        say(&format!("nginx, {name}: first write to last {:.3} ms at least", answer * 1e3));
        assert!(answer > 0.0 || name == "small", "10 MB are more than one write: {lines:?}");
    }
}

/// A stream that stays open while thousands of other requests come and go, and a connection that is not used meanwhile.
#[tokio::test]
async fn connections_that_are_open_for_long_are_not_forgotten() {
    if is_impossible("requests") {
        return;
    }
    let Some(server) = run::uvicorn_here(run::Flavour::Uvloop).await else { return };
    let simulator = Simulator::start(Options::named("other").fast());
    let config = format!(
        "backends: {{ app: {{ endpoints: ['{}'] }}, other: {{ endpoints: ['{}'] }} }}\n\
         routes: [{{ match: {{ path: /echo }}, backend: other }}, {{ backend: app }}]\n\
         access_log: {{ format: json }}\nprobes: {{ requests: true }}\n",
        server.address, simulator.addr
    );
    let proxy = Proxy::start(&config).await;
    let mut kept = Client::connect(proxy.address(), Protocol::Http1).await;
    kept.send(Call::get("/work/before")).await.expect("an answer");
    let (call, body) = Call::post("/early").fed();
    let mut stream = call.open(proxy.address()).await;
    assert!(stream.part().await.is_some());
    let report = Load::of(4000).at_once(4).run(proxy.address(), |_| Call::get("/echo")).await;
    assert_eq!(report.ok(), 4000);
    kept.send(Call::get("/work/after")).await.expect("an answer");
    feed(&body, &server, b"one", 3).await;
    drop(body);
    assert_eq!(stream.rest().await.text(), "3");
    proxy.await_access(4003).await;
    assert_complete(&proxy, 4003.0).await;
}

/// A server at `listening`, called at `called`.
async fn reached(listening: IpAddr, called: &str) {
    let server = run::http_server(listening).await;
    let address: SocketAddr =
        called.replace("PORT", &server.address.port().to_string()).parse().expect("an address");
    let proxy = Proxy::start(&following(address)).await;
    let mut client = Client::connect(proxy.address(), Protocol::Http1).await;
    for number in 0..50 {
        let answer = client.send(Call::get(&format!("/work/{number}"))).await.expect("an answer");
        assert_eq!(answer.status, 200);
    }
    let lines = proxy.await_access(50).await;
    assert!(lines.iter().all(|line| line["app_pid"] == server.process.pid()), "{:#}", lines[0]);
    assert_complete(&proxy, 50.0).await;
}

#[tokio::test]
async fn servers_are_seen_at_ipv6_and_at_both_kinds_of_addresses() {
    if is_impossible("requests") {
        return;
    }
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        return say("NOT TESTED: no IPv6 here");
    }
    reached(Ipv6Addr::LOCALHOST.into(), "[::1]:PORT").await;
    reached(Ipv6Addr::UNSPECIFIED.into(), "127.0.0.1:PORT").await;
    reached(Ipv6Addr::UNSPECIFIED.into(), "[::1]:PORT").await;
    reached(Ipv4Addr::LOCALHOST.into(), "[::ffff:127.0.0.1]:PORT").await;
}

#[tokio::test]
async fn a_server_that_is_reached_at_no_address_in_particular_is_seen() {
    if is_impossible("requests") {
        return;
    }
    reached(Ipv4Addr::LOCALHOST.into(), "0.0.0.0:PORT").await;
}
