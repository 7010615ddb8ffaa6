//! Leaving HTTP: WebSocket and whatever else both sides agree on.

use futures_util::{SinkExt, StreamExt};
use outrigger_tests::harness::{Closed, Proxy, Raw, within};
use outrigger_tests::sim::Echo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::upstream::Upstream;
use super::{answer_to, h2c_pair, pair, pair_with};

async fn websocket(proxy: &Proxy) -> WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(proxy.address()).await.expect("it listens");
    let handshake = tokio_tungstenite::client_async("ws://inn.example/ws", stream);
    let (socket, response) = within("the handshake", handshake).await.expect("it is accepted");
    assert_eq!(response.status(), 101);
    socket
}

#[tokio::test]
async fn websocket_messages_are_echoed() {
    let (_simulator, proxy) = pair().await;
    let mut socket = websocket(&proxy).await;
    for size in [0, 1, 125, 126, 70_000, 1_000_000] {
        let message = Message::binary(vec![7; size]);
        socket.send(message.clone()).await.unwrap();
        assert_eq!(within("the echo", socket.next()).await.unwrap().unwrap(), message);
    }
}

#[tokio::test]
async fn a_websocket_closes_in_order() {
    let (simulator, proxy) = pair().await;
    let mut socket = websocket(&proxy).await;
    socket.close(None).await.unwrap();
    let last = within("the answer to the close", socket.next()).await;
    assert!(last.is_none_or(|message| message.unwrap().is_close()));
    let state = simulator.reached(|state| state.in_flight == 0).await;
    assert_eq!((state.completed, state.aborted), (1, 0));
}

#[tokio::test]
async fn a_websocket_client_that_vanishes_frees_the_endpoint() {
    let (simulator, proxy) = pair().await;
    let socket = websocket(&proxy).await;
    assert_eq!(simulator.state().in_flight, 1);
    drop(socket);
    simulator.reached(|state| state.in_flight == 0).await;
}

#[tokio::test]
async fn a_silent_websocket_outlives_the_timeouts_of_http() {
    let limits = "limits: { idle_timeout: 500ms, body_timeout: 500ms, header_timeout: 500ms, write_timeout: 500ms }";
    let (_simulator, proxy) = pair_with(limits).await;
    let mut socket = websocket(&proxy).await;
    // There is no event for "nothing happened": four times as long as any of them.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    socket.send(Message::text("still there?")).await.unwrap();
    let echo = within("the echo", socket.next()).await.unwrap().unwrap();
    assert_eq!(echo, Message::text("still there?"));
}

#[tokio::test]
async fn a_response_that_switches_keeps_its_fields() {
    let (_simulator, proxy) = pair().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(
        "GET /ws HTTP/1.1\r\nhost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         sec-websocket-protocol: chat\r\n\r\n",
    )
    .await;
    let head = raw.head().await.unwrap();
    assert_eq!((head.status, head.header("upgrade")), (101, Some("websocket")));
    assert_eq!(head.header("connection").map(str::to_lowercase).as_deref(), Some("upgrade"));
    assert_eq!(head.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(head.header("sec-websocket-protocol"), Some("chat"));
    assert_eq!((head.header("content-length"), head.header("transfer-encoding")), (None, None));
}

/// Both sides of a connection that has switched to a protocol of the test's.
async fn switched() -> (Raw, super::upstream::Connection, Proxy) {
    let (upstream, proxy) = Upstream::behind_proxy().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: raw\r\n\r\n").await;
    let (mut connection, head) = upstream.request().await;
    assert!(head.to_lowercase().contains("\r\nupgrade: raw\r\n"), "{head}");
    assert!(head.to_lowercase().contains("\r\nconnection: upgrade\r\n"), "{head}");
    connection
        .send(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: raw\r\n\r\nfirst",
        )
        .await;
    assert_eq!(raw.head().await.map(|head| head.status), Ok(101));
    (raw, connection, proxy)
}

#[tokio::test]
async fn bytes_right_behind_the_switch_are_not_lost() {
    let (mut raw, _connection, _proxy) = switched().await;
    assert_eq!(raw.take(5).await.unwrap(), b"first");
}

#[tokio::test]
async fn bytes_pass_in_both_directions_after_the_switch() {
    let (mut raw, mut connection, _proxy) = switched().await;
    raw.take(5).await.unwrap();
    for _ in 0..3 {
        raw.send("ping\n").await;
        assert_eq!(connection.until("\n").await, "ping\n");
        connection.send("pong\n").await;
        assert_eq!(raw.take(5).await.unwrap(), b"pong\n");
    }
}

#[tokio::test]
async fn a_client_that_has_said_everything_still_hears() {
    let (mut raw, mut connection, _proxy) = switched().await;
    raw.send("last words").await;
    raw.close_write().await;
    assert_eq!(connection.rest().await, "last words");
    connection.finish("answer").await;
    assert_eq!(raw.closed().await, Closed::Fin(b"firstanswer".to_vec()));
}

#[tokio::test]
async fn an_endpoint_that_has_said_everything_still_hears() {
    let (mut raw, mut connection, _proxy) = switched().await;
    connection.finish("last words").await;
    assert_eq!(raw.closed().await, Closed::Fin(b"firstlast words".to_vec()));
    let _ = raw.try_send("answer").await;
    raw.close_write().await;
    assert_eq!(connection.rest().await, "answer");
}

#[tokio::test]
async fn a_client_that_sends_before_the_switch_is_answered_after_it() {
    let (upstream, proxy) = Upstream::behind_proxy().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: raw\r\n\r\neager\n")
        .await;
    let (mut connection, _) = upstream.request().await;
    connection
        .send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: raw\r\n\r\n")
        .await;
    assert_eq!(connection.until("\n").await, "eager\n");
}

#[tokio::test]
async fn an_endpoint_may_decline_to_switch() {
    let (_simulator, proxy) = pair().await;
    let mut raw = Raw::connect(proxy.address()).await;
    for _ in 0..2 {
        raw.send("GET /echo HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: raw\r\n\r\n")
            .await;
        let response = raw.response().await;
        assert_eq!((response.status(), response.header("upgrade")), (200, None));
    }
}

#[tokio::test]
async fn a_body_is_sent_although_an_upgrade_was_offered() {
    // What `curl --http2 --data` sends: the endpoint ignores the offer and waits for the body.
    let (_simulator, proxy) = pair_with("limits: { body_timeout: 300ms }").await;
    let response = answer_to(
        &proxy,
        "POST /echo HTTP/1.1\r\nhost: h\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n\
         http2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\ncontent-length: 5\r\n\r\nhello",
    )
    .await;
    assert_eq!(response.status(), 200, "{}", response.text());
    assert_eq!(response.json::<Echo>().bytes, 5);
}

#[tokio::test]
async fn a_switch_that_nobody_asked_for_is_answered_with_502() {
    let (upstream, proxy) = Upstream::behind_proxy().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.get("/").await;
    let (mut connection, _) = upstream.request().await;
    connection
        .send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: raw\r\n\r\n")
        .await;
    assert_eq!(raw.response().await.status(), 502);
}

#[tokio::test]
async fn an_h2c_endpoint_is_not_asked_to_switch() {
    let (_simulator, proxy) = h2c_pair().await;
    let request = "GET /echo HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: raw\r\n\r\n";
    let response = answer_to(&proxy, request).await;
    assert_eq!((response.status(), response.json::<Echo>().header("upgrade")), (200, None));
}

#[tokio::test]
async fn bytes_of_a_megabyte_pass_through_a_switched_connection() {
    let (raw, mut connection, _proxy) = switched().await;
    let (stream, _) = raw.into_parts();
    let (mut read, mut write) = stream.into_split();
    let body = outrigger_tests::sim::pattern(1_000_000);
    let send = body.clone();
    let writer = tokio::spawn(async move {
        write.write_all(&send).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let reader = tokio::spawn(async move {
        let mut all = Vec::new();
        read.read_to_end(&mut all).await.unwrap();
        all
    });
    let up = connection.rest_bytes().await;
    connection.finish(&body).await;
    within("the writer", writer).await.unwrap();
    assert!(up == body);
    assert!(within("the reader", reader).await.unwrap().ends_with(&body));
}
