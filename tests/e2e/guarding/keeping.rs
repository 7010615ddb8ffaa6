//! What outlives a verdict: keys stay with the arms that are left, and a reload keeps what was decided unless guard or
//! split have changed.

use std::collections::BTreeMap;
use std::time::Duration;

use outrigger_tests::harness::{Load, Metrics, Proxy, Sample};
use outrigger_tests::sim::{Fault, Options, Simulator};
use serde_json::Value;
use tokio::task::JoinSet;

use super::{EVEN, Guarded, ask, config, rolled_back, taken_out, weight};
use crate::fleet::{endpoints, reload};

/// Fails unless the rollback is still in force and told.
async fn expect_still_out(guarded: &Guarded) {
    let metrics = guarded.proxy.metrics().await;
    assert_eq!((weight(&metrics), rolled_back(&metrics)), (0.0, true), "weight, rolled back");
    assert!(guarded.page().await["state"]["rolled_back"].is_string());
    guarded.expect_canary_has_none().await;
}

/// Fails unless the guard has begun anew with an even split, and nobody says otherwise.
async fn expect_anew(guarded: &Guarded) {
    let report = Load::of(20).run(guarded.proxy.address(), |_| ask()).await;
    assert_eq!(report.by_name().get("canary"), Some(&10), "{:?}", report.by_name());
    let page = guarded.page().await;
    assert_eq!(page["state"]["rolled_back"], Value::Null, "{page:#}");
    let metrics = guarded.proxy.metrics().await;
    assert_eq!((weight(&metrics), rolled_back(&metrics)), (50.0, false), "weight, rolled back");
}

#[tokio::test]
async fn a_reload_that_changes_nothing_keeps_the_rollback() {
    let guarded = Guarded::alike("").await;
    guarded.take_out().await;
    reload(&guarded.proxy, &guarded.yaml).await;
    expect_still_out(&guarded).await;
}

#[tokio::test]
async fn a_reload_that_changes_something_else_keeps_the_rollback() {
    let guarded = Guarded::alike("").await;
    guarded.take_out().await;
    let changed = config(&guarded.stable, &guarded.canary, EVEN, "", "deadline: { total: 90s }");
    reload(&guarded.proxy, &changed).await;
    expect_still_out(&guarded).await;
    // Another endpoint of the canary: a pod was replaced, and still nobody has said that it is better now.
    let other = Simulator::start(Options::named("canary"));
    reload(&guarded.proxy, &config(&guarded.stable, &other, EVEN, "", "")).await;
    expect_still_out(&guarded).await;
    assert_eq!(other.state().requests(), 0);
}

#[tokio::test]
async fn a_reload_that_changes_the_guard_begins_anew() {
    let guarded = Guarded::alike("").await;
    guarded.take_out().await;
    reload(&guarded.proxy, &config(&guarded.stable, &guarded.canary, EVEN, "errors: 2%", "")).await;
    expect_anew(&guarded).await;
}

#[tokio::test]
async fn a_reload_that_changes_the_weights_begins_anew() {
    let guarded = Guarded::alike("").await;
    guarded.take_out().await;
    let split = "{ stable: 49, canary: 49 }";
    reload(&guarded.proxy, &config(&guarded.stable, &guarded.canary, split, "", "")).await;
    expect_anew(&guarded).await;
}

#[tokio::test]
async fn after_beginning_anew_a_bad_canary_is_taken_out_again() {
    let guarded = Guarded::alike("").await;
    guarded.take_out().await;
    reload(&guarded.proxy, &config(&guarded.stable, &guarded.canary, EVEN, "errors: 2%", "")).await;
    let before = guarded.canary.state().requests();
    guarded.canary.fault(Fault::Status(500, None));
    guarded.send_until(before + 6_000, |metrics| weight(metrics) == 0.0).await;
    guarded.canary.clear_faults();
    expect_still_out(&guarded).await;
}

/// Requests that were begun before a reload end under the old guard; what that finds out then concerns nobody any more.
#[tokio::test]
async fn a_guard_of_before_does_not_speak_for_the_one_in_force() {
    let guarded = Guarded::alike("").await;
    // Time enough for the reload, however busy the machine is.
    let slow = "deadline: { first_byte: 8s }";
    reload(&guarded.proxy, &config(&guarded.stable, &guarded.canary, EVEN, "", slow)).await;
    guarded.canary.fault(Fault::StallFirstByte(None));
    // So late that its good answers come among the failures of the canary: a guard compares what ends together.
    guarded.stable.fault(Fault::StallFirstByte(Some(Duration::from_secs(7))));
    let mut pause = tokio::time::interval(Duration::from_millis(15));
    let mut sent = JoinSet::new();
    for _ in 0..220 {
        pause.tick().await;
        sent.spawn(ask().send(guarded.proxy.address()));
    }
    guarded.canary.reached(|state| state.in_flight == 110).await;
    // Those of the canary will fail for three seconds to come, at the pace at which they were sent.
    let yaml = config(&guarded.stable, &guarded.canary, EVEN, "errors: 2%", slow);
    reload(&guarded.proxy, &yaml).await;
    assert_eq!(failed(&guarded.proxy.metrics().await), 0.0, "the reload came first");
    let answers = sent.join_all().await;
    let late = answers.iter().filter(|answer| answer.status == 504).count();
    assert!(late >= 110, "{late} failed");
    guarded.canary.clear_faults();
    guarded.stable.clear_faults();
    guarded.proxy.await_metrics(|metrics| failed(metrics) == late as f64).await;
    let no_word = |line: &String| !line.contains("canary taken out");
    assert!(guarded.proxy.log().iter().all(no_word), "the old guard has spoken");
    expect_anew(&guarded).await;
}

/// Requests that have ended without a first byte.
fn failed(metrics: &Metrics) -> f64 {
    metrics.get("outrigger_requests_total", &[("outcome", "first_byte_timeout")])
}

/// Evidence is gathered over the whole life of the guard, however often the file is read meanwhile.
#[tokio::test]
async fn reloads_meanwhile_do_not_make_the_guard_forget() {
    let guarded = Guarded::alike("").await;
    guarded.canary.fault(Fault::Status(500, None));
    let mut round = 0;
    while !taken_out(&guarded.proxy.metrics().await) {
        let deadline = format!("deadline: {{ total: {}s }}", 60 + round);
        let yaml = config(&guarded.stable, &guarded.canary, EVEN, "", &deadline);
        reload(&guarded.proxy, &yaml).await;
        guarded.send(24).await;
        round += 1;
        assert!(round < 50, "{:#}", guarded.page().await);
    }
    guarded.canary.clear_faults();
    expect_still_out(&guarded).await;
}

#[tokio::test]
async fn without_its_guard_the_canary_gets_its_weight_again_and_nobody_says_otherwise() {
    let guarded = Guarded::alike("").await;
    guarded.take_out().await;
    let without = guarded.yaml.replace("guard: { arm: canary,  }, ", "");
    assert_ne!(without, guarded.yaml);
    reload(&guarded.proxy, &without).await;
    let report = Load::of(20).run(guarded.proxy.address(), |_| ask()).await;
    assert_eq!(report.by_name().get("canary"), Some(&10));
    assert_eq!(guarded.proxy.admin_get("/canaries").await.json(), serde_json::json!([]));
    assert!(!rolled_back(&guarded.proxy.metrics().await), "an alert would go on for ever");
}

const KEYS: usize = 200;

/// The arm of each key.
async fn arms(proxy: &Proxy) -> BTreeMap<usize, String> {
    let keyed = |key: usize| ask().header("x-user", &format!("user-{key}"));
    let report = Load::of(KEYS).at_once(6).run(proxy.address(), keyed).await;
    assert_eq!(report.ok(), KEYS, "{:?}", report.outcomes());
    let arm = |sample: &Sample| {
        let answer = sample.answer.as_ref().ok()?;
        Some((sample.index, answer.header("x-outrigger-arm")?.to_owned()))
    };
    report.samples.iter().filter_map(arm).collect()
}

/// Lets the canary of three arms grow and then takes it out, and expects that keys only move into it and out of it.
async fn keys_only_move_with_the_canary(split: &str) {
    let [stable, canary, other] =
        ["stable", "canary", "other"].map(|name| Simulator::start(Options::named(name)));
    let yaml = format!(
        "backends:\n  stable: {{ endpoints: {} }}\n  canary: {{ endpoints: {} }}\n  other: {{ endpoints: {} }}\n\
         routes: [{{ name: all, split: {split}, expose: [arm], sticky: {{ header: x-user }}, \
         guard: {{ arm: canary, against: stable, first_byte: off, \
         steps: {{ weights: [10, 40, 70], every: 10ms, requests: 200 }} }} }}]\n",
        endpoints(&[&stable]),
        endpoints(&[&canary]),
        endpoints(&[&other]),
    );
    let proxy = Proxy::start(&yaml).await;
    let guarded = Guarded { stable, canary, proxy, yaml };
    let first = arms(&guarded.proxy).await;
    guarded.send_until(2_000, |metrics| weight(metrics) == 40.0).await;
    let second = arms(&guarded.proxy).await;
    assert_eq!(weight(&guarded.proxy.metrics().await), 40.0, "not yet the next step");
    guarded.canary.fault(Fault::Status(500, None));
    guarded.send_until(3_000, taken_out).await;
    let third = arms(&guarded.proxy).await;
    let share = |arms: &BTreeMap<usize, String>| arms.values().filter(|a| *a == "canary").count();
    assert!(share(&first) < share(&second) && share(&third) == 0, "{first:?} {second:?}");
    for key in 0..KEYS {
        let [one, two, three] = [&first, &second, &third].map(|arms| &*arms[&key]);
        assert!(two == one || two == "canary", "{split}, {key}: {one}, {two} as it grew");
        assert!(three == two || two == "canary", "{split}, {key}: {two}, {three} as it went");
        // Whoever had been elsewhere before is there again.
        assert!(one == "canary" || three == one, "{split}, {key}: {one}, {two}, {three}");
    }
}

#[tokio::test]
async fn keys_only_move_with_the_canary_whatever_its_place() {
    keys_only_move_with_the_canary("{ stable: 40, canary: 40, other: 20 }").await;
    keys_only_move_with_the_canary("{ canary: 40, stable: 40, other: 20 }").await;
    keys_only_move_with_the_canary("{ other: 20, stable: 40, canary: 40 }").await;
}

/// Takes the canary of three arms out and expects that nobody else's keys move.
async fn keys_of_others_stay(split: &str) {
    let [stable, canary, other] =
        ["stable", "canary", "other"].map(|name| Simulator::start(Options::named(name)));
    let yaml = format!(
        "backends:\n  stable: {{ endpoints: {} }}\n  canary: {{ endpoints: {} }}\n  other: {{ endpoints: {} }}\n\
         routes: [{{ name: all, split: {split}, expose: [arm], sticky: {{ header: x-user }}, \
         guard: {{ arm: canary, against: stable, first_byte: off }} }}]\n",
        endpoints(&[&stable]),
        endpoints(&[&canary]),
        endpoints(&[&other]),
    );
    let proxy = Proxy::start(&yaml).await;
    let before = arms(&proxy).await;
    canary.fault(Fault::Status(500, None));
    let guarded = Guarded { stable, canary, proxy, yaml };
    // Without keys, so that they take turns.
    guarded.send_until(6_000, taken_out).await;
    let after = arms(&guarded.proxy).await;
    let of = |arm: &str| before.values().filter(|own| *own == arm).count();
    assert!(of("stable") > 40 && of("canary") > 40 && of("other") > 15, "{before:?}");
    assert!(after.values().all(|arm| arm != "canary"), "{after:?}");
    let moved: Vec<_> = before
        .iter()
        .filter(|(key, arm)| *arm != "canary" && after[key] != **arm)
        .map(|(key, arm)| format!("{key}: {arm} -> {}", after[key]))
        .collect();
    assert!(moved.is_empty(), "{} of {KEYS} keys moved without need: {moved:?}", moved.len());
}

#[tokio::test]
async fn keys_of_the_other_arms_stay_when_a_canary_between_them_is_taken_out() {
    keys_of_others_stay("{ stable: 40, canary: 40, other: 20 }").await;
}

#[tokio::test]
async fn keys_of_the_other_arms_stay_when_the_last_arm_is_taken_out() {
    keys_of_others_stay("{ stable: 40, other: 20, canary: 40 }").await;
}

#[tokio::test]
async fn keys_of_the_other_arms_stay_when_the_first_arm_is_taken_out() {
    keys_of_others_stay("{ canary: 40, stable: 40, other: 20 }").await;
}

#[tokio::test]
async fn keys_of_the_stable_arm_stay_where_they_are() {
    let [stable, canary] = ["stable", "canary"].map(|name| Simulator::start(Options::named(name)));
    let yaml = config(&stable, &canary, EVEN, "first_byte: off", "sticky: { header: x-user }");
    let proxy = Proxy::start(&yaml).await;
    let guarded = Guarded { stable, canary, proxy, yaml };
    let before = arms(&guarded.proxy).await;
    let own = before.values().filter(|arm| *arm == "canary").count();
    assert!((60..140).contains(&own), "{own} of {KEYS} keys");
    guarded.take_out().await;
    let after = arms(&guarded.proxy).await;
    assert!(after.values().all(|arm| arm == "stable"), "{after:?}");
}
