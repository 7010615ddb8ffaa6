//! Endpoints that do worse than their peers: one that fails every third request, one that is five times slower. No row of
//! failures shows them, the others do.

use std::time::{Duration, Instant};

use outrigger_tests::harness::{Call, Load, Metrics, Proxy, Report};
use outrigger_tests::sim::{Fault, Options, Rule, Simulator};

use crate::fleet::{chat, endpoint_states, one_backend, sim};

const RATE: &str = "success_rate: { window: 2s, requests: 20, margin: 20% }, stall: off";
const LATENCY: &str =
    "success_rate: off, latency: { factor: 3, window: 3s, requests: 20 }, stall: off";

/// A backend that ejects for nothing else.
fn comparing(how: &str, more: &str) -> String {
    format!(
        "balance: round_robin, ejection: {{ failures: 1000, base: 60s, jitter: 0, {how}, {more} }}"
    )
}

async fn start(simulators: &[&Simulator], backend: &str) -> Proxy {
    Proxy::start(&one_backend(simulators, backend, "retry: off")).await
}

fn ejections(metrics: &Metrics, reason: &str) -> f64 {
    metrics.get("outrigger_endpoint_ejections_total", &[("reason", reason)])
}

async fn ejected(proxy: &Proxy) -> Vec<bool> {
    endpoint_states(proxy).await.iter().map(|endpoint| endpoint.ejected).collect()
}

fn fails(simulator: &Simulator, share: f64) {
    simulator.inflict(Rule::always(Fault::Status(500, None)).share(share));
}

/// Sends short chats, six at a time, until the endpoints are as wished or so long has passed; how long that took.
async fn busy_until(
    proxy: &Proxy,
    most: Duration,
    call: fn() -> Call,
    wished: impl Fn(&Metrics) -> bool,
) -> Duration {
    let began = Instant::now();
    while began.elapsed() < most && !wished(&proxy.metrics().await) {
        Load::of(60).at_once(6).run(proxy.address(), move |_| call()).await;
    }
    began.elapsed()
}

/// The same for that long, whatever happens.
async fn busy_for(proxy: &Proxy, time: Duration, call: fn() -> Call) -> Report {
    let (began, mut all) = (Instant::now(), Report::default());
    while began.elapsed() < time {
        let report = Load::of(60).at_once(6).run(proxy.address(), move |_| call()).await;
        all.samples.extend(report.samples);
    }
    all
}

const LONG: Duration = Duration::from_secs(15);

#[tokio::test]
async fn who_fails_more_often_than_the_others_is_left_alone() {
    let (a, b, c) = (sim("a"), sim("b"), sim("c"));
    let proxy = start(&[&a, &b, &c], &comparing(RATE, "max_share: 50%")).await;
    fails(&b, 0.4);
    let took = busy_until(&proxy, LONG, chat, |metrics| ejections(metrics, "success_rate") > 0.0);
    let took = took.await;
    assert_eq!(ejected(&proxy).await, [false, true, false], "after {took:?}");
    proxy.await_log("success_rate").await;
    let report = busy_for(&proxy, Duration::from_secs(3), chat).await;
    assert_eq!(report.ok(), report.samples.len(), "{:?}", report.outcomes());
    assert_eq!(report.by_name().get("b"), None, "{:?}", report.by_name());
    let metrics = proxy.metrics().await;
    let labels = [("endpoint", &*b.endpoint()), ("reason", "success_rate")];
    assert_eq!(metrics.get("outrigger_endpoint_ejections_total", &labels), 1.0);
    assert_eq!(metrics.get("outrigger_endpoint_ejections_total", &[]), 1.0, "and no other");
}

#[tokio::test]
async fn of_two_the_worse_one_is_left_alone() {
    let (a, b) = (sim("a"), sim("b"));
    let proxy = start(&[&a, &b], &comparing(RATE, "max_share: 50%")).await;
    fails(&a, 0.5);
    busy_until(&proxy, LONG, chat, |metrics| ejections(metrics, "success_rate") > 0.0).await;
    assert_eq!(ejected(&proxy).await, [true, false]);
}

#[tokio::test]
async fn equals_are_left_in_peace_however_bad() {
    for share in [0.0, 0.1, 0.5, 0.9] {
        // Each draws its own lots.
        let lots = |name, seed| Simulator::start(Options { seed, ..Options::named(name).fast() });
        let (a, b, c) = (lots("a", 1), lots("b", 2), lots("c", 3));
        let proxy = start(&[&a, &b, &c], &comparing(RATE, "max_share: 100%")).await;
        [&a, &b, &c].into_iter().for_each(|simulator| fails(simulator, share));
        let report = busy_for(&proxy, Duration::from_secs(4), chat).await;
        assert!(report.samples.len() > 200, "{}", report.samples.len());
        assert_eq!(ejected(&proxy).await, [false; 3], "{share}");
        assert_eq!(proxy.metrics().await.get("outrigger_endpoint_ejections_total", &[]), 0.0);
    }
}

#[tokio::test]
async fn a_little_worse_is_not_worse() {
    let (a, b, c) = (sim("a"), sim("b"), sim("c"));
    let proxy = start(&[&a, &b, &c], &comparing(RATE, "max_share: 50%")).await;
    fails(&a, 0.08);
    busy_for(&proxy, Duration::from_secs(5), chat).await;
    assert_eq!(ejected(&proxy).await, [false; 3], "the margin is 20 points");
}

#[tokio::test]
async fn only_so_many_are_left_alone_at_once() {
    let all: Vec<_> = ["a", "b", "c", "d"].map(sim).into();
    let refs: Vec<_> = all.iter().collect();
    let proxy = start(&refs, &comparing(RATE, "max_share: 25%")).await;
    fails(&all[0], 0.9);
    fails(&all[1], 0.9);
    busy_until(&proxy, LONG, chat, |metrics| ejections(metrics, "success_rate") > 0.0).await;
    busy_for(&proxy, Duration::from_secs(4), chat).await;
    let out = ejected(&proxy).await;
    assert_eq!(out.iter().filter(|ejected| **ejected).count(), 1, "{out:?}");
    assert!(!out[2] && !out[3], "{out:?}");
    proxy.await_log("too few others are left").await;
}

#[tokio::test]
async fn nobody_is_compared_when_that_is_off() {
    let (a, b, c) = (sim("a"), sim("b"), sim("c"));
    let proxy = start(&[&a, &b, &c], &comparing("success_rate: off", "max_share: 50%")).await;
    fails(&b, 0.6);
    busy_for(&proxy, Duration::from_secs(4), chat).await;
    assert_eq!(ejected(&proxy).await, [false; 3]);
}

#[tokio::test]
async fn after_its_time_it_is_tried_and_judged_anew() {
    let (a, b, c) = (sim("a"), sim("b"), sim("c"));
    let backend = comparing(RATE, "max_share: 50%").replace("base: 60s", "base: 500ms");
    let proxy = start(&[&a, &b, &c], &backend).await;
    fails(&b, 0.6);
    busy_until(&proxy, LONG, chat, |metrics| ejections(metrics, "success_rate") > 0.0).await;
    assert!(ejections(&proxy.metrics().await, "success_rate") > 0.0);
    b.clear_faults();
    busy_until(&proxy, LONG, chat, |metrics| metrics.get("outrigger_endpoint_ejected", &[]) == 0.0)
        .await;
    let before = proxy.metrics().await.get("outrigger_endpoint_ejections_total", &[]);
    let report = busy_for(&proxy, Duration::from_secs(4), chat).await;
    assert!(report.by_name()["b"] > report.samples.len() / 5, "{:?}", report.by_name());
    assert_eq!(ejected(&proxy).await, [false; 3]);
    let after = proxy.metrics().await.get("outrigger_endpoint_ejections_total", &[]);
    assert_eq!(before, after, "old failures are not held against it");
}

/// An engine that reads its prompts at 20 µs a token: this one takes 10 ms for the prompts below.
fn reader(name: &str, slower: f64) -> Simulator {
    let mut options = Options::named(name).steady(Duration::from_millis(2)).slowdown(slower);
    options.engine.prefill_rate = 50_000.0;
    Simulator::start(options)
}

fn question() -> Call {
    Call::chat(&"reef ".repeat(400)).max_tokens(4).streaming()
}

#[tokio::test]
async fn who_is_much_slower_than_the_others_is_left_alone() {
    let (a, b, c) = (reader("a", 1.0), reader("b", 1.0), reader("c", 6.0));
    let proxy = start(&[&a, &b, &c], &comparing(LATENCY, "max_share: 50%")).await;
    let took = busy_until(&proxy, LONG, question, |metrics| ejections(metrics, "latency") > 0.0);
    let took = took.await;
    assert_eq!(ejected(&proxy).await, [false, false, true], "after {took:?}");
    assert_eq!(proxy.metrics().await.get("outrigger_endpoint_ejections_total", &[]), 1.0);
    proxy.await_log("latency").await;
}

#[tokio::test]
async fn one_that_has_become_as_fast_as_the_others_is_back_for_good() {
    let (a, b) = (reader("a", 6.0), reader("b", 1.0));
    let backend = comparing(LATENCY, "max_share: 50%").replace("base: 60s", "base: 500ms");
    let proxy = start(&[&a, &b], &backend).await;
    busy_until(&proxy, LONG, question, |metrics| ejections(metrics, "latency") > 0.0).await;
    assert!(
        ejections(&proxy.metrics().await, "latency") > 0.0,
        "of two one is enough to compare with"
    );
    a.set_slowdown(1.0);
    let back = |metrics: &Metrics| metrics.get("outrigger_endpoint_ejected", &[]) == 0.0;
    busy_until(&proxy, LONG, question, back).await;
    let before = ejections(&proxy.metrics().await, "latency");
    let report = busy_for(&proxy, Duration::from_secs(5), question).await;
    assert!(report.by_name()["a"] > report.samples.len() / 4, "{:?}", report.by_name());
    assert_eq!((ejections(&proxy.metrics().await, "latency"), before), (before, before));
}

#[tokio::test]
async fn equally_slow_ones_are_left_in_peace() {
    let (a, b, c) = (reader("a", 3.0), reader("b", 3.0), reader("c", 3.0));
    let proxy = start(&[&a, &b, &c], &comparing(LATENCY, "max_share: 100%")).await;
    busy_for(&proxy, Duration::from_secs(6), question).await;
    assert_eq!(ejected(&proxy).await, [false; 3]);
}

#[tokio::test]
async fn slowness_is_no_reason_unless_told_so() {
    let (a, b) = (reader("a", 8.0), reader("b", 1.0));
    let backend = "balance: round_robin, ejection: { base: 60s }";
    let proxy = start(&[&a, &b], backend).await;
    busy_for(&proxy, Duration::from_secs(5), question).await;
    assert_eq!(ejected(&proxy).await, [false; 2]);
}
