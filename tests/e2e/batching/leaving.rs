//! Clients that leave, configurations that change and proxies that end while requests wait for company or for their
//! batch.

use std::time::Duration;

use nix::sys::signal::Signal;
use outrigger_tests::harness::{Answer, Call, Load, Metrics, Proxy, Streaming};
use outrigger_tests::sim::{Fault, Rule};
use tokio::task::JoinHandle;

use super::{
    CROWD, FULL, PATIENT, Table, at_once, batches, call_of, calls_of, embed, expect_own,
    full_table, patient, text, told, travelled,
};
use crate::fleet::{
    BlackHole, await_endpoints, await_idle, one_backend, one_backend_at, reload, sim,
};

type Waiting = JoinHandle<Result<Streaming, String>>;

/// Waits until the proxy has so many requests, wherever they are.
async fn in_flight(proxy: &Proxy, count: usize) {
    let name = "outrigger_requests_in_flight";
    proxy.await_metrics(|metrics| metrics.get(name, &[]) == count as f64).await;
}

/// Sends requests one after the other, so that they sit in this order.
async fn sit_down(table: &Table, calls: impl IntoIterator<Item = Call>) -> Vec<Waiting> {
    let mut waiting = Vec::new();
    for call in calls {
        waiting.push(tokio::spawn(call.try_open(table.address())));
    }
    in_flight(&table.proxy, waiting.len()).await;
    waiting
}

async fn answers(waiting: Vec<Waiting>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for waiting in waiting {
        let head = waiting.await.expect("nobody gave it up").expect("an answer");
        answers.push(head.rest().await);
    }
    answers
}

/// Some of those who wait hang up; the prompts of theirs must not be in the call, and nobody else may notice.
async fn some_leave(before: usize, leaving: usize, after: usize) {
    let table = Table::set("").await;
    table.expects_company(embed).await;
    // Whoever sees this status shared a call with somebody who had left.
    table.simulator.inflict(Rule::always(Fault::Status(418, None)).holding("gone"));
    let mut first = sit_down(&table, (0..before).map(|index| embed(text(index)))).await;
    let mut gone = Vec::new();
    for _ in 0..leaving {
        gone.push(tokio::spawn(embed("gone").try_open(table.address())));
    }
    in_flight(&table.proxy, before + leaving).await;
    assert_eq!(table.simulator.state().in_flight, 0, "they wait");
    let calls = table.calls();
    gone.iter().for_each(JoinHandle::abort);
    in_flight(&table.proxy, before).await;
    let rest = (before..before + after).map(|index| embed(text(index)));
    for call in rest {
        first.push(tokio::spawn(call.try_open(table.address())));
    }
    let answers = answers(first).await;
    table.simulator.clear_faults();
    expect_own(&table, &answers, |index| embed(text(index))).await;
    assert_eq!((table.calls(), calls_of(&answers).len()), (calls + 1 + answers.len() as u64, 1));
    let lines = table.proxy.await_access(CROWD + before + leaving + after).await;
    let left = lines.iter().filter(|line| line["outcome"] == "client_gone").count();
    assert_eq!(left, CROWD + leaving);
}

#[tokio::test]
async fn who_hangs_up_in_the_middle_of_the_queue_is_not_sent() {
    some_leave(3, 1, FULL - 3).await;
}

#[tokio::test]
async fn who_opened_the_batch_may_hang_up() {
    some_leave(0, 1, FULL).await;
    some_leave(0, 3, FULL).await;
}

#[tokio::test]
async fn when_many_hang_up_their_places_are_free_again() {
    some_leave(2, 5, FULL - 2).await;
}

/// Those who stay are sent when their time is over, though the one who was to send them has left.
#[tokio::test]
async fn those_who_stay_are_sent_in_time_when_the_first_has_left() {
    let table = Table::set("").await;
    table.expects_company(embed).await;
    let leader = sit_down(&table, [embed("gone")]).await;
    let mut stay = Vec::new();
    for index in 0..3 {
        stay.push(tokio::spawn(embed(text(index)).try_open(table.address())));
    }
    in_flight(&table.proxy, 4).await;
    leader.iter().for_each(JoinHandle::abort);
    let answers = answers(stay).await;
    expect_own(&table, &answers, |index| embed(text(index))).await;
    assert_eq!(calls_of(&answers).len(), 1);
    let latest = answers.iter().map(|answer| answer.whole_after).max();
    assert!(latest < Some(Duration::from_secs(10)), "the window is a second: {latest:?}");
}

#[tokio::test]
async fn when_all_hang_up_nothing_is_sent() {
    let table = Table::set("").await;
    table.expects_company(embed).await;
    let calls = table.calls();
    let waiting = sit_down(&table, (0..5).map(|index| embed(text(index)))).await;
    waiting.iter().for_each(JoinHandle::abort);
    in_flight(&table.proxy, 0).await;
    assert_eq!(batches(&table.proxy.metrics().await), 0);
    // The next batch is a whole one: no seat is still taken.
    let answers = at_once(table.address(), full_table()).await;
    assert_eq!((calls_of(&answers).len(), table.calls()), (1, calls + 1));
}

/// A full batch whose call has arrived at the simulator and stalls there; the last one carries it.
async fn stalled(table: &Table) -> Vec<Waiting> {
    table.simulator.inflict(Rule::always(Fault::StallFirstByte(None)).times(1));
    let mut waiting = sit_down(table, (0..FULL - 1).map(|index| embed(text(index)))).await;
    waiting.push(tokio::spawn(embed(text(FULL - 1)).try_open(table.address())));
    table.simulator.reached(|state| state.in_flight == 1).await;
    waiting
}

/// Those of these indices hang up one after the other while their call is under way; the others must not notice.
async fn gone_under_way(gone: impl Iterator<Item = usize>) {
    let table = Table::set("").await;
    table.expects_company(embed).await;
    let calls = table.calls();
    let waiting = stalled(&table).await;
    let mut left = FULL;
    for index in gone {
        waiting[index].abort();
        left -= 1;
        in_flight(&table.proxy, left).await;
    }
    assert_eq!(table.simulator.state().in_flight, 1, "it goes on for who is left");
    table.simulator.release();
    let mut answered = 0;
    for (index, waiting) in waiting.into_iter().enumerate() {
        let Ok(head) = waiting.await else { continue };
        let answer = head.expect("an answer").rest().await;
        let alone = table.alone(embed(text(index))).await;
        assert_eq!(
            (answer.status, &answer.json()["data"]),
            (200, &alone.json()["data"]),
            "{index}"
        );
        answered += 1;
    }
    // The same was asked of the simulator itself, to compare.
    assert_eq!((answered, table.calls()), (left, calls + 1 + left as u64));
    assert_eq!(table.simulator.state().aborted, CROWD as u64, "only those of the beginning");
    let metrics = table.proxy.metrics().await;
    assert_eq!(travelled(&metrics, "together"), FULL as u64, "{}", told(&metrics));
    await_idle(&table.proxy).await;
}

#[tokio::test]
async fn who_hangs_up_while_the_batch_is_under_way_hurts_nobody() {
    gone_under_way(2..5).await;
}

#[tokio::test]
async fn who_made_the_call_may_hang_up() {
    gone_under_way(FULL - 1..FULL).await;
}

#[tokio::test]
async fn a_call_goes_on_for_the_last_one_whoever_that_is() {
    gone_under_way(1..FULL).await;
    gone_under_way(0..FULL - 1).await;
    gone_under_way((0..FULL).filter(|index| *index != 3).rev()).await;
}

/// The batch was given up, nobody was told anything, and the next one is whole.
async fn expect_given_up(table: &Table) {
    in_flight(&table.proxy, 0).await;
    await_idle(&table.proxy).await;
    let given_up = |m: &Metrics| travelled(m, "given_up") == FULL as u64;
    let metrics = table.proxy.await_metrics(given_up).await;
    assert_eq!(
        (batches(&metrics), travelled(&metrics, "sent_again")),
        (1, 0),
        "{}",
        told(&metrics)
    );
}

/// Nobody is left to read the answer, so that the engine need not go on either.
#[tokio::test]
async fn when_all_have_hung_up_their_call_is_given_up() {
    for protocol in ["http1", "h2c"] {
        let simulator = sim("stable");
        let backend = format!("protocol: {protocol}");
        let proxy = Proxy::start(&one_backend(&[&simulator], &backend, PATIENT)).await;
        let table = Table { simulator, proxy };
        table.expects_company(embed).await;
        let before = table.simulator.state().aborted;
        stalled(&table).await.iter().for_each(JoinHandle::abort);
        table.simulator.reached(|state| state.in_flight == 0).await;
        assert_eq!(table.simulator.state().aborted, before + 1, "{protocol}");
        expect_given_up(&table).await;
        let answers = at_once(table.address(), full_table()).await;
        assert_eq!(calls_of(&answers).len(), 1, "{protocol}: no seat is still taken");
    }
}

#[tokio::test]
async fn when_all_hang_up_while_their_endpoint_is_dialled_it_is_let_go() {
    let table = Table::set("deadline: { connect: 1h }").await;
    table.expects_company(embed).await;
    let hole = BlackHole::open().await;
    // The route is as it was, so that company is still expected.
    let route = format!("{PATIENT}, deadline: {{ connect: 1h }}");
    let yaml = one_backend_at(&format!("['{}']", hole.address), "", &route);
    reload(&table.proxy, &yaml).await;
    let waiting: Vec<_> =
        full_table().into_iter().map(|call| tokio::spawn(call.try_open(table.address()))).collect();
    await_endpoints(&table.proxy, "the call", |all| all[0].in_flight == 1).await;
    in_flight(&table.proxy, FULL).await;
    waiting.iter().for_each(JoinHandle::abort);
    expect_given_up(&table).await;
}

#[tokio::test]
async fn a_reload_loses_nobody_who_waits() {
    for changed in ["batch: off", "batch: { window: 900ms, requests: 4, bytes: 1MiB }"] {
        let table = Table::set("").await;
        table.expects_company(embed).await;
        let mut waiting = sit_down(&table, (0..4).map(|index| embed(text(index)))).await;
        let route = format!("{changed}, deadline: {{ gap: 50s }}");
        reload(&table.proxy, &one_backend(&[&table.simulator], "", &route)).await;
        for index in 4..FULL {
            waiting.push(tokio::spawn(embed(text(index)).try_open(table.address())));
        }
        let answers = answers(waiting).await;
        expect_own(&table, &answers, |index| embed(text(index))).await;
        let (old, new) = answers.split_at(4);
        assert_eq!(calls_of(old).len(), 1, "those of before still travel together");
        assert!(calls_of(old).is_disjoint(&calls_of(new)), "{changed}");
    }
}

/// A reload of something else is no reason to forget how many come, nor to send anybody by himself.
#[tokio::test]
async fn a_reload_that_leaves_the_route_alone_keeps_the_company_together() {
    let table = Table::set("").await;
    table.expects_company(embed).await;
    let mut waiting = sit_down(&table, (0..4).map(|index| embed(text(index)))).await;
    let yaml = format!("{}limits: {{ headers: 90 }}\n", patient(&[&table.simulator], ""));
    reload(&table.proxy, &yaml).await;
    for index in 4..FULL {
        waiting.push(tokio::spawn(embed(text(index)).try_open(table.address())));
    }
    let answers = answers(waiting).await;
    expect_own(&table, &answers, |index| embed(text(index))).await;
    assert_eq!(
        calls_of(&answers).len(),
        1,
        "{:?}",
        answers.iter().map(call_of).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn reloads_under_load_mix_nobody_up() {
    let table = Table::set("").await;
    let yaml = |round: usize| {
        let batch = ["batch: { window: 10ms, requests: 8, bytes: 1MiB }", "batch: off", PATIENT];
        one_backend(&[&table.simulator], "", batch[round % batch.len()])
    };
    let load = Load::of(1_500).at_once(24);
    let (to, call) = (table.address(), |index| embed(text(index)));
    let running = tokio::spawn(async move { load.run(to, call).await });
    let mut round = 0;
    while !running.is_finished() {
        reload(&table.proxy, &yaml(round)).await;
        round += 1;
    }
    let report = running.await.expect("no worker fails");
    assert_eq!(report.ok(), 1_500, "{:?}", report.outcomes());
    assert!(round > 2, "{round} reloads");
    for sample in report.samples.iter().step_by(10) {
        let own = sample.answer.as_ref().expect("an answer").json();
        let alone = table.alone(embed(text(sample.index))).await.json();
        assert_eq!(own["data"], alone["data"], "{}", sample.index);
    }
    await_idle(&table.proxy).await;
}

/// A proxy that drains without delay, with a full batch of which `waiting` requests are there.
async fn drained(drain: &str) -> Table {
    let table = {
        let simulator = sim("stable");
        let yaml = format!("{}drain: {{ {drain} }}\n", patient(&[&simulator], ""));
        let proxy = Proxy::start(&yaml).await;
        Table { simulator, proxy }
    };
    table.expects_company(embed).await;
    table
}

#[tokio::test]
async fn a_drain_waits_for_those_who_wait_for_company() {
    let table = drained("delay: 0s, timeout: 20s").await;
    let waiting = sit_down(&table, (0..4).map(|index| embed(text(index)))).await;
    table.proxy.signal(Signal::SIGTERM);
    let answers = answers(waiting).await;
    expect_own(&table, &answers, |index| embed(text(index))).await;
    let status = table.proxy.wait_exit(Duration::from_secs(10)).await;
    assert_eq!(status.code(), Some(0), "{status}");
    let ended = table.proxy.access_log();
    assert_eq!(ended.iter().filter(|line| line["outcome"] == "ok").count(), 4);
}

#[tokio::test]
async fn a_drain_waits_for_a_batch_that_is_under_way() {
    let table = drained("delay: 0s, timeout: 20s").await;
    let stall = Fault::StallFirstByte(Some(Duration::from_millis(500)));
    table.simulator.inflict(Rule::always(stall).times(1));
    let waiting = tokio::spawn(at_once(table.address(), full_table()));
    table.simulator.reached(|state| state.in_flight == 1).await;
    table.proxy.signal(Signal::SIGTERM);
    let answers = waiting.await.expect("they are answered");
    expect_own(&table, &answers, |index| embed(text(index))).await;
    assert_eq!(calls_of(&answers).len(), 1);
    table.proxy.wait_exit(Duration::from_secs(10)).await;
    let metrics = table.proxy.access_log();
    assert_eq!(metrics.iter().filter(|line| line["outcome"] == "ok").count(), FULL);
}

#[tokio::test]
async fn a_drain_that_can_not_wait_cuts_a_batch_and_says_so() {
    let table = drained("delay: 0s, timeout: 300ms").await;
    table.simulator.fault(Fault::StallFirstByte(None));
    let waiting = tokio::spawn(at_once(table.address(), full_table()));
    table.simulator.reached(|state| state.in_flight == 1).await;
    table.proxy.signal(Signal::SIGTERM);
    let answers = waiting.await.expect("they are answered");
    assert!(answers.iter().all(|answer| answer.status == 503), "{:?}", answers[0]);
    table.proxy.wait_exit(Duration::from_secs(10)).await;
    let lines = table.proxy.access_log();
    assert_eq!(lines.iter().filter(|line| line["outcome"] == "drain_cut").count(), FULL);
}

#[tokio::test]
async fn a_crowd_that_loses_patience_leaves_nothing_behind() {
    let table = Table::set("").await;
    table.expects_company(embed).await;
    let mut clients = tokio::task::JoinSet::new();
    for index in 0..200 {
        let (call, to) = (embed(text(index)), table.address());
        let call = if index % 2 == 0 { call } else { call.h2() };
        let patience = Duration::from_millis((index as u64 * 37) % 60);
        clients
            .spawn(async move { tokio::time::timeout(patience, call.try_send(to)).await.is_ok() });
        if clients.len() >= 16 {
            clients.join_next().await.expect("a client").expect("no panic");
        }
    }
    clients.join_all().await;
    await_idle(&table.proxy).await;
    in_flight(&table.proxy, 0).await;
    let answers = at_once(table.address(), full_table()).await;
    expect_own(&table, &answers, |index| embed(text(index))).await;
    let metrics = table.proxy.metrics().await;
    assert_eq!(travelled(&metrics, "sent_again"), 0, "{}", told(&metrics));
}
