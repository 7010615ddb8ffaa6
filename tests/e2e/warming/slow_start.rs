//! Slow start: an endpoint that has just come into service gets a share of the traffic that grows.

use std::time::Duration;

use outrigger_tests::harness::{Load, Proxy, Report, within};
use outrigger_tests::sim::{Fault, Simulator};

use crate::fleet::{
    Endpoint, await_endpoints, chat, endpoint_states, in_flight, one_backend, plain, reload, sim,
    stick,
};

const WINDOW: Duration = Duration::from_secs(4);
const IN_TURN: &str = "balance: round_robin, slow_start: { window: 4s, floor: 10% }";

async fn load(proxy: &Proxy, count: usize) -> Report {
    let report = Load::of(count).at_once(4).run(proxy.address(), |_| chat()).await;
    assert_eq!(report.ok(), count, "{:?}", report.outcomes());
    report
}

fn share(report: &Report, sim: &Simulator) -> f64 {
    let answered = report.by_name().get(sim.name()).copied().unwrap_or_default();
    answered as f64 / report.samples.len() as f64
}

/// One endpoint that has its whole share, and another that has just come.
async fn newcomer(backend: &str) -> (Simulator, Simulator, Proxy) {
    let (a, b) = (sim("a"), sim("b"));
    let proxy = Proxy::start(&one_backend(&[&a], backend, "")).await;
    await_endpoints(&proxy, "the first to be old", |all| all[0].age > WINDOW).await;
    reload(&proxy, &one_backend(&[&a, &b], backend, "")).await;
    (a, b, proxy)
}

/// The share of requests that the younger of two has by its age now, if the other one has its full weight.
async fn due(proxy: &Proxy) -> f64 {
    let age = endpoint_states(proxy).await[1].age;
    let weight = (age.as_secs_f64() / WINDOW.as_secs_f64()).clamp(0.1, 1.0);
    weight / (1.0 + weight)
}

#[tokio::test]
async fn the_share_of_a_newcomer_grows_from_the_floor_to_the_whole() {
    let (_a, b, proxy) = newcomer(IN_TURN).await;
    let young = share(&load(&proxy, 300).await, &b);
    // Its turns are drawn at random: five in a hundred is more than three deviations.
    let most = due(&proxy).await + 0.06;
    assert!(young > 0.0 && young <= most, "{young} of at most {most} at first");
    await_endpoints(&proxy, "the other to be half as old", |all| all[1].age > WINDOW / 2).await;
    let least = due(&proxy).await - 0.09;
    let older = share(&load(&proxy, 300).await, &b);
    assert!(older >= least && older > young, "{older} of at least {least}, after {young}");
    await_endpoints(&proxy, "the other to be old", |all| all[1].age > WINDOW).await;
    let grown = load(&proxy, 300).await;
    assert_eq!(share(&grown, &b), 0.5, "{:?}", grown.by_name());
}

#[tokio::test]
async fn by_load_a_newcomer_carries_less_while_it_is_new() {
    let backend = "balance: least_connection, slow_start: { window: 4s, floor: 10% }";
    let (a, b, proxy) = newcomer(backend).await;
    let _stuck = stick(&proxy, &[&a, &b], (0..10).map(|_| plain())).await;
    let (held, most) = (in_flight(&proxy).await, 10.0 * due(&proxy).await);
    assert!(held[1] as f64 <= most.ceil(), "{held:?}: more than {most} at the second");
}

#[tokio::test]
async fn without_slow_start_a_newcomer_has_its_full_share_at_once() {
    let (a, b) = (sim("a"), sim("b"));
    let in_turn = "balance: round_robin";
    let proxy = Proxy::start(&one_backend(&[&a], in_turn, "")).await;
    load(&proxy, 10).await;
    reload(&proxy, &one_backend(&[&a, &b], in_turn, "")).await;
    assert_eq!(share(&load(&proxy, 100).await, &b), 0.5);
}

#[tokio::test]
async fn endpoints_that_are_all_new_share_evenly() {
    for policy in ["round_robin", "least_connection", "least_load"] {
        let (a, b, c) = (sim("a"), sim("b"), sim("c"));
        let backend = format!("balance: {policy}, slow_start: 1h");
        let proxy = Proxy::start(&one_backend(&[&a, &b, &c], &backend, "")).await;
        let report = Load::of(300).at_once(8).run(proxy.address(), |_| chat()).await;
        assert_eq!(report.ok(), 300, "{:?}", report.outcomes());
        for sim in [&a, &b, &c] {
            let share = share(&report, sim);
            assert!((0.15..=0.6).contains(&share), "{policy}: {:?}", report.by_name());
        }
    }
}

#[tokio::test]
async fn one_that_was_unready_or_ejected_or_away_is_new_again() {
    let (a, b) = (sim("a"), sim("b"));
    let backend = "balance: round_robin, slow_start: 1h, ejection: { failures: 1, base: 10ms }, \
        health: { http: /health, interval: 30ms, unhealthy: 1, healthy: 1 }";
    let proxy = Proxy::start(&one_backend(&[&a, &b], backend, "")).await;
    let old = Duration::from_secs(3);
    let grow = || {
        await_endpoints(&proxy, "both to be older", |all| {
            all.iter().all(|e| e.ready && e.age > old)
        })
    };
    let young = |why: &'static str| {
        await_endpoints(&proxy, why, |all| all[0].ready && !all[0].ejected && all[0].age < old / 2)
    };
    grow().await;
    a.fault(Fault::NoHealth);
    await_endpoints(&proxy, "it to be unready", |all| !all[0].ready).await;
    a.clear_faults();
    assert!(young("it to be ready").await[1].age > old, "the other has not been away");
    grow().await;
    a.fault(Fault::Status(500, None));
    load_until(&proxy, |all| all[0].ejected).await;
    a.clear_faults();
    load_until(&proxy, |all| !all[0].ejected).await;
    young("it to be restored").await;
    grow().await;
    reload(&proxy, &one_backend(&[&b], backend, "")).await;
    reload(&proxy, &one_backend(&[&a, &b], backend, "")).await;
    young("it to be back").await;
}

/// Sends requests until the endpoints are as wished, whatever becomes of them.
async fn load_until(proxy: &Proxy, wished: impl Fn(&[Endpoint]) -> bool) {
    within("requests to change something", async {
        while !wished(&endpoint_states(proxy).await) {
            Load::of(2).run(proxy.address(), |_| chat()).await;
        }
    })
    .await;
}
