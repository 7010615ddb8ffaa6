//! At high load what is stored is served first, and at higher load nothing else.

use outrigger_tests::harness::{Call, Proxy};
use outrigger_tests::sim::Simulator;
use tokio::task::JoinSet;

use super::{FALLBACK, chats, greedy, mark, served, table};
use crate::fleet::error_code;

/// The proxy has `count` requests that get no answer.
async fn hold(proxy: &Proxy, simulator: &Simulator, count: u64) -> JoinSet<bool> {
    let mut held = JoinSet::new();
    for index in 0..count {
        let call = greedy(&format!("held {index}")).fault("stall_first_byte");
        let address = proxy.address();
        held.spawn(async move { call.try_open(address).await.is_ok() });
        simulator.reached(|state| state.in_flight == index + 1).await;
    }
    held
}

fn question() -> Call {
    greedy("how deep is the lagoon?")
}

#[tokio::test]
async fn what_is_stored_is_preferred_at_one_level_and_all_there_is_at_the_next() {
    let levels = "levels: { by: in_flight, hold: 100ms, table: [{ from: 2, action: prefer_stored }, \
                  { from: 4, action: only_stored }] }";
    let (simulator, proxy) = table(&format!("{FALLBACK}, {levels}")).await;
    let live = question().send(proxy.address()).await;
    let again = question().send(proxy.address()).await;
    assert_eq!((mark(&live), mark(&again), chats(&simulator)), ("", "", 2), "asked each time");

    let held = hold(&proxy, &simulator, 1).await;
    let stored = question().send(proxy.address()).await;
    assert_eq!((stored.status, mark(&stored)), (200, "fresh; reason=load"));
    assert!([&live.body, &again.body].contains(&&stored.body));
    let new = greedy("how deep is the reef?").send(proxy.address()).await;
    assert_eq!((new.status, mark(&new)), (200, ""), "what is not stored is asked for");
    drop(held);
    simulator.reached(|state| state.in_flight == 0).await;

    let _held = hold(&proxy, &simulator, 3).await;
    let stored = question().streaming().send(proxy.address()).await;
    assert_eq!((stored.status, &*error_code(&stored)), (503, "shed"), "a stream is not stored");
    let stored = question().send(proxy.address()).await;
    assert_eq!((stored.status, mark(&stored)), (200, "fresh; reason=load"));
    let new = greedy("how deep is the sea?").send(proxy.address()).await;
    assert_eq!((new.status, &*error_code(&new)), (503, "shed"), "{}", new.text());
    assert!(new.header("retry-after").is_some(), "{:?}", new.headers);
    assert_eq!(served(&proxy.metrics().await, "fresh", "load"), 2.0);
}

/// Who is turned away altogether has a stored answer all the same, where the route has them for that.
#[tokio::test]
async fn whom_the_load_turns_away_gets_what_is_stored() {
    let levels = "levels: { by: in_flight, table: [{ from: 2, action: shed }] }";
    let (simulator, proxy) = table(&format!("{FALLBACK}, {levels}")).await;
    let live = question().send(proxy.address()).await;
    let _held = hold(&proxy, &simulator, 1).await;
    let stored = question().send(proxy.address()).await;
    assert_eq!((stored.status, mark(&stored)), (200, "fallback; reason=shed"));
    assert_eq!(stored.body, live.body);
    let new = greedy("how deep is the sea?").send(proxy.address()).await;
    assert_eq!((new.status, &*error_code(&new)), (503, "shed"), "{}", new.text());
}
