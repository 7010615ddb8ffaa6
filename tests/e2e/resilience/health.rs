//! Active checks: who is asked, what counts, and what it means for traffic and for `/ready`.

use std::time::Duration;

use outrigger_tests::harness::{Call, Load, Metrics, Proxy, within};
use outrigger_tests::sim::{Fault, Rule, Simulator};

use crate::fleet::{
    await_endpoints, await_ready, chat, endpoint_states, endpoints, error_code, one_backend,
    reload, sim,
};

const HTTP: &str = "health: { http: /health, interval: 40ms, timeout: 200ms }";

async fn with(simulators: &[&Simulator], health: &str) -> Proxy {
    Proxy::start(&one_backend(simulators, health, "retry: off")).await
}

async fn await_unready(proxy: &Proxy) {
    await_endpoints(proxy, "the endpoint to be unready", |all| !all[0].ready).await;
}

fn checks(metrics: &Metrics, result: &str) -> f64 {
    metrics.get("outrigger_health_checks_total", &[("result", result)])
}

async fn reasons(proxy: &Proxy) -> (u16, String) {
    let answer = proxy.admin_get("/ready").await;
    (answer.status, answer.json()["reasons"].to_string())
}

#[tokio::test]
async fn an_endpoint_with_a_check_starts_unready_and_ready_says_why() {
    let one = sim("one");
    one.fault(Fault::NoHealth);
    let proxy = with(&[&one], HTTP).await;
    one.reached(|state| state.seen("/health") >= 2).await;
    let (status, reasons) = reasons(&proxy).await;
    assert_eq!(status, 503);
    assert!(reasons.contains("no endpoint of backend stable is ready"), "{reasons}");
    let answer = chat().send(proxy.address()).await;
    assert_eq!((answer.status, &*error_code(&answer)), (503, "no_endpoint"));
    assert!(answer.header("retry-after").is_some());
    one.clear_faults();
    await_ready(&proxy).await;
    assert_eq!(chat().send(proxy.address()).await.status, 200);
}

#[tokio::test]
async fn an_endpoint_without_a_check_is_ready_at_once() {
    let one = sim("one");
    let proxy = Proxy::start(&one_backend(&[&one], "", "")).await;
    assert_eq!(reasons(&proxy).await, (200, "[]".to_owned()));
    assert_eq!(chat().send(proxy.address()).await.status, 200);
}

#[tokio::test]
async fn one_success_is_enough_at_the_very_start() {
    let one = sim("one");
    let slow = "health: { http: /health, interval: 1h, healthy: 5 }";
    let proxy = with(&[&one], slow).await;
    await_ready(&proxy).await;
    assert_eq!(one.state().seen("/health"), 1);
}

#[tokio::test]
async fn fewer_failures_than_the_threshold_change_nothing() {
    let one = sim("one");
    let proxy = with(&[&one], HTTP).await;
    await_ready(&proxy).await;
    one.inflict(Rule::always(Fault::NoHealth).times(2));
    let before = proxy.await_metrics(|metrics| checks(metrics, "failure") == 2.0).await;
    let more = checks(&before, "success") + 2.0;
    proxy.await_metrics(|metrics| checks(metrics, "success") >= more).await;
    assert!(!proxy.log().iter().any(|line| line.contains("endpoint not ready")));
    assert!(endpoint_states(&proxy).await[0].ready);
}

#[tokio::test]
async fn three_failures_in_a_row_make_unready_and_as_many_successes_as_configured_ready_again() {
    let one = sim("one");
    let health = "health: { http: /health, interval: 400ms, healthy: 3 }";
    let proxy = with(&[&one], health).await;
    await_ready(&proxy).await;
    one.inflict(Rule::always(Fault::NoHealth).times(3));
    proxy.await_log("endpoint not ready").await;
    let at_loss = proxy.metrics().await;
    assert_eq!(checks(&at_loss, "failure"), 3.0);
    await_ready(&proxy).await;
    let metrics = proxy.metrics().await;
    let since = checks(&metrics, "success") - checks(&at_loss, "success");
    // A busy machine may read either page one check late.
    assert!((2.0..=5.0).contains(&since), "ready again after {since} successes");
    let endpoint = one.endpoint();
    let labels = [("endpoint", &*endpoint)];
    assert_eq!(metrics.get("outrigger_endpoint_ready", &labels), 1.0);
}

#[tokio::test]
async fn an_answer_that_comes_too_late_is_a_failure() {
    for fault in [Fault::SlowHealth(Duration::from_millis(600)), Fault::HealthStall] {
        let one = sim("one");
        let proxy = with(&[&one], "health: { http: /health, interval: 40ms, timeout: 80ms }").await;
        await_ready(&proxy).await;
        one.fault(fault);
        await_unready(&proxy).await;
        one.clear_faults();
        await_ready(&proxy).await;
    }
}

#[tokio::test]
async fn an_unready_endpoint_gets_nothing_while_another_serves() {
    let (a, b) = (sim("a"), sim("b"));
    let proxy = with(&[&a, &b], HTTP).await;
    await_endpoints(&proxy, "both to be ready", |all| all.iter().all(|e| e.ready)).await;
    // Least connection: of two at once each gets one.
    let long = || Call::get("/events/40?gap=30").open(proxy.address());
    let streams = [long().await, long().await];
    assert_eq!((a.state().in_flight, b.state().in_flight), (1, 1));
    a.fault(Fault::NoHealth);
    await_unready(&proxy).await;
    let before = a.state().requests();
    let report = Load::of(30).run(proxy.address(), |_| chat()).await;
    assert_eq!((report.ok(), report.by_name()["b"]), (30, 30), "{:?}", report.outcomes());
    assert_eq!((a.state().requests(), reasons(&proxy).await.0), (before, 200));
    for stream in streams {
        assert!(stream.events().await.is_complete(), "what was under way goes on");
    }
}

#[tokio::test]
async fn a_tcp_check_sees_whether_somebody_listens() {
    let one = sim("one");
    let proxy = with(&[&one], "health: { tcp: true, interval: 40ms, timeout: 200ms }").await;
    await_ready(&proxy).await;
    assert_eq!(one.state().requests(), 0, "nothing is asked");
    one.refuse().await;
    await_unready(&proxy).await;
    assert_eq!(reasons(&proxy).await.0, 503);
    one.resume().await;
    await_ready(&proxy).await;
}

#[tokio::test]
async fn the_list_of_accepted_statuses_decides() {
    let one = sim("one");
    let health = "health: { http: /status/429, status: [\"200-299\", 429], interval: 40ms }";
    await_ready(&with(&[&one], health).await).await;
    let health = "health: { http: /status/429, interval: 40ms }";
    let proxy = with(&[&one], health).await;
    proxy.await_metrics(|metrics| checks(metrics, "failure") >= 2.0).await;
    assert_eq!(reasons(&proxy).await.0, 503);
}

#[tokio::test]
async fn an_h2_backend_is_checked_over_h2() {
    let one = sim("one");
    let proxy = with(&[&one], &format!("protocol: h2c, {HTTP}")).await;
    await_ready(&proxy).await;
    let seen = one.seen();
    let check = seen.iter().find(|seen| seen.target == "/health").expect("a check");
    assert_eq!(check.version, "HTTP/2.0");
    assert!(check.header("user-agent").is_some_and(|agent| agent.starts_with("outrigger/")));
}

#[tokio::test]
async fn one_backend_that_serves_is_enough_to_be_ready() {
    let (stable, canary) = (sim("stable"), sim("canary"));
    canary.fault(Fault::NoHealth);
    let yaml = format!(
        "backends:\n  stable: {{ endpoints: {}, {HTTP} }}\n  canary: {{ endpoints: {}, {HTTP} }}\n\
         routes: [{{ split: {{ stable: 9, canary: 1 }} }}]\n",
        endpoints(&[&stable]),
        endpoints(&[&canary]),
    );
    let proxy = Proxy::start(&yaml).await;
    await_ready(&proxy).await;
    canary.reached(|state| state.seen("/health") >= 2).await;
    let page = proxy.admin_get("/ready").await.json();
    assert_eq!((&page["ready"], page["reasons"].to_string()), (&true.into(), "[]".to_owned()));
    assert!(page["degraded"].to_string().contains("canary"), "{page}");
}

#[tokio::test]
async fn an_endpoint_that_fails_from_a_reload_on_still_becomes_unready() {
    let (a, b) = (sim("a"), sim("b"));
    let proxy = with(&[&a], HTTP).await;
    await_ready(&proxy).await;
    a.fault(Fault::NoHealth);
    // Settings of its backend change, so its checks begin anew.
    reload(&proxy, &one_backend(&[&a, &b], HTTP, "retry: off")).await;
    await_unready(&proxy).await;
}

#[tokio::test]
async fn a_reload_does_not_make_a_ready_endpoint_unready_for_a_moment() {
    let (a, b) = (sim("a"), sim("b"));
    let proxy = with(&[&a], HTTP).await;
    await_ready(&proxy).await;
    a.fault(Fault::SlowHealth(Duration::from_millis(150)));
    reload(&proxy, &one_backend(&[&a, &b], HTTP, "retry: off")).await;
    let answer = within("an answer", chat().send(proxy.address())).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}
