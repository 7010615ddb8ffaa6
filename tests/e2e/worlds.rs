//! The worlds of the policy simulator (`tests/policies`) in small, over real sockets: real proxies before simulated
//! engines must put the policies in the same order. Only differences that chance can not make are asserted; all figures
//! are printed. What is compared runs at the same time, so that whatever else the machine does meets both alike.

use std::time::Duration;

use outrigger_tests::harness::{Call, Load, Proxy, Report};
use outrigger_tests::sim::{Options, Simulator};

use crate::fleet::one_backend;

/// Virtual seconds in a real one.
const SPEED: f64 = 20.0;
/// Requests of one run, and how many of them at once.
const REQUESTS: usize = 240;
const AT_ONCE: usize = 12;

fn engine(name: &str) -> Options {
    Options::named(name).speed(SPEED).room(8, 1_000)
}

fn fleet(engines: impl IntoIterator<Item = Options>) -> Vec<Simulator> {
    engines.into_iter().map(Simulator::start).collect()
}

/// `words` words that no prompt of another `topic` begins with.
fn prompt(topic: usize, words: usize) -> String {
    format!("topic number {topic}: {}", format!("word{topic} ").repeat(words))
}

/// The first byte is the only one.
fn ask(text: &str) -> Call {
    Call::chat(text).max_tokens(1)
}

/// One load through a proxy with this policy.
#[expect(clippy::print_stdout, reason = "the figures are what one looks at when an order fails")]
async fn load(
    engines: &[Simulator],
    policy: &str,
    call: impl Fn(usize) -> Call + Send + Sync + 'static,
) -> Report {
    let engines: Vec<&Simulator> = engines.iter().collect();
    let backend = format!("balance: {policy}, ejection: off");
    let proxy = Proxy::start(&one_backend(&engines, &backend, "retry: off")).await;
    let report = Load::of(REQUESTS).at_once(AT_ONCE).run(proxy.address(), call).await;
    assert_eq!(report.ok(), REQUESTS, "{policy}: {:?}", report.outcomes());
    println!(
        "{policy:<18} p50 {:>8.1?} p90 {:>8.1?} p99 {:>8.1?} in {:.1?}: {:?}",
        report.quantile(0.5),
        report.quantile(0.9),
        report.quantile(0.99),
        report.took,
        report.by_name()
    );
    report
}

/// The same load in turn at the first fleet and by `policy` at the second one.
async fn at_once(
    fleets: &[&Vec<Simulator>; 2],
    policy: &str,
    call: impl Fn(usize) -> Call + Copy + Send + Sync + 'static,
) -> (Report, Report) {
    tokio::join!(load(fleets[0], "round_robin", call), load(fleets[1], policy, call))
}

/// How much better the one is than the other.
fn ratio(worse: Duration, better: Duration) -> f64 {
    worse.as_secs_f64() / better.as_secs_f64()
}

#[tokio::test]
async fn among_equals_the_default_loses_nothing() {
    let chat = |_| Call::chat("how deep is the lagoon?").max_tokens(64);
    let three = || fleet(["a", "b", "c"].map(engine));
    let (turns, default) = at_once(&[&three(), &three()], "least_load", chat).await;
    assert!(ratio(default.took, turns.took) < 1.5, "{:?} {:?}", default.took, turns.took);
}

#[tokio::test]
async fn one_slow_engine_drags_those_that_go_in_turn() {
    let chat = |_| Call::chat("how deep is the lagoon?").max_tokens(64);
    let with_a_slow_one = || fleet([engine("slow").slowdown(10.0), engine("b"), engine("c")]);
    for policy in ["least_load", "least_connection"] {
        let fleets = [&with_a_slow_one(), &with_a_slow_one()];
        let (turns, report) = at_once(&fleets, policy, chat).await;
        assert!(ratio(turns.took, report.took) > 1.5, "{policy}");
    }
}

#[tokio::test]
async fn long_prompts_are_not_put_behind_each_other() {
    // One in eight has 24,000 words, the others a dozen.
    let mixed = |index: usize| ask(&prompt(index, if index % 8 == 5 { 24_000 } else { 12 }));
    let four = || fleet(["a", "b", "c", "d"].map(engine));
    let (turns, default) = at_once(&[&four(), &four()], "least_load", mixed).await;
    assert!(ratio(default.took, turns.took) < 1.2, "{:?} {:?}", default.took, turns.took);
}

#[tokio::test]
async fn a_third_of_the_fleet_that_starts_cold_is_used_as_it_warms() {
    let chat = |_| Call::chat("how deep is the lagoon?").max_tokens(64);
    let start = || fleet([engine("cold").slowdown(20.0), engine("b"), engine("c")]);
    let (for_turns, for_default) = (start(), start());
    let (turns, default) = at_once(&[&for_turns, &for_default], "least_load", chat).await;
    assert!(ratio(turns.took, default.took) > 1.5, "{:?} {:?}", default.took, turns.took);
    for_default[0].set_slowdown(1.0);
    let warm = load(&for_default, "least_load", chat).await;
    let share = warm.by_name().get("cold").copied().unwrap_or_default();
    assert!(share > REQUESTS / 12, "warm, it has its share: {:?}", warm.by_name());
}

#[tokio::test]
async fn prompts_that_share_a_head_go_where_it_is_cached() {
    // Eight heads of 6,000 words, one of them in every second request.
    let shared = |index: usize| {
        let head = if index.is_multiple_of(2) { 0 } else { 1 + index / 2 % 7 };
        ask(&format!("{} and question {index}", prompt(head, 6_000)))
    };
    let four = || fleet(["a", "b", "c", "d"].map(engine));
    for policy in ["least_load", "prefix_affinity"] {
        let (turns, report) = at_once(&[&four(), &four()], policy, shared).await;
        assert!(ratio(turns.took, report.took) > 1.1, "{policy}");
        assert!(report.by_name().len() > 1, "{policy}: one engine has all: {:?}", report.by_name());
    }
}
