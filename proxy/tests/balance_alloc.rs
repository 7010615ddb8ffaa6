//! A balancing decision allocates nothing, and its time does not grow with the number of endpoints.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger::balance::reported::{Report, Source};
use outrigger::balance::{
    Ask, Candidates, Cost, Facts, Kind, Memory, Peers, Policy, Prefix, Standing, Table,
};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const KINDS: [Kind; 11] = [
    Kind::LeastLoad,
    Kind::LeastConnection,
    Kind::PowerOfTwo,
    Kind::PeakEwma,
    Kind::LeastTime,
    Kind::Prequal,
    Kind::ConsistentHash { table: Table::Maglev, bounded_load: Some(1.25) },
    Kind::ConsistentHash { table: Table::Ring, bounded_load: Some(1.25) },
    Kind::PrefixAffinity,
    Kind::SessionAffinity,
    Kind::RoundRobin,
];

/// Which endpoints can be used.
type Usable = fn(usize) -> bool;

/// Endpoints about which something of everything is known.
struct Endpoints {
    facts: Vec<Facts>,
    usable: Usable,
    ask: Ask,
    now: Instant,
}

impl Endpoints {
    fn new(count: usize, usable: Usable) -> Self {
        let (now, peers) = (Instant::now(), Arc::<Peers>::default());
        let mut rng = SmallRng::seed_from_u64(count as u64);
        let facts = |id: u64| {
            let facts = Facts::new(id.wrapping_mul(0x9E37_79B9_7F4A_7C15), now).among(&peers);
            know(&facts, &mut rng, now);
            facts
        };
        let text = [7; 40_000];
        Self {
            facts: (0..count as u64).map(facts).collect(),
            usable,
            ask: Ask {
                cost: Cost::of_prompt(text.len() as u64),
                key: Some(77),
                prefix: Prefix::of(&text),
            },
            now,
        }
    }

    fn policy(&self, kind: Kind) -> Policy {
        let members: Vec<_> = self.facts.iter().map(|facts| (facts.id(), 1)).collect();
        let policy = Policy::new(kind, &members, &Arc::new(Memory::new()));
        policy.sent(&self.ask, &self.facts[0], self.now);
        policy
    }
}

fn know(facts: &Facts, rng: &mut SmallRng, now: Instant) {
    for _ in 0..rng.random_range(0..11) {
        let standing: Standing = facts.enter(Cost::of_prompt(rng.random_range(0..10_000)));
        facts.first_byte(standing, Duration::from_millis(rng.random_range(10..1_000)), now);
    }
    if rng.random_bool(0.1) {
        facts.failed(now);
    }
    let report = Report {
        waiting: Some(rng.random_range(0.0..9.0)),
        running: Some(rng.random_range(0.0..30.0)),
        kv_usage: Some(rng.random_range(0.0..1.0)),
        utilization: None,
    };
    facts.reported().update(&report, Source::Scrape, facts.in_flight(), now);
}

impl Candidates for Endpoints {
    fn len(&self) -> usize {
        self.facts.len()
    }

    fn facts(&self, i: usize) -> &Facts {
        &self.facts[i]
    }

    fn usable(&self, i: usize) -> bool {
        (self.usable)(i)
    }

    fn weight(&self, _: usize) -> f64 {
        1.0
    }

    fn ask(&self) -> &Ask {
        &self.ask
    }

    fn now(&self) -> Instant {
        self.now
    }
}

/// How many endpoints, which of them can be used, and that in words.
const FLEETS: [(usize, Usable, &str); 6] = [
    (2, MOST, "most"),
    (32, MOST, "most"),
    (33, MOST, "most"),
    (1_000, MOST, "most"),
    (10_000, MOST, "most"),
    (10_000, FEW, "1 %"),
];

const MOST: Usable = |i| i % 7 != 1;
const FEW: Usable = |i| i % 100 == 1;

#[test]
fn a_decision_does_not_allocate() {
    const PICKS: u32 = 10_000;
    let mut rng = SmallRng::seed_from_u64(1);
    for (kind, (size, usable, share)) in KINDS.iter().flat_map(|kind| FLEETS.map(|it| (kind, it))) {
        let endpoints = Endpoints::new(size, usable);
        let policy = endpoints.policy(*kind);
        let start = Instant::now();
        let allocated = allocation_counter::measure(|| {
            for _ in 0..PICKS {
                let picked = policy.pick(black_box(&endpoints), &mut rng).unwrap();
                policy.sent(&endpoints.ask, &endpoints.facts[picked], endpoints.now);
            }
        });
        println!("{kind:?} of {size}, {share} usable: {:?}", start.elapsed() / PICKS);
        assert_eq!(allocated.count_total, 0, "{kind:?} of {size}");
    }
}
