//! A call that fails ends the batch and not its requests: each then goes by itself, with the attempts of its route.

use std::time::{Duration, Instant};

use outrigger_tests::harness::{Answer, Call, Load, Proxy};
use outrigger_tests::sim::{Fault, Length, Options, Rule, Simulator};

use super::{
    CROWD, FULL, PATIENT, Table, at_once, batches, call_of, calls_of, embed, expect_company,
    expect_own, full_table, patient, text, told, travelled,
};
use crate::fleet::{attempts, await_idle, error_code, one_backend, sim};

/// A full batch whose call meets `fault`; each of its requests must get what it would have got alone.
async fn each_goes_by_itself_after(fault: Fault) {
    let table = Table::set("").await;
    table.expects_company(embed).await;
    table.simulator.inflict(Rule::always(fault.clone()).times(1));
    let before = table.calls();
    let answers = at_once(table.address(), full_table()).await;
    let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [200; FULL], "{fault}");
    assert_eq!(table.calls(), before + 1 + FULL as u64, "{fault}");
    assert_eq!(calls_of(&answers).len(), FULL, "{fault}: and not in a batch again");
    expect_own(&table, &answers, |index| embed(text(index))).await;
    let metrics = table.proxy.metrics().await;
    let again = travelled(&metrics, "sent_again");
    assert_eq!((batches(&metrics), again), (1, FULL as u64), "{fault}");
    await_idle(&table.proxy).await;
    table.simulator.reached(|state| state.in_flight == 0).await;
}

#[tokio::test]
async fn after_an_internal_error_each_goes_by_itself() {
    each_goes_by_itself_after(Fault::Status(500, None)).await;
}

#[tokio::test]
async fn after_bad_gateway_each_goes_by_itself() {
    each_goes_by_itself_after(Fault::Status(502, None)).await;
}

#[tokio::test]
async fn after_an_overload_each_goes_by_itself() {
    each_goes_by_itself_after(Fault::Status(503, None)).await;
}

#[tokio::test]
async fn after_too_many_requests_each_goes_by_itself() {
    each_goes_by_itself_after(Fault::Status(429, None)).await;
}

#[tokio::test]
async fn after_a_refusal_each_goes_by_itself() {
    each_goes_by_itself_after(Fault::Status(400, None)).await;
}

#[tokio::test]
async fn after_a_list_too_long_each_goes_by_itself() {
    each_goes_by_itself_after(Fault::Status(413, None)).await;
}

#[tokio::test]
async fn after_a_reset_each_goes_by_itself() {
    each_goes_by_itself_after(Fault::Reset).await;
}

#[tokio::test]
async fn after_a_connection_closed_without_an_answer_each_goes_by_itself() {
    each_goes_by_itself_after(Fault::Close).await;
}

#[tokio::test]
async fn after_half_an_answer_each_goes_by_itself() {
    each_goes_by_itself_after(Fault::CloseMid(1)).await;
}

#[tokio::test]
async fn after_a_reset_in_the_middle_each_goes_by_itself() {
    each_goes_by_itself_after(Fault::ResetMid(1)).await;
}

#[tokio::test]
async fn after_garbage_each_goes_by_itself() {
    each_goes_by_itself_after(Fault::Garbage).await;
}

#[tokio::test]
async fn after_an_answer_to_something_else_each_goes_by_itself() {
    each_goes_by_itself_after(Fault::WrongLength(Length::Smaller)).await;
}

#[tokio::test]
async fn an_answer_that_trickles_is_waited_for() {
    let table = Table::set("").await;
    table.expects_company(embed).await;
    let slow = Fault::Trickle(Duration::from_micros(20));
    table.simulator.inflict(Rule::always(slow).times(1));
    let answers = at_once(table.address(), full_table()).await;
    assert_eq!(calls_of(&answers).len(), 1);
    expect_own(&table, &answers, |index| embed(text(index))).await;
}

#[tokio::test]
async fn a_poisoned_prompt_fails_only_its_own_request() {
    let table = Table::set("").await;
    table.expects_company(embed).await;
    table.simulator.inflict(Rule::always(Fault::Status(400, None)).holding("poison"));
    let before = table.calls();
    let like = |index: usize| match index {
        3 => embed("a drop of poison"),
        index => embed(text(index)),
    };
    let answers = at_once(table.address(), (0..FULL).map(like)).await;
    assert_eq!(table.calls(), before + 1 + FULL as u64, "the batch, and each by itself");
    assert_eq!(answers[3].status, 400, "{}", answers[3].text());
    assert!(answers[3].text().contains("a simulated fault"), "the server's own words");
    table.simulator.clear_faults();
    for (index, answer) in answers.iter().enumerate().filter(|(index, _)| *index != 3) {
        let expected = table.alone(like(index)).await;
        assert_eq!(answer.status, 200, "{index}: {}", answer.text());
        assert_eq!(answer.json()["data"], expected.json()["data"], "{index}");
    }
    let lines = table.proxy.await_access(CROWD + FULL).await;
    let ended = |outcome: &str| lines.iter().filter(|line| line["outcome"] == outcome).count();
    assert_eq!((ended("ok"), ended("client_error")), (FULL - 1, 1));
}

#[tokio::test]
async fn poison_now_and_then_fails_nobody_else_in_a_crowd() {
    let simulator = Simulator::start(Options::named("stable"));
    simulator.inflict(Rule::always(Fault::Status(400, None)).holding("poison"));
    let batch = "batch: { window: 20ms, requests: 8, bytes: 1MiB }";
    let proxy = Proxy::start(&one_backend(&[&simulator], "", batch)).await;
    let poisoned = |index: usize| index % 50 == 49;
    let call = move |index: usize| match poisoned(index) {
        true => embed(format!("poison {index}")),
        false => embed(text(index)),
    };
    let report = Load::of(400).at_once(32).run(proxy.address(), call).await;
    simulator.clear_faults();
    for sample in &report.samples {
        let answer = sample.answer.as_ref().expect("an answer");
        let expected = if poisoned(sample.index) { 400 } else { 200 };
        assert_eq!(answer.status, expected, "{}: {}", sample.index, answer.text());
        if expected == 200 {
            let alone = call(sample.index).send(simulator.addr).await.json();
            assert_eq!(answer.json()["data"], alone["data"], "{}", sample.index);
        }
    }
    let metrics = proxy.metrics().await;
    assert!(travelled(&metrics, "sent_again") > 0, "a batch was poisoned: {}", told(&metrics));
}

/// Whatever the server does, whoever gets an answer gets his own, and all places are given back.
#[tokio::test]
async fn nobody_gets_what_is_not_his_from_a_server_that_fails_in_every_way() {
    let simulator = Simulator::start(Options::named("stable"));
    let (backend, route) = (
        "ejection: off",
        "batch: { window: 20ms, requests: 8, bytes: 1MiB }, \
         deadline: { first_byte: 300ms, total: 5s }, retry: { budget: { percent: 100, min_per_second: 1000 } }",
    );
    let proxy = Proxy::start(&one_backend(&[&simulator], backend, route)).await;
    for fault in ["reset", "close_mid=1", "garbage", "status=503", "status=500", "stall_first_byte"]
    {
        let fault: Fault = fault.parse().expect("a fault");
        simulator.inflict(Rule::always(fault).share(0.03));
    }
    let call = |index: usize| {
        // Users do not meet, so that a batch that came to nothing does not put an end to all of them.
        let call = embed(text(index)).field("user", format!("{}", index / 64));
        if index.is_multiple_of(2) { call } else { call.h2() }
    };
    let report = Load::of(640).at_once(32).run(proxy.address(), call).await;
    simulator.clear_faults();
    assert!(report.ok() > 400, "{:?}", report.outcomes());
    for sample in &report.samples {
        let answer = sample.answer.as_ref().expect("each gets an answer");
        if answer.status == 200 && answer.cut.is_none() {
            let alone = call(sample.index).send(simulator.addr).await.json();
            assert_eq!(answer.json()["data"], alone["data"], "{}", sample.index);
        }
    }
    let metrics = proxy.metrics().await;
    let (together, again) = (travelled(&metrics, "together"), travelled(&metrics, "sent_again"));
    assert!(together > 0 && again > 0, "{together} and {again}");
    await_idle(&proxy).await;
    for gauge in ["requests_in_flight", "requests_awaiting_first_byte", "endpoint_in_flight"] {
        let gauge = format!("outrigger_{gauge}");
        proxy.await_metrics(|metrics| metrics.get(&gauge, &[]) == 0.0).await;
    }
}

/// After a batch that came to nothing the next ones are not even tried, so that a server that can not do it costs
/// next to nothing.
#[tokio::test]
async fn a_server_that_refuses_lists_is_left_alone_with_them() {
    let table = Table::set("").await;
    table.expects_company(embed).await;
    table.simulator.inflict(Rule::always(Fault::Status(400, None)).holding("\",\"what"));
    for round in 1..=5 {
        let answers = at_once(table.address(), full_table()).await;
        assert!(answers.iter().all(|answer| answer.status == 200), "round {round}");
    }
    let metrics = table.proxy.metrics().await;
    // It rests for a second, and for two after the next.
    assert!(batches(&metrics) <= 3, "{}", told(&metrics));
}

/// Two servers of which one fails as `fault` says, and a full batch: the answers.
async fn with_one_of_two_failing(fault: Fault, route: &str) -> (Vec<Answer>, u64, Proxy) {
    let (bad, good) = (sim("bad"), sim("good"));
    let backend = "balance: round_robin, ejection: off";
    let yaml = one_backend(&[&bad, &good], backend, &format!("{PATIENT}, {route}"));
    let proxy = Proxy::start(&yaml).await;
    expect_company(&proxy, &[&bad, &good], "tide", embed).await;
    bad.fault(fault);
    // The second batch goes to the other one.
    let mut answers = at_once(proxy.address(), full_table()).await;
    answers.extend(at_once(proxy.address(), full_table()).await);
    (answers, bad.state().requests(), proxy)
}

#[tokio::test]
async fn each_has_the_attempts_of_its_route_after_a_batch() {
    for fault in ["status=503", "reset", "close"] {
        let route = "retry: { budget: { percent: 100, min_per_second: 100 } }";
        let fault: Fault = fault.parse().expect("a fault");
        let (answers, tried, _) = with_one_of_two_failing(fault.clone(), route).await;
        assert!(tried > 0, "{fault}");
        for answer in &answers {
            let text = answer.text();
            assert_eq!((answer.status, answer.by()), (200, "good"), "{fault}: {text}");
            assert!(attempts(answer) <= 2, "{fault}");
        }
    }
}

/// One that finds no room in the batch sends it off, and if that was a single request it is none that travels with
/// others: it has the attempts of its route from the start.
#[tokio::test]
async fn who_is_sent_off_alone_has_the_attempts_of_its_route() {
    let (bad, good) = (sim("bad"), sim("good"));
    let backend = "balance: round_robin, ejection: off";
    let route = "retry: { budget: { percent: 100, min_per_second: 100 } }";
    let proxy =
        Proxy::start(&one_backend(&[&bad, &good], backend, &format!("{PATIENT}, {route}"))).await;
    expect_company(&proxy, &[&bad, &good], "tide", embed).await;
    bad.fault(Fault::Status(503, None));
    // Five prompts and five are more than fit.
    let five = |round: usize| embed(vec![text(round); 5]);
    for round in 0..6 {
        let answers = at_once(proxy.address(), [five(round), five(round)]).await;
        for answer in answers {
            assert_eq!((answer.status, answer.by()), (200, "good"), "{round}: {}", answer.text());
        }
    }
    let metrics = proxy.metrics().await;
    assert_eq!(
        (travelled(&metrics, "together"), batches(&metrics)),
        (0, 0),
        "nobody shared a call"
    );
}

#[tokio::test]
async fn without_retries_each_fails_or_succeeds_where_it_goes_by_itself() {
    let (answers, _, _) = with_one_of_two_failing(Fault::Status(500, None), "retry: off").await;
    // Two batches, one of them at the bad one, and eight that went by themselves in turn.
    let failed = answers.iter().filter(|answer| answer.status == 500).count();
    let fine = answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!(failed + fine, 2 * FULL);
    assert!(fine >= FULL / 2 && failed <= FULL, "{fine} and {failed}");
    assert!(answers.iter().all(|answer| attempts(answer) == 1));
}

#[tokio::test]
async fn a_server_that_always_fails_is_asked_once_more_by_each() {
    let table = Table::set("").await;
    table.expects_company(embed).await;
    table.simulator.fault(Fault::Status(500, None));
    let before = table.calls();
    let answers = at_once(table.address(), full_table()).await;
    assert!(answers.iter().all(|answer| answer.status == 500 && attempts(answer) == 1));
    assert_eq!(table.calls(), before + 1 + FULL as u64);
}

#[tokio::test]
async fn a_stall_of_the_batch_ends_at_the_first_byte_deadline_and_each_goes_by_itself() {
    let table = Table::set("deadline: { first_byte: 400ms }").await;
    table.expects_company(embed).await;
    table.simulator.inflict(Rule::always(Fault::StallFirstByte(None)).times(1));
    let answers = at_once(table.address(), full_table()).await;
    expect_own(&table, &answers, |index| embed(text(index))).await;
    let soonest = answers.iter().map(|answer| answer.whole_after).min();
    assert!(soonest >= Some(Duration::from_millis(400)), "{soonest:?}");
    assert_eq!(travelled(&table.proxy.metrics().await, "sent_again"), FULL as u64);
    table.simulator.reached(|state| state.in_flight == 0).await;
}

#[tokio::test]
async fn a_stall_for_ever_ends_each_at_its_own_first_byte_deadline() {
    let table = Table::set("deadline: { first_byte: 400ms }, retry: off").await;
    table.expects_company(embed).await;
    table.simulator.fault(Fault::StallFirstByte(None));
    let answers = at_once(table.address(), full_table()).await;
    for answer in &answers {
        assert_eq!((answer.status, &*error_code(answer)), (504, "first_byte_timeout"));
    }
    await_idle(&table.proxy).await;
}

/// The total is what a client was promised, in a batch or out of it.
#[tokio::test]
async fn a_stall_never_keeps_anybody_beyond_the_total_deadline() {
    let table = Table::set("deadline: { total: 800ms, first_byte: 15s }").await;
    table.expects_company(embed).await;
    table.simulator.fault(Fault::StallFirstByte(None));
    let began = Instant::now();
    let answers = at_once(table.address(), full_table()).await;
    let took = began.elapsed();
    for answer in &answers {
        assert_eq!((answer.status, &*error_code(answer)), (504, "total_timeout"));
    }
    assert!(took < Duration::from_secs(12), "{took:?} with a total of 800 ms");
    await_idle(&table.proxy).await;
}

#[tokio::test]
async fn nobody_waits_for_company_beyond_half_of_its_total() {
    let table = Table::set("deadline: { total: 1s }").await;
    table.expects_company(embed).await;
    // Too few to fill a batch, and the window is a second: who waited for all of it would get no answer in time.
    let answers = at_once(table.address(), (0..3).map(|index| embed(text(index)))).await;
    expect_own(&table, &answers, |index| embed(text(index))).await;
}

#[tokio::test]
async fn a_batch_that_finds_every_endpoint_full_lets_each_say_so() {
    let simulator = sim("stable");
    let yaml = one_backend(&[&simulator], "max_connections: 24", &format!("{PATIENT}, retry: off"));
    let proxy = Proxy::start(&yaml).await;
    expect_company(&proxy, &[&simulator], "tide", embed).await;
    simulator.fault(Fault::StallFirstByte(None));
    let mut stuck = tokio::task::JoinSet::new();
    for _ in 0..24 {
        let call = Call::chat("hm").max_tokens(1);
        stuck.spawn(call.try_send(proxy.address()));
    }
    simulator.reached(|state| state.in_flight == 24).await;
    let answers = at_once(proxy.address(), full_table()).await;
    for answer in &answers {
        assert_eq!((answer.status, &*error_code(answer)), (503, "overloaded"));
    }
    simulator.clear_faults();
    stuck.shutdown().await;
    await_idle(&proxy).await;
    let answers = at_once(proxy.address(), full_table()).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
}

#[tokio::test]
async fn a_batch_without_an_endpoint_that_connects_lets_each_say_so() {
    let simulator = sim("stable");
    let proxy = Proxy::start(&patient(&[&simulator], "retry: off")).await;
    expect_company(&proxy, &[&simulator], "tide", embed).await;
    simulator.refuse().await;
    let answers = at_once(proxy.address(), full_table()).await;
    for answer in &answers {
        assert!(matches!(answer.status, 502 | 503), "{} {}", answer.status, answer.text());
    }
    let again = travelled(&proxy.metrics().await, "sent_again");
    assert_eq!(again, FULL as u64);
}

#[tokio::test]
async fn a_batch_is_sent_over_a_new_connection_when_the_resting_one_was_closed() {
    let table = Table::set("").await;
    for _ in 0..20 {
        table.expects_company(embed).await;
        let before = table.calls();
        table.simulator.hang_up();
        let answers = at_once(table.address(), full_table()).await;
        expect_own(&table, &answers, |index| embed(text(index))).await;
        assert!(table.calls() > before);
    }
    let metrics = table.proxy.metrics().await;
    let failed = metrics.get("outrigger_endpoint_requests_total", &[("outcome", "upstream_reset")]);
    assert_eq!(failed, 0.0, "a connection that rested too long says nothing of its endpoint");
}

/// A failing arm is not hidden by batches: its answers are its own.
#[tokio::test]
async fn an_error_that_is_nobodys_fault_goes_to_each_as_it_is() {
    let table = Table::set("").await;
    table.expects_company(embed).await;
    table.simulator.fault(Fault::Status(404, None));
    let answers = at_once(table.address(), full_table()).await;
    for answer in &answers {
        assert_eq!(answer.status, 404);
        assert!(answer.text().contains("a simulated fault"), "{}", answer.text());
    }
    table.simulator.clear_faults();
    let answers = at_once(table.address(), full_table()).await;
    assert!(answers.iter().all(|answer| !call_of(answer).is_empty()));
}
