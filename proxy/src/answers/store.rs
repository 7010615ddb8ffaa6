//! The tiers: memory first, then what is behind it.
//!
//! What it decides: in which order tiers are asked, that what a tier gives is checked before it is believed, and what of
//! it is counted. A store lives as long as the process: a configuration hands it to the next one.
//!
//! Where memory has nothing, Redis is asked ([`Redis`]), if there is one. What it gives is put into memory; it is told of
//! records and purges and not waited for.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use outrigger_config::validated as config;

use super::{
    key::{Key, Proof, Tags},
    memory::Memory,
    record::{Answer, Distrust},
    redis::Redis,
    shared::Calls,
};
use crate::{
    telemetry::metrics::{Distrusted, Evicted, Metrics, StoreMetrics},
    tenant::Tenant,
};

/// Every stored answer.
pub struct Store {
    memory: Memory,
    redis: ArcSwapOption<Redis>,
    /// Calls under way that serve several requests, or refresh an answer.
    pub calls: Calls,
    metrics: Arc<StoreMetrics>,
}

/// Which answers to forget: all that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Purge {
    /// The one under this key.
    pub key: Option<Key>,
    /// Those of this route.
    pub route: Option<String>,
    /// Those of this model.
    pub model: Option<String>,
    /// Those of this tenant.
    pub tenant: Option<Tenant>,
}

/// What became of a purge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purged {
    /// So many answers were in memory.
    pub memory: u64,
    /// Whether Redis, if there is one, can be told now; if not, when it is back.
    pub redis: Option<bool>,
}

impl Purge {
    /// Whether it means this answer.
    #[must_use]
    pub fn means(&self, key: &Key, tags: &Tags) -> bool {
        self.key.is_none_or(|wanted| wanted == *key)
            && self.route.as_ref().is_none_or(|wanted| **wanted == *tags.route)
            && self.model.as_ref().is_none_or(|wanted| **wanted == *tags.model)
            && self.tenant.is_none_or(|wanted| wanted == tags.tenant)
    }
}

impl From<Distrust> for Distrusted {
    fn from(distrust: Distrust) -> Self {
        match distrust {
            Distrust::Version => Distrusted::Version,
            Distrust::Checksum => Distrusted::Checksum,
            Distrust::Layout => Distrusted::Layout,
        }
    }
}

/// The time as records have it.
#[must_use]
pub fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Store {
    /// An empty one.
    #[must_use]
    pub fn new(settings: &config::AnswerStore, metrics: &Metrics) -> Self {
        let store = Store {
            memory: Memory::new(settings.memory),
            redis: ArcSwapOption::empty(),
            calls: Calls::default(),
            metrics: metrics.store(),
        };
        store.adjust_redis(settings.redis.as_ref(), metrics);
        store
    }

    /// The settings have changed.
    pub fn adjust(&self, settings: &config::AnswerStore, metrics: &Metrics) {
        let evicted = self.memory.resize(settings.memory);
        self.metrics.evicted(Evicted::Room, evicted);
        self.tell_size();
        self.adjust_redis(settings.redis.as_ref(), metrics);
    }

    fn adjust_redis(&self, settings: Option<&config::Redis>, metrics: &Metrics) {
        let same = |redis: &Arc<Redis>| settings.is_some_and(|wanted| wanted == redis.settings());
        if self.redis().as_ref().is_some_and(same) {
            return;
        }
        if settings.is_none() {
            metrics.forget_redis();
        }
        let redis = settings.map(|settings| Redis::new(settings.clone(), metrics.redis()));
        self.redis.store(redis.map(Arc::new));
    }

    /// The tier behind memory, if there is one. Somebody must [serve](Redis::serve) it.
    #[must_use]
    pub fn redis(&self) -> Option<Arc<Redis>> {
        self.redis.load_full()
    }

    /// The answer under this key, to the request of this proof.
    pub async fn get(&self, key: &Key, proof: &Proof) -> Option<Answer> {
        match self.memory.get(key, unix_now()) {
            Some(record) => self.believe(key, proof, &record),
            None => self.get_from_redis(key, proof).await,
        }
    }

    async fn get_from_redis(&self, key: &Key, proof: &Proof) -> Option<Answer> {
        let redis = self.redis()?;
        let fetched = redis.fetch(key, |record| self.believe(key, proof, record)).await?;
        if fetched.is_first() {
            let (tags, record) = (&fetched.answer.tags, fetched.record.clone());
            self.keep(*key, tags, record, fetched.expires);
        }
        if !redis.is_good(key, &fetched) {
            // Purged meanwhile, perhaps before it was in memory.
            self.memory.purge(|other, _| other == key);
            return None;
        }
        Some(fetched.answer)
    }

    fn believe(&self, key: &Key, proof: &Proof, record: &Bytes) -> Option<Answer> {
        match Answer::decode(record) {
            // Another request with the same key: as good as impossible, and fatal if it were believed.
            Ok(answer) if answer.proof == *proof => return Some(answer),
            Ok(_) => self.distrust(key, Distrusted::Collision),
            Err(distrust) => self.distrust(key, distrust.into()),
        }
        self.memory.purge(|other, _| other == key);
        None
    }

    fn distrust(&self, key: &Key, why: Distrusted) {
        tracing::warn!(%key, why = why.as_str(), "a stored answer is not believed");
        self.metrics.distrusted(why);
    }

    /// Stores an answer for so long. `false` when it is not worth its room in memory.
    pub fn put(&self, key: Key, answer: &Answer, keep: Duration) -> bool {
        let record = answer.encode();
        let expires = answer.stored_at.saturating_add(keep);
        if let Some(redis) = self.redis() {
            redis.store(&key, record.clone(), expires);
        }
        self.keep(key, &answer.tags, record, expires)
    }

    fn keep(&self, key: Key, tags: &Tags, record: Bytes, expires: Duration) -> bool {
        let kept = self.memory.put(key, tags, record, expires, unix_now());
        self.metrics.evicted(Evicted::Room, kept.evicted);
        self.metrics.evicted(Evicted::NotAdmitted, u64::from(!kept.admitted));
        self.tell_size();
        kept.admitted
    }

    /// Forgets answers, in Redis too.
    pub fn purge(&self, purge: &Purge) -> Purged {
        // First: nothing of it may come back into memory.
        let redis = self.redis().map(|redis| redis.purge(purge));
        Purged { memory: self.purge_memory(purge), redis }
    }

    /// Forgets answers that others have purged; returns how many those were.
    pub fn purge_memory(&self, purge: &Purge) -> u64 {
        let purged = self.memory.purge(|key, tags| purge.means(key, tags));
        self.metrics.evicted(Evicted::Purged, purged);
        self.tell_size();
        purged
    }

    fn tell_size(&self) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.metrics.bytes.set(gauge(self.memory.bytes()));
        self.metrics.entries.set(gauge(self.memory.entries()));
    }

    /// Bytes and records in memory.
    #[must_use]
    pub fn size(&self) -> (u64, u64) {
        (self.memory.bytes(), self.memory.entries())
    }

    /// What is counted.
    #[must_use]
    pub fn metrics(&self) -> &StoreMetrics {
        &self.metrics
    }
}
