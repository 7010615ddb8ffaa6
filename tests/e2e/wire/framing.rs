//! Requests that are not HTTP or that two parties could read in two ways: refused with a reason and a close, and never
//! passed on.

use outrigger_tests::harness::{Closed, Raw};
use outrigger_tests::sim::Echo;

use super::upstream::Upstream;
use super::{answer_to, pair};

/// Sends exactly these bytes; they must be refused with 400, the connection closed in order, and nothing passed on.
async fn refused(bytes: impl AsRef<[u8]>) {
    let (simulator, proxy) = pair().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(bytes).await;
    let response = raw.response().await;
    assert_eq!((response.status(), response.header("connection")), (400, Some("close")));
    assert_eq!(raw.closed().await, Closed::Fin(Vec::new()));
    assert_eq!(simulator.state().requests(), 0);
}

/// Refuses a GET with these lines besides `host`.
async fn refused_lines(lines: &str) {
    refused(format!("GET /echo HTTP/1.1\r\nhost: h\r\n{lines}\r\n")).await;
}

/// Sends a chunked request with this body, which the endpoint may have begun to get; the client is refused with 400.
async fn refused_chunks(body: &str) {
    let (simulator, proxy) = pair().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("POST /echo HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n").await;
    raw.send(body).await;
    assert_eq!(raw.response().await.status(), 400);
    assert!(matches!(raw.closed().await, Closed::Fin(rest) if rest.is_empty()));
    assert_eq!(simulator.state().completed, 0);
}

#[tokio::test]
async fn a_length_with_a_transfer_encoding_is_refused() {
    refused("POST /echo HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn a_transfer_encoding_with_a_length_is_refused() {
    refused("POST /echo HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn two_lengths_are_refused() {
    refused_lines("content-length: 0\r\ncontent-length: 1\r\n").await;
}

#[tokio::test]
async fn two_lengths_in_one_field_are_refused() {
    refused_lines("content-length: 0, 1\r\n").await;
}

#[tokio::test]
async fn a_signed_length_is_refused() {
    refused_lines("content-length: +0\r\n").await;
}

#[tokio::test]
async fn an_empty_length_is_refused() {
    refused_lines("content-length:\r\n").await;
}

#[tokio::test]
async fn a_length_beyond_all_numbers_is_refused() {
    refused_lines("content-length: 36893488147419103232\r\n").await;
}

#[tokio::test]
async fn equal_lengths_become_one() {
    let (_simulator, proxy) = pair().await;
    let request =
        "POST /echo HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc";
    let echo: Echo = answer_to(&proxy, request).await.json();
    assert_eq!((echo.bytes, echo.all("content-length")), (3, vec!["3"]));
}

#[tokio::test]
async fn a_coding_besides_chunked_is_refused() {
    refused_lines("transfer-encoding: gzip, chunked\r\n").await;
}

#[tokio::test]
async fn chunked_twice_is_refused() {
    refused_lines("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n").await;
}

#[tokio::test]
async fn an_unknown_coding_is_refused() {
    refused_lines("transfer-encoding: xchunked\r\n").await;
}

#[tokio::test]
async fn a_coding_behind_a_vertical_tab_is_refused() {
    refused_lines("transfer-encoding: \x0bchunked\r\n").await;
}

#[tokio::test]
async fn chunks_in_http_1_0_are_refused() {
    refused("POST /echo HTTP/1.0\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn two_hosts_are_refused() {
    refused_lines("Host: h\r\n").await;
}

#[tokio::test]
async fn a_missing_host_is_refused() {
    refused("GET /echo HTTP/1.1\r\nx-a: 1\r\n\r\n").await;
}

#[tokio::test]
async fn a_host_with_a_space_is_refused() {
    refused("GET /echo HTTP/1.1\r\nhost: a b\r\n\r\n").await;
}

#[tokio::test]
async fn a_host_that_would_break_out_of_forwarded_is_refused() {
    refused("GET /echo HTTP/1.1\r\nhost: a\";for=6.6.6.6;x=\"b\r\n\r\n").await;
}

#[tokio::test]
async fn a_host_with_a_path_is_refused() {
    refused("GET /echo HTTP/1.1\r\nhost: a/b\r\n\r\n").await;
}

#[tokio::test]
async fn a_host_with_a_user_is_refused() {
    refused("GET /echo HTTP/1.1\r\nhost: user@a\r\n\r\n").await;
}

#[tokio::test]
async fn an_absolute_target_wins_over_the_host() {
    let (_simulator, proxy) = pair().await;
    let request = "GET http://real.example:81/echo?a=b HTTP/1.1\r\nhost: other.example\r\n\r\n";
    let echo: Echo = answer_to(&proxy, request).await.json();
    assert_eq!((&*echo.target, echo.all("host")), ("/echo?a=b", vec!["real.example:81"]));
}

#[tokio::test]
async fn an_absolute_target_without_a_path_means_the_root() {
    let (upstream, proxy) = Upstream::behind_proxy().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET http://real.example HTTP/1.1\r\nhost: other.example\r\n\r\n").await;
    let (_connection, head) = upstream.request().await;
    assert!(head.starts_with("GET / HTTP/1.1\r\n"), "{head}");
}

#[tokio::test]
async fn an_absolute_target_with_a_user_is_refused() {
    refused("GET http://user@real.example/ HTTP/1.1\r\nhost: h\r\n\r\n").await;
}

#[tokio::test]
async fn an_absolute_target_of_another_scheme_is_refused() {
    refused("GET ftp://real.example/ HTTP/1.1\r\nhost: h\r\n\r\n").await;
}

#[tokio::test]
async fn a_target_that_is_neither_path_nor_url_is_refused() {
    refused("GET echo HTTP/1.1\r\nhost: h\r\n\r\n").await;
}

#[tokio::test]
async fn connect_is_not_offered() {
    let (simulator, proxy) = pair().await;
    let response = answer_to(&proxy, "CONNECT h:443 HTTP/1.1\r\nhost: h:443\r\n\r\n").await;
    assert_eq!((response.status(), simulator.state().requests()), (405, 0));
}

#[tokio::test]
async fn options_of_the_server_as_a_whole_are_passed_on() {
    let (upstream, proxy) = Upstream::behind_proxy().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("OPTIONS * HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let (_connection, head) = upstream.request().await;
    assert!(head.starts_with("OPTIONS * HTTP/1.1\r\n"), "{head}");
}

#[tokio::test]
async fn a_chunk_size_that_is_no_number_is_refused() {
    refused_chunks("zz\r\nhello\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn a_chunk_size_with_a_sign_is_refused() {
    refused_chunks("+5\r\nhello\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn a_chunk_size_in_c_notation_is_refused() {
    refused_chunks("0x5\r\nhello\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn a_chunk_size_beyond_all_numbers_is_refused() {
    refused_chunks("10000000000000005\r\nhello\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn a_chunk_size_that_ends_in_a_bare_line_feed_is_refused() {
    refused_chunks("5\nhello\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn a_bare_line_feed_in_a_chunk_extension_is_refused() {
    refused_chunks("5;x=\ny\r\nhello\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn a_chunk_longer_than_its_size_is_refused() {
    refused_chunks("5\r\nhello!\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn a_trailer_that_is_no_field_is_refused() {
    refused_chunks("0\r\nno field\r\n\r\n").await;
}

#[tokio::test]
async fn a_folded_field_is_refused() {
    refused_lines("x-a: one\r\n two\r\n").await;
}

#[tokio::test]
async fn a_space_before_the_colon_is_refused() {
    refused_lines("content-length : 5\r\n").await;
}

#[tokio::test]
async fn a_line_without_a_colon_is_refused() {
    refused_lines("no field\r\n").await;
}

#[tokio::test]
async fn a_nul_in_a_value_is_refused() {
    refused_lines("x-a: o\0e\r\n").await;
}

#[tokio::test]
async fn a_nul_in_a_name_is_refused() {
    refused_lines("x\0a: one\r\n").await;
}

#[tokio::test]
async fn a_nul_in_the_target_is_refused() {
    refused("GET /e\0cho HTTP/1.1\r\nhost: h\r\n\r\n").await;
}

#[tokio::test]
async fn a_bare_carriage_return_in_a_value_is_refused() {
    refused_lines("x-a: one\rx-b: two\r\n").await;
}

#[tokio::test]
async fn a_target_with_bytes_beyond_ascii_is_refused() {
    refused("GET /caf\u{e9} HTTP/1.1\r\nhost: h\r\n\r\n").await;
}

#[tokio::test]
async fn a_method_that_is_no_token_is_refused() {
    refused("G@T / HTTP/1.1\r\nhost: h\r\n\r\n").await;
}

#[tokio::test]
async fn a_request_without_a_version_is_refused() {
    refused("GET /echo\r\n\r\n").await;
}

#[tokio::test]
async fn an_unknown_version_is_refused() {
    refused("GET /echo HTTP/3.0\r\nhost: h\r\n\r\n").await;
}

#[tokio::test]
async fn garbage_is_refused_at_once() {
    refused(b"\x00\xff\x13garbage without any line end").await;
}

#[tokio::test]
async fn much_garbage_is_refused_and_the_answer_arrives() {
    refused(vec![0xfe; 300_000]).await;
}

#[tokio::test]
async fn a_tls_handshake_is_refused_at_once() {
    // The head of a ClientHello record; a client would wait for the answer now.
    let mut hello = vec![0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03];
    hello.extend([0x5a; 500]);
    refused(hello).await;
}

#[tokio::test]
async fn a_refusal_says_what_was_wrong() {
    let (_simulator, proxy) = pair().await;
    let request =
        "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n";
    let response = answer_to(&proxy, request).await;
    let problem: serde_json::Value = response.json();
    assert_eq!((&problem["outcome"], &problem["status"]), (&"bad_request".into(), &400.into()));
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("both Content-Length and Transfer-Encoding"), "{detail}");
}

#[tokio::test]
async fn empty_lines_before_a_request_are_forgiven() {
    let (_simulator, proxy) = pair().await;
    let response = answer_to(&proxy, "\r\n\r\nGET /echo HTTP/1.1\r\nhost: h\r\n\r\n").await;
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn what_follows_a_body_is_never_part_of_it() {
    let (_simulator, proxy) = pair().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("POST /echo?a HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\nabcGET /echo?b HTTP/1.1\r\nhost: h\r\n\r\n")
        .await;
    let first: Echo = raw.response().await.json();
    let second: Echo = raw.response().await.json();
    assert_eq!((&*first.target, first.bytes), ("/echo?a", 3));
    assert_eq!((&*second.target, second.bytes), ("/echo?b", 0));
}
