//! What waits and what is known outlives a reload, and other limits hold at once.

use outrigger_tests::harness::{Call, Proxy};

use super::{answers, await_empty, await_waiting, line_up, number, state, stuck};
use crate::fleet::{chat, one_backend, plain, reload, sim};

const QUEUE: &str = "queue: { size: 50, wait: 60s, target: 60s }";

#[tokio::test]
async fn who_waits_goes_on_waiting_when_something_else_changes() {
    let engine = sim("a");
    let yaml = |more: &str| one_backend(&[&engine], &format!("limit: 1, {QUEUE}, {more}"), "");
    let proxy = Proxy::start(&yaml("")).await;
    let held = stuck(&proxy, &engine).await;
    let waiting = line_up(&proxy, [chat(), chat()]).await;
    reload(&proxy, &yaml("idle_connections: 7")).await;
    await_waiting(&proxy, 2).await;
    assert_eq!(state(&proxy, "backend", "stable").await["in_flight"], 1);
    assert_eq!(engine.state().in_flight, 1, "what was in flight still counts");
    held.abort();
    assert!(answers(waiting).await.iter().all(|answer| answer.status == 200));
    await_empty(&proxy).await;
}

#[tokio::test]
async fn a_higher_limit_lets_in_who_waits_and_none_lets_in_all() {
    let engine = sim("a");
    let yaml = |limits: &str| one_backend(&[&engine], limits, "");
    let proxy = Proxy::start(&yaml(&format!("limit: 1, {QUEUE}"))).await;
    let held = stuck(&proxy, &engine).await;
    let stuck_too = || plain().fault("stall_first_byte");
    let waiting = line_up(&proxy, (0..5).map(|_| stuck_too())).await;
    reload(&proxy, &yaml(&format!("limit: 3, {QUEUE}"))).await;
    engine.reached(|state| state.in_flight == 3).await;
    await_waiting(&proxy, 3).await;
    reload(&proxy, &yaml("")).await;
    engine.reached(|state| state.in_flight == 6).await;
    assert_eq!(chat().send(proxy.address()).await.status, 200);
    held.abort();
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    await_empty(&proxy).await;
}

#[tokio::test]
async fn a_lower_limit_waits_until_enough_have_left() {
    let engine = sim("a");
    let yaml = |limit: u32| one_backend(&[&engine], "", &format!("limit: {limit}, {QUEUE}"));
    let proxy = Proxy::start(&yaml(2)).await;
    let first = stuck(&proxy, &engine).await;
    let second = stuck(&proxy, &engine).await;
    reload(&proxy, &yaml(1)).await;
    let waiting = line_up(&proxy, [chat()]).await;
    first.abort();
    engine.reached(|state| state.in_flight == 1).await;
    await_waiting(&proxy, 1).await;
    second.abort();
    assert!(answers(waiting).await.iter().all(|answer| answer.status == 200));
    await_empty(&proxy).await;
}

#[tokio::test]
async fn allowances_are_not_refilled_by_a_reload() {
    let engine = sim("a");
    let yaml = |rates: &str, more: &str| {
        one_backend(&[&engine], more, &format!("retry: off, rates: [{rates}]"))
    };
    let proxy = Proxy::start(&yaml("{ requests: 5/d }", "")).await;
    let left = |answer: &outrigger_tests::harness::Answer| {
        number(answer, "x-ratelimit-remaining-requests")
    };
    assert_eq!(left(&plain().send(proxy.address()).await), 4);
    reload(&proxy, &yaml("{ requests: 5/d }", "idle_connections: 7")).await;
    assert_eq!(left(&plain().send(proxy.address()).await), 3);
    // Another rule begins anew.
    reload(&proxy, &yaml("{ requests: 9/d }", "")).await;
    assert_eq!(left(&Call::get("/bytes/2").send(proxy.address()).await), 8);
}
