//! The tiers: memory first, then what is behind it.
//!
//! What it decides: in which order tiers are asked, that what a tier gives is checked before it is believed, and what of
//! it is counted. A store lives as long as the process: a configuration hands it to the next one.
//!
//! A further tier has its place at three points, each marked below: it is asked where memory has nothing, with a bound on
//! its time; it is told of a record and not waited for; it is told of a purge. It gets and gives the bytes of records
//! ([`Answer::encode`]), and [`Answer::decode`] is done here.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use outrigger_config::validated as config;

use super::{
    key::{Key, Proof, Tags},
    memory::Memory,
    record::{Answer, Distrust},
    shared::Calls,
};
use crate::{
    telemetry::metrics::{Distrusted, Evicted, StoreMetrics},
    tenant::Tenant,
};

/// Every stored answer.
pub struct Store {
    memory: Memory,
    /// Calls under way that serve several requests, or refresh an answer.
    pub calls: Calls,
    metrics: Arc<StoreMetrics>,
}

/// Which answers to forget: all that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    pub fn new(settings: &config::AnswerStore, metrics: Arc<StoreMetrics>) -> Self {
        Store { memory: Memory::new(settings.memory), calls: Calls::default(), metrics }
    }

    /// The settings have changed.
    pub fn adjust(&self, settings: &config::AnswerStore) {
        let evicted = self.memory.resize(settings.memory);
        self.metrics.evicted(Evicted::Room, evicted);
        self.tell_size();
    }

    /// The answer under this key, to the request of this proof.
    pub async fn get(&self, key: &Key, proof: &Proof) -> Option<Answer> {
        let record = self.memory.get(key, unix_now())?;
        // A second tier is asked here, where memory has nothing; what it gives is put into memory.
        self.believe(key, proof, &record)
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
        let now = unix_now();
        let expires = answer.stored_at.saturating_add(keep);
        // A second tier is told here, with the same record and `keep`, and not waited for.
        let kept = self.memory.put(key, &answer.tags, record, expires, now);
        self.metrics.evicted(Evicted::Room, kept.evicted);
        self.metrics.evicted(Evicted::NotAdmitted, u64::from(!kept.admitted));
        self.tell_size();
        kept.admitted
    }

    /// Forgets answers; returns how many those were in memory.
    pub fn purge(&self, purge: &Purge) -> u64 {
        let purged = self.memory.purge(|key, tags| purge.means(key, tags));
        // A second tier is told here.
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
