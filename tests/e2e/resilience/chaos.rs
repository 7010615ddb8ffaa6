//! Many requests while endpoints are killed, reset and stalled under them: none is lost that had another endpoint to go
//! to.

use std::sync::Arc;
use std::time::Duration;

use outrigger_tests::harness::{Call, Load, Protocol, Proxy, Report};
use outrigger_tests::sim::{Fault, Rule, Simulator};

use crate::fleet::{await_idle, one_backend, sim};

/// Everything before the first byte is tried again elsewhere, as often as there are endpoints.
const RETRY: &str = "deadline: { first_byte: 1s }, \
    retry: { attempts: 4, when: [connect, refused, reset, overloaded, first_byte, server_error], \
    backoff: 1ms, max_backoff: 5ms, budget: { percent: 100, min_per_second: 1000 } }";

async fn proxy(simulators: &[&Simulator], protocol: &str) -> Proxy {
    let backend =
        format!("protocol: {protocol}, ejection: {{ failures: 5, base: 200ms, max: 1s }}");
    Proxy::start(&one_backend(simulators, &backend, RETRY)).await
}

async fn load(proxy: &Proxy, protocol: Protocol) -> Report {
    let call = |index: usize| Call::chat("hold fast").max_tokens(4 + index as u64 % 16);
    Load::of(1_200).at_once(12).over(protocol).run(proxy.address(), call).await
}

/// Three endpoints fail in three ways, from the start and more and more; a fourth one is sound.
async fn nothing_is_lost(upstream: &str, downstream: Protocol) {
    let (a, b, c, d) = (sim("a"), sim("b"), sim("c"), sim("d"));
    let proxy = Arc::new(proxy(&[&a, &b, &c, &d], upstream).await);
    b.inflict(Rule::always(Fault::Reset).share(0.3));
    c.inflict(Rule::always(Fault::StallFirstByte(None)).share(0.1));
    let running = tokio::spawn({
        let proxy = Arc::clone(&proxy);
        async move { load(&proxy, downstream).await }
    });
    a.reached(|state| state.completed >= 50).await;
    a.refuse().await;
    d.reached(|state| state.completed >= 200).await;
    a.resume().await;
    c.clear_faults();
    c.inflict(Rule::always(Fault::Close).share(0.3));
    d.reached(|state| state.completed >= 250).await;
    // Killed; whatever was on its way there goes elsewhere.
    drop(b);
    let report = running.await.expect("the load");
    assert_eq!(report.ok(), 1_200, "{:?}", report.outcomes());
    let metrics = proxy.metrics().await;
    for reason in ["connect", "reset"] {
        let retries = metrics.get("outrigger_retries_total", &[("reason", reason)]);
        assert!(retries > 0.0, "nothing was retried for {reason}, so nothing was shown");
    }
    await_idle(&proxy).await;
}

#[tokio::test]
async fn failing_endpoints_under_load_lose_no_request() {
    nothing_is_lost("http1", Protocol::Http1).await;
}

#[tokio::test]
async fn failing_endpoints_under_load_lose_no_request_of_h2_clients() {
    nothing_is_lost("http1", Protocol::H2).await;
}

#[tokio::test]
async fn failing_h2_endpoints_under_load_lose_no_request() {
    nothing_is_lost("h2c", Protocol::Http1).await;
}

#[tokio::test]
async fn an_endpoint_that_dies_with_requests_in_its_queue_loses_none_of_them() {
    let (a, b) = (sim("a"), sim("b"));
    a.fault(Fault::StallFirstByte(None));
    let retry = "retry: { backoff: 1ms, budget: { percent: 100, min_per_second: 1000 } }";
    let proxy = Proxy::start(&one_backend(&[&a, &b], "", retry)).await;
    let address = proxy.address();
    let load = Load::of(40).at_once(40);
    let running = tokio::spawn(load.run(address, |_| Call::chat("hold fast").max_tokens(4)));
    a.reached(|state| state.bodies >= 10).await;
    drop(a);
    let report = running.await.expect("the load");
    assert_eq!((report.ok(), report.by_name()["b"]), (40, 40), "{:?}", report.outcomes());
}

#[tokio::test]
async fn a_stalled_endpoint_is_left_after_the_first_byte_deadline() {
    let (a, b) = (sim("a"), sim("b"));
    a.fault(Fault::StallFirstByte(None));
    let proxy = proxy(&[&a, &b], "http1").await;
    let load = Load::of(60).at_once(6);
    let report = load.run(proxy.address(), |_| Call::chat("hold fast").max_tokens(4)).await;
    assert_eq!((report.ok(), report.by_name()["b"]), (60, 60), "{:?}", report.outcomes());
    a.aborted().await;
    let slow = report.samples.iter().filter(|s| s.took > Duration::from_secs(1)).count();
    assert!((1..=12).contains(&slow), "{slow} requests waited: ejection should stop that");
}
