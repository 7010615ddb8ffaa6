//! The breaker of a whole backend: while all of it fails, requests are told so at once, one now and then tries whether
//! it is back, and its first byte lets the others in again.

use std::time::Duration;

use outrigger_tests::harness::{Answer, Load, Metrics, Proxy, within};
use outrigger_tests::sim::{Fault, Simulator};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::fleet::{
    await_endpoints, await_idle, chat, ended, endpoint_states, error_code, one_backend, reload, sim,
};

const IN_TURN: &str = "balance: round_robin, ejection: off";

fn broken(breaker: &str) -> String {
    format!("{IN_TURN}, breaker: {{ {breaker} }}")
}

async fn two(backend: &str, route: &str) -> (Simulator, Simulator, Proxy) {
    let (a, b) = (sim("a"), sim("b"));
    let proxy = Proxy::start(&one_backend(&[&a, &b], backend, route)).await;
    (a, b, proxy)
}

fn fail_all(simulators: [&Simulator; 2]) {
    simulators.iter().for_each(|simulator| simulator.fault(Fault::Status(500, None)));
}

async fn send(proxy: &Proxy, count: usize) {
    Load::of(count).run(proxy.address(), |_| chat()).await;
}

/// The answer of an open breaker.
fn is_shut_out(answer: &Answer, longest: u64) {
    assert_eq!((answer.status, &*error_code(answer)), (503, "circuit_open"), "{}", answer.text());
    assert_eq!(answer.header("x-should-retry"), Some("true"));
    let after: u64 = answer.header("retry-after").expect("a hint").parse().expect("seconds");
    assert!((1..=longest).contains(&after), "{after} s of {longest}");
}

async fn circuit(proxy: &Proxy) -> Value {
    proxy.admin_get("/endpoints").await.json()[0]["circuit"].clone()
}

fn changes(metrics: &Metrics, to: &str) -> f64 {
    metrics.get("outrigger_backend_circuit_changes_total", &[("backend", "stable"), ("to", to)])
}

/// Asks until a model server answers. There is no event to wait for: that an open time is over is not told.
async fn await_answer(proxy: &Proxy) -> Answer {
    let mut pause = tokio::time::interval(Duration::from_millis(50));
    within("an answer of a model server", async {
        loop {
            pause.tick().await;
            let answer = chat().send(proxy.address()).await;
            if answer.status == 200 {
                return answer;
            }
        }
    })
    .await
}

#[tokio::test]
async fn while_nobody_can_be_connected_to_requests_fail_at_once_until_a_probe_gets_through() {
    for backend in ["", "ejection: { base: 1s, jitter: 0% }, "] {
        let (a, b, proxy) = two(&format!("{backend}breaker: {{ base: 1s, jitter: 0% }}"), "").await;
        a.refuse().await;
        b.refuse().await;
        let first = chat().send(proxy.address()).await;
        assert_eq!((first.status, &*error_code(&first)), (502, "connect_failed"));
        let second = chat().send(proxy.address()).await;
        assert_eq!(second.status, 502, "two connections for each endpoint are tried");
        let connected = |m: &Metrics| m.get("outrigger_upstream_connections_total", &[]);
        let before = connected(&proxy.metrics().await);
        let third = chat().send(proxy.address()).await;
        is_shut_out(&third, 1);
        let metrics = proxy.metrics().await;
        assert_eq!((connected(&metrics), changes(&metrics, "open")), (before, 1.0));
        assert_eq!(metrics.get("outrigger_backend_circuit_open", &[("backend", "stable")]), 1.0);
        assert_eq!(ended(&metrics, "circuit_open", 503), 1.0);
        proxy.await_log("circuit open").await;
        a.resume().await;
        b.resume().await;
        await_answer(&proxy).await;
        proxy.await_log("circuit closed").await;
        let metrics = proxy.metrics().await;
        assert_eq!(metrics.get("outrigger_backend_circuit_open", &[]), 0.0);
        assert_eq!(changes(&metrics, "closed"), 1.0);
        assert_eq!(circuit(&proxy).await["state"], "closed");
    }
}

#[tokio::test]
async fn a_share_of_failures_opens_it_for_as_long_as_it_says() {
    let (a, b, proxy) = two(&broken("attempts: 10, base: 60s, jitter: 0%"), "").await;
    fail_all([&a, &b]);
    let report = Load::of(30).run(proxy.address(), |_| chat()).await;
    assert_eq!((report.status(500), report.status(503)), (10, 20), "{:?}", report.outcomes());
    assert_eq!(a.state().requests() + b.state().requests(), 10);
    let answer = chat().send(proxy.address()).await;
    is_shut_out(&answer, 60);
    let told = circuit(&proxy).await;
    let left = told["next_probe_in_seconds"].as_f64().expect("seconds");
    assert!(told["state"] == "open" && left > 1.0 && left <= 60.0, "{told}");
    let after: f64 = answer.header("retry-after").expect("a hint").parse().expect("seconds");
    assert!(after >= left.floor(), "retry-after {after}, but {left} s to go");
}

#[tokio::test]
async fn a_lesser_share_leaves_it_closed() {
    let (a, b, proxy) = two(&broken("failures: 60%, attempts: 10"), "").await;
    a.fault(Fault::Status(500, None));
    send(&proxy, 40).await;
    assert_eq!((a.state().requests(), b.state().requests()), (20, 20));
    assert_eq!(circuit(&proxy).await["state"], "closed");
}

#[tokio::test]
async fn busy_is_no_failure() {
    let (a, b, proxy) = two(&broken("attempts: 5"), "retry: off").await;
    a.fault(Fault::Status(503, None));
    b.fault(Fault::Status(429, None));
    send(&proxy, 40).await;
    assert_eq!(a.state().requests() + b.state().requests(), 40);
}

#[tokio::test]
async fn one_request_at_a_time_tries_a_half_open_backend() {
    let (a, b, proxy) = two(&broken("attempts: 4, base: 300ms, jitter: 0%"), "").await;
    fail_all([&a, &b]);
    send(&proxy, 4).await;
    for simulator in [&a, &b] {
        simulator.clear_faults();
        simulator.fault(Fault::StallFirstByte(None));
    }
    // The time itself is awaited: nothing happens at its end.
    tokio::time::sleep(Duration::from_millis(320)).await;
    let mut clients = JoinSet::new();
    for _ in 0..12 {
        clients.spawn(chat().try_send(proxy.address()));
    }
    for _ in 0..11 {
        let answer = clients.join_next().await.expect("a client").expect("no panic");
        is_shut_out(&answer.expect("an answer"), 1);
    }
    await_endpoints(&proxy, "the probe", |all| all.iter().map(|e| e.in_flight).sum::<u64>() == 1)
        .await;
    assert_eq!(circuit(&proxy).await["state"], "half_open");
    // The probe's client gives up: another one takes its place and gets through.
    clients.abort_all();
    await_idle(&proxy).await;
    a.clear_faults();
    b.clear_faults();
    await_answer(&proxy).await;
    let report = Load::of(12).at_once(4).run(proxy.address(), |_| chat()).await;
    assert_eq!(report.ok(), 12, "{:?}", report.outcomes());
}

#[tokio::test]
async fn a_failed_probe_opens_it_again() {
    let (a, b, proxy) = two(&broken("attempts: 2, base: 200ms, jitter: 0%"), "").await;
    fail_all([&a, &b]);
    send(&proxy, 2).await;
    let mut probes = 0;
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    while probes < 2 {
        pause.tick().await;
        let answer = chat().send(proxy.address()).await;
        probes += u64::from(answer.status == 500);
    }
    is_shut_out(&chat().send(proxy.address()).await, 1);
    assert_eq!(a.state().requests() + b.state().requests(), 4, "two, and two probes");
    assert_eq!(changes(&proxy.metrics().await, "open"), 3.0);
}

#[tokio::test]
async fn nobody_retries_into_an_open_breaker() {
    let simulators: Vec<_> = ["a", "b", "c", "d"].map(sim).into();
    let all: Vec<_> = simulators.iter().collect();
    let route =
        "retry: { attempts: 10, backoff: 1ms, budget: { percent: 100, min_per_second: 1000 } }";
    let proxy = Proxy::start(&one_backend(&all, &broken("attempts: 2, base: 60s"), route)).await;
    all.iter().for_each(|simulator| simulator.fault(Fault::Reset));
    let answer = chat().send(proxy.address()).await;
    assert_eq!((answer.status, &*error_code(&answer)), (502, "upstream_reset"));
    assert_eq!(all.iter().map(|sim| sim.state().requests()).sum::<u64>(), 2);
    let denied = [("reason", "circuit_open")];
    assert_eq!(proxy.metrics().await.get("outrigger_retries_denied_total", &denied), 1.0);
}

#[tokio::test]
async fn it_outlives_other_settings_of_its_backend() {
    let (a, b, proxy) = two(&broken("attempts: 2, base: 60s"), "").await;
    fail_all([&a, &b]);
    send(&proxy, 2).await;
    let other = format!("{}, idle_timeout: 10s", broken("attempts: 3, base: 60s"));
    reload(&proxy, &one_backend(&[&a, &b], &other, "")).await;
    is_shut_out(&chat().send(proxy.address()).await, 73);
    // And where there is none any more, everybody is let in.
    reload(&proxy, &one_backend(&[&a, &b], IN_TURN, "")).await;
    assert_eq!(chat().send(proxy.address()).await.status, 500);
}

#[tokio::test]
async fn without_one_every_request_is_tried() {
    let (a, b, proxy) = two(IN_TURN, "").await;
    fail_all([&a, &b]);
    send(&proxy, 60).await;
    assert_eq!(a.state().requests() + b.state().requests(), 60);
    assert_eq!(circuit(&proxy).await, Value::Null);
    assert!(!proxy.metrics().await.has("outrigger_backend_circuit_open", &[]));
}

#[tokio::test]
async fn endpoints_tell_their_own_circuit_in_the_same_words() {
    let backend = "balance: round_robin, ejection: { failures: 1, base: 60s }";
    let (a, _b, proxy) = two(backend, "").await;
    a.fault(Fault::Status(500, None));
    send(&proxy, 2).await;
    let page = proxy.admin_get("/endpoints").await.json();
    let told: Vec<_> = (0..2).map(|at| page[0]["endpoints"][at]["circuit"].clone()).collect();
    assert_eq!(told, ["open", "closed"]);
    let ejected: Vec<_> = endpoint_states(&proxy).await.iter().map(|it| it.ejected).collect();
    assert_eq!(ejected, [true, false]);
}

#[tokio::test]
async fn streams_that_go_on_count_from_their_first_byte() {
    let (a, b, proxy) = two(&broken("failures: 60%, attempts: 10"), "").await;
    a.fault(Fault::Status(500, None));
    b.fault(Fault::StallMid(2, None));
    let mut streams = Vec::new();
    for turn in 0..12 {
        let mut stream = chat().streaming().open(proxy.address()).await;
        let expected = if turn % 2 == 0 { 500 } else { 200 };
        assert_eq!(
            stream.status, expected,
            "turn {turn}: no answer has ended, but half have begun"
        );
        if stream.status == 200 {
            assert!(stream.event().await.is_some());
            streams.push(stream);
        }
    }
    assert_eq!(circuit(&proxy).await["state"], "closed");
}
