//! Endpoints that come and go by reload, and endpoints with a name.

use outrigger_tests::harness::{Call, Load, Proxy};
use outrigger_tests::sim::Fault;

use crate::fleet::{
    await_endpoints, await_ready, chat, endpoint_states, one_backend, one_backend_at, reload, sim,
};

const IN_TURN: &str = "balance: round_robin, ejection: { failures: 1, base: 60s }";

#[tokio::test]
async fn an_endpoint_that_is_removed_ends_what_it_has_and_gets_nothing_new() {
    let (a, b) = (sim("a"), sim("b"));
    let proxy = Proxy::start(&one_backend(&[&a, &b], IN_TURN, "")).await;
    let stream = Call::get("/events/60?gap=20").open(proxy.address()).await;
    assert_eq!(a.state().in_flight, 1, "the first turn is a's");
    reload(&proxy, &one_backend(&[&b], IN_TURN, "")).await;
    let report = Load::of(20).run(proxy.address(), |_| chat()).await;
    assert_eq!((report.ok(), report.by_name()["b"]), (20, 20), "{:?}", report.outcomes());
    let transcript = stream.events().await;
    assert!(transcript.is_complete(), "{:?}", transcript.cut);
    assert_eq!(transcript.events.len(), 61);
    assert_eq!(endpoint_states(&proxy).await.len(), 1);
    proxy.await_metrics(|metrics| metrics.get("outrigger_endpoint_in_flight", &[]) == 0.0).await;
}

#[tokio::test]
async fn connections_to_a_removed_endpoint_do_not_stay_open() {
    let (a, b) = (sim("a"), sim("b"));
    let proxy = Proxy::start(&one_backend(&[&a, &b], IN_TURN, "")).await;
    Load::of(4).run(proxy.address(), |_| chat()).await;
    a.reached(|state| state.connections == 1).await;
    reload(&proxy, &one_backend(&[&b], IN_TURN, "")).await;
    a.reached(|state| state.connections == 0).await;
}

#[tokio::test]
async fn a_connection_that_falls_free_after_its_endpoint_was_removed_is_closed() {
    let (a, b) = (sim("a"), sim("b"));
    let proxy = Proxy::start(&one_backend(&[&a, &b], IN_TURN, "")).await;
    let stream = Call::get("/events/20?gap=10").open(proxy.address()).await;
    reload(&proxy, &one_backend(&[&b], IN_TURN, "")).await;
    assert!(stream.events().await.is_complete());
    a.reached(|state| state.connections == 0).await;
}

#[tokio::test]
async fn connections_to_the_endpoints_of_a_removed_backend_do_not_stay_open() {
    let (a, b) = (sim("a"), sim("b"));
    let yaml = |names: &[(&str, &str)]| {
        let backends: Vec<_> = names
            .iter()
            .map(|(name, address)| format!("{name}: {{ endpoints: ['{address}'] }}"))
            .collect();
        let first = names[0].0;
        format!("backends: {{ {} }}\nroutes: [{{ backend: {first} }}]\n", backends.join(", "))
    };
    let (at_a, at_b) = (a.endpoint(), b.endpoint());
    let proxy = Proxy::start(&yaml(&[("one", &at_a)])).await;
    assert_eq!(chat().send(proxy.address()).await.status, 200);
    reload(&proxy, &yaml(&[("two", &at_b)])).await;
    assert_eq!(chat().send(proxy.address()).await.by(), "b");
    a.reached(|state| state.connections == 0).await;
}

#[tokio::test]
async fn an_endpoint_that_returns_keeps_its_state() {
    let (a, b) = (sim("a"), sim("b"));
    let both = one_backend(&[&a, &b], IN_TURN, "");
    let proxy = Proxy::start(&both).await;
    a.fault(Fault::Status(500, None));
    Load::of(2).run(proxy.address(), |_| chat()).await;
    let ejected =
        || async { endpoint_states(&proxy).await.iter().map(|e| e.ejected).collect::<Vec<_>>() };
    assert_eq!(ejected().await, [true, false]);
    reload(&proxy, &one_backend(&[&b], IN_TURN, "")).await;
    assert_eq!(ejected().await, [false]);
    reload(&proxy, &both).await;
    assert_eq!(ejected().await, [true, false]);
    Load::of(10).run(proxy.address(), |_| chat()).await;
    assert_eq!(a.state().requests(), 1, "it is still left alone");
}

#[tokio::test]
async fn in_flight_survives_a_reload_that_changes_the_backend() {
    let (a, b, c) = (sim("a"), sim("b"), sim("c"));
    let proxy = Proxy::start(&one_backend(&[&a, &b], "", "")).await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(chat().streaming().fault("stall_mid=1").open(proxy.address()).await);
    }
    reload(&proxy, &one_backend(&[&a, &b, &c], "", "")).await;
    let held: Vec<_> = endpoint_states(&proxy).await.iter().map(|e| e.in_flight).collect();
    assert_eq!(held, [2, 2, 0]);
    for _ in 0..2 {
        streams.push(chat().streaming().fault("stall_mid=1").open(proxy.address()).await);
    }
    let held: Vec<_> = endpoint_states(&proxy).await.iter().map(|e| e.in_flight).collect();
    assert_eq!(held, [2, 2, 2], "the new one is the least busy");
}

#[tokio::test]
async fn a_new_weight_counts_from_the_reload_on() {
    let (a, b) = (sim("a"), sim("b"));
    let list = |weight| format!("[{{ address: '{}', weight: {weight} }}, '{}']", a.addr, b.addr);
    let proxy = Proxy::start(&one_backend_at(&list(1), IN_TURN, "")).await;
    let at = async |count| {
        let report = Load::of(count).run(proxy.address(), |_| chat()).await;
        report.by_name().get("a").copied()
    };
    assert_eq!(at(20).await, Some(10));
    reload(&proxy, &one_backend_at(&list(4), IN_TURN, "")).await;
    assert_eq!(at(20).await, Some(16));
}

#[tokio::test]
async fn a_name_is_as_good_an_endpoint_as_an_address() {
    let one = sim("one");
    let list = format!("['localhost:{}']", one.addr.port());
    let proxy = Proxy::start(&one_backend_at(&list, "", "")).await;
    let known = |all: &[crate::fleet::Endpoint]| {
        all.iter().any(|endpoint| endpoint.address == one.endpoint() && endpoint.ready)
    };
    await_endpoints(&proxy, "localhost to be resolved", known).await;
    await_ready(&proxy).await;
    let report = Load::of(20).run(proxy.address(), |_| chat()).await;
    assert_eq!(report.ok(), 20, "{:?}", report.outcomes());
    let metrics = proxy.metrics().await;
    let labels = [("backend", "stable"), ("result", "success")];
    assert!(metrics.get("outrigger_discovery_resolutions_total", &labels) >= 1.0);
}

#[tokio::test]
async fn a_name_that_nobody_knows_is_no_endpoint_and_no_crash() {
    let list = "['nobody.invalid:8000']";
    let proxy = Proxy::start(&one_backend_at(list, "", "")).await;
    let answer = chat().send(proxy.address()).await;
    assert_eq!(answer.status, 503);
    let page = proxy.admin_get("/ready").await;
    assert_eq!(page.status, 503, "{}", page.text());
    assert!(proxy.is_running());
}
