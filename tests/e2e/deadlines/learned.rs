//! Deadlines that are learned: from traffic, far below the fixed default, and wider again when everything is slower.

use std::process::Command;
use std::time::{Duration, Instant};

use outrigger_tests::harness::{Answer, Call, Proxy, program};
use outrigger_tests::sim::{Options, Simulator};
use serde_json::Value;

use super::cut;
use crate::fleet::{attempts, chat, error_code, one_backend, reload, sim};
use outrigger_tests::harness::Protocol;

/// More than enough for a deadline to be learned.
const LESSONS: usize = 60;

/// No request of a test has the ceiling by chance.
const LEARNED: &str = "deadline: { first_byte: { floor: 300ms, explore: 0% } }";

async fn teach(proxy: &Proxy) {
    for _ in 0..LESSONS {
        assert_eq!(chat().send(proxy.address()).await.status, 200);
    }
}

/// Everything that the route has learned, as the admin interface tells it.
async fn learned(proxy: &Proxy) -> Value {
    proxy.admin_get("/endpoints").await.json()[0]["deadlines"][0].clone()
}

/// A 504 far before the ceiling of two minutes, and not before the floor.
fn cut_off_soon(answer: &Answer) {
    assert_eq!((answer.status, &*error_code(answer)), (504, "first_byte_timeout"));
    let after = answer.head_after;
    assert!(after >= Duration::from_millis(300) && after < Duration::from_secs(20), "{after:?}");
}

#[tokio::test]
async fn an_endpoint_that_hangs_is_cut_off_far_before_the_fixed_default() {
    let one = sim("one");
    let proxy = Proxy::start(&one_backend(&[&one], "", &format!("retry: off, {LEARNED}"))).await;
    teach(&proxy).await;
    cut_off_soon(&chat().fault("stall_first_byte").send(proxy.address()).await);
    one.aborted().await;
    let log = proxy.await_access(LESSONS + 1).await;
    let deadline = |line: &Value| line["deadline_ms"].as_f64().expect("a deadline");
    assert_eq!(deadline(&log[0]), 120_000.0, "nothing was known at first: {}", log[0]);
    assert!(deadline(&log[LESSONS]) < 20_000.0, "{}", log[LESSONS]);
    let metrics = proxy.metrics().await;
    let set = |basis| {
        let labels = [("deadline", "first_byte"), ("basis", basis), ("arm", "stable")];
        metrics.get("outrigger_deadlines_total", &labels)
    };
    assert_eq!(set("unknown") + set("learned"), (LESSONS + 1) as f64);
    assert!(set("unknown") >= 20.0 && set("learned") >= 20.0, "{}", metrics.text);
    let count = [("deadline", "first_byte")];
    assert_eq!(metrics.get("outrigger_deadline_seconds_count", &count), (LESSONS + 1) as f64);
}

#[tokio::test]
async fn without_enough_samples_the_ceiling_holds() {
    let one = sim("one");
    let route = "retry: off, deadline: { first_byte: { ceiling: 700ms, floor: 1ms } }";
    let proxy = Proxy::start(&one_backend(&[&one], "", route)).await;
    assert_eq!(chat().send(proxy.address()).await.status, 200);
    let answer = chat().fault("stall_first_byte").send(proxy.address()).await;
    assert_eq!(error_code(&answer), "first_byte_timeout");
    assert!(answer.head_after >= Duration::from_millis(700), "{:?}", answer.head_after);
}

#[tokio::test]
async fn what_hangs_at_a_silent_endpoint_is_served_by_another() {
    let (a, b) = (sim("a"), sim("b"));
    let balance = "balance: round_robin, ejection: off";
    let proxy = Proxy::start(&one_backend(&[&a, &b], balance, LEARNED)).await;
    teach(&proxy).await;
    // One of two in turn gets to the endpoint that hangs.
    for _ in 0..2 {
        let answer = chat().fault("stall_first_byte;at=a").send(proxy.address()).await;
        assert_eq!((answer.status, answer.by()), (200, "b"));
        if attempts(&answer) == 2 {
            let retried = [("route", "all"), ("reason", "stalled")];
            assert_eq!(proxy.metrics().await.get("outrigger_retries_total", &retried), 1.0);
            return;
        }
    }
    panic!("no request got to the endpoint that hangs");
}

#[tokio::test]
async fn a_backend_that_became_slower_is_tolerated_after_a_few_requests() {
    let one = Simulator::start(Options::named("one").steady(Duration::from_millis(10)));
    let route = "retry: off, deadline: { first_byte: { floor: 20ms, explore: 0% } }";
    let proxy = Proxy::start(&one_backend(&[&one], "ejection: off", route)).await;
    let ask = || Call::chat("how deep?").max_tokens(1);
    for _ in 0..LESSONS {
        ask().send(proxy.address()).await;
    }
    one.set_slowdown(30.0);
    let mut in_a_row = 0;
    for sent in 0..80 {
        match ask().send(proxy.address()).await.status {
            200 => in_a_row += 1,
            504 => in_a_row = 0,
            other => panic!("{other}"),
        }
        if in_a_row == 10 {
            assert!(sent < 70);
            return;
        }
    }
    panic!("80 requests later it is still cut off: {:#}", learned(&proxy).await);
}

#[tokio::test]
async fn a_stream_that_falls_silent_is_cut_after_what_was_learned_of_gaps() {
    let one = sim("one");
    let route = "retry: off, deadline: { gap: { floor: 300ms, explore: 0% } }";
    let proxy = Proxy::start(&one_backend(&[&one], "", route)).await;
    for _ in 0..LESSONS {
        let call = Call::get("/events/5?gap=2");
        assert!(call.open(proxy.address()).await.events().await.is_complete());
    }
    assert!(learned(&proxy).await["gap"]["samples"].as_f64().expect("samples") > 20.0);
    let began = Instant::now();
    let call = chat().max_tokens(40).streaming().fault("stall_mid=3");
    let transcript = call.open(proxy.address()).await.events().await;
    cut(&transcript, Protocol::Http1, "gap_timeout", 3);
    // The fixed default is a minute.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_share_of_requests_explores_and_calibrates() {
    let one = sim("one");
    let route = "retry: off, deadline: { first_byte: { floor: 300ms, explore: 50% } }";
    let proxy = Proxy::start(&one_backend(&[&one], "", route)).await;
    for _ in 0..2 {
        teach(&proxy).await;
    }
    let metrics = proxy.metrics().await;
    let explored = |result| {
        let labels = [("deadline", "first_byte"), ("result", result)];
        metrics.get("outrigger_deadlines_explored_total", &labels)
    };
    // Of about ninety; that none of them is drawn has a chance of 2^-90.
    assert!(explored("in_time") + explored("late") > 0.0, "{}", metrics.text);
    assert_eq!(explored("never"), 0.0);
    let late = learned(&proxy).await["late_share"]["first_byte"].as_f64().expect("a share");
    assert!((0.0..=1.0).contains(&late));
}

#[tokio::test]
async fn what_was_learned_lives_through_a_reload_that_leaves_the_deadlines_alone() {
    let one = sim("one");
    let config = |route: &str| one_backend(&[&one], "", &format!("{route}, {LEARNED}"));
    let proxy = Proxy::start(&config("retry: off")).await;
    teach(&proxy).await;
    let samples = |learned: &Value| learned["first_byte"][0]["samples"].as_f64();
    let before = samples(&learned(&proxy).await).expect("samples");
    reload(&proxy, &config("errors: openai")).await;
    assert_eq!(samples(&learned(&proxy).await), Some(before));
    let other = one_backend(&[&one], "", "deadline: { first_byte: { strategy: rto } }");
    reload(&proxy, &other).await;
    assert_eq!(samples(&learned(&proxy).await), None, "another strategy begins anew");
    reload(&proxy, &one_backend(&[&one], "", "retry: off")).await;
    let page = proxy.admin_get("/endpoints").await.json();
    assert_eq!(page[0]["deadlines"], Value::Array(vec![]), "nothing is learned any more");
}

#[tokio::test]
async fn explain_tells_the_estimates_of_the_running_proxy() {
    let one = sim("one");
    let proxy = Proxy::start(&one_backend(&[&one], "", "deadline: adaptive")).await;
    let explain = async || {
        let mut command = Command::new(program());
        command.args(["explain", "--path", "/v1/chat/completions", "--config"]);
        command.arg(proxy.config_file()).arg("--admin").arg(proxy.admin().to_string());
        let output = tokio::task::spawn_blocking(move || command.output()).await;
        let output = output.expect("it ends").expect("the program can be run");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let text = explain().await;
    let rules = "first byte learned by quantile within 1s to 120s, gap learned by quantile within 2s to 60s";
    assert!(text.contains(rules), "{text}");
    assert!(text.contains("learned  nothing yet"), "{text}");
    teach(&proxy).await;
    let text = explain().await;
    assert!(text.contains("learned  stable       first byte, whole, from 0 tokens: "), "{text}");
}

#[tokio::test]
async fn every_strategy_learns() {
    for strategy in ["quantile", "mean_stddev", "rto"] {
        let one = sim("one");
        let rule = format!("{{ strategy: {strategy}, floor: 300ms, explore: 0% }}");
        let route = format!("retry: off, deadline: {{ first_byte: {rule}, connect: {rule} }}");
        let proxy = Proxy::start(&one_backend(&[&one], "idle_connections: 0", &route)).await;
        teach(&proxy).await;
        cut_off_soon(&chat().fault("stall_first_byte").send(proxy.address()).await);
    }
}
