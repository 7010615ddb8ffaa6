//! When there is no answer: what was known stays, and the next question comes in good time.

use std::time::Duration;

use outrigger_tests::harness::{Call, RecordType, Says};

use super::{
    IN_TURN, NAME, REFRESHED, SLACK, await_places, by_name, dns, looked_up, pauses, places,
    present, said_once, same_port,
};
use crate::fleet::{await_ready, chat, error_code};

#[tokio::test]
async fn a_denial_is_believed_for_its_time_and_takes_nothing_away() {
    let fleet = same_port(&["127.0.0.1", "127.0.0.2"]);
    let dns = dns(Says::addresses(&["127.0.0.1"], 1)).await;
    let proxy = by_name(&dns, &fleet, IN_TURN).await;
    await_places(&proxy, &places(&fleet[..1])).await;
    dns.set(NAME, Says::NoSuchName(3));
    proxy.await_metrics(|metrics| looked_up(metrics, "failure") == 1.0).await;
    let denied = dns.asked(NAME, RecordType::A).len() - 1;
    assert_eq!(present(&proxy).await, places(&fleet[..1]));
    assert_eq!(chat().send(proxy.address()).await.status, 200);
    dns.set(NAME, Says::addresses(&["127.0.0.2"], 1));
    await_places(&proxy, &places(&fleet[1..])).await;
    let asked = dns.asked(NAME, RecordType::A);
    let pause = pauses(&asked)[denied];
    assert!(pause > Duration::from_secs(3) - SLACK, "{:?}", pauses(&asked));
}

#[tokio::test]
async fn a_denial_is_believed_no_longer_than_the_refresh() {
    let fleet = same_port(&["127.0.0.1"]);
    let dns = dns(Says::NoSuchName(3600)).await;
    let proxy = by_name(&dns, &fleet, REFRESHED).await;
    dns.await_asked(NAME, RecordType::A, 2).await;
    dns.set(NAME, Says::addresses(&["127.0.0.1"], 60));
    await_places(&proxy, &places(&fleet)).await;
}

#[tokio::test]
async fn a_name_that_loses_all_its_records_keeps_its_endpoints() {
    let fleet = same_port(&["127.0.0.1"]);
    let dns = dns(Says::addresses(&["127.0.0.1"], 1)).await;
    let proxy = by_name(&dns, &fleet, REFRESHED).await;
    await_places(&proxy, &places(&fleet)).await;
    dns.set(NAME, Says::addresses(&[], 1));
    proxy.await_metrics(|metrics| looked_up(metrics, "failure") >= 2.0).await;
    assert_eq!(present(&proxy).await, places(&fleet));
    let line = proxy.await_log("there is no A record of that name").await;
    assert!(line.contains(NAME), "{line}");
}

#[tokio::test]
async fn a_server_that_fails_takes_nothing_away() {
    let fleet = same_port(&["127.0.0.1", "127.0.0.2"]);
    let dns = dns(Says::addresses(&["127.0.0.1"], 1)).await;
    let proxy = by_name(&dns, &fleet, IN_TURN).await;
    await_places(&proxy, &places(&fleet[..1])).await;
    dns.set(NAME, Says::Failure);
    proxy.await_metrics(|metrics| looked_up(metrics, "failure") >= 3.0).await;
    assert_eq!(present(&proxy).await, places(&fleet[..1]));
    assert_eq!(chat().send(proxy.address()).await.status, 200);
    said_once(&proxy, "can not be looked up").await;
    dns.set(NAME, Says::addresses(&["127.0.0.2"], 1));
    await_places(&proxy, &places(&fleet[1..])).await;
    said_once(&proxy, "looked up again").await;
}

#[tokio::test]
async fn a_server_that_says_nothing_takes_nothing_away() {
    let fleet = same_port(&["127.0.0.1", "127.0.0.2"]);
    let dns = dns(Says::addresses(&["127.0.0.1"], 1)).await;
    let proxy = by_name(&dns, &fleet, IN_TURN).await;
    await_places(&proxy, &places(&fleet[..1])).await;
    dns.set(NAME, Says::Silence);
    let asked = dns.asked(NAME, RecordType::A).len();
    dns.await_asked(NAME, RecordType::A, asked + 2).await;
    assert_eq!(present(&proxy).await, places(&fleet[..1]));
    assert_eq!(chat().send(proxy.address()).await.status, 200);
    dns.set(NAME, Says::addresses(&["127.0.0.2"], 1));
    await_places(&proxy, &places(&fleet[1..])).await;
}

#[tokio::test]
async fn a_family_that_fails_keeps_its_endpoints_while_the_other_changes() {
    let fleet = same_port(&["127.0.0.1", "127.0.0.2", "::1"]);
    let dns = dns(Says::addresses(&["127.0.0.1", "::1"], 1)).await;
    let proxy = by_name(&dns, &fleet, IN_TURN).await;
    await_places(&proxy, &places([&fleet[0], &fleet[2]])).await;
    dns.set(NAME, Says::addresses(&["127.0.0.2"], 1));
    dns.set_kind(NAME, RecordType::AAAA, Says::Failure);
    await_places(&proxy, &places([&fleet[1], &fleet[2]])).await;
    dns.set(NAME, Says::addresses(&["127.0.0.2"], 1));
    await_places(&proxy, &places([&fleet[1]])).await;
}

#[tokio::test]
async fn a_name_that_was_never_known_is_503_until_it_is() {
    let fleet = same_port(&["127.0.0.1"]);
    for says in [Says::NoSuchName(1), Says::Failure] {
        let dns = dns(says).await;
        let proxy = by_name(&dns, &fleet, REFRESHED).await;
        proxy.await_metrics(|metrics| looked_up(metrics, "failure") >= 1.0).await;
        let answer = chat().send(proxy.address()).await;
        assert_eq!((answer.status, error_code(&answer).as_str()), (503, "no_endpoint"));
        assert_eq!(proxy.admin_get("/ready").await.status, 503);
        dns.set(NAME, Says::addresses(&["127.0.0.1"], 60));
        await_ready(&proxy).await;
        assert_eq!(chat().send(proxy.address()).await.by(), "127.0.0.1");
    }
}

#[tokio::test]
async fn failures_are_met_less_and_less_often() {
    /// The resolver asks so often before it says that the server has failed.
    const TRIES: usize = 3;
    let fleet = same_port(&["127.0.0.1"]);
    let dns = dns(Says::Failure).await;
    let _proxy = by_name(&dns, &fleet, IN_TURN).await;
    let asked = dns.await_asked(NAME, RecordType::A, 3 * TRIES + 1).await;
    let looks: Vec<_> = asked.into_iter().step_by(TRIES).collect();
    let least = [500, 1000, 2000].map(Duration::from_millis);
    let enough = pauses(&looks).iter().zip(least).all(|(pause, least)| *pause + SLACK >= least);
    assert!(enough, "{:?}", pauses(&looks));
}

#[tokio::test]
async fn requests_go_on_while_names_fail() {
    let fleet = same_port(&["127.0.0.1"]);
    let dns = dns(Says::addresses(&["127.0.0.1"], 1)).await;
    let proxy = by_name(&dns, &fleet, REFRESHED).await;
    await_places(&proxy, &places(&fleet)).await;
    dns.set(NAME, Says::NoSuchName(0));
    let mut stream = Call::get("/events/60?gap=50").open(proxy.address()).await;
    assert!(stream.event().await.is_some());
    proxy.await_metrics(|metrics| looked_up(metrics, "failure") >= 2.0).await;
    assert!(stream.events().await.is_complete());
    assert_eq!(chat().send(proxy.address()).await.status, 200);
}
