//! What is let in: limits that hold, queues that keep their order, rates that are exact, and whoever is turned away told
//! why and when to come back.

mod overload;
mod queueing;
mod rates;
mod reloading;

use std::time::Duration;

use outrigger_tests::harness::{Answer, Call, Load, Proxy, Report, Streaming};
use outrigger_tests::sim::{Options, Simulator};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::fleet::{await_idle, chat, ended, endpoints, error_code, one_backend, plain, sim};

/// A number from a header of an answer.
#[allow(clippy::panic, reason = "that is how a test fails")]
fn number(answer: &Answer, header: &str) -> u64 {
    let text = answer.header(header).unwrap_or_else(|| panic!("{header}: {:?}", answer.headers));
    text.parse().unwrap_or_else(|_| panic!("{header}: {text}"))
}

/// The client is told to come back, and when.
fn told_to_retry(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, &*error_code(answer)), (status, code), "{}", answer.text());
    assert_eq!(answer.header("x-should-retry"), Some("true"));
    let (seconds, millis) = (number(answer, "retry-after"), number(answer, "retry-after-ms"));
    assert!((1..=120).contains(&seconds) && millis <= seconds * 1_000, "{seconds} s, {millis} ms");
}

/// What `/admission` says of a route or a backend.
async fn state(proxy: &Proxy, scope: &str, name: &str) -> Value {
    let all = proxy.admin_get("/admission").await.json();
    let mut all = all.as_array().expect("a list").iter();
    let found = all.find(|one| one["scope"] == scope && one["name"] == name).cloned();
    found.expect("it limits something")
}

/// Waits until so many wait in all queues together.
async fn await_waiting(proxy: &Proxy, count: usize) {
    let name = "outrigger_admission_waiting";
    proxy.await_metrics(|metrics| metrics.get(name, &[]) == count as f64).await;
}

/// Waits until everything has been given back.
async fn await_empty(proxy: &Proxy) {
    await_idle(proxy).await;
    let gauges = ["admission_in_flight", "admission_waiting", "requests_in_flight"];
    let gauges = gauges.map(|gauge| format!("outrigger_{gauge}"));
    proxy.await_metrics(|metrics| gauges.iter().all(|gauge| metrics.get(gauge, &[]) == 0.0)).await;
}

type Sent = JoinHandle<Result<Streaming, String>>;

/// Sends a request that never gets an answer, and waits until it has arrived.
async fn stuck(proxy: &Proxy, simulator: &Simulator) -> Sent {
    let before = simulator.state().in_flight;
    let call = plain().fault("stall_first_byte").try_open(proxy.address());
    let sent = tokio::spawn(call);
    simulator.reached(|state| state.in_flight == before + 1).await;
    sent
}

/// Sends requests one after the other, each when the one before waits.
async fn line_up(proxy: &Proxy, calls: impl IntoIterator<Item = Call>) -> Vec<Sent> {
    let mut waiting = Vec::new();
    for call in calls {
        waiting.push(tokio::spawn(call.try_open(proxy.address())));
        await_waiting(proxy, waiting.len()).await;
    }
    waiting
}

async fn answers(sent: Vec<Sent>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for sent in sent {
        answers.push(sent.await.expect("nobody gave it up").expect("an answer").rest().await);
    }
    answers
}

/// Runs the load and sees to it that none of the two ever has more requests to work on than it may.
#[allow(clippy::panic, reason = "that is how a test fails")]
async fn never_more_than(
    (one, most): (&Simulator, usize),
    (other, at_most): (&Simulator, usize),
    load: impl Future<Output = Report>,
) -> Report {
    tokio::select! {
        report = load => report,
        state = one.reached(|state| state.running + state.waiting > most) => panic!("{state:?}"),
        state = other.reached(|state| state.running + state.waiting > at_most) => panic!("{state:?}"),
    }
}

#[tokio::test]
async fn a_limit_of_a_backend_is_never_exceeded() {
    let engine = sim("a");
    let backend = "limit: 5, queue: { size: 1000, wait: 60s, target: 60s }";
    let proxy = Proxy::start(&one_backend(&[&engine], backend, "retry: off")).await;
    let load = Load::of(200).at_once(40).run(proxy.address(), |_| chat());
    let report = never_more_than((&engine, 5), (&engine, 5), load).await;
    assert_eq!(report.ok(), 200, "{:?}", report.outcomes());
    await_empty(&proxy).await;
    let waits = proxy.metrics().await.get("outrigger_admission_wait_seconds_count", &[]);
    assert!(waits > 0.0, "some had to wait");
}

#[tokio::test]
async fn a_limit_of_a_route_is_never_exceeded() {
    let engine = sim("a");
    let route = "retry: off, limit: { in_flight: 3 }, queue: { wait: 60s, target: 60s }";
    let proxy = Proxy::start(&one_backend(&[&engine], "", route)).await;
    let load = Load::of(200).at_once(30).run(proxy.address(), |_| chat().streaming());
    let report = never_more_than((&engine, 3), (&engine, 3), load).await;
    assert_eq!(report.ok(), 200, "{:?}", report.outcomes());
    await_empty(&proxy).await;
}

#[tokio::test]
async fn without_a_queue_what_is_too_much_is_told_at_once() {
    let engine = sim("a");
    for (backend, route) in [("limit: 1", ""), ("", "limit: 1")] {
        let proxy = Proxy::start(&one_backend(&[&engine], backend, route)).await;
        let held = stuck(&proxy, &engine).await;
        told_to_retry(&chat().send(proxy.address()).await, 503, "overloaded");
        told_to_retry(&chat().h2().send(proxy.address()).await, 503, "overloaded");
        let reasons = [("reason", "overloaded")];
        let rejected = proxy.metrics().await.get("outrigger_admission_rejected_total", &reasons);
        assert_eq!(rejected, 2.0);
        held.abort();
        await_empty(&proxy).await;
        assert_eq!(chat().send(proxy.address()).await.status, 200);
        engine.reached(|state| state.in_flight == 0).await;
    }
}

#[tokio::test]
async fn for_whom_every_endpoint_is_full_waits_for_a_place() {
    let (a, b) = (sim("a"), sim("b"));
    let yaml = format!(
        "backends: {{ stable: {{ endpoints: {}, max_connections: 1, queue: {{ wait: 60s, target: 60s }} }} }}\n\
         routes: [{{ name: all, backend: stable, retry: off }}]\n",
        endpoints(&[&a, &b]),
    );
    let proxy = Proxy::start(&yaml).await;
    let load = Load::of(300).at_once(24).run(proxy.address(), |_| chat());
    let report = never_more_than((&a, 1), (&b, 1), load).await;
    assert_eq!(report.ok(), 300, "{:?}", report.outcomes());
    assert!(report.by_name().values().all(|served| *served > 50), "{:?}", report.by_name());
    await_empty(&proxy).await;
}

#[tokio::test]
async fn a_place_at_a_full_endpoint_is_the_turn_of_who_waits() {
    let engine = sim("a");
    let backend = "max_connections: 1, queue: { wait: 60s }";
    let proxy = Proxy::start(&one_backend(&[&engine], backend, "")).await;
    let held = stuck(&proxy, &engine).await;
    let waiting = line_up(&proxy, (0..5).map(|_| chat())).await;
    assert_eq!(engine.state().in_flight, 1, "they wait");
    held.abort();
    assert!(answers(waiting).await.iter().all(|answer| answer.status == 200));
    await_empty(&proxy).await;
}

#[tokio::test]
async fn an_adaptive_limit_stays_near_what_the_engine_bears() {
    let mut options = Options::named("a").room(8, usize::MAX).answers(20);
    options.engine.step_base = Duration::from_millis(5);
    let engine = Simulator::start(options);
    let backend = "limit: { adaptive: { initial: 6, min: 2, max: 500 } }, \
        queue: { size: 1000, wait: 60s, target: 60s }";
    let proxy = Proxy::start(&one_backend(&[&engine], backend, "")).await;
    let stream = || Call::chat("how deep is the lagoon?").max_tokens(20).streaming();
    let report = Load::of(900).at_once(120).run(proxy.address(), move |_| stream()).await;
    assert_eq!(report.ok(), 900, "{:?}", report.outcomes());
    let state = state(&proxy, "backend", "stable").await;
    let limit = state["limit"].as_u64().expect("a limit");
    // Far from the 120 that ask, whatever else this machine is doing.
    assert!((3..=60).contains(&limit), "{state:#}");
    await_empty(&proxy).await;
}

#[tokio::test]
async fn what_waits_is_shown_logged_and_told() {
    let engine = sim("a");
    let backend = "limit: 1, queue: { size: 7, wait: 60s }";
    let route = "expose: [timing], priority: { classes: [high, low] }";
    let yaml = format!(
        "backends: {{ stable: {{ endpoints: {}, {backend} }} }}\n\
         routes: [{{ name: all, backend: stable, {route} }}]\n",
        endpoints(&[&engine]),
    );
    let proxy = Proxy::start(&yaml).await;
    let held = stuck(&proxy, &engine).await;
    let waiting = line_up(&proxy, [chat()]).await;
    let shown = state(&proxy, "backend", "stable").await;
    assert_eq!((&shown["limit"], &shown["in_flight"]), (&1.into(), &1.into()), "{shown:#}");
    assert_eq!(shown["waiting"], serde_json::json!([0, 1]), "{shown:#}");
    held.abort();
    let answer = answers(waiting).await.remove(0);
    let timing = answer.header("server-timing").expect("it is exposed");
    assert!(timing.starts_with("queue;dur=") && timing.contains("upstream;dur="), "{timing}");
    let log = proxy.await_access(2).await;
    let line = log.iter().find(|line| line["status"] == 200).expect("the one that waited");
    assert!(line["queued_ms"].as_f64().is_some_and(|waited| waited > 0.0), "{line}");
    let answer = chat().send(proxy.address()).await;
    assert!(!answer.header("server-timing").expect("exposed").contains("queue"));
    assert_eq!(ended(&proxy.metrics().await, "ok", 200), 2.0);
}
