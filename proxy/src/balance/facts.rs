//! All that is known about one endpoint from here.
//!
//! - **Counted**, exactly: requests in flight and their work, from the choice of the endpoint until
//!   the last byte or the abort.
//! - **Learned** from first bytes and failures: how long a first byte takes, how slow the endpoint
//!   is beside its peers, and a penalty for failing.
//! - **Reported** by the endpoint itself ([`Reported`]).
//!
//! Everything is an atomic number that any thread may touch; nothing waits and nothing is ordered.
//! Two threads that learn at the same instant may lose a sample, never a count.
//!
//! Left out: ejection and readiness, which decide whether an endpoint is looked at at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::average::{Average, Number, Stamp, seconds};
use super::cost::Cost;
use super::reported::{Report, Reported, Signal};

/// What a request found at its endpoint, itself included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Work there, in thousandths of a running request.
    pub work: u64,
    /// Requests there, at least 1.
    pub in_flight: u32,
    /// What of the work is the request's own prompt.
    pub prompt: u64,
}

/// What is known about one endpoint.
#[derive(Debug)]
pub struct Facts {
    id: u64,
    origin: Instant,
    in_flight: AtomicU32,
    load: AtomicU64,
    /// Work, as of its last failure.
    penalty: Average,
    /// The natural logarithm of the slowness.
    slowness: Number,
    first_byte: Average,
    first_byte_peak: Average,
    /// Logarithms of the first bytes' seconds, by [`bucket`].
    by_in_flight: [Average; BUCKETS],
    reported: Reported,
    peers: Arc<Peers>,
}

impl Facts {
    /// After how many seconds a first byte has lost 63 % of its weight.
    const MEMORY: f64 = 10.0;

    /// The weight of a new first byte among those with as many in flight.
    const GAIN: f64 = 1.0 / 16.0;

    /// The weight of a new sample of slowness. Prompts differ so much that few samples say little.
    const SLOWNESS_GAIN: f64 = 1.0 / 64.0;

    /// The slowest that an endpoint is taken to be beside its peers, and the fastest is one over
    /// that. A wrong guess must not empty an endpoint.
    const SLOWEST: f64 = 4.0;

    /// What a failure costs: the work of eight running requests.
    const FAILURE: f64 = 8.0 * Cost::REQUEST as f64;

    /// The most that failures cost.
    const MAX_PENALTY: f64 = 1_000.0 * Cost::REQUEST as f64;

    /// In how many seconds a penalty halves.
    const FORGIVEN: f64 = 10.0;

    /// For how many seconds a first byte says something about the next with as much in flight.
    const RECENT: f64 = 10.0;

    /// Nothing is known yet of the endpoint `id`, which is to be the same whenever it comes back:
    /// a hash of its address. No time before `origin` will be told.
    pub fn new(id: u64, origin: Instant) -> Self {
        Self {
            id,
            origin,
            in_flight: AtomicU32::new(0),
            load: AtomicU64::new(0),
            penalty: Average::new(),
            slowness: Number::new(0.0),
            first_byte: Average::new(),
            first_byte_peak: Average::new(),
            by_in_flight: [const { Average::new() }; BUCKETS],
            reported: Reported::new(origin),
            peers: Arc::default(),
        }
    }

    /// The same, compared with these peers. Without, an endpoint is its only peer and never slow.
    #[must_use]
    pub fn among(self, peers: &Arc<Peers>) -> Self {
        Self { peers: Arc::clone(peers), ..self }
    }

    /// Which endpoint this is.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Requests from the choice of this endpoint until their last byte or their abort.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// The work in flight, in thousandths of a running request.
    pub fn load(&self) -> u64 {
        self.load.load(Relaxed)
    }

    /// What the endpoint says of itself.
    pub fn reported(&self) -> &Reported {
        &self.reported
    }

    /// Counts a request in. Whatever path it takes, its whole cost must be given back: by any
    /// number of [`give_back`](Self::give_back) and one [`leave`](Self::leave).
    pub fn enter(&self, cost: Cost) -> Standing {
        let own = cost.total();
        Standing {
            work: self.load.fetch_add(own, Relaxed) + own,
            in_flight: self.in_flight.fetch_add(1, Relaxed) + 1,
            prompt: cost.prefill,
        }
    }

    /// A part of a request's cost is worked off: its prompt at the first byte, its answer as it
    /// comes.
    pub fn give_back(&self, share: u64) {
        self.load.fetch_sub(share, Relaxed);
    }

    /// A request ends; `rest` is what of its cost was not given back.
    pub fn leave(&self, rest: u64) {
        self.load.fetch_sub(rest, Relaxed);
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// Learns that a request which found `standing` got its first byte `after` so long.
    pub fn first_byte(&self, standing: Standing, after: Duration, now: Instant) {
        let now = self.stamp(now);
        let after = after.as_secs_f64().max(1e-6);
        let forget = |age: f64| (-age / Self::MEMORY).exp();
        self.first_byte.add(after, now, forget);
        let is_peak = self.first_byte_peak.get().is_none_or(|(old, _)| after > old);
        self.first_byte_peak.add(after, now, if is_peak { |_| 0.0 } else { forget });
        self.by_in_flight[bucket(standing.in_flight)].add(after.ln(), now, |_| 1.0 - Self::GAIN);
        let beside_peers = self.peers.compare(standing, after, now);
        let slowness = self.slowness.get();
        self.slowness.set(slowness + (beside_peers - slowness) * Self::SLOWNESS_GAIN);
        self.forgive(now);
    }

    /// Learns that an attempt failed, by no fault of the client, so that an endpoint which fails
    /// fast, and therefore has little in flight, does not draw all traffic.
    ///
    /// The penalty doubles with every failure and halves with time and with every first byte: an
    /// endpoint of which every tenth attempt fails is hardly penalised, and one that does nothing
    /// but fail is tried once in a while, however busy its peers are.
    pub fn failed(&self, now: Instant) {
        let penalty = 2.0 * self.penalty_at(self.stamp(now)) + Self::FAILURE;
        self.penalty.put(penalty.min(Self::MAX_PENALTY), self.stamp(now));
    }

    /// The endpoint is back in service: its failures are forgiven.
    pub fn pardon(&self, now: Instant) {
        if self.penalty.get().is_some() {
            self.penalty.put(0.0, self.stamp(now));
        }
    }

    /// What failures cost still, in thousandths of a running request.
    pub fn penalty(&self, now: Instant) -> f64 {
        match self.penalty.get() {
            None => 0.0,
            Some(_) => self.penalty_at(self.stamp(now)),
        }
    }

    /// How long a first byte takes here compared with the peers, for as much work: 2.0 is twice as
    /// long. 1.0 when nothing is known; `0.25..=4.0`.
    pub fn slowness(&self) -> f64 {
        self.slowness.get().exp().clamp(1.0 / Self::SLOWEST, Self::SLOWEST)
    }

    /// Whether anybody got a first byte here after that moment.
    pub fn has_served_since(&self, moment: Instant) -> bool {
        self.first_byte.get().is_some_and(|(_, last)| last > self.stamp(moment))
    }

    /// The mean first byte of late, in seconds.
    pub fn first_byte_mean(&self) -> Option<f64> {
        self.first_byte.get().map(|(mean, _)| mean)
    }

    /// The peak of the first bytes of late, in seconds: jumps to a longer one at once, and falls
    /// with shorter ones and with time.
    pub fn first_byte_peak(&self, now: Instant) -> Option<f64> {
        let (peak, last) = self.first_byte_peak.get()?;
        Some(peak * (-seconds(last, self.stamp(now)) / Self::MEMORY).exp())
    }

    /// The usual first byte of late with about so many in flight, in seconds: of the nearest number
    /// of which something is known from the last minute.
    pub fn first_byte_at(&self, in_flight: u32, now: Instant) -> Option<f64> {
        let now = self.stamp(now);
        let recent =
            |bucket: &Average| bucket.get().filter(|(_, last)| seconds(*last, now) <= Self::RECENT);
        let (below, from) = self.by_in_flight.split_at(bucket(in_flight));
        let here = from.first().and_then(recent);
        let near = || below.iter().rev().find_map(recent);
        let above = || from.iter().skip(1).find_map(recent);
        here.or_else(near).or_else(above).map(|(seconds, _)| seconds.exp())
    }

    /// What can be said of this endpoint to others: its own words where it has some, else our count
    /// of what runs there.
    pub fn report(&self, now: Instant) -> Report {
        let value = |signal: Option<Signal>| signal.map(|signal| signal.value);
        let own = f64::from(self.in_flight());
        Report {
            waiting: value(self.reported.waiting(now)),
            running: value(self.reported.running(now)).or(Some(own)),
            kv_usage: value(self.reported.kv_usage(now)),
            utilization: value(self.reported.utilization(now)),
        }
    }

    /// The endpoint works: half of what it is penalised is forgiven.
    fn forgive(&self, now: Stamp) {
        if self.penalty.get().is_some_and(|(penalty, _)| penalty > 0.0) {
            let half = self.penalty_at(now) / 2.0;
            self.penalty.put(if half < 1.0 { 0.0 } else { half }, now);
        }
    }

    fn penalty_at(&self, now: Stamp) -> f64 {
        let faded = |(penalty, since)| penalty * (-seconds(since, now) / Self::FORGIVEN).exp2();
        self.penalty.get().map_or(0.0, faded)
    }

    fn stamp(&self, now: Instant) -> Stamp {
        now.saturating_duration_since(self.origin).as_nanos() as Stamp + 1
    }
}

/// How many numbers of requests in flight are told apart: 1, 2-3, 4-7, up to 128 and more.
const BUCKETS: usize = 8;

const fn bucket(in_flight: u32) -> usize {
    let log = match in_flight.checked_ilog2() {
        Some(log) => log as usize,
        None => 0,
    };
    if log < BUCKETS { log } else { BUCKETS - 1 }
}

/// What first bytes take at all endpoints of a backend together: the measure of their slowness.
///
/// Prompts differ a thousandfold, so a first byte is compared with what is to be done for it: with
/// so many thousandths of work, a judgement that need hold only roughly, since all endpoints are
/// measured by it. Where it is wrong it should ask too little of a busy endpoint rather than of an
/// idle one: then who has less to do looks faster and gets more, and not the other way round.
#[derive(Debug)]
pub struct Peers {
    /// The logarithm of the seconds for each thousandth of work.
    pace: Average,
}

impl Peers {
    /// The weight of a new sample.
    const GAIN: f64 = 1.0 / 64.0;

    /// The most that one sample says, as a logarithm: eight times slower or faster.
    const LIMIT: f64 = 2.08;

    /// The work before any first byte: a step of the engine takes as long as 200 prompt tokens.
    const STEP: f64 = 200.0 * Cost::TOKEN as f64;

    /// What each request in flight adds to it: five tokens.
    const PER_REQUEST: f64 = 5.0 * Cost::TOKEN as f64;

    /// Adds a first byte and says how much longer it took than is usual, as a logarithm.
    fn compare(&self, standing: Standing, after: f64, now: Stamp) -> f64 {
        let pace = (after / Self::work_before_first_byte(standing)).ln();
        self.pace.add(pace, now, |_| 1.0 - Self::GAIN);
        let usual = self.pace.get().map_or(pace, |(usual, _)| usual);
        (pace - usual).clamp(-Self::LIMIT, Self::LIMIT)
    }

    /// A step, and the prompts that are not computed yet: what is there beyond running requests,
    /// and no less than the own one.
    fn work_before_first_byte(standing: Standing) -> f64 {
        let running = u64::from(standing.in_flight) * Cost::REQUEST;
        let prompts = standing.work.saturating_sub(running).max(standing.prompt);
        Self::STEP + Self::PER_REQUEST * f64::from(standing.in_flight) + prompts as f64
    }
}

impl Default for Peers {
    fn default() -> Self {
        Self { pace: Average::new() }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::super::reported::Source;
    use super::*;

    fn after(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn standing(work: u64, in_flight: u32) -> Standing {
        Standing { work, in_flight, prompt: 0 }
    }

    #[test]
    fn a_pardon_is_for_the_past_only() {
        let start = Instant::now();
        let facts = Facts::new(1, start);
        facts.pardon(start);
        assert_eq!(facts.penalty(start), 0.0);
        (0..5).for_each(|_| facts.failed(start));
        facts.pardon(start);
        assert_eq!(facts.penalty(start), 0.0);
        facts.failed(start);
        assert_eq!(facts.penalty(start), Facts::FAILURE);
    }

    /// Requests come, work off parts of their cost, and go, in any order.
    fn live(facts: &Facts, seed: u64) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut held: Vec<u64> = Vec::new();
        for _ in 0..2_000 {
            if held.is_empty() || rng.random_bool(0.4) {
                let cost = Cost::new(rng.random_range(0..1_000_000), rng.random());
                let found = facts.enter(cost);
                assert!(found.work >= cost.total() && found.in_flight >= 1, "seed {seed}");
                held.push(cost.total());
                continue;
            }
            let one = rng.random_range(0..held.len());
            let share = rng.random_range(0..=held[one]);
            held[one] -= share;
            facts.give_back(share);
            if rng.random_bool(0.5) {
                facts.leave(held.swap_remove(one));
            }
        }
        held.into_iter().for_each(|rest| facts.leave(rest));
    }

    #[test]
    fn counters_return_to_zero_whatever_the_order() {
        for seed in 0..20 {
            let facts = Facts::new(1, Instant::now());
            live(&facts, seed);
            assert_eq!((facts.in_flight(), facts.load()), (0, 0), "seed {seed}");
        }
    }

    #[test]
    fn counters_return_to_zero_from_many_threads() {
        let facts = Facts::new(1, Instant::now());
        thread::scope(|scope| {
            for seed in 0..8 {
                let facts = &facts;
                scope.spawn(move || live(facts, seed));
            }
        });
        assert_eq!((facts.in_flight(), facts.load()), (0, 0));
    }

    #[test]
    fn a_request_finds_itself_and_those_before_it() {
        let facts = Facts::new(1, Instant::now());
        let found = facts.enter(Cost::of_prompt(80));
        assert_eq!(found, Standing { work: 1_500, in_flight: 1, prompt: 500 });
        assert_eq!(facts.enter(Cost::default()), standing(2_500, 2));
    }

    #[test]
    fn the_peak_jumps_up_and_falls_slowly() {
        let now = Instant::now();
        let facts = Facts::new(1, now);
        assert_eq!((facts.first_byte_peak(now), facts.first_byte_mean()), (None, None));
        facts.first_byte(standing(1_000, 1), seconds(0.1), now);
        facts.first_byte(standing(1_000, 1), seconds(2.0), now);
        facts.first_byte(standing(1_000, 1), seconds(0.1), now);
        assert_eq!(facts.first_byte_peak(now), Some(2.0));
        let later = after(now, 10.0);
        let faded = facts.first_byte_peak(later).unwrap();
        assert!((faded - 2.0 / std::f64::consts::E).abs() < 1e-6, "{faded}");
        facts.first_byte(standing(1_000, 1), seconds(0.1), later);
        let mixed = facts.first_byte_peak(later).unwrap();
        assert!((mixed - (0.1 + 1.9 / std::f64::consts::E)).abs() < 1e-6, "{mixed}");
        // The mean took the second sample, which came at once, for nothing.
        assert!(facts.first_byte_mean().unwrap() < 0.2);
    }

    #[test]
    fn the_usual_first_byte_is_that_of_as_many_in_flight() {
        let now = Instant::now();
        let facts = Facts::new(1, now);
        assert_eq!(facts.first_byte_at(3, now), None);
        facts.first_byte(standing(3_000, 3), seconds(0.3), now);
        facts.first_byte(standing(40_000, 40), seconds(4.0), after(now, 5.0));
        let at = |in_flight, age| {
            let known = facts.first_byte_at(in_flight, after(now, age));
            known.map(|seconds| (seconds * 1e3).round())
        };
        assert_eq!([at(2, 5.0), at(63, 5.0)], [Some(300.0), Some(4_000.0)]);
        // Not known: that of fewer, else that of more.
        assert_eq!(
            [at(9, 5.0), at(1_000, 5.0), at(0, 5.0)].map(Option::unwrap),
            [300.0, 4_000.0, 300.0]
        );
        assert_eq!([at(2, 11.0), at(2, 16.0)], [Some(4_000.0), None]);
    }

    /// Two endpoints of a kind, of which the second is `times` slower and the first carries more.
    fn slowness(times: f64, seed: u64) -> [f64; 2] {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (now, peers) = (Instant::now(), Arc::<Peers>::default());
        let facts = [1, 2].map(|id| Facts::new(id, now).among(&peers));
        for _ in 0..2_000 {
            for (i, facts) in facts.iter().enumerate() {
                let in_flight = rng.random_range(1..=if i == 0 { 32 } else { 8 });
                let prompt = rng.random_range(10..20_000);
                let noise = rng.random_range(0.5..2.0);
                let time = 0.03 + f64::from(in_flight) * 1e-3 + f64::from(prompt) * 1e-4;
                let time = time * noise * if i == 0 { 1.0 } else { times };
                let prompt = prompt as u64 * Cost::TOKEN;
                let work = u64::from(in_flight) * Cost::REQUEST + prompt;
                facts.first_byte(Standing { work, in_flight, prompt }, seconds(time), now);
            }
        }
        facts.map(|facts| facts.slowness())
    }

    #[test]
    fn an_endpoint_that_is_slow_beside_its_peers_shows_whatever_it_carries() {
        for seed in 0..10 {
            let [even, other] = slowness(1.0, seed);
            let ratio = other / even;
            assert!((0.75..1.33).contains(&ratio), "seed {seed}: {ratio}");
            let [even, slow] = slowness(3.0, seed);
            let ratio = slow / even;
            assert!((2.25..4.0).contains(&ratio), "seed {seed}: {ratio}");
        }
    }

    #[test]
    fn an_endpoint_alone_is_not_slow() {
        let now = Instant::now();
        let facts = Facts::new(1, now);
        assert_eq!(facts.slowness(), 1.0);
        for _ in 0..1_000 {
            facts.first_byte(standing(1_000, 1), seconds(30.0), now);
        }
        assert!((facts.slowness() - 1.0).abs() < 0.01, "{}", facts.slowness());
    }

    #[test]
    fn failures_double_the_penalty_and_time_and_first_bytes_halve_it() {
        let now = Instant::now();
        let facts = Facts::new(1, now);
        assert_eq!(facts.penalty(now), 0.0);
        facts.failed(now);
        assert_eq!(facts.penalty(now), 8_000.0);
        facts.failed(now);
        assert_eq!(facts.penalty(now), 24_000.0);
        assert_eq!(facts.penalty(after(now, 20.0)), 6_000.0);
        facts.first_byte(standing(1_000, 1), seconds(0.1), now);
        assert_eq!(facts.penalty(now), 12_000.0);
        (0..100).for_each(|_| facts.failed(now));
        assert_eq!(facts.penalty(now), 1e6);
        (0..30).for_each(|_| facts.first_byte(standing(1_000, 1), seconds(0.1), now));
        assert_eq!(facts.penalty(now), 0.0);
    }

    #[test]
    fn a_report_is_the_engines_own_words_where_there_are_any() {
        let now = Instant::now();
        let facts = Facts::new(1, now);
        facts.enter(Cost::default());
        let counted = Report { running: Some(1.0), ..Report::default() };
        assert_eq!(facts.report(now), counted);
        let said = Report { waiting: Some(2.0), running: Some(9.0), ..Report::default() };
        facts.reported().update(&said, Source::Scrape, 1, now);
        assert_eq!(facts.report(now), said);
        assert_eq!(facts.report(after(now, 60.0)), counted);
    }
}
