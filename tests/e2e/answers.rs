//! Stored answers: what was answered once is answered again when nobody answers, and says that it is not new.

mod asking;
mod bursts;
mod coalescing;
mod keeping;
mod loaded;

use std::time::{Duration, Instant};

use outrigger_tests::harness::{Answer, Call, Metrics, Protocol, Proxy};
use outrigger_tests::sim::{Fault, Simulator};

use super::clients::script;
use super::fleet::{await_endpoints, await_ready, endpoints, error_code, one_backend, sim};

const FALLBACK: &str = "fallback: { answers: { stale_for: 24h } }";
const PREFER: &str = "answers: { prefer: true }";

/// A question whose answer would be the same each time.
fn greedy(prompt: &str) -> Call {
    Call::chat(prompt).max_tokens(6).field("temperature", 0)
}

/// Why an answer comes from store; nothing when it does not.
fn mark(answer: &Answer) -> &str {
    answer.header("x-outrigger-answer").unwrap_or("")
}

/// A simulator, and a proxy with one route to it.
async fn table(route: &str) -> (Simulator, Proxy) {
    let simulator = sim("stable");
    let proxy = Proxy::start(&one_backend(&[&simulator], "ejection: off", route)).await;
    (simulator, proxy)
}

/// How often the simulator was asked for a chat.
fn chats(simulator: &Simulator) -> u64 {
    simulator.state().seen("/v1/chat/completions")
}

fn served(metrics: &Metrics, kind: &str, reason: &str) -> f64 {
    let labels = [("route", "all"), ("kind", kind), ("reason", reason)];
    metrics.get("outrigger_answers_served_total", &labels)
}

/// A configuration whose endpoint is watched closely.
fn watched(simulator: &Simulator) -> String {
    let health = "health: { tcp: true, interval: 50ms, unhealthy: 1 }, ejection: off";
    one_backend(&[simulator], health, FALLBACK)
}

/// Takes the endpoint away and waits until the proxy knows.
async fn kill(simulator: &Simulator, proxy: &Proxy) {
    simulator.refuse().await;
    await_endpoints(proxy, "the endpoint to be unready", |all| !all[0].ready).await;
}

#[tokio::test]
async fn with_every_endpoint_dead_a_repeated_chat_is_answered_and_a_new_one_told_to_come_back() {
    let simulator = sim("stable");
    let proxy = Proxy::start(&watched(&simulator)).await;
    await_ready(&proxy).await;
    let asked = |streaming: bool, protocol| {
        let call = greedy("how deep is the lagoon?").over(protocol);
        if streaming { call.streaming() } else { call }
    };
    let mut live = Vec::new();
    for streaming in [false, true] {
        let answer = asked(streaming, Protocol::Http1).send(proxy.address()).await;
        assert_eq!((answer.status, mark(&answer)), (200, ""));
        live.push(answer);
    }
    kill(&simulator, &proxy).await;
    for (streaming, live) in [false, true].into_iter().zip(&live) {
        for protocol in [Protocol::Http1, Protocol::H2] {
            let answer = asked(streaming, protocol).send(proxy.address()).await;
            assert_eq!((answer.status, answer.cut.as_deref()), (200, None));
            assert_eq!(answer.body, live.body, "byte by byte, streaming: {streaming}");
            assert_eq!(answer.header("content-type"), live.header("content-type"));
            assert_eq!(mark(&answer), "fallback; reason=no_endpoint");
            let status = answer.header("cache-status").expect("says that it is stored");
            assert!(status.starts_with("outrigger; hit; ttl="), "{status}");
            assert!(answer.header("age").is_some_and(|age| age.parse::<u64>().is_ok()));
        }
    }
    let new = greedy("how deep is the reef?").send(proxy.address()).await;
    assert_eq!((new.status, &*error_code(&new)), (503, "no_endpoint"));
    assert_eq!(new.header("retry-after"), Some("1"));
    assert_eq!(mark(&new), "");
    let metrics = proxy.metrics().await;
    assert_eq!(served(&metrics, "fallback", "no_endpoint"), 4.0);
    let outcomes: Vec<_> =
        proxy.await_access(7).await.iter().map(|line| line["outcome"].clone()).collect();
    let fallbacks = outcomes.iter().filter(|outcome| *outcome == "fallback").count();
    assert_eq!(fallbacks, 4, "{outcomes:?}");
}

#[tokio::test]
async fn openai_python_gets_its_answer_from_store_and_a_clear_error_for_a_new_question() {
    let simulator = sim("stable");
    let proxy = Proxy::start(&watched(&simulator)).await;
    await_ready(&proxy).await;
    let url = format!("http://{}/v1", proxy.address());
    if !script("openai_answers.py", &["live", &url]).await {
        return;
    }
    kill(&simulator, &proxy).await;
    script("openai_answers.py", &["stored", &url]).await;
    script("openai_answers.py", &["unknown", &url]).await;
}

#[tokio::test]
async fn a_hung_endpoint_is_answered_for_at_the_deadline() {
    let (simulator, proxy) = table(&format!("deadline: {{ first_byte: 300ms }}, {FALLBACK}")).await;
    for streaming in [false, true] {
        let asked = || if streaming { greedy("deep?").streaming() } else { greedy("deep?") };
        let live = asked().send(proxy.address()).await;
        simulator.fault(Fault::StallFirstByte(None));
        let stored = asked().send(proxy.address()).await;
        assert_eq!((stored.status, mark(&stored)), (200, "fallback; reason=deadline"));
        assert_eq!(stored.body, live.body);
        simulator.clear_faults();
    }
}

#[tokio::test]
async fn with_all_endpoints_hung_the_stored_answer_comes_at_the_learned_deadline() {
    let (a, b) = (sim("a"), sim("b"));
    let route = format!("deadline: {{ first_byte: {{ floor: 300ms, explore: 0% }} }}, {FALLBACK}");
    let proxy = Proxy::start(&one_backend(&[&a, &b], "ejection: off", &route)).await;
    let of = |call: Call, streaming| if streaming { call.streaming() } else { call };
    // What comes as a stream and what comes as a whole is learned apart.
    for lesson in 0..120 {
        let answer = of(Call::chat("hello"), lesson % 2 == 0).send(proxy.address()).await;
        assert_eq!(answer.status, 200);
    }
    let asked = |streaming| of(greedy("deep?"), streaming);
    let lives = [asked(false).send(proxy.address()).await, asked(true).send(proxy.address()).await];
    a.fault(Fault::StallFirstByte(None));
    b.fault(Fault::StallFirstByte(None));
    for (streaming, live) in [false, true].into_iter().zip(&lives) {
        let stored = asked(streaming).send(proxy.address()).await;
        assert_eq!((stored.status, mark(&stored)), (200, "fallback; reason=deadline"));
        assert_eq!(stored.body, live.body);
        // Two minutes is what is waited for where nothing was learned.
        assert!(stored.head_after < Duration::from_secs(20), "{:?}", stored.head_after);
    }
    let new = greedy("high?").send(proxy.address()).await;
    assert_eq!((new.status, &*error_code(&new)), (504, "first_byte_timeout"));
}

#[tokio::test]
async fn an_endpoint_that_fails_is_answered_for_and_its_error_is_passed_on_where_nothing_is_stored()
{
    let (_simulator, proxy) = table(&format!("retry: off, {FALLBACK}")).await;
    let live = greedy("deep?").send(proxy.address()).await;
    for status in [500, 502, 503, 504] {
        let fault = format!("status={status}");
        let stored = greedy("deep?").fault(&fault).send(proxy.address()).await;
        assert_eq!((stored.status, mark(&stored)), (200, "fallback; reason=server_error"));
        assert_eq!(stored.body, live.body);
        let new = greedy("high?").fault(&fault).send(proxy.address()).await;
        assert_eq!((new.status, new.by()), (status, "stable"), "the endpoint's own words");
    }
    for status in [400, 429] {
        let refused = greedy("deep?").fault(&format!("status={status}")).send(proxy.address());
        assert_eq!(refused.await.status, status, "that is no failure of an endpoint");
    }
    let reset = greedy("deep?").fault("reset").send(proxy.address()).await;
    assert_eq!(mark(&reset), "fallback; reason=reset");
}

#[tokio::test]
async fn only_the_errors_that_the_route_names_are_replaced() {
    let route = "retry: off, fallback: { answers: { when: [server_error] } }";
    let (_simulator, proxy) = table(route).await;
    greedy("deep?").send(proxy.address()).await;
    let reset = greedy("deep?").fault("reset").send(proxy.address()).await;
    assert_eq!((reset.status, mark(&reset)), (502, ""));
    let failed = greedy("deep?").fault("status=500").send(proxy.address()).await;
    assert_eq!(mark(&failed), "fallback; reason=server_error");
}

#[tokio::test]
async fn half_a_stream_is_never_stored_and_never_completed_from_store() {
    let (simulator, proxy) = table(&format!("retry: off, {FALLBACK}")).await;
    let asked = || greedy("how deep is the lagoon?").streaming();
    let half = asked().fault("close_mid=3").open(proxy.address()).await.events().await;
    assert!(!half.is_complete());
    simulator.fault(Fault::Reset);
    let nothing = asked().send(proxy.address()).await;
    assert_eq!((nothing.status, mark(&nothing)), (502, ""));
    simulator.clear_faults();
    let whole = asked().open(proxy.address()).await.events().await;
    assert!(whole.is_complete());
    let half = asked().fault("close_mid=3").open(proxy.address()).await;
    assert_eq!(half.header("x-outrigger-answer"), None);
    let half = half.events().await;
    assert!(!half.is_complete() && half.events.len() < whole.events.len());
    let metrics = proxy.metrics().await;
    let recorded = |result| {
        let labels = [("route", "all"), ("result", result)];
        metrics.get("outrigger_answers_recorded_total", &labels)
    };
    assert_eq!((recorded("stored"), recorded("incomplete")), (1.0, 2.0));
}

#[tokio::test]
async fn a_guarded_arm_is_judged_by_what_it_did_and_not_by_what_stood_in_for_it() {
    let (stable, canary) = (sim("stable"), sim("canary"));
    let yaml = format!(
        "backends:\n  stable: {{ endpoints: {} }}\n  canary: {{ endpoints: {}, ejection: off }}\n\
         routes:\n- {{ name: all, split: {{ stable: 1, canary: 1 }}, retry: off, {FALLBACK},\n    \
         guard: {{ arm: canary, first_byte: off }} }}\n",
        endpoints(&[&stable]),
        endpoints(&[&canary]),
    );
    let proxy = Proxy::start(&yaml).await;
    // Both arms have it in store.
    for _ in 0..4 {
        greedy("deep?").send(proxy.address()).await;
    }
    canary.fault(Fault::Status(500, None));
    let labels = [("route", "all"), ("arm", "canary")];
    let rolled_back = |m: &Metrics| m.get("outrigger_canary_rolled_back", &labels) == 1.0;
    // Evidence grows only so fast in a quarter of a second, so that requests alone do not do it.
    let began = Instant::now();
    let mut metrics = proxy.metrics().await;
    while !rolled_back(&metrics) {
        assert!(began.elapsed() < Duration::from_secs(60), "{}", metrics.text);
        for _ in 0..20 {
            let answer = greedy("deep?").send(proxy.address()).await;
            assert_eq!(answer.status, 200);
        }
        metrics = proxy.metrics().await;
    }
    assert!(served(&metrics, "fallback", "server_error") > 0.0);
}
