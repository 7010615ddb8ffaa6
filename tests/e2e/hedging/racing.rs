//! Who wins, and what happens when somebody fails, leaves or says no.

use std::time::Duration;

use outrigger_tests::harness::{Call, Metrics, Protocol, Proxy};
use outrigger_tests::sim::{Fault, Simulator};

use super::{IN_TURN, LATER, SOON, counted, hedges, two};
use crate::fleet::{attempts, await_idle, chat, ended, error_code, one_backend, sim};

async fn both_busy(a: &Simulator, b: &Simulator) {
    a.reached(|state| state.in_flight == 1).await;
    b.reached(|state| state.in_flight == 1).await;
}

#[tokio::test]
async fn the_first_attempt_may_still_win() {
    for upstream in ["http1", "h2c"] {
        let (a, b, proxy) = two(&format!("protocol: {upstream}, {IN_TURN}"), SOON).await;
        a.fault(Fault::StallFirstByte(Some(LATER)));
        b.fault(Fault::StallFirstByte(None));
        let answer = chat().send(proxy.address()).await;
        assert_eq!((answer.status, answer.by(), attempts(&answer)), (200, "a", 2));
        b.aborted().await;
        await_idle(&proxy).await;
        let metrics = proxy.await_metrics(|m| hedges(m, "lost") == 1.0).await;
        assert_eq!((counted(&metrics, &a), counted(&metrics, &b)), ((1.0, 0.0), (0.0, 1.0)));
    }
}

#[tokio::test]
async fn a_client_that_leaves_frees_both() {
    for upstream in ["http1", "h2c"] {
        for protocol in [Protocol::Http1, Protocol::H2] {
            let (a, b, proxy) = two(&format!("protocol: {upstream}, {IN_TURN}"), SOON).await;
            let call = chat().over(protocol).fault("stall_first_byte");
            let client = tokio::spawn(call.try_send(proxy.address()));
            both_busy(&a, &b).await;
            client.abort();
            a.aborted().await;
            b.aborted().await;
            await_idle(&proxy).await;
            let metrics = proxy.await_metrics(|m| hedges(m, "given_up") == 1.0).await;
            assert_eq!(metrics.get("outrigger_requests_in_flight", &[]), 0.0);
            let gone = [("outcome", "client_gone")];
            assert_eq!(metrics.get("outrigger_endpoint_requests_total", &gone), 2.0);
        }
    }
}

#[tokio::test]
async fn when_the_first_attempt_fails_the_hedge_goes_on() {
    for upstream in ["http1", "h2c"] {
        let (a, b, proxy) = two(&format!("protocol: {upstream}, {IN_TURN}"), SOON).await;
        a.fault(Fault::StallFirstByte(None));
        b.fault(Fault::StallFirstByte(Some(LATER)));
        let client = tokio::spawn(chat().send(proxy.address()));
        both_busy(&a, &b).await;
        a.hang_up();
        let answer = client.await.expect("an answer");
        assert_eq!((answer.status, answer.by(), attempts(&answer)), (200, "b", 2));
        let metrics = proxy.await_metrics(|m| hedges(m, "won") == 1.0).await;
        let reset = [("outcome", "upstream_reset"), ("endpoint", &*a.endpoint())];
        assert_eq!(metrics.get("outrigger_endpoint_requests_total", &reset), 1.0, "a has failed");
        assert_eq!(metrics.get("outrigger_retries_total", &[]), 0.0, "nothing was tried again");
    }
}

#[tokio::test]
async fn when_the_hedge_fails_the_first_attempt_goes_on() {
    for fault in ["reset;at=b", "garbage;at=b", "status=503;at=b", "status=500;at=b"] {
        let (a, b, proxy) = two(IN_TURN, SOON).await;
        a.fault(Fault::StallFirstByte(Some(LATER)));
        let answer = chat().fault(fault).send(proxy.address()).await;
        // A rule comes before the header only at a.
        assert_eq!((answer.status, answer.by(), attempts(&answer)), (200, "a", 2), "{fault}");
        let metrics = proxy.await_metrics(|m| hedges(m, "failed") == 1.0).await;
        assert_eq!(
            (counted(&metrics, &a), counted(&metrics, &b)),
            ((1.0, 0.0), (1.0, 0.0)),
            "{fault}"
        );
    }
}

#[tokio::test]
async fn a_hedge_that_finds_no_connection_leaves_the_first_attempt_alone() {
    let (a, b, proxy) = two(IN_TURN, SOON).await;
    b.refuse().await;
    a.fault(Fault::StallFirstByte(Some(LATER)));
    let answer = chat().send(proxy.address()).await;
    assert_eq!((answer.status, answer.by(), attempts(&answer)), (200, "a", 2));
    let metrics = proxy.await_metrics(|m| hedges(m, "failed") == 1.0).await;
    let refused = [("outcome", "connect_failed"), ("endpoint", &*b.endpoint())];
    assert_eq!(metrics.get("outrigger_endpoint_requests_total", &refused), 1.0);
}

#[tokio::test]
async fn when_both_fail_the_retry_policy_decides() {
    let simulators: Vec<_> = ["a", "b", "c"].map(sim).into();
    let all: Vec<_> = simulators.iter().collect();
    let proxy = Proxy::start(&one_backend(&all, IN_TURN, SOON)).await;
    let [a, b, c] = &simulators[..] else { unreachable!("three of them") };
    a.fault(Fault::StallFirstByte(None));
    b.fault(Fault::StallFirstByte(None));
    let client = tokio::spawn(chat().send(proxy.address()));
    both_busy(a, b).await;
    a.hang_up();
    proxy.await_metrics(|m| counted(m, a).0 == 1.0).await;
    b.hang_up();
    let answer = client.await.expect("an answer");
    assert_eq!((answer.status, answer.by(), attempts(&answer)), (200, "c", 3));
    assert_eq!(c.state().requests(), 1);
    let retries = |m: &Metrics| m.get("outrigger_retries_total", &[("reason", "reset")]);
    assert_eq!(retries(&proxy.metrics().await), 1.0);
}

#[tokio::test]
async fn when_both_fail_and_nobody_is_left_the_client_is_told() {
    let (a, b, proxy) = two(IN_TURN, SOON).await;
    a.fault(Fault::StallFirstByte(None));
    b.fault(Fault::StallFirstByte(None));
    let client = tokio::spawn(chat().send(proxy.address()));
    both_busy(&a, &b).await;
    a.hang_up();
    b.hang_up();
    let answer = client.await.expect("an answer");
    assert_eq!((answer.status, &*error_code(&answer)), (502, "upstream_reset"));
    proxy.await_metrics(|m| ended(m, "upstream_reset", 502) == 1.0).await;
    await_idle(&proxy).await;
}

#[tokio::test]
async fn when_both_say_no_the_first_ones_words_are_passed_on() {
    let (a, b, proxy) = two(IN_TURN, SOON).await;
    a.fault(Fault::StallFirstByte(Some(Duration::from_millis(600))));
    b.fault(Fault::StallFirstByte(Some(LATER)));
    let answer = Call::get("/status/503").send(proxy.address()).await;
    assert_eq!((answer.status, answer.by(), attempts(&answer)), (503, "a", 2));
    let metrics = proxy.await_metrics(|m| hedges(m, "failed") == 1.0).await;
    assert_eq!((counted(&metrics, &a), counted(&metrics, &b)), ((1.0, 0.0), (1.0, 0.0)));
}

#[tokio::test]
async fn deadlines_hold_while_two_are_asked() {
    let total = "deadline: { total: 1s }";
    let first_byte = "deadline: { first_byte: 1s }";
    for (deadline, outcome) in [(total, "total_timeout"), (first_byte, "first_byte_timeout")] {
        let (a, b, proxy) = two(IN_TURN, &format!("{SOON}, {deadline}")).await;
        let answer = chat().fault("stall_first_byte").send(proxy.address()).await;
        assert_eq!((answer.status, &*error_code(&answer)), (504, outcome));
        a.aborted().await;
        b.aborted().await;
        await_idle(&proxy).await;
        let result = if outcome == "total_timeout" { "given_up" } else { "failed" };
        proxy.await_metrics(|m| hedges(m, result) == 1.0).await;
    }
}
