//! Bodies: whole whatever their size, as they come, and absent where there must be none.

use bytes::Bytes;
use outrigger_tests::harness::{Call, Feed, Protocol, Raw};
use outrigger_tests::sim::{pattern, sha256};

use super::upstream::get_answered_with;
use super::{h2c_pair, pair};

const LARGE: usize = 30_000_000;

/// Sends `body` in pieces of 64 KiB.
async fn feed_all(feed: Feed, body: Bytes) {
    for start in (0..body.len()).step_by(65_536) {
        let end = body.len().min(start + 65_536);
        assert!(feed.send(body.slice(start..end)).await, "the proxy reads the body");
    }
}

async fn uploads(h2c: bool, protocol: Protocol) {
    let (_simulator, proxy) = if h2c { h2c_pair().await } else { pair().await };
    let body = pattern(LARGE);
    let hash = sha256(&body);
    let answer = Call::post("/echo").body(body).over(protocol).send(proxy.address()).await;
    let echo = answer.echo();
    assert_eq!((answer.status, echo.bytes, echo.sha256), (200, LARGE as u64, hash));
}

async fn downloads(h2c: bool, protocol: Protocol) {
    let (_simulator, proxy) = if h2c { h2c_pair().await } else { pair().await };
    for target in [format!("/bytes/{LARGE}"), format!("/bytes/{LARGE}?chunked=1")] {
        let answer = Call::get(&target).over(protocol).send(proxy.address()).await;
        assert_eq!((answer.cut, answer.body.len()), (None, LARGE), "{target}");
        assert_eq!(sha256(&answer.body), sha256(&pattern(LARGE)), "{target}");
    }
}

#[tokio::test]
async fn thirty_megabytes_go_up() {
    uploads(false, Protocol::Http1).await;
}

#[tokio::test]
async fn thirty_megabytes_go_up_from_h2() {
    uploads(false, Protocol::H2).await;
}

#[tokio::test]
async fn thirty_megabytes_go_up_to_h2c() {
    uploads(true, Protocol::Http1).await;
}

#[tokio::test]
async fn thirty_megabytes_go_up_from_h2_to_h2c() {
    uploads(true, Protocol::H2).await;
}

#[tokio::test]
async fn thirty_megabytes_come_down() {
    downloads(false, Protocol::Http1).await;
}

#[tokio::test]
async fn thirty_megabytes_come_down_to_h2() {
    downloads(false, Protocol::H2).await;
}

#[tokio::test]
async fn thirty_megabytes_come_down_from_h2c() {
    downloads(true, Protocol::Http1).await;
}

#[tokio::test]
async fn thirty_megabytes_come_down_from_h2c_to_h2() {
    downloads(true, Protocol::H2).await;
}

async fn mirrors(h2c: bool, protocol: Protocol) {
    let (_simulator, proxy) = if h2c { h2c_pair().await } else { pair().await };
    let body = Bytes::from(pattern(LARGE));
    let (call, feed) = Call::post("/mirror").over(protocol).fed();
    let (answer, ()) = tokio::join!(call.send(proxy.address()), feed_all(feed, body.clone()));
    assert_eq!((answer.cut, answer.body.len()), (None, LARGE));
    assert!(answer.body == body);
}

#[tokio::test]
async fn thirty_megabytes_go_both_ways_at_once_in_chunks() {
    mirrors(false, Protocol::Http1).await;
}

#[tokio::test]
async fn thirty_megabytes_go_both_ways_at_once_over_h2() {
    mirrors(true, Protocol::H2).await;
}

/// The endpoint is done, and the client has not read yet: more than its window of 2 MiB over h2, little enough for the
/// buffers on the way.
async fn behind_at_the_end(protocol: Protocol) {
    let (simulator, proxy) = pair().await;
    let streaming = Call::get("/bytes/2250000").over(protocol).open(proxy.address()).await;
    simulator.reached(|state| state.completed == 1).await;
    let answer = streaming.rest().await;
    assert_eq!((answer.cut, answer.body.len()), (None, 2_250_000));
}

#[tokio::test]
async fn a_client_that_is_behind_at_the_end_gets_the_rest() {
    behind_at_the_end(Protocol::Http1).await;
}

#[tokio::test]
async fn an_h2_client_that_is_behind_at_the_end_gets_the_rest() {
    behind_at_the_end(Protocol::H2).await;
}

#[tokio::test]
async fn every_piece_of_a_request_is_passed_on_when_it_arrives() {
    for h2c in [false, true] {
        for protocol in [Protocol::Http1, Protocol::H2] {
            let (_simulator, proxy) = if h2c { h2c_pair().await } else { pair().await };
            let (call, feed) = Call::post("/mirror").over(protocol).fed();
            assert!(feed.send("piece 0").await);
            let mut streaming = call.open(proxy.address()).await;
            assert_eq!(streaming.part().await.unwrap(), "piece 0");
            // Each piece is sent only when the one before has been all the way to the endpoint and back.
            for index in 1..20 {
                let piece = format!("piece {index}");
                assert!(feed.send(piece.clone()).await);
                assert_eq!(streaming.part().await.unwrap(), piece, "{protocol:?} h2c {h2c}");
            }
            drop(feed);
            assert_eq!(streaming.rest().await.cut, None);
        }
    }
}

#[tokio::test]
async fn chunk_extensions_do_not_become_body() {
    let (_simulator, proxy) = pair().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("POST /mirror HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0;c\r\n\r\n")
        .await;
    assert_eq!(raw.response().await.text(), "hello");
}

#[tokio::test]
async fn a_chunked_body_in_single_bytes_is_understood() {
    let (_simulator, proxy) = pair().await;
    let mut raw = Raw::connect(proxy.address()).await;
    for byte in b"POST /mirror HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n" {
        raw.send([*byte]).await;
    }
    assert_eq!(raw.response().await.text(), "hello world");
}

#[tokio::test]
async fn an_empty_chunked_body_is_a_body() {
    let (_simulator, proxy) = pair().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("POST /echo HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n").await;
    let response = raw.response().await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.json::<outrigger_tests::sim::Echo>().bytes, 0);
}

#[tokio::test]
async fn a_request_without_a_body_gets_no_framing() {
    let (_simulator, proxy) = pair().await;
    let echo = Call::get("/echo").send(proxy.address()).await.echo();
    assert_eq!((echo.header("content-length"), echo.header("transfer-encoding")), (None, None));
}

#[tokio::test]
async fn a_declared_length_stays_declared() {
    let (_simulator, proxy) = pair().await;
    let echo = Call::post("/echo").body("12345").send(proxy.address()).await.echo();
    assert_eq!(echo.all("content-length"), ["5"]);
    assert_eq!(echo.header("transfer-encoding"), None);
}

#[tokio::test]
async fn head_has_the_length_but_not_the_body() {
    let (_simulator, proxy) = pair().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("HEAD /bytes/1234 HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let head = raw.head().await.unwrap();
    assert_eq!((head.status, head.header("content-length")), (200, Some("1234")));
    // Had a body followed, this would not be a response head.
    raw.get("/bytes/3").await;
    assert_eq!(raw.response().await.body(), [0, 1, 2]);
}

#[tokio::test]
async fn head_of_a_chunked_resource_has_no_body() {
    let (_simulator, proxy) = pair().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("HEAD /bytes/1234?chunked=1 HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let head = raw.head().await.unwrap();
    assert_eq!((head.status, head.header("content-length")), (200, None));
    raw.get("/bytes/3").await;
    assert_eq!(raw.response().await.body(), [0, 1, 2]);
}

#[tokio::test]
async fn head_over_http_2_has_the_length_but_not_the_body() {
    let (_simulator, proxy) = pair().await;
    let answer = Call::new("HEAD", "/bytes/1234").h2().send(proxy.address()).await;
    assert_eq!((answer.status, answer.header("content-length")), (200, Some("1234")));
    assert_eq!((answer.body.len(), answer.cut), (0, None));
}

#[tokio::test]
async fn head_of_an_h2c_endpoint_has_no_body() {
    let (_simulator, proxy) = h2c_pair().await;
    for protocol in [Protocol::Http1, Protocol::H2] {
        let call = Call::new("HEAD", "/status/204").over(protocol);
        let answer = call.send(proxy.address()).await;
        assert_eq!((answer.status, answer.body.len(), answer.cut), (204, 0, None), "{protocol:?}");
    }
}

#[tokio::test]
async fn head_of_an_error_of_ours_has_no_body() {
    let proxy = outrigger_tests::harness::Proxy::start(
        "routes: [{ match: { path: /a }, respond: { status: 200, body: there } }]",
    )
    .await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("HEAD /none HTTP/1.1\r\nhost: h\r\n\r\nHEAD /a HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let (none, found) = (raw.head().await.unwrap(), raw.head().await.unwrap());
    assert_eq!((none.status, found.status), (404, 200));
    assert_eq!(found.header("content-length"), Some("5"));
}

#[tokio::test]
async fn a_204_has_neither_body_nor_length() {
    let (_simulator, proxy) = pair().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.get("/status/204").await;
    let head = raw.head().await.unwrap();
    assert_eq!((head.status, head.header("content-length")), (204, None));
    assert_eq!(head.header("transfer-encoding"), None);
    raw.get("/bytes/3").await;
    assert_eq!(raw.response().await.body(), [0, 1, 2]);
}

#[tokio::test]
async fn a_304_tells_a_length_without_a_body() {
    let answer = "HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\ncontent-length: 99\r\n\r\n";
    let (mut raw, _proxy) = get_answered_with(answer).await;
    let head = raw.head().await.unwrap();
    assert_eq!((head.status, head.header("etag")), (304, Some("\"a\"")));
    assert_eq!(head.header("content-length"), Some("99"));
    // The connection stays, so no body is expected to follow.
    raw.get("/").await;
}

#[tokio::test]
async fn a_304_over_http_2_has_no_body() {
    for h2c in [false, true] {
        let (_simulator, proxy) = if h2c { h2c_pair().await } else { pair().await };
        for status in [204, 304] {
            let target = format!("/status/{status}");
            let answer = Call::get(&target).h2().send(proxy.address()).await;
            assert_eq!((answer.status, answer.body.len(), answer.cut), (status, 0, None));
        }
    }
}

#[tokio::test]
async fn an_empty_answer_has_the_length_zero() {
    let (_simulator, proxy) = pair().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.get("/bytes/0").await;
    let response = raw.response().await;
    assert_eq!((response.header("content-length"), response.body().len()), (Some("0"), 0));
}

#[tokio::test]
async fn a_body_that_ends_with_the_connection_becomes_chunked() {
    let (mut raw, _proxy) = get_answered_with("HTTP/1.1 200 OK\r\n\r\nuntil the end").await;
    let response = raw.response().await;
    assert_eq!(response.header("transfer-encoding"), Some("chunked"));
    assert_eq!(response.text(), "until the end");
}

#[tokio::test]
async fn a_body_of_http_1_0_that_ends_with_the_connection_becomes_chunked() {
    let (mut raw, _proxy) = get_answered_with("HTTP/1.0 200 OK\r\n\r\nuntil the end").await;
    let response = raw.response().await;
    assert_eq!(
        (&*response.head.version, response.text()),
        ("HTTP/1.1", "until the end".to_owned())
    );
    assert_eq!(response.header("via"), Some("1.0 outrigger"));
}
