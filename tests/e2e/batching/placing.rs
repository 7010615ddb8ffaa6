//! Where a batch goes: what its requests have in common about that holds for their call too.

use std::io::Write;

use outrigger_tests::harness::{Answer, Call, Proxy};
use outrigger_tests::sim::{Fault, Options, Reports, Rule, Simulator};
use serde_json::Value;
use tokio::task::JoinSet;

use super::{EMBEDDINGS, FULL, PATIENT, at_once, calls_of, embed, expect_company, text};
use crate::fleet::{endpoint_states, endpoints, one_backend, one_backend_at, sim};

/// A full batch of requests that are like this; the names of those who answered.
async fn full(proxy: &Proxy, like: impl Fn(Value) -> Call) -> Vec<Answer> {
    let answers = at_once(proxy.address(), (0..FULL).map(|index| like(text(index).into()))).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{:?}", answers[0]);
    assert_eq!(calls_of(&answers).len(), 1, "they travel together");
    answers
}

#[tokio::test]
async fn a_scheduler_that_chose_an_endpoint_is_obeyed() {
    let (a, b) = (sim("a"), sim("b"));
    let yaml = one_backend(&[&a, &b], "signals: { gateway: true }", PATIENT);
    let proxy = Proxy::start(&yaml).await;
    for (name, simulator) in [("a", &a), ("b", &b)] {
        let address = simulator.endpoint();
        let to = |input: Value| embed(input).header("x-gateway-destination-endpoint", &address);
        expect_company(&proxy, &[&a, &b], "tide", to).await;
        for round in 0..4 {
            let answers = full(&proxy, to).await;
            assert!(answers.iter().all(|answer| answer.by() == name), "round {round} for {name}");
        }
    }
}

/// `a` is this pod's own engine and busy, `b` another pod's.
async fn pod(a: &Simulator, b: &Simulator) -> (Proxy, impl Fn(&'static str) -> JoinSet<()>) {
    let list = format!("[{{ address: '{}', local: true }}, '{}']", a.addr, b.addr);
    let proxy = Proxy::start(&one_backend_at(&list, "balance: least_load", PATIENT)).await;
    let to = proxy.address();
    let make_busy = move |prompt: &'static str| {
        let mut stuck = JoinSet::new();
        for _ in 0..12 {
            let call = Call::chat(prompt).max_tokens(4).header("x-outrigger-hop", "1");
            stuck.spawn(async move { drop(call.try_send(to).await) });
        }
        stuck
    };
    (proxy, make_busy)
}

/// Requests that have come from another pod are served by this one's engine, or two pods that think each other idle
/// would pass them to and fro.
#[tokio::test]
async fn what_came_from_another_pod_is_served_by_this_one() {
    let (a, b) = (sim("a"), sim("b"));
    let (proxy, make_busy) = pod(&a, &b).await;
    let hopped = |input: Value| embed(input).header("x-outrigger-hop", "1");
    expect_company(&proxy, &[&a, &b], "tide", hopped).await;
    a.inflict(Rule::always(Fault::StallFirstByte(None)).holding("stuck"));
    let _stuck = make_busy("stuck");
    a.reached(|state| state.in_flight == 12).await;
    let answers = full(&proxy, hopped).await;
    assert!(answers.iter().all(|answer| answer.by() == "a"), "it left the pod again");
}

#[tokio::test]
async fn a_batch_that_leaves_the_pod_says_so() {
    let (a, b) = (sim("a"), sim("b"));
    let (proxy, make_busy) = pod(&a, &b).await;
    expect_company(&proxy, &[&a, &b], "tide", embed).await;
    a.inflict(Rule::always(Fault::StallFirstByte(None)).holding("stuck"));
    let _stuck = make_busy("stuck");
    a.reached(|state| state.in_flight == 12).await;
    let answers = full(&proxy, embed).await;
    assert!(answers.iter().all(|answer| answer.by() == "b"), "the other one is idle");
    let seen = b.seen();
    let hop = seen.last().and_then(|seen| seen.header("x-outrigger-hop"));
    assert_eq!(hop, Some("1"));
}

#[tokio::test]
async fn requests_of_one_key_go_where_they_go_alone() {
    let simulators = [sim("a"), sim("b"), sim("c")];
    let all: Vec<_> = simulators.iter().collect();
    let backend = "balance: { policy: consistent_hash, key: { header: x-user } }";
    let proxy = Proxy::start(&one_backend(&all, backend, PATIENT)).await;
    for user in ["u1", "u2", "u3", "u4", "u5"] {
        let own = |input: Value| embed(input).header("x-user", user);
        let alone = own("alone".into()).send(proxy.address()).await;
        expect_company(&proxy, &all, "tide", own).await;
        let answers = full(&proxy, own).await;
        assert_eq!(answers[0].by(), alone.by(), "{user}");
    }
}

/// Where every request travels in batches, their answers are all that an endpoint can say of itself.
#[tokio::test]
async fn load_reports_on_the_answers_to_batches_are_believed() {
    let simulator = Simulator::start(Options::named("stable").fast().reports(Reports::Header));
    let yaml = one_backend(&[&simulator], "signals: { orca: true }", PATIENT);
    let proxy = Proxy::start(&yaml).await;
    expect_company(&proxy, &[&simulator], "tide", embed).await;
    let answers = full(&proxy, embed).await;
    let report = |answer: &Answer| answer.header("endpoint-load-metrics").map(str::to_owned);
    assert!(answers.iter().all(|answer| report(answer).is_none()), "nobody has asked for it");
    let said = endpoint_states(&proxy).await[0].said("running");
    assert_eq!(said.map(|said| said.source).as_deref(), Some("orca"));
}

/// A body that came compressed is as good as any other once it is unpacked.
#[tokio::test]
async fn unpacked_requests_travel_together() {
    let simulator = sim("stable");
    let proxy =
        Proxy::start(&one_backend(&[&simulator], "", &format!("{PATIENT}, decompress: {{}}")))
            .await;
    let packed = |input: Value| {
        let body = serde_json::json!({"model": "m", "input": input}).to_string();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(body.as_bytes()).expect("memory takes everything");
        let call = Call::post(EMBEDDINGS).header("content-type", "application/json");
        call.header("content-encoding", "gzip").body(gzip.finish().expect("memory"))
    };
    expect_company(&proxy, &[&simulator], "tide", packed).await;
    let answers = full(&proxy, packed).await;
    for (index, answer) in answers.iter().enumerate() {
        let alone = embed(text(index)).send(simulator.addr).await;
        assert_eq!(answer.json()["data"], alone.json()["data"], "{index}");
    }
}

/// What the client can read is the same whether it was alone or not.
#[tokio::test]
async fn answers_are_compressed_as_those_of_single_requests() {
    let simulator = sim("stable");
    let route = format!("{PATIENT}, compress: {{ algorithms: [gzip], min: 1B }}");
    let yaml = format!(
        "backends: {{ stable: {{ endpoints: {} }} }}\nroutes: [{{ name: all, backend: stable, {route} }}]\n",
        endpoints(&[&simulator])
    );
    let proxy = Proxy::start(&yaml).await;
    let packed = |input: Value| embed(input).header("accept-encoding", "gzip");
    let alone = packed("alone".into()).send(proxy.address()).await;
    assert_eq!(alone.header("content-encoding"), Some("gzip"));
    expect_company(&proxy, &[&simulator], "tide", packed).await;
    let calls = (0..FULL).map(|index| packed(text(index).into()));
    for answer in at_once(proxy.address(), calls).await {
        assert_eq!((answer.status, answer.header("content-encoding")), (200, Some("gzip")));
    }
}
