//! Passive ejection: who keeps failing is left alone for a while, and comes back by one request.

use std::time::Duration;

use outrigger_tests::harness::{Load, Proxy};
use outrigger_tests::sim::{Fault, Rule, Simulator};
use tokio::task::JoinSet;

use crate::fleet::{
    attempts, await_endpoints, await_idle, chat, endpoint_states, one_backend, sim,
};

const LONG: &str = "balance: round_robin, ejection: { failures: 3, base: 60s }";

async fn two(backend: &str) -> (Simulator, Simulator, Proxy) {
    let (a, b) = (sim("a"), sim("b"));
    let proxy = Proxy::start(&one_backend(&[&a, &b], backend, "")).await;
    (a, b, proxy)
}

async fn send(proxy: &Proxy, count: usize) {
    Load::of(count).run(proxy.address(), |_| chat()).await;
}

async fn ejected(proxy: &Proxy) -> Vec<bool> {
    endpoint_states(proxy).await.iter().map(|endpoint| endpoint.ejected).collect()
}

#[tokio::test]
async fn an_endpoint_that_fails_three_times_in_a_row_gets_no_fourth_request() {
    let (a, _b, proxy) = two(LONG).await;
    a.fault(Fault::Status(500, None));
    send(&proxy, 20).await;
    assert_eq!(a.state().requests(), 3);
    assert_eq!(ejected(&proxy).await, [true, false]);
    let metrics = proxy.metrics().await;
    let labels = [("backend", "stable"), ("endpoint", &*a.endpoint())];
    assert_eq!(metrics.get("outrigger_endpoint_ejected", &labels), 1.0);
    assert_eq!(metrics.get("outrigger_endpoint_ejections_total", &labels), 1.0);
    proxy.await_log("ejected").await;
}

#[tokio::test]
async fn a_success_in_between_begins_the_count_anew() {
    let (a, _b, proxy) = two(LONG).await;
    for _ in 0..5 {
        a.inflict(Rule::always(Fault::Status(500, None)).times(2));
        send(&proxy, 6).await;
    }
    assert_eq!(a.state().requests(), 15, "every turn was a's own");
    assert_eq!(ejected(&proxy).await, [false, false]);
}

#[tokio::test]
async fn a_busy_endpoint_is_not_a_failing_one() {
    let (a, _b, proxy) = two(LONG).await;
    a.fault(Fault::Status(429, None));
    send(&proxy, 20).await;
    assert_eq!(ejected(&proxy).await, [false, false]);
}

#[tokio::test]
async fn two_refused_connections_are_enough() {
    let (a, b, proxy) = two("balance: round_robin, ejection: { failures: 4, base: 60s }").await;
    a.refuse().await;
    send(&proxy, 20).await;
    assert_eq!(b.state().requests(), 20);
    let metrics = proxy.metrics().await;
    let refused = metrics.get("outrigger_upstream_connections_total", &[("result", "failed")]);
    assert_eq!((refused, ejected(&proxy).await), (2.0, vec![true, false]));
}

#[tokio::test]
async fn resets_before_any_byte_count() {
    let (a, _b, proxy) = two(LONG).await;
    a.fault(Fault::Reset);
    send(&proxy, 20).await;
    assert_eq!(ejected(&proxy).await, [true, false]);
}

#[tokio::test]
async fn answers_that_break_off_in_the_middle_count() {
    let (a, _b, proxy) = two(LONG).await;
    a.fault(Fault::ResetMid(1));
    send(&proxy, 20).await;
    assert_eq!(ejected(&proxy).await, [true, false]);
    assert_eq!(a.state().requests(), 3);
}

#[tokio::test]
async fn after_its_time_one_request_alone_tries_an_ejected_endpoint() {
    let backend = "balance: round_robin, ejection: { failures: 1, base: 300ms, jitter: 0 }";
    let (a, b, proxy) = two(backend).await;
    a.fault(Fault::Status(500, None));
    send(&proxy, 2).await;
    assert_eq!(ejected(&proxy).await, [true, false]);
    a.clear_faults();
    a.fault(Fault::StallFirstByte(None));
    b.fault(Fault::StallFirstByte(None));
    // The time itself is awaited: nothing happens at its end.
    tokio::time::sleep(Duration::from_millis(320)).await;
    let mut clients = JoinSet::new();
    for _ in 0..12 {
        clients.spawn(chat().try_send(proxy.address()));
    }
    let all_there = |all: &[crate::fleet::Endpoint]| all[0].in_flight + all[1].in_flight == 12;
    let endpoints = await_endpoints(&proxy, "twelve requests to be under way", all_there).await;
    assert_eq!((endpoints[0].in_flight, endpoints[1].in_flight), (1, 11));
    assert!(endpoints[0].ejected, "one request is no proof yet");
    clients.abort_all();
    await_idle(&proxy).await;
    a.clear_faults();
    b.clear_faults();
    // The first probe was given up by its client; another one takes its place and succeeds.
    send(&proxy, 10).await;
    assert_eq!(ejected(&proxy).await, [false, false]);
    assert_eq!(proxy.metrics().await.get("outrigger_endpoint_ejected", &[]), 0.0);
}

#[tokio::test]
async fn a_failed_probe_ejects_for_longer() {
    let backend = "balance: round_robin, ejection: { failures: 1, base: 1s, max: 60s, jitter: 0 }";
    let (a, _b, proxy) = two(backend).await;
    a.fault(Fault::Status(500, None));
    send(&proxy, 2).await;
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    send(&proxy, 2).await;
    assert_eq!(a.state().requests(), 2, "the probe");
    // Twice as long from here: half of it says nothing yet.
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    send(&proxy, 2).await;
    assert_eq!(a.state().requests(), 2);
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    send(&proxy, 2).await;
    assert_eq!(a.state().requests(), 3);
}

#[tokio::test]
async fn the_only_endpoint_is_never_ejected() {
    let one = sim("one");
    let backend = "ejection: { failures: 1, base: 60s }";
    let proxy = Proxy::start(&one_backend(&[&one], backend, "")).await;
    one.fault(Fault::Status(500, None));
    send(&proxy, 20).await;
    assert_eq!((one.state().requests(), ejected(&proxy).await), (20, vec![false]));
    one.clear_faults();
    assert_eq!(chat().send(proxy.address()).await.status, 200);
}

#[tokio::test]
async fn of_endpoints_that_all_fail_one_stays() {
    let (a, b, proxy) = two("balance: round_robin, ejection: { failures: 1, base: 60s }").await;
    a.fault(Fault::Status(500, None));
    b.fault(Fault::Status(500, None));
    let report = Load::of(20).at_once(4).run(proxy.address(), |_| chat()).await;
    assert_eq!(report.status(500), 20, "each was tried: {:?}", report.outcomes());
    assert_eq!(ejected(&proxy).await.iter().filter(|ejected| **ejected).count(), 1);
}

#[tokio::test]
async fn when_the_last_sound_endpoint_goes_an_ejected_one_is_better_than_none() {
    let (a, b, proxy) = two("balance: round_robin, ejection: { failures: 1, base: 60s }").await;
    a.fault(Fault::Status(500, None));
    send(&proxy, 2).await;
    assert_eq!(ejected(&proxy).await, [true, false]);
    a.clear_faults();
    b.refuse().await;
    let answer = chat().send(proxy.address()).await;
    assert_eq!((answer.status, answer.by()), (200, "a"), "{}", answer.text());
    assert_eq!(attempts(&answer), 2);
}

#[tokio::test]
async fn nobody_is_ejected_when_that_is_off() {
    let (a, _b, proxy) = two("balance: round_robin, ejection: off").await;
    a.fault(Fault::Status(500, None));
    send(&proxy, 40).await;
    assert_eq!((a.state().requests(), ejected(&proxy).await), (20, vec![false, false]));
}
