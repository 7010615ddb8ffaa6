//! Near before far: the pod's own engine, the own zone, and by how much others must be less busy. And that two proxies
//! which are each other's peers do not pass a request to and fro.

use std::sync::Arc;

use outrigger_tests::harness::{Call, Launch, Load, Metrics, Proxy, Report, Sample};
use outrigger_tests::sim::{Fault, Options, Seen, Simulator};

use crate::fleet::{
    attempts, await_endpoints, await_idle, chat, endpoint_states, error_code, in_flight,
    one_backend_at, plain, reload, sim, stick,
};

const HOP: &str = "x-outrigger-hop";

fn attempts_at(metrics: &Metrics, nearness: &str) -> f64 {
    metrics.get("outrigger_attempts_total", &[("nearness", nearness)])
}

fn local_and(local: &Simulator, peer: &str) -> String {
    format!("[{{ address: '{}', local: true }}, {peer}]", local.addr)
}

#[tokio::test]
async fn the_own_engine_serves_until_its_queue_is_longer_by_a_hop_and_only_the_rest_spills() {
    let policies = ["least_load", "least_connection", "power_of_two"];
    for policy in policies {
        let (own, peer) = (sim("own"), sim("peer"));
        let list = local_and(&own, &format!("'{}'", peer.addr));
        let backend = format!("balance: {policy}, locality: {{ hop: 2.5 }}");
        let proxy = Proxy::start(&one_backend_at(&list, &backend, "")).await;
        let sims = [&own, &peer];
        let mut stuck = Vec::new();
        let mut course = Vec::new();
        for _ in 0..9 {
            stuck.push(stick(&proxy, &sims, [plain()]).await);
            course.push((own.state().in_flight, peer.state().in_flight));
        }
        let expected = [(1, 0), (2, 0), (3, 0), (3, 1), (4, 1), (4, 2), (5, 2), (5, 3), (6, 3)];
        assert_eq!(course, expected, "{policy}");
        let metrics = proxy.metrics().await;
        assert_eq!((attempts_at(&metrics, "local"), attempts_at(&metrics, "near")), (6.0, 3.0));
    }
}

#[tokio::test]
async fn without_an_own_engine_all_that_are_near_are_alike() {
    let (a, b) = (sim("a"), sim("b"));
    let list = format!("['{}', '{}']", a.addr, b.addr);
    let proxy = Proxy::start(&one_backend_at(&list, "locality: { hop: 100 }", "")).await;
    let _stuck = stick(&proxy, &[&a, &b], (0..6).map(|_| plain())).await;
    assert_eq!(in_flight(&proxy).await, [3, 3]);
}

#[tokio::test]
async fn only_requests_that_leave_the_pod_are_marked() {
    let (own, peer) = (sim("own"), sim("peer"));
    let list = local_and(&own, &format!("'{}'", peer.addr));
    let proxy = Proxy::start(&one_backend_at(&list, "locality: { hop: 2.5 }", "")).await;
    let _stuck = stick(&proxy, &[&own, &peer], (0..4).map(|_| plain())).await;
    let marks = |sim: &Simulator| -> Vec<_> {
        sim.seen().iter().map(|seen| seen.header(HOP).map(str::to_owned)).collect()
    };
    assert_eq!((marks(&own), marks(&peer)), (vec![None; 3], vec![Some("1".to_owned())]));
}

#[tokio::test]
async fn a_request_from_another_pod_is_served_here_or_not_at_all() {
    let (own, peer) = (sim("own"), sim("peer"));
    let list = local_and(&own, &format!("'{}'", peer.addr));
    let backend = "locality: { hop: 0 }, max_connections: 3, ejection: off";
    let proxy = Proxy::start(&one_backend_at(&list, backend, "")).await;
    let hopped = || plain().header(HOP, "1");
    let _stuck = stick(&proxy, &[&own, &peer], (0..3).map(|_| hopped())).await;
    assert_eq!(in_flight(&proxy).await, [3, 0], "however idle the peer is");
    let answer = chat().header(HOP, "1").send(proxy.address()).await;
    assert_eq!((answer.status, &*error_code(&answer)), (503, "overloaded"));
    assert!(own.seen().iter().all(|seen| seen.header(HOP).is_none()), "the engine need not know");
    own.refuse().await;
    let answer = hopped().send(proxy.address()).await;
    assert!((500..=503).contains(&answer.status), "{}", answer.text());
    assert_eq!(peer.state().requests(), 0);
    assert_eq!(chat().send(proxy.address()).await.by(), "peer", "one of our own may go there");
}

#[tokio::test]
async fn a_proxy_without_an_engine_passes_the_mark_on() {
    let engine = sim("engine");
    let list = format!("['{}']", engine.addr);
    let proxy = Proxy::start(&one_backend_at(&list, "", "")).await;
    assert_eq!(chat().header(HOP, "1").send(proxy.address()).await.status, 200);
    assert_eq!(engine.seen()[0].header(HOP), Some("1"), "else a ring with it would have no end");
}

/// Two pods: each has an engine of its own and the other's proxy for a peer.
struct Pods {
    engines: [Simulator; 2],
    proxies: [Arc<Proxy>; 2],
}

const PEERS: &str = "locality: { hop: 1 }, ejection: off, signals: { orca: true }";
const ROUTE: &str = "retry: { attempts: 3, when: [connect, refused, reset, overloaded], \
    backoff: 1ms, budget: { percent: 100, min_per_second: 1000 } }";

impl Pods {
    async fn start(options: [Options; 2], backend: &str) -> Self {
        let engines = options.map(Simulator::start);
        let alone = |engine: &Simulator| {
            let list = format!("[{{ address: '{}', local: true }}]", engine.addr);
            one_backend_at(&list, backend, ROUTE)
        };
        let first = Proxy::start(&alone(&engines[0])).await;
        let second = Proxy::start(&alone(&engines[1])).await;
        for (proxy, engine, peer) in
            [(&first, &engines[0], &second), (&second, &engines[1], &first)]
        {
            let list = local_and(engine, &format!("'{}'", peer.address()));
            reload(proxy, &one_backend_at(&list, backend, ROUTE)).await;
        }
        Self { engines, proxies: [Arc::new(first), Arc::new(second)] }
    }

    /// Loads both at once.
    async fn load(&self, count: usize, at_once: [usize; 2]) -> [Report; 2] {
        let call = |index: usize| Call::chat("how far?").max_tokens(20 + index as u64 % 60);
        let run =
            |at: usize| Load::of(count).at_once(at_once[at]).run(self.proxies[at].address(), call);
        let (first, second) = tokio::join!(run(0), run(1));
        [first, second]
    }

    fn seen(&self) -> Vec<Seen> {
        self.engines.iter().flat_map(Simulator::seen).collect()
    }
}

/// How many proxies a request has passed.
fn proxies_passed(seen: &Seen) -> usize {
    let via = seen.headers.iter().filter(|(name, _)| name == "via");
    via.flat_map(|(_, value)| value.split(',')).filter(|v| v.contains("outrigger")).count()
}

#[tokio::test]
async fn two_pods_share_their_load_and_never_pass_a_request_twice() {
    let options = |name| Options::named(name).speed(20.0).room(4, usize::MAX);
    let pods = Pods::start([options("a"), options("b")], PEERS).await;
    // All the work comes in at one side.
    let call = |index: usize| Call::chat("how far?").max_tokens(20 + index as u64 % 60);
    let report = Load::of(500).at_once(24).run(pods.proxies[0].address(), call).await;
    assert_eq!(report.ok(), 500, "{:?}", report.outcomes());
    let names = report.by_name();
    assert!(names["a"] >= 150 && names["b"] >= 150, "both engines work: {names:?}");
    let passed: Vec<_> = pods.seen().iter().map(proxies_passed).collect();
    assert!(passed.contains(&2), "nothing was passed on, so nothing was shown");
    assert_eq!(passed.iter().max(), Some(&2), "there and not back");
    let [near, far] = [pods.proxies[0].metrics().await, pods.proxies[1].metrics().await];
    assert_eq!(attempts_at(&near, "local") + attempts_at(&near, "near"), 500.0);
    assert_eq!(attempts_at(&near, "near"), names["b"] as f64);
    assert_eq!((attempts_at(&far, "local"), attempts_at(&far, "near")), (names["b"] as f64, 0.0));
}

#[tokio::test]
async fn two_pods_under_load_from_both_sides_stay_busy_and_lose_nothing() {
    let options = |name| Options::named(name).speed(20.0).room(4, usize::MAX);
    let slow = options("b").slowdown(3.0);
    let pods = Pods::start([options("a"), slow], PEERS).await;
    let reports = pods.load(300, [12, 12]).await;
    for report in &reports {
        assert_eq!(report.ok(), 300, "{:?}", report.outcomes());
    }
    let answered = |name: &str| -> usize {
        reports.iter().map(|report| report.by_name().get(name).copied().unwrap_or_default()).sum()
    };
    let (a, b) = (answered("a"), answered("b"));
    assert!(a > b && b >= 60, "each as much as it can: {a} and {b}");
    let passed: Vec<_> = pods.seen().iter().map(proxies_passed).collect();
    assert_eq!((passed.iter().min(), passed.iter().max()), (Some(&1), Some(&2)));
    for proxy in &pods.proxies {
        await_idle(proxy).await;
    }
}

#[tokio::test]
async fn idle_pods_keep_their_requests() {
    let pods = Pods::start([Options::named("a").fast(), Options::named("b").fast()], PEERS).await;
    let [first, second] = pods.load(50, [1, 1]).await;
    assert_eq!((first.by_name()["a"], second.by_name()["b"]), (50, 50));
}

#[tokio::test]
async fn two_pods_without_a_working_engine_say_so_at_once() {
    let pods = Pods::start([Options::named("a").fast(), Options::named("b").fast()], PEERS).await;
    for engine in &pods.engines {
        engine.refuse().await;
    }
    for _ in 0..5 {
        let answer = chat().send(pods.proxies[0].address()).await;
        assert!((500..=503).contains(&answer.status), "{}", answer.text());
    }
    let far = pods.proxies[1].metrics().await;
    assert_eq!(attempts_at(&far, "near"), 0.0, "nothing came back");
    assert!(far.get("outrigger_requests_total", &[]) <= 5.0 * 3.0, "{}", far.text);
}

#[tokio::test]
async fn the_engine_of_the_other_pod_stands_in_for_one_that_is_gone() {
    let pods = Pods::start([Options::named("a").fast(), Options::named("b").fast()], PEERS).await;
    pods.engines[0].fault(Fault::Reset);
    let report = Load::of(60).at_once(4).run(pods.proxies[0].address(), |_| chat()).await;
    assert_eq!((report.ok(), report.by_name()["b"]), (60, 60), "{:?}", report.outcomes());
    let tried = |sample: &Sample| attempts(sample.answer.as_ref().expect("an answer"));
    let tried = report.samples.iter().map(tried).sum::<u64>() as f64;
    let metrics = pods.proxies[0].metrics().await;
    let (local, near) = (attempts_at(&metrics, "local"), attempts_at(&metrics, "near"));
    assert!(local > 0.0 && near >= 60.0 && local + near == tried, "{local} {near} {tried}");
}

#[tokio::test]
async fn a_check_of_the_other_pod_asks_for_its_own_engine() {
    let health = format!("health: {{ http: /health, interval: 30ms }}, {PEERS}");
    let pods = Pods::start([Options::named("a").fast(), Options::named("b").fast()], &health).await;
    for proxy in &pods.proxies {
        await_endpoints(proxy, "all to be ready", |all| all.iter().all(|e| e.ready)).await;
    }
    pods.engines[1].fault(Fault::NoHealth);
    let [first, second] = &pods.proxies;
    await_endpoints(second, "its engine to be unready", |all| !all[0].ready).await;
    // Were the check passed back, the first engine would be asked whether the second one works.
    await_endpoints(first, "the peer to be unready", |all| all[0].ready && !all[1].ready).await;
}

#[tokio::test]
async fn what_is_passed_to_a_pod_without_a_working_engine_comes_back_and_is_served() {
    let options = |name| Options::named(name).speed(20.0).room(4, usize::MAX);
    let pods = Pods::start([options("a"), options("b")], PEERS).await;
    pods.engines[1].refuse().await;
    let call = |index: usize| Call::chat("how far?").max_tokens(20 + index as u64 % 60);
    let report = Load::of(200).at_once(12).run(pods.proxies[0].address(), call).await;
    assert_eq!((report.ok(), report.by_name()["a"]), (200, 200), "{:?}", report.outcomes());
    let passed = attempts_at(&pods.proxies[0].metrics().await, "near");
    assert!(passed > 0.0, "nothing was passed on, so nothing was shown");
    let passed: Vec<_> = pods.seen().iter().map(proxies_passed).collect();
    assert!(passed.iter().all(|proxies| *proxies == 1), "what came back came back as an answer");
}

#[tokio::test]
async fn pods_warm_their_own_engines_up_before_each_others() {
    let warm_up = "warm_up: { requests: [{ path: /v1/completions, repeat: 3, \
        body: '{\"prompt\": \"hi\", \"max_tokens\": 2}' }], retry: 20ms }";
    let backend = format!("{warm_up}, health: {{ http: /health, interval: 30ms }}, {PEERS}");
    let options = |name| Options::named(name).speed(20.0).room(4, usize::MAX);
    let pods = Pods::start([options("a"), options("b")], &backend).await;
    for proxy in &pods.proxies {
        await_endpoints(proxy, "all to be warm", |all| all.iter().all(|e| e.ready)).await;
    }
    let warm_ups = |engine: &Simulator| -> Vec<_> {
        let ours = |seen: &Seen| {
            seen.header("user-agent").is_some_and(|agent| agent.ends_with("(warm-up)"))
        };
        engine.seen().iter().filter(|seen| ours(seen)).map(proxies_passed).collect()
    };
    for engine in &pods.engines {
        let proxies = warm_ups(engine);
        let (own, others) = (proxies.iter().filter(|n| **n == 0), &proxies[proxies.len() - 3..]);
        // A reload may have fallen into the first one.
        assert!(own.count() >= 3 && others == [1; 3] && proxies.is_sorted(), "{proxies:?}");
    }
    let [first, second] = pods.load(200, [16, 4]).await;
    assert_eq!((first.ok(), second.ok()), (200, 200), "{:?}", first.outcomes());
    assert!(pods.seen().iter().all(|seen| proxies_passed(seen) <= 2));
}

/// An endpoint here, one there, and one whose zone nobody knows.
async fn zoned(own: Option<&str>, locality: &str) -> ([Simulator; 3], Proxy) {
    let sims = [sim("here"), sim("there"), sim("somewhere")];
    let list = format!(
        "[{{ address: '{}', zone: eu-1a }}, {{ address: '{}', zone: eu-1b }}, '{}']",
        sims[0].addr, sims[1].addr, sims[2].addr
    );
    let backend = format!("locality: {{ {locality} }}");
    let route = "retry: { backoff: 1ms, budget: { percent: 100, min_per_second: 1000 } }";
    let launch = Launch::new(&one_backend_at(&list, &backend, route));
    let proxy = match own {
        Some(zone) => launch.env("OUTRIGGER_ZONE", zone).start().await,
        None => launch.start().await,
    };
    (sims, proxy)
}

async fn spread(sims: &[Simulator; 3], proxy: &Proxy, count: usize) -> Vec<u64> {
    let sims: Vec<_> = sims.iter().collect();
    let _stuck = stick(proxy, &sims, (0..count).map(|_| plain())).await;
    in_flight(proxy).await
}

#[tokio::test]
async fn another_zone_gets_only_what_is_beyond_its_distance() {
    for (own, locality) in [(None, "zone: eu-1a, far: 2.5"), (Some("eu-1a"), "far: 2.5")] {
        let (sims, proxy) = zoned(own, locality).await;
        assert_eq!(spread(&sims, &proxy, 6).await, [3, 0, 3], "{locality}");
        let (sims, proxy) = zoned(own, locality).await;
        assert_eq!(spread(&sims, &proxy, 9).await, [4, 1, 4], "{locality}");
        let metrics = proxy.metrics().await;
        let at = |nearness| attempts_at(&metrics, nearness);
        assert_eq!((at("local"), at("near"), at("far")), (0.0, 8.0, 1.0));
    }
}

#[tokio::test]
async fn the_configured_zone_comes_before_the_environments() {
    let (sims, proxy) = zoned(Some("eu-1a"), "zone: eu-1b, far: 100").await;
    assert_eq!(spread(&sims, &proxy, 6).await, [0, 3, 3]);
}

#[tokio::test]
async fn without_a_zone_of_our_own_all_are_near() {
    for own in [None, Some("")] {
        let (sims, proxy) = zoned(own, "far: 100").await;
        assert_eq!(spread(&sims, &proxy, 6).await, [2, 2, 2]);
    }
}

#[tokio::test]
async fn far_is_better_than_nowhere() {
    let (sims, proxy) = zoned(Some("eu-1a"), "far: 1000").await;
    for sim in [&sims[0], &sims[2]] {
        sim.refuse().await;
    }
    let report = Load::of(20).run(proxy.address(), |_| chat()).await;
    assert_eq!((report.ok(), report.by_name()["there"]), (20, 20), "{:?}", report.outcomes());
}

#[tokio::test]
async fn how_near_an_endpoint_is_can_be_read() {
    let (_sims, proxy) = zoned(Some("eu-1a"), "far: 2").await;
    let page = proxy.admin_get("/endpoints").await.json();
    let endpoints = page[0]["endpoints"].as_array().expect("endpoints");
    let nearness: Vec<_> = endpoints.iter().map(|e| e["nearness"].as_str()).collect();
    assert_eq!(nearness, [Some("near"), Some("far"), Some("near")]);
    assert_eq!(endpoint_states(&proxy).await.len(), 3);
}
