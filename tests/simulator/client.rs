//! The harness's own parts that need no proxy.

use std::process::Command;

use outrigger_tests::harness::{Call, Load, Metrics, Process, Protocol};
use outrigger_tests::sim::{Options, Simulator};

#[tokio::test]
async fn a_load_reports_every_request() {
    let simulator = Simulator::start(Options::named("one").fast());
    for protocol in [Protocol::Http1, Protocol::H2] {
        let before = simulator.state().accepted;
        let load = Load::of(200).at_once(10).over(protocol);
        let report = load.run(simulator.addr, |i| Call::get(&format!("/bytes/{i}"))).await;
        assert_eq!(report.ok(), 200);
        assert_eq!(report.by_name()["one"], 200);
        assert!(report.quantile(0.5) <= report.quantile(0.99));
        let connections = simulator.state().accepted - before;
        assert!(connections <= 10, "{connections} connections");
    }
    let load = Load::of(20).without_keep_alive();
    let before = simulator.state().accepted;
    load.run(simulator.addr, |_| Call::get("/health")).await;
    assert_eq!(simulator.state().accepted, before + 20);
}

#[tokio::test]
async fn a_load_reports_failures_too() {
    let simulator = Simulator::start(Options::named("one").fast());
    let faults = ["reset", "close_mid=1", "status=500", "slow=1"];
    let call = move |i: usize| Call::get("/bytes/1000").fault(faults[i % 4]);
    let report = Load::of(8).run(simulator.addr, call).await;
    let outcomes = report.outcomes();
    assert_eq!((report.ok(), report.status(500)), (2, 2), "{outcomes:?}");
    assert_eq!((outcomes["200"], outcomes["500"], outcomes["cut"]), (2, 2, 2));
    assert_eq!(outcomes.len(), 4);
}

#[test]
fn metrics_are_summed_over_labels_that_are_not_asked_for() {
    let text = "# TYPE a counter\na{x=\"1\",y=\"p\"} 2\na{x=\"1\",y=\"q, \\\"}\\\\\"} 3.5 170000\nab 7\n# EOF\n";
    let metrics = Metrics::parse(text);
    assert_eq!(metrics.get("a", &[]), 5.5);
    assert_eq!(metrics.get("a", &[("y", "q, \"}\\")]), 3.5);
    assert_eq!(metrics.get("ab", &[]), 7.0);
    assert!(!metrics.has("a", &[("x", "2")]));
    assert_eq!(metrics.values("a", "y"), ["p", "q, \"}\\"]);
}

#[tokio::test]
async fn a_process_keeps_its_output_and_its_status() {
    let (status, log) =
        Process::finish(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"])).await;
    assert_eq!(status.code(), Some(3));
    assert!(log.contains(&"out".to_owned()) && log.contains(&"err".to_owned()), "{log:?}");
}

#[tokio::test]
async fn the_simulator_runs_as_a_program() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger-sim"));
    let process = Process::spawn(command.args(["--name", "child", "--speed", "100"]));
    let greeting = process.await_log("listening").await;
    let greeting: serde_json::Value = serde_json::from_str(&greeting).expect("a line of JSON");
    let address = greeting["listening"].as_str().and_then(|a| a.parse().ok()).expect("an address");
    let answer = Call::chat("hello").max_tokens(3).send(address).await;
    assert_eq!((answer.status, answer.by()), (200, "child"));
    let state = Call::get("/sim/state").send(address).await.json();
    assert_eq!(state["paths"]["/v1/chat/completions"], 1);
}
