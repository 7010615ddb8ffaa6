//! Load reports (ORCA) for clients that ask.

use outrigger_tests::harness::{Answer, Call, Protocol};
use outrigger_tests::sim::{Options, Reports, Simulator};

const FORMAT: &str = "endpoint-load-metrics-format";
const REPORT: &str = "endpoint-load-metrics";

fn trailer(answer: &Answer) -> Option<&str> {
    answer.trailers.get(REPORT).and_then(|value| value.to_str().ok())
}

fn call() -> Call {
    Call::chat("how deep?").max_tokens(3)
}

#[tokio::test]
async fn who_asks_is_told_how_busy_the_engine_is() {
    let sim = Simulator::start(Options::named("one").reports(Reports::Header));
    let long = call().max_tokens(50_000).streaming();
    let _streams = [long.open(sim.addr).await];
    sim.reached(|state| state.running == 1).await;
    let asking = |format| call().streaming().header(FORMAT, format).send(sim.addr);
    let (text, json) = (asking("text").await, asking("json").await);
    let text = text.header(REPORT).expect("a report");
    assert!(text.starts_with("TEXT named_metrics.num_requests_running="), "{text}");
    let json = json.header(REPORT).expect("a report");
    let json = json.strip_prefix("JSON ").and_then(|json| serde_json::from_str(json).ok());
    let json: serde_json::Value = json.expect("an object");
    let value = |name: &str| json["named_metrics"][name].as_f64().expect("a number");
    // The request itself waits for the end of the step.
    assert_eq!(value("num_requests_running") + value("num_requests_waiting"), 2.0);
    assert!(value("kv_cache_usage_perc") > 0.0);
    assert_eq!(asking("bin").await.header(REPORT), None);
}

#[tokio::test]
async fn nobody_else_is_told_anything() {
    let asked = call().header(FORMAT, "text");
    let sim = Simulator::start(Options::named("one").fast());
    assert_eq!(asked.send(sim.addr).await.header(REPORT), None, "it knows nothing of that");
    let sim = Simulator::start(Options::named("one").fast().reports(Reports::Header));
    assert_eq!(call().send(sim.addr).await.header(REPORT), None);
    let other = Call::get("/bytes/3").header(FORMAT, "text").send(sim.addr).await;
    assert_eq!(other.header(REPORT), None);
}

#[tokio::test]
async fn a_report_at_the_end_is_a_trailer() {
    let sim = Simulator::start(Options::named("one").fast().reports(Reports::Trailer));
    for protocol in [Protocol::Http1, Protocol::H2] {
        let asked = || call().streaming().over(protocol).header("te", "trailers");
        let answer = asked().header(FORMAT, "text").send(sim.addr).await;
        assert!(answer.text().ends_with("data: [DONE]\n\n") && answer.cut.is_none());
        assert_eq!(answer.header(REPORT), None);
        assert!(trailer(&answer).is_some_and(|report| report.starts_with("TEXT ")), "{answer:?}");
        assert_eq!(trailer(&asked().send(sim.addr).await), None);
    }
}
