//! Which arm of a split serves a request: the exact pattern, keys that stick, weight zero, forced arms.

use std::collections::BTreeMap;

use outrigger_tests::harness::{Answer, Call, Client, Load, Metrics, Protocol, Proxy};
use outrigger_tests::sim::{Fault, Simulator};

use super::fleet::{endpoints, reload, sim};

/// A stable and a canary server, and a proxy that splits between them.
struct Split {
    stable: Simulator,
    canary: Simulator,
    proxy: Proxy,
}

impl Split {
    /// `split` is the split as it is written in the file, `route` further settings of the route.
    async fn start(split: &str, route: &str) -> Self {
        let (stable, canary) = (sim("stable"), sim("canary"));
        let proxy = Proxy::start(&config(&stable, &canary, split, route)).await;
        Self { stable, canary, proxy }
    }

    async fn reload(&self, split: &str, route: &str) {
        reload(&self.proxy, &config(&self.stable, &self.canary, split, route)).await;
    }

    /// Which arms serve these requests, sent one after the other.
    async fn arms(&self, calls: impl IntoIterator<Item = Call>) -> Vec<String> {
        let mut client = Client::connect(self.proxy.address(), Protocol::Http1).await;
        let mut arms = Vec::new();
        for call in calls {
            let answer = client.send(call).await.expect("an answer");
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_eq!(answer.header("x-outrigger-arm"), Some(answer.by()), "what it says it did");
            arms.push(answer.by().to_owned());
        }
        arms
    }
}

fn config(stable: &Simulator, canary: &Simulator, split: &str, route: &str) -> String {
    format!(
        "backends:\n  stable: {{ endpoints: {} }}\n  canary: {{ endpoints: {} }}\n\
         routes: [{{ name: chat, split: {split}, expose: [arm, attempts], {route} }}]\n",
        endpoints(&[stable]),
        endpoints(&[canary]),
    )
}

fn plain() -> Call {
    Call::get("/bytes/1")
}

fn plain_times(count: usize) -> impl Iterator<Item = Call> {
    (0..count).map(|_| plain())
}

fn share(arms: &[String], name: &str) -> usize {
    arms.iter().filter(|arm| *arm == name).count()
}

#[tokio::test]
async fn requests_one_after_the_other_follow_the_smooth_pattern_exactly() {
    let split = Split::start("{ stable: 90, canary: 10 }", "").await;
    let arms = split.arms(plain_times(200)).await;
    for ten in arms.chunks(10) {
        let canary = ten.iter().position(|arm| arm == "canary");
        assert_eq!((canary, share(ten, "canary")), (Some(5), 1), "{ten:?}");
    }
}

#[tokio::test]
async fn three_arms_are_interleaved_and_not_sent_in_bursts() {
    let (a, b, c) = (sim("a"), sim("b"), sim("c"));
    let backend = |sim: &Simulator| format!("{{ endpoints: {} }}", endpoints(&[sim]));
    let yaml = format!(
        "backends: {{ a: {}, b: {}, c: {} }}\nroutes: [{{ split: {{ a: 5, b: 1, c: 1 }} }}]",
        backend(&a),
        backend(&b),
        backend(&c)
    );
    let proxy = Proxy::start(&yaml).await;
    let report = Load::of(70).run(proxy.address(), |_| plain()).await;
    let order: String =
        report.samples.iter().map(|s| s.answer.as_ref().expect("an answer").by()).collect();
    assert_eq!(order, "aabacaa".repeat(10));
}

#[tokio::test]
async fn ten_thousand_requests_at_once_split_exactly_ninety_to_ten() {
    let directory = tempfile::tempdir().expect("a directory");
    let (stable, canary) = (sim("stable"), sim("canary"));
    let socket = directory.path().join("upgrade.sock");
    let threads = format!("runtime: {{ threads: 3, upgrade_socket: {} }}\n", socket.display());
    let yaml = threads + &config(&stable, &canary, "{ stable: 90, canary: 10 }", "");
    let proxy = Proxy::start(&yaml).await;
    let report = Load::of(10_000).at_once(24).run(proxy.address(), |_| plain()).await;
    assert_eq!(report.ok(), 10_000, "{:?}", report.outcomes());
    let expected = BTreeMap::from([("stable".to_owned(), 9_000), ("canary".to_owned(), 1_000)]);
    assert_eq!(report.by_name(), expected);
    // A request is counted a moment after its client has the answer.
    let of = |metrics: &Metrics, arm| {
        metrics.get("outrigger_requests_total", &[("route", "chat"), ("arm", arm)])
    };
    proxy.await_metrics(|m| (of(m, "stable"), of(m, "canary")) == (9_000.0, 1_000.0)).await;
}

#[tokio::test]
async fn a_reload_that_leaves_the_weights_alone_does_not_restart_the_pattern() {
    let split = Split::start("{ stable: 3, canary: 1 }", "").await;
    let mut arms = split.arms(plain_times(3)).await;
    split.reload("{ stable: 3, canary: 1 }", "retry: off").await;
    arms.extend(split.arms(plain_times(5)).await);
    let canaries: Vec<_> = (0..8).filter(|&i| arms[i] == "canary").collect();
    assert_eq!(canaries.len(), 2, "{arms:?}");
    assert_eq!(canaries[1] - canaries[0], 4, "{arms:?}");
}

/// Sends 1,000 keys four times, with a reload between the second and the third, and expects each to stay.
async fn never_flips(sticky: &str, with_key: fn(Call, &str) -> Call) {
    let weights = "{ stable: 90, canary: 10 }";
    let split = Split::start(weights, &format!("sticky: {{ {sticky} }}")).await;
    let calls = || (0..1_000).map(|key| with_key(ask(), &format!("user-{key}")));
    let first = split.arms(calls()).await;
    assert_eq!(split.arms(calls()).await, first, "a key flipped");
    split.reload(weights, &format!("sticky: {{ {sticky} }}, deadline: {{ total: 90s }}")).await;
    assert_eq!(split.arms(calls()).await, first, "a key flipped with a reload");
    // A key is one of 1,000 draws with a chance of one in ten; the draw is the same each time.
    let canaries = share(&first, "canary");
    assert!((60..=140).contains(&canaries), "{canaries} of 1,000 keys for a weight of 10 %");
    let split = Split::start(weights, &format!("sticky: {{ {sticky} }}")).await;
    assert_eq!(split.arms(calls()).await, first, "another proxy sees it otherwise");
}

/// A request whose body may carry a key.
fn ask() -> Call {
    Call::post("/v1/embeddings").json(serde_json::json!({"model": "m", "input": "hello"}))
}

#[tokio::test]
async fn a_key_in_a_header_never_flips() {
    never_flips("header: x-user", |call, key| call.header("x-user", key)).await;
}

#[tokio::test]
async fn a_key_in_a_cookie_never_flips() {
    let with_key = |call: Call, key: &str| {
        call.header("cookie", &format!("theme=dark; session={key}; sessions=other"))
    };
    never_flips("cookie: session", with_key).await;
}

#[tokio::test]
async fn a_key_in_the_body_never_flips() {
    never_flips("body: user", |call, key| call.field("user", key)).await;
}

#[tokio::test]
async fn a_number_in_the_body_is_a_key_too() {
    let split = Split::start("{ stable: 1, canary: 1 }", "sticky: { body: user }").await;
    for user in 0..10 {
        let arms = split.arms((0..6).map(|_| ask().field("user", user))).await;
        assert!(arms.windows(2).all(|two| two[0] == two[1]), "user {user} flips: {arms:?}");
    }
}

#[tokio::test]
async fn who_is_in_the_canary_stays_when_it_grows() {
    let sticky = "sticky: { header: x-user }";
    let split = Split::start("{ stable: 90, canary: 10 }", sticky).await;
    let calls = || (0..1_000).map(|key| plain().header("x-user", &format!("user-{key}")));
    let before = split.arms(calls()).await;
    split.reload("{ stable: 80, canary: 20 }", sticky).await;
    let after = split.arms(calls()).await;
    let left = before.iter().zip(&after).filter(|(b, a)| *b == "canary" && *a == "stable").count();
    assert_eq!(left, 0, "members of the canary were sent back");
    let (small, large) = (share(&before, "canary"), share(&after, "canary"));
    assert!(large > small + 50, "the canary grew from {small} to {large} of 1,000");
}

#[tokio::test]
async fn requests_without_a_key_take_turns() {
    let split = Split::start("{ stable: 3, canary: 1 }", "sticky: { header: x-user }").await;
    let arms = split.arms(plain_times(40)).await;
    assert_eq!((share(&arms, "stable"), share(&arms, "canary")), (30, 10));
}

#[tokio::test]
async fn an_arm_of_weight_zero_gets_nothing() {
    let split = Split::start("{ stable: 1, canary: 0 }", "sticky: { header: x-user }").await;
    let keyed = (0..500).map(|key| plain().header("x-user", &key.to_string()));
    let arms = split.arms(plain_times(100).chain(keyed)).await;
    assert_eq!(share(&arms, "canary"), 0);
    assert_eq!(split.canary.state().requests(), 0);
}

#[tokio::test]
async fn a_reload_to_weight_zero_takes_an_arm_out_at_once() {
    let split = Split::start("{ stable: 1, canary: 1 }", "").await;
    assert_eq!(share(&split.arms(plain_times(20)).await, "canary"), 10);
    split.reload("{ stable: 1, canary: 0 }", "").await;
    assert_eq!(share(&split.arms(plain_times(50)).await, "canary"), 0);
}

#[tokio::test]
async fn a_tester_forces_an_arm_by_header_even_one_of_weight_zero() {
    let split = Split::start("{ stable: 1, canary: 0 }", "sticky: { header: x-user }").await;
    let forced = |arm: &'static str| {
        (0..20).map(move |key| {
            plain().header("x-outrigger-arm", arm).header("x-user", &key.to_string())
        })
    };
    assert_eq!(share(&split.arms(forced("canary")).await, "canary"), 20);
    assert_eq!(share(&split.arms(forced("stable")).await, "stable"), 20);
    let unknown = split.arms(forced("nonesuch")).await;
    assert_eq!(share(&unknown, "stable"), 20, "an unknown arm is no reason to fail");
}

#[tokio::test]
async fn a_forced_arm_does_not_take_the_turn_of_anybody() {
    let split = Split::start("{ stable: 1, canary: 1 }", "").await;
    let calls = (0..20).map(|i| match i % 2 {
        0 => plain(),
        _ => plain().header("x-outrigger-arm", "canary"),
    });
    let arms = split.arms(calls).await;
    let own: Vec<_> = arms.iter().step_by(2).collect();
    assert_eq!(own, ["stable", "canary"].repeat(5).iter().collect::<Vec<_>>());
}

#[tokio::test]
async fn the_header_that_forces_an_arm_can_be_renamed() {
    let split = Split::start("{ stable: 1, canary: 0 }", "force_arm: x-tester").await;
    let by = |header| split.arms([plain().header(header, "canary")]);
    assert_eq!(by("x-tester").await, ["canary"]);
    assert_eq!(by("x-outrigger-arm").await, ["stable"]);
}

#[tokio::test]
async fn nobody_forces_an_arm_when_that_is_switched_off() {
    let split = Split::start("{ stable: 1, canary: 0 }", "force_arm: off").await;
    let calls = (0..20).map(|_| plain().header("x-outrigger-arm", "canary"));
    assert_eq!(share(&split.arms(calls).await, "canary"), 0);
}

/// A canary of two endpoints beside a stable arm; the request is forced into the canary.
async fn in_a_canary_of_two(prepare: impl FnOnce(&Simulator, &Simulator)) -> (Answer, u64) {
    let (stable, one, two) = (sim("stable"), sim("one"), sim("two"));
    let yaml = format!(
        "backends:\n  stable: {{ endpoints: {} }}\n  canary: {{ endpoints: {}, balance: round_robin }}\n\
         routes: [{{ split: {{ stable: 99, canary: 1 }}, expose: [arm, attempts] }}]\n",
        endpoints(&[&stable]),
        endpoints(&[&one, &two]),
    );
    let proxy = Proxy::start(&yaml).await;
    prepare(&one, &two);
    let call = ask().header("x-outrigger-arm", "canary");
    (call.send(proxy.address()).await, stable.state().requests())
}

#[tokio::test]
async fn a_retry_stays_inside_its_arm() {
    let (answer, at_stable) =
        in_a_canary_of_two(|one, _| one.fault(Fault::Status(503, None))).await;
    assert_eq!((answer.status, answer.by()), (200, "two"));
    assert_eq!(answer.header("x-outrigger-arm"), Some("canary"));
    assert_eq!(answer.header("x-outrigger-attempts"), Some("2"));
    assert_eq!(at_stable, 0);
}

#[tokio::test]
async fn an_arm_that_fails_as_a_whole_is_not_hidden_by_the_other() {
    let (answer, at_stable) = in_a_canary_of_two(|one, two| {
        one.fault(Fault::Status(503, None));
        two.fault(Fault::Status(503, None));
    })
    .await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("x-outrigger-attempts"), Some("2"));
    assert_eq!(at_stable, 0);
}
