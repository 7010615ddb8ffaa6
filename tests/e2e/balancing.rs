//! Which endpoint of a backend serves a request, and that everything held at an endpoint is given back.

use std::sync::Arc;
use std::time::Duration;

use outrigger_tests::harness::{Call, Client, Load, Protocol, Proxy};
use outrigger_tests::sim::{Fault, Options, Simulator};
use tokio::task::JoinSet;

use super::fleet::{
    attempts, await_idle, chat, ended, endpoint_states, error_code, in_flight, one_backend,
    one_backend_at, sim, stick,
};

#[tokio::test]
async fn round_robin_goes_round() {
    let (a, b, c) = (sim("a"), sim("b"), sim("c"));
    let yaml = one_backend(&[&a, &b, &c], "balance: round_robin", "");
    let proxy = Proxy::start(&yaml).await;
    let report = Load::of(30).run(proxy.address(), |_| chat()).await;
    let order: String =
        report.samples.iter().map(|s| s.answer.as_ref().expect("an answer").by()).collect();
    assert_eq!(order, "abc".repeat(10));
}

#[tokio::test]
async fn round_robin_honours_the_weights_of_endpoints() {
    let (a, b) = (sim("a"), sim("b"));
    let list = format!("[{{ address: '{}', weight: 3 }}, '{}']", a.addr, b.addr);
    let proxy = Proxy::start(&one_backend_at(&list, "balance: round_robin", "")).await;
    let report = Load::of(400).at_once(8).run(proxy.address(), |_| chat()).await;
    assert_eq!(report.ok(), 400, "{:?}", report.outcomes());
    let names = report.by_name();
    assert_eq!((names["a"], names["b"]), (300, 100));
}

#[tokio::test]
async fn least_connection_spreads_what_is_in_flight_evenly() {
    let (a, b, c) = (sim("a"), sim("b"), sim("c"));
    let simulators = [&a, &b, &c];
    let proxy = Proxy::start(&one_backend(&simulators, "", "")).await;
    let _stuck = stick(&proxy, &simulators, (0..12).map(|_| chat())).await;
    assert_eq!(in_flight(&proxy).await, [4, 4, 4]);
}

#[tokio::test]
async fn least_connection_honours_the_weights_of_endpoints() {
    let (a, b) = (sim("a"), sim("b"));
    let list = format!("[{{ address: '{}', weight: 3 }}, '{}']", a.addr, b.addr);
    let proxy = Proxy::start(&one_backend_at(&list, "", "")).await;
    let _stuck = stick(&proxy, &[&a, &b], (0..8).map(|_| chat())).await;
    assert_eq!(in_flight(&proxy).await, [6, 2]);
}

#[tokio::test]
async fn least_connection_leaves_a_busy_endpoint_alone() {
    let (a, b) = (sim("a"), sim("b"));
    let proxy = Proxy::start(&one_backend(&[&a, &b], "", "")).await;
    let _stuck = stick(&proxy, &[&a, &b], [chat()]).await;
    let busy = if a.state().in_flight == 1 { "a" } else { "b" };
    let report = Load::of(50).run(proxy.address(), |_| chat()).await;
    assert_eq!(report.ok(), 50, "{:?}", report.outcomes());
    assert_eq!(report.by_name().get(busy), None, "{:?}", report.by_name());
}

#[tokio::test]
async fn a_long_prompt_weighs_more_than_a_few_short_ones_until_its_first_byte() {
    let (a, b) = (sim("a"), sim("b"));
    let simulators = [&a, &b];
    let proxy = Proxy::start(&one_backend(&simulators, "", "")).await;
    let long = Call::chat(&"word ".repeat(8_000)).max_tokens(4);
    let _stuck = stick(&proxy, &simulators, [long]).await;
    let loads: Vec<_> = endpoint_states(&proxy).await.iter().map(|e| e.load).collect();
    assert!(loads.iter().max() >= Some(&10_000), "40 kB are ten thousand tokens: {loads:?}");
    let _more = stick(&proxy, &simulators, (0..5).map(|_| chat())).await;
    let mut shares = in_flight(&proxy).await;
    shares.sort_unstable();
    assert_eq!(shares, [1, 5]);
}

#[tokio::test]
async fn the_weight_of_a_prompt_is_given_back_at_the_first_byte() {
    let one = sim("one");
    let proxy = Proxy::start(&one_backend(&[&one], "", "")).await;
    let long = Call::chat(&"word ".repeat(8_000)).max_tokens(50).streaming();
    let mut streaming = long.fault("stall_mid=1").open(proxy.address()).await;
    assert!(streaming.event().await.is_some());
    let left = endpoint_states(&proxy).await;
    assert_eq!((left[0].in_flight, left[0].load), (1, 1_000), "one running request");
}

/// The 99th percentile of a load on three endpoints, of which one is three times slower than the others and each
/// runs four requests at a time.
async fn p99_of(balance: &str) -> (Duration, String) {
    let options = |name| Options::named(name).speed(20.0).room(4, usize::MAX);
    let (a, b) = (Simulator::start(options("a")), Simulator::start(options("b")));
    let slow = Simulator::start(options("slow").slowdown(3.0));
    let yaml = one_backend(&[&a, &b, &slow], &format!("balance: {balance}"), "");
    let proxy = Proxy::start(&yaml).await;
    let lengths = |index: usize| 20 + (index as u64 * 7_919) % 160;
    let call = move |index| Call::chat("how deep?").max_tokens(lengths(index));
    let report = Load::of(500).at_once(24).run(proxy.address(), call).await;
    assert_eq!(report.ok(), 500, "{balance}: {:?}", report.outcomes());
    (report.quantile(0.99), format!("{balance}: {:?}", report.by_name()))
}

#[tokio::test]
async fn with_one_endpoint_three_times_slower_least_connection_beats_round_robin_at_the_tail() {
    // At the same time, so that whatever else the machine does meets both alike.
    let ((round_robin, dealt), (least_connection, chosen)) =
        tokio::join!(p99_of("round_robin"), p99_of("least_connection"));
    assert!(
        least_connection.mul_f64(1.25) < round_robin,
        "p99 {least_connection:?} ({chosen}) against {round_robin:?} ({dealt})"
    );
}

#[tokio::test]
async fn when_every_endpoint_is_full_the_answer_is_503_with_retry_after() {
    let (a, b) = (sim("a"), sim("b"));
    let simulators = [&a, &b];
    let proxy = Proxy::start(&one_backend(&simulators, "max_connections: 1", "")).await;
    let mut stuck = stick(&proxy, &simulators, [chat(), chat()]).await;
    assert_eq!(in_flight(&proxy).await, [1, 1]);
    let answer = chat().send(proxy.address()).await;
    assert_eq!((answer.status, &*error_code(&answer)), (503, "overloaded"));
    let wait = answer.header("retry-after").expect("retry-after");
    assert!(wait.parse::<u64>().expect("seconds") >= 1);
    assert_eq!(answer.header("x-should-retry"), Some("true"));
    assert_eq!((a.state().requests(), b.state().requests()), (1, 1), "nobody was asked again");
    proxy.await_metrics(|metrics| ended(metrics, "overloaded", 503) == 1.0).await;
    stuck.abort_all();
    await_idle(&proxy).await;
    assert_eq!(chat().send(proxy.address()).await.status, 200);
}

#[tokio::test]
async fn no_endpoint_ever_gets_more_than_its_max_connections() {
    // The simulators themselves refuse a fourth request at a time.
    let options = |name| Options::named(name).fast().room(1, 2);
    let (a, b) = (Simulator::start(options("a")), Simulator::start(options("b")));
    let yaml = one_backend(&[&a, &b], "max_connections: 3", "retry: off");
    let proxy = Proxy::start(&yaml).await;
    let call = |index: usize| Call::chat("hm").max_tokens(5 + index as u64 % 40);
    let report = Load::of(600).at_once(12).run(proxy.address(), call).await;
    let (ok, refused) = (report.ok(), report.status(503));
    assert_eq!(ok + refused, 600, "{:?}", report.outcomes());
    assert!(ok > 0 && refused > 0, "{:?}", report.outcomes());
    assert_eq!(
        report.by_name().get("-"),
        Some(&refused),
        "a simulator got more than it could take"
    );
    await_idle(&proxy).await;
}

#[tokio::test]
async fn a_full_endpoint_leaves_its_turn_to_the_others() {
    let (a, b) = (sim("a"), sim("b"));
    let simulators = [&a, &b];
    let proxy =
        Proxy::start(&one_backend(&simulators, "balance: round_robin, max_connections: 1", ""))
            .await;
    let _stuck = stick(&proxy, &simulators, [chat()]).await;
    let report = Load::of(20).run(proxy.address(), |_| chat()).await;
    assert_eq!((report.ok(), report.by_name()["b"]), (20, 20), "{:?}", report.outcomes());
}

/// The faults of the mixture; an empty one is none.
const MIXTURE: [&str; 10] = [
    "",
    "reset",
    "reset_mid=1",
    "close",
    "close_mid=2",
    "garbage",
    "status=503",
    "status=500",
    "bad_chunk=1",
    "stall_mid=1",
];

/// One request of the mixture: some fail, and some are given up by the client after a while or while they run.
async fn mixed(proxy: Arc<Proxy>, index: usize) {
    let protocol = if index.is_multiple_of(2) { Protocol::Http1 } else { Protocol::H2 };
    let call = Call::chat("mixed").max_tokens(10 + index as u64 % 30).over(protocol);
    let call = if index.is_multiple_of(3) { call.streaming() } else { call };
    let call = match MIXTURE[index * 7 % MIXTURE.len()] {
        "" => call,
        fault => call.fault(fault),
    };
    let patience = Duration::from_millis((index as u64 * 37) % 60);
    // Whoever loses patience hangs up.
    let _ = tokio::time::timeout(patience, call.try_send(proxy.address())).await;
}

async fn everything_is_given_back(protocol: &str) {
    let (a, b, c) = (sim("a"), sim("b"), sim("c"));
    let backend = format!("protocol: {protocol}, ejection: {{ failures: 1000 }}");
    let proxy = Arc::new(Proxy::start(&one_backend(&[&a, &b, &c], &backend, "")).await);
    let (mut clients, mut doomed) = (JoinSet::new(), Some(c));
    for index in 0..400 {
        clients.spawn(mixed(Arc::clone(&proxy), index));
        if clients.len() >= 16 {
            clients.join_next().await.expect("a client").expect("no panic");
        }
        match index {
            150 => b.hang_up(),
            250 => drop(doomed.take()),
            350 => a.refuse().await,
            _ => {}
        }
    }
    clients.join_all().await;
    await_idle(&proxy).await;
    for gauge in ["requests_in_flight", "requests_awaiting_first_byte", "endpoint_in_flight"] {
        let gauge = format!("outrigger_{gauge}");
        proxy.await_metrics(|metrics| metrics.get(&gauge, &[]) == 0.0).await;
    }
}

#[tokio::test]
async fn in_flight_and_load_return_to_zero_after_any_mixture_over_http1() {
    everything_is_given_back("http1").await;
}

#[tokio::test]
async fn in_flight_and_load_return_to_zero_after_any_mixture_over_h2() {
    everything_is_given_back("h2c").await;
}

#[tokio::test]
async fn in_flight_lasts_until_the_last_byte_of_a_stream() {
    let one = sim("one");
    let proxy = Proxy::start(&one_backend(&[&one], "", "")).await;
    let mut client = Client::connect(proxy.address(), Protocol::Http1).await;
    let call = chat().streaming().fault("stall_mid=1");
    let mut streaming = client.open(call).await.expect("an answer");
    assert!(streaming.event().await.is_some());
    assert_eq!(in_flight(&proxy).await, [1]);
    drop((streaming, client));
    await_idle(&proxy).await;
}

#[tokio::test]
async fn a_retried_request_holds_a_place_only_where_it_is() {
    let (a, b) = (sim("a"), sim("b"));
    a.fault(Fault::Status(503, None));
    let proxy = Proxy::start(&one_backend(&[&a, &b], "balance: round_robin", "")).await;
    let call = chat().streaming().fault("stall_mid=1;at=b");
    let mut streaming = call.open(proxy.address()).await;
    assert!(streaming.event().await.is_some());
    assert_eq!(in_flight(&proxy).await, [0, 1]);
    drop(streaming);
    await_idle(&proxy).await;
    let answer = chat().send(proxy.address()).await;
    assert_eq!((answer.status, answer.by()), (200, "b"));
    assert!(attempts(&answer) <= 2);
}
