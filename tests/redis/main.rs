//! The Redis tier of stored answers by itself, against real servers: what it does to values, to its asker's time and to
//! other sidecars. What a client of the proxy sees of it is among the end-to-end tests.
//!
//! A sidecar here is the tier as the proxy has it, served by a task of this test. Bounds are generous, because the
//! machine is busy; what must not wait at all is told by the metrics, not by a clock.

mod sidecar;

use std::time::Duration;

use outrigger::answers::{Key, Purge};
use outrigger_tests::harness::{Redis, RedisCluster, Reply, Setup};

use sidecar::{Sidecar, key, record, tenant};

/// As good as for ever.
const LONG: Duration = Duration::from_secs(3600);

/// The name of a key in Redis.
fn name(number: u64) -> Vec<u8> {
    format!("outrigger:a1:{}", key(number)).into_bytes()
}

/// One server and two sidecars that have found it.
async fn two(setup: Setup) -> Option<(Redis, Sidecar, Sidecar)> {
    let redis = Redis::with(setup).await?;
    let (one, other) = (Sidecar::of(&redis), Sidecar::of(&redis));
    one.await_up().await;
    other.await_up().await;
    Some((redis, one, other))
}

/// Stores an answer and waits until it is there.
async fn store(sidecar: &Sidecar, number: u64) {
    let before = sidecar.count("writes_total", "result", "stored");
    sidecar.store(number, LONG);
    sidecar.await_metric("writes_total", "result", "stored", before + 1.0).await;
}

fn of_route(route: &str) -> Purge {
    Purge { route: Some(route.to_owned()), ..Purge::default() }
}

fn of_key(key: Key) -> Purge {
    Purge { key: Some(key), ..Purge::default() }
}

#[tokio::test]
async fn an_answer_is_found_by_another_sidecar_and_by_one_that_starts_later() {
    let Some((redis, one, other)) = two(Setup::default()).await else { return };
    assert!(!one.finds(1).await);
    store(&one, 1).await;
    assert!(other.finds(1).await);
    drop((one, other));
    let later = Sidecar::of(&redis);
    later.await_up().await;
    assert!(later.finds(1).await);
    assert_eq!(later.count("lookups_total", "result", "hit"), 1.0);
}

#[tokio::test]
async fn an_answer_is_compressed_and_lives_no_longer_than_it_may() {
    let Some((redis, one, _)) = two(Setup::default()).await else { return };
    store(&one, 1).await;
    let Reply::Number(length) = redis.ask([b"STRLEN", &name(1)]).await else { panic!("no length") };
    assert!(length < record(1).len() as i64 / 3, "{length} bytes for {}", record(1).len());
    let Reply::Number(left) = redis.ask([b"PTTL", &name(1)]).await else { panic!("no time") };
    assert!((1..=3_600_000).contains(&left), "{left} ms");
    one.store(2, Duration::from_millis(50));
    one.await_metric("writes_total", "result", "stored", 2.0).await;
    one.await_gone(2).await;
}

#[tokio::test]
async fn what_is_too_long_is_neither_written_nor_read() {
    let Some((redis, one, _)) = two(Setup::default()).await else { return };
    let long = vec![0; 70_000];
    one.store_bytes(1, long.clone());
    assert_eq!(one.count("writes_total", "result", "too_long"), 1.0);
    redis.ask([b"SET", &name(1), &long.repeat(100)]).await;
    assert!(!one.finds(1).await);
    assert_eq!(one.count("lookups_total", "result", "distrusted"), 1.0);
    let read = one.count("bytes_total", "direction", "in");
    assert!(read < 80_000.0, "{read} bytes read of a value of 7 MB");
}

#[tokio::test]
async fn what_is_not_what_was_written_is_not_served_and_is_taken_away() {
    let Some((redis, one, _)) = two(Setup::default()).await else { return };
    store(&one, 1).await;
    let Reply::Bytes(good) = redis.ask([b"GET", &name(1)]).await else { panic!("no value") };
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let bad: [(&str, Vec<u8>); 6] = [
        ("another version", flipped(3)),
        ("a changed head", flipped(10)),
        ("a changed answer", flipped(good.len() - 1)),
        ("half of it", good[..good.len() / 2].to_vec()),
        ("something else", b"hello".to_vec()),
        ("a value of another key", good.clone()),
    ];
    for (index, (what, value)) in bad.into_iter().enumerate() {
        let number = index as u64 + 10;
        redis.ask([b"SET", &name(number), &value]).await;
        assert!(!one.finds(number).await, "{what}");
        let distrusted = one.count("lookups_total", "result", "distrusted");
        assert_eq!(distrusted, (index + 1) as f64, "{what}");
        redis.await_gone(&name(number)).await;
    }
    redis.ask([b"LPUSH", &name(30), b"a list"]).await;
    assert!(!one.finds(30).await);
    redis.await_gone(&name(30)).await;
    assert!(one.finds(1).await, "the good one stays");
}

#[tokio::test]
async fn a_paused_redis_costs_the_first_requests_their_bound_and_the_others_nothing() {
    let Some((redis, one, _)) = two(Setup::default()).await else { return };
    store(&one, 1).await;
    redis.pause();
    let (mut asked, mut down) = (0, 0.0);
    while down < 100.0 {
        assert!(!one.finds(1).await);
        (asked, down) = (asked + 1, one.count("lookups_total", "result", "down"));
        assert!(asked < 1000, "it is asked again and again");
    }
    let waited = f64::from(asked) - down;
    assert!(waited <= 10.0, "{waited} requests waited for a Redis that does not answer");
    redis.resume();
    one.await_up().await;
    assert!(one.finds(1).await, "hits come back");
}

#[tokio::test]
async fn a_killed_redis_costs_nothing_and_what_it_kept_is_found_when_it_is_back() {
    let Some((mut redis, one, _)) =
        two(Setup { persistent: true, port: true, ..Setup::default() }).await
    else {
        return;
    };
    store(&one, 1).await;
    redis.kill().await;
    one.await_down().await;
    for _ in 0..100 {
        assert!(!one.finds(1).await);
    }
    assert!(one.count("lookups_total", "result", "down") >= 100.0);
    // What is to be written meanwhile waits.
    one.store(2, LONG);
    redis.revive().await;
    one.await_up().await;
    assert!(one.finds(1).await);
    one.await_metric("writes_total", "result", "stored", 2.0).await;
    assert!(one.finds(2).await);
}

#[tokio::test]
async fn what_finds_no_room_to_wait_in_is_dropped_and_counted() {
    let Some((redis, one, _)) = two(Setup::default()).await else { return };
    redis.kill().await;
    one.await_down().await;
    // The queue of these tests has room for four of these.
    for number in 0..10 {
        one.store_bytes(number, vec![0; 50_000]);
    }
    assert_eq!(one.count("writes_total", "result", "dropped"), 6.0);
    assert_eq!(one.metrics().get("outrigger_redis_queue_length", &[]), 4.0);
}

#[tokio::test]
async fn a_redis_that_is_full_still_answers() {
    let Some((redis, one, _)) = two(Setup::default()).await else { return };
    store(&one, 1).await;
    redis.ask([b"CONFIG", b"SET", b"maxmemory", b"1"]).await;
    for number in 2..8 {
        one.store(number, LONG);
    }
    one.await_metric("writes_total", "result", "failed", 6.0).await;
    assert!(one.finds(1).await);
    assert_eq!(one.count("failures_total", "kind", "refused"), 6.0);
}

#[tokio::test]
async fn a_password_opens_and_a_wrong_one_costs_nothing() {
    let setup = Setup { password: Some("open sesame"), ..Setup::default() };
    let Some((redis, one, other)) = two(setup).await else { return };
    store(&one, 1).await;
    assert!(other.finds(1).await);
    let wrong = Sidecar::of(&redis).with_password("open barley");
    wrong.await_metric("failures_total", "kind", "denied", 2.0).await;
    assert!(!wrong.finds(1).await);
    assert_eq!(wrong.count("lookups_total", "result", "down"), 1.0);
}

#[tokio::test]
async fn tls_is_spoken_with_whom_the_own_authority_vouches_for_and_with_nobody_else() {
    let setup = Setup { tls: true, password: Some("x"), ..Setup::default() };
    let Some((redis, one, other)) = two(setup).await else { return };
    store(&one, 1).await;
    assert!(other.finds(1).await);
    let Some(stranger) = Redis::with(Setup { tls: true, ..Setup::default() }).await else { return };
    let doubtful = Sidecar::of(&redis).with_ca(stranger.ca());
    doubtful.await_metric("failures_total", "kind", "connect", 2.0).await;
    assert_eq!(doubtful.metrics().get("outrigger_redis_up", &[]), 0.0);
}

#[tokio::test]
async fn a_cluster_keeps_answers_on_all_its_nodes() {
    let Some(cluster) = RedisCluster::start().await else { return };
    let (one, other) = (Sidecar::of_cluster(&cluster), Sidecar::of_cluster(&cluster));
    one.await_up().await;
    other.await_up().await;
    for number in 0..30 {
        store(&one, number).await;
    }
    for node in &cluster.nodes {
        assert!(!node.answers().await.is_empty(), "a node without answers");
    }
    for number in 0..30 {
        assert!(other.finds(number).await, "{number}");
    }
    assert!(one.redis.purge(&of_key(key(3))));
    other.await_gone(3).await;
    assert!(other.finds(4).await);
}

#[tokio::test]
async fn a_purge_holds_here_at_once_and_elsewhere_soon() {
    let Some((redis, one, other)) = two(Setup::default()).await else { return };
    let purges = [
        Purge::default(),
        of_route("chat"),
        Purge { model: Some("llama".to_owned()), ..Purge::default() },
        Purge { tenant: Some(tenant()), ..Purge::default() },
        of_key(key(1)),
        Purge { tenant: Some(tenant()), ..of_route("chat") },
    ];
    for purge in purges {
        store(&one, 1).await;
        assert!(other.finds(1).await, "{purge:?}");
        assert!(one.redis.purge(&purge), "{purge:?}");
        assert!(!one.finds(1).await, "{purge:?}");
        other.await_told(&purge).await;
        assert!(!other.finds(1).await, "{purge:?}");
        redis.await_gone(&name(1)).await;
    }
    let model = Some("llama".to_owned());
    for purge in [of_route("other"), Purge { model, ..of_route("other") }, of_key(key(9))] {
        store(&one, 1).await;
        assert!(one.redis.purge(&purge), "{purge:?}");
        other.await_told(&purge).await;
        assert!(other.finds(1).await, "{purge:?} concerns others");
    }
}

#[tokio::test]
async fn a_redis_that_lost_its_purges_is_told_again_and_keeps_new_answers() {
    let Some((redis, one, other)) = two(Setup::default()).await else { return };
    store(&one, 1).await;
    let Reply::Bytes(purged) = redis.ask([b"GET", &name(1)]).await else { panic!("no value") };
    assert!(one.redis.purge(&of_route("chat")));
    other.await_told(&of_route("chat")).await;
    redis.ask([b"FLUSHALL"]).await;
    // As a replica would have it that was behind.
    redis.ask([b"SET", &name(1), &purged]).await;
    let newcomer = Sidecar::of(&redis);
    newcomer.await_told(&of_route("chat")).await;
    assert!(!newcomer.finds(1).await, "purged is purged");
    store(&newcomer, 2).await;
    one.await_found(2).await;
    other.await_found(2).await;
}

#[tokio::test]
async fn a_redis_that_lost_its_purges_is_not_believed_when_nobody_remembers_them() {
    let Some((redis, one, other)) = two(Setup::default()).await else { return };
    store(&one, 1).await;
    store(&one, 2).await;
    assert!(one.redis.purge(&of_key(key(1))));
    other.await_told(&of_key(key(1))).await;
    drop((one, other));
    // Evicted, say; the answers are still there.
    assert_eq!(redis.ask([b"DEL", b"outrigger:a1:purges"]).await, Reply::Number(1));
    let newcomer = Sidecar::of(&redis);
    newcomer.await_up().await;
    assert!(!newcomer.finds(1).await, "purged, and nobody knows");
    assert!(!newcomer.finds(2).await, "nobody knows what was not purged");
    assert_eq!(newcomer.count("lookups_total", "result", "purged"), 2.0);
    assert_eq!(redis.answers().await.len(), 2, "a sidecar of an older epoch takes nothing away");
    store(&newcomer, 2).await;
    assert!(newcomer.finds(2).await);
}

#[tokio::test]
async fn many_who_want_the_same_at_once_ask_redis_once() {
    let Some((redis, one, other)) = two(Setup::default()).await else { return };
    store(&one, 1).await;
    let asked = reads(&redis).await;
    redis.pause();
    let found = async { futures_util::future::join_all((0..50).map(|_| other.finds(1))).await };
    let resumed = async {
        tokio::task::yield_now().await;
        redis.resume();
    };
    let (found, ()) = tokio::join!(found, resumed);
    assert_eq!(found, [true; 50]);
    assert_eq!(reads(&redis).await - asked, 1, "for fifty requests");
    assert_eq!(other.count("lookups_total", "result", "hit"), 50.0);
    assert!(other.finds(1).await);
    assert_eq!(reads(&redis).await - asked, 2, "later ones ask anew");
}

/// How many answers a server was asked for.
async fn reads(redis: &Redis) -> u64 {
    let Reply::Bytes(told) = redis.ask([b"INFO", b"commandstats"]).await else { return 0 };
    let told = String::from_utf8_lossy(&told).into_owned();
    let calls = told.lines().find_map(|line| line.strip_prefix("cmdstat_getrange:calls="));
    calls.and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn a_purge_without_redis_holds_here_and_is_made_up_for() {
    let Some((mut redis, one, other)) = two(Setup { persistent: true, ..Setup::default() }).await
    else {
        return;
    };
    store(&one, 1).await;
    redis.kill().await;
    one.await_down().await;
    let purge = of_route("chat");
    assert!(!one.redis.purge(&purge), "it can not be there");
    redis.revive().await;
    one.await_up().await;
    assert!(!one.finds(1).await);
    other.await_told(&purge).await;
    assert!(!other.finds(1).await);
    store(&other, 1).await;
    assert!(one.finds(1).await, "what came after is good");
}
