//! How fast anybody may ask, and what they are told.

use outrigger_tests::harness::{Call, Load, Proxy};
use outrigger_tests::sim::Simulator;

use super::{number, told_to_retry};
use crate::clients::script;
use crate::fleet::{ended, error_code, one_backend, plain, sim};

async fn start(rates: &str) -> (Simulator, Proxy) {
    let engine = sim("a");
    let route = format!("retry: off, rates: [{rates}]");
    let proxy = Proxy::start(&one_backend(&[&engine], "", &route)).await;
    (engine, proxy)
}

#[tokio::test]
async fn a_burst_gets_through_and_then_nobody_before_the_time_that_is_told() {
    let (_engine, proxy) = start("{ requests: 60/h, burst: 3 }").await;
    for left in [2, 1, 0] {
        let answer = plain().send(proxy.address()).await;
        assert_eq!(answer.status, 200);
        assert_eq!(number(&answer, "x-ratelimit-limit-requests"), 3);
        assert_eq!(number(&answer, "x-ratelimit-remaining-requests"), left);
        let reset = answer.header("x-ratelimit-reset-requests").expect("a duration");
        assert!(reset.ends_with(['s', 'm']), "{reset}");
        assert_eq!(answer.header("x-ratelimit-limit-tokens"), None);
    }
    let answer = Call::chat("one too many").send(proxy.address()).await;
    told_to_retry(&answer, 429, "rate_limited");
    assert_eq!(answer.json()["error"]["type"], "rate_limit_error");
    assert_eq!(number(&answer, "x-ratelimit-remaining-requests"), 0);
    // One each minute.
    let millis = number(&answer, "retry-after-ms");
    assert!((20_000..=60_000).contains(&millis), "{millis}");
    assert_eq!(ended(&proxy.metrics().await, "rate_limited", 429), 1.0);
}

#[tokio::test]
async fn not_one_more_gets_through_however_many_ask_at_once() {
    let (engine, proxy) = start("{ requests: 100/d, burst: 37 }").await;
    let report = Load::of(300).at_once(30).run(proxy.address(), |_| plain()).await;
    assert_eq!((report.ok(), report.status(429)), (37, 263), "{:?}", report.outcomes());
    assert_eq!(engine.state().paths["/bytes/1"], 37);
    let results = [("result", "allowed"), ("result", "requests")];
    let metrics = proxy.metrics().await;
    let decided = results.map(|l| metrics.get("outrigger_rate_limit_decisions_total", &[l]));
    assert_eq!(decided, [37.0, 263.0]);
}

#[tokio::test]
async fn each_tenant_and_each_model_has_its_own() {
    let (_engine, proxy) =
        start("{ per: tenant, requests: 2/d }, { per: model, requests: 3/d }").await;
    let ask = |tenant: &str, model: &str| {
        let call = Call::chat("x").max_tokens(1).model(model);
        call.header("authorization", &format!("Bearer {tenant}")).send(proxy.address())
    };
    let mut statuses = Vec::new();
    for (tenant, model) in [
        ("ada", "m"),
        ("ada", "m"),
        ("ada", "n"), // her third
        ("bob", "m"), // the third of m
        ("eve", "m"), // the fourth of m: costs her nothing
        ("eve", "n"),
        ("eve", "n"),
        ("eve", "o"), // her third
    ] {
        statuses.push(ask(tenant, model).await.status);
    }
    assert_eq!(statuses, [200, 200, 429, 200, 429, 200, 200, 429]);
}

#[tokio::test]
async fn tokens_are_settled_by_what_the_engine_says() {
    let (_engine, proxy) = start("{ tokens: 1000/d }").await;
    let answer = Call::chat("how deep is the lagoon?").max_tokens(100).send(proxy.address()).await;
    assert_eq!(number(&answer, "x-ratelimit-limit-tokens"), 1_000);
    let used = answer.json()["usage"]["total_tokens"].as_u64().expect("a number");
    // A request without a prompt is charged a tenth of the one answer that was seen, until it has ended.
    proxy.await_access(1).await;
    let left = number(&plain().send(proxy.address()).await, "x-ratelimit-remaining-tokens");
    assert!(left == 990 - used || left == 991 - used, "{left} of 1000 left, {used} used");
    // The stream says nothing of usage: its events are counted.
    let streamed = Call::chat("x").max_tokens(500).streaming().send(proxy.address()).await;
    assert_eq!(streamed.status, 200);
    proxy.await_access(3).await;
    let left = number(&plain().send(proxy.address()).await, "x-ratelimit-remaining-tokens");
    assert!(left < 500 - used, "{left} left");
    // And now so much that nothing is left for another one of that size.
    let long = Call::chat(&"word ".repeat(400)).max_tokens(1).send(proxy.address()).await;
    told_to_retry_much_later(&long);
}

/// A day is longer than anybody waits; it is told all the same.
fn told_to_retry_much_later(answer: &outrigger_tests::harness::Answer) {
    assert_eq!((answer.status, &*error_code(answer)), (429, "rate_limited"), "{}", answer.text());
    assert!(number(answer, "retry-after") > 120 && answer.text().contains("tokens"));
}

#[tokio::test]
async fn a_request_that_can_never_be_allowed_is_told_not_to_come_back() {
    let (engine, proxy) = start("{ tokens: 1000/min, token_burst: 100 }").await;
    let answer = Call::chat(&"word ".repeat(400)).send(proxy.address()).await;
    assert_eq!((answer.status, &*error_code(&answer)), (429, "rate_limited"), "{}", answer.text());
    assert_eq!(answer.header("x-should-retry"), Some("false"));
    assert_eq!((answer.header("retry-after"), answer.header("retry-after-ms")), (None, None));
    assert_eq!(engine.state().in_flight, 0);
    let small = Call::chat("x").max_tokens(1).send(proxy.address()).await;
    assert_eq!(small.status, 200, "it cost nothing");
}

#[tokio::test]
async fn openai_python_comes_back_when_it_is_told_to() {
    let (engine, proxy) = start("{ requests: 2/s, burst: 1 }").await;
    let url = format!("http://{}/v1", proxy.address());
    if !script("openai_rates.py", &[&url]).await {
        return;
    }
    let limited = ended(&proxy.metrics().await, "rate_limited", 429);
    assert!(limited >= 1.0, "it was told to wait at least once");
    assert_eq!(engine.state().completed, 3);
}
