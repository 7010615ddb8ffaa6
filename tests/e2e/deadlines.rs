//! The four deadlines of a request: what each one measures, and what the client and the metrics are told.
//!
//! Those that are learned are in `learned`, what a client says of its time in `budgets`, what load does in `levels`.

mod budgets;
mod grpc;
mod learned;
mod levels;

use std::time::{Duration, Instant};

use outrigger_tests::harness::{Answer, Call, Client, Protocol, Proxy, Streaming, Transcript};
use outrigger_tests::sim::{Options, Simulator};

use super::fleet::{
    BlackHole, attempts, await_idle, chat, ended, error_code, one_backend, one_backend_at, sim,
};

const UPSTREAMS: [&str; 2] = ["http1", "h2c"];
const CLIENTS: [Protocol; 2] = [Protocol::Http1, Protocol::H2];

/// A proxy with these deadlines and no retries, in front of one simulator.
async fn start(one: &Simulator, upstream: &str, deadline: &str) -> Proxy {
    let route = format!("retry: off, deadline: {{ {deadline} }}");
    Proxy::start(&one_backend(&[one], &format!("protocol: {upstream}"), &route)).await
}

/// The answer is a 504 of ours with this outcome, not before `limit` and not much later.
fn timed_out(answer: &Answer, outcome: &str, limit: Duration) {
    assert_eq!((answer.status, &*error_code(answer)), (504, outcome), "{}", answer.text());
    assert!(answer.header("retry-after").is_some(), "{:?}", answer.headers);
    let after = answer.head_after;
    assert!(after >= limit && after < limit + Duration::from_secs(10), "{after:?} for {limit:?}");
}

/// The stream was cut after `events` whole events, with an event that says why. On h2 a reset could take that event
/// with it, so there it alone tells.
fn cut(transcript: &Transcript, protocol: Protocol, outcome: &str, events: usize) {
    let broken = transcript.cut.is_some() || protocol == Protocol::H2;
    assert!(broken && !transcript.is_complete(), "it looks complete: {transcript:?}");
    // Empty lines that end what may have been half an event are no event.
    let said: Vec<_> = transcript.events.iter().filter(|event| !event.text.is_empty()).collect();
    let (last, before) = said.split_last().expect("events");
    assert_eq!(last.json()["error"]["code"], outcome, "{transcript:?}");
    assert_eq!(before.len(), events, "{transcript:?}");
}

async fn counted(proxy: &Proxy, outcome: &str, code: u16, times: usize) {
    proxy.await_metrics(|metrics| ended(metrics, outcome, code) == times as f64).await;
    let log = proxy.await_access(times).await;
    assert_eq!(log[times - 1]["outcome"], outcome, "{}", log[times - 1]);
}

#[tokio::test]
async fn a_connection_that_is_not_made_in_time_is_504() {
    let hole = BlackHole::open().await;
    let endpoints = format!("['{}']", hole.address);
    let route = "retry: off, deadline: { connect: 150ms }";
    let proxy = Proxy::start(&one_backend_at(&endpoints, "", route)).await;
    let answer = chat().send(proxy.address()).await;
    timed_out(&answer, "connect_timeout", Duration::from_millis(150));
    counted(&proxy, "connect_timeout", 504, 1).await;
    let metrics = proxy.metrics().await;
    let timeouts = metrics.get("outrigger_upstream_connections_total", &[("result", "timeout")]);
    assert_eq!(timeouts, 1.0);
}

#[tokio::test]
async fn a_connection_that_is_not_made_in_time_is_tried_at_another_endpoint() {
    let (hole, one) = (BlackHole::open().await, sim("one"));
    let endpoints = format!("['{}', '{}']", hole.address, one.addr);
    let route = "deadline: { connect: 500ms }";
    let proxy = Proxy::start(&one_backend_at(&endpoints, "balance: round_robin", route)).await;
    let answer = chat().send(proxy.address()).await;
    assert_eq!((answer.status, attempts(&answer)), (200, 2));
    assert!(answer.head_after >= Duration::from_millis(500));
}

#[tokio::test]
async fn an_answer_that_does_not_begin_in_time_is_504_and_frees_the_endpoint() {
    for upstream in UPSTREAMS {
        let one = sim("one");
        let proxy = start(&one, upstream, "first_byte: 200ms").await;
        for (times, protocol) in (1..).zip(CLIENTS) {
            let call = chat().over(protocol).fault("stall_first_byte");
            let answer = call.send(proxy.address()).await;
            timed_out(&answer, "first_byte_timeout", Duration::from_millis(200));
            one.aborted().await;
            counted(&proxy, "first_byte_timeout", 504, times).await;
        }
        await_idle(&proxy).await;
    }
}

#[tokio::test]
async fn a_head_without_a_body_is_not_a_first_byte() {
    for upstream in UPSTREAMS {
        let one = sim("one");
        let proxy = start(&one, upstream, "first_byte: 800ms").await;
        for (times, protocol) in (1..).zip(CLIENTS) {
            let call = chat().streaming().over(protocol).fault("stall_mid=0");
            let streaming = call.open(proxy.address()).await;
            assert_eq!(streaming.status, 200);
            cut(&streaming.events().await, protocol, "first_byte_timeout", 0);
            one.aborted().await;
            counted(&proxy, "first_byte_timeout", 200, times).await;
        }
    }
}

#[tokio::test]
async fn a_first_byte_that_is_late_is_awaited_elsewhere_when_that_was_asked_for() {
    let (a, b) = (sim("a"), sim("b"));
    let route = "deadline: { first_byte: 1s }, retry: { when: [first_byte] }";
    let proxy = Proxy::start(&one_backend(&[&a, &b], "balance: round_robin", route)).await;
    let answer = chat().fault("stall_first_byte;at=a").send(proxy.address()).await;
    assert_eq!((answer.status, answer.by(), attempts(&answer)), (200, "b", 2));
    a.aborted().await;
    let route = "deadline: { first_byte: 200ms }";
    let proxy = Proxy::start(&one_backend(&[&a, &b], "balance: round_robin", route)).await;
    let answer = chat().fault("stall_first_byte;at=a").send(proxy.address()).await;
    assert_eq!(answer.status, 504, "it may still be running: not by default");
}

#[tokio::test]
async fn the_first_byte_is_awaited_from_the_end_of_the_request() {
    let one = sim("one");
    let proxy = start(&one, "http1", "first_byte: 1s").await;
    let (call, feed) = Call::post("/echo").fed();
    let address = proxy.address();
    let sending = tokio::spawn(async move { call.send(address).await });
    // A client that takes its time; the endpoint is not to blame.
    for _ in 0..5 {
        assert!(feed.send("a part of the body").await);
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    drop(feed);
    let answer = sending.await.expect("an answer");
    assert_eq!((answer.status, answer.echo().bytes), (200, 90));
}

#[tokio::test]
async fn a_stream_that_falls_silent_is_cut_with_an_event_that_says_so() {
    for upstream in UPSTREAMS {
        let one = sim("one");
        let proxy = start(&one, upstream, "gap: 800ms").await;
        for (times, protocol) in (1..).zip(CLIENTS) {
            let call = chat().max_tokens(40).streaming().over(protocol).fault("stall_mid=3");
            let began = Instant::now();
            let transcript = call.open(proxy.address()).await.events().await;
            assert!(began.elapsed() >= Duration::from_millis(800));
            cut(&transcript, protocol, "gap_timeout", 3);
            one.aborted().await;
            counted(&proxy, "gap_timeout", 200, times).await;
        }
        await_idle(&proxy).await;
    }
}

#[tokio::test]
async fn an_answer_that_stops_half_way_is_cut_and_not_completed() {
    let one = sim("one");
    let proxy = start(&one, "http1", "gap: 200ms").await;
    for (times, protocol) in (1..).zip(CLIENTS) {
        let answer = chat().over(protocol).fault("stall_mid=1").send(proxy.address()).await;
        assert!(answer.status == 200 && answer.cut.is_some(), "{answer:?}");
        assert!(!answer.text().contains("gap_timeout"), "nothing foreign in a body of JSON");
        counted(&proxy, "gap_timeout", 200, times).await;
    }
}

#[tokio::test]
async fn a_pause_shorter_than_the_gap_deadline_is_no_reason_to_cut() {
    let one = sim("one");
    let proxy = start(&one, "http1", "gap: 3s").await;
    let call = chat().max_tokens(10).streaming().fault("stall_mid=3;for=300ms");
    let transcript = call.open(proxy.address()).await.events().await;
    assert!(transcript.is_complete(), "{transcript:?}");
}

#[tokio::test]
async fn a_request_that_takes_too_long_in_all_is_504_while_nothing_was_sent() {
    for upstream in UPSTREAMS {
        let one = sim("one");
        let proxy = start(&one, upstream, "total: 250ms").await;
        let answer = chat().fault("stall_first_byte").send(proxy.address()).await;
        timed_out(&answer, "total_timeout", Duration::from_millis(250));
        one.aborted().await;
        counted(&proxy, "total_timeout", 504, 1).await;
    }
}

#[tokio::test]
async fn a_stream_that_takes_too_long_in_all_is_cut() {
    for upstream in UPSTREAMS {
        let one = sim("one");
        let proxy = start(&one, upstream, "total: 1s").await;
        for (times, protocol) in (1..).zip(CLIENTS) {
            let streaming =
                Call::get("/events/1000?gap=20").over(protocol).open(proxy.address()).await;
            let transcript = streaming.events().await;
            let events = transcript.events.iter().filter(|e| e.json()["index"].is_u64()).count();
            assert!((1..=55).contains(&events), "{events} events in a second");
            cut(&transcript, protocol, "total_timeout", events);
            one.aborted().await;
            counted(&proxy, "total_timeout", 200, times).await;
        }
    }
}

#[tokio::test]
async fn the_total_bounds_connecting_too() {
    let hole = BlackHole::open().await;
    let endpoints = format!("['{}']", hole.address);
    let route = "retry: off, deadline: { connect: 10s, total: 200ms }";
    let proxy = Proxy::start(&one_backend_at(&endpoints, "", route)).await;
    let answer = chat().send(proxy.address()).await;
    assert_eq!(answer.status, 504, "{}", answer.text());
    let after = answer.head_after;
    assert!((200..9_000).contains(&after.as_millis()), "{after:?}");
    assert_eq!(error_code(&answer), "total_timeout");
}

#[tokio::test]
async fn the_total_bounds_all_attempts_together() {
    let (a, b) = (sim("a"), sim("b"));
    let route = "deadline: { total: 400ms }";
    let proxy = Proxy::start(&one_backend(&[&a, &b], "", route)).await;
    let answer = chat().fault("status=503;retry_after=2").send(proxy.address()).await;
    timed_out(&answer, "total_timeout", Duration::from_millis(400));
    assert_eq!(a.state().requests() + b.state().requests(), 1);
}

#[tokio::test]
async fn deadlines_that_are_off_do_not_cut() {
    let one = sim("one");
    let off = "connect: off, first_byte: off, gap: off, total: off";
    let proxy = start(&one, "http1", off).await;
    let late = chat().fault("stall_first_byte=700ms").send(proxy.address()).await;
    assert_eq!((late.status, late.cut), (200, None));
    let call = chat().max_tokens(10).streaming().fault("stall_mid=2;for=700ms");
    let transcript = call.open(proxy.address()).await.events().await;
    assert!(transcript.is_complete(), "{transcript:?}");
}

#[tokio::test]
async fn a_long_stream_with_short_gaps_is_never_cut_by_the_first_byte_deadline() {
    for upstream in UPSTREAMS {
        let one = sim("one");
        let proxy = start(&one, upstream, "first_byte: 1s, gap: 1s").await;
        for protocol in CLIENTS {
            let call = Call::get("/events/70?gap=25").over(protocol);
            let streaming: Streaming = call.open(proxy.address()).await;
            let transcript = streaming.events().await;
            assert!(transcript.is_complete(), "{upstream}, {protocol:?}: {:?}", transcript.cut);
            assert_eq!(transcript.events.len(), 71);
            assert!(transcript.events[70].after > Duration::from_millis(1_500));
        }
    }
}

#[tokio::test]
async fn a_deadline_of_one_request_does_not_reach_the_next_on_its_connection() {
    let one = Simulator::start(Options::named("one").fast());
    let proxy = start(&one, "http1", "total: 2s").await;
    let mut client = Client::connect(proxy.address(), Protocol::Http1).await;
    for _ in 0..4 {
        let call = Call::get("/events/10?gap=60");
        let answer = client.send(call).await.expect("an answer");
        assert_eq!((answer.status, answer.cut), (200, None));
    }
    assert_eq!(one.state().connections, 1, "all of them went over one connection");
}

#[tokio::test]
async fn outside_the_llm_routes_a_timeout_is_told_as_a_problem() {
    let one = sim("one");
    let proxy = start(&one, "http1", "first_byte: 100ms").await;
    let answer = Call::get("/bytes/1").fault("stall_first_byte").send(proxy.address()).await;
    assert_eq!(answer.status, 504);
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    assert_eq!(answer.json()["outcome"], "first_byte_timeout");
}
