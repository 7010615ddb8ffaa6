//! Load levels over real sockets: they begin at once, turn away with a true time to come back, and end.

use std::time::Duration;

use outrigger_tests::harness::{Answer, Call, Proxy};
use outrigger_tests::sim::{Options, Reports, Simulator};

use crate::fleet::{chat, error_code, one_backend, plain, sim, stick};

/// A route with these levels.
fn leveled(one: &Simulator, levels: &str) -> String {
    one_backend(&[one], "", &format!("retry: off, levels: {{ {levels} }}"))
}

fn retry_after(answer: &Answer) -> u64 {
    answer.header("retry-after").expect("a time to come back").parse().expect("seconds")
}

fn level(value: f64) -> impl Fn(&outrigger_tests::harness::Metrics) -> bool {
    move |metrics| metrics.get("outrigger_load_level", &[("route", "all")]) == value
}

#[tokio::test]
async fn too_many_in_flight_are_turned_away_until_there_is_room_again() {
    let one = sim("one");
    let levels = "by: in_flight, table: [{ from: 3, action: shed }], hold: 200ms";
    let proxy = Proxy::start(&leveled(&one, levels)).await;
    let stuck = stick(&proxy, &[&one], [plain(), plain()]).await;
    let answer = chat().send(proxy.address()).await;
    assert_eq!((answer.status, &*error_code(&answer)), (503, "shed"), "{}", answer.text());
    assert_eq!(retry_after(&answer), 1);
    assert_eq!(answer.header("x-should-retry"), Some("true"));
    proxy.await_metrics(level(1.0)).await;
    drop(stuck);
    // The level ends although nobody comes; then there is room.
    proxy.await_metrics(level(0.0)).await;
    assert_eq!(chat().send(proxy.address()).await.status, 200);
    let shed = [("outcome", "shed"), ("code", "503")];
    assert_eq!(proxy.metrics().await.get("outrigger_requests_total", &shed), 1.0);
}

#[tokio::test]
async fn a_level_holds_for_as_long_as_it_says() {
    let one = sim("one");
    let levels = "by: in_flight, table: [{ from: 2, action: shed }], hold: 60s";
    let proxy = Proxy::start(&leveled(&one, levels)).await;
    let stuck = stick(&proxy, &[&one], [plain()]).await;
    assert_eq!(chat().send(proxy.address()).await.status, 503);
    drop(stuck);
    one.aborted().await;
    let answer = chat().send(proxy.address()).await;
    assert_eq!(answer.status, 503, "the load is low, but not for long enough");
    let after = retry_after(&answer);
    assert!((2..=60).contains(&after), "{after}");
}

#[tokio::test]
async fn too_many_a_second_are_turned_away() {
    let one = sim("one");
    let levels = "table: [{ from: 3, action: shed }], hold: 1s";
    let proxy = Proxy::start(&leveled(&one, levels)).await;
    let address = proxy.address();
    let calls: Vec<_> = (0..30).map(|_| tokio::spawn(chat().send(address))).collect();
    let mut statuses = Vec::new();
    for call in calls {
        statuses.push(call.await.expect("an answer").status);
    }
    assert!(statuses.contains(&200) && statuses.contains(&503), "{statuses:?}");
    proxy.await_metrics(level(0.0)).await;
    assert_eq!(chat().send(proxy.address()).await.status, 200);
}

#[tokio::test]
async fn a_level_sets_and_scales_deadlines() {
    let one = sim("one");
    for (deadline, step) in
        [("1m", "first_byte: 300ms"), ("3s", "scale: 0.1"), ("1m", "total: 300ms")]
    {
        let levels = format!("levels: {{ by: in_flight, table: [{{ from: 1, {step} }}] }}");
        let route = format!("retry: off, deadline: {{ first_byte: {deadline} }}, {levels}");
        let proxy = Proxy::start(&one_backend(&[&one], "", &route)).await;
        let answer = chat().fault("stall_first_byte").send(proxy.address()).await;
        assert_eq!(answer.status, 504, "{step}");
        let after = answer.head_after;
        assert!(
            after >= Duration::from_millis(300) && after < Duration::from_secs(20),
            "{step}: {after:?}"
        );
    }
}

#[tokio::test]
async fn where_nothing_is_stored_only_what_may_do_without_is_served() {
    let one = sim("one");
    for (action, status) in [("normal", 200), ("prefer_stored", 200), ("only_stored", 503)] {
        let levels = format!("by: in_flight, table: [{{ from: 1, action: {action} }}]");
        let proxy = Proxy::start(&leveled(&one, &levels)).await;
        assert_eq!(chat().send(proxy.address()).await.status, status, "{action}");
        proxy.await_metrics(level(1.0)).await;
    }
}

#[tokio::test]
async fn a_queue_that_an_engine_reports_is_load() {
    let one = Simulator::start(Options::named("one").room(1, 100).reports(Reports::Header));
    let levels = "levels: { by: queue, table: [{ from: 2, action: shed }], hold: 60s }";
    let config = one_backend(&[&one], "signals: { orca: true }", &format!("retry: off, {levels}"));
    let proxy = Proxy::start(&config).await;
    // The first one runs, the others wait inside, and its answer tells of them.
    let mut running = Vec::new();
    for _ in 0..5 {
        let call = Call::chat("a long story").max_tokens(200);
        running.push(tokio::spawn(call.try_send(proxy.address())));
        one.reached(|state| state.in_flight >= running.len() as u64).await;
    }
    let first = running.remove(0).await.expect("a task").expect("an answer");
    assert_eq!(first.status, 200, "{}", first.text());
    let answer = chat().send(proxy.address()).await;
    assert_eq!((answer.status, &*error_code(&answer)), (503, "shed"), "{}", answer.text());
}
