//! Endpoints for the tests of the policies: what a backend shows them, with every number in reach.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::SmallRng;
use xxhash_rust::xxh3::xxh3_64;

use super::reported::{Report, Source};
use super::{Ask, Candidates, Cost, Facts, Kind, Memory, Peers, Policy, Standing};

pub(super) struct Fleet {
    pub(super) facts: Vec<Facts>,
    pub(super) usable: Vec<bool>,
    pub(super) weights: Vec<f64>,
    pub(super) distances: Vec<u64>,
    pub(super) ask: Ask,
    pub(super) now: Instant,
    pub(super) memory: Arc<Memory>,
}

impl Fleet {
    /// So many idle endpoints of weight 1.
    pub(super) fn idle(endpoints: usize) -> Self {
        let (now, peers) = (Instant::now(), Arc::<Peers>::default());
        let facts = |i: usize| Facts::new(xxh3_64(&i.to_le_bytes()), now).among(&peers);
        Self {
            facts: (0..endpoints).map(facts).collect(),
            usable: vec![true; endpoints],
            weights: vec![1.0; endpoints],
            distances: vec![0; endpoints],
            ask: Ask::default(),
            now,
            memory: Arc::default(),
        }
    }

    /// Endpoints with these loads, each that of one request.
    pub(super) fn loaded(loads: &[u64]) -> Self {
        let fleet = Self::idle(loads.len());
        for (i, &load) in loads.iter().enumerate().filter(|(_, load)| **load > 0) {
            fleet.load(i, load);
        }
        fleet
    }

    /// One more request of so much work at endpoint `i`.
    pub(super) fn load(&self, i: usize, work: u64) -> Standing {
        self.facts[i].enter(Cost { prefill: 0, decode: work })
    }

    /// A request at endpoint `i` that came and got its first byte after so many seconds.
    pub(super) fn answer(&self, i: usize, seconds: f64) {
        let standing = self.load(i, Cost::REQUEST);
        self.facts[i].first_byte(standing, Duration::from_secs_f64(seconds), self.now);
        self.facts[i].leave(Cost::REQUEST);
    }

    pub(super) fn report(&self, i: usize, report: Report) {
        let facts = &self.facts[i];
        facts.reported().update(&report, Source::Scrape, facts.in_flight(), self.now);
    }

    pub(super) fn pass(&mut self, seconds: f64) {
        self.now += Duration::from_secs_f64(seconds);
    }

    pub(super) fn members(&self) -> Vec<(u64, u32)> {
        let weight = |weight: &f64| *weight as u32;
        self.facts.iter().map(Facts::id).zip(self.weights.iter().map(weight)).collect()
    }

    pub(super) fn policy(&self, kind: Kind) -> Policy {
        Policy::new(kind, &self.members(), &self.memory)
    }

    /// Sends the request, and leaves it there.
    pub(super) fn send(&self, policy: &Policy, rng: &mut SmallRng) -> Option<usize> {
        let i = policy.pick(self, rng)?;
        self.facts[i].enter(policy.cost(self, i));
        policy.sent(&self.ask, &self.facts[i], self.now);
        Some(i)
    }

    /// How often each endpoint is picked, when nothing changes meanwhile.
    pub(super) fn picks(&self, kind: Kind, times: usize, seed: u64) -> Vec<usize> {
        let (policy, mut rng) = (self.policy(kind), SmallRng::seed_from_u64(seed));
        let mut counts = vec![0; self.len()];
        for _ in 0..times {
            counts[policy.pick(self, &mut rng).unwrap()] += 1;
        }
        counts
    }
}

impl Candidates for Fleet {
    fn len(&self) -> usize {
        self.facts.len()
    }

    fn facts(&self, i: usize) -> &Facts {
        &self.facts[i]
    }

    fn usable(&self, i: usize) -> bool {
        self.usable[i]
    }

    fn weight(&self, i: usize) -> f64 {
        self.weights[i]
    }

    fn distance(&self, i: usize) -> u64 {
        self.distances[i]
    }

    fn ask(&self) -> &Ask {
        &self.ask
    }

    fn now(&self) -> Instant {
        self.now
    }
}
