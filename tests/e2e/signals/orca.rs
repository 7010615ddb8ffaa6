//! `signals.orca` and `expose: [load]`: load reports on answers, asked for, believed, hidden, and given.

use outrigger_tests::harness::{Answer, Call, Load, Protocol, Proxy};
use outrigger_tests::sim::{Options, Reports, Simulator};

use super::scrape::occupy;
use crate::fleet::{
    Endpoint, await_endpoints, chat, endpoint_states, endpoints, in_flight, one_backend, plain,
    sim, stick,
};

const ORCA: &str = "signals: { orca: true }";
const FORMAT: &str = "endpoint-load-metrics-format";
const REPORT: &str = "endpoint-load-metrics";

/// Asks the simulator for an answer with these header fields and trailers, whatever they are.
fn told(fields: &[(&str, &str)], trailers: &[(&str, &str)]) -> Call {
    let list = |fields: &[(&str, &str)]| -> String {
        fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect()
    };
    let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n";
    let (fields, trailers) = (list(fields), list(trailers));
    Call::post("/raw").body(format!("{head}{fields}\r\n2\r\nok\r\n0\r\n{trailers}\r\n"))
}

/// The report that a client sees, and whether it is a trailer.
fn seen(answer: &Answer) -> Vec<(String, bool)> {
    let reports = |map: &http::HeaderMap, trailer: bool| {
        let fields = map.iter().filter(|(name, _)| name.as_str().starts_with(REPORT));
        let text = |value: &http::HeaderValue| value.to_str().expect("text").to_owned();
        fields.map(|(_, value)| (text(value), trailer)).collect::<Vec<_>>()
    };
    [reports(&answer.headers, false), reports(&answer.trailers, true)].concat()
}

async fn running(proxy: &Proxy) -> Option<f64> {
    let said = endpoint_states(proxy).await[0].said("running");
    said.map(|said| {
        assert_eq!(said.source, "orca");
        said.value
    })
}

const FORMS: [(&str, &str); 4] = [
    (REPORT, "TEXT named_metrics.num_requests_running=9, named_metrics.num_requests_waiting=4"),
    (REPORT, "JSON {\"named_metrics\":{\"num_requests_running\":9,\"num_requests_waiting\":4}}"),
    ("endpoint-load-metrics-json", "{\"namedMetrics\":{\"num_requests_running\":9}}"),
    // A map entry of field 8: num_requests_running = 9.0.
    ("endpoint-load-metrics-bin", "Qh8KFG51bV9yZXF1ZXN0c19ydW5uaW5nEQAAAAAAACJA"),
];

#[tokio::test]
async fn endpoints_are_asked_for_reports_only_where_that_is_wanted() {
    let one = sim("one");
    let asked = || one.seen().last().expect("a request").header(FORMAT).map(str::to_owned);
    let proxy = Proxy::start(&one_backend(&[&one], ORCA, "")).await;
    assert_eq!(chat().send(proxy.address()).await.status, 200);
    assert_eq!(asked().as_deref(), Some("text"));
    assert_eq!(chat().header(FORMAT, "json").send(proxy.address()).await.status, 200);
    assert_eq!(asked().as_deref(), Some("json"), "the client's own wish");
    let proxy = Proxy::start(&one_backend(&[&one], "", "")).await;
    assert_eq!(chat().send(proxy.address()).await.status, 200);
    assert_eq!(asked(), None);
}

#[tokio::test]
async fn a_report_is_believed_in_every_form_and_hidden_from_who_did_not_ask() {
    for (name, value) in FORMS {
        let one = sim("one");
        let proxy = Proxy::start(&one_backend(&[&one], ORCA, "")).await;
        let answer = told(&[(name, value)], &[]).send(proxy.address()).await;
        assert_eq!((answer.status, &*answer.text()), (200, "ok"));
        assert_eq!(seen(&answer), [], "{name}: {value}");
        assert_eq!(running(&proxy).await, Some(9.0), "{name}: {value}");
    }
}

#[tokio::test]
async fn a_report_among_the_trailers_is_believed_and_hidden() {
    for (name, value) in FORMS {
        let one = sim("one");
        let proxy = Proxy::start(&one_backend(&[&one], ORCA, "")).await;
        let call = told(&[("trailer", name)], &[(name, value), ("x-other", "1")]);
        let answer = call.header("te", "trailers").send(proxy.address()).await;
        assert_eq!((answer.status, &*answer.text(), &answer.cut), (200, "ok", &None));
        assert_eq!(seen(&answer), [], "{name}: {value}");
        assert_eq!(running(&proxy).await, Some(9.0), "{name}: {value}");
    }
}

#[tokio::test]
async fn who_asks_gets_the_words_of_the_engine() {
    let one = sim("one");
    for backend in [ORCA, ""] {
        let proxy = Proxy::start(&one_backend(&[&one], backend, "")).await;
        let (name, value) = FORMS[1];
        let call = told(&[(name, value)], &[]).header(FORMAT, "json");
        assert_eq!(seen(&call.send(proxy.address()).await), [(value.to_owned(), false)]);
        assert_eq!(running(&proxy).await.is_some(), backend == ORCA, "believed where wanted");
        let call = told(&[("trailer", name)], &[(name, value)]).header(FORMAT, "json");
        let answer = call.header("te", "trailers").send(proxy.address()).await;
        assert_eq!(seen(&answer), [(value.to_owned(), true)]);
    }
}

#[tokio::test]
async fn where_reports_are_not_wanted_they_pass_like_any_field_and_are_not_believed() {
    let one = sim("one");
    let proxy = Proxy::start(&one_backend(&[&one], "", "")).await;
    let (name, value) = FORMS[0];
    let calls = [told(&[(name, value)], &[]), told(&[("trailer", name)], &[(name, value)])];
    for (call, trailer) in calls.into_iter().zip([false, true]) {
        let answer = call.header("te", "trailers").send(proxy.address()).await;
        assert_eq!((&*answer.text(), seen(&answer)), ("ok", vec![(value.to_owned(), trailer)]));
    }
    assert_eq!(running(&proxy).await, None);
}

#[tokio::test]
async fn reports_on_streams_over_h2_come_at_the_end() {
    let one = Simulator::start(Options::named("one").fast().reports(Reports::Trailer));
    let backend = format!("protocol: h2c, {ORCA}");
    let proxy = Proxy::start(&one_backend(&[&one], &backend, "")).await;
    let answer = chat().streaming().h2().send(proxy.address()).await;
    assert!(answer.text().ends_with("data: [DONE]\n\n") && answer.cut.is_none(), "{answer:?}");
    assert_eq!(seen(&answer), []);
    assert_eq!(answer.trailers.len(), 0, "{:?}", answer.trailers);
    let before = endpoint_states(&proxy).await[0].said("running").expect("a report");
    assert_eq!(before.source, "orca");
    let answer = chat().streaming().h2().header(FORMAT, "json").send(proxy.address()).await;
    let [(report, true)] = &seen(&answer)[..] else { unreachable!("{answer:?}") };
    assert!(report.starts_with("JSON {"), "{report}");
}

#[tokio::test]
async fn reports_on_streams_over_http1_come_at_the_end() {
    let one = Simulator::start(Options::named("one").fast().reports(Reports::Trailer));
    let proxy = Proxy::start(&one_backend(&[&one], ORCA, "")).await;
    let call = || chat().streaming().header("te", "trailers");
    let answer = call().send(proxy.address()).await;
    assert!(answer.text().ends_with("data: [DONE]\n\n") && answer.cut.is_none(), "{answer:?}");
    assert_eq!(seen(&answer), []);
    assert!(running(&proxy).await.is_some());
    let answer = call().header(FORMAT, "text").send(proxy.address()).await;
    assert!(
        matches!(&seen(&answer)[..], [(report, true)] if report.starts_with("TEXT ")),
        "{answer:?}"
    );
}

#[tokio::test]
async fn malformed_reports_change_nothing_and_harm_nobody() {
    let one = sim("one");
    let proxy = Proxy::start(&one_backend(&[&one], ORCA, "")).await;
    let good = (REPORT, "TEXT named_metrics.num_requests_running=2");
    assert_eq!(told(&[good], &[]).send(proxy.address()).await.status, 200);
    let long = format!("TEXT named_metrics.num_requests_running=7, x={}", "9".repeat(17_000));
    let malformed = [
        (REPORT, ""),
        (REPORT, "TEXT"),
        (REPORT, "TEXT named_metrics.num_requests_running"),
        (REPORT, "TEXT named_metrics.num_requests_running=lots"),
        (REPORT, "TEXT named_metrics.num_requests_running=-3"),
        (REPORT, "TEXT named_metrics.num_requests_running=NaN"),
        (REPORT, "TEXT named_metrics.num_requests_running=inf"),
        (REPORT, "TEXT named_metrics.num_requests_running=1e999"),
        (REPORT, "TEXT named_metrics.num_requests_running=3, named_metrics.num_requests_running=4"),
        (REPORT, "JSON"),
        (REPORT, "JSON {"),
        (REPORT, "JSON []"),
        (REPORT, "JSON {\"named_metrics\":{\"num_requests_running\":\"x\"}}"),
        (REPORT, "JSON {\"named_metrics\":{\"num_requests_running\":-1}}"),
        (REPORT, "BIN !!!!"),
        (REPORT, "BIN //////8="),
        (REPORT, "XML <running>3</running>"),
        ("endpoint-load-metrics-json", "[1]"),
        ("endpoint-load-metrics-bin", "Qh8KFG51bV9yZXF1"),
        (REPORT, &long),
    ];
    for (name, value) in malformed {
        for call in [told(&[(name, value)], &[]), told(&[("trailer", name)], &[(name, value)])] {
            let answer = call.header("te", "trailers").send(proxy.address()).await;
            let told = value.chars().take(80).collect::<String>();
            assert_eq!((answer.status, &*answer.text()), (200, "ok"), "{name}: {told}");
            assert_eq!(seen(&answer), [], "{name}: {told}");
            assert_eq!(running(&proxy).await, Some(2.0), "{name}: {told}");
        }
    }
}

#[tokio::test]
async fn a_client_that_asks_for_nonsense_does_not_stop_us_from_learning() {
    let one = Simulator::start(Options::named("one").fast().reports(Reports::Header));
    let proxy = Proxy::start(&one_backend(&[&one], ORCA, "")).await;
    let answer = chat().header(FORMAT, "xml").send(proxy.address()).await;
    assert_eq!((answer.status, seen(&answer)), (200, vec![]));
    assert!(running(&proxy).await.is_some());
}

/// Whether both endpoints have said something, and the first that it is busy.
fn first_is_busy(all: &[Endpoint]) -> bool {
    all[0].value("running") >= Some(40.0)
        && all[1].value("running").is_some_and(|other| other < 8.0)
}

/// Asks until both endpoints have said how busy they are, the first more than the other.
async fn ask_both(proxy: &Proxy) {
    let report = Load::of(40).at_once(4).run(proxy.address(), |_| chat()).await;
    assert_eq!(report.ok(), 40, "{:?}", report.outcomes());
    await_endpoints(proxy, "reports of both", first_is_busy).await;
}

#[tokio::test]
async fn what_an_engine_reports_sends_requests_elsewhere() {
    let a = Simulator::start(Options::named("a").reports(Reports::Header));
    let b = Simulator::start(Options::named("b").fast().reports(Reports::Header));
    let _streams = occupy(&a, 40).await;
    let proxy = Proxy::start(&one_backend(&[&a, &b], ORCA, "")).await;
    ask_both(&proxy).await;
    let _stuck = stick(&proxy, &[&a, &b], (0..6).map(|_| plain())).await;
    assert_eq!(in_flight(&proxy).await, [0, 6]);
}

fn exposing(simulator: &Simulator, backend: &str) -> String {
    let endpoints = endpoints(&[simulator]);
    format!(
        "backends: {{ stable: {{ endpoints: {endpoints}, {backend} }} }}\n\
         routes: [{{ name: all, backend: stable, expose: [load] }}]\n"
    )
}

/// The field `name` of a report, in text or JSON.
fn field(report: &str, name: &str) -> Option<f64> {
    if let Some(json) = report.strip_prefix("JSON ") {
        let json: serde_json::Value = serde_json::from_str(json).expect("JSON");
        return json["named_metrics"][name].as_f64();
    }
    let entries = report.strip_prefix("TEXT ").expect("a tag").split(", ");
    let mut entries = entries.filter_map(|entry| entry.split_once('='));
    let key = format!("named_metrics.{name}");
    entries.find(|(k, _)| *k == key).map(|(_, value)| value.parse().expect("a number"))
}

#[tokio::test]
async fn who_asks_is_told_how_busy_the_endpoint_is_where_it_says_nothing() {
    let one = sim("one");
    let proxy = Proxy::start(&exposing(&one, "")).await;
    let _stuck = stick(&proxy, &[&one], (0..3).map(|_| chat())).await;
    for protocol in [Protocol::Http1, Protocol::H2] {
        for (format, tag) in [("text", "TEXT "), ("json", "JSON ")] {
            let call = chat().over(protocol).header(FORMAT, format);
            let answer = call.send(proxy.address()).await;
            let [(report, false)] = &seen(&answer)[..] else { unreachable!("{answer:?}") };
            assert!(report.starts_with(tag), "{report}");
            assert_eq!(field(report, "num_requests_running"), Some(4.0), "three, and this one");
            assert_eq!(field(report, "num_requests_waiting"), None, "that is not known");
        }
    }
    let answer = chat().header(FORMAT, "bin").send(proxy.address()).await;
    assert!(answer.header("endpoint-load-metrics-bin").is_some(), "{:?}", answer.headers);
    for call in [chat(), chat().header(FORMAT, "xml")] {
        assert_eq!(seen(&call.send(proxy.address()).await), []);
    }
}

#[tokio::test]
async fn nothing_is_told_where_the_route_does_not_expose_it() {
    let one = sim("one");
    let proxy = Proxy::start(&one_backend(&[&one], "", "")).await;
    assert_eq!(seen(&chat().header(FORMAT, "text").send(proxy.address()).await), []);
}

#[tokio::test]
async fn what_is_told_includes_what_the_metrics_page_says() {
    let one = Simulator::start(Options::named("one").room(2, usize::MAX));
    let proxy = Proxy::start(&exposing(&one, "signals: { scrape: { interval: 50ms } }")).await;
    let mut streams = occupy(&one, 2).await;
    for _ in 0..3 {
        let long = Call::chat("more").max_tokens(1_000).streaming();
        streams.push(long.open(one.addr).await);
    }
    await_endpoints(&proxy, "the page", |all| all[0].value("waiting") == Some(3.0)).await;
    let answer = Call::get("/bytes/10").header(FORMAT, "text").send(proxy.address()).await;
    let [(report, false)] = &seen(&answer)[..] else { unreachable!("{answer:?}") };
    assert_eq!(field(report, "num_requests_running"), Some(2.0));
    assert_eq!(field(report, "num_requests_waiting"), Some(3.0));
    assert!(field(report, "kv_cache_usage_perc").is_some_and(|share| share > 0.0), "{report}");
}

/// Two proxies, each before an engine of its own, and one before both of them.
async fn two_before_one(settings: &str) -> ([Simulator; 2], [Proxy; 2], Proxy) {
    let engines = [Simulator::start(Options::named("a")), sim("b")];
    let backs = [
        Proxy::start(&exposing(&engines[0], "")).await,
        Proxy::start(&exposing(&engines[1], "")).await,
    ];
    let list = format!("['{}', '{}']", backs[0].address(), backs[1].address());
    let front = Proxy::start(&crate::fleet::one_backend_at(&list, settings, "")).await;
    (engines, backs, front)
}

#[tokio::test]
async fn two_proxies_in_a_row_tell_each_other_the_truth() {
    let ([a, b], [busy, _idle], front) = two_before_one(ORCA).await;
    // Others use the first proxy too: the one in front cannot count that.
    let mut others = Vec::new();
    for _ in 0..40 {
        let long = Call::chat("a long story").max_tokens(50_000).streaming();
        others.push(long.open(busy.address()).await);
    }
    ask_both(&front).await;
    let _stuck = stick(&front, &[&a, &b], (0..6).map(|_| plain())).await;
    assert_eq!(in_flight(&front).await, [0, 6]);
}

#[tokio::test]
async fn two_proxies_in_a_row_that_are_silent_know_nothing_of_each_other() {
    let ([a, b], [busy, _idle], front) = two_before_one("").await;
    let mut others = Vec::new();
    for _ in 0..40 {
        let long = Call::chat("a long story").max_tokens(50_000).streaming();
        others.push(long.open(busy.address()).await);
    }
    let _stuck = stick(&front, &[&a, &b], (0..6).map(|_| plain())).await;
    assert_eq!(in_flight(&front).await, [3, 3]);
}
