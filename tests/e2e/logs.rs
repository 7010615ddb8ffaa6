//! The access log: one line for each request, in the chosen form, with nothing that is a secret and nothing that could
//! be taken for another line.

use std::time::Duration;

use nix::sys::signal::Signal;
use outrigger_tests::harness::{Call, Launch, Proxy, Raw};
use outrigger_tests::sim::{Options, Simulator};
use serde_json::Value;

/// One backend, one route, and this `access_log`.
fn logging(simulator: &Simulator, access_log: &str) -> String {
    format!(
        "backends: {{ stable: {{ endpoints: ['{}'] }} }}\n\
         routes: [{{ name: chat, match: {{ model: '*' }}, backend: stable }}, {{ name: all, backend: stable }}]\n\
         drain: {{ delay: 0s }}\naccess_log: {{ {access_log} }}\n",
        simulator.addr
    )
}

fn fast() -> Simulator {
    Simulator::start(Options::named("stable").fast())
}

/// Ends the proxy, so that all lines are written, and gives them without its own log.
async fn lines(proxy: &Proxy) -> Vec<String> {
    proxy.signal(Signal::SIGTERM);
    proxy.wait_exit(Duration::from_secs(10)).await;
    let own = |line: &String| line.contains(" INFO ") || line.contains(" WARN ");
    proxy.log().into_iter().filter(|line| !own(line)).collect()
}

const FIELDS: &[&str] = &[
    "time",
    "request_id",
    "trace_id",
    "client",
    "method",
    "host",
    "path",
    "route",
    "arm",
    "endpoint",
    "model",
    "protocol",
    "status",
    "outcome",
    "duration_ms",
    "first_byte_ms",
    "upstream_connect_ms",
    "attempts",
    "bytes_in",
    "bytes_out",
    "chunks",
    "tokens_in",
    "tokens_out",
    "user_agent",
];

#[tokio::test]
async fn a_json_line_has_every_field_with_what_happened() {
    let simulator = fast();
    let proxy = Proxy::start(&logging(&simulator, "format: json")).await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let answer = Call::chat("how deep is the lagoon?")
        .model("llama-3")
        .max_tokens(6)
        .streaming()
        .field("stream_options", serde_json::json!({ "include_usage": true }))
        .host("api.example.com")
        .header("user-agent", "canoe/1.0")
        .header("traceparent", &format!("00-{trace}-00f067aa0ba902b7-01"))
        .header("x-request-id", "request-one")
        .send(proxy.address())
        .await;
    let line = proxy.await_access(1).await.remove(0);
    let keys: Vec<&str> = line.as_object().expect("an object").keys().map(String::as_str).collect();
    for field in FIELDS {
        assert!(keys.contains(field), "{field} in {line:#}");
    }
    assert_eq!(keys.len(), FIELDS.len(), "{line:#}");
    for (field, value) in [
        ("request_id", Value::from("request-one")),
        ("trace_id", trace.into()),
        ("client", "127.0.0.1".into()),
        ("method", "POST".into()),
        ("host", "api.example.com".into()),
        ("path", "/v1/chat/completions".into()),
        ("route", "chat".into()),
        ("arm", "stable".into()),
        ("endpoint", simulator.endpoint().into()),
        ("model", "llama-3".into()),
        ("protocol", "HTTP/1.1".into()),
        ("status", 200.into()),
        ("outcome", "ok".into()),
        ("attempts", 1.into()),
        ("bytes_out", answer.body.len().into()),
        ("tokens_out", 6.into()),
        ("user_agent", "canoe/1.0".into()),
    ] {
        assert_eq!(line[field], value, "{field} in {line:#}");
    }
    let number = |field: &str| line[field].as_f64().expect("a number");
    assert!(number("bytes_in") > 50.0 && number("chunks") >= 6.0 && number("tokens_in") >= 1.0);
    assert!(number("first_byte_ms") > 0.0 && number("duration_ms") >= number("first_byte_ms"));
    assert!(number("duration_ms") < 20_000.0);
}

#[tokio::test]
async fn requests_over_h2_and_those_that_fail_are_logged_too() {
    let simulator = fast();
    let proxy = Proxy::start(&logging(&simulator, "format: json")).await;
    Call::get("/echo").h2().send(proxy.address()).await;
    Call::get("/echo").fault("reset").send(proxy.address()).await;
    Call::get("/status/404").send(proxy.address()).await;
    let lines = proxy.await_access(3).await;
    assert_eq!((&lines[0]["protocol"], &lines[0]["outcome"]), (&"HTTP/2".into(), &"ok".into()));
    assert_eq!(
        (&lines[1]["status"], &lines[1]["outcome"]),
        (&502.into(), &"upstream_reset".into())
    );
    assert_eq!((&lines[2]["status"], &lines[2]["outcome"]), (&404.into(), &"client_error".into()));
}

#[tokio::test]
async fn a_request_that_is_no_http_is_logged_as_bad() {
    let simulator = fast();
    let proxy = Proxy::start(&logging(&simulator, "format: json")).await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET /echo HTTP/1.1\r\nhost test\r\n\r\n").await;
    assert_eq!(raw.response().await.status(), 400);
    let line = proxy.await_access(1).await.remove(0);
    assert_eq!((&line["status"], &line["outcome"]), (&400.into(), &"bad_request".into()), "{line}");
}

#[tokio::test]
async fn a_client_that_went_away_is_logged_as_499() {
    let simulator = fast();
    let proxy = Proxy::start(&logging(&simulator, "format: json")).await;
    let address = proxy.address();
    let waiting = tokio::spawn(Call::get("/echo").fault("stall_first_byte").send(address));
    simulator.reached(|state| state.in_flight == 1).await;
    waiting.abort();
    let line = proxy.await_access(1).await.remove(0);
    assert_eq!((&line["status"], &line["outcome"]), (&499.into(), &"client_gone".into()), "{line}");
}

#[tokio::test]
async fn only_the_chosen_fields_are_there_in_their_order() {
    let simulator = fast();
    let proxy =
        Proxy::start(&logging(&simulator, "format: json, fields: [status, arm, path]")).await;
    Call::get("/echo").send(proxy.address()).await;
    assert_eq!(lines(&proxy).await, [r#"{"status":200,"arm":"stable","path":"/echo"}"#]);
}

#[tokio::test]
async fn the_query_is_in_no_field() {
    let simulator = fast();
    for format in ["json", "text"] {
        let proxy = Proxy::start(&logging(&simulator, &format!("format: {format}"))).await;
        Call::get("/echo?api_key=secret-one&x=/secret-two").send(proxy.address()).await;
        Call::get("/echo?secret-three").h2().send(proxy.address()).await;
        let mut raw = Raw::connect(proxy.address()).await;
        raw.get("http://test/echo?secret-four").await;
        raw.response().await;
        let lines = lines(&proxy).await;
        assert_eq!(lines.iter().filter(|line| line.contains("/echo")).count(), 3, "{lines:?}");
        assert!(
            !lines.iter().any(|line| line.contains("secret") || line.contains('?')),
            "{lines:?}"
        );
    }
}

#[tokio::test]
async fn credentials_and_bodies_are_in_no_line() {
    let simulator = fast();
    let proxy = Proxy::start(&logging(&simulator, "format: json")).await;
    Call::chat("the secret plan")
        .max_tokens(2)
        .header("authorization", "Bearer secret-token")
        .header("cookie", "session=secret-cookie")
        .header("x-api-key", "secret-key")
        .send(proxy.address())
        .await;
    proxy.await_access(1).await;
    assert!(!proxy.log().iter().any(|line| line.contains("secret")), "{:?}", proxy.log());
}

#[tokio::test]
async fn hostile_values_are_escaped() {
    let simulator = fast();
    for format in ["json", "text"] {
        let proxy = Proxy::start(&logging(&simulator, &format!("format: {format}"))).await;
        let mut raw = Raw::connect(proxy.address()).await;
        let agent = [&b"a\"b\\c\t"[..], b"\xff\xfe\xc2\x9b31m \",\"status\":0,\"x\":\""].concat();
        let head = b"GET /a\"b\\c HTTP/1.1\r\nhost: test\r\nuser-agent: ";
        raw.send([head, agent.as_slice(), b"\r\n\r\n"].concat()).await;
        let status = raw.response().await.status();
        Call::chat("x")
            .model("m\n{\"outcome\":\"forged\"}\u{1b}[31m")
            .max_tokens(1)
            .send(proxy.address())
            .await;
        let lines = lines(&proxy).await;
        assert_eq!(lines.len(), 2, "{format}: {lines:?}");
        for line in &lines {
            let control = |c: char| c.is_control();
            assert!(!line.contains(control), "{format}: {line:?}");
        }
        if format == "json" {
            let first: Value = serde_json::from_str(&lines[0]).expect("JSON");
            assert_eq!(first["status"], status, "{first}");
            assert!(first.get("x").is_none());
            let second: Value = serde_json::from_str(&lines[1]).expect("JSON");
            assert_eq!(second["outcome"], "ok", "{second}");
            assert_eq!(second["model"], "m\n{\"outcome\":\"forged\"}\u{1b}[31m");
        }
    }
}

#[tokio::test]
async fn endless_values_are_cut() {
    let simulator = fast();
    let proxy = Proxy::start(&logging(&simulator, "format: json")).await;
    let path = format!("/echo/{}", "a".repeat(20_000));
    Call::get(&path).header("user-agent", &"u".repeat(20_000)).send(proxy.address()).await;
    let lines = lines(&proxy).await;
    assert_eq!(lines.len(), 1);
    assert!(lines[0].len() < 4096, "{} bytes", lines[0].len());
    let line: Value = serde_json::from_str(&lines[0]).expect("JSON");
    assert!(line["path"].as_str().is_some_and(|path| path.starts_with("/echo/aaa")));
}

#[tokio::test]
async fn a_text_line_reads_from_result_to_request() {
    let simulator = fast();
    let proxy = Proxy::start(&logging(&simulator, "format: text")).await;
    Call::chat("hello").max_tokens(3).host("api.example.com").send(proxy.address()).await;
    let line = lines(&proxy).await.remove(0);
    let words: Vec<&str> = line.split_whitespace().collect();
    assert!(words[0].starts_with("20") && words[0].ends_with('Z'), "{line}");
    assert_eq!((words[1], words[2]), ("200", "ok"), "{line}");
    let request =
        format!("POST api.example.com/v1/chat/completions chat→stable {}", simulator.addr);
    assert!(line.contains(&request), "{line}");
    assert!(line.contains("→3 ") && !line.contains('\u{1b}'), "tokens, and no colours: {line}");
}

#[tokio::test]
async fn auto_is_json_where_there_is_no_terminal() {
    let simulator = fast();
    let proxy = Proxy::start(&logging(&simulator, "format: auto")).await;
    Call::get("/echo").send(proxy.address()).await;
    assert_eq!(proxy.await_access(1).await[0]["outcome"], "ok");
}

#[tokio::test]
async fn off_writes_nothing() {
    let simulator = fast();
    let proxy = Proxy::start(&logging(&simulator, "format: off")).await;
    Call::get("/echo").send(proxy.address()).await;
    let lines = lines(&proxy).await;
    assert_eq!(lines, Vec::<String>::new());
}

#[tokio::test]
async fn a_file_gets_the_lines_and_is_appended_to() {
    let simulator = fast();
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let file = directory.path().join("access.log");
    std::fs::write(&file, "from before\n").expect("the directory is writable");
    let config = logging(&simulator, &format!("format: json, path: '{}'", file.display()));
    let proxy = Launch::new(&config).start().await;
    for _ in 0..3 {
        Call::get("/echo").send(proxy.address()).await;
    }
    assert!(lines(&proxy).await.is_empty(), "nothing on the outputs");
    let text = std::fs::read_to_string(&file).expect("it is there");
    let written: Vec<&str> = text.lines().collect();
    assert_eq!((written.len(), written[0]), (4, "from before"));
    for line in &written[1..] {
        let line: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(line["path"], "/echo");
    }
}

#[tokio::test]
async fn lines_come_without_waiting_for_more() {
    let simulator = fast();
    let proxy = Proxy::start(&logging(&simulator, "format: json")).await;
    for count in 1..=5 {
        Call::get("/echo").send(proxy.address()).await;
        let seen = tokio::time::timeout(Duration::from_secs(8), proxy.await_access(count)).await;
        assert!(seen.is_ok(), "line {count} is held back");
    }
}

#[tokio::test]
async fn each_request_of_a_load_has_one_line_and_an_id_of_its_own() {
    let simulator = fast();
    let proxy = Proxy::start(&logging(&simulator, "format: json")).await;
    let load = outrigger_tests::harness::Load::of(500).at_once(8);
    let report = load.run(proxy.address(), |_| Call::get("/echo")).await;
    assert_eq!(report.ok(), 500, "{:?}", report.outcomes());
    let lines = proxy.await_access(500).await;
    let ids: std::collections::BTreeSet<_> =
        lines.iter().filter_map(|line| line["request_id"].as_str()).collect();
    assert_eq!((lines.len(), ids.len()), (500, 500));
}
