//! Stored answers in a real Redis, as clients and operators see it: shared, outliving the proxy, and never in the way.
//!
//! What the tier does to values and to its asker's time is tested by itself (`tests/redis`).

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use outrigger_tests::harness::{
    Answer, Call, Launch, Load, Proxy, Redis, RedisCluster, Reply, Report, Setup,
};
use outrigger_tests::sim::Simulator;

use crate::fleet::{endpoints, sim};

/// A proxy that prefers stored answers and keeps them in a Redis of these settings, in YAML's flow style.
fn config(simulator: &Simulator, redis: &str) -> String {
    format!(
        "backends: {{ stable: {{ endpoints: {} }} }}\n\
         routes: [{{ name: chat, backend: stable, answers: {{ prefer: true, ttl: 1h }} }}]\n\
         answers: {{ redis: {{ timeout: 1s, {redis} }} }}\n",
        endpoints(&[simulator])
    )
}

fn at(redis: &Redis) -> String {
    format!("url: '{}'", redis.url())
}

/// One that has found its Redis.
async fn start(simulator: &Simulator, redis: &str) -> Proxy {
    let proxy = Proxy::start(&config(simulator, redis)).await;
    await_up(&proxy).await;
    proxy
}

async fn await_up(proxy: &Proxy) {
    proxy.await_metrics(|metrics| metrics.get("outrigger_redis_up", &[]) == 1.0).await;
}

async fn await_down(proxy: &Proxy) {
    proxy.await_metrics(|metrics| metrics.get("outrigger_redis_up", &[]) == 0.0).await;
}

/// A question that has one answer.
fn question(number: usize) -> Call {
    Call::chat(&format!("what is the answer to question {number}?"))
        .max_tokens(4)
        .field("temperature", 0)
}

async fn ask(proxy: &Proxy, number: usize) -> Answer {
    let answer = question(number).send(proxy.address()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer
}

/// Whether an answer comes from store.
fn is_stored(answer: &Answer) -> bool {
    answer.header("x-outrigger-answer").is_some()
}

async fn await_stored(proxy: &Proxy, count: f64) {
    let stored = [("result", "stored")];
    proxy
        .await_metrics(|metrics| metrics.get("outrigger_redis_writes_total", &stored) >= count)
        .await;
}

async fn lookups(proxy: &Proxy, result: &str) -> f64 {
    proxy.metrics().await.get("outrigger_redis_lookups_total", &[("result", result)])
}

/// How many answers a server was asked for.
async fn reads(redis: &Redis) -> u64 {
    let Reply::Bytes(told) = redis.ask([b"INFO", b"commandstats"]).await else { return 0 };
    let told = String::from_utf8_lossy(&told).into_owned();
    let calls = told.lines().find_map(|line| line.strip_prefix("cmdstat_getrange:calls="));
    calls.and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or(0)
}

async fn end(proxy: Proxy) {
    proxy.signal(Signal::SIGTERM);
    assert!(proxy.wait_exit(Duration::from_secs(20)).await.success(), "a clean end");
}

#[tokio::test]
async fn answers_are_shared_by_two_proxies_and_outlive_both() {
    let Some(redis) = Redis::start().await else { return };
    let engine = sim("engine");
    let (one, other) = (start(&engine, &at(&redis)).await, start(&engine, &at(&redis)).await);
    let first = ask(&one, 1).await;
    assert!(!is_stored(&first));
    await_stored(&one, 1.0).await;
    let second = ask(&other, 1).await;
    assert!(is_stored(&second));
    assert_eq!(second.text(), first.text());
    assert_eq!(lookups(&other, "hit").await, 1.0);
    end(one).await;
    end(other).await;
    let later = start(&engine, &at(&redis)).await;
    assert!(is_stored(&ask(&later, 1).await));
    assert!(is_stored(&ask(&later, 1).await));
    assert_eq!(lookups(&later, "hit").await, 1.0, "the second time it was in memory");
    let asked = reads(&redis).await;
    assert!(asked > 0, "it tells how often it was asked");
    assert!(is_stored(&ask(&later, 1).await));
    assert_eq!(reads(&redis).await, asked, "memory is enough");
    assert_eq!(engine.seen().len(), 1);
}

#[tokio::test]
async fn with_every_endpoint_dead_a_proxy_that_has_just_started_answers_from_redis() {
    let Some(redis) = Redis::start().await else { return };
    let engine = sim("engine");
    let one = start(&engine, &at(&redis)).await;
    ask(&one, 1).await;
    await_stored(&one, 1.0).await;
    end(one).await;
    engine.refuse().await;
    let fallback = format!(
        "backends: {{ stable: {{ endpoints: {} }} }}\n\
         routes: [{{ name: chat, backend: stable, fallback: {{ answers: {{}} }} }}]\n\
         answers: {{ redis: {{ timeout: 1s, {} }} }}\n",
        endpoints(&[&engine]),
        at(&redis)
    );
    let later = Proxy::start(&fallback).await;
    await_up(&later).await;
    let answer = ask(&later, 1).await;
    let why = answer.header("x-outrigger-answer").unwrap_or_default();
    assert!(why.starts_with("fallback"), "{why}");
}

/// Requests that were all answered, and none of them late: a second is what Redis may cost in these tests, the rest is
/// for the machine.
fn is_well(report: &Report, when: &str) {
    assert_eq!(report.ok(), report.samples.len(), "{when}: {:?}", report.outcomes());
    let slowest = report.quantile(1.0);
    assert!(slowest < Duration::from_secs(8), "{when}: {slowest:?}");
}

/// Other questions every time, so that memory has none of the answers.
async fn load(proxy: &Proxy, from: usize) -> Report {
    Load::of(120).at_once(4).run(proxy.address(), move |index| question(from + index)).await
}

#[tokio::test]
async fn redis_killed_paused_and_restarted_under_load_fails_no_request_and_hits_come_back() {
    let setup = Setup { persistent: true, port: true, ..Setup::default() };
    let Some(mut redis) = Redis::with(setup).await else { return };
    let engine = sim("engine");
    // The last bound of the histogram is a second: the rest is for the machine.
    let bounded = config(&engine, &at(&redis)).replace("timeout: 1s", "timeout: 250ms");
    let proxy = Arc::new(Proxy::start(&bounded).await);
    await_up(&proxy).await;
    ask(&proxy, 1).await;
    await_stored(&proxy, 1.0).await;
    let running = |from| {
        let proxy = Arc::clone(&proxy);
        tokio::spawn(async move { load(&proxy, from).await })
    };

    let under_load = running(1000);
    redis.kill().await;
    is_well(&under_load.await.expect("a load"), "killed");
    await_down(&proxy).await;
    is_well(&load(&proxy, 2000).await, "dead");
    let waited = lookups(&proxy, "timeout").await + lookups(&proxy, "error").await;
    assert!(waited <= 20.0, "{waited} of 240 requests waited for a dead Redis");

    let under_load = running(3000);
    redis.revive().await;
    is_well(&under_load.await.expect("a load"), "back");
    await_up(&proxy).await;

    let under_load = running(4000);
    redis.pause();
    is_well(&under_load.await.expect("a load"), "paused");
    await_down(&proxy).await;
    let late = lookups(&proxy, "timeout").await;
    is_well(&load(&proxy, 5000).await, "standing still");
    assert_eq!(lookups(&proxy, "timeout").await, late, "nobody waits for it any more");
    redis.resume();
    await_up(&proxy).await;
    let told = proxy.metrics().await;
    let bound = told.get("outrigger_redis_lookup_seconds_bucket", &[("le", "1")]);
    assert_eq!(bound, told.get("outrigger_redis_lookup_seconds_count", &[]), "{}", told.text);
    assert!(bound > 0.0 && told.get("outrigger_redis_failures_total", &[]) >= 2.0);

    let fresh = start(&engine, &at(&redis)).await;
    assert!(is_stored(&ask(&fresh, 1).await), "what was there before");
    ask(&proxy, 6000).await;
    proxy.await_metrics(|metrics| metrics.get("outrigger_redis_queue_length", &[]) == 0.0).await;
    assert!(is_stored(&ask(&fresh, 6000).await), "and what came after");
    assert!(is_stored(&ask(&fresh, 5000).await), "and what waited");
}

#[tokio::test]
async fn a_redis_that_comes_back_empty_takes_nothing_from_memory() {
    let setup = Setup { port: true, ..Setup::default() };
    let Some(mut redis) = Redis::with(setup).await else { return };
    let engine = sim("engine");
    let proxy = start(&engine, &at(&redis)).await;
    ask(&proxy, 1).await;
    await_stored(&proxy, 1.0).await;
    engine.refuse().await;
    redis.kill().await;
    await_down(&proxy).await;
    assert!(is_stored(&ask(&proxy, 1).await));
    redis.revive().await;
    await_up(&proxy).await;
    assert!(is_stored(&ask(&proxy, 1).await), "no engine, and nothing in Redis");
}

#[tokio::test]
async fn what_was_changed_in_redis_is_not_served() {
    let Some(redis) = Redis::start().await else { return };
    let engine = sim("engine");
    let one = start(&engine, &at(&redis)).await;
    ask(&one, 1).await;
    await_stored(&one, 1.0).await;
    let names = redis.answers().await;
    assert_eq!(names.len(), 1);
    let name = names[0].as_bytes();
    let Reply::Bytes(good) = redis.ask([b"GET", name]).await else { panic!("no value") };
    let changed = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let bad = [changed(good.len() - 1), changed(3), b"{\"choices\": []}".to_vec()];
    for (times, value) in bad.into_iter().enumerate() {
        let asked = engine.seen().len();
        redis.ask([b"SET", name, &value]).await;
        let fresh = start(&engine, &at(&redis)).await;
        assert!(!is_stored(&ask(&fresh, 1).await), "{times}");
        assert_eq!((lookups(&fresh, "distrusted").await, engine.seen().len()), (1.0, asked + 1));
        await_stored(&fresh, 1.0).await;
    }
    let last = start(&engine, &at(&redis)).await;
    assert!(is_stored(&ask(&last, 1).await), "a good one has taken its place");
}

#[tokio::test]
async fn a_password_comes_from_the_address_a_file_or_the_environment_and_is_shown_nowhere() {
    const PASSWORD: &str = "open-sesame";
    let setup = Setup { password: Some(PASSWORD), port: true, ..Setup::default() };
    let Some(redis) = Redis::with(setup).await else { return };
    let engine = sim("engine");
    let folder = tempfile::tempdir().expect("a temporary directory can be made");
    let file = folder.path().join("password");
    std::fs::write(&file, format!("{PASSWORD}\n")).expect("the directory is writable");
    let in_address = format!("url: '{}'", redis.url().replace("://", &format!("://:{PASSWORD}@")));
    let in_file = format!("{}, password: 'file:{}'", at(&redis), file.display());
    let in_environment = format!("{}, password: 'env:SECRET'", at(&redis));
    for settings in [in_address, in_file, in_environment] {
        let launch = Launch::new(&config(&engine, &settings)).env("SECRET", PASSWORD);
        let proxy = launch.start().await;
        await_up(&proxy).await;
        let page = proxy.admin_get("/config").await.text();
        assert!(page.contains("password") && !page.contains(PASSWORD), "{page}");
        assert!(!proxy.log().join("\n").contains(PASSWORD));
    }
}

#[tokio::test]
async fn a_wrong_password_is_said_once_and_costs_nothing() {
    let setup = Setup { password: Some("open-sesame"), port: true, ..Setup::default() };
    let Some(redis) = Redis::with(setup).await else { return };
    let engine = sim("engine");
    let wrong = format!("{}, password: 'env:SECRET'", at(&redis));
    let launch = Launch::new(&config(&engine, &wrong)).env("SECRET", "open-barley");
    let proxy = launch.start().await;
    let denied = [("kind", "denied")];
    proxy
        .await_metrics(|metrics| metrics.get("outrigger_redis_failures_total", &denied) >= 3.0)
        .await;
    ask(&proxy, 1).await;
    assert!(is_stored(&ask(&proxy, 1).await), "memory is another tier");
    assert_eq!(lookups(&proxy, "down").await, 1.0);
    let said = proxy.log().into_iter().filter(|line| line.contains("is left alone"));
    let said: Vec<_> = said.collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(!said[0].contains("open-barley"), "{said:?}");
}

#[tokio::test]
async fn tls_is_spoken_with_a_redis_that_the_own_authority_vouches_for() {
    let setup = Setup { tls: true, ..Setup::default() };
    let Some(redis) = Redis::with(setup).await else { return };
    let engine = sim("engine");
    let trusting = format!("{}, ca: '{}'", at(&redis), redis.ca().display());
    let one = start(&engine, &trusting).await;
    ask(&one, 1).await;
    await_stored(&one, 1.0).await;
    assert!(is_stored(&ask(&start(&engine, &trusting).await, 1).await));
    // Nobody whom the system knows vouches for it.
    let doubtful = Proxy::start(&config(&engine, &at(&redis))).await;
    let said = doubtful.await_log("is left alone").await;
    assert!(said.contains("certificate") || said.contains("UnknownIssuer"), "{said}");
    assert!(!is_stored(&ask(&doubtful, 1).await));
}

#[tokio::test]
async fn a_cluster_is_one_store() {
    let Some(cluster) = RedisCluster::start().await else { return };
    let engine = sim("engine");
    let nodes: Vec<_> = cluster.nodes.iter().map(|node| format!("'{}'", node.url())).collect();
    let nodes = format!("url: [{}]", nodes.join(", "));
    let (one, other) = (start(&engine, &nodes).await, start(&engine, &nodes).await);
    for number in 0..20 {
        ask(&one, number).await;
    }
    await_stored(&one, 20.0).await;
    for number in 0..20 {
        assert!(is_stored(&ask(&other, number).await), "{number}");
    }
    for node in &cluster.nodes {
        assert!(!node.answers().await.is_empty(), "each has its part");
    }
}

#[tokio::test]
async fn a_purge_reaches_the_memory_of_the_other_sidecar() {
    let Some(redis) = Redis::start().await else { return };
    let engine = sim("engine");
    let (one, other) = (start(&engine, &at(&redis)).await, start(&engine, &at(&redis)).await);
    ask(&one, 1).await;
    await_stored(&one, 1.0).await;
    assert!(is_stored(&ask(&other, 1).await), "and from now on it has it in memory");
    let told = Call::post("/answers/purge?route=chat").send(one.admin()).await;
    assert_eq!(told.status, 200, "{}", told.text());
    assert!(told.text().contains("within a second"), "{}", told.text());
    let purged = [("reason", "purged")];
    other
        .await_metrics(|metrics| metrics.get("outrigger_answers_evicted_total", &purged) >= 1.0)
        .await;
    assert!(!is_stored(&ask(&other, 1).await));
    await_stored(&other, 1.0).await;
    assert!(is_stored(&ask(&one, 1).await), "a new one has taken its place");
}

#[tokio::test]
async fn redis_comes_and_goes_with_a_reload() {
    let Some(redis) = Redis::start().await else { return };
    let engine = sim("engine");
    let with = config(&engine, &at(&redis));
    let without = with.lines().filter(|line| !line.starts_with("answers:"));
    let without: String = without.map(|line| format!("{line}\n")).collect();
    let proxy = Proxy::start(&without).await;
    ask(&proxy, 1).await;
    assert!(!proxy.metrics().await.has("outrigger_redis_up", &[]));
    proxy.rewrite_config(&with);
    await_up(&proxy).await;
    assert!(is_stored(&ask(&proxy, 1).await), "memory has stayed");
    ask(&proxy, 2).await;
    await_stored(&proxy, 1.0).await;
    proxy.rewrite_config(&without);
    proxy.await_metrics(|metrics| !metrics.has("outrigger_redis_up", &[])).await;
    assert!(is_stored(&ask(&proxy, 2).await));
}
