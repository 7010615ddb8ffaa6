//! What an endpoint says of itself.
//!
//! Counting here is exact but sees only our own requests. Endpoints that others use too tell more:
//! on a metrics page that is scraped, in load reports on answers (ORCA), or to an agent check. Each
//! value has a source and an age. It counts in full for two seconds, then less and less, and after
//! ten it is as unknown as one that never came. Unknown is never idle: whoever compares endpoints
//! puts what the peers report in its place.
//!
//! Left out: where the reports come from and how they are written.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::average::{Number, Stamp, seconds};
use super::cost::Cost;

/// For how long a value counts in full, in seconds: two scrapes at the usual interval.
const FRESH: f64 = 2.0;

/// From which age on a value is unknown, in seconds.
const STALE: f64 = 10.0;

/// Who said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The endpoint's metrics page.
    Scrape,
    /// A load report on an answer.
    Orca,
    /// An agent beside the endpoint.
    Agent,
}

/// What was said at one time. What is `None` was not said.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// Requests that wait for a place in the batch.
    pub waiting: Option<f64>,
    /// Requests in the batch.
    pub running: Option<f64>,
    /// Share of the key-value cache that is in use, `0.0..=1.0`.
    pub kv_usage: Option<f64>,
    /// Share of its capacity that the endpoint uses; above 1 is overload.
    pub utilization: Option<f64>,
}

/// A value that is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Signal {
    /// What was said.
    pub value: f64,
    /// By whom.
    pub source: Source,
    /// How long ago, below ten seconds.
    pub age: Duration,
}

/// A value, and how far it is to be believed: 1.0 when fresh, falling to 0.0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Belief {
    pub(super) value: f64,
    pub(super) confidence: f64,
}

/// What is known from an endpoint's own words.
#[derive(Debug)]
pub struct Reported {
    origin: Instant,
    waiting: Slot,
    running: Slot,
    kv_usage: Slot,
    utilization: Slot,
    /// Requests of others than us.
    foreign: Slot,
    weight: Number,
}

impl Reported {
    pub(super) fn new(origin: Instant) -> Self {
        Self {
            origin,
            waiting: Slot::new(),
            running: Slot::new(),
            kv_usage: Slot::new(),
            utilization: Slot::new(),
            foreign: Slot::new(),
            weight: Number::new(1.0),
        }
    }

    /// Takes a report. `own_in_flight` is how many requests of ours the endpoint had when it said
    /// so. A value that is `None`, below zero or not finite leaves what was known as it was.
    pub fn update(&self, report: &Report, source: Source, own_in_flight: u32, now: Instant) {
        let said = |slot: &Slot, value: Option<f64>| {
            let value = value.filter(|value| value.is_finite() && *value >= 0.0);
            value.inspect(|&value| slot.put(value, source, self.stamp(now))).is_some()
        };
        let waiting = said(&self.waiting, report.waiting);
        let running = said(&self.running, report.running);
        said(&self.kv_usage, report.kv_usage);
        said(&self.utilization, report.utilization);
        if waiting || running {
            let count = |signal: Option<Signal>| signal.map_or(0.0, |signal| signal.value);
            let all = count(self.waiting(now)) + count(self.running(now));
            let foreign = (all - f64::from(own_in_flight)).max(0.0);
            self.foreign.put(foreign, source, self.stamp(now));
        }
    }

    /// Multiplies the endpoint's weight until it is said otherwise; `None` is 1.0. For an agent
    /// check, whose word stands until the next.
    pub fn set_agent_weight(&self, share: Option<f64>) {
        let share = share.filter(|share| share.is_finite() && *share >= 0.0);
        self.weight.set(share.unwrap_or(1.0));
    }

    /// What the agent multiplies the endpoint's weight by; 1.0 unless it said otherwise.
    pub fn agent_weight(&self) -> f64 {
        self.weight.get()
    }

    /// Work that others than us have put there, in thousandths of a running request: what waits and
    /// runs, less what was our own then, faded by age. 0 when unknown.
    pub fn foreign(&self, now: Instant) -> u64 {
        let requests = self.foreign_requests(now).map_or(0.0, |it| it.value * it.confidence);
        (requests * Cost::REQUEST as f64) as u64
    }

    /// How many requests of others than us wait or run there.
    pub(super) fn foreign_requests(&self, now: Instant) -> Option<Belief> {
        self.foreign.belief(self.stamp(now))
    }

    /// Requests that wait inside it, whoever has sent them.
    pub(super) fn queue(&self, now: Instant) -> Option<Belief> {
        self.waiting.belief(self.stamp(now))
    }

    /// The share of its memory or of its capacity that is in use, whichever is higher.
    pub(super) fn fullness(&self, now: Instant) -> Option<Belief> {
        let now = self.stamp(now);
        match (self.kv_usage.belief(now), self.utilization.belief(now)) {
            (Some(memory), Some(capacity)) if memory.value > capacity.value => Some(memory),
            (memory, capacity) => capacity.or(memory),
        }
    }

    /// Requests that wait for a place in the batch.
    pub fn waiting(&self, now: Instant) -> Option<Signal> {
        self.waiting.signal(self.stamp(now))
    }

    /// Requests in the batch.
    pub fn running(&self, now: Instant) -> Option<Signal> {
        self.running.signal(self.stamp(now))
    }

    /// Share of the key-value cache that is in use, `0.0..=1.0`.
    pub fn kv_usage(&self, now: Instant) -> Option<Signal> {
        self.kv_usage.signal(self.stamp(now))
    }

    /// Share of its capacity that the endpoint uses; above 1 is overload.
    pub fn utilization(&self, now: Instant) -> Option<Signal> {
        self.utilization.signal(self.stamp(now))
    }

    fn stamp(&self, now: Instant) -> Stamp {
        now.saturating_duration_since(self.origin).as_nanos() as Stamp + 1
    }
}

/// A value, and in one word when and by whom it was said.
#[derive(Debug)]
struct Slot {
    value: Number,
    /// The stamp × 4 + the source. Zero is never.
    said: AtomicU64,
}

impl Slot {
    fn new() -> Self {
        Self { value: Number::new(0.0), said: AtomicU64::new(0) }
    }

    fn put(&self, value: f64, source: Source, now: Stamp) {
        self.value.set(value);
        self.said.store(now << 2 | source as u64, Relaxed);
    }

    fn belief(&self, now: Stamp) -> Option<Belief> {
        let age = self.age(now)?;
        let confidence = ((STALE - age) / (STALE - FRESH)).min(1.0);
        Some(Belief { value: self.value.get(), confidence })
    }

    fn signal(&self, now: Stamp) -> Option<Signal> {
        let age = Duration::from_secs_f64(self.age(now)?);
        let source = match self.said.load(Relaxed) & 3 {
            0 => Source::Scrape,
            1 => Source::Orca,
            _ => Source::Agent,
        };
        Some(Signal { value: self.value.get(), source, age })
    }

    /// In seconds, below [`STALE`].
    fn age(&self, now: Stamp) -> Option<f64> {
        let said = self.said.load(Relaxed);
        let age = seconds(said >> 2, now);
        (said != 0 && age < STALE).then_some(age)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    fn counts(waiting: Option<f64>, running: Option<f64>) -> Report {
        Report { waiting, running, ..Report::default() }
    }

    #[test]
    fn what_was_never_said_is_unknown() {
        let now = Instant::now();
        let reported = Reported::new(now);
        reported.update(&Report { kv_usage: Some(0.4), ..Report::default() }, Source::Orca, 3, now);
        let known = reported.kv_usage(now).unwrap();
        assert_eq!((known.value, known.source, known.age), (0.4, Source::Orca, Duration::ZERO));
        assert_eq!(reported.waiting(now), None);
        assert_eq!(reported.running(now), None);
        assert_eq!(reported.utilization(now), None);
        assert!(reported.foreign_requests(now).is_none());
        assert_eq!(reported.foreign(now), 0);
    }

    #[test]
    fn foreign_is_what_is_not_our_own() {
        let now = Instant::now();
        let reported = Reported::new(now);
        reported.update(&counts(Some(4.0), Some(10.0)), Source::Scrape, 5, now);
        assert_eq!(reported.foreign(now), 9_000);
        // Another source tells only who waits; who runs is still known.
        reported.update(&counts(Some(1.0), None), Source::Orca, 8, now);
        assert_eq!(reported.foreign(now), 3_000);
        // A report from before some of ours arrived there.
        reported.update(&counts(Some(0.0), Some(2.0)), Source::Scrape, 5, now);
        assert_eq!(reported.foreign(now), 0);
    }

    #[test]
    fn reports_fade_with_age() {
        let now = Instant::now();
        let reported = Reported::new(now);
        reported.update(&counts(None, Some(8.0)), Source::Scrape, 0, now);
        let foreign = |seconds| reported.foreign(after(now, seconds));
        assert_eq!([foreign(0.0), foreign(2.0), foreign(6.0)], [8_000, 8_000, 4_000]);
        assert!(foreign(9.9) < 200 && reported.running(after(now, 9.9)).is_some());
        assert_eq!(foreign(10.0), 0);
        assert_eq!(reported.running(after(now, 10.0)), None);
    }

    #[test]
    fn what_is_no_load_is_not_believed() {
        let now = Instant::now();
        let reported = Reported::new(now);
        reported.update(&counts(Some(2.0), None), Source::Scrape, 0, now);
        for nonsense in [f64::NAN, f64::INFINITY, -1.0] {
            reported.update(&counts(Some(nonsense), Some(nonsense)), Source::Agent, 0, now);
        }
        let waiting = reported.waiting(now).unwrap();
        assert_eq!((waiting.value, waiting.source), (2.0, Source::Scrape));
        assert_eq!(reported.running(now), None);
        assert_eq!(reported.foreign(now), 2_000);
    }

    #[test]
    fn an_agents_weight_stands_until_it_says_otherwise() {
        let reported = Reported::new(Instant::now());
        assert_eq!(reported.agent_weight(), 1.0);
        reported.set_agent_weight(Some(0.25));
        assert_eq!(reported.agent_weight(), 0.25);
        reported.set_agent_weight(None);
        assert_eq!(reported.agent_weight(), 1.0);
        reported.set_agent_weight(Some(f64::NAN));
        assert_eq!(reported.agent_weight(), 1.0);
    }
}
