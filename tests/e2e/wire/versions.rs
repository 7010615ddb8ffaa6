//! Clients and endpoints that speak different versions of HTTP, and the trailers that pass between them.

use http::HeaderMap;
use outrigger_tests::harness::{Call, Client, Closed, Load, Protocol, Raw};
use outrigger_tests::sim::Echo;

use super::upstream::Upstream;
use super::{answer_to, h2c_pair, pair};

/// A request with a body, its answer, and what both sides took the other for.
async fn speak(h2c: bool, protocol: Protocol) {
    let (_simulator, proxy) = if h2c { h2c_pair().await } else { pair().await };
    let call = Call::post("/echo?a=b%20c").host("inn.example:81").header("x-a", "1").body("hello");
    let answer = call.over(protocol).send(proxy.address()).await;
    let echo = answer.echo();
    let host = if h2c { ":authority" } else { "host" };
    assert_eq!(answer.version, if protocol == Protocol::H2 { "HTTP/2.0" } else { "HTTP/1.1" });
    assert_eq!(echo.version, if h2c { "HTTP/2.0" } else { "HTTP/1.1" });
    assert_eq!((&*echo.method, &*echo.target, echo.bytes), ("POST", "/echo?a=b%20c", 5));
    assert_eq!((echo.header(host), echo.header("x-a")), (Some("inn.example:81"), Some("1")));
    assert_eq!(answer.header("x-sim-name"), Some("sim"));
}

#[tokio::test]
async fn http_1_to_http_1() {
    speak(false, Protocol::Http1).await;
}

#[tokio::test]
async fn http_1_to_h2c() {
    speak(true, Protocol::Http1).await;
}

#[tokio::test]
async fn h2c_to_http_1() {
    speak(false, Protocol::H2).await;
}

#[tokio::test]
async fn h2c_to_h2c() {
    speak(true, Protocol::H2).await;
}

#[tokio::test]
async fn an_h2c_endpoint_gets_no_field_that_http_2_forbids() {
    let (_simulator, proxy) = h2c_pair().await;
    let request = "POST /echo HTTP/1.1\r\nhost: h\r\nconnection: keep-alive, te\r\nkeep-alive: x\r\n\
        te: trailers\r\ntransfer-encoding: chunked\r\nproxy-connection: a\r\n\r\n2\r\nab\r\n0\r\n\r\n";
    let response = answer_to(&proxy, request).await;
    assert_eq!(response.status(), 200);
    let echo: Echo = response.json();
    for name in ["connection", "keep-alive", "transfer-encoding", "proxy-connection", "host"] {
        assert_eq!(echo.header(name), None, "{name}");
    }
    assert_eq!((echo.header("te"), echo.bytes), (Some("trailers"), 2));
}

#[tokio::test]
async fn an_odd_target_is_not_held_against_an_h2c_endpoint() {
    let (_simulator, proxy) = h2c_pair().await;
    let response = answer_to(&proxy, "GET /echo?a=<b>`\"{} HTTP/1.1\r\nhost: h\r\n\r\n").await;
    // Passed on or refused, but never the fault of the endpoint.
    assert!([200, 400].contains(&response.status()), "{}", response.text());
}

#[tokio::test]
async fn many_streams_share_an_h2_connection() {
    let (_simulator, proxy) = pair().await;
    let client = Client::connect(proxy.address(), Protocol::H2).await;
    let mut answers = tokio::task::JoinSet::new();
    for index in 0..50 {
        let mut client = client.share();
        answers.spawn(async move { client.send(Call::get(&format!("/echo?{index}"))).await });
    }
    let answers = answers.join_all().await;
    let mut targets: Vec<_> = answers.into_iter().map(|a| a.unwrap().echo().target).collect();
    targets.sort();
    targets.dedup();
    assert_eq!(targets.len(), 50);
    assert_eq!(proxy.metrics().await.get("outrigger_connections_total", &[]), 1.0);
}

#[tokio::test]
async fn requests_share_an_h2c_connection_to_the_endpoint() {
    let (simulator, proxy) = h2c_pair().await;
    let report = Load::of(40).run(proxy.address(), |_| Call::get("/echo")).await;
    assert_eq!(report.ok(), 40, "{:?}", report.outcomes());
    assert_eq!(simulator.state().accepted, 1);
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_no_chunks() {
    let (_simulator, proxy) = pair().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET /bytes/1000?chunked=1 HTTP/1.0\r\nhost: h\r\n\r\n").await;
    let response = raw.response().await;
    assert_eq!((response.status(), response.header("transfer-encoding")), (200, None));
    assert_eq!(response.body().len(), 1000);
    assert_eq!(raw.closed().await, Closed::Fin(Vec::new()));
}

#[tokio::test]
async fn a_client_of_http_1_0_is_closed_after_its_answer() {
    let (_simulator, proxy) = pair().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET /bytes/3 HTTP/1.0\r\nhost: h\r\n\r\n").await;
    let response = raw.response().await;
    assert_eq!((response.body(), response.header("connection")), (vec![0, 1, 2], Some("close")));
    assert_eq!(raw.closed().await, Closed::Fin(Vec::new()));
}

#[tokio::test]
async fn a_client_of_http_1_0_may_keep_its_connection() {
    let (_simulator, proxy) = pair().await;
    let mut raw = Raw::connect(proxy.address()).await;
    for _ in 0..2 {
        raw.send("GET /bytes/3 HTTP/1.0\r\nhost: h\r\nconnection: Keep-Alive\r\n\r\n").await;
        let response = raw.response().await;
        assert_eq!(response.header("connection"), Some("keep-alive"));
        assert_eq!(response.body(), [0, 1, 2]);
    }
}

#[tokio::test]
async fn a_request_of_http_1_0_without_a_host_gets_one() {
    let (upstream, proxy) = Upstream::behind_proxy().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET / HTTP/1.0\r\n\r\n").await;
    let (_connection, head) = upstream.request().await;
    // What goes on is HTTP/1.1, which must not be without.
    assert!(head.starts_with("GET / HTTP/1.1\r\n"), "{head}");
    assert!(head.to_lowercase().contains("\r\nhost:"), "{head}");
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_no_early_response() {
    let (_simulator, proxy) = pair().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET /early HTTP/1.0\r\nhost: h\r\n\r\n").await;
    let response = raw.response().await;
    assert_eq!((response.informational.len(), response.text()), (0, "late".to_owned()));
}

/// Trailers of a response, in all four pairs of versions.
async fn response_trailers(h2c: bool, protocol: Protocol) {
    let (_simulator, proxy) = if h2c { h2c_pair().await } else { pair().await };
    let answer = Call::get("/trailers").over(protocol).send(proxy.address()).await;
    assert_eq!(answer.text(), "trailed");
    assert!(answer.trailers.get("x-sim-trailer").is_some_and(|value| value == "done"));
}

#[tokio::test]
async fn response_trailers_pass_from_http_1_to_http_1() {
    response_trailers(false, Protocol::Http1).await;
}

#[tokio::test]
async fn response_trailers_pass_from_http_1_to_h2() {
    response_trailers(false, Protocol::H2).await;
}

#[tokio::test]
async fn response_trailers_pass_from_h2c_to_h2() {
    response_trailers(true, Protocol::H2).await;
}

#[tokio::test]
async fn a_response_with_trailers_passes_whole_from_h2c_to_http_1() {
    let (_simulator, proxy) = h2c_pair().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.get("/trailers").await;
    let response = raw.response().await;
    assert_eq!(response.text(), "trailed");
    // A body with a declared length has no place for trailers in HTTP/1.1.
    if response.header("transfer-encoding").is_some() {
        assert_eq!(response.trailers, [("x-sim-trailer".to_owned(), "done".to_owned())]);
    }
}

/// Trailers of a request, in all four pairs of versions.
async fn request_trailers(h2c: bool, protocol: Protocol) {
    let (_simulator, proxy) = if h2c { h2c_pair().await } else { pair().await };
    let (call, feed) = Call::post("/echo").header("trailer", "x-sum").over(protocol).fed();
    let mut fields = HeaderMap::new();
    fields.insert("x-sum", http::HeaderValue::from_static("42"));
    let send = async {
        assert!(feed.send("hello").await);
        assert!(feed.trailers(fields).await);
    };
    let (answer, ()) = tokio::join!(call.send(proxy.address()), send);
    let echo = answer.echo();
    assert_eq!((echo.bytes, echo.trailers), (5, vec![("x-sum".to_owned(), "42".to_owned())]));
}

#[tokio::test]
async fn request_trailers_pass_from_http_1_to_http_1() {
    request_trailers(false, Protocol::Http1).await;
}

#[tokio::test]
async fn request_trailers_pass_from_http_1_to_h2c() {
    request_trailers(true, Protocol::Http1).await;
}

#[tokio::test]
async fn request_trailers_pass_from_h2_to_http_1() {
    request_trailers(false, Protocol::H2).await;
}

#[tokio::test]
async fn request_trailers_pass_from_h2_to_h2c() {
    request_trailers(true, Protocol::H2).await;
}

#[tokio::test]
async fn the_trailer_section_is_whole_on_the_wire() {
    let (upstream, proxy) = Upstream::behind_proxy().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nx-a: 1\r\nx-b: 2\r\n\r\n")
        .await;
    let (mut connection, head) = upstream.request().await;
    assert_eq!(head.to_lowercase().matches("transfer-encoding: chunked\r\n").count(), 1, "{head}");
    assert_eq!(connection.until("\r\n\r\n").await, "2\r\nab\r\n0\r\nx-a: 1\r\nx-b: 2\r\n\r\n");
}

#[tokio::test]
async fn a_connection_goes_on_after_trailers() {
    let (upstream, proxy) = Upstream::behind_proxy().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.get("/").await;
    let (mut connection, _) = upstream.request().await;
    for index in 0..2 {
        connection
            .send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nx-t: 1\r\n\r\n")
            .await;
        let response = raw.response().await;
        assert_eq!(response.trailers, [("x-t".to_owned(), "1".to_owned())], "response {index}");
        if index == 0 {
            raw.get("/").await;
            // On the same connection to the endpoint.
            connection.until("\r\n\r\n").await;
        }
    }
}
