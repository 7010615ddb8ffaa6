//! What lives through a reload: requests in flight with what they started with, and what is known of endpoints.

use std::time::Duration;

use outrigger_tests::harness::{Call, Proxy};
use outrigger_tests::sim::{Fault, Options, Simulator};

use super::{replace, to};

/// A stream that lasts a second or two, whatever the load.
fn slow() -> Options {
    Options::named("slow").steady(Duration::from_millis(20))
}

fn long_chat() -> Call {
    Call::chat("tell me about the reef").max_tokens(60).streaming()
}

#[tokio::test]
async fn a_stream_goes_on_when_its_backend_is_removed() {
    let (old, new) = (Simulator::start(slow()), Simulator::start(Options::named("new").fast()));
    let proxy = Proxy::start(&to("old", &old)).await;
    let mut stream = long_chat().open(proxy.address()).await;
    assert!(stream.event().await.is_some());
    replace(&proxy, &to("new", &new)).await;
    let other = Call::get("/echo").send(proxy.address()).await;
    assert_eq!(other.by(), "new", "a new request meets the new configuration");
    let transcript = stream.events().await;
    assert!(transcript.is_complete(), "{transcript:?}");
    assert_eq!((old.state().completed, old.state().aborted), (1, 0));
}

#[tokio::test]
async fn a_request_ends_under_the_route_it_began_with() {
    let simulator = Simulator::start(slow());
    let proxy = Proxy::start(&to("before", &simulator)).await;
    let mut stream = long_chat().open(proxy.address()).await;
    assert!(stream.event().await.is_some());
    replace(&proxy, &to("after", &simulator)).await;
    assert!(stream.events().await.is_complete());
    let line = &proxy.await_access(1).await[0];
    assert_eq!((&line["route"], &line["arm"]), (&"before".into(), &"before".into()), "{line}");
    let ended = [("route", "before"), ("arm", "before"), ("outcome", "ok"), ("code", "200")];
    proxy.await_metrics(|m| m.get("outrigger_requests_total", &ended) == 1.0).await;
}

#[tokio::test]
async fn a_request_keeps_the_deadline_it_began_with() {
    let simulator = Simulator::start(Options::named("only").fast());
    let config = |gap: &str| {
        to("only", &simulator)
            .replace("backend: only", &format!("backend: only, deadline: {{ gap: {gap} }}"))
    };
    let proxy = Proxy::start(&config("30s")).await;
    let mut stream = Call::get("/events/3?gap=600").open(proxy.address()).await;
    assert!(stream.event().await.is_some());
    replace(&proxy, &config("100ms")).await;
    let transcript = stream.events().await;
    assert!(transcript.is_complete(), "{transcript:?}");
    let late = Call::get("/events/3?gap=600").send(proxy.address()).await;
    assert!(late.cut.is_some(), "a new request has the new deadline: {late:?}");
}

#[tokio::test]
async fn requests_in_flight_still_count_against_the_limit_of_their_endpoint() {
    let simulator = Simulator::start(slow());
    let limited = |route: &str| {
        format!(
            "backends: {{ only: {{ endpoints: ['{}'], max_connections: 1 }} }}\n\
             routes: [{{ name: {route}, backend: only, retry: off }}]\n",
            simulator.addr
        )
    };
    let proxy = Proxy::start(&limited("before")).await;
    let mut stream = long_chat().open(proxy.address()).await;
    assert!(stream.event().await.is_some());
    replace(&proxy, &limited("after")).await;
    let endpoints = proxy.admin_get("/endpoints").await.json();
    assert_eq!(endpoints[0]["endpoints"][0]["in_flight"], 1, "{endpoints:#}");
    let refused = Call::get("/echo").send(proxy.address()).await;
    assert_eq!(refused.status, 503, "the one place is taken");
    assert!(stream.events().await.is_complete());
    let endpoint = simulator.endpoint();
    let labels = [("backend", "only"), ("endpoint", endpoint.as_str())];
    proxy.await_metrics(|m| m.get("outrigger_endpoint_in_flight", &labels) == 0.0).await;
    assert_eq!(Call::get("/echo").send(proxy.address()).await.status, 200);
}

#[tokio::test]
async fn a_ready_endpoint_stays_ready_without_another_check() {
    let simulator = Simulator::start(Options::named("only").fast());
    let checked = |route: &str| {
        format!(
            "backends: {{ only: {{ endpoints: ['{}'], health: {{ http: /health, interval: 60s, timeout: 30s }} }} }}\n\
             routes: [{{ name: {route}, backend: only }}]\n",
            simulator.addr
        )
    };
    let proxy = Proxy::start(&checked("before")).await;
    proxy.await_metrics(|m| m.get("outrigger_endpoint_ready", &[]) == 1.0).await;
    simulator.fault(Fault::HealthStall);
    replace(&proxy, &checked("after")).await;
    assert_eq!(Call::get("/echo").send(proxy.address()).await.status, 200);
    assert_eq!(proxy.admin_get("/ready").await.status, 200);
    assert_eq!(proxy.metrics().await.get("outrigger_endpoint_ready", &[]), 1.0);
}

#[tokio::test]
async fn an_unready_endpoint_stays_unready_until_it_has_passed_enough_checks() {
    let simulator = Simulator::start(Options::named("only").fast());
    let checked = |route: &str| {
        format!(
            "backends: {{ only: {{ endpoints: ['{}'], health: \
             {{ http: /health, interval: 20ms, timeout: 5s, healthy: 100, unhealthy: 1 }} }} }}\n\
             routes: [{{ name: {route}, backend: only }}]\n",
            simulator.addr
        )
    };
    let proxy = Proxy::start(&checked("before")).await;
    proxy.await_metrics(|m| m.get("outrigger_endpoint_ready", &[]) == 1.0).await;
    simulator.fault(Fault::NoHealth);
    proxy.await_metrics(|m| m.get("outrigger_endpoint_ready", &[]) == 0.0).await;
    simulator.clear_faults();
    replace(&proxy, &checked("after")).await;
    let checks = simulator.state().seen("/health");
    simulator.reached(|state| state.seen("/health") >= checks + 5).await;
    assert_eq!(proxy.metrics().await.get("outrigger_endpoint_ready", &[]), 0.0);
    assert_eq!(Call::get("/echo").send(proxy.address()).await.status, 503);
}

#[tokio::test]
async fn checks_go_on_after_a_reload() {
    let simulator = Simulator::start(Options::named("only").fast());
    let checked = |route: &str| {
        format!(
            "backends: {{ only: {{ endpoints: ['{}'], health: {{ http: /health, interval: 20ms, unhealthy: 1 }} }} }}\n\
             routes: [{{ name: {route}, backend: only }}]\n",
            simulator.addr
        )
    };
    let proxy = Proxy::start(&checked("before")).await;
    proxy.await_metrics(|m| m.get("outrigger_endpoint_ready", &[]) == 1.0).await;
    for route in ["one", "two", "three"] {
        replace(&proxy, &checked(route)).await;
    }
    simulator.fault(Fault::NoHealth);
    proxy.await_metrics(|m| m.get("outrigger_endpoint_ready", &[]) == 0.0).await;
    simulator.clear_faults();
    proxy.await_metrics(|m| m.get("outrigger_endpoint_ready", &[]) == 1.0).await;
}

#[tokio::test]
async fn an_ejected_endpoint_stays_ejected() {
    let bad = Simulator::start(Options::named("bad").fast());
    let good = Simulator::start(Options::named("good").fast());
    bad.fault(Fault::Status(500, None));
    let config = |route: &str| {
        format!(
            "backends: {{ pair: {{ endpoints: ['{}', '{}'], balance: round_robin, \
             ejection: {{ failures: 1, base: 60s, max: 60s }} }} }}\n\
             routes: [{{ name: {route}, backend: pair, retry: off }}]\n",
            bad.addr, good.addr
        )
    };
    let proxy = Proxy::start(&config("before")).await;
    let (one, two) = (
        Call::get("/echo").send(proxy.address()).await.status,
        Call::get("/echo").send(proxy.address()).await.status,
    );
    assert_eq!(one + two, 700, "one of the two met the bad endpoint: {one} {two}");
    let address = bad.endpoint();
    let labels = [("backend", "pair"), ("endpoint", address.as_str())];
    proxy.await_metrics(|m| m.get("outrigger_endpoint_ejected", &labels) == 1.0).await;
    replace(&proxy, &config("after")).await;
    assert_eq!(proxy.metrics().await.get("outrigger_endpoint_ejected", &labels), 1.0);
    for _ in 0..10 {
        assert_eq!(Call::get("/echo").send(proxy.address()).await.by(), "good");
    }
    assert_eq!(bad.state().requests(), 1);
}

#[tokio::test]
async fn a_split_goes_on_where_it_was() {
    let stable = Simulator::start(Options::named("stable").fast());
    let canary = Simulator::start(Options::named("canary").fast());
    let split = |model: &str| {
        format!(
            "backends: {{ stable: {{ endpoints: ['{}'] }}, canary: {{ endpoints: ['{}'] }} }}\n\
             routes: [{{ name: chat, split: {{ stable: 7, canary: 3 }}, deadline: {{ gap: {model} }} }}]\n",
            stable.addr, canary.addr
        )
    };
    let (calm, restless) = (Proxy::start(&split("10s")).await, Proxy::start(&split("10s")).await);
    let (mut expected, mut came) = (Vec::new(), Vec::new());
    for gap in (0..20).map(|n| format!("{}s", 11 + n)) {
        expected.push(Call::get("/echo").send(calm.address()).await.by().to_owned());
        came.push(Call::get("/echo").send(restless.address()).await.by().to_owned());
        replace(&restless, &split(&gap)).await;
    }
    assert_eq!(came, expected);
    assert_eq!(came.iter().filter(|name| *name == "canary").count(), 6);
}

#[tokio::test]
async fn a_changed_split_takes_effect() {
    let stable = Simulator::start(Options::named("stable").fast());
    let canary = Simulator::start(Options::named("canary").fast());
    let split = |stable_weight: u32, canary_weight: u32| {
        format!(
            "backends: {{ stable: {{ endpoints: ['{}'] }}, canary: {{ endpoints: ['{}'] }} }}\n\
             routes: [{{ name: chat, split: {{ stable: {stable_weight}, canary: {canary_weight} }} }}]\n",
            stable.addr, canary.addr
        )
    };
    let proxy = Proxy::start(&split(1, 0)).await;
    for (weights, name) in [((1, 0), "stable"), ((0, 1), "canary"), ((1, 0), "stable")] {
        replace(&proxy, &split(weights.0, weights.1)).await;
        for _ in 0..3 {
            assert_eq!(Call::get("/echo").send(proxy.address()).await.by(), name);
        }
    }
}

#[tokio::test]
async fn connections_to_endpoints_are_used_again_after_a_reload() {
    let simulator = Simulator::start(Options::named("only").fast());
    let proxy = Proxy::start(&to("only", &simulator)).await;
    assert_eq!(Call::get("/echo").send(proxy.address()).await.status, 200);
    let accepted = simulator.state().accepted;
    let changed = to("only", &simulator).replace("name: only", "name: renamed");
    replace(&proxy, &changed).await;
    assert_eq!(Call::get("/echo").send(proxy.address()).await.status, 200);
    assert_eq!(simulator.state().accepted, accepted);
}

#[tokio::test]
async fn counters_are_not_set_back_by_a_reload() {
    let simulator = Simulator::start(Options::named("only").fast());
    let proxy = Proxy::start(&to("only", &simulator)).await;
    let labels = [("route", "only"), ("outcome", "ok")];
    for count in [1.0, 2.0, 3.0] {
        assert_eq!(Call::get("/echo").send(proxy.address()).await.status, 200);
        proxy.await_metrics(|m| m.get("outrigger_requests_total", &labels) == count).await;
        replace(&proxy, &to("only", &simulator)).await;
    }
    assert_eq!(proxy.metrics().await.get("outrigger_requests_total", &labels), 3.0);
}
