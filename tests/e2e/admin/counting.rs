//! Counters move by exactly what was sent.

use outrigger_tests::harness::{Call, Client, Metrics, Protocol, Proxy, Raw};
use outrigger_tests::sim::{Fault, Options, Rule, Simulator};

use super::fast;

type Labels<'a> = &'a [(&'a str, &'a str)];

fn chat(simulator: &Simulator) -> String {
    format!(
        "backends: {{ stable: {{ endpoints: ['{}'] }} }}\n\
         routes:\n  - {{ name: chat, match: {{ path: /v1/* }}, backend: stable }}\n\
         \x20 - {{ name: plain, match: {{ path: [/echo, '/status/*', '/bytes/*', '/events/*'] }}, backend: stable, retry: off }}\n\
         \x20 - {{ name: pong, match: {{ path: /ping }}, respond: {{ body: pong }} }}\n\
         \x20 - {{ name: moved, match: {{ path: /old }}, redirect: {{ to: 'https://example.com/new' }} }}\n",
        simulator.addr
    )
}

/// The metrics once this many requests have ended.
async fn ended(proxy: &Proxy, requests: f64) -> Metrics {
    proxy.await_metrics(|m| m.get("outrigger_requests_total", &[]) >= requests).await
}

fn requests(metrics: &Metrics, route: &str, arm: &str, outcome: &str, code: &str) -> f64 {
    let labels = [("route", route), ("arm", arm), ("outcome", outcome), ("code", code)];
    metrics.get("outrigger_requests_total", &labels)
}

#[tokio::test]
async fn requests_are_counted_by_route_arm_outcome_and_code() {
    let simulator = fast();
    let proxy = Proxy::start(&chat(&simulator)).await;
    let sent = [
        ("/echo", 3, 200, "plain", "stable", "ok"),
        ("/status/404", 2, 404, "plain", "stable", "client_error"),
        ("/status/500", 4, 500, "plain", "stable", "server_error"),
        ("/ping", 5, 200, "pong", "-", "local"),
        ("/old", 1, 308, "moved", "-", "local"),
        ("/nowhere", 2, 404, "-", "-", "no_route"),
    ];
    for (path, times, status, ..) in sent {
        for _ in 0..times {
            assert_eq!(Call::get(path).send(proxy.address()).await.status, status, "{path}");
        }
    }
    let metrics = ended(&proxy, 17.0).await;
    for (path, times, status, route, arm, outcome) in sent {
        let count = requests(&metrics, route, arm, outcome, &status.to_string());
        assert_eq!(count, f64::from(times), "{path}\n{}", metrics.text);
    }
    assert_eq!(metrics.get("outrigger_requests_total", &[]), 17.0, "and nothing else");
    let durations: Labels<'_> = &[("route", "plain"), ("arm", "stable")];
    assert_eq!(metrics.get("outrigger_request_duration_seconds_count", durations), 9.0);
    assert_eq!(metrics.get("outrigger_first_byte_seconds_count", durations), 9.0);
}

#[tokio::test]
async fn broken_requests_are_counted_as_what_they_are() {
    let simulator = fast();
    let proxy = Proxy::start(&chat(&simulator)).await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET /echo HTTP/1.1\r\nhost test\r\n\r\n").await;
    assert_eq!(raw.response().await.status(), 400);
    let answer = Call::get("/echo").fault("reset").send(proxy.address()).await;
    assert_eq!(answer.status, 502);
    let answer = Call::get("/echo").fault("garbage").send(proxy.address()).await;
    assert_eq!(answer.status, 502);
    let metrics = ended(&proxy, 3.0).await;
    assert_eq!(requests(&metrics, "-", "-", "bad_request", "400"), 1.0, "{}", metrics.text);
    assert_eq!(requests(&metrics, "plain", "stable", "upstream_reset", "502"), 1.0);
    assert_eq!(requests(&metrics, "plain", "stable", "upstream_invalid", "502"), 1.0);
}

#[tokio::test]
async fn a_client_that_goes_away_is_counted_as_gone() {
    let simulator = fast();
    let proxy = Proxy::start(&chat(&simulator)).await;
    let mut stream = Call::get("/events/1000?gap=20").open(proxy.address()).await;
    assert!(stream.event().await.is_some());
    drop(stream);
    simulator.aborted().await;
    let metrics = ended(&proxy, 1.0).await;
    let labels = [("route", "plain"), ("arm", "stable"), ("outcome", "client_gone")];
    assert_eq!(metrics.get("outrigger_requests_total", &labels), 1.0, "{}", metrics.text);
    assert_eq!(metrics.get("outrigger_requests_in_flight", &[]), 0.0);
}

#[tokio::test]
async fn tokens_are_taken_from_usage() {
    let simulator = fast();
    let proxy = Proxy::start(&chat(&simulator)).await;
    let mut expected = (0, 0);
    for tokens in [5, 7] {
        let answer = Call::chat("how deep is the lagoon here?")
            .max_tokens(tokens)
            .send(proxy.address())
            .await;
        let usage = &answer.json()["usage"];
        expected.0 += usage["prompt_tokens"].as_u64().expect("usage");
        expected.1 += usage["completion_tokens"].as_u64().expect("usage");
    }
    let metrics = ended(&proxy, 2.0).await;
    assert_eq!(expected.1, 12);
    assert_eq!(tokens(&metrics), (expected.0 as f64, 12.0));
}

#[tokio::test]
async fn tokens_of_a_stream_with_usage_are_taken_from_it() {
    let simulator = fast();
    let proxy = Proxy::start(&chat(&simulator)).await;
    let options = serde_json::json!({ "include_usage": true });
    let call = Call::chat("how deep is the lagoon here?").max_tokens(9).streaming();
    let transcript =
        call.field("stream_options", options).open(proxy.address()).await.events().await;
    assert!(transcript.is_complete());
    let usage = transcript.events.iter().rev().nth(1).expect("before [DONE]").json();
    let prompt = usage["usage"]["prompt_tokens"].as_u64().expect("usage comes last");
    assert_eq!(tokens(&ended(&proxy, 1.0).await), (prompt as f64, 9.0));
}

#[tokio::test]
async fn tokens_of_a_stream_without_usage_are_its_counted_events() {
    let simulator = fast();
    let proxy = Proxy::start(&chat(&simulator)).await;
    let call = Call::chat("how deep is the lagoon here?").max_tokens(11).streaming();
    let transcript = call.open(proxy.address()).await.events().await;
    assert!(transcript.is_complete() && transcript.events.len() > 11);
    let without_done = transcript.events.len() - 1;
    assert_eq!(tokens(&ended(&proxy, 1.0).await), (0.0, without_done as f64));
}

fn tokens(metrics: &Metrics) -> (f64, f64) {
    let of = |direction| {
        let labels = [("route", "chat"), ("arm", "stable"), ("direction", direction)];
        metrics.get("outrigger_tokens_total", &labels)
    };
    (of("in"), of("out"))
}

#[tokio::test]
async fn bytes_are_those_of_bodies() {
    let simulator = fast();
    let proxy = Proxy::start(&chat(&simulator)).await;
    let sent = vec![b'x'; 123_456];
    let echoed = Call::post("/echo").body(sent).send(proxy.address()).await.body.len();
    let whole = Call::get("/bytes/70001").send(proxy.address()).await;
    let chunked = Call::get("/bytes/50003?chunked=1").h2().send(proxy.address()).await;
    assert_eq!((whole.body.len(), chunked.body.len()), (70_001, 50_003));
    let metrics = ended(&proxy, 3.0).await;
    let labels: Labels<'_> = &[("route", "plain"), ("arm", "stable")];
    assert_eq!(metrics.get("outrigger_request_bytes_total", labels), 123_456.0);
    let expected = (echoed + 70_001 + 50_003) as f64;
    assert_eq!(metrics.get("outrigger_response_bytes_total", labels), expected);
}

#[tokio::test]
async fn connections_of_clients_are_counted_by_listener() {
    let simulator = fast();
    let two = "listeners: [{ address: 127.0.0.1:0 }, { address: 127.0.0.1:0 }]\n";
    let proxy = Proxy::start(&format!("{two}{}", chat(&simulator))).await;
    let [first, second] = [proxy.addresses()[0], proxy.addresses()[1]];
    let mut kept = Client::connect(first, Protocol::Http1).await;
    for _ in 0..3 {
        assert_eq!(kept.send(Call::get("/ping")).await.expect("an answer").status, 200);
    }
    for _ in 0..2 {
        Call::get("/ping").send(second).await;
    }
    let (first, second) = (first.to_string(), second.to_string());
    let open = |m: &Metrics, at: &str| m.get("outrigger_connections_open", &[("listener", at)]);
    let metrics = proxy.await_metrics(|m| open(m, &second) == 0.0).await;
    let total = |at: &str| metrics.get("outrigger_connections_total", &[("listener", at)]);
    assert_eq!((total(&first), total(&second)), (1.0, 2.0), "{}", metrics.text);
    assert_eq!(open(&metrics, &first), 1.0);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_counted() {
    let simulator = fast();
    let proxy = Proxy::start(&format!("limits: {{ connections: 2 }}\n{}", chat(&simulator))).await;
    let mut kept = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect(proxy.address(), Protocol::Http1).await;
        assert_eq!(client.send(Call::get("/ping")).await.expect("an answer").status, 200);
        kept.push(client);
    }
    let mut beyond = Raw::connect(proxy.address()).await;
    beyond.closed().await;
    let refused = "outrigger_connections_refused_total";
    proxy.await_metrics(|m| m.get(refused, &[]) == 1.0).await;
    kept.pop();
    proxy.await_metrics(|m| m.get("outrigger_connections_open", &[]) == 1.0).await;
    assert_eq!(Call::get("/ping").send(proxy.address()).await.status, 200);
}

#[tokio::test]
async fn connections_to_endpoints_are_counted_as_opened_reused_or_failed() {
    let simulator = fast();
    let proxy = Proxy::start(&chat(&simulator)).await;
    for _ in 0..4 {
        assert_eq!(Call::get("/echo").send(proxy.address()).await.status, 200);
    }
    simulator.refuse().await;
    simulator.hang_up();
    simulator.reached(|state| state.connections == 0).await;
    assert_eq!(Call::get("/echo").send(proxy.address()).await.status, 502);
    let metrics = ended(&proxy, 5.0).await;
    let of = |result| {
        let labels = [("backend", "stable"), ("result", result)];
        metrics.get("outrigger_upstream_connections_total", &labels)
    };
    assert_eq!((of("opened"), of("reused"), of("timeout")), (1.0, 3.0, 0.0), "{}", metrics.text);
    assert!(of("failed") >= 1.0, "{}", metrics.text);
    assert_eq!(requests(&metrics, "plain", "stable", "connect_failed", "502"), 1.0);
}

#[tokio::test]
async fn retries_are_counted_by_reason_and_denials_too() {
    let (one, two) = (fast(), Simulator::start(Options::named("two").fast()));
    let config = chat(&one)
        .replace(&format!("['{}']", one.addr), &format!("['{}', '{}']", one.addr, two.addr));
    let proxy = Proxy::start(&config).await;
    // Whichever comes first fails, and so does the other: no endpoint is left after two attempts. Resets come first,
    // because one on a connection that had rested says nothing about the endpoint.
    for (fault, status) in [(Fault::Reset, 502), (Fault::Status(503, None), 503)] {
        one.inflict(Rule::always(fault.clone()).times(1));
        two.inflict(Rule::always(fault).times(1));
        let answer = Call::chat("hello").max_tokens(2).send(proxy.address()).await;
        assert_eq!(answer.status, status);
    }
    let metrics = ended(&proxy, 2.0).await;
    let retries =
        |reason| metrics.get("outrigger_retries_total", &[("route", "chat"), ("reason", reason)]);
    assert_eq!((retries("overloaded"), retries("reset")), (1.0, 1.0), "{}", metrics.text);
    let denied = |reason| {
        metrics.get("outrigger_retries_denied_total", &[("route", "chat"), ("reason", reason)])
    };
    assert_eq!(denied("no_endpoint"), 2.0, "{}", metrics.text);
    let attempts = metrics.get("outrigger_endpoint_requests_total", &[("backend", "stable")]);
    assert_eq!(attempts, 4.0, "{}", metrics.text);
}

#[tokio::test]
async fn a_retried_request_is_one_request_that_ended_well() {
    let (one, two) = (fast(), Simulator::start(Options::named("two").fast()));
    let config = chat(&one).replace(
        &format!("['{}']", one.addr),
        &format!("['{}', '{}'], balance: round_robin", one.addr, two.addr),
    );
    let proxy = Proxy::start(&config).await;
    one.fault(Fault::Status(503, None));
    for _ in 0..4 {
        let answer = Call::chat("hello").max_tokens(2).send(proxy.address()).await;
        assert_eq!((answer.status, answer.by()), (200, "two"));
    }
    let metrics = ended(&proxy, 4.0).await;
    assert_eq!(requests(&metrics, "chat", "stable", "ok", "200"), 4.0, "{}", metrics.text);
    let (bad, good) = (one.endpoint(), two.endpoint());
    let attempts = |at: &str| {
        let labels = [("backend", "stable"), ("endpoint", at)];
        metrics.get("outrigger_endpoint_requests_total", &labels)
    };
    assert_eq!(attempts(&good), 4.0, "{}", metrics.text);
    let retried = metrics.get("outrigger_retries_total", &[("reason", "overloaded")]);
    assert!(retried >= 1.0);
    assert_eq!(attempts(&bad), retried, "attempts that failed count too\n{}", metrics.text);
    let fine = [("backend", "stable"), ("endpoint", &bad), ("outcome", "ok")];
    assert_eq!(metrics.get("outrigger_endpoint_requests_total", &fine), 0.0);
}

#[tokio::test]
async fn gauges_go_up_and_down_with_requests() {
    let simulator = fast();
    let proxy = Proxy::start(&chat(&simulator)).await;
    let address = proxy.address();
    let waiting = tokio::spawn(Call::get("/echo").fault("stall_first_byte=400ms").send(address));
    let of = |m: &Metrics, name: &str| m.get(name, &[("route", "plain")]);
    let metrics =
        proxy.await_metrics(|m| of(m, "outrigger_requests_awaiting_first_byte") == 1.0).await;
    assert_eq!(of(&metrics, "outrigger_requests_in_flight"), 1.0);
    assert_eq!(metrics.get("outrigger_endpoint_in_flight", &[("backend", "stable")]), 1.0);
    assert_eq!(waiting.await.expect("an answer").status, 200);
    let metrics = ended(&proxy, 1.0).await;
    assert_eq!(of(&metrics, "outrigger_requests_awaiting_first_byte"), 0.0);
    assert_eq!(of(&metrics, "outrigger_requests_in_flight"), 0.0);
    assert_eq!(metrics.get("outrigger_endpoint_in_flight", &[("backend", "stable")]), 0.0);
}

#[tokio::test]
async fn gaps_between_events_are_observed_with_their_size() {
    let simulator = fast();
    let proxy = Proxy::start(&chat(&simulator)).await;
    let transcript = Call::get("/events/10?gap=60").open(proxy.address()).await.events().await;
    assert!(transcript.is_complete());
    let metrics = ended(&proxy, 1.0).await;
    let bucket = |le: &str| {
        metrics.get("outrigger_chunk_gap_seconds_bucket", &[("route", "plain"), ("le", le)])
    };
    let wide = bucket("+Inf") - bucket("0.04");
    assert_eq!(wide, 9.0, "nine gaps of 60 ms between ten events: {}", metrics.text);
}

#[tokio::test]
async fn labels_do_not_grow_with_what_clients_send() {
    let simulator = fast();
    let proxy = Proxy::start(&chat(&simulator)).await;
    Call::get("/echo").send(proxy.address()).await;
    Call::get("/nowhere").send(proxy.address()).await;
    let series = |m: &Metrics| m.text.lines().filter(|line| !line.starts_with('#')).count();
    let before = series(&ended(&proxy, 2.0).await);
    for n in 0..50 {
        let path = format!("/nowhere/{n}");
        Call::new("GET", &path).host(&format!("h{n}.example")).send(proxy.address()).await;
        Call::get("/echo")
            .header("x-outrigger-arm", &format!("arm{n}"))
            .send(proxy.address())
            .await;
    }
    assert_eq!(series(&ended(&proxy, 102.0).await), before);
}
