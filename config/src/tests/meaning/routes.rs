//! Routes: what happens beside a request and to its body.

use std::time::Duration;

use serde_json::json;

use super::read;
use crate::EXAMPLE;
use crate::validated::{
    Answers, Batch, Coding, Compress, Decompress, FallbackAnswers, FallbackReason, Guard, Hedge,
    HedgeAfter, Mirror, Replay, Route, Steps,
};

/// The route with these settings, which may split among `a`, `b` and `c` or mirror to `c`.
fn route(settings: &str) -> Route {
    let config = read(&format!(
        "
backends: {{ a: {{ endpoints: ['a:1'] }}, b: {{ endpoints: ['b:1'] }}, c: {{ endpoints: ['c:1'] }} }}
routes:
  - {{ match: {{ path: /x }}, {settings} }}
  - {{ split: {{ a: 1, b: 1, c: 1 }} }}
"
    ));
    config.routes[0].clone()
}

#[test]
fn a_guard_compares_with_the_other_arm() {
    let guard = route("split: { b: 90, a: 10 }, guard: { arm: a }").guard.expect("given");
    let expected = Guard {
        arm: 1,
        arm_name: "a".to_owned(),
        against: 0,
        against_name: "b".to_owned(),
        errors: 0.01,
        first_byte: Some(0.1),
        gap: None,
        false_alarm: 0.01,
        steps: None,
    };
    assert_eq!(guard, expected);
    let given = "split: { c: 1, b: 1, a: 0 },
        guard: { arm: a, against: c, errors: 0, first_byte: off, gap: 1000%, false_alarm: 0.5%,
                 steps: { weights: [5, 100], every: 1h } }";
    let (weights, every) = (vec![5, 100], Duration::from_secs(3600));
    let expected = Guard {
        arm: 2,
        against_name: "c".to_owned(),
        errors: 0.0,
        first_byte: None,
        gap: Some(10.0),
        false_alarm: 0.005,
        steps: Some(Steps { weights, every, requests: 500 }),
        ..expected
    };
    assert_eq!(route(given).guard, Some(expected));
}

#[test]
fn one_line_is_enough_to_fall_back_on_stored_answers() {
    let fallback = FallbackAnswers {
        stale_for: Duration::from_secs(3600),
        when: FallbackReason::ALL.into_iter().collect(),
    };
    let expected = Answers {
        prefer: false,
        ttl: Duration::from_secs(300),
        stale_while_revalidate: None,
        fallback: Some(fallback.clone()),
        deterministic_only: true,
        across_arms: false,
        vary: vec!["accept".to_owned()],
        max_request: 256 << 10,
        max_answer: 1 << 20,
        replay: Replay::AtOnce,
        coalesce: false,
    };
    let short = route("backend: a, fallback: { answers: { stale_for: 1h } }");
    assert_eq!(short.answers, Some(expected.clone()));
    assert_eq!(short.fallback.answers, Some(fallback));
    let both = "backend: a, fallback: { answers: { stale_for: 1h } },
        answers: { prefer: true, ttl: 0s, vary: [X-B, accept], replay: paced }";
    let vary = vec!["accept".to_owned(), "x-b".to_owned()];
    let (ttl, replay) = (Duration::ZERO, Replay::Paced);
    let expected = Answers { prefer: true, ttl, vary, replay, ..expected };
    assert_eq!(route(both).answers, Some(expected));
    let alone = route("backend: a, answers: {}").answers.expect("given");
    assert_eq!((alone.fallback, alone.prefer), (None, false));
    for none in ["", ", answers: off", ", fallback: {}", ", fallback: { answers: off }"] {
        assert_eq!(route(&format!("backend: a{none}")).answers, None, "{none}");
    }
}

#[test]
fn a_mirror_knows_its_backend() {
    let expected = Mirror {
        backend: 2,
        name: "c".to_owned(),
        share: 1.0,
        max_in_flight: 8,
        body: 1 << 20,
        timeout: Duration::from_secs(60),
    };
    let given = route("backend: a, mirror: { backend: c }").mirror;
    assert_eq!(given, Some(expected.clone()));
    let given = route(
        "backend: a, mirror: { backend: b, share: 0.5, max_in_flight: 2, body: 0B, timeout: 5s }",
    );
    let timeout = Duration::from_secs(5);
    let name = "b".to_owned();
    let other = Mirror { backend: 1, name, share: 0.005, max_in_flight: 2, body: 0, timeout };
    assert_eq!(given.mirror, Some(other));
}

#[test]
fn a_mirror_uses_its_backend_but_not_twice() {
    let config = read(
        "
backends: { a: { endpoints: ['a:1'] }, b: { endpoints: ['b:1'] }, c: { endpoints: ['c:1'] } }
routes:
  - { match: { path: /x }, backend: a, mirror: { backend: b } }
  - { match: { path: /y }, split: { a: 1, c: 1 }, mirror: { backend: c } }
  - { match: { path: /z }, respond: {}, mirror: { backend: c }, batch: {}, compress: {} }
",
    );
    let warnings: Vec<_> = config.warnings.iter().map(ToString::to_string).collect();
    let unused = "has no effect: the route does not ask a backend";
    assert_eq!(
        warnings,
        [
            "x.yaml:5:61: routes[1].mirror.backend: is an arm of the route: it gets requests twice"
                .to_owned(),
            format!("x.yaml:6:41: routes[2].mirror: {unused}"),
            format!("x.yaml:6:65: routes[2].batch: {unused}"),
            format!("x.yaml:6:76: routes[2].compress: {unused}"),
        ]
    );
}

#[test]
fn a_far_zone_that_is_nearer_is_odd() {
    let config = read(
        "
backends: { a: { endpoints: ['a:1'], locality: { hop: 5 } } }
routes: [{ backend: a }]
",
    );
    let warnings: Vec<_> = config.warnings.iter().map(ToString::to_string).collect();
    let said = "x.yaml:2:38: backends.a.locality: `far` (4) is less than `hop` (5): \
                another zone is preferred";
    assert_eq!(warnings, [said]);
}

#[test]
fn what_is_done_to_bodies_has_defaults() {
    let on = route("backend: a, compress: {}, decompress: {}, batch: {}");
    let algorithms = vec![Coding::Zstd, Coding::Br, Coding::Gzip];
    assert_eq!(on.compress, Some(Compress { algorithms, min: 1024, events: false }));
    assert_eq!(on.decompress, Some(Decompress { max: 64 << 20, ratio: 100 }));
    let window = Duration::from_millis(5);
    assert_eq!(on.batch, Some(Batch { window, requests: 32, bytes: 1 << 20 }));
    let given = route(
        "backend: a, compress: { algorithms: [gzip], min: 0B, events: true },
         decompress: { max: 1MB, ratio: 2 }, batch: { window: 100us, requests: 2, bytes: 1KiB }",
    );
    let algorithms = vec![Coding::Gzip];
    assert_eq!(given.compress, Some(Compress { algorithms, min: 0, events: true }));
    assert_eq!(given.decompress, Some(Decompress { max: 1_000_000, ratio: 2 }));
    let window = Duration::from_micros(100);
    assert_eq!(given.batch, Some(Batch { window, requests: 2, bytes: 1024 }));
    let off = route("backend: a, compress: off, decompress: off, batch: off");
    assert_eq!((&off.compress, &off.decompress, &off.batch), (&None, &None, &None));
}

#[test]
fn a_route_is_printed_as_it_is_written() {
    let printed = serde_json::to_value(read(EXAMPLE)).expect("JSON");
    let chat = &printed["routes"][0];
    let guard = json!({
        "arm": "canary",
        "against": "stable",
        "errors": "1%",
        "first_byte": "10%",
        "gap": "25%",
        "false_alarm": "1%",
        "steps": { "weights": [1, 5, 25, 50, 100], "every": "10m", "requests": 500 },
    });
    assert_eq!(chat["guard"], guard);
    let mirror = json!({
        "backend": "shadow",
        "share": "5%",
        "max_in_flight": 8,
        "body": "1MiB",
        "timeout": "1m",
    });
    assert_eq!(chat["mirror"], mirror);
    assert_eq!((&chat["batch"], &chat["compress"]), (&json!("off"), &json!("off")));
    let named = |name: &str| {
        let routes = printed["routes"].as_array().expect("a list");
        routes.iter().find(|route| route["name"] == name).expect(name).clone()
    };
    assert_eq!(named("embeddings")["batch"]["window"], "5ms");
    assert_eq!(named("embeddings")["guard"], "off");
    assert_eq!(named("files")["compress"]["algorithms"], json!(["zstd", "br", "gzip"]));
    assert_eq!(named("files")["decompress"], json!({ "max": "64MiB", "ratio": 100 }));
}

#[test]
fn a_hedge_is_due_after_a_percentile_or_a_time() {
    assert_eq!(route("backend: a").hedge, None);
    assert_eq!(route("backend: a, hedge: off").hedge, None);
    let usual = Hedge { after: HedgeAfter::Percentile(0.95), budget: 0.05, max: 1 };
    assert_eq!(route("backend: a, hedge: {}").hedge, Some(usual.clone()));
    for (written, after) in [
        ("p50", HedgeAfter::Percentile(0.5)),
        ("p99.9", HedgeAfter::Percentile(0.999)),
        ("300ms", HedgeAfter::Fixed(Duration::from_millis(300))),
    ] {
        let given =
            route(&format!("backend: a, hedge: {{ after: {written}, budget: 0.5%, max: 2 }}"));
        let given = given.hedge.expect("given");
        assert_eq!(given, Hedge { after, budget: 0.005, max: 2 });
        assert_eq!(given.after.to_string(), written);
    }
    let printed = serde_json::to_value(route("backend: a, hedge: {}")).expect("JSON");
    assert_eq!(printed["hedge"], json!({ "after": "p95", "budget": "5%", "max": 1 }));
}

#[test]
fn a_hedge_that_the_deadline_forestalls_is_odd() {
    let config = read(
        "
backends: { a: { endpoints: ['a:1'] } }
routes: [{ backend: a, deadline: { first_byte: 2s }, hedge: { after: 2s } }]
",
    );
    let said: Vec<_> = config.warnings.iter().map(|warning| warning.message.as_str()).collect();
    assert_eq!(said, ["has no effect: the first-byte deadline (2s) is not later"]);
}
