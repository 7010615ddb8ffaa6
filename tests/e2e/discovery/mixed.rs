//! Entries of several sorts in one backend: their order, and that none waits for another.

use outrigger_tests::harness::{DnsServer, Proxy, RecordType, Says};

use super::{
    IN_TURN, NAME, REFRESHED, await_places, config, dns, looked_up, places, present, same_port,
    shown,
};
use crate::fleet::{await_ready, chat, one_backend, reload, sim};

#[tokio::test]
async fn endpoints_are_in_the_order_of_the_entries_whoever_is_first() {
    let (first, last, listed, served) = (sim("first"), sim("last"), sim("listed"), sim("served"));
    let named = same_port(&["127.0.0.1", "127.0.0.2"]);
    let dns = dns(Says::NoSuchName(1)).await;
    let service = [(0, 1, served.addr.port(), "a.test")];
    dns.set("_http._tcp.fleet.test", Says::services(&service, 60));
    dns.set("a.test", Says::addresses(&["127.0.0.1"], 60));
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), format!("- '{}'\n", listed.addr)).expect("written");
    let entries = format!(
        "['{}', '{NAME}:{}', {{ srv: _http._tcp.fleet.test }}, {{ file: '{}' }}, '{}']",
        first.addr,
        named[0].addr.port(),
        file.path().display(),
        last.addr
    );
    let proxy = Proxy::start(&config(&dns, &entries, REFRESHED)).await;
    await_places(&proxy, &places([&first, &served, &listed, &last])).await;
    dns.set(NAME, Says::addresses(&["127.0.0.2", "127.0.0.1"], 60));
    let all = [&first, &named[0], &named[1], &served, &listed, &last];
    await_places(&proxy, &places(all)).await;
}

#[tokio::test]
async fn an_address_that_several_entries_find_is_one_endpoint() {
    let one = sim("one");
    let dns = dns(Says::addresses(&["127.0.0.1"], 1)).await;
    let entries =
        format!("['{NAME}:{}', {{ address: '{}', weight: 5 }}]", one.addr.port(), one.addr);
    let proxy = Proxy::start(&config(&dns, &entries, IN_TURN)).await;
    dns.await_asked(NAME, RecordType::A, 2).await;
    assert_eq!(present(&proxy).await, places([&one]));
    assert_eq!(shown(&proxy, "weight").await, [1], "the first entry says what it is");
}

#[tokio::test]
async fn addresses_serve_while_a_name_is_not_known() {
    let one = sim("one");
    let dns = dns(Says::Silence).await;
    let entries = format!("['{NAME}:8000', '{}']", one.addr);
    let proxy = Proxy::start(&config(&dns, &entries, IN_TURN)).await;
    await_ready(&proxy).await;
    assert_eq!(chat().send(proxy.address()).await.by(), "one");
}

#[tokio::test]
async fn what_leaves_one_name_leaves_though_another_is_never_known() {
    let fleet = same_port(&["127.0.0.1", "127.0.0.2"]);
    let dns = dns(Says::addresses(&["127.0.0.1", "127.0.0.2"], 1)).await;
    let entries = format!("['{NAME}:{}', 'lost.test:8000']", fleet[0].addr.port());
    let proxy = Proxy::start(&config(&dns, &entries, REFRESHED)).await;
    await_places(&proxy, &places(&fleet)).await;
    dns.set(NAME, Says::addresses(&["127.0.0.2"], 1));
    await_places(&proxy, &places(&fleet[1..])).await;
}

#[tokio::test]
async fn what_one_name_stood_for_waits_for_it_through_a_reload_and_no_longer() {
    let (fleet, other) = (same_port(&["127.0.0.1", "127.0.0.2"]), sim("other"));
    let dns = dns(Says::addresses(&["127.0.0.1", "127.0.0.2"], 1)).await;
    dns.set("other.test", Says::addresses(&["127.0.0.1"], 1));
    let entries =
        format!("['{NAME}:{}', 'other.test:{}']", fleet[0].addr.port(), other.addr.port());
    let proxy = Proxy::start(&config(&dns, &entries, REFRESHED)).await;
    await_places(&proxy, &places([&fleet[0], &fleet[1], &other])).await;
    dns.set(NAME, Says::NoSuchName(1));
    let changed = format!("{REFRESHED}, max_connections: 7");
    reload(&proxy, &config(&dns, &entries, &changed)).await;
    let failures = looked_up(&proxy.metrics().await, "failure");
    proxy.await_metrics(|metrics| looked_up(metrics, "failure") >= failures + 2.0).await;
    // Its own entry has told nothing yet, so that these are of unknown origin, after the others.
    assert_eq!(present(&proxy).await, places([&other, &fleet[0], &fleet[1]]));
    dns.set("other.test", Says::NoSuchName(1));
    dns.set(NAME, Says::addresses(&["127.0.0.2"], 1));
    await_places(&proxy, &places([&fleet[1], &other])).await;
}

#[tokio::test]
async fn what_a_name_has_found_after_a_reload_is_its_own() {
    let fleet = same_port(&["127.0.0.1", "127.0.0.2"]);
    let dns = dns(Says::addresses(&["127.0.0.1", "127.0.0.2"], 1)).await;
    let entries = format!("['{NAME}:{}', 'lost.test:8000']", fleet[0].addr.port());
    let proxy = Proxy::start(&config(&dns, &entries, REFRESHED)).await;
    await_places(&proxy, &places(&fleet)).await;
    let changed = format!("{REFRESHED}, max_connections: 7");
    reload(&proxy, &config(&dns, &entries, &changed)).await;
    let asked = dns.asked(NAME, RecordType::A).len();
    // The second question from now on shows that the answer to the first has been taken up.
    dns.await_asked(NAME, RecordType::A, asked + 2).await;
    dns.set(NAME, Says::addresses(&["127.0.0.2"], 1));
    await_places(&proxy, &places(&fleet[1..])).await;
}

#[tokio::test]
async fn what_a_reload_takes_away_leaves_when_its_successor_is_known() {
    let fleet = same_port(&["127.0.0.1", "127.0.0.2"]);
    let dns = dns(Says::addresses(&["127.0.0.1"], 60)).await;
    let entry = |name: &str| format!("['{name}:{}']", fleet[0].addr.port());
    let proxy = Proxy::start(&config(&dns, &entry(NAME), REFRESHED)).await;
    await_places(&proxy, &places(&fleet[..1])).await;
    reload(&proxy, &config(&dns, &entry("other.test"), REFRESHED)).await;
    proxy.await_metrics(|metrics| looked_up(metrics, "failure") >= 1.0).await;
    assert_eq!(chat().send(proxy.address()).await.by(), "127.0.0.1", "better than nothing");
    dns.set("other.test", Says::addresses(&["127.0.0.2"], 60));
    await_places(&proxy, &places(&fleet[1..])).await;
}

#[tokio::test]
async fn an_address_that_a_reload_takes_away_waits_for_no_name() {
    let (a, b) = (sim("a"), sim("b"));
    let dns = DnsServer::start().await;
    let entries = |address| format!("['{address}', 'lost.test:8000']");
    let proxy = Proxy::start(&config(&dns, &entries(a.addr), REFRESHED)).await;
    await_places(&proxy, &places([&a])).await;
    reload(&proxy, &config(&dns, &entries(b.addr), REFRESHED)).await;
    await_places(&proxy, &places([&b])).await;
}

#[tokio::test]
async fn servers_that_a_reload_changes_are_asked_from_then_on() {
    let fleet = same_port(&["127.0.0.1", "127.0.0.2"]);
    let one = dns(Says::addresses(&["127.0.0.1"], 1)).await;
    let two = dns(Says::addresses(&["127.0.0.2"], 1)).await;
    let entries = format!("['{NAME}:{}']", fleet[0].addr.port());
    let proxy = Proxy::start(&config(&one, &entries, REFRESHED)).await;
    await_places(&proxy, &places(&fleet[..1])).await;
    reload(&proxy, &config(&two, &entries, REFRESHED)).await;
    await_places(&proxy, &places(&fleet[1..])).await;
}

#[tokio::test]
async fn a_dead_server_is_made_up_for_by_the_next() {
    let fleet = same_port(&["127.0.0.1"]);
    let (dead, alive) = (DnsServer::start().await, dns(Says::addresses(&["127.0.0.1"], 60)).await);
    dead.set(NAME, Says::Silence);
    let servers = format!("dns: {{ servers: ['{}', '{}'] }}\n", dead.address(), alive.address());
    let entries = format!("['{NAME}:{}']", fleet[0].addr.port());
    let backend = crate::fleet::one_backend_at(&entries, IN_TURN, "");
    let proxy = Proxy::start(&format!("{servers}{backend}")).await;
    await_places(&proxy, &places(&fleet)).await;
}

#[tokio::test]
async fn a_backend_of_addresses_only_asks_nobody() {
    let one = sim("one");
    let dns = DnsServer::start().await;
    let proxy = Proxy::start(&format!("{}{}", dns.yaml(), one_backend(&[&one], "", ""))).await;
    assert_eq!(chat().send(proxy.address()).await.status, 200);
    let metrics = proxy.metrics().await;
    let counted = ["success", "failure"].map(|result| looked_up(&metrics, result));
    assert_eq!(counted, [0.0, 0.0]);
}
