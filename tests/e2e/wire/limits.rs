//! Clients that send too much, too slowly, or do not read: refused or cut within the configured bounds.

use std::time::{Duration, Instant};

use outrigger_tests::harness::{Call, Client, Closed, Protocol, Proxy, Raw};
use outrigger_tests::sim::{Options, Simulator};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::interval;

use super::{pair_with, proxy_to};

/// More than the buffers of two sockets take in.
const HUGE: &str = "/bytes/100000000";

/// A request head of about this many bytes.
fn head_of(bytes: usize) -> String {
    format!("GET /echo HTTP/1.1\r\nhost: h\r\nx-long: {}\r\n\r\n", "a".repeat(bytes))
}

/// A route that has to look into the body, so that the body is read before there is an attempt.
async fn scanning_pair(limits: &str) -> (Simulator, Proxy) {
    let simulator = Simulator::start(Options::named("sim").fast());
    let proxy = Proxy::start(&format!(
        "limits: {limits}\nbackends: {{ main: {{ endpoints: ['{}'] }} }}\n\
         routes: [{{ match: {{ model: m }}, backend: main }}, {{ backend: main }}]",
        simulator.endpoint()
    ))
    .await;
    (simulator, proxy)
}

#[tokio::test]
async fn a_head_above_the_limit_is_refused_with_431() {
    let (simulator, proxy) = pair_with("limits: { header_bytes: 2KiB }").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(head_of(2048)).await;
    let response = raw.response().await;
    assert_eq!((response.status(), response.header("connection")), (431, Some("close")));
    assert_eq!(raw.closed().await, Closed::Fin(Vec::new()));
    assert_eq!(simulator.state().requests(), 0);
}

#[tokio::test]
async fn a_head_below_the_limit_passes() {
    let (_simulator, proxy) = pair_with("limits: { header_bytes: 2KiB }").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(head_of(1900)).await;
    assert_eq!(raw.response().await.status(), 200);
}

#[tokio::test]
async fn a_head_without_end_is_refused_with_431() {
    let (_simulator, proxy) = pair_with("limits: { header_bytes: 2KiB }").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(&head_of(4000)[..3000]).await;
    assert_eq!(raw.response().await.status(), 431);
}

#[tokio::test]
async fn a_431_arrives_although_the_client_sends_on() {
    let (_simulator, proxy) = pair_with("limits: { header_bytes: 2KiB }").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(head_of(1_000_000)).await;
    assert_eq!(raw.response().await.status(), 431);
    assert_eq!(raw.closed().await, Closed::Fin(Vec::new()));
}

#[tokio::test]
async fn more_fields_than_allowed_are_refused_with_431() {
    let (_simulator, proxy) = pair_with("limits: { headers: 4 }").await;
    for (extra, status) in [(3, 200), (4, 431)] {
        let mut raw = Raw::connect(proxy.address()).await;
        let lines = "x-a: 1\r\n".repeat(extra);
        raw.send(format!("GET /echo HTTP/1.1\r\nhost: h\r\n{lines}\r\n")).await;
        assert_eq!(raw.response().await.status(), status, "{extra} fields besides host");
    }
}

#[tokio::test]
async fn an_h2_head_above_the_limit_is_refused() {
    let (simulator, proxy) = pair_with("limits: { header_bytes: 2KiB }").await;
    let call = Call::get("/echo").header("x-long", &"a".repeat(4096)).h2();
    // h2 clients learn the limit and may refuse to send what is above it.
    let refused = match call.try_send(proxy.address()).await {
        Ok(answer) => answer.status == 431,
        Err(_) => true,
    };
    assert!(refused);
    assert_eq!(simulator.state().requests(), 0);
}

#[tokio::test]
async fn a_declared_body_above_the_limit_is_refused_with_413() {
    let (simulator, proxy) = pair_with("limits: { body_bytes: 1KiB }").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("POST /echo HTTP/1.1\r\nhost: h\r\ncontent-length: 1025\r\n\r\n").await;
    let response = raw.response().await;
    assert_eq!((response.status(), response.header("connection")), (413, Some("close")));
    assert_eq!(simulator.state().requests(), 0);
}

#[tokio::test]
async fn a_body_at_the_limit_passes() {
    let (_simulator, proxy) = pair_with("limits: { body_bytes: 1KiB }").await;
    let answer = Call::post("/echo").body(vec![b'x'; 1024]).send(proxy.address()).await;
    assert_eq!((answer.status, answer.echo().bytes), (200, 1024));
}

#[tokio::test]
async fn a_413_arrives_although_the_client_sends_on() {
    let (_simulator, proxy) = pair_with("limits: { body_bytes: 1KiB }").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.post("/echo", vec![b'x'; 1_000_000]).await;
    assert_eq!(raw.response().await.status(), 413);
    raw.close_write().await;
    assert_eq!(raw.closed().await, Closed::Fin(Vec::new()));
}

#[tokio::test]
async fn a_chunked_body_above_the_limit_is_refused_with_413() {
    let (simulator, proxy) = pair_with("limits: { body_bytes: 1KiB }").await;
    let (call, feed) = Call::post("/echo").fed();
    let answer = tokio::spawn(call.send(proxy.address()));
    for _ in 0..3 {
        // The last piece is one too many.
        feed.send(vec![b'x'; 512]).await;
    }
    assert_eq!(answer.await.unwrap().status, 413);
    assert_eq!(simulator.reached(|state| state.in_flight == 0).await.completed, 0);
}

#[tokio::test]
async fn an_h2_body_above_the_limit_is_refused_with_413() {
    let (_simulator, proxy) = pair_with("limits: { body_bytes: 1KiB }").await;
    let answer = Call::post("/echo").body(vec![b'x'; 1025]).h2().send(proxy.address()).await;
    assert_eq!(answer.status, 413);
}

#[tokio::test]
async fn a_chunked_body_above_the_limit_is_refused_while_it_is_searched() {
    let (simulator, proxy) = scanning_pair("{ body_bytes: 1KiB }").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("POST /echo HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n").await;
    raw.send(format!("401\r\n{{\"x\":\"{}", "a".repeat(0x401 - 6))).await;
    assert_eq!(raw.response().await.status(), 413);
    assert_eq!(simulator.state().requests(), 0);
}

#[tokio::test]
async fn a_head_that_does_not_go_on_is_answered_with_408() {
    let (_simulator, proxy) = pair_with("limits: { header_timeout: 150ms }").await;
    let mut raw = Raw::connect(proxy.address()).await;
    let began = Instant::now();
    raw.send("GET /echo HTTP/1.1\r\nhost: h\r\n").await;
    let response = raw.response().await;
    assert_eq!((response.status(), response.header("connection")), (408, Some("close")));
    assert!(began.elapsed() >= Duration::from_millis(150));
    assert_eq!(raw.closed().await, Closed::Fin(Vec::new()));
}

#[tokio::test]
async fn a_head_that_drips_is_cut_all_the_same() {
    let (_simulator, proxy) = pair_with("limits: { header_timeout: 200ms }").await;
    let mut raw = Raw::connect(proxy.address()).await;
    let mut pace = interval(Duration::from_millis(20));
    // Twice as long as it may take.
    for byte in "GET /echo HTTP/1.1\r\n".bytes() {
        pace.tick().await;
        if raw.try_send([byte]).await.is_err() {
            break;
        }
    }
    assert_eq!(raw.head().await.map(|head| head.status), Ok(408));
}

#[tokio::test]
async fn half_of_an_h2_preface_is_cut() {
    let (_simulator, proxy) = pair_with("limits: { header_timeout: 100ms }").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("PRI * HTT").await;
    assert_eq!(raw.head().await.map(|head| head.status), Ok(408));
}

#[tokio::test]
async fn a_body_that_does_not_go_on_is_answered_with_408() {
    let (simulator, proxy) = pair_with("limits: { body_timeout: 150ms }").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("POST /echo HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\nhalf ").await;
    let response = raw.response().await;
    assert_eq!((response.status(), response.header("connection")), (408, Some("close")));
    simulator.aborted().await;
}

#[tokio::test]
async fn a_body_that_never_begins_is_answered_with_408() {
    let (_simulator, proxy) = pair_with("limits: { body_timeout: 150ms }").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("POST /echo HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\n").await;
    assert_eq!(raw.response().await.status(), 408);
}

#[tokio::test]
async fn a_searched_body_that_does_not_go_on_is_answered_with_408() {
    let (simulator, proxy) = scanning_pair("{ body_timeout: 150ms }").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("POST /echo HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\n{\"x\":").await;
    assert_eq!(raw.response().await.status(), 408);
    assert_eq!(simulator.state().requests(), 0);
}

#[tokio::test]
async fn an_h2_body_that_does_not_go_on_is_answered_with_408() {
    let (simulator, proxy) = pair_with("limits: { body_timeout: 150ms }").await;
    let (call, feed) = Call::post("/echo").h2().fed();
    let answer = tokio::spawn(call.send(proxy.address()));
    assert!(feed.send("half").await);
    assert_eq!(answer.await.unwrap().status, 408);
    simulator.aborted().await;
}

#[tokio::test]
async fn a_slow_body_that_keeps_coming_is_not_cut() {
    let (_simulator, proxy) = pair_with("limits: { body_timeout: 1500ms }").await;
    let (call, feed) = Call::post("/echo").fed();
    let answer = tokio::spawn(call.send(proxy.address()));
    let mut pace = interval(Duration::from_millis(220));
    // Twice as long as a pause may be.
    for _ in 0..14 {
        pace.tick().await;
        assert!(feed.send("part").await);
    }
    drop(feed);
    assert_eq!(answer.await.unwrap().echo().bytes, 56);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut() {
    let (simulator, proxy) = pair_with("limits: { write_timeout: 150ms }").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.get(HUGE).await;
    simulator.aborted().await;
    assert_eq!(proxy.await_access(1).await[0]["outcome"], "client_timeout");
    // What was on its way arrives; it is not the whole body.
    assert!(raw.try_response("GET").await.is_err());
}

#[tokio::test]
async fn an_h2_client_that_does_not_read_is_cut() {
    let (simulator, proxy) = pair_with("limits: { write_timeout: 150ms }").await;
    let streaming = Call::get(HUGE).h2().open(proxy.address()).await;
    simulator.aborted().await;
    assert_eq!(proxy.await_access(1).await[0]["outcome"], "client_timeout");
    assert!(streaming.rest().await.cut.is_some());
}

#[tokio::test]
async fn a_client_that_reads_slowly_is_not_cut() {
    let (simulator, proxy) = pair_with("limits: { write_timeout: 1500ms }").await;
    let socket = TcpSocket::new_v4().unwrap();
    // Small, so that what the client reads is soon what the proxy can write.
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    let mut stream = socket.connect(proxy.address()).await.unwrap();
    stream.write_all(format!("GET {HUGE} HTTP/1.1\r\nhost: h\r\n\r\n").as_bytes()).await.unwrap();
    let (mut pace, mut buffer) = (interval(Duration::from_millis(50)), vec![0; 256 * 1024]);
    // Three times as long as it may read nothing.
    for _ in 0..90 {
        pace.tick().await;
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(count > 0, "the proxy has cut a client that reads");
    }
    assert_eq!(simulator.state().aborted, 0);
}

#[tokio::test]
async fn an_h2_client_that_reads_slowly_is_not_cut() {
    let (simulator, proxy) = pair_with("limits: { write_timeout: 1500ms }").await;
    let mut streaming = Call::get(HUGE).h2().open(proxy.address()).await;
    let mut pace = interval(Duration::from_millis(24));
    // It gives credit back about every 400 ms, and goes on for twice as long as it may read nothing.
    for _ in 0..150 {
        pace.tick().await;
        for _ in 0..4 {
            assert!(streaming.part().await.is_some(), "cut: {:?}", streaming.cut());
        }
    }
    assert_eq!(simulator.state().aborted, 0);
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed_after_idle_timeout() {
    let (_simulator, proxy) = pair_with("limits: { idle_timeout: 150ms }").await;
    let began = Instant::now();
    let mut raw = Raw::connect(proxy.address()).await;
    assert_eq!(raw.closed().await, Closed::Fin(Vec::new()));
    assert!(began.elapsed() >= Duration::from_millis(150));
}

#[tokio::test]
async fn a_kept_connection_is_closed_after_idle_timeout() {
    let (_simulator, proxy) = pair_with("limits: { idle_timeout: 150ms }").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.get("/echo").await;
    assert_eq!(raw.response().await.status(), 200);
    let rested = Instant::now();
    assert_eq!(raw.closed().await, Closed::Fin(Vec::new()));
    assert!(rested.elapsed() >= Duration::from_millis(140), "after {:?}", rested.elapsed());
}

#[tokio::test]
async fn a_waiting_request_is_not_idle() {
    let (_simulator, proxy) =
        pair_with("limits: { idle_timeout: 600ms, header_timeout: 600ms }").await;
    for protocol in [Protocol::Http1, Protocol::H2] {
        let call = Call::get("/echo").fault("stall_first_byte=1500ms").over(protocol);
        assert_eq!(call.send(proxy.address()).await.status, 200, "{protocol:?}");
    }
}

#[tokio::test]
async fn an_h2_connection_is_closed_after_idle_timeout() {
    let (_simulator, proxy) = pair_with("limits: { idle_timeout: 150ms }").await;
    let mut client = Client::connect(proxy.address(), Protocol::H2).await;
    assert_eq!(client.send(Call::get("/echo")).await.unwrap().status, 200);
    proxy.await_metrics(|metrics| metrics.get("outrigger_connections_open", &[]) == 0.0).await;
    assert!(client.send(Call::get("/echo")).await.is_err());
}

/// The preface of HTTP/2 and an empty SETTINGS frame.
const H2_BEGINNING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[tokio::test]
async fn an_h2_client_that_never_says_anything_is_closed_after_idle_timeout() {
    let (_simulator, proxy) = pair_with("limits: { idle_timeout: 150ms }").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(H2_BEGINNING).await;
    // It answers neither SETTINGS nor PING; waiting for that would be waiting for ever.
    raw.closed().await;
}

#[tokio::test]
async fn an_h2_head_that_does_not_go_on_is_cut() {
    let limits = "limits: { header_timeout: 150ms, idle_timeout: 300ms }";
    let (_simulator, proxy) = pair_with(limits).await;
    let mut raw = Raw::connect(proxy.address()).await;
    // HEADERS of stream 1 with `:method: GET`, and no END_HEADERS.
    raw.send([H2_BEGINNING, b"\0\0\x01\x01\x01\0\0\0\x01\x82"].concat()).await;
    raw.closed().await;
}

#[tokio::test]
async fn connections_above_the_limit_are_closed_at_once() {
    let (_simulator, proxy) = pair_with("limits: { connections: 2 }").await;
    let mut kept = Vec::new();
    for _ in 0..2 {
        let mut raw = Raw::connect(proxy.address()).await;
        raw.get("/echo").await;
        assert_eq!(raw.response().await.status(), 200);
        kept.push(raw);
    }
    let mut third = Raw::connect(proxy.address()).await;
    assert!(matches!(third.closed().await, Closed::Fin(rest) if rest.is_empty()));
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.get("outrigger_connections_refused_total", &[]), 1.0);
}

#[tokio::test]
async fn a_connection_that_closes_makes_room_for_another() {
    let (_simulator, proxy) = pair_with("limits: { connections: 1 }").await;
    let mut first = Raw::connect(proxy.address()).await;
    first.get("/echo").await;
    assert_eq!(first.response().await.status(), 200);
    drop(first);
    proxy.await_metrics(|metrics| metrics.get("outrigger_connections_open", &[]) == 0.0).await;
    assert_eq!(Call::get("/echo").send(proxy.address()).await.status, 200);
}

#[tokio::test]
async fn a_head_of_the_endpoint_above_all_bounds_is_answered_with_502() {
    let simulator = Simulator::start(Options::named("sim").fast());
    let proxy = proxy_to(&simulator.endpoint(), "").await;
    let answer = Call::get("/head/500000").send(proxy.address()).await;
    assert_eq!((answer.status, &answer.json()["outcome"]), (502, &json!("upstream_invalid")));
}

#[tokio::test]
async fn a_large_head_of_the_endpoint_passes() {
    let (_simulator, proxy) = pair_with("").await;
    let answer = Call::get("/head/100000").send(proxy.address()).await;
    assert_eq!(answer.header("x-sim-big").map(str::len), Some(100_000));
}
