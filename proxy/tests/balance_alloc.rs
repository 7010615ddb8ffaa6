//! A balancing decision allocates nothing, and its time does not grow with the number of endpoints. A deadline
//! allocates nothing either.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger::balance::reported::{Report, Source};
use outrigger::balance::{
    Ask, Candidates, Cost, Facts, Kind, Memory, Peers, Policy, Prefix, Standing, Table,
};
use outrigger::deadline::{Learner, Settings, Work};
use outrigger_config::validated::{Adaptive, Strategy};
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

#[test]
fn a_deadline_and_what_is_learned_from_it_allocate_nothing() {
    let rule = Adaptive {
        strategy: Strategy::Quantile { quantile: 0.999, margin: 2.0 },
        floor: Duration::from_millis(1),
        ceiling: Duration::from_secs(60),
        explore: 0.01,
    };
    let [connect, first_byte, gap] = [(); 3].map(|()| Some(rule.clone()));
    let learner = Learner::new(Settings { connect, first_byte, gap }, None);
    let (mut rng, mut now) = (SmallRng::seed_from_u64(1), Instant::now());
    let mut live = || {
        for _ in 0..1_000 {
            now += Duration::from_millis(20);
            let after = Duration::from_millis(rng.random_range(1..100));
            let forecast = learner.forecast(&Work { prompt: 300, ..Work::default() }, 1, &mut rng);
            black_box((learner.gap(0, &mut rng), learner.connect(&mut rng)));
            learner.served(&forecast, after, now);
            learner.cut_off(&forecast, after, now);
            learner.longest_gap(after, now);
            learner.connected(after, now);
        }
    };
    // The first samples of a group make room for it.
    live();
    assert_eq!(allocation_counter::measure(live).count_total, 0);
}
