//! Whose turn it is, and how a wait ends otherwise.

use std::time::{Duration, Instant};

use outrigger_tests::harness::{Call, Protocol, Proxy};
use outrigger_tests::sim::Simulator;
use tokio::task::JoinHandle;

use super::{answers, await_empty, await_waiting, line_up, stuck, told_to_retry};
use crate::fleet::{await_endpoints, chat, ended, error_code, one_backend, sim};

const LONG: &str = "limit: 1, queue: { size: 50, wait: 60s, target: 60s }";
const CLASSES: &str = "retry: off, priority: { header: x-class, classes: [high, normal, low] }";

async fn start(backend: &str, route: &str) -> (Simulator, Proxy) {
    let engine = sim("a");
    let proxy = Proxy::start(&one_backend(&[&engine], backend, route)).await;
    (engine, proxy)
}

fn of_class(class: &str, path: &str) -> Call {
    Call::get(path).header("x-class", class)
}

/// The paths that an engine saw, in order, besides those of requests that got stuck.
fn order(engine: &Simulator) -> Vec<String> {
    engine.seen().into_iter().map(|seen| seen.target).filter(|t| t != "/bytes/1").collect()
}

#[tokio::test]
async fn a_higher_class_goes_first_and_within_a_class_who_came_first() {
    let (engine, proxy) = start(LONG, CLASSES).await;
    let held = stuck(&proxy, &engine).await;
    let calls = [
        of_class("low", "/bytes/10"),
        of_class("normal", "/bytes/20"),
        of_class("HIGH", "/bytes/30"),
        // Neither unknown nor absent is worth anything.
        of_class("highest", "/bytes/11"),
        Call::get("/bytes/12"),
        of_class("high", "/bytes/31"),
        of_class("normal", "/bytes/21"),
    ];
    let waiting = line_up(&proxy, calls).await;
    held.abort();
    assert!(answers(waiting).await.iter().all(|answer| answer.status == 200));
    let expected = ["30", "31", "20", "21", "10", "11", "12"].map(|n| format!("/bytes/{n}"));
    assert_eq!(order(&engine), expected);
    await_empty(&proxy).await;
}

#[tokio::test]
async fn the_nearest_deadline_goes_first() {
    let engine = sim("a");
    let route = |name: &str, total: &str| {
        format!(
            "{{ name: bytes-{name}, match: {{ path: /bytes/{name} }}, backend: stable, retry: off, deadline: {{ total: {total} }} }}"
        )
    };
    let yaml = format!(
        "backends: {{ stable: {{ endpoints: ['{}'], {LONG} }} }}\nroutes: [{}, {}, {}, {{ backend: stable }}]\n",
        engine.addr,
        route("10", "50s"),
        route("20", "40s"),
        route("30", "45s"),
    );
    let proxy = Proxy::start(&yaml).await;
    let held = stuck(&proxy, &engine).await;
    let waiting =
        line_up(&proxy, ["10", "20", "30"].map(|n| Call::get(&format!("/bytes/{n}")))).await;
    held.abort();
    answers(waiting).await;
    assert_eq!(order(&engine), ["20", "30", "10"].map(|n| format!("/bytes/{n}")));
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_is_gone_at_once() {
    let (engine, proxy) = start(LONG, "").await;
    let held = stuck(&proxy, &engine).await;
    for protocol in [Protocol::Http1, Protocol::H2] {
        let calls = (0..6).map(|n| Call::get(&format!("/bytes/{}", 10 + n)).over(protocol));
        let waiting = line_up(&proxy, calls).await;
        waiting.iter().take(5).for_each(JoinHandle::abort);
        await_waiting(&proxy, 1).await;
        waiting.iter().for_each(JoinHandle::abort);
        await_waiting(&proxy, 0).await;
    }
    held.abort();
    await_empty(&proxy).await;
    assert_eq!(order(&engine), [""; 0], "the engine saw none of them");
    assert_eq!(chat().send(proxy.address()).await.status, 200);
}

#[tokio::test]
async fn whoever_has_waited_for_as_long_as_it_may_is_told() {
    let backend = "limit: 1, queue: { size: 50, wait: 300ms, target: 300ms }";
    let (engine, proxy) = start(backend, "").await;
    let held = stuck(&proxy, &engine).await;
    let answer = chat().send(proxy.address()).await;
    told_to_retry(&answer, 503, "queue_timeout");
    assert!(answer.whole_after >= Duration::from_millis(300), "{:?}", answer.whole_after);
    held.abort();
    await_empty(&proxy).await;
}

#[tokio::test]
async fn the_total_deadline_runs_while_a_request_waits() {
    let (engine, proxy) = start(LONG, "deadline: { total: 300ms }").await;
    let held = stuck(&proxy, &engine).await;
    let began = Instant::now();
    let answer = chat().send(proxy.address()).await;
    // It may be the one that holds the place whose time is over first.
    if answer.status != 200 {
        assert_eq!((answer.status, &*error_code(&answer)), (504, "total_timeout"));
        assert!(began.elapsed() >= Duration::from_millis(300));
    }
    held.abort();
    await_empty(&proxy).await;
}

#[tokio::test]
async fn a_full_queue_says_so_and_makes_room_for_a_higher_class() {
    let backend = "limit: 1, queue: { size: 4, wait: 60s, target: 60s }";
    let (engine, proxy) = start(backend, CLASSES).await;
    let held = stuck(&proxy, &engine).await;
    let mut waiting = line_up(&proxy, (0..4).map(|_| of_class("low", "/bytes/10"))).await;
    told_to_retry(&of_class("low", "/v1/x").send(proxy.address()).await, 503, "queue_full");
    let higher = tokio::spawn(of_class("high", "/bytes/30").try_open(proxy.address()));
    // The newest of the low ones has to go for it, at once.
    let pushed_out = waiting.pop().expect("four wait");
    let pushed_out = pushed_out.await.expect("nobody gave it up").expect("an answer").rest().await;
    assert_eq!(pushed_out.status, 503, "{}", pushed_out.text());
    assert_eq!(pushed_out.header("x-should-retry"), Some("true"));
    held.abort();
    waiting.push(higher);
    assert!(answers(waiting).await.iter().all(|answer| answer.status == 200));
    assert_eq!(order(&engine)[0], "/bytes/30");
    assert_eq!(ended(&proxy.metrics().await, "shed", 503), 1.0);
    await_empty(&proxy).await;
}

#[tokio::test]
async fn a_request_waits_in_front_of_the_route_and_then_of_the_backend() {
    let route = "retry: off, limit: 2, queue: { size: 10, wait: 60s }";
    let (engine, proxy) = start(LONG, route).await;
    let held = stuck(&proxy, &engine).await;
    // One waits for the backend and has a place in front of the route; the others wait for that.
    let waiting = line_up(&proxy, (0..4).map(|n| Call::get(&format!("/bytes/{}", 10 + n)))).await;
    let metrics = proxy.metrics().await;
    let waits = |scope| metrics.get("outrigger_admission_waiting", &[("scope", scope)]);
    assert_eq!((waits("backend"), waits("route")), (1.0, 3.0));
    held.abort();
    assert!(answers(waiting).await.iter().all(|answer| answer.status == 200));
    assert_eq!(order(&engine), ["10", "11", "12", "13"].map(|n| format!("/bytes/{n}")));
    await_empty(&proxy).await;
}

#[tokio::test]
async fn what_holds_a_place_gives_it_back_however_it_ends() {
    let (engine, proxy) = start("limit: 1", "retry: off, deadline: { first_byte: 300ms }").await;
    for fault in ["reset", "close", "garbage", "status=503", "bad_chunk=1", "stall_first_byte"] {
        // Whatever this one is told.
        let answer = chat().fault(fault).try_send(proxy.address()).await;
        await_empty(&proxy).await;
        let next = chat().send(proxy.address()).await;
        assert_eq!(next.status, 200, "after {fault} ({answer:?}): {}", next.text());
        await_empty(&proxy).await;
    }
    engine.refuse().await;
    assert_eq!(chat().send(proxy.address()).await.status, 502);
    await_empty(&proxy).await;
}

/// Nothing else happens that would let it look: nobody comes and nobody goes.
#[tokio::test]
async fn whoever_waits_for_a_place_gets_one_at_an_endpoint_that_comes_into_service() {
    let (one, other) = (sim("a"), sim("b"));
    other.refuse().await;
    let health = "health: { tcp: true, interval: 50ms, healthy: 1, unhealthy: 1 }";
    let backend =
        format!("max_connections: 1, queue: {{ size: 5, wait: 60s, target: 60s }}, {health}");
    let proxy = Proxy::start(&one_backend(&[&one, &other], &backend, "retry: off")).await;
    await_endpoints(&proxy, "one of two to be ready", |all| {
        all.iter().filter(|endpoint| endpoint.ready).count() == 1
    })
    .await;
    let held = stuck(&proxy, &one).await;
    let waiting = line_up(&proxy, [Call::get("/bytes/10")]).await;
    other.resume().await;
    assert!(answers(waiting).await.iter().all(|answer| answer.by() == "b"));
    held.abort();
    await_empty(&proxy).await;
}
