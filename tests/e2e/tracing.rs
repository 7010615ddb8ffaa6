//! Traces: what a collector gets of a request, who decides whether it gets anything, and that ids nest from the client to
//! the engine.
//!
//! What a collector does that is slow, gone or wrong is in `trouble`.

mod trouble;

use std::io::Write;
use std::time::Duration;

use nix::sys::signal::Signal;
use outrigger_tests::harness::{Call, Collector, Launch, Metrics, Proxy, Span};
use outrigger_tests::sim::Simulator;

use crate::fleet::{chat, one_backend, sim};

/// Endpoints in turn and never ejected, so that the first one of a fresh proxy gets the first request.
const IN_TURN: &str = "balance: round_robin, ejection: off";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CLIENT: &str = "00f067aa0ba902b7";

/// Every request that comes without a trace is traced.
pub(crate) fn traced(config: &str, collector: &Collector, more: &str) -> String {
    let endpoint = collector.endpoint();
    format!(
        "{config}drain: {{ delay: 0s }}\ntracing: {{ endpoint: '{endpoint}', sample: 100%, {more} }}\n"
    )
}

/// A `traceparent` of the client's span.
fn parent(flags: &str) -> String {
    format!("00-{TRACE}-{CLIENT}-{flags}")
}

/// Spans that had this fate so far.
pub(crate) fn counted(metrics: &Metrics, result: &str) -> f64 {
    metrics.get("outrigger_trace_spans_total", &[("result", result)])
}

/// The `traceparent` of the last request that a simulator got, in its parts.
fn came(simulator: &Simulator) -> (String, String, String) {
    let seen = simulator.seen().pop().expect("a request");
    let value = seen.header("traceparent").expect("it is always there");
    let parts: Vec<&str> = value.split('-').collect();
    assert_eq!(parts.len(), 4, "{value}");
    (parts[1].to_owned(), parts[2].to_owned(), parts[3].to_owned())
}

fn named<'s>(spans: &'s [Span], kind: &str) -> Vec<&'s Span> {
    let mut found: Vec<&Span> = spans.iter().filter(|span| span.kind == kind).collect();
    found.sort_by_key(|span| span.start);
    found
}

#[tokio::test]
async fn ids_nest_from_the_client_to_the_engine() {
    let (engine, collector) = (sim("a"), Collector::start().await);
    let config = one_backend(&[&engine], "", "match: { model: '*' }");
    let proxy = Proxy::start(&traced(&config, &collector, "")).await;
    let call = chat().model("llama-3").streaming().header("traceparent", &parent("01"));
    let call = call.field("stream_options", serde_json::json!({ "include_usage": true }));
    let answer = call.header("tracestate", "a=1,b=2").send(proxy.address()).await;
    assert_eq!(answer.status, 200);
    let spans = collector.await_spans(3).await;
    let _ = writeln!(std::io::stderr(), "{}", Span::tree(&spans));
    let (server, client) = (named(&spans, "SERVER")[0], named(&spans, "CLIENT")[0]);
    assert_eq!((&*server.trace, &*server.parent, &*server.state), (TRACE, CLIENT, "a=1,b=2"));
    assert_eq!((&*client.trace, &client.parent), (TRACE, &server.id));
    assert_eq!(came(&engine), (TRACE.to_owned(), client.id.clone(), "01".to_owned()));
    let state = engine.seen().pop().and_then(|seen| seen.header("tracestate").map(str::to_owned));
    assert_eq!(state.as_deref(), Some("a=1,b=2"), "it is passed on as it came");
    assert_eq!((&*server.name, server.failed), ("POST all", false));
    for (key, value) in [
        ("http.request.method", "POST"),
        ("http.response.status_code", "200"),
        ("url.path", "/v1/chat/completions"),
        ("outrigger.outcome", "ok"),
        ("outrigger.arm", "stable"),
        ("gen_ai.request.model", "llama-3"),
        ("gen_ai.usage.output_tokens", "4"),
    ] {
        assert_eq!(server.says(key), value, "{key} in {server:#?}");
    }
    assert_eq!(client.says("server.port"), engine.addr.port().to_string());
    assert!(client.events.iter().any(|(name, _)| name == "first byte"), "{client:#?}");
    for span in &spans {
        assert!(server.start <= span.start && span.end <= server.end, "{span:#?} in {server:#?}");
    }
    let connect = named(&spans, "INTERNAL")[0];
    assert_eq!((&*connect.name, &connect.parent), ("connect", &client.id));
}

#[tokio::test]
async fn the_collector_is_told_who_sends() {
    let (engine, collector) = (sim("a"), Collector::start().await);
    let more = "service_name: edge, attributes: { region: north }, \
                headers: { x-key: 'env:TRACE_KEY', x-plain: yes }";
    let config = traced(&one_backend(&[&engine], "", ""), &collector, more).replace("yes", "'yes'");
    let launch = Launch::new(&config).env("TRACE_KEY", "sekret");
    let launch = launch.env("OTEL_RESOURCE_ATTRIBUTES", "region=south,zone=z1");
    let proxy = launch.start().await;
    chat().send(proxy.address()).await;
    collector.await_spans(2).await;
    let resource = collector.resource();
    let said = |key: &str| resource.get(key).map(String::as_str);
    assert_eq!((said("service.name"), said("region")), (Some("edge"), Some("north")));
    assert_eq!(said("zone"), Some("z1"), "what the environment says beside");
    assert_eq!(collector.header("x-key").as_deref(), Some("sekret"));
    assert_eq!(collector.header("x-plain").as_deref(), Some("yes"));
    assert_eq!(collector.header("content-type").as_deref(), Some("application/x-protobuf"));
    assert_eq!(collector.header(":path").as_deref(), Some("/v1/traces"));
    let config = proxy.admin_get("/config").await.text();
    assert!(!config.contains("sekret") && config.contains("(hidden)"), "{config}");
}

#[tokio::test]
async fn who_has_begun_the_trace_decides() {
    let (engine, collector) = (sim("a"), Collector::start().await);
    let proxy = Proxy::start(&traced(&one_backend(&[&engine], "", ""), &collector, "")).await;
    let unsampled = parent("00");
    chat().header("traceparent", &unsampled).send(proxy.address()).await;
    let (trace, span, flags) = came(&engine);
    assert_eq!(format!("00-{trace}-{span}-{flags}"), unsampled, "passed on as it came");
    // One without a parent, to have something to wait for: it came after.
    chat().send(proxy.address()).await;
    let spans = collector.await_spans(2).await;
    assert!(spans.iter().all(|span| span.trace != TRACE), "{spans:#?}");
    let server = named(&spans, "SERVER")[0];
    assert_eq!((&*server.parent, &server.trace), ("", &came(&engine).0), "a trace of its own");
    assert_eq!(came(&engine).2, "01");
}

#[tokio::test]
async fn where_none_is_sampled_only_a_parent_is() {
    let (engine, collector) = (sim("a"), Collector::start().await);
    let config = traced(&one_backend(&[&engine], "", ""), &collector, "").replace("100%", "0%");
    let proxy = Proxy::start(&config).await;
    for _ in 0..5 {
        chat().send(proxy.address()).await;
        assert_eq!(came(&engine).2, "00");
    }
    chat().header("traceparent", &parent("01")).send(proxy.address()).await;
    proxy.signal(Signal::SIGTERM);
    proxy.wait_exit(Duration::from_secs(10)).await;
    let spans = collector.spans();
    assert_eq!(named(&spans, "SERVER").len(), 1, "{spans:#?}");
    assert!(spans.iter().all(|span| span.trace == TRACE), "{spans:#?}");
}

#[tokio::test]
async fn a_retry_is_another_span() {
    let (a, b, collector) = (sim("a"), sim("b"), Collector::start().await);
    let config = one_backend(&[&a, &b], IN_TURN, "");
    let proxy = Proxy::start(&traced(&config, &collector, "")).await;
    let answer = chat().fault("reset;at=a").send(proxy.address()).await;
    assert_eq!((answer.status, answer.by()), (200, "b"));
    let spans = collector.await_spans(3).await;
    let (server, attempts) = (named(&spans, "SERVER")[0], named(&spans, "CLIENT"));
    let [first, second] = attempts[..] else { panic!("two attempts: {spans:#?}") };
    assert_eq!((&first.parent, &second.parent), (&server.id, &server.id));
    assert_eq!((&came(&a).1, &came(&b).1), (&first.id, &second.id), "each was sent its own");
    assert_eq!((first.failed, first.says("error.type")), (true, "upstream_reset"));
    assert_eq!((second.failed, server.failed), (false, false));
    assert_eq!(second.says("outrigger.retry_reason"), "reset");
    assert_eq!(
        (first.says("http.request.resend_count"), second.says("http.request.resend_count")),
        ("", "1")
    );
    assert!(first.end <= second.start, "{first:#?} {second:#?}");
}

#[tokio::test]
async fn a_plea_is_told_with_its_status() {
    let (a, b, collector) = (sim("a"), sim("b"), Collector::start().await);
    let config = one_backend(&[&a, &b], IN_TURN, "");
    let proxy = Proxy::start(&traced(&config, &collector, "")).await;
    assert_eq!(chat().fault("status=503;at=a").send(proxy.address()).await.by(), "b");
    let spans = collector.await_spans(3).await;
    let first = named(&spans, "CLIENT")[0];
    assert_eq!((first.failed, first.says("error.type")), (true, "503"), "{first:#?}");
    assert_eq!(named(&spans, "CLIENT")[1].says("outrigger.retry_reason"), "overloaded");
}

#[tokio::test]
async fn both_runners_of_a_race_are_told() {
    let (a, b, collector) = (sim("a"), sim("b"), Collector::start().await);
    let route = "hedge: { after: 50ms, budget: 100% }, retry: { budget: { percent: 100, min_per_second: 1000 } }";
    let config = one_backend(&[&a, &b], IN_TURN, route);
    let proxy = Proxy::start(&traced(&config, &collector, "")).await;
    assert_eq!(chat().fault("stall_first_byte;at=a").send(proxy.address()).await.by(), "b");
    let spans = collector.await_spans(3).await;
    let attempts = named(&spans, "CLIENT");
    let [first, rival] = attempts[..] else { panic!("two attempts: {spans:#?}") };
    assert_eq!((&came(&a).1, &came(&b).1), (&first.id, &rival.id), "each was sent its own");
    assert_eq!((first.says("outrigger.outcome"), first.failed), ("lost", false));
    assert_eq!((rival.says("outrigger.outcome"), rival.says("outrigger.hedge")), ("ok", "true"));
    assert!(rival.start < first.end, "both at once");
    assert!(rival.start - first.start >= 45_000_000, "{spans:#?}");
}

#[tokio::test]
async fn what_is_refused_here_has_a_span_without_attempts() {
    let (engine, collector) = (sim("a"), Collector::start().await);
    let config = one_backend(&[&engine], "", "match: { path: /v1/* }");
    let proxy = Proxy::start(&traced(&config, &collector, "")).await;
    assert_eq!(Call::get("/elsewhere").send(proxy.address()).await.status, 404);
    engine.refuse().await;
    let answer = chat().send(proxy.address()).await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    let spans = collector.await_spans(3).await;
    let servers = named(&spans, "SERVER");
    assert_eq!((&*servers[0].name, servers[0].failed), ("GET", false), "{spans:#?}");
    assert_eq!(servers[0].says("outrigger.outcome"), "no_route");
    assert_eq!((servers[1].failed, servers[1].says("error.type")), (true, "connect_failed"));
    assert_eq!(servers[1].says("http.route"), "/v1/*");
    let attempt = named(&spans, "CLIENT")[0];
    assert_eq!((&attempt.parent, attempt.says("error.type")), (&servers[1].id, "connect_failed"));
}

#[tokio::test]
async fn time_in_a_queue_is_a_span() {
    let (engine, collector) = (sim("a"), Collector::start().await);
    let config = one_backend(&[&engine], "limit: 1, queue: { wait: 20s, target: 20s }", "");
    let proxy = Proxy::start(&traced(&config, &collector, "")).await;
    let held = tokio::spawn(chat().fault("stall_first_byte").send(proxy.address()));
    engine.reached(|state| state.in_flight == 1).await;
    let waiting = tokio::spawn(Call::get("/echo").send(proxy.address()));
    proxy.await_metrics(|metrics| metrics.get("outrigger_admission_waiting", &[]) == 1.0).await;
    held.abort();
    assert_eq!(waiting.await.expect("it is not given up").status, 200);
    let spans = collector.await_spans(5).await;
    let queue = spans.iter().find(|span| span.name == "queue").expect("it had to wait");
    let server = spans.iter().find(|span| span.id == queue.parent).expect("whose wait it was");
    assert_eq!((&*server.name, queue.says("outrigger.queue.scope")), ("GET all", "backend"));
    let attempt = spans.iter().find(|span| span.kind == "CLIENT" && span.parent == server.id);
    assert!(queue.end <= attempt.expect("it was sent").start);
    // The one that its client gave up ended with that, and is nobody's fault.
    let left = spans.iter().find(|span| span.says("outrigger.outcome") == "client_gone");
    assert_eq!(left.map(|span| span.failed), Some(false), "{spans:#?}");
}

#[tokio::test]
async fn an_answer_from_store_is_an_event() {
    let (engine, collector) = (sim("a"), Collector::start().await);
    let config = one_backend(&[&engine], "", "answers: { prefer: true, ttl: 5m }");
    let proxy = Proxy::start(&traced(&config, &collector, "")).await;
    for _ in 0..2 {
        assert_eq!(chat().field("temperature", 0).send(proxy.address()).await.status, 200);
    }
    let spans = collector.await_spans(4).await;
    let servers = named(&spans, "SERVER");
    let (first, second) = (servers[0], servers[1]);
    assert!(first.events.is_empty(), "{first:#?}");
    assert_eq!(second.events[0].0, "answered from store");
    assert!(spans.iter().all(|span| span.parent != second.id), "nobody was asked: {spans:#?}");
}

#[tokio::test]
async fn the_call_that_several_share_is_part_of_the_first_ones_trace() {
    let (engine, collector) = (sim("a"), Collector::start().await);
    let config = one_backend(&[&engine], "", "answers: { coalesce: true }");
    let proxy = Proxy::start(&traced(&config, &collector, "")).await;
    assert_eq!(chat().field("temperature", 0).send(proxy.address()).await.status, 200);
    let spans = collector.await_spans(3).await;
    let (server, attempt) = (named(&spans, "SERVER")[0], named(&spans, "CLIENT")[0]);
    assert_eq!((&attempt.parent, &attempt.trace), (&server.id, &server.trace));
    assert_eq!(came(&engine).1, attempt.id);
    assert_eq!(server.says("outrigger.shared_call"), "true");
}

#[tokio::test]
async fn the_access_log_names_the_trace() {
    let (engine, collector) = (sim("a"), Collector::start().await);
    let config = format!("{}access_log: {{ format: json }}\n", one_backend(&[&engine], "", ""));
    let proxy = Proxy::start(&traced(&config, &collector, "")).await;
    chat().send(proxy.address()).await;
    let line = proxy.await_access(1).await.remove(0);
    let spans = collector.await_spans(2).await;
    assert_eq!(line["trace_id"], *spans[0].trace);
}
