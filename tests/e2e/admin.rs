//! The admin pages: what they say, in which form, and to whom.
//!
//! Whether counters count right is in `counting`.

mod counting;

use std::process::Command;

use nix::sys::signal::Signal;
use outrigger_tests::harness::{Call, Launch, Process, Proxy, Raw};
use outrigger_tests::sim::{Fault, Options, Simulator};

/// One backend, one route.
fn one(simulator: &Simulator) -> String {
    format!(
        "backends: {{ only: {{ endpoints: ['{}'] }} }}\nroutes: [{{ name: all, backend: only }}]\n",
        simulator.addr
    )
}

fn fast() -> Simulator {
    Simulator::start(Options::named("only").fast())
}

const OPENMETRICS: &str = "application/openmetrics-text";

/// Every metric that is promised.
const METRICS: &[(&str, &str)] = &[
    ("build_info", "gauge"),
    ("requests_total", "counter"),
    ("request_duration_seconds", "histogram"),
    ("first_byte_seconds", "histogram"),
    ("chunk_gap_seconds", "histogram"),
    ("requests_in_flight", "gauge"),
    ("requests_awaiting_first_byte", "gauge"),
    ("tokens_total", "counter"),
    ("request_bytes_total", "counter"),
    ("response_bytes_total", "counter"),
    ("retries_total", "counter"),
    ("retries_denied_total", "counter"),
    ("endpoint_requests_total", "counter"),
    ("endpoint_in_flight", "gauge"),
    ("endpoint_first_byte_seconds", "histogram"),
    ("upstream_connect_seconds", "histogram"),
    ("endpoint_ready", "gauge"),
    ("endpoint_ejected", "gauge"),
    ("endpoint_ejections_total", "counter"),
    ("health_checks_total", "counter"),
    ("attempts_total", "counter"),
    ("connections_total", "counter"),
    ("connections_open", "gauge"),
    ("connections_refused_total", "counter"),
    ("upstream_connections_total", "counter"),
    ("discovery_resolutions_total", "counter"),
    ("config_reloads_total", "counter"),
    ("config_last_reload_success", "gauge"),
    ("config_last_reload_timestamp_seconds", "gauge"),
    ("draining", "gauge"),
    ("probe_running", "gauge"),
    ("access_log_dropped_total", "counter"),
];

#[tokio::test]
async fn every_promised_metric_has_help_and_type() {
    let simulator = fast();
    let proxy = Proxy::start(&one(&simulator)).await;
    Call::chat("hello").max_tokens(4).streaming().send(proxy.address()).await;
    let ended = proxy.await_metrics(|m| m.get("outrigger_requests_total", &[]) == 1.0).await;
    let lines: Vec<&str> = ended.text.lines().collect();
    for (name, kind) in METRICS {
        let help = format!("# HELP outrigger_{name} ");
        let kind = format!("# TYPE outrigger_{name} {kind}");
        assert!(lines.iter().any(|l| l.starts_with(&help) && l.len() > help.len()), "{help}");
        assert!(lines.contains(&kind.as_str()), "{kind}");
    }
}

#[tokio::test]
async fn no_metric_is_there_that_is_not_promised() {
    let simulator = fast();
    let proxy = Proxy::start(&one(&simulator)).await;
    Call::chat("hello").max_tokens(4).streaming().send(proxy.address()).await;
    let ended = proxy.await_metrics(|m| m.get("outrigger_requests_total", &[]) == 1.0).await;
    for line in ended.text.lines() {
        let Some(rest) = line.strip_prefix("# TYPE ") else { continue };
        let name = rest.split(' ').next().unwrap_or_default();
        let own = name.strip_prefix("outrigger_");
        assert!(own.is_some_and(|own| METRICS.iter().any(|(known, _)| *known == own)), "{name}");
    }
}

#[tokio::test]
async fn metrics_are_prometheus_text_unless_openmetrics_is_asked_for() {
    let simulator = fast();
    let proxy = Proxy::start(&one(&simulator)).await;
    for accept in [None, Some("text/plain"), Some("*/*")] {
        let call = accept.map_or_else(
            || Call::get("/metrics"),
            |accept| Call::get("/metrics").header("accept", accept),
        );
        let answer = call.send(proxy.admin()).await;
        let kind = answer.header("content-type").unwrap_or_default();
        assert!(kind.starts_with("text/plain; version=0.0.4"), "{accept:?}: {kind}");
        assert!(!answer.text().contains("# EOF"));
    }
    let asked = Call::get("/metrics").header("accept", &format!("{OPENMETRICS}; version=1.0.0"));
    let answer = asked.send(proxy.admin()).await;
    let kind = answer.header("content-type").unwrap_or_default().to_owned();
    assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
    let text = answer.text();
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert!(text.contains("# TYPE outrigger_connections counter\n"), "without _total: {text}");
    assert!(text.contains("# UNIT outrigger_request_duration_seconds seconds\n"), "{text}");
}

#[tokio::test]
async fn live_and_the_index_answer_and_head_has_no_body() {
    let simulator = fast();
    let proxy = Proxy::start(&one(&simulator)).await;
    let index = proxy.admin_get("/").await;
    assert_eq!(index.status, 200);
    for page in ["/metrics", "/live", "/ready", "/config", "/endpoints", "/reload", "/drain"] {
        assert!(index.text().contains(page), "{page}");
    }
    assert_eq!(proxy.admin_get("/live").await.status, 200);
    let mut raw = Raw::connect(proxy.admin()).await;
    raw.send("HEAD /live HTTP/1.1\r\nhost: test\r\n\r\n").await;
    assert_eq!(raw.try_response("HEAD").await.expect("a head").status(), 200);
    // A body after the answer to HEAD would be taken for the next answer.
    raw.get("/live").await;
    assert_eq!(raw.response().await.text(), "live\n");
}

#[tokio::test]
async fn unknown_pages_are_404_and_wrong_methods_405() {
    let simulator = fast();
    let proxy = Proxy::start(&one(&simulator)).await;
    for page in ["/metric", "/v1/models", "/ready/", "/config.json"] {
        assert_eq!(proxy.admin_get(page).await.status, 404, "{page}");
    }
    for (method, page) in [
        ("POST", "/metrics"),
        ("DELETE", "/config"),
        ("PUT", "/live"),
        ("POST", "/ready"),
        ("GET", "/drain"),
        ("GET", "/reload"),
    ] {
        let answer = Call::new(method, page).send(proxy.admin()).await;
        assert_eq!(answer.status, 405, "{method} {page}");
        assert!(answer.header("allow").is_some(), "{method} {page}: RFC 9110 demands `allow`");
    }
    assert_eq!(proxy.admin_get("/ready").await.status, 200, "GET /drain drained");
}

#[tokio::test]
async fn a_post_with_a_body_does_not_spoil_the_connection() {
    let simulator = fast();
    let proxy = Proxy::start(&one(&simulator)).await;
    let mut raw = Raw::connect(proxy.admin()).await;
    raw.post("/reload", "GET /drain HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(raw.response().await.status(), 200);
    assert_eq!(proxy.admin_get("/ready").await.status, 200);
}

#[tokio::test]
async fn ready_tells_which_backend_has_no_endpoint() {
    let simulator = fast();
    simulator.fault(Fault::NoHealth);
    let health = "'], health: { http: /health, interval: 20ms, unhealthy: 1 } }";
    let proxy = Proxy::start(&one(&simulator).replace("'] }", health)).await;
    let ready = proxy.admin_get("/ready").await;
    assert_eq!((ready.status, &ready.json()["ready"]), (503, &false.into()));
    assert!(
        ready.json()["reasons"][0].as_str().is_some_and(|r| r.contains("only")),
        "{}",
        ready.text()
    );
    simulator.clear_faults();
    proxy.await_metrics(|m| m.get("outrigger_endpoint_ready", &[]) == 1.0).await;
    let ready = proxy.admin_get("/ready").await;
    assert_eq!((ready.status, &ready.json()["ready"]), (200, &true.into()));
    assert_eq!(ready.json()["reasons"], serde_json::json!([]));
}

#[tokio::test]
async fn config_shows_what_is_in_force_with_defaults() {
    let simulator = fast();
    let proxy = Proxy::start(&one(&simulator)).await;
    let page = proxy.admin_get("/config").await;
    assert_eq!(page.header("content-type"), Some("application/json"));
    let page = page.json();
    let text = page["config"].to_string();
    assert_eq!(page["config"]["routes"][0]["name"], "all", "{page:#}");
    assert!(text.contains("x-outrigger-arm") && text.contains("least_load"), "{page:#}");
    assert_eq!(page["reload"]["attempts"], 0);
}

#[tokio::test]
async fn endpoints_shows_requests_in_flight() {
    let simulator = Simulator::start(Options::named("only").fast());
    let proxy = Proxy::start(&one(&simulator)).await;
    let mut stream = Call::get("/events/1000?gap=20").open(proxy.address()).await;
    assert!(stream.event().await.is_some());
    let page = proxy.admin_get("/endpoints").await.json();
    assert_eq!(page[0]["backend"], "only", "{page:#}");
    let endpoint = &page[0]["endpoints"][0];
    assert_eq!(endpoint["address"], simulator.endpoint(), "{page:#}");
    assert_eq!((&endpoint["ready"], &endpoint["in_flight"]), (&true.into(), &1.into()));
    drop(stream);
    simulator.aborted().await;
    let labels = [("backend", "only")];
    proxy.await_metrics(|m| m.get("outrigger_endpoint_in_flight", &labels) == 0.0).await;
    let page = proxy.admin_get("/endpoints").await.json();
    assert_eq!(page[0]["endpoints"][0]["in_flight"], 0, "{page:#}");
}

#[tokio::test]
async fn the_admin_listener_is_not_reachable_through_the_proxy() {
    let simulator = fast();
    let proxy = Proxy::start(&one(&simulator)).await;
    let answer = Call::get("/ready").send(proxy.address()).await;
    assert_eq!((answer.status, answer.by()), (404, "only"), "it is the backend's own answer");
}

/// The default port may be taken by somebody else on this machine; then the complaint names the address.
#[tokio::test]
async fn without_being_told_the_admin_listener_is_on_loopback() {
    let simulator = fast();
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let ports = directory.path().join("ports.json");
    let mut command = Command::new(program());
    command.args(["run", "--listen", "127.0.0.1:0", "--upstream"]).arg(simulator.endpoint());
    let process = Process::spawn(command.arg("--ports-file").arg(&ports));
    let told = |line: &String| line.contains("admin=") || line.contains("can not listen on");
    let line = process.await_lines(|lines| lines.iter().find(|line| told(line)).cloned()).await;
    let line = line.unwrap_or_else(|| process.fail("it said nothing of its addresses"));
    assert!(line.contains("admin=127.0.0.1:8801") || line.contains("on 127.0.0.1:8801"), "{line}");
    if process.is_running() {
        process.signal(Signal::SIGINT);
    }
    process.exited().await;
}

#[tokio::test]
async fn admin_pages_answer_while_traffic_is_stuck() {
    let simulator = fast();
    let proxy = Launch::new(&one(&simulator)).start().await;
    let mut stuck = Vec::new();
    for _ in 0..50 {
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send("POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\nhalf").await;
        stuck.push(raw);
    }
    simulator.reached(|state| state.in_flight == 50).await;
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.get("outrigger_requests_in_flight", &[("route", "all")]), 50.0);
    assert_eq!(metrics.get("outrigger_connections_open", &[]), 50.0);
}

/// The program under test, found as the harness finds it.
fn program() -> std::path::PathBuf {
    outrigger_tests::harness::program()
}
