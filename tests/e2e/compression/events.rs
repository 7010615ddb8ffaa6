//! Compressed streams of events: every event can be read at the moment in which it arrives, and an end that tells the
//! truth.

use outrigger_tests::harness::{Call, Protocol, Proxy, Streaming};
use outrigger_tests::sim::Simulator;
use serde_json::{Value, json};

use super::super::fleet::{one_backend, one_backend_at, sim};
use super::super::wire::upstream::Upstream;
use super::coding::{ALL, Incremental, decode};
use super::{CLIENTS, ON, UPSTREAMS, accepting, before};

const EVENTS: &str = "compress: { events: true }";

const HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

/// A stream that is decoded as it comes.
struct Listening {
    streaming: Streaming,
    decoder: Incremental,
}

impl Listening {
    fn to(streaming: Streaming, coding: &str) -> Self {
        assert_eq!(streaming.header("content-encoding"), Some(coding), "{:?}", streaming.headers);
        assert_eq!(streaming.header("content-length"), None);
        Self { streaming, decoder: Incremental::new(coding) }
    }

    /// Waits until exactly this has come.
    async fn hear(&mut self, said: &str) {
        while self.decoder.text() != said {
            let part = self.streaming.part().await;
            assert!(part.is_some(), "ended after {:?}", self.decoder.text());
            part.iter().for_each(|part| self.decoder.feed(part));
        }
    }

    /// All that comes until the end, and whether the connection says that it broke off.
    async fn rest(mut self) -> (String, bool) {
        while let Some(part) = self.streaming.part().await {
            self.decoder.feed(&part);
        }
        (self.decoder.text(), self.streaming.cut().is_some())
    }
}

/// The data of the events, empty ones left out.
fn data(text: &str) -> Vec<Value> {
    let data = text.split("\n\n").filter_map(|event| event.trim().strip_prefix("data: "));
    data.map(|data| serde_json::from_str(data).unwrap_or(json!(data))).collect()
}

#[tokio::test]
async fn every_event_can_be_read_before_the_next_is_sent() {
    let upstream = Upstream::bind().await;
    let endpoints = format!("['{}']", upstream.endpoint());
    let proxy = Proxy::start(&one_backend_at(&endpoints, "", EVENTS)).await;
    for client in CLIENTS {
        for coding in ALL {
            let call = accepting(Call::get("/").over(client), coding);
            let (streaming, mut connection) = tokio::join!(call.open(proxy.address()), async {
                let (mut connection, _) = upstream.request().await;
                connection.send(HEAD).await;
                connection
            });
            let (mut listening, mut said) = (Listening::to(streaming, coding), String::new());
            for index in 0..40 {
                let event = format!("data: {{\"index\":{index}}}\n\n");
                connection.send(chunk(&event)).await;
                said.push_str(&event);
                listening.hear(&said).await;
            }
            connection.finish("0\r\n\r\n").await;
            assert_eq!(listening.rest().await, (said, false), "{coding} {client:?}");
        }
    }
}

#[tokio::test]
async fn every_event_of_an_h2c_endpoint_can_be_read_before_the_next_is_sent() {
    let sim = sim("sim");
    let proxy = before(&sim, "h2c", EVENTS).await;
    for client in CLIENTS {
        for coding in ALL {
            let call = Call::post("/mirror").header("x-sim-set", "content-type=text/event-stream");
            let (call, feed) = accepting(call.over(client), coding).fed();
            let mut said = "data: first\n\n".to_owned();
            assert!(feed.send(said.clone()).await);
            let mut listening = Listening::to(call.open(proxy.address()).await, coding);
            for index in 0..40 {
                listening.hear(&said).await;
                let event = format!("data: {{\"index\":{index}}}\n\n");
                said.push_str(&event);
                assert!(feed.send(event).await);
            }
            drop(feed);
            assert_eq!(listening.rest().await, (said, false), "{coding} {client:?}");
        }
    }
}

#[tokio::test]
async fn a_chat_says_the_same_in_every_coding() {
    let sim = sim("sim");
    let call = || Call::chat("how deep?").max_tokens(300).streaming();
    let direct = call().open(sim.addr).await.events().await;
    for upstream in UPSTREAMS {
        let proxy = before(&sim, upstream, EVENTS).await;
        for client in CLIENTS {
            for coding in ALL {
                let call = call().field("stream_options", json!({"include_usage": true}));
                let answer = accepting(call.over(client), coding).send(proxy.address()).await;
                assert_eq!(
                    (answer.cut.as_deref(), answer.header("content-encoding")),
                    (None, Some(coding))
                );
                let body = decode(coding, &answer.body).expect("a whole body");
                let events = data(std::str::from_utf8(&body).expect("text"));
                let content = |event: &Value| {
                    event["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned()
                };
                assert_eq!(events.iter().map(content).collect::<String>(), direct.text());
                assert_eq!(events.last(), Some(&json!("[DONE]")));
            }
        }
        let log = proxy.await_access(6).await;
        assert!(log.iter().all(|line| line["tokens_out"] == 300), "{log:?}");
    }
}

#[tokio::test]
async fn events_are_left_alone_unless_the_route_names_them() {
    let sim = sim("sim");
    let proxy = before(&sim, "http1", ON).await;
    let call = Call::chat("how deep?").max_tokens(300).streaming();
    let streaming = accepting(call, "zstd, br, gzip").open(proxy.address()).await;
    assert_eq!((streaming.header("content-encoding"), streaming.header("vary")), (None, None));
    assert!(streaming.events().await.is_complete());
}

async fn broken(sim: &Simulator, route: &str, fault: &str, outcome: &str) {
    let proxy = Proxy::start(&one_backend(&[sim], "", &format!("{EVENTS}, {route}"))).await;
    for client in CLIENTS {
        for coding in ALL {
            let call = Call::chat("how deep?").max_tokens(20).streaming().fault(fault);
            let streaming = accepting(call.over(client), coding).open(proxy.address()).await;
            let (text, cut) = Listening::to(streaming, coding).rest().await;
            let told = format!("{fault} {coding} {client:?}: {text:?}");
            let events = data(&text);
            let (last, before) = events.split_last().expect("events");
            assert_eq!(last["error"]["code"], outcome, "{told}");
            assert_eq!(before.len(), 3, "what came before is passed on: {told}");
            // On h2 a reset could take the last event with it, so there that event alone tells.
            assert!(cut || client == Protocol::H2, "it looks complete: {told}");
        }
    }
}

#[tokio::test]
async fn a_stream_that_breaks_off_says_so_in_its_coding() {
    let sim = sim("sim");
    broken(&sim, "", "close_mid=3", "upstream_reset").await;
    broken(&sim, "", "reset_mid=3", "upstream_reset").await;
    broken(&sim, "", "bad_chunk=3", "upstream_invalid").await;
}

#[tokio::test]
async fn a_stream_that_falls_silent_says_so_in_its_coding() {
    broken(&sim("sim"), "deadline: { gap: 200ms }", "stall_mid=3", "gap_timeout").await;
}

#[tokio::test]
async fn an_error_event_does_not_run_into_half_a_compressed_event() {
    let upstream = Upstream::bind().await;
    let endpoints = format!("['{}']", upstream.endpoint());
    let proxy = Proxy::start(&one_backend_at(&endpoints, "", EVENTS)).await;
    for coding in ALL {
        let call = accepting(Call::get("/"), coding);
        let (streaming, _connection) = tokio::join!(call.open(proxy.address()), async {
            let (mut connection, _) = upstream.request().await;
            connection.finish(format!("{HEAD}{}", chunk("data: \"whole\"\n\ndata: {\"half"))).await;
            connection
        });
        let (text, cut) = Listening::to(streaming, coding).rest().await;
        assert!(cut, "{text:?}");
        let events = data(&text);
        assert_eq!(events.first(), Some(&json!("whole")), "{text:?}");
        let last = events.last().expect("events");
        assert_eq!(last["error"]["code"], "upstream_reset", "{coding}: {text:?}");
    }
}
