//! What the proxy adds to the first byte of an answer to a long prompt, while many of them are on their way.
//!
//! The figure is for the log: it is printed. What is asserted is only that nothing is grossly wrong.

use std::time::Duration;

use outrigger_tests::harness::{Call, Load, Proxy};
use outrigger_tests::sim::{Options, Simulator};
use serde_json::json;

use super::fleet::endpoints;

/// As long as the longest documents that people paste.
const PROMPT: usize = 220_000;

/// An engine that reads any prompt at once.
fn instant(name: &str) -> Simulator {
    let mut options = Options::named(name).steady(Duration::from_millis(1));
    options.engine.prefill_rate = 1e9;
    options.engine.prefill_chunk = 100_000_000;
    options.engine.kv_tokens = 1 << 30;
    Simulator::start(options)
}

/// Prompts that begin alike in groups of eight, as those of one application do.
fn call(index: usize) -> Call {
    let start = format!("You are expert number {}. ", index % 8);
    let prompt = format!("{}{index} {}", start.repeat(900), "reef ".repeat(PROMPT / 5));
    let prompt = &prompt[..PROMPT];
    let messages = json!([{"role": "user", "content": prompt}]);
    Call::post("/v1/chat/completions").json(json!({
        "model": "sim-model", "stream": true, "max_tokens": 2, "messages": messages,
    }))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// The first bytes of so many requests, at so many at once.
async fn first_bytes(to: std::net::SocketAddr, requests: usize, at_once: usize) -> Vec<Duration> {
    let report = Load::of(requests).at_once(at_once).run(to, call).await;
    assert_eq!(report.ok(), requests, "{:?}", report.outcomes());
    let answers = report.samples.iter().filter_map(|sample| sample.answer.as_ref().ok());
    answers.filter_map(|answer| answer.first_byte_after).collect()
}

#[expect(clippy::print_stderr, reason = "the figure is what this is run for")]
async fn measure(at_once: usize) {
    let (a, b) = (instant("a"), instant("b"));
    let proxy = Proxy::start(&format!(
        "backends: {{ stable: {{ endpoints: {}, balance: {{ policy: least_load, prefix: 32KiB }} }} }}\n\
         routes: [{{ match: {{ model: 'sim-*' }}, backend: stable }}]\n",
        endpoints(&[&a, &b]),
    ))
    .await;
    let (mut direct, mut through) = (Vec::new(), Vec::new());
    // Turn by turn, so that what else the machine does meets both.
    for _ in 0..4 {
        let half = at_once / 2;
        let (one, other) =
            tokio::join!(first_bytes(a.addr, at_once, half), first_bytes(b.addr, at_once, half));
        direct.extend(one.into_iter().chain(other));
        through.extend(first_bytes(proxy.address(), 2 * at_once, at_once).await);
    }
    let (direct, through) = (median(direct), median(through));
    let added = through.saturating_sub(direct);
    eprintln!(
        "prompts of {PROMPT} bytes, {at_once} at once: median first byte {direct:.1?} direct, \
         {through:.1?} through the proxy, {added:.1?} added"
    );
    let most = direct * 2 + Duration::from_millis(100);
    assert!(added < most, "{added:?} added to {direct:?}");
    let text = proxy.metrics().await;
    assert_eq!(text.get("outrigger_requests_total", &[("outcome", "ok")]), 8.0 * at_once as f64);
}

#[tokio::test]
#[ignore = "a measurement: run it alone on a quiet machine"]
async fn twenty_long_prompts_at_once() {
    measure(20).await;
}

#[tokio::test]
async fn a_hundred_and_fifty_long_prompts_at_once() {
    measure(150).await;
}
