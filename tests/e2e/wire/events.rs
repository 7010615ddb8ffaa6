//! Streams of server-sent events: every event at once, and an end that tells the truth.

use outrigger_tests::harness::{Call, Protocol, Raw, Transcript};
use outrigger_tests::sim::{Options, Simulator};
use serde_json::Value;

use super::upstream::Upstream;
use super::{h2c_pair, pair, pair_with};

const HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

#[tokio::test]
async fn the_head_is_passed_on_before_the_first_event() {
    let (upstream, proxy) = Upstream::behind_proxy().await;
    for protocol in [Protocol::Http1, Protocol::H2] {
        let call = Call::get("/").over(protocol);
        let (streaming, (mut connection, _)) = tokio::join!(call.open(proxy.address()), async {
            let (mut connection, head) = upstream.request().await;
            connection.send(HEAD).await;
            (connection, head)
        });
        assert_eq!(streaming.header("content-type"), Some("text/event-stream"), "{protocol:?}");
        connection.finish("0\r\n\r\n").await;
        assert!(streaming.rest().await.cut.is_none());
    }
}

#[tokio::test]
async fn every_event_arrives_before_the_next_is_sent() {
    let (upstream, proxy) = Upstream::behind_proxy().await;
    for protocol in [Protocol::Http1, Protocol::H2] {
        let call = Call::get("/").over(protocol);
        let (mut streaming, (mut connection, _)) =
            tokio::join!(call.open(proxy.address()), async {
                let (mut connection, head) = upstream.request().await;
                connection.send(HEAD).await;
                (connection, head)
            });
        for index in 0..50 {
            connection.send(chunk(&format!("data: {index}\n\n"))).await;
            let event = streaming.event().await.unwrap();
            assert_eq!(event.data, index.to_string(), "{protocol:?}");
        }
        connection.finish("0\r\n\r\n").await;
        assert!(streaming.event().await.is_none() && streaming.cut().is_none());
    }
}

#[tokio::test]
async fn a_part_of_an_event_arrives_before_the_rest_is_sent() {
    let (upstream, proxy) = Upstream::behind_proxy().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.get("/").await;
    let (mut connection, _) = upstream.request().await;
    connection.send(HEAD).await;
    let mut body = raw.head().await.unwrap().body("GET");
    for part in ["da", "ta: ", "x", "\n", "\n"] {
        connection.send(chunk(part)).await;
        assert_eq!(raw.piece(&mut body).await.unwrap().unwrap().data, part.as_bytes());
    }
}

#[tokio::test]
async fn a_part_of_a_chunk_arrives_before_the_rest_is_sent() {
    let (upstream, proxy) = Upstream::behind_proxy().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.get("/").await;
    let (mut connection, _) = upstream.request().await;
    connection.send(format!("{HEAD}a\r\nhello")).await;
    let mut body = raw.head().await.unwrap().body("GET");
    assert_eq!(raw.piece(&mut body).await.unwrap().unwrap().data, b"hello");
    connection.send("world\r\n").await;
    assert_eq!(raw.piece(&mut body).await.unwrap().unwrap().data, b"world");
}

#[tokio::test]
async fn a_stream_is_passed_on_byte_for_byte() {
    let direct = Simulator::start(Options::named("sim").fast());
    let (_simulator, proxy) = pair().await;
    for protocol in [Protocol::Http1, Protocol::H2] {
        let call = || Call::get("/events/200?size=300");
        let (there, here) =
            (call().send(direct.addr).await, call().over(protocol).send(proxy.address()).await);
        assert_eq!((here.cut.as_deref(), here.status), (None, 200));
        assert!(here.body == there.body, "{protocol:?}");
    }
}

#[tokio::test]
async fn a_chat_streams_to_its_end() {
    for h2c in [false, true] {
        let (_simulator, proxy) = if h2c { h2c_pair().await } else { pair().await };
        for protocol in [Protocol::Http1, Protocol::H2] {
            let call = Call::chat("how deep?").max_tokens(20).streaming().over(protocol);
            let transcript = call.open(proxy.address()).await.events().await;
            assert!(transcript.is_complete(), "{protocol:?} h2c {h2c}: {transcript:?}");
        }
    }
}

async fn broken(fault: &str, protocol: Protocol) -> Transcript {
    let (_simulator, proxy) = pair_with("").await;
    let call = Call::chat("how deep?").max_tokens(20).streaming().fault(fault).over(protocol);
    call.open(proxy.address()).await.events().await
}

/// The last event is an error in OpenAI's shape, there is no `[DONE]`, and nothing that came before is missing.
fn assert_told(transcript: &Transcript, code: &str) {
    // Empty lines between events are nothing.
    let events: Vec<_> = transcript.events.iter().filter(|event| !event.text.is_empty()).collect();
    let (last, before) = events.split_last().expect("there are events");
    assert_eq!(last.json()["error"]["code"], code, "{transcript:#?}");
    assert!(last.json()["error"]["message"].is_string());
    assert!(transcript.events.iter().all(|event| !event.is_done()));
    assert_eq!(before.len(), 3, "what came before is passed on: {transcript:#?}");
}

#[tokio::test]
async fn a_stream_that_closes_in_the_middle_ends_with_an_error_event() {
    let transcript = broken("close_mid=3", Protocol::Http1).await;
    assert_told(&transcript, "upstream_reset");
    assert!(
        transcript.cut.is_some(),
        "not even those who do not look into it take it for complete"
    );
}

#[tokio::test]
async fn a_stream_that_is_reset_in_the_middle_ends_with_an_error_event() {
    assert_told(&broken("reset_mid=3", Protocol::Http1).await, "upstream_reset");
}

#[tokio::test]
async fn a_stream_with_a_bad_chunk_ends_with_an_error_event() {
    assert_told(&broken("bad_chunk=3", Protocol::Http1).await, "upstream_invalid");
}

#[tokio::test]
async fn an_h2_stream_that_is_broken_off_ends_with_an_error_event() {
    assert_told(&broken("close_mid=3", Protocol::H2).await, "upstream_reset");
}

#[tokio::test]
async fn a_stream_that_falls_silent_ends_with_an_error_event() {
    let simulator = Simulator::start(Options::named("sim").fast());
    let proxy = outrigger_tests::harness::Proxy::start(&format!(
        "backends: {{ main: {{ endpoints: ['{}'] }} }}\n\
         routes: [{{ backend: main, deadline: {{ gap: 150ms }} }}]",
        simulator.endpoint()
    ))
    .await;
    for protocol in [Protocol::Http1, Protocol::H2] {
        let call = Call::chat("how deep?").max_tokens(20).streaming().fault("stall_mid=3");
        let transcript = call.over(protocol).open(proxy.address()).await.events().await;
        assert_told(&transcript, "gap_timeout");
    }
}

#[tokio::test]
async fn an_error_event_does_not_run_into_half_an_event() {
    let (upstream, proxy) = Upstream::behind_proxy().await;
    let (streaming, _) = tokio::join!(Call::get("/").open(proxy.address()), async {
        let (mut connection, _) = upstream.request().await;
        connection.finish(format!("{HEAD}{}", chunk("data: whole\n\ndata: {\"half"))).await;
        connection
    });
    let transcript = streaming.events().await;
    let data: Vec<_> = transcript.events.iter().map(|event| &*event.data).collect();
    assert_eq!(data[0], "whole");
    let error: Value = transcript.events.last().unwrap().json();
    assert_eq!(error["error"]["code"], "upstream_reset", "{data:?}");
}
