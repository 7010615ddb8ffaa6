//! Warm-up requests: sent to whoever is new, was unready, was ejected or was away, and run to their end before a
//! client's request goes there.

use std::time::{Duration, Instant};

use outrigger_tests::harness::{Call, Load, Metrics, Proxy};
use outrigger_tests::sim::{Fault, Rule, Seen, Simulator};

use crate::fleet::{
    Endpoint, attempts, await_endpoints, await_ready, chat, endpoint_states, error_code,
    one_backend, reload, sim,
};

/// What the warm-up asks for first; nothing else asks for it here.
const FIRST: &str = "/v1/completions";

/// Two completions, then an embedding.
const REQUESTS: &str = "requests: [\
    { path: /v1/completions, headers: { content-type: application/json, x-warm: 'yes' }, \
      body: '{\"prompt\": \"hi\", \"max_tokens\": 4}', repeat: 2 }, \
    { path: /v1/embeddings, body: '{\"input\": \"hi\"}' }]";

fn warm_up(settings: &str) -> String {
    format!("balance: round_robin, warm_up: {{ {REQUESTS}, {settings} }}")
}

fn is_warm_up(seen: &Seen) -> bool {
    let agent = seen.header("user-agent").unwrap_or_default();
    agent.starts_with("outrigger/") && agent.ends_with(" (warm-up)")
}

/// What a simulator was asked for, in order, without health checks: `w` is a warm-up request, `r` any other.
fn story(sim: &Simulator) -> String {
    let seen = sim.seen();
    let asked = seen.iter().filter(|seen| seen.target != "/health");
    asked.map(|seen| if is_warm_up(seen) { 'w' } else { 'r' }).collect()
}

fn warm_ups(metrics: &Metrics, sim: &Simulator, result: &str) -> f64 {
    let labels = [("endpoint", &*sim.endpoint()), ("result", result)];
    metrics.get("outrigger_warm_ups_total", &labels)
}

async fn await_all_ready(proxy: &Proxy) {
    let ready = |all: &[Endpoint]| all.iter().all(|endpoint| endpoint.ready);
    await_endpoints(proxy, "every endpoint to be ready", ready).await;
}

async fn send(proxy: &Proxy, count: usize) {
    let report = Load::of(count).run(proxy.address(), |_| chat()).await;
    assert_eq!(report.ok(), count, "{:?}", report.outcomes());
}

#[tokio::test]
async fn a_cold_endpoint_gets_no_request_of_a_client_while_the_others_serve() {
    let (a, b) = (sim("a"), sim("b"));
    a.inflict(Rule::always(Fault::StallFirstByte(None)).path(FIRST));
    let proxy = Proxy::start(&one_backend(&[&a, &b], &warm_up("retry: 20ms"), "")).await;
    await_endpoints(&proxy, "the other to be warm", |all| all[1].ready).await;
    a.reached(|state| state.in_flight == 1).await;
    send(&proxy, 20).await;
    let cold = &endpoint_states(&proxy).await[0];
    assert_eq!((cold.ready, cold.warm, cold.in_flight), (false, false, 0));
    assert_eq!((story(&a), story(&b)), ("w".to_owned(), "www".to_owned() + &"r".repeat(20)));
    a.clear_faults();
    a.hang_up();
    await_all_ready(&proxy).await;
    send(&proxy, 20).await;
    assert_eq!(story(&a), "w".to_owned() + "www" + &"r".repeat(10));
    let metrics = proxy.metrics().await;
    let counts = |sim| (warm_ups(&metrics, sim, "failure"), warm_ups(&metrics, sim, "success"));
    assert_eq!((counts(&a), counts(&b)), ((1.0, 1.0), (0.0, 1.0)));
    let counted = metrics.get("outrigger_requests_total", &[]);
    assert_eq!(counted, 40.0, "a warm-up is no request of a client");
}

#[tokio::test]
async fn warm_up_requests_are_sent_as_configured_and_in_order() {
    for protocol in ["http1", "h2c"] {
        let one = sim("one");
        let backend = format!("protocol: {protocol}, {}", warm_up(""));
        let proxy = Proxy::start(&one_backend(&[&one], &backend, "")).await;
        await_ready(&proxy).await;
        let seen = one.seen();
        let targets: Vec<_> = seen.iter().map(|seen| &*seen.target).collect();
        assert_eq!(targets, [FIRST, FIRST, "/v1/embeddings"]);
        let field = |name| seen.iter().map(|s| s.header(name)).collect::<Vec<_>>();
        assert_eq!(field("x-warm"), [Some("yes"), Some("yes"), None]);
        assert_eq!(field("content-type")[..2], [Some("application/json"); 2]);
        assert!(seen.iter().all(|seen| seen.method == "POST" && is_warm_up(seen)), "{seen:?}");
        assert_eq!(one.state().completed, 3);
    }
}

#[tokio::test]
async fn a_warm_up_request_has_to_run_to_its_last_byte() {
    let one = sim("one");
    one.inflict(Rule::always(Fault::StallMid(2, None)).times(1));
    let stream = "{ path: /v1/completions, repeat: 2, \
        body: '{\"prompt\": \"hi\", \"max_tokens\": 8, \"stream\": true}' }";
    let backend = format!("warm_up: {{ requests: [{stream}], retry: 20ms }}");
    let proxy = Proxy::start(&one_backend(&[&one], &backend, "")).await;
    // A status of 200 and two events are there, and no more comes.
    one.reached(|state| state.generated == 8).await;
    let answer = chat().send(proxy.address()).await;
    assert_eq!((answer.status, &*error_code(&answer)), (503, "no_endpoint"));
    assert_eq!((story(&one), proxy.admin_get("/ready").await.status), ("w".to_owned(), 503));
    one.hang_up();
    await_ready(&proxy).await;
    send(&proxy, 1).await;
    assert_eq!(story(&one), "wwwr");
}

#[tokio::test]
async fn a_warm_up_that_fails_begins_anew_after_the_pause_and_ready_says_no_until_then() {
    let one = sim("one");
    one.inflict(Rule::always(Fault::Status(500, None)).path("/v1/embeddings").times(3));
    let begun = Instant::now();
    let proxy = Proxy::start(&one_backend(&[&one], &warm_up("retry: 150ms"), "")).await;
    proxy.await_log("warm-up failed").await;
    let page = proxy.admin_get("/ready").await;
    assert_eq!(page.status, 503, "{}", page.text());
    let reasons = page.json()["reasons"].to_string();
    assert!(reasons.contains("no endpoint of backend stable is ready"), "{reasons}");
    await_ready(&proxy).await;
    assert!(begun.elapsed() >= Duration::from_millis(3 * 150), "{:?}", begun.elapsed());
    assert_eq!(story(&one), "www".repeat(4));
    let log = proxy.log().join("\n");
    assert!(log.contains("POST /v1/embeddings: answered 500"), "{log}");
    let metrics = proxy.metrics().await;
    assert_eq!(
        (warm_ups(&metrics, &one, "failure"), warm_ups(&metrics, &one, "success")),
        (3.0, 1.0)
    );
}

#[tokio::test]
async fn an_answer_that_is_no_success_or_breaks_off_or_comes_too_late_is_a_failure() {
    let faults = [
        Fault::Status(302, None),
        Fault::Status(404, None),
        Fault::Reset,
        Fault::ResetMid(1),
        Fault::CloseMid(1),
        Fault::Garbage,
        Fault::StallFirstByte(None),
        Fault::StallMid(1, None),
    ];
    let one = sim("one");
    for fault in &faults {
        one.inflict(Rule::always(fault.clone()).path(FIRST).times(1));
    }
    let backend = warm_up("retry: 10ms, timeout: 1s");
    let proxy = Proxy::start(&one_backend(&[&one], &backend, "")).await;
    await_ready(&proxy).await;
    assert_eq!(story(&one), "w".repeat(faults.len() + 3), "{}", proxy.log().join("\n"));
    let metrics = proxy.metrics().await;
    assert_eq!(warm_ups(&metrics, &one, "failure"), faults.len() as f64);
}

const HEALTH: &str = "health: { http: /health, interval: 40ms, timeout: 1s, unhealthy: 2 }";

#[tokio::test]
async fn nobody_is_warmed_up_before_its_health_check_says_yes() {
    let one = sim("one");
    one.fault(Fault::NoHealth);
    let backend = format!("{HEALTH}, {}", warm_up(""));
    let proxy = Proxy::start(&one_backend(&[&one], &backend, "")).await;
    one.reached(|state| state.seen("/health") >= 4).await;
    assert_eq!(story(&one), "");
    one.clear_faults();
    await_ready(&proxy).await;
    assert_eq!(story(&one), "www");
}

#[tokio::test]
async fn an_endpoint_that_was_unready_is_warmed_up_again() {
    let one = sim("one");
    let backend = format!("{HEALTH}, {}", warm_up(""));
    let proxy = Proxy::start(&one_backend(&[&one], &backend, "")).await;
    await_ready(&proxy).await;
    send(&proxy, 1).await;
    one.fault(Fault::NoHealth);
    await_endpoints(&proxy, "the endpoint to be unready", |all| !all[0].ready).await;
    one.clear_faults();
    await_ready(&proxy).await;
    send(&proxy, 2).await;
    assert_eq!(story(&one), "wwwrwwwrr");
}

#[tokio::test]
async fn a_warm_up_from_before_the_endpoint_became_unready_does_not_count() {
    let one = sim("one");
    one.inflict(
        Rule::always(Fault::StallMid(1, Some(Duration::from_secs(4)))).path(FIRST).times(1),
    );
    let backend = format!("{HEALTH}, {}", warm_up("retry: 20ms"));
    let proxy = Proxy::start(&one_backend(&[&one], &backend, "")).await;
    one.reached(|state| state.seen(FIRST) == 1).await;
    // The engine stops while it is being warmed up, and what it has begun it brings to its end.
    one.fault(Fault::NoHealth);
    proxy.await_log("endpoint not ready").await;
    one.reached(|state| state.seen("/v1/embeddings") == 1).await;
    proxy.await_metrics(|metrics| metrics.get("outrigger_warm_ups_total", &[]) == 1.0).await;
    one.clear_faults();
    await_ready(&proxy).await;
    assert_eq!(story(&one), "wwwwww", "who comes back from being unready may be another process");
}

#[tokio::test]
async fn an_ejected_endpoint_is_warmed_up_before_it_is_tried_again() {
    let (a, b) = (sim("a"), sim("b"));
    let backend = format!("ejection: {{ base: 100ms, jitter: 0 }}, {}", warm_up("retry: 20ms"));
    let proxy = Proxy::start(&one_backend(&[&a, &b], &backend, "")).await;
    await_all_ready(&proxy).await;
    send(&proxy, 2).await;
    a.refuse().await;
    send(&proxy, 6).await;
    let out = await_endpoints(&proxy, "the ejection", |all| all[0].ejected).await;
    assert!(!out[0].warm && !out[0].ready, "{out:?}");
    proxy.await_log("warm-up failed").await;
    a.resume().await;
    await_all_ready(&proxy).await;
    let asked = story(&a);
    await_endpoints(&proxy, "the time to be over", |all| {
        all[0].ready && all[0].age > Duration::from_millis(150)
    })
    .await;
    send(&proxy, 6).await;
    assert_eq!(asked, "wwwrwww");
    assert!(story(&a).starts_with("wwwrwwwr"), "{}", story(&a));
    assert!(!endpoint_states(&proxy).await[0].ejected);
}

#[tokio::test]
async fn an_ejected_endpoint_that_cannot_be_warmed_up_is_no_last_resort() {
    let (a, b) = (sim("a"), sim("b"));
    let backend = format!("ejection: {{ base: 60s }}, {}", warm_up("retry: 20ms"));
    let proxy = Proxy::start(&one_backend(&[&a, &b], &backend, "retry: { backoff: 1ms }")).await;
    await_all_ready(&proxy).await;
    a.refuse().await;
    send(&proxy, 6).await;
    await_endpoints(&proxy, "the ejection", |all| all[0].ejected).await;
    a.fault(Fault::Status(500, None));
    a.resume().await;
    b.refuse().await;
    let answer = chat().send(proxy.address()).await;
    assert!((500..=503).contains(&answer.status), "{}", answer.text());
    assert!(!story(&a).contains('r'), "{}", story(&a));
    // Warm it is one, ejected or not.
    a.clear_faults();
    await_endpoints(&proxy, "the warm-up", |all| all[0].ready && all[0].ejected).await;
    let answer = chat().send(proxy.address()).await;
    assert_eq!((answer.status, answer.by()), (200, "a"), "{}", answer.text());
    assert!(attempts(&answer) <= 2);
}

#[tokio::test]
async fn an_endpoint_that_returns_is_warmed_up_again_and_one_that_stays_is_not() {
    let (a, b, c) = (sim("a"), sim("b"), sim("c"));
    let backend = warm_up("");
    let proxy = Proxy::start(&one_backend(&[&a, &b], &backend, "")).await;
    await_all_ready(&proxy).await;
    reload(&proxy, &one_backend(&[&b], &backend, "")).await;
    reload(&proxy, &one_backend(&[&a, &b, &c], &backend, "")).await;
    await_all_ready(&proxy).await;
    send(&proxy, 3).await;
    assert_eq!([story(&a), story(&b), story(&c)], ["wwwwwwr", "wwwr", "wwwr"]);
}

#[tokio::test]
async fn a_reload_that_adds_a_warm_up_takes_nobody_out_of_service() {
    let one = sim("one");
    let proxy = Proxy::start(&one_backend(&[&one], "balance: round_robin", "")).await;
    send(&proxy, 1).await;
    one.inflict(Rule::always(Fault::StallFirstByte(None)).path(FIRST));
    reload(&proxy, &one_backend(&[&one], &warm_up(""), "")).await;
    send(&proxy, 1).await;
    assert_eq!(story(&one), "rr");
}

#[tokio::test]
async fn a_reload_without_the_warm_up_ends_the_wait_for_it() {
    let one = sim("one");
    one.inflict(Rule::always(Fault::StallFirstByte(None)).path(FIRST));
    let proxy = Proxy::start(&one_backend(&[&one], &warm_up(""), "")).await;
    one.reached(|state| state.in_flight == 1).await;
    reload(&proxy, &one_backend(&[&one], "balance: round_robin", "")).await;
    send(&proxy, 1).await;
    // The one under way is given up.
    one.aborted().await;
    assert_eq!(story(&one), "wr");
}

#[tokio::test]
async fn a_reload_in_the_middle_of_a_warm_up_begins_it_anew() {
    let (a, b) = (sim("a"), sim("b"));
    a.inflict(Rule::always(Fault::StallFirstByte(None)).path(FIRST).times(1));
    let proxy = Proxy::start(&one_backend(&[&a], &warm_up(""), "")).await;
    a.reached(|state| state.in_flight == 1).await;
    reload(&proxy, &one_backend(&[&a, &b], &warm_up(""), "")).await;
    await_all_ready(&proxy).await;
    assert_eq!((story(&a), story(&b)), ("wwww".to_owned(), "www".to_owned()));
}

#[tokio::test]
async fn warming_up_does_not_hold_up_the_start_or_the_end_of_the_proxy() {
    let one = sim("one");
    one.inflict(Rule::always(Fault::StallFirstByte(None)).path(FIRST));
    let yaml = one_backend(&[&one], &warm_up(""), "") + "drain: { delay: 0s, timeout: 10s }\n";
    let proxy = Proxy::start(&yaml).await;
    one.reached(|state| state.in_flight == 1).await;
    let page = Call::get("/live").send(proxy.admin()).await;
    assert_eq!(page.status, 200);
    proxy.signal(nix::sys::signal::Signal::SIGTERM);
    let status = proxy.wait_exit(Duration::from_secs(10)).await;
    assert!(status.success(), "{status}");
}
