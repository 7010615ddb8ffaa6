//! The engine as a client meets it: batching, queueing and places that are given back.

use std::time::Duration;

use outrigger_tests::harness::{Call, Load, Protocol};
use outrigger_tests::sim::{Options, Simulator};

/// Long enough not to end while a test looks at it, at real speed.
fn endless() -> Call {
    Call::chat("hello").max_tokens(100_000)
}

#[tokio::test]
async fn a_full_batch_is_slower_for_everyone() {
    let simulator = Simulator::start(Options::named("one").speed(5.0));
    let call = |_| Call::chat("hello").max_tokens(100);
    let alone = Load::of(3).run(simulator.addr, call).await.quantile(0.0);
    let report = Load::of(48).at_once(48).run(simulator.addr, call).await;
    assert_eq!(report.ok(), 48, "{:?}", report.outcomes());
    // A step takes 6.35 ms alone and 22.8 ms in a batch of 48: 3.6 times as long.
    let together = report.quantile(0.5);
    assert!(together > alone * 2, "alone {alone:?}, among 48 {together:?}");
}

#[tokio::test]
async fn speed_and_slowdown_scale_the_time() {
    let fast = Simulator::start(Options::named("fast").speed(10.0));
    let slow = Simulator::start(Options::named("slow").speed(10.0).slowdown(4.0));
    let ask = || Call::chat("hello").max_tokens(200);
    let quick = ask().send(fast.addr).await.whole_after;
    let late = ask().send(slow.addr).await.whole_after;
    // 200 steps of 6.35 ms are 1.27 s; at ten times the speed 127 ms; four times slower 508 ms.
    assert!(
        quick >= Duration::from_millis(120) && quick < Duration::from_millis(1200),
        "{quick:?}"
    );
    assert!(late >= Duration::from_millis(480), "{late:?}");
}

#[tokio::test]
async fn a_client_that_hangs_up_frees_its_place_at_once() {
    for protocol in [Protocol::Http1, Protocol::H2] {
        for streaming in [true, false] {
            let simulator = Simulator::start(Options::named("one"));
            let call = endless().field("stream", streaming).over(protocol);
            let to = simulator.addr;
            let task = tokio::spawn(async move { call.send(to).await });
            simulator.reached(|state| state.running == 1 && state.kv_used > 0).await;
            task.abort();
            simulator.aborted().await;
            let state = simulator.state();
            let left = (state.running, state.kv_used, state.in_flight, state.aborted);
            assert_eq!(left, (0, 0, 0, 1), "{protocol:?}, streaming: {streaming}");
        }
    }
}

#[tokio::test]
async fn a_place_that_is_given_back_goes_to_who_waits() {
    let simulator = Simulator::start(Options::named("one").room(1, 1));
    let first = endless().streaming().open(simulator.addr).await;
    simulator.reached(|state| state.running == 1).await;
    let mut second = endless().streaming().open(simulator.addr).await;
    simulator.reached(|state| state.waiting == 1).await;
    let third = endless().send(simulator.addr).await;
    assert_eq!(third.status, 503, "the queue holds one");
    drop(first);
    assert!(second.event().await.is_some_and(|event| event.data.contains("assistant")));
    let state = simulator.state();
    assert_eq!((state.running, state.waiting), (1, 0));
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_is_not_served() {
    let simulator = Simulator::start(Options::named("one").room(1, 10));
    let first = endless().streaming().open(simulator.addr).await;
    let waiting = endless().streaming().open(simulator.addr).await;
    simulator.reached(|state| (state.running, state.waiting) == (1, 1)).await;
    drop(waiting);
    simulator.aborted().await;
    assert_eq!((simulator.state().running, simulator.state().waiting), (1, 0));
    drop(first);
    simulator.aborted().await;
    assert_eq!(simulator.state().running, 0);
}
