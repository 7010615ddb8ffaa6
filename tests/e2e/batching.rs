//! Micro-batching: requests of a route that come together travel together, and nobody can tell by the answer.
//!
//! Whether one waits for company depends on how many came lately. [`Table::expects_company`] brings that about without a
//! clock: requests too long for any batch are stuck in the simulator at once, and given up. A full batch does not
//! wait for its time either, so that most tests here know exactly which requests share a call. Which call answered is
//! told by the `id` that the simulator gives it.
//!
//! Who never meets is in `apart`, where a call goes in `placing`, what goes wrong with it in `failing`, who leaves or
//! ends meanwhile in `leaving`.

mod apart;
mod failing;
mod leaving;
mod placing;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use outrigger_tests::harness::{Answer, Call, Client, Load, Metrics, Protocol, Proxy, Raw};
use outrigger_tests::sim::{Fault, Options, Simulator};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::clients::script;
use super::fleet::{await_idle, one_backend, sim};

/// As many prompts as fit into a batch.
const FULL: usize = 8;

/// So many requests at once are company to be expected: more than arrivals are averaged over.
const CROWD: usize = 24;

/// Nobody waits so long unless nobody comes.
const PATIENT: &str = "batch: { window: 1s, requests: 8, bytes: 1MiB }";

const EMBEDDINGS: &str = "/v1/embeddings";
const COMPLETIONS: &str = "/v1/completions";

/// A simulator and a proxy with a route that batches.
struct Table {
    simulator: Simulator,
    proxy: Proxy,
}

impl Table {
    /// `route` is what else the route says.
    async fn set(route: &str) -> Self {
        let simulator = sim("stable");
        let proxy = Proxy::start(&patient(&[&simulator], route)).await;
        Self { simulator, proxy }
    }

    fn address(&self) -> SocketAddr {
        self.proxy.address()
    }

    /// Calls that the simulator has seen.
    fn calls(&self) -> u64 {
        self.simulator.state().requests()
    }

    async fn expects_company(&self, like: impl Fn(Value) -> Call) {
        expect_company(&self.proxy, &[&self.simulator], "tide", like).await;
    }

    /// What the simulator says to the same request without a proxy.
    async fn alone(&self, call: Call) -> Answer {
        call.send(self.simulator.addr).await
    }
}

fn patient(simulators: &[&Simulator], route: &str) -> String {
    one_backend(simulators, "", &format!("{PATIENT}, {route}"))
}

/// Makes the proxy expect company for requests like these, with prompts like this one.
async fn expect_company(
    proxy: &Proxy,
    simulators: &[&Simulator],
    prompt: impl Into<Value>,
    like: impl Fn(Value) -> Call,
) {
    let prompt = prompt.into();
    simulators.iter().for_each(|simulator| simulator.fault(Fault::StallFirstByte(None)));
    let mut stuck = JoinSet::new();
    for _ in 0..CROWD {
        let long = vec![prompt.clone(); FULL + 1];
        stuck.spawn(like(long.into()).try_send(proxy.address()));
    }
    let in_flight = |metrics: &Metrics| metrics.get("outrigger_requests_in_flight", &[]);
    let arrived = || simulators.iter().map(|sim| sim.state().in_flight).sum::<u64>();
    proxy.await_metrics(|m| in_flight(m) == CROWD as f64 && arrived() == CROWD as u64).await;
    stuck.shutdown().await;
    proxy.await_metrics(|m| in_flight(m) == 0.0 && arrived() == 0).await;
    simulators.iter().for_each(|simulator| simulator.clear_faults());
}

fn embed(input: impl Into<Value>) -> Call {
    Call::post(EMBEDDINGS).json(json!({"model": "m", "input": input.into()}))
}

fn complete(prompt: impl Into<Value>) -> Call {
    Call::post(COMPLETIONS).json(json!({"model": "m", "prompt": prompt.into(), "max_tokens": 5}))
}

/// Requests with prompts of their own, enough for one batch.
fn full_table() -> Vec<Call> {
    (0..FULL).map(|index| embed(text(index))).collect()
}

fn text(index: usize) -> String {
    format!("what floats at {index}?{}", " and why?".repeat(index % 5))
}

/// Sends them all at once and gives the answers in the same order.
async fn at_once(to: SocketAddr, calls: impl IntoIterator<Item = Call>) -> Vec<Answer> {
    let sent: Vec<_> = calls.into_iter().map(|call| tokio::spawn(call.send(to))).collect();
    let mut answers = Vec::new();
    for answer in sent {
        answers.push(answer.await.expect("every request is answered"));
    }
    answers
}

/// The name of the call that an answer is a part of, as the simulator gave it.
fn call_of(answer: &Answer) -> String {
    let id = answer.json()["id"].as_str().unwrap_or_default().to_owned();
    let parts: Vec<&str> = id.split('-').collect();
    assert!(parts.len() >= 3, "{id:?} in {}", answer.text());
    parts[..3].join("-")
}

fn calls_of(answers: &[Answer]) -> BTreeSet<String> {
    answers.iter().map(call_of).collect()
}

/// Fails unless each answer is what the request with the same index would have got alone.
async fn expect_own(table: &Table, answers: &[Answer], like: impl Fn(usize) -> Call) {
    for (index, answer) in answers.iter().enumerate() {
        assert_eq!(answer.status, 200, "{index}: {}", answer.text());
        let (own, expected) = (answer.json(), table.alone(like(index)).await.json());
        for outputs in ["data", "choices"] {
            assert_eq!(own[outputs], expected[outputs], "{index}");
        }
        assert_eq!((&own["model"], &own["object"]), (&expected["model"], &expected["object"]));
    }
}

fn usage(answers: &[Answer], name: &str) -> u64 {
    answers.iter().map(|answer| answer.json()["usage"][name].as_u64().expect("a number")).sum()
}

/// How requests of the route `all` travelled.
fn travelled(metrics: &Metrics, result: &str) -> u64 {
    let labels = [("route", "all"), ("result", result)];
    metrics.get("outrigger_batched_requests_total", &labels) as u64
}

/// The same for all of them, for messages.
fn told(metrics: &Metrics) -> String {
    let of = |result: &str| format!("{result} {}", travelled(metrics, result));
    let results =
        ["together", "alone", "sent_again", "given_up", "not_possible"].map(of).join(", ");
    format!("{} batches, {results}", batches(metrics))
}

fn batches(metrics: &Metrics) -> u64 {
    metrics.get("outrigger_batches_total", &[("route", "all")]) as u64
}

#[tokio::test]
async fn a_crowd_shares_calls_and_each_gets_its_own() {
    let simulator = Simulator::start(Options::named("stable"));
    let batch = "batch: { window: 20ms, requests: 8, bytes: 1MiB }";
    let proxy = Proxy::start(&one_backend(&[&simulator], "", batch)).await;
    let load = Load::of(640).at_once(32);
    let report = load.run(proxy.address(), |index| embed(text(index))).await;
    assert_eq!(report.ok(), 640, "{:?}", report.outcomes());
    let calls = simulator.state().requests();
    assert!(calls < 320, "640 requests in {calls} calls");
    for sample in &report.samples {
        let (own, expected) =
            (sample.answer.as_ref().expect("an answer"), embed(text(sample.index)));
        let (own, expected) = (own.json(), expected.send(simulator.addr).await.json());
        assert_eq!(own["data"], expected["data"], "{}", sample.index);
    }
    let metrics = proxy.metrics().await;
    let (together, alone) = (travelled(&metrics, "together"), travelled(&metrics, "alone"));
    assert_eq!((together + alone, batches(&metrics) + alone), (640, calls), "{}", told(&metrics));
    assert!(together <= batches(&metrics) * FULL as u64 && together >= batches(&metrics) * 2);
}

#[tokio::test]
async fn what_is_sent_together_is_as_if_it_had_been_sent_alone() {
    let table = Table::set("").await;
    table.expects_company(embed).await;
    let before = table.calls();
    let answers = at_once(table.address(), full_table()).await;
    assert_eq!(table.calls(), before + 1);
    assert_eq!(calls_of(&answers).len(), 1);
    expect_own(&table, &answers, |index| embed(text(index))).await;
    let ids: BTreeSet<_> = answers.iter().map(|answer| answer.json()["id"].to_string()).collect();
    assert_eq!(ids.len(), FULL, "an id is somebody's own: {ids:?}");
    let metrics = table.proxy.metrics().await;
    assert_eq!((batches(&metrics), travelled(&metrics, "together")), (1, FULL as u64));
}

#[tokio::test]
async fn usage_adds_up_to_what_the_server_counted() {
    let table = Table::set("").await;
    table.expects_company(embed).await;
    let counted = async || {
        let page = Call::get("/metrics").send(table.simulator.addr).await.text();
        Metrics::parse(&page).get("vllm:prompt_tokens_total", &[]) as u64
    };
    let before = counted().await;
    let answers = at_once(table.address(), full_table()).await;
    let whole = counted().await - before;
    assert_eq!(calls_of(&answers).len(), 1);
    assert!(whole > FULL as u64);
    assert_eq!((usage(&answers, "prompt_tokens"), usage(&answers, "total_tokens")), (whole, whole));
    assert!(answers.iter().all(|answer| answer.json()["usage"]["prompt_tokens"] != 0));
}

#[tokio::test]
async fn texts_and_lists_of_texts_share_a_call() {
    let table = Table::set("").await;
    table.expects_company(embed).await;
    let inputs = [
        json!("a"),
        json!(["b", "c", "d"]),
        json!(["e"]),
        json!("f\u{0}\"\\ ü \u{1f6f6}"),
        json!(["g", "h"]),
    ];
    let answers = at_once(table.address(), inputs.iter().cloned().map(embed)).await;
    assert_eq!(calls_of(&answers).len(), 1);
    expect_own(&table, &answers, |index| embed(inputs[index].clone())).await;
}

#[tokio::test]
async fn token_ids_and_lists_of_them_share_a_call_but_not_with_texts() {
    let table = Table::set("").await;
    table.expects_company(embed).await;
    expect_company(&table.proxy, &[&table.simulator], json!([7, 7, 7]), embed).await;
    let tokens = [
        json!([1, 2, 3]),
        json!([[4], [5, 6]]),
        json!([[7, 8]]),
        json!(vec![9; 20]),
        json!([[1], [2], [3]]),
    ];
    let texts = (0..FULL).map(|index| json!(text(index)));
    let inputs: Vec<Value> = tokens.iter().cloned().chain(texts).collect();
    let answers = at_once(table.address(), inputs.iter().cloned().map(embed)).await;
    let (of_tokens, of_texts) = answers.split_at(tokens.len());
    assert_eq!((calls_of(of_tokens).len(), calls_of(of_texts).len()), (1, 1));
    assert_ne!(calls_of(of_tokens), calls_of(of_texts));
    expect_own(&table, &answers, |index| embed(inputs[index].clone())).await;
    for (answer, own) in of_tokens.iter().zip([3, 3, 2, 20, 3]) {
        let tokens = answer.json()["usage"]["prompt_tokens"].as_u64();
        assert!(tokens >= Some(own), "its ids are certain: {}", answer.text());
    }
}

#[tokio::test]
async fn completions_share_a_call_with_all_their_choices() {
    let table = Table::set("").await;
    let ask = |prompt: Value| complete(prompt).field("n", 3);
    table.expects_company(ask).await;
    let prompts = [json!("a"), json!(["b", "c", "d"]), json!(["e"]), json!("f"), json!(["g", "h"])];
    let before = table.calls();
    let answers = at_once(table.address(), prompts.iter().cloned().map(ask)).await;
    assert_eq!((table.calls(), calls_of(&answers).len()), (before + 1, 1));
    expect_own(&table, &answers, |index| ask(prompts[index].clone())).await;
    for (answer, prompts) in answers.iter().zip([1, 3, 1, 1, 2]) {
        let body = answer.json();
        let indexes: Vec<_> = body["choices"].as_array().expect("a list").iter().collect();
        let indexes: Vec<_> = indexes.iter().map(|choice| choice["index"].as_u64()).collect();
        assert_eq!(indexes, (0..3 * prompts).map(Some).collect::<Vec<_>>());
        // Each choice is five tokens long, as was asked for: that is certain and not shared out.
        assert_eq!(body["usage"]["completion_tokens"], 3 * prompts * 5, "{body}");
    }
    assert_eq!(usage(&answers, "prompt_tokens"), FULL as u64, "one token each");
}

#[tokio::test]
async fn completions_of_unequal_length_keep_their_texts_and_the_sum_of_their_tokens() {
    let simulator = Simulator::start(Options::named("stable").fast());
    let proxy = Proxy::start(&patient(&[&simulator], "")).await;
    let table = Table { simulator, proxy };
    // Without a limit each answer has a length of its own.
    let ask = |prompt: Value| Call::post(COMPLETIONS).json(json!({"model": "m", "prompt": prompt}));
    table.expects_company(ask).await;
    let calls = (0..FULL).map(|index| ask(text(index).into()));
    let answers = at_once(table.address(), calls).await;
    assert_eq!(calls_of(&answers).len(), 1);
    expect_own(&table, &answers, |index| ask(text(index).into())).await;
    let mut alone = 0;
    for index in 0..FULL {
        alone += usage(&[table.alone(ask(text(index).into())).await], "completion_tokens");
    }
    assert_eq!(usage(&answers, "completion_tokens"), alone);
}

#[tokio::test]
async fn what_does_not_matter_to_the_answer_does_not_keep_requests_apart() {
    let table = Table::set("").await;
    table.expects_company(embed).await;
    let body = |index: usize| match index % 4 {
        0 => format!(r#"{{"model":"m","input":"{index}"}}"#),
        1 => format!(r#" {{ "input" : [ "{index}" ] , "model" : "m" }} "#),
        2 => format!(r#"{{"input":"{index}","m\u006fdel":"\u006d"}}"#),
        _ => format!("{{\n\t\"model\": \"m\",\n\t\"input\": \"{index}\"\n}}\n"),
    };
    let calls = (0..FULL).map(|index| {
        let call = Call::post(EMBEDDINGS).header("content-type", "application/json");
        call.body(body(index))
            .header("user-agent", &format!("canoe/{index}"))
            .header("x-request-id", &format!("request-{index}"))
            .header("traceparent", &format!("00-{:032x}-{:016x}-01", index + 1, index + 1))
            .header("x-stainless-retry-count", &index.to_string())
            .header("accept-encoding", if index % 2 == 0 { "gzip" } else { "identity" })
    });
    let answers = at_once(table.address(), calls).await;
    assert_eq!(calls_of(&answers).len(), 1, "they travel together");
    expect_own(&table, &answers, |index| embed(index.to_string())).await;
    let lines = table.proxy.await_access(CROWD + FULL).await;
    let ids = lines.iter().filter_map(|line| line["request_id"].as_str());
    let own = ids.filter(|id| id.starts_with("request-")).collect::<BTreeSet<_>>();
    assert_eq!(own.len(), FULL, "each keeps its id in the log: {own:?}");
}

#[tokio::test]
async fn clients_of_both_protocols_share_a_call_to_a_server_of_either() {
    for protocol in ["http1", "h2c"] {
        let simulator = sim("stable");
        let backend = format!("protocol: {protocol}");
        let proxy = Proxy::start(&one_backend(&[&simulator], &backend, PATIENT)).await;
        let table = Table { simulator, proxy };
        let h1 = |input: Value| embed(input).host("api.example.com");
        table.expects_company(h1).await;
        let client = Client::connect(table.address(), Protocol::H2).await;
        let mut sent = Vec::new();
        for index in 0..FULL {
            let (mut shared, to) = (client.share(), table.address());
            sent.push(tokio::spawn(async move {
                let call = embed(text(index)).host("api.example.com");
                if index % 2 == 0 {
                    call.send(to).await
                } else {
                    shared.send(call).await.expect("one")
                }
            }));
        }
        let mut answers = Vec::new();
        for answer in sent {
            answers.push(answer.await.expect("every request is answered"));
        }
        assert_eq!(calls_of(&answers).len(), 1, "{protocol}");
        expect_own(&table, &answers, |index| embed(text(index))).await;
        let versions: BTreeSet<_> = answers.iter().map(|answer| &*answer.version).collect();
        assert_eq!(versions, BTreeSet::from(["HTTP/1.1", "HTTP/2.0"]));
    }
}

#[tokio::test]
async fn a_client_that_waits_to_be_asked_for_its_body_is_asked() {
    let table = Table::set("").await;
    let like = |input: Value| embed(input).host("test");
    table.expects_company(like).await;
    let others =
        tokio::spawn(at_once(table.address(), (1..FULL).map(move |i| like(text(i).into()))));
    let body = json!({"model": "m", "input": text(0)}).to_string();
    let mut raw = Raw::connect(table.address()).await;
    raw.send(format!(
        "POST {EMBEDDINGS} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n\
         expect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        body.len()
    ))
    .await;
    assert_eq!(raw.head().await.expect("a head").status, 100);
    raw.send(body).await;
    let own = raw.response().await;
    let others = others.await.expect("every request is answered");
    let id = own.json::<Value>()["id"].as_str().unwrap_or_default().to_owned();
    assert!(id.starts_with(calls_of(&others).first().expect("a call")), "{id}");
    let expected = table.alone(embed(text(0))).await.json();
    assert_eq!(own.json::<Value>()["data"], expected["data"]);
}

#[tokio::test]
async fn prompts_of_many_kilobytes_fill_a_batch_by_their_bytes() {
    let table = Table::set("").await;
    table.expects_company(embed).await;
    let long = |index: usize| embed(format!("{index}").repeat(300 << 10));
    // Three are all that fits into a mebibyte.
    let answers = at_once(table.address(), (0..6).map(long)).await;
    expect_own(&table, &answers, long).await;
    for call in calls_of(&answers) {
        let members = answers.iter().filter(|answer| call_of(answer) == call).count();
        assert!(members <= 3, "{members} in one call");
    }
    let metrics = table.proxy.metrics().await;
    assert!(travelled(&metrics, "together") >= 3, "{}", told(&metrics));
}

/// The median time of a request at a route, one after the other.
async fn median(proxy: &Proxy, protocol: Protocol, host: &'static str) -> Duration {
    let load = Load::of(200).over(protocol);
    let report = load.run(proxy.address(), move |index| embed(text(index)).host(host)).await;
    assert_eq!(report.ok(), 200, "{:?}", report.outcomes());
    report.quantile(0.5)
}

#[tokio::test]
async fn a_client_alone_pays_no_waiting() {
    let simulator = sim("stable");
    let yaml = format!(
        "backends: {{ stable: {{ endpoints: ['{}'] }} }}\n\
         routes:\n  - {{ name: plain, match: {{ host: plain }}, backend: stable }}\n  \
         - {{ name: all, backend: stable, batch: {{ window: 500ms, requests: 8, bytes: 1MiB }} }}\n",
        simulator.addr
    );
    let proxy = Proxy::start(&yaml).await;
    for protocol in [Protocol::Http1, Protocol::H2] {
        let plain = median(&proxy, protocol, "plain").await;
        let batched = median(&proxy, protocol, "batched").await;
        // The shortest time that anybody waits for company is an eighth of the window.
        let waited = Duration::from_millis(500 / 8);
        assert!(batched < plain + waited, "{protocol:?}: {batched:?} {plain:?}");
    }
    let metrics = proxy.metrics().await;
    assert_eq!((travelled(&metrics, "alone"), batches(&metrics)), (400, 0), "{}", told(&metrics));
}

#[tokio::test]
async fn a_rewritten_model_is_what_the_server_sees_for_all() {
    let simulator = Simulator::start(Options::named("stable").fast().models(&["real"]));
    let proxy = Proxy::start(&patient(&[&simulator], "rewrite: { model: real }")).await;
    let table = Table { simulator, proxy };
    let ask = |input: Value| embed(input).model("alias");
    table.expects_company(ask).await;
    let answers = at_once(table.address(), (0..FULL).map(|i| ask(text(i).into()))).await;
    assert_eq!(calls_of(&answers).len(), 1);
    expect_own(&table, &answers, |index| embed(text(index)).model("real")).await;
}

#[tokio::test]
async fn each_batched_request_has_a_whole_line_in_the_access_log() {
    let table = Table::set("").await;
    table.expects_company(embed).await;
    let answers = at_once(table.address(), full_table()).await;
    assert_eq!(calls_of(&answers).len(), 1);
    let lines = table.proxy.await_access(CROWD + FULL).await;
    let lines: Vec<_> = lines.iter().filter(|line| line["outcome"] != "client_gone").collect();
    assert_eq!(lines.len(), FULL, "{lines:?}");
    for (index, answer) in answers.iter().enumerate() {
        let sent = json!({"model": "m", "input": text(index)}).to_string().len();
        let own =
            |line: &&&Value| line["bytes_in"] == sent && line["bytes_out"] == answer.body.len();
        let line = lines.iter().find(own).unwrap_or_else(|| {
            table
                .proxy
                .process()
                .fail(&format!("no line for {sent} and {} bytes", answer.body.len()))
        });
        let tokens = answer.json()["usage"]["prompt_tokens"].clone();
        for (field, value) in [
            ("status", json!(200)),
            ("outcome", json!("ok")),
            ("method", json!("POST")),
            ("path", json!(EMBEDDINGS)),
            ("route", json!("all")),
            ("arm", json!("stable")),
            ("endpoint", json!(table.simulator.endpoint())),
            ("attempts", json!(1)),
            ("tokens_in", tokens),
        ] {
            assert_eq!(line[field], value, "{field} in {line}");
        }
        for field in ["duration_ms", "first_byte_ms"] {
            assert!(line[field].as_f64().is_some_and(|ms| ms > 0.0), "{field} in {line}");
        }
    }
}

#[tokio::test]
async fn metrics_count_batched_requests_as_any_other() {
    let table = Table::set("").await;
    table.expects_company(embed).await;
    let name = "outrigger_requests_total";
    let labels = [("route", "all"), ("arm", "stable"), ("outcome", "ok"), ("code", "200")];
    let answers = at_once(table.address(), full_table()).await;
    assert_eq!(calls_of(&answers).len(), 1);
    let metrics = table.proxy.await_metrics(|m| m.get(name, &labels) == FULL as f64).await;
    let sent: usize = answers.iter().map(|answer| answer.body.len()).sum();
    assert_eq!(metrics.get("outrigger_response_bytes_total", &[]), sent as f64);
    let tokens = metrics.get("outrigger_tokens_total", &[("direction", "in")]);
    assert_eq!(tokens, usage(&answers, "prompt_tokens") as f64);
    let calls = [("backend", "stable"), ("outcome", "ok")];
    assert_eq!(metrics.get("outrigger_endpoint_requests_total", &calls), 1.0, "one call");
    assert_eq!(metrics.get("outrigger_first_byte_seconds_count", &[("route", "all")]), FULL as f64);
    await_idle(&table.proxy).await;
}

#[tokio::test]
async fn openai_python_gets_the_right_embeddings_through_batches() {
    let simulator = Simulator::start(Options::named("stable").models(&["sim-model"]));
    let batch = "batch: { window: 50ms, requests: 8, bytes: 1MiB }";
    let proxy = Proxy::start(&one_backend(&[&simulator], "", batch)).await;
    let base = format!("http://{}/v1", proxy.address());
    for subject in ["embeds_one_by_one", "embeds_at_once", "completes_at_once"] {
        if !script("openai_batches.py", &[subject, &base]).await {
            return;
        }
    }
    let metrics = proxy.metrics().await;
    assert!(travelled(&metrics, "together") > 0, "{}", told(&metrics));
    assert_eq!(travelled(&metrics, "sent_again"), 0, "{}", told(&metrics));
}
