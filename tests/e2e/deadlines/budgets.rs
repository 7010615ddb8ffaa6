//! The time that a client gives: it bounds the request, and what is left of it goes on to the endpoint.

use std::time::Duration;

use outrigger_tests::harness::{Answer, Call, Proxy};
use outrigger_tests::sim::Simulator;

use crate::fleet::{attempts, chat, error_code, one_backend, sim};

async fn start(one: &Simulator, deadline: &str) -> Proxy {
    Proxy::start(&one_backend(&[one], "", &format!("retry: off, deadline: {{ {deadline} }}"))).await
}

/// The milliseconds in a field as the endpoint saw it.
fn told(answer: &Answer, name: &str) -> Option<u64> {
    let echo = answer.echo();
    echo.header(name).map(|value| value.trim_end_matches('m').parse().expect("a number"))
}

#[tokio::test]
async fn each_of_three_fields_bounds_the_request() {
    let one = sim("one");
    let proxy = start(&one, "total: 1m").await;
    for (name, value) in [
        ("grpc-timeout", "300m"),
        ("x-envoy-expected-rq-timeout-ms", "300"),
        ("x-request-timeout-ms", "300"),
    ] {
        let answer =
            chat().header(name, value).fault("stall_first_byte").send(proxy.address()).await;
        assert_eq!((answer.status, &*error_code(&answer)), (504, "total_timeout"), "{name}");
        assert!(answer.text().contains("the client's own"), "{}", answer.text());
        let after = answer.head_after;
        assert!(
            after >= Duration::from_millis(300) && after < Duration::from_secs(20),
            "{after:?}"
        );
        one.aborted().await;
    }
    let obeyed = [("route", "all"), ("result", "obeyed")];
    assert_eq!(proxy.metrics().await.get("outrigger_client_budgets_total", &obeyed), 3.0);
}

#[tokio::test]
async fn the_shorter_of_budget_and_total_holds() {
    let one = sim("one");
    let proxy = start(&one, "total: 300ms").await;
    let call = chat().header("x-request-timeout-ms", "60000").fault("stall_first_byte");
    let answer = call.send(proxy.address()).await;
    assert_eq!((answer.status, &*error_code(&answer)), (504, "total_timeout"));
    assert!(!answer.text().contains("the client's own"), "{}", answer.text());
    let call = Call::get("/echo").header("x-request-timeout-ms", "60000");
    let left = told(&call.send(proxy.address()).await, "x-request-timeout-ms").expect("told");
    assert!((1..=300).contains(&left), "what is left is that of the route: {left}");
}

#[tokio::test]
async fn what_is_left_is_passed_on_in_the_field_that_the_client_used() {
    let one = sim("one");
    let proxy = start(&one, "total: off").await;
    let all = ["grpc-timeout", "x-envoy-expected-rq-timeout-ms", "x-request-timeout-ms"];
    for (used, value) in all.into_iter().zip(["60S", "60000", "60000"]) {
        let answer = Call::get("/echo").header(used, value).send(proxy.address()).await;
        for name in all {
            let left = told(&answer, name);
            let right = left.is_some_and(|left| (1..=60_000).contains(&left));
            assert_eq!(right, name == used, "{used}: {name} is {left:?}");
        }
    }
}

#[tokio::test]
async fn a_second_attempt_is_told_less() {
    let (a, b) = (sim("a"), sim("b"));
    let proxy = Proxy::start(&one_backend(&[&a, &b], "balance: round_robin", "")).await;
    for _ in 0..2 {
        let call = Call::get("/echo").header("x-request-timeout-ms", "60000");
        let answer = call.fault("status=503;retry_after=1;at=a").send(proxy.address()).await;
        assert_eq!(answer.status, 200);
        if attempts(&answer) == 2 {
            let left = told(&answer, "x-request-timeout-ms").expect("told");
            assert!((1..=59_000).contains(&left), "a second of it was waited: {left}");
            return;
        }
    }
    panic!("no request was tried twice");
}

#[tokio::test]
async fn a_budget_that_is_spent_is_504_before_anything_is_sent() {
    let one = sim("one");
    let proxy = start(&one, "total: 1m").await;
    for (name, value) in
        [("grpc-timeout", "0m"), ("grpc-timeout", "1n"), ("x-request-timeout-ms", "0")]
    {
        let answer = chat().header(name, value).send(proxy.address()).await;
        assert_eq!(
            (answer.status, &*error_code(&answer)),
            (504, "total_timeout"),
            "{name}: {value}"
        );
    }
    assert_eq!(one.state().requests(), 0);
    let spent = [("route", "all"), ("result", "exhausted")];
    assert_eq!(proxy.metrics().await.get("outrigger_client_budgets_total", &spent), 3.0);
}

#[tokio::test]
async fn a_budget_that_can_not_be_read_is_passed_over_and_counted() {
    let one = sim("one");
    let proxy = start(&one, "total: off").await;
    for value in ["soon", "-5", "1.5", ""] {
        let answer =
            Call::get("/echo").header("x-request-timeout-ms", value).send(proxy.address()).await;
        assert_eq!(answer.status, 200, "{value:?}");
        assert_eq!(
            answer.echo().header("x-request-timeout-ms"),
            Some(value),
            "it goes on as it came"
        );
    }
    let odd = [("route", "all"), ("result", "odd")];
    assert_eq!(proxy.metrics().await.get("outrigger_client_budgets_total", &odd), 4.0);
}

#[tokio::test]
async fn a_route_can_leave_budgets_alone() {
    let one = sim("one");
    let proxy = start(&one, "client_budget: false").await;
    let answer = Call::get("/echo").header("x-request-timeout-ms", "0").send(proxy.address()).await;
    assert_eq!((answer.status, told(&answer, "x-request-timeout-ms")), (200, Some(0)));
    assert!(!proxy.metrics().await.has("outrigger_client_budgets_total", &[]));
}

#[tokio::test]
async fn every_endpoint_is_told_where_the_route_wants_it() {
    let one = sim("one");
    let proxy = start(&one, "total: 1m, tell_endpoint: grpc-timeout").await;
    let left = told(&Call::get("/echo").send(proxy.address()).await, "grpc-timeout");
    assert!(left.is_some_and(|left| (1..=60_000).contains(&left)), "{left:?}");
    let proxy = start(&one, "total: off, tell_endpoint: grpc-timeout").await;
    let left = told(&Call::get("/echo").send(proxy.address()).await, "grpc-timeout");
    assert_eq!(left, None, "there is no bound to tell of");
}
