//! Clients written by others: openai-python, the `websockets` package and curl.
//!
//! Our own client shares our understanding of HTTP; these have their own. When one is not installed its tests say
//! so aloud and pass: `cargo xtask setup` installs all of them.

use std::path::{Path, PathBuf};
use std::process::Command;

use outrigger_tests::harness::{Process, Proxy};
use outrigger_tests::sim::{Echo, Fault, Options, Simulator, pattern, sha256};

/// The API under `/v1`, everything else by its own route, and a path that nothing takes.
fn config(simulator: &Simulator) -> String {
    format!(
        "backends: {{ stable: {{ endpoints: ['{}'] }} }}\n\
         routes:\n  - {{ name: chat, match: {{ path: [/v1/models, '/v1/chat/*', /v1/completions, /v1/embeddings] }}, backend: stable }}\n\
         \x20 - {{ name: plain, match: {{ path: [/ws, /echo, /mirror, '/bytes/*', '/events/*'] }}, backend: stable }}\n",
        simulator.addr
    )
}

fn serving() -> Simulator {
    Simulator::start(Options::named("stable").fast().models(&["sim-model"]))
}

/// The interpreter with the packages, where `cargo xtask setup` puts it; none when it is not there.
fn python() -> Option<PathBuf> {
    let told = std::env::var_os("OUTRIGGER_PYTHON").map(PathBuf::from);
    let made = || {
        let program = std::env::current_exe().ok()?;
        // TARGET/PROFILE/deps/this
        Some(program.ancestors().nth(3)?.join("clients/bin/python3"))
    };
    told.or_else(made).filter(|python| python.is_file())
}

#[expect(clippy::print_stderr, reason = "a test that did nothing must say so")]
fn skipped(what: &str) {
    eprintln!("SKIPPED: {what} is not installed; `cargo xtask setup` installs it");
}

/// Runs a script of `tests/clients`, if there is a Python for it; true when it ran.
pub(crate) async fn script(name: &str, arguments: &[&str]) -> bool {
    let Some(python) = python() else {
        skipped("the Python environment of the clients");
        return false;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name);
    let mut command = Command::new(python);
    let (status, lines) = Process::finish(command.arg(script).args(arguments)).await;
    assert!(status.success(), "{name} {arguments:?}:\n{}", lines.join("\n"));
    true
}

async fn openai(subject: &str, proxy: &Proxy) -> bool {
    script("openai_calls.py", &[subject, &format!("http://{}/v1", proxy.address())]).await
}

#[tokio::test]
async fn openai_python_lists_models_chats_streams_completes_and_embeds() {
    let simulator = serving();
    let proxy = Proxy::start(&config(&simulator)).await;
    for subject in ["models", "chats", "streams", "completes", "embeds"] {
        if !openai(subject, &proxy).await {
            return;
        }
    }
    let lines = proxy.await_access(6).await;
    assert!(
        lines.iter().all(|line| line["outcome"] == "ok" && line["route"] == "chat"),
        "{lines:?}"
    );
    assert!(
        lines.iter().all(|line| line["user_agent"].as_str().is_some_and(|a| a.contains("OpenAI")))
    );
}

#[tokio::test]
async fn openai_python_keeps_one_connection_for_all_its_calls() {
    let simulator = serving();
    let proxy = Proxy::start(&config(&simulator)).await;
    if openai("keeps_its_connection", &proxy).await {
        let metrics = proxy.metrics().await;
        assert_eq!(metrics.get("outrigger_connections_total", &[]), 1.0);
    }
}

/// It hangs up when it has read `[DONE]`, which is before the end of the body: that is no broken request.
#[tokio::test]
async fn streams_that_openai_python_has_read_to_the_end_have_ended_well() {
    let simulator = serving();
    let proxy = Proxy::start(&config(&simulator)).await;
    if openai("streams_often", &proxy).await {
        let lines = proxy.await_access(40).await;
        let broken: Vec<_> = lines.iter().filter(|line| line["outcome"] != "ok").collect();
        assert!(broken.is_empty(), "{broken:?}");
        assert!(lines.iter().all(|line| line["tokens_out"] == 25), "{lines:?}");
    }
}

#[tokio::test]
async fn openai_python_that_stops_reading_a_stream_frees_the_engine() {
    let simulator = Simulator::start(Options::named("stable").models(&["sim-model"]));
    let proxy = Proxy::start(&config(&simulator)).await;
    if openai("cancels", &proxy).await {
        simulator.aborted().await;
        simulator.reached(|state| state.running == 0 && state.in_flight == 0).await;
        assert_eq!(proxy.await_access(1).await[0]["outcome"], "client_gone");
    }
}

#[tokio::test]
async fn openai_python_sees_clean_errors_of_the_model_server_and_of_the_proxy() {
    let simulator = serving();
    let proxy = Proxy::start(&config(&simulator)).await;
    if !openai("sees_404", &proxy).await {
        return;
    }
    assert!(openai("sees_no_route", &proxy).await);
    simulator.fault(Fault::Status(503, None));
    assert!(openai("sees_503", &proxy).await);
    simulator.clear_faults();
    let lines = proxy.await_access(3).await;
    assert_eq!(
        (&lines[0]["outcome"], &lines[1]["outcome"]),
        (&"client_error".into(), &"no_route".into())
    );
}

#[tokio::test]
async fn openai_python_sees_a_clean_503_when_no_endpoint_is_ready() {
    let simulator = serving();
    simulator.fault(Fault::NoHealth);
    let endpoint = format!("['{}']", simulator.addr);
    let checked = format!("{endpoint}, health: {{ http: /health, interval: 60s }}");
    let unready = config(&simulator).replace(&endpoint, &checked);
    let proxy = Proxy::start(&unready).await;
    if openai("sees_503", &proxy).await {
        assert_eq!(proxy.await_access(1).await[0]["outcome"], "no_endpoint");
    }
}

#[tokio::test]
async fn the_websockets_package_gets_every_message_back_and_a_clean_close() {
    let simulator = serving();
    let proxy = Proxy::start(&config(&simulator)).await;
    if script("websocket_echo.py", &[&format!("ws://{}/ws", proxy.address())]).await {
        let line = proxy.await_access(1).await.remove(0);
        assert_eq!((&line["status"], &line["outcome"]), (&101.into(), &"ok".into()), "{line}");
        simulator.reached(|state| state.in_flight == 0).await;
        assert_eq!(simulator.state().aborted, 0);
    }
}

/// Runs curl, if there is one, with these arguments and this path; what it wrote, and the protocol and status at its
/// end.
async fn curl(proxy: &Proxy, arguments: &[&str], path: &str) -> Option<(String, String)> {
    if Command::new("curl").arg("--version").output().is_err() {
        skipped("curl");
        return None;
    }
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "15", "--noproxy", "*"]);
    command.args(["--write-out", "\n%{http_version} %{http_code}"]).args(arguments);
    let (status, lines) =
        Process::finish(command.arg(format!("http://{}{path}", proxy.address()))).await;
    let text = lines.join("\n");
    assert!(status.success(), "{status}: {text}");
    let (body, end) = text.rsplit_once('\n').unwrap_or(("", &text));
    Some((body.to_owned(), end.to_owned()))
}

const H2: &str = "--http2-prior-knowledge";

#[tokio::test]
async fn curl_gets_and_posts_over_http2_with_prior_knowledge() {
    let simulator = serving();
    let proxy = Proxy::start(&config(&simulator)).await;
    let Some((body, end)) = curl(&proxy, &[H2], "/echo?x=1").await else { return };
    let echo: Echo = serde_json::from_str(&body).expect("an echo");
    assert_eq!((echo.target.as_str(), end.as_str()), ("/echo?x=1", "2 200"));
    let posted = curl(&proxy, &[H2, "--data", "canoe"], "/echo").await;
    let echo: Echo = serde_json::from_str(&posted.expect("curl is there").0).expect("an echo");
    assert_eq!((echo.method.as_str(), echo.sha256), ("POST", sha256(b"canoe")));
}

#[tokio::test]
async fn curl_that_offers_an_upgrade_to_h2c_is_served_all_the_same() {
    let simulator = serving();
    let proxy = Proxy::start(&config(&simulator)).await;
    let Some((body, end)) = curl(&proxy, &["--http2"], "/echo").await else { return };
    assert!(serde_json::from_str::<Echo>(&body).is_ok(), "{body}");
    assert!(end.ends_with(" 200"), "{end}");
}

#[tokio::test]
async fn curl_streams_events_over_both_protocols() {
    let simulator = serving();
    let proxy = Proxy::start(&config(&simulator)).await;
    for (version, expected) in [("--http1.1", "1.1 200"), (H2, "2 200")] {
        let Some((body, end)) = curl(&proxy, &[version, "--no-buffer"], "/events/5").await else {
            return;
        };
        assert_eq!(end, expected);
        assert!(body.contains("[DONE]"), "{body}");
    }
}

#[tokio::test]
async fn curl_sends_a_body_of_30_mb_over_both_protocols() {
    let simulator = serving();
    let proxy = Proxy::start(&config(&simulator)).await;
    let body = pattern(30_000_000);
    let file = proxy.directory().join("body");
    std::fs::write(&file, &body).expect("the directory is writable");
    let data = format!("@{}", file.display());
    for version in ["--http1.1", H2] {
        let Some((echo, end)) = curl(&proxy, &[version, "--data-binary", &data], "/echo").await
        else {
            return;
        };
        let echo: Echo = serde_json::from_str(&echo)
            .unwrap_or_else(|e| proxy.process().fail(&format!("{e}: {echo} {end}")));
        assert_eq!((echo.bytes, echo.sha256), (30_000_000, sha256(&body)), "{version}");
    }
}

#[tokio::test]
async fn curl_fetches_a_body_of_30_mb_over_both_protocols() {
    let simulator = serving();
    let proxy = Proxy::start(&config(&simulator)).await;
    let file = proxy.directory().join("fetched");
    let output = file.to_str().expect("UTF-8");
    let expected = sha256(&pattern(30_000_000));
    // Again and again: a proxy that ends before its client has read everything is found out only sometimes.
    for version in [[H2; 6], ["--http1.1"; 6]].concat() {
        if curl(&proxy, &[version, "--output", output], "/bytes/30000000").await.is_none() {
            return;
        }
        let fetched = std::fs::read(&file).expect("curl wrote it");
        assert_eq!(sha256(&fetched), expected, "{version}");
    }
}
