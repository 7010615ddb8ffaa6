//! A canary that gets more and more of the traffic, as long as it does as well as the other arm.
//!
//! First bytes are not compared here: an arm with little traffic is the colder one, and on a busy machine that shows.

use std::collections::BTreeSet;

use outrigger_tests::harness::{Client, Load, Protocol, Proxy};
use outrigger_tests::sim::{Fault, Options, Simulator};
use serde_json::Value;

use super::{
    EVEN, Guarded, ask, config, expect_told, requests, rolled_back, taken_out, verdicts, weight,
};
use crate::fleet::reload;

const STEPS: &str = "first_byte: off, steps: { weights: [10, 50, 100], every: 10ms, requests: 20 }";

/// How many of so many requests, one after the other, come to the canary.
async fn share(guarded: &Guarded, count: usize) -> usize {
    let report = Load::of(count).run(guarded.proxy.address(), |_| ask()).await;
    assert_eq!(report.ok(), count, "{:?}", report.outcomes());
    report.by_name().get("canary").copied().unwrap_or(0)
}

async fn fast(guard: &str) -> Guarded {
    let (stable, canary) = (Options::named("stable").fast(), Options::named("canary").fast());
    Guarded::start(stable, canary, guard).await
}

#[tokio::test]
async fn a_good_canary_goes_up_its_steps_and_the_shares_follow() {
    let guarded = fast(STEPS).await;
    assert_eq!(weight(&guarded.proxy.metrics().await), 10.0, "whatever the split says");
    let page = guarded.page().await;
    assert_eq!(
        (&page["weights"]["stable"], &page["weights"]["canary"]),
        (&9_000.into(), &1_000.into())
    );
    assert_eq!(page["state"]["next_step"]["to_percent"], 50, "{page:#}");
    assert_eq!(page["state"]["next_step"]["requests_to_go"], 20, "{page:#}");
    assert_eq!(share(&guarded, 100).await, 10);
    // The twentieth request of the canary takes the step.
    guarded.send_until(6_000, |metrics| weight(metrics) >= 50.0).await;
    guarded.proxy.await_log("canary gets more of the traffic").await;
    // What was begun less than a second after a step is not judged, so that the next one is not taken yet.
    let of_fifty = share(&guarded, 50).await;
    if weight(&guarded.proxy.metrics().await) == 50.0 {
        assert_eq!(of_fifty, 25);
    }
    let metrics = guarded.send_until(20_000, |metrics| weight(metrics) == 100.0).await;
    assert_eq!((verdicts(&metrics, "stepped"), rolled_back(&metrics)), (2.0, false));
    let before = guarded.stable.state().requests();
    assert_eq!(share(&guarded, 100).await, 100);
    assert_eq!(guarded.stable.state().requests(), before);
    let page = guarded.page().await;
    assert_eq!(page["state"]["next_step"], Value::Null, "{page:#}");
    assert_eq!(page["state"]["weight_percent"], 100, "{page:#}");
}

#[tokio::test]
async fn a_step_needs_its_time() {
    let steps = "first_byte: off, steps: { weights: [10, 50], every: 1h, requests: 1 }";
    let guarded = fast(steps).await;
    assert_eq!(share(&guarded, 1_000).await, 100);
    let page = guarded.page().await;
    let next = &page["state"]["next_step"];
    assert_eq!((&next["requests_to_go"], &next["held_by"]), (&0.into(), &Value::Null), "{page:#}");
    assert!(next["wait_seconds"].as_f64() > Some(3_000.0), "{page:#}");
    assert_eq!(weight(&guarded.proxy.metrics().await), 10.0);
}

#[tokio::test]
async fn a_step_needs_its_requests() {
    let steps = "first_byte: off, steps: { weights: [10, 50], every: 1ms, requests: 101 }";
    let guarded = fast(steps).await;
    assert_eq!(share(&guarded, 1_000).await, 100);
    guarded.proxy.await_metrics(|m| requests(m, "canary") == 100).await;
    assert_eq!(weight(&guarded.proxy.metrics().await), 10.0);
    assert_eq!(guarded.page().await["state"]["next_step"]["requests_to_go"], 1);
    share(&guarded, 10).await;
    guarded.proxy.await_metrics(|m| requests(m, "canary") > 100).await;
    let weight = weight(&guarded.proxy.metrics().await);
    assert_eq!(weight, 50.0, "{:#}", guarded.page().await);
}

#[tokio::test]
async fn a_bad_canary_does_not_go_up_but_out() {
    let steps = "first_byte: off, steps: { weights: [20, 50, 100], every: 10ms, requests: 100 }";
    let guarded = Guarded::alike(steps).await;
    guarded.canary.fault(Fault::Status(500, None));
    let metrics = guarded.send_until(600, taken_out).await;
    assert_eq!(verdicts(&metrics, "stepped"), 0.0);
    expect_told(&guarded, "errors").await;
    let page = guarded.page().await;
    assert_eq!(page["state"]["next_step"], Value::Null, "{page:#}");
    guarded.canary.clear_faults();
    guarded.expect_canary_has_none().await;
}

#[tokio::test]
async fn a_canary_that_gets_worse_after_a_step_goes_out() {
    let steps = "first_byte: off, steps: { weights: [30, 60], every: 10ms, requests: 20 }";
    let guarded = Guarded::alike(steps).await;
    guarded.send_until(600, |metrics| weight(metrics) == 60.0).await;
    guarded.canary.fault(Fault::Status(500, None));
    let before = guarded.canary.state().requests();
    let metrics = guarded.send_until(before + 2_000, taken_out).await;
    assert_eq!((weight(&metrics), verdicts(&metrics, "stepped")), (0.0, 1.0));
    guarded.canary.clear_faults();
    guarded.expect_canary_has_none().await;
}

#[tokio::test]
async fn a_step_outlives_a_reload_that_leaves_guard_and_split_alone() {
    let guarded = fast(STEPS).await;
    guarded.send_until(2_000, |metrics| weight(metrics) >= 50.0).await;
    let before = weight(&guarded.proxy.metrics().await);
    let changed = config(&guarded.stable, &guarded.canary, EVEN, STEPS, "deadline: { total: 90s }");
    reload(&guarded.proxy, &changed).await;
    let after = weight(&guarded.proxy.metrics().await);
    assert!(after >= before, "{after} after {before}");
    let page = guarded.page().await;
    assert_eq!(page["state"]["weight_percent"].as_f64(), Some(after), "{page:#}");
    let canary = share(&guarded, 20).await;
    assert!(canary >= 10, "{canary} of 20 at {after} %");
}

#[tokio::test]
async fn other_steps_begin_anew() {
    let guarded = fast(STEPS).await;
    guarded.send_until(2_000, |metrics| weight(metrics) >= 50.0).await;
    let other = "first_byte: off, steps: { weights: [5, 20], every: 1h, requests: 20 }";
    let changed = config(&guarded.stable, &guarded.canary, EVEN, other, "");
    reload(&guarded.proxy, &changed).await;
    assert_eq!(weight(&guarded.proxy.metrics().await), 5.0);
    assert_eq!(share(&guarded, 100).await, 5);
}

/// Whose key is in the canary stays there as it grows.
#[tokio::test]
async fn keys_that_are_in_the_canary_stay_there_as_it_grows() {
    let (stable, canary) = (Options::named("stable").fast(), Options::named("canary").fast());
    let (stable, canary) = (Simulator::start(stable), Simulator::start(canary));
    let yaml = config(&stable, &canary, EVEN, STEPS, "sticky: { header: x-user }");
    let proxy = Proxy::start(&yaml).await;
    let guarded = Guarded { stable, canary, proxy, yaml };
    let mut before = BTreeSet::new();
    let mut seen = Vec::new();
    for percent in [10.0, 50.0, 100.0] {
        guarded.send_until(50_000, |metrics| weight(metrics) >= percent).await;
        let now = in_canary(&guarded.proxy).await;
        assert!(before.is_subset(&now), "somebody was sent back");
        seen.push(now.len());
        before = now;
    }
    assert_eq!(seen.last(), Some(&200), "{seen:?}");
}

/// Whose keys, of two hundred, are in the canary.
async fn in_canary(proxy: &Proxy) -> BTreeSet<usize> {
    let mut client = Client::connect(proxy.address(), Protocol::Http1).await;
    let mut own = BTreeSet::new();
    for key in 0..200 {
        let call = ask().header("x-user", &format!("user-{key}"));
        if client.send(call).await.expect("an answer").by() == "canary" {
            own.insert(key);
        }
    }
    own
}
