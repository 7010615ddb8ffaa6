//! SRV records: targets with ports, weights and priorities.

use outrigger_tests::harness::{DnsServer, Load, Proxy, RecordType, Says};
use outrigger_tests::sim::Simulator;

use super::{
    IN_TURN, REFRESHED, await_places, await_weights, config, looked_up, places, present, said_once,
    same_port,
};
use crate::fleet::{chat, sim};

const SERVICE: &str = "_http._tcp.fleet.test";

/// A server that knows `a.test`, `b.test` and `c.test`, all at 127.0.0.1, and the service at these targets.
async fn dns(targets: &[(u16, u16, u16, &str)]) -> DnsServer {
    let server = DnsServer::start().await;
    for name in ["a.test", "b.test", "c.test"] {
        server.set(name, Says::addresses(&["127.0.0.1"], 1));
    }
    server.set(SERVICE, Says::services(targets, 1));
    server
}

async fn by_service(dns: &DnsServer, backend: &str) -> Proxy {
    Proxy::start(&config(dns, &format!("[{{ srv: {SERVICE} }}]"), backend)).await
}

fn port(simulator: &Simulator) -> u16 {
    simulator.addr.port()
}

/// Their addresses in the order in which one entry has them.
fn sorted<const N: usize>(mut simulators: [&Simulator; N]) -> Vec<String> {
    simulators.sort_by_key(|simulator| simulator.addr);
    places(simulators)
}

#[tokio::test]
async fn targets_bring_their_ports_and_weights() {
    let (a, b) = (sim("a"), sim("b"));
    let dns = dns(&[(0, 3, port(&a), "a.test"), (0, 1, port(&b), "b.test")]).await;
    let proxy = by_service(&dns, IN_TURN).await;
    await_places(&proxy, &sorted([&a, &b])).await;
    let report = Load::of(20).run(proxy.address(), |_| chat()).await;
    assert_eq!((report.by_name()["a"], report.by_name()["b"]), (15, 5), "{:?}", report.outcomes());
}

#[tokio::test]
async fn weights_beyond_those_of_endpoints_keep_their_proportion() {
    let (a, b) = (sim("a"), sim("b"));
    let dns = dns(&[(0, 60_000, port(&a), "a.test"), (0, 20_000, port(&b), "b.test")]).await;
    let proxy = by_service(&dns, IN_TURN).await;
    await_places(&proxy, &sorted([&a, &b])).await;
    let report = Load::of(20).run(proxy.address(), |_| chat()).await;
    assert_eq!((report.by_name()["a"], report.by_name()["b"]), (15, 5), "{:?}", report.outcomes());
}

#[tokio::test]
async fn a_changed_weight_takes_effect() {
    let (a, b) = (sim("a"), sim("b"));
    let targets = |weight| [(0, weight, port(&a), "a.test"), (0, 1, port(&b), "b.test")];
    let dns = dns(&targets(1)).await;
    let proxy = by_service(&dns, REFRESHED).await;
    await_places(&proxy, &sorted([&a, &b])).await;
    dns.set(SERVICE, Says::services(&targets(4), 1));
    let wanted = if a.addr < b.addr { [4, 1] } else { [1, 4] };
    await_weights(&proxy, &wanted).await;
    let report = Load::of(20).run(proxy.address(), |_| chat()).await;
    assert_eq!(report.by_name()["a"], 16, "{:?}", report.outcomes());
}

#[tokio::test]
async fn only_targets_of_the_best_priority_serve() {
    let (a, b, c) = (sim("a"), sim("b"), sim("c"));
    let standby = (20, 100, port(&c), "c.test");
    let dns = dns(&[standby, (10, 1, port(&a), "a.test"), (10, 1, port(&b), "b.test")]).await;
    let proxy = by_service(&dns, IN_TURN).await;
    await_places(&proxy, &sorted([&a, &b])).await;
    dns.set(SERVICE, Says::services(&[standby], 1));
    await_places(&proxy, &sorted([&c])).await;
    assert_eq!(chat().send(proxy.address()).await.by(), "c");
}

#[tokio::test]
async fn every_address_of_a_target_is_an_endpoint() {
    let fleet = same_port(&["127.0.0.1", "127.0.0.2", "::1"]);
    let dns = dns(&[(0, 1, port(&fleet[0]), "a.test")]).await;
    dns.set("a.test", Says::addresses(&["127.0.0.2", "::1", "127.0.0.1"], 60));
    let proxy = by_service(&dns, IN_TURN).await;
    await_places(&proxy, &places(&fleet)).await;
}

#[tokio::test]
async fn a_target_that_moves_is_followed_though_the_record_lives_longer() {
    let fleet = same_port(&["127.0.0.1", "127.0.0.2"]);
    let dns = dns(&[]).await;
    dns.set(SERVICE, Says::services(&[(0, 1, port(&fleet[0]), "a.test")], 3600));
    let proxy = by_service(&dns, IN_TURN).await;
    await_places(&proxy, &places(&fleet[..1])).await;
    dns.set("a.test", Says::addresses(&["127.0.0.2"], 1));
    await_places(&proxy, &places(&fleet[1..])).await;
}

#[tokio::test]
async fn a_target_that_nobody_knows_keeps_no_other_out() {
    let (a, b) = (sim("a"), sim("b"));
    let dns = dns(&[(0, 1, port(&a), "a.test"), (0, 1, port(&b), "lost.test")]).await;
    let proxy = by_service(&dns, REFRESHED).await;
    await_places(&proxy, &sorted([&a])).await;
    let line = proxy.await_log("lost.test").await;
    assert!(line.contains("there is no such name"), "{line}");
    dns.set("lost.test", Says::addresses(&["127.0.0.1"], 1));
    await_places(&proxy, &sorted([&a, &b])).await;
}

#[tokio::test]
async fn a_target_whose_name_is_denied_stays_while_the_record_names_it() {
    let (a, b) = (sim("a"), sim("b"));
    let (to_a, to_b) = ((0, 1, port(&a), "a.test"), (0, 1, port(&b), "b.test"));
    let dns = dns(&[to_a, to_b]).await;
    let proxy = by_service(&dns, REFRESHED).await;
    await_places(&proxy, &sorted([&a, &b])).await;
    dns.set("b.test", Says::NoSuchName(1));
    proxy.await_metrics(|metrics| looked_up(metrics, "failure") >= 2.0).await;
    assert_eq!(present(&proxy).await, sorted([&a, &b]));
    dns.set(SERVICE, Says::services(&[to_a], 1));
    await_places(&proxy, &sorted([&a])).await;
}

#[tokio::test]
async fn a_service_that_can_not_be_looked_up_keeps_its_targets() {
    let a = sim("a");
    let dns = dns(&[(0, 1, port(&a), "a.test")]).await;
    let proxy = by_service(&dns, REFRESHED).await;
    await_places(&proxy, &sorted([&a])).await;
    let troubles = [
        (2.0, Says::NoSuchName(1), "there is no such name"),
        (4.0, Says::Failure, "Server Failure"),
    ];
    for (count, says, said) in troubles {
        dns.set(SERVICE, says);
        proxy.await_metrics(|metrics| looked_up(metrics, "failure") >= count).await;
        assert_eq!(present(&proxy).await, sorted([&a]));
        said_once(&proxy, said).await;
    }
}

#[tokio::test]
async fn a_record_whose_targets_nobody_knows_empties_nothing() {
    let a = sim("a");
    let dns = dns(&[(0, 1, port(&a), "a.test")]).await;
    let proxy = by_service(&dns, REFRESHED).await;
    await_places(&proxy, &sorted([&a])).await;
    dns.set(SERVICE, Says::services(&[(0, 1, port(&a), "lost.test")], 1));
    proxy.await_metrics(|metrics| looked_up(metrics, "failure") >= 2.0).await;
    assert_eq!(present(&proxy).await, sorted([&a]));
}

#[tokio::test]
async fn a_service_that_is_said_not_to_be_there_has_no_endpoints() {
    let a = sim("a");
    let dns = dns(&[(0, 1, port(&a), "a.test")]).await;
    let proxy = by_service(&dns, REFRESHED).await;
    await_places(&proxy, &sorted([&a])).await;
    dns.set(SERVICE, Says::services(&[(0, 0, 0, ".")], 1));
    await_places(&proxy, &[]).await;
    assert_eq!(chat().send(proxy.address()).await.status, 503);
    assert_eq!(looked_up(&proxy.metrics().await, "failure"), 0.0);
}

#[tokio::test]
async fn a_record_that_is_too_long_for_a_packet_is_asked_for_over_tcp() {
    let (a, b) = (sim("a"), sim("b"));
    let dns = dns(&[(0, 1, port(&a), "a.test"), (0, 1, port(&b), "b.test")]).await;
    dns.truncate();
    let proxy = by_service(&dns, IN_TURN).await;
    await_places(&proxy, &sorted([&a, &b])).await;
    assert!(dns.asked(SERVICE, RecordType::SRV)[1].tcp);
}
