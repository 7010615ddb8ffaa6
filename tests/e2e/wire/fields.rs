//! Header fields: which stay on one connection, which are passed on, which are ours.

use outrigger_tests::harness::{Call, Proxy, Raw};
use outrigger_tests::sim::Echo;

use super::upstream::{Upstream, get_answered_with};
use super::{answer_to, h2c_pair, pair, pair_with};

/// What the endpoint saw of a GET with these lines besides `host`.
async fn seen(proxy: &Proxy, lines: &str) -> Echo {
    let request = format!("GET /echo HTTP/1.1\r\nhost: inn.example\r\n{lines}\r\n");
    answer_to(proxy, request).await.json()
}

#[tokio::test]
async fn hop_by_hop_fields_of_a_request_are_not_passed_on() {
    let (_simulator, proxy) = pair().await;
    let echo = seen(
        &proxy,
        "keep-alive: timeout=9\r\nproxy-connection: keep-alive\r\nte: gzip\r\nupgrade: foo\r\n\
         http2-settings: AAMAAABk\r\nx-kept: yes\r\n",
    )
    .await;
    for name in ["connection", "keep-alive", "proxy-connection", "te", "upgrade", "http2-settings"]
    {
        assert_eq!(echo.header(name), None, "{name}");
    }
    assert_eq!(echo.header("x-kept"), Some("yes"));
}

#[tokio::test]
async fn fields_named_by_connection_in_a_request_are_not_passed_on() {
    let (_simulator, proxy) = pair().await;
    let echo = seen(&proxy, "Connection: X-One , x-two\r\nconnection: x-three\r\nx-one: 1\r\nX-Two: 2\r\nx-three: 3\r\nx-four: 4\r\n").await;
    assert_eq!([echo.header("x-one"), echo.header("x-two"), echo.header("x-three")], [None; 3]);
    assert_eq!(echo.header("x-four"), Some("4"));
}

#[tokio::test]
async fn connection_cannot_take_away_the_length_or_the_host() {
    let (_simulator, proxy) = pair().await;
    let request = "POST /echo HTTP/1.1\r\nhost: inn.example\r\nconnection: host, content-length\r\ncontent-length: 4\r\n\r\nabcd";
    let echo: Echo = answer_to(&proxy, request).await.json();
    assert_eq!((echo.bytes, echo.header("host")), (4, Some("inn.example")));
}

#[tokio::test]
async fn connection_cannot_take_away_what_the_proxy_says() {
    let (_simulator, proxy) = pair().await;
    let echo =
        seen(&proxy, "connection: x-forwarded-for, via, x-request-id, traceparent\r\n").await;
    for name in ["x-forwarded-for", "via", "x-request-id", "traceparent"] {
        assert!(echo.header(name).is_some(), "{name} in {echo:#?}");
    }
}

#[tokio::test]
async fn the_wish_for_trailers_is_passed_on() {
    let (_simulator, proxy) = pair().await;
    let echo = seen(&proxy, "connection: te\r\nte: trailers, deflate;q=0.5\r\n").await;
    assert_eq!(echo.header("te"), Some("trailers"));
}

#[tokio::test]
async fn hop_by_hop_fields_of_a_response_are_not_passed_on() {
    let (mut raw, _proxy) = get_answered_with(
        "HTTP/1.1 200 OK\r\nconnection: X-Private, close\r\nx-private: 1\r\nkeep-alive: timeout=5\r\n\
         proxy-connection: close\r\nupgrade: h2c\r\nx-public: 2\r\ncontent-length: 2\r\n\r\nok",
    )
    .await;
    let response = raw.response().await;
    for name in ["x-private", "keep-alive", "proxy-connection", "upgrade", "connection"] {
        assert_eq!(response.header(name), None, "{name}");
    }
    assert_eq!((response.header("x-public"), response.text()), (Some("2"), "ok".to_owned()));
}

#[tokio::test]
async fn hop_by_hop_fields_of_an_early_response_are_not_passed_on() {
    let (mut raw, _proxy) = get_answered_with(
        "HTTP/1.1 103 Early Hints\r\nconnection: x-private\r\nx-private: 1\r\nlink: </a>\r\n\r\n\
         HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    )
    .await;
    let early = raw.head().await.unwrap();
    assert_eq!((early.status, early.header("link")), (103, Some("</a>")));
    assert_eq!((early.header("x-private"), early.header("connection")), (None, None));
}

#[tokio::test]
async fn duplicates_and_their_order_survive_both_ways() {
    let (upstream, proxy) = Upstream::behind_proxy().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET / HTTP/1.1\r\nhost: h\r\nX-A: 1\r\nx-b: 2\r\nx-a: 3\r\n\r\n").await;
    let (mut connection, head) = upstream.request().await;
    let position = |line: &str| head.find(line).unwrap_or_else(|| panic!("{line} in {head}"));
    assert!(position("X-A: 1") < position("x-b: 2") && position("x-b: 2") < position("x-a: 3"));
    connection
        .send("HTTP/1.1 200 OK\r\nset-cookie: a=1\r\nset-cookie: b=2\r\ncontent-length: 0\r\n\r\n")
        .await;
    assert_eq!(raw.response().await.head.all("set-cookie"), ["a=1", "b=2"]);
}

#[tokio::test]
async fn values_that_are_not_utf8_survive() {
    let (upstream, proxy) = Upstream::behind_proxy().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.get("/").await;
    let (mut connection, _) = upstream.request().await;
    connection.send(b"HTTP/1.1 200 OK\r\nx-latin: caf\xe9\r\ncontent-length: 0\r\n\r\n").await;
    // The harness shows the byte as the replacement character; lost or refused it would not be there.
    assert_eq!(raw.response().await.header("x-latin"), Some("caf\u{fffd}"));
}

#[tokio::test]
async fn via_tells_the_version_of_each_received_message() {
    let (_simulator, proxy) = pair().await;
    assert_eq!(seen(&proxy, "").await.all("via"), ["1.1 outrigger"]);
    let h2 = Call::get("/echo").h2().send(proxy.address()).await;
    assert_eq!(h2.echo().all("via"), ["2 outrigger"]);
    assert_eq!(h2.header("via"), Some("1.1 outrigger"));
}

#[tokio::test]
async fn via_tells_that_the_endpoint_spoke_http_2() {
    let (_simulator, proxy) = h2c_pair().await;
    let answer = Call::get("/echo").send(proxy.address()).await;
    assert_eq!(answer.header("via"), Some("2 outrigger"));
    assert_eq!(answer.echo().all("via"), ["1.1 outrigger"]);
}

#[tokio::test]
async fn via_keeps_those_who_came_before() {
    let (_simulator, proxy) = pair().await;
    assert_eq!(seen(&proxy, "via: 1.0 fred\r\n").await.all("via"), ["1.0 fred", "1.1 outrigger"]);
}

#[tokio::test]
async fn what_a_client_claims_about_its_origin_is_replaced() {
    let (_simulator, proxy) = pair().await;
    let echo = seen(
        &proxy,
        "x-forwarded-for: 1.1.1.1\r\nX-Forwarded-For: 2.2.2.2\r\nx-forwarded-proto: https\r\n\
         x-forwarded-host: evil.example\r\nforwarded: for=1.1.1.1\r\n",
    )
    .await;
    assert_eq!(echo.all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(echo.all("x-forwarded-proto"), ["http"]);
    assert_eq!(echo.all("x-forwarded-host"), ["inn.example"]);
    assert_eq!(echo.all("forwarded"), ["for=127.0.0.1;host=\"inn.example\";proto=http"]);
}

#[tokio::test]
async fn as_many_hops_as_are_trusted_are_kept() {
    let (_simulator, proxy) = pair_with("forwarding: { trusted_hops: 1 }").await;
    let echo = seen(
        &proxy,
        "x-forwarded-for: 6.6.6.6, 2.2.2.2\r\nx-forwarded-proto: https\r\n\
         x-forwarded-host: front.example\r\nforwarded: for=6.6.6.6, for=2.2.2.2\r\n",
    )
    .await;
    assert_eq!(echo.all("x-forwarded-for"), ["2.2.2.2, 127.0.0.1"]);
    assert_eq!(echo.all("x-forwarded-proto"), ["https"]);
    assert_eq!(echo.all("x-forwarded-host"), ["front.example"]);
    let own = "for=127.0.0.1;host=\"inn.example\";proto=http";
    assert_eq!(echo.all("forwarded"), [format!("for=2.2.2.2, {own}")]);
}

#[tokio::test]
async fn a_request_without_an_id_gets_a_fresh_one() {
    let (_simulator, proxy) = pair().await;
    let ids = [seen(&proxy, "").await, seen(&proxy, "").await]
        .map(|echo| echo.header("x-request-id").unwrap().to_owned());
    assert_ne!(ids[0], ids[1]);
    let hex = |id: &String| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
    assert!(ids.iter().all(hex), "{ids:?}");
}

#[tokio::test]
async fn a_request_id_is_kept() {
    let (_simulator, proxy) = pair().await;
    assert_eq!(seen(&proxy, "x-request-id: abc-123\r\n").await.all("x-request-id"), ["abc-123"]);
}

#[tokio::test]
async fn a_request_id_that_would_spoil_a_log_is_replaced() {
    let (_simulator, proxy) = pair().await;
    let long = format!("x-request-id: {}\r\n", "x".repeat(129));
    for line in [&long, "x-request-id: a b\r\n"] {
        let echo = seen(&proxy, line).await;
        assert_eq!(echo.all("x-request-id").len(), 1);
        assert_eq!(echo.header("x-request-id").unwrap().len(), 32, "{line}");
    }
}

#[tokio::test]
async fn only_one_request_id_is_passed_on() {
    let (_simulator, proxy) = pair().await;
    let echo = seen(&proxy, "x-request-id: one\r\nx-request-id: two\r\n").await;
    assert_eq!(echo.all("x-request-id"), ["one"]);
}

#[tokio::test]
async fn an_error_tells_the_request_id() {
    let proxy = Proxy::start("routes: [{ match: { path: /no }, respond: { status: 200 } }]").await;
    let answer = Call::get("/").header("x-request-id", "abc-123").send(proxy.address()).await;
    assert_eq!((answer.status, answer.header("x-request-id")), (404, Some("abc-123")));
    assert_eq!(answer.json()["request_id"], "abc-123");
}

#[tokio::test]
async fn a_trace_is_continued() {
    let (_simulator, proxy) = pair().await;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let echo = seen(&proxy, &format!("traceparent: {parent}\r\ntracestate: a=1\r\n")).await;
    assert_eq!(
        (echo.header("traceparent"), echo.header("tracestate")),
        (Some(parent), Some("a=1"))
    );
}

#[tokio::test]
async fn a_trace_is_begun_where_there_is_none() {
    let (_simulator, proxy) = pair().await;
    let echo = seen(&proxy, "").await;
    let parent = echo.header("traceparent").unwrap();
    let parts: Vec<_> = parent.split('-').map(str::len).collect();
    assert_eq!((parts, &parent[..3]), (vec![2, 32, 16, 2], "00-"), "{parent}");
}

#[tokio::test]
async fn a_broken_trace_is_replaced_with_its_state() {
    let (_simulator, proxy) = pair().await;
    let broken = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
    let echo = seen(&proxy, &format!("traceparent: {broken}\r\ntracestate: a=1\r\n")).await;
    assert_eq!((echo.all("traceparent").len(), echo.header("tracestate")), (1, None));
    assert_ne!(echo.header("traceparent"), Some(broken));
}

#[tokio::test]
async fn cookies_that_http_2_split_are_one_field_in_http_1() {
    let (_simulator, proxy) = pair().await;
    let call = Call::get("/echo").header("cookie", "a=1").header("cookie", "b=2").h2();
    let echo = call.send(proxy.address()).await.echo();
    assert_eq!(echo.all("cookie"), ["a=1; b=2"]);
}
