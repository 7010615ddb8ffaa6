use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use opentelemetry::{TraceId, Value};
use outrigger_config::validated::RetryReason;
use outrigger_probes::Write;
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::*;
use crate::{
    probes::{GpuWait, Method, Timeline},
    telemetry::{
        access_log::Kept,
        metrics::Scope,
        trace::{
            export::Outbox,
            record::{About, Anchor, Trace},
        },
    },
};

/// A request that took a second and ends now.
fn finished(record: &Record<'_>) -> Finished {
    let outbox = Arc::new(Outbox::new(16, Arc::default()));
    let ids = (SpanId::from(1), SpanId::from(9));
    let trace = Trace::new(outbox, TraceId::from(7), ids, Some("a=1,b=2".into()));
    let instant = Instant::now() + Duration::from_secs(60);
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let about = About {
        record: Kept::of(record),
        start: instant - Duration::from_secs(1),
        first_byte: None,
        pattern: "/v1/*".to_owned(),
        path: "/v1/chat/completions".to_owned(),
        shares_call: false,
    };
    let anchor = Anchor { instant, monotonic: 5_000_000_000, time };
    Finished { trace, about, anchor, timeline: None, writes: Vec::new() }
}

/// So many milliseconds before its end.
fn ago(finished: &Finished, millis: u64) -> Instant {
    finished.anchor.instant - Duration::from_millis(millis)
}

fn attempt(span: u64, why: Why, from: Instant) -> Attempt {
    Attempt {
        span: SpanId::from(span),
        address: ([10, 0, 0, 7], 8000).into(),
        why,
        from,
        connected: None,
        stale: None,
        status: None,
        end: None,
    }
}

fn chat() -> Record<'static> {
    Record {
        method: "POST",
        host: b"api.example.com:8443",
        path: b"/v1/chat/completions?key=secret",
        route: "chat",
        arm: "stable",
        model: "llama-3",
        protocol: "HTTP/1.1",
        status: 200,
        attempts: 1,
        tokens_in: Some(12),
        tokens_out: Some(34),
        ..Record::default()
    }
}

fn made(finished: &Finished) -> Vec<SpanData> {
    spans(finished, &InstrumentationScope::default(), &mut SmallRng::seed_from_u64(1))
}

fn said(span: &SpanData) -> HashMap<&str, String> {
    span.attributes.iter().map(|pair| (pair.key.as_str(), pair.value.to_string())).collect()
}

#[test]
fn a_request_has_a_span_in_that_of_its_client() {
    let spans = made(&finished(&chat()));
    let [span] = &*spans else { panic!("one span: {spans:?}") };
    assert_eq!((&*span.name, &span.span_kind), ("POST chat", &SpanKind::Server));
    assert_eq!(span.span_context.trace_id(), TraceId::from(7));
    assert_eq!((span.span_context.span_id(), span.parent_span_id), (1.into(), 9.into()));
    assert!(span.parent_span_is_remote && span.span_context.is_sampled());
    assert_eq!(span.span_context.trace_state().header(), "a=1,b=2");
    assert_eq!(span.end_time.duration_since(span.start_time).ok(), Some(Duration::from_secs(1)));
    let said = said(span);
    for (key, value) in [
        ("http.request.method", "POST"),
        ("http.route", "/v1/*"),
        ("url.path", "/v1/chat/completions"),
        ("server.address", "api.example.com"),
        ("server.port", "8443"),
        ("http.response.status_code", "200"),
        ("network.protocol.version", "1.1"),
        ("outrigger.outcome", "ok"),
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.request.model", "llama-3"),
        ("gen_ai.usage.input_tokens", "12"),
        ("gen_ai.usage.output_tokens", "34"),
    ] {
        assert_eq!(said.get(key).map(String::as_str), Some(value), "{key} in {said:?}");
    }
    assert!(!said.values().any(|value| value.contains("secret")), "{said:?}");
    assert!(!said.contains_key("error.type") && !said.contains_key("client.address"));
}

#[test]
fn tokens_that_were_only_counted_are_not_told() {
    let spans = made(&finished(&Record { tokens_in: None, ..chat() }));
    assert!(!said(&spans[0]).contains_key("gen_ai.usage.output_tokens"));
}

#[test]
fn what_a_client_invents_names_no_span() {
    let record = Record { method: "BREW", route: "", ..chat() };
    let spans = made(&finished(&record));
    assert_eq!(spans[0].name, "HTTP");
    let said = said(&spans[0]);
    assert_eq!(
        (&*said["http.request.method"], &*said["http.request.method_original"]),
        ("_OTHER", "BREW")
    );
}

#[test]
fn attempts_waits_and_connections_are_inside() {
    let mut finished = finished(&Record { attempts: 2, ..chat() });
    let at = |millis| ago(&finished, millis);
    let wait = Wait { scope: Scope::Route, name: "chat".into(), from: at(900), to: at(800) };
    let mut first = attempt(2, Why::First, at(790));
    first.connected = Some((at(780), at(770)));
    first.status = Some(503);
    first.end = Some((at(500), Ending::Outcome(Outcome::ServerError)));
    let mut second = attempt(3, Why::Retry(RetryReason::Overloaded), at(400));
    second.status = Some(200);
    second.stale = Some(at(390));
    second.end = Some((at(1), Ending::Outcome(Outcome::Ok)));
    finished.about.first_byte = Some(at(300));
    finished.trace.waits.push(wait);
    finished.trace.attempts = vec![first, second];
    finished.trace.current = 1;
    let spans = made(&finished);
    let names: Vec<&str> = spans.iter().map(|span| &*span.name).collect();
    assert_eq!(names, ["POST chat", "queue", "POST", "connect", "POST"]);
    let parents: Vec<SpanId> = spans.iter().map(|span| span.parent_span_id).collect();
    assert_eq!(parents, [9, 1, 1, 2, 1].map(SpanId::from));
    let (failed, good) = (said(&spans[2]), said(&spans[4]));
    assert_eq!((&*failed["error.type"], &spans[2].status), ("503", &Status::error("")));
    assert_eq!(
        (&*good["http.request.resend_count"], &*good["outrigger.retry_reason"]),
        ("1", "overloaded")
    );
    assert_eq!(&*good["url.full"], "http://10.0.0.7:8000/v1/chat/completions");
    assert!(!good.contains_key("error.type") && spans[4].status == Status::Unset);
    let events: Vec<&str> = spans[4].events.iter().map(|event| &*event.name).collect();
    assert_eq!(events, ["stale connection", "first byte"]);
    assert!(spans[2].events.is_empty(), "the first byte was the other one's");
}

#[test]
fn what_the_kernel_saw_is_inside_of_the_attempt_that_was_answered() {
    let mut finished = finished(&chat());
    finished.trace.attempts = vec![
        attempt(2, Why::First, ago(&finished, 900)),
        attempt(3, Why::Hedge, ago(&finished, 600)),
    ];
    finished.trace.attempts[0].end = Some((ago(&finished, 500), Ending::Lost));
    finished.trace.current = 1;
    let before = |millis: u64| Some(finished.anchor.monotonic - millis * 1_000_000);
    finished.timeline = Some(Timeline {
        sent: before(590),
        arrived: before(580),
        picked: before(480),
        first_write: before(200),
        last_write: before(10),
        writes: 5,
        process: 4711,
        longest_gap: Duration::from_millis(40),
        gpu: Some(GpuWait { took: Duration::from_millis(150), method: Method::Api, among: 3 }),
        ..Timeline::default()
    });
    let write = |millis: u64, bytes| {
        let at = finished.anchor.monotonic - millis * 1_000_000;
        Write { at, bytes, ..Write::default() }
    };
    // The last one is seen a little after the proxy had all of it.
    finished.writes = vec![write(150, 30), write(9, 40)];
    let spans = made(&finished);
    let steps: Vec<_> = spans.iter().filter(|span| span.parent_span_id == 3.into()).collect();
    let names: Vec<&str> = steps.iter().map(|span| &*span.name).collect();
    assert_eq!(names, ["wire", "socket wait", "application", "answer"]);
    let application = said(steps[2]);
    assert_eq!((&*application["app.pid"], &*application["app.writes"]), ("4711", "5"));
    assert_eq!(&*application["app.longest_gap_ms"], "40");
    assert!(!said(steps[1]).contains_key("app.pid"), "nobody works in it");
    let told = |event: &Event| (event.timestamp, event.attributes[0].value.to_string());
    let writes: Vec<_> = steps[3].events.iter().map(told).collect();
    let at = |millis| finished.anchor.time - Duration::from_millis(millis);
    assert_eq!(writes, [(at(150), "30".to_owned()), (at(10), "40".to_owned())]);
    assert!(steps[..3].iter().all(|step| step.events.is_empty()));
    let (lost, won) = (said(&spans[1]), said(&spans[2]));
    assert_eq!((&*lost["outrigger.outcome"], lost.get("gpu.wait_ms")), ("lost", None));
    assert_eq!((&*won["gpu.wait_ms"], &*won["gpu.wait_method"]), ("150", "api"));
    assert_eq!((&*won["gpu.wait_attribution"], &*won["gpu.wait_among"]), ("shared", "3"));
    assert_eq!(won["outrigger.hedge"], "true");
}

#[test]
fn errors_are_those_of_the_conventions() {
    let request = |outcome, status| {
        failure_of_request(&Record { outcome, status, ..Record::default() }).map(Cow::into_owned)
    };
    let own = |name: &str| Some(name.to_owned());
    assert_eq!(request(Outcome::Ok, 200), None);
    assert_eq!(request(Outcome::ClientError, 404), None, "the client's, not the server's");
    assert_eq!(request(Outcome::ServerError, 503), own("503"));
    assert_eq!(request(Outcome::RateLimited, 429), None);
    assert_eq!(request(Outcome::QueueFull, 503), own("queue_full"));
    assert_eq!(request(Outcome::GapTimeout, 200), own("gap_timeout"), "it had begun well");
    assert_eq!(request(Outcome::ClientGone, 499), None);
    assert_eq!(request(Outcome::Fallback, 200), None);
    let attempt = |ending, status| failure_of_attempt(ending, status).map(Cow::into_owned);
    assert_eq!(attempt(Ending::Outcome(Outcome::Ok), Some(200)), None);
    assert_eq!(attempt(Ending::Outcome(Outcome::ClientError), Some(404)), own("404"));
    assert_eq!(attempt(Ending::Outcome(Outcome::ConnectFailed), None), own("connect_failed"));
    assert_eq!(attempt(Ending::Outcome(Outcome::UpstreamReset), Some(200)), own("upstream_reset"));
    assert_eq!(attempt(Ending::Outcome(Outcome::ClientGone), Some(200)), None);
    assert_eq!(attempt(Ending::Lost, None), None);
}

#[test]
fn long_values_are_cut_between_characters() {
    let agent = format!("a{}", "é".repeat(LONGEST));
    let spans = made(&finished(&Record { user_agent: agent.as_bytes(), ..chat() }));
    let said = said(&spans[0]);
    assert_eq!(said["user_agent.original"].len(), LONGEST - 1);
    assert!(agent.starts_with(&said["user_agent.original"]));
}

/// A request to which anything has happened.
fn any(seed: u64) -> Finished {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut finished = finished(&chat());
    let instant = finished.anchor.instant;
    let at =
        |rng: &mut SmallRng, most: u64| instant - Duration::from_millis(rng.random_range(0..=most));
    for _ in 0..rng.random_range(0..3) {
        let from = rng.random_range(500..=1000);
        let wait = Wait {
            scope: Scope::Backend,
            name: "a".into(),
            from: ago(&finished, from),
            to: at(&mut rng, from),
        };
        finished.trace.waits.push(wait);
    }
    for number in 0..rng.random_range(0..4) {
        let from = rng.random_range(10..=1000);
        let mut attempt = attempt(number + 2, Why::Hedge, ago(&finished, from));
        attempt.end = rng.random_bool(0.7).then(|| (at(&mut rng, from), Ending::Lost));
        attempt.connected = rng.random_bool(0.5).then_some((attempt.from, attempt.from));
        finished.trace.attempts.push(attempt);
    }
    finished.trace.current = rng.random_range(0..4);
    finished.trace.is_part = rng.random_bool(0.1);
    let mut time = || rng.random_bool(0.8).then(|| rng.random_range(0..6_000_000_000));
    finished.timeline = Some(Timeline {
        sent: time(),
        arrived: time(),
        picked: time(),
        first_write: time(),
        last_write: time(),
        ..Timeline::default()
    });
    let mut write = || Write { at: rng.random_range(0..6_000_000_000), ..Write::default() };
    finished.writes = (0..3).map(|_| write()).collect();
    finished
}

#[test]
fn whatever_happens_spans_nest_and_are_as_many_as_is_said() {
    for seed in 0..3000 {
        let finished = any(seed);
        let spans = made(&finished);
        assert_eq!(spans.len(), count(&finished), "seed {seed}: {spans:#?}");
        let by_id: HashMap<SpanId, &SpanData> =
            spans.iter().map(|span| (span.span_context.span_id(), span)).collect();
        assert_eq!(by_id.len(), spans.len(), "seed {seed}: ids of their own");
        for span in &spans {
            assert!(span.start_time <= span.end_time, "seed {seed}: {span:#?}");
            let is_within = |at| span.start_time <= at && at <= span.end_time;
            assert!(span.events.iter().all(|event| is_within(event.timestamp)), "seed {seed}");
            if span.span_kind == SpanKind::Server {
                continue;
            }
            let Some(parent) = by_id.get(&span.parent_span_id) else {
                assert!(
                    finished.trace.is_part && span.parent_span_id == finished.trace.span,
                    "seed {seed}"
                );
                continue;
            };
            let within = parent.start_time <= span.start_time && span.end_time <= parent.end_time;
            assert!(within, "seed {seed}: {span:#?} in {parent:#?}");
        }
    }
}

#[test]
fn numbers_stay_numbers() {
    let spans = made(&finished(&chat()));
    let status =
        spans[0].attributes.iter().find(|pair| pair.key.as_str() == "http.response.status_code");
    assert_eq!(status.map(|pair| &pair.value), Some(&Value::I64(200)));
}
