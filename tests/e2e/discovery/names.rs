//! Names: which addresses they stand for, and for how long that is believed.

use std::collections::BTreeMap;
use std::time::Duration;

use outrigger_tests::harness::{Call, Load, Proxy, RecordType, Says};
use outrigger_tests::sim::Fault;

use super::{
    IN_TURN, NAME, REFRESHED, SLACK, await_places, by_name, config, dns, pauses, places, present,
    said_once, same_port, shown,
};
use crate::fleet::{await_endpoints, await_ready, chat, endpoint_states, reload};

#[tokio::test]
async fn every_address_of_a_name_is_an_endpoint() {
    let fleet = same_port(&["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
    let dns = dns(Says::addresses(&["127.0.0.3", "127.0.0.1", "127.0.0.2"], 60)).await;
    let proxy = by_name(&dns, &fleet, IN_TURN).await;
    await_places(&proxy, &places(&fleet)).await;
    let report = Load::of(30).run(proxy.address(), |_| chat()).await;
    let each = fleet.iter().map(|sim| (sim.name().to_owned(), 10));
    assert_eq!(report.by_name(), each.collect::<BTreeMap<_, _>>(), "{:?}", report.outcomes());
}

#[tokio::test]
async fn addresses_of_both_families_are_endpoints() {
    let fleet = same_port(&["127.0.0.1", "::1"]);
    let dns = dns(Says::addresses(&["::1", "127.0.0.1"], 60)).await;
    let proxy = by_name(&dns, &fleet, IN_TURN).await;
    await_places(&proxy, &places(&fleet)).await;
    let report = Load::of(10).run(proxy.address(), |_| chat()).await;
    assert_eq!(report.by_name()["::1"], 5, "{:?}", report.outcomes());
}

#[tokio::test]
async fn a_name_with_addresses_of_one_family_only_is_no_failure() {
    let fleet = same_port(&["::1"]);
    let dns = dns(Says::addresses(&["::1"], 60)).await;
    let proxy = by_name(&dns, &fleet, IN_TURN).await;
    await_places(&proxy, &places(&fleet)).await;
    let metrics = proxy.metrics().await;
    let counted = ["success", "failure"].map(|result| super::looked_up(&metrics, result));
    assert_eq!(counted, [1.0, 0.0]);
}

#[tokio::test]
async fn an_answer_is_believed_for_its_time_to_live() {
    let fleet = same_port(&["127.0.0.1", "127.0.0.2"]);
    let dns = dns(Says::addresses(&["127.0.0.1"], 2)).await;
    let proxy = by_name(&dns, &fleet, IN_TURN).await;
    await_places(&proxy, &places(&fleet[..1])).await;
    dns.set(NAME, Says::addresses(&["127.0.0.1", "127.0.0.2"], 2));
    await_places(&proxy, &places(&fleet)).await;
    let asked = dns.await_asked(NAME, RecordType::A, 3).await;
    let ttl = Duration::from_secs(2);
    assert!(pauses(&asked).iter().all(|pause| *pause + SLACK >= ttl), "{:?}", pauses(&asked));
}

#[tokio::test]
async fn a_long_time_to_live_is_cut_to_the_refresh() {
    let fleet = same_port(&["127.0.0.1", "127.0.0.2"]);
    let dns = dns(Says::addresses(&["127.0.0.1"], 3600)).await;
    let proxy = by_name(&dns, &fleet, REFRESHED).await;
    await_places(&proxy, &places(&fleet[..1])).await;
    dns.set(NAME, Says::addresses(&["127.0.0.2"], 3600));
    await_places(&proxy, &places(&fleet[1..])).await;
}

#[tokio::test]
async fn no_time_to_live_is_no_hot_loop() {
    let fleet = same_port(&["127.0.0.1"]);
    let dns = dns(Says::addresses(&["127.0.0.1"], 0)).await;
    let _proxy = by_name(&dns, &fleet, IN_TURN).await;
    let asked = dns.await_asked(NAME, RecordType::A, 3).await;
    let second = Duration::from_secs(1);
    assert!(pauses(&asked).iter().all(|pause| *pause + SLACK >= second), "{:?}", pauses(&asked));
}

#[tokio::test]
async fn an_alias_is_followed() {
    let fleet = same_port(&["127.0.0.1", "127.0.0.2"]);
    let dns = dns(Says::alias("other.test", 60)).await;
    dns.set("other.test", Says::addresses(&["127.0.0.1"], 1));
    let proxy = by_name(&dns, &fleet, IN_TURN).await;
    await_places(&proxy, &places(&fleet[..1])).await;
    // The shorter one of both lives counts.
    dns.set("other.test", Says::addresses(&["127.0.0.2"], 1));
    await_places(&proxy, &places(&fleet[1..])).await;
}

#[tokio::test]
async fn an_answer_that_is_too_long_for_a_packet_is_asked_for_over_tcp() {
    let fleet = same_port(&["127.0.0.1", "127.0.0.2"]);
    let dns = dns(Says::addresses(&["127.0.0.1", "127.0.0.2"], 60)).await;
    dns.truncate();
    let proxy = by_name(&dns, &fleet, IN_TURN).await;
    await_places(&proxy, &places(&fleet)).await;
    let over_tcp: Vec<_> = dns.asked(NAME, RecordType::A).iter().map(|q| q.tcp).collect();
    assert_eq!(over_tcp, [false, true]);
}

#[tokio::test]
async fn addresses_in_another_order_are_no_news() {
    let fleet = same_port(&["127.0.0.1", "127.0.0.2"]);
    let dns = dns(Says::addresses(&["127.0.0.1", "127.0.0.2"], 1)).await;
    let proxy = by_name(&dns, &fleet, IN_TURN).await;
    await_places(&proxy, &places(&fleet)).await;
    dns.set(NAME, Says::addresses(&["127.0.0.2", "127.0.0.1"], 1));
    let asked = dns.asked(NAME, RecordType::A).len();
    // The second question from now on shows that the answer to the first has been taken up.
    dns.await_asked(NAME, RecordType::A, asked + 2).await;
    assert_eq!(present(&proxy).await, places(&fleet));
    said_once(&proxy, "endpoints changed").await;
}

#[tokio::test]
async fn every_address_has_what_the_entry_says_of_it() {
    let fleet = same_port(&["127.0.0.1", "127.0.0.2"]);
    let single = same_port(&["127.0.0.1"]);
    let dns = dns(Says::addresses(&["127.0.0.1", "127.0.0.2"], 60)).await;
    let entries = format!(
        "[{{ address: '{NAME}:{}', weight: 3, zone: b }}, '{}']",
        fleet[0].addr.port(),
        single[0].addr
    );
    let settings = format!("{IN_TURN}, locality: {{ zone: a }}");
    let proxy = Proxy::start(&config(&dns, &entries, &settings)).await;
    await_places(&proxy, &places(fleet.iter().chain(&single))).await;
    assert_eq!(shown(&proxy, "weight").await, [3, 3, 1]);
    assert_eq!(shown(&proxy, "nearness").await, ["far", "far", "near"]);
}

#[tokio::test]
async fn an_endpoint_that_leaves_ends_what_it_has_and_gets_nothing_new() {
    let fleet = same_port(&["127.0.0.1", "127.0.0.2"]);
    let dns = dns(Says::addresses(&["127.0.0.1", "127.0.0.2"], 1)).await;
    let proxy = by_name(&dns, &fleet, IN_TURN).await;
    await_places(&proxy, &places(&fleet)).await;
    let mut stream = Call::get("/events/100?gap=50").open(proxy.address()).await;
    assert!(stream.event().await.is_some());
    let first = stream.header("x-sim-name").expect("a name").to_owned();
    let (stays, leaves): (Vec<_>, Vec<_>) = fleet.iter().partition(|sim| sim.name() != first);
    dns.set(NAME, Says::addresses(&[stays[0].name()], 1));
    await_places(&proxy, &places(stays.clone())).await;
    let report = Load::of(10).run(proxy.address(), |_| chat()).await;
    assert_eq!(report.by_name()[stays[0].name()], 10, "{:?}", report.outcomes());
    assert_eq!(leaves[0].state().in_flight, 1, "its stream has not ended before the test is over");
    let transcript = stream.events().await;
    assert!(transcript.is_complete(), "{:?}", transcript.cut);
    leaves[0].reached(|state| state.connections == 0).await;
    proxy.await_metrics(|metrics| metrics.get("outrigger_endpoint_in_flight", &[]) == 0.0).await;
}

#[tokio::test]
async fn an_endpoint_that_returns_keeps_its_counters() {
    let fleet = same_port(&["127.0.0.1", "127.0.0.2"]);
    let both = Says::addresses(&["127.0.0.1", "127.0.0.2"], 1);
    let dns = dns(both.clone()).await;
    let proxy = by_name(&dns, &fleet, IN_TURN).await;
    await_places(&proxy, &places(&fleet)).await;
    Load::of(4).run(proxy.address(), |_| chat()).await;
    let second = fleet[1].endpoint();
    let labels = [("backend", "stable"), ("endpoint", second.as_str())];
    let name = "outrigger_endpoint_requests_total";
    proxy.await_metrics(|metrics| metrics.get(name, &labels) == 2.0).await;
    dns.set(NAME, Says::addresses(&["127.0.0.1"], 1));
    await_places(&proxy, &places(&fleet[..1])).await;
    dns.set(NAME, both);
    await_places(&proxy, &places(&fleet)).await;
    Load::of(4).run(proxy.address(), |_| chat()).await;
    proxy.await_metrics(|metrics| metrics.get(name, &labels) == 4.0).await;
}

#[tokio::test]
async fn a_new_endpoint_is_checked_before_it_serves() {
    let fleet = same_port(&["127.0.0.1", "127.0.0.2"]);
    fleet[1].fault(Fault::NoHealth);
    let dns = dns(Says::addresses(&["127.0.0.1"], 1)).await;
    let checked = format!("{IN_TURN}, health: {{ http: /health, interval: 50ms }}");
    let proxy = by_name(&dns, &fleet, &checked).await;
    await_places(&proxy, &places(&fleet[..1])).await;
    dns.set(NAME, Says::addresses(&["127.0.0.1", "127.0.0.2"], 1));
    await_places(&proxy, &places(&fleet)).await;
    await_ready(&proxy).await;
    let report = Load::of(10).run(proxy.address(), |_| chat()).await;
    assert_eq!(report.by_name()["127.0.0.1"], 10, "{:?}", report.outcomes());
    fleet[1].clear_faults();
    await_endpoints(&proxy, "both to be ready", |all| all.iter().all(|e| e.ready)).await;
    let report = Load::of(10).run(proxy.address(), |_| chat()).await;
    assert_eq!(report.by_name()["127.0.0.2"], 5, "{:?}", report.outcomes());
}

#[tokio::test]
async fn a_reload_that_changes_the_backend_keeps_what_its_name_stood_for() {
    let fleet = same_port(&["127.0.0.1", "127.0.0.2"]);
    let dns = dns(Says::addresses(&["127.0.0.1", "127.0.0.2"], 60)).await;
    let proxy = by_name(&dns, &fleet, IN_TURN).await;
    await_places(&proxy, &places(&fleet)).await;
    dns.set(NAME, Says::Silence);
    let entries = format!("['{NAME}:{}']", fleet[0].addr.port());
    let changed = format!("{IN_TURN}, max_connections: 7");
    reload(&proxy, &config(&dns, &entries, &changed)).await;
    assert_eq!(present(&proxy).await, places(&fleet), "while nobody answers");
    dns.set(NAME, Says::addresses(&["127.0.0.2"], 60));
    await_places(&proxy, &places(&fleet[1..])).await;
}

#[tokio::test]
async fn a_name_that_is_no_more_in_the_configuration_is_not_asked_for() {
    let fleet = same_port(&["127.0.0.1"]);
    let dns = dns(Says::addresses(&["127.0.0.1"], 0)).await;
    dns.set("other.test", Says::addresses(&["127.0.0.1"], 0));
    let proxy = by_name(&dns, &fleet, IN_TURN).await;
    dns.await_asked(NAME, RecordType::A, 2).await;
    let other = format!("['other.test:{}']", fleet[0].addr.port());
    reload(&proxy, &config(&dns, &other, IN_TURN)).await;
    dns.await_asked("other.test", RecordType::A, 1).await;
    let before = dns.asked(NAME, RecordType::A).len();
    dns.await_asked("other.test", RecordType::A, 3).await;
    assert_eq!(dns.asked(NAME, RecordType::A).len(), before);
    assert_eq!(endpoint_states(&proxy).await.len(), 1);
}
