//! The tier as a proxy has it, with its metrics and what it was told of purges.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outrigger::answers::key::{Body, Identity};
use outrigger::answers::record::{Piece, Terms};
use outrigger::answers::redis::Redis as Tier;
use outrigger::answers::store::unix_now;
use outrigger::answers::{Answer, Key, Purge, Tags};
use outrigger::telemetry::exposition::{Format, render};
use outrigger::telemetry::metrics::Metrics as Registry;
use outrigger::tenant::Tenant;
use outrigger::wire::Fields;
use outrigger_config::validated::{self as config, RedisNode, RedisTls, Secret};
use outrigger_tests::harness::{Metrics, Redis, RedisCluster, within};
use tokio::task::JoinHandle;

pub(crate) fn tenant() -> Tenant {
    Tenant::from_bytes([7; 16])
}

/// The key of a question of that number.
pub(crate) fn key(number: u64) -> Key {
    question(number).0
}

/// The record of the answer to it.
pub(crate) fn record(number: u64) -> Vec<u8> {
    question(number).1.encode().to_vec()
}

fn question(number: u64) -> (Key, Answer) {
    let body = number.to_le_bytes();
    let (route, model, tenant) = ("chat", "llama", tenant());
    let identity = Identity {
        tenant,
        route,
        arm: None,
        model,
        method: "POST",
        target: "/",
        fields: Vec::new(),
        body: Body::Bytes(&body),
    };
    let (key, proof) = identity.digest().expect("bytes have a key");
    let data = format!("the answer to question {number}, ").repeat(30).into();
    let terms = Terms {
        ttl: Duration::from_secs(60),
        if_error: None,
        while_revalidate: None,
        never_stale: false,
    };
    let answer = Answer {
        proof,
        tags: Tags { tenant, route: route.into(), arm: "stable".into(), model: model.into() },
        stored_at: Duration::from_secs(1_800_000_000),
        terms,
        status: 200,
        fields: Fields::new(),
        events: false,
        pieces: vec![Piece { after: Duration::ZERO, data }],
    };
    (key, answer)
}

/// Dropping it ends it.
pub(crate) struct Sidecar {
    pub(crate) redis: Arc<Tier>,
    registry: Registry,
    told: Arc<Mutex<Vec<Purge>>>,
    task: JoinHandle<()>,
}

impl Sidecar {
    pub(crate) fn of(redis: &Redis) -> Self {
        Self::start(settings(&[redis]))
    }

    pub(crate) fn of_cluster(cluster: &RedisCluster) -> Self {
        Self::start(settings(&cluster.nodes.iter().take(2).collect::<Vec<_>>()))
    }

    pub(crate) fn with_password(self, password: &str) -> Self {
        let password = Some(Secret::Text(password.to_owned()));
        Self::start(config::Redis { password, ..self.redis.settings().clone() })
    }

    pub(crate) fn with_ca(self, ca: PathBuf) -> Self {
        let tls = Some(RedisTls { ca: Some(ca) });
        Self::start(config::Redis { tls, ..self.redis.settings().clone() })
    }

    fn start(settings: config::Redis) -> Self {
        let registry = Registry::new("test");
        let redis = Arc::new(Tier::new(settings, registry.redis()));
        let (served, told) = (Arc::clone(&redis), Arc::new(Mutex::new(Vec::new())));
        let tell = Arc::clone(&told);
        let task = tokio::spawn(async move {
            served
                .serve(|purge| tell.lock().expect("nobody panicked with it").push(purge.clone()))
                .await;
        });
        Sidecar { redis, registry, told, task }
    }

    /// Leaves an answer to be written.
    pub(crate) fn store(&self, number: u64, ttl: Duration) {
        self.redis.store(&key(number), record(number).into(), unix_now() + ttl);
    }

    /// Leaves anything to be written in the place of an answer.
    pub(crate) fn store_bytes(&self, number: u64, bytes: Vec<u8>) {
        let hour = Duration::from_secs(3600);
        self.redis.store(&key(number), bytes.into(), unix_now() + hour);
    }

    /// Whether an answer is found; one that is must be the right one.
    pub(crate) async fn finds(&self, number: u64) -> bool {
        let found = self.redis.fetch(&key(number), |record| Answer::decode(record).ok()).await;
        if let Some(found) = &found {
            assert_eq!(*found.record, record(number));
        }
        found.is_some()
    }

    pub(crate) fn metrics(&self) -> Metrics {
        let page = render(Format::Text, self.registry.gather()).expect("metrics can be written");
        Metrics::parse(&page)
    }

    pub(crate) fn count(&self, metric: &str, label: &str, value: &str) -> f64 {
        self.metrics().get(&format!("outrigger_redis_{metric}"), &[(label, value)])
    }

    pub(crate) async fn await_metric(&self, metric: &str, label: &str, value: &str, least: f64) {
        let what = format!("{least} of {metric} {value}");
        self.wait(&what, || self.count(metric, label, value) >= least).await;
    }

    pub(crate) async fn await_up(&self) {
        self.wait("a Redis that answers", || self.is_up()).await;
    }

    pub(crate) async fn await_down(&self) {
        self.wait("a Redis that is left alone", || !self.is_up()).await;
    }

    pub(crate) async fn await_told(&self, purge: &Purge) {
        self.wait("the news of a purge", || {
            self.told.lock().expect("nobody panicked with it").contains(purge)
        })
        .await;
    }

    /// Waits until an answer is found.
    pub(crate) async fn await_found(&self, number: u64) {
        let found = async {
            while !self.finds(number).await {
                pause().await;
            }
        };
        within("an answer", found).await;
    }

    /// Waits until an answer is not found any more.
    pub(crate) async fn await_gone(&self, number: u64) {
        let gone = async {
            while self.finds(number).await {
                pause().await;
            }
        };
        within("the end of an answer", gone).await;
    }

    fn is_up(&self) -> bool {
        self.metrics().get("outrigger_redis_up", &[]) == 1.0
    }

    /// There is no event to wait for: a metric tells nobody.
    async fn wait(&self, what: &str, is_so: impl Fn() -> bool) {
        let wait = async {
            while !is_so() {
                pause().await;
            }
        };
        within(what, wait).await;
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

fn settings(servers: &[&Redis]) -> config::Redis {
    let first = servers[0];
    config::Redis {
        nodes: servers.iter().map(|server| node(server)).collect(),
        cluster: servers.len() > 1,
        tls: first.url().starts_with("rediss").then(|| RedisTls { ca: Some(first.ca()) }),
        database: 0,
        username: None,
        password: first.password().map(|password| Secret::Text(password.to_owned())),
        // The longest there is: only what must time out does.
        timeout: Duration::from_secs(1),
        compress: Some(500),
        max: 64 * 1024,
        queue: 210_000,
    }
}

fn node(server: &Redis) -> RedisNode {
    let url = server.url();
    let (scheme, place) = url.split_once("://").expect("a URL");
    if scheme == "unix" {
        return RedisNode::Unix(place.into());
    }
    let (host, port) = place.rsplit_once(':').expect("a port");
    let host = config::Host::Ip(host.parse().expect("an address"));
    RedisNode::Tcp(host, port.parse().expect("a number"))
}
