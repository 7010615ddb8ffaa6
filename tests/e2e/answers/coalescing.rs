//! Identical requests that are under way at the same time make one call, and none depends on another one's client.

use std::time::Duration;

use outrigger_tests::harness::{Call, Metrics, Protocol, Proxy, within};
use outrigger_tests::sim::{Options, Simulator};
use tokio::task::JoinSet;

use super::{FALLBACK, chats, greedy, mark, table};
use crate::fleet::{await_idle, one_backend};

/// A token a second: time enough to join, and soon over once it is not wanted any more.
const PAUSED: f64 = 20.0;

const COALESCE: &str = "answers: { coalesce: true }";

/// An engine that takes its time for each token.
async fn slow(route: &str) -> (Simulator, Proxy) {
    let step = Duration::from_millis(50);
    let simulator = Simulator::start(Options::named("stable").steady(step));
    let proxy = Proxy::start(&one_backend(&[&simulator], "ejection: off", route)).await;
    (simulator, proxy)
}

fn stream() -> Call {
    greedy("how deep is the lagoon?").max_tokens(30).streaming()
}

fn joined(metrics: &Metrics) -> f64 {
    let labels = [("route", "all"), ("result", "joined")];
    metrics.get("outrigger_answers_shared_total", &labels)
}

#[tokio::test]
async fn identical_requests_in_flight_share_one_call_whenever_they_came() {
    let (simulator, proxy) = slow(COALESCE).await;
    let mut first = stream().open(proxy.address()).await;
    for _ in 0..5 {
        first.event().await.expect("an event");
    }
    simulator.set_slowdown(PAUSED);
    let mut late = JoinSet::new();
    for index in 0..6 {
        let protocol = [Protocol::Http1, Protocol::H2][index % 2];
        let call = stream().over(protocol);
        let address = proxy.address();
        late.spawn(async move { call.open(address).await.events().await });
    }
    proxy.await_metrics(|m| joined(m) == 6.0).await;
    simulator.set_slowdown(1.0);
    let transcripts = late.join_all().await;
    let rest = first.events().await;
    assert!(rest.is_complete());
    for transcript in &transcripts {
        assert!(transcript.is_complete());
        assert_eq!(transcript.text(), transcripts[0].text());
        assert_eq!(transcript.events.len(), rest.events.len() + 5, "from the beginning");
    }
    assert_eq!(chats(&simulator), 1);
    // Another question has a call of its own.
    let other = greedy("how high is the palm?").max_tokens(2).send(proxy.address()).await;
    assert_eq!((other.status, chats(&simulator)), (200, 2));
}

#[tokio::test]
async fn whoever_leaves_leaves_alone_and_the_last_one_ends_the_call() {
    let (simulator, proxy) = slow(COALESCE).await;
    let mut first = stream().open(proxy.address()).await;
    first.event().await.expect("an event");
    simulator.set_slowdown(PAUSED);
    let mut second = stream().open(proxy.address()).await;
    let mut third = stream().open(proxy.address()).await;
    second.event().await.expect("an event");
    third.event().await.expect("an event");
    // The one that the call was made for, and one of the others.
    drop(first);
    drop(third);
    simulator.set_slowdown(1.0);
    let rest = second.events().await;
    assert!(rest.is_complete());
    assert_eq!((chats(&simulator), simulator.state().aborted), (1, 0));
    simulator.set_slowdown(PAUSED);
    let alone = stream().open(proxy.address()).await;
    drop(alone);
    simulator.aborted().await;
    await_idle(&proxy).await;
}

#[tokio::test]
async fn a_failure_is_shared_and_each_has_its_own_answer_from_store() {
    let deadline = "retry: off, deadline: { first_byte: 500ms }";
    let (_simulator, proxy) = slow(&format!("{COALESCE}, {deadline}, {FALLBACK}")).await;
    let asked = || greedy("deep?").max_tokens(2);
    let live = asked().send(proxy.address()).await;
    let mut failing = JoinSet::new();
    for _ in 0..4 {
        failing.spawn(asked().fault("stall_first_byte").try_send(proxy.address()));
    }
    for answer in failing.join_all().await {
        let answer = answer.expect("an answer");
        assert_eq!((answer.status, mark(&answer)), (200, "fallback; reason=deadline"));
        assert_eq!(answer.body, live.body);
    }
    let broken = stream().fault("reset").send(proxy.address()).await;
    assert_eq!(broken.status, 502, "nothing is stored for that");
}

/// Much more than is kept of it, and it comes faster than anybody takes it.
#[tokio::test]
async fn a_very_long_answer_is_passed_on_as_fast_as_it_is_taken() {
    let route = "answers: { coalesce: true, deterministic_only: false, max_answer: 1KiB }";
    let (_simulator, proxy) = slow(route).await;
    for protocol in [Protocol::Http1, Protocol::H2] {
        let answer = Call::get("/bytes/20000000").over(protocol).send(proxy.address()).await;
        assert_eq!((answer.cut.as_deref(), answer.body.len()), (None, 20_000_000));
    }
}

#[tokio::test]
async fn errors_of_the_endpoint_reach_all_that_share_its_call() {
    let (simulator, proxy) = slow(COALESCE).await;
    let mut asked = JoinSet::new();
    for _ in 0..4 {
        let call = greedy("deep?").fault("status=400");
        asked.spawn(call.try_send(proxy.address()));
    }
    for answer in asked.join_all().await {
        let answer = answer.expect("an answer");
        assert_eq!((answer.status, answer.by(), mark(&answer)), (400, "stable", ""));
    }
    assert!((1..=4).contains(&chats(&simulator)));
}

#[tokio::test]
async fn a_shared_call_costs_what_the_model_server_said() {
    let rates = "rates: [{ tokens: 1000000/min }]";
    let (_simulator, proxy) = table(&format!("{COALESCE}, {rates}")).await;
    let expected = async || {
        let page = proxy.admin_get("/admission").await.json();
        page[0]["rates"][0]["answer_tokens"].as_f64().expect("a rule of tokens")
    };
    let before = expected().await;
    assert_eq!(greedy("how deep is the lagoon?").send(proxy.address()).await.status, 200);
    let settled = async {
        while expected().await == before {
            tokio::task::yield_now().await;
        }
    };
    within("the estimate to follow the answers", settled).await;
}
