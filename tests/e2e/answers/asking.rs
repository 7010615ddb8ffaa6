//! Which requests are answered from store, by what they ask and who asks it.

use std::collections::HashMap;
use std::io::Read;
use std::time::Duration;

use flate2::read::GzDecoder;
use outrigger_tests::harness::{Answer, Call, Load, Protocol, Proxy};
use outrigger_tests::sim::{Options, Simulator};
use serde_json::json;

use super::{FALLBACK, PREFER, chats, greedy, mark, served, table};
use crate::fleet::{endpoints, error_code, one_backend, sim};

/// The id that the engine gives each answer.
fn id(answer: &Answer) -> String {
    answer.json()["id"].as_str().expect("an id").to_owned()
}

#[tokio::test]
async fn a_fresh_answer_is_served_before_the_endpoint_is_asked() {
    let (simulator, proxy) = table(PREFER).await;
    let body = |text: &str| {
        let call = Call::post("/v1/chat/completions").body(text.to_owned());
        call.header("content-type", "application/json")
    };
    let written = r#"{"model":"sim-model","temperature":0,"max_tokens":3,"messages":[{"role":"user","content":"a"}]}"#;
    let rewritten = r#"{ "messages": [ {"content":"\u0061","role":"user"} ], "max_tokens":3,
        "temperature":0, "model":"sim-model" }"#;
    let live = body(written).send(proxy.address()).await;
    assert_eq!((live.status, mark(&live)), (200, ""));
    for text in [written, rewritten] {
        let stored = body(text).send(proxy.address()).await;
        assert_eq!((mark(&stored), id(&stored)), ("fresh", id(&live)));
        assert!(stored.header("age").is_some());
    }
    for other in [
        written.replace("\"max_tokens\":3", "\"max_tokens\":4"),
        written.replace("\"a\"", "\"A\""),
        written.replace("\"temperature\":0", "\"temperature\":0.0"),
    ] {
        let answer = body(&other).send(proxy.address()).await;
        assert_eq!(mark(&answer), "", "{other}");
    }
    let elsewhere = Call::post("/v1/chat/completions?x=1").body(written.to_owned());
    let elsewhere = elsewhere.header("content-type", "application/json");
    assert_eq!(mark(&elsewhere.send(proxy.address()).await), "");
    let streamed = greedy("a").max_tokens(3).streaming();
    assert_eq!(mark(&streamed.send(proxy.address()).await), "", "a stream is another answer");
    assert_eq!(chats(&simulator), 6);
    assert_eq!(served(&proxy.metrics().await, "fresh", "preferred"), 2.0);
}

#[tokio::test]
async fn only_what_would_get_the_same_answer_again_is_stored() {
    let (simulator, proxy) = table(PREFER).await;
    let unlike: [fn() -> Call; 3] = [
        || Call::chat("deep?").max_tokens(3),
        || Call::chat("deep?").max_tokens(3).field("temperature", 0.7),
        || Call::chat("deep?").max_tokens(3).field("seed", json!(null)),
    ];
    for call in unlike {
        for _ in 0..2 {
            assert_eq!(mark(&call().send(proxy.address()).await), "");
        }
    }
    assert_eq!(chats(&simulator), 6);
    let alike: [fn() -> Call; 2] = [
        || Call::chat("deep?").max_tokens(3).field("seed", 7),
        || Call::post("/v1/embeddings").json(json!({"model": "sim-model", "input": "reef"})),
    ];
    for call in alike {
        assert_eq!(mark(&call().send(proxy.address()).await), "");
        assert_eq!(mark(&call().send(proxy.address()).await), "fresh");
    }
    let lax =
        one_backend(&[&simulator], "", "answers: { prefer: true, deterministic_only: false }");
    let proxy = Proxy::start(&lax).await;
    assert_eq!(mark(&unlike[1]().send(proxy.address()).await), "");
    assert_eq!(mark(&unlike[1]().send(proxy.address()).await), "fresh");
}

#[tokio::test]
async fn what_a_client_says_of_stored_answers_holds() {
    let (simulator, proxy) = table(&format!("{PREFER}, {FALLBACK}")).await;
    let said = |control: &str| greedy("deep?").header("cache-control", control);
    let only = said("only-if-cached").send(proxy.address()).await;
    assert_eq!((only.status, &*error_code(&only)), (504, "not_stored"));
    assert_eq!(mark(&said("no-store").send(proxy.address()).await), "");
    let still = said("only-if-cached").send(proxy.address()).await;
    assert_eq!(still.status, 504, "what must not be stored was not");
    assert_eq!(chats(&simulator), 1);
    let first = said("no-cache").send(proxy.address()).await;
    assert_eq!(mark(&first), "");
    assert_eq!(id(&said("only-if-cached").send(proxy.address()).await), id(&first));
    let second = said("no-cache").send(proxy.address()).await;
    assert_ne!(id(&second), id(&first));
    assert_eq!(id(&said("max-age=600").send(proxy.address()).await), id(&second), "the newer one");
    for control in ["no-cache", "no-store", "min-fresh=100000"] {
        let failed = said(control).fault("status=500").send(proxy.address()).await;
        assert_eq!((failed.status, mark(&failed)), (500, ""), "{control}");
    }
    let failed = said("stale-if-error=60").fault("status=500").send(proxy.address()).await;
    assert_eq!((failed.status, mark(&failed)), (200, "fresh"));
}

#[tokio::test]
async fn a_condition_or_a_part_is_never_answered_from_store() {
    let (simulator, proxy) = table(PREFER).await;
    greedy("deep?").send(proxy.address()).await;
    for (name, value) in [("if-none-match", "\"a\""), ("range", "bytes=0-1")] {
        let answer = greedy("deep?").header(name, value).send(proxy.address()).await;
        assert_eq!(mark(&answer), "", "{name}");
    }
    let long = greedy(&"x".repeat(300 * 1024));
    assert_eq!(long.send(proxy.address()).await.status, 200);
    assert_eq!(chats(&simulator), 4);
    let metrics = proxy.metrics().await;
    let missed = |reason| {
        metrics.get("outrigger_answers_missed_total", &[("route", "all"), ("reason", reason)])
    };
    assert_eq!((missed("not_storable"), missed("too_long"), missed("absent")), (2.0, 1.0, 1.0));
}

#[tokio::test]
async fn a_stale_answer_is_served_at_once_and_a_new_one_fetched() {
    let route = "answers: { prefer: true, ttl: 0s, stale_while_revalidate: 1h }";
    let (simulator, proxy) = table(route).await;
    let first = greedy("deep?").send(proxy.address()).await;
    let stale = greedy("deep?").send(proxy.address()).await;
    assert_eq!((mark(&stale), id(&stale)), ("stale", id(&first)));
    simulator.reached(|state| state.seen("/v1/chat/completions") == 2).await;
    let recorded = [("route", "all"), ("result", "stored")];
    let twice = |m: &outrigger_tests::harness::Metrics| {
        m.get("outrigger_answers_recorded_total", &recorded) >= 2.0
    };
    proxy.await_metrics(twice).await;
    let newer = greedy("deep?").send(proxy.address()).await;
    assert_eq!(mark(&newer), "stale");
    assert_ne!(id(&newer), id(&first), "the one that was fetched meanwhile");
}

#[tokio::test]
async fn tenants_never_see_each_others_answers() {
    let (_simulator, proxy) = table(PREFER).await;
    let tenants: [&[(&str, &str)]; 7] = [
        &[],
        &[("authorization", "Bearer a")],
        &[("authorization", "Bearer b")],
        &[("x-api-key", "Bearer a")],
        &[("authorization", "Bearer a"), ("x-api-key", "b")],
        &[("cookie", "session=1")],
        &[("cookie", "session=2"), ("authorization", "Bearer a")],
    ];
    let asked = move |index: usize| {
        // Every pair of a tenant and a prompt comes several times, in an order that mixes them.
        let (tenant, prompt) = (index * 5 % 7, index * 3 % 4);
        let mut call = greedy(&format!("prompt {prompt}"));
        for (name, value) in tenants[tenant] {
            call = call.header(name, value);
        }
        // What says nothing about who asks does not keep answers apart.
        (call.header("x-request-id", &format!("r{index}")), (tenant, prompt))
    };
    let report = Load::of(28 * 6).run(proxy.address(), move |index| asked(index).0).await;
    assert_eq!(report.ok(), 28 * 6);
    let mut answers = HashMap::new();
    for sample in &report.samples {
        let (_, asker) = asked(sample.index);
        let answer = id(sample.answer.as_ref().expect("an answer"));
        let first = answers.entry(asker).or_insert_with(|| answer.clone());
        assert_eq!(*first, answer, "{asker:?} gets its own answer again");
    }
    let different: std::collections::HashSet<_> = answers.values().collect();
    assert_eq!((answers.len(), different.len()), (28, 28), "no two askers share one");
    assert_eq!(served(&proxy.metrics().await, "fresh", "preferred"), 28.0 * 5.0);
}

#[tokio::test]
async fn arms_do_not_answer_for_each_other_unless_the_route_says_so() {
    for (setting, expected) in [("", ""), (", across_arms: true", "fresh")] {
        let (a, b) = (sim("a"), sim("b"));
        let yaml = format!(
            "backends:\n  a: {{ endpoints: {} }}\n  b: {{ endpoints: {} }}\n\
             routes:\n- {{ name: all, split: {{ a: 1, b: 1 }}, answers: {{ prefer: true{setting} }} }}\n",
            endpoints(&[&a]),
            endpoints(&[&b]),
        );
        let proxy = Proxy::start(&yaml).await;
        // Two requests in turn are of two arms.
        assert_eq!(mark(&greedy("deep?").send(proxy.address()).await), "");
        assert_eq!(mark(&greedy("deep?").send(proxy.address()).await), expected, "{setting}");
    }
}

#[tokio::test]
async fn stored_answers_are_compressed_for_whoever_takes_that() {
    let (_simulator, proxy) =
        table(&format!("{PREFER}, compress: {{ events: true, min: 0B }}")).await;
    for streaming in [false, true] {
        let asked = || if streaming { greedy("deep?").streaming() } else { greedy("deep?") };
        let live = asked().send(proxy.address()).await;
        for protocol in [Protocol::Http1, Protocol::H2] {
            let packed = asked().header("accept-encoding", "gzip").over(protocol);
            let packed = packed.send(proxy.address()).await;
            assert_eq!((mark(&packed), packed.header("content-encoding")), ("fresh", Some("gzip")));
            let mut body = Vec::new();
            GzDecoder::new(&packed.body[..]).read_to_end(&mut body).expect("gzip");
            assert_eq!(body, live.body);
            let plain = asked().over(protocol).send(proxy.address()).await;
            assert_eq!((mark(&plain), &plain.body), ("fresh", &live.body));
        }
    }
}

#[tokio::test]
async fn a_stored_stream_comes_at_its_own_pace_where_that_is_wanted() {
    let step = Duration::from_millis(40);
    let simulator = Simulator::start(Options::named("stable").steady(step));
    let route = "answers: { prefer: true, replay: paced }";
    let proxy = Proxy::start(&one_backend(&[&simulator], "", route)).await;
    let asked = || greedy("deep?").max_tokens(12).streaming();
    let live = asked().open(proxy.address()).await.events().await;
    let stored = asked().open(proxy.address()).await;
    assert_eq!(stored.header("x-outrigger-answer"), Some("fresh"));
    let stored = stored.events().await;
    assert!(stored.is_complete());
    assert_eq!(stored.text(), live.text());
    let took = |events: &[outrigger_tests::harness::Event]| {
        events.last().expect("events").after.saturating_sub(events[0].after)
    };
    // It may be later, on a machine that is busy, but not sooner.
    assert!(took(&stored.events) >= 3 * step, "{:?}", stored.gaps());
}
