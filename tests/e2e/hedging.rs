//! A slow attempt gets company: a second endpoint is asked, whoever begins first is passed on, the other one is free at
//! once and nothing is held against it.

mod racing;

use std::time::Duration;

use outrigger_tests::harness::{Answer, Call, Load, Metrics, Proxy, Raw};
use outrigger_tests::sim::{Fault, Rule, Simulator, sha256};

use crate::fleet::{
    attempts, await_idle, chat, ended, endpoint_states, one_backend, one_backend_at, sim,
};

/// Endpoints in turn and never ejected, so that the first one of a fresh proxy gets the first request.
pub(crate) const IN_TURN: &str = "balance: round_robin, ejection: off";
/// Every request has earned a hedge, and there is always room for it.
pub(crate) const SOON: &str = "hedge: { after: 50ms, budget: 100% }, \
    retry: { backoff: 1ms, budget: { percent: 100, min_per_second: 1000 } }";
/// Longer than a hedge takes to be sent and answered, also on a busy machine.
pub(crate) const LATER: Duration = Duration::from_secs(2);

pub(crate) async fn two(backend: &str, route: &str) -> (Simulator, Simulator, Proxy) {
    let (a, b) = (sim("a"), sim("b"));
    let proxy = Proxy::start(&one_backend(&[&a, &b], backend, route)).await;
    (a, b, proxy)
}

pub(crate) fn hedges(metrics: &Metrics, result: &str) -> f64 {
    metrics.get("outrigger_hedges_total", &[("route", "all"), ("result", result)])
}

pub(crate) fn denied(metrics: &Metrics, reason: &str) -> f64 {
    metrics.get("outrigger_hedges_denied_total", &[("route", "all"), ("reason", reason)])
}

/// What is counted at the endpoint of a simulator: attempts that ended, and races that it lost.
pub(crate) fn counted(metrics: &Metrics, simulator: &Simulator) -> (f64, f64) {
    let labels = [("endpoint", &*simulator.endpoint())];
    let of = |name| metrics.get(name, &labels);
    (of("outrigger_endpoint_requests_total"), of("outrigger_endpoint_races_lost_total"))
}

fn is_hedged(answer: &Answer, by: &str) {
    assert_eq!((answer.status, answer.by(), attempts(answer)), (200, by, 2), "{}", answer.text());
    assert_eq!(answer.cut, None);
}

#[tokio::test]
async fn a_slow_endpoint_is_hedged_and_its_slot_is_freed() {
    for upstream in ["http1", "h2c"] {
        for call in [chat(), chat().streaming(), chat().h2(), Call::get("/bytes/70000")] {
            let (a, b, proxy) = two(&format!("protocol: {upstream}, {IN_TURN}"), SOON).await;
            let answer = call.fault("stall_first_byte;at=a").send(proxy.address()).await;
            is_hedged(&answer, "b");
            a.aborted().await;
            await_idle(&proxy).await;
            let metrics = proxy.await_metrics(|m| hedges(m, "won") == 1.0).await;
            assert_eq!(counted(&metrics, &a), (0.0, 1.0), "over {upstream}");
            assert_eq!(counted(&metrics, &b), (1.0, 0.0), "over {upstream}");
            assert_eq!(metrics.get("outrigger_endpoint_first_byte_seconds_count", &[]), 1.0);
        }
    }
}

#[tokio::test]
async fn a_head_alone_is_no_answer_to_a_prompt() {
    for upstream in ["http1", "h2c"] {
        let (a, _b, proxy) = two(&format!("protocol: {upstream}, {IN_TURN}"), SOON).await;
        // The head of the stream comes at once and then nothing.
        let call = chat().streaming().max_tokens(40).fault("stall_mid=0;at=a");
        let transcript = call.open(proxy.address()).await.events().await;
        assert!(transcript.is_complete(), "{upstream}: {:?}", transcript.cut);
        a.aborted().await;
    }
}

#[tokio::test]
async fn the_answer_of_the_winner_is_passed_on_to_its_end() {
    let (_a, _b, proxy) = two(IN_TURN, SOON).await;
    let long = || chat().max_tokens(200).streaming();
    let plain = long().open(proxy.address()).await.events().await;
    for upstream in ["http1", "h2c"] {
        let (a, _b, proxy) = two(&format!("protocol: {upstream}, {IN_TURN}"), SOON).await;
        let call = long().fault("stall_first_byte;at=a");
        let transcript = call.open(proxy.address()).await.events().await;
        assert!(transcript.is_complete(), "{upstream}: {:?}", transcript.cut);
        assert_eq!(transcript.text(), plain.text(), "{upstream}");
        a.aborted().await;
    }
}

#[tokio::test]
async fn a_body_is_sent_again_as_a_whole() {
    let body: Vec<u8> = (0..700_000_u32).map(|n| (n % 251) as u8).collect();
    for upstream in ["http1", "h2c"] {
        for streamed in [false, true] {
            let (a, _b, proxy) = two(&format!("protocol: {upstream}, {IN_TURN}"), SOON).await;
            let post = || Call::post("/echo").fault("stall_first_byte;at=a");
            let answer = if streamed {
                let (call, feed) = post().fed();
                let address = proxy.address();
                let sending = tokio::spawn(async move { call.send(address).await });
                for part in body.chunks(100_000) {
                    assert!(feed.send(part.to_vec()).await);
                }
                drop(feed);
                sending.await.expect("an answer")
            } else {
                post().body(body.clone()).send(proxy.address()).await
            };
            is_hedged(&answer, "b");
            assert_eq!(answer.echo().sha256, sha256(&body), "{upstream}, streamed: {streamed}");
            a.aborted().await;
        }
    }
}

#[tokio::test]
async fn a_body_beyond_the_retry_buffer_is_not_hedged() {
    let route = "hedge: { after: 50ms, budget: 100% }, retry: { buffer: 64KiB }";
    let (_a, b, proxy) = two(IN_TURN, route).await;
    let call = Call::post("/echo").body(vec![b'x'; 1_000_000]).fault("stall_first_byte=2s;at=a");
    let answer = call.send(proxy.address()).await;
    assert_eq!((answer.status, answer.by(), attempts(&answer)), (200, "a", 1));
    assert_eq!((b.state().requests(), denied(&proxy.metrics().await, "buffer")), (0, 1.0));
}

#[tokio::test]
async fn who_is_hedged_away_is_not_ejected() {
    let backend = "balance: round_robin, ejection: { failures: 1, base: 60s }";
    let (a, _b, proxy) = two(backend, SOON).await;
    for round in 1..=4 {
        a.fault(Fault::StallFirstByte(None));
        let answers = [chat().send(proxy.address()).await, chat().send(proxy.address()).await];
        assert!(answers.iter().all(|answer| (answer.status, answer.by()) == (200, "b")));
        let lost = a.state().requests();
        assert!(lost >= 1, "round {round}: a is asked");
        for endpoint in endpoint_states(&proxy).await {
            assert!(!endpoint.ejected, "round {round}: {endpoint:?}");
        }
        a.clear_faults();
    }
}

#[tokio::test]
async fn an_ejected_endpoint_is_no_rescue() {
    let backend = "balance: round_robin, ejection: { failures: 1, base: 60s }";
    let (a, b, proxy) = two(backend, SOON).await;
    b.inflict(Rule::always(Fault::Status(500, None)).times(1));
    for _ in 0..2 {
        chat().send(proxy.address()).await;
    }
    let asked = b.state().requests();
    a.fault(Fault::StallFirstByte(Some(LATER)));
    let answer = chat().send(proxy.address()).await;
    assert_eq!((answer.status, answer.by(), b.state().requests()), (200, "a", asked));
    assert_eq!(denied(&proxy.metrics().await, "no_endpoint"), 1.0);
}

/// Lets so many requests come to where a hedge is due, one after the other, and hang up.
async fn come_due(proxy: &Proxy, requests: usize) {
    for request in 1..=requests {
        let client = tokio::spawn(chat().fault("stall_first_byte").try_send(proxy.address()));
        let decided = |metrics: &Metrics| {
            let denied = metrics.get("outrigger_hedges_denied_total", &[]);
            metrics.get("outrigger_attempts_total", &[]) + denied
        };
        proxy.await_metrics(|metrics| decided(metrics) == 2.0 * request as f64).await;
        client.abort();
    }
    await_idle(proxy).await;
}

#[tokio::test]
async fn hedges_are_a_share_of_the_requests() {
    let route = "hedge: { after: 1ms, budget: 25% }, \
        retry: { budget: { percent: 100, min_per_second: 1000 } }";
    let (a, b, proxy) = two(IN_TURN, route).await;
    come_due(&proxy, 8).await;
    let metrics = proxy.metrics().await;
    assert_eq!((hedges(&metrics, "given_up"), denied(&metrics, "share")), (2.0, 6.0));
    assert_eq!(a.state().requests() + b.state().requests(), 10);
}

#[tokio::test]
async fn retries_and_hedges_share_one_budget() {
    let route = "hedge: { after: 1ms, budget: 100% }, \
        retry: { budget: { percent: 50, min_per_second: 0 } }";
    let (_a, _b, proxy) = two(IN_TURN, route).await;
    come_due(&proxy, 4).await;
    let metrics = proxy.metrics().await;
    assert_eq!((hedges(&metrics, "given_up"), denied(&metrics, "budget")), (2.0, 2.0));
    // What the hedges have spent is not there for a retry.
    let answer = chat().fault("status=503").send(proxy.address()).await;
    assert_eq!((answer.status, attempts(&answer)), (503, 1));
}

#[tokio::test]
async fn attempts_bound_retries_and_hedges_together() {
    let simulators: Vec<_> = ["a", "b", "c"].map(sim).into();
    let all: Vec<_> = simulators.iter().collect();
    let route = "hedge: { after: 20ms, budget: 100%, max: 4 }, \
        retry: { attempts: 2, budget: { percent: 100, min_per_second: 1000 } }";
    let proxy = Proxy::start(&one_backend(&all, IN_TURN, route)).await;
    let answer = chat().fault("stall_first_byte=2s").send(proxy.address()).await;
    assert_eq!((answer.status, attempts(&answer)), (200, 2));
    assert_eq!(denied(&proxy.metrics().await, "attempts"), 1.0);
}

#[tokio::test]
async fn one_request_may_have_several_hedges_where_that_is_wanted() {
    let simulators: Vec<_> = ["a", "b", "c"].map(sim).into();
    let all: Vec<_> = simulators.iter().collect();
    let route = "hedge: { after: 20ms, budget: 100%, max: 2 }, \
        retry: { budget: { percent: 100, min_per_second: 1000 } }";
    let proxy = Proxy::start(&one_backend(&all, IN_TURN, route)).await;
    // Each request earns one hedge.
    assert_eq!(Load::of(10).run(proxy.address(), |_| chat()).await.ok(), 10);
    let stalled = &simulators[1..];
    stalled.iter().for_each(|simulator| simulator.fault(Fault::StallFirstByte(None)));
    let mut most = 0;
    for _ in 0..6 {
        let answer = chat().send(proxy.address()).await;
        assert_eq!((answer.status, answer.by()), (200, "a"), "{}", answer.text());
        most = most.max(attempts(&answer));
    }
    assert_eq!(most, 3, "whose turn it was at first, and both others");
    for simulator in stalled {
        simulator.aborted().await;
    }
    await_idle(&proxy).await;
}

#[tokio::test]
async fn an_upgrade_is_never_hedged() {
    let (a, b, proxy) = two(IN_TURN, "hedge: { after: 1ms, budget: 100% }").await;
    a.fault(Fault::StallFirstByte(Some(Duration::from_millis(500))));
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(
        "GET /ws HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )
    .await;
    assert_eq!(raw.response().await.status(), 101);
    assert_eq!(b.state().requests(), 0);
}

#[tokio::test]
async fn the_access_log_tells_what_became_of_the_hedge() {
    let (a, b, proxy) = two(IN_TURN, SOON).await;
    chat().fault("stall_first_byte;at=a").send(proxy.address()).await;
    let line = proxy.await_access(1).await.remove(0);
    assert_eq!((&line["hedge"], &line["attempts"]), (&"won".into(), &2.into()), "{line}");
    assert_eq!(line["endpoint"], b.endpoint());
    // The turn is b's or a's; whoever it is begins late, and the other never.
    a.inflict(Rule::always(Fault::StallFirstByte(Some(LATER))).times(1));
    b.inflict(Rule::always(Fault::StallFirstByte(Some(LATER))).times(1));
    chat().send(proxy.address()).await;
    let line = proxy.await_access(2).await.remove(1);
    assert_eq!(line["attempts"], 2, "{line}");
    assert!(line["hedge"] == "won" || line["hedge"] == "lost", "{line}");
}

#[tokio::test]
async fn a_route_without_hedges_waits_and_has_no_such_series() {
    let (_a, b, proxy) = two(IN_TURN, "").await;
    let answer = chat().fault("stall_first_byte=300ms;at=a").send(proxy.address()).await;
    assert_eq!((answer.status, answer.by(), attempts(&answer)), (200, "a", 1));
    assert_eq!(b.state().requests(), 0);
    assert!(!proxy.metrics().await.has("outrigger_hedges_total", &[]));
}

#[tokio::test]
async fn a_single_endpoint_has_nobody_beside_it() {
    let one = sim("one");
    let list = format!("['{}']", one.addr);
    let proxy = Proxy::start(&one_backend_at(&list, IN_TURN, SOON)).await;
    let answer = chat().fault("stall_first_byte=2s").send(proxy.address()).await;
    assert_eq!((answer.status, attempts(&answer), one.state().requests()), (200, 1, 1));
    let metrics = proxy.metrics().await;
    assert_eq!((denied(&metrics, "no_endpoint"), ended(&metrics, "ok", 200)), (1.0, 1.0));
}

#[tokio::test]
async fn when_a_hedge_is_due_is_learned() {
    let route = "hedge: { after: p95, budget: 100% }, \
        retry: { budget: { percent: 100, min_per_second: 1000 } }";
    let (a, b, proxy) = two(IN_TURN, route).await;
    // Nothing is known yet: however long the first one takes, there is no hedge.
    let answer = chat().fault("stall_first_byte=500ms").send(proxy.address()).await;
    assert_eq!((answer.status, attempts(&answer)), (200, 1));
    assert!(!proxy.metrics().await.has("outrigger_hedges_total", &[]));
    let report = Load::of(300).at_once(4).run(proxy.address(), |_| chat()).await;
    assert_eq!(report.ok(), 300, "{:?}", report.outcomes());
    let asked = a.state().requests();
    let answers = [1, 2].map(|_| chat().fault("stall_first_byte;at=a").send(proxy.address()));
    for answer in answers {
        let answer = answer.await;
        assert_eq!((answer.status, answer.by()), (200, "b"), "{}", answer.text());
    }
    assert!(a.state().requests() > asked, "one of two turns is a's");
    a.aborted().await;
    assert!(b.state().requests() > 0);
}
