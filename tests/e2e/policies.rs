//! Every balancing policy over real sockets: all requests are answered, endpoints share what they should share, and
//! what belongs together stays together.

use std::collections::BTreeMap;

use outrigger_tests::harness::{Answer, Call, Load, Protocol, Proxy};
use outrigger_tests::sim::{Fault, Simulator};

use crate::fleet::{
    await_endpoints, await_idle, chat, in_flight, one_backend, plain, reload, sim, stick,
};

/// All of them, with the settings that they need.
pub(crate) const POLICIES: [&str; 12] = [
    "least_load",
    "least_connection",
    "power_of_two",
    "peak_ewma",
    "least_time",
    "prequal",
    "{ policy: consistent_hash, key: { header: x-user } }",
    "{ policy: consistent_hash, key: { header: x-user }, table: ring, bounded_load: off }",
    "prefix_affinity",
    "{ policy: session_affinity, key: { header: x-user } }",
    "round_robin",
    "{ policy: least_load, prefix: off }",
];

fn balance(policy: &str) -> String {
    format!("balance: {policy}")
}

fn user(index: usize) -> String {
    format!("user-{index}")
}

/// Requests of all kinds, from sixty users.
fn mixed(index: usize) -> Call {
    let prompt = format!("{} ", index % 7).repeat(if index.is_multiple_of(3) { 6_000 } else { 5 });
    let call = Call::chat(&prompt).max_tokens(2 + index as u64 % 30);
    let call = if index.is_multiple_of(2) { call.streaming() } else { call };
    call.header("x-user", &user(index % 60))
}

#[tokio::test]
async fn every_policy_answers_everything_and_leaves_nobody_idle() {
    for (at, policy) in POLICIES.into_iter().enumerate() {
        let (a, b, c) = (sim("a"), sim("b"), sim("c"));
        let upstream = if at.is_multiple_of(2) { "http1" } else { "h2c" };
        let backend = format!("protocol: {upstream}, {}", balance(policy));
        let proxy = Proxy::start(&one_backend(&[&a, &b, &c], &backend, "")).await;
        let downstream = if at % 3 == 0 { Protocol::H2 } else { Protocol::Http1 };
        let load = Load::of(400).at_once(16).over(downstream);
        let report = load.run(proxy.address(), mixed).await;
        assert_eq!(report.ok(), 400, "{policy}: {:?}", report.outcomes());
        let names = report.by_name();
        // Who is taken for slow may have little to do, as long as the others are not full.
        let by_time = ["peak_ewma", "least_time", "prequal"].contains(&policy);
        let least = if by_time { 1 } else { 20 };
        let busy = |name| names.get(name) >= Some(&least);
        assert!(busy("a") && busy("b") && busy("c"), "{policy}: {names:?}");
        await_idle(&proxy).await;
    }
}

/// A way to say whose a request is, and the rest of the configuration that it takes.
#[derive(Clone, Copy, Debug)]
struct Key {
    yaml: &'static str,
    of: fn(&str) -> Call,
    besides: &'static str,
}

const KEYS: [Key; 5] = [
    Key { yaml: "{ header: x-user }", of: |user| chat().header("x-user", user), besides: "" },
    Key {
        yaml: "{ cookie: session }",
        of: |user| chat().header("cookie", &format!("theme=dark; session={user}; x=1")),
        besides: "",
    },
    Key { yaml: "{ body: user }", of: |user| chat().field("user", user), besides: "" },
    Key {
        yaml: "{ body: user }",
        of: |user| Call::chat(&"long ".repeat(30_000)).max_tokens(2).field("user", user),
        besides: "",
    },
    Key {
        yaml: "{ client: true }",
        of: |user| {
            let number: u32 = user.trim_start_matches("user-").parse().expect("a number");
            chat().header("x-forwarded-for", &format!("10.1.{}.7", number % 256))
        },
        besides: "forwarding: { trusted_hops: 1 }\n",
    },
];

/// Who serves each of so many users, who sends three requests; all of them must go to the same.
async fn places(proxy: &Proxy, key: Key, users: usize) -> BTreeMap<usize, String> {
    let call = move |index: usize| (key.of)(&user(index % users));
    let report = Load::of(3 * users).run(proxy.address(), call).await;
    assert_eq!(report.ok(), 3 * users, "{key:?}: {:?}", report.outcomes());
    let mut places = BTreeMap::new();
    for sample in &report.samples {
        let by = sample.answer.as_ref().expect("an answer").by().to_owned();
        let user = sample.index % users;
        let before = places.insert(user, by.clone());
        assert!(before.is_none_or(|before| before == by), "{key:?}: user {user} was moved");
    }
    places
}

fn used(places: &BTreeMap<usize, String>) -> Vec<&str> {
    let mut names: Vec<_> = places.values().map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    names
}

const KEYED: [&str; 4] = [
    "policy: consistent_hash",
    "policy: consistent_hash, table: ring",
    "policy: consistent_hash, bounded_load: off",
    "policy: session_affinity",
];

#[tokio::test]
async fn whose_requests_belong_together_is_said_by_header_cookie_body_or_client() {
    for key in KEYS {
        for policy in KEYED {
            let (a, b, c) = (sim("a"), sim("b"), sim("c"));
            let backend = balance(&format!("{{ {policy}, key: {} }}", key.yaml));
            let yaml = one_backend(&[&a, &b, &c], &backend, "") + key.besides;
            let proxy = Proxy::start(&yaml).await;
            let places = places(&proxy, key, 30).await;
            assert_eq!(used(&places), ["a", "b", "c"], "{policy} {key:?}");
        }
    }
}

#[tokio::test]
async fn a_key_that_the_route_takes_out_of_the_request_is_a_key_all_the_same() {
    let (a, b, c) = (sim("a"), sim("b"), sim("c"));
    let backend = balance("{ policy: consistent_hash, key: { header: x-user } }");
    let rewrite = "rewrite: { request_headers: { remove: [x-user] } }";
    let proxy = Proxy::start(&one_backend(&[&a, &b, &c], &backend, rewrite)).await;
    let places = places(&proxy, KEYS[0], 30).await;
    assert_eq!(used(&places), ["a", "b", "c"]);
    assert!(a.seen().iter().all(|seen| seen.header("x-user").is_none()));
}

#[tokio::test]
async fn a_client_cannot_choose_its_endpoint_by_naming_others_before_itself() {
    let (a, b, c) = (sim("a"), sim("b"), sim("c"));
    let backend = balance("{ policy: consistent_hash, key: { client: true } }");
    let yaml = one_backend(&[&a, &b, &c], &backend, "") + "forwarding: { trusted_hops: 1 }\n";
    let proxy = Proxy::start(&yaml).await;
    let call = |index| chat().header("x-forwarded-for", &format!("9.9.9.{index}, 10.1.2.7"));
    let report = Load::of(30).run(proxy.address(), call).await;
    assert_eq!((report.ok(), report.by_name().len()), (30, 1), "{:?}", report.by_name());
}

#[tokio::test]
async fn two_proxies_find_the_same_endpoint_for_a_key() {
    let (a, b, c) = (sim("a"), sim("b"), sim("c"));
    for table in ["maglev", "ring"] {
        let policy =
            format!("{{ policy: consistent_hash, table: {table}, key: {{ header: x-user }} }}");
        let yaml = |sims: &[&Simulator]| one_backend(sims, &balance(&policy), "");
        let one = Proxy::start(&yaml(&[&a, &b, &c])).await;
        let other = Proxy::start(&yaml(&[&a, &b, &c])).await;
        assert_eq!(places(&one, KEYS[0], 40).await, places(&other, KEYS[0], 40).await, "{table}");
    }
}

/// Users who are not where they were, of those who were not at `gone`.
fn moved(before: &BTreeMap<usize, String>, after: &BTreeMap<usize, String>, gone: &str) -> usize {
    before.iter().filter(|(user, place)| *place != gone && after[user] != **place).count()
}

#[tokio::test]
async fn when_an_endpoint_leaves_the_keys_of_the_others_stay() {
    // Maglev moves a few that it need not move; the ring none.
    for (table, most) in [("maglev", 9), ("ring", 0)] {
        let (a, b, c) = (sim("a"), sim("b"), sim("c"));
        let policy =
            format!("{{ policy: consistent_hash, table: {table}, key: {{ header: x-user }} }}");
        let all = one_backend(&[&a, &b, &c], &balance(&policy), "");
        let proxy = Proxy::start(&all).await;
        let before = places(&proxy, KEYS[0], 90).await;
        reload(&proxy, &one_backend(&[&a, &b], &balance(&policy), "")).await;
        let after = places(&proxy, KEYS[0], 90).await;
        assert_eq!(used(&after), ["a", "b"]);
        let others = moved(&before, &after, "c");
        assert!(others <= most, "{table} moved {others}");
        reload(&proxy, &all).await;
        assert_eq!(
            places(&proxy, KEYS[0], 90).await,
            before,
            "{table}: who returns has its own back"
        );
    }
}

#[tokio::test]
async fn when_an_endpoint_fails_only_its_own_keys_move_until_it_is_back() {
    let health = "health: { http: /health, interval: 30ms }";
    for table in ["maglev", "ring"] {
        let sims = [sim("a"), sim("b"), sim("c")];
        let policy =
            format!("{{ policy: consistent_hash, table: {table}, key: {{ header: x-user }} }}");
        let backend = format!("{health}, {}", balance(&policy));
        let yaml = one_backend(&[&sims[0], &sims[1], &sims[2]], &backend, "");
        let proxy = Proxy::start(&yaml).await;
        let ready = |ready: bool| {
            await_endpoints(&proxy, "the health of one", move |all| {
                all[0].ready && all[1].ready && all[2].ready == ready
            })
        };
        ready(true).await;
        let before = places(&proxy, KEYS[0], 60).await;
        sims[2].fault(Fault::NoHealth);
        ready(false).await;
        let without = places(&proxy, KEYS[0], 60).await;
        assert_eq!((used(&without), moved(&before, &without, "c")), (vec!["a", "b"], 0), "{table}");
        sims[2].clear_faults();
        ready(true).await;
        assert_eq!(places(&proxy, KEYS[0], 60).await, before, "{table}");
    }
}

#[tokio::test]
async fn a_session_whose_endpoint_fails_begins_anew_and_stays_there() {
    let sims = [sim("a"), sim("b"), sim("c")];
    let policy = balance("{ policy: session_affinity, key: { header: x-user } }");
    let backend = format!("health: {{ http: /health, interval: 30ms }}, {policy}");
    let proxy = Proxy::start(&one_backend(&[&sims[0], &sims[1], &sims[2]], &backend, "")).await;
    let ready = |ready: bool| {
        await_endpoints(&proxy, "the health of one", move |all| {
            all[0].ready && all[1].ready && all[2].ready == ready
        })
    };
    ready(true).await;
    let before = places(&proxy, KEYS[0], 45).await;
    sims[2].fault(Fault::NoHealth);
    ready(false).await;
    let without = places(&proxy, KEYS[0], 45).await;
    assert_eq!((used(&without), moved(&before, &without, "c")), (vec!["a", "b"], 0));
    sims[2].clear_faults();
    ready(true).await;
    assert_eq!(places(&proxy, KEYS[0], 45).await, without, "what it had here is gone");
}

#[tokio::test]
async fn what_is_remembered_survives_a_reload() {
    for policy in ["session_affinity, key: { header: x-user }", "prefix_affinity"] {
        let (a, b, c) = (sim("a"), sim("b"), sim("c"));
        let yaml = |more: &str| {
            let backend = format!("{}, {more}", balance(&format!("{{ policy: {policy} }}")));
            one_backend(&[&a, &b, &c], &backend, "")
        };
        let proxy = Proxy::start(&yaml("")).await;
        let key = Key { yaml: "", of: long_story, besides: "" };
        let before = places(&proxy, key, 30).await;
        reload(&proxy, &yaml("idle_connections: 9")).await;
        assert_eq!(places(&proxy, key, 30).await, before, "{policy}");
    }
}

#[tokio::test]
async fn a_key_that_everybody_has_fills_its_endpoint_only_to_the_bound() {
    let hot = || plain().header("x-user", "everybody");
    for (bound, most) in [("1.25", 7), ("2", 11), ("off", 15)] {
        let (a, b, c) = (sim("a"), sim("b"), sim("c"));
        let policy =
            format!("policy: consistent_hash, key: {{ header: x-user }}, bounded_load: {bound}");
        let backend = balance(&format!("{{ {policy} }}"));
        let proxy = Proxy::start(&one_backend(&[&a, &b, &c], &backend, "")).await;
        let _stuck = stick(&proxy, &[&a, &b, &c], (0..15).map(|_| hot())).await;
        let mut held = in_flight(&proxy).await;
        held.sort_unstable();
        assert!(held[2] <= most && held[2] + 2 >= most, "{bound}: {held:?}");
    }
}

/// A long prompt that begins like all others of this user and ends in its own way.
fn long_story(user: &str) -> Call {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let own = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let prompt = format!("{}. And then {own}?", format!("Once there was {user}, ").repeat(250));
    assert!(prompt.len() > 4 * 1024);
    Call::chat(&prompt).max_tokens(2).header("x-user", user)
}

#[tokio::test]
async fn prompts_that_begin_alike_go_to_the_same_endpoint_while_it_is_not_busy() {
    const STORIES: usize = 24;
    for policy in ["prefix_affinity", "least_load", "{ policy: least_load, prefix: 4KiB }"] {
        let (a, b, c) = (sim("a"), sim("b"), sim("c"));
        let proxy = Proxy::start(&one_backend(&[&a, &b, &c], &balance(policy), "")).await;
        // Many at a time, so that they begin at different places.
        let begin = Load::of(STORIES).at_once(STORIES);
        let begun = begin.run(proxy.address(), |index| long_story(&user(index))).await;
        assert_eq!(begun.ok(), STORIES, "{:?}", begun.outcomes());
        assert_eq!(begun.by_name().len(), 3, "{policy}: {:?}", begun.by_name());
        let key = Key { yaml: "", of: long_story, besides: "" };
        let stories = places(&proxy, key, STORIES).await;
        for sample in &begun.samples {
            let began = sample.answer.as_ref().expect("an answer").by();
            assert_eq!(stories[&sample.index], began, "{policy}: story {}", sample.index);
        }
    }
}

/// The same story with other members before it, as a client that does not know its length would send it.
fn retold(user: &str) -> Vec<u8> {
    let prompt = format!("{}The end.", format!("Once there was {user}, ").repeat(250));
    let messages = serde_json::json!([{"role": "user", "content": prompt}]);
    let before = "\"model\":\"another-model\",\"max_tokens\":2,\"temperature\":0.7";
    format!("{{{before},\"messages\":{messages}}}").into_bytes()
}

/// Sends a body without a length, cut after so many bytes each.
async fn in_pieces(proxy: &Proxy, protocol: Protocol, body: &[u8], pieces: &[usize]) -> Answer {
    let json = Call::post("/v1/chat/completions").header("content-type", "application/json");
    let (call, feed) = json.over(protocol).fed();
    let feeding = async {
        let (mut rest, mut lengths) = (body, pieces.iter().cycle());
        while !rest.is_empty() {
            let length = lengths.next().copied().unwrap_or(rest.len()).min(rest.len());
            let (piece, after) = rest.split_at(length);
            assert!(feed.send(bytes::Bytes::copy_from_slice(piece)).await);
            rest = after;
        }
        drop(feed);
    };
    tokio::join!(call.send(proxy.address()), feeding).0
}

#[tokio::test]
async fn prompts_that_come_in_pieces_go_where_they_began_however_they_are_cut() {
    const STORIES: usize = 12;
    const CUTS: [&[usize]; 5] = [&[700], &[1, 60, 5, 4_000], &[4_096], &[37], &[100_000]];
    for policy in ["prefix_affinity", "least_load", "{ policy: least_load, prefix: 4KiB }"] {
        let (a, b, c) = (sim("a"), sim("b"), sim("c"));
        let proxy = Proxy::start(&one_backend(&[&a, &b, &c], &balance(policy), "")).await;
        let begin = Load::of(STORIES).at_once(STORIES);
        let begun = begin.run(proxy.address(), |index| long_story(&user(index))).await;
        assert_eq!(begun.by_name().len(), 3, "{policy}: {:?}", begun.by_name());
        for sample in &begun.samples {
            let began = sample.answer.as_ref().expect("an answer").by();
            for protocol in [Protocol::Http1, Protocol::H2] {
                for cuts in CUTS {
                    let body = retold(&user(sample.index));
                    let answer = in_pieces(&proxy, protocol, &body, cuts).await;
                    let told = format!("{policy}: story {}, {protocol:?}, {cuts:?}", sample.index);
                    assert_eq!((answer.status, answer.by()), (200, began), "{told}");
                }
            }
        }
    }
}

#[tokio::test]
async fn without_comparing_prompts_they_go_anywhere() {
    let (a, b, c) = (sim("a"), sim("b"), sim("c"));
    let backend = balance("{ policy: least_load, prefix: off }");
    let proxy = Proxy::start(&one_backend(&[&a, &b, &c], &backend, "")).await;
    let report = Load::of(120).at_once(4).run(proxy.address(), |i| long_story(&user(i % 4))).await;
    assert_eq!(report.ok(), 120, "{:?}", report.outcomes());
    let one = report.samples.iter().filter(|sample| sample.index % 4 == 0);
    let mut by: Vec<_> = one.map(|sample| sample.answer.as_ref().expect("one").by()).collect();
    by.sort_unstable();
    by.dedup();
    assert!(by.len() >= 2, "{by:?}");
}

#[tokio::test]
async fn a_prompt_that_is_popular_spreads_before_it_piles_up() {
    for policy in ["prefix_affinity", "least_load"] {
        let (a, b, c) = (sim("a"), sim("b"), sim("c"));
        let proxy = Proxy::start(&one_backend(&[&a, &b, &c], &balance(policy), "")).await;
        let calls = (0..24).map(|_| long_story("everybody"));
        let _stuck = stick(&proxy, &[&a, &b, &c], calls).await;
        let mut held = in_flight(&proxy).await;
        held.sort_unstable();
        assert!(held[0] >= 5, "{policy}: {held:?}");
    }
}
