//! Calls of gRPC end with its own status: in the head where nothing was sent, in the trailers after that.

use outrigger_tests::harness::{Call, Protocol, Proxy};

use crate::fleet::{one_backend, sim};

fn call(target: &str) -> Call {
    Call::post(target).header("content-type", "application/grpc").over(Protocol::H2)
}

#[tokio::test]
async fn a_deadline_that_passes_before_the_first_byte_is_a_status_in_the_head() {
    let one = sim("one");
    let config =
        one_backend(&[&one], "protocol: h2c", "retry: off, deadline: { first_byte: 200ms }");
    let proxy = Proxy::start(&config).await;
    let answer = call("/bytes/10").fault("stall_first_byte").send(proxy.address()).await;
    assert_eq!((answer.status, answer.header("grpc-status")), (200, Some("4")), "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/grpc"));
    assert!(answer.header("grpc-message").is_some_and(|text| text.contains("first_byte")));
    let ended = [("outcome", "first_byte_timeout")];
    proxy.await_metrics(|m| m.get("outrigger_requests_total", &ended) == 1.0).await;
}

#[tokio::test]
async fn a_response_that_falls_silent_ends_with_a_status_in_the_trailers() {
    let one = sim("one");
    let config = one_backend(&[&one], "protocol: h2c", "retry: off, deadline: { gap: 200ms }");
    let proxy = Proxy::start(&config).await;
    let call = call("/bytes/1000?chunked=1").fault("stall_mid=1");
    let answer = call.send(proxy.address()).await;
    let status = answer.trailers.get("grpc-status").and_then(|value| value.to_str().ok());
    assert_eq!((answer.status, status), (200, Some("4")), "{answer:?}");
    one.aborted().await;
}

#[tokio::test]
async fn a_client_without_time_left_is_told_in_its_own_words() {
    let one = sim("one");
    let proxy = Proxy::start(&one_backend(&[&one], "protocol: h2c", "")).await;
    let answer = call("/bytes/10").header("grpc-timeout", "0n").send(proxy.address()).await;
    assert_eq!((answer.status, answer.header("grpc-status")), (200, Some("4")), "{answer:?}");
    assert_eq!(one.state().requests(), 0);
}
