//! What is kept, for how long, and how it is thrown away; and what is there from the start.

use std::fs;
use std::io::Write;

use outrigger_tests::harness::{Call, Metrics, Proxy};
use outrigger_tests::sim::{Fault, Simulator};
use serde_json::{Value, json};

use super::{FALLBACK, PREFER, chats, greedy, mark, table};
use crate::fleet::{endpoints, one_backend, reload, sim};

/// Purges by this as soon as so many are stored: an answer is stored when its client has all of it, and the admin page has
/// a thread of its own.
async fn purge(proxy: &Proxy, entries: u32, query: &str) -> Value {
    let stored = |metrics: &Metrics| metrics.get("outrigger_answers_entries", &[]);
    proxy.await_metrics(|metrics| stored(metrics) == f64::from(entries)).await;
    let answer = Call::post(&format!("/answers/purge?{query}")).send(proxy.admin()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["purged"].clone()
}

#[tokio::test]
async fn answers_are_purged_by_route_model_or_all() {
    let simulator = sim("stable");
    let yaml = format!(
        "backends: {{ stable: {{ endpoints: {} }} }}\nroutes:\n\
         - {{ name: old, match: {{ headers: {{ x-old: '*' }} }}, backend: stable, {PREFER} }}\n\
         - {{ name: all, backend: stable, {PREFER} }}\n",
        endpoints(&[&simulator]),
    );
    let proxy = Proxy::start(&yaml).await;
    let on_old = || greedy("deep?").header("x-old", "1");
    let fill = || async {
        greedy("deep?").send(proxy.address()).await;
        greedy("deep?").model("org/other").send(proxy.address()).await;
        on_old().send(proxy.address()).await;
    };
    fill().await;
    assert_eq!(purge(&proxy, 3, "route=old").await, 1);
    assert_eq!(mark(&on_old().send(proxy.address()).await), "");
    assert_eq!(mark(&greedy("deep?").send(proxy.address()).await), "fresh");
    let stored = greedy("deep?").send(proxy.address()).await;
    let status = stored.header("cache-status").expect("stored");
    let key = status.split('"').nth(1).expect("a key").to_owned();
    assert_eq!(purge(&proxy, 3, &format!("key={key}&route=old")).await, 0, "all must hold");
    assert_eq!(purge(&proxy, 3, &format!("key={key}")).await, 1);
    fill().await;
    assert_eq!(purge(&proxy, 3, "route=all&model=nothing").await, 0);
    assert_eq!(purge(&proxy, 3, "model=org%2Fother").await, 1);
    fill().await;
    assert_eq!(purge(&proxy, 3, "all=true").await, 3);
    let of = |who: &str| greedy("deep?").header("authorization", who);
    of("Bearer a").send(proxy.address()).await;
    of("Bearer b").send(proxy.address()).await;
    assert_eq!(purge(&proxy, 2, "route=old").await, 0);
    let own = Call::post("/answers/purge?tenant=own").header("authorization", "Bearer a");
    assert_eq!(own.send(proxy.admin()).await.json()["purged"], 1);
    assert_eq!(mark(&of("Bearer b").send(proxy.address()).await), "fresh");
    assert_eq!(mark(&of("Bearer a").send(proxy.address()).await), "");
    assert_eq!(purge(&proxy, 2, "all=true").await, 2);
    let page = proxy.admin_get("/answers").await.json();
    assert_eq!((&page["memory"]["entries"], &page["memory"]["bytes"]), (&json!(0), &json!(0)));
    let routes = page["routes"].as_array().expect("a list");
    assert_eq!(routes.len(), 2);
    assert!(routes.iter().all(|route| route["hits"].is_u64() && route["hit_rate"].is_f64()));
    let nothing = Call::post("/answers/purge").send(proxy.admin()).await;
    assert_eq!(nothing.status, 400, "everything has to be said");
    let read = proxy.admin_get("/answers/purge?all=true").await;
    assert_eq!((read.status, read.header("allow")), (405, Some("POST")));
}

#[tokio::test]
async fn stored_answers_survive_a_reload() {
    let (simulator, proxy) = table(FALLBACK).await;
    let live = greedy("deep?").send(proxy.address()).await;
    let other = format!("{FALLBACK}, answers: {{ ttl: 1m }}, deadline: {{ total: 1h }}");
    reload(&proxy, &one_backend(&[&simulator], "ejection: off", &other)).await;
    simulator.fault(Fault::Status(500, None));
    let stored = greedy("deep?").send(proxy.address()).await;
    assert_eq!((stored.status, &stored.body), (200, &live.body));
}

#[tokio::test]
async fn memory_is_bounded_and_says_what_it_threw_out() {
    let simulator = sim("stable");
    let yaml = format!("{}answers: {{ memory: 1MiB }}\n", one_backend(&[&simulator], "", PREFER));
    let proxy = Proxy::start(&yaml).await;
    let bytes = |m: &Metrics| m.get("outrigger_answers_bytes", &[]);
    let mut most = 0.0_f64;
    for index in 0..200 {
        let asked = greedy(&format!("question {index}")).max_tokens(2_000);
        assert_eq!(asked.send(proxy.address()).await.status, 200);
        most = most.max(bytes(&proxy.metrics().await));
    }
    assert!((100_000.0..=1_048_576.0).contains(&most), "{most}");
    let metrics = proxy.metrics().await;
    assert!(metrics.get("outrigger_answers_evicted_total", &[("reason", "room")]) > 0.0);
}

fn warm_up(simulator: &Simulator, lines: &[Value]) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("warm-up.jsonl");
    let mut file = fs::File::create(&path).expect("a file");
    for line in lines {
        writeln!(file, "{line}").expect("written");
    }
    let file = path.display();
    let yaml = format!(
        "{}answers: {{ warm_up: {{ file: '{file}', rate: 1000, at_once: 4 }} }}\n",
        one_backend(&[simulator], "ejection: off", FALLBACK),
    );
    (directory, yaml)
}

#[tokio::test]
async fn what_a_warm_up_has_fetched_is_there_before_anybody_asked() {
    let simulator = sim("stable");
    let body = json!({
        "model": "sim-model", "messages": [{"role": "user", "content": "deep?"}],
        "max_tokens": 6, "temperature": 0,
    });
    let path = "/v1/chat/completions";
    let (_directory, yaml) = warm_up(
        &simulator,
        &[
            json!({"path": path, "body": body, "headers": {"accept": "*/*"}}),
            json!({"path": path, "body": body, "headers": {"authorization": "Bearer a"}}),
            // A line of an access log.
            json!({"time": "2026-11-26T12:00:00Z", "method": "POST", "path": path, "status": 200}),
        ],
    );
    let proxy = Proxy::start(&yaml).await;
    let warmed = |m: &Metrics, result| {
        m.get("outrigger_answers_warm_up_requests_total", &[("result", result)])
    };
    proxy.await_metrics(|m| warmed(m, "answered") == 2.0 && warmed(m, "skipped") == 1.0).await;
    proxy.await_log("answers are warmed up").await;
    assert_eq!(chats(&simulator), 2);
    simulator.fault(Fault::Status(500, None));
    let asked = greedy("deep?").header("accept", "*/*").send(proxy.address()).await;
    assert_eq!((asked.status, mark(&asked)), (200, "fallback; reason=server_error"));
    let other = greedy("deep?").header("authorization", "Bearer b").send(proxy.address()).await;
    assert_eq!(other.status, 500, "it was fetched for others");
    let metrics = proxy.metrics().await;
    assert_eq!(
        metrics.get("outrigger_requests_total", &[("outcome", "ok")]),
        0.0,
        "not a client's"
    );
}
