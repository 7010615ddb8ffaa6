//! The command line: what each subcommand prints, where, and with which exit code.

use std::path::Path;
use std::process::{Command, Output};

use outrigger_tests::harness::{Call, Launch, program};
use outrigger_tests::sim::{Options, Simulator};
use tempfile::TempDir;

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.args(arguments).env_remove("RUST_LOG").output().expect("the program can be run")
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// A configuration file in a directory of its own.
struct File {
    _directory: TempDir,
    path: String,
}

fn file(yaml: &str) -> File {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let path = directory.path().join("outrigger.yaml");
    std::fs::write(&path, yaml).expect("the directory is writable");
    let path = path.to_str().expect("UTF-8").to_owned();
    File { _directory: directory, path }
}

const GOOD: &str = "backends:
  stable: { endpoints: ['127.0.0.1:8000'] }
  canary: { endpoints: ['127.0.0.1:8001'], balance: round_robin, max_connections: 7 }
routes:
  - name: chat
    match: { host: api.example.com, path: /v1/*, model: 'llama-*' }
    split: { stable: 90, canary: 10 }
    deadline: { first_byte: 7s }
    rewrite: { path: /api/* }
  - name: tester
    match: { method: GET, headers: { x-tenant: gold } }
    backend: canary
    retry: off
  - { name: ping, match: { path: /ping }, respond: { body: pong } }
";

const BAD: &str = "listeners:
  - address: nonsense
backends:
  stable: { endpoints: ['127.0.0.1:8000'], balanc: round_robin }
routes:
  - bakend: stable
  - backend: stabel
    deadline: { connect: soon }
";

#[test]
fn check_of_a_good_file_says_so_and_exits_0() {
    let file = file(GOOD);
    let output = run(&["check", &file.path]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert!(out(&output).contains("ok") && out(&output).contains("3 routes"), "{}", out(&output));
    assert_eq!(err(&output), "");
}

#[test]
fn check_tells_every_problem_at_once_with_its_place_and_a_suggestion() {
    let file = file(BAD);
    let output = run(&["check", &file.path]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(out(&output), "", "problems belong on standard error");
    let lines = err(&output);
    for (place, words) in [
        ("2:14", vec!["listeners[0].address", "nonsense"]),
        ("4:44", vec!["balanc", "did you mean \"balance\"?"]),
        ("6:5", vec!["bakend", "did you mean \"backend\"?"]),
        ("7:14", vec!["stabel", "did you mean \"stable\"?"]),
        ("8:26", vec!["deadline.connect", "soon", "250ms"]),
    ] {
        let start = format!("{}:{place}: ", file.path);
        let fits = |line: &str| line.starts_with(&start) && words.iter().all(|w| line.contains(w));
        assert!(lines.lines().any(fits), "{start}{words:?} in\n{lines}");
    }
}

#[test]
fn check_of_broken_yaml_points_at_the_place() {
    for (yaml, place) in
        [("routes: [\n", ":2:1"), ("routes:\n  - name: \"x\n", ":"), ("\tx: 1\n", ":1:")]
    {
        let file = file(yaml);
        let output = run(&["check", &file.path]);
        assert_eq!(output.status.code(), Some(1), "{yaml:?}");
        let place = format!("{}{place}", file.path);
        assert!(err(&output).starts_with(&place), "{yaml:?}: {}", err(&output));
    }
}

#[test]
fn check_of_a_missing_file_or_a_directory_says_which() {
    for path in ["/nonexistent/outrigger.yaml", "/"] {
        let output = run(&["check", path]);
        assert_eq!(output.status.code(), Some(1), "{path}");
        assert!(err(&output).starts_with(&format!("{path}: ")), "{}", err(&output));
        assert!(!err(&output).contains("panicked"), "{}", err(&output));
    }
}

#[test]
fn check_of_an_empty_file_and_of_bytes_that_are_no_text_does_not_crash() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let path = directory.path().join("outrigger.yaml");
    for bytes in [&b""[..], b"\xff\xfe\x00\x01", b"---\n...\n", b"just words", b"[1, 2]"] {
        std::fs::write(&path, bytes).expect("the directory is writable");
        let output = run(&["check", path.to_str().expect("UTF-8")]);
        assert_eq!(output.status.code(), Some(1), "{bytes:?}: {}", out(&output));
        assert!(!err(&output).is_empty() && !err(&output).contains("panicked"), "{}", err(&output));
    }
}

#[test]
fn explain_shows_route_arms_deadlines_and_retries() {
    let file = file(GOOD);
    let asked = ["--host", "api.example.com", "--path", "/v1/chat", "--model", "llama-3"];
    let output = run(&[&["explain", "--config", &file.path][..], &asked].concat());
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let text = out(&output);
    for words in [
        "route chat",
        "takes it",
        "90.0 %",
        "10.0 %",
        "127.0.0.1:8001",
        "round_robin",
        "max_connections 7",
        "first byte 7s",
        "/v1/chat -> /api/chat",
        "3 attempts",
    ] {
        assert!(text.contains(words), "{words:?} in\n{text}");
    }
}

#[test]
fn explain_says_why_routes_are_passed_over() {
    let file = file(GOOD);
    let asked = ["--method", "GET", "--host", "api.example.com", "--path", "/v1/chat"];
    let fields = ["--model", "mistral", "--header", "x-tenant: gold"];
    let output = run(&[&["explain", "--config", &file.path][..], &asked, &fields].concat());
    let text = out(&output);
    let line = |name: &str| text.lines().find(|l| l.contains(name)).unwrap_or_default();
    assert!(line("route chat").contains("passed over: the model differs"), "{text}");
    assert!(line("route tester").contains("takes it"), "{text}");
    assert!(text.contains("retry    off"), "{text}");
}

#[test]
fn explain_of_a_request_that_nothing_takes_says_404() {
    let file = file(GOOD);
    let output = run(&["explain", "--config", &file.path, "--path", "/else"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(out(&output).contains("404"), "{}", out(&output));
}

#[test]
fn explain_of_bad_arguments_or_a_bad_file_fails() {
    let (good, bad) = (file(GOOD), file(BAD));
    let output = run(&["explain", "--config", &bad.path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("did you mean"), "{}", err(&output));
    let output = run(&["explain", "--config", &good.path, "--header", "nocolon"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("nocolon"), "{}", err(&output));
}

#[test]
fn the_schema_is_json_and_the_one_in_the_repository() {
    let output = run(&["schema"]);
    assert_eq!(output.status.code(), Some(0));
    let schema: serde_json::Value =
        serde_json::from_str(&out(&output)).expect("the schema is JSON");
    assert!(schema["$schema"].is_string() && schema["properties"]["routes"].is_object());
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/schema.json");
    let kept = std::fs::read_to_string(kept).expect("the schema is in the repository");
    assert_eq!(out(&output), kept, "cargo xtask schema writes it anew");
}

#[test]
fn the_example_passes_check_and_shows_every_section() {
    let output = run(&["example"]);
    assert_eq!(output.status.code(), Some(0));
    let text = out(&output);
    let example = file(&text);
    let check = run(&["check", &example.path]);
    assert_eq!(check.status.code(), Some(0), "{}", err(&check));
    let schema: serde_json::Value = serde_json::from_str(&out(&run(&["schema"]))).expect("JSON");
    let sections = schema["properties"].as_object().expect("a schema of a mapping");
    assert!(sections.len() > 5, "{sections:?}");
    for section in sections.keys() {
        assert!(text.lines().any(|line| line.starts_with(&format!("{section}:"))), "{section}");
    }
}

#[test]
fn completions_come_for_each_shell_and_the_shell_takes_them() {
    for (shell, word) in
        [("bash", "complete -F"), ("zsh", "#compdef outrigger"), ("fish", "complete -c outrigger")]
    {
        let output = run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        let text = out(&output);
        assert!(text.contains(word) && text.contains("ports-file"), "{shell}: {text}");
    }
    let script = file(&out(&run(&["completions", "bash"])));
    let parsed = Command::new("bash").args(["-n", &script.path]).status().expect("bash is there");
    assert!(parsed.success());
    assert_eq!(run(&["completions", "tcsh"]).status.code(), Some(2));
}

#[test]
fn the_version_is_that_of_the_package() {
    let output = run(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(out(&output), format!("outrigger {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_is_exit_code_2_and_names_both_ways_to_run() {
    let output = run(&["run"]);
    assert_eq!(output.status.code(), Some(2));
    let text = err(&output);
    assert!(text.contains("--config") && text.contains("--upstream"), "{text}");
    assert_eq!(run(&["bogus"]).status.code(), Some(2));
    let both = run(&["run", "--config", "x.yaml", "--upstream", "http://127.0.0.1:1"]);
    assert_eq!(both.status.code(), Some(2), "{}", err(&both));
}

#[test]
fn help_names_every_subcommand() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    for word in ["run", "check", "explain", "schema", "example", "completions"] {
        assert!(out(&output).contains(&format!("\n  {word} ")), "{word}: {}", out(&output));
    }
}

#[test]
fn run_with_a_missing_or_bad_file_says_why_and_exits_1() {
    let output = run(&["run", "--config", "/nonexistent/outrigger.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("/nonexistent/outrigger.yaml"), "{}", err(&output));
    let bad = file(BAD);
    let output = run(&["run", "--config", &bad.path]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(err(&output), err(&run(&["check", &bad.path])), "as `check` says it");
}

#[tokio::test]
async fn run_with_an_upstream_needs_no_file() {
    let simulator = Simulator::start(Options::named("only").fast());
    let proxy = Launch::upstream(&format!("http://{}", simulator.addr)).start().await;
    let answer = Call::chat("hello").max_tokens(3).send(proxy.address()).await;
    assert_eq!((answer.status, answer.by()), (200, "only"));
    let config = proxy.admin_get("/config").await.json();
    assert_eq!(config["config"]["routes"][0]["name"], "default", "{config:#}");
    let labels = [("route", "default"), ("arm", "upstream"), ("outcome", "ok")];
    proxy.await_metrics(|m| m.get("outrigger_requests_total", &labels) == 1.0).await;
}

#[tokio::test]
async fn run_with_two_upstreams_balances_them() {
    let one = Simulator::start(Options::named("one").fast());
    let two = Simulator::start(Options::named("two").fast());
    let launch = Launch::upstream(&format!("http://{}", one.addr));
    let proxy = launch.arg("--upstream").arg(&format!("http://{}", two.addr)).start().await;
    let mut names = Vec::new();
    for _ in 0..20 {
        names.push(Call::get("/echo").send(proxy.address()).await.by().to_owned());
    }
    assert!(names.contains(&"one".to_owned()) && names.contains(&"two".to_owned()), "{names:?}");
}

#[tokio::test]
async fn run_with_an_upstream_that_is_no_address_says_so() {
    for url in ["https://", "http://", "ftp://127.0.0.1:1", "127.0.0.1:notaport", ""] {
        let (status, lines) = Launch::upstream(url).fails().await;
        assert_eq!(status.code(), Some(1), "{url:?}: {lines:?}");
        assert!(!lines.is_empty() && !lines.join("\n").contains("panicked"), "{url:?}: {lines:?}");
    }
}

#[tokio::test]
async fn run_on_an_address_in_use_says_which_and_exits_2() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("there are free ports");
    let taken = taken.local_addr().map(|address| (address, taken)).expect("it is bound");
    let route = "routes: [{ respond: { status: 200 } }]\n";
    for key in ["listeners: [{ address: 'ADDR' }]\n", "admin: { address: 'ADDR' }\n"] {
        let yaml = key.replace("ADDR", &taken.0.to_string());
        let (status, lines) = Launch::new(&format!("{yaml}{route}")).fails().await;
        let text = lines.join("\n");
        assert_eq!(status.code(), Some(2), "{text}");
        assert!(text.contains(&taken.0.to_string()) && text.contains("in use"), "{text}");
        assert!(!text.contains("panicked"), "{text}");
    }
}

#[tokio::test]
async fn an_access_log_that_cannot_be_opened_stops_the_start_with_its_path() {
    let yaml =
        "access_log: { path: /nonexistent/access.log }\nroutes: [{ respond: { status: 200 } }]\n";
    let (status, lines) = Launch::new(yaml).fails().await;
    let text = lines.join("\n");
    assert_eq!(status.code(), Some(2), "{text}");
    assert!(text.contains("/nonexistent/access.log"), "{text}");
}

#[tokio::test]
async fn the_environment_sets_the_level_of_the_log() {
    let yaml = "log: { level: error }\nroutes: [{ respond: { status: 200 } }]\n";
    let proxy = Launch::new(yaml).start().await;
    assert!(!proxy.log().iter().any(|line| line.contains("ready to serve")), "{:?}", proxy.log());
    let proxy = Launch::new(yaml).env("RUST_LOG", "info").start().await;
    proxy.await_log("ready to serve").await;
}
