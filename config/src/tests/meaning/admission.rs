//! Limits, queues, priorities and rates.

use std::time::Duration;

use super::read;
use crate::validated::{
    AdaptiveLimit, Allowance, Backend, Limit, LimitAlgorithm, PerTime, Queue, RateKey, Route,
};

fn both(backend: &str, route: &str) -> (Backend, Route) {
    let config = read(&format!(
        "backends: {{ a: {{ endpoints: ['a:1'], {backend} }} }}\nroutes: [{{ backend: a, {route} }}]\n"
    ));
    (config.backends[0].clone(), config.routes[0].clone())
}

#[test]
fn nothing_is_limited_by_default() {
    let (backend, route) = both("", "");
    assert_eq!((backend.limit, backend.queue), (None, None));
    assert_eq!((route.limit, route.queue, route.priority), (None, None, None));
    assert!(route.rates.is_empty());
}

#[test]
fn a_limit_is_a_number_a_word_or_a_mapping() {
    let adaptive =
        AdaptiveLimit { algorithm: LimitAlgorithm::Gradient, min: 4, max: 1_000, initial: 16 };
    let low = AdaptiveLimit { algorithm: LimitAlgorithm::Vegas, max: 8, initial: 8, ..adaptive };
    for (written, limit) in [
        ("64", Limit::InFlight(64)),
        ("{ in_flight: 64 }", Limit::InFlight(64)),
        ("adaptive", Limit::Adaptive(adaptive.clone())),
        ("{ adaptive: {} }", Limit::Adaptive(adaptive)),
        ("{ adaptive: { algorithm: vegas, max: 8 } }", Limit::Adaptive(low)),
    ] {
        let setting = format!("limit: {written}");
        let (backend, route) = both(&setting, &setting);
        assert_eq!((backend.limit, route.limit), (Some(limit.clone()), Some(limit)), "{written}");
    }
    assert_eq!(both("limit: off", "").0.limit, None);
}

#[test]
fn a_queue_waits_for_a_limit_or_for_endpoints() {
    let queue = |wait, target| Some(Queue { size: 256, wait, target });
    let default = queue(Duration::from_secs(10), Duration::from_millis(500));
    assert_eq!(both("limit: 3, queue: {}", "").0.queue, default);
    assert_eq!(both("max_connections: 3, queue: {}", "").0.queue, default);
    assert_eq!(both("signals: { agent: { port: 9 } }, queue: {}", "").0.queue, default);
    let short = queue(Duration::from_millis(200), Duration::from_millis(200));
    assert_eq!(both("", "limit: 3, queue: { wait: 200ms }").1.queue, short);
}

#[test]
fn a_class_is_found_by_its_name() {
    let (_, route) = both("", "priority: { classes: [High, low] }");
    let priority = route.priority.expect("given");
    assert_eq!((&*priority.header, priority.default), ("x-priority", 1));
    let class = |name: &str| priority.class(Some(name.as_bytes()));
    assert_eq!([class("high"), class(" HIGH "), class("low"), class("other")], [0, 0, 1, 1]);
    let (_, route) = both("", "priority: { header: X-Class, classes: [a, b, c], default: b }");
    let priority = route.priority.expect("given");
    assert_eq!((&*priority.header, priority.class(None)), ("x-class", 1));
}

#[test]
fn a_rate_has_its_count_as_burst_unless_it_says_otherwise() {
    let (_, route) = both("", "rates: [{ requests: 100/s, tokens: 6/min, burst: 20 }]");
    let allowance = |count, seconds, burst| {
        let rate = PerTime { count, period: Duration::from_secs(seconds) };
        Some(Allowance { rate, burst })
    };
    let [rate] = &route.rates[..] else { panic!("one rule") };
    assert_eq!(rate.per, RateKey::Route);
    assert_eq!(rate.requests, allowance(100, 1, 20));
    assert_eq!(rate.tokens, allowance(6, 60, 6));
    assert!(!route.reads_body());
    let (_, route) = both("", "rates: [{ per: model, requests: 1/d }]");
    assert!(route.reads_body(), "the model is in the body");
}
