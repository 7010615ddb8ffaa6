//! The course of a connection: one request after the other, interim responses, answers before the end of a request.

use outrigger_tests::harness::{Call, Client, Closed, Protocol, Proxy, Raw};
use outrigger_tests::sim::Echo;

use super::upstream::Upstream;
use super::{h2c_pair, pair, pair_with};

const EXPECTING: &str =
    "POST /echo HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n";

#[tokio::test]
async fn a_connection_serves_one_request_after_the_other() {
    let (simulator, proxy) = pair().await;
    let mut raw = Raw::connect(proxy.address()).await;
    for index in 0..20 {
        raw.post(&format!("/echo?{index}"), "body").await;
        let echo: Echo = raw.response().await.json();
        assert_eq!((echo.target, echo.bytes), (format!("/echo?{index}"), 4));
    }
    assert_eq!(proxy.metrics().await.get("outrigger_connections_total", &[]), 1.0);
    assert_eq!(simulator.state().accepted, 1, "the connection to the endpoint is used again");
}

#[tokio::test]
async fn connection_close_is_obeyed() {
    let (_simulator, proxy) = pair().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET /bytes/3 HTTP/1.1\r\nhost: h\r\nConnection: Close\r\n\r\n").await;
    let response = raw.response().await;
    assert_eq!((response.header("connection"), response.body()), (Some("close"), vec![0, 1, 2]));
    assert_eq!(raw.closed().await, Closed::Fin(Vec::new()));
}

#[tokio::test]
async fn an_endpoint_that_closes_does_not_close_the_client() {
    let (simulator, proxy) = pair().await;
    let mut raw = Raw::connect(proxy.address()).await;
    for _ in 0..2 {
        raw.get("/close").await;
        let response = raw.response().await;
        assert_eq!((response.text(), response.header("connection")), ("closing".to_owned(), None));
    }
    assert_eq!(simulator.state().accepted, 2);
}

#[tokio::test]
async fn a_connection_outlives_an_error_of_ours() {
    let proxy = Proxy::start("routes: [{ match: { path: /a }, respond: { status: 200 } }]").await;
    let mut raw = Raw::connect(proxy.address()).await;
    for (target, status) in [("/none", 404), ("/a", 200), ("/none", 404)] {
        raw.get(target).await;
        assert_eq!(raw.response().await.status(), status);
    }
}

#[tokio::test]
async fn a_connection_outlives_an_answer_of_ours_to_a_request_with_a_body() {
    let proxy = Proxy::start("routes: [{ respond: { status: 200, body: hi } }]").await;
    let mut client = Client::connect(proxy.address(), Protocol::Http1).await;
    for _ in 0..3 {
        // Whether it is kept is ours to decide; an answer must come all the same.
        if client.is_closed() {
            client = Client::connect(proxy.address(), Protocol::Http1).await;
        }
        assert_eq!(client.send(Call::post("/").body("hello")).await.unwrap().text(), "hi");
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (_simulator, proxy) = pair().await;
    let mut raw = Raw::connect(proxy.address()).await;
    let request = |index| {
        let slow = if index == 0 { "x-sim-fault: stall_first_byte=100ms\r\n" } else { "" };
        let fields = format!("host: h\r\ncontent-length: 3\r\n{slow}");
        format!("POST /echo?{index} HTTP/1.1\r\n{fields}\r\nabc")
    };
    raw.send((0..10).map(request).collect::<String>()).await;
    for index in 0..10 {
        let echo: Echo = raw.response().await.json();
        assert_eq!((echo.target, echo.bytes), (format!("/echo?{index}"), 3));
    }
}

#[tokio::test]
async fn a_request_pipelined_behind_one_that_closes_is_not_answered() {
    let (simulator, proxy) = pair().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET /bytes/1 HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\nGET /bytes/2 HTTP/1.1\r\nhost: h\r\n\r\n")
        .await;
    assert_eq!(raw.response().await.body(), [0]);
    assert_eq!(raw.closed().await, Closed::Fin(Vec::new()));
    assert_eq!(simulator.state().requests(), 1);
}

#[tokio::test]
async fn a_client_that_waits_for_100_gets_it_from_us() {
    let (upstream, proxy) = Upstream::behind_proxy().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(EXPECTING).await;
    let (mut connection, head) = upstream.request().await;
    // The endpoint has said nothing yet.
    assert_eq!(raw.head().await.unwrap().status, 100);
    assert!(!head.to_lowercase().contains("expect:"), "{head}");
    raw.send("hello").await;
    assert_eq!(connection.until("hello").await, "hello");
    connection.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let response = raw.response().await;
    assert_eq!((response.status(), response.informational.len()), (200, 0));
}

#[tokio::test]
async fn a_100_of_the_endpoint_is_not_passed_on() {
    let (upstream, proxy) = Upstream::behind_proxy().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.post("/", "hello").await;
    let (mut connection, _) = upstream.request().await;
    connection
        .send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        .await;
    let response = raw.response().await;
    assert_eq!((response.status(), response.informational.len()), (200, 0));
}

#[tokio::test]
async fn a_client_that_expects_100_and_does_not_wait_is_served() {
    let (_simulator, proxy) = pair().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(format!("{EXPECTING}hello")).await;
    let response = raw.response().await;
    assert_eq!((response.status(), response.json::<Echo>().bytes), (200, 5));
}

#[tokio::test]
async fn an_h2_client_that_expects_100_is_served() {
    let (_simulator, proxy) = pair().await;
    let call = Call::post("/echo").header("expect", "100-continue").body("hello").h2();
    let echo = call.send(proxy.address()).await.echo();
    assert_eq!((echo.bytes, echo.header("expect")), (5, None));
}

#[tokio::test]
async fn a_404_comes_without_100() {
    let proxy = Proxy::start("routes: [{ match: { path: /a }, respond: { status: 200 } }]").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(EXPECTING).await;
    let response = raw.response().await;
    assert_eq!((response.status(), response.informational.len()), (404, 0));
    // The body may or may not follow: only a close makes the next byte unambiguous.
    assert_eq!(response.header("connection"), Some("close"));
}

#[tokio::test]
async fn a_413_comes_without_100() {
    let (_simulator, proxy) = pair_with("limits: { body_bytes: 4B }").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(EXPECTING).await;
    let response = raw.response().await;
    assert_eq!((response.status(), response.informational.len()), (413, 0));
}

#[tokio::test]
async fn a_client_of_http_1_0_is_never_told_100() {
    let (_simulator, proxy) = pair().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(EXPECTING.replace("HTTP/1.1", "HTTP/1.0") + "hello").await;
    let response = raw.response().await;
    assert_eq!((response.status(), response.informational.len()), (200, 0));
}

#[tokio::test]
async fn a_body_that_is_searched_for_the_model_is_asked_for_with_100() {
    let proxy = Proxy::start(
        "routes: [{ match: { model: m }, respond: { status: 200 } }, { respond: { status: 202 } }]",
    )
    .await;
    let mut raw = Raw::connect(proxy.address()).await;
    let body = r#"{"model":"m"}"#;
    let length = body.len();
    raw.send(format!(
        "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: {length}\r\nexpect: 100-continue\r\n\r\n"
    ))
    .await;
    assert_eq!(raw.head().await.unwrap().status, 100);
    raw.send(body).await;
    assert_eq!(raw.response().await.status(), 200);
}

#[tokio::test]
async fn early_hints_are_passed_on_before_the_answer() {
    let (upstream, proxy) = Upstream::behind_proxy().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.get("/").await;
    let (mut connection, _) = upstream.request().await;
    for name in ["/a", "/b"] {
        connection.send(format!("HTTP/1.1 103 Early Hints\r\nlink: <{name}>\r\n\r\n")).await;
        let early = raw.head().await.unwrap();
        assert_eq!((early.status, early.header("link")), (103, Some(&*format!("<{name}>"))));
    }
    connection.send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate").await;
    assert_eq!(raw.response().await.text(), "late");
}

#[tokio::test]
async fn an_answer_arrives_while_the_body_is_still_being_sent() {
    for h2c in [false, true] {
        for protocol in [Protocol::Http1, Protocol::H2] {
            let (_simulator, proxy) = if h2c { h2c_pair().await } else { pair().await };
            let (call, feed) = Call::post("/status/400").over(protocol).fed();
            let answer = tokio::spawn(call.send(proxy.address()));
            assert!(feed.send("the beginning").await);
            let answer = answer.await.unwrap();
            assert_eq!((answer.status, answer.text()), (400, "status 400".to_owned()));
            assert_eq!(answer.cut, None, "{protocol:?} h2c {h2c}");
            drop(feed);
        }
    }
}

#[tokio::test]
async fn an_early_answer_survives_a_client_that_sends_on() {
    let (upstream, proxy) = Upstream::behind_proxy().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 10000000\r\n\r\n").await;
    let (mut connection, _) = upstream.request().await;
    connection
        .finish("HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno")
        .await;
    raw.send(vec![0; 3_000_000]).await;
    let response = raw.response().await;
    assert_eq!((response.status(), response.text()), (403, "no".to_owned()));
    assert_eq!(response.header("connection"), Some("close"));
}

#[tokio::test]
async fn the_rest_of_a_body_is_never_taken_for_a_request() {
    let (upstream, proxy) = Upstream::behind_proxy().await;
    let mut raw = Raw::connect(proxy.address()).await;
    let inner = "GET /smuggled HTTP/1.1\r\nhost: h\r\n\r\n";
    let length = 5 + inner.len();
    raw.send(format!("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: {length}\r\n\r\nhello")).await;
    let (mut connection, _) = upstream.request().await;
    connection.send("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(raw.response().await.status(), 400);
    // The client had not heard of the answer when it sent this.
    let _ = raw.try_send(inner).await;
    assert!(!matches!(raw.closed().await, Closed::Fin(rest) if !rest.is_empty()));
}
