//! Stored answers, in memory and in Redis.

use super::*;

/// What is counted of the stored answers of a route.
#[derive(Debug)]
pub struct AnswerMetrics {
    /// How old they were.
    pub age: Histogram,
    served: [[Counter; ServedFor::ALL.len()]; Served::ALL.len()],
    missed: [Counter; Missed::ALL.len()],
    recorded: [Counter; Recorded::ALL.len()],
    shared: [Counter; SharedCall::ALL.len()],
    refreshed: [Counter; Refreshed::ALL.len()],
}

impl Default for AnswerMetrics {
    fn default() -> Self {
        Self {
            age: Histogram::new(AGE),
            served: Default::default(),
            missed: Default::default(),
            recorded: Default::default(),
            shared: Default::default(),
            refreshed: Default::default(),
        }
    }
}

impl AnswerMetrics {
    /// An answer was served from store.
    pub fn served(&self, kind: Served, reason: ServedFor, age: Duration) {
        self.served[kind as usize][reason as usize].inc();
        self.age.observe(age);
    }

    /// A request was not answered from store.
    pub fn missed(&self, reason: Missed) {
        self.missed[reason as usize].inc();
    }

    /// So something became of an answer of an endpoint.
    pub fn recorded(&self, result: Recorded) {
        self.recorded[result as usize].inc();
    }

    /// A request found the same one under way.
    pub fn shared(&self, result: SharedCall) {
        self.shared[result as usize].inc();
    }

    /// A stale answer was served that should be refreshed.
    pub fn refreshed(&self, result: Refreshed) {
        self.refreshed[result as usize].inc();
    }

    /// Answers served from store, and requests that might have been and were not.
    #[must_use]
    pub fn hits_and_misses(&self) -> (u64, u64) {
        let hits = self.served.iter().flatten().map(Counter::get).sum();
        let missed =
            [Missed::Absent, Missed::Stale].map(|reason| self.missed[reason as usize].get());
        (hits, missed.iter().sum())
    }

    pub(super) fn write(&self, labels: &[&str], page: &mut Page) {
        for (kind, by_reason) in Served::ALL.iter().zip(&self.served) {
            for (reason, count) in ServedFor::ALL.iter().zip(by_reason) {
                // Most pairs mean nothing.
                if count.get() > 0 {
                    let labels = [labels, &[kind.as_str(), reason.as_str()]].concat();
                    page.counter(Id::AnswersServed, &labels, count.get());
                }
            }
        }
        page.by_value(Id::AnswersMissed, labels, Missed::ALL, Missed::as_str, &self.missed);
        page.histogram(Id::AnswerAge, labels, &self.age);
        let (all, name) = (Recorded::ALL, Recorded::as_str);
        page.by_value(Id::AnswersRecorded, labels, all, name, &self.recorded);
        let (all, name) = (SharedCall::ALL, SharedCall::as_str);
        page.by_value(Id::AnswersShared, labels, all, name, &self.shared);
        let (all, name) = (Refreshed::ALL, Refreshed::as_str);
        page.by_value(Id::AnswersRefreshed, labels, all, name, &self.refreshed);
    }
}

/// What is counted of all stored answers together.
#[derive(Debug, Default)]
pub struct StoreMetrics {
    /// Bytes in memory.
    pub bytes: Gauge,
    /// Answers in memory.
    pub entries: Gauge,
    evicted: [Counter; Evicted::ALL.len()],
    distrusted: [Counter; Distrusted::ALL.len()],
    warmed_up: [Counter; WarmedUp::ALL.len()],
}

impl StoreMetrics {
    /// So many answers left memory, or did not get in.
    pub fn evicted(&self, reason: Evicted, answers: u64) {
        self.evicted[reason as usize].add(answers);
    }

    /// A stored answer was not believed.
    pub fn distrusted(&self, reason: Distrusted) {
        self.distrusted[reason as usize].inc();
    }

    /// A request of the warm-up ended.
    pub fn warmed_up(&self, result: WarmedUp) {
        self.warmed_up[result as usize].inc();
    }

    pub(super) fn write(&self, page: &mut Page) {
        page.gauge(Id::AnswersBytes, &[], &self.bytes);
        page.gauge(Id::AnswersEntries, &[], &self.entries);
        page.by_value(Id::AnswersEvicted, &[], Evicted::ALL, Evicted::as_str, &self.evicted);
        let (all, name) = (Distrusted::ALL, Distrusted::as_str);
        page.by_value(Id::AnswersDistrusted, &[], all, name, &self.distrusted);
        if self.warmed_up.iter().any(|count| count.get() > 0) {
            let (all, name) = (WarmedUp::ALL, WarmedUp::as_str);
            page.by_value(Id::AnswersWarmUp, &[], all, name, &self.warmed_up);
        }
    }
}

/// What is told of the Redis of stored answers.
#[derive(Debug)]
pub struct RedisMetrics {
    /// 1 while it is asked.
    pub up: Gauge,
    /// How long requests waited for it.
    pub latency: Histogram,
    /// Answers that wait to be written.
    pub queue: Gauge,
    /// Bytes of values read.
    pub read_bytes: Counter,
    /// Bytes of values written.
    pub written_bytes: Counter,
    lookups: [Counter; RedisLookup::ALL.len()],
    writes: [Counter; RedisWrite::ALL.len()],
    failures: [Counter; RedisFailure::ALL.len()],
}

impl Default for RedisMetrics {
    fn default() -> Self {
        Self {
            up: Gauge::default(),
            latency: Histogram::new(STORE),
            queue: Gauge::default(),
            read_bytes: Counter::default(),
            written_bytes: Counter::default(),
            lookups: Default::default(),
            writes: Default::default(),
            failures: Default::default(),
        }
    }
}

impl RedisMetrics {
    /// It was asked, or not.
    pub fn looked_up(&self, result: RedisLookup) {
        self.lookups[result as usize].inc();
    }

    /// An answer was to be stored.
    pub fn wrote(&self, result: RedisWrite) {
        self.writes[result as usize].inc();
    }

    /// Something went wrong.
    pub fn failed(&self, kind: RedisFailure) {
        self.failures[kind as usize].inc();
    }

    pub(super) fn write(&self, page: &mut Page) {
        page.gauge(Id::RedisUp, &[], &self.up);
        page.histogram(Id::RedisLookupTime, &[], &self.latency);
        page.gauge(Id::RedisQueue, &[], &self.queue);
        page.counter(Id::RedisBytes, &["in"], self.read_bytes.get());
        page.counter(Id::RedisBytes, &["out"], self.written_bytes.get());
        let (lookups, writes) = (RedisLookup::ALL, RedisWrite::ALL);
        page.by_value(Id::RedisLookups, &[], lookups, RedisLookup::as_str, &self.lookups);
        page.by_value(Id::RedisWrites, &[], writes, RedisWrite::as_str, &self.writes);
        let failures = RedisFailure::ALL;
        page.by_value(Id::RedisFailures, &[], failures, RedisFailure::as_str, &self.failures);
    }
}
