//! Which failed attempts are followed by another one, where it goes, and what bounds it.

use std::time::Duration;

use outrigger_tests::harness::{Answer, Call, Client, Event, Load, Metrics, Protocol, Proxy};
use outrigger_tests::sim::{Fault, Rule, Simulator, sha256};

use crate::fleet::{attempts, chat, ended, error_code, one_backend, one_backend_at, sim};

/// Endpoints in turn and never ejected, so that the first one of a fresh proxy gets the first request.
const IN_TURN: &str = "balance: round_robin, ejection: off";
const GENEROUS: &str = "budget: { percent: 100, min_per_second: 1000 }";

async fn two(route: &str) -> (Simulator, Simulator, Proxy) {
    let (a, b) = (sim("a"), sim("b"));
    let proxy = Proxy::start(&one_backend(&[&a, &b], IN_TURN, route)).await;
    (a, b, proxy)
}

fn chats(simulator: &Simulator) -> u64 {
    simulator.state().seen("/v1/chat/completions")
}

#[tokio::test]
async fn a_refused_connection_sends_the_request_to_the_next_endpoint() {
    let (a, b, proxy) = two(&format!("retry: {{ {GENEROUS} }}")).await;
    a.refuse().await;
    let report = Load::of(20).run(proxy.address(), |_| chat()).await;
    assert_eq!((report.ok(), chats(&b)), (20, 20), "{:?}", report.outcomes());
    let metrics = proxy.metrics().await;
    let retries = metrics.get("outrigger_retries_total", &[("reason", "connect")]);
    assert!((10.0..=20.0).contains(&retries), "{retries} of 20: at least each second turn is a's");
}

#[tokio::test]
async fn a_reset_before_any_byte_sends_the_request_to_the_next_endpoint() {
    let (_a, b, proxy) = two("").await;
    let answer = chat().fault("reset;at=a").send(proxy.address()).await;
    assert_eq!((answer.status, answer.by(), attempts(&answer)), (200, "b", 2));
    assert_eq!(chats(&b), 1);
}

#[tokio::test]
async fn a_retried_request_arrives_whole() {
    let (_a, _b, proxy) = two("").await;
    let body: Vec<u8> = (0..300_000_u32).map(|i| (i % 253) as u8).collect();
    for protocol in [Protocol::Http1, Protocol::H2] {
        let call = Call::post("/echo?q=1").header("x-mine", "yes").body(body.clone());
        // The turn comes back to a with every second attempt.
        let answer = call.over(protocol).fault("close;at=a").send(proxy.address()).await;
        let echo = answer.echo();
        assert_eq!((answer.by(), echo.bytes), ("b", body.len() as u64));
        assert_eq!(echo.sha256, sha256(&body));
        assert_eq!((echo.target.as_str(), echo.header("x-mine")), ("/echo?q=1", Some("yes")));
    }
}

#[tokio::test]
async fn a_stale_connection_of_the_only_endpoint_does_not_fail_a_post() {
    let one = sim("one");
    let proxy = Proxy::start(&one_backend(&[&one], "", "")).await;
    for fault in [Fault::Close, Fault::Reset] {
        assert_eq!(chat().send(proxy.address()).await.status, 200);
        // What the proxy sees is a connection that ends in the moment in which it is used again.
        one.inflict(Rule::always(fault.clone()).times(1));
        let answer = chat().send(proxy.address()).await;
        assert_eq!((answer.status, attempts(&answer)), (200, 1), "{fault}: {}", answer.text());
    }
    let metrics = proxy.metrics().await;
    let opened = metrics.get("outrigger_upstream_connections_total", &[("result", "opened")]);
    assert_eq!(opened, 3.0);
}

/// The endpoint closes its connections all the time, idle or with a request that has just come in.
async fn closed_at_any_moment(protocol: &str) {
    let one = sim("one");
    let backend = format!("protocol: {protocol}");
    let proxy = Proxy::start(&one_backend(&[&one], &backend, "")).await;
    let mut client = Client::connect(proxy.address(), Protocol::Http1).await;
    for round in 0..60 {
        let answer = client.send(chat()).await.expect("an answer");
        assert_eq!(answer.status, 200, "round {round}: {}", answer.text());
        one.hang_up();
    }
}

#[tokio::test]
async fn connections_that_the_only_endpoint_closes_at_any_moment_fail_no_post() {
    closed_at_any_moment("http1").await;
}

#[tokio::test]
async fn h2_connections_that_the_only_endpoint_closes_at_any_moment_fail_no_post() {
    closed_at_any_moment("h2c").await;
}

#[tokio::test]
async fn a_connection_that_died_while_it_rested_is_not_used() {
    let one = sim("one");
    let proxy = Proxy::start(&one_backend(&[&one], "", "retry: off")).await;
    assert_eq!(chat().send(proxy.address()).await.status, 200);
    one.hang_up();
    one.reached(|state| state.connections == 0).await;
    let answer = chat().send(proxy.address()).await;
    assert_eq!((answer.status, attempts(&answer)), (200, 1));
    assert_eq!(chats(&one), 2);
}

#[tokio::test]
async fn a_stream_that_is_reset_in_the_middle_is_not_retried_and_looks_broken() {
    let (a, b, proxy) = two("").await;
    for (protocol, broken) in [(Protocol::Http1, 1.0), (Protocol::H2, 2.0)] {
        let call = chat().max_tokens(20).streaming().fault("reset_mid=2");
        let transcript = call.over(protocol).open(proxy.address()).await.events().await;
        // On h2 a reset could take the last event with it, so there that event alone tells.
        let cut = transcript.cut.is_some() || protocol == Protocol::H2;
        assert!(cut, "{protocol:?}: looks complete: {transcript:?}");
        assert!(!transcript.events.iter().any(Event::is_done));
        let last = transcript.events.last().expect("events");
        assert_eq!(last.json()["error"]["code"], "upstream_reset", "{protocol:?}: {last:?}");
        let whole = transcript.events.iter().filter(|e| e.json()["choices"].is_array()).count();
        assert_eq!(whole, 2, "what came before is passed on");
        let ended = |m: &Metrics| ended(m, "upstream_reset", 200);
        proxy.await_metrics(|metrics| ended(metrics) == broken).await;
    }
    assert_eq!(chats(&a) + chats(&b), 2, "one attempt each");
}

#[tokio::test]
async fn an_answer_that_is_cut_in_half_is_not_retried_and_looks_broken() {
    let (a, b, proxy) = two("").await;
    for fault in ["reset_mid=1", "close_mid=1"] {
        for protocol in [Protocol::Http1, Protocol::H2] {
            let answer = chat().over(protocol).fault(fault).send(proxy.address()).await;
            assert_eq!(answer.status, 200);
            assert!(answer.cut.is_some(), "{fault} over {protocol:?}: {answer:?}");
        }
    }
    assert_eq!(chats(&a) + chats(&b), 4, "one attempt each");
}

#[tokio::test]
async fn a_chunk_that_is_none_breaks_the_answer_off() {
    let (_a, _b, proxy) = two("").await;
    let call = chat().max_tokens(20).streaming().fault("bad_chunk=2");
    let transcript = call.open(proxy.address()).await.events().await;
    assert!(transcript.cut.is_some(), "{transcript:?}");
    proxy.await_metrics(|metrics| ended(metrics, "upstream_invalid", 200) == 1.0).await;
}

#[tokio::test]
async fn garbage_instead_of_an_answer_is_502_and_not_retried() {
    let (a, b, proxy) = two("").await;
    let answer = chat().fault("garbage").send(proxy.address()).await;
    assert_eq!((answer.status, &*error_code(&answer)), (502, "upstream_invalid"));
    assert_eq!(chats(&a) + chats(&b), 1);
}

#[tokio::test]
async fn an_endpoint_that_says_it_is_busy_is_left_for_another_at_once() {
    for status in [429, 503] {
        let (_a, _b, proxy) = two("").await;
        let answer = chat().fault(&format!("status={status};at=a")).send(proxy.address()).await;
        assert_eq!((answer.status, answer.by(), attempts(&answer)), (200, "b", 2));
        assert!(answer.whole_after < Duration::from_secs(8), "{:?}", answer.whole_after);
    }
}

#[tokio::test]
async fn a_short_retry_after_is_waited_for() {
    for status in [429, 503] {
        let (_a, _b, proxy) = two("").await;
        let fault = format!("status={status};retry_after=1;at=a");
        let answer = chat().fault(&fault).send(proxy.address()).await;
        assert_eq!((answer.status, answer.by()), (200, "b"));
        let waited = answer.whole_after;
        assert!(waited >= Duration::from_secs(1), "{status}: came back after {waited:?}");
    }
}

#[tokio::test]
async fn a_long_retry_after_is_passed_on() {
    for status in [429, 503] {
        let (_a, b, proxy) = two("").await;
        let fault = format!("status={status};retry_after=30;at=a");
        let answer = chat().fault(&fault).send(proxy.address()).await;
        assert_eq!((answer.status, answer.header("retry-after")), (status, Some("30")));
        assert_eq!((answer.by(), chats(&b)), ("a", 0));
        assert!(answer.whole_after < Duration::from_secs(8), "{:?}", answer.whole_after);
    }
}

#[tokio::test]
async fn a_retry_after_that_is_a_date_is_understood() {
    let (_a, b, proxy) = two("").await;
    let fault = "status=503;retry_after=Fri, 31 Dec 2100 23:59:59 GMT;at=a";
    let answer = chat().fault(fault).send(proxy.address()).await;
    assert_eq!((answer.status, chats(&b)), (503, 0));
}

#[tokio::test]
async fn when_every_endpoint_is_busy_the_client_gets_the_last_ones_own_words() {
    let (a, b, proxy) = two("").await;
    let answer = chat().fault("status=429").send(proxy.address()).await;
    assert_eq!((answer.status, attempts(&answer)), (429, 2));
    assert!(answer.text().contains("a simulated fault"), "{}", answer.text());
    assert_eq!((chats(&a), chats(&b)), (1, 1), "no endpoint is asked twice");
    let metrics = proxy.metrics().await;
    let denied = metrics.get("outrigger_retries_denied_total", &[("reason", "no_endpoint")]);
    assert_eq!(denied, 1.0);
}

#[tokio::test]
async fn a_failed_generation_is_not_repeated_unless_asked_for() {
    let (a, b, proxy) = two("").await;
    let answer = chat().fault("status=500").send(proxy.address()).await;
    assert_eq!((answer.status, chats(&a) + chats(&b)), (500, 1));
    let (_a, _b, proxy) = two("retry: { when: [server_error] }").await;
    let answer = chat().fault("status=500;at=a").send(proxy.address()).await;
    assert_eq!((answer.status, answer.by(), attempts(&answer)), (200, "b", 2));
    let answer = chat().fault("reset").send(proxy.address()).await;
    assert_eq!(answer.status, 502, "resets were not asked for");
}

#[tokio::test]
async fn with_retries_off_there_is_one_attempt() {
    let (a, b, proxy) = two("retry: off").await;
    for fault in ["reset", "status=503", "close"] {
        let before = chats(&a) + chats(&b);
        let answer = chat().fault(fault).send(proxy.address()).await;
        assert!(answer.status >= 500, "{fault}: {}", answer.status);
        assert_eq!(chats(&a) + chats(&b), before + 1, "{fault}");
    }
}

#[tokio::test]
async fn no_more_attempts_are_made_than_allowed() {
    let simulators: Vec<_> = ["a", "b", "c", "d"].map(sim).into();
    let all: Vec<_> = simulators.iter().collect();
    let route = format!("retry: {{ attempts: 2, {GENEROUS} }}");
    let proxy = Proxy::start(&one_backend(&all, IN_TURN, &route)).await;
    let answer = chat().fault("reset").send(proxy.address()).await;
    assert_eq!((answer.status, &*error_code(&answer)), (502, "upstream_reset"));
    assert_eq!(all.iter().map(|sim| chats(sim)).sum::<u64>(), 2);
    let metrics = proxy.metrics().await;
    let denied = metrics.get("outrigger_retries_denied_total", &[("reason", "attempts")]);
    assert_eq!(denied, 1.0);
}

#[tokio::test]
async fn an_endpoint_is_not_tried_twice_by_the_same_request() {
    let simulators: Vec<_> = ["a", "b", "c"].map(sim).into();
    let all: Vec<_> = simulators.iter().collect();
    let route = format!("retry: {{ attempts: 10, backoff: 1ms, {GENEROUS} }}");
    let proxy = Proxy::start(&one_backend(&all, IN_TURN, &route)).await;
    let answer = chat().fault("reset").send(proxy.address()).await;
    assert_eq!(answer.status, 502);
    assert_eq!(all.iter().map(|sim| chats(sim)).collect::<Vec<_>>(), [1, 1, 1]);
}

/// How many attempts 100 failing requests cost under this budget.
async fn attempts_under(budget: &str) -> (u64, f64) {
    let simulators: Vec<_> = ["a", "b", "c"].map(sim).into();
    let all: Vec<_> = simulators.iter().collect();
    let route = format!("retry: {{ backoff: 1ms, budget: {{ {budget} }} }}");
    let proxy = Proxy::start(&one_backend(&all, IN_TURN, &route)).await;
    all.iter().for_each(|sim| sim.fault(Fault::Status(503, None)));
    let report = Load::of(100).at_once(4).run(proxy.address(), |_| chat()).await;
    assert_eq!(report.status(503), 100, "{:?}", report.outcomes());
    let metrics = proxy.metrics().await;
    let denied = metrics.get("outrigger_retries_denied_total", &[("reason", "budget")]);
    (all.iter().map(|sim| chats(sim)).sum(), denied)
}

#[tokio::test]
async fn a_failing_backend_sees_no_more_than_the_budget_allows() {
    let (attempts, denied) = attempts_under("percent: 20, min_per_second: 0").await;
    assert!((115..=120).contains(&attempts), "{attempts} attempts for 100 requests");
    assert!(denied >= 80.0, "{denied} denied");
}

#[tokio::test]
async fn without_a_budget_there_are_no_retries() {
    let (attempts, _) = attempts_under("percent: 0, min_per_second: 0").await;
    assert_eq!(attempts, 100);
}

#[tokio::test]
async fn a_quiet_route_may_retry_a_few_times_whatever_the_share() {
    let (attempts, _) = attempts_under("percent: 0, min_per_second: 2").await;
    // Two a second, in a window of ten.
    assert_eq!(attempts, 120);
}

async fn posted(proxy: &Proxy, bytes: usize, fault: &str) -> Answer {
    let call = Call::post("/echo").body(vec![b'x'; bytes]);
    let call = if fault.is_empty() { call } else { call.fault(fault) };
    call.send(proxy.address()).await
}

#[tokio::test]
async fn a_body_beyond_the_retry_buffer_is_sent_once() {
    let (_a, b, proxy) = two("retry: { buffer: 64KiB }").await;
    let answer = posted(&proxy, 60_000, "reset;at=a").await;
    assert_eq!((answer.status, answer.by()), (200, "b"));
    let answer = posted(&proxy, 1_000_000, "reset").await;
    assert_eq!(answer.status, 502);
    assert_eq!(b.state().seen("/echo"), 1, "the long one went nowhere else");
    let metrics = proxy.metrics().await;
    let denied = metrics.get("outrigger_retries_denied_total", &[("reason", "buffer")]);
    assert_eq!(denied, 1.0);
}

#[tokio::test]
async fn a_body_of_any_length_goes_on_when_nothing_of_it_was_sent() {
    let (a, b, proxy) = two("retry: { buffer: 64KiB }").await;
    a.refuse().await;
    for _ in 0..2 {
        let answer = posted(&proxy, 3_000_000, "").await;
        assert_eq!((answer.status, answer.by(), answer.echo().bytes), (200, "b", 3_000_000));
    }
    assert_eq!(b.state().seen("/echo"), 2);
}

#[tokio::test]
async fn an_endpoint_that_dies_in_the_middle_of_an_upload_is_replaced() {
    for protocol in [Protocol::Http1, Protocol::H2] {
        let (a, _b, proxy) = two("").await;
        let (call, feed) = Call::post("/echo").over(protocol).fed();
        let address = proxy.address();
        let sending = tokio::spawn(async move { call.send(address).await });
        assert!(feed.send("the first half, ").await);
        a.reached(|state| state.in_flight == 1).await;
        a.hang_up();
        a.reached(|state| state.connections == 0).await;
        assert!(feed.send("the second half").await);
        drop(feed);
        let answer = sending.await.expect("an answer");
        assert_eq!((answer.status, answer.by(), attempts(&answer)), (200, "b", 2));
        assert_eq!(answer.echo().sha256, sha256(b"the first half, the second half"));
    }
}

#[tokio::test]
async fn when_nobody_listens_the_answer_is_502_and_says_so() {
    let (a, b, proxy) = two("").await;
    a.refuse().await;
    b.refuse().await;
    let answer = chat().send(proxy.address()).await;
    assert_eq!((answer.status, &*error_code(&answer)), (502, "connect_failed"));
    proxy.await_metrics(|metrics| ended(metrics, "connect_failed", 502) == 1.0).await;
}

#[tokio::test]
async fn every_attempt_is_counted_once_at_its_endpoint_whatever_became_of_it() {
    let route = "deadline: { first_byte: 300ms }, retry: { when: [overloaded, reset, connect] }";
    let (a, b, proxy) = two(route).await;
    let at = [a.endpoint(), b.endpoint()];
    let mut counted = [0.0; 2];
    for (fault, attempts) in [
        ("status=503;at=a", [1.0, 1.0]),
        ("reset;at=a", [1.0, 1.0]),
        ("stall_first_byte;at=a", [1.0, 0.0]),
        ("status=500;at=b", [0.0, 1.0]),
        ("reset_mid=1;at=a", [1.0, 0.0]),
    ] {
        chat().fault(fault).send(proxy.address()).await;
        for (all, new) in counted.iter_mut().zip(attempts) {
            *all += new;
        }
        let of = |metrics: &Metrics, endpoint: &String| {
            metrics.get("outrigger_endpoint_requests_total", &[("endpoint", endpoint)])
        };
        proxy.await_metrics(|m| [of(m, &at[0]), of(m, &at[1])] == counted).await;
    }
    let gone = tokio::spawn(chat().fault("stall_first_byte").try_send(proxy.address()));
    b.reached(|state| state.in_flight == 1).await;
    gone.abort();
    let labels = [("endpoint", &*at[1]), ("outcome", "client_gone")];
    let metric = "outrigger_endpoint_requests_total";
    proxy.await_metrics(|metrics| metrics.get(metric, &labels) == 1.0).await;
}

#[tokio::test]
async fn an_endpoint_without_a_peer_is_not_retried() {
    let one = sim("one");
    let list = format!("['{}']", one.addr);
    let proxy = Proxy::start(&one_backend_at(&list, IN_TURN, "")).await;
    let answer = chat().fault("status=503;retry_after=1").send(proxy.address()).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    assert_eq!(chats(&one), 1);
}
