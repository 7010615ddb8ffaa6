//! Endpoints that answer wrongly or not to the end: 502, or a response that nobody can take for complete.

use outrigger_tests::harness::{Answer, Broken, Call, Client, Protocol, Raw};
use outrigger_tests::sim::pattern;

use super::upstream::{Upstream, get_answered_with};
use super::{h2c_pair, pair};

async fn with_fault(fault: &str, target: &str, protocol: Protocol) -> Answer {
    let (_simulator, proxy) = pair().await;
    Call::get(target).fault(fault).over(protocol).send(proxy.address()).await
}

/// The endpoint fails before it answers.
async fn no_answer(fault: &str, outcome: &str) {
    for protocol in [Protocol::Http1, Protocol::H2] {
        let answer = with_fault(fault, "/bytes/10", protocol).await;
        assert_eq!((answer.status, answer.cut.as_deref()), (502, None), "{protocol:?}");
        assert_eq!(answer.json()["outcome"], outcome);
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    }
}

/// The endpoint fails in the middle of its answer.
async fn cut(fault: &str, target: &str) {
    let (_simulator, proxy) = pair().await;
    for protocol in [Protocol::Http1, Protocol::H2] {
        let call = Call::get(target).fault(fault).over(protocol);
        // Over h2 the end of the stream may overtake what came before it, even the head.
        let Ok(answer) = call.try_send(proxy.address()).await else {
            assert_eq!(protocol, Protocol::H2, "the head of the answer is passed on");
            continue;
        };
        assert_eq!(answer.status, 200);
        assert!(answer.cut.is_some(), "{protocol:?} took {:?} for complete", answer.text());
        // What did come is right, and nothing was added to it.
        assert!(pattern(100_000).starts_with(&answer.body), "{protocol:?}");
    }
}

#[tokio::test]
async fn an_endpoint_that_closes_without_answering_is_a_502() {
    no_answer("close", "upstream_reset").await;
}

#[tokio::test]
async fn an_endpoint_that_resets_without_answering_is_a_502() {
    no_answer("reset", "upstream_reset").await;
}

#[tokio::test]
async fn an_endpoint_that_does_not_speak_http_is_a_502() {
    no_answer("garbage", "upstream_invalid").await;
}

#[tokio::test]
async fn an_h2c_endpoint_that_closes_without_answering_is_a_502() {
    let (_simulator, proxy) = h2c_pair().await;
    for fault in ["close", "reset", "garbage"] {
        for protocol in [Protocol::Http1, Protocol::H2] {
            let call = Call::get("/bytes/10").fault(fault).over(protocol);
            assert_eq!(call.send(proxy.address()).await.status, 502, "{fault} {protocol:?}");
        }
    }
}

#[tokio::test]
async fn an_answer_shorter_than_its_length_is_cut() {
    let (_simulator, proxy) = pair().await;
    for protocol in [Protocol::Http1, Protocol::H2] {
        let call = Call::get("/").fault("wrong_length=larger").over(protocol);
        let answer = call.try_send(proxy.address()).await;
        let cut = answer.map_or(protocol == Protocol::H2, |answer| answer.cut.is_some());
        assert!(cut, "{protocol:?}");
    }
}

#[tokio::test]
async fn an_answer_longer_than_its_length_ends_where_it_said() {
    let (simulator, proxy) = pair().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET / HTTP/1.1\r\nhost: h\r\nx-sim-fault: wrong_length=smaller\r\n\r\n").await;
    let response = raw.response().await;
    let said = response.header("content-length").unwrap().parse::<usize>().unwrap();
    assert_eq!(response.body().len(), said);
    // What was too much is nobody else's answer.
    raw.get("/bytes/3").await;
    assert_eq!(raw.response().await.body(), [0, 1, 2]);
    assert_eq!(simulator.state().accepted, 2);
}

#[tokio::test]
async fn an_answer_that_closes_in_the_middle_is_cut() {
    cut("close_mid=1", "/bytes/100000").await;
}

#[tokio::test]
async fn an_answer_that_is_reset_in_the_middle_is_cut() {
    cut("reset_mid=1", "/bytes/100000").await;
}

#[tokio::test]
async fn a_chunked_answer_that_closes_in_the_middle_is_cut() {
    cut("close_mid=1", "/bytes/100000?chunked=1").await;
}

#[tokio::test]
async fn a_chunked_answer_that_is_reset_in_the_middle_is_cut() {
    cut("reset_mid=1", "/bytes/100000?chunked=1").await;
}

#[tokio::test]
async fn an_answer_with_a_bad_chunk_is_cut() {
    cut("bad_chunk=1", "/bytes/100000?chunked=1").await;
}

#[tokio::test]
async fn an_answer_of_h2c_that_is_broken_off_is_cut() {
    let (_simulator, proxy) = h2c_pair().await;
    for fault in ["close_mid=1", "reset_mid=1"] {
        for protocol in [Protocol::Http1, Protocol::H2] {
            let call = Call::get("/bytes/100000").fault(fault).over(protocol);
            let answer = call.try_send(proxy.address()).await;
            let cut = answer.map_or(protocol == Protocol::H2, |answer| answer.cut.is_some());
            assert!(cut, "{fault} {protocol:?}");
        }
    }
}

#[tokio::test]
async fn an_answer_until_close_that_is_reset_is_cut() {
    let (upstream, proxy) = Upstream::behind_proxy().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.get("/").await;
    let (mut connection, _) = upstream.request().await;
    connection.send("HTTP/1.1 200 OK\r\n\r\nbeginning").await;
    let head = raw.head().await.unwrap();
    let mut body = head.body("GET");
    assert_eq!(raw.piece(&mut body).await.unwrap().unwrap().data, b"beginning");
    connection.reset();
    assert!(matches!(raw.piece(&mut body).await, Err(Broken::Closed | Broken::Reset)));
}

#[tokio::test]
async fn a_stream_that_was_cut_does_not_end_the_h2_connection() {
    let (_simulator, proxy) = pair().await;
    let mut client = Client::connect(proxy.address(), Protocol::H2).await;
    let call = Call::get("/bytes/100000").fault("reset_mid=1");
    assert!(client.send(call).await.map_or(true, |answer| answer.cut.is_some()));
    assert_eq!(client.send(Call::get("/bytes/3")).await.unwrap().body.len(), 3);
}

#[tokio::test]
async fn a_connection_goes_on_after_a_502() {
    let (_simulator, proxy) = pair().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET / HTTP/1.1\r\nhost: h\r\nx-sim-fault: reset\r\n\r\n").await;
    assert_eq!(raw.response().await.status(), 502);
    raw.get("/bytes/3").await;
    assert_eq!(raw.response().await.body(), [0, 1, 2]);
}

/// An endpoint answers with exactly this, which must not be passed on.
async fn invalid(answer: &str) {
    let (mut raw, proxy) = get_answered_with(answer).await;
    assert_eq!(raw.response().await.status(), 502);
    assert_eq!(proxy.await_access(1).await[0]["outcome"], "upstream_invalid");
}

#[tokio::test]
async fn an_answer_with_a_length_and_chunks_is_a_502() {
    invalid("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")
        .await;
}

#[tokio::test]
async fn an_answer_with_two_lengths_is_a_502() {
    invalid("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd").await;
}

#[tokio::test]
async fn an_answer_in_an_unknown_coding_is_a_502() {
    invalid("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn an_answer_with_a_nul_in_a_field_is_a_502() {
    invalid("HTTP/1.1 200 OK\r\nx-a: o\0e\r\ncontent-length: 0\r\n\r\n").await;
}

#[tokio::test]
async fn an_answer_with_a_bare_carriage_return_in_a_field_is_a_502() {
    invalid("HTTP/1.1 200 OK\r\nx-a: one\rset-cookie: a=b\r\ncontent-length: 0\r\n\r\n").await;
}

#[tokio::test]
async fn an_answer_without_a_status_is_a_502() {
    invalid("HTTP/1.1 OK\r\ncontent-length: 0\r\n\r\n").await;
}

#[tokio::test]
async fn a_head_that_breaks_off_is_a_502() {
    let (mut raw, _proxy) = get_answered_with("HTTP/1.1 200 OK\r\ncontent-le").await;
    assert_eq!(raw.response().await.status(), 502);
}

#[tokio::test]
async fn early_hints_and_then_nothing_are_a_502() {
    let (mut raw, _proxy) =
        get_answered_with("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").await;
    let response = raw.response().await;
    assert_eq!((response.status(), response.informational.len()), (502, 1));
}

#[tokio::test]
async fn an_endpoint_that_answers_unasked_poisons_nobody() {
    let (upstream, proxy) = Upstream::behind_proxy().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.get("/one").await;
    let (mut first, _) = upstream.request().await;
    first.send("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\noneHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil").await;
    assert_eq!(raw.response().await.text(), "one");
    raw.get("/two").await;
    let (mut second, head) = upstream.request().await;
    assert!(head.starts_with("GET /two "), "{head}");
    second.send("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\ntwo").await;
    assert_eq!(raw.response().await.text(), "two");
}
